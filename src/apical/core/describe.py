"""What a model is made of: which layer learns by which rule, and what its feedback costs."""

import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from apical import rules
from apical.core import outputs, updates
from apical.core.converted import broadcasts, forked_rng
from apical.core.example import call_with
from apical.core.layers import converted_layers, feedback_modules, is_converted
from apical.core.plan import plan, table
from apical.core.taps import BroadcastFeedback


@dataclass(frozen=True)
class LayerRow:
    """One layer. `calls`, `taps` and `bypassed` are known only with an example.

    Memory that several layers share counts for the first of them.
    """

    layer: str
    kind: str
    rule: str
    why: str
    feedback: str
    feedback_bytes: int
    calls: int | None = None
    taps: int | None = None
    bypassed: bool | None = None


@dataclass(frozen=True)
class Description:
    """The rows of all layers with weights; `print` it for a table."""

    rows: tuple[LayerRow, ...]
    feedback_bytes: int

    def __str__(self) -> str:
        head = ["layer", "type", "rule", "why", "feedback", "bytes"]
        cells = [
            [row.layer or "(root)", row.kind, row.rule, row.why, row.feedback or "-",
             f"{row.feedback_bytes:,}"]
            for row in self.rows
        ]  # fmt: skip
        if any(row.calls is not None for row in self.rows):
            head += ["calls", "taps", "bypassed"]
            for line, row in zip(cells, self.rows, strict=True):
                line += ["" if v is None else str(v) for v in (row.calls, row.taps)]
                line.append("YES" if row.bypassed else "")
        total = f"feedback in all: {self.feedback_bytes:,} bytes"
        return "\n".join([*table(head, cells), total])


def describe(model: nn.Module, *, example: Any = None) -> Description:
    """The layers of a model with weights: type, rule and why, feedback tensors and their bytes.

    Args:
        example: an input of the model, as for `convert`. A copy of the model then runs one forward
            and backward pass, and the rows say how often each layer was called and tapped, and
            whether its weights got a gradient although it was never called: then the model uses
            them directly (`F.linear(x, layer.weight)`) and its rule is bypassed.

    Returns: a `Description`. Feedback that waits for a first forward pass reads "pending".
    """
    observed = {} if example is None else _observe(model, example)
    rows = tuple(
        LayerRow(*cells, *observed.get(cells[0], (None, None, None))) for cells in _rows(model)
    )
    return Description(rows, sum(row.feedback_bytes for row in rows))


def _rows(model: nn.Module) -> Iterator[tuple[str, str, str, str, str, int]]:
    plain = {row.layer: row for row in plan(model, "bp", on_unsupported="keep").rows}
    counted: set[int] = set()
    first: dict[Any, str] = {}  # the layer that a weight is met at first
    for name, row in plain.items():
        if not is_converted(row.module):
            why = "not converted: exact gradient" if "rule BP" in row.why else row.why
            yield name, row.kind, "exact", why, "", 0
            continue
        for slot in updates.slots(row.module):
            feedback = slot.feedback
            full = ".".join(part for part in (name, slot.name) if part)
            names = feedback.memory_names
            listed = ", ".join(f"{n} {tuple(getattr(feedback, n).shape)}" for n in names or ())
            storages = {t.data_ptr(): t for t in map(Tensor.untyped_storage, feedback.memory())}
            size = sum(storages[place].nbytes() for place in storages.keys() - counted)
            at = first.setdefault((slot.name, *map(id, slot.parameters)), full)
            shared = "weight and feedback" if storages and storages.keys() <= counted else "weight"
            why = "" if at == full else f"shares {shared} with {at}"
            counted |= storages.keys()
            kind = type(row.module).plain_class.__name__  # type: ignore[attr-defined]
            state = "pending" if names is None else listed
            yield full, kind, rules.spell(feedback.rule), why, state, size


def _observe(model: nn.Module, example: Any) -> dict[str, tuple[int, int, bool]]:
    """Calls, taps and bypass of each converted layer in one step of a copy."""
    twin = copy.deepcopy(model)
    for broadcast in broadcasts(twin):
        broadcast.warns_of_outputs = False  # all outputs receive a gradient below
    if any(getattr(feedback.rule, "needs_labels", False) for feedback in feedback_modules(twin)):
        _give_labels(twin, example)
    calls: Counter[str] = Counter()
    layers = dict(converted_layers(twin))
    for name, layer in layers.items():
        layer.register_forward_pre_hook(lambda *_, name=name: calls.update([name]))
    taps: Counter[str] = Counter()

    def count_tap(layer: str, x: Tensor, output: Tensor) -> None:
        taps[layer] += x.requires_grad

    for feedback in feedback_modules(twin):
        if isinstance(feedback, BroadcastFeedback):
            feedback.listeners.append(partial(count_tap, feedback.layer))
    with forked_rng(twin), torch.enable_grad():
        tensors = outputs.tensors(call_with(twin, example))
        total = sum((t.float().sum() for t in tensors if t.requires_grad), torch.zeros(()))
        weights = {
            name: [p for p in updates.parameters_of(layer) if p.requires_grad]
            for name, layer in layers.items()
        }
        flat = [weight for group in weights.values() for weight in group]
        gradients = torch.autograd.grad(total, flat, allow_unused=True) if flat else ()
    reached = {id(w) for w, g in zip(flat, gradients, strict=True) if g is not None}
    result = {}
    for name, layer in layers.items():
        bypassed = not calls[name] and any(id(weight) in reached for weight in weights[name])
        for slot in updates.slots(layer):
            full = ".".join(part for part in (name, slot.name) if part)
            result[full] = (calls[name], taps[slot.feedback.layer], bypassed)
    return result


def _give_labels(twin: nn.Module, example: Any) -> None:
    """Labels of zeros, in the shape of the outputs that carry the error."""
    with forked_rng(twin), torch.no_grad():
        output = call_with(twin, example)
    for broadcast in broadcasts(twin):
        parts = [outputs.find(output, key) for key in outputs.names(broadcast.output)]
        error = outputs.error(parts, broadcast.axis, broadcast.output)
        broadcast.labels = torch.zeros_like(parts[0] if len(parts) == 1 else error)
