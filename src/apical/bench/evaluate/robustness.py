"""Evaluating the robustness of a trained net in a folder, so that a killed evaluation goes on.

An evaluation lies in RUN/robustness/KEY:
    setting.json      key, versions, digest of the net, and what it was evaluated by
    environment.json  versions and machine
    trials.jsonl      one attack by one source at one radius a line, with a bit for each example
    records.jsonl     the rows of the report, written whole at the end
    examples.npz      a few images and what attacks made of them
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from apical import attacks, rules
from apical.attacks import Audit, Effort, RobustReport, audit, robust_report
from apical.attacks.ball import Threat
from apical.attacks.checks import check_eps
from apical.attacks.evaluation import AUDITED
from apical.attacks.pictures import pictures
from apical.attacks.trials import Trial
from apical.bench.evaluate.trained_net import Trained
from apical.bench.experiment.execution import Execution
from apical.bench.experiment.experiment import KEY_DIGITS
from apical.bench.experiment.settings import differing
from apical.bench.storage import claims, evaluation_folder, records
from apical.bench.training import loop, progress
from apical.names import check_literals

VERSION = 2
"""Raised when a change of the attacks alters what an evaluation finds."""

FOLDER = "robustness"
"""Where the evaluations of a run lie in its folder."""


@dataclass(frozen=True)
class Evaluation:
    """How a net is attacked: everything that influences the outcome beside the nets themselves.

    Args:
        eps: radii above 0, in units of pixels in [0, 1]; or numbers of flips.
        norm: "linf" (largest change of one value), "l2" (length of the change), or "flips" (how
            many values of binary events are flipped).
        images: of the test split, the same for every net; all, where it has fewer (>= 1).
        effort: how much is spent on each attack.
        rules: names of further rules whose backward pass is tried on these weights.
        protocol: name of an earlier study's attacks, to be run beside ("linf" only); "": none.
        pixels: numbers of pixels that the protocol's few-pixel attack may change.
        pixel_images: images that is tried on (>= 1).
        samples: forward passes whose mean scores count, for nets with random scores (>= 1).
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
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("eps", "rules", "pixels"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check_literals(self, "robustness")
        for eps in self.eps:
            check_eps("robustness", eps, low=0.0, high=1.0, linf=self.norm == "linf")
        if not self.eps or len(set(self.eps)) < len(self.eps) or min(self.eps) == 0:
            raise ValueError(
                f"robustness: eps={self.eps}; give at least one radius above 0, each once"
            )
        if self.norm == "flips" and any(eps != round(eps) for eps in self.eps):
            raise ValueError(f"robustness: eps={self.eps} must be whole numbers of flips")
        for name, least in (("images", 1), ("samples", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(
                    f"robustness: {name}={getattr(self, name)} must be at least {least}"
                )
        for rule in self.rules:
            rules.build(rule)
        if not self.protocol and {"pixels", "pixel_images"} & _changed(self):
            raise ValueError(
                "robustness: pixels and pixel_images have no effect without a protocol"
            )
        if self.published_attacks and self.norm != "linf":
            raise ValueError(
                f"robustness: the attacks of protocol={self.protocol!r} are 'linf', not "
                f"{self.norm!r}"
            )

    @property
    def published_attacks(self) -> attacks.Protocol | None:
        """The protocol, with the numbers of pixels that are asked for."""
        if not self.protocol:
            return None
        found = attacks.protocol(self.protocol)
        return dataclasses.replace(found, pixels=self.pixels, pixel_images=self.pixel_images)

    def key(self, net: str, surrogates: Mapping[str, str]) -> str:
        """Short hash of what influences the outcome. Args: digests of the nets, by name."""
        value = differing(self) | {"net": net, "surrogates": dict(surrogates), "version": VERSION}
        text = json.dumps(value, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:KEY_DIGITS]


def _changed(evaluation: Evaluation) -> set[str]:
    """Names of the fields that are not at their defaults."""
    defaults = {f.name: f.default for f in dataclasses.fields(evaluation)}
    return {name for name, value in defaults.items() if getattr(evaluation, name) != value}


def place(
    run: Path, evaluation: Evaluation, net: str, surrogates: Mapping[str, str] | None = None
) -> Path:
    """The folder of an evaluation. Args: run: of the net. net, surrogates: digests."""
    return run / FOLDER / evaluation.key(net, surrogates or {})


def rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of a finished evaluation, none while it is not."""
    return evaluation_folder.rows(folder, "verdict")


def evaluate(
    net: Trained,
    evaluation: Evaluation,
    folder: str | Path,
    execution: Execution | None = None,
    *,
    surrogates: Mapping[str, Trained] | None = None,
) -> list[dict[str, Any]]:
    """Evaluate a net in a folder, or go on where that was killed, or read what it found.

    Args: folder: as `place` names it. surrogates: nets to transfer attacks from, by name.
    Returns: the rows of the report.
    Raises: ValueError as attacks do, or if the folder holds another evaluation; claims.Held if
        another living process works on it.
    """
    folder, execution = Path(folder), execution or Execution()
    others = dict(surrogates or {})
    key = evaluation.key(net.digest, {name: other.digest for name, other in others.items()})
    _check_classes(net, *others.values())
    evaluation_folder.check(folder, key)
    if found := rows(folder):
        claims.clear(folder)  # a kill after the last row leaves one
        return found
    with loop.settings(execution), claims.hold(folder) as claim:
        if found := rows(folder):
            return found
        x, y = net.examples(evaluation.images, execution.device)
        setting = _described(net, evaluation, others, len(x))
        evaluation_folder.describe(folder, key, net.digest, setting, execution, robustness=VERSION)
        report = _report(net, evaluation, folder, execution, others, (x, y), claim.check)
        shown = pictures(
            net.model, x, y, eps=_middle(evaluation.eps), norm=evaluation.norm, seed=evaluation.seed
        )
        claim.check()
        if shown:
            evaluation_folder.write_examples(folder, shown)
        evaluation_folder.write_rows(folder, report.rows())
    claims.clear(folder)
    return rows(folder)


def audits(net: Trained, evaluation: Evaluation, execution: Execution | None = None) -> list[Audit]:
    """The gradient audit alone: of the net's own gradient, the exact one, those of the rules."""
    execution = execution or Execution()
    _check_classes(net)
    x, y = net.examples(min(evaluation.images, AUDITED), execution.device)
    sources = ["own", "exact", *(f"rule:{rule}" for rule in evaluation.rules)]
    with loop.settings(execution):
        return [audit(net.model, x, y, gradient=s, seed=evaluation.seed) for s in sources]


def _report(
    net: Trained,
    evaluation: Evaluation,
    folder: Path,
    execution: Execution,
    others: Mapping[str, Trained],
    examples: tuple[torch.Tensor, torch.Tensor],
    still_mine: Any,
) -> RobustReport:
    path = folder / "trials.jsonl"
    finished = evaluation_folder.trials(folder, Trial.read)
    known, begin = {trial.key for trial in finished}, time.perf_counter()
    with progress.steps(net.name, quiet=execution.quiet) as show:

        def on_trial(trial: Trial, number: int, total: int) -> None:
            nonlocal begin
            show(f"{trial.attack} / {trial.source}  eps {trial.eps:.3g}", number, total)
            if trial.key not in known:
                still_mine()
                seconds = round(time.perf_counter() - begin, 3)
                records.append(path, trial.record() | {"seconds": seconds}, digest=True)
            begin = time.perf_counter()

        return robust_report(
            net.model,
            *examples,
            eps=evaluation.eps,
            norm=evaluation.norm,
            effort=evaluation.effort,
            rules=evaluation.rules,
            surrogates={name: other.model for name, other in others.items()},
            protocol=evaluation.published_attacks,
            samples=evaluation.samples,
            seed=evaluation.seed,
            finished=finished,
            on_trial=on_trial,
        )


def _described(
    net: Trained, evaluation: Evaluation, others: Mapping[str, Trained], count: int
) -> dict[str, Any]:
    values = json.loads(json.dumps(dataclasses.asdict(evaluation)))
    about = {"net": net.name, "data": net.images.name, "image_shape": list(net.images.shape)}
    return about | values | {"images": count, "surrogates": list(others)}


def _check_classes(*nets: Trained) -> None:
    for net in nets:
        if net.bits is not None:
            raise ValueError(
                f"{net.name} gives hash codes of {net.bits} bits, no scores of classes: attack its "
                "retrieval (apical.bench.evaluate.retrieval)"
            )


def _middle(eps: tuple[float, ...]) -> float:
    return sorted(eps)[len(eps) // 2]
