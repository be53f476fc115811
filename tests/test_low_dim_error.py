"""The study of low-dimensional error: its rules convert, and differ in rank and projection only."""

import torch

import apical
from apical import nets, studies
from apical.experiment import rule_assignment
from apical.nets import build
from apical.studies.low_dim_error import OUTPUT


def test_every_rule_converts_its_net_at_the_rank_it_names() -> None:
    for tier in ("smoke", "full"):
        study = studies.build("low-dim-error", tier=tier, seeds=1)
        done = set()
        for entry in study.entries:
            experiment = entry.experiment
            channels = 1 if experiment.data == "mnist" else 3
            shape = (channels, 32, 32) if channels == 3 else (1, 28, 28)
            options = experiment.net_options
            model = build(experiment.net, in_shape=shape, num_classes=10, **options)
            apical.convert(model, rule_assignment(experiment.rule))
            if not entry.rule.startswith("r="):
                continue
            rank = int(entry.rule.split("=")[1].split()[0].rstrip(","))
            for name, slot in model.named_modules():
                if name.endswith("feedback") and hasattr(slot, "projection"):
                    own = min(rank, 10) if name.startswith(OUTPUT[experiment.net] + ".") else rank
                    assert len(slot.projection) == own, (entry.cell, name)
            done.add(entry.setting)
        assert len(done) == 4
    assert nets.NETS.keys() >= OUTPUT.keys()


def test_rules_of_a_setting_share_everything_else() -> None:
    import dataclasses

    study = studies.build("low-dim-error", seeds=2)
    for setting in {entry.setting for entry in study.entries}:
        own = [e.experiment for e in study.entries if e.setting == setting]
        assert len({dataclasses.replace(e, rule="bp", seed=0).key for e in own}) == 1


def test_a_part_of_the_training_split_is_the_same_for_every_seed() -> None:
    from apical import data, prepare
    from apical.experiment import Experiment

    parts = [
        prepare.build(Experiment(train_images=100, validation=50, batch_size=100, seed=seed))
        for seed in (0, 1)
    ]
    whole = data.load("digits").train
    seen = [next(iter(p.train.epoch(0)))[1].sort().values for p in parts]
    assert torch.equal(*seen) and len(seen[0]) == 100 < len(whole)
    assert Experiment().key == Experiment(train_images=None).key
