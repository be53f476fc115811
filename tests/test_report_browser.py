"""The report in a real browser: silent, offline, sortable, visible, on desktop and phone."""

import pytest

from apical.bench.report import write
from apical.bench.storage import records
from fake_study import make_study
from test_report import HOSTILE


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "study"
    settings = ("MNIST LeNet SGD", HOSTILE)
    make_study(folder, settings=settings, epochs=3, layers=("conv", HOSTILE), title=HOSTILE)
    study = records.read_json(folder / "study.json")
    tries = [{"lr": rate, "val_acc": 0.8} for rate in (0.003, 0.01, 0.03, 0.1, 0.3)]
    chosen = {"rule": "fa", "lr": 0.1, "tries": tries}
    study["search"] = [chosen | {"setting": setting} for setting in settings]
    records.write_json(folder / "study.json", study)
    return write(folder, png=False)


COLUMN = """(name => {
  const table = document.querySelector("table.sortable");
  const heads = [...table.tHead.rows[0].cells];
  const column = heads.findIndex(head => head.textContent.trim() === name);
  return [heads[column].getAttribute("aria-sort"),
          [...table.tBodies[0].rows].map(row => row.cells[column].textContent.trim())];
})"""
CLICK = """(name => [...document.querySelectorAll("table.sortable th button")]
  .find(button => button.textContent.trim() === name).click())"""


def test_the_page_is_silent_and_asks_for_nothing(browser, page):
    browser.open(page)
    assert browser.requests() == [page.absolute().as_uri()]
    assert browser.complaints() == []
    assert browser.evaluate("window.pwned === undefined")
    assert browser.evaluate("document.title").startswith("<script>")


def test_the_listener_records_errors_and_requests(browser, tmp_path):
    """The check of the checks: a bad page is caught."""
    bad = tmp_path / "bad.html"
    bad.write_text("<img src='gone.png'><script>console.error('x'); missing()</script>")
    browser.open(bad)
    assert len(browser.requests()) == 2
    assert len(browser.complaints()) >= 2


def test_a_click_on_a_heading_sorts(browser, page):
    browser.open(page)
    _, original = browser.evaluate(f"{COLUMN}('Test error %')")
    for state, expected in (
        ("ascending", sorted(map(float, original))),
        ("descending", sorted(map(float, original), reverse=True)),
        ("none", [float(text) for text in original]),
    ):
        browser.evaluate(f"{CLICK}('Test error %')")
        order, shown = browser.evaluate(f"{COLUMN}('Test error %')")
        assert order == state
        assert [float(text) for text in shown] == expected


def test_empty_cells_stay_last_in_either_direction(browser, page):
    """Only the first setting has published values."""
    browser.open(page)
    for _ in ("ascending", "descending"):
        browser.evaluate(f"{CLICK}('Published %')")
        _, shown = browser.evaluate(f"{COLUMN}('Published %')")
        assert shown[6:] == ["–"] * 6


@pytest.mark.parametrize("width", [1200, 360])
def test_figures_are_visible_and_nothing_runs_over_the_edge(browser, page, width):
    browser.emulate(width=width)
    browser.open(page)
    sizes = browser.evaluate(
        "[...document.querySelectorAll('figure svg')]"
        ".map(s => { const r = s.getBoundingClientRect(); return [r.width, r.height]; })"
    )
    assert len(sizes) == 2 * (1 + 3 + 2 * 4 + 2 + 1)
    assert all(w > 100 and h > 80 for w, h in sizes)
    paths = browser.evaluate(
        "[...document.querySelectorAll('figure svg')]"
        ".filter(s => s.querySelectorAll('path').length < 8).length"
    )
    assert paths == 0
    assert browser.evaluate("document.documentElement.scrollWidth") <= width


def test_text_in_figures_is_large_enough_on_a_phone(browser, page):
    browser.emulate(width=360)
    browser.open(page)
    smallest = browser.evaluate(
        "Math.min(...[...document.querySelectorAll('figure svg text')]"
        ".map(t => { const m = t.getScreenCTM();"
        "return parseFloat(getComputedStyle(t).fontSize) * Math.hypot(m.a, m.b); }))"
    )
    assert smallest >= 8


def test_numbers_below_a_figure_do_not_overlap(browser, page):
    for width in (1200, 360):
        browser.emulate(width=width)
        browser.open(page)
        assert browser.evaluate(OVERLAPS) == []


OVERLAPS = """[...document.querySelectorAll('figure svg')].flatMap(svg => {
  const texts = [...svg.querySelectorAll('text')].map(t => [t, t.getBoundingClientRect()]);
  return texts.flatMap(([t, a], at) => texts.slice(at + 1).filter(([u, b]) =>
    Math.min(a.right, b.right) - Math.max(a.left, b.left) > 0.5 &&
    Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 0.5 * a.height)
    .map(([u]) => t.textContent + ' and ' + u.textContent)); })"""


def test_dark_mode_changes_paper_and_ink(browser, page):
    ask = "getComputedStyle(document.body).backgroundColor"
    text = "getComputedStyle(document.querySelector('figure svg text')).fill"
    browser.open(page)
    browser.emulate(width=1200)
    light = browser.evaluate(ask), browser.evaluate(text)
    browser.emulate(width=1200, dark=True)
    dark = browser.evaluate(ask), browser.evaluate(text)
    assert light[0] == "rgb(255, 255, 255)"
    assert dark[0] == "rgb(20, 23, 28)"
    assert light[1] != dark[1]


def test_the_index_opens_silently_and_leads_to_the_studies(browser, tmp_path):
    for name in ("first", "second"):
        make_study(tmp_path / name, rules=("bp",), seeds=(1, 2), epochs=1, layers=())
    browser.open(write(tmp_path, png=False))
    assert browser.complaints() == []
    links = browser.evaluate("[...document.querySelectorAll('main a')].map(a => a.pathname)")
    assert [link.split("/")[-2] for link in links] == ["first", "second"]
