"""The spiking part of a page: the hybrid attack as a table, and what neurons fire, as rasters."""

import base64
import io
from pathlib import Path
from typing import Any

from apical.bench.report import robust_table, spike_table
from apical.bench.report import robust_words as words
from apical.bench.report.looks import INK, SOFT
from apical.bench.report.names import display_name
from apical.bench.report.read import Study
from apical.bench.report.robust_examples import arrays
from apical.bench.report.robust_section import Section
from apical.bench.storage.records import write_bytes

MOST_NEURONS = 60
"""Shown of each layer, the first ones."""


def write(study: Study, out: Path) -> dict[str, Any] | None:
    """Values for spikes.html.j2, None for a study without spiking nets; rasters as PNG."""
    found = spike_table.sections(study)
    if not found:
        return None
    parts = []
    for number, section in enumerate(found, 1):
        radii = [(eps, spike_table.lines(section, eps)) for eps in section.radii]
        headline = robust_table.headline_radius(section)
        parts.append(
            {
                "section": section,
                "headline": headline,
                "radii": radii,
                "rasters": _rasters(section, out, f"spikes-{number}.png"),
            }
        )
    return {
        "parts": parts,
        "seen": spike_table.seen(study),
        "stronger": spike_table.weakest(study),
        "apart": spike_table.apart,
        "radius": words.radius,
    }


def _rasters(section: Section, out: Path, png: str) -> dict[str, Any] | None:
    """One net of each rule on one image: clean, and under the attack by the exact gradient."""
    import matplotlib
    from matplotlib.figure import Figure

    from apical.bench.report.render import FONT

    nets = [next(iter(section.of(rule).values())) for rule in section.rules]
    shown = [(net.rule, _read(net.folder / "examples.npz")) for net in nets]
    rows = [(rule, found) for rule, found in shown if found is not None]
    if not rows:
        return None
    most = max(len(found["layers"]) for _, found in rows)
    size = (0.7 + 2 * 1.6 * most, 0.3 + 1.35 * len(rows))
    with matplotlib.rc_context(FONT):
        figure = Figure(figsize=size)
        for line, (rule, found) in enumerate(rows):
            bottom = size[1] - 1.3 - 1.35 * line
            middle = (bottom + 0.5) / size[1]
            figure.text(0.08 / size[0], middle, display_name(rule), fontweight="bold", va="center")
            for place, (title, raster) in enumerate(_panels(found)):
                left = 0.7 + 1.6 * place
                box = (left / size[0], bottom / size[1], 1.4 / size[0], 1 / size[1])
                _draw(figure.add_axes(box), raster, title if line == 0 else "")
        buffer = io.BytesIO()
        unsigned: Any = {"Software": None}
        figure.savefig(buffer, format="png", dpi=130, facecolor="white", metadata=unsigned)
    write_bytes(out / png, buffer.getvalue())
    encoded = base64.b64encode(buffer.getvalue()).decode()
    names = [f"{display_name(rule)}: {found['attack']}" for rule, found in rows]
    return {"png": png, "source": f"data:image/png;base64,{encoded}", "attacks": names}


def _read(path: Path) -> dict[str, Any] | None:
    """The rasters of an examples.npz: of the clean image, and of the one that the attack by the
    exact gradient made of it; None without any."""
    if not path.exists():
        return None
    found = arrays(path, {"names": 1})
    layers = {name[7:]: each for name, each in found.items() if name.startswith("raster_")}
    names = [str(name) for name in found["names"]]
    place = next((i for i, name in enumerate(names) if name.endswith("/ exact")), None)
    if not layers or place is None:
        return None
    return {
        "layers": {name: (each[0], each[1 + place]) for name, each in layers.items()},
        "attack": names[place].rpartition(" / ")[0],
    }


def _panels(found: dict[str, Any]) -> list[tuple[str, Any]]:
    return [
        (f"{name}, {kind}", pair[which])
        for which, kind in enumerate(("clean", "attacked"))
        for name, pair in found["layers"].items()
    ]


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
