"""A golden page of each kind: all its text, and its table for documents, as they stood.

`APICAL_GOLDEN=write pytest tests/test_report_pages.py` writes them anew; read the difference. The
figures are not among it: other tests look at what they draw.
"""

import os
import re
from collections.abc import Callable
from html import unescape
from pathlib import Path

import pytest

from apical.bench.report import table_markdown, write
from apical.bench.storage import records
from fake_robust import add_robustness, make_evaluation
from fake_study import make_study, rewrite
from test_memory_runs import study as solved
from test_report_curves import courses
from test_report_diagnostics import measured
from test_report_flow import make as sequences
from test_report_hash import hashed
from test_report_spikes import spiking
from test_report_tuning import fine_tuned

GOLDEN = Path(__file__).parent / "golden"
BLOCKS = "p|li|tr|h1|h2|h3|div|summary|dt|dd|caption|ul|table|figcaption|title|pre"


def results(folder: Path) -> Path:
    """Two settings with published values; of one rule a run failed, one is under way."""
    settings = ("MNIST LeNet SGD", "MNIST LeNet Adam")
    make_study(folder, rules=("bp", "fa", "dfa"), settings=settings, epochs=3, layers=("conv",))
    failed, going = sorted(folder.glob("s0-*"))[:2]
    rewrite(failed, [{"kind": "stopped", "reason": "non-finite loss", "epoch": 2, "step": 7}])
    epochs = [row for row in records.read(going / "records.jsonl") if row["kind"] == "epoch"]
    rewrite(going, epochs[:2])
    value = records.read_json(folder / "study.json")
    value["search"] = [
        {"setting": settings[0], "rule": rule, "lr": 0.01, "at_edge": rule == "fa"}
        | {"tries": [{"lr": 0.01, "val_acc": 0.975}, {"lr": 0.1, "reason": "non-finite loss"}]}
        for rule in ("bp", "fa")
    ]
    records.write_json(folder / "study.json", value)
    return folder


def attacked(folder: Path) -> Path:
    rules = ("bp", "fa", "usf")
    make_study(folder, rules=rules, epochs=1, layers=(), published=False, tier="smoke")
    add_robustness(folder)
    lost = next(iter(sorted(folder.glob("*/robustness/*"))))
    for file in lost.iterdir():
        file.unlink()
    return folder


def crossed(folder: Path) -> Path:
    make_study(folder, rules=("bp", "fa"), epochs=1, layers=(), published=False, tier="smoke")
    return add_robustness(folder, rules_tried=("fa",))


def alone(folder: Path) -> Path:
    """One run with an evaluation of its robustness."""
    make_study(folder, rules=("dfa",), seeds=(1,), epochs=3, layers=("conv", "fc"))
    (run,) = folder.glob("s0-*")
    make_evaluation(run / "robustness" / "a", "dfa", 1)
    return run


KINDS: dict[str, Callable[[Path], Path]] = {
    "results": results,
    "courses": courses,
    "diagnostics": measured,
    "steps-to-solve": solved,
    "sequences": sequences,
    "fine-tuning": fine_tuned,
    "robustness": attacked,
    "robustness-crossed": crossed,
    "retrieval": hashed,
    "spikes": spiking,
    "run": alone,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("no_figures")
def test_the_page_and_the_document_are_as_they_stood(kind: str, tmp_path: Path) -> None:
    folder = KINDS[kind](tmp_path / "study")
    text = text_of(write(folder).read_text())
    if kind != "run":
        text += f"\n== document ==\n{table_markdown(folder)}"
    names = sorted(file.name for file in (folder / "report").iterdir())
    text += f"\n== files ==\n{' '.join(names)}\n"
    golden = GOLDEN / f"{kind}.txt"
    if os.environ.get("APICAL_GOLDEN") == "write":
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(text)
    assert text == golden.read_text()


def text_of(html: str) -> str:
    """What a reader sees and is told when pointing: a line for each block, cells with bars."""
    html = re.sub(r"<(style|script|svg).*?</\1>", "", html, flags=re.S)
    html = re.sub(r'<(?!img)([^>]*) title="([^"]*)"[^>]*>', r"<\1>{\2} ", html)
    html = re.sub(r'<img[^>]* alt="([^"]*)"[^>]*>', r"[\1] ", html)
    html = re.sub(r"\s+", " ", html)
    html = re.sub(rf"</?({BLOCKS})\b[^>]*>", "\n", html)
    html = re.sub(r"</t[dh]>", " |", html)
    lines = (
        re.sub(r"\s+", " ", line).strip() for line in re.sub(r"<[^>]+>", " ", html).split("\n")
    )
    return "\n".join(unescape(line) for line in lines if line) + "\n"
