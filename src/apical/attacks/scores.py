"""Models as attacks call them: from float32 inputs to scores, and with their normalisation."""

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from apical.attacks.isolation import undisturbed

COMPUTED = (torch.float32, torch.float64)
"""Types of balls and losses; inputs of other types become float32."""
FEW = 8  # examples on which a model is tried


class Scores(nn.Module):
    """A model with scores of the type of the inputs, float32 or float64, and as one tensor.

    Args: model: takes inputs of type `dtype`, as its first argument or under `name`; returns
        scores, or an object or mapping that contains them as `logits`.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype, name: str = "") -> None:
        super().__init__()
        self.model, self.dtype, self.name = model, dtype, name
        self.training = model.training

    def forward(self, x: Tensor) -> Any:
        given, scores = x.dtype, self.output(x)
        if isinstance(scores, Mapping) and "logits" in scores:
            scores = scores["logits"]
        scores = getattr(scores, "logits", scores)
        floating = isinstance(scores, Tensor) and scores.is_floating_point()
        return scores.to(given) if floating else scores

    def output(self, x: Tensor) -> Any:
        """What the model returns."""
        x = x.to(self.dtype)
        return self.model(**{self.name: x}) if self.name else self.model(x)


def parameter_type(model: nn.Module, default: torch.dtype) -> torch.dtype:
    """The type of a model's first parameter that is a floating point number."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), default)


class Expectation(nn.Module):
    """The mean of the scores of several forward passes of a model with random scores.

    Its gradient is the mean gradient of the scores. Source: expectation over transformation,
    Athalye, Engstrom, Ilyas, Kwok 2018.
    """

    def __init__(self, model: nn.Module, samples: int) -> None:
        super().__init__()
        self.model, self.samples = model, samples
        self.training = model.training

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = sum((self.model(x) for _ in range(self.samples)), x.new_zeros(()))
        return total / self.samples


class Normalised(nn.Module):
    """`model((x - mean) / std)`: inputs in [0, 1] for a model that was trained on normalised ones.

    Normalisation is part of the model, so that radii are measured on pixels.

    Args: mean, std: one number per channel, any number of channels; std above 0.
    Shapes: inputs (N, channels, ...).
    Raises: ValueError for numbers that do not fit together, or to the input.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        check_model(model)
        mean, std = (_numbers(name, each) for name, each in (("mean", mean), ("std", std)))
        if len(mean) != len(std) or not mean:
            raise ValueError(
                f"Normalised: {len(mean)} means and {len(std)} standard deviations; give one of"
                " each per channel"
            )
        if not all(each > 0 for each in std):
            raise ValueError(f"Normalised: std={tuple(std)} must be above 0")
        self.model = model
        like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
        self.register_buffer("mean", torch.tensor(mean, dtype=like.dtype, device=like.device))
        self.register_buffer("std", torch.tensor(std, dtype=like.dtype, device=like.device))
        self.train(model.training)

    def forward(self, x: Tensor) -> Tensor:
        channels = len(self.mean)
        if x.dim() < 2 or x.shape[1] != channels:
            raise ValueError(
                f"Normalised: an input of shape {tuple(x.shape)}; expected (N, {channels}, ...)"
            )
        shape = (channels, *[1] * (x.dim() - 2))
        return self.model((x - self.mean.view(shape)) / self.std.view(shape))


def _numbers(name: str, given: Any) -> list[float]:
    """As a list. Raises: ValueError for anything but finite numbers, one per channel."""
    listed = given.tolist() if hasattr(given, "tolist") else given
    if not isinstance(listed, Sequence) or not all(
        isinstance(each, Real) and math.isfinite(each) for each in listed
    ):
        raise ValueError(
            f"Normalised: {name}={given!r} must be a sequence of finite numbers; each std must be"
            " above 0"
        )
    return list(listed)


def check_model(model: object) -> None:
    """Raises: ValueError for anything but a torch module."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"the model must be a torch.nn.Module, not {type(model).__name__}")


def detached(what: str, value: object) -> Tensor:
    """The values of a tensor. Raises: ValueError for anything else, as a list or an array."""
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        given = value.layout if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{what} are {given}: expected a torch.Tensor, dense (torch.as_tensor)")
    return value.detach()


def adapted(model: nn.Module, x: Tensor | Mapping[str, Tensor]) -> tuple[nn.Module, Tensor]:
    """The model from inputs in float32 or float64 to scores (itself if it is one), and the inputs.

    If model and inputs are of different types, attacks compute in the more precise one, and the
    model receives its own.

    Args: x: inputs (N, ...), or a mapping with only them, as `{"pixel_values": x}`.
    Raises: ValueError for a model that is no module, or that fails on these inputs; for a mapping
        with other than one tensor.
    """
    check_model(model)
    name = ""
    if isinstance(x, Mapping):
        if len(x) != 1:
            raise ValueError(
                f"inputs with the entries {', '.join(map(str, x))}: give one tensor, whose values"
                " the attack changes, and put the other entries into the model"
            )
        ((name, x),) = x.items()
    x = detached("inputs", x)
    if not x.is_floating_point() or x.dim() < 2:  # refused later, with all other checks
        return model, x
    if model.training or not x.numel():  # refused later, or nothing to attack
        plain = x.dtype in COMPUTED and not name
        scoring = model if plain else Scores(model, x.dtype, name)
        return scoring, x if x.dtype in COMPUTED else x.float()
    for dtype in dict.fromkeys((x.dtype, parameter_type(model, x.dtype))):
        computed = torch.promote_types(x.dtype, dtype)
        computed = computed if computed in COMPUTED else torch.float32
        scoring = Scores(model, dtype, name)
        try:
            with undisturbed(model), torch.no_grad():
                output = scoring.output(x[:FEW])
        except Exception as error:  # whatever the model's own code raises
            failure = error
            continue
        plain = isinstance(output, Tensor) and output.dtype == computed == dtype == x.dtype
        return model if plain and not name else scoring, x.to(computed)
    if isinstance(failure, ValueError | torch.OutOfMemoryError):
        raise failure
    kind = type(model.model if isinstance(model, Scores) else model).__name__
    given = f"{name}={x.dtype} of shape {tuple(x.shape)}".lstrip("=")
    raise ValueError(
        f"{kind} fails on the inputs, {given}: {type(failure).__name__}: {failure}"
    ) from failure


def precision(model: nn.Module, x: Tensor) -> float:
    """The relative rounding error of the type the model computes in."""
    inner = model.model if isinstance(model, Expectation) else model
    if isinstance(inner, Scores):
        return torch.finfo(inner.dtype).eps
    return torch.finfo(x.dtype).eps
