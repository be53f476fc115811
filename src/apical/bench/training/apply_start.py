"""What a `Start` does to a net."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from apical.names import unknown
from apical.nets.pretrained.heads import find_head
from apical.nets.pretrained.start import Start
from apical.nets.pretrained.tuning import norm_statistics
from apical.nets.pretrained.weights import State, load
from apical.rules import Rule


def begin(model: nn.Module, start: Start, weights: State | None) -> None:
    """Before the conversion: the weights, all but the head's, and the statistics of norms.

    Args: weights: what the source holds; None leaves the net's own, to measure or rebuild it.
    Raises: ValueError if the head is not certain, or a tensor does not fit; names them.
    """
    skip = [*start.skip, f"{head_name(model, start)}.*"] if start.new_head else start.skip
    if weights is not None:
        try:
            load(model, weights, skip=skip, rename=start.rename)
        except ValueError as error:
            own = isinstance(start.source, dict)
            source = "the experiment it starts from" if own else start.source
            raise ValueError(f"start, {source}: {error}") from error
    if start.norms == "frozen":
        norm_statistics(model, "frozen")


def assigned(model: nn.Module, start: Start, rule: Any) -> Any:
    """What `apical.convert` takes, with the head's exact gradient where the start says so.

    Raises: ValueError if the rules name the head as well.
    """
    if start.head_by == "rule":
        return rule
    rest = rule if isinstance(rule, Mapping) else {"*": rule}
    head = head_name(model, start)
    if head in rest:
        raise ValueError(
            f"start.head_by='bp' beside a rule for the layer {head!r}, which is the head: give one "
            "of the two"
        )
    of_head = next((r for pattern, r in rest.items() if fnmatchcase(head, pattern)), None)
    if isinstance(of_head, Rule) and of_head.sends_nothing:  # exact in the head itself, too
        return rule
    return {head: "bp", **rest}


def head_name(model: nn.Module, start: Start) -> str:
    """The name of the last layer: as the start says, else as it is called.

    Raises: ValueError if there is no such layer, or it is not certain; names the candidates.
    """
    if start.head:
        layers = [
            name
            for name, layer in model.named_modules()
            if isinstance(getattr(layer, "weight", None), torch.Tensor)
        ]
        if start.head not in layers:
            raise unknown("layer for start.head", start.head, layers)
        return start.head
    try:
        return find_head(model)
    except ValueError as error:
        why = str(error).partition(" Say which")[0].partition(" Give its name")[0]
        raise ValueError(f"start: {why} Say which: start.head") from error
