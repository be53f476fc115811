"""Robustness evaluations that may be compared: those of one setting and protocol."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from apical.bench.report import robust_stats
from apical.bench.report.evaluations import Row
from apical.bench.report.robust_read import Evaluation, PublishedRobustness
from apical.bench.report.robust_stats import Estimate

SAME_RADIUS = 1e-3
"""Relative difference up to which a published radius is taken for ours."""

Value = Callable[[Evaluation], float | None]
"""A share of images that one net gets right, None where it was not measured."""


@dataclass(frozen=True)
class Section:
    """Finished evaluations of one setting and protocol, in the order of study.json."""

    setting: str
    heading: str
    evaluations: tuple[Evaluation, ...]
    listed: tuple[Evaluation, ...]
    """Those that are not finished too."""
    published: tuple[PublishedRobustness, ...] = ()

    @property
    def rules(self) -> list[str]:
        return list(dict.fromkeys(each.rule for each in self.evaluations))

    @property
    def norm(self) -> str:
        return self.evaluations[0].norm

    @property
    def images(self) -> int:
        return self.evaluations[0].images

    @property
    def described(self) -> Row:
        return self.evaluations[0].described

    @property
    def radii(self) -> list[float]:
        return sorted({eps for each in self.evaluations for eps in each.radii})

    @property
    def chance(self) -> float | None:
        """Accuracy of guessing in %, None where the number of classes was not recorded."""
        classes = self.evaluations[0].clean.get("classes")
        return 100 / classes if classes else None

    def of(self, rule: str) -> dict[int, Evaluation]:
        return {each.seed: each for each in self.evaluations if each.rule == rule}

    def estimate(self, rule: str, value: Value, images: int | None = None) -> Estimate | None:
        """Mean over the nets of a rule of a value of each, those without it left out.

        Args: images: how many the values are over, None for all.
        """
        return robust_stats.estimate(self.shares(rule, value), images or self.images)

    def shares(self, rule: str, value: Value) -> dict[int, float]:
        found = {seed: value(each) for seed, each in self.of(rule).items()}
        return {seed: share for seed, share in found.items() if share is not None}


def sections(
    evaluations: Sequence[Evaluation], published: Sequence[PublishedRobustness] = ()
) -> list[Section]:
    """Finished evaluations by setting and protocol. Of two of the same net the last one counts."""
    found: dict[tuple[str, ...], dict[tuple[str, int], Evaluation]] = {}
    for each in evaluations:
        if each.status == "finished":
            group = found.setdefault((each.setting, *each.protocol), {})
            group[each.rule, each.seed] = each
    settings = [key[0] for key in found]
    return [
        Section(
            setting=key[0],
            heading=key[0] if settings.count(key[0]) == 1 else f"{key[0]} · {_told(key, found)}",
            evaluations=tuple(group.values()),
            listed=tuple(e for e in evaluations if e.setting == key[0] and _may_join(e, key)),
            published=tuple(row for row in published if row.setting == key[0]),
        )
        for key, group in found.items()
    ]


def superseded(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """Finished evaluations that a later one of the same net and protocol replaces in the tables."""
    shown = {id(each) for section in sections(evaluations) for each in section.evaluations}
    return [e for e in evaluations if e.status == "finished" and id(e) not in shown]


def attack_share(net: Evaluation, *, group: str, attack: str, eps: float) -> float | None:
    """Robust accuracy under one attack on all images, None where it was not run."""
    return attack_row(net, group=group, attack=attack, eps=eps).get("accuracy")


def attack_row(net: Evaluation, *, group: str, attack: str, eps: float) -> Row:
    """The row of an attack on all images, {} where it was not run."""
    for row in net.of_kind("attack"):
        same = (row["group"], row["attack"], row["on"]) == (group, attack, "all")
        if same and near(row["eps"], eps):
            return row
    return {}


def near(eps: float, other: float) -> bool:
    """Whether two radii are the same, up to how they were rounded for print."""
    return abs(eps - other) <= SAME_RADIUS * other


def _may_join(evaluation: Evaluation, key: tuple[str, ...]) -> bool:
    """Whether it belongs to this protocol, or has not come so far as to tell."""
    return not evaluation.described or evaluation.protocol == key[1:]


def _told(key: tuple[str, ...], found: Iterable[tuple[str, ...]]) -> str:
    """The fields of a protocol that tell it from the others of its setting."""
    others = [other for other in found if other[0] == key[0]]
    differing = [
        place for place in range(1, len(key)) if len({other[place] for other in others}) > 1
    ]
    return ", ".join(f"{Evaluation.compared[place - 1]} {key[place]}" for place in differing)
