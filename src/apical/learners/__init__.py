"""Learners: what fills `.grad` in another way than `loss.backward()`, and the table of names.

>>> import torch
>>> from apical import nets
>>> from apical.data import sequences
>>> task = sequences.TemporalOrder(20)
>>> net = nets.Recurrent(nets.SRN(task.inputs, 30), task.outputs)
>>> learner = build("lra", reduction="sum")
>>> loss, info = learner.gradients(net, task.draw(5, torch.Generator().manual_seed(0)))
>>> net.cell.recurrent.weight.grad.shape, info.signals.shape
(torch.Size([30, 30]), torch.Size([20]))
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from apical.learners.backprop import Backprop, alignment
from apical.learners.base import Batch, Info, Learner, attach, detach
from apical.learners.eprop import EProp
from apical.learners.local_classifiers import LocalClassifiers
from apical.learners.lra import LRA
from apical.learners.lra_e import LRAE
from apical.learners.many import Many
from apical.learners.readout import ReadOut
from apical.learners.targets import TargetLearner
from apical.learners.tptt import TPTT
from apical.names import from_path, unknown

__all__ = [
    "LEARNERS",
    "LRA",
    "LRAE",
    "TPTT",
    "Backprop",
    "Batch",
    "EProp",
    "Info",
    "Learner",
    "LocalClassifiers",
    "Many",
    "ReadOut",
    "TargetLearner",
    "alignment",
    "attach",
    "build",
    "detach",
    "from_dict",
    "to_dict",
]

LEARNERS: dict[str, type[Learner]] = {
    "backprop": Backprop,
    "eprop": EProp,
    "local_classifiers": LocalClassifiers,
    "lra": LRA,
    "lra_e": LRAE,
    "readout": ReadOut,
    "tptt": TPTT,
}


def build(learner: str | Learner | Mapping[str, Any], **options: Any) -> Learner:
    """The learner that a name, a learner or a dictionary stands for.

    Args:
        learner: a name of `LEARNERS`; `package.module:Class`; a learner; or what `to_dict` gives.
        options: its fields; a learner that is given takes none.
    Raises: ValueError for an unknown name or field, naming the nearest and the allowed ones.

    >>> build("lra", reduction="sum", gamma=0.25).gamma
    0.25
    """
    if isinstance(learner, Learner):
        if options:
            raise learner.error(f"it is made already: options {sorted(options)} cannot change it")
        return learner
    if isinstance(learner, Mapping):
        return from_dict({**learner, **options})
    chosen = _class(learner)
    known = [field.name for field in fields(chosen)]
    for option in options:
        if option not in known:
            raise unknown(f"option of {chosen.__name__}", option, known)
    return chosen(**options)


def to_dict(learner: Learner) -> dict[str, Any]:
    """A JSON-ready form: its name, and the fields that differ from the defaults.

    >>> to_dict(Backprop(clip_norm=1.0))
    {'learner': 'backprop', 'clip_norm': 1.0}
    """
    names = {kind: name for name, kind in LEARNERS.items()}
    kind = type(learner)
    changed = {
        field.name: getattr(learner, field.name)
        for field in fields(learner)
        if getattr(learner, field.name) != field.default
    }
    return {"learner": names.get(kind, f"{kind.__module__}:{kind.__qualname__}"), **changed}


def from_dict(form: Mapping[str, Any]) -> Learner:
    """The learner of `to_dict`.

    Raises: ValueError if the key "learner" is missing, or as `build`.
    """
    options = dict(form)
    if "learner" not in options:
        raise ValueError(f"a learner in dictionary form needs the key 'learner'; got {options!r}")
    name = options.pop("learner")
    if isinstance(name, Mapping):
        raise ValueError(f"learner: the key 'learner' holds a mapping, {dict(name)!r}; give a name")
    return build(name, **options)


def _class(name: Any) -> type[Learner]:
    found = LEARNERS.get(name) if isinstance(name, str) else name
    if found is None and ":" not in str(name):
        raise unknown("learner", name, LEARNERS)
    found = from_path(name, "learner") if found is None else found
    if not (isinstance(found, type) and issubclass(found, Learner)):
        raise ValueError(f"a learner is a name, a Learner object or its class, not {found!r}")
    return found
