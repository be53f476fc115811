"""The benchmark of measurements runs, and its share is what a run spends."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path.append(str(BENCHMARKS))

import probe_cost  # noqa: E402


def test_it_measures_and_says_so(tmp_path: Path) -> None:
    out = tmp_path / "cost.json"
    command = [sys.executable, str(BENCHMARKS / "probe_cost.py"), "--quick", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    (table,) = json.loads(out.read_text())["tables"]
    (row,) = table["rules"].values()
    assert row["share"] == pytest.approx(5 * row["cpu_ratio"] / (30 * 45), abs=1e-4)
    assert "share of the run" in done.stdout and table["limit"] == 0.05


@pytest.mark.parametrize("name", probe_cost.SETTINGS)
def test_the_limit_is_met_as_long_as_the_model_of_the_cost_holds(name: str) -> None:
    """Where even the first and last measurement are too much, by their number."""
    setting = probe_cost.SETTINGS[name]
    experiment = setting.experiment
    modelled = probe_cost.FIXED_STEPS + 2 * experiment.probe_images / experiment.batch_size
    assert setting.share(modelled) <= experiment.probe_share or setting.measurements == 2
    assert setting.measurements == 101 or name in ("digits", "smoke")


def test_bad_options_say_what_is_allowed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        probe_cost.parse(["--setting", "lenett"])
    assert "'lenet'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        probe_cost.parse(["--rounds", "0"])
