"""Nets by name. Plain modules without a rule; they take normalised float images (N, C, H, W).

Recurrent nets take sequences (N, T, inputs) and are put together from a cell: see `Recurrent`.

>>> build("mlp", in_shape=(1, 8, 8), num_classes=10, hidden=[32])[1]
Linear(in_features=64, out_features=32, bias=True)
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Literal

import torch
from torch import nn

from apical.names import unknown
from apical.nets.efficientnet_lite import efficientnet_lite0
from apical.nets.external import build_external, in_libraries
from apical.nets.initial import LAWS, initialise
from apical.nets.lenet import lenet
from apical.nets.mlp import mlp
from apical.nets.offers import OwnLoss, Problem, Traced
from apical.nets.recurrent import GRU, LSTM, SRN, Cell, Recurrent
from apical.nets.resnet import resnet20, resnet32, resnet44, resnet56, resnet110
from apical.nets.spiking.networks import spiking_conv, spiking_mlp
from apical.nets.transformer import causal_transformer
from apical.nets.vgg import vgg
from apical.nets.vit import vit

__all__ = [
    "CELLS",
    "GRU",
    "LAWS",
    "LSTM",
    "NETS",
    "SRN",
    "TRANSFORMERS",
    "OwnLoss",
    "Problem",
    "Recurrent",
    "Traced",
    "build",
    "build_recurrent",
    "build_transformer",
    "initialise",
]


def build(
    name: str,
    *,
    in_shape: tuple[int, ...],
    num_classes: int,
    seed: int | None = None,
    **options: object,
) -> nn.Module:
    """A net by name, for images of `in_shape` and `num_classes` classes.

    Args: name: one of NETS, or "torchvision:NAME", "timm:NAME", "package.module:callable".
        in_shape: (channels, height, width); "mlp" and nets by path take any shape.
        num_classes: number of outputs, at least 1.
        seed: of the initial weights; PyTorch's global generators are then left as they were.
            None draws from the global generator, as any torch module does.
        options: of the net; see its docstring.
    Raises: ValueError for an unknown name or option, or a shape the net cannot take.
    """
    shape = tuple(in_shape)
    image = len(shape) == 3 or (name == "mlp" or (":" in name and len(shape) > 0))
    if not image or any(not isinstance(n, int) or n < 1 for n in shape):
        raise ValueError(
            f"net {name!r}: in_shape={in_shape!r} must be (channels, height, width), each >= 1; "
            "net 'mlp' takes any shape"
        )
    if not isinstance(num_classes, int) or num_classes < 1:
        raise ValueError(f"num_classes={num_classes!r} must be a whole number of at least 1")
    with _seeded(seed):
        if ":" in name:
            return build_external(name, in_shape=shape, num_classes=num_classes, options=options)
        make = _own(name, options)
        try:
            return make(in_shape=shape, num_classes=num_classes, **options)
        except (TypeError, RuntimeError, OverflowError, MemoryError, IndexError) as error:
            raise refused(name, options, error) from error


def build_recurrent(
    name: str,
    *,
    inputs: int,
    outputs: int,
    hidden: int = 100,
    output: Literal["last", "every"] = "last",
    init: Literal["orthogonal", "uniform"] = "orthogonal",
    **options: object,
) -> Recurrent:
    """A cell by name, unrolled; weights use the global generator.

    Args: name: one of CELLS.     inputs: at each step.     hidden: units, at least 1.
        output, init: as of `Recurrent`.     options: of the cell; see its docstring.
    Raises: ValueError for an unknown name or option, or a value out of range.
    """
    if name not in CELLS:
        raise unknown("recurrent net", name, CELLS)
    allowed = set(inspect.signature(CELLS[name]).parameters) - {"inputs"} | {"init"}
    for option in options:
        if option not in allowed:
            raise unknown(f"option of net {name!r}", option, allowed)
    if type(hidden) is not int:
        raise ValueError(f"net {name!r}: hidden={hidden!r} must be a whole number of at least 1")
    try:
        return Recurrent(CELLS[name](inputs, hidden, **options), outputs, output=output, init=init)
    except (TypeError, RuntimeError, OverflowError, MemoryError) as error:
        raise refused(name, {"hidden": hidden, **options}, error) from error


def refused(name: str, options: Mapping[str, object], error: BaseException) -> ValueError:
    """The error for options that a net cannot be built with, or not in the memory there is."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or "allocate memory" in text:
        text = "it needs more memory than there is"
    return ValueError(f"net {name!r} cannot be built with the options {dict(options)}: {text}")


def build_transformer(
    name: str, *, inputs: int, outputs: int, output: Literal["last", "every"], **options: object
) -> nn.Module:
    """A transformer for sequences by name; weights use the global generator.

    Args: name: one of TRANSFORMERS.     inputs: at each step.     options: of the net.
    Raises: ValueError for an unknown name or option, or a value out of range.
    """
    if name not in TRANSFORMERS:
        raise unknown("transformer", name, TRANSFORMERS)
    allowed = set(inspect.signature(TRANSFORMERS[name]).parameters) - {"inputs", "outputs"}
    for option in options:
        if option not in allowed:
            raise unknown(f"option of net {name!r}", option, allowed)
    return TRANSFORMERS[name](inputs=inputs, outputs=outputs, output=output, **options)


def _own(name: str, options: dict[str, object]) -> Callable[..., nn.Module]:
    if name not in NETS:
        sources = ("torchvision:NAME", "timm:NAME", "package.module:callable")
        raise unknown("net", name, [*NETS, *sources], first=in_libraries(name))
    allowed = set(inspect.signature(NETS[name]).parameters) - {"in_shape", "num_classes"}
    for option in options:
        if option not in allowed:
            raise unknown(f"option of net {name!r}", option, allowed)
    return NETS[name]


@contextlib.contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


NETS: dict[str, Callable[..., nn.Module]] = {
    "efficientnet_lite0": efficientnet_lite0,
    "lenet": lenet,
    "mlp": mlp,
    "resnet110": resnet110,
    "resnet20": resnet20,
    "resnet32": resnet32,
    "resnet44": resnet44,
    "resnet56": resnet56,
    "spiking_conv": spiking_conv,
    "spiking_mlp": spiking_mlp,
    "vgg": vgg,
    "vit": vit,
}

CELLS: dict[str, Callable[..., Cell]] = {
    "gru": GRU,
    "lstm": LSTM,
    "srn": SRN,
}

TRANSFORMERS: dict[str, Callable[..., nn.Module]] = {
    "causal_transformer": causal_transformer,
}
