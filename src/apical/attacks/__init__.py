"""Adversarial attacks, and checks of whether a measured robustness is valid.

An attack is a value: `PGD(eps=8 / 255)(model, x, y, gradient="exact")`. Every attack takes the
gradient from a source (`sources`), because a net with another learning rule than backpropagation
has two: the one it learns from, and the exact one.
"""

from apical.attacks.apgd import APGD
from apical.attacks.audit import Audit, audit
from apical.attacks.base import Attack
from apical.attacks.evaluation import Effort, RobustReport, robust_report
from apical.attacks.fab import FAB, minimum_norms
from apical.attacks.flips import Flips, GreedyFlips, RandomFlips
from apical.attacks.pixels import FewPixel
from apical.attacks.schedule import PROTOCOLS, Protocol, protocol
from apical.attacks.scores import Normalised
from apical.attacks.sources import (
    SOURCES,
    Averaged,
    Exact,
    FiniteDifference,
    From,
    NoGradient,
    NoGradientWarning,
    Own,
    OwnAveraged,
    RuleGradient,
    Source,
    source,
)
from apical.attacks.square import Square
from apical.attacks.steps import FGSM, PGD, TPGD, Noise
from apical.attacks.wrappers import EOT, Plugin, Transfer, imitate

__all__ = [
    "APGD",
    "ATTACKS",
    "EOT",
    "FAB",
    "FGSM",
    "PGD",
    "PROTOCOLS",
    "SOURCES",
    "TPGD",
    "Attack",
    "Audit",
    "Averaged",
    "Effort",
    "Exact",
    "FewPixel",
    "FiniteDifference",
    "Flips",
    "From",
    "GreedyFlips",
    "NoGradient",
    "NoGradientWarning",
    "Noise",
    "Normalised",
    "Own",
    "OwnAveraged",
    "Plugin",
    "Protocol",
    "RandomFlips",
    "RobustReport",
    "RuleGradient",
    "Source",
    "Square",
    "Transfer",
    "audit",
    "imitate",
    "minimum_norms",
    "protocol",
    "robust_report",
    "source",
]

ATTACKS: dict[str, type[Attack]] = {
    "apgd": APGD,
    "eot": EOT,
    "fab": FAB,
    "few-pixel": FewPixel,
    "fgsm": FGSM,
    "flips": Flips,
    "greedy-flips": GreedyFlips,
    "noise": Noise,
    "pgd": PGD,
    "plugin": Plugin,
    "random-flips": RandomFlips,
    "square": Square,
    "tpgd": TPGD,
    "transfer": Transfer,
}
