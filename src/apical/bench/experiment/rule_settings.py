"""Settings of the learning rule: by name, with options, or by patterns of layers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from apical import rules
from apical.bench.experiment.settings import Settings, not_json, setting


@dataclass(frozen=True)
class RuleSettings(Settings):
    """The learning rule of each layer.

    Args:
        rule: a rule's name or package.module:Class, its fields ``{"rule": "fa", ...}``, or a
            mapping from layer name patterns to rules, the first match winning.
        switch: rules that take over later: ``{5: "fa"}`` trains five epochs by ``rule``, then by
            FA. Weights and the state of the optimizer stay (see ``apical.switch``). Epochs
            finished from 1 to ``epochs - 1``, each with a rule as for ``rule``.
    """

    rule: str | dict[str, Any] = "bp"
    switch: dict[int, str | dict[str, Any]] = setting(factory=dict, not_with=("learner",))

    label: ClassVar[str] = "rule"

    def __post_init__(self) -> None:
        if not isinstance(self.switch, Mapping) or not_json(self.switch):
            return super().__post_init__()  # which says what is wrong
        numbered = {  # JSON has the epochs as text
            int(epoch) if isinstance(epoch, str) and epoch.isdecimal() else epoch: rule
            for epoch, rule in self.switch.items()
        }
        in_order = dict(sorted(numbered.items(), key=lambda item: str(item[0]).zfill(9)))
        object.__setattr__(self, "switch", in_order)
        return super().__post_init__()

    def problems(self) -> list[str]:
        found = super().problems()
        for epoch in self.switch:
            if type(epoch) is not int or epoch < 1:
                found.append(f"switch at {epoch!r}: must be a whole number of epochs, at least 1")
        places = {f"switch at epoch {epoch}": rule for epoch, rule in self.switch.items()}
        for place, rule in {"rule": self.rule, **places}.items():
            try:
                rule_assignment(rule)
            except ValueError as error:
                found.append(f"{place}: {error}")
        return found

    def rule_at(self, epoch: int) -> str | dict[str, Any]:
        """The rule in force once so many epochs (>= 0) are finished."""
        return {0: self.rule, **self.switch}[max(e for e in (0, *self.switch) if e <= epoch)]


def rule_assignment(rule: str | dict[str, Any], *, norm: bool = False) -> Any:
    """What ``apical.convert`` takes: a rule, or a mapping from patterns to rules.

    Args: norm: rules without an explicit scale get the scale ``norm``.
    """
    if isinstance(rule, str) or "rule" in rule:
        return _normed(rules.build(rule), rule) if norm else rules.build(rule)
    return {pattern: rule_assignment(value, norm=norm) for pattern, value in rule.items()}


def rules_of(rule: str | dict[str, Any]) -> list[rules.Rule]:
    """All rules of an assignment."""
    assigned = rule_assignment(rule)
    return list(assigned.values()) if isinstance(assigned, dict) else [assigned]


def rule_values(rule: str | dict[str, Any], *, norm: bool = False) -> dict[str, Any]:
    """The rule in one form, however it was written, for the key. Args: norm: as above."""
    assignment = rule_assignment(rule, norm=norm)
    if not isinstance(assignment, dict):
        return rules.to_dict(assignment)
    # an object in JSON has no order once sorted, but here the first match wins
    return {"patterns": [[p, rules.to_dict(r)] for p, r in assignment.items()]}


def rule_label(rule: str | dict[str, Any]) -> str:
    """One word for a table or a folder name."""
    if isinstance(rule, str):
        return rule
    return str(rule["rule"]) if "rule" in rule else "mixed"


def _normed(rule: rules.Rule, given: Any) -> rules.Rule:
    """The rule, and the one it wraps, at the scale ``norm`` where no scale was given."""
    options = given if isinstance(given, Mapping) else {}
    if isinstance(inner := getattr(rule, "inner", None), rules.Rule):
        return rules.build(rule, inner=_normed(inner, options.get("inner")))
    if "scale" in options or getattr(rule, "scale", None) != "init":
        return rule
    return rules.build(rule, scale="norm")
