"""Studies: the published settings as data, the choice of learning rates, and study.json."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from apical.bench import studies
from apical.bench.evaluate.robustness import Evaluation
from apical.bench.experiment.execution import Execution
from apical.bench.experiment.experiment import Experiment
from apical.bench.experiment.training_settings import Schedule
from apical.bench.report.read import read_study
from apical.bench.storage import records, run_folder
from apical.bench.studies import STUDIES, Entry, Published, Search, Study, conduct, cost
from apical.bench.studies.base import CONTROLS, Overview
from apical.bench.studies.published import Curve, PublishedRobustness
from apical.bench.training import loop
from apical.nets.pretrained import Start

EXECUTION = Execution()
SIX = {"bp", "fa", "dfa", "usf", "brsf", "frsf"}
TINY = Experiment(net_options={"hidden": [8]}, epochs=2, batch_size=256, probe_every=0)


def tiny(seeds: int = 2, rates: tuple[float, ...] = (0.01, 0.03, 0.1), **changes: Any) -> Study:
    """Two rules on digits, learning rates still open."""
    entries = tuple(
        Entry("digits", rule, dataclasses.replace(TINY, rule=rule, seed=seed, lr=9.0))
        for rule in ("bp", "fa")
        for seed in range(seeds)
    )
    search = Search(rates, 1, Schedule(), 300, **{"extensions": 0} | changes)
    return Study("tiny", "Tiny", "full", entries, search=search, notes=("small",))


SINGLE = {("short", "bAbI, 20 tasks together")}
"""Settings of which a tier has one run, because it takes as long as all others."""


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_and_tier(name: str) -> None:
    for tier in ("smoke", "short", "full"):
        if name == "smoke" and tier != "smoke":
            with pytest.raises(ValueError, match=f"unknown tier of the study smoke '{tier}'"):
                studies.build(name, tier=tier)
            continue
        study = studies.build(name, tier=tier, seeds=3)
        if name == "smoke" or name.startswith("biotorch"):
            assert {entry.rule.removesuffix(", published rate") for entry in study.entries} >= SIX
        counts = [len(v) for c, v in by_cell(study).items() if (tier, c[0]) not in SINGLE]
        assert all(count == 3 for count in counts)
        own = [entry for entry in study.entries if entry.rule not in study.follows]
        keys = [entry.experiment.key for entry in own]
        assert len(set(keys)) == len(keys)
        if study.published and name != "weight-transport":
            assert {(p.setting, p.rule) for p in study.published} <= set(study.cells)
        for cell in by_cell(study).values():  # the same but for the seed
            assert {entry.experiment.seed for entry in cell} == set(range(len(cell)))
            assert len({without_seed(e.experiment).key for e in cell}) == 1
        check_searches(study)


def check_searches(study: Study) -> None:
    """Every row has the same budget and reads no test image; both controls are tuned."""
    reported = {entry.experiment.seed for entry in study.entries}
    budgets: dict[str, set[Any]] = {}
    tuned: dict[str, set[str]] = {}
    for (setting, rule), by_rate in study.candidates().items():
        tuned.setdefault(setting, set()).add(rule)
        tries = [one for each in by_rate.values() for one in each]
        assert all(one.validation and not one.test and not one.test_at for one in tries)
        assert all(len({one.seed for one in each}) >= 3 for each in by_rate.values())
        assert not {one.seed for one in tries} & reported, rule
        spent = [(one.lr, one.seed, one.epochs, one.validation) for one in tries]
        same = {(one.schedule, one.batch_size, one.train_images, one.batches) for one in tries}
        search = study.search_of((setting, rule))
        assert search is not None
        budgets.setdefault(setting, set()).add(
            (tuple(spent), frozenset(same), search.extensions, search.chance)
        )
    assert all(len(each) == 1 for each in budgets.values()), budgets
    untuned = {c for c in study.cells if c[0] in budgets and study.search_of(c) is None}
    for _, rule in untuned:  # said in the row itself
        assert "published rate" in rule or rule in study.follows or rule == "start", rule
    for setting, rules_of in tuned.items():
        assert CONTROLS.keys() <= rules_of, (setting, rules_of)


def without_seed(experiment: Experiment) -> Experiment:
    """At seed 0, what it starts from too."""
    start = experiment.start
    if isinstance(start.source, dict):
        start = dataclasses.replace(start, source={**start.source, "seed": 0})
    return dataclasses.replace(experiment, seed=0, start=start)


def by_cell(study: Study) -> dict[Any, list[Entry]]:
    cells: dict[Any, list[Entry]] = {}
    for entry in study.entries:
        cells.setdefault(entry.cell, []).append(entry)
    return cells


def test_the_published_protocol_of_mnist() -> None:
    study = studies.build("biotorch-mnist", tier="full")
    assert study.folder == "biotorch-mnist"
    first = study.entries[0].experiment
    assert (first.epochs, first.batch_size, first.size) == (100, 64, 32)
    assert first.schedule == Schedule("multistep", (50, 75))
    assert first.optimizer_options == {"momentum": 0.9, "weight_decay": 1e-3}
    published = {row.rule: row.value for row in study.published}
    assert published == {
        "bp": 0.91, "fa": 1.7, "dfa": 1.61, "usf": 0.94, "brsf": 0.91, "frsf": 0.97,
    }  # fmt: skip


def test_the_published_protocol_of_cifar10() -> None:
    study = studies.build("biotorch-cifar10", tier="full", seeds=1)
    rates = {entry.cell: entry.experiment.lr for entry in study.entries}
    assert rates["LeNet SGD", "fa, published rate"] == 0.001
    assert {"fa", "kp", "frozen", "redrawn"} <= {row for _, row in study.candidates()}
    assert rates["LeNet Adam", "dfa, published rate"] == 1e-4
    assert rates["ResNet-20 SGD", "dfa, published rate"] == 0.001
    assert rates["ResNet-20 Adam", "bp, published rate"] == 0.001
    assert not {cell for cell in study.candidates() if "published rate" in cell[1]}
    adam = next(e.experiment for e in study.entries if e.setting == "ResNet-20 Adam")
    assert (adam.optimizer, adam.optimizer_options) == ("adam", {"weight_decay": 1e-4})
    assert (adam.epochs, adam.schedule.milestones) == (250, (100, 150, 200))
    short = studies.build("biotorch-cifar10", tier="short").entries[0].experiment
    assert (short.epochs, short.schedule.milestones) == (20, (8, 12, 16))
    values = {(row.setting, row.rule): row.value for row in study.published}
    assert values["ResNet-20 SGD", "frsf, published rate"] == 11.2


def test_imagenet_trains_dfa_with_adam() -> None:
    study = studies.build("biotorch-imagenet", tier="full", seeds=1)
    used = {e.rule: (e.experiment.optimizer, e.experiment.lr) for e in study.entries}
    assert used.pop("dfa") == ("adam", 0.001)
    assert set(used.values()) == {("sgd", 0.1)}


def test_only_some_settings() -> None:
    study = studies.build("biotorch-cifar10", tier="short", seeds=1)
    assert {e.setting for e in study.restricted("LeNet *").entries} == {"LeNet SGD", "LeNet Adam"}
    assert {p.setting for p in study.restricted("* SGD").published} == {
        "LeNet SGD",
        "ResNet-20 SGD",
    }
    with pytest.raises(ValueError, match="unknown setting of biotorch-cifar10 'LeNet'; did you"):
        study.restricted("LeNet")


def test_refusals() -> None:
    for name, options, told in (
        ("biotorch-minst", {}, "unknown study 'biotorch-minst'; did you mean 'biotorch-mnist'"),
        ("biotorch-mnist", {"tier": "long"}, "unknown tier of the study biotorch-mnist 'long'"),
        ("smoke", {"seeds": 0}, "seeds=0: must be at least 1"),
    ):
        with pytest.raises(ValueError, match=told):
            studies.build(name, **options)
    study = tiny()
    with pytest.raises(ValueError, match="study tiny: two runs are digits, bp, seed=0"):
        dataclasses.replace(study, entries=(*study.entries, study.entries[0]))
    row = Published("digits", "fq", 4.0, "S")
    with pytest.raises(ValueError, match="of digits, fq, of which there is no run; .* digits, fa"):
        dataclasses.replace(study, published=(row,))
    with pytest.raises(ValueError, match="study tiny: fa follows bq, which has no run in digits"):
        dataclasses.replace(study, follows={"fa": "bq"})
    search = Search((0.1,), 1, Schedule(), 300, seeds=(1, 2, 3))
    with pytest.raises(ValueError, match=r"study tiny: seeds \[1\] of its runs are also"):
        dataclasses.replace(study, search=search)


RATES = (0.01, 0.03, 0.1)
ROW = Published("digits", "fa", 4.0, "S")
ATTACKED = PublishedRobustness("digits", "fa", "FGSM", 0.1, 0.5, "S")
COURSE = Curve("digits", "fa", "test_acc", {1: 90.0}, "S", 1.0)
WITHOUT_EFFECT: dict[str, tuple[dict[str, Any], str]] = {
    "search": ({"search": {"digit": Search(RATES, 1, Schedule(), 9)}}, "setting in search .*digit"),
    "evaluations": ({"evaluations": {"mnist": Evaluation()}}, "setting in evaluations .*'mnist'"),
    "fixed": ({"fixed": ("fb",)}, "row in fixed of study tiny 'fb'; did you mean 'fa'"),
    "surrogate": ({"surrogate": "pb"}, "row in surrogate .*'pb'"),
    "follows": ({"follows": {"af": "bp"}}, "row in follows .*'af'"),
    "crossed": ({"surrogate": "bp", "crossed": ("usff",)}, "rule in crossed .*'usff'"),
    "crossed alone": ({"crossed": ("usf",)}, "no effect without a surrogate and evaluations"),
    "detail": ({"overview": Overview({"bp": {}, "fa": {}}, "mnist", "")}, "overview.detail"),
    "facts": ({"overview": Overview({"bp": {}}, "digits", "")}, "row in overview.facts .*'fa'"),
    "tier": ({"tier": "ful"}, "tier of study tiny 'ful'; did you mean 'full'"),
    "solved": ({"solved": 99.5}, "solved=99.5: a share above 0 and below 1"),
    "never solved": ({"solved": 1.0}, "solved=1.0: a share above 0 and below 1"),
    "published": ({"published": (ROW, dataclasses.replace(ROW, value=5.0))},
                  "two published values are of digits, fa"),
    "unit": ({"published": (dataclasses.replace(ROW, value=400.0),)}, "must lie in 0 to 100 %"),
    "robust": ({"robust_published": (ATTACKED, ATTACKED)}, "are of digits, fa, FGSM, 0.1, own"),
    "curves": ({"curves": (COURSE, COURSE)}, "are of digits, fa, test_acc"),
}  # fmt: skip
OUT_OF_RANGE = {"epochs": 0, "validation": 0, "extensions": -1, "chance": 5.0}


@pytest.mark.parametrize("case", WITHOUT_EFFECT)
def test_what_would_have_no_effect_is_refused(case: str) -> None:
    changes, told = WITHOUT_EFFECT[case]
    with pytest.raises(ValueError, match=told):
        dataclasses.replace(tiny(), **changes)


def test_searches_out_of_range_and_labels_of_other_rules_are_refused() -> None:
    for name, value in OUT_OF_RANGE.items():
        with pytest.raises(ValueError, match=f"search: {name}={value}"):
            dataclasses.replace(tiny().search, **{name: value})
    for label, change, fits in (
        ("bp", {"rule": "fa"}, False),
        ("frozen", {"rule": "bp"}, False),
        ("bp, my form", {"rule": {"fc1": "bp", "*": "fa"}}, False),
        ("fa", {"rule": {"fc1": "bp", "*": "fa"}}, True),
        ("head only", {"rule": "usf"}, False),
        ("head only", {"rule": "bp", "start": Start(train_only=("fc3.*",))}, True),
        ("mine", {"rule": "fa"}, True),
    ):
        entry = Entry("digits", label, dataclasses.replace(TINY, **change))
        made = {"entries": (*tiny().entries[2:], entry), "search": None}
        if fits:
            assert dataclasses.replace(tiny(), **made | {"entries": (entry,)}).cells
        else:
            with pytest.raises(ValueError, match=f"{label}, seed=0 is trained by .* another label"):
                dataclasses.replace(tiny(), **made)


def test_a_part_of_a_study_names_only_its_own_rows() -> None:
    study = studies.build("sign-symmetry-finetune", tier="short", seeds=1)
    part = study.restricted("letters to digits*")
    assert (study.fixed, part.fixed) == (("start",), ()) and len(part.search) == 1
    part = studies.build("rules-overview", tier="short", seeds=1).restricted("digits*")
    assert part.overview.detail == "digits MLP"


def test_conduct_chooses_runs_and_describes(tmp_path: Path) -> None:
    told: list[str] = []
    outcome = conduct.conduct(tiny(), tmp_path, EXECUTION, command="apical x", say=told.append)
    assert (len(outcome.finished), len(outcome.failed)) == (4, 0)
    described = json.loads((tmp_path / "tiny" / "study.json").read_text())
    for choice in described["search"]:
        assert [row["lr"] for row in choice["tries"]] == [0.01, 0.03, 0.1]
        assert choice["at_edge"] == (choice["lr"] != 0.03) and choice["extended"] == []
        best = min(choice["tries"], key=lambda row: row["error"])
        limit = best["error"] + best["se"]
        assert choice["lr"] == min(r["lr"] for r in choice["tries"] if r["error"] <= limit)
        for row in choice["tries"]:
            ends = [run_folder.end(tmp_path / "tiny" / folder) for folder in row["folders"]]
            assert row["errors"] == [1 - end["val_acc"] for end in ends]
            assert row["losses"] == [end["val_loss"] for end in ends]
            assert all("test_acc" not in end and end["val_count"] == 300 for end in ends)
    used = {c["rule"]: c["lr"] for c in described["search"]}
    for run in described["runs"]:
        there = records.read_json(tmp_path / "tiny" / run["folder"] / "experiment.json")
        assert there["experiment"]["lr"] == used[run["rule"]]
        assert there["experiment"]["validation"] == 0
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.name != "study.json"}
    conduct.conduct(tiny(), tmp_path, EXECUTION, command="apical x")
    after = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.name != "study.json"}
    files = [p for p in before if p.is_file()]
    assert all(after[p] == before[p] for p in files)
    assert json.loads((tmp_path / "tiny" / "study.json").read_text()) == described


def test_the_report_reads_what_conduct_writes(tmp_path: Path) -> None:
    study = dataclasses.replace(
        tiny(rates=(0.1,)), published=(Published("digits", "bp", 2.0, "nobody"),)
    )
    conduct.conduct(study, tmp_path, EXECUTION, command="apical study tiny")
    read = read_study(tmp_path / "tiny")
    assert (read.name, read.title, read.command) == ("tiny", "Tiny", "apical study tiny")
    assert [run.status for run in read.runs] == ["finished"] * 4
    assert [(p.setting, p.rule, p.value) for p in read.published] == [("digits", "bp", 2.0)]


def test_diverged_tries_are_told_and_the_run_takes_a_rate_that_holds(tmp_path: Path) -> None:
    study = tiny(seeds=1, rates=(1e29, 3e29))
    with pytest.raises(ValueError, match="digits, bp: every learning rate tried diverged"):
        conduct.conduct(study, tmp_path, EXECUTION, command="")


def test_a_search_that_breaks_off_stops_the_study(tmp_path: Path) -> None:
    study = tiny()
    broken = tuple(
        dataclasses.replace(e, experiment=dataclasses.replace(e.experiment, net="lenett"))
        for e in study.entries
    )
    with pytest.raises(ValueError, match="search could not be finished.*unknown net"):
        conduct.conduct(dataclasses.replace(study, entries=broken), tmp_path, EXECUTION, command="")


def test_another_tier_never_takes_the_folder(tmp_path: Path) -> None:
    conduct.conduct(tiny(rates=(0.1,)), tmp_path, EXECUTION, command="")
    before = (tmp_path / "tiny" / "study.json").read_bytes()
    other = dataclasses.replace(tiny(), tier="tiny")
    with pytest.raises(ValueError, match="holds the study tiny at tier full.*left untouched"):
        conduct.conduct(other, tmp_path, EXECUTION, command="")
    assert (tmp_path / "tiny" / "study.json").read_bytes() == before


def test_what_is_special_about_data_stands_beside_published_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conduct, "data_notes", lambda *a: ["digits: JPEG re-compressed"])
    study = dataclasses.replace(
        tiny(rates=(0.1,)), published=(Published("digits", "bp", 2.0, "nobody"),)
    )
    conduct.conduct(study, tmp_path, EXECUTION, command="")
    described = json.loads((tmp_path / "tiny" / "study.json").read_text())
    assert described["notes"] == ["small", "digits: JPEG re-compressed."]
    assert described["published"][0]["other_scale"] == "digits: JPEG re-compressed"


def test_the_estimate_counts_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "_measure", lambda experiment, execution: (0.5, 6))
    study = dataclasses.replace(tiny(), search=None)
    tasks = conduct.table_tasks(study, tmp_path)
    whole = cost.estimate(tasks, EXECUTION)
    assert whole.seconds == pytest.approx(4 * (2 * 6 * 0.5 * cost.OVERHEAD + cost.RUN_SECONDS))
    assert [(what, runs) for what, runs, _ in whole.parts] == [
        ("digits mlp sgd bp", 2),
        ("digits mlp sgd fa", 2),
    ]
    loop.run(tasks[0].experiment, tasks[0].folder)
    assert cost.estimate(tasks, EXECUTION).seconds == pytest.approx(whole.seconds * 3 / 4)
    assert "with --jobs 2" in whole.text(2)
    assert whole.text(1).startswith("estimate, from 5 timed steps") and "up to" not in whole.text(1)


def test_the_estimate_counts_the_search_and_what_may_come_on_top(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2 rules x 2 seeds x 2 epochs, 2 rules x 3 rates x 3 seeds x 1 epoch, and for an extension by
    one half decade 2 rules x 3 seeds; an epoch takes 3 s."""
    monkeypatch.setattr(cost, "_measure", lambda experiment, execution: (0.5, 6))
    study = tiny(extensions=1)
    tasks, more = conduct.left(study, tmp_path)
    found = cost.estimate(tasks, EXECUTION, more)
    seconds, each = (8 + 18) * 3 * cost.OVERHEAD, cost.RUN_SECONDS
    assert found.seconds == pytest.approx(seconds + (4 + 18) * each)
    assert found.extensions == pytest.approx(6 * (3 * cost.OVERHEAD + each))
    assert "up to 108 s if every search of a learning rate is extended" in found.text(1)


def test_the_outline_names_the_search_beside_rows_of_published_rates(tmp_path: Path) -> None:
    study = studies.build("biotorch-cifar10", seeds=1).restricted("LeNet SGD")
    line, count = conduct.outline(study, tmp_path)
    assert "bp, published rate, " in line and "; 1 seeds, from 0; learning rates 0.001," in line
    assert line.endswith("each tried for 3 epochs with seeds 1000, 1001, 1002")
    assert count == "  32 runs, tries of learning rates included, 0 finished"  # 8 + 2 x 4 x 3


def test_an_estimate_shares_the_work_among_as_many_workers_as_there_are_runs() -> None:
    few = cost.Cost(1000.0, (("a", 2, 1000.0),))
    assert "17 min of one worker, 8 min with --jobs 100" in few.summary(100)


def test_measuring_takes_real_steps() -> None:
    seconds, steps = cost._measure(TINY, EXECUTION)
    assert 0 < seconds < 1
    assert steps == 6


@pytest.mark.filterwarnings("ignore::apical.bench.training.monitor.LearningWarning")  # controls
def test_the_smoke_study_in_small(tmp_path: Path, forked_workers: None) -> None:
    study = studies.build("smoke", seeds=1)
    short = tuple(
        dataclasses.replace(e, experiment=dataclasses.replace(e.experiment, epochs=5, lr=0.1))
        for e in study.entries
    )
    small = dataclasses.replace(study, entries=short, search=None)
    outcome = conduct.conduct(small, tmp_path, EXECUTION, command="", jobs=2)
    assert len(outcome.finished) == 9
    described = records.read_json(tmp_path / "smoke" / "study.json")
    accuracy = {
        run["rule"]: run_folder.end(tmp_path / "smoke" / run["folder"])["test_acc"]
        for run in described["runs"]
    }
    controls = {rule: accuracy.pop(rule) for rule in ("frozen", "redrawn")}
    assert min(accuracy.values()) > 0.8 and max(controls.values()) < min(accuracy.values())


def test_the_logs_of_weight_transport_are_compared_at_the_epochs_that_are_run() -> None:
    short, full = (studies.build("weight-transport", tier=tier) for tier in ("short", "full"))
    early = {entry.rule for entry in short.entries} - {entry.rule for entry in full.entries}
    assert early == {"wm fast"} and "wm fast" in short.notes[0] and "wm fast" not in full.notes[0]
    assert {tuple(curve.values) for curve in short.curves} == {(1, 5, 10)}
    assert {tuple(curve.values) for curve in full.curves} == {(1, 5, 10, 50, 100, 400)}
    assert {(p.rule, p.value) for p in full.published} >= {("bp", 98.5), ("wm released", 98.49)}
    assert not short.published
    labels = {entry.rule for entry in full.entries}
    assert all(
        curve.rule in labels and curve.setting == "MNIST 784-500-10" for curve in full.curves
    )
    for entry in short.entries:
        assert entry.experiment.test_at == (1, 5, 10) and not entry.experiment.shuffle


def test_curves_are_part_of_study_json() -> None:
    study = studies.build("weight-transport", tier="smoke", seeds=1)
    value = json.loads(json.dumps(conduct.described(study, "make it", [], [])))
    first = value["curves"][0]
    assert first["values"] == {"1": 88.0} and first["metric"] == "test_acc"
    assert "curves" not in conduct.described(studies.build("smoke", seeds=1), "make it", [], [])


def test_a_search_does_not_read_the_test_split_at_epochs_either() -> None:
    entry = Entry("s", "bp", dataclasses.replace(TINY, test_at=(1, 2)))
    study = Study("t", "T", "full", (entry,), search=Search((0.1,), 1, Schedule(), 300))
    ((_, tries),) = study.candidates().items()
    assert all(one.test_at == () and not one.test for one in tries[0.1])
