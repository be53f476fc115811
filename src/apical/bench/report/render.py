"""Figures as SVG that follows the theme of the page, and as PNG for print."""

import io
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apical.bench.report.colours import INK, LINE, SOFT, Look, line_style, variables
from apical.bench.report.table import Table
from apical.bench.storage.records import write_bytes

XLINK = "http://www.w3.org/1999/xlink"
FONT: dict[str, Any] = {"font.size": 8, "font.family": "DejaVu Sans", "axes.unicode_minus": True}
TICKS = {"color": SOFT, "labelsize": 8, "major.size": 2.5, "major.width": 0.6}
SETTINGS = FONT | {
    "axes.edgecolor": SOFT,
    "axes.grid": True,
    "axes.labelcolor": SOFT,
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.dpi": 72,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "svg.fonttype": "none",
    "svg.hashsalt": "apical",
    "text.color": INK,
    "text.parse_math": False,
    "ytick.minor.size": 0,
    **{f"{axis}tick.{key}": value for axis in "xy" for key, value in TICKS.items()},
}


@dataclass(frozen=True)
class Panel:
    """One pair of axes: a title outside it and a function that draws into it."""

    title: str
    draw: Callable[[Any], None]


Legend = tuple[tuple[str, Look], ...]
"""What each line stands for, and how it is drawn."""


@dataclass(frozen=True)
class Group:
    """Panels that belong together: one row of the page, one PNG.

    Attributes: panels: each with a title outside its axes and a method `draw(axes)`, as `Panel`.
        size: of a panel, inches. margin: inches left of the axes and below them. legend:
        none where the panels name what they show. columns: panels side by side in the PNG.
    """

    name: str
    heading: str
    caption: str
    panels: tuple[Any, ...] = ()
    size: tuple[float, float] = (3.4, 2.2)
    margin: tuple[float, float] = (0.5, 0.42)
    legend: Legend = ()
    columns: int = 4


Say = Callable[[str], None]
"""Is given what is being written."""


@dataclass(frozen=True)
class Files:
    """The files that a page links to: the page calls these methods where the links stand.

    Attributes: title: of the PNG files, before the heading of each. png: whether figures are
        written as PNG too.
    """

    folder: Path
    title: str
    png: bool
    say: Say

    def csv(self, name: str, table: Table) -> str:
        """The name of the file."""
        write_bytes(self.folder / name, table.csv().encode())
        return name

    def print(self, group: Group, heading: str = "", slug: str = "") -> str:
        """A group for print; its file, "" where none is wanted. slug: start of its name."""
        self.say(f"{self.title}: {group.heading}{' of ' * bool(heading)}{heading}")
        file = f"{slug}{group.name}.png" if self.png else ""
        if file:
            titles = filter(None, [self.title, heading, group.heading])
            write_png(self.folder / file, group, title=" · ".join(titles))
        return file


def prefix(names: Sequence[str], name: str) -> str:
    """Start of the names of the files of one of these names, short, plain ASCII, all different; ""
    for a name alone."""
    made: list[str] = []
    for each in names[: names.index(name) + 1]:
        base = re.sub(r"[^a-z0-9]+", "-", each.lower()).strip("-")[:40] or "setting"
        free = (f"{base}-{n}" if n > 1 else base for n in itertools.count(1))
        made.append(next(slug for slug in free if slug not in made))
    return f"{made[-1]}-" if len(names) > 1 else ""


def legend(groups: Iterable[Group]) -> list[tuple[str, str]]:
    """One legend for several groups: labels, and their lines as SVG."""
    every = dict(entry for group in groups for entry in group.legend)
    return [(label, legend_svg(look, label)) for label, look in every.items()]


@contextmanager
def new_figure(size: tuple[float, float], settings: dict[str, Any] = SETTINGS) -> Iterator[Any]:
    """A figure of matplotlib, in inches, to be drawn and saved within the context."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(settings):
        yield Figure(figsize=size)


def to_svg(group: Group, panel: Any) -> str:
    """One panel as an SVG element for inlining: colours are CSS variables, ids do not clash."""
    with new_figure(group.size) as figure:
        panel.draw(_axes(figure, group, (0.0, 0.0), group.size))
        return _inline(figure, panel.title)


def legend_svg(look: Look, label: str) -> str:
    """The line and marker of a rule, for the legend of the page."""
    from matplotlib.lines import Line2D

    with new_figure((0.42, 0.17)) as figure:
        figure.add_artist(Line2D([0.04, 0.96], [0.5, 0.5], **line_style(look)))
        marker: dict[str, Any] = {"marker": look.marker, "markersize": 4.5, "color": look.light}
        figure.add_artist(Line2D([0.5], [0.5], **marker))
        return _inline(figure, label)


def write_png(path: Path, group: Group, *, title: str) -> None:
    """All panels of a group as one print-ready PNG on white, 200 dots per inch."""
    from matplotlib.lines import Line2D

    columns = min(group.columns, len(group.panels))
    rows = -(-len(group.panels) // columns)
    width, height = max(columns * group.size[0], 3.2), group.size[1] + 0.22
    longest = max((len(label) for label, _ in group.legend), default=0)
    per_row = max(1, int(width / max(0.95, 0.075 * longest - 0.1)))
    head = 0.34 + 0.2 * -(-len(group.legend) // per_row)
    total = (width, rows * height + head)
    with new_figure(total) as figure:
        size = min(9.5, 9.5 * width / (0.085 * len(title)))
        corner = 0.1 / total[0], 1 - 0.2 / total[1]
        figure.text(*corner, title, fontsize=size, fontweight="bold")
        if group.legend:
            lines = [
                Line2D([], [], marker=look.marker, markersize=4, label=name, **line_style(look))
                for name, look in group.legend
            ]
            figure.legend(handles=lines, loc="upper left", bbox_to_anchor=(0, 1 - 0.3 / total[1]),
                          ncols=per_row, frameon=False, fontsize=8, handlelength=2.6,
                          columnspacing=1.4)  # fmt: skip
        for index, panel in enumerate(group.panels):
            row, column = divmod(index, columns)
            corner = (column * group.size[0], total[1] - head - (row + 1) * height)
            axes = _axes(figure, group, corner, total)
            axes.set_title(panel.title, fontsize=8, loc="left", color=INK)
            panel.draw(axes)
        save_png(figure, path)


def save_png(figure: Any, path: Path | None = None, dpi: int = 200) -> bytes:
    """A figure as PNG, the same bytes under every version of matplotlib; written to `path`."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
    if path is not None:
        write_bytes(path, out.getvalue())
    return out.getvalue()


def _axes(figure: Any, group: Group, corner: tuple[float, float], total: Sequence[float]) -> Any:
    """Axes with fixed margins in inches, so that panels line up."""
    left, bottom = group.margin
    width, height = group.size[0] - left - 0.12, group.size[1] - bottom - 0.1
    across, up = total
    x, y = corner[0] + left, corner[1] + bottom
    return figure.add_axes((x / across, y / up, width / across, height / up))


def _inline(figure: Any, title: str) -> str:
    from markupsafe import escape

    out = io.StringIO()
    empty = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(out, format="svg", transparent=True, metadata=empty)
    svg = re.sub(r"<metadata>.*?</metadata>", "", out.getvalue(), flags=re.S)
    head = re.search(r"<svg[^>]*?(viewBox=\"[^\"]*\")[^>]*>", svg)
    assert head is not None, "matplotlib's SVG starts without a viewBox"
    opening = f'<svg xmlns:xlink="{XLINK}" {head[1]} role="img" aria-label="{escape(title)}">'
    body = re.sub(r' d="([^"]*)"', _short, svg[head.end() :], flags=re.S)
    body = re.sub(r">\n\s*<", "><", body)
    body = re.sub(r' transform="rotate\(-0 [^"]*"', "", body)
    body = re.sub(r' (x|y)="(-?\d+\.\d+)"', lambda m: f' {m[1]}="{float(m[2]):.1f}"', body)
    # ids that nothing refers to are the same in every figure (axes_1): a page may hold each once
    used = set(re.findall(r"#([\w-]+)[\")]", body))
    body = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", body)
    # colours become CSS variables, so that dark mode can replace them; fonts are the page's
    for colour, name in variables().items():
        body = re.sub(rf"{colour}\b", f"var({name})", body)
    body = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", body)
    return opening + re.sub(r" ?font-family: [^;\"]*;?", "", body)


def _short(path: re.Match[str]) -> str:
    """A path at a third of its size: coordinates in tenths of a point, commands that repeat left
    out, line breaks as spaces."""
    text = re.sub(r"-?\d+\.\d+", lambda number: f"{float(number[0]):.1f}", path[1])
    text = " ".join(text.replace(".0 ", " ").replace(".0\n", "\n").split())
    text = re.sub(r"([A-Za-z]) ", r"\1", text)
    return f' d="{re.sub(r"(?<=[0-9]) L", " ", text)}"'
