"""Apical: any PyTorch model, any biologically motivated learning rule, results you can believe."""

from typing import TYPE_CHECKING

from apical.names import __version__ as __version__
from apical.names import import_on_use

if TYPE_CHECKING:
    from apical import rules
    from apical.core import adapters
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
    from apical.measure import diagnostics, probes
    from apical.testing import check_rule
    from apical.testing.adapters import check_adapter

__all__ = [
    "adapters",
    "check_adapter",
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
        "adapters": "apical.core.adapters",
        "check_adapter": "apical.testing.adapters:check_adapter",
        "check_rule": "apical.testing:check_rule",
        "cite": "apical.core.converted:cite",
        "convert": "apical.core.convert:convert",
        "describe": "apical.core.describe:describe",
        "diagnostics": "apical.measure.diagnostics",
        "exact_gradients": "apical.core.converted:exact_gradients",
        "feedback_parameters": "apical.core.converted:feedback_parameters",
        "forward_parameters": "apical.core.converted:forward_parameters",
        "labels": "apical.core.converted:labels",
        "learn": "apical.core.converted:learn",
        "plan": "apical.core.plan:plan",
        "probes": "apical.measure.probes",
        "revert": "apical.core.convert:revert",
        "rules": "apical.rules",
        "switch": "apical.core.switch:switch",
    },
)
