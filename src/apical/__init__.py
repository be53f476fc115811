"""Apical: any PyTorch model, any biologically motivated learning rule, results you can believe."""

from apical import rules
from apical.core.convert import (
    cite,
    convert,
    exact_gradients,
    feedback_parameters,
    forward_parameters,
    labels,
    learn,
    revert,
)
from apical.core.describe import describe
from apical.core.plan import plan
from apical.core.switch import switch
from apical.measure import diagnostics, probes
from apical.testing import check_rule

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
