"""A study folder as values: study.json and, per run, experiment.json, records, environment.

Loose folders, as runs leave them, and packed studies (see `storage.packing`) read alike.

study.json:
    name, title, tier, command   text; the command regenerates the study
    runs        list of {folder, setting, rule, seed} and optionally {command}
    published   list of {setting, rule, metric, value, unit, source}, optionally {n, other_scale};
                metric test_error or test_accuracy; unit "%" or "fraction"; n runs behind it (1);
                other_scale says why the value is no match for these runs whatever the tier
    notes       list of text: what a reader must know about the data, printed with the numbers
    curves      optional: list of {setting, rule, metric, layer, values, source, allowance, n}:
                published values by epoch, in % (metric test_acc) or degrees (angle_deg,
                gradient_angle_deg), and the difference up to which ours agree
    search      optional: list of {setting, rule, lr, at_edge, tries}, how a learning rate was
                chosen; tries is a list of {lr, val_acc}, of hash nets with val_map, or, where it
                diverged, {lr, reason}
    solved      optional: share of right validation answers, in (0, 1), above which a task is solved
    robustness, retrieval   optional: lists of {folder, setting, rule, seed, evaluation}; the last
                is a folder within the run folder
    robust_published  optional: list of {setting, rule, attack, eps, metric, value, unit, source}
                and optionally {n, group, other_scale}; attack and group as in the rows of the
                evaluation, metric robust_accuracy or attack_success
A run folder alone, as apical train leaves it, is read as a study of this one run.

experiment.json: {key, versions, experiment}; the last is the experiment with all its fields.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from apical.bench.experiment.own_code import GIVEN
from apical.bench.report.evaluations import Retrieval, Robustness, Status, check_entries
from apical.bench.report.names import display_name, mislabelled, rule_name
from apical.bench.report.published import ERRORS, ROBUSTNESS, Curve, Published, read_published
from apical.bench.storage import packing
from apical.bench.storage.records import Record, grouped
from apical.measure import statistics
from apical.measure.probes import no_angle_reason

ERROR, MAP = "test_acc", "test_map"
"""The share of a final row that is compared; of hash nets the mean average precision."""

GIVEN_DIGITS = 6
"""Digits of the digest that a table shows of a net or data that were given as objects."""


@dataclass(frozen=True)
class Run:
    """One run and how far it came; `reason` says why it is not finished."""

    folder: str
    setting: str
    rule: str
    seed: int
    status: Status
    reason: str = ""
    command: str = ""
    experiment: Record = field(default_factory=dict)
    code: Record = field(default_factory=dict)
    versions: Record = field(default_factory=dict)
    environment: Record = field(default_factory=dict)
    rows: tuple[Record, ...] = ()

    def of_kind(self, kind: str, layer: str | None = None) -> list[Record]:
        """Rows of a kind, in their order; of one layer where it is named."""
        return self._sorted.get((kind, layer), [])

    def measured(self, kind: str, key: str, *, last: bool = True) -> list[Record]:
        """Rows of a kind that hold a quantity: those of the last epoch with any, or of the
        first."""
        rows = [row for row in self.of_kind(kind) if key in row]
        epoch = (max if last else min)((row["epoch"] for row in rows), default=None)
        return [row for row in rows if row["epoch"] == epoch]

    def no_angle(self, row: Record) -> str:
        """Why the angle of a layer's update in a row says nothing; "" where it does."""
        return no_angle_reason(row, self._largest.get((row.get("epoch"), row.get("step")), 0.0))

    @cached_property
    def _largest(self) -> dict[Any, float]:
        """The largest norm of a reference gradient in each measurement."""
        largest: dict[Any, float] = {}
        for row in self.of_kind("layer"):
            at, norm = (row["epoch"], row.get("step")), row.get("gradient_reference_norm", 0.0)
            largest[at] = max(norm, largest.get(at, 0.0))
        return largest

    @property
    def layers(self) -> list[str]:
        """Layers with rows of their own, from input to output."""
        return [layer for kind, layer in self._sorted if kind == "layer" and layer is not None]

    @cached_property
    def _sorted(self) -> dict[tuple[str, str | None], list[Record]]:
        rows: dict[tuple[str, str | None], list[Record]] = {}
        for row in self.rows:
            for layer in {None, row.get("layer")}:
                rows.setdefault((row.get("kind", ""), layer), []).append(row)
        return rows

    @property
    def final(self) -> Record:
        """The row that closes a finished run, {} for others."""
        return next(reversed(self.of_kind("final")), {})


Value = Callable[[Run], float | None]


@dataclass(frozen=True)
class Row:
    """A rule in a setting, with its runs: most tables have a row for each."""

    setting: str
    rule: str
    every: tuple[Run, ...] = ()

    @cached_property
    def runs(self) -> list[Run]:
        """The finished ones."""
        return [run for run in self.every if run.status == "finished"]

    @property
    def n(self) -> int:
        return len(self.runs)

    @property
    def planned(self) -> int:
        return len(self.every)

    @property
    def failed(self) -> int:
        return sum(run.status == "failed" for run in self.every)

    @property
    def unfinished(self) -> int:
        return self.planned - self.n - self.failed

    @property
    def mislabelled(self) -> bool:
        """Whether its label names another rule than trained one of its runs."""
        return any(mislabelled(self.rule, run.experiment) for run in self.every)

    def sample(self, value: Value) -> dict[int, float]:
        """A value of each finished run by seed; those without it are left out."""
        values = {run.seed: value(run) for run in self.runs}
        return {seed: known for seed, known in values.items() if known is not None}

    def minus(
        self, other: "Row", value: Value, metric: str = ERROR, *, level: float = statistics.LEVEL
    ) -> statistics.Summary | None:
        """Of a value that is an affine function of a metric, on the seeds of both."""
        noise = self.noise(metric) + other.noise(metric)
        samples = self.sample(value), other.sample(value)
        return statistics.paired_difference(*samples, level=level, noise=noise)

    def fair(self, verdict: statistics.Verdict) -> statistics.Verdict:
        """A verdict on what is left of its runs, which agrees with nothing where others failed."""
        if not self.failed or verdict.word not in ("equivalent", "agrees"):
            return verdict
        why = f"{self.failed} of {self.planned} runs failed: the others are no fair sample"
        return replace(verdict, word="compatible, uninformative", why=why)

    def summary(self, value: Value, noise: float = 0.0) -> statistics.Summary | None:
        """noise: variance of a value for the test set alone, for the interval of equal values."""
        values = list(self.sample(value).values())
        noise *= len(set(values)) == 1
        return statistics.summarize(values, noise=noise) if values else None

    def share(self, metric: str = ERROR) -> statistics.Summary | None:
        """Of a share of the final row, in %."""
        return self.summary(percent_of(metric), self.noise(metric))

    def noise(self, metric: str = ERROR) -> float:
        """Variance, in %^2, that the share of one run has for its test set alone; 0 if unknown. Of
        a mean of average precisions, which lie in [0, 1] too, it is an upper bound."""
        finals = [run.final for run in self.runs if metric in run.final]
        if not finals or any("test_count" not in final for final in finals):
            return 0.0
        mean = sum(final[metric] for final in finals) / len(finals)
        return 1e4 * statistics.binomial_variance(mean, finals[0]["test_count"])


def percent_of(key: str) -> Value:
    """A share of the final row, in %."""
    return lambda run: 100 * run.final[key] if key in run.final else None


def test_error(run: Run) -> float:
    """Test error in % of a finished run."""
    return float(100 * (1 - run.final["test_acc"]))


@dataclass(frozen=True)
class Study:
    name: str
    title: str
    runs: tuple[Run, ...]
    tier: str = ""
    command: str = ""
    published: tuple[Published, ...] = ()
    notes: tuple[str, ...] = ()
    search: tuple[Record, ...] = ()
    curves: tuple[Curve, ...] = ()
    robustness: tuple[Robustness, ...] = ()
    retrieval: tuple[Retrieval, ...] = ()
    robust_published: tuple[Published, ...] = ()
    overview: Record | None = None
    solved: float | None = None

    @property
    def settings(self) -> list[str]:
        return list(dict.fromkeys(run.setting for run in self.runs))

    @property
    def several(self) -> bool:
        """Whether tables must name the setting."""
        return len(self.settings) > 1

    @property
    def rules(self) -> list[str]:
        return list(dict.fromkeys(run.rule for run in self.runs))

    @cached_property
    def rows(self) -> list[Row]:
        """Every setting and rule with runs, in the order of study.json."""
        by_names = grouped(self.runs, lambda run: (run.setting, run.rule))
        return [Row(*names, tuple(of_row)) for names, of_row in by_names.items()]

    def row(self, setting: str, rule: str) -> Row:
        """That of a rule in a setting; one without runs where there is none."""
        rows = (row for row in self.rows if (row.setting, row.rule) == (setting, rule))
        return next(rows, Row(setting, rule))

    def rows_of(self, setting: str) -> list[Row]:
        """Those of a setting, in the order of the rules of the study."""
        rows = [row for row in self.rows if row.setting == setting]
        return sorted(rows, key=lambda row: self.rules.index(row.rule))

    def named(self, row: Any) -> str:
        """A row, or what has its setting and rule, in sentences."""
        return f"{row.setting} " * self.several + display_name(row.rule)

    @property
    def changed_trees(self) -> int:
        """Runs whose code differed from the commit that their environment names."""
        return sum(run.environment.get("git_dirty") is True for run in self.runs)

    def by_rule(self, setting: str) -> dict[str, list[Run]]:
        """The finished runs of a setting; rules without any are left out."""
        return {row.rule: row.runs for row in self.rows_of(setting) if row.runs}


def is_study(folder: Path) -> bool:
    return (folder / packing.STUDY).is_file()


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run, or evaluations of the robustness of a net."""
    folder = folder.resolve()
    source, home = packing.open_folder(folder.parent), f"{folder.name}/{Robustness.home}"
    return source.has(f"{folder.name}/experiment.json") or any(
        source.has(f"{home}/{name}/setting.json") for name in source.folders(home)
    )


def read_run(folder: Path) -> Study:
    """A run folder as a study of one run, its tier and command "", with all it holds."""
    folder = folder.resolve()
    run = one_run(packing.open_folder(folder.parent), folder.name)
    about = (folder, run.setting, run.rule, run.seed)
    return Study(
        folder.name,
        f"{display_name(run.rule)}: {run.setting}" if run.experiment else run.setting,
        (run,),
        robustness=tuple(Robustness.of_run(*about)),
        retrieval=tuple(Retrieval.of_run(*about)),
    )


def one_run(source: packing.Folder, folder: str) -> Run:
    """A run, named after its net, data and rule; settings that cannot be read are none."""

    def read(name: str, key: str) -> Any:
        try:
            return source.read_json(f"{folder}/{name}")[key]
        except (KeyError, TypeError, ValueError, OSError):
            return None

    experiment = read("experiment.json", "experiment") or {}
    net, task = str(experiment.get("net", "net")), experiment.get("task")
    data = f"{task}, {experiment['length']} steps" if task else str(experiment.get("data", "data"))
    if net.startswith(GIVEN):
        net = f"{read('given.json', 'net') or 'net'} {net.removeprefix(GIVEN)[:GIVEN_DIGITS]}"
    if data.startswith(GIVEN):
        data = f"data {data.removeprefix(GIVEN)[:GIVEN_DIGITS]}"
    setting = f"{net} on {data}" if experiment else folder
    names = {"setting": setting, "rule": rule_name(experiment)}
    return _read_run(source, {"folder": folder, "seed": experiment.get("seed", 0), **names})


def read_study(folder: Path) -> Study:
    """Read a study and whatever its runs have left so far.

    Raises: ValueError when study.json is missing, is not JSON or lacks a key, or when a packed
        file is damaged.
    """
    if not is_study(folder):
        raise ValueError(f"{folder} is no study: it has no study.json")
    source = packing.open_folder(folder)
    value = source.read_json(packing.STUDY)
    try:
        runs = [f"{run['setting']}, {run['rule']}, seed={run['seed']}" for run in value["runs"]]
        values = [f"of {row['setting']}, {row['rule']}" for row in value["published"]]
        for kind, names in (("runs", runs), ("published values", values)):
            if len({*names}) < len(names):
                twice = max(names, key=names.count)
                raise ValueError(f"{folder / 'study.json'}: two {kind} are {twice}")
        check_entries(value, str(folder / "study.json"))
        return Study(
            **{key: value[key] for key in ("name", "title", "tier", "command")},
            **{key: value.get(key) for key in ("overview", "solved")},
            runs=tuple(_read_run(source, entry) for entry in value["runs"]),
            published=tuple(read_published(entry, ERRORS) for entry in value["published"]),
            notes=(*value["notes"], *_unlisted(source, {run["folder"] for run in value["runs"]})),
            search=tuple(value.get("search", ())),
            curves=tuple(_curve(entry) for entry in value.get("curves", ())),
            robustness=tuple(Robustness.of_entry(source, e) for e in value.get("robustness", ())),
            retrieval=tuple(Retrieval.of_entry(source, e) for e in value.get("retrieval", ())),
            robust_published=tuple(
                read_published(entry, ROBUSTNESS) for entry in value.get("robust_published", ())
            ),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder / 'study.json'}: missing or misshapen entry {error}") from error


def _unlisted(source: packing.Folder, listed: set[str]) -> list[str]:
    """A note on runs in the folder of a study that it does not list: leaving out is a choice."""
    others = [name for name in source.folders(".") if name not in listed and name[0] != "."]
    if count := sum(source.has(f"{name}/experiment.json") for name in others):
        runs = "run" if count == 1 else "runs"
        return [f"Not listed in study.json, and not counted: {count} {runs} in its folder."]
    return []


def _curve(entry: Record) -> Curve:
    values = {int(epoch): float(value) for epoch, value in entry["values"].items()}
    return Curve(**{**entry, "values": values})


def _read_run(source: packing.Folder, entry: Record) -> Run:
    folder = entry["folder"]
    common = {key: entry[key] for key in ("folder", "setting", "rule", "seed")}
    common["command"] = entry.get("command", "")
    try:
        described = source.read_json(f"{folder}/experiment.json")
        experiment = described.get("experiment", {})
        environment = source.read_json(f"{folder}/environment.json")
        rows = tuple(source.rows(f"{folder}/records.jsonl"))
    except (ValueError, OSError) as error:
        # Pages are published: no absolute paths.
        reason = str(error).replace(f"{source.path}/", "")
        return Run(**common, status="failed", reason=f"unreadable: {reason}")
    status, reason = _status(rows, experiment, entry["seed"])
    common |= {key: described.get(key, {}) for key in ("code", "versions")}
    common["environment"] = environment
    return Run(**common, status=status, reason=reason, experiment=experiment, rows=rows)


def _status(rows: tuple[Record, ...], experiment: Record, seed: int) -> tuple[Status, str]:
    """Args: seed: that the run is listed under."""
    if (own := experiment.get("seed", seed)) != seed:
        return "failed", f"listed with seed {seed}, its experiment has seed {own}"
    ends = [row for row in rows if row.get("kind") == "final"]
    if ends:
        if len(ends) > 1:
            return "failed", f"its records have {len(ends)} final rows"
        epoch = ends[0]["epoch"]
        if (epochs := experiment.get("epochs", epoch)) != epoch:
            return "failed", f"its final row is of epoch {epoch}, its experiment has {epochs}"
        whole = ends[0].get("test_acc") is not None
        return ("finished", "") if whole else ("failed", "its final row has no test_acc")
    last = rows[-1] if rows else {}
    if last.get("kind") == "stopped":
        named = {"epoch": "epoch", "step": "step", "where": "at"}
        places = [f"{name} {last[key]}" for key, name in named.items() if key in last]
        where = f" ({', '.join(places)})" if places else ""
        return "failed", f"{last.get('reason', 'no reason given')}{where}"
    if begun := [row["epoch"] for row in rows if row.get("kind") == "epoch"]:
        return "unfinished", f"epoch {begun[-1]} of {experiment.get('epochs', '?')}"
    return "not started", "no epoch recorded"
