"""What fine-tuning did to each layer: how far its weight moved, and along which gradient.

Equal accuracy says little by itself: a net whose head alone was tuned may reach it, too.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from apical.core.converted import exact_gradients, labels
from apical.measure import signals

LEAST = 2
"""Axes of a weight from which on it counts: those of norms scale channels, they mix none."""


class Before:
    """The weights that a run started from."""

    def __init__(self, model: nn.Module, head: str) -> None:
        """Args: head: name of the last layer, whose weight did not come with the start; ""."""
        self.head = head
        self.weights = {name: weight.detach().clone() for name, weight in _weights(model)}

    def rows(
        self, model: nn.Module, loss: Callable[[Any, Any], Tensor], batch: tuple[Any, Any] | None
    ) -> list[dict[str, Any]]:
        """A row of kind ``tuned`` for each layer, from input to output.

        Args: loss: ``loss(model(x), y)`` is a number. batch: on which gradients are compared.
        Returns: weight_change: |W - W at the start| / |W at the start|; head and frozen: which it
            is; update_cosine: between the gradient that the optimizer is given, before its
            momentum and decay, and the true one, on this batch by the weights as they are now;
            absent where the layer does not learn, or one of the two is zero.
        """
        cosines = {} if batch is None else update_cosines(model, loss, *batch)
        rows = []
        for name, weight in _weights(model):
            before = self.weights[name].to(weight).double()
            size = before.norm().item()
            row: dict[str, Any] = {"kind": "tuned", "layer": name}
            if size:
                row["weight_change"] = (weight.detach().double() - before).norm().item() / size
            row |= {"head": name == self.head, "frozen": not weight.requires_grad}
            if name in cosines:
                row["update_cosine"] = cosines[name]
            rows.append(row)
        return rows


def update_cosines(
    model: nn.Module, loss: Callable[[Any, Any], Tensor], x: Any, y: Any
) -> dict[str, float]:
    """Cosine of each layer's gradient, as the rules give it, to the true one: by layer.

    Of every layer that learns, also those with a rule of their own above them only. Two forward
    and backward passes; gradients, buffers and global random numbers stay as they were.
    """
    learning = {name: weight for name, weight in _weights(model) if weight.requires_grad}
    if not learning:
        return {}
    wanted = list(learning.values())
    with signals.unchanged(model) as again:
        with labels(model, y):
            ours = torch.autograd.grad(loss(model(x), y), wanted, allow_unused=True)
        again()
        with exact_gradients(model):
            exact = torch.autograd.grad(loss(model(x), y), wanted, allow_unused=True)
    found = {}
    for name, a, b in zip(learning, ours, exact, strict=True):
        if a is None or b is None:
            continue
        a, b = a.double(), b.double()
        sizes = (a.norm() * b.norm()).item()
        if sizes > 0:
            found[name] = max(-1.0, min(1.0, (a * b).sum().item() / sizes))
    return found


def _weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The weight of every layer that has one, each once."""
    for name, layer in model.named_modules():
        weight = layer._parameters.get("weight")
        if weight is not None and weight.dim() >= LEAST and "feedback" not in name.split("."):
            yield name, weight
