"""A table as a value: a column defines how a row is read and shown; three writers, for documents
(Markdown), for pages (the macro `table` of macros.html.j2) and for spreadsheets (CSV)."""

import csv
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from apical.bench.report.names import display_name
from apical.measure.robustness_verdict import Estimate
from apical.measure.statistics import Summary

ABSENT = "–"
"""What a page shows where a cell has nothing to show."""


@dataclass(frozen=True)
class Shown:
    """What a reader sees of a value. A string stands for a `Shown` of this text.

    Attributes: sort: by what pages sort, None for the text. interval: behind the text in brackets;
        on pages below it. strong: in bold type. On pages only: title: shown when pointed at; style:
        a class of page.css; mark: a footnote mark; image: address of a picture above the text;
        share: percentage that colours the cell.
    """

    text: str
    sort: float | str | None = None
    interval: str = ""
    strong: bool = False
    title: str = ""
    style: str = ""
    mark: str = ""
    image: str = ""
    share: float | None = None

    @property
    def key(self) -> str | None:
        """What a page sorts by; "" sorts last in either direction, None stands for the text."""
        sort = self.text if self.sort is None else self.sort
        key = f"{sort:.9g}" if isinstance(sort, float) else str(sort)
        alone = self.text and not (self.interval or self.mark or self.image)
        return None if alone and key == self.text else key

    def markdown(self, brief: bool) -> str:
        text = for_markdown(self.text)
        if self.strong and text:
            text = f"**{text}**"
        return f"{text} [{self.interval}]" if self.interval and not brief else text


@dataclass(frozen=True)
class Column:
    """How one column is read from a row.

    Attributes: head: its title in documents, "" where it is left out there. show: what a reader
        sees: a function of the row, or where the value stands in it, as "published.error", see
        `value_at`: a mean with its interval, a number, a text; None for a column of the CSV file
        only. raw: columns of the CSV file, separated by spaces, as "seed" or "low=summary.low".
        text: of a number that is read by its place. page: its title on pages, default `head` with a
        capital; "" where it is left out there. left: text, aligned left. keep: whether it has
        something to show (the CSV file has all columns). deciding: on pages it follows the rule, so
        that a phone shows it. brief: documents leave its intervals out.
        strong: in bold type, the head in documents and what is read by its place. style: class of
        its cells.
    """

    head: str
    show: Callable[[Any], Shown | str] | str | None = None
    raw: str = ""
    text: Callable[[Any], str] | None = None
    page: str | None = None
    left: bool = False
    keep: bool = True
    brief: bool = False
    strong: bool = False
    style: str = ""
    deciding: bool = False

    @classmethod
    def setting(cls, keep: bool, raw: str = "") -> "Column":
        """The setting of a row, where there are several."""
        return cls("setting", "setting", raw, left=True, keep=keep, style="wrap")

    @classmethod
    def rule(cls, raw: str = "", head: str = "rule") -> "Column":
        """The rule of a row, as its paper writes it; of rows that are rules, the row."""

        def show(row: Any) -> str:
            return display_name(row if isinstance(row, str) else value_at(row, "rule"))

        return cls(head, show, raw, left=True, style="rule")

    @classmethod
    def runs(cls, page: str = "Runs n") -> "Column":
        """How many runs of a row count: "3", or "2 of 3" while some are missing."""
        return cls("n", lambda row: count(row.n, row.planned), page=page)

    @property
    def title(self) -> str:
        return self.head[:1].upper() + self.head[1:] if self.page is None else self.page

    @property
    def css(self) -> str:
        return self.style if self.left else f"num {self.style}".rstrip()

    def cell(self, row: Any) -> Shown:
        assert self.show is not None
        if not isinstance(self.show, str):
            shown = self.show(row)
            return Shown(shown) if isinstance(shown, str) else shown
        value = value_at(row, self.show)
        if hasattr(value, "mean"):
            of = value_at(row, "n") or 0
            return estimate(value, self.text or percent, strong=self.strong, of=of)
        return plain(value, self.text or str, strong=self.strong)


@dataclass(frozen=True)
class Table:
    """Columns and rows. label: what it is, for readers who do not see it. caption: printed above it
    on pages. kind: class of page.css; "sortable" makes its heads buttons. order: key by which pages
    sort the rows, where documents and CSV files keep their order."""

    columns: Sequence[Column]
    rows: Sequence[Any]
    label: str = ""
    caption: str = ""
    kind: str = "sortable"
    order: Callable[[Any], Any] | None = None

    @property
    def page_rows(self) -> Sequence[Any]:
        """The rows in the order of pages."""
        return self.rows if self.order is None else sorted(self.rows, key=self.order)

    @property
    def on_page(self) -> list[Column]:
        """Its columns, the deciding ones behind that of the rule."""
        shown = [c for c in self.columns if c.show and c.keep and c.title]
        others = [c for c in shown if not c.deciding]
        place = 1 + max((at for at, c in enumerate(others) if c.style == "rule"), default=-1)
        return [*others[:place], *(c for c in shown if c.deciding), *others[place:]]

    def markdown(self) -> str:
        """The lines of a Markdown table; text of others stays text."""
        shown = [c for c in self.columns if c.show and c.keep and c.head]
        heads = [Shown(c.head, strong=c.strong).markdown(False) for c in shown]
        lines = ["| " + " | ".join(heads) + " |"]
        lines.append("|" + "|".join("---" if c.left else "---:" for c in shown) + "|")
        for row in self.rows:
            cells = (column.cell(row).markdown(column.brief) for column in shown)
            lines.append("| " + " | ".join(cells) + " |")
        return "\n".join(lines) + "\n"

    def csv(self) -> str:
        """Every number in full precision; text that no spreadsheet runs as a formula."""
        fields = [field.partition("=") for column in self.columns for field in column.raw.split()]
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(name for name, _, _ in fields)
        for row in self.rows:
            cells = (value_at(row, path or name) for name, _, path in fields)
            writer.writerow(map(for_spreadsheet, cells))
        return out.getvalue()


def value_at(row: Any, path: str) -> Any:
    """What stands at "published.error" of a row, of attributes and mappings; None where a part is
    missing."""
    for name in path.split("."):
        row = row.get(name) if isinstance(row, Mapping) else getattr(row, name, None)
    return row


def each(
    keys: Iterable[Any], show: Callable[[Any, Any], Shown | str], head: str = "", **options: Any
) -> list[Column]:
    """A column for each key. show: key and row -> what a reader sees. head, and `page` among the
    options: the title, {} stands for the key."""
    page = options.pop("page", None)
    return [
        Column(head.format(key), partial(show, key), page=page and page.format(key), **options)
        for key in keys
    ]


FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
"""Beginnings of a text that spreadsheets may run; some of them skip the blank ones."""


def for_spreadsheet(value: Any) -> Any:
    """Text that no spreadsheet runs as a formula; other values as they are."""
    return f"'{value}" if isinstance(value, str) and value[:1] in FORMULA else value


def for_markdown(text: str) -> str:
    """Text that stays text in a cell of a Markdown table."""
    for character in "\\|*_`[":
        text = text.replace(character, f"\\{character}")
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("\n", " ")


# Numbers as text


Interval = Summary | Estimate | None
"""A mean with an interval, which may be missing, or nothing."""


def number(value: float | None) -> str:
    """ "0.95"; "" for None."""
    return "" if value is None else f"{value:.2f}"


def minus(text: str) -> str:
    """A number with a real minus in the place of the hyphen."""
    return text.replace("-", "\N{MINUS SIGN}")


def ratio(value: float) -> str:
    """A cosine, or another number without a unit: "-0.95", from 100 on without decimals."""
    return minus(f"{value:.0f}" if abs(value) >= 100 else f"{value:.2f}")


def signed(value: float | None, digits: int = 2) -> str:
    """With its sign."""
    return "" if value is None else minus(f"{value:+.{digits}f}")


def percent(value: float | None) -> str:
    """ "93.2"; "" for None. Zero has no sign."""
    return "" if value is None else f"{round(value, 1) + 0.0:.1f}"


def in_percent(share: float) -> str:
    """A share in [0, 1] as `percent`."""
    return percent(100 * share)


def points(value: float | None) -> str:
    """Percentage points with their sign; zero has none."""
    return percent(value) if value is None or round(value, 1) == 0 else signed(value, 1)


def span(interval: Interval, text: Callable[[float | None], str] = number) -> str:
    """ "0.83 to 0.97"; "" without an interval."""
    if interval is None or interval.low is None:
        return ""
    return f"{text(interval.low)} to {text(interval.high)}"


def share(interval: Any, text: Callable[[float | None], str] = number) -> str:
    """The interval of a percentage, cut off at 0 and 100; "" for a point, as equal runs give where
    the size of the test set is unknown."""
    if interval is None or interval.low is None or math.isclose(interval.low, interval.high):
        return ""
    return span(interval.within(0, 100), text)


def plain(value: Any, text: Callable[[Any], str] = str, **more: Any) -> Shown:
    """A number, by which pages sort; nothing for None. more: further fields."""
    return Shown("", **more) if value is None else Shown(text(value), value, **more)


def mean(interval: Interval, text: Callable[[float | None], str] = number) -> Shown:
    """The mean alone."""
    return plain(interval and interval.mean, text)


def estimate(
    interval: Any,
    text: Callable[[float | None], str] = percent,
    *,
    strong: bool = False,
    of: int = 0,
) -> Shown:
    """The mean with its interval, which is none where it is a point, as of equal differences on a
    test set of unknown size; ‡ marks one over the images of a single net. of: runs of the row;
    where not all of them count, as in a difference on the seeds of both, how many do."""
    if interval is None:
        return Shown("")
    mark = " ‡" if getattr(interval, "over", "") == "images" else ""
    point = interval.low is not None and math.isclose(interval.low, interval.high)
    between = span(interval, text) * (not point or not interval.mean)
    fewer = f" (n = {interval.n})" * (interval.n < of)
    return Shown(text(interval.mean) + fewer, interval.mean, between and between + mark, strong)


def count(n: int, planned: int) -> Shown:
    """ "3", or "2 of 3" while runs are missing."""
    return Shown(str(n) if n == planned else f"{n} of {planned}", n)


# Settings as text


def flatten(value: Mapping[str, Any], prefix: str = "", *, empty: bool = False) -> dict[str, Any]:
    """Nested mappings as one level with dotted keys; empty ones vanish, or stay.

    >>> flatten({"optimizer": {"name": "sgd", "lr": 0.1}})
    {'optimizer.name': 'sgd', 'optimizer.lr': 0.1}
    """
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping) and (item or not empty):
            flat |= flatten(item, f"{prefix}{key}.", empty=empty)
        else:
            flat[f"{prefix}{key}"] = item
    return flat


def text(value: Any) -> str:
    """A value of a setting as a reader would write it: lists and mappings without brackets."""
    if value is None or value == [] or value == "":
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {text(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(text(item) for item in value)
    return str(value)
