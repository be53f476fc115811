"""What a study is: the experiments behind one table, with the published values."""

import dataclasses
import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from apical import rules
from apical.bench.evaluate.evaluation import Evaluation
from apical.bench.experiment.experiment import Experiment
from apical.bench.experiment.training_settings import Schedule
from apical.bench.report import names
from apical.bench.studies import published, selection
from apical.bench.studies.published import Curve, Published, PublishedRobustness
from apical.names import unknown

Tier = Literal["smoke", "short", "full"]
TIERS: tuple[Tier, ...] = ("smoke", "short", "full")

LEAST_SEEDS = 3
"""Of the tries of a learning rate."""

Choice = tuple[str, str]
"""A cell of the table: (setting, rule)."""

RULES: dict[str, str | dict[str, Any]] = {
    "bp": "bp",
    "fa": {"rule": "fa", "init": "xavier"},
    "dfa": {"rule": "dfa", "layout": "kernel", "init": "xavier"},
    "usf": "usf",
    "brsf": "brsf",
    "frsf": "frsf",
}
"""The six rules of BioTorch in its own forms, by the label they carry in tables."""

FROZEN, REDRAWN = "frozen", "redrawn"
CONTROLS: dict[str, str | dict[str, Any]] = {FROZEN: FROZEN, REDRAWN: REDRAWN}
"""Rows without credit for hidden layers, which every study of rules has: hidden layers that keep
their initial weights, and feedback that is new at every update."""


@dataclass(frozen=True)
class Entry:
    """A run of a study: where it stands in the table, and what it is."""

    setting: str
    rule: str
    experiment: Experiment

    @property
    def cell(self) -> Choice:
        return self.setting, self.rule

    @property
    def label(self) -> str:
        """What distinguishes it from the other runs, for a line of progress."""
        return f"{self.setting}, {self.rule}, seed={self.experiment.seed}"

    @property
    def described(self) -> dict[str, Any]:
        """As study.json holds it."""
        experiment = self.experiment
        place = {"folder": experiment.name, "setting": self.setting, "rule": self.rule}
        return place | {"seed": experiment.seed}


def with_rules(
    base: Experiment, rules: Mapping[str, str | dict[str, Any]]
) -> dict[str, Experiment]:
    """An experiment under each of these rules, by label."""
    return {label: dataclasses.replace(base, rule=rule) for label, rule in rules.items()}


def entries(
    setting: str, rows: Mapping[str, Experiment], seeds: int, *, seed_by_seed: bool = False
) -> list[Entry]:
    """The runs of some rows of a setting, by label, with all seeds from 0.

    Args: seed_by_seed: the first seed of every row comes first: a table early on.
    """
    runs = [
        Entry(setting, label, dataclasses.replace(experiment, seed=seed))
        for label, experiment in rows.items()
        for seed in range(seeds)
    ]
    return sorted(runs, key=lambda run: run.experiment.seed) if seed_by_seed else runs


@dataclass(frozen=True)
class Search:
    """How learning rates are chosen: see `selection`.

    Every row has the same budget: each value with each seed, on a part of the training split,
    judged on the rest of it. The test split is not read.

    Args: values: learning rates tried, in half decades.     epochs: of each try (>= 1).
        schedule: of each try.     validation: examples held out (>= 1).
        seeds: of the tries; none of those reported.
        extensions: half decades (>= 0) by which the grid of a row grows at most, if its choice lies
            at an edge.     chance: validation error of a guess in (0, 1], which a diverged try
            counts as.
    Raises: ValueError for fewer than 3 seeds, a value out of range, or rates that are not distinct
        half decades.
    """

    values: tuple[float, ...]
    epochs: int
    schedule: Schedule
    validation: int
    seeds: tuple[int, ...] = (1000, 1001, 1002)
    extensions: int = 2
    chance: float = 0.9

    def __post_init__(self) -> None:
        grid = tuple(sorted(self.values))
        full = selection.half_decades(grid[0], grid[-1]) if grid else (0.01, 0.03, 0.1)
        if grid != full:
            raise ValueError(
                f"search: the learning rates {self.values} are not half decades without a gap, "
                f"each once, such as {', '.join(f'{rate:g}' for rate in full)}; "
                "apical sweep --lr compares any rates"
            )
        if len(set(self.seeds)) < LEAST_SEEDS:
            raise ValueError(f"search: seeds={self.seeds}: needs at least {LEAST_SEEDS} seeds")
        for name, least in (("epochs", 1), ("validation", 1), ("extensions", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"search: {name}={getattr(self, name)}: must be at least {least}")
        if not 0 < self.chance <= 1:
            raise ValueError(f"search: chance={self.chance}: an error above 0, at most 1")


@dataclass(frozen=True)
class Overview:
    """What the report of a study shows where it has one line per rule, all settings side by side.

    Args: facts: by label of the rule and heading of the column.
        detail: setting whose alignment and feedback memory are shown.
        timed: net whose step times are shown, from a table of ``benchmarks/step_time.py``.
        timed_as: names of rules in that table, by label, where they differ.
    """

    facts: Mapping[str, Mapping[str, str]]
    detail: str
    timed: str
    timed_as: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """The experiments of a table. With a ``search`` their learning rates are still to be chosen.

    Args: tier: one of `TIERS`, or the name of the study.
        search: one for all settings, or by setting; settings without one keep their rates.
        evaluations: by setting, how its trained nets are attacked.     surrogate: the row whose
        net of the same setting and seed attacks are transferred from; "": none.
        crossed: rules by whose backward pass the nets of the surrogate are attacked as well.
        follows: rows without a search of their own, and the rows whose learning rate they take, to
        separate the effect of the rate from that of the rule.
        fixed: rows that keep the rate of their experiment, such as published ones.
        solved: share of right validation answers, in (0, 1), above which a task counts as
        solved; the report then shows the steps until it is reached.
    Raises: ValueError for two runs of one row and seed, a label that names another rule than its
        runs have, two published values of one row, values out of range, a setting or row that the
        study does not have, or seeds of a search that are reported.
    """

    name: str
    title: str
    tier: str
    entries: tuple[Entry, ...]
    published: tuple[Published, ...] = ()
    notes: tuple[str, ...] = ()
    search: Search | Mapping[str, Search] | None = None
    curves: tuple[Curve, ...] = ()
    evaluations: Mapping[str, Evaluation] = field(default_factory=dict)
    surrogate: str = ""
    crossed: tuple[str, ...] = ()
    follows: Mapping[str, str] = field(default_factory=dict)
    fixed: tuple[str, ...] = ()
    robust_published: tuple[PublishedRobustness, ...] = ()
    overview: Overview | None = None
    solved: float | None = None

    def __post_init__(self) -> None:
        cells, seen = self.cells, set[tuple[Choice, int]]()
        for entry in self.entries:
            if (run := (entry.cell, entry.experiment.seed)) in seen:
                raise ValueError(f"study {self.name}: two runs are {entry.label}")
            seen.add(run)
            experiment = vars(entry.experiment) | {"start": vars(entry.experiment.start)}
            if names.mislabelled(entry.rule, experiment):
                raise ValueError(
                    f"study {self.name}: {entry.label} is trained by "
                    f"{names.rule_name(experiment)}: give the row another label"
                )
        if self.tier not in (*TIERS, self.name):
            raise unknown(f"tier of study {self.name}", self.tier, [*TIERS, self.name])
        if self.solved is not None and not 0 < self.solved < 1:
            raise ValueError(
                f"study {self.name}: solved={self.solved}: a share above 0 and below 1, which more "
                "right answers exceed"
            )
        self._check_names({setting for setting, _ in cells}, {rule for _, rule in cells})
        published.check(self.name, cells, [*self.published, *self.curves, *self.robust_published])
        for setting, rule in cells:
            if rule in self.follows and (setting, self.follows[rule]) not in cells:
                raise ValueError(
                    f"study {self.name}: {rule} follows {self.follows[rule]}, which has no run in "
                    f"{setting}"
                )
            search = self.search_of((setting, rule))
            if search and (both := {*search.seeds} & {seed for cell, seed in seen}):
                raise ValueError(
                    f"study {self.name}: seeds {sorted(both)} of its runs are also those of the "
                    "search; choose others for the search, such as 1000, 1001, 1002"
                )

    def _check_names(self, settings: set[str], rows: set[str]) -> None:
        """Names that are no setting or row of the study would have no effect."""
        shown = self.overview
        searches = self.search if isinstance(self.search, Mapping) else {}
        given = {
            "setting in search": (searches, settings),
            "setting in evaluations": (self.evaluations, settings),
            "setting in overview.detail": ([shown.detail] if shown else (), settings),
            "row in overview.facts": (rows if shown else (), shown.facts if shown else ()),
            "row in fixed": (self.fixed, rows),
            "row in follows": (self.follows, rows),
            "row in surrogate": ([self.surrogate] * bool(self.surrogate), rows),
            "rule in crossed": (self.crossed, rules.RULES),
        }
        for place, (written, allowed) in given.items():
            for name in written:
                if name not in allowed:
                    raise unknown(f"{place} of study {self.name}", name, allowed)
        if self.crossed and not (self.surrogate and self.evaluations):
            raise ValueError(
                f"study {self.name}: crossed={self.crossed} has no effect without a surrogate and "
                "evaluations"
            )

    @property
    def cells(self) -> list[Choice]:
        """(setting, rule), in the order of the table."""
        return list(dict.fromkeys(entry.cell for entry in self.entries))

    def evaluation_of(self, entry: Entry) -> Evaluation:
        """How the net of an entry is attacked."""
        evaluation = self.evaluations[entry.setting]
        if self.crossed and entry.rule == self.surrogate:
            return dataclasses.replace(evaluation, rules=self.crossed)  # type: ignore[type-var]
        return evaluation

    @property
    def folder(self) -> str:
        """Name of its folder: other tiers than the published protocol stand apart."""
        plain = self.tier in ("full", self.name)
        return self.name if plain else f"{self.name}-{self.tier}"

    def restricted(self, pattern: str | None) -> "Study":
        """The same study with the settings that match a pattern, such as ``LeNet *``, only.

        Raises: ValueError if none does.
        """
        if pattern is None:
            return self
        settings = list(dict.fromkeys(entry.setting for entry in self.entries))
        kept = fnmatch.filter(settings, pattern)
        if not kept:
            raise unknown(f"setting of {self.name}", pattern, settings)
        entries = tuple(entry for entry in self.entries if entry.setting in kept)
        rows = {entry.rule for entry in entries}
        search, overview = self.search, self.overview
        if isinstance(search, Mapping):
            search = {name: search[name] for name in kept if name in search}
        if overview and overview.detail not in kept:
            overview = dataclasses.replace(overview, detail=kept[0])
        return dataclasses.replace(
            self,
            entries=entries,
            search=search,
            overview=overview,
            fixed=tuple(row for row in self.fixed if row in rows),
            follows={row: other for row, other in self.follows.items() if row in rows},
            published=tuple(row for row in self.published if row.setting in kept),
            curves=tuple(row for row in self.curves if row.setting in kept),
            evaluations={name: self.evaluations[name] for name in kept if name in self.evaluations},
            robust_published=tuple(row for row in self.robust_published if row.setting in kept),
        )

    def search_of(self, cell: Choice) -> Search | None:
        """How the learning rate of a cell is chosen; None where it is fixed or another cell's."""
        setting, rule = cell
        if rule in self.fixed or rule in self.follows:
            return None
        if self.search is None or isinstance(self.search, Search):
            return self.search
        return self.search.get(setting)

    @property
    def searches(self) -> dict[Choice, Search]:
        """How learning rates are chosen, by cell; of those that are neither fixed nor another's."""
        found = {cell: self.search_of(cell) for cell in self.cells}
        return {cell: search for cell, search in found.items() if search is not None}

    def tries(self, cell: Choice, rate: float) -> list[Experiment]:
        """The tries of a learning rate, one for each seed of the search of the cell."""
        search = self.search_of(cell)
        assert search is not None
        base = next(entry.experiment for entry in self.entries if entry.cell == cell)
        tried = dataclasses.replace(
            base,
            lr=rate,
            epochs=search.epochs,
            schedule=search.schedule,
            validation=search.validation,
            test=False,
            test_at=(),
            test_lengths=(),
            probe_every=0,
        )
        return [dataclasses.replace(tried, seed=seed) for seed in search.seeds]

    def candidates(self) -> dict[Choice, dict[float, list[Experiment]]]:
        """The tries of the grids without extensions, by cell and learning rate."""
        return {
            cell: {rate: self.tries(cell, rate) for rate in search.values}
            for cell, search in self.searches.items()
        }

    def chosen(self, rates: Mapping[Choice, float]) -> "Study":
        """The study with learning rates filled in and nothing left to search."""

        def filled(entry: Entry) -> Entry:
            rate = rates.get((entry.setting, self.follows.get(entry.rule, entry.rule)))
            if rate is None:
                return entry
            return dataclasses.replace(
                entry, experiment=dataclasses.replace(entry.experiment, lr=rate)
            )

        entries = tuple(map(filled, self.entries))
        return dataclasses.replace(self, entries=entries, search=None)
