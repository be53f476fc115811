"""What the learning of each layer is worth: runs in which one layer keeps its initial weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from apical.bench.report import gained, rates
from apical.bench.report.names import display_name
from apical.bench.report.read import Run, Study
from apical.bench.report.results import closing, rule_column, seeds_sentence, setting_column
from apical.bench.report.table import (
    Column,
    Shown,
    Table,
    count,
    each,
    estimate,
    for_markdown,
    mean,
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
    n: int
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
    whole = _whole(study)
    found: dict[tuple[str, str], dict[str, Layer]] = {cell: {} for cell in whole}
    tested: list[tuple[dict[str, Layer], Layer, float]] = []
    for (setting, rule), full in whole.items():
        for other in study.rules:
            planned = [run for run in study.runs if (run.setting, run.rule) == (setting, other)]
            name = frozen_layer(planned[0]) if planned else ""
            if not name or planned[0].experiment.get("rule") != full[0].experiment.get("rule"):
                continue
            if failed := sum(run.status == "failed" for run in planned):
                diverged = Layer(name, None, DIVERGED, failed, len(planned))
                found[setting, rule][name] = diverged
                continue
            runs = study.finished(setting, other)
            noise = gained.share_noise(runs) + gained.share_noise(full)
            without, errors = _errors(runs), _errors(full)
            worth = statistics.paired_difference(without, errors, noise=noise)
            p = statistics.difference_p(without, errors, noise=noise)
            layer = Layer(name, worth, UNDECIDED)
            found[setting, rule][name] = layer
            tested.append((found[setting, rule], layer, 1.0 if p is None else p))
    corrected = statistics.holm([p for *_, p in tested])
    for (layers, layer, _), p in zip(tested, corrected, strict=True):
        layers[layer.name] = replace(layer, word=_word(layer.worth, p))
    return [
        Line(
            setting,
            rule,
            len(whole[setting, rule]),
            sum((run.setting, run.rule) == (setting, rule) for run in study.runs),
            statistics.summarize(list(_errors(whole[setting, rule]).values())),
            layers,
        )
        for (setting, rule), layers in found.items()
        if layers
    ]


def _whole(study: Study) -> dict[tuple[str, str], list[Run]]:
    """Finished runs in which all layers learn, by setting and rule."""
    cells = dict.fromkeys((run.setting, run.rule) for run in study.runs if not frozen_layer(run))
    return {cell: runs for cell in cells if (runs := study.finished(*cell))}


def _errors(runs: Sequence[Run]) -> dict[int, float]:
    return {run.seed: 100 * (1 - run.final["test_acc"]) for run in runs}


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
            setting_column(len(study.settings) > 1),
            rule_column(),
            Column("n", lambda line: count(line.n, line.planned), page="Runs n"),
            Column("test error %", lambda line: mean(line.error)),
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
    style = "differs" if found.word == HARMS else ""
    return Shown(f"{found.word} {shown.text}", shown.sort, shown.interval, style=style)


VERBS = {
    HELPS: "helps",
    IDLE: "is idle",
    HARMS: "harms",
    DIVERGED: "keeps runs from diverging",
    UNDECIDED: "is undecided",
}


def finding(study: Study) -> str:
    """What the table shows, in a sentence for each setting."""
    made = []
    rows = lines(study)
    settings = dict.fromkeys(line.setting for line in rows)
    for setting in settings:
        here = [line for line in rows if line.setting == setting]
        parts = []
        for layer in dict.fromkeys(layer for line in here for layer in line.layers):
            by_word: dict[str, list[str]] = {}
            for line in here:
                if layer in line.layers:
                    by_word.setdefault(line.layers[layer].word, []).append(display_name(line.rule))
            said = []
            for word, verb in VERBS.items():
                if word in by_word:
                    said.append(f"{verb} under {', '.join(by_word[word])}")
            parts.append(f"of {layer} {', '.join(said)}")
        where = f"{setting}: the" if len(settings) > 1 else "The"
        made.append(f"{where} learning {'; '.join(parts)}.")
    return " ".join(made)


def legend(study: Study) -> list[str]:
    """What the columns mean, a sentence each."""
    found = gained.gains(study)
    return [
        f"Tier {study.tier}. Test error: mean over n seeds, in %, all layers learning.",
        "Without a layer: that layer keeps its initial weights, all others learn; its test error "
        "minus that of the net in which all learn, in points, paired on the seeds, with a 95 % t "
        "interval. Helps: the error is higher without its learning, harms: lower, by paired t "
        "tests corrected for all comparisons of the table (Holm, 5 %), which the interval is not; "
        f"idle: neither, and the interval lies within ±{MARGIN:g} point; undecided: neither, and "
        "it does not. Where runs without a layer's learning diverged, nothing is tested.",
        gained.legend(study, found),
        seeds_sentence({display_name(line.rule): line.error for line in lines(study)}),
        *rates.sentences(study),
    ]


def to_markdown(study: Study) -> str:
    """The table, and what its columns mean."""
    notes = map(for_markdown, filter(None, [*legend(study), *study.notes]))
    return f"{table(study).markdown()}\n{' '.join([*notes, closing(study)])}\n"
