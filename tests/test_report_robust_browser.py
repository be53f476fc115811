"""The robustness part of a page in a real browser: silent, nothing cut off, readable if dark."""

import pytest

from apical.bench.report import write
from fake_robust import add_robustness
from fake_study import make_study
from test_report_browser import CLICK, COLUMN


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "rob"
    rules = ("bp", "fa", "usf")
    make_study(folder, rules=rules, epochs=1, layers=(), published=False, tier="smoke")
    return write(add_robustness(folder, rules_tried=("fa", "usf"), channels=3), png=False)


def test_the_page_is_silent_and_asks_for_nothing(browser, page):
    browser.open(page)
    asked = [url for url in browser.requests() if not url.startswith("data:")]
    assert asked == [page.absolute().as_uri()]
    assert browser.complaints() == []


def test_the_headline_sorts_by_number_not_by_its_interval(browser, page):
    browser.open(page)
    browser.evaluate(f"{CLICK}('Own gradient (papers)')")
    order, shown = browser.evaluate(f"{COLUMN}('Own gradient (papers)')")
    assert order == "ascending"
    numbers = [float(text.split()[0][:4]) for text in shown]
    assert numbers == sorted(numbers) and len(set(numbers)) > 1


def test_a_phone_shows_the_deciding_columns(browser, page):
    browser.emulate(width=390)
    browser.open(page)
    shown = browser.evaluate(
        "[...document.querySelector('.scroll:has(.verdict) thead tr').cells]"
        ".filter(c => c.getBoundingClientRect().right <= 390).map(c => c.textContent.trim())"
    )
    assert shown[:3] == ["Rule", "Worst case", "Verdict"]


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_runs_over_the_edge_and_text_is_readable(browser, page, width):
    browser.emulate(width=width)
    browser.open(page)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    smallest = browser.evaluate(
        "Math.min(...[...document.querySelectorAll('.radius svg text')]"
        ".map(t => { const m = t.getScreenCTM();"
        "return parseFloat(getComputedStyle(t).fontSize) * Math.hypot(m.a, m.b); }))"
    )
    assert smallest >= 8


def test_labels_lie_inside_their_figures(browser, page):
    browser.emulate(width=1280)
    browser.open(page)
    outside = browser.evaluate(
        "[...document.querySelectorAll('.radius svg')].flatMap(svg => {"
        "const f = svg.getBoundingClientRect();"
        "return [...svg.querySelectorAll('text')].filter(t => {"
        "const r = t.getBoundingClientRect();"
        "return r.left < f.left - 1 || r.right > f.right + 1 || r.bottom > f.bottom + 1; })"
        ".map(t => t.textContent); })"
    )
    assert outside == []


def test_pictures_are_shown_pixel_by_pixel(browser, page):
    browser.open(page)
    shown = browser.evaluate(
        "[...document.querySelectorAll('.examples img')].map(i =>"
        "[i.complete, i.naturalWidth, i.width >= 48, getComputedStyle(i).imageRendering])"
    )
    assert len(shown) == 3 * 3 * 7
    assert set(map(tuple, shown)) == {(True, 8, True, "pixelated")}


@pytest.mark.parametrize("dark", [False, True])
def test_numbers_of_the_heat_map_stand_out_from_their_cells(browser, page, dark):
    browser.emulate(width=1280, dark=dark)
    browser.open(page)
    contrasts = browser.evaluate(
        """(() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const light = colour => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    const linear = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map(v => v / 255)
      .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  return [...document.querySelectorAll(".heat td.num")].map(cell => {
    const style = getComputedStyle(cell);
    const [a, b] = [light(style.color), light(style.backgroundColor)].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
  });
})()"""
    )
    assert len(contrasts) == 9
    assert min(contrasts) >= 4.5
    assert max(contrasts) - min(contrasts) > 1  # the scale is seen
