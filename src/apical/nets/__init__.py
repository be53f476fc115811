"""Nets by name: plain modules without a rule, for normalised float images (N, C, H, W).

Recurrent nets take sequences (N, T, inputs) and consist of a cell and a readout: see `Recurrent`.

>>> build("mlp", in_shape=(1, 8, 8), num_classes=10, hidden=[32])[1]
Linear(in_features=64, out_features=32, bias=True)
"""

import contextlib
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Literal

import torch
from torch import nn

from apical.names import unknown
from apical.nets.efficientnet_lite import efficientnet_lite0
from apical.nets.external import build_external, in_libraries
from apical.nets.feedforward import lenet, mlp, vgg
from apical.nets.initial import LAWS, initialise
from apical.nets.offers import OwnLoss, Problem, Traced
from apical.nets.recurrent import GRU, LSTM, SRN, Cell, Recurrent
from apical.nets.resnet import resnet20, resnet32, resnet44, resnet56, resnet110
from apical.nets.spiking.networks import spiking_conv, spiking_mlp
from apical.nets.transformer import causal_transformer, vit

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
            None uses the global generator, as any torch module does.
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
        if name not in NETS:
            sources = ("torchvision:NAME", "timm:NAME", "package.module:callable")
            raise unknown("net", name, [*NETS, *sources], first=in_libraries(name))
        with building(name, NETS[name], options, beside=("in_shape", "num_classes")):
            return NETS[name](in_shape=shape, num_classes=num_classes, **options)


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
    if type(hidden) is not int:
        raise ValueError(f"net {name!r}: hidden={hidden!r} must be a whole number of at least 1")
    given = {"hidden": hidden, **options}
    with building(name, CELLS[name], given, beside=("inputs",), more=("init",)):
        return Recurrent(CELLS[name](inputs, hidden, **options), outputs, output=output, init=init)


@contextlib.contextmanager
def building(
    name: str,
    factory: Callable,
    options: Mapping[str, object],
    *,
    beside: Collection[str],
    more: Collection[str] = (),
) -> Iterator[None]:
    """Within the block, build a net: errors name it and its options.

    Args: options: of the factory.     beside: arguments of the factory that are no options.
        more: options that are no arguments of the factory.
    Raises: ValueError for an unknown option, options that do not fit, or too little memory.
    """
    allowed = {*inspect.signature(factory).parameters, *more} - {*beside}
    for option in options:
        if option not in allowed:
            raise unknown(f"option of net {name!r}", option, allowed)
    try:
        yield
    except (TypeError, RuntimeError, OverflowError, MemoryError, IndexError) as error:
        text = " ".join(str(error).split())
        if isinstance(error, MemoryError) or "allocate memory" in text:
            text = "it needs more memory than there is"
        raise ValueError(
            f"net {name!r} cannot be built with the options {dict(options)}: {text}"
        ) from error


def build_transformer(
    name: str, *, inputs: int, outputs: int, output: Literal["last", "every"], **options: object
) -> nn.Module:
    """A transformer for sequences by name; weights use the global generator.

    Args: name: one of TRANSFORMERS.     inputs: at each step.     options: of the net.
    Raises: ValueError for an unknown name or option, or a value out of range.
    """
    if name not in TRANSFORMERS:
        raise unknown("transformer", name, TRANSFORMERS)
    factory = TRANSFORMERS[name]
    with building(name, factory, options, beside=("inputs", "outputs")):
        return factory(inputs=inputs, outputs=outputs, output=output, **options)


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
