"""Attacking trained hash nets: what an attacker leaves of their retrieval, and by which gradient.

The counterpart of `apical.bench.evaluate.robustness` for nets that give codes, not class scores.
"""

from apical.bench.evaluate.retrieval.evaluation import VERSION, Evaluation
from apical.bench.evaluate.retrieval.folder import FOLDER, evaluate, place, rows
from apical.bench.evaluate.retrieval.searched import Searched, from_run
from apical.bench.evaluate.retrieval.trials import Trial, run

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
