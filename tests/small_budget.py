"""Commands of the documents on a small budget: what is smaller, and what cannot be run here."""

import contextlib
import dataclasses
import io
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from apical import data
from apical.bench import studies
from apical.bench.cli import main as cli
from apical.bench.training import build
from apical.nets import pretrained

ROOT = Path(__file__).resolve().parents[1]
IMAGES = 300
"""Images of the stand-ins for data sets that are not installed with the library."""

STAND_INS = {
    "cifar10": (3, 32, 32), "fashion_mnist": (1, 28, 28), "mnist": (1, 28, 28),
}  # fmt: skip
"""Random images in the shape of data sets that would have to be downloaded."""

START = {"epochs": 1, "batch_size": 64, "train_images": 64, "test_images": 32, "validation": 0}
"""What differs in an experiment that only gives others their initial weights."""

CELLS = 2
"""Rows of a study that are run, one seed and one epoch each; attacks of it are left out."""

NOT_RUN = {
    "make": "would begin by installing; that the Makefile has the target is checked",
    "pip": "would change the environment; that the extra exists is checked",
    "torchrun": "run as one process here; test_training.py runs two",
    "source": "activates an environment, in this shell only",
}
"""Programs whose lines are not run as they stand, and why."""


ELSEWHERE = ("--executor", "--device", "--track", "--parallel")
"""Options that are left out, each with its value."""


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data, tasks and studies that take seconds."""
    for name, shape in STAND_INS.items():
        monkeypatch.setitem(data.DATA, name, _stand_in(name, shape))
    monkeypatch.setattr(build, "TEST_SEQUENCES", 50)
    whole, chosen = studies.build, studies.Study.restricted

    def whole_study(*names: Any, **options: Any) -> studies.Study:
        study = whole(*names, **options)
        # the command then chooses among all settings of the study
        object.__setattr__(study, "restricted", lambda only: _few(chosen(study, only)))
        return study

    monkeypatch.setattr(studies, "build", whole_study)


def run(line: str) -> None:
    """Run a line of a shell block, in the current folder."""
    words = _of_this_machine(shlex.split(line, comments=True))
    target = None
    if ">" in words:
        words, target = words[: words.index(">")], words[-1]
    while words and words[0] in NOT_RUN:
        if words[0] == "torchrun":
            words = ["apical", *words[words.index("apical") + 1 :]]
            break
        _check(words)
        return
    if not words:
        return
    assert words[0] == "apical", f"{line}: neither apical nor one of {sorted(NOT_RUN)}"
    if words[1] == "verify":  # its runs are recorded in this repository
        shutil.copytree(ROOT / words[2], words[2])
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            status = cli.main(_smaller(words[1:]))
        except SystemExit as stop:  # --print_config and --help end the program
            status = int(stop.code or 0)
    assert status == 0, line
    if target:
        Path(target).write_text(printed.getvalue())


def _of_this_machine(words: list[str]) -> list[str]:
    """Without the options that need a cluster, a GPU or more libraries; test_scale.py runs them."""
    kept: list[str] = []
    for place, word in enumerate(words):
        before = words[place - 1] if place else ""
        if not any(w.startswith(ELSEWHERE) for w in (word, before if word[:2] != "--" else "")):
            kept.append(word)
    return kept


def _check(words: list[str]) -> None:
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M), words
    elif words[0] == "pip":
        assert words[:3] == ["pip", "install", "-e"], words
        for extra in re.findall(r"\[(\w+)\]", words[3]):
            assert re.search(rf"^{extra} = \[", (ROOT / "pyproject.toml").read_text(), re.M), words


def _smaller(words: list[str]) -> list[str]:
    """The command with less to do; every option that it has stays."""
    verb = words[0]
    more: list[str] = []
    if verb == "train" and "--print_config" not in words:
        more = ["--quiet", "true"]
        if "--switch" not in words:  # which needs its epochs
            more += ["--epochs", "1"]
        if "--task" in words:
            more += ["--batches", "2", "--batch_size", "8"]
            if "--validation" in words:
                more += ["--validation", "20"]
        else:
            more += ["--train_images", "64", "--test_images", "32"]
        if "--start.source" in words:
            at = words.index("--start.source") + 1
            source = yaml.safe_load(words[at])
            if isinstance(source, dict):  # an experiment, which is trained first
                words = [*words[:at], json.dumps({**source, **START}), *words[at + 1 :]]
        if "--start.digest" in words:  # a placeholder in the text
            start = words[words.index("--start.source") + 1]
            at = words.index("--start.digest") + 1
            words = [*words[:at], pretrained.digest(pretrained.read(start)), *words[at + 1 :]]
    elif verb == "sweep":
        more = ["--quiet", "true", "--epochs", "1", "--train_images", "64", "--test_images", "32"]
        more += ["--jobs", "1"]  # workers would begin by importing torch
    elif verb == "tune":
        more = ["--quiet", "true", "--epochs", "1", "--train_images", "64", "--rates", "0.01"]
    elif verb == "study":
        more = ["--quiet", "true", "--jobs", "1", "--estimate", "false"]
    elif verb == "verify":
        more = ["--minutes", "0.02"]  # two runs
    elif verb == "robustness":
        more = ["--quiet", "true", "--images", "8", "--effort.steps", "2"]
        more += ["--effort.adaptive_steps", "2", "--effort.queries", "4", "--effort.redraws", "1"]
    elif verb == "report" and re.search(r"-[0-9]{10}$", words[1]):  # a placeholder of a key
        words = [verb, str(next(Path("runs/train").iterdir()))]
    return [*words, *more]


def _stand_in(name: str, shape: tuple[int, int, int]) -> Any:
    def load(root: Any, *, download: bool) -> data.ImageData:
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(256, (IMAGES, *shape), generator=generator, dtype=torch.uint8)
        split = data.Split(images, torch.arange(IMAGES) % 10)
        half = (0.5,) * shape[0]
        return data.ImageData(name, split, split, 10, half, half)

    return load


def _few(study: studies.Study) -> studies.Study:
    """Some rows of a study, one seed and one epoch each."""
    cells = study.cells[:CELLS]
    made = []
    for cell in cells:
        entry = next(entry for entry in study.entries if entry.cell == cell)
        experiment = entry.experiment
        least = max(64, experiment.batch_size)  # a batch of them has to be whole
        less: dict[str, Any] = {"train_images": least, "test_images": 32}
        if isinstance(experiment.start.source, str) and experiment.start.source:  # a large net
            less = dict.fromkeys(("batch_size", "train_images", "test_images", "probe_images"), 8)
        if experiment.task:
            less = {"batches": 2, "batch_size": 8, "test_lengths": ()}
        start = experiment.start
        if isinstance(start.source, dict):
            start = dataclasses.replace(start, source={**start.source, **START})
        experiment = dataclasses.replace(
            experiment, epochs=1, validation=0, test_at=(), start=start, **less
        )
        made.append(dataclasses.replace(entry, experiment=experiment))
    published = tuple(value for value in study.published if (value.setting, value.rule) in cells)
    return dataclasses.replace(
        study, entries=tuple(made), search=None, evaluations={}, curves=(), published=published,
        robust_published=(), follows={}, fixed=(), crossed=(), overview=None,
    )  # fmt: skip
