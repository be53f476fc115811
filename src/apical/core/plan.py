"""Deciding, layer by layer, what a conversion does, and saying why."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize

from apical import rules
from apical.core import memory
from apical.core.converted import is_converted, modules
from apical.core.example import broadcast_bytes
from apical.core.layers import kind_of, mixin_for, operations
from apical.core.outputs import OutputKey
from apical.rules import BP, BroadcastRule, Rule, TransportRule

Predicate = Callable[[str, nn.Module], bool]
Assignment = Rule | str | Mapping[Any, Any]
Action = Literal["convert", "keep", "refuse"]

_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)

_OF_LAYERS = ("weight", "in_proj_", "q_proj_", "k_proj_", "v_proj_", "bias_")
"""How the names of the parameters begin that layers of a supported kind have (old `weight_norm` and
`spectral_norm` add `weight_g` and the like)."""

_TABLES = ("bias", "biases", "pos", "position", "positional", "positions", "rel", "relative")
"""Words in the names of parameters that hold one entry for each position."""

# Their own forward computes what their torch class computes; it is written out for TorchScript.
_SAME_FORWARD = ("timm.layers.linear.Linear",)


@dataclass(frozen=True)
class Row:
    """What happens to one layer."""

    layer: str
    kind: str
    action: Action
    rule: Rule | None
    why: str
    module: nn.Module
    broadcast_bytes: int | None = None

    @property
    def feedback_bytes(self) -> int | None:
        """Of the feedback that the layer would get. For broadcast rules it depends on the size of
        the layer's input: None without an example, 0 where the model does not call the layer."""
        if isinstance(self.rule, BroadcastRule):
            return self.broadcast_bytes
        if isinstance(self.rule, TransportRule):
            weights = [weight for _, weight in operations(self.module)]
            return sum(memory.transport_bytes(self.rule, weight) for weight in weights)
        return 0

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
                reason = row.why.partition(";")[0]  # without the remedy
                row = Row(name, row.kind, "keep", None, f"kept knowingly: {reason}", module)
            else:
                problems.append(f"{name or '(root)'} ({row.kind}): {row.why}")
        rows.append(row)
    problems += _followed_in_part(rows)
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
        if isinstance(module, nn.MultiheadAttention) or is_converted(module):
            inside.update(id(child) for child in module.modules() if child is not module)
        if id(module) not in inside and (module._parameters or mixin_for(module)):
            yield name, module


def _decide(name: str, module: nn.Module, choices: list[_Choice]) -> Row:
    kind = type(module).__name__
    matching = [choice for choice in choices if choice.matches(name, module)]
    for choice in matching:
        choice.matched.append(name)
    first = matching[0] if matching else None
    unnamed = "no pattern names it: exact gradient"
    if mixin_for(module) is None:
        action, why = _without_rule(name, module)
        if action == "refuse" and first is None:
            action, why = "keep", unnamed
        elif action == "refuse" and first is not None and isinstance(first.rule, BP):
            first.used = True
            action, why = "keep", "rule BP: exact gradient"
        return Row(name, kind, action, None, why, module)
    if first is None:
        return Row(name, kind, "keep", None, unnamed, module)
    first.used = True
    rule = first.rule
    if isinstance(rule, BP) and not rule.constrain_weights:
        return Row(name, kind, "keep", None, "rule BP: exact gradient", module)
    obstacle = _obstacle(module)
    if not obstacle:
        of_rule = (rule.obstacle(op, weight) for op, weight in operations(module))
        obstacle = next((text for text in of_rule if text), "")
    if obstacle:
        return Row(name, kind, "refuse", None, obstacle, module)
    why = "every layer" if first.pattern == "*" else f"matches {first}"
    return Row(name, kind, "convert", rule, why, module)


def _without_rule(name: str, module: nn.Module) -> tuple[Action, str]:
    """What happens to a module for which no rule is defined."""
    if isinstance(module, _NORMS):
        return "keep", "norm: scales each unit, exact gradient"
    if isinstance(module, _EMBEDDINGS):
        return "keep", "embedding: its input has no gradient to replace"
    if isinstance(module, _RECURRENT):
        return "refuse", (
            "recurrent layers are not supported yet; keep it knowingly with on_unsupported='keep'"
        )
    held = {name: p for name, p in module._parameters.items() if p is not None}
    matrices = {name: p for name, p in held.items() if not _is_elementwise(p)}
    if not matrices:
        return "keep", f"elementwise, exact gradient: {_listed(held)}"
    unknown = {name: p for name, p in matrices.items() if not _is_table(name, p)}
    if not unknown:
        return "keep", f"added to activations, exact gradient: {_listed(held)}"
    return "refuse", (
        f"holds weights ({_listed(unknown)}) but is of no kind that Apical converts; use Linear, a"
        f" convolution or MultiheadAttention, or keep its exact gradient: {{{name!r}: 'bp', '*':"
        " ...} for this one, on_unsupported='keep' for all"
    )


def _is_elementwise(parameter: Tensor) -> bool:
    return sum(size > 1 for size in parameter.shape) <= 1


def _is_table(name: str, parameter: Tensor) -> bool:
    """Whether a parameter is added to activations: one entry for all samples, as class tokens and
    tables of positions are, (1, positions, features), or a table of relative positions, which only
    its name shows."""
    words = {word.rstrip("0123456789") for word in name.lower().split("_")}
    return parameter.shape[0] == 1 or not words.isdisjoint(_TABLES)


def _listed(parameters: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name} {tuple(p.shape)}" for name, p in parameters.items())


def _obstacle(module: nn.Module) -> str:
    """Why a layer of a supported kind cannot be converted; empty if it can."""
    if is_converted(module):
        return "is converted already; apical.revert(model) first, then convert again"
    if hasattr(module, "feedback"):
        return (
            "has a 'feedback' of its own, the name of what conversion adds; rename that, or keep"
            " the layer's exact gradient with on_unsupported='keep'"
        )
    if any(isinstance(p, UninitializedParameter) for p in module.parameters()):
        return "is not initialised; run one forward pass of the model first"
    if getattr(module, "qconfig", None) is not None:
        return (
            "has a qconfig, and quantisation replaces layers by their exact class, which conversion"
            " changes; convert and train first, then apical.revert(model), then quantise"
        )
    if parametrize.is_parametrized(module):
        return "is parametrized; convert first, then register the parametrization"
    plain = kind_of(module)
    assert plain is not None
    kind = type(module)
    for method in ("forward", "_conv_forward"):
        overrides = getattr(kind, method, None) is not getattr(plain, method, None)
        if overrides and f"{kind.__module__}.{kind.__qualname__}" not in _SAME_FORWARD:
            return (
                f"overrides {method} of {plain.__name__}, so it may compute something else; use"
                f" the plain {plain.__name__}, or keep it with on_unsupported='keep'"
            )
    further = {
        name: p
        for name, p in module._parameters.items()
        if p is not None
        and not name.startswith(_OF_LAYERS)
        and not (_is_elementwise(p) or _is_table(name, p))
    }
    if further:
        return (
            f"also holds {_listed(further)}, whose use is unknown; put it into a layer of its own,"
            " or keep this layer's exact gradient with on_unsupported='keep'"
        )
    if any(p.is_meta for p in module.parameters()):
        return "is on the meta device; materialise and load the weights first"
    if any(p.is_complex() for p in module.parameters()):
        return "has complex weights, for which no rule is defined"
    return ""


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


def _followed_in_part(rows: list[Row]) -> Iterator[str]:
    """Layers whose feedback is to follow a weight that another layer updates as well."""
    holders: dict[Any, list[Row]] = {}
    for row in rows:
        for owner in _weights(row.module):
            holders.setdefault(owner, []).append(row)
    reported: set[str] = set()
    for row in rows:
        if row.action != "convert" or row.rule is None or not row.rule.follows_weight:
            continue
        shared = (other for owner in _weights(row.module) for other in holders[owner])
        for other in shared:
            alike = other.action == "convert" and other.rule == row.rule
            if alike or other.layer in reported:
                continue
            reported.add(row.layer)
            yield (
                f"{row.layer} ({row.kind}): shares its weight with {other.layer} ({other.kind}),"
                f" and the feedback of {rules.spell(row.rule)} would not follow what that layer"
                " learns; give both layers this rule, or this one a rule whose feedback does not"
                " follow the weight (fa, usf, bp)"
            )
            break


def _weights(module: nn.Module) -> list[Any]:
    """The parameters of a layer that may be tied: its weights, and a table of embeddings."""
    if mixin_for(module) is None:
        return list(module._parameters.values())
    found = [weight for _, weight in operations(module)]
    return [weight if weight._base is None else weight._base for weight in found]


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
