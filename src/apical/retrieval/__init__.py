"""Retrieval by hash codes: losses, codes, rankings, measures, and attacks.

A hash net is any net with K outputs h. Its code is sign h, packed into bits; what a loss or an
attack differentiates is u = tanh(alpha h).
"""

from typing import TYPE_CHECKING

from apical.names import import_on_use
from apical.retrieval.codes import Codes, ConstantBitWarning, Continuation, encode, pack, relax
from apical.retrieval.database import Database, relevant
from apical.retrieval.heads import hash_head
from apical.retrieval.losses import (
    CSQ,
    DPH,
    DPN,
    DPSH,
    DSH,
    LOSSES,
    Bank,
    CentreLoss,
    HashLoss,
    HashNet,
    Memory,
    PairLoss,
)
from apical.retrieval.measures import (
    PrecisionRecall,
    average_precision,
    mean_average_precision,
    precision_recall,
    precision_within,
)
from apical.retrieval.ranking import distances, pairwise_distances, rank, rankings

if TYPE_CHECKING:
    from apical.retrieval.attacks.attack import HAG, Perceptibility, RetrievalAttack, perceptibility
    from apical.retrieval.attacks.known_database import SDHA, Anchor

__all__ = [
    "CSQ",
    "DPH",
    "DPN",
    "DPSH",
    "DSH",
    "HAG",
    "LOSSES",
    "SDHA",
    "Anchor",
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

import_on_use(  # attacks are imported when they are first used
    __name__,
    {
        "Anchor": "apical.retrieval.attacks.known_database:Anchor",
        "HAG": "apical.retrieval.attacks.attack:HAG",
        "Perceptibility": "apical.retrieval.attacks.attack:Perceptibility",
        "RetrievalAttack": "apical.retrieval.attacks.attack:RetrievalAttack",
        "SDHA": "apical.retrieval.attacks.known_database:SDHA",
        "perceptibility": "apical.retrieval.attacks.attack:perceptibility",
    },
)
