"""Adversarial training in the runner: what the net is trained on, keys, refusals, resuming."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from apical import attacks
from apical.bench.experiment.execution import Execution
from apical.bench.experiment.experiment import Experiment, from_dict, to_dict
from apical.bench.experiment.loss_settings import Hashing
from apical.bench.experiment.training_settings import Adversarial
from apical.bench.storage import checkpoint
from apical.bench.training import batch_step, build, loop

BASE = Experiment(net_options={"hidden": [16]}, epochs=2, batch_size=256, probe_every=0)
HARM = Adversarial(eps=0.1, steps=3)


def test_the_net_learns_from_attacked_images() -> None:
    for gradient in ("exact", "own"):
        for accumulate, norm, eps in ((1, "l2", 0.5), (2, "l1", 2.0)):
            harm = dataclasses.replace(HARM, gradient=gradient, norm=norm, eps=eps)
            plain = dataclasses.replace(BASE, rule="fa", accumulate=accumulate)
            parts = build.build(dataclasses.replace(plain, adversarial=harm))
            x, y = next(iter(parts.train.epoch(0)))
            learn = batch_step.function(
                dataclasses.replace(plain, adversarial=harm), parts, lambda: 7, list
            )
            loss, _ = learn(x, y)
            grads = [p.grad.clone() for p in parts.model.parameters()]
            assert parts.model.training
            # by hand: the attack of the library in units of pixels, then the plain step
            mean, std = parts.source.mean, parts.source.std
            whole = attacks.Normalised(parts.model.eval(), mean, std)
            pixels = x * std[0] + mean[0]
            points = attacks.PGD(eps, 3, norm=norm, seed=7)(
                whole, pixels.clamp(0, 1), y, gradient=gradient
            )
            parts.model.train().zero_grad()
            learn = batch_step.function(plain, parts, lambda: 7, list)
            wanted, _ = learn((points - mean[0]) / std[0], y)
            torch.testing.assert_close(loss, wanted)
            for grad, parameter in zip(grads, parts.model.parameters(), strict=True):
                torch.testing.assert_close(grad, parameter.grad)


def test_keys() -> None:
    """Absent it leaves no trace in the key, so that recorded keys stay."""
    hard = dataclasses.replace(BASE, adversarial=HARM)
    assert from_dict(to_dict(hard)) == hard and from_dict(to_dict(BASE)) == BASE
    assert dataclasses.replace(BASE, adversarial="pgd") == dataclasses.replace(
        BASE, adversarial=Adversarial()
    )
    assert from_dict({k: v for k, v in to_dict(BASE).items() if k != "adversarial"}) == BASE
    changes: list[dict[str, Any]] = [
        {"eps": 0.2}, {"attack": "fgsm", "steps": 7}, {"norm": "l2"}, {"steps": 4},
        {"step_size": 0.1}, {"gradient": "own"},
    ]  # fmt: skip
    harms = [HARM, *(dataclasses.replace(HARM, **change) for change in changes), Adversarial()]
    keys = {dataclasses.replace(BASE, adversarial=harm).key for harm in harms} | {BASE.key}
    assert len(keys) == len(harms) + 1


def test_refusals() -> None:
    for make, told in (
        (lambda: Adversarial(eps=8), "did you mean 8/255"),
        (lambda: Adversarial(eps=0.0), "eps=0.0: must be above 0"),
        (lambda: Adversarial(attack="fgsm", steps=3), "fgsm takes a single one"),
        (lambda: Adversarial(norm="l3"), "norm='l3'"),
        (
            lambda: dataclasses.replace(BASE, adversarial=HARM, hashing=Hashing(8, "csq")),
            "cannot be combined with hashing",
        ),
    ):
        with pytest.raises(ValueError, match=told):
            make()


def test_a_killed_run_resumes_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hard = dataclasses.replace(BASE, rule="brsf", adversarial=HARM)
    whole = loop.run(hard, tmp_path / "whole", Execution(quiet=True))
    saves, save = 0, checkpoint.save

    def stop(*given: Any, **options: Any) -> None:
        nonlocal saves
        save(*given, **options)
        saves += 1
        if saves == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            loop.run(hard, tmp_path / "killed", Execution(quiet=True, checkpoint_steps=2))
    resumed = loop.run(hard, tmp_path / "killed", Execution(quiet=True))
    assert (resumed["test_loss"], resumed["train_loss"]) == (
        whole["test_loss"],
        whole["train_loss"],
    )
