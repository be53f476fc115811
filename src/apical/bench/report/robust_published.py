"""Published robust accuracies beside ours, under the same attack at the same radius."""

from dataclasses import dataclass
from functools import partial

from apical.bench.report import robust_stats
from apical.bench.report.robust_read import FULL_TIER, PublishedRobustness
from apical.bench.report.robust_section import Section, attack_row, attack_share
from apical.bench.report.robust_stats import Estimate
from apical.measure import statistics

READ = 1.0
"""Points to which published values are known: most were read off curves."""


@dataclass(frozen=True)
class Beside:
    """A published robust accuracy in % and ours: under the same attack by the gradient it was
    published for, and by the exact gradient of the same weights."""

    published: PublishedRobustness
    ours: Estimate
    exact: Estimate | None
    verdict: statistics.Verdict

    @property
    def difference(self) -> float:
        """Ours minus published, in points."""
        return self.ours.mean - self.published.accuracy


def beside(section: Section, tier: str) -> list[Beside]:
    """Published values at radii and under attacks that were run; judged in tier full only."""
    found = []
    for row in section.published:
        share = partial(attack_share, attack=row.attack, eps=row.eps)
        exact = section.estimate(row.rule, partial(share, group="exact"))
        shares = section.shares(row.rule, partial(share, group=row.group))
        ours = robust_stats.estimate(shares, _images(section, row))
        if ours is None:
            continue
        scale = row.other_scale
        if not scale and tier != FULL_TIER:
            scale = f"tier {tier}, not the published protocol"
        word = statistics.verdict(
            statistics.summarize([100 * share for share in shares.values()]),
            row.accuracy,
            other_scale=scale,
            published_n=row.n,
            least=READ,
        )
        found.append(Beside(row, ours, exact if row.group == "own" else None, word))
    return found


def _images(section: Section, row: PublishedRobustness) -> int:
    """How many images an attack ran on: few-pixel attacks take a part of them."""
    names = {"group": row.group, "attack": row.attack}
    found = (attack_row(e, **names, eps=row.eps) for e in section.of(row.rule).values())
    return next((each["examples"] for each in found if "examples" in each), section.images)
