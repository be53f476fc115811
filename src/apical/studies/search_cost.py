"""What attacking the retrieval of a hash net will cost, from a few timed steps."""

from functools import partial
from typing import Any

import torch
from torch import nn

from apical import data, hashing, prepare, training
from apical.core.converted import feedback_modules
from apical.retrieval.evaluation import NOISE, Evaluation
from apical.studies.base import Entry, Study
from apical.studies.timed import timed

STEPS, BATCH = 4, 64


def seconds(study: Study, entry: Entry, execution: training.Execution) -> float:
    """Of the evaluation of one net: its database encoded, and all attacks by SDHA, the dearer."""
    experiment, evaluation = entry.experiment, study.retrievals[entry.setting]
    load = partial(data.load, root=execution.data_root, download=execution.download)
    images = load(experiment.data, size=experiment.size)
    searched = prepare.database(experiment, images, torch.device(execution.device))
    assert searched is not None
    count = min(evaluation.queries, len(images.test))
    with training.settings(execution):
        model = prepare.build_model(experiment, images).to(execution.device).eval()
        forward, step = _of_one_query(
            model, images, evaluation, min(count, BATCH), execution.device
        )
    others = [study.surrogate] if study.surrogate not in ("", entry.rule) else []
    feedback = any(True for _ in feedback_modules(model))
    tried = list(evaluation.steps_of(feedback=feedback, surrogates=others))
    attacks = sum(each.attack != NOISE for each in tried)
    passes = len(searched.split) + count * len(tried)
    return forward * passes + step * count * attacks * evaluation.steps


def _of_one_query(
    model: nn.Module, images: data.ImageData, evaluation: Evaluation, count: int, device: str
) -> tuple[float, float]:
    """Seconds of a code, and of a step of an attack, for one image; on random images and labels."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(count, *images.shape, generator=generator).to(device)
    y = torch.randint(images.num_classes, (count,), generator=generator).to(device)
    bits = hashing.encode(model, x[:1]).bits
    known = torch.randn(min(evaluation.known, len(images.train)), bits, generator=generator)
    labels = torch.randint(images.num_classes, (len(known),), generator=generator)
    database = hashing.Database(hashing.pack(known), labels)
    common: dict[str, Any] = {"eps": evaluation.eps[0], "norm": evaluation.norm}
    attack = hashing.SDHA(**common, steps=STEPS, database=database)
    forward = timed(lambda: hashing.encode(model, x), device)
    whole = timed(lambda: attack(model, x, y, gradient="own"), device)
    return forward / count, whole / STEPS / count
