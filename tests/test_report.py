"""Reports from made-up run folders: numbers, missing runs, escaping, files beside the page."""

import csv
import io
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from apical.bench.report import (
    colours,
    lines,
    protocol,
    read,
    refresh,
    render,
    results,
    table_markdown,
    write,
)
from apical.bench.report.documents import TEMPLATES
from apical.bench.report.names import rule_name
from apical.bench.report.table import for_markdown
from apical.bench.storage import records
from apical.measure import statistics as stats
from fake_study import make_study, rewrite

SMALL = {"rules": ("bp", "fa", "dfa"), "epochs": 3, "layers": ("conv", "fc")}
BARE = SMALL | {"layers": ()}
HOSTILE = "<script>window.pwned=1</script>\"'&$\\frac{\\x]]> --> | *a* `b`"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return make_study(tmp_path_factory.mktemp("runs") / "biotorch-mnist", **SMALL)


@pytest.fixture(scope="module")
def html(study):
    return write(study).read_text()


class _Table(HTMLParser):
    """The cells of the first table, row by row."""

    def __init__(self, text):
        super().__init__()
        self.rows, self._inside, self._done = [], False, False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "tr" and not self._done:
            self.rows.append([])
        if tag in ("td", "th") and not self._done:
            self.rows[-1].append("")
            self._inside = True

    def handle_endtag(self, tag):
        self._done |= tag == "table"
        self._inside &= tag not in ("td", "th")

    def handle_data(self, data):
        if self._inside:
            self.rows[-1][-1] += data.strip()


def test_numbers_of_the_page_are_those_of_the_records(study, html):
    rows = {row[0]: row for row in _Table(html).rows}
    head = rows["Rule"]
    errors = {}
    for run in read.read_study(study).runs:
        last = records.read(study / run.folder / "records.jsonl")[-1]
        errors.setdefault(run.rule, {})[run.seed] = 100 - 100 * last["test_acc"]
    fa, bp = (stats.summarize(list(errors[rule].values())) for rule in ("fa", "bp"))
    noise = {
        rule: 1e4 * stats.binomial_variance(sum(found.values()) / 300, 10_000)
        for rule, found in errors.items()
    }
    gaps = [errors["fa"][seed] - errors["bp"][seed] for seed in (1, 2, 3)]
    gap = stats.summarize(gaps, noise=noise["fa"] + noise["bp"])
    judged = stats.verdict(fa, 1.70, others=[0.91, 1.61], noise=noise["fa"])
    assert rows["FA"] == [
        "FA",
        "3",
        f"{fa.mean:.2f}",
        f"{fa.low:.2f} to {fa.high:.2f}",
        f"+{gap.mean:.2f}{gap.low:+.2f} to {gap.high:+.2f}",
        stats.tie_groups(errors, noise=noise)["fa"],
        "1.70",
        f"{fa.mean - 1.70:+.2f}",
        f"{judged.low:.2f} to {judged.high:.2f}",
        "compatible, uninformative",
    ]
    assert len(head) == len(rows["FA"])
    assert rows["BP"][:3] == ["BP", "3", f"{bp.mean:.2f}"]
    assert rows["DFA"][-1] == "differs"


def test_headline_counts_the_verdicts(html):
    text = "0 of 3 published values agree; 2 compatible, but uninformative: BP, FA; 1 differs: DFA."
    assert text in html


def test_headline_says_how_many_were_not_judged(tmp_path):
    folder = make_study(tmp_path / "s", rules=("bp", "fa"), epochs=1, layers=())
    for seed in (1, 2):
        (run,) = folder.glob(f"*-fa-{seed}")
        rewrite(run, [{"kind": "stopped", "reason": "non-finite loss"}])
    headline = "0 of 1 published value agrees; 1 compatible, but uninformative: BP; 1 not judged."
    assert headline in write(folder).read_text()


def test_csv_holds_the_same_in_full_precision(study, html):
    rows = {row["rule"]: row for row in csv.DictReader(io.StringIO(_csv(study)))}
    cell = next(cell for cell in results.cells(read.read_study(study)) if cell.rule == "fa")
    assert float(rows["fa"]["mean"]) == cell.summary.mean
    assert float(rows["fa"]["bp_low"]) == cell.difference.low
    assert rows["bp"]["bp_difference"] == ""
    assert rows["fa"]["verdict"] == "compatible, uninformative"
    assert float(rows["fa"]["feedback_bytes"]) == cell.costs["feedback_bytes"]


def _csv(study):
    return (study / "report" / "table.csv").read_text()


def test_every_figure_has_a_png_and_every_link_a_target(study, html):
    out = study / "report"
    links = set(re.findall(r'<a href="([^"]+)"', html))
    names = {"error", "curves", "angle", "gradient-angle", "norm-ratio", "gradient-norm-ratio"}
    assert links == {f"{name}.png" for name in names | {"cost"}} | {"table.csv"}
    for link in links - {"table.csv"}:
        assert (out / link).read_bytes().startswith(b"\x89PNG")


def test_figures_are_well_formed_and_follow_the_theme(html):
    svgs = re.findall(r"<svg.*?</svg>", html, flags=re.S)
    assert len(svgs) == 3 + 1 + 3 + 2 * 4 + 2  # legend, error, curves, layers x measures, costs
    for svg in svgs:
        ElementTree.fromstring(svg)
        drawn = set(re.findall(r"#[0-9a-f]{6}\b", svg))
        assert drawn <= {"#000000"}, "a colour that no theme can change"
        assert "font-family" not in svg
    assert "var(--rule-d55e00)" in html
    assert html.count("--rule-d55e00:") == 2  # light and dark


def test_the_same_records_give_the_same_bytes(study, html, tmp_path):
    again = write(study, tmp_path / "again")
    assert again.read_text() == html
    for file in again.parent.iterdir():
        assert file.read_bytes() == (study / "report" / file.name).read_bytes()


def test_runs_that_did_not_finish_are_listed_with_the_reason(tmp_path):
    folder = make_study(tmp_path / "s", **BARE)
    runs = sorted(folder.glob("s0-*"))
    epochs = [row for row in records.read(runs[1] / "records.jsonl") if row["kind"] == "epoch"]
    stop = {"kind": "stopped", "reason": "non-finite loss", "epoch": 2, "step": 7, "where": "loss"}
    rewrite(runs[0], [stop])
    rewrite(runs[1], epochs[:2])
    rewrite(runs[3], [])
    rewrite(runs[8], [{"kind": "stopped", "reason": "no place"}])
    (runs[4] / "records.jsonl").write_text('{"kind": "ep\n{"kind": "final"}\n')
    text = _plain(write(folder, png=False).read_text())
    assert "4 of 9 runs finished · 3 failed" in text
    assert "BP, seed 1: failed · non-finite loss (epoch 2, step 7, at loss)" in text
    assert "BP, seed 2: unfinished · epoch 2 of 3" in text
    assert "FA, seed 1: not started · no epoch recorded" in text
    assert f"FA, seed 2: failed · unreadable: {runs[4].name}/records.jsonl, line 1" in text
    assert "DFA, seed 3: failed · no place " in text and "no place (" not in text
    assert str(tmp_path) not in text
    rows = {row[0]: row for row in _Table((folder / "report/index.html").read_text()).rows}
    assert rows["BP"][1] == "1 of 3†"
    assert rows["BP"][3].endswith("‡")  # Wilson interval, not one over seeds
    assert rows["FA"][-1] == "too few runs"


def _plain(html):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))


def test_a_study_without_a_finished_run_still_has_a_page(tmp_path):
    folder = make_study(tmp_path / "s", **BARE)
    for run in folder.glob("s0-*"):
        for file in run.iterdir():
            file.unlink()
        run.rmdir()
    text = _plain(write(folder, png=False).read_text())
    assert "No run has finished yet" in text
    assert "9 of 9 runs are missing" in text
    assert "No environment.json has been written yet." in text
    assert sorted(file.name for file in (folder / "report").iterdir()) == [
        "index.html",
        "table.csv",
    ]
    assert "| BP | 0 of 3 |" in table_markdown(folder)


def test_text_from_files_is_escaped_everywhere(tmp_path):
    folder = make_study(
        tmp_path / "s",
        rules=("bp", HOSTILE),
        settings=(HOSTILE, "=cmd()"),
        seeds=(1, 2),
        epochs=2,
        layers=(HOSTILE,),
        title=HOSTILE,
        notes=(HOSTILE,),
        published=False,
    )
    value = records.read_json(folder / "study.json")
    value["published"] = [
        {"setting": HOSTILE, "rule": "bp", "metric": "test_accuracy", "value": 0.99}
        | {"unit": "fraction", "source": HOSTILE}
    ]
    tries = [{"lr": 0.1, "reason": HOSTILE}, {"lr": 0.01, "val_acc": 0.9}]
    value["search"] = [{"setting": HOSTILE, "rule": HOSTILE, "lr": 0.01, "tries": tries}]
    value |= {"command": HOSTILE, "name": HOSTILE, "tier": HOSTILE}
    records.write_json(folder / "study.json", value)
    for run in folder.glob("s0-*"):
        records.write_json(run / "environment.json", {HOSTILE: HOSTILE})
        fields = {"experiment": {HOSTILE: {HOSTILE: HOSTILE}}}
        records.write_json(run / "experiment.json", fields)
    rewrite(
        sorted(folder.glob("s0-*"))[0],
        [{"kind": "stopped", "reason": HOSTILE, "where": HOSTILE}],
    )
    html = write(folder, png=False).read_text()
    assert html.count("<script>") == 1  # our own
    assert "&lt;script&gt;window.pwned" in html
    for svg in re.findall(r"<svg.*?</svg>", html, flags=re.S):
        ElementTree.fromstring(svg)
    assert "'=cmd()" in _csv(folder)
    lines = table_markdown(folder).splitlines()
    lines = lines[2:] if lines[0].startswith("**") else lines
    assert not any("<" in line for line in lines[:-1])
    assert for_markdown("[a](b)") == r"\[a](b)"  # no link
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 10 for line in lines[:3])


def test_without_published_values_nothing_speaks_of_them(tmp_path):
    folder = make_study(tmp_path / "s", published=False, **BARE)
    html = write(folder, png=False).read_text()
    assert _Table(html).rows[0][-1] == "Ties"
    assert len(_Table(html).rows[1]) == len(_Table(html).rows[0])
    assert "Tier full; no published values to compare with." in html
    assert "Verdict" not in html
    assert "diamond" not in html
    assert table_markdown(folder).splitlines()[2] == (
        "| rule | n | test error % | 95 % interval | minus BP | ties |"
    )


def test_without_backprop_nothing_is_compared_with_it(tmp_path):
    folder = make_study(tmp_path / "s", published=False, **BARE | {"rules": ("fa", "dfa")})
    html = write(folder, png=False).read_text()
    head, *rows = _Table(html).rows
    assert head == ["Rule", "Runs n", "Test error %", "95 % interval", "Ties"]
    assert {len(row) for row in rows} == {5} and "Minus BP" not in html
    markdown = table_markdown(folder)
    assert markdown.splitlines()[2] == "| rule | n | test error % | 95 % interval | ties |"
    assert "minus BP" not in markdown


@pytest.mark.usefixtures("no_figures")
def test_intervals_of_percentages_end_at_0_and_100(tmp_path):
    folder = make_study(tmp_path / "s", seeds=(1, 2), **BARE | {"rules": ("bp",)})
    for place, accuracy in zip(sorted(folder.glob("s0-*")), (1.0, 0.996), strict=True):
        *epochs, final = records.read(place / "records.jsonl")
        rewrite(place, [*epochs, final | {"test_acc": accuracy}])
    assert _Table(write(folder).read_text()).rows[1][3] == "0.00 to 2.74"
    assert "| 0.20 | 0.00 to 2.74 |" in table_markdown(folder)
    assert min(float(row["low"]) for row in csv.DictReader(io.StringIO(_csv(folder)))) < -2


@pytest.mark.usefixtures("no_figures")
def test_other_tiers_are_not_judged(tmp_path):
    folder = make_study(tmp_path / "s", tier="short", **BARE)
    html = write(folder).read_text()
    assert {row[-1] for row in _Table(html).rows[1:]} == {"other scale"}
    assert "published values are shown for orientation" in html
    assert "published values agree" not in html


def test_published_data_that_differ_are_not_judged(tmp_path):
    folder = make_study(tmp_path / "s", **BARE)
    value = records.read_json(folder / "study.json")
    value["published"][0]["other_scale"] = "half the training images"
    records.write_json(folder / "study.json", value)
    verdicts = {cell.rule: cell.verdict for cell in results.cells(read.read_study(folder))}
    assert (verdicts["bp"].word, verdicts["bp"].why) == ("other scale", "half the training images")
    assert verdicts["fa"].word == "compatible, uninformative"


@pytest.mark.parametrize(
    ("metric", "value", "unit"),
    [
        ("test_error", 1.7, "%"),
        ("test_error", 0.017, "fraction"),
        ("test_accuracy", 98.3, "%"),
        ("test_accuracy", 0.983, "fraction"),
    ],
)
def test_published_values_become_errors_in_percent(metric, value, unit):
    entry = {"setting": "s", "rule": "fa", "source": "x", "metric": metric}
    published = read.read_published(entry | {"value": value, "unit": unit}, read.ERRORS)
    assert published.value == pytest.approx(1.7)


def test_published_values_of_another_metric_are_refused(tmp_path):
    folder = make_study(tmp_path / "s", **BARE)
    value = records.read_json(folder / "study.json")
    value["published"][0]["metric"] = "loss"
    records.write_json(folder / "study.json", value)
    with pytest.raises(ValueError, match=r"metric 'loss' in '%'; allowed are"):
        write(folder)


@pytest.mark.parametrize(
    "wrong", [{"value": 97, "unit": "fraction"}, {"value": -3}, {"value": 101}, {"n": 0}]
)
def test_published_values_that_are_no_percentages_are_refused(wrong):
    entry = {"setting": "s", "rule": "fa", "source": "x", "metric": "test_error", "value": 1.7}
    with pytest.raises(ValueError, match=r"published value of 'fa': .* must lie in 0 to 100 %"):
        read.read_published(entry | {"unit": "%"} | wrong, read.ERRORS)


def test_a_run_without_a_test_accuracy_is_no_finished_run(tmp_path):
    folder = make_study(tmp_path / "s", **BARE)
    *epochs, final = records.read(folder / "s0-0-bp-1" / "records.jsonl")
    rewrite(folder / "s0-0-bp-1", [*epochs, final | {"test_acc": None}])
    assert "| BP | 2 of 3 |" in table_markdown(folder)


@pytest.mark.usefixtures("no_figures")
def test_several_studies_get_an_index(tmp_path):
    make_study(tmp_path / "runs" / "a", rules=("bp",), epochs=1, layers=(), title="First <1>")
    make_study(tmp_path / "runs" / "b c", rules=("bp",), epochs=1, layers=(), title="Second")
    index = write(tmp_path / "runs", tmp_path / "out")
    assert index == tmp_path / "out" / "index.html"
    text = index.read_text()
    assert "First &lt;1&gt;" in text
    assert 'href="b%20c/index.html"' in text
    assert (tmp_path / "out" / "b c" / "index.html").is_file()


def test_a_folder_without_studies_is_an_error_that_says_so(tmp_path):
    with pytest.raises(ValueError, match=r"no study in .*apical study smoke"):
        write(tmp_path)
    with pytest.raises(ValueError, match=r"no study in"):
        write(tmp_path / "missing")
    with pytest.raises(ValueError, match=r"is no study"):
        table_markdown(tmp_path)
    (tmp_path / "study.json").write_text('{"name": "x"}')
    with pytest.raises(ValueError, match=r"study.json: title is missing"):
        write(tmp_path)


def test_a_target_that_cannot_be_made_is_an_error(study, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(records.StorageError, match=r"cannot make the folder"):
        write(study, tmp_path / "file" / "report")


def test_markdown_table_and_refresh(study, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- table:biotorch-mnist -->\nstale line\n<!-- end -->\nafter\n")
    assert refresh(readme, study.parent)
    text = readme.read_text()
    start = "before\n<!-- table:biotorch-mnist -->\n**BP has the lowest test error, 0.94 %.**\n\n"
    assert text.startswith(f"{start}| rule | n | test error % |")
    assert text.endswith("<!-- end -->\nafter\n")
    assert "stale line" not in text
    assert "Regenerate: `apical study biotorch-mnist --tier full --seeds 3`." in text
    assert not refresh(readme, study.parent)
    assert readme.read_text() == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- table:biotorch-mnits -->\n<!-- end -->", r"did you mean biotorch-mnist\?"),
        ("<!-- table:biotorch-mnist -->\n", r"not closed by <!-- end -->"),
        (
            "<!-- table:a -->\n<!-- table:biotorch-mnist -->\n<!-- end -->",
            r"not closed by <!-- end --> after table:a",
        ),
    ],
)
def test_refresh_refuses_broken_markers_and_leaves_the_file(study, tmp_path, text, message):
    readme = tmp_path / "README.md"
    readme.write_text(text)
    with pytest.raises(ValueError, match=message):
        refresh(readme, study.parent)
    assert readme.read_text() == text


def _cell(rule, error, published, setting="s"):
    source = read.Published(setting, rule, published, "paper")
    summary = stats.Summary(1, error, None, None, None)
    return results.Cell(read.Row(setting, rule), summary=summary, published=source)


def test_the_order_of_rules_stands_beside_the_published_one():
    """Pairs in order 4, reversed 1, tied in the published 1: tau-b = 3 / sqrt(6 * 5) = 0.55."""
    rows = [_cell("bp", 1.0, 2.0), _cell("usf", 1.5, 2.0), _cell("fa", 4.0, 3.0)]
    rows += [_cell("dfa", 3.0, 9.0)]
    assert results.orders(rows) == [
        "Means, best first: BP, uSF, DFA, FA. In the source: BP = uSF, FA, DFA "
        "(Kendall's tau 0.55)."
    ]
    assert results.orders(rows[:2]) == []
    both = [*rows, *(_cell(rule, 1.0, 2.0, "t") for rule in ("bp", "usf", "fa"))]
    assert results.orders(both)[1] == (
        "t, means, best first: BP = uSF = FA. In the source: BP = uSF = FA."
    )
    named = [_cell(f"{rule}, published rate", *values) for rule, *values in
             (("bp", 1.0, 2.0), ("usf", 1.5, 2.0), ("fa", 4.0, 3.0))]  # fmt: skip
    assert (
        "BP, published rate; uSF, published rate; FA, published rate." in results.orders(named)[0]
    )


def test_curves_use_epochs_that_every_seed_has():
    rows = [{"kind": "epoch", "epoch": epoch, "train_loss": epoch / 10} for epoch in (1, 2, 3)]
    long, short = _run(rows), _run(rows[:2])
    series = lines.series({"fa": [long, short], "bp": []}, "epoch", "train_loss")
    assert series == {"fa": {1: [0.1, 0.1], 2: [0.2, 0.2]}}


def test_runs_from_before_a_quantity_was_recorded_are_left_out_and_counted():
    rows = [{"kind": "layer", "layer": "fc", "epoch": epoch} for epoch in (0, 1, 2)]
    new = _run([row | {"delta_angle_deg": 90.0 - row["epoch"]} for row in rows])
    resumed = _run([*rows[:2], rows[2] | {"delta_angle_deg": 80.0}])
    runs = {"fa": [new, resumed, new], "bp": [_run(rows)]}
    asked = "layer", "delta_angle_deg", "fc"
    found = lines.series(runs, *asked)
    assert found == {"fa": {0: [90.0, 90.0], 1: [89.0, 89.0], 2: [88.0, 88.0]}}
    assert lines.recorded(runs, *asked) == " Recorded in 2 of 3 runs."
    assert lines.recorded({"fa": [new]}, *asked) == ""
    late = {"fa": [_run([rows[0], *new.rows[1:]])] * 2}  # none has the first: then all count
    assert list(lines.series(late, *asked)["fa"]) == [1, 2]


def test_numbers_of_a_logarithmic_axis_are_few_and_short():
    from matplotlib.figure import Figure

    axes = Figure(figsize=(1.9, 1.45)).add_subplot()
    axes.plot([0, 1], [0.9, 1.1])
    lines.log_axis(axes, (1e-4, 2.0))
    shown = [t for t in axes.get_yticks() if 1e-4 <= t <= 2]
    assert shown == pytest.approx([1e-4, 1e-3, 1e-2, 0.1, 1.0])
    assert [axes.yaxis.get_major_formatter()(t) for t in shown[:2]] == ["1e-4", "0.001"]
    lines.log_axis(axes, (0.5, 3.0))
    assert {0.5, 1.0, 2.0} <= {round(t, 6) for t in axes.get_yticks()}
    assert [lines.short(v) for v in (1e4, 2e6, 300, 0.02)] == ["1e4", "2e6", "300", "0.02"]


def test_fields_of_later_versions_do_not_differ_from_their_absence(tmp_path):
    folder = make_study(tmp_path / "s", **BARE)
    for run in sorted(folder.glob("s0-*"))[::2]:
        described = records.read_json(run / "experiment.json")
        described["experiment"]["learner"] = "backprop"
        records.write_json(run / "experiment.json", described)
    (found,) = protocol.protocols(read.read_study(folder))
    assert found.shared["learner"] == "backprop" and "learner" not in found.differing


def _run(rows):
    return read.Run("f", "s", "fa", 1, "finished", rows=tuple(rows))


def test_many_layers_are_thinned_evenly_and_said_so(tmp_path):
    assert lines.spread(list("abc"), 12) == list("abc")
    names = [str(index) for index in range(22)]
    picked = lines.spread(names, 12)
    assert len(set(picked)) == 12
    assert (picked[0], picked[-1]) == ("0", "21")


@pytest.mark.parametrize("known", [["bp", "fa", "kp"], list(colours.LOOKS)])
def test_no_two_rules_look_the_same(known):
    chosen = colours.colours([*known, *(f"r={rank}" for rank in range(25))])
    assert len(set(chosen.values())) == len(known) + 25
    known_colours = set(colours.variables())
    assert {look.light for look in chosen.values()} <= known_colours


def test_unknown_rules_get_their_own_looks_in_order():
    chosen = colours.colours(["mine", "fa", "yours"])
    assert chosen["fa"] == colours.LOOKS["fa"]
    assert chosen["mine"] == colours.SPARE[0]
    assert chosen["yours"] == colours.SPARE[1]
    assert colours.colours([f"r{i}" for i in range(6)] + ["bp"])["r5"] == colours.LOOKS["fa"]
    lights = [look.light for look in [*colours.LOOKS.values(), *colours.SPARE]]
    assert len(set(lights)) == len(lights)


@pytest.mark.parametrize(("dark", "paper"), [(False, "#ffffff"), (True, "#14171c")])
def test_every_colour_stands_out_from_the_paper(dark, paper):
    """WCAG asks 3 : 1 of lines and markers; the paper colours are those of page.css."""
    assert paper in (TEMPLATES / "page.css").read_text()
    for look in [*colours.LOOKS.values(), *colours.SPARE]:
        assert _contrast(look.dark if dark else look.light, paper) >= 2.9


def _contrast(first, second):
    high, low = sorted((_luminance(first), _luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def _luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
    return sum(w * v for w, v in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_protocol_separates_what_rules_share_from_what_differs(study):
    (item,) = protocol.protocols(read.read_study(study))
    assert item.differing == {
        "rule": {"BP": "bp", "FA": "fa (init xavier)", "DFA": "dfa"},
        "optimizer.lr": {"BP": "0.1", "FA": "0.01", "DFA": "0.001"},
    }
    assert item.shared["milestones"] == "50, 75"
    assert "seed" not in item.shared


@pytest.mark.usefixtures("no_figures")
def test_environments_that_differ_are_counted(tmp_path):
    folder = make_study(tmp_path / "s", rules=("bp",), epochs=1, layers=())
    run = min(folder.glob("s0-*"))
    header = records.read_json(run / "environment.json") | {"torch": "2.6.0"}
    records.write_json(run / "environment.json", header)
    seen = protocol.environment(read.read_study(folder))
    assert seen["torch"] == [("2.13.0", 2), ("2.6.0", 1)]
    assert "2.13.0 (2 of 3 runs) ; 2.6.0 (1 of 3 runs)" in _plain(write(folder).read_text())


def test_rows_that_were_trained_on_another_cpu_are_named(tmp_path):
    folder = make_study(tmp_path / "s", rules=("bp", "fa"), epochs=1, layers=())
    assert "Trained on" not in table_markdown(folder)
    for run in folder.glob("s0-*"):
        header = records.read_json(run / "environment.json")
        cpu = "B" if "fa" in run.name else "A"
        records.write_json(run / "environment.json", header | {"cpu": cpu})
    assert "Trained on A, but 3 runs of FA on B: " in table_markdown(folder)


def test_file_names_from_settings_do_not_clash():
    names = ["A b", "A/b", "../..", "ß"]
    slugs = ["a-b-", "a-b-2-", "setting-", "setting-2-"]
    assert [render.prefix(names, name) for name in names] == slugs
    assert render.prefix(["A b"], "A b") == ""


def test_a_learner_without_a_name_is_backprop() -> None:
    assert rule_name({"learner": {"form": "ell"}, "rule": "fa"}) == "fa"
    assert rule_name({"learner": {"learner": "lra"}, "rule": "fa"}) == "lra"
