"""Deciding, layer by layer, what a conversion does, and saying why."""

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, Literal

from torch import nn
from torch.nn.utils import parametrize

from apical import rules
from apical.core import memory, obstacles
from apical.core.adapters import adapter_of, mixin_for, parts
from apical.core.example import broadcast_bytes
from apical.core.layers import is_converted, modules
from apical.core.obstacles import Action
from apical.core.outputs import OutputKey
from apical.rules import BP, BroadcastRule, Rule, TransportRule

UNNAMED = "no pattern names it: exact gradient"
"""Why a layer is kept."""

Predicate = Callable[[str, nn.Module], bool]
Assignment = Rule | str | Mapping[Any, Any]


@dataclass(frozen=True)
class Row:
    """What happens to one layer.

    Attributes: by_kind: whether the layer is kept for what it seems to compute, not because the
        user said so.
    """

    layer: str
    kind: str
    action: Action
    rule: Rule | None
    why: str
    module: nn.Module
    broadcast_bytes: int | None = None
    by_kind: bool = False

    @property
    def feedback_bytes(self) -> int | None:
        """Of the feedback that the layer would get. For broadcast rules it depends on the size of
        the layer's input: None without an example, 0 where the model does not call the layer."""
        if isinstance(self.rule, BroadcastRule):
            return self.broadcast_bytes
        if isinstance(self.rule, TransportRule):
            weights = [part.weight for part in parts(self.module).values()]
            return sum(memory.transport_bytes(self.rule, weight) for weight in weights)
        return 0

    def weights(self) -> list[Any]:
        """The parameters of the layer that may be tied: those of its weights, a table of
        embeddings."""
        if mixin_for(self.module) is None or self.action == "refuse":
            return list(self.module._parameters.values())
        made_of = (part.parameters for part in parts(self.module).values())
        return [parameter for owners in made_of for parameter in owners]

    def cells(self) -> list[str]:
        """As a row of a table."""
        rule = "exact" if self.rule is None else rules.spell(self.rule)
        size = self.feedback_bytes
        shown = "needs example=" if size is None else f"{size:,}"
        return [self.layer or "(root)", self.kind, self.action, rule, shown, self.why]


@dataclass(frozen=True)
class Plan:
    """The rows of every layer with weights, and what stands in the way; `print` it: for each layer
    also the bytes of its feedback (`Row.feedback_bytes`)."""

    rows: tuple[Row, ...]
    problems: tuple[str, ...]

    def __str__(self) -> str:
        head = ["layer", "type", "action", "rule", "bytes", "why"]
        lines = table(head, [row.cells() for row in self.rows])
        return "\n".join([*lines, *(f"problem: {text}" for text in self.problems)])


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Lines in which the cells of a column stand below each other."""
    widths = [max(len(cells[i]) for cells in [head, *rows]) for i in range(len(head))]
    lines = [
        " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        for cells in [head, ["-" * width for width in widths], *rows]
    ]
    return [line.rstrip() for line in lines]


def plan(
    model: nn.Module,
    rule: Assignment,
    *,
    example: Any = None,
    output: OutputKey = None,
    output_axis: int | None = None,
    on_unsupported: Literal["error", "keep"] = "error",
) -> Plan:
    """What `convert` would do to each layer with weights, and why; the model is not changed.

    Args: as `apical.convert`. With an example, a copy of the model runs on it, and the rows give
            the bytes of broadcast rules too; no feedback is allocated.
    Returns: a `Plan`; `print` it. Its `problems` are what `convert` would raise.
    Raises: ValueError for an unknown rule.
    """
    rows, problems = [], list(_wrappers(model))
    if on_unsupported not in ("error", "keep"):
        raise ValueError(f"on_unsupported={on_unsupported!r} is neither 'error' nor 'keep'")
    choices = _choices(rule)
    for name, module in _layers(model):
        row = _decide(name, module, choices)
        if row.action == "refuse":
            if on_unsupported == "keep":
                row = _kept(row, row.why)
            else:
                problems.append(f"{name or '(root)'} ({row.kind}): {row.why}")
        rows.append(row)
    for place, text in _followed_in_part(rows):
        row = rows[place]
        if on_unsupported == "keep":
            rows[place] = _kept(row, text)
        else:
            problems.append(f"{row.layer or '(root)'} ({row.kind}): {text}")
    problems += _useless_patterns(rows, choices)
    if not any(mixin_for(row.module) for row in rows):
        held = ", ".join(f"{row.layer or '(root)'} ({row.kind})" for row in rows[:5])
        problems.append(
            f"the model has no layer that a rule could convert; it has weights in {held or 'none'}."
            " Use Linear, a convolution or MultiheadAttention of torch.nn"
        )
    chosen = {row.layer: (row.module, row.rule) for row in rows if row.action == "convert"}
    if example is not None and any(isinstance(rule, BroadcastRule) for _, rule in chosen.values()):
        sizes = broadcast_bytes(model, example, chosen, output, output_axis)
        rows = [replace(row, broadcast_bytes=sizes.get(row.layer, 0)) for row in rows]
    return Plan(tuple(rows), tuple(problems))


def _kept(row: Row, problem: str) -> Row:
    reason = problem.partition(";")[0]  # without the remedy
    return Row(row.layer, row.kind, "keep", None, f"kept knowingly: {reason}", row.module)


@dataclass
class _Choice:
    """A pattern with its rule; the layers it matches, and whether one of them follows it."""

    pattern: str | Predicate
    rule: Rule
    matched: list[str] = field(default_factory=list)
    used: bool = False

    def matches(self, name: str, module: nn.Module) -> bool:
        if callable(self.pattern):
            return bool(self.pattern(name, module))
        return fnmatchcase(name, self.pattern)

    def __str__(self) -> str:
        return getattr(self.pattern, "__name__", repr(self.pattern))


def _choices(rule: Assignment) -> list[_Choice]:
    if isinstance(rule, Mapping) and "rule" not in rule:
        if not rule:
            raise ValueError("an empty mapping assigns no rule; give {'*': rule} or a rule")
        return [_Choice(_pattern(key), rules.build(value)) for key, value in rule.items()]
    return [_Choice("*", rules.build(rule))]


def _pattern(key: Any) -> str | Predicate:
    if isinstance(key, type):
        raise ValueError(
            f"a pattern is a name or a predicate, not the class {key.__name__}; for layers of a"
            f" kind give `lambda name, layer: isinstance(layer, {key.__name__})`"
        )
    if not (isinstance(key, str) or callable(key)):
        raise ValueError(
            f"a pattern is a name such as 'layer4.*', or a predicate (name, layer) -> bool, not"
            f" {key!r}"
        )
    return key


def _layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules that hold parameters themselves, but not what an attention layer contains."""
    inside: set[int] = set()
    for name, module in modules(model):
        inside.update(map(id, _belonging(module)))
        if id(module) not in inside and (module._parameters or mixin_for(module)):
            yield name, module


def _belonging(module: nn.Module) -> Iterator[nn.Module]:
    """What is part of a layer and no layer of its own."""
    adapter = adapter_of(module)
    if is_converted(module):
        yield from module.feedback.modules()  # type: ignore[union-attr]
    if parametrize.is_parametrized(module) and mixin_for(module):
        yield from module.parametrizations.modules()  # type: ignore[union-attr]
    if isinstance(module, nn.MultiheadAttention):
        yield from (child for child in module.modules() if child is not module)
    elif adapter is not None:
        for name in adapter.of(module):
            if "." in name:
                yield module.get_submodule(name.rpartition(".")[0])


def _decide(name: str, module: nn.Module, choices: list[_Choice]) -> Row:
    kind = type(module).__name__
    matching = [choice for choice in choices if choice.matches(name, module)]
    for choice in matching:
        choice.matched.append(name)
    first = matching[0] if matching else None
    if mixin_for(module) is None:
        action, why = obstacles.without_rule(name, module)
        by_kind = action == "keep" and first is not None
        if action == "refuse" and first is None:
            action, why = "keep", UNNAMED
        elif (
            first is not None
            and isinstance(first.rule, BP)
            and (action == "refuse" or first.pattern != "*")
        ):
            first.used = True
            action, why, by_kind = "keep", "rule BP: exact gradient", False
        return Row(name, kind, action, None, why, module, by_kind=by_kind)
    if first is None:
        return Row(name, kind, "keep", None, UNNAMED, module)
    first.used = True
    rule = first.rule
    if isinstance(rule, BP) and not rule.constrain_weights:
        return Row(name, kind, "keep", None, "rule BP: exact gradient", module)
    if obstacles.is_empty(module):
        return Row(name, kind, "keep", None, "no entries in its weight: nothing to learn", module)
    obstacle = obstacles.of_layer(name, module, rule)
    if obstacle:
        return Row(name, kind, "refuse", None, obstacle, module)
    why = "every layer" if first.pattern == "*" else f"matches {first}"
    return Row(name, kind, "convert", rule, why, module)


def _wrappers(model: nn.Module) -> Iterator[str]:
    for name, module in modules(model):
        kind = type(module).__name__
        if isinstance(module, nn.parallel.DistributedDataParallel | nn.DataParallel):
            yield f"{name or '(root)'} ({kind}): convert the model first, then wrap it"
        elif "FSDP" in kind or "FullyShardedDataParallel" in kind:
            yield f"{name or '(root)'} ({kind}): sharded parameters are not supported; use DDP"
        elif kind == "OptimizedModule":
            yield f"{name or '(root)'} ({kind}): convert the model first, then compile it"
        elif kind.endswith("ScriptModule") or kind == "GraphModule":
            yield f"{name or '(root)'} ({kind}): its forward is fixed; convert the original module"


def _followed_in_part(rows: list[Row]) -> Iterator[tuple[int, str]]:
    """The place of layers whose feedback is to follow a weight that another layer updates as well,
    and why it cannot."""
    holders: dict[Any, list[Row]] = {}
    for row in rows:
        for owner in row.weights():
            holders.setdefault(owner, []).append(row)
    reported: set[str] = set()
    for place, row in enumerate(rows):
        if row.action != "convert" or row.rule is None or not row.rule.follows_weight:
            continue
        shared = (other for owner in row.weights() for other in holders[owner])
        for other in shared:
            alike = other.action == "convert" and other.rule == row.rule
            if alike or other.layer in reported:
                continue
            reported.add(row.layer)
            both = "" if mixin_for(other.module) is None else "give both layers this rule, or "
            yield (
                place,
                f"shares its weight with {other.layer} ({other.kind}), and the feedback of"
                f" {rules.spell(row.rule)} would not follow what that layer learns; {both}give this"
                " one a rule whose feedback does not follow the weight (fa, usf, bp):"
                f" {{{row.layer!r}: 'fa', '*': ...}}, or keep its exact gradient with"
                " on_unsupported='keep'",
            )
            break


def _useless_patterns(rows: list[Row], choices: list[_Choice]) -> Iterator[str]:
    names = [row.layer for row in rows if mixin_for(row.module)]
    for choice in choices:
        if choice.pattern == "*" or choice.used:
            continue
        listed = ", ".join(map(repr, choice.matched[:3]))
        if not choice.matched:
            near = difflib.get_close_matches(str(choice.pattern), names, n=3, cutoff=0.3)
            listed = ", ".join(map(repr, near or names[:3]))
            yield f"pattern {choice} matches no layer; near: {listed}"
        elif any(name in names for name in choice.matched):
            yield (
                f"pattern {choice} comes too late: earlier patterns already take {listed}; put it"
                " first"
            )
        else:
            yield f"pattern {choice} matches only layers that no rule converts: {listed}"
