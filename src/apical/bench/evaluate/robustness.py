"""Evaluating the robustness of a classifier: by every gradient source, with a verdict."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from apical import nets, rules
from apical.attacks.audit import Audit, audit
from apical.attacks.ball import Threat
from apical.attacks.evaluation import AUDITED, robust_report
from apical.attacks.pictures import pictures
from apical.attacks.schedule import Effort, Protocol, protocol
from apical.attacks.scores import Normalised
from apical.attacks.trials import Trial
from apical.attacks.wrappers import imitate
from apical.bench.evaluate import evaluation
from apical.bench.evaluate.evaluation import Nets, OnTrial, Outcome, Row
from apical.bench.evaluate.trained_net import HashNet, Trained
from apical.bench.experiment.execution import Execution
from apical.bench.experiment.settings import differing
from apical.bench.training import group

SUBSTITUTE_IMAGES = 2000
"""Training images that a substitute learns from, at most."""


@dataclass(frozen=True)
class Evaluation(evaluation.Evaluation):
    """How a net is attacked: everything that influences the outcome except the nets themselves.

    Args:
        eps: radii above 0, in units of pixels in [0, 1]; or numbers of flips.
        norm: "linf" (largest change of one value), "l2" (length of the change), "l1" (sum of the
            changes), or "flips" (how many values of binary events are flipped).
        images: of the test split, the same for every net; all, where it has fewer (>= 1).
        effort: how much is spent on each attack.
        rules: names of further rules whose backward pass is tried on these weights.
        protocol: name of an earlier study's attacks, run in addition ("linf" only); "": none.
        pixels: numbers of pixels that the protocol's few-pixel attack may change.
        pixel_images: images that is tried on (>= 1).
        samples: forward passes whose mean scores count, for nets with random scores (>= 1).
        substitute: transfer from a small net too that is trained to imitate the attacked one on
            training images (Papernot et al. 2017): the way into a model without gradients.
        seed: of the attacks.
    Raises: ValueError for a value out of range, or one that would have no effect.
    """

    eps: tuple[float, ...] = (4 / 255, 8 / 255, 16 / 255)
    norm: Threat = "linf"
    images: int = 1000
    effort: Effort = field(default_factory=Effort)
    rules: tuple[str, ...] = ()
    protocol: str = ""
    pixels: tuple[int, ...] = (1, 2, 3, 4, 5)
    pixel_images: int = 100
    samples: int = 1
    substitute: bool = False
    seed: int = 0

    home = "robustness"
    version = 5
    last = "verdict"
    trial = Trial
    counted = "images"
    least: ClassVar = {"images": 1, "samples": 1, "seed": 0}

    def __post_init__(self) -> None:
        for name in ("rules", "pixels"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        self.check()
        if self.norm == "flips" and any(eps != round(eps) for eps in self.eps):
            raise ValueError(f"robustness: eps={self.eps} must be whole numbers of flips")
        for rule in self.rules:
            rules.build(rule)
        if not self.protocol and {"pixels", "pixel_images"} & differing(self).keys():
            raise ValueError(
                "robustness: pixels and pixel_images have no effect without a protocol"
            )
        if self.published_attacks and self.norm != "linf":
            raise ValueError(
                f"robustness: the attacks of protocol={self.protocol!r} are 'linf', not "
                f"{self.norm!r}"
            )

    @property
    def published_attacks(self) -> Protocol | None:
        """The protocol, with the numbers of pixels that are asked for."""
        if not self.protocol:
            return None
        found = protocol(self.protocol)
        return dataclasses.replace(found, pixels=self.pixels, pixel_images=self.pixel_images)

    def check_net(self, net: Trained) -> None:
        if isinstance(net, HashNet):
            raise ValueError(
                f"{net.name} gives hash codes of {net.bits} bits, no scores of classes: attack its "
                "retrieval (apical.bench.evaluate.retrieval)"
            )

    def attack(
        self,
        net: Trained,
        others: Nets,
        examples: tuple[Tensor, Tensor],
        finished: Sequence[Trial],
        on_trial: OnTrial,
    ) -> Outcome:
        surrogates = {name: other.model for name, other in others.items()}
        if self.substitute:
            surrogates["substitute"] = substitute(net, examples[0].device, self.seed)
        report = robust_report(
            net.model,
            *examples,
            eps=self.eps,
            norm=self.norm,
            effort=self.effort,
            rules=self.rules,
            surrogates=surrogates,
            protocol=self.published_attacks,
            samples=self.samples,
            seed=self.seed,
            finished=finished,
            on_trial=on_trial,
        )
        middle = sorted(self.eps)[len(self.eps) // 2]
        shown = pictures(net.model, *examples, eps=middle, norm=self.norm, seed=self.seed)
        return Outcome(report.rows(), shown)

    def left(self, rows: Sequence[Row]) -> tuple[str, dict[float, float]]:
        worst = {row["eps"]: row["accuracy"] for row in rows if row["kind"] == "worst"}
        return str(rows[-1]["verdict"]), worst


def substitute(net: Trained, device: torch.device, seed: int) -> nn.Module:
    """A small convolutional net that learned the answers of another one to training images."""
    images = net.images
    count = min(SUBSTITUTE_IMAGES, len(images.train) - 1)
    x, _ = net.examples(count, str(device), images.train)
    small = nets.build(
        "vgg", in_shape=images.shape, num_classes=images.num_classes, seed=seed, widths=[16, 32, 64]
    )
    whole = Normalised(small, images.mean, images.std).to(device)
    return imitate(net.model, whole, x, seed=seed)


def audits(net: Trained, asked: Evaluation, execution: Execution | None = None) -> list[Audit]:
    """The gradient audit alone: of the net's own gradient, the exact one, those of the rules."""
    execution = execution or Execution()
    asked.check_net(net)
    x, y = net.examples(min(asked.images, AUDITED), execution.device)
    sources: Any = ["own", "exact", *(f"rule:{rule}" for rule in asked.rules)]
    with group.settings(execution):
        return [audit(net.model, x, y, gradient=s, seed=asked.seed) for s in sources]
