"""The report on attacked hash nets: numbers by hand, words, pictures, what is missing."""

import csv
import io
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apical.bench.report import pictures, retrieval, sections, table_markdown, write
from apical.bench.report.read import read_study
from apical.bench.storage import records
from fake_study import make_study, rewrite

CLEAN = {"bp": 0.98, "usf": 0.97, "fa": 0.9}
LEFT = {"bp": (0.4, 0.4), "usf": (0.7, 0.41), "fa": (0.88, 0.61)}
"""By the own and the exact gradient at the larger radius; half way to clean at the smaller one."""
RADII = (0.05, 0.1)
T_975 = 4.302652729911275
"""Of Student's t with 2 degrees of freedom: three nets."""


def mean(kind: str, value: float, **told: Any) -> dict[str, Any]:
    return {"kind": kind, **told, "map": value, "low": value - 0.05, "high": value + 0.05}


def shift(seed: int) -> float:
    """What a seed adds to everything."""
    return 0.01 * (seed - 2)


def rows(rule: str, seed: int) -> list[dict[str, Any]]:
    clean = CLEAN[rule] + shift(seed)
    first = {"queries": 10_000, "norm": "linf", "bits": 16, "k": None, "database": 1437}
    first |= {"classes": 10, "constant_bits": 1, "inverted_map": 0.05, "target_map": 0.08}
    made = [mean("clean", clean) | first | {"precision2": 0.9}]
    for place, eps in enumerate(RADII):
        own, exact = ((v + clean) / 2 if place == 0 else v + shift(seed) for v in LEFT[rule])
        seen = {"flipped": 0.2, "linf": eps, "l2": 0.7, "mse": 0.01}
        made.append(mean("attack", clean, attack="noise", tanh="", source="none", eps=eps) | seen)
        for source, left in (("own", own), ("exact", exact)):
            if rule != "bp" or source == "exact":
                told = {"attack": "HAG", "tanh": "plain", "source": source, "eps": eps}
                made.append(mean("attack", left, **told) | seen)
            for attack in ("HAG", "SDHA", "both"):
                made.append(mean("map", left, eps=eps, attack=attack, source=source))
            made.append(mean("targeted", 0.3 + shift(seed), eps=eps, source=source))
        gap = {"mean": own - exact, "low": own - exact - 0.02, "high": own - exact + 0.02}
        for attack in ("HAG", "SDHA", "both"):
            told = {"attack": attack, "eps": eps, "own": own, "exact": exact}
            made.append({"kind": "gap", **told, **gap})
        made.append(mean("map", exact - 0.02, eps=eps, attack="both", source="worst"))
    return [*made, {"kind": "end"}]


def examples(seed: int = 0) -> dict[str, Any]:
    chance = np.random.default_rng(seed)
    labels = chance.integers(0, 10, (3, 4, 8))
    labels[0] = np.array([3, 1, 4, 5])[:, None]  # clean queries find their own class
    return {
        "x": chance.random((4, 1, 8, 8), np.float32),
        "labels": np.array([3, 1, 4, 5]),
        "names": np.array(["SDHA / own", "HAG / exact"]),
        "eps": 0.1,
        "adv": chance.random((2, 4, 1, 8, 8), np.float32),
        "precision": np.array([[1.0, 0.9, 1.0, 1.0], [0.5] * 4, [0.123] * 4]),
        "found": chance.integers(0, 256, (3, 4, 8, 1, 8, 8), np.uint8),
        "found_labels": labels,
    }


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return hashed(tmp_path / "hashed")


def hashed(folder: Path) -> Path:
    make_study(
        folder, rules=tuple(CLEAN), settings=("digits, CSQ 16 bits",), epochs=2,
        tier="smoke", published=False, notes=("A note.",),
    )  # fmt: skip
    described = records.read_json(folder / "study.json")
    listed = []
    for run in described["runs"]:
        place = folder / run["folder"] / "retrieval" / "abc"
        place.mkdir(parents=True)
        setting = {"data": "digits", "queries": 10_000, "known": 50, "norm": "linf", "steps": 30}
        records.write_json(place / "setting.json", {"setting": setting | {"eps": list(RADII)}})
        records.append(place / "trials.jsonl", {"kind": "x"}, {"kind": "x"})
        records.append(place / "records.jsonl", *rows(run["rule"], run["seed"]))
        np.savez(place / "examples.npz", **examples(run["seed"]))
        listed.append({**run, "evaluation": "retrieval/abc"})
    records.write_json(folder / "study.json", described | {"retrieval": listed})
    return folder


def section_of(study: Path) -> sections.Section:
    (found,) = sections.sections(read_study(study).retrieval)
    return found


def test_means_intervals_and_differences_by_hand(study: Path) -> None:
    lines = {line.rule: line for line in retrieval.lines(section_of(study), 0.1)}
    half = T_975 * 1.0 / math.sqrt(3)  # the standard deviation over seeds is 1 point
    usf = lines["usf"]
    assert (usf.n, usf.planned) == (3, 3)
    for name, value in (("HAG own", 70.0), ("SDHA exact", 41.0), ("worst", 39.0)):
        found = usf[name]
        assert found.mean == pytest.approx(value)
        assert (found.low, found.high) == pytest.approx((value - half, value + half))
    assert usf["clean"].high == pytest.approx(97 + half)
    assert lines["bp"]["clean"].high == 100.0  # cut off
    # three equal gaps, each of which its queries give to within 2 points, 1.96 deviations
    half *= 2 / 1.96
    assert (usf["gap"].mean, usf["gap"].low) == pytest.approx((29, 29 - half))
    assert usf["worst_minus_bp"].mean == pytest.approx(1.0)
    assert usf["clean_minus_bp"].mean == pytest.approx(-1.0)
    assert lines["bp"]["worst_minus_bp"] is None
    assert {rule: line.word for rule, line in lines.items()} == {
        "bp": "faithful", "usf": "masked", "fa": "masked",
    }  # fmt: skip
    assert {rule for rule, line in lines.items() if line.differs} == {"fa"}


@pytest.mark.usefixtures("no_figures")
def test_words(study: Path) -> None:
    section = section_of(study)
    told = retrieval.conclusion(retrieval.lines(section, 0.1))
    assert "At radius 0.1 an attacker who follows a net's own gradient" in told
    assert "uSF by +29.0, FA by +27.0 points" in told
    assert "against BP (paired, Holm-corrected): FA +21.0 points" in told
    assert "10000 queries of digits" in write(study).read_text()
    moved = [replace(n, seed=n.seed + 10) if n.rule == "fa" else n for n in section.evaluations]
    apart = retrieval.conclusion(retrieval.lines(replace(section, evaluations=tuple(moved)), 0.1))
    assert apart.endswith("Not compared, fewer than two seeds in common with BP: FA.")
    plain = [line for line in retrieval.lines(section, 0.1) if line.rule == "bp"]
    assert "no rule's own gradient leaves over 5 points" in retrieval.conclusion(plain)


def test_a_gap_is_masked_after_the_correction_over_radii(study: Path) -> None:
    """One net whose gap has a p-value of 0.04 at each of two radii: 0.08 after Holm."""
    for p, word in ((0.04, "undecided"), (0.02, "masked")):
        for place in study.glob("*/retrieval/abc/records.jsonl"):
            found = [
                row | {"mean": 0.08, "low": 0.002, "high": 0.158, "p": p}
                if row["kind"] == "gap"
                else row
                for row in records.read(place)
            ]
            rewrite(place.parent, found)
        section = section_of(study)
        first = tuple(net for net in section.evaluations if net.seed == 1)
        alone = replace(section, evaluations=first)
        assert {line.word for line in retrieval.lines(alone, 0.1)} == {word}


def test_one_net_has_an_interval_over_queries(study: Path) -> None:
    described = records.read_json(study / "study.json")
    one = [entry for entry in described["retrieval"] if entry["seed"] == 2]
    records.write_json(study / "study.json", described | {"retrieval": one})
    line = next(x for x in retrieval.lines(section_of(study), 0.1) if x.rule == "usf")
    worst = line["worst"]
    assert (worst.n, worst.over) == (1, "images")
    assert (worst.low, worst.high) == pytest.approx((34.0, 44.0))
    assert (line["gap"].low, line["gap"].high) == pytest.approx((27.0, 31.0))


def test_csv_holds_every_number(study: Path) -> None:
    text = retrieval.numbers_csv([section_of(study)]).csv()
    table = list(csv.DictReader(io.StringIO(text)))
    found = {(r["rule"], r["eps"], r["value"]): r for r in table}
    assert float(found["usf", "0.1", "SDHA own"]["mean"]) == pytest.approx(70.0)
    assert float(found["fa", "0.1", "own minus exact"]["mean"]) == pytest.approx(27.0)
    assert float(found["fa", "0.05", "worst minus BP"]["mean"]) == pytest.approx(6.5)
    assert found["usf", "0.1", "targeted own"]["interval_over"] == "nets"
    attacks = list(csv.DictReader(io.StringIO(retrieval.attacks_csv([section_of(study)]).csv())))
    assert len(attacks) == 2 * (2 + 3 + 3)
    assert {row["n"] for row in attacks} == {"3"}


def test_found_images_are_marked_by_their_labels(study: Path) -> None:
    found, problems = pictures.answers(section_of(study))
    assert not problems
    values = examples(1)
    # every attack leaves the same of each query; the second is the poorest from the start
    for query, sheet in zip([0, 2], found, strict=False):
        assert (sheet.rule, sheet.seed, sheet.eps) == ("bp", 1, 0.1)
        names = [row[0] for row in sheet.rows]
        assert names == ["clean", "SDHA, own gradient", "HAG, exact gradient"]
        for place, (_, _, *nearest, precision) in enumerate(sheet.rows):
            labels = values["found_labels"][place, query][:6]
            assert [each.text for each in nearest] == [str(label) for label in labels]
            right = labels == values["labels"][query]
            assert [each.wrong for each in nearest] == (~right).tolist()
            assert precision == f"{100 * values['precision'][place][query]:.1f}"
            pixels = values["found"][place, query, 0, 0] / 255
            assert np.allclose(nearest[0].pixels[..., 1], pixels)


@pytest.mark.usefixtures("no_figures")
def test_what_is_missing_or_damaged_is_told(study: Path) -> None:
    described = records.read_json(study / "study.json")
    places = [study / e["folder"] / e["evaluation"] for e in described["retrieval"]]
    (places[0] / "records.jsonl").unlink()
    shutil.rmtree(places[1])
    (places[2] / "examples.npz").write_bytes(b"no archive")
    for place in places[4:6]:  # of the second rule all but one
        (place / "examples.npz").unlink()
    (places[3] / "setting.json").write_text("{}")
    text = write(study).read_text()
    assert "3 of 9 evaluations of retrieval under attack are missing" in text
    for wanted in (
        "unfinished · 2 attacks done", ": not started", "failed · unreadable",
        "Could not be shown", "cannot be read",
    ):  # fmt: skip
        assert wanted in text, wanted
    assert "1 of 3" in text
    assert str(study) not in text


@pytest.mark.usefixtures("no_figures")
def test_a_run_alone_shows_its_evaluations(study: Path) -> None:
    run = next(iter(records.read_json(study / "study.json")["retrieval"]))["folder"]
    text = write(study / run).read_text()
    assert "Retrieval under attack" in text
    assert "no rule&#39;s own gradient" in text


@pytest.mark.usefixtures("no_figures")
def test_the_anchor_attack_is_shown_where_it_was_run(study: Path) -> None:
    before = table_markdown(study)
    assert "Anchor" not in before and "Anchor" not in write(study).read_text()
    for entry in records.read_json(study / "study.json")["retrieval"]:
        path = study / entry["folder"] / entry["evaluation"] / "records.jsonl"
        found = []
        for row in records.read(path):
            row = {**row, "attack": "any"} if row.get("attack") == "both" else row
            found.append(row)
            if row["kind"] == "map" and row["attack"] == "SDHA":
                found.append({**row, "attack": "Anchor", "map": row["map"] - 0.1})
        path.unlink()
        records.append(path, *found)
    after = table_markdown(study)
    head, _, first = after.splitlines()[2:5]
    place = [cell.strip() for cell in head.split("|")].index("Anchor own")
    assert first.split("|")[place].strip() == "59.0"  # BP at the smaller radius: 69 less 10
    assert "HAG, SDHA or Anchor, whichever" in after
    page = write(study).read_text()
    assert "Anchor, exact gradient" in page and "SDHA and Anchor use 50 codes" in page
