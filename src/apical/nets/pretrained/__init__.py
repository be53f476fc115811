"""Trained weights: reading and loading them, another head, which parameters learn and how fast.

Everything works on plain torch models, before or without converting them.
"""

from apical.nets.pretrained.heads import find_head, replace_head
from apical.nets.pretrained.start import Start
from apical.nets.pretrained.tuning import (
    freeze,
    norm_statistics,
    parameter_groups,
    train_only,
    weight_change,
)
from apical.nets.pretrained.weights import State, digest, load, locate, read

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
