"""The documents show every verb, and the flags that they name exist. test_docs_examples.py runs
their commands."""

import re
import shlex
from pathlib import Path

import pytest

from apical.bench.cli import main as cli

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```sh\n(.*?)^```$", re.M | re.S)


def commands(document: Path) -> list[list[str]]:
    """The words of each `apical` line in the document's shell blocks."""
    blocks = "\n".join(FENCE.findall(document.read_text()))
    lines = [shlex.split(line, comments=True) for line in blocks.splitlines()]
    return [words[1:] for words in lines if words[:1] == ["apical"]]


<<<<<<< HEAD
=======
@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    done = types.SimpleNamespace(finished=[], failed=[])
    monkeypatch.setattr(loop, "run", lambda *_, **__: {})
    monkeypatch.setattr(conduct, "conduct", lambda *_, **__: done)
    sweeps = importlib.import_module("apical.bench.sweep.sweep")
    monkeypatch.setattr(sweeps, "sweep", lambda *_, **__: done)
    monkeypatch.setattr(
        "apical.bench.studies.cost.estimate", lambda *_: types.SimpleNamespace(text=str)
    )
    most = types.SimpleNamespace(told=str)
    monkeypatch.setattr("apical.bench.studies.attack_cost.most", lambda *_: most)
    net = types.SimpleNamespace(digest="", name="net")
    monkeypatch.setattr("apical.bench.evaluate.trained_net.from_run", lambda *_, **__: net)
    monkeypatch.setattr("apical.bench.evaluate.trained_net.from_model", lambda *_, **__: net)
    monkeypatch.setattr("apical.bench.evaluate.robustness.evaluate", lambda *_, **__: [])
    monkeypatch.setattr("apical.bench.evaluate.robustness.audits", lambda *_, **__: [])
    for name in ("print_rows", "print_audits"):
        monkeypatch.setattr(f"apical.bench.cli.robustness.{name}", lambda *_: None)
    monkeypatch.setattr(
        importlib.import_module("apical.bench.report"), "write", lambda *_: ["page"]
    )
    monkeypatch.setattr("webbrowser.open", lambda *_: True)
    monkeypatch.setattr(apical, "check_rule", lambda *_: None)
    mine = types.ModuleType("my_package.my_rules")
    mine.SparseFA = rules.FA  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_package", types.ModuleType("my_package"))
    monkeypatch.setitem(sys.modules, "my_package.my_rules", mine)
    study = types.ModuleType("my_study")
    study.make = studies.STUDIES["smoke"]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_study", study)
    binary = types.ModuleType("apical.rules.binary")
    binary.BinaryFA = rules.FA  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "apical.rules.binary", binary)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "document", [d for d in DOCUMENTS if commands(d)], ids=lambda p: str(p.relative_to(ROOT))
)
@pytest.mark.usefixtures("no_work")
def test_the_commands_of_a_document_are_understood(
    document: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in commands(document):
        end = words.index(">") if ">" in words else len(words)
        words, target = words[:end], "".join(words[end + 1 :])
        try:
            status = cli.main(words)
        except SystemExit as stop:  # --print_config ends the program
            status = stop.code
        printed = capsys.readouterr()
        assert status in (0, None), f"{words}: {printed.err}"
        if target:
            Path(target).write_text(printed.out)


>>>>>>> scale
def test_the_documents_show_every_verb() -> None:
    shown = {words[0] for document in DOCUMENTS for words in commands(document)}
    assert shown == set(cli.VERBS)


def test_flags_named_in_tables_exist(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / "experiments.md").read_text()
    named = set(re.findall(r"`(--[a-z_]+)", text))
    with pytest.raises(SystemExit):
        cli.main(["train", "--help-all"])
    help_text = capsys.readouterr().out
    assert {"--autocast", "--threads"} <= named
    assert not {flag for flag in named if flag not in help_text}
