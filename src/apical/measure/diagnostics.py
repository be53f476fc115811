"""Is every layer learning? Measurements of a model in training, and what they warn of.

For a loop of one's own:

    watch = diagnostics.Watch(model)                      # before training
    for epoch in range(1, epochs + 1):
        ...                                               # train; after each step
            for finding in watch.loss(loss):              # says once if training diverged
                print(finding)
        for finding in watch.check(loss_fn, x, y):        # a batch of some 128 examples
            print(finding)

`apical train` and the studies do the same, and write rows and findings into their records.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from apical.core import updates
from apical.measure import probes, signals
from apical.measure.findings import KINDS, Finding, Row, Thresholds, divergence, findings

__all__ = ["KINDS", "Finding", "Start", "Thresholds", "Watch", "check", "findings", "measure"]

SAMPLE = 10_000
"""Entries of a weight, evenly spaced, whose movement stands for all of it."""

STEEP = 0.05
"""Slope of an activation, relative to its largest, below which an entry counts as saturated."""

Loss = Callable[[Any, Any], Tensor]


class Start:
    """What a model's weights and feedback were: movement is measured from here."""

    @torch.no_grad()
    def __init__(self, model: nn.Module) -> None:
        samples = {name: _sample(weight) for name, weight in _weights(model)}
        self.weights = {name: sample for name, sample in samples.items() if sample.any()}
        self.feedback = {
            (name, slot.feedback.rule): [float(norm) for norm in _memory_norms(slot)]
            for name, slot in _learning(model)
        }

    @torch.no_grad()
    def changes(self, model: nn.Module) -> probes.Rows:
        """How far the model has come.

        Returns: layer -> {weight_change: |W - W at the start| / |W at the start|, from at most
            `SAMPLE` entries; feedback_kept: |memory| / |memory at the start|, the smallest of the
            tensors that a rule changes}. What began at zero, or under another rule, has no such
            ratio.
        """
        found: dict[tuple[str, str], Tensor] = {}
        for name, weight in _weights(model):
            if name in self.weights:
                start = self.weights[name]
                moved = torch.linalg.vector_norm(_sample(weight) - start)
                found[name, "weight_change"] = moved / torch.linalg.vector_norm(start)
        for name, slot in _learning(model):
            before = self.feedback.get((name, slot.feedback.rule), ())  # none after a switch
            pairs = zip(_memory_norms(slot), before, strict=False)
            kept = [norm / first for norm, first in pairs if first > 0]
            if kept:
                found[name, "feedback_kept"] = torch.stack(kept).min()
        rows: probes.Rows = {}
        for (name, key), value in zip(found, probes.listed(list(found.values())), strict=True):
            rows.setdefault(name, {})[key] = value
        return rows


class Watch:
    """Measures a model in training again and again; its findings need several measurements.

    Args:
        model: converted, at the start of training.
        thresholds: from where on a measurement is worth a warning.
    Attributes: rows: all measurements so far, as records of a run hold them.
    """

    def __init__(self, model: nn.Module, thresholds: Thresholds | None = None) -> None:
        self.model, self.start = model, Start(model)
        self.thresholds = thresholds or Thresholds()
        self.rows: list[Row] = []
        self._reported: set[tuple[str, str]] = set()
        self._checks = 0
        self._losses = 0
        self._first_loss = 0.0

    def check(self, loss_fn: Loss, x: Any, y: Any, *, epoch: float | None = None) -> list[Finding]:
        """Measure, and say what is wrong that was not said before.

        Args:
            loss_fn: `loss_fn(model(x), y)` is a number.
            x: a batch, the same every time: a tensor, a tuple of arguments, or a dictionary of
                keyword arguments; y: its targets.
            epoch: epochs trained so far (absent: one for each check). What is measured before
                the end of the first epoch is kept but warns of nothing.
        """
        self._checks += 1
        at = self._checks if epoch is None else epoch
        measured = measure(self.model, loss_fn, x, y, self.start)
        return self.add([{**row, "epoch": at} for row in measured])

    def loss(self, loss: Tensor | float) -> list[Finding]:
        """Take the loss of a step, and say once if training has diverged.

        Args: loss: of every step, in order. Reading it from a GPU waits for the step.
        """
        value = float(loss.detach() if isinstance(loss, Tensor) else loss)
        self._losses += 1
        if self._losses == 1:
            self._first_loss = value
        found = divergence(value, self._first_loss, self._losses, self.thresholds)
        if found is None or ("", found.kind) in self._reported:
            return []
        self._reported.add(("", found.kind))
        return [found]

    def add(self, rows: Iterable[Row]) -> list[Finding]:
        """Take rows measured elsewhere, and give what they show that was not said before."""
        self.rows += rows
        every = findings(self.rows, self.thresholds)
        new = [finding for finding in every if (finding.layer, finding.kind) not in self._reported]
        self._reported |= {(finding.layer, finding.kind) for finding in new}
        return new

    def recall(self, rows: Iterable[Row]) -> None:
        """Take up the rows of an earlier part of the run, its warnings among them."""
        rows = list(rows)
        self.rows += [row for row in rows if row["kind"] != "warning"]
        warned = (row for row in rows if row["kind"] == "warning")
        self._reported |= {(row["layer"], row["finding"]) for row in warned}


def check(
    model: nn.Module,
    loss_fn: Loss,
    x: Any,
    y: Any,
    *,
    start: Start | None = None,
    thresholds: Thresholds | None = None,
) -> list[Finding]:
    """What one measurement shows to be wrong with a model that has been trained for a while.

    Args:
        loss_fn: `loss_fn(model(x), y)` is a number.
        x: a batch of some 128 examples, as of `Watch.check`; y: its targets.
        start: of the untrained model; without it nothing is known of movement.
        thresholds: their `patience` has no meaning here.
    """
    rows = [{"epoch": 1, **row} for row in measure(model, loss_fn, x, y, start)]
    once = dataclasses.replace(thresholds or Thresholds(), patience=1)
    return findings(rows, once)


def measure(
    model: nn.Module, loss_fn: Loss, x: Any, y: Any, start: Start | None = None
) -> list[dict[str, Any]]:
    """All that is measured of a model, as rows of a run's records.

    Two forward and backward passes. The model, its gradients, buffers and the global random
    numbers stay as they were.

    Returns: rows of kind `layer` (see `probes.measured` and `Start.changes`), `activation`
        (saturated: the share of its entries with a slope below `STEEP`, or of rectified units
        that are zero for the whole batch; sigmoid, tanh and ReLU modules), and `probe` (of the
        whole model: loss, error_rank).
    """
    with _activations(model) as saturated:
        found, whole = probes.measured(model, loss_fn, x, y)
    if start is not None:
        frozen = any(slot.feedback.rule.sends_nothing for _, slot in signals.slots(model))
        for layer, values in start.changes(model).items():
            if not frozen or layer in found:  # nothing is to move where no signal is sent
                found.setdefault(layer, {}).update(values)
    rows: list[dict[str, Any]] = [
        {"kind": "layer", "layer": layer, **values} for layer, values in found.items() if values
    ]
    rows += [
        {"kind": "activation", "layer": layer, "saturated": share}
        for layer, share in zip(saturated, probes.listed(list(saturated.values())), strict=True)
    ]
    return [*rows, {"kind": "probe", **whole}]


def _weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every weight that a converted layer learns."""
    for name, slot in signals.slots(model):
        if any(parameter is not None and parameter.requires_grad for parameter in slot.parameters):
            yield name, slot.weight


def _learning(model: nn.Module) -> Iterator[tuple[str, updates.Slot]]:
    """The weights whose feedback changes while the net learns."""
    for name, slot in signals.slots(model):
        if slot.feedback.trained or slot.feedback.rule.acts_after_update:
            yield name, slot


def _memory_norms(slot: updates.Slot) -> list[Tensor]:
    return [torch.linalg.vector_norm(tensor) for tensor in slot.feedback.memory()]


def _sample(weight: Tensor) -> Tensor:
    flat = weight.detach().reshape(-1)
    return flat[:: max(1, -(-flat.numel() // SAMPLE))].clone()


@contextmanager
def _activations(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Share of every activation module that is saturated when the model first calls it."""
    shares: dict[str, Tensor] = {}

    def note(name: str, share: Callable[[Tensor], Tensor]) -> Callable[..., None]:
        @torch.no_grad()
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            if name not in shares:
                shares[name] = share(output.detach())

        return hook

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if share := SHARES.get(type(module)):
                hooks.enter_context(module.register_forward_hook(note(name, share)))
        yield shares


def _silent(y: Tensor) -> Tensor:
    """Share of units that are zero everywhere; a channel of a convolution is a unit."""
    units = y.movedim(1, -1) if y.dim() > 3 else y
    return (units.reshape(-1, units.shape[-1]) <= 0).all(0).double().mean()


SHARES: dict[type[nn.Module], Callable[[Tensor], Tensor]] = {
    nn.ReLU: _silent,
    nn.Sigmoid: lambda y: (4 * y * (1 - y) < STEEP).double().mean(),
    nn.Tanh: lambda y: (1 - y * y < STEEP).double().mean(),
}
"""How much of an activation's output shows it to be saturated."""
