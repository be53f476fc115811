"""Attacking trained hash nets: what an attacker leaves of their retrieval, and by which gradient.

The counterpart of `apical.robustness` for nets that give codes in place of class scores.
"""

from apical.retrieval.evaluation import VERSION, Evaluation
from apical.retrieval.folder import FOLDER, evaluate, place, rows
from apical.retrieval.searched import Searched, from_run
from apical.retrieval.trials import Trial, run

__all__ = [
    "FOLDER",
    "VERSION",
    "Evaluation",
    "Searched",
    "Trial",
    "evaluate",
    "from_run",
    "place",
    "rows",
    "run",
]
