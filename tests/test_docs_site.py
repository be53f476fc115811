"""The gallery runs; the pages that Sphinx built have no broken link and no empty text."""

import os
import re
import runpy
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import torch

DOCS = Path(__file__).resolve().parents[1] / "docs"
SAID = {
    "attack_honestly": r"own: masked\.[^\n]*\nexact: undecided\.",
    "first_fa_net": r"frozen test error (1\d|2\d|3\d|4\d)\.",
    "own_rule": r"(?s)keeps the contract.*loss after each epoch: [12]\S* .* 0\.\d+",
}
"""What each script of the gallery prints."""


@pytest.mark.parametrize("script", sorted((DOCS / "gallery").glob("*.py")), ids=lambda p: p.stem)
def test_the_scripts_of_the_gallery_run_and_say_what_their_text_says(
    script: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        runpy.run_path(str(script), run_name="__main__")
    printed = capsys.readouterr().out
    assert re.search(SAID[script.stem], printed), printed
    assert f"gallery/{script.name}" in (DOCS / "gallery.md").read_text()


class Page(HTMLParser):
    """Anchors and links of a page, and the links without text or picture."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.empty: list[str] = []
        self._open: list[str] = []
        self._text = ""
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.ids |= {value for key in ("id", "name") if (value := values.get(key))}
        if tag == "a" and values.get("href"):
            self.links.append(values["href"] or "")
            self._open, self._text = [values["href"] or ""], values.get("aria-label") or ""
        elif tag in ("img", "svg"):
            self._text += "picture"

    def handle_data(self, data: str) -> None:
        self._text += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "a" and self._open:
            if not self._text.strip():
                self.empty += self._open
            self._open = []


def broken_links(root: Path) -> list[str]:
    """Internal links of the pages of a built site that lead nowhere, and links without a text."""
    pages = {path: Page(path) for path in root.rglob("*.html")}
    found = []
    for path, page in pages.items():
        found += [f"{path.name}: a link to {link} has no text" for link in page.empty]
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchors = pages[target].ids if target in pages else None
            if not target.exists() or (
                parts.fragment and anchors is not None and unquote(parts.fragment) not in anchors
            ):
                found.append(f"{path.relative_to(root)}: {link}")
    return found


def test_broken_links_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<h1 id="top">A</h1><a href="#top">up</a><a href="b.html#x">b</a><a href="c.html">c</a>'
        '<a href="#none">n</a><a href="b.html"></a><a href="https://example.org">out</a>'
    )
    (tmp_path / "b.html").write_text('<p id="x">B</p>')
    assert broken_links(tmp_path) == [
        "a.html: a link to b.html has no text", "a.html: c.html", "a.html: #none",
    ]  # fmt: skip


@pytest.mark.skipif("APICAL_HTML" not in os.environ, reason="make docs sets it to the built pages")
def test_the_built_pages_have_no_broken_link() -> None:
    root = Path(os.environ["APICAL_HTML"])
    assert (root / "index.html").exists() and not broken_links(root)
