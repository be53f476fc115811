"""Apical: any PyTorch model, any biologically motivated learning rule, results you can believe."""

from typing import TYPE_CHECKING

from apical.naming import import_on_use

if TYPE_CHECKING:
    from apical import diagnostics, probes, rules
    from apical.contract import check_rule
    from apical.convert import (
        cite,
        convert,
        exact_gradients,
        feedback_parameters,
        forward_parameters,
        labels,
        learn,
        revert,
    )
    from apical.describe import describe
    from apical.plan import plan
    from apical.switch import switch

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

import_on_use(
    __name__,
    {
        "check_rule": "apical.contract:check_rule",
        "cite": "apical.convert:cite",
        "convert": "apical.convert:convert",
        "describe": "apical.describe:describe",
        "diagnostics": "apical.diagnostics",
        "exact_gradients": "apical.convert:exact_gradients",
        "feedback_parameters": "apical.convert:feedback_parameters",
        "forward_parameters": "apical.convert:forward_parameters",
        "labels": "apical.convert:labels",
        "learn": "apical.convert:learn",
        "plan": "apical.plan:plan",
        "probes": "apical.probes",
        "revert": "apical.convert:revert",
        "rules": "apical.rules",
        "switch": "apical.switch:switch",
    },
)
