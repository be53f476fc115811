"""Tasks that need memory, with exact generators, and the table of their names.

>>> import torch
>>> x, y = build("temporal_order", 20).draw(3, torch.Generator().manual_seed(0))
>>> x.shape, y.shape
(torch.Size([3, 20, 6]), torch.Size([3]))
"""

from apical.naming import unknown
from apical.tasks.addition import Addition
from apical.tasks.base import Task, batches
from apical.tasks.order import TemporalOrder, TemporalOrder3
from apical.tasks.permutation import RandomPermutation
from apical.tasks.stream import Stream

__all__ = [
    "TASKS",
    "Addition",
    "RandomPermutation",
    "Stream",
    "Task",
    "TemporalOrder",
    "TemporalOrder3",
    "batches",
    "build",
]


def build(name: str, length: int) -> Task:
    """A task by name, for sequences of so many steps.

    Raises: ValueError for an unknown name or a sequence shorter than the task needs.
    """
    if name not in TASKS:
        raise unknown("task", name, TASKS)
    return TASKS[name](length)


TASKS: dict[str, type[Task]] = {
    "addition": Addition,
    "random_permutation": RandomPermutation,
    "temporal_order": TemporalOrder,
    "temporal_order_3bit": TemporalOrder3,
}
