"""Every block of docs/your_model.md runs, where the libraries that it imports are installed."""

import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from test_docs_examples import ROOT, python_blocks

PAGE = ROOT / "docs" / "your_model.md"
BLOCKS = dict(python_blocks(PAGE))
IMPORTED = re.compile(r"^(?:import|from) (\w+)", re.M)


@pytest.mark.filterwarnings("ignore")  # of the libraries' own code
@pytest.mark.parametrize("line", BLOCKS)
def test_a_block_of_the_page_runs(
    vision: Any, line: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = BLOCKS[line]
    for library in sorted(set(IMPORTED.findall(code))):
        if library not in ("apical", "torch", "timm"):  # which tests always have
            pytest.importorskip(library)
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("example")
    monkeypatch.setitem(sys.modules, "example", module)
    exec(compile("\n" * line + code, str(PAGE), "exec"), module.__dict__)
