"""Packed studies: nothing that a report uses is lost, and damage is noticed."""

import dataclasses
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apical.attacks import Effort
from apical.bench.evaluate import retrieval
from apical.bench.evaluate.robustness import Evaluation
from apical.bench.experiment.execution import Execution
from apical.bench.experiment.experiment import Experiment
from apical.bench.experiment.loss_settings import Hashing
from apical.bench.experiment.training_settings import Schedule
from apical.bench.report import write
from apical.bench.report.read import read_study
from apical.bench.storage import packing, records
from apical.bench.storage.evaluation_folder import DIGESTS
from apical.bench.storage.packing import LooseFolder, PackedFolder, open_folder, pack
from apical.bench.studies import Entry, Study, conduct
from apical.bench.studies.base import Search
from fake_robust import add_robustness
from fake_study import make_study, rewrite

PACKED_FILES = ["records.parquet", "runs.jsonl", "study.json"]
EXECUTION = Execution(quiet=True)
pytestmark = pytest.mark.filterwarnings("ignore::apical.retrieval.ConstantBitWarning")


def small_study() -> Study:
    """A search, nets of classes under attack, hash nets under attack."""
    plain = Experiment(net_options={"hidden": [16]}, epochs=2, batch_size=64, probe_share=0.2)
    hashed = dataclasses.replace(plain, hashing=Hashing(8, "csq", k=200), probe_every=0)
    return Study(
        "tiny",
        "Tiny",
        "full",
        tuple(
            Entry(setting, rule, dataclasses.replace(experiment, rule=rule))
            for setting, experiment in (("digits", plain), ("hashed", hashed))
            for rule in ("bp", "fa")
        ),
        search=Search((0.1,), 1, Schedule(), 300, extensions=0),
        evaluations={
            "digits": Evaluation(
                eps=(0.1,),
                images=40,
                effort=Effort(steps=2, adaptive_steps=0, queries=0, redraws=2),
            ),
            "hashed": retrieval.Evaluation(eps=(0.1,), queries=12, known=30, steps=2),
        },
        surrogate="bp",
    )


@pytest.fixture(scope="module")
def loose(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    conduct.conduct(small_study(), root, EXECUTION, command="apical study tiny")
    return root / "tiny"


@pytest.fixture(scope="module")
def packed(loose: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("results") / "tiny"
    pack(loose, out, search=True)
    return out


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    """Packed, of two made-up runs."""
    made = make_study(tmp_path / "loose" / "s", rules=("bp", "fa"), seeds=(1,), epochs=2)
    pack(made, tmp_path / "packed" / "s")
    return tmp_path / "packed" / "s"


def json_files(folder: Path) -> list[str]:
    """All but the digests of evaluations: a packed study has its own."""
    found = [path for path in folder.rglob("*.json*") if path.name != DIGESTS]
    return [path.relative_to(folder).as_posix() for path in found]


def test_a_study_reads_the_same_packed_and_loose(loose: Path, packed: Path) -> None:
    assert sorted(path.name for path in packed.iterdir()) == PACKED_FILES
    before, after = open_folder(loose), open_folder(packed)
    assert isinstance(before, LooseFolder) and isinstance(after, PackedFolder)
    names = json_files(loose)
    tries = len(before.folders("search"))
    assert tries == 4 * 3  # 4 searches of a rate and 3 seeds
    # 4 runs and the tries of 3 files, 4 evaluations of 4 files, study.json
    assert len(names) == (4 + tries) * 3 + 4 * 4 + 1
    for name in names:
        assert before.has(name) and after.has(name), name
        read = "rows" if name.endswith("l") else "read_json"
        was, now = (getattr(folder, read)(name) for folder in (before, after))
        assert repr(now) == repr(was), name  # in text 1 is neither 1.0 nor True; keys keep order
    for run in [*before.folders("."), "search"]:
        for home in ("", "/robustness", "/retrieval"):
            assert after.folders(run + home) == before.folders(run + home)
    for place in ("nothing", "nothing/records.jsonl", "search/nothing/experiment.json"):
        assert after.rows(place) == [] and after.read_json(place) == {} and not after.has(place)


def test_a_report_of_a_packed_study_differs_by_its_pictures_alone(
    loose: Path, packed: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "tiny"
    shutil.copytree(loose, bare, ignore=shutil.ignore_patterns("*.npz"))
    write(bare, tmp_path / "before", png=False)
    write(packed, tmp_path / "after", png=False)
    before = {p.name: p.read_bytes() for p in (tmp_path / "before").iterdir()}
    assert before == {p.name: p.read_bytes() for p in (tmp_path / "after").iterdir()}
    assert {"table.csv", "index.html"} < before.keys()
    assert b"Retrieval under attack" in before["index.html"]


@pytest.mark.usefixtures("no_figures")
def test_a_run_of_a_packed_study_has_its_page(loose: Path, packed: Path, tmp_path: Path) -> None:
    run = read_study(packed).robustness[0].place.split("/")[0]
    text = write(packed / run, tmp_path / "page").read_text()
    assert "robust accuracy" in text.lower()
    with pytest.raises(ValueError, match="no study in"):
        write(packed / "nothing", tmp_path / "page")


def test_packing_again_changes_no_byte(loose: Path, packed: Path, tmp_path: Path) -> None:
    pack(loose, tmp_path, search=True)
    for name in PACKED_FILES:
        assert (tmp_path / name).read_bytes() == (packed / name).read_bytes()


def test_tries_of_a_search_are_packed_on_request(loose: Path, packed: Path, tmp_path: Path) -> None:
    pack(loose, tmp_path)
    tries = open_folder(packed).folders("search")
    assert tries == open_folder(loose).folders("search") and not open_folder(tmp_path).has("search")
    runs = [line["folder"] for line in records.read(packed / "runs.jsonl")]
    left = [line["folder"] for line in records.read(tmp_path / "runs.jsonl")]
    assert left == [name for name in runs if not name.startswith("search/")]
    assert read_study(tmp_path).search == read_study(loose).search != ()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("xy"), inner),
    max_leaves=4,
)  # fmt: skip
ROWS = st.lists(st.dictionaries(st.sampled_from(["kind", "a", "b,c", "é", ""]), VALUES), max_size=6)


@given(ROWS, ROWS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_rows_of_any_values_come_back_as_they_were(
    first: list[dict[str, Any]], second: list[dict[str, Any]]
) -> None:
    named = [("r/1", "records", row) for row in first] + [("é/e", "trials", row) for row in second]
    found = packing._unpacked_rows(packing._packed_rows(named))
    assert repr(found.get("r/1/records.jsonl", [])) == repr(first)
    assert repr(found.get("é/e/trials.jsonl", [])) == repr(second)


def test_usual_columns_are_typed(packed: Path) -> None:
    """So that other tools read them."""
    import pyarrow.parquet

    schema = pyarrow.parquet.read_schema(packed / "records.parquet")
    types = {name: str(schema.field(name).type) for name in schema.names}
    expected = {"kind": "string", "epoch": "int64", "train_loss": "double", "passed": "bool"}
    assert expected.items() <= types.items()
    assert types["precision"] == "string"  # a list in trials, a number in rows
    assert schema.field("precision").metadata[b"encoding"] == b"json"


def test_a_changed_byte_is_noticed(fake: Path) -> None:
    for name in PACKED_FILES:
        whole = (fake / name).read_bytes()
        right = read_study(fake)
        step = max(1, len(whole) // 50)
        for place in range(0, len(whole), step):
            (fake / name).write_bytes(
                whole[:place] + bytes([whole[place] ^ 0x11]) + whole[place + 1 :]
            )
            with pytest.raises(ValueError) as error:
                read_study(fake)
            assert str(fake / name) in str(error.value)
            assert "make keep STUDY=s" in str(error.value)
        (fake / name).write_bytes(whole)
        assert [run.rows for run in read_study(fake).runs] == [run.rows for run in right.runs]


def test_a_missing_file_is_named(fake: Path, tmp_path: Path) -> None:
    for name in ("records.parquet", "runs.jsonl"):
        copy = tmp_path / name
        shutil.copytree(fake, copy)
        (copy / name).unlink()
        with pytest.raises(ValueError, match=re.escape(f"{copy / name} is missing")):
            read_study(copy)
    (copy / "records.parquet").unlink()
    with pytest.raises(ValueError, match="is missing"):
        read_study(copy)


def test_packed_files_and_digests_of_other_kinds_are_named(fake: Path) -> None:
    whole = records.read_json(fake / "study.json")
    digests = whole["packed"]["sha256"]
    for change in (
        {"sha256": digests | {"study.json": 5}},
        {"sha256": digests | {"study.json": None}},
        {"sha256": [list(pair) for pair in digests.items()]},
        {"environments": [1]},
    ):
        records.write_json(fake / "study.json", whole | {"packed": whole["packed"] | change})
        with pytest.raises(ValueError, match="does not describe a packed study .*packed: "):
            read_study(fake)
    records.write_json(fake / "study.json", whole)
    for name in ("runs.jsonl", "records.parquet"):
        for make in (Path.mkdir, os.mkfifo):
            (fake / name).rename(fake / "aside")
            make(fake / name)
            with pytest.raises(ValueError, match=f"{name} is not a file"):
                read_study(fake)
            (fake / name).rename(fake / f"{name}.{make.__name__}")
            (fake / "aside").rename(fake / name)


def test_files_of_another_study_are_no_part_of_this_one(fake: Path, tmp_path: Path) -> None:
    other = make_study(tmp_path / "other", rules=("bp", "fa"), seeds=(2,), epochs=2)
    pack(other, tmp_path / "packed_other")
    shutil.copy(tmp_path / "packed_other" / "records.parquet", fake)
    with pytest.raises(ValueError, match=r"records.parquet is damaged, or was changed"):
        read_study(fake)


def test_a_later_format_is_refused_by_its_number(fake: Path) -> None:
    value = records.read_json(fake / "study.json")
    value["packed"]["format"] = 2
    records.write_json(fake / "study.json", value)
    with pytest.raises(ValueError, match=r"packed in format 2, this version .* reads format 1"):
        read_study(fake)


def test_what_cannot_be_packed_is_named_and_nothing_is_written(fake: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for bad in (fake, tmp_path):  # packed already, no study at all
        with pytest.raises(ValueError, match="is not a study as `apical study` leaves it"):
            pack(bad, out)
    loose = tmp_path / "loose" / "s"
    (run, *_) = sorted(path for path in loose.iterdir() if path.is_dir())
    lines = (run / "records.jsonl").read_text()
    (run / "records.jsonl").write_text("no row\n" + lines)
    with pytest.raises(ValueError, match="records.jsonl, line 1"):
        pack(loose, out)
    (run / "records.jsonl").write_text(json.dumps({"kind": "x", "_keys": 1}) + "\n")
    with pytest.raises(ValueError, match=rf"rows of {run.name} cannot be packed: keys \['_keys'\]"):
        pack(loose, out)
    (run / "records.jsonl").write_text(lines)
    records.write_json(run / "experiment.json", {"experiment": {}, "last": 1})
    with pytest.raises(ValueError, match=r"cannot be packed: entries \['last'\]"):
        pack(loose, out)
    records.write_json(run / "experiment.json", {"key": "1"})
    with pytest.raises(ValueError, match="experiment is missing"):
        pack(loose, out)
    assert not out.exists()


@pytest.mark.filterwarnings("ignore:.*torn last line")
def test_unfinished_runs_and_evaluations_stay_so(tmp_path: Path) -> None:
    study = add_robustness(make_study(tmp_path / "s", rules=("bp", "fa"), seeds=(1, 2), epochs=3))
    runs = [run.folder for run in read_study(study).runs]
    shutil.rmtree(study / runs[0])
    rewrite(study / runs[1], records.read(study / runs[1] / "records.jsonl")[:-1])
    with open(study / runs[1] / "records.jsonl", "a") as file:
        file.write('{"kind": "fin')  # a kill
    place = study / runs[2] / "robustness" / "linf-0a1b2c"
    (place / "records.jsonl").rename(place / "trials.jsonl")
    pack(study, tmp_path / "packed")
    before, after = read_study(study), read_study(tmp_path / "packed")
    assert before.runs == after.runs
    assert [run.status for run in after.runs] == ["not started", "unfinished"] + 2 * ["finished"]
    told = [(net.status, net.reason, net.rows) for net in after.robustness]
    assert told == [(net.status, net.reason, net.rows) for net in before.robustness]
    assert [status for status, *_ in told] == ["not started", "finished", "unfinished", "finished"]


def test_an_unpacked_study_trains_only_what_is_new(loose: Path, tmp_path: Path) -> None:
    study = small_study()
    plain = dataclasses.replace(study, name="plain", search=None, evaluations={}, surrogate="")
    conduct.conduct(plain, tmp_path / "runs", EXECUTION, command="")
    before = tmp_path / "runs" / "plain"
    pack(before, tmp_path / "kept")
    assert sorted(packing.unpack(tmp_path / "kept", tmp_path / "again" / "plain")) == sorted(
        entry.experiment.name for entry in plain.entries
    )
    after = tmp_path / "again" / "plain"
    for name in json_files(after):
        assert (after / name).read_bytes() == (before / name).read_bytes(), name
    more = dataclasses.replace(plain.entries[0].experiment, seed=5)
    entries = (*plain.entries, dataclasses.replace(plain.entries[0], experiment=more))
    wider = dataclasses.replace(plain, entries=entries)
    outcome = conduct.conduct(wider, tmp_path / "again", EXECUTION, command="")
    assert len(outcome.finished) == 5 and not outcome.failed
    assert [path.parent.name for path in after.glob("*/checkpoint.pt")] == [more.name]
    assert packing.unpack(tmp_path / "kept", after) == []  # what is there is kept
    killed = before / plain.entries[0].experiment.name / "records.jsonl"
    killed.write_text("".join(killed.read_text().splitlines(keepends=True)[:-1]))
    pack(before, tmp_path / "cut")
    assert len(packing.unpack(tmp_path / "cut", tmp_path / "rest")) == len(plain.entries) - 1
    pack(loose, tmp_path / "evaluated")
    assert packing.unpack(tmp_path / "evaluated", tmp_path / "none") == []
    with pytest.raises(ValueError, match="does not describe a packed study"):
        packing.unpack(before, tmp_path / "none")


def test_a_packed_study_is_not_gone_on_with(packed: Path) -> None:
    with pytest.raises(ValueError, match="is packed: its runs have no checkpoints"):
        conduct.check(small_study(), packed)


@pytest.mark.usefixtures("no_figures")
def test_runs_from_a_changed_tree_are_counted(tmp_path: Path) -> None:
    study = make_study(tmp_path / "s", rules=("bp", "fa"), seeds=(1, 2), epochs=1)
    environment = next(study.glob("*-fa-1")) / "environment.json"
    records.write_json(environment, records.read_json(environment) | {"git_dirty": True})
    pack(study, tmp_path / "packed")
    assert read_study(tmp_path / "packed").changed_trees == read_study(study).changed_trees == 1
    assert len(records.read_json(tmp_path / "packed" / "study.json")["packed"]["environments"]) == 2
    text = write(tmp_path / "packed", tmp_path / "page").read_text()
    assert "1 of 4 runs from a changed tree" in text
