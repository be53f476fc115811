"""The choice of learning rates, on planted curves; all rows of all studies are tuned alike."""

import dataclasses
import math
import random
from pathlib import Path
from typing import Any

import pytest

from apical.bench.experiment.experiment import Experiment
from apical.bench.experiment.training_settings import Schedule
from apical.bench.report import table_markdown, write
from apical.bench.storage import records
from apical.bench.studies import Entry, Search, Study, conduct
from apical.bench.studies.selection import Tried, beyond, choose, half_decade, half_decades
from apical.bench.sweep import sweep
from apical.measure import rate_choice
from fake_study import make_study

GRID = (0.01, 0.03, 0.1)
EXPERIMENT = Experiment(net_options={"hidden": [8]}, epochs=1, probe_every=0)


def tried(rate: float, *errors: float, examples: int = 1000) -> Tried:
    return Tried(rate, errors, examples)


def test_of_a_tie_within_one_standard_error_the_smaller_rate_is_chosen() -> None:
    best = tried(0.1, 0.10, 0.12, 0.14)  # 0.12, standard error 0.02 / sqrt(3) = 0.0115
    assert best.standard_error == pytest.approx(0.02 / math.sqrt(3))
    assert choose([tried(0.01, 0.2, 0.2, 0.2), tried(0.03, 0.13, 0.13, 0.13), best]).rate == 0.03
    assert choose([tried(0.01, 0.2, 0.2, 0.2), tried(0.03, 0.132, 0.132, 0.132), best]).rate == 0.1


def test_the_standard_error_is_that_of_the_lowest_mean_not_of_the_others() -> None:
    noisy = tried(0.01, 0.0, 0.3, 0.3)
    assert choose([noisy, tried(0.1, 0.1, 0.1, 0.1)]).rate == 0.1


def test_three_equal_values_are_no_certainty() -> None:
    """Of 3 x 100 examples at 10 % error the binomial standard error is 0.0173."""
    best = tried(0.1, 0.1, 0.1, 0.1, examples=100)
    assert best.standard_error == pytest.approx(math.sqrt(0.09 / 300))
    assert choose([tried(0.03, 0.11, 0.11, 0.11, examples=100), best]).rate == 0.03
    assert choose([tried(0.03, 0.12, 0.12, 0.12, examples=100), best]).rate == 0.1


def test_half_decades() -> None:
    assert half_decades(0.001, 0.3) == (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
    assert half_decade(1e-4, -1) == 3e-5 and half_decade(3.0, 1) == 10.0
    for rate in (0.02, 0.0, -0.01, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"{rate:g} is not on a grid of half decades"):
            half_decade(rate, 1)
    assert (beyond(GRID, 0.01), beyond(GRID, 0.03), beyond(GRID, 0.1)) == (0.003, None, 0.3)


def test_searches_that_are_refused() -> None:
    for changed, told in (
        ({"values": (0.01, 0.1)}, "such as 0.01, 0.03, 0.1; apical sweep --lr compares any rates"),
        ({"values": (0.02,)}, "0.02 is not on a grid of half decades.* sweep --lr compares"),
        ({"values": ()}, "not half decades without a gap"),
        ({"values": (0.01, 0.01, 0.03)}, "not half decades without a gap, each once"),
        ({"seeds": (1000, 1001)}, "needs at least 3 seeds"),
    ):
        with pytest.raises(ValueError, match=told):
            Search(
                **{"values": GRID, "epochs": 1, "schedule": Schedule(), "validation": 300} | changed
            )


# The whole course, with planted errors in the place of training.

DIVERGED = None


def planted(
    monkeypatch: pytest.MonkeyPatch, errors: dict[float, Any], extensions: int = 2
) -> tuple[dict[str, Any], list[float]]:
    """The choice of a row whose tries end with these errors, for each seed; and rates in the order
    tried."""
    done: dict[Path, dict[str, Any]] = {}
    order: list[float] = []

    def end(task: sweep.Task) -> dict[str, Any]:
        values = errors[task.experiment.lr]
        error = values[task.experiment.seed - 1000] if isinstance(values, tuple) else values
        if error is DIVERGED:
            return {"kind": "stopped", "reason": "non-finite loss", "epoch": 1}
        return {"kind": "final", "val_acc": 1 - error, "val_loss": 3 * error, "val_count": 1000}

    def work(tasks: Any) -> sweep.Outcome:
        for task in tasks:
            done[task.folder] = end(task)
            if task.experiment.lr not in order:
                order.append(task.experiment.lr)
        return sweep.Outcome()

    monkeypatch.setattr(sweep.Task, "ended", lambda task: done.get(task.folder))
    search = Search(GRID, 1, Schedule(), 300, extensions=extensions)
    study = Study("s", "S", "full", (Entry("digits", "bp", EXPERIMENT),), search=search)
    (choice,) = conduct.tune(study, Path("study"), work, lambda text: None)
    assert conduct.searched(study, Path("study")) == ([choice], [])
    return choice, order


def test_a_choice_inside_the_grid_extends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    choice, order = planted(monkeypatch, {0.01: 0.5, 0.03: (0.1, 0.2, 0.3), 0.1: 0.4})
    assert (choice["lr"], choice["at_edge"], choice["extended"]) == (0.03, False, [])
    assert order == [0.01, 0.03, 0.1]
    row = choice["tries"][1]
    assert row["errors"] == pytest.approx([0.1, 0.2, 0.3]) and row["seeds"] == [1000, 1001, 1002]
    assert row["error"] == pytest.approx(0.2) and row["se"] == pytest.approx(0.1 / math.sqrt(3))
    assert row["losses"] == pytest.approx([0.3, 0.6, 0.9]) and row["val_acc"] == pytest.approx(0.8)
    assert len(set(row["folders"])) == 3


def test_an_edge_extends_the_grid_until_the_choice_lies_inside(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    choice, order = planted(monkeypatch, {0.01: 0.5, 0.03: 0.4, 0.1: 0.3, 0.3: 0.1, 1.0: 0.4})
    assert (choice["lr"], choice["at_edge"], choice["extended"]) == (0.3, False, [0.3, 1.0])
    assert [row["lr"] for row in choice["tries"]] == [0.01, 0.03, 0.1, 0.3, 1.0]
    choice, order = planted(monkeypatch, {0.003: 0.4, 0.01: 0.2, 0.03: 0.4, 0.1: 0.5})
    assert (choice["lr"], choice["at_edge"], order[-1]) == (0.01, False, 0.003)


def test_what_is_still_at_an_edge_is_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    falling = {0.01: 0.5, 0.03: 0.4, 0.1: 0.3, 0.3: 0.2, 1.0: 0.1}
    choice, order = planted(monkeypatch, falling)
    assert (choice["lr"], choice["at_edge"], choice["extended"]) == (1.0, True, [0.3, 1.0])
    choice, order = planted(monkeypatch, falling, extensions=0)
    assert (choice["lr"], choice["at_edge"], choice["extended"]) == (0.1, True, [])


def test_a_diverged_try_counts_as_an_error_of_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = {0.01: 0.2, 0.03: 0.15, 0.1: (0.0, 0.0, DIVERGED), 0.003: 0.6}
    choice, _ = planted(monkeypatch, errors)
    assert choice["lr"] == 0.03  # without the third seed, 0.1 would have no error at all
    row = choice["tries"][-1]
    assert row["errors"] == [0.0, 0.0, 0.9] and row["diverged"] == 1 and row["losses"][2] is None
    assert row["reason"] == "non-finite loss" and row["val_acc"] == pytest.approx(0.7)


def test_rates_that_all_diverge_send_the_grid_down_before_it_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rates = dict.fromkeys((*GRID, 0.003), DIVERGED)
    choice, _ = planted(monkeypatch, rates | {0.001: 0.2})
    assert (choice["lr"], choice["at_edge"]) == (0.001, True)
    assert "val_acc" not in choice["tries"][-1]
    with pytest.raises(ValueError, match="digits, bp: every learning rate tried diverged"):
        planted(monkeypatch, rates | {0.001: DIVERGED})


@pytest.mark.parametrize(
    ("errors", "chosen"),
    [
        # all diverged: worse than what errs more than a guess
        ({0.003: 0.99, 0.01: 0.95, 0.03: 0.95, 0.1: DIVERGED}, 0.01),
        ({0.001: DIVERGED, 0.003: DIVERGED, 0.01: DIVERGED, 0.03: 0.9, 0.1: 0.9}, 0.03),
        # one diverged: neither chosen, nor is its spread a reason for the smallest rate
        ({0.003: 0.6, 0.01: 0.5, 0.03: 0.35, 0.1: (0.05, 0.05, DIVERGED)}, 0.03),
        # at every rate: the one that errs least with a guess for it
        ({0.003: DIVERGED} | {r: (0.3 - r, 0.3 - r, DIVERGED) for r in (*GRID, 0.3, 1.0)}, 0.01),
        # more often at the smaller rate, which is within one standard error for that alone
        (
            {
                0.003: DIVERGED,
                0.01: (0.05, DIVERGED, DIVERGED),
                0.03: (0.1, 0.1, DIVERGED),
                0.1: DIVERGED,
            },
            0.03,
        ),
    ],
)
def test_rates_that_diverge_are_not_chosen(
    monkeypatch: pytest.MonkeyPatch, errors: dict[float, Any], chosen: float
) -> None:
    choice, _ = planted(monkeypatch, {0.3: DIVERGED, 1.0: DIVERGED, 0.001: DIVERGED} | errors)
    assert choice["lr"] == chosen


def test_rates_of_rows_without_a_search_stay() -> None:
    entries = tuple(
        Entry("s", rule, dataclasses.replace(EXPERIMENT, lr=lr))
        for rule, lr in (("bp", 1.0), ("bp, published rate", 0.5), ("bp again", 2.0))
    )
    study = Study(
        "s", "S", "full", entries, search=Search(GRID, 1, Schedule(), 300),
        follows={"bp again": "bp"}, fixed=("bp, published rate",),
    )  # fmt: skip
    assert list(study.candidates()) == [("s", "bp")]
    rates = [e.experiment.lr for e in study.chosen({("s", "bp"): 0.03}).entries]
    assert rates == [0.03, 0.5, 0.03]


def test_a_choice_is_unstable_where_one_seed_decides() -> None:
    for errors, rates in (
        ({0.01: (0.5, 0.5, 0.5), 0.1: (0.1, 0.1, 0.1)}, []),  # far apart
        ({0.01: (0.1, 0.1, 0.1), 0.1: (0.1, 0.1, 0.1)}, []),  # the smaller one, whoever is left out
        ({0.01: (0.14, 0.14, 0.1), 0.1: (0.11, 0.11, 0.11)}, []),  # two seeds speak against it
        ({0.01: (0.1, 0.1, 0.4), 0.1: (0.12, 0.12, 0.12)}, [0.01]),  # one alone does
        ({0.01: (0.1, 0.1, None), 0.1: (0.12, 0.12, 0.12)}, [0.01]),  # it diverged
    ):
        assert (
            rate_choice.others(
                [
                    Tried(rate, tuple(e or 0.9 for e in each), 1000, tuple(e is None for e in each))
                    for rate, each in errors.items()
                ]
            )
            == rates
        )


def changed_choices(seeds: int) -> dict[bool, float]:
    """Share of searches that choose another rate than an earlier one, by whether the choice of that
    one was marked: two rates, errors 0 to 3 points apart, a spread of 2 points over seeds."""
    chance = random.Random(0)
    changed: dict[bool, list[bool]] = {False: [], True: []}
    for _ in range(3000):
        means = {0.01: 0.1 + 0.03 * chance.random(), 0.1: 0.1}
        first, second = (
            [
                Tried(rate, tuple(chance.gauss(mean, 0.02) for _ in range(seeds)), 1000)
                for rate, mean in means.items()
            ]
            for _ in range(2)
        )
        marked = bool(rate_choice.others(first))
        changed[marked].append(choose(first).rate != choose(second).rate)
    return {marked: sum(each) / len(each) for marked, each in changed.items()}


def test_three_seeds_do_not_show_that_a_choice_is_stable() -> None:
    """The numbers of docs/believing.md, which 3,000 searches give to within 2 points."""
    assert changed_choices(3) == pytest.approx({False: 0.37, True: 0.45}, abs=0.02)
    assert changed_choices(10) == pytest.approx({False: 0.20, True: 0.46}, abs=0.02)


@pytest.mark.usefixtures("no_figures")
def test_unstable_choices_and_edges_are_named(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "s", rules=("bp", "fa", "dfa"), epochs=1, layers=())
    value = records.read_json(folder / "study.json")
    errors = {
        "bp": {0.01: (0.5, 0.5, 0.5), 0.1: (0.1, 0.1, 0.1)},
        "fa": {0.01: (0.1, 0.1, 0.4), 0.1: (0.12, 0.12, 0.12)},
        "dfa": {0.01: (0.2,), 0.1: (0.1,)},
    }
    setting = value["runs"][0]["setting"]
    value["search"] = [
        {"setting": setting, "rule": rule, "lr": 0.1, "at_edge": rule == "bp"}
        | {
            "tries": [
                {"lr": rate, "val_acc": 0.9, "errors": list(each), "examples": 1000}
                for rate, each in of_rule.items()
            ]
        }
        for rule, of_rule in errors.items()
    ]
    records.write_json(folder / "study.json", value)
    text = table_markdown(folder)
    assert "another rate is chosen) for FA (0.01 or 0.1)." in text
    assert "The rates of DFA were chosen by one seed" in text
    assert "Chosen at the edge of the rates tried: BP (0.1)." in text
    page = write(folder).read_text()
    assert "another rate is chosen) for FA (0.01 or 0.1)." in page
    assert "unstable: 0.01 or 0.1" in page  # beside its tries
