"""Robustness of nets that learn by six rules and of both controls: BioTorch's attacks, and the
worst case. One search of the learning rate for every row.

BioTorch (Sanfiz and Akrout 2021) attacks each net with the net's own feedback gradient. Its
attacks and budgets are run as they are, and by the exact gradient beside; the headline is the worst
case per example over everything that is known. A second study puts the backward pass of each rule
on the weights of each other: whose property is the robustness?

Published values: outputs and figures of the notebooks in its released source package (0.0.16), one
CIFAR-10 ResNet-20 of each rule. Curves were read off the figures (to about 0.01, to 0.02 where the
legend hides them); Square and few-pixel values are printed there, of 500 images.
"""

import dataclasses
from collections.abc import Iterable, Mapping

from apical.attacks import Effort
from apical.bench.evaluate.robustness import Evaluation
from apical.bench.studies import biotorch, rules_overview, smoke
from apical.bench.studies.base import (
    CONTROLS,
    RULES,
    Entry,
    Search,
    Study,
    entries,
    with_rules,
)
from apical.bench.studies.published import PublishedRobustness

SOURCE = "BioTorch, notebooks (2021)"
DIGITS, MNIST = "digits MLP", "MNIST LeNet"
RESNET = "CIFAR-10 ResNet-20 SGD"

GRID = tuple(0.1 * step / 29 for step in (3, 9, 20, 29))
"""Of the 30 radii of the source, from 0 to 0.1, those at which values are known."""

PUBLISHED_NOTE = (
    "Published: attacks by the net's own gradient on other CIFAR-10 ResNet-20s, one of each rule; "
    "white-box attacks on 10,000 images, Square and few-pixel on 500."
)

ATTACK_RULES = ("fa", "dfa", "usf", "brsf", "frsf")
"""Whose backward pass is put on every net; that of backprop is the exact gradient."""

CURVES: dict[str, dict[int, tuple[float, ...]]] = {
    "FGSM ce": {9: (0.17, 0.63, 0.58, 0.22, 0.84, 0.83), 29: (0.11, 0.55, 0.42, 0.12, 0.67, 0.78)},
    "PGD-40 ce": {
        3: (0.01, 0.68, 0.53, 0.34, 0.57, 0.60),
        9: (0.0, 0.67, 0.50, 0.01, 0.03, 0.08),
        29: (0.0, 0.61, 0.40, 0.0, 0.0, 0.0),
    },
    "APGD-50 ce": {
        3: (0.01, 0.66, 0.49, 0.28, 0.41, 0.54),
        9: (0.0, 0.60, 0.40, 0.01, 0.02, 0.06),
        29: (0.0, 0.34, 0.20, 0.0, 0.0, 0.0),
    },
    "TPGD-7 unclamped": {
        3: (0.32, 0.68, 0.53, 0.64, 0.77, 0.78),
        9: (0.30, 0.68, 0.48, 0.43, 0.53, 0.53),
        29: (0.29, 0.67, 0.40, 0.40, 0.49, 0.46),
    },
    "Square-50": {
        3: (0.822, 0.55, 0.436, 0.806, 0.792, 0.804),
        9: (0.464, 0.324, 0.20, 0.452, 0.466, 0.44),
        20: (0.088, 0.08, 0.052, 0.116, 0.122, 0.074),
        29: (0.026, 0.03, 0.03, 0.036, 0.044, 0.022),
    },
}
"""Accuracies of bp, fa, dfa, usf, brsf, frsf, by attack and step of the source's grid."""

PIXELS = {
    1: (0.596, 0.478, 0.392, 0.638, 0.654, 0.626),
    2: (0.358, 0.406, 0.318, 0.44, 0.45, 0.424),
    3: (0.324, 0.382, 0.318, 0.384, 0.42, 0.406),
    4: (0.32, 0.382, 0.304, 0.364, 0.404, 0.386),
    5: (0.282, 0.38, 0.306, 0.344, 0.38, 0.354),
}
"""Accuracies by the number of pixels that may change."""


def robustness(tier: str, seeds: int) -> Study:
    """Six rules under the attacks of BioTorch by both gradients, and the worst case per example."""
    digits = Evaluation(
        eps=(GRID[1], GRID[3], 0.2),
        images=360,
        effort=Effort(queries=500),
        protocol="biotorch",
        pixels=(1, 3, 5),
        pixel_images=100,
    )
    mnist = Evaluation(
        eps=(GRID[3], 0.2),
        images=200,
        effort=Effort(adaptive_steps=10, queries=200),
        protocol="biotorch",
        pixels=(1,),
        pixel_images=25,
    )
    if tier == "full":
        mnist = Evaluation((*GRID, 0.2), images=1000, protocol="biotorch", pixel_images=500)
    evaluations = {DIGITS: digits, MNIST: mnist}
    cifar = Evaluation(eps=GRID, images=1000, protocol="biotorch", pixel_images=500)
    evaluations |= {f"CIFAR-10 {name} SGD": cifar for name in ("LeNet", "ResNet-20")}
    notes = [
        "Robust accuracy counts images that are misclassified from the start as not robust.",
        "The worst case of a radius is over all attacks, sources and smaller radii, per example; "
        "few-pixel attacks are another threat and stand apart.",
    ]
    if tier == "short":
        notes.append(f"MNIST: {rules_overview.IMAGES:,} training images.")
    if tier == "full":
        notes.append(PUBLISHED_NOTE)
    return _study(
        "biotorch-robustness",
        "Robustness of six rules: the paper's attacks, and the truth",
        tier,
        seeds,
        evaluations,
        notes,
        tuple(_published()) if tier == "full" else (),
    )


def attack_gradient(tier: str, seeds: int) -> Study:
    """Rule of training against rule of the attacker's gradient: PGD by each rule on each net."""
    spare = Effort(adaptive_steps=0, queries=0)
    digits = Evaluation(eps=(0.1, 0.2), images=360, effort=spare, rules=ATTACK_RULES)
    mnist = dataclasses.replace(digits, images=1000 if tier == "full" else 200)
    cifar = dataclasses.replace(digits, eps=(2 / 255, 8 / 255), images=1000)
    evaluations = {DIGITS: digits, MNIST: mnist, RESNET: cifar}
    notes = [
        "Each column is the backward pass that the attacker uses, with feedback resampled; 'own' "
        "is the net's own feedback, to which its weights may have aligned. Backprop's backward "
        "pass is the exact gradient. Within an attack there are no updates, so the feedback of "
        "brSF stays as it was drawn first: its column is that of frSF.",
        "PGD of 20 steps on the cross entropy; these evaluations spend nothing on adaptive or "
        "black-box attacks, so their worst case is no headline: see biotorch-robustness.",
    ]
    title = "Rule of training and rule of the attacker's gradient"
    return _study("attack-gradient", title, tier, seeds, evaluations, notes)


def _study(
    name: str,
    title: str,
    tier: str,
    seeds: int,
    evaluations: Mapping[str, Evaluation],
    notes: Iterable[str],
    published: tuple[PublishedRobustness, ...] = (),
) -> Study:
    found, searches = _nets(tier, seeds)
    runs = tuple(entry for entry in found if entry.setting in evaluations)
    settings = dict.fromkeys(entry.setting for entry in runs)
    return Study(
        name,
        title,
        tier,
        runs,
        notes=tuple(notes),
        evaluations={setting: evaluations[setting] for setting in settings},
        search={setting: searches[setting] for setting in settings},
        surrogate="bp",
        robust_published=published,
    )


def _nets(tier: str, seeds: int) -> tuple[list[Entry], dict[str, Search]]:
    """The nets of other studies, and how their rates are chosen: digits as in smoke; in short MNIST
    as in rules-overview; in full MNIST and CIFAR-10 as in BioTorch."""
    rows = {**RULES, **CONTROLS}
    found = entries(DIGITS, with_rules(smoke.BASE, rows), seeds)
    searches = {DIGITS: smoke.SEARCH}
    if tier == "short":
        base = rules_overview.settings(tier)[MNIST]
        found += entries(MNIST, with_rules(base, rows), seeds)
        searches[MNIST] = rules_overview.searches(tier)[MNIST]
    if tier == "full":
        cifar10 = biotorch.cifar10("full", seeds).restricted("* SGD")
        for prefix, study in (("", biotorch.mnist("full", seeds)), ("CIFAR-10 ", cifar10)):
            for entry in study.entries:
                search = study.search_of(entry.cell)
                if search is None or entry.rule not in rows:
                    continue
                found.append(dataclasses.replace(entry, setting=prefix + entry.setting))
                searches[prefix + entry.setting] = search
    return found, searches


def _published() -> Iterable[PublishedRobustness]:
    for attack, by_step in CURVES.items():
        group = "black box" if attack.startswith("Square") else "own"
        for step, values in by_step.items():
            for rule, value in zip(biotorch.LABELS, values, strict=True):
                eps = 0.1 * step / 29
                yield PublishedRobustness(RESNET, rule, attack, eps, value, SOURCE, group)
    for count, values in PIXELS.items():
        for rule, value in zip(biotorch.LABELS, values, strict=True):
            name = f"FewPixel({count})"
            yield PublishedRobustness(RESNET, rule, name, count, value, SOURCE, "pixels")
