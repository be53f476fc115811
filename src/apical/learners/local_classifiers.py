"""Every spiking layer has a classifier of its own, and receives nothing but its errors."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apical.learners.base import Batch, Info, Learner, memory_of
from apical.learners.spiking_steps import (
    Doubly,
    Fixed,
    Layer,
    Reach,
    carrier,
    inputs,
    neurons,
    synapses,
)
from apical.nets.spiking import LIF, Count, DoubleExponential, Membrane, OverTime, SpikingNet
from apical.rules.base import uniform

REACH: dict[str, Reach] = {"bell": "time", "decolle": "traces", "ell": "step", "fell": "traces"}


@dataclass(frozen=True)
class LocalClassifiers(Learner):
    """ELL, FELL, BELL, DECOLLE: each hidden layer learns from a classifier of its own spikes.

    | form | classifiers | loss of a step | what errors meet | updates |
    |---|---|---|---|---|
    | "ell" | spike, learn | mean (spikes - one-hot)^2 | inputs of the step | every step |
    | "fell" | the same | the same | traces of the inputs | every step |
    | "bell" | the same | the same | all steps, backwards | one a batch |
    | "decolle" | linear, fixed | smooth L1 to one-hot | traces of the inputs | every step |

    The output layer is the last hidden layer's classifier. Those of the others are drawn by its
    law: with several hidden layers call `learners.attach` first. Spiking classifiers are neurons
    like the layer's own and need output="count", "decolle" output="membrane". A classifier's own
    membrane carries errors through time in "bell" alone. Under "fell" and "decolle" nothing resets
    to zero, which would cut traces.

    `gradients` adds up the gradients of all steps for one set of weights; `stepwise` updates after
    each step.

    Args:
        form: as in the table.
        feedback: what carries errors from a classifier to its layer: its own weights
            ("symmetric"), or fixed random sizes with their signs ("concordant",
            `learners.attach` first).
    Source: Ma, Yan, Yu, Yu 2022, with a reset of which no gradient is taken; decolle: Kaiser,
        Mostafa, Neftci 2020, with the net's own neurons (theirs: `spiking.DoubleExponential`).
    """

    form: Literal["bell", "decolle", "ell", "fell"] = "bell"
    feedback: Literal["concordant", "symmetric"] = "symmetric"

    reference: ClassVar[str] = """@article{ma2022,
  title = {Deep Spike Learning With Local Classifiers},
  author = {Ma, Chenxiang and Yan, Rui and Yu, Zhaofei and Yu, Qiang},
  journal = {IEEE Transactions on Cybernetics}, year = {2022}
}
@article{kaiser2020,
  title = {Synaptic Plasticity Dynamics for Deep Continuous Local Learning (DECOLLE)},
  author = {Kaiser, Jacques and Mostafa, Hesham and Neftci, Emre},
  journal = {Frontiers in Neuroscience}, volume = {14}, pages = {424}, year = {2020}
}"""

    def create(self, model: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
        *hidden, (_, last) = self._synapses(model)
        made: dict[str, Tensor] = {}
        # A law U(-a, a) has the variance a^2 / 3. On the CPU, to be the same on every device.
        drawn = last.weight.detach().cpu().double()
        width = (3 * last.in_features * drawn.square().mean()).sqrt().item()
        for number, (name, layer) in enumerate(hidden, 1):
            shape, a = (last.out_features, layer.out_features), width / layer.out_features**0.5
            if number < len(hidden):
                weight = uniform(shape, a, generator)
                fixed = self.form == "decolle"
                made[f"{name}_weight"] = weight if fixed else nn.Parameter(weight)
                bias = uniform(shape[:1], a, generator)
                made[f"{name}_bias"] = bias if fixed else nn.Parameter(bias)
            if self.feedback == "concordant":
                made[f"{name}_sizes"] = uniform(shape, a, generator).abs()
        return made

    def gradients(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Info]:
        return self.stepwise(model, batch, lambda: None)

    def stepwise(
        self, model: nn.Module, batch: Batch, update: Callable[[], object]
    ) -> tuple[Tensor, Info]:
        places, read = self._places(model), model.get_submodule("read")
        assert isinstance(model, SpikingNet)  # or there were no places
        (x, y), steps = batch, neurons(model)[0].steps
        target = self._target(y, x, len(places[-1].classifier.weight))
        rows, losses = [], []
        for t, arriving in enumerate(inputs(model, x, steps)):
            seen, step_losses = arriving, []
            for place in places:
                seen, out = place.step(seen)
                step_losses.append(self._loss(out, target))
            loss = torch.stack(step_losses).sum()
            if self.form != "bell":
                loss.backward()
                loss = loss.detach()
                if t + 1 < steps:
                    update()
            rows.append(out.detach())
            losses.append(loss)
        if self.form == "bell":
            torch.stack(losses).sum().backward()
        scores, each = read(torch.cat(rows)), torch.stack(losses).detach()
        return self.objective.value(scores, y), Info(scores, local_losses=lambda: each)

    def _loss(self, out: Tensor, target: Tensor) -> Tensor:
        return (F.smooth_l1_loss if self.form == "decolle" else F.mse_loss)(out, target)

    def _target(self, y: Tensor, x: Tensor, classes: int) -> Tensor:
        self.objective.value(x.new_zeros(len(x), classes), y)  # raises for labels that do not fit
        return y if self.loss == "squared_error" else F.one_hot(y, classes).to(x.dtype)

    def _places(self, model: nn.Module) -> "list[_Place]":
        """The hidden layers with their classifiers, new for each batch."""
        *hidden, (_, last) = self._synapses(model)
        fire, reach = neurons(model), REACH[self.form]
        remembers = len(hidden) > 1 or self.feedback == "concordant"
        memory = memory_of(model, self).state_dict(keep_vars=True) if remembers else {}
        places = []
        for (name, layer), own in zip(hidden, fire, strict=False):
            weight, bias, judge = last.weight, last.bias, fire[-1]
            if layer is not hidden[-1][1]:
                weight, bias, judge = memory[f"{name}_weight"], memory[f"{name}_bias"], own
            here = _layer(layer, own, reach)
            classifier: Layer | Fixed = Fixed(weight, bias)
            if self.form != "decolle":
                assert isinstance(judge, LIF)
                classifier = Layer(weight, bias, judge, reach)
            places.append(_Place(here, classifier, memory.get(f"{name}_sizes")))
        return places

    def _synapses(self, model: nn.Module) -> list[tuple[str, nn.Linear]]:
        """Name and module of the dense layers, in order.

        Raises: ValueError for a net that this form cannot train.
        """
        found, fire = synapses(model, self), neurons(model)
        fixed = self.form == "decolle"
        output, fits = ("membrane", Membrane) if fixed else ("count", Count)
        if not isinstance(getattr(model, "read", None), fits) or len(fire) != len(found) - fixed:
            raise self.error(
                f"form={self.form!r} reads the outputs at every step: build the net with "
                f"output={output!r}"
            )
        for layer in fire:
            if not isinstance(layer, LIF) and not (
                fixed and isinstance(layer.cell, DoubleExponential)
            ):
                raise self.error(
                    f"it trains LIF neurons, and form='decolle' DoubleExponential; not {layer}"
                )
            if REACH[self.form] == "traces" and getattr(layer, "reset", None) == "zero":
                raise self.error(
                    f"form={self.form!r} keeps traces of inputs, which reset='zero' cuts: use "
                    "reset 'subtract' or 'none'"
                )
        return found


class _Place(NamedTuple):
    """A hidden layer and its classifier."""

    layer: Layer | Doubly
    classifier: Layer | Fixed
    sizes: Tensor | None

    def step(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the layer fires, and what its classifier says of it."""
        spikes, matrix = self.layer.step(x), self.classifier.weight.detach()
        if self.sizes is not None:
            matrix = self.sizes * matrix.sign()
        return spikes, self.classifier.step(spikes, carrier(spikes, matrix))


def _layer(synapses: nn.Linear, own: LIF | OverTime, reach: Reach) -> Layer | Doubly:
    if isinstance(own, LIF):
        return Layer(synapses.weight, synapses.bias, own, reach)
    assert isinstance(own.cell, DoubleExponential)
    return Doubly(synapses.weight, synapses.bias, own.cell)
