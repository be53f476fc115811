"""The documents show every verb, and the flags that they name exist. test_docs_examples.py runs
their commands."""

import re
import shlex
from pathlib import Path

import pytest

from apical.bench.cli import main as cli
from apical.bench.cli import parsing

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```sh\n(.*?)^```$", re.M | re.S)


def commands(document: Path) -> list[list[str]]:
    """The words of each `apical` line in the document's shell blocks."""
    blocks = "\n".join(FENCE.findall(document.read_text()))
    lines = [shlex.split(line, comments=True) for line in blocks.splitlines()]
    return [words[1:] for words in lines if words[:1] == ["apical"]]


def test_the_documents_show_every_verb() -> None:
    shown = {words[0] for document in DOCUMENTS for words in commands(document)}
    assert shown == set(cli.VERBS)


def test_flags_named_in_tables_exist(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / "experiments.md").read_text()
    named = {parsing.underscored(option) for option in re.findall(r"`(--[a-z_-]+)", text)}
    for verb in (["train", "--help-all"], ["study", "--help"], ["report", "--help"]):
        with pytest.raises(SystemExit):
            cli.main(verb)
    help_text = capsys.readouterr().out
    assert {"--autocast", "--threads"} <= named
    assert not {flag for flag in named - {"--help_all"} if flag not in help_text}
