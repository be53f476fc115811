"""Starting from trained weights: reading them, another head, what learns and how fast.

Everything works on plain torch objects, before or without converting the model.
"""

from apical.nets.pretrained.change import weight_change
from apical.nets.pretrained.heads import find_head, replace_head
from apical.nets.pretrained.loading import load
from apical.nets.pretrained.norms import norm_statistics
from apical.nets.pretrained.start import Start
from apical.nets.pretrained.tuning import freeze, parameter_groups, train_only
from apical.nets.pretrained.weights import State, digest, locate, read

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
