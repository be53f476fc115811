"""Example images with their perturbations, and what is found with them, as pictures in a page."""

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from apical.bench.report.colours import INK, SOFT
from apical.bench.report.names import display_name
from apical.bench.report.render import Group, Panel
from apical.bench.report.sections import Section
from apical.bench.report.table import Column, Shown, Table, percent
from apical.bench.storage.evaluation_folder import CLASSIFIED, RETRIEVED, read_examples

MOST_IMAGES, MOST_ATTACKS = 3, 3
"""Shown of each rule: enough to see what a radius looks like."""

MOST_QUERIES, MOST_FOUND = 2, 6
"""Shown of each rule: enough to see what an attack does to an answer."""

WRONG = "#a8281f"
"""Answers that are wrong, in print."""

T = TypeVar("T")


@dataclass(frozen=True)
class Picture:
    """An image with values in [0, 1], shape (C, H, W), and what stands under it. alt: what it is,
    for readers who do not see it."""

    values: Any
    text: str
    wrong: bool = False
    alt: str = ""

    @property
    def pixels(self) -> Any:
        """(H, W, 3), within [0, 1]."""
        clipped = np.clip(self.values, 0, 1).transpose(1, 2, 0)
        return np.repeat(clipped, 3, axis=2) if clipped.shape[2] == 1 else clipped

    @property
    def shown(self) -> Shown:
        from matplotlib.image import imsave

        out = io.BytesIO()
        unsigned: Any = {"Software": None}  # else the version is written into every picture
        imsave(out, np.round(255 * self.pixels).astype(np.uint8), format="png", metadata=unsigned)
        style = "wrong flag" * self.wrong
        return Shown(self.text, title=self.alt, style=style, image=address(out.getvalue()))


@dataclass(frozen=True)
class Sheet:
    """Pictures, and texts beside them, of one net at a radius: a row per image or answer."""

    rule: str
    seed: int
    eps: float
    columns: tuple[Column, ...]
    rows: Sequence[Sequence[Any]]

    @property
    def table(self) -> Table:
        return Table(self.columns, self.rows, caption=caption(self.rule, self.seed), kind="")


def at(place: int, title: str, style: str = "", *, left: bool = True) -> Column:
    """The column of a sheet at a place of its rows."""

    def show(row: Sequence[Any]) -> Shown | str:
        cell = row[place]
        return cell.shown if isinstance(cell, Picture) else str(cell)

    return Column("", show, page=title, left=left, style=style)


def address(png: bytes) -> str:
    """A picture as an address that needs no file."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def caption(rule: str, seed: int) -> str:
    return f"{display_name(rule)}, seed {seed}"


def of_section(section: Section, read: Callable[[Any, Path], T]) -> tuple[list[T], list[str]]:
    """What is read of the first net of each rule that has examples, and what could not be read."""
    found, problems = [], []
    for rule in section.rules:
        for net in section.of(rule).values():
            path = net.folder / "examples.npz"
            if not path.exists():
                continue
            try:
                found.append(read(net, path))
                break
            except (ValueError, OSError, LookupError) as error:
                reason = str(error).replace(f"{net.folder}/", "")
                problems.append(f"{caption(rule, net.seed)}: {reason}")
    return found, problems


# Classifiers


def examples(net: Any, path: Path) -> Sheet:
    """Images of a net under attack, and the changes, amplified around middle grey."""
    values = read_examples(path, CLASSIFIED)
    x, adv = values["x"][:MOST_IMAGES], values["adv"][:, :MOST_IMAGES]
    names = [str(name) for name in values["names"]]
    sources = [name.rpartition(" / ")[2] for name in names]
    chosen = sorted(  # own and exact gradient first, each source once before any comes again
        range(len(names)),
        key=lambda at: (sources[at] in sources[:at], sources[at] not in ("own", "exact")),
    )[:MOST_ATTACKS]
    largest = float(np.abs(adv[chosen] - x).max()) if len(chosen) else 0.0
    factor = 0.5 / largest if largest else 1.0
    if factor >= 1:  # a whole number can be stated
        factor = float(int(factor + 1e-3))
    classes = values.get("class_names")

    def picture(column: str, image: Any, index: Any, truth: Any) -> Picture:
        name = str(index) if classes is None else str(classes[int(index)])
        return Picture(image, name, bool(index != truth), f"{column}: {name}")

    change = f"its change × {factor:g}"
    titles = ["original"]
    for attack in chosen:
        titles += [_column(names[attack]), change]
    rows = []
    for image, truth in enumerate(values["labels"][: len(x)]):
        row = [picture("original", x[image], values["predictions_clean"][image], truth)]
        for attack in chosen:
            after = values["predictions_adv"][attack, image]
            row.append(picture(_column(names[attack]), adv[attack, image], after, truth))
            row.append(Picture(0.5 + factor * (adv[attack, image] - x[image]), "", alt=change))
        rows.append(row)
    columns = tuple(at(place, title) for place, title in enumerate(titles))
    return Sheet(net.rule, net.seed, float(np.max(values["eps"])), columns, rows)


def _column(name: str) -> str:
    """ "PGD-20 ce, own gradient"; attacks that take no gradient have no source to name."""
    attack, _, source = name.rpartition(" / ")
    if source in ("own", "exact"):
        return f"{attack}, {source} gradient"
    return attack if attack and source == "none" else name.replace(" / ", ", ")


def for_print(nets: Sequence[Sheet]) -> Group:
    """One image with its perturbations, a panel per net: that misread most often."""

    def wrong(image: int) -> int:
        rows = [row for each in nets for row in each.rows[image : image + 1]]
        return sum(picture.wrong for row in rows for picture in row)

    image = max(range(max(len(each.rows) for each in nets)), key=wrong)
    across = max(len(each.columns) for each in nets)
    panels = tuple(Panel("", partial(_draw_strip, net=each, image=image)) for each in nets)
    size = (1.15 * across + 0.22, 1.9)
    return Group("examples", "What the changes look like", "", panels, size, (0.1, 0.2), columns=1)


def _draw_strip(axes: Any, *, net: Sheet, image: int) -> None:
    """The pictures of one image side by side, 1.15 units each of which 1 is the picture."""
    row = net.rows[min(image, len(net.rows) - 1)]
    for place, (column, picture) in enumerate(zip(net.columns, row, strict=True)):
        left = 1.15 * place
        axes.imshow(picture.pixels, extent=(left, left + 1, 0, 1), interpolation="nearest")
        title = column.title.replace(", ", ",\n")
        axes.text(left, 1.05, title, fontsize=6, color=SOFT, va="bottom")
        axes.text(left, -0.05, picture.text, va="top", color=WRONG if picture.wrong else INK)
    axes.text(0, 1.33, display_name(net.rule), fontweight="bold", color=INK, va="bottom")
    axes.set_xlim(0, 1.15 * len(net.columns))
    axes.set_ylim(-0.2, 1.4)
    axes.set_anchor("W")
    axes.set_axis_off()


# Retrieval


def answers(section: Section) -> tuple[list[Sheet], list[str]]:
    """Of the first net of each rule that has some, the answers to each query, clean or attacked,
    nearest first; and what could not be read.

    The same queries of every rule: those that lose most average precision over all of them.
    """
    nets, problems = of_section(section, lambda net, path: (net, read_examples(path, RETRIEVED)))
    count = min((len(values["x"]) for _, values in nets), default=0)
    lost = [0.0] * count
    for _, values in nets:
        clean, *attacked = values["precision"]
        for place in range(count):
            lost[place] += float(sum(clean[place] - each[place] for each in attacked))
    chosen = sorted(sorted(range(count), key=lambda place: -lost[place])[:MOST_QUERIES])
    return [_answers(net, values, query) for net, values in nets for query in chosen], problems


def _answers(net: Any, values: dict[str, Any], query: int) -> Sheet:
    """A row for each attack: its name, the query, what it finds, and average precision in %."""
    truth = int(values["labels"][query])
    rows = []
    for place, image in enumerate([values["x"][query], *values["adv"][:, query]]):
        name = "clean"
        if place:
            attack, _, source = str(values["names"][place - 1]).partition(" / ")
            name = f"{attack}, {source} gradient"
        row: list[Any] = [name, Picture(image, str(truth), alt=f"query, label {truth}")]
        labels = values["found_labels"][place, query][:MOST_FOUND]
        for pixels, label in zip(values["found"][place, query], labels, strict=False):
            wrong = bool(label != truth)
            alt = f"found, label {label}, {'wrong' if wrong else 'right'}"
            row.append(Picture(pixels / 255, str(label), wrong, alt))
        rows.append([*row, percent(100 * float(values["precision"][place][query]))])
    last = len(rows[0]) - 1
    columns = (
        at(0, " ", "soft wrap"),
        at(1, "Query", "query"),
        *(at(place, "found" if place == 2 else " ") for place in range(2, last)),
        at(last, "AP %", left=False),
    )
    return Sheet(net.rule, net.seed, float(values["eps"]), columns, rows)
