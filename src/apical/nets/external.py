"""Nets of other packages: `torchvision:NAME`, `timm:NAME`, `package.module:callable`."""

import contextlib
import copy
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
    """A net by `source:NAME`; its inputs and outputs are tested with blank images.

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


def in_libraries(name: str) -> list[str]:
    """The full names under which the installed net libraries offer a net."""
    found = []
    for package, offers in (
        ("torchvision", lambda library: library.models.list_models(module=library.models)),
        ("timm", lambda library: library.list_models()),
    ):
        with contextlib.suppress(ValueError):  # not installed, or broken
            if name in offers(import_package(package)):
                found.append(f"{package}:{name}")
    return found


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
    """Whether an object may make nets: a class of modules, or a Python function, also with
    arguments bound to it."""
    if isinstance(found, functools.partial):
        return is_factory(found.func)
    is_class = isinstance(found, type) and issubclass(found, nn.Module)
    return is_class or inspect.isfunction(found) or inspect.ismethod(found)


def import_package(package: str) -> ModuleType:
    """Import a package of nets. Raises: ValueError if it is missing or broken, with the remedy."""
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


@torch.enable_grad()
def try_shape(
    name: str, model: nn.Module, in_shape: Shape, num_classes: int, *, training: bool = False
) -> object:
    """Run a model on two blank inputs, in eval mode; its modes are restored.

    Args: training: run it in training mode, which may change its buffers.
    Returns: the output.
    Raises: ValueError if it cannot take them, or no output has one number for each class.
    """
    modes = {module: module.training for module in model.modules()}
    model.train(training)
    tensor = next(model.parameters(), torch.zeros(()))
    blank = torch.zeros(2, *in_shape, dtype=tensor.dtype, device=tensor.device)
    try:
        output = model(blank)
    except Exception as error:
        raise ValueError(f"net {name!r} cannot take inputs {tuple(in_shape)}: {error}") from error
    finally:
        for module, mode in modes.items():
            module.training = mode
    shapes = [tuple(tensor.shape) for _, tensor in _paths(output)]
    if not any(shape and shape[-1] == num_classes for shape in shapes):
        raise ValueError(
            f"net {name!r} gave outputs of shape {shapes}, not {num_classes} classes, for 2 "
            "inputs: it must have one output for each class (give the option by which it sets them)"
        )
    return output


def check_scores(name: str, model: nn.Module, in_shape: Shape, num_classes: int) -> None:
    """Check that a model returns what training needs, in both modes: one floating-point tensor of
    shape (N, num_classes) that depends on a parameter.

    Raises: ValueError with what the model returned, and, where scores are found in it, with the
        line of code that selects them.
    """
    for training in (False, True):
        twin = copy.deepcopy(model)
        output = try_shape(name, twin, in_shape, num_classes, training=training)
        _check_scores(f"net {name!r}" + " in training mode" * training, output, (2, num_classes))


def _check_scores(name: str, output: object, wanted: Shape) -> None:
    if isinstance(output, torch.Tensor):
        if output.shape == wanted and output.is_floating_point():
            if not output.requires_grad:
                raise ValueError(
                    f"{name} returned scores that depend on no parameter that learns: look for "
                    "detach(), no_grad() or requires_grad=False in it"
                )
            return
        returned = f"a tensor of shape {tuple(output.shape)} and {output.dtype}"
    else:
        shapes = [tuple(tensor.shape) for _, tensor in _paths(output)]
        returned = f"a {type(output).__name__} with tensors of shapes {shapes}"
    text = (
        f"{name} returned {returned} for 2 inputs: training needs one floating-point tensor of "
        f"shape {wanted}, the scores of the classes. Wrap the net in a module of your own that "
        "returns it"
    )
    parts = [(path, t) for path, t in _paths(output) if t.is_floating_point()]
    # the scores themselves, else of a sequence those of its last step
    lines = [path for path, t in parts if t.shape == wanted]
    lines += [f"{path}[:, -1]" for path, t in parts if t.dim() == 3 and t.shape[::2] == wanted]
    if lines:
        text += f", as: def forward(self, x): return {lines[0]}"
    raise ValueError(text)


def _paths(output: object, path: str = "self.net(x)") -> Iterator[tuple[str, torch.Tensor]]:
    """Each tensor in an output, after the expression that gives it."""
    if isinstance(output, torch.Tensor):
        yield path, output
    elif isinstance(output, Mapping):
        for key, value in output.items():
            yield from _paths(value, f"{path}[{key!r}]")
    elif isinstance(output, (tuple, list)):
        for place, value in enumerate(output):
            yield from _paths(value, f"{path}[{place}]")
