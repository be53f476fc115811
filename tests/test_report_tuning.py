"""The table of fine-tuned nets: medians of layers, means of seeds, whose gradient."""

from pathlib import Path

import pytest

from apical.bench.report import fine_tuning, write
from apical.bench.report.documents import table_markdown
from apical.bench.report.read import read_study
from apical.bench.storage import records
from fake_robust import EXACT, OWN, add_robustness
from fake_study import make_study

AT_RATE = "BP, uSF's rate"
RULES = ("bp", "head only", AT_RATE, "usf", "fa")
TRAINED_BY = {"head only": "frozen", AT_RATE: "bp"}
LAYERS = {"conv1": (0.1, 0.9), "conv2": (0.4, 0.5), "conv3": (0.2, -0.25), "fc": (2.0, 1.0)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fine_tuned(tmp_path_factory.mktemp("study") / "tuned")


def fine_tuned(folder: Path) -> Path:
    """Three seeds of five rows; the layers of a seed move a little more than those before."""
    place = make_study(
        folder,
        rules=RULES,
        published=False,
        epochs=2,
        layers=("conv1",),
    )
    for run in records.read_json(place / "study.json")["runs"]:
        if run["rule"] in TRAINED_BY:
            described = records.read_json(place / run["folder"] / "experiment.json")
            described["experiment"]["rule"] = TRAINED_BY[run["rule"]]
            records.write_json(place / run["folder"] / "experiment.json", described)
        path = place / run["folder"] / "records.jsonl"
        *rows, final = records.read(path)
        path.unlink()
        records.append(path, *rows, *tuned(run["rule"], run["seed"]), final)
    return place


def tuned(rule: str, seed: int) -> list[records.Record]:
    found = []
    for layer, (change, cosine) in LAYERS.items():
        frozen = rule == "head only" and layer != "fc"
        row = {"kind": "tuned", "layer": layer, "head": layer == "fc", "frozen": frozen}
        row["weight_change"] = 0.0 if frozen else change * (1 + 0.1 * (seed - 2))
        if not frozen:
            row["update_cosine"] = 1.0 if rule == "bp" else cosine
        found.append(row)
    return found


def test_a_line_is_the_median_layer_of_the_mean_over_seeds(folder: Path) -> None:
    by_rule = {line.rule: line for line in fine_tuning.lines(read_study(folder))}
    usf = by_rule["usf"]
    assert usf.changes == pytest.approx([0.1, 0.4, 0.2]), "from input to output, without the head"
    assert usf.moved == "0.2 (0.1 to 0.4)" and usf.head == pytest.approx(2)
    assert usf.cosine == pytest.approx(0.5) and usf.accuracy.n == usf.planned == 3
    frozen = by_rule["head only"]
    assert (frozen.moved, frozen.cosine) == ("0", None)
    assert by_rule["bp"].cosine == 1
    assert by_rule["fa"].accuracy.mean == pytest.approx(98.2, abs=0.3)


def test_a_study_that_tuned_nothing_has_no_such_table(tmp_path: Path) -> None:
    assert fine_tuning.lines(read_study(make_study(tmp_path / "plain", seeds=(1,)))) == []


def test_the_page_and_the_file_show_every_layer(folder: Path) -> None:
    page = write(folder, png=False).read_text()
    assert "Fine-tuned: what moved" in page and "conv3" in page and "(−0.25)" in page
    assert "BP's weights" not in page, "nobody attacked"
    rows = (folder / "report" / "tuning.csv").read_text().splitlines()
    assert len(rows) == 1 + len(RULES) * len(LAYERS)
    assert rows[0] == "setting,rule,layer,head,frozen,weight_change,cosine"


@pytest.mark.usefixtures("no_figures")
def test_under_attack_backprops_weights_stand_beside_the_rules_own(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(OWN, "head only", EXACT)
    add_robustness(folder, rules_tried=("usf", "fa"))
    by_rule = {line.rule: line.attacked for line in fine_tuning.lines(read_study(folder))}
    usf, bp = by_rule["usf"], by_rule["bp"]
    assert bp["own"] == bp["exact"] and bp["crossed"] is bp["same_rate"] is None
    assert by_rule[AT_RATE]["same_rate"] is None, "it is what the others are compared with"
    assert usf["same_rate"].mean == pytest.approx(usf["worst"].mean - bp["worst"].mean)
    assert usf["own"].mean > usf["exact"].mean + 5
    assert usf["crossed"].mean == pytest.approx(usf["own"].mean, abs=25)
    assert by_rule["head only"]["own"].mean == pytest.approx(
        by_rule["head only"]["exact"].mean, abs=5
    )
    text = table_markdown(folder)
    head, _, *lines = text.splitlines()[2:]
    assert head.startswith(
        "| rule | n | accuracy | gained | trunk moved | head moved | update cosine | own"
    )
    rules = [line.split(" | ")[0] for line in lines[:5]]
    assert rules == ["| BP", "| head only", f"| {AT_RATE}", "| uSF", "| FA"]
    assert "| worst minus BP, same rate |" in head
    assert "weights look as robust under the rule's backward pass" in text
    assert "BP&#39;s weights, this backward" in write(folder).read_text()
    value = records.read_json(folder / "study.json")
    value["robustness"] = [e for e in value["robustness"] if (e["rule"], e["seed"]) != ("usf", 3)]
    records.write_json(folder / "study.json", value)
    (usf,) = [line for line in table_markdown(folder).splitlines() if line.startswith("| uSF")]
    assert usf.count("(n = 2)") == 4  # own, exact, worst case, minus BP
