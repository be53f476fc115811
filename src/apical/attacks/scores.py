"""What attacks call: from inputs in float32 to scores, whatever a model takes and returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from apical.attacks.isolation import undisturbed

COMPUTED = (torch.float32, torch.float64)
"""In which balls are kept and losses computed; inputs of other types become float32."""
FEW = 8  # examples on which a model is tried


class Scores(nn.Module):
    """A model as attacks need it: inputs and scores in float32, scores as one tensor.

    Args: model: takes inputs of type `dtype`, as its first argument or under `name`; returns
        scores, or an object or a mapping that holds them as `logits`.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype, name: str = "") -> None:
        super().__init__()
        self.model, self.dtype, self.name = model, dtype, name
        self.training = model.training

    def forward(self, x: Tensor) -> Any:
        x = x.to(self.dtype)
        output = self.model(**{self.name: x}) if self.name else self.model(x)
        scores = _logits(output)
        half = isinstance(scores, Tensor) and scores.dtype not in COMPUTED
        return scores.float() if half else scores


class Expectation(nn.Module):
    """The mean of the scores of several forward passes: a model whose scores are random, as what
    is attacked and judged.

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


def adapted(model: nn.Module, x: Tensor | Mapping[str, Tensor]) -> tuple[nn.Module, Tensor]:
    """The model from float32 inputs to scores, itself where it is that already, and the inputs.

    Args: x: inputs (N, ...), or a mapping that holds them alone, as `{"pixel_values": x}`.
    Raises: ValueError for a mapping with other than one tensor.
    """
    name = ""
    if isinstance(x, Mapping):
        if len(x) != 1:
            raise ValueError(
                f"inputs with the entries {', '.join(map(str, x))}: give one tensor, whose values"
                " the attack changes, and put the other entries into the model"
            )
        ((name, x),) = x.items()
    x = x.detach()
    if not x.is_floating_point():  # refused later, with all other checks
        return model, x
    dtype = x.dtype
    first = next((p.dtype for p in model.parameters() if p.is_floating_point()), dtype)
    if dtype in COMPUTED and first not in COMPUTED and first.is_floating_point:
        dtype = first
    plain = not name and dtype in COMPUTED
    if plain and (model.training or not len(x) or isinstance(_tried(model, x), Tensor)):
        return model, x
    return Scores(model, dtype, name), x if x.dtype in COMPUTED else x.float()


def precision(model: nn.Module, x: Tensor) -> float:
    """The relative rounding error of the type the model computes in."""
    inner = model.model if isinstance(model, Expectation) else model
    if isinstance(inner, Scores):
        return torch.finfo(inner.dtype).eps
    return torch.finfo(x.dtype).eps


def _tried(model: nn.Module, x: Tensor) -> Any:
    with undisturbed(model), torch.no_grad():
        return model(x[:FEW])


def _logits(output: Any) -> Any:
    if isinstance(output, Mapping) and "logits" in output:
        return output["logits"]
    return getattr(output, "logits", output)
