"""Starting from trained weights: reading them, another head, what learns and how fast.

Everything works on plain torch objects, before or without converting the model.
"""

from apical.starts.change import weight_change
from apical.starts.heads import find_head, replace_head
from apical.starts.loading import load
from apical.starts.norms import norm_statistics
from apical.starts.start import Start
from apical.starts.tuning import freeze, parameter_groups, train_only
from apical.starts.weights import State, digest, locate, read

__all__ = [
    "Start",
    "State",
    "digest",
    "find_head",
    "freeze",
    "load",
    "locate",
    "norm_statistics",
    "parameter_groups",
    "read",
    "replace_head",
    "train_only",
    "weight_change",
]
