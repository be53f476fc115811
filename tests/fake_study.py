"""Run folders as a study leaves them, made up but of realistic shape: the report's test input."""

import math
import random
from pathlib import Path

from apical.bench.storage import records

ERRORS = {"bp": 0.91, "fa": 1.75, "dfa": 1.62, "usf": 0.95, "brsf": 0.94, "frsf": 1.0}
PUBLISHED = {"bp": 0.91, "fa": 1.7, "dfa": 2.6, "usf": 0.94, "brsf": 0.91, "frsf": 0.97}
ANGLES = {"bp": 0.0, "fa": 72.0, "usf": 28.0, "brsf": 41.0, "frsf": 43.0}
STEP_MS = {"bp": 8.4, "fa": 8.5, "dfa": 7.5, "usf": 8.7, "brsf": 8.9, "frsf": 8.7}
LAYERS = ("features.0", "features.3", "features.6", "classifier.0", "classifier.2")
SOURCE = "Sanfiz and Akrout 2021, Benchmarks.md"


def make_study(
    folder: Path,
    *,
    rules=tuple(ERRORS),
    settings=("MNIST LeNet SGD",),
    seeds=(1, 2, 3),
    epochs=20,
    tier="full",
    layers=LAYERS,
    title="BioTorch: MNIST",
    notes=("MNIST as published; images are re-compressed.",),
    published=True,
):
    """A study with every run finished; returns its folder."""
    runs = []
    for place, setting in enumerate(settings):
        for rule in rules:
            for seed in seeds:
                run = f"s{place}-{len(runs)}-{rule}-{seed}".replace("/", "_").replace("<", "_")
                make_run(folder / run, rule, seed, epochs, layers, factor=1 + 14 * place)
                runs.append({"folder": run, "setting": setting, "rule": rule, "seed": seed})
    rows = [
        {"setting": setting, "rule": rule, "metric": "test_error", "value": value, "unit": "%"}
        | {"source": SOURCE, "n": 1}
        for setting in settings[:1]
        for rule, value in PUBLISHED.items()
    ]
    value = {"name": folder.name, "title": title, "tier": tier}
    value |= {"command": f"apical study {folder.name} --tier {tier} --seeds {len(seeds)}"}
    value |= {"runs": runs, "published": rows if published else [], "notes": list(notes)}
    records.write_json(folder / "study.json", value)
    return folder


def make_run(folder: Path, rule: str, seed: int, epochs: int, layers=LAYERS, factor=1.0):
    folder.mkdir(parents=True)
    chance = random.Random(f"{rule}{seed}")
    lr = {"fa": 0.01, "dfa": 0.001}.get(rule, 0.1)
    optimizer = {"name": "sgd", "lr": lr, "momentum": 0.9, "weight_decay": 1e-3}
    experiment = {"data": "mnist", "size": 32, "validation": 0, "net": "lenet"}
    experiment |= {"rule": {"rule": "fa", "init": "xavier"} if rule == "fa" else rule}
    experiment |= {"epochs": epochs, "batch_size": 64, "optimizer": optimizer, "seed": seed}
    experiment |= {"schedule": "multistep", "milestones": [50, 75]}
    described = {"key": "0a1b", "versions": {"experiment": 1}, "experiment": experiment}
    records.write_json(folder / "experiment.json", described)
    records.write_json(folder / "environment.json", make_environment())
    error = factor * ERRORS.get(rule, 1.3) * (1 + 0.03 * chance.gauss(0, 1)) / 100
    for epoch in range(1, epochs + 1):
        records.append(folder / "records.jsonl", *epoch_rows(rule, epoch, error, layers, chance))
    final = {"kind": "final", "epoch": epochs, "test_acc": 1 - error, "test_loss": 0.03}
    final |= {"train_acc": 0.9991, "seconds": 812.5, "parameters": 61_706, "test_count": 10_000}
    final |= {"feedback_bytes": 0 if rule in ("bp", "usf") else 240_000 + 9_000 * len(rule)}
    final |= {"step_ms": STEP_MS.get(rule, 9.0) + 0.1 * chance.random()}
    records.append(folder / "records.jsonl", final)


def epoch_rows(rule, epoch, error, layers, chance):
    train = error * (0.2 + 9 * math.exp(-epoch / 3)) * (1 + 0.08 * chance.random())
    val = error * (1 + 4 * math.exp(-epoch / 4)) * (1 + 0.05 * chance.random())
    row = {"kind": "epoch", "epoch": epoch, "step": 938 * epoch, "train_loss": 3 * train}
    accuracies = {"train_acc": max(0.0, 1 - train), "val_acc": max(0.0, 1 - val)}
    row |= {**accuracies, "val_loss": 3 * val, "lr": 0.1}
    yield row | {"seconds": 8.1, "cpu_seconds": 8.0, "step_ms": 8.4, "memory_mb": 390}
    for depth, layer in enumerate(layers):
        settle = 1 - math.exp(-epoch / 5)
        row = {"kind": "layer", "epoch": epoch, "layer": layer}
        if rule in ANGLES and rule != "bp":
            row["angle_deg"] = 90 - (90 - ANGLES[rule]) * settle * (0.3 + 0.7 * depth / len(layers))
            row["norm_ratio"] = 1 / (1 + 0.2 * epoch / 20 * (depth + 1))
        if rule != "bp":
            row["gradient_angle_deg"] = 80 - 40 * depth / len(layers) - 10 * settle
            row["gradient_norm_ratio"] = 0.6 + 0.1 * depth + 0.05 * chance.random()
        yield row


def make_environment():
    return {"python": "3.11.2", "system": "Linux x86_64", "apical": "0.1.0", "torch": "2.13.0"} | {
        "numpy": "2.4.6",
        "threads": 1,
        "cpu": "Some CPU",
        "cores": 2,
        "git": "0123456789abcdef0123456789abcdef01234567",
        "git_dirty": False,
    }


def rewrite(run: Path, rows):
    (run / "records.jsonl").unlink()
    if rows:
        records.append(run / "records.jsonl", *rows)
