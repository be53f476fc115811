"""Why a layer cannot be converted, with the remedy; and what happens to modules that no rule
concerns."""

from collections.abc import Mapping
from typing import Literal

from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize

from apical.core.adapters import adapter_of, kind_of, parts
from apical.core.feedback import computed_weight
from apical.core.layers import is_converted
from apical.core.updates import Part
from apical.rules import Rule, TransportRule

Action = Literal["convert", "keep", "refuse"]

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_LISTS = (nn.ParameterList, nn.ParameterDict)

_OF_LAYERS = ("weight", "in_proj_", "q_proj_", "k_proj_", "v_proj_", "bias_")
"""How the names of the parameters begin that layers of a supported kind have (old `weight_norm` and
`spectral_norm` add `weight_g` and the like)."""

_TABLES = ("bias", "biases", "pos", "position", "positional", "positions", "rel", "relative")
"""Words in the names of parameters that hold one entry for each position."""

_LAZY = "is not initialised; run one forward pass of the model first"

# Their own forward computes what their torch class computes; it is written out for TorchScript.
_SAME_FORWARD = ("timm.layers.linear.Linear",)
_PRODUCTS: dict[type[nn.Module], str] = {
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), "convolution"),
    nn.Linear: "x W^T",
}


def without_rule(name: str, module: nn.Module) -> tuple[Action, str]:
    """What happens to a module for which no rule is defined."""
    if isinstance(module, _NORMS):
        return "keep", "norm: scales each unit, exact gradient"
    if isinstance(module, _EMBEDDINGS):
        return "keep", "embedding: its input has no gradient to replace"
    held = {name: p for name, p in module._parameters.items() if p is not None}
    if any(isinstance(p, UninitializedParameter) for p in held.values()):
        return "refuse", _LAZY
    matrices = {name: p for name, p in held.items() if not _is_elementwise(p)}
    if not matrices:
        return "keep", f"elementwise, exact gradient: {_listed(held)}"
    unknown = {name: p for name, p in matrices.items() if not _is_table(name, p)}
    if not unknown:
        return "keep", f"added to activations, exact gradient: {_listed(held)}"
    keep = (
        f"or keep its exact gradient: {{{name!r}: 'bp', '*': ...}} for this one,"
        " on_unsupported='keep' for all"
    )
    if isinstance(module, _LISTS):
        owner, _, own = name.rpartition(".")
        used = f"{own}.{next(iter(unknown))}"
        return "refuse", (
            f"is a list of weights ({_listed(unknown)}) that {owner or 'the model'} uses itself;"
            f" say how: apical.adapters.register(the class of {owner or 'the model'}, {{{used!r}:"
            f" Weight('x W^T'), ...}}, forward), {keep}"
        )
    return "refuse", (
        f"holds weights ({_listed(unknown)}) but is of no kind that Apical converts; say what it"
        f" computes with them: apical.adapters.register({type(module).__name__},"
        f" {{{next(iter(unknown))!r}: Weight('x W^T')}}), {keep}"
    )


def of_layer(name: str, module: nn.Module, rule: Rule) -> str:
    """Why a layer of a kind that can be converted cannot learn by the rule; empty if it can."""
    obstacle = _of_module(module)
    if obstacle:
        return obstacle
    adapter = adapter_of(module)
    transports = isinstance(rule, TransportRule)
    if adapter and not transports and any(use.stacked for use in adapter.of(module).values()):
        return (
            "each of its weights reads the rows that are chosen for it, so no axis of its inputs"
            f" counts samples, which {type(rule).__name__} needs; give it a rule that transports,"
            f" or its exact gradient, by name: {{{name!r}: 'fa', '*': ...}}"
        )
    texts = (_of_rule(rule, part) for part in parts(module).values() if part.tapped or transports)
    return next((text for text in texts if text), "")


def is_empty(module: nn.Module) -> bool:
    """Whether the weights of a layer have no entries, as those of `nn.Linear(4, 0)`."""
    held = [p for p in module._parameters.values() if p is not None]
    if any(isinstance(p, UninitializedParameter) for p in held):
        return False
    weights = [p for p in held if p.dim() > 1]
    return bool(weights) and not any(p.numel() for p in weights)


def _of_rule(rule: Rule, part: Part) -> str:
    """Why a weight cannot learn by the rule; empty if it can."""
    op, weight = part.op, part.weight
    owner = weight if weight._base is None else weight._base
    if isinstance(owner, nn.Parameter) or type(owner).__name__ == "DTensor":
        return rule.obstacle(op, weight)
    if rule.changes_weight:
        return computed_weight(rule)
    trained = any(p is not None and p.requires_grad for p in part.parameters)
    return rule.obstacle(op, weight.detach().requires_grad_(trained))


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


def _of_module(module: nn.Module) -> str:
    """Why a layer of a supported kind cannot be converted; empty if it can."""
    if is_converted(module):
        return "is converted already; apical.revert(model) first, then convert again"
    if hasattr(module, "feedback"):
        return (
            "has a 'feedback' of its own, the name of what conversion adds; rename that, or keep"
            " the layer's exact gradient with on_unsupported='keep'"
        )
    if any(isinstance(p, UninitializedParameter) for p in module.parameters()):
        return _LAZY
    if getattr(module, "qconfig", None) is not None:
        return (
            "has a qconfig, and quantisation replaces layers by their exact class, which conversion"
            " changes; convert and train first, then apical.revert(model), then quantise"
        )
    if parametrize.is_parametrized(module):
        registered = {
            name: ", ".join(type(part).__name__ for part in made)
            for name, made in module.parametrizations.items()  # type: ignore[operator,union-attr]
        }
        name, made = next(iter(registered.items()))
        return (
            f"is parametrized ({name} by {made}); convert first, then register the parametrization."
            " Of a model that registers its own:"
            f" torch.nn.utils.parametrize.remove_parametrizations(layer, {name!r}), convert, then"
            " register it again"
        )
    sharded = next((n for n, p in module.named_parameters() if type(p).__name__ == "DTensor"), "")
    if sharded:
        return (
            f"its {sharded} is a DTensor, a part of a weight on each process: convert first, then"
            " fully_shard; tensor parallelism (parallelize_module) is not supported, use FSDP2 or"
            " DDP"
        )
    if replaced := _replaced_forward(module):
        return replaced
    adapter = adapter_of(module)
    held = dict(module.named_parameters())
    unheld = [name for name in (adapter.of(module) if adapter else ()) if name not in held]
    missing = [name for name in unheld if not isinstance(getattr(module, name, None), Tensor)]
    if missing:
        named = " or ".join(missing)
        return f"has no {named}, which its adapter names; it has {_listed(held)}"
    further = {
        name: p
        for name, p in further_parameters(module).items()
        if not (_is_elementwise(p) or _is_table(name, p))
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


def _replaced_forward(module: nn.Module) -> str:
    """What is wrong with a `forward` that is not the one of the layer's kind; empty if nothing."""
    plain = kind_of(module)
    assert plain is not None
    kind = type(module)
    for method in ("forward", "_conv_forward"):
        if method in vars(module):
            return (
                f"has a {method} of its own, not of its class, as the hooks of accelerate and some"
                " profilers set: that would run in the place of what conversion adds. Remove it"
                " (accelerate.hooks.remove_hook_from_submodules(model)), convert, then add it again"
            )
        overrides = getattr(kind, method, None) is not getattr(plain, method, None)
        if overrides and f"{kind.__module__}.{kind.__qualname__}" not in _SAME_FORWARD:
            product = _PRODUCTS.get(plain)
            uses = f"{{'weight': apical.adapters.Weight({product!r})}}" if product else "..."
            return (
                f"overrides {method} of {plain.__name__}, so it may compute something else; use"
                f" the plain {plain.__name__}, say what it computes with"
                f" apical.adapters.register({kind.__name__}, {uses}), or keep it with"
                " on_unsupported='keep'"
            )
    return ""


def further_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of a layer of a supported kind that are no weight or bias of its products."""
    adapter = adapter_of(module)
    uses = adapter.of(module) if adapter else {}
    named = {*uses, *(use.bias for use in uses.values())}
    return {
        name: p
        for name, p in module._parameters.items()
        if p is not None and not (name in named if adapter else name.startswith(_OF_LAYERS))
    }
