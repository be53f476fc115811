"""What the learning of each layer is worth: runs in which one layer keeps its initial weights."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from apical.bench.report import gained
from apical.bench.report.names import display_name
from apical.bench.report.read import Row, Run, Study, test_error
from apical.bench.report.results import seeds_sentence
from apical.bench.report.table import Column, Shown, Table, each, estimate, mean, signed
from apical.bench.storage.records import grouped
from apical.measure import statistics

MARGIN = 1.0
"""Points within which the interval of an idle layer lies."""

HELPS, HARMS, IDLE, UNDECIDED = "helps", "harms", "idle", "undecided"
DIVERGED = "diverged"
"""Of a layer without whose learning some runs did not come to their end: those that did are no fair
sample, and nothing is tested."""

VERBS = {
    HELPS: "helps",
    IDLE: "is idle",
    HARMS: "harms",
    DIVERGED: "is not tested, as runs diverged,",
    UNDECIDED: "is undecided",
}


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


Layers = Mapping[tuple[str, str], Mapping[str, Layer]]
"""By setting and rule, then by the name of the layer."""


def frozen_layer(run: Run) -> str:
    """The layer of a net's own initial weights that does not learn, "" where all do."""
    start = run.experiment.get("start") or {}
    patterns = [] if start.get("source") else start.get("freeze") or []
    return ", ".join(pattern.removesuffix(".*") for pattern in patterns)


def concerns(study: Study) -> bool:
    """Whether the study compares nets with and without the learning of a layer."""
    return any(map(frozen_layer, study.runs))


def layers(study: Study) -> Layers:
    """The layers of each rule of each setting that has rows without one, in the study's order."""
    by_row: dict[tuple[str, str], dict[str, Layer]] = {}
    tested: list[tuple[dict[str, Layer], Layer, float]] = []
    for full in study.rows:
        if frozen_layer(full.every[0]):
            continue
        for row in study.rows_of(full.setting):
            name = frozen_layer(row.every[0])
            if not name or _trained(row) != _trained(full):
                continue
            of_rule = by_row.setdefault((full.setting, full.rule), {})
            if row.failed:
                of_rule[name] = Layer(name, None, DIVERGED, row.failed, row.planned)
                continue
            samples = row.sample(test_error), full.sample(test_error)
            p = statistics.difference_p(*samples, noise=row.noise() + full.noise())
            of_rule[name] = Layer(name, row.minus(full, test_error), UNDECIDED)
            if not full.failed:  # else those that are left are no fair sample either
                tested.append((of_rule, of_rule[name], 1.0 if p is None else p))
    corrected = statistics.holm([p for *_, p in tested])
    for (of_rule, layer, _), p in zip(tested, corrected, strict=True):
        of_rule[layer.name] = replace(layer, word=_word(layer.worth, p))
    return by_row


def _trained(row: Row) -> tuple[str, float | None]:
    """Rule and learner with their options, and the learning rate."""
    run = row.every[0]
    return gained.trained_as(run), run.experiment.get("lr")


def _word(worth: statistics.Summary | None, p: float) -> str:
    """Args: p: of a difference of 0, corrected for all comparisons of the table."""
    if worth is None or worth.low is None or worth.high is None or worth.n < statistics.FEWEST:
        return UNDECIDED
    if p < 1 - statistics.LEVEL:
        return HELPS if worth.mean > 0 else HARMS
    return IDLE if worth.low > -MARGIN and worth.high < MARGIN else UNDECIDED


def table(study: Study) -> Table:
    """A row for each rule, a column for each layer."""
    by_row = layers(study)
    deepest = sorted(by_row.values(), key=lambda of_rule: -len(of_rule))
    names = dict.fromkeys(name for of_rule in deepest for name in of_rule)

    def show(name: str, row: Row) -> Shown:
        layer = by_row[row.setting, row.rule].get(name)
        if layer is None:
            return Shown("")
        if layer.word == DIVERGED:
            return Shown(f"{layer.failed} of {layer.planned} runs diverged", style="differs")
        shown = estimate(layer.worth, signed, of=row.n)
        style = "differs" if layer.word == HARMS else ""
        return replace(shown, text=f"{layer.word} {shown.text}", style=style)

    columns = [
        Column.setting(study.several),
        Column.rule(),
        Column.runs(),
        Column("test error %", lambda row: mean(row.summary(test_error))),
        *gained.columns(gained.gains(study)),
        *each(names, show, "without {}"),
    ]
    rows = [study.row(*cell) for cell in by_row]
    return Table(columns, rows, "What the learning of each layer is worth")


def finding(study: Study) -> str:
    """What the table shows, in a sentence for each setting."""
    by_row = layers(study)
    by_setting = grouped(by_row.items(), lambda item: item[0][0])
    sentences = []
    for setting, rows in by_setting.items():
        found = [(display_name(rule), layer) for (_, rule), e in rows for layer in e.values()]
        parts = []
        for name, of_layer in grouped(found, lambda pair: pair[1].name).items():
            rules = {
                verb: [rule for rule, layer in of_layer if layer.word == word]
                for word, verb in VERBS.items()
            }
            words = [f"{verb} under {', '.join(names)}" for verb, names in rules.items() if names]
            parts.append(f"of {name} {', '.join(words)}")
        start = f"{setting}: the" if len(by_setting) > 1 else "The"
        sentences.append(f"{start} learning {'; '.join(parts)}.")
    return " ".join(sentences)


def widest(study: Study) -> str:
    """`seeds_sentence` of the errors with all layers learning, by rule."""
    rows = [study.row(*cell) for cell in layers(study)]
    errors = {display_name(row.rule): row.summary(test_error, row.noise()) for row in rows}
    return seeds_sentence({rule: error for rule, error in errors.items() if error})
