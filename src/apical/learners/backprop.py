"""Backpropagation, through time where the net has steps, and how far other learners' gradients are
from it."""

import copy
import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value

from apical.core.converted import exact_gradients, forked_rng, labels
from apical.learners.base import Batch, Info, Learner, add_gradients
from apical.learners.unrolled import exact_norms, signal_norms
from apical.nets.recurrent import Recurrent, Step
from apical.nets.spiking import has_spikes, within_steps


@dataclass(frozen=True)
class Backprop(Learner):
    """The gradient of the loss, as `loss.backward()` gives it: of any net and any rule.

    Args:
        clip_norm: upper limit (> 0) of the norm of all gradients together; absent: none.
        through: "rule": errors travel as the rules of converted layers send them (plain layers:
            backprop); "exact": as if nothing were converted; "detached": every state is cut off
            from the one before, no error travels through time.
        truncate: steps (>= 1) through which errors travel, in stretches counted from the end;
            absent: all.
    Raises: ValueError for a value out of range.
    """

    clip_norm: float | None = None
    through: Literal["rule", "exact", "detached"] = "rule"
    truncate: int | None = None

    reference: ClassVar[str] = """@article{werbos1990,
  title = {Backpropagation through time: what it does and how to do it},
  author = {Werbos, Paul J.}, journal = {Proceedings of the IEEE}, volume = {78}, year = {1990}
}"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise self.error(f"clip_norm={self.clip_norm} must be above 0, or absent for none")
        if self.truncate is not None and self.truncate < 1:
            raise self.error(f"truncate={self.truncate} must be at least 1, or absent for all")
        if self.truncate is not None and self.through == "detached":
            raise self.error("through='detached' is truncate=1: give one of them")

    def gradients(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Info]:
        x, y = batch
        parameters: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
        exact = exact_gradients(model) if self.through == "exact" else nullcontext()
        with exact, labels(model, y):
            scores, steps = self._run(model, x)
            loss = self.objective.value(scores, y)
            for step in steps:
                if step.arrived.requires_grad:
                    step.arrived.retain_grad()
            if self.clip_norm is None:
                loss.backward()
            else:
                before = [parameter.grad for parameter in parameters]
                for parameter in parameters:
                    parameter.grad = None
                loss.backward()
                torch.nn.utils.clip_grad_norm_(parameters, self.clip_norm)
                add_gradients(dict(zip(parameters, before, strict=True)))
        return loss.detach(), _info(scores.detach(), steps)

    def pure(
        self, model: nn.Module, tensors: Mapping[str, Tensor], batch: Batch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        x, y = batch

        def loss_of(own: dict[str, Tensor]) -> Tensor:
            return self.objective.value(functional_call(model, own, (x,), options), y)

        truncate = self._reach
        options = {} if truncate is None else {"truncate": truncate}
        gradients, loss = grad_and_value(loss_of)(dict(tensors))
        if self.clip_norm is not None:
            norm = torch.stack([g.square().sum() for g in gradients.values()]).sum().sqrt()
            factor = (self.clip_norm / (norm + 1e-6)).clamp(max=1)  # as clip_grad_norm_ has it
            gradients = {name: g * factor for name, g in gradients.items()}
        return loss, gradients

    @property
    def _reach(self) -> int | None:
        return 1 if self.through == "detached" else self.truncate

    def _run(self, model: nn.Module, x: Tensor) -> tuple[Tensor, list[Step]]:
        """Scores, and the steps of a net that has them; hooks of the model act as always."""
        truncate = self._reach
        if isinstance(model, Recurrent):
            steps: list[Step] = []
            return model(x, truncate=truncate, into=steps), steps
        if truncate == 1 and has_spikes(model):
            with within_steps(model):
                return model(x), []
        if truncate is not None:
            raise self.error(f"{type(model).__name__} has no steps to cut errors off at")
        return model(x), []


def _info(scores: Tensor, steps: list[Step]) -> Info:
    if not steps:
        return Info(scores)
    zero = torch.zeros_like(steps[0].arrived, requires_grad=False)
    found = [zero if step.arrived.grad is None else step.arrived.grad for step in steps]
    hidden = [step.hidden.detach() for step in steps]

    def norms() -> dict[str, Tensor]:
        before = torch.stack([torch.zeros_like(hidden[0]), *hidden[:-1]])
        return {"cell.recurrent.weight": exact_norms(torch.stack(found), before)}

    return Info(scores, signals=lambda: signal_norms(torch.stack(found)), norms=norms)


def alignment(model: nn.Module, learner: Learner, batch: Batch) -> dict[str, dict[str, float]]:
    """Angle and norm ratio of each parameter's gradient to that of exact backprop through time.

    Works on copies: the model, its `.grad` and its random numbers stay as they are.

    Returns: parameter -> {"angle_deg": 0 to 180, 0 is backprop; "norm_ratio": |learner's| /
        |exact|}; only parameters that both train, without entries where a norm is zero.
    """
    ours = _gradients_of_copy(model, learner, batch)
    exact = _gradients_of_copy(model, Backprop(loss=learner.loss, through="exact"), batch)
    rows: dict[str, dict[str, float]] = {}
    for name in ours.keys() & exact.keys():
        a, b = ours[name].flatten().double(), exact[name].flatten().double()
        norms = a.norm().item(), b.norm().item()
        if min(norms) > 0:
            cosine = max(-1.0, min(1.0, a.dot(b).item() / (norms[0] * norms[1])))
            ratio = norms[0] / norms[1]
            rows[name] = {"angle_deg": math.degrees(math.acos(cosine)), "norm_ratio": ratio}
    return dict(sorted(rows.items()))


def _gradients_of_copy(model: nn.Module, learner: Learner, batch: Batch) -> dict[str, Tensor]:
    twin = copy.deepcopy(model)
    twin.zero_grad(set_to_none=True)
    with forked_rng(twin):
        learner.gradients(twin, batch)
    return {name: p.grad for name, p in twin.named_parameters() if p.grad is not None}
