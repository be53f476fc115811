"""Example images with their perturbations, and what is found with them, as pictures in a page."""

import base64
import io
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from apical.bench.report.colours import INK, SOFT
from apical.bench.report.names import display_name
from apical.bench.report.render import FONT, Files, new_figure, print_title, save_png
from apical.bench.report.sections import Section
from apical.bench.report.table import Column, Shown, Table, percent
from apical.bench.storage import evaluation_folder

MOST_IMAGES, MOST_ATTACKS = 3, 3
"""Shown of each rule: enough to see what a radius looks like."""

MOST_QUERIES, MOST_FOUND = 2, 6
"""Shown of each rule: enough to see what an attack does to an answer."""

WRONG = "#a8281f"
"""Answers that are wrong, in print."""

EXAMPLES = {
    "x": "kChw", "adv": "skChw", "names": "s", "labels": "k", "predictions_clean": "k",
    "predictions_adv": "sk",
}  # fmt: skip
RETRIEVED = {
    "x": "kChw", "adv": "skChw", "names": "s", "labels": "k", "precision": "ak", "found": "aknCHW",
    "found_labels": "akn",
}  # fmt: skip
"""Shape of each array in an examples.npz of each kind: k images, s attacks, a = s + 1 answers, n
items found, C = 1 or 3 colours."""

T = TypeVar("T")


@dataclass(frozen=True)
class Picture:
    """An image with values in [0, 1], shape (C, H, W), and what stands under it."""

    values: Any
    text: str
    wrong: bool = False

    @property
    def pixels(self) -> Any:
        """(H, W, 3), within [0, 1]."""
        clipped = np.clip(self.values, 0, 1).transpose(1, 2, 0)
        return np.repeat(clipped, 3, axis=2) if clipped.shape[2] == 1 else clipped

    def shown(self, alt: str, style: str = "") -> Shown:
        from matplotlib.image import imsave

        out = io.BytesIO()
        unsigned: Any = {"Software": None}  # else the version is written into every picture
        imsave(out, np.round(255 * self.pixels).astype(np.uint8), format="png", metadata=unsigned)
        return Shown(self.text, title=alt, style=style, image=address(out.getvalue()))


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


def arrays(path: Path, shapes: Mapping[str, str]) -> dict[str, Any]:
    """The arrays of an examples.npz.

    Args: shapes: of those it must hold in addition to `eps`, as in `EXAMPLES`.
    Raises: ValueError saying what is wrong with it.
    """
    evaluation_folder.verify(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            values = {key: file[key] for key in file.files}
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, TypeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if missing := sorted({*shapes, "eps"} - values.keys()):
        raise ValueError(f"{path} has no {', '.join(missing)}")
    sizes: dict[str, int] = {}
    for key, letters in shapes.items():
        shape = values[key].shape
        fits = len(shape) == len(letters) and all(
            sizes.setdefault(letter, size) == size
            for letter, size in zip(letters, shape, strict=True)
        )
        answers = sizes.get("s", 0) + 1
        if not fits or sizes.get("C", 1) not in (1, 3) or sizes.get("a", answers) != answers:
            expected = ", ".join(f"{name} ({', '.join(of)})" for name, of in shapes.items())
            raise ValueError(
                f"{path}: {key} {shape}: expected grey or colour images (C = 1 or 3) with the same "
                f"letter for the same size, a = s + 1, in {expected}"
            )
    return values


# Classifiers


@dataclass(frozen=True)
class Examples:
    """Some images of one net: a row per image, a column per picture of it."""

    rule: str
    seed: int
    columns: tuple[str, ...]
    rows: tuple[tuple[Picture, ...], ...]
    eps: float

    def table(self) -> Table:
        def show(place: int, row: Sequence[Picture]) -> Shown:
            alt = f"{self.columns[place]}: {row[place].text}".removesuffix(": ")
            return row[place].shown(alt, "flag" * row[place].wrong)

        columns = [
            Column("", partial(show, place), page=name, left=True)
            for place, name in enumerate(self.columns)
        ]
        return Table(columns, self.rows, caption=caption(self.rule, self.seed), kind="")


def examples(net: Any, path: Path) -> Examples:
    """Images of a net under attack, and the changes, amplified around middle grey."""
    values = arrays(path, EXAMPLES)
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

    def answer(image: Any, index: Any, truth: Any) -> Picture:
        name = str(index) if classes is None else str(classes[int(index)])
        return Picture(image, name, bool(index != truth))

    rows = []
    for image, truth in enumerate(values["labels"][: len(x)]):
        row = [answer(x[image], values["predictions_clean"][image], truth)]
        for attack in chosen:
            after = values["predictions_adv"][attack, image]
            change = 0.5 + factor * (adv[attack, image] - x[image])
            row += [answer(adv[attack, image], after, truth), Picture(change, "")]
        rows.append(tuple(row))
    columns = ["original"]
    for attack in chosen:
        columns += [_column(names[attack]), f"its change × {factor:g}"]
    return Examples(net.rule, net.seed, tuple(columns), tuple(rows), float(np.max(values["eps"])))


def _column(name: str) -> str:
    """ "PGD-20 ce, own gradient"; attacks that take no gradient have no source to name."""
    attack, _, source = name.rpartition(" / ")
    if source in ("own", "exact"):
        return f"{attack}, {source} gradient"
    return attack if attack and source == "none" else name.replace(" / ", ", ")


def for_print(nets: Sequence[Examples], files: Files, heading: str, slug: str) -> str:
    """One image with its perturbations, one line a rule: that misread most often. Returns: the
    file, "" where none is wanted."""
    if not files.png:
        return ""

    def wrong(image: int) -> int:
        rows = [row for each in nets for row in each.rows[image : image + 1]]
        return sum(picture.wrong for row in rows for picture in row)

    image = max(range(max(len(each.rows) for each in nets)), key=wrong)
    across = max(len(each.columns) for each in nets)
    width, height = size = (0.8 + 1.15 * across, 0.5 + 1.55 * len(nets))
    with new_figure(size, FONT) as figure:
        print_title(figure, size, f"{files.title} · {heading}")
        for line, each in enumerate(nets):
            bottom, wide = height - 1.8 - 1.55 * line, 1.15 * len(each.columns)
            axes = figure.add_axes((0.8 / width, bottom / height, wide / width, 1 / height))
            _draw_strip(axes, each, image)
            name, middle = display_name(each.rule), (bottom + 0.5) / height
            figure.text(0.1 / width, middle, name, fontweight="bold", color=INK, va="center")
        save_png(figure, files.folder / f"{slug}examples.png")
    return f"{slug}examples.png"


def _draw_strip(axes: Any, net: Examples, image: int) -> None:
    """The pictures of one image side by side, 1.15 units each of which 1 is the picture."""
    row = net.rows[min(image, len(net.rows) - 1)]
    for place, (column, picture) in enumerate(zip(net.columns, row, strict=True)):
        left = 1.15 * place
        axes.imshow(picture.pixels, extent=(left, left + 1, 0, 1), interpolation="nearest")
        axes.text(left, 1.05, column.replace(", ", ",\n"), fontsize=6, color=SOFT, va="bottom")
        axes.text(left, -0.05, picture.text, va="top", color=WRONG if picture.wrong else INK)
    axes.set_xlim(0, 1.15 * len(net.columns))
    axes.set_ylim(0, 1)
    axes.set_axis_off()


# Retrieval


@dataclass(frozen=True)
class Answer:
    """A query, clean or attacked, and what it finds, nearest first.

    Attributes: name: "clean", or the attack and its gradient. precision: average, in %. found:
        `wrong` where the label is another; their texts are the labels.
    """

    name: str
    query: Picture
    precision: float
    found: tuple[Picture, ...]


def answers(section: Section) -> tuple[list[tuple[Any, float, list[list[Answer]]]], list[str]]:
    """Of the first net of each rule that has some: the net, the radius and, for each query, its
    answers; and what could not be read.

    The same queries of every rule: those that lose most average precision over all of them.
    """
    nets, problems = of_section(section, lambda net, path: (net, arrays(path, RETRIEVED)))
    count = min((len(values["x"]) for _, values in nets), default=0)
    lost = [0.0] * count
    for _, values in nets:
        clean, *attacked = values["precision"]
        for place in range(count):
            lost[place] += float(sum(clean[place] - each[place] for each in attacked))
    chosen = sorted(sorted(range(count), key=lambda place: -lost[place])[:MOST_QUERIES])
    return [
        (net, float(values["eps"]), [_answers(values, query) for query in chosen])
        for net, values in nets
    ], problems


def _answers(values: dict[str, Any], query: int) -> list[Answer]:
    truth = int(values["labels"][query])
    made = []
    for place, image in enumerate([values["x"][query], *values["adv"][:, query]]):
        name = "clean"
        if place:
            attack, _, source = str(values["names"][place - 1]).partition(" / ")
            name = f"{attack}, {source} gradient"
        labels = values["found_labels"][place, query][:MOST_FOUND]
        found = tuple(
            Picture(pixels / 255, str(label), bool(label != truth))
            for pixels, label in zip(values["found"][place, query], labels, strict=False)
        )
        share = 100 * float(values["precision"][place][query])
        made.append(Answer(name, Picture(image, str(truth)), share, found))
    return made


def answers_table(net: Any, rows: Sequence[Answer]) -> Table:
    """The answers to one query, a row each."""

    def nearest(place: int, answer: Answer) -> Shown:
        shown = answer.found[place]
        alt = f"found, label {shown.text}, {'wrong' if shown.wrong else 'right'}"
        return shown.shown(alt, "wrong flag" * shown.wrong)

    def query(answer: Answer) -> Shown:
        return answer.query.shown(f"query, label {answer.query.text}")

    columns = [
        Column("", "name", page=" ", left=True, style="soft wrap"),
        Column("query", query, left=True, style="query"),
        *(
            Column("", partial(nearest, place), page=" " if place else "found", left=True)
            for place in range(len(rows[0].found))
        ),
        Column("AP %", "precision", text=percent, page="AP %"),
    ]
    return Table(columns, rows, caption=caption(net.rule, net.seed), kind="")
