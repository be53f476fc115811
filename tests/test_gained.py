"""What hidden layers are worth, in every table that compares rules, and under planted rules."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from apical.bench.experiment.experiment import Experiment
from apical.bench.report import gained, table_markdown, write
from apical.bench.report.read import read_study
from apical.bench.storage import records
from apical.bench.training import loop
from apical.measure import statistics
from apical.rules import TransportRule
from fake_robust import add_robustness
from fake_study import make_study, rewrite
from test_memory_runs import study as solved
from test_report_flow import make as sequences
from test_report_hash import hashed
from test_report_spikes import spiking
from test_report_tuning import fine_tuned
from test_rules_overview import folder as overview_folder  # noqa: F401

SHARES = {"bp": 0.98, "frozen": 0.75, "readout only": 0.75, "head only": 0.75}
"""Test accuracy, and mAP, of the planted runs; of all other rules that of the control."""


def plain(folder: Path) -> Path:
    return make_study(folder, rules=("bp", "fa", "usf"), epochs=1, layers=(), published=False)


def attacked(folder: Path) -> Path:
    plain(folder)
    add_robustness(folder)
    return folder


KINDS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "results": (plain, "usf"),
    "steps to solve": (solved, "no write"),
    "sequences": (sequences, ""),
    "fine-tuning": (fine_tuned, ""),
    "robustness": (attacked, "usf"),
    "retrieval": (hashed, "usf"),
    "spikes": (spiking, "fa"),
}
"""Who makes the study, and which of its rules is called frozen; "": it has a control already."""


def planted(folder: Path, control: str) -> Path:
    """The study with a control, and with `SHARES`."""
    value = records.read_json(folder / "study.json")
    for entry in [*value["runs"], *value.get("robustness", ()), *value.get("retrieval", ())]:
        if entry["rule"] == control:
            entry["rule"] = "frozen"
    records.write_json(folder / "study.json", value)
    for run in value["runs"]:
        if run["rule"] in ("frozen", "head only"):
            described = records.read_json(folder / run["folder"] / "experiment.json")
            described["experiment"]["rule"] = "frozen"
            records.write_json(folder / run["folder"] / "experiment.json", described)
        *rows, final = records.read(folder / run["folder"] / "records.jsonl")
        share = SHARES.get(run["rule"], 0.75)
        final |= {"test_acc": share, "test_map": share, "test_count": 10_000}
        rewrite(folder / run["folder"], [*rows, final])
    return folder


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_table_has_the_column_and_marks_who_does_not_learn(
    kind: str, tmp_path: Path
) -> None:
    make, control = KINDS[kind]
    place = tmp_path / "study"
    place.mkdir()
    if not control:
        text = table_markdown(planted(make(place), control))
    else:
        make(place)
        without = table_markdown(place)
        assert "No control row" in without and "gained" not in without
        text = table_markdown(planted(place, control))
    assert "No control row" not in text
    tables = [part for part in text.split("\n\n") if part.startswith("|")]
    tables = [part for part in tables if " attack " not in part]  # ours beside published values
    heads = [part.splitlines()[0].split(" | ") for part in tables]
    assert all("gained" in head for head in heads)
    rules = set()
    for head, part in zip(heads, tables, strict=True):
        for line in part.splitlines()[2:]:
            row = line.removeprefix("| ").split(" | ")
            shown = row[head.index("gained")]
            rule = next(row[i] for i, name in enumerate(head) if name.strip("| ") in NAMES)
            rules.add(rule)
            if rule in ("frozen", "readout only", "head only"):
                assert shown.strip() == ""
            elif rule == "BP":
                assert shown.startswith("+23.00")
            elif kind == "steps to solve":  # two seeds
                assert shown.startswith("undecided: +0.00")
            else:
                assert shown.startswith("does not learn: +0.00")
    assert len(rules) > 1
    if kind == "results":
        assert "does not learn" in write(place).read_text()


@pytest.mark.parametrize(
    ("gains", "most", "mark"),
    [
        ([5.0], None, "undecided"),  # a single seed has no interval
        ([5.0, 5.1], None, "undecided"),
        ([-5.0, -5.1], None, "undecided"),
        ([5.0, 5.1, 5.2], 5.1, ""),
        ([5.0, 5.0, 5.0], 5.1, "undecided"),  # equal, and the test set is of unknown size
        ([26.1 - 25.8, 26.8 - 26.5, 26.5 - 26.2], 5.1, "undecided"),  # but for last digits
        ([-5.0, -5.1, -5.2], None, "does not learn"),
        ([5.0, -5.0, 0.1], 25.0, "does not learn"),  # up to 12.46: nearer to 0 than to 25
        ([5.0, -5.0, 0.1], 24.0, "undecided"),
        ([5.0, -5.0, 0.1], None, "undecided"),  # no rule shows what learning is worth
        ([5.0, -5.0], 1e6, "undecided"),
    ],
)
def test_a_rule_does_not_learn_where_its_runs_rule_it_out(
    gains: list[float], most: float | None, mark: str
) -> None:
    summary = statistics.summarize(gains)
    assert gained.Gain(summary, summary, most).mark == mark


def test_the_interval_shown_is_the_one_that_decides() -> None:
    """Half widths of 4.3027 / sqrt(3) = 2.48 and, corrected, 31.599 / sqrt(3) = 18.24."""
    for sign, shown in (
        (-1, "does not learn: −6.00 [−8.48 to −3.52]"),
        (1, "undecided: +6.00 [−12.24 to +24.24]"),
    ):
        gains = [5 * sign, 6 * sign, 7 * sign]
        both = (statistics.summarize(gains, level=level) for level in (0.95, 0.999))
        assert gained.shown(gained.Gain(*both)).markdown(False) == shown


NAMES = ("rule", "learner")


def test_the_overview_has_it_for_each_setting(overview_folder: Path) -> None:  # noqa: F811
    assert "No control row" in table_markdown(overview_folder)
    value = records.read_json(overview_folder / "study.json")
    value["runs"] = [r for r in value["runs"] if (overview_folder / r["folder"]).exists()]
    records.write_json(overview_folder / "study.json", value)
    head, _, bp, fa, *_ = table_markdown(planted(overview_folder, "drtp")).splitlines()[2:]
    assert "| digits MLP, gained | more \\| digits, % | more \\| digits, gained |" in head
    assert bp.count("+23.00") == 2 and fa.count("+0.00") == 2


@dataclass(frozen=True)
class Planted(TransportRule):
    """Feedback along the weights, times a factor: 0 teaches hidden layers nothing, -1 the wrong
    way."""

    factor: float = 0.0
    reference: ClassVar[str] = "@misc{planted, title = {Planted}}"

    def create(self, weight: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        return {}

    def matrix(self, weight: Tensor) -> Tensor:
        return self.factor * weight


@pytest.mark.filterwarnings("ignore::apical.bench.training.monitor.LearningWarning")
def test_planted_rules_are_marked_and_backprop_is_not(tmp_path: Path) -> None:
    base = Experiment(
        net_options={"hidden": [16, 16]}, init="xavier", epochs=4, batch_size=32, lr=0.05
    )
    rules = {"bp": "bp", "frozen": "frozen"}
    rules |= {
        name: {"rule": "test_gained:Planted", "factor": factor}
        for name, factor in (("idle", 0.0), ("harms", -1.0))
    }
    runs = []
    for label, rule in rules.items():
        for seed in range(3):
            experiment = dataclasses.replace(base, rule=rule, seed=seed)
            loop.run(experiment, tmp_path / f"{label}-{seed}")
            cell = {"setting": "digits", "rule": label, "seed": seed}
            runs.append({"folder": f"{label}-{seed}", **cell})
    value = {"name": "s", "title": "S", "tier": "smoke", "command": "c", "published": []}
    records.write_json(tmp_path / "study.json", {**value, "runs": runs, "notes": []})
    found = {rule: gain for (_, rule), gain in gained.gains(read_study(tmp_path)).items()}
    assert {rule: gain.mark for rule, gain in found.items()} == {
        "bp": "", "idle": "does not learn", "harms": "does not learn",
    }  # fmt: skip
    assert found["idle"].summary.mean == 0  # the control, to the bit
    assert found["harms"].summary.mean < -5
