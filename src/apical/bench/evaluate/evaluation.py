"""Attacking a trained net in a folder, whatever is measured, so that a killed evaluation resumes.

An evaluation lies in RUN/HOME/KEY, of which the home is that of its kind, "robustness" (of class
scores) or "retrieval" (of hash codes):
    setting.json      key, versions, digest of the net, and what it was evaluated by
    environment.json  versions and machine
    trials.jsonl      one attack by one source at one radius a line, with each example's outcome
    records.jsonl     the rows of the report, written whole at the end
    examples.npz      a few examples and what attacks made of them
"""

import abc
import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, Self, get_args, get_type_hints

from torch import Tensor

from apical.attacks.ball import check_norm, standard_norm
from apical.attacks.checks import check_eps
from apical.bench.evaluate.trained_net import Trained
from apical.bench.experiment.execution import Execution
from apical.bench.experiment.experiment import KEY_DIGITS, versions
from apical.bench.experiment.settings import differing
from apical.bench.storage import claims, evaluation_folder, records
from apical.bench.training import group, progress
from apical.names import check_literals

Row = dict[str, Any]
Nets = Mapping[str, Trained]


class Trial(Protocol):
    """One attack by one gradient source at one radius. Its key names it among the others."""

    @property
    def attack(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def eps(self) -> float: ...
    @property
    def key(self) -> Any: ...
    def record(self) -> Mapping[str, Any]:
        """As a row of JSON."""
        ...

    @classmethod
    def read(cls, row: Mapping[str, Any]) -> Self:
        """The trial of a row, whatever else is in it."""
        ...


OnTrial = Callable[[Trial, int, int], None]
"""Called after each trial with it, its number, and how many there are."""


class Outcome(NamedTuple):
    """What an evaluation found: the rows of the report, and arrays of a few examples, if any."""

    rows: Sequence[Mapping[str, Any]]
    examples: Mapping[str, Any]


class Evaluation(abc.ABC):
    """How a trained net is attacked: a frozen dataclass of all that influences the outcome except
    the nets themselves. Each kind of evaluation is a subclass.
    """

    home: ClassVar[str]
    """The folder of a run in which its evaluations lie, and its name in messages."""
    version: ClassVar[int]
    """Raised when a change of the attacks alters what an evaluation finds."""
    last: ClassVar[str]
    """The kind of the row that ends a finished evaluation."""
    trial: ClassVar[type[Any]]
    """The class of its trials, a `Trial`."""
    counted: ClassVar[str]
    """The field with the number of examples."""
    least: ClassVar[Mapping[str, int]]
    """The smallest value of each field that has one."""

    eps: tuple[float, ...]
    norm: Any
    seed: int

    def check(self) -> None:
        """Raises: ValueError for radii or numbers out of range."""
        object.__setattr__(self, "eps", tuple(self.eps))
        object.__setattr__(self, "norm", standard_norm(self.norm))
        check_norm(self.home, self.norm, get_args(get_type_hints(type(self))["norm"]))
        check_literals(self, self.home)
        for eps in self.eps:
            check_eps(self.home, eps, low=0.0, high=1.0, linf=self.norm == "linf")
        if not self.eps or len(set(self.eps)) < len(self.eps) or min(self.eps) == 0:
            raise ValueError(
                f"{self.home}: eps={self.eps}; give at least one radius above 0, each once"
            )
        problems = [
            f"{name}={getattr(self, name)} must be at least {least}"
            for name, least in self.least.items()
            if getattr(self, name) < least
        ]
        if problems:
            raise ValueError(f"{self.home}: " + "; ".join(problems))

    def key(self, net: str, surrogates: Mapping[str, str]) -> str:
        """Short hash of what influences the outcome. Args: digests of the nets, by name."""
        value = differing(self) | {"net": net, "surrogates": dict(surrogates)}
        text = json.dumps(value | {"version": self.version}, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:KEY_DIGITS]

    def place(self, run: Path, net: str, surrogates: Mapping[str, str] | None = None) -> Path:
        """The folder of the evaluation. Args: run: of the net. net, surrogates: digests."""
        return run / self.home / self.key(net, surrogates or {})

    @classmethod
    def rows(cls, folder: Path) -> list[Row]:
        """The rows of a finished evaluation, none while it is not."""
        return evaluation_folder.rows(folder, cls.last)

    @abc.abstractmethod
    def check_net(self, net: Trained) -> None:
        """Raises: ValueError for a net that this kind of evaluation does not apply to."""

    @abc.abstractmethod
    def attack(
        self,
        net: Trained,
        others: Nets,
        examples: tuple[Tensor, Tensor],
        finished: Sequence[Any],
        on_trial: OnTrial,
    ) -> Outcome:
        """Attack a net.

        Args: others: nets to transfer from, by name. finished: trials that are not repeated.
            on_trial: called after every trial, those among them.
        """

    @abc.abstractmethod
    def left(self, rows: Sequence[Row]) -> tuple[str, dict[float, float]]:
        """What a finished evaluation found in short: what stands before the worst case in a
        sentence, and the worst case by radius, in [0, 1]."""


def evaluate(
    net: Trained,
    evaluation: Evaluation,
    folder: str | Path,
    execution: Execution | None = None,
    *,
    surrogates: Nets | None = None,
) -> list[Row]:
    """Evaluate a net in a folder, or go on where that was killed, or read what it found.

    Args: folder: as `Evaluation.place` names it. surrogates: nets to transfer attacks from, by
        name.
    Returns: the rows of the report.
    Raises: ValueError as attacks do, or if the folder holds another evaluation; claims.Held if
        another living process works on it.
    """
    folder, execution = Path(folder), execution or Execution()
    others = dict(surrogates or {})
    key = evaluation.key(net.digest, {name: other.digest for name, other in others.items()})
    for each in (net, *others.values()):
        evaluation.check_net(each)
    evaluation_folder.check(folder, key)
    if found := evaluation.rows(folder):
        claims.clear(folder)  # a kill after the last row leaves one
        return found
    with group.settings(execution), claims.hold(folder) as claim:
        if found := evaluation.rows(folder):
            return found
        examples = net.examples(getattr(evaluation, evaluation.counted), execution.device)
        setting: Row = {
            "net": net.name,
            "data": net.images.name,
            "image_shape": list(net.images.shape),
        }
        setting |= json.loads(json.dumps(dataclasses.asdict(evaluation)))  # type: ignore[call-overload]
        setting |= {evaluation.counted: len(examples[0]), "surrogates": list(others)}
        of_all = {**versions(), evaluation.home: evaluation.version}
        evaluation_folder.describe(folder, key, net.digest, setting, execution, of_all)
        path = folder / "trials.jsonl"
        finished = evaluation_folder.trials(folder, evaluation.trial.read)
        known, begin = {trial.key for trial in finished}, time.perf_counter()
        with progress.steps(net.name, quiet=execution.quiet) as show:

            def on_trial(trial: Trial, number: int, total: int) -> None:
                nonlocal begin
                show(f"{trial.attack} / {trial.source}  eps {trial.eps:.3g}", number, total)
                if trial.key not in known:
                    claim.check()
                    seconds = round(time.perf_counter() - begin, 3)
                    records.append(path, {**trial.record(), "seconds": seconds}, digest=True)
                begin = time.perf_counter()

            outcome = evaluation.attack(net, others, examples, finished, on_trial)
        claim.check()
        if outcome.examples:
            evaluation_folder.write_examples(folder, outcome.examples)
        evaluation_folder.write_rows(folder, outcome.rows)
    claims.clear(folder)
    return evaluation.rows(folder)
