"""What was run, in words and lists: state of the runs, settings, environments."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from apical.bench.report import gained
from apical.bench.report.names import display_name, joined
from apical.bench.report.read import Run, Study
from apical.bench.report.results import Cell
from apical.bench.report.table import Column, Shown, Table, each, flatten, number, plain, text
from apical.bench.storage.records import Record, grouped
from apical.nets.pretrained.start import WITHOUT_SOURCE

PER_RUN = ("key", "seed")
"""Fields of an experiment that the list of runs shows."""


def verdicts(rows: Iterable[Cell]) -> str:
    """One sentence: how many published values agree, which are compatible with too wide a band to
    say more, which differ, and how many were not judged; "" when none was judged."""
    rows = [row for row in rows if row.published]
    judged = [(r, r.verdict.word) for r in rows if r.verdict and r.verdict.low is not None]
    if not judged:
        return ""
    several = len({row.setting for row, _ in judged}) > 1
    wide, differing = (
        [
            f"{row.setting} " * several + display_name(row.rule)
            for row, word in judged
            if word.startswith(start)
        ]
        for start in ("compatible", "differs")
    )
    agree = len(judged) - len(wide) - len(differing)
    values, verb = plural(len(judged), "published value"), "agree" + "s" * (len(judged) == 1)
    parts = [f"{agree} of {values} {verb}"]
    if wide:
        parts.append(f"{len(wide)} compatible, but uninformative: {', '.join(wide)}")
    if differing:
        verb = "differs" if len(differing) == 1 else "differ"
        parts.append(f"{len(differing)} {verb}: {', '.join(differing)}")
    if others := len(rows) - len(judged):
        parts.append(f"{others} not judged")
    return "; ".join(parts) + "."


@dataclass(frozen=True)
class Protocol:
    """The fields that all runs of a setting share, and those that differ, by rule."""

    setting: str
    shared: Mapping[str, str]
    differing: Mapping[str, Mapping[str, str]]

    @property
    def table(self) -> Table | None:
        """What differs; None where nothing does."""
        rules = dict.fromkeys(rule for by_rule in self.differing.values() for rule in by_rule)
        columns = [
            Column("differs by rule", str, left=True, style="soft"),
            *each(rules, lambda rule, key: self.differing[key].get(rule, ""), page="{}", left=True),
        ]
        return Table(columns, list(self.differing), kind="") if rules else None


def protocols(study: Study) -> list[Protocol]:
    """Of every setting. A field that came with a later version is left out for earlier runs:
    they ran at its default."""
    made = []
    for setting in study.settings:
        values: dict[str, dict[str, dict[str, None]]] = {}  # of every field by rule, each once
        for run in (run for run in study.runs if run.setting == setting and run.experiment):
            for key, value in _fields(run.experiment).items():
                if key not in PER_RUN:
                    by_rule = values.setdefault(key, {})
                    by_rule.setdefault(display_name(run.rule), {})[text(value)] = None
        shared, differing = {}, {}
        for key, by_rule in values.items():
            distinct = {value for of_rule in by_rule.values() for value in of_rule}
            if len(distinct) == 1:
                shared[key] = distinct.pop()
            else:
                differing[key] = {rule: ", ".join(of_rule) for rule, of_rule in by_rule.items()}
        made.append(Protocol(setting, shared, differing))
    return made


def _fields(experiment: Record) -> dict[str, Any]:
    """The experiment as one level; a rule or learner with its options stays one field."""
    named = {key: _named(key, experiment[key]) for key in ("rule", "learner") if key in experiment}
    left_out = {*named, "data"} if experiment.get("task") else {*named}
    start = experiment.get("start") or {}
    if not start.get("source"):  # but which parameters of the net's own learn, and how fast
        limits = {name: start[name] for name in WITHOUT_SOURCE if start.get(name)}
        experiment = {**experiment, "start": limits}
    return named | flatten({k: value for k, value in experiment.items() if k not in left_out})


def _named(kind: str, value: Any) -> str:
    """A rule or learner as its name and, in brackets, its options; other mappings as they are."""
    if not (isinstance(value, Mapping) and kind in value):
        return text(value)
    options = text({key: each for key, each in value.items() if key != kind})
    return f"{value[kind]} ({options})" if options else str(value[kind])


def search(study: Study) -> dict[str, Table]:
    """By setting how learning rates were chosen: validation error in %, mean over seeds."""
    by_setting = grouped(study.search, lambda choice: choice["setting"])
    return {setting: _tries(choices) for setting, choices in by_setting.items()}


def _tries(choices: list[Record]) -> Table:
    rates = sorted({tried["lr"] for choice in choices for tried in choice["tries"]})

    def show(rate: float, choice: Record) -> Shown:
        tried = next((tried for tried in choice["tries"] if tried["lr"] == rate), None)
        chosen = rate == choice["lr"]
        return Shown(_error(tried), strong=chosen, style="" if chosen else "soft")

    def edge(choice: Record) -> str:
        at_edge = "at the edge of what was tried" if choice.get("at_edge") else ""
        return "; ".join(filter(None, [gained.stability(choice), at_edge]))

    def seeds(choice: Record) -> str:
        return str(max(len(tried.get("errors", [None])) for tried in choice["tries"]))

    columns = [
        Column.rule(),
        Column("n", seeds, page="Seeds n"),
        *each(rates, show, "{:g}"),
        Column("choice", edge, left=True, style="soft", keep=any(map(edge, choices))),
    ]
    return Table(columns, choices, "Choice of learning rates", kind="")


def runs(study: Study) -> Table:
    """All runs of a study."""

    def error(run: Run) -> Shown:
        accuracy = run.final.get("test_acc")
        return plain(None if accuracy is None else 100 - 100 * accuracy, number)

    head = "First found is wrong %" if study.retrieval else "Test error %"
    columns = [
        Column.setting(study.several),
        Column.rule(),
        Column("seed", "seed"),
        Column("status", "status", left=True),
        Column("", error, page=head),
        Column("minutes", "final.seconds", text=lambda seconds: f"{seconds / 60:.1f}"),
        Column("folder", "folder", left=True, style="code"),
        Column("command", "command", left=True, style="code",
               keep=any(run.command for run in study.runs)),
    ]  # fmt: skip
    return Table(columns, study.runs, "All runs")


def environment(study: Study) -> dict[str, list[tuple[str, int]]]:
    """Per key the values seen, most frequent first, with the number of runs of each."""
    seen: dict[str, Counter[str]] = {}
    for run in study.runs:
        for key, value in flatten(run.environment).items():
            seen.setdefault(key, Counter())[text(value)] += 1
    return {key: values.most_common() for key, values in seen.items()}


def processors(study: Study) -> str:
    """Which rows were trained on which CPU; "" where all were on one."""
    runs = [(study.named(row), run.environment) for row in study.rows for run in row.runs]
    by_cpu = grouped(runs, lambda run: run[1].get("cpu", "an unknown CPU"))
    if len(by_cpu) < 2:
        return ""
    most = max(by_cpu, key=lambda cpu: len(by_cpu[cpu]))
    others = [
        f"{plural(len(of_cpu), 'run')} of {joined([*dict(of_cpu)])} on {cpu}"
        for cpu, of_cpu in by_cpu.items()
        if cpu != most
    ]
    return (
        f"Trained on {most}, but {'; '.join(others)}: runs of one seed share data and initial "
        "weights, not rounding."
    )


def _error(tried: Record | None) -> str:
    """Validation error in % of the seeds that did not diverge, and how many did; of hash nets,
    which are chosen by mAP, what it lacks to 100 %."""
    if tried is None:
        return ""
    if "val_acc" not in tried:
        return "diverged"
    lost = tried.get("diverged", 0)
    if not lost:
        return number(100 - 100 * float(tried.get("val_map", tried["val_acc"])))
    seeds = zip(tried["errors"], tried["losses"], strict=True)
    done = [error for error, loss in seeds if loss is not None]
    return f"{number(100 * sum(done) / len(done))} ({lost} of {len(tried['errors'])} diverged)"


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")


def training_time(study: Study) -> str:
    """ "2.5 hours"; "" without any."""
    seconds = sum(run.final.get("seconds", 0.0) for run in study.runs)
    for size, unit in ((3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds" if any("seconds" in run.final for run in study.runs) else ""
