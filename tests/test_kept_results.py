"""The results in the repository: few files, small, with the keys of their settings."""

import json
import re
from pathlib import Path

import pytest

from apical.bench.experiment import rates
from apical.bench.experiment.experiment import from_dict
from apical.bench.report.read import read_study

ROOT = Path(__file__).resolve().parents[1]
KEPT = sorted(p for p in (ROOT / "results").iterdir() if p.is_dir())
PACKED_FILES = ["records.parquet", "runs.jsonl", "study.json"]


def test_kept_results_are_few_and_small() -> None:
    files = [path for path in (ROOT / "results").rglob("*") if path.is_file()]
    files = [path for path in files if "report" not in path.parts]
    assert len(KEPT) >= 18
    assert all(sorted(p.name for p in s.iterdir() if p.is_file()) == PACKED_FILES for s in KEPT)
    assert len(files) < 80
    assert sum(path.stat().st_size for path in files) < 8_000_000


@pytest.mark.parametrize("study", KEPT, ids=lambda path: path.name)
def test_every_kept_run_has_the_key_of_its_settings(study: Path) -> None:
    lines = [json.loads(line) for line in (study / "runs.jsonl").read_text().splitlines()]
    runs = [line for line in lines if "experiment" in line]
    shown = {run.folder for run in read_study(study).runs}  # rows may share an experiment
    assert len(runs) >= len(shown) > 0
    for run in runs:
        assert from_dict(run["experiment"], trust=True).key == run["key"], run["folder"]


def test_the_example_of_the_results_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "results" / "README.md").read_text(), re.S)
    exec(code, {})
    assert re.match(r"\d+ final rows", capsys.readouterr().out)


def test_the_rates_to_begin_with_are_the_smaller_ones_of_the_kept_searches() -> None:
    chosen: dict[str, list[float]] = {}
    for study in ("smoke", "biotorch-mnist"):
        for search in read_study(ROOT / "results" / study).search:
            chosen.setdefault(search["rule"], []).append(search["lr"])
    assert {rule: min(lrs) for rule, lrs in chosen.items()} == rates.MOMENTUM
