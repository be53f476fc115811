"""Nets of other packages: `torchvision:NAME`, `timm:NAME`, `package.module:callable`."""

import functools
import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType

import torch
from torch import nn

from apical.names import from_path, unknown

Shape = tuple[int, ...]


def build_external(
    name: str, *, in_shape: Shape, num_classes: int, options: Mapping[str, object]
) -> nn.Module:
    """A net by `source:NAME`; what it takes and gives is tried with one blank image.

    Raises: ValueError if the package is missing or broken, the name or an option is unknown,
        or the net does not turn `in_shape` into `num_classes` outputs.
    """
    source, _, wanted = name.partition(":")
    maker = {"torchvision": _torchvision, "timm": _timm}.get(source)
    if maker is None:
        factory, known = _callable(name, in_shape, num_classes)
    else:
        factory, known = maker(wanted, in_shape, num_classes)
    try:
        model = factory(**known, **options)
    except Exception as error:  # code of others may raise anything
        given = {**known, **options}
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"net {name!r} refused the arguments {given}: {reason}") from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"net {name!r} gave a {type(model).__name__}, not a torch.nn.Module")
    try_shape(name, model, in_shape, num_classes)
    return model


def _torchvision(wanted: str, in_shape: Shape, num_classes: int) -> tuple[Callable, dict]:
    models = import_package("torchvision").models
    allowed = models.list_models(module=models)
    if wanted not in allowed:
        raise unknown("torchvision net", wanted, allowed)
    return models.get_model_builder(wanted), {"num_classes": num_classes}


def _timm(wanted: str, in_shape: Shape, num_classes: int) -> tuple[Callable, dict]:
    timm = import_package("timm")
    if not timm.is_model(wanted):
        raise unknown("timm net", wanted, timm.list_models())
    known: dict = {"num_classes": num_classes, "in_chans": in_shape[0]}
    config = timm.get_pretrained_cfg(wanted)
    if config is not None and config.fixed_input_size:
        known["img_size"] = tuple(in_shape[1:])

    def create(**options: object) -> nn.Module:
        return timm.create_model(wanted, **options)

    return create, known


def _callable(name: str, in_shape: Shape, num_classes: int) -> tuple[Callable, dict]:
    factory = from_path(name, "net")
    if not is_factory(factory):
        kind = factory.__name__ if isinstance(factory, type) else type(factory).__name__
        raise ValueError(
            f"net {name!r} is {kind}: expected a class of torch.nn.Module, or a Python function "
            "that returns a module"
        )
    takes = inspect.signature(factory).parameters
    anything = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in takes.values())
    offered = {"in_shape": tuple(in_shape), "num_classes": num_classes}
    return factory, {key: value for key, value in offered.items() if anything or key in takes}


def is_factory(found: object) -> bool:
    """Whether an object is of a kind that makes nets: a class of modules, or a Python function,
    also one with arguments bound to it."""
    if isinstance(found, functools.partial):
        return is_factory(found.func)
    is_class = isinstance(found, type) and issubclass(found, nn.Module)
    return is_class or inspect.isfunction(found) or inspect.ismethod(found)


def import_package(package: str) -> ModuleType:
    """A package that has nets. Raises: ValueError if it is missing or broken, with the remedy."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ValueError(
            f"net source {package!r} cannot be imported: {error}. Install the package beside "
            "apical (pip install 'apical[vision]' brings torchvision and timm)"
        ) from error
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        raise ValueError(
            f"{package} cannot be imported: the installed torchvision was built for another torch "
            f"than {torch.__version__} (operator torchvision::nms does not exist). Install the "
            "pair that belongs together, e.g. for CPU: pip install --force-reinstall torch "
            "torchvision --index-url https://download.pytorch.org/whl/cpu"
        ) from error


@torch.no_grad()
def try_shape(name: str, model: nn.Module, in_shape: Shape, num_classes: int) -> None:
    """Run a model on two blank inputs, and leave it as it was.

    Raises: ValueError if it cannot take them, or no output has one number for each class.
    """
    training = {module: module.training for module in model.modules()}
    model.eval()
    tensor = next(model.parameters(), torch.zeros(()))
    blank = torch.zeros(2, *in_shape, dtype=tensor.dtype, device=tensor.device)
    try:
        output = model(blank)
    except Exception as error:
        raise ValueError(f"net {name!r} cannot take inputs {tuple(in_shape)}: {error}") from error
    finally:
        for module, flag in training.items():
            module.training = flag
    shapes = [tuple(t.shape) for t in _tensors(output)]
    if not any(shape and shape[-1] == num_classes for shape in shapes):
        raise ValueError(
            f"net {name!r} gave outputs of shape {shapes}, not {num_classes} classes, for 2 "
            "inputs: it must have one output for each class (give the option by which it sets them)"
        )


def _tensors(output: object) -> Iterator[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, (tuple, list)):
        for value in output:
            yield from _tensors(value)
