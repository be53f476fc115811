"""Retrieval by hash codes: losses, codes, rankings, measures, and attacks on all that.

A hash net is any net with K outputs h. Its code is sign h, packed into bits; what a loss or an
attack differentiates is u = tanh(alpha h).
"""

from typing import TYPE_CHECKING

from apical.hashing.centres import CSQ, DPN, CentreLoss
from apical.hashing.codes import Codes, ConstantBitWarning, encode, pack
from apical.hashing.database import Database, relevant
from apical.hashing.heads import hash_head
from apical.hashing.losses import DPH, DPSH, DSH, Bank, HashLoss, HashNet, PairLoss
from apical.hashing.measures import (
    PrecisionRecall,
    average_precision,
    mean_average_precision,
    precision_recall,
    precision_within,
)
from apical.hashing.memory import Memory
from apical.hashing.ranking import distances, pairwise_distances, rank, rankings
from apical.hashing.relaxation import Continuation, relax
from apical.naming import import_on_use

if TYPE_CHECKING:
    from apical.hashing.attack import RetrievalAttack
    from apical.hashing.hag import HAG
    from apical.hashing.perceptibility import Perceptibility, perceptibility
    from apical.hashing.sdha import SDHA

__all__ = [
    "CSQ",
    "DPH",
    "DPN",
    "DPSH",
    "DSH",
    "HAG",
    "LOSSES",
    "SDHA",
    "Bank",
    "CentreLoss",
    "Codes",
    "ConstantBitWarning",
    "Continuation",
    "Database",
    "HashLoss",
    "HashNet",
    "Memory",
    "PairLoss",
    "Perceptibility",
    "PrecisionRecall",
    "RetrievalAttack",
    "average_precision",
    "distances",
    "encode",
    "hash_head",
    "mean_average_precision",
    "pack",
    "pairwise_distances",
    "perceptibility",
    "precision_recall",
    "precision_within",
    "rank",
    "rankings",
    "relax",
    "relevant",
]

LOSSES: dict[str, type[HashLoss]] = {
    "csq": CSQ,
    "dph": DPH,
    "dpn": DPN,
    "dpsh": DPSH,
    "dsh": DSH,
    "hashnet": HashNet,
}

import_on_use(  # attacks are loaded by those who attack
    __name__,
    {
        "HAG": "apical.hashing.hag:HAG",
        "Perceptibility": "apical.hashing.perceptibility:Perceptibility",
        "RetrievalAttack": "apical.hashing.attack:RetrievalAttack",
        "SDHA": "apical.hashing.sdha:SDHA",
        "perceptibility": "apical.hashing.perceptibility:perceptibility",
    },
)
