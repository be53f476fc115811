"""The gradient along time: what each step of a sequence has to teach, drawn over the steps."""

from collections.abc import Mapping, Sequence
from functools import partial
from statistics import median
from typing import Any

from apical.bench.report.figures import log_axis
from apical.bench.report.looks import SOFT, Look, line_style
from apical.bench.report.read import Run, Study
from apical.bench.report.render import Group, Panel

DECADES = 12
"""Below the largest value that are drawn; what is smaller lies on the lower edge with the zeros."""
QUANTITIES = {"signal": "Signal", "norm": "Weight gradient"}
"""What is drawn, by its name in the records: norms at each step."""

Steps = Mapping[int, Sequence[float]]
"""step -> one value per seed."""


def groups(study: Study, setting: str, looks: Mapping[str, Look]) -> list[Group]:
    """The figure of one setting, of its finished runs."""
    return of_runs({rule: study.finished(setting, rule) for rule in study.rules}, looks)


def of_runs(runs: Mapping[str, Sequence[Run]], looks: Mapping[str, Look]) -> list[Group]:
    """One figure: before training and at its end, a panel per quantity; none without steps."""
    panels, shown = [], dict[str, None]()
    for quantity, name in QUANTITIES.items():
        for when, last in (("before training", False), ("at the end", True)):
            found = {rule: _steps(of_rule, quantity, last) for rule, of_rule in runs.items()}
            found = {rule: steps for rule, steps in found.items() if steps}
            if found:
                shown |= dict.fromkeys(found)
                drawing = partial(draw, found=found, looks=looks)
                panels.append(Panel(f"{name}, {when}", drawing))
    if not panels:
        return []
    single = all(len(of_rule) < 2 for of_rule in runs.values())
    seeds = "" if single else "Line: median over seeds; band: lowest to highest. "
    caption = (
        "Norm of the teaching signal at each step of the sequence, and of the step's share in the "
        f"gradient of the recurrent weight; the first step is on the left. {seeds}Logarithmic; "
        f"exact zeros, and what is more than {DECADES} decades below the largest, lie on the lower "
        "edge."
    )
    return [
        Group(
            "gradient-flow",
            "Gradient along time",
            caption,
            tuple(panels),
            size=(2.5, 1.9),
            margin=(0.5, 0.42),
            rules=tuple(shown),
        )
    ]


def draw(axes: Any, *, found: Mapping[str, Steps], looks: Mapping[str, Look]) -> None:
    """One line per rule over the steps."""
    values = [v for steps in found.values() for vs in steps.values() for v in vs if v > 0]
    floor = max(0.5 * min(values, default=1.0), 10.0**-DECADES * max(values, default=1.0))
    for rule, steps in found.items():
        rows = [[max(v, floor) for v in vs] for vs in steps.values()]
        axes.plot(list(steps), [median(vs) for vs in rows], **line_style(looks[rule]))
        if any(len(vs) > 1 for vs in rows):
            low, high = [min(vs) for vs in rows], [max(vs) for vs in rows]
            colour = looks[rule].light
            axes.fill_between(list(steps), low, high, color=colour, alpha=0.16, linewidth=0)
    log_axis(axes, (floor, axes.get_ylim()[1]))
    axes.axhline(floor, color=SOFT, linewidth=0.8)
    axes.locator_params(axis="x", nbins=6, integer=True)
    axes.set_xlabel("step of the sequence", labelpad=2)


def _steps(runs: Sequence[Run], quantity: str, last: bool) -> Steps:
    """Values of the first measurement, or of the last; a step counts when every run has it."""
    per_run = []
    for run in runs:
        rows = [row for row in run.of_kind("step") if quantity in row]
        epochs = [row["epoch"] for row in rows]
        if not epochs:
            return {}
        epoch = max(epochs) if last else min(epochs)
        per_run.append({row["t"]: float(row[quantity]) for row in rows if row["epoch"] == epoch})
    shared = sorted(set.intersection(*map(set, per_run))) if per_run else []
    if quantity == "norm":
        shared = shared[1:]  # the weight has no state to act on before the first step
    return {t: [values[t] for values in per_run] for t in shared}
