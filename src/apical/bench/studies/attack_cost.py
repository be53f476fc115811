"""What attacking the nets of a study will cost at most, from a few timed passes."""

import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from apical import data, retrieval
from apical.attacks import PGD, NoGradient, OwnAveraged
from apical.attacks import schedule as planning
from apical.attacks.trials import Step
from apical.attacks.twins import random_feedback
from apical.bench.evaluate import robustness
from apical.bench.evaluate.retrieval import NOISE
from apical.bench.evaluate.retrieval import Evaluation as OfRetrieval
from apical.bench.experiment.execution import Execution
from apical.bench.studies.assess import assessments
from apical.bench.studies.base import Choice, Entry, Study
from apical.bench.studies.cost import Cost
from apical.bench.training import build, group
from apical.core.converted import labels
from apical.core.layers import feedback_modules

PASSES, BATCH, TIMES = 4, 256, 3
LONG = 1.0
"""Total seconds after which no further call is timed: the overhead of the first is then small."""
BESIDE = 0.6
"""The least seconds of a query over those of a gradient: through a small net the proposals of
Square cost as much as its forward passes."""
STEPS, QUERIES = 4, 64
"""Of the attack on a retrieval that is timed."""


def most(study: Study, folder: Path, execution: Execution) -> Cost:
    """An upper bound, as if no image were ever broken before the last step of an attack.

    Args: folder: of the study; what is evaluated there costs nothing.
    """
    jobs = {entry.experiment.name: job for entry, job in assessments(study, folder)}
    seconds_of: dict[Choice, float] = {}
    work: list[tuple[str, float]] = []
    for entry in study.entries:
        job = jobs.get(entry.experiment.name)
        if entry.setting not in study.evaluations or (job and job.ended()):
            continue
        if entry.cell not in seconds_of:
            with warnings.catch_warnings(action="ignore"):  # of untrained nets: the runs will say
                seconds_of[entry.cell] = _seconds(study, entry, execution)
        work.append((f"{entry.setting} attacked", seconds_of[entry.cell]))
    return Cost.of(work)


def _seconds(study: Study, entry: Entry, execution: Execution) -> float:
    """Of one evaluation of one net."""
    experiment, evaluation = entry.experiment, study.evaluation_of(entry)
    load = partial(data.load, root=execution.data_root, download=execution.download)
    images = load(experiment.data, size=experiment.size)
    count = min(getattr(evaluation, evaluation.counted), len(images.test))
    with group.settings(execution):
        model = build.build_model(experiment, images).to(execution.device).eval()
        if isinstance(evaluation, OfRetrieval):
            queries = min(count, QUERIES)
            forward, gradient = _of_one_query(model, images, evaluation, queries, execution.device)
            searched = build.database(experiment, images, torch.device(execution.device))
            assert searched is not None
            others = [study.surrogate] if study.surrogate not in ("", entry.rule) else []
            feedback = any(True for _ in feedback_modules(model))
            tried = list(evaluation.steps_of(feedback=feedback, surrogates=others))
            steps = sum(step.attack != NOISE for step in tried) * evaluation.steps
            return forward * (len(searched.split) + count * len(tried)) + gradient * count * steps
        forward, gradient = _pass_seconds(model, images, min(count, BATCH), execution.device)
    assert isinstance(evaluation, robustness.Evaluation)
    total = 0.0
    for step in _planned(model, evaluation, images, study.surrogate):
        attempts = {step.attack, step.then or step.attack}
        passes = sum(each.passes(images.num_classes) for each in attempts)
        passes *= min(step.first or count, count)
        if isinstance(step.source, OwnAveraged):
            passes *= step.source.redraws
        blind = isinstance(step.source, NoGradient)
        total += passes * (forward if blind else gradient)
    return total * evaluation.samples


def _planned(
    model: nn.Module, evaluation: robustness.Evaluation, images: data.ImageData, surrogate: str
) -> list[Step]:
    setting = planning.Setting(
        norm=evaluation.norm,
        bounds=(0.0, 1.0),
        seed=evaluation.seed,
        effort=evaluation.effort,
        classes=images.num_classes,
        images=min(images.shape[1:]) >= 5,
        has_feedback=any(True for _ in feedback_modules(model)),
        random_feedback=random_feedback(model),
        rules=evaluation.rules,
        surrogates={surrogate: model} if surrogate else {},
        extra=None,
        protocol=evaluation.published_attacks,
    )
    return planning.planned(evaluation.eps, setting, torch.Size(images.shape).numel())


def _pass_seconds(
    model: nn.Module, images: data.ImageData, count: int, device: str
) -> tuple[float, float]:
    """Seconds of a query and of a gradient of one image, with what attacks compute besides.

    Timed on random images and labels, of which none is left out as broken.
    """
    x, y = _random(images, count, device)
    pgd = PGD(0.01, PASSES)
    with labels(model, y):  # rules that learn from them refuse a pass without
        forward = _timed(lambda: [model(x) for _ in range(PASSES)], device)
    gradient = _timed(lambda: pgd(model, x, y, gradient="own"), device)
    return max(forward, BESIDE * gradient) / PASSES / count, gradient / PASSES / count


def _of_one_query(
    model: nn.Module, images: data.ImageData, evaluation: OfRetrieval, count: int, device: str
) -> tuple[float, float]:
    """Seconds of a code, and of a step of SDHA, the most expensive attack, for one image."""
    x, y = _random(images, count, device)
    bits = retrieval.encode(model, x[:1]).bits
    _, classes = _random(images, min(evaluation.known, len(images.train)), "cpu")
    codes = torch.randn(len(classes), bits, generator=torch.Generator().manual_seed(0))
    database = retrieval.Database(retrieval.pack(codes), classes)
    attack = retrieval.SDHA(evaluation.eps[0], STEPS, evaluation.norm, database=database)
    forward = _timed(lambda: retrieval.encode(model, x), device)
    whole = _timed(lambda: attack(model, x, y, gradient="own"), device)
    return forward / count, whole / STEPS / count


def _timed(call: Callable[[], Any], device: str) -> float:
    """Seconds of one call: the first where it is long, or the median of a few after it."""
    seconds: list[float] = []
    while len(seconds) < 1 + TIMES and sum(seconds) < LONG:
        begin = time.perf_counter()
        call()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    return median(seconds[1:] or seconds)


def _random(images: data.ImageData, count: int, device: str) -> tuple[Tensor, Tensor]:
    """Images and labels of the shape of those of a data set."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(count, *images.shape, generator=generator).to(device)
    return x, torch.randint(images.num_classes, (count,), generator=generator).to(device)
