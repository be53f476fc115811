"""What a memory did while its net learned: how much was written, and how well it was recalled."""

from collections.abc import Mapping, Sequence
from functools import partial

from apical.bench.report.figures import Series, draw_curves
from apical.bench.report.looks import Look
from apical.bench.report.read import Run, Study
from apical.bench.report.render import Group, Panel

QUANTITIES = {
    "beta": "Rate of writing, β",
    "meta_loss": "Squared error of recalling what was just written",
    "memory_norm": "Norm of the memory's weights",
}


def groups(study: Study, setting: str, looks: Mapping[str, Look]) -> list[Group]:
    """The figure of a setting, from its finished runs."""
    return of_runs({rule: study.finished(setting, rule) for rule in study.rules}, looks)


def of_runs(runs: Mapping[str, Sequence[Run]], looks: Mapping[str, Look]) -> list[Group]:
    """One figure: a panel per quantity, against epochs; none without a memory."""
    panels, shown = [], dict[str, None]()
    for key, title in QUANTITIES.items():
        values = series(runs, key)
        if values:
            shown |= dict.fromkeys(values)
            log = key == "meta_loss"
            panels.append(Panel(title, partial(draw_curves, values=values, looks=looks, log=log)))
    if not panels:
        return []
    caption = (
        "Means over the steps of the measured sequences. Line: mean over seeds; band: lowest to "
        "highest seed. An error near 0 on a task that is not solved is a collapsed memory."
    )
    return [Group("memory", "The memory", caption, tuple(panels), rules=tuple(shown))]


def series(runs: Mapping[str, Sequence[Run]], key: str) -> Series:
    """Means over the steps of a sequence, by rule and epoch, one for each seed."""
    found = {}
    for rule, of_rule in runs.items():
        each = [_by_epoch(run, key) for run in of_rule]
        shared = set.intersection(*map(set, each)) if each else set()
        if shared:
            found[rule] = {epoch: [values[epoch] for values in each] for epoch in sorted(shared)}
    return found


def _by_epoch(run: Run, key: str) -> dict[int, float]:
    numbers: dict[int, list[float]] = {}
    for row in run.of_kind("step"):
        if key in row:
            numbers.setdefault(row["epoch"], []).append(row[key])
    return {epoch: sum(values) / len(values) for epoch, values in numbers.items()}
