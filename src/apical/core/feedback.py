"""What a converted layer carries: its rule, the rule's memory, and the switch to exactness."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from apical import rules
from apical.core import autograd
from apical.core.broadcast import Star
from apical.core.history import History
from apical.rules.base import BroadcastRule, Geometry, Rule, TransportRule, Update
from apical.rules.ops import Op

FEEDBACK_VERSION = 1
"""Part of the seed of every draw; raised when a change alters the numbers."""


class Feedback(nn.Module):
    """The child module `feedback` of a converted layer.

    Attributes:
        rule: the rule; layer: the layer's full name at conversion; seed: of the conversion;
        star: the taps of the model (broadcast rules only);
        exact: above 0 inside `exact_gradients`;
        history: which updates of the weight count for the rule.
    """

    def __init__(self, rule: Rule, layer: str, seed: int, star: Star | None = None) -> None:
        super().__init__()
        self.rule, self.layer, self.seed, self.star = rule, layer, seed, star
        self.exact = 0
        self.history = History()
        self._count(0)
        self.memory_names: tuple[str, ...] | None = None
        self.note_names: tuple[str, ...] = ()
        self.unproved = False  # loaded before anything was known of its shapes
        if star is not None:
            star.add(self)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "exact": 0}  # a copy outlives the block it was made in

    def extra_repr(self) -> str:
        return rules.spell(self.rule)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self.star is not None:
            self.star.add(self)
            self.star.share()

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        if self.star is not None:
            self.star.share()  # each layer's slice was moved apart
        return self

    @property
    def pending(self) -> bool:
        """Whether the memory still waits for the shapes of a first forward pass, to be made for
        them or, where it was loaded, compared with them."""
        return self.memory_names is None or self.unproved

    def memory(self) -> tuple[Tensor, ...]:
        """The rule's tensors, in the order in which the rule made them."""
        return tuple([getattr(self, name) for name in self.memory_names or ()])

    @property
    def notes(self) -> tuple[Tensor, ...]:
        """Where the rule keeps what it observes; empty for most rules."""
        return tuple([getattr(self, name) for name in self.note_names])

    def observes(self) -> bool:
        """Whether the rule wants to see this backward pass."""
        return bool(self.note_names) and self.training and self.history.attends

    @property
    def trained(self) -> bool:
        """Whether the memory has parameters that an optimizer trains."""
        return any(parameter.requires_grad for parameter in self.parameters(recurse=False))

    def apply_op(self, op: Op, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """`op` on x with the rule's backward; plain `op` where nothing is differentiated."""
        takes_part = not self.exact and torch.is_grad_enabled() and self._takes_part(x, weight)
        if self.star is not None and not self.exact:
            x = self.star.pass_on(self, op, x, weight)
        elif takes_part:
            if self.rule.sends_nothing:
                x = x.detach()
            return autograd.transport(op, op.prepare(x), weight, bias, self)
        return autograd.exact(op, op.prepare(x), weight, bias)

    def _takes_part(self, x: Tensor, weight: Tensor) -> bool:
        """Whether the rule has something to do in this backward pass; if so, updates count."""
        if self.history.outdated:
            self._adopt(weight)
        rule, takes_part = self.rule, x.requires_grad or self.trained
        if rule.acts_after_update and (takes_part or rule.follows_weight):
            self.history.heard = True
        return takes_part

    @torch.inference_mode(False)
    @torch.no_grad()
    def create(self, weight: Tensor, geometry: Geometry | None = None, error_size: int = 0) -> None:
        """Make the memory: a transport rule's from the weight, a broadcast rule's from its tap."""
        if isinstance(self.rule, TransportRule):
            made = self.rule.create(weight, self._generator())
        else:
            assert isinstance(self.rule, BroadcastRule) and geometry is not None
            name = "shared" if self.rule.shared else self.layer
            made = self.rule.create(geometry, error_size, self._generator(name))
        if self.unproved:
            self._prove(made)
            return
        for name, tensor in made.items():
            self._remember(name, _placed(tensor, weight))
        self.memory_names = tuple(made)
        for name, tensor in self.rule.note(*self.memory()).items():
            self.register_buffer(f"note_{name}", _placed(tensor, weight))
            self.note_names += (f"note_{name}",)

    def _prove(self, made: Mapping[str, Tensor]) -> None:
        """Raise ValueError unless what was loaded has the names and shapes of what is made here."""
        loaded = {name: tuple(getattr(self, name).shape) for name in self.memory_names or ()}
        expected = {name: tuple(tensor.shape) for name, tensor in made.items()}
        if loaded != expected:
            kind = type(self.rule).__name__
            raise ValueError(
                f"{self.layer}: the checkpoint's feedback is {loaded}, but {kind} here is"
                f" {expected}; it is of another rule, model or size of input"
            )
        self.memory_names = tuple(made)  # a file may have sorted them
        self.unproved = False

    @torch.no_grad()
    def after_update(
        self, weight: Tensor, bias: Tensor | None, op: Op, *, counts: bool, told: bool = False
    ) -> None:
        """Restore the weight's norm after an update; if it `counts`, let the rule act on it."""
        if self.history.outdated:
            self._adopt(weight)
        before = weight.clone() if _is_computed(weight) else None
        if self.rule.constrain_weights:
            self._restore_norm(weight, told=told)
        if counts and self.rule.acts_after_update and not self.pending:
            self._count(self.history.count + 1)
            generator = partial(self._generator, device=weight.device)
            update = Update(weight.detach(), bias, op, self.history.count, generator)
            self.rule.after_update(update, *self.memory(), *self.notes)
        if before is not None and not torch.equal(before, weight):
            raise RuntimeError(
                f"{self.layer}: {type(self.rule).__name__} changes the weight itself after an"
                " update (a decay, or constrain_weights), but this weight is computed from other"
                " parameters and the change would be lost; remove the parametrization, or that"
                " option"
            )

    def _count(self, updates: int) -> None:
        self.history.count = updates
        self.history.attends = self.rule.attends(updates + 1)

    def _restore_norm(self, weight: Tensor, *, told: bool) -> None:
        norm = torch.linalg.vector_norm(weight)  # of a weight that may have begun at zero
        limits = torch.finfo(norm.dtype)
        factor = self.weight_norm / norm.clamp_min(limits.tiny)
        if told:  # perhaps of what an optimizer has announced: then not a bit changes
            factor = torch.where((factor - 1).abs() > 16 * limits.eps, factor, 1)
        weight.mul_(factor)

    @torch.no_grad()
    def _adopt(self, weight: Tensor) -> None:
        """Take a weight from a plain checkpoint for the one known all along: it was no update."""
        self.history.outdated = False
        if self.rule.constrain_weights:
            self.get_buffer("weight_norm").copy_(torch.linalg.vector_norm(weight))
        if not self.pending:
            self.rule.adopt(weight.detach(), *self.memory())
        for note in self.notes:
            note.zero_()

    def constrain(self, weight: Tensor) -> None:
        """Remember the norm that `constrain_weights` keeps."""
        self.register_buffer("weight_norm", torch.linalg.vector_norm(weight.detach()))

    def _generator(
        self, name: str | None = None, *, device: torch.device | str = "cpu"
    ) -> torch.Generator:
        key = f"{FEEDBACK_VERSION}/{self.seed}/{name or self.layer}/{self.history.count}"
        digest = hashlib.sha256(key.encode()).digest()
        return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)

    def _remember(self, name: str, tensor: Tensor) -> None:
        if isinstance(tensor, nn.Parameter):
            self.register_parameter(name, tensor)
        else:
            self.register_buffer(name, tensor)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.rule.acts_after_update:
            destination[prefix + "updates"] = torch.tensor(self.history.count)

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        saved = [key for key in state_dict if key.startswith(prefix)]
        problem = self._in_this_load(bool(saved), missing_keys)
        if problem:
            error_msgs.append(problem)
        self.history.loaded(plain=not saved)
        if not saved:  # a checkpoint of the plain model
            return
        if prefix + "updates" in state_dict and self.rule.acts_after_update:
            self._count(int(state_dict.pop(prefix + "updates")))
        if self.pending:
            assert isinstance(self.rule, BroadcastRule)  # only these wait for shapes
            if self.rule.trains_memory:
                raise ValueError(
                    f"{self.layer}: its feedback has no size yet, and what of it is trained is not"
                    " known; give convert(..., example=x) before loading"
                )
            names = [key.removeprefix(prefix) for key in saved]
            names = [name for name in names if name not in ("updates", "weight_norm")]
            for name in (*(self.memory_names or ()), *self.note_names):
                delattr(self, name)  # of an earlier load
            for name in names:
                self._remember(name, torch.empty_like(state_dict[prefix + name]))
            self.memory_names = tuple(n for n in names if not n.startswith("note_"))
            self.note_names = tuple(n for n in names if n.startswith("note_"))
            self.unproved = True
        super()._load_from_state_dict(
            state_dict, prefix, metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _in_this_load(self, present: bool, missing_keys: list[str]) -> str:
        """What is wrong with the checkpoint, as far as the layers loaded up to here can tell.

        A checkpoint without any feedback is one of the plain model: a warning. One with feedback
        for some layers only is damaged, or of another conversion.
        """
        if not (self.pending or self.state_dict()):
            return ""  # a rule that keeps nothing
        if _LOADS[-1].missing_keys is not missing_keys:
            _LOADS[:] = [_Load(missing_keys)]
        load = _LOADS[-1]
        first = not load.layers[present]
        load.layers[present].append(self.layer)
        if first and load.layers[not present]:
            return (
                f"the checkpoint has feedback for {load.layers[True][0]} but not for"
                f" {load.layers[False][0]}: it is incomplete, or of another conversion"
            )
        if first and not present:
            warnings.warn(
                "the checkpoint holds no feedback; the converted model keeps its own", stacklevel=3
            )
        return ""


class _Load:
    """One call of `load_state_dict`, known by the list that torch passes to every module in it."""

    def __init__(self, missing_keys: list[str]) -> None:
        self.missing_keys = missing_keys
        self.layers: dict[bool, list[str]] = {True: [], False: []}


_LOADS = [_Load([])]  # the call under way, or the last one


def _is_computed(weight: Tensor) -> bool:
    """Whether a parametrization or a hook makes the weight, so that changing it has no effect."""
    owner = weight._base if weight._is_view() else weight  # attention packs three weights
    return not isinstance(owner, nn.Parameter)


def _placed(tensor: Tensor, weight: Tensor) -> Tensor:
    """The tensor in the dtype, on the device and, if alike, in the memory layout of the weight."""
    if tensor.shape == weight.shape:
        placed = torch.empty_like(weight, memory_format=torch.preserve_format).copy_(tensor)
    else:
        placed = tensor.to(weight.device, weight.dtype)
    trained = isinstance(tensor, nn.Parameter)
    return nn.Parameter(placed.detach()) if trained else placed.detach()
