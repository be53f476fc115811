"""What the learning of each layer is worth: runs in which one layer keeps its initial weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from apical.bench.report import gained
from apical.bench.report.names import display_name
from apical.bench.report.read import Run, Study
from apical.bench.report.results import errors_of
from apical.bench.report.table import (
    Column,
    Shown,
    Table,
    at,
    count,
    each,
    estimate,
    mean,
    rule_column,
    setting_column,
    signed,
)
from apical.measure import statistics

MARGIN = 1.0
"""Points within which the interval of an idle layer lies."""

HELPS, HARMS, IDLE, UNDECIDED = "helps", "harms", "idle", "undecided"
DIVERGED = "diverged"
"""Of a layer without whose learning some runs did not come to their end: those that did are no fair
sample, and nothing is tested."""


@dataclass(frozen=True)
class Layer:
    """Attributes: worth: test error without the learning of a layer minus that with it, in points;
    None where runs diverged, or none has finished. failed: how many of the planned runs
    diverged.
    """

    name: str
    worth: statistics.Summary | None
    word: str
    failed: int = 0
    planned: int = 0


@dataclass(frozen=True)
class Line:
    """A rule in a setting: test error in % with all layers learning, and each layer's part."""

    setting: str
    rule: str
    planned: int
    error: statistics.Summary
    layers: Mapping[str, Layer]


def frozen_layer(run: Run) -> str:
    """The layer of a net's own initial weights that does not learn, "" where all do."""
    start = run.experiment.get("start") or {}
    patterns = [] if start.get("source") else start.get("freeze") or []
    return ", ".join(pattern.removesuffix(".*") for pattern in patterns)


def concerns(study: Study) -> bool:
    """Whether the study compares nets with and without the learning of a layer."""
    return any(map(frozen_layer, study.runs))


def lines(study: Study) -> list[Line]:
    """A line for each rule of each setting that has rows without a layer, in the study's order."""
    cells = dict.fromkeys((run.setting, run.rule) for run in study.runs if not frozen_layer(run))
    whole = {cell: runs for cell in cells if (runs := study.finished(*cell))}
    found: dict[tuple[str, str], dict[str, Layer]] = {cell: {} for cell in whole}
    tested: list[tuple[dict[str, Layer], Layer, float]] = []
    for cell, full in whole.items():
        for other in study.rules:
            planned = study.planned(cell[0], other)
            name = frozen_layer(planned[0]) if planned else ""
            if not name or planned[0].experiment.get("rule") != full[0].experiment.get("rule"):
                continue
            if failed := sum(run.status == "failed" for run in planned):
                found[cell][name] = Layer(name, None, DIVERGED, failed, len(planned))
                continue
            runs = study.finished(cell[0], other)
            noise = gained.share_noise(runs) + gained.share_noise(full)
            samples = errors_of(runs), errors_of(full)
            p = statistics.difference_p(*samples, noise=noise)
            layer = Layer(name, statistics.paired_difference(*samples, noise=noise), UNDECIDED)
            found[cell][name] = layer
            tested.append((found[cell], layer, 1.0 if p is None else p))
    corrected = statistics.holm([p for *_, p in tested])
    for (layers, layer, _), p in zip(tested, corrected, strict=True):
        layers[layer.name] = replace(layer, word=_word(layer.worth, p))
    return [
        Line(
            *cell,
            len(study.planned(*cell)),
            statistics.summarize(list(errors_of(whole[cell]).values())),
            layers,
        )
        for cell, layers in found.items()
        if layers
    ]


def _word(worth: statistics.Summary | None, p: float) -> str:
    """Args: p: of a difference of 0, corrected for all comparisons of the table."""
    if worth is None or worth.low is None or worth.high is None or worth.n < statistics.FEWEST:
        return UNDECIDED
    if p < 1 - statistics.LEVEL:
        return HELPS if worth.mean > 0 else HARMS
    return IDLE if worth.low > -MARGIN and worth.high < MARGIN else UNDECIDED


def table(study: Study) -> Table:
    """A row for each rule, a column for each layer."""
    rows = lines(study)
    longest = sorted(rows, key=lambda line: -len(line.layers))  # names of the deepest net first
    layers = dict.fromkeys(layer for line in longest for layer in line.layers)
    return Table(
        [
            setting_column(study.several),
            rule_column(),
            Column("n", lambda line: count(line.error.n, line.planned), page="Runs n"),
            Column("test error %", at("error", mean)),
            *gained.columns(gained.gains(study)),
            *each(layers, _layer, "without {}"),
        ],
        rows,
        "What the learning of each layer is worth",
    )


def _layer(name: str, line: Line) -> Shown:
    found = line.layers.get(name)
    if found is None:
        return Shown("")
    if found.word == DIVERGED:
        return Shown(f"{found.failed} of {found.planned} runs diverged", style="differs")
    shown = estimate(found.worth, signed)
    return replace(
        shown, text=f"{found.word} {shown.text}", style="differs" if found.word == HARMS else ""
    )


VERBS = {
    HELPS: "helps",
    IDLE: "is idle",
    HARMS: "harms",
    DIVERGED: "keeps runs from diverging",
    UNDECIDED: "is undecided",
}


def finding(study: Study) -> str:
    """What the table shows, in a sentence for each setting."""
    by_setting: dict[str, list[Line]] = {}
    for line in lines(study):
        by_setting.setdefault(line.setting, []).append(line)
    made = []
    for setting, here in by_setting.items():
        parts = "; ".join(
            f"of {layer} {_said(here, layer)}"
            for layer in dict.fromkeys(layer for line in here for layer in line.layers)
        )
        where = f"{setting}: the" if len(by_setting) > 1 else "The"
        made.append(f"{where} learning {parts}.")
    return " ".join(made)


def _said(rows: Sequence[Line], layer: str) -> str:
    """ "helps under BP, harms under FA"."""
    by_word: dict[str, list[str]] = {}
    for line in rows:
        if layer in line.layers:
            by_word.setdefault(line.layers[layer].word, []).append(display_name(line.rule))
    return ", ".join(
        f"{verb} under {', '.join(by_word[word])}"
        for word, verb in VERBS.items()
        if word in by_word
    )


def errors(study: Study) -> dict[str, statistics.Summary]:
    return {display_name(line.rule): line.error for line in lines(study)}
