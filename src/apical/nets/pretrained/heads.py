"""The last layer of a net: finding and replacing it."""

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize

from apical.core.example import call_with
from apical.core.layers import converted_layers, modes_kept
from apical.nets.initial import initialise

NAMES = ("classifier", "fc", "head", "heads", "last_linear", "logits", "output")
"""What libraries call the head, or the container whose last layer it is."""

Head = nn.Linear | nn.Conv2d


def find_head(model: nn.Module, *, example: Any = None) -> str:
    """The name of the layer that computes a net's outputs.

    Without an example it is found by names, from the outside in: a part with a name in `NAMES`, the
    last part of a `Sequential`, the only part of a wrapper, the only linear layer. With one it is
    the layer whose output equals the net's.

    Args: example: an input, as `apical.convert` takes it; the net is run once in eval mode.
    Returns: the name of a Linear, or of a 1x1 convolution that ends a container.
    Raises: ValueError if there is none, or if there are several candidates; it names them.

    >>> find_head(nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)))
    '2'
    """
    found = _by_running(model, example) if example is not None else _by_name(model)
    if len(found) == 1:
        return found[0]
    linear = [name for name, layer in _layers(model) if isinstance(layer, nn.Linear)]
    if not found and not linear:
        raise ValueError(
            f"{type(model).__name__} has no linear layer, so no head was found. Give its name:"
            " head='...'"
        )
    candidates = ", ".join(map(repr, found or linear))
    raise ValueError(
        f"the head of {type(model).__name__} is not certain; candidates: {candidates}. Say which:"
        " head='...', or give an input: example=x"
    )


def replace_head(
    model: nn.Module,
    outputs: int,
    *,
    head: str | None = None,
    example: Any = None,
    std: float | None = None,
    seed: int = 0,
) -> str:
    """Replace the last layer by a new one with another number of outputs. In place.

    The new layer is of the old one's kind, device and type, with a bias if that had one.

    Args:
        outputs: at least 1.
        head: the name of the old layer; None: as found by `find_head`.
        example: an input for `find_head`.
        std: standard deviation of normal weights, biases 0; None: PyTorch's default initialisation.
        seed: of the new weights; global generators are not used.

    Returns: the name of the layer, for example as a pattern of `apical.convert`.
    Raises: ValueError if the head is not found or cannot be replaced.

    >>> net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    >>> replace_head(net, 8), net[2]
    ('2', Linear(in_features=3, out_features=8, bias=True))
    """
    if not isinstance(outputs, int) or outputs < 1:
        raise ValueError(f"replace_head: outputs={outputs} must be a whole number of at least 1")
    if any(True for _ in converted_layers(model)):
        raise ValueError("the model is converted: replace the head first, then convert")
    name = find_head(model, example=example) if head is None else head
    old = _checked(model, name)
    bias = old.bias is not None
    new: Head
    if isinstance(old, nn.Linear):
        new = nn.utils.skip_init(nn.Linear, old.in_features, outputs, bias=bias, device="cpu")
    else:
        new = nn.utils.skip_init(nn.Conv2d, old.in_channels, outputs, 1, bias=bias, device="cpu")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        if std is None:
            initialise(new, "default", generator)
        else:
            new.weight.normal_(0, std, generator=generator)
            if new.bias is not None:
                new.bias.zero_()
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, new.to(old.weight).train(old.training))
    return name


def _checked(model: nn.Module, name: str) -> Head:
    """The layer of this name.     Raises: ValueError if it cannot be replaced."""
    modules = dict(model.named_modules())
    layer = modules.get(name)
    if layer is None or not name:
        known = ", ".join(repr(n) for n, _ in _layers(model))
        raise ValueError(f"there is no layer {name!r} to replace; layers with weights: {known}")
    if not _can_end(layer):
        raise ValueError(
            f"{name} ({type(layer).__name__}) is no Linear and no 1x1 convolution: replace it in"
            " your code"
        )
    if parametrize.is_parametrized(layer) or isinstance(layer.weight, UninitializedParameter):
        raise ValueError(
            f"{name} ({type(layer).__name__}) is parametrized or not initialised yet; remove the"
            " parametrization, or run the model once"
        )
    shared = [n for n, m in modules.items() if m is layer]
    if len(shared) > 1:
        raise ValueError(
            f"{name} is also {shared[1]}: one layer in two places; replace it in your code"
        )
    return layer


def _layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Layers with weights of their own, but not what an attention layer contains."""
    inside: set[int] = set()
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            inside.update(id(child) for child in module.modules())
        if id(module) not in inside and module._parameters:
            yield name, module


def _can_end(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) or (
        isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and layer.groups == 1
    )


def _by_name(model: nn.Module, prefix: str = "") -> list[str]:
    if prefix and _can_end(model):
        return [prefix]
    inner = prefix + "." if prefix else ""
    children = [(n, c) for n, c in model.named_children() if any(True for _ in _layers(c))]
    # "head_dist" beside "head" is a second head; "fc_norm" has no linear layer and drops out
    named = [(n, c) for n, c in children if n in NAMES or n.partition("_")[0] in NAMES]
    if named:
        return [end for n, c in named for end in _by_name(c, inner + n)]
    if children and (isinstance(model, nn.Sequential) or len(children) == 1):
        name, last = children[-1]
        return _by_name(last, inner + name)
    linear = [name for name, layer in _layers(model) if isinstance(layer, nn.Linear)]
    return [inner + linear[0]] if len(linear) == 1 else []


def _by_running(model: nn.Module, example: Any) -> list[str]:
    last: list[tuple[str, Tensor]] = []

    def note(name: str, module: nn.Module, args: Any, output: Tensor) -> None:
        last.append((name, output.detach()))

    with ExitStack() as hooks, modes_kept(model), torch.no_grad():
        for name, layer in _layers(model):
            if _can_end(layer) and name:
                hooks.enter_context(layer.register_forward_hook(partial(note, name)))
        given = call_with(model.eval(), example)
    if not isinstance(given, Tensor):
        raise ValueError(
            f"the model gives a {type(given).__name__}, not one tensor: say head='...'"
        )
    same = [
        name
        for name, output in last
        if output.numel() == given.numel() and torch.equal(output.flatten(), given.flatten())
    ]
    return list(dict.fromkeys(same))
