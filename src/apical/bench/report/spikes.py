"""Spiking nets under attack: own gradient, its twin by backprop, transfer, and both together.

Read from the trials of each evaluation, image by image: the hybrid attack breaks what one of its
two parts breaks.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from apical.attacks.trials import unpacked
from apical.bench.report import gained, robustness, sections
from apical.bench.report.colours import INK, SOFT
from apical.bench.report.evaluations import Robustness
from apical.bench.report.names import display_name, is_baseline, is_control
from apical.bench.report.pictures import address
from apical.bench.report.read import Study
from apical.bench.report.render import FONT, new_figure, save_png
from apical.bench.report.sections import Line, Section, Value
from apical.bench.report.table import Column, Table, percent, points
from apical.bench.storage.evaluation_folder import read_examples
from apical.measure.robustness_verdict import radius

PARTS: Mapping[str, tuple[str, ...]] = {
    "noise": ("noise",),
    "own": ("own",),
    "twin": ("exact",),
    "transfer": ("transfer",),
    "hybrid": ("exact", "transfer"),
}
"""Which groups of attacks each column stands for."""

COMPARED = {"twin": "the twin alone", "transfer": "transfer alone", "hybrid": "both together"}
"""What the own gradient is compared with: each part alone, and both."""

MOST_NEURONS = 60
"""Shown of each layer, the first ones."""


def concerns(study: Study) -> bool:
    """Whether spiking nets were attacked."""
    return any("-spiking_" in str(each.described.get("net", "")) for each in study.robustness)


def sections_of(study: Study) -> list[Section]:
    """The evaluations by setting; none for studies of other nets."""
    return sections.sections(study.robustness) if concerns(study) else []


def lines(section: Section) -> list[Line]:
    """The rules of a setting at each radius.

    The values are those of `PARTS`, clean, worst, and own minus each of `COMPARED` on the same
    nets ("minus twin"; above 0: the own gradient is weaker). Where nets learn by the exact
    gradient, or by losses of each layer, own is the twin: no difference to it is shown.
    """
    return [_line(section, rule, eps) for eps in section.radii for rule in section.rules]


def of_study(study: Study) -> list[Line]:
    return [line for section in sections_of(study) for line in lines(section)]


def at_headline(rows: Iterable[Line]) -> list[Line]:
    """The lines at the radius where backprop's nets keep about half."""
    return [line for line in rows if line.eps == robustness.headline_radius(line.section)]


def _line(section: Section, rule: str, eps: float) -> Line:
    left = {name: partial(survivors, groups=groups, eps=eps) for name, groups in PARTS.items()}
    tried = any(row["group"] == "own" for net in section.of(rule).values() for row in net.trials)
    gaps = {}
    for name in COMPARED:
        gap = section.difference(rule, rule, left["own"], left[name])
        gaps[f"minus {name}"] = gap if tried or name == "transfer" else None
    every: dict[str, Value] = {"clean": robustness.clean, "worst": robustness.worst(eps), **left}
    values = {name: section.estimate(rule, value) for name, value in every.items()}
    return Line(section, rule, eps, values | gaps)


def stronger(line: Line, name: str) -> dict[int, tuple[float, float]]:
    """Shares that the own gradient and the other leave, by the seeds of the nets where the own
    gradient leaves less."""
    own, other = (
        line.section.shares(line.rule, partial(survivors, groups=PARTS[part], eps=line.eps))
        for part in ("own", name)
    )
    return {s: (own[s], other[s]) for s in own if s in other and own[s] < other[s]}


def survivors(net: Robustness, *, groups: tuple[str, ...], eps: float) -> float | None:
    """The share of images that survive all attacks of these groups; a group may not be run."""
    rows = [
        row
        for row in net.trials
        if row["group"] in groups and row["on"] == "all" and row["eps"] == eps
        and row["role"] in ("usual", "single step")
    ]  # fmt: skip
    if not rows and groups == ("own",):  # of a plain net it is the exact one
        return survivors(net, groups=("exact",), eps=eps)
    if not rows:
        return None
    attacked, *broken = (
        unpacked(text, rows[0]["examples"])
        for text in (rows[0]["attacked"], *(row["broken"] for row in rows))
    )
    standing = [one and not any(by) for one, *by in zip(attacked, *broken, strict=True)]
    return sum(standing) / len(standing)


def table(rows: Iterable[Line], gains: gained.Gains = gained.NONE) -> Table:
    """Own gradient against the hybrid attack; radius by radius, where there are several."""

    def left(name: str, head: str = "", **more: Any) -> Column:
        return Column(head or name, f"values.{name}.mean", text=percent, **more)

    columns = [
        Column("setting", "setting", page="", left=True),
        Column.rule(),
        Column("radius", "eps", text=radius, deciding=True),
        Column("n", "values.clean.n", page="Nets n"),
        left("clean"),
        *gained.columns(gains),
        left("noise"),
        left("own", "own gradient"),
        left("twin"),
        left("transfer"),
        left("hybrid", strong=True, deciding=True),
        *(Column(f"own minus {name}", f"values.minus {name}", text=points) for name in COMPARED),
        left("worst", "worst of all"),
    ]
    return Table(columns, list(rows), "Spiking nets under attack")


def seen(rows: Iterable[Line]) -> str:
    """Whether twin, transfer and both together were at least as strong as the own gradient, each by
    itself, over all radii; of the rules, not of backprop and the controls."""
    rows = [row for row in rows if not (is_baseline(row.rule) or is_control(row.rule))]
    parts = []
    for name, words in COMPARED.items():
        nets, weaker = Counter[str](), Counter[str]()
        for row in rows:
            if gap := row[f"minus {name}"]:
                nets[row.rule] += gap.n
                weaker[row.rule] += len(stronger(row, name))
        counts = [f"{display_name(rule)} {n - weaker[rule]} of {n}" for rule, n in nets.items()]
        parts += [f"{words} {', '.join(counts)}"] * bool(counts)
    start = "An attack is at least as strong as the net's own gradient in so many of all nets and "
    return f"{start}radii: {'; '.join(parts)}." if parts else ""


def weakest(rows: Iterable[Line]) -> str:
    """Nets and radii at which the own gradient was stronger than the hybrid attack."""
    nets = [
        f"{row.setting}, {display_name(row.rule)}, seed {seed}, radius {radius(row.eps)} "
        f"({100 * own:.1f} against {100 * hybrid:.1f})"
        for row in rows
        for seed, (own, hybrid) in stronger(row, "hybrid").items()
    ]
    text = f"The own gradient was stronger than the hybrid attack here: {'; '.join(nets)}."
    return text if nets else ""


def rasters(section: Section, path: Path) -> dict[str, Any] | None:
    """Spikes of one net of each rule on one image: clean, and under the attack by the exact
    gradient; written as PNG. None where no net has any."""
    nets = [next(iter(section.of(rule).values())) for rule in section.rules]
    rows = [
        (display_name(net.rule), *raster)
        for net in nets
        if (raster := _raster(net.folder / "examples.npz"))
    ]
    if not rows:
        return None
    most = max(len(panels) for _, _, panels in rows)
    width, height = 0.7 + 1.6 * most, 0.3 + 1.35 * len(rows)
    with new_figure((width, height), FONT) as figure:
        for line, (name, _, panels) in enumerate(rows):
            bottom = height - 1.3 - 1.35 * line
            middle = (bottom + 0.5) / height
            figure.text(0.08 / width, middle, name, fontweight="bold", va="center")
            for place, (title, raster) in enumerate(panels):
                left = 0.7 + 1.6 * place
                box = (left / width, bottom / height, 1.4 / width, 1 / height)
                _draw(figure.add_axes(box), raster, title if line == 0 else "")
        png = save_png(figure, path, dpi=130)
    attacks = [f"{name}: {attack}" for name, attack, _ in rows]
    return {"png": path.name, "source": address(png), "attacks": attacks}


def _raster(path: Path) -> tuple[str, list[tuple[str, Any]]] | None:
    """The attack by the exact gradient, and title and raster of each layer: of the clean image,
    then of the attacked one; None without any."""
    if not path.exists():
        return None
    try:
        values = read_examples(path, {"names": "s"})
    except (ValueError, OSError):  # the page reports it with the pictures of the file
        return None
    layers = {name[7:]: each for name, each in values.items() if name.startswith("raster_")}
    names = [str(name) for name in values["names"]]
    place = next((i for i, name in enumerate(names) if name.endswith("/ exact")), None)
    if not layers or place is None:
        return None
    clean = [(f"{name}, clean", each[0]) for name, each in layers.items()]
    attacked = [(f"{name}, attacked", each[1 + place]) for name, each in layers.items()]
    return names[place].rpartition(" / ")[0], [*clean, *attacked]


def _draw(axes: Any, raster: Any, title: str) -> None:
    """A mark for each spike: steps to the right, neurons upwards. raster: bool (T, units)."""
    steps, units = raster.nonzero()
    few = units < MOST_NEURONS
    axes.scatter(steps[few], units[few], s=2.2, marker="|", linewidths=0.9, color=INK)
    axes.set_xlim(-0.7, len(raster) - 0.3)
    axes.set_ylim(-1, min(raster.shape[1], MOST_NEURONS))
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_color(SOFT)
        side.set_linewidth(0.5)
    axes.set_xlabel(f"{raster.mean():.0%} of steps", fontsize=7, labelpad=2, color=SOFT)
    if title:
        axes.set_title(title, fontsize=8, pad=3)
