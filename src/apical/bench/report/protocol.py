"""What was run, in words and lists: state of the runs, settings, environments."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from apical.bench.report import rates
from apical.bench.report.names import display_name, joined
from apical.bench.report.read import FULL_TIER, Run, Study
from apical.bench.report.results import Cell, rule_column, setting_column
from apical.bench.report.table import Column, Shown, Table, each, number
from apical.nets.pretrained.start import WITHOUT_SOURCE

PER_RUN = ("key", "seed")
"""Fields of an experiment that the list of runs shows."""


def state(study: Study) -> dict[str, int]:
    """Number of runs per status, and `all`."""
    counts = Counter[str](run.status for run in study.runs)
    names = ("finished", "unfinished", "failed", "not started")
    return {"all": len(study.runs)} | {name.replace(" ", "_"): counts[name] for name in names}


def summary(study: Study) -> str:
    """One paragraph: what was run, how often, on what, under which protocol."""
    rules = joined([display_name(rule) for rule in study.rules])
    seeds = sorted({run.seed for run in study.runs})
    parts = [
        f"{_plural(len(study.rules), 'rule')} ({rules}) in "
        f"{_plural(len(study.settings), 'setting')} ({', '.join(study.settings)}), "
        f"{_plural(len(seeds), 'seed')} each."
    ]
    if not study.tier:
        parts.append("Runs of their own, not of a study; no published values to compare with.")
    elif not study.published and study.curves:
        parts.append(f"Tier {study.tier}; compared with a published course of training.")
    elif not study.published and study.robust_published:
        parts.append(f"Tier {study.tier}; compared with published robust accuracies.")
    elif not study.published:
        parts.append(f"Tier {study.tier}; no published values to compare with.")
    elif study.tier == FULL_TIER:
        parts.append("Tier full: the published protocol.")
    else:
        parts.append(
            f"Tier {study.tier}: shorter than the published protocol, so published values are "
            "shown for orientation and not judged."
        )
    seconds = [run.final["seconds"] for run in study.runs if "seconds" in run.final]
    if seconds:
        parts.append(f"{_duration(sum(seconds))} of training in all.")
    if seeds and len(seeds) < 3:
        parts.append("Fewer than three seeds: intervals say little and nothing is judged.")
    return " ".join(parts)


def verdicts(rows: Iterable[Cell]) -> str:
    """One sentence: how many published values agree, which are compatible with too wide a band to
    say more, and which differ; "" when none was judged."""
    judged = [row for row in rows if row.verdict and row.verdict.low is not None]
    if not judged:
        return ""
    several = len({row.setting for row in judged}) > 1

    def named(word: str) -> list[str]:
        found = [row for row in judged if row.verdict and row.verdict.word.startswith(word)]
        return [f"{row.setting} " * several + display_name(row.rule) for row in found]

    wide, differing = named("compatible"), named("differs")
    agree = len(judged) - len(wide) - len(differing)
    parts = [f"{agree} of {_plural(len(judged), 'published value')} agree"]
    if wide:
        parts.append(f"{len(wide)} compatible, but uninformative: {', '.join(wide)}")
    if differing:
        verb = "differs" if len(differing) == 1 else "differ"
        parts.append(f"{len(differing)} {verb}: {', '.join(differing)}")
    return "; ".join(parts) + "."


def protocols(study: Study) -> list[dict[str, Any]]:
    """Per setting the fields all its runs share, and those that differ, by rule.

    A field that came with a later version says nothing of the runs before: they ran at its default.
    """
    return [
        {"setting": setting} | _protocol([run for run in study.runs if run.setting == setting])
        for setting in study.settings
    ]


def _protocol(runs: Iterable[Run]) -> dict[str, Any]:
    known = [(run, _fields(run.experiment)) for run in runs if run.experiment]
    keys = dict.fromkeys(key for _, fields in known for key in fields)
    shared, differing = {}, {}
    for key in keys:
        if key in PER_RUN:
            continue
        by_rule: dict[str, list[str]] = {}
        for run, fields in known:
            if key not in fields:
                continue
            values = by_rule.setdefault(display_name(run.rule), [])
            if (value := text(fields.get(key))) not in values:
                values.append(value)
        distinct = {value for values in by_rule.values() for value in values}
        if len(distinct) == 1:
            shared[key] = distinct.pop()
        else:
            differing[key] = {rule: ", ".join(values) for rule, values in by_rule.items()}
    rules = dict.fromkeys(rule for by_rule in differing.values() for rule in by_rule)
    columns = [Column("differs by rule", str, left=True, style="soft")]
    columns += each(rules, lambda rule, key: differing[key].get(rule, ""), page="{}", left=True)
    table = Table(columns, list(differing), kind="") if differing else None
    return {"shared": shared, "differing": differing, "table": table}


def _fields(experiment: Mapping[str, Any]) -> dict[str, Any]:
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


def search(study: Study) -> list[tuple[str, Table]]:
    """Per setting how learning rates were chosen: validation error in % of every try, by rule."""
    settings = dict.fromkeys(cell["setting"] for cell in study.search)
    cells = list(study.search)
    return [(name, _tries([c for c in cells if c["setting"] == name])) for name in settings]


def _tries(cells: list[Mapping[str, Any]]) -> Table:
    values = sorted({tried["lr"] for cell in cells for tried in cell["tries"]}, reverse=True)

    def show(rate: float, cell: Mapping[str, Any]) -> Shown:
        chosen = rate == cell["lr"]
        errors = {tried["lr"]: _error(tried) for tried in cell["tries"]}
        return Shown(errors.get(rate, ""), strong=chosen, style="" if chosen else "soft")

    def edge(cell: Mapping[str, Any]) -> str:
        at_edge = ["at the edge of what was tried"] if cell.get("at_edge") else []
        return "; ".join([*filter(None, [rates.stability(cell)]), *at_edge])

    return Table(
        [
            Column("rule", lambda cell: display_name(cell["rule"]), left=True, style="rule"),
            *each(values, show, "{:g}"),
            Column(" ", edge, left=True, style="soft", keep=any(map(edge, cells))),
        ],
        cells,
        "Choice of learning rates",
        kind="",
    )


def runs(study: Study) -> Table:
    """All runs of a study."""

    def error(run: Run) -> Shown:
        if "test_acc" not in run.final:
            return Shown("")
        value = 100 - 100 * run.final["test_acc"]
        return Shown(number(value), value)

    def minutes(run: Run) -> Shown:
        value = run.final["seconds"] / 60 if "seconds" in run.final else None
        return Shown("" if value is None else f"{value:.1f}", value)

    head = "First found is wrong %" if study.retrieval else "Test error %"
    return Table(
        [
            setting_column(len(study.settings) > 1),
            rule_column(),
            Column("seed", lambda run: Shown(str(run.seed), run.seed)),
            Column("status", lambda run: run.status, left=True),
            Column("", error, page=head),
            Column("minutes", minutes),
            Column("folder", lambda run: run.folder, left=True, style="code"),
            Column("command", lambda run: run.command, left=True, style="code",
                   keep=any(run.command for run in study.runs)),
        ],
        study.runs,
        "All runs",
    )  # fmt: skip


def environment(study: Study) -> dict[str, list[tuple[str, int]]]:
    """Per key the values seen, most frequent first, with the number of runs of each."""
    seen: dict[str, Counter[str]] = {}
    for run in study.runs:
        for key, value in flatten(run.environment).items():
            seen.setdefault(key, Counter())[text(value)] += 1
    return {key: values.most_common() for key, values in seen.items()}


def _error(tried: Mapping[str, Any]) -> str:
    """Validation error in %; of hash nets, which are chosen by mAP, what it lacks to 100 %."""
    if "val_acc" not in tried:
        return "diverged"
    return number(100 - 100 * float(tried.get("val_map", tried["val_acc"])))


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one level with dotted keys; empty ones vanish.

    >>> flatten({"optimizer": {"name": "sgd", "lr": 0.1}})
    {'optimizer.name': 'sgd', 'optimizer.lr': 0.1}
    """
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            flat |= flatten(item, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = item
    return flat


def text(value: Any) -> str:
    """A value of a setting as a reader would write it: lists and mappings without brackets."""
    if value is None or value == [] or value == "":
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {text(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(text(item) for item in value)
    return str(value)


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")


def _duration(seconds: float) -> str:
    for size, unit in ((3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"
