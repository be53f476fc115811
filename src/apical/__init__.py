"""Apical: any PyTorch model, any biologically motivated learning rule, results you can believe."""

from apical import diagnostics, probes, rules
from apical.contract import check_rule
from apical.core.convert import convert, revert
from apical.core.converted import (
    cite,
    exact_gradients,
    feedback_parameters,
    forward_parameters,
    labels,
    learn,
)
from apical.core.describe import describe
from apical.core.plan import plan
from apical.core.switch import switch

__version__ = "0.1.0"

__all__ = [
    "check_rule",
    "cite",
    "convert",
    "describe",
    "diagnostics",
    "exact_gradients",
    "feedback_parameters",
    "forward_parameters",
    "labels",
    "learn",
    "plan",
    "probes",
    "revert",
    "rules",
    "switch",
]
