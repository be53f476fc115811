"""The study of low-dimensional error: its rules convert, and differ in rank and projection only."""

import dataclasses

import pytest
import torch

import apical
from apical import nets
from apical.bench import studies
from apical.bench.experiment import optimizers
from apical.bench.experiment.rule_settings import rule_assignment
from apical.bench.studies.low_dim_error import FIVE, OUTPUT, TEN, losing, settings
from apical.nets import build


def test_every_rule_converts_its_net_at_the_rank_it_names() -> None:
    for tier in ("smoke", "full"):
        both = [
            studies.build(f"low-dim-{kind}", tier=tier, seeds=1) for kind in ("error", "accuracy")
        ]
        done = set()
        for of, entry in ((study.name, entry) for study in both for entry in study.entries):
            experiment = entry.experiment
            channels = 1 if experiment.data == "mnist" else 3
            shape = (channels, 32, 32) if channels == 3 else (1, 28, 28)
            options = experiment.net_options
            classes = 5 if experiment.data == "cifar10_first5" else 10
            model = build(experiment.net, in_shape=shape, num_classes=classes, **options)
            apical.convert(model, rule_assignment(experiment.rule))
            if not entry.rule.startswith("r="):
                continue
            rank = int(entry.rule.split("=")[1].split()[0].rstrip(","))
            for name, slot in model.named_modules():
                if name.endswith("feedback") and hasattr(slot, "projection"):
                    own = (
                        min(rank, classes)
                        if name.startswith(OUTPUT[experiment.net] + ".")
                        else rank
                    )
                    assert len(slot.projection) == own, (entry.cell, name)
            done.add((of, entry.setting))
        assert len(done) == 6
    assert nets.NETS.keys() >= OUTPUT.keys()


def test_rows_of_a_setting_share_everything_but_rule_and_named_decay() -> None:
    study = studies.build("low-dim-error", seeds=2)
    for setting in settings("short"):
        own = [(e.rule, e.experiment) for e in study.entries if e.setting == setting]
        same = [dataclasses.replace(e, rule="bp", seed=0) for _, e in own]
        plain = {e.key for (row, _), e in zip(own, same, strict=True) if not row.endswith(" decay")}
        decaying = {e.key for (row, _), e in zip(own, same, strict=True) if row.endswith(" decay")}
        assert len(plain) == 1 and decaying != plain
        assert len(decaying) == ("MLP" in setting)


@pytest.mark.parametrize("setting", ["MNIST MLP", "CIFAR-10 ViT"])  # SGD with momentum, AdamW
def test_the_optimizer_takes_the_share_that_the_rules_do(setting: str) -> None:
    experiment = losing(settings("short")[setting], 2e-3)
    net = torch.nn.Linear(3, 2).double()
    optimizer = optimizers.build(
        experiment.optimizer,
        net.parameters(),
        lr=experiment.lr,
        options=experiment.optimizer_options,
    )
    sizes = []
    for _ in range(400):
        net.weight.grad = torch.zeros_like(net.weight)
        optimizer.step()
        sizes.append(net.weight.norm().item())
    assert 1 - sizes[-1] / sizes[-2] == pytest.approx(2e-3, rel=0.03)


def test_fixed_and_learned_feedback_of_equal_norm_stand_beside_each_other() -> None:
    for tier in ("short", "full"):
        entries = studies.build("low-dim-error", tier=tier, seeds=1).entries
        own = {e.rule: e.experiment.rule for e in entries if e.setting == "CIFAR-10 MLP"}
        learned, fixed = (own[f"r=10 {label}, |B| = |W|"] for label in ("learned", "fixed"))
        assert {**learned, "projection": "fixed"} == fixed and fixed["scale"] == "norm"


def test_a_part_of_the_training_split_is_the_same_for_every_seed() -> None:
    from apical import data
    from apical.bench.experiment.experiment import Experiment
    from apical.bench.training import build as prepare

    parts = [
        prepare.build(Experiment(train_images=100, validation=50, batch_size=100, seed=seed))
        for seed in (0, 1)
    ]
    whole = data.load("digits").train
    seen = [next(iter(p.train.epoch(0)))[1].sort().values for p in parts]
    assert torch.equal(*seen) and len(seen[0]) == 100 < len(whole)
    assert Experiment().key == Experiment(train_images=None).key


def test_five_classes_are_a_task_of_five_dimensions_with_the_same_rows_and_budget() -> None:
    study = studies.build("low-dim-accuracy", tier="short", seeds=1)
    tries = study.candidates()
    rows = {"bp", "fa", "frozen", "redrawn"}
    rows |= {f"r={rank} {label}" for rank in (5, 10) for label in ("learned", "fixed")}
    for setting in (TEN, FIVE):
        assert {rule for where, rule in tries if where == setting} == rows
    assert {where for where, _ in tries} == {TEN, FIVE}
    five = {e.rule: e.experiment for e in study.entries if e.setting == FIVE}
    assert {e.data for e in five.values()} == {"cifar10_first5"}
    assert five["r=10 learned"].rule["fc"]["rank"] == 5 and "fc" not in five["r=5 learned"].rule
    assert study.search_of((FIVE, "bp")).chance == 0.8
