"""Learners of simple recurrent nets, written out on tensors."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from apical.learners.base import Batch, Info, Learner, add_gradients
from apical.learners.unrolled import PARAMETERS, SimpleNet, simple_net

Gradients = dict[Tensor, Tensor]
"""Parameter -> gradient."""


@dataclass(frozen=True)
class SimpleLearner(Learner):
    """A learner whose gradients are a function of tensors, without autograd."""

    leaks: ClassVar[bool] = False
    """Whether the cell may leak."""

    @abc.abstractmethod
    def teach(self, net: SimpleNet, x: Tensor, y: Tensor) -> tuple[Tensor, Gradients, Info]:
        """Loss, gradients of the net's tensors (and its memory's), and what was seen."""

    @torch.no_grad()
    def gradients(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Info]:
        net, (x, y) = simple_net(model, self, leak=self.leaks), batch
        model.check(x)  # type: ignore[operator]
        with torch.inference_mode():  # a tenth faster than without gradients alone
            loss, gradients, info = self.teach(net, x, y)
        add_gradients(gradients)
        info.scores = info.scores.clone()  # autograd may meet what leaves here
        return loss.clone(), info

    def pure(
        self, model: nn.Module, tensors: Mapping[str, Tensor], batch: Batch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        net = simple_net(model, self, leak=self.leaks, tensors=tensors)
        loss, gradients, _ = self.teach(net, *batch)
        return loss, {name: gradients[getattr(net, field)] for name, field in PARAMETERS.items()}
