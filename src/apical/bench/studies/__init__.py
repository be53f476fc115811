"""Studies by name: each the experiments behind one table, with its published values."""

import inspect
from collections.abc import Callable

from apical.bench.studies import biotorch, robustness
from apical.bench.studies.base import TIERS, Entry, Search, Study
from apical.bench.studies.char_lm import char_lm
from apical.bench.studies.credit import credit
from apical.bench.studies.low_dim_error import low_dim_accuracy, low_dim_error
from apical.bench.studies.lra_rnn import lra_rnn
from apical.bench.studies.mnm import mnm
from apical.bench.studies.published import Curve, Published
from apical.bench.studies.rules_overview import rules_overview
from apical.bench.studies.sign_symmetry_finetune import sign_symmetry_finetune
from apical.bench.studies.sign_symmetry_hashing import sign_symmetry_hashing
from apical.bench.studies.smoke import smoke
from apical.bench.studies.snn_robustness import snn_robustness
from apical.bench.studies.weight_transport import weight_transport
from apical.names import from_path, takes, unknown

__all__ = ["STUDIES", "TIERS", "Curve", "Entry", "Published", "Search", "Study", "build"]


def build(name: str, *, tier: str | None = None, seeds: int | None = None) -> Study:
    """A study by name, or one of your own.

    Args: name: of `STUDIES`; or ``module:make``, a function ``make(tier, seeds)`` that returns a
        `Study`.
        tier: ``smoke`` (does it run), ``short``, ``full`` (the published protocol); absent:
        ``short``. The study ``smoke`` has that tier only.
        seeds: runs of each cell, >= 1; absent: as many as `SEEDS` says.
    Raises: ValueError for an unknown name or tier, or what makes no study.
    """
    if name not in STUDIES and ":" not in name:
        raise unknown("study", name, [*STUDIES, "package.module:make"])
    tiers = ("smoke",) if name == "smoke" else TIERS
    tier = tier or ("smoke" if name == "smoke" else "short")
    if tier not in tiers:
        raise unknown(f"tier of the study {name}", tier, tiers)
    if seeds is None:
        seeds = SEEDS.get(name, DEFAULT_SEEDS)
    if seeds < 1:
        raise ValueError(f"seeds={seeds}: must be at least 1; 3 or more give an interval")
    if name in STUDIES:
        return STUDIES[name](tier, seeds)
    make = from_path(name, "study")
    what = f"is {type(make).__name__}"
    if callable(make) and not takes(make, tier, seeds):
        what = f"has the arguments {inspect.signature(make)}"
    elif callable(make):
        study = make(tier, seeds)
        if isinstance(study, Study):
            return study
        what = f"returns {type(study).__name__}"
    raise ValueError(
        f"study {name!r} {what}: it must be a function make(tier, seeds) that returns an "
        "apical.bench.Study"
    )


DEFAULT_SEEDS = 3
SEEDS = {
    "attack-gradient": 5,
    "biotorch-robustness": 5,
    "char-lm": 5,
    "credit": 10,
    "lra-rnn": 5,
    "rules-overview": 5,
    "smoke": 10,
}
"""Runs of each cell where they are not `DEFAULT_SEEDS`."""

STUDIES: dict[str, Callable[[str, int], Study]] = {
    "attack-gradient": robustness.attack_gradient,
    "biotorch-cifar10": biotorch.cifar10,
    "biotorch-fashion": biotorch.fashion,
    "biotorch-imagenet": biotorch.imagenet,
    "biotorch-mnist": biotorch.mnist,
    "biotorch-robustness": robustness.robustness,
    "char-lm": char_lm,
    "credit": credit,
    "low-dim-accuracy": low_dim_accuracy,
    "low-dim-error": low_dim_error,
    "lra-rnn": lra_rnn,
    "mnm": mnm,
    "rules-overview": rules_overview,
    "sign-symmetry-finetune": sign_symmetry_finetune,
    "sign-symmetry-hashing": sign_symmetry_hashing,
    "smoke": smoke,
    "snn-robustness": snn_robustness,
    "weight-transport": weight_transport,
}
