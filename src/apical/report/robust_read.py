"""Robustness evaluations as values: what each has found, or why there is nothing to show yet.

An evaluation is a folder RUN/robustness/<key>:
    setting.json    {key, versions, checkpoint, setting}; the last is {data, images, eps, norm,
                    effort, rules, surrogates, seed} and optionally {trials}, how many are planned
    records.jsonl   rows of kinds clean, attack, worst, gap, check, audit and, last, verdict;
                    accuracies are fractions of all examples
    trials.jsonl    one finished attack a line; read only to say how far an evaluation has come
    examples.npz    x (k, C, H, W), adv (s, k, C, H, W), names (s), labels (k), eps,
                    predictions_clean (k), predictions_adv (s, k) and optionally class_names
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from apical import records

Status = Literal["finished", "unfinished", "failed", "not started"]
Row = Mapping[str, Any]

FULL_TIER = "full"
"""The tier of a published protocol; every other one is on another scale."""

COMPARED = ("data", "images", "norm", "eps", "effort")
"""Fields of a setting that evaluations must share for their numbers to be averaged."""


@dataclass(frozen=True)
class Evaluation:
    """One net under attack; `reason` says why it is not finished. Accuracies are fractions."""

    folder: Path
    shown: str
    setting: str
    rule: str
    seed: int
    status: Status
    reason: str = ""
    described: Mapping[str, Any] = field(default_factory=dict)
    rows: tuple[Row, ...] = ()

    def of_kind(self, kind: str) -> list[Row]:
        return [row for row in self.rows if row.get("kind") == kind]

    def at(self, kind: str, eps: float) -> Row:
        """The row of a kind at a radius, {} where there is none."""
        return next((row for row in self.of_kind(kind) if row["eps"] == eps), {})

    @property
    def clean(self) -> Row:
        return next(iter(self.of_kind("clean")), {})

    @property
    def images(self) -> int:
        """Test images it was measured on, those misclassified from the start included."""
        return int(self.clean["examples"])

    @property
    def norm(self) -> str:
        return str(self.clean["norm"])

    @property
    def radii(self) -> list[float]:
        return [row["eps"] for row in self.of_kind("worst")]

    @property
    def protocol(self) -> tuple[str, ...]:
        """What must be equal for a comparison, as text."""
        return tuple(str(self.described.get(key, "")) for key in COMPARED)


@dataclass(frozen=True)
class PublishedRobustness:
    """A published robust accuracy in %, under the attack whose rows carry this label."""

    setting: str
    rule: str
    attack: str
    eps: float
    accuracy: float
    source: str
    n: int = 1
    group: str = "own"
    other_scale: str = ""


def read_evaluation(study: Path, entry: Mapping[str, Any]) -> Evaluation:
    """One entry of `robustness` in study.json: {folder, setting, rule, seed, evaluation}."""
    shown = f"{entry['folder']}/{entry['evaluation']}"
    common = {key: entry[key] for key in ("setting", "rule", "seed")}
    return _read(study / shown, shown, common)


def of_run(run: Path, setting: str, rule: str, seed: int) -> list[Evaluation]:
    """All evaluations a run folder holds, by name."""
    common = {"setting": setting, "rule": rule, "seed": seed}
    return [
        _read(folder, f"robustness/{folder.name}", common)
        for folder in sorted((run / "robustness").glob("*/"))
    ]


def published(entry: Mapping[str, Any]) -> PublishedRobustness:
    """One entry of `robust_published` in study.json.

    Raises: ValueError for a metric other than robust_accuracy and attack_success (the share of all
        examples that the attack leaves misclassified), or a unit other than "%" and "fraction".
    """
    factor = {"%": 1.0, "fraction": 100.0}
    if entry["metric"] not in ("robust_accuracy", "attack_success") or entry["unit"] not in factor:
        raise ValueError(
            f"published robustness of {entry['rule']!r}: metric {entry['metric']!r} in "
            f"{entry['unit']!r}; allowed are robust_accuracy and attack_success in '%' or "
            "'fraction'"
        )
    percent = entry["value"] * factor[entry["unit"]]
    return PublishedRobustness(
        setting=entry["setting"],
        rule=entry["rule"],
        attack=entry["attack"],
        eps=float(entry["eps"]),
        accuracy=percent if entry["metric"] == "robust_accuracy" else 100 - percent,
        source=entry["source"],
        n=entry.get("n", 1),
        group=entry.get("group", "own"),
        other_scale=entry.get("other_scale", ""),
    )


def _read(folder: Path, shown: str, common: Mapping[str, Any]) -> Evaluation:
    about = {"folder": folder, "shown": shown, **common}
    try:
        path = folder / "setting.json"
        described = records.read_json(path)["setting"] if path.exists() else {}
        rows = tuple(quietly(folder / "records.jsonl"))
        status, reason = _status(folder, rows, described)
    except (ValueError, OSError, KeyError) as error:
        reason = str(error).replace(f"{folder}/", "")  # pages are published: no absolute paths
        return Evaluation(**about, status="failed", reason=f"unreadable: {reason}")
    return Evaluation(**about, status=status, reason=reason, described=described, rows=rows)


def _status(folder: Path, rows: tuple[Row, ...], described: Row) -> tuple[Status, str]:
    if not folder.is_dir():
        return "not started", ""
    if rows and rows[-1].get("kind") == "verdict":
        missing = {"clean", "worst", "gap", "audit"} - {row.get("kind") for row in rows}
        if missing:
            return "failed", f"records.jsonl has no row of kind {', '.join(sorted(missing))}"
        return "finished", ""
    done = len(quietly(folder / "trials.jsonl"))
    total = f" of {described['trials']}" if "trials" in described else ""
    return "unfinished", f"{done}{total} attacks done"


def quietly(path: Path) -> list[dict[str, Any]]:
    """Rows of a file that may still grow: a torn last line is no news."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return records.read(path)
