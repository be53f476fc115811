"""What a table owes its reader: gained over frozen layers, rates tried, what each layer added."""

from pathlib import Path
from typing import Any

import pytest

from apical.bench.report import (
    diagnostics,
    figures,
    gained,
    results,
    table_markdown,
    write,
)
from apical.bench.report.colours import colours
from apical.bench.report.read import Run, read_study
from apical.bench.storage import records
from apical.bench.storage.packing import pack
from apical.measure import statistics as stats
from fake_robust import add_robustness
from fake_study import make_study, rewrite

FINDING = (
    "BP has the lowest test error, 2.10 %; no gain over frozen hidden layers is shown under idle, "
    "harms."
)

UNIT = {"unit": "%", "source": "S"}

ERRORS = {
    "bp": (2.0, 2.2, 2.1),
    "fa": (4.0, 4.4, 4.1),
    "idle": (26.0, 26.9, 26.4),
    "harms": (60.0, 61.0, 62.0),
    "frozen": (26.1, 26.8, 26.5),
}


def make(folder: Path, errors: dict[str, tuple[float, ...]] = ERRORS) -> Path:
    seeds = tuple(range(1, 1 + len(errors["bp"])))
    make_study(folder, rules=tuple(errors), seeds=seeds, epochs=1, layers=(), published=False)
    for run in records.read_json(folder / "study.json")["runs"]:
        path = folder / run["folder"]
        *epochs, final = records.read(path / "records.jsonl")
        error = errors[run["rule"]][run["seed"] - 1]
        rewrite(path, [*epochs, final | {"test_acc": 1 - error / 100}])
    return folder


def test_gained_is_the_control_minus_the_rule_with_a_corrected_interval(tmp_path: Path) -> None:
    rows = {row.rule: row for row in results.cells(read_study(make(tmp_path / "s")))}
    noise = sum(1e4 * stats.binomial_variance(share, 10_000) for share in (0.26466667, 0.04166667))
    gained, by_hand = rows["fa"].gain.summary, stats.summarize([22.1, 22.4, 22.4], noise=noise)
    assert gained.n == 3
    assert (gained.mean, gained.low) == pytest.approx((by_hand.mean, by_hand.low))
    assert rows.pop("frozen").gain is None
    assert {rule: row.gain.learns for rule, row in rows.items()} == {
        "bp": True, "fa": True, "idle": False, "harms": False,
    }  # fmt: skip


def test_the_correction_decides(tmp_path: Path) -> None:
    """Gains of 3, 4.5 and 6 points leave 0 out at 95 %, for one rule, but not at 99.5 %."""
    errors = {"bp": (9.0, 8.0, 7.0), "frozen": (12.0, 12.5, 13.0)}
    (bp, _) = results.cells(read_study(make(tmp_path / "one", errors)))
    assert bp.gain.summary.low > 0 and bp.gain.learns
    many = errors | {f"r{place}": errors["frozen"] for place in range(9)}
    bp = results.cells(read_study(make(tmp_path / "many", many)))[0]
    assert bp.gain.summary.low > 0 and bp.gain.learns is None
    shown = gained.shown(bp.gain)  # not with an interval that contradicts the mark
    assert shown.text.startswith("undecided") and shown.interval.startswith("\N{MINUS SIGN}")


def test_two_runs_decide_nothing(tmp_path: Path) -> None:
    few = {rule: values[:2] for rule, values in ERRORS.items()}
    rows = results.cells(read_study(make(tmp_path / "s", few)))
    assert [row.gain.mark for row in rows if row.gain] == ["undecided"] * 4


def lose(folder: Path, rule: str, *seeds: int) -> Path:
    """The study, in which these runs have diverged."""
    for run in records.read_json(folder / "study.json")["runs"]:
        if run["rule"] == rule and run["seed"] in seeds:
            rewrite(folder / run["folder"], [{"kind": "stopped", "reason": "non-finite loss"}])
    return folder


def test_a_control_that_lost_runs_is_said(tmp_path: Path) -> None:
    """Gains are those of the seeds that both have; without any they are undecided; and a control
    without a finished run is none."""
    five = {rule: (*each, each[0], each[1]) for rule, each in ERRORS.items()}
    text = table_markdown(lose(make(tmp_path / "some", five), "frozen", 1, 2))
    (fa,) = (line for line in text.splitlines() if line.startswith("| FA "))
    assert "| +22.30 (3 shared seeds) [" in fa
    text = table_markdown(lose(lose(make(tmp_path / "other"), "frozen", 1, 2), "fa", 3))
    (fa,) = (line for line in text.splitlines() if line.startswith("| FA "))
    assert "| undecided: no seed in common with the control |" in fa
    text = table_markdown(lose(make(tmp_path / "none"), "frozen", 1, 2, 3))
    assert "gained" not in text and "No finished run of the control: this does not show" in text


def test_the_control_is_found_by_its_rule_where_its_label_is_another(tmp_path: Path) -> None:
    folder = make(tmp_path / "s")
    value = records.read_json(folder / "study.json")
    for run in value["runs"]:
        run["rule"] = run["rule"].replace("frozen", "random layers")
    records.write_json(folder / "study.json", value)
    assert "| FA | 3 | 4.17 | 3.65 to 4.68 | +2.07" in table_markdown(folder)
    assert "| does not learn: +0.03 [" in table_markdown(folder)


def test_equal_errors_are_no_certainty(tmp_path: Path) -> None:
    """4.3027 * sqrt(0.0203 * 0.9797 / 10,000 / 3) = 0.35 points: the test set's own."""
    folder = make(tmp_path / "s", {"bp": (2.0,) * 3, "fa": (4.0,) * 3})
    bp = table_markdown(folder).splitlines()[4]
    assert bp == "| BP | 3 | 2.00 | 1.65 to 2.35 |  | a |"
    for run in folder.glob("s0-*"):
        *epochs, final = records.read(run / "records.jsonl")
        rewrite(run, [*epochs, {k: v for k, v in final.items() if k != "test_count"}])
    bp, fa = table_markdown(folder).splitlines()[4:6]
    assert bp == "| BP | 3 | 2.00 |  |  | a |"  # of a test set of unknown size
    assert fa == "| FA | 3 | 4.00 |  | +2.00 | a |"


@pytest.mark.usefixtures("no_figures")
def test_table_page_and_csv_say_which_rules_do_not_learn(tmp_path: Path) -> None:
    folder = make(tmp_path / "s")
    text = table_markdown(folder)
    found, _, head, _, bp, fa, idle, *_ = text.splitlines()
    assert "| gained |" in head and "| +22.30 [" in fa and "does not learn" not in bp
    assert "| does not learn: +0.03 [" in idle
    assert found == f"**{FINDING}**" and "corrected for the number of rules" in text
    page = write(folder).read_text()
    assert page.count("does not learn:") == 2
    assert FINDING in page and page.index(FINDING) < page.index("no published values")
    header = (folder / "report" / "table.csv").read_text().splitlines()[0]
    assert "gained,gained_low,gained_high,learns,ties" in header


@pytest.mark.usefixtures("no_figures")
def test_without_the_control_no_column_speaks_of_it_and_the_table_says_so(tmp_path: Path) -> None:
    folder = make(tmp_path / "s", {rule: ERRORS[rule] for rule in ("bp", "fa")})
    assert "gained" not in table_markdown(folder)
    page = write(folder).read_text()
    assert "Gained" not in page
    for text in (table_markdown(folder), page):
        assert "No control row: without a row whose hidden layers keep" in text
    alone = make(tmp_path / "alone", {"bp": ERRORS["bp"]})  # compares no rules
    assert "No control row" not in table_markdown(alone)
    assert "gained" not in (folder / "report" / "table.csv").read_text()


def test_the_finding_names_the_best_rule_and_those_it_does_not_differ_from(tmp_path: Path) -> None:
    alike = {"bp": (2.0, 2.2, 2.1), "usf": (2.1, 2.2, 2.0), "fa": (4.0, 4.4, 4.1)}
    rows = results.cells(read_study(make(tmp_path / "s", alike)))
    assert results.finding(rows) == (
        "BP has the lowest test error, 2.10 %, not significantly different from uSF."
    )
    assert results.finding(rows[:2]).startswith(
        "No test error differs significantly from the lowest, BP's 2.10 %"
    )
    assert results.finding(rows[:1]) == ""
    one = make(tmp_path / "one", alike | {"fa": (4.0, 4.4, 4.1), "dfa": (5.0, 5.1, 5.2)})
    lose(one, "fa", 1, 2)
    assert results.finding(results.cells(read_study(one))) == (
        "BP has the lowest test error, 2.10 %, not significantly different from uSF; not compared, "
        "a single run each: FA; failed runs, which are not counted: FA 2 of 3."
    )
    many = {f"r{place}": alike["usf"] for place in range(7)}
    many |= alike | {"fa": (40.0, 44.0, 41.0)}
    text = results.finding(results.cells(read_study(make(tmp_path / "many", many))))
    assert "not significantly different from 8 of the 9 other rows" in text
    few = {rule: errors[:2] for rule, errors in alike.items()}
    rows = results.cells(read_study(make(tmp_path / "few", few)))
    assert results.finding(rows).endswith("; two seeds are too few to judge by.")


def test_the_finding_names_what_differs_from_bp_where_all_pairs_tie(tmp_path: Path) -> None:
    """1.18 points above BP: p = 0.012, 0.037 corrected for 3 comparisons, 0.074 for 6 pairs."""
    bp = (2.0, 2.2, 2.1)
    above = tuple(error + 1.18 for error in bp)
    errors = {"bp": bp} | dict.fromkeys(("fa", "dfa", "usf"), above)
    rows = results.cells(read_study(make(tmp_path / "s", errors)))
    assert {row.ties for row in rows} == {"a"}
    assert [row.rule for row in rows if row.differs] == ["fa", "dfa", "usf"]
    assert results.finding(rows) == (
        "BP has the lowest test error, 2.10 %; corrected for the comparisons with BP alone (Holm) "
        "the error is significantly higher under FA, DFA, uSF too."
    )
    # the letters show it: not said again
    apart = {rule: tuple(error + 9 for error in bp) if rule != "bp" else bp for rule in errors}
    assert "alone" not in results.finding(results.cells(read_study(make(tmp_path / "t", apart))))


def drawn(tries: list[dict[str, Any]]) -> Any:
    from matplotlib.figure import Figure

    axes = Figure().add_subplot()
    cell = {"setting": "s", "rule": "fa", "lr": 0.1, "tries": tries}
    figures.draw_rates(axes, choices=[cell], looks=colours(["fa"]))
    return axes


def test_error_over_the_rates_is_drawn_with_its_range_and_the_choice() -> None:
    tries = [
        {"lr": 1.0, "reason": "non-finite loss", "errors": [0.9, 0.9]},
        {"lr": 0.1, "val_acc": 0.9, "errors": [0.08, 0.12]},
        {"lr": 0.01, "val_acc": 0.8, "errors": [0.2, 0.2]},
    ]
    axes = drawn(tries)
    line, chosen = axes.lines
    texts = [axes.xaxis.get_major_formatter()(rate) for rate in (0.01, 0.1)]
    assert texts == ["0.01", "0.1"]  # no formula, which figures of pages do not typeset
    assert list(line.get_xdata()) == [0.01, 0.1]
    assert list(line.get_ydata()) == pytest.approx([20, 10])
    assert chosen.get_xydata().tolist() == [pytest.approx([0.1, 10])]
    (band,) = axes.collections
    assert {round(y, 6) for y in band.get_paths()[0].vertices[:, 1]} == {8, 12, 20}
    assert not drawn([{"lr": 0.1, "val_acc": 0.9}]).collections  # one seed


def test_every_searched_rule_is_in_the_figure(tmp_path: Path) -> None:
    folder = make(tmp_path / "s")
    value = records.read_json(folder / "study.json")
    lost = {"errors": [0.05, 0.07, 0.9], "losses": [0.1, 0.1, None], "diverged": 1}
    tries = [{"lr": 0.1, "val_acc": 0.9}, {"lr": 0.01, "val_acc": 0.7, "examples": 100, **lost}]
    value["search"] = [
        {"setting": "MNIST LeNet SGD", "rule": rule, "lr": 0.1, "tries": tries}
        for rule in ("bp", "fa")
    ]
    records.write_json(folder / "study.json", value)
    page = write(folder).read_text()
    assert "Choice of learning rates" in page and "6.00 (1 of 3 diverged)" in page
    assert (folder / "report" / "learning-rates.png").stat().st_size > 5000


def probed(seed: int, start: tuple[float, ...], end: tuple[float, ...]) -> Run:
    rows = [
        {"kind": "linear", "epoch": epoch, "layer": layer, "accuracy": value, "images": 100}
        for epoch, values in ((0, start), (3, end))
        for layer, value in zip(("conv", "fc", ""), values, strict=True)
    ]
    return Run("f", "s", "fa", seed, "finished", rows=tuple(rows))


def test_what_each_layer_added_by_hand() -> None:
    runs = [
        probed(1, (0.5, 0.6, 0.1), (0.5, 0.8, 0.9)),
        probed(2, (0.5, 0.7, 0.1), (0.5, 0.7, 0.9)),
        Run("f", "s", "fa", 3, "finished", rows=probed(3, (0.0,) * 3, (0.0,) * 3).rows[:3]),
    ]
    conv, fc, output = diagnostics.readouts({"fa": runs, "bp": []})
    assert [line.layer for line in (conv, fc, output)] == ["conv", "fc", diagnostics.OUTPUT]
    assert (fc.change.n, fc.untrained.mean, fc.trained.mean) == (
        2,
        pytest.approx(65),
        pytest.approx(75),
    )
    assert fc.change.mean == pytest.approx(10) and fc.added is not None
    assert fc.added.mean == pytest.approx(15)
    assert conv.added is not None and conv.added.mean == pytest.approx(25)
    assert output.added is None
    cells = diagnostics.readout_table([fc]).markdown().splitlines()[2]
    assert cells.startswith("| FA | fc | 2 | 100 | 65.0 | 75.0 | +10.0 [")


@pytest.mark.usefixtures("no_figures")
def test_the_page_shows_what_layers_added(tmp_path: Path) -> None:
    folder = make(tmp_path / "s")
    for run in folder.glob("s0-*"):
        rows = [*probed(0, (0.5, 0.6, 0.1), (0.5, 0.8, 0.9)).rows]
        *epochs, final = records.read(run / "records.jsonl")
        rewrite(run, [*epochs, *rows, final])
    assert "What each layer added" in write(folder).read_text()
    lines = (folder / "report" / "linear-probes.csv").read_text().splitlines()
    assert lines[0].startswith("rule,layer,n,images,untrained,trained") and len(lines) == 1 + 15


FA = {"rule": "fa", "init": "xavier"}
UNLIKE = {  # by rule: fields of its runs, by seed
    "FA (lr)": {"fa": lambda seed: {"lr": 0.1 * seed}},
    "FA (rule)": {"fa": lambda seed: {"rule": FA if seed > 1 else "fa"}},
    "frozen (epochs)": {"frozen": lambda seed: {"epochs": 5}},
    "FA (epochs, size)": {"fa": lambda seed: {"epochs": 5, "size": 8}},
    "frozen (net)": {"frozen": lambda seed: {"net_options": {"hidden": [2]}}},
    "": {"fa": lambda seed: {"net_options": {"hidden": [2]}, "optimizer": "adam", "lr": 3.0}},
}


@pytest.mark.parametrize("said", UNLIKE)
def test_rows_that_were_not_trained_alike_are_named(said: str, tmp_path: Path) -> None:
    folder = make(tmp_path / "s", {rule: ERRORS[rule] for rule in ("bp", "fa", "frozen")})
    for run in records.read_json(folder / "study.json")["runs"]:
        value = records.read_json(folder / run["folder"] / "experiment.json")
        value["experiment"] |= {"lr": 0.1, "net_options": {}}
        if change := UNLIKE[said].get(run["rule"]):
            value["experiment"] |= change(run["seed"])
        records.write_json(folder / run["folder"] / "experiment.json", value)
    text = f"Not trained alike: {said}. Differences and gains are not those of the rules alone."
    table = table_markdown(folder)
    assert text in table if said else "Not trained alike" not in table
    if said == "FA (lr)":
        assert text in write(folder).read_text()


def change(folder: Path, label: str, /, **fields: Any) -> Path:
    """The study, with these fields in the experiments of a row."""
    for run in records.read_json(folder / "study.json")["runs"]:
        place = folder / run["folder"] / "experiment.json"
        if run["rule"] == label:
            value = records.read_json(place)
            value["experiment"] |= fields
            records.write_json(place, value)
    return folder


def test_a_label_is_no_evidence_of_what_trained_a_row(tmp_path: Path) -> None:
    text = table_markdown(change(make(tmp_path / "control"), "frozen", rule="bp"))
    assert "gained" not in text and "No control row" in text
    assert "not what their label says: frozen (trained by bp)." in text
    text = table_markdown(change(make(tmp_path / "bp"), "bp", rule={"fc": "bp", "*": "fa"}))
    assert "not what their label says: BP (trained by mixed)." in text
    head = change(make(tmp_path / "head"), "frozen", rule="bp", start={"train_only": ["fc.*"]})
    assert "not what their label" not in table_markdown(head) and "gained" in table_markdown(head)


def test_rates_that_the_search_did_not_choose_and_other_searches_are_named(tmp_path: Path) -> None:
    folder = make(tmp_path / "s")
    for rule in ERRORS:
        change(folder, rule, lr=0.1)
    value = records.read_json(folder / "study.json")
    tries = [{"lr": lr, "examples": 9, "errors": [lr] * 3, "losses": [1] * 3} for lr in (0.1, 0.3)]
    value["search"] = [
        {"setting": "MNIST LeNet SGD", "rule": rule, "lr": lr, "tries": tries}
        for rule, lr in (("bp", 0.1), ("fa", 0.3), ("frozen", 0.1), ("idle", 0.1))
    ]
    records.write_json(folder / "study.json", value)
    said = "at a learning rate that the search did not choose: FA (0.1), harms (0.1)."
    assert said in table_markdown(folder) and "Not trained alike" not in table_markdown(folder)
    value["search"][1] |= {"lr": 0.1, "tries": tries[:1]}
    records.write_json(folder / "study.json", value)
    assert "Not trained alike: FA (search)." in table_markdown(folder)
    fewer = [row | {"examples": 5} for row in tries]  # judged on a smaller part of the split
    value["search"][1] |= {"lr": 0.1, "tries": fewer}
    records.write_json(folder / "study.json", value)
    assert "Not trained alike: FA (search)." in table_markdown(folder)
    assert "Not trained alike: FA (augment, search)" in table_markdown(
        change(change(change(folder, "fa", augment="flip"), "bp", augment=""), "idle", augment="")
    )


def test_numbers_over_fewer_runs_than_the_row_say_so(tmp_path: Path) -> None:
    five = {rule: (*each, each[0], each[1]) for rule, each in ERRORS.items()}
    folder = lose(make(tmp_path / "s", five), "bp", 1, 2)
    (fa,) = (line for line in table_markdown(folder).splitlines() if line.startswith("| FA "))
    assert "| +2.07 (n = 3) [" in fa
    for run in records.read_json(folder / "study.json")["runs"]:
        if run["rule"] == "fa" and run["seed"] < 5:
            rewrite(folder / run["folder"], [])
    assert "failed runs, which are not counted: BP 2 of 5; unfinished runs, which are not " in (
        table_markdown(folder)
    )
    assert "counted: FA 4 of 5." in table_markdown(folder)


def test_the_band_of_no_error_at_all_is_none(tmp_path: Path) -> None:
    folder = make(tmp_path / "s", {"bp": (0.0, 0.0, 0.0)})
    value = records.read_json(folder / "study.json")
    row = {"setting": "MNIST LeNet SGD", "rule": "bp", "metric": "test_error", "value": 0.0}
    records.write_json(folder / "study.json", value | {"published": [row | UNIT]})
    for run in folder.glob("s0-*"):
        *epochs, final = records.read(run / "records.jsonl")
        del final["test_count"]
        rewrite(run, [*epochs, final])
    assert "| 0.00 to 0.00 | compatible, uninformative |" in table_markdown(folder)


def test_what_is_left_of_a_row_agrees_with_nothing(tmp_path: Path) -> None:
    errors = {"bp": (2.0, 2.02, 1.98, 2.0), "fa": (2.1, 2.1, 2.1, 2.2)}
    folder = make(tmp_path / "s", errors)
    value = records.read_json(folder / "study.json")
    row = {"setting": "MNIST LeNet SGD", "rule": "bp", "metric": "test_error", "value": 2.0}
    value["published"] = [row | UNIT]
    records.write_json(folder / "study.json", value)
    for run in folder.glob("s0-*"):
        *epochs, final = records.read(run / "records.jsonl")
        rewrite(run, [*epochs, final | {"test_count": 10_000_000}])
    assert "| equivalent |" in table_markdown(folder)
    assert "| compatible, uninformative |" in table_markdown(lose(folder, "bp", 4))
    value["published"] *= 2
    records.write_json(folder / "study.json", value)
    with pytest.raises(ValueError, match="two published values are of MNIST LeNet SGD, bp"):
        read_study(folder)


def test_attacked_nets_that_lost_their_runs_are_named_and_no_rule_is_no_evidence(
    tmp_path: Path,
) -> None:
    folder = add_robustness(make(tmp_path / "s", {r: ERRORS[r] for r in ("bp", "fa", "frozen")}))
    lose(folder, "fa", 1, 2, 3)
    value = records.read_json(folder / "study.json")
    value["robustness"] = [each for each in value["robustness"] if each["rule"] != "fa"]
    records.write_json(folder / "study.json", value)
    text = table_markdown(folder)
    assert "not finished, and are not counted: FA 3 of 3." in text and "No rule is" not in text


def test_two_runs_of_one_row_and_seed_are_refused(tmp_path: Path) -> None:
    folder = make(tmp_path / "s")
    value = records.read_json(folder / "study.json")
    value["runs"][4]["seed"] = value["runs"][3]["seed"]
    records.write_json(folder / "study.json", value)
    with pytest.raises(ValueError, match=r"study\.json: two runs are MNIST LeNet SGD, fa, seed=1"):
        read_study(folder)


@pytest.mark.parametrize("what", ["listed twice", "shorter", "ended twice"])
def test_runs_that_are_not_those_of_their_row_are_not_counted(what: str, tmp_path: Path) -> None:
    folder = make(tmp_path / "s")
    value = records.read_json(folder / "study.json")
    one, other, *_ = [run for run in value["runs"] if run["rule"] == "fa"]
    rows = records.read(folder / one["folder"] / "records.jsonl")
    if what == "listed twice":  # one run stands for two seeds
        other["folder"] = one["folder"]
        records.write_json(folder / "study.json", value)
        reason = "listed with seed 2, its experiment has seed 1"
    elif what == "shorter":  # the records of a run of other length
        rewrite(folder / other["folder"], [{**row, "epoch": 7} for row in rows])
        reason = "its final row is of epoch 7, its experiment has 1"
    else:
        rewrite(folder / other["folder"], [*rows, *rows])
        reason = "its records have 2 final rows"
    row = read_study(folder).row("MNIST LeNet SGD", "fa")
    assert [run.seed for run in row.runs] == [1, 3] and row.failed == 1
    assert reason in write(folder).read_text()
    assert "failed runs, which are not counted: FA 1 of 3" in table_markdown(folder)


def test_the_evaluation_of_one_net_is_not_that_of_two(tmp_path: Path) -> None:
    folder = add_robustness(make(tmp_path / "s", {rule: ERRORS[rule] for rule in ("bp", "fa")}))
    value = records.read_json(folder / "study.json")
    value["robustness"][1]["folder"] = value["robustness"][0]["folder"]
    records.write_json(folder / "study.json", value)
    message = r"the evaluation of .*, bp, seed=2 is that of s0-0-bp-1, the run is s0-1-bp-2"
    with pytest.raises(ValueError, match=message):
        read_study(folder)


def test_runs_that_a_study_leaves_out_are_counted(tmp_path: Path) -> None:
    folder = make(tmp_path / "s")
    assert "Not listed" not in table_markdown(folder)
    value = records.read_json(folder / "study.json")
    value["runs"] = [run for run in value["runs"] if (run["rule"], run["seed"]) != ("fa", 2)]
    records.write_json(folder / "study.json", value)
    note = "Not listed in study.json, and not counted: 1 run in its folder."
    assert note in table_markdown(folder) and note in write(folder).read_text()
    pack(folder, tmp_path / "packed")
    assert note in table_markdown(tmp_path / "packed")


def test_numbers_of_a_table_stay_within_what_they_count(tmp_path: Path) -> None:
    """Bands of errors end at 100; a gain over the frozen row is counted among the other rows; equal
    runs on a test set of unknown size have no interval, whatever their last digits."""
    errors = {"bp": (99.0, 99.9, 99.5), "frozen": (99.1, 99.3, 99.2)}
    errors |= {f"r{i}": (99.2, 99.4, 99.3) for i in range(7)} | {"equal": (97.0, 97.0, 97.0)}
    folder = make(tmp_path / "s", errors)
    value = records.read_json(folder / "study.json")
    value["published"] = [
        {"setting": "MNIST LeNet SGD", "rule": "bp", "metric": "test_error", "value": 99.5}
        | {"unit": "%", "source": "S"}
    ]
    records.write_json(folder / "study.json", value)
    for run in value["runs"]:
        *epochs, final = records.read(folder / run["folder"] / "records.jsonl")
        if run["rule"] == "equal":
            final = {key: each for key, each in final.items() if key != "test_count"}
            final["test_acc"] += 1e-16 * run["seed"]
            rewrite(folder / run["folder"], [*epochs, final])
    text = table_markdown(folder)
    assert " to 100.00 | equivalent |" in text and "111" not in text
    assert " of 9 rows; " in text or " of 9 rows.**" in text
    (row,) = (line for line in text.splitlines() if line.startswith("| equal |"))
    assert "97.00 to" not in row
