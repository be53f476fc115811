"""Attacks of earlier studies with their settings, to compare their results with the worst case."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from apical.attacks.apgd import APGD
from apical.attacks.base import Attack
from apical.attacks.pixels import FewPixel
from apical.attacks.sources import Exact, NoGradient, Own
from apical.attacks.square import Square
from apical.attacks.steps import FGSM, PGD, TPGD
from apical.attacks.trials import Step
from apical.names import unknown


@dataclass(frozen=True)
class Protocol:
    """The attacks of a study. The study used the net's own gradient; here each attack that follows
    a gradient also uses the exact one.

    Args: attacks: "linf" attacks; their radius is replaced. pixels: numbers of pixels that may
        change. pixel_attack: for these; its number of pixels is replaced. pixel_images: number of
        images, the first ones, that it is applied to (>= 1).
    """

    attacks: tuple[Attack, ...]
    pixels: tuple[int, ...] = ()
    pixel_attack: FewPixel = FewPixel()  # noqa: RUF009 (a frozen value)
    pixel_images: int = 500

    def __post_init__(self) -> None:
        if self.pixel_images < 1 or any(count < 1 for count in self.pixels):
            raise ValueError(
                f"Protocol: pixel_images={self.pixel_images} and every number of"
                f" pixels={self.pixels} must be at least 1"
            )

    def steps(self, eps: float, *, has_feedback: bool, **common: Any) -> Iterator[Step]:
        """At one radius, on all examples. Args: common: seed and bounds of every attack."""
        for attack in self.attacks:
            attack = replace(attack, eps=eps, **common)  # type: ignore[call-arg]
            if attack.default_gradient == "none":
                yield Step(attack, NoGradient(), "black box", eps, role="published")
                continue
            if has_feedback:  # else its own gradient is the exact one
                yield Step(attack, Own(), "own", eps, role="published")
            yield Step(attack, Exact(), "exact", eps, role="published")

    def pixel_steps(self, **common: Any) -> Iterator[Step]:
        """Few-pixel attacks, whose radius counts pixels."""
        for count in self.pixels:
            attack = replace(self.pixel_attack, pixels=count, **common)
            first = self.pixel_images
            yield Step(attack, NoGradient(), "pixels", float(count), role="published", first=first)


BIOTORCH = Protocol(
    (
        FGSM(0.0),
        PGD(0.0, steps=40, step_size=2 / 255),
        APGD(0.0, steps=50),
        TPGD(0.0, steps=7, step_size=2 / 255, start="unclamped"),
        Square(0.0, queries=50),
    ),
    pixels=(1, 2, 3, 4, 5),
    pixel_attack=FewPixel(steps=30, population=150),
)
"""Notebooks of BioTorch (release 0.0.16), with torchattacks 3.1; Square is usually given 5000."""

PROTOCOLS: dict[str, Protocol] = {"biotorch": BIOTORCH}


def protocol(name: str) -> Protocol:
    """A protocol by name. Raises: ValueError for an unknown one."""
    if name not in PROTOCOLS:
        raise unknown("protocol", name, PROTOCOLS)
    return PROTOCOLS[name]
