"""What the learning of each layer is worth: runs in which one layer keeps its initial weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from apical.bench.report import gained
from apical.bench.report.names import display_name
from apical.bench.report.read import Row, Run, Study, test_error
from apical.bench.report.table import Column, Shown, Table, each, estimate, number, signed
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
    """A rule in a setting, all layers learning, and each layer's part."""

    row: Row
    layers: Mapping[str, Layer]

    @property
    def setting(self) -> str:
        return self.row.setting

    @property
    def rule(self) -> str:
        return self.row.rule

    @property
    def n(self) -> int:
        return self.row.n

    @property
    def planned(self) -> int:
        return self.row.planned

    @property
    def error(self) -> statistics.Summary | None:
        """Test error in %."""
        return self.row.summary(test_error)


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
    made: list[Line] = []
    tested: list[tuple[dict[str, Layer], Layer, float]] = []
    for full in study.rows:
        if not full.runs or frozen_layer(full.every[0]):
            continue
        layers: dict[str, Layer] = {}
        for row in study.rows_of(full.setting):
            name, rule = frozen_layer(row.every[0]), row.every[0].experiment.get("rule")
            if not name or rule != full.runs[0].experiment.get("rule"):
                continue
            if row.failed:
                layers[name] = Layer(name, None, DIVERGED, row.failed, row.planned)
                continue
            noise = gained.share_noise(row.runs) + gained.share_noise(full.runs)
            samples = row.sample(test_error), full.sample(test_error)
            p = statistics.difference_p(*samples, noise=noise)
            worth = statistics.paired_difference(*samples, noise=noise)
            layers[name] = Layer(name, worth, UNDECIDED)
            tested.append((layers, layers[name], 1.0 if p is None else p))
        if layers:
            made.append(Line(full, layers))
    corrected = statistics.holm([p for *_, p in tested])
    for (layers, layer, _), p in zip(tested, corrected, strict=True):
        layers[layer.name] = replace(layer, word=_word(layer.worth, p))
    return made


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
            Column.setting(study.several),
            Column.rule(),
            Column.runs(),
            Column("test error %", "error.mean", text=number),
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
    """With all layers learning, by rule."""
    return {display_name(line.rule): line.error for line in lines(study) if line.error}
