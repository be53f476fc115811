"""Example images with their perturbations, as small PNG pictures inside the page."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apical.bench.report.looks import INK, SOFT
from apical.bench.report.names import display_name
from apical.bench.report.robust_read import Evaluation
from apical.bench.report.robust_section import Section

MOST_IMAGES, MOST_ATTACKS = 3, 3
"""Shown of each rule: enough to see what a radius looks like."""

WRONG = "#a8281f"
"""Answers that are wrong, in print."""

SHAPES = {"x": 4, "adv": 5, "names": 1, "labels": 1, "predictions_clean": 1, "predictions_adv": 2}
"""Number of dimensions of each array in examples.npz."""


@dataclass(frozen=True)
class Shown:
    """One picture: values in [0, 1], shape (H, W, 3), and what stands under it."""

    pixels: Any
    text: str
    wrong: bool = False

    @property
    def source(self) -> str:
        """As an address that needs no file."""
        return "data:image/png;base64," + base64.b64encode(_png(self.pixels)).decode()


@dataclass(frozen=True)
class Examples:
    """Some images of one net: a row per image, a column per picture of it.

    Attributes: factor: how much the changes are amplified around middle grey.
    """

    rule: str
    seed: int
    columns: tuple[str, ...]
    rows: tuple[tuple[Shown, ...], ...]
    factor: float
    eps: float


def of_section(section: Section) -> tuple[list[Examples], list[str]]:
    """The examples of the first net of each rule that has some, and what could not be read."""
    found, problems = [], []
    for rule in section.rules:
        for net in section.of(rule).values():
            path = net.folder / "examples.npz"
            if not path.exists():
                continue
            try:
                found.append(_examples(net, _checked(path)))
                break
            except (ValueError, OSError, KeyError) as error:
                reason = str(error).replace(f"{net.folder}/", "")
                problems.append(f"{display_name(rule)}, seed {net.seed}: {reason}")
    return found, problems


def arrays(path: Path, shapes: Mapping[str, int]) -> dict[str, Any]:
    """The arrays of an examples.npz.

    Args: shapes: number of dimensions of those it must hold, beside `eps`.
    Raises: ValueError saying what is wrong with it.
    """
    import zipfile

    import numpy

    try:
        with numpy.load(path, allow_pickle=False) as file:
            found = {key: file[key] for key in file.files}
    except (zipfile.BadZipFile, ValueError, EOFError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    missing = sorted({*shapes, "eps"} - found.keys())
    if missing:
        raise ValueError(f"{path} has no {', '.join(missing)}")
    wrong = [f"{key} {found[key].shape}" for key, d in shapes.items() if found[key].ndim != d]
    if wrong:
        told = ", ".join(f"{key} of {d}" for key, d in shapes.items())
        raise ValueError(
            f"{path}: {', '.join(wrong)}: expected grey or colour images, in dimensions {told}"
        )
    return found


def _checked(path: Path) -> dict[str, Any]:
    found = arrays(path, SHAPES)
    x, adv = found["x"].shape, found["adv"].shape
    if x[1] not in (1, 3) or adv[1:] != x:
        raise ValueError(
            f"{path}: x {x}, adv {adv}: expected grey or colour images, x (k, C, H, W) and adv "
            "(s, k, C, H, W)"
        )
    return found


def _examples(net: Evaluation, arrays: dict[str, Any]) -> Examples:
    import numpy

    x, adv = arrays["x"][:MOST_IMAGES], arrays["adv"][:, :MOST_IMAGES]
    chosen = _varied([str(name) for name in arrays["names"]])
    largest = float(numpy.abs(adv[chosen] - x).max()) if len(chosen) else 0.0
    factor = _round_down(0.5 / largest) if largest else 1.0
    called = arrays.get("class_names")

    def label(index: Any) -> str:
        return str(index) if called is None else str(called[int(index)])

    rows = []
    for image in range(len(x)):
        truth = arrays["labels"][image]
        before = arrays["predictions_clean"][image]
        row = [Shown(picture(x[image]), label(before), bool(before != truth))]
        for attack in chosen:
            after = arrays["predictions_adv"][attack, image]
            change = 0.5 + factor * (adv[attack, image] - x[image])
            row += [
                Shown(picture(adv[attack, image]), label(after), bool(after != truth)),
                Shown(picture(change), ""),
            ]
        rows.append(tuple(row))
    columns = ["original"]
    for attack in chosen:
        columns += [_column(str(arrays["names"][attack])), f"its change × {factor:g}"]
    eps = float(numpy.max(arrays["eps"]))
    return Examples(net.rule, net.seed, tuple(columns), tuple(rows), factor, eps)


def _column(name: str) -> str:
    """ "PGD-20 ce, own gradient"; attacks that take no gradient have no source to name."""
    attack, _, source = name.rpartition(" / ")
    if source in ("own", "exact"):
        return f"{attack}, {source} gradient"
    return attack if attack and source == "none" else name.replace(" / ", ", ")


def _varied(names: Sequence[str]) -> list[int]:
    """Places of up to MOST_ATTACKS names: own and exact gradient first, then other sources."""
    sources = [name.rpartition(" / ")[2] for name in names]

    def rank(place: int) -> tuple[bool, bool]:
        source = sources[place]
        return source in sources[:place], source not in ("own", "exact")

    return sorted(range(len(names)), key=rank)[:MOST_ATTACKS]


def _round_down(factor: float) -> float:
    """To a whole number, so that it can be stated."""
    return float(int(factor + 1e-3)) if factor >= 1 else factor


def picture(values: Any) -> Any:
    """(C, H, W) to (H, W, 3) within [0, 1]."""
    import numpy

    clipped = numpy.clip(values, 0, 1).transpose(1, 2, 0)
    return numpy.repeat(clipped, 3, axis=2) if clipped.shape[2] == 1 else clipped


def _png(pixels: Any) -> bytes:
    import numpy
    from matplotlib.image import imsave

    out = io.BytesIO()
    unsigned: Any = {"Software": None}  # else the version is written into every picture
    whole = numpy.round(255 * pixels).astype(numpy.uint8)
    imsave(out, whole, format="png", metadata=unsigned)
    return out.getvalue()


def write_png(path: Path, found: Sequence[Examples], title: str) -> None:
    """One image with its perturbations, one line a rule, for print: that misread most often."""
    import matplotlib
    from matplotlib.figure import Figure

    from apical.bench.report.render import FONT
    from apical.bench.storage.records import write_bytes

    image, across = _telling(found), max(len(each.columns) for each in found)
    size = (0.8 + 1.15 * across, 0.5 + 1.55 * len(found))
    with matplotlib.rc_context(FONT):
        figure = Figure(figsize=size)
        figure.text(0.1 / size[0], 1 - 0.22 / size[1], title, fontsize=9.5, fontweight="bold")
        for line, each in enumerate(found):
            bottom, wide = size[1] - 1.8 - 1.55 * line, 1.15 * len(each.columns)
            axes = figure.add_axes((0.8 / size[0], bottom / size[1], wide / size[0], 1 / size[1]))
            _draw_strip(axes, each, image)
            name, middle = display_name(each.rule), (bottom + 0.5) / size[1]
            figure.text(0.1 / size[0], middle, name, fontweight="bold", color=INK, va="center")
        out = io.BytesIO()
        figure.savefig(out, format="png", dpi=200, facecolor="white", metadata={"Software": None})
    write_bytes(path, out.getvalue())


def _telling(found: Sequence[Examples]) -> int:
    """The image that was misread most often, over all rules and attacks."""
    wrong = [0] * max(len(each.rows) for each in found)
    for each in found:
        for place, row in enumerate(each.rows):
            wrong[place] += sum(shown.wrong for shown in row)
    return wrong.index(max(wrong))


def _draw_strip(axes: Any, found: Examples, image: int) -> None:
    """The pictures of one image side by side, 1.15 units each of which 1 is the picture."""
    row = found.rows[min(image, len(found.rows) - 1)]
    for place, (column, shown) in enumerate(zip(found.columns, row, strict=True)):
        left = 1.15 * place
        axes.imshow(shown.pixels, extent=(left, left + 1, 0, 1), interpolation="nearest")
        axes.text(left, 1.05, column.replace(", ", ",\n"), fontsize=6, color=SOFT, va="bottom")
        axes.text(left, -0.05, shown.text, va="top", color=WRONG if shown.wrong else INK)
    axes.set_xlim(0, 1.15 * len(found.columns))
    axes.set_ylim(0, 1)
    axes.set_axis_off()
