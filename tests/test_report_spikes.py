"""The hybrid attack in tables, image by image, and rasters on the page."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from apical.bench.report import spikes, write
from apical.bench.report.documents import table_markdown
from apical.bench.report.read import read_study
from apical.bench.storage import records
from fake_robust import EPS, IMAGES, add_robustness
from fake_study import make_study

OWN, TWIN, SUBSTITUTE = 150, 90, 60
"""Of 200 images, how many each leaves: the first ones, but the substitute the last ones."""


def digits(bits: str) -> str:
    return f"{int(bits, 2):0{-(-len(bits) // 4)}x}"


def trial(group: str, eps: float, broken: str, **changes: object) -> dict[str, object]:
    row: dict[str, object] = {"group": group, "eps": eps, "on": "all", "role": "usual"}
    row |= {"attacked": digits("1" * IMAGES), "broken": digits(broken), "examples": IMAGES}
    return row | changes


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return spiking(tmp_path_factory.mktemp("studies") / "fake")


def spiking(folder: Path) -> Path:
    make_study(folder, rules=("bp", "fa"), epochs=1, layers=(), published=False, tier="smoke")
    add_robustness(folder)
    for place in folder.glob("*/robustness/*"):
        value = records.read_json(place / "setting.json")
        value["setting"]["net"] = "digits-spiking_mlp-fa-s0-0"
        records.write_json(place / "setting.json", value)
        first = {n: "0" * n + "1" * (IMAGES - n) for n in (OWN, TWIN)}
        last = "1" * (IMAGES - SUBSTITUTE) + "0" * SUBSTITUTE
        for eps in EPS:
            records.append(
                place / "trials.jsonl",
                trial("own", eps, first[OWN]),
                trial("exact", eps, first[TWIN]),
                trial("exact", eps, "1" * IMAGES, on="survivors"),
                trial("exact", eps, "1" * IMAGES, role="large"),
                trial("transfer", eps, last),
                trial("noise", eps, "0" * IMAGES),
            )
        found = dict(np.load(place / "examples.npz"))
        shape = len(found["names"]) + 1, 12, 5
        found |= {"raster_lif1": np.random.RandomState(0).rand(*shape) < 0.3}
        np.savez_compressed(place / "examples.npz", **found)
    return folder


@pytest.fixture
def study(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "fake"))


def let_own_be_stronger(study: Path) -> None:
    """In one net at one radius."""
    (section,) = spikes.sections_of(read_study(study))
    path = next(iter(section.of("fa").values())).folder / "trials.jsonl"
    rows = [r for r in records.read(path) if r["group"] != "transfer"]
    path.unlink()
    records.append(path, *rows, trial("own", EPS[1], "1" * IMAGES))


def test_the_hybrid_breaks_what_either_part_breaks(study: Path) -> None:
    found = read_study(study)
    assert spikes.concerns(found)
    (section,) = spikes.sections_of(found)
    lines = spikes.lines(section)
    for line in lines:
        values = {name: line[name].mean for name in spikes.PARTS}
        # the twin leaves the first 90, transfer the last 60: no image is in both
        assert values == {"noise": 100, "own": 75, "twin": 45, "transfer": 30, "hybrid": 0}
        gaps = {name: line[f"minus {name}"].mean for name in spikes.COMPARED}
        assert gaps == pytest.approx({"twin": 30, "transfer": 45, "hybrid": 75})
        assert not any(spikes.stronger(line, name) for name in spikes.COMPARED)
    assert spikes.seen(lines).endswith(
        "the twin alone FA 9 of 9; transfer alone FA 9 of 9; both together FA 9 of 9."
    )
    assert spikes.weakest(lines) == ""


def test_a_plain_nets_own_gradient_is_the_exact_one(study: Path) -> None:
    """A difference between the two would be 0 by construction: none is shown, nothing is said."""
    (section,) = spikes.sections_of(read_study(study))
    for net in section.of("fa").values():
        rows = [r for r in records.read(net.folder / "trials.jsonl") if r["group"] != "own"]
        (net.folder / "trials.jsonl").unlink()
        records.append(net.folder / "trials.jsonl", *rows)
    (section,) = spikes.sections_of(read_study(study))
    lines = spikes.lines(section)
    for line in (line for line in lines if line.rule == "fa"):
        assert line["own"].mean == line["twin"].mean == 45
        assert line["minus twin"] is None and line["minus hybrid"] is None
    assert spikes.seen(lines).endswith("radii: transfer alone FA 9 of 9.")


def test_where_own_is_stronger_it_is_said(study: Path) -> None:
    let_own_be_stronger(study)
    (section,) = spikes.sections_of(read_study(study))
    lines = spikes.lines(section)
    (line,) = [line for line in lines if spikes.stronger(line, "hybrid")]
    assert (line.rule, line.eps) == ("fa", EPS[1])
    assert spikes.stronger(line, "hybrid") == {1: (0, 0.45)}
    assert spikes.seen(lines).endswith("both together FA 8 of 9.")


def test_the_page_and_the_markdown_show_it(study: Path, tmp_path: Path) -> None:
    let_own_be_stronger(study)
    page = write(study, tmp_path).read_text()
    assert "own gradient against the hybrid attack" in page
    assert "The own gradient was stronger than the hybrid attack here" in page
    assert (tmp_path / "spikes-1.png").stat().st_size > 3000
    text = table_markdown(study)
    assert (
        "| **hybrid** | own minus twin | own minus transfer | own minus hybrid |" in text
        and "Regenerate:" in text
    )


def test_studies_of_other_nets_have_no_such_section(tmp_path: Path) -> None:
    folder = tmp_path / "fake"
    make_study(folder, rules=("bp", "fa"), epochs=1, layers=(), published=False, tier="smoke")
    add_robustness(folder)
    assert not spikes.concerns(read_study(folder))
    assert "hybrid" not in table_markdown(folder)
