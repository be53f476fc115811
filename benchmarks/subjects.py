"""The nets and rules whose steps are timed, and what a step is."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import apical
from apical import nets
from apical.core.converted import labels
from apical.core.layers import feedback_modules
from apical.rules import BP, DFA, RULES, BroadcastRule, Rule, SignSymmetric

CONTROL = "bp (control)"
ORDINARY = "bp, contiguous, default SGD"
UNTRAINED = " without B's step"
"""Behind a rule that learns its feedback: the optimizer's own work on B is left out."""


class Unavailable(Exception):
    """A net that cannot be built here; the message says why."""


@dataclass(frozen=True)
class Subject:
    """A net and its batch. `channels_last`: the layout in which plain backprop is fastest."""

    name: str
    title: str
    shape: tuple[int, ...]
    channels_last: bool
    make: Callable[[], nn.Module]

    def model(self, rule: Rule, *, channels_last: bool) -> nn.Module:
        """A fresh net, the same for every rule, converted."""
        torch.manual_seed(0)
        model = self.make()
        if channels_last:
            model = model.to(memory_format=torch.channels_last)
        return apical.convert(model, rule, example=self.batch(channels_last)[0][:2])

    def batch(self, channels_last: bool) -> tuple[Tensor, Tensor]:
        """Random images and labels, the same for every rule."""
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(self.shape, generator=generator)
        if channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        return x, torch.randint(10, (len(x),), generator=generator)

    def small(self) -> Subject:
        """The same with a batch of 8, to try the benchmark itself."""
        return replace(self, shape=(8, *self.shape[1:]))


def rules() -> dict[str, Rule]:
    """Every rule of the table (backprop as the control), each layout of DFA, the pooled brSF."""
    named = {CONTROL: BP(), **{name: rule for name, rule in RULES.items() if name not in _SPLIT}}
    named |= {f"dfa {layout}": DFA(layout=layout) for layout in ("full", "kernel", "channel")}
    named["brsf pool"] = SignSymmetric("fresh", redraw="pool")
    return dict(sorted(named.items()))


_SPLIT = ("bp", "dfa")


def training_step(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    fused: bool = True,
    compiled: bool = False,
    feedback: bool = True,
) -> Callable[[], None]:
    """zero_grad, forward, cross entropy, backward, SGD with momentum.

    Args: feedback: whether the optimizer also trains the feedback that has gradients.
    """
    trained = model.parameters() if feedback else apical.forward_parameters(model)
    # so small a rate that the net stays what it is, however often the step is timed
    optimizer = torch.optim.SGD(trained, lr=1e-6, momentum=0.9, fused=fused)
    forward = _compiled(model) if compiled else model

    def step() -> None:
        model.zero_grad()
        F.cross_entropy(forward(x), y).backward()
        optimizer.step()

    def step_with_labels() -> None:
        with labels(model, y):
            step()

    rules = (feedback.rule for feedback in feedback_modules(model))
    broadcast = [rule for rule in rules if isinstance(rule, BroadcastRule)]
    return step_with_labels if any(rule.needs_labels for rule in broadcast) else step


def _compiled(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """The compiled model, with code of its own: models that share code share one table of
    compiled variants, and the last of them would search it in every step."""

    def call(x: Tensor) -> Tensor:
        return model(x)

    code = call.__code__.replace(co_name=f"call_{id(model)}")
    own = types.FunctionType(code, call.__globals__, code.co_name, None, call.__closure__)
    return torch.compile(own, fullgraph=True)


def _resnet18() -> nn.Module:
    sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))
    try:
        from torchvision_ops import import_torchvision

        torchvision = import_torchvision()
    except ImportError as error:
        raise Unavailable(f"torchvision cannot be imported: {error}") from error
    finally:
        sys.path.pop()
    return torchvision.models.resnet18(num_classes=10)


def _own(name: str, **options: object) -> Callable[[], nn.Module]:
    return lambda: nets.build(name, in_shape=(3, 32, 32), num_classes=10, **options)


def _mlp() -> nn.Module:
    return nets.build("mlp", in_shape=(1, 28, 28), num_classes=10, hidden=[1024, 1024])


SUBJECTS: dict[str, Subject] = {
    "lenet": Subject("lenet", "LeNet, CIFAR form", (128, 3, 32, 32), True, _own("lenet")),
    "mlp": Subject("mlp", "MLP 784-1024-1024-10", (64, 1, 28, 28), False, _mlp),
    "resnet18": Subject("resnet18", "ResNet-18, 64 px", (32, 3, 64, 64), False, _resnet18),
    "resnet20": Subject("resnet20", "ResNet-20", (128, 3, 32, 32), True, _own("resnet20")),
    "vit": Subject("vit", "ViT 128 x 4, patch 4", (64, 3, 32, 32), False, _own("vit")),
}
