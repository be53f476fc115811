"""Tasks that need memory, with exact generators, and the table of their names.

>>> import torch
>>> x, y = build("temporal_order", 20).draw(3, torch.Generator().manual_seed(0))
>>> x.shape, y.shape
(torch.Size([3, 20, 6]), torch.Size([3]))
"""

import inspect

from apical.data.sequences.asked import NOTHING, AskedTask, Dictionary, DoubleCopy, PrioritySort
from apical.data.sequences.babi import Babi
from apical.data.sequences.base import Stream, Task, batches
from apical.data.sequences.long_lags import (
    Addition,
    RandomPermutation,
    TemporalOrder,
    TemporalOrder3,
)
from apical.data.sequences.unicode_names import UnicodeNames
from apical.names import unknown

__all__ = [
    "NOTHING",
    "TASKS",
    "Addition",
    "AskedTask",
    "Babi",
    "Dictionary",
    "DoubleCopy",
    "PrioritySort",
    "RandomPermutation",
    "Stream",
    "Task",
    "TemporalOrder",
    "TemporalOrder3",
    "UnicodeNames",
    "batches",
    "build",
]


def build(name: str, length: int, **options: object) -> Task:
    """A task by name, for sequences of so many steps.

    Args: options: of the task; see its docstring.
    Raises: ValueError for an unknown name or option, a value out of range, or a sequence shorter
        than the task needs.
    """
    if name not in TASKS:
        raise unknown("task", name, TASKS)
    allowed = set(inspect.signature(TASKS[name]).parameters) - {"length"}
    for option in options:
        if option not in allowed:
            raise unknown(f"option of task {name!r}", option, allowed)
    return TASKS[name](length, **options)


TASKS: dict[str, type[Task]] = {
    "addition": Addition,
    "babi": Babi,
    "dictionary": Dictionary,
    "double_copy": DoubleCopy,
    "priority_sort": PrioritySort,
    "random_permutation": RandomPermutation,
    "temporal_order": TemporalOrder,
    "temporal_order_3bit": TemporalOrder3,
    "unicode_names": UnicodeNames,
}
