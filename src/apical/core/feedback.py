"""What a converted layer remembers: its rule, the rule's memory, and a history of its updates."""

import hashlib
import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode

from apical import rules
from apical.rules.base import Rule, TransportRule

FEEDBACK_VERSION = 1
"""Part of the seed of all feedback; raised when a change alters the numbers."""

NO_TENSOR_PARALLELISM = (
    "tensor parallelism (parallelize_module) is not supported for converted models, use fully_shard"
    " or DistributedDataParallel"
)


class History:
    """What happened to one weight since the last update that its rule acted on.

    Optimizers announce their steps by a hook, `apical.learn` announces updates made by hand. An
    update counts if the rule took part in a pass since the one before. One that both announced
    counts once, since no pass lies between.

    Attributes:
        count: updates that counted, saved with the model: the rule's random numbers depend on it.
        took_part: whether the rule took part in a pass since the last of them.
        called: whether the layer was ever called while gradients were recorded.
        observes: whether the rule observes the passes before the next of them.
        weight_replaced: whether a checkpoint of the plain model has replaced the weight, which is
            no update.
        stepped: "weight", or "memory" (trained feedback), where an optimizer has stepped one of
            them without the other.
        missed_steps: steps of optimizers that train the weight but not its trained feedback.
        optimizers_checked: whether the rule was asked for its objection to the optimizers.
        compared: steps of optimizers of weight or memory, until these had other gradients;
        exact_blocks: those of the feedback at the last of these steps.
    """

    def __init__(self) -> None:
        self.count = 0
        self.took_part = False
        self.called = False
        self.observes = True  # a plain bool: code is compiled once for each of its values
        self.weight_replaced = False
        self.stepped: set[str] = set()
        self.missed_steps = 0
        self.optimizers_checked = False
        self.compared = 0
        self.exact_blocks = 0
        self._optimizer: ref[Optimizer] | None = None
        self._versions: tuple[int, ...] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # A copy has weights of its own, and no optimizer yet.
        return {**self.__dict__, "_optimizer": None, "_versions": None}

    def counts(self, weight: Iterable[Tensor | None], *, by_hand: bool) -> bool:
        """Whether an update counts; `by_hand`: announced by `learn`, perhaps a second time.

        An update by hand may follow an announced one without a pass between. Then the version
        counters of the weight's parameters differ (fused optimizers do not change these, but they
        announce their steps).
        """
        if self.took_part:
            return True
        return by_hand and self._versions is not None and self._versions != _versions(weight)

    def close(self, weight: Iterable[Tensor | None]) -> None:
        """An update is done, counted or not, with all that rules changed about the weight."""
        self.took_part = False
        self._versions = _versions(weight) if self.count else None

    def loaded(self, *, plain: bool) -> None:
        """The weight came from a checkpoint; `plain`: one without its feedback."""
        self.took_part = False
        self.weight_replaced = plain
        self._versions = None

    @property
    def optimizer(self) -> Optimizer | None:
        """The one that trains the weight, while it is alive."""
        return None if self._optimizer is None else self._optimizer()

    @optimizer.setter
    def optimizer(self, optimizer: Optimizer) -> None:
        self._optimizer = ref(optimizer)


class Feedback(nn.Module):
    """The child module `feedback` of a converted layer: `TransportFeedback` or, under a rule that
    broadcasts, `apical.core.taps.BroadcastFeedback`.

    What a rule remembers are its buffers and parameters, saved with the model.

    Attributes:
        rule: the rule; layer: the layer's full name at conversion; seed: of the conversion;
        exact: above 0 inside `exact_gradients`; exact_blocks: how many of these there were;
        history: which updates of the weight count for the rule;
        emptied: version counters of the tensors without values, since `to_empty`; -1 on meta, where
            a tensor that is not on meta has replaced it later (`torch.func.functional_call`);
        listeners: functions called with input and output of each operation, while measuring.
    """

    rule: Rule

    def __init__(self, rule: Rule, layer: str, seed: int) -> None:
        super().__init__()
        self.rule = rule
        self.layer = layer
        self.seed = seed
        self.exact = 0
        self.exact_blocks = 0
        self.history = History()
        self.emptied: dict[str, float] = {}
        self.count_updates(0)
        self.memory_names: tuple[str, ...] | None = None
        self.note_names: tuple[str, ...] = ()
        self.listeners: list[Callable[[Tensor, Tensor], None]] = []

    def __getstate__(self) -> dict[str, Any]:
        # counters of a copy start anywhere
        unwritten = {name: math.inf if at >= 0 else at for name, at in self._unwritten().items()}
        return {**self.__dict__, "exact": 0, "listeners": [], "emptied": unwritten}

    def extra_repr(self) -> str:
        return rules.spell(self.rule)

    def __getattr__(self, name: str) -> Any:
        if name in ("weight", "bias"):  # of tools that take every module below a layer for one
            raise AttributeError(
                f"{self.layer}: its feedback has no {name!r}, which partitioning a model looks for;"
                f" {NO_TENSOR_PARALLELISM}"
            )
        return super().__getattr__(name)

    def __prepare_scriptable__(self) -> None:
        raise ValueError(
            f"{self.layer}: torch.jit.script compiles the source of forward functions and would"
            " lose the rule; use torch.compile or torch.export, or script after"
            " apical.revert(model)"
        )

    @property
    def pending(self) -> bool:
        """Whether the memory waits for the shapes of a first forward pass."""
        return self.memory_names is None

    @property
    def trained(self) -> bool:
        """Whether the memory has parameters that an optimizer trains."""
        return any(parameter.requires_grad for parameter in self.parameters(recurse=False))

    def memory(self) -> tuple[Tensor, ...]:
        """The rule's tensors, in the order in which the rule made them."""
        return tuple([getattr(self, name) for name in self.memory_names or ()])

    @property
    def notes(self) -> tuple[Tensor, ...]:
        """Where the rule keeps what it observes; empty for most rules."""
        return tuple([getattr(self, name) for name in self.note_names])

    def observes(self) -> bool:
        """Whether the rule observes this backward pass."""
        return bool(self.note_names) and self.training and self.history.observes

    def takes_part(self, x: Tensor, weight: Tensor) -> bool:
        """Whether the rule acts in the backward pass of this input; if so, the update counts."""
        if self.emptied and not x.is_meta:
            self._refuse_if_emptied()
        if self.history.weight_replaced:
            self.adopt(weight)
        if self.rule.changes_weight:
            self._refuse_if_computed(weight)
        if type(weight).__name__ == "DTensor":
            raise ValueError(
                f"{self.layer}: its weight is a DTensor now, a part of a weight on each process;"
                f" {NO_TENSOR_PARALLELISM}"
            )
        if x.is_nested:
            raise ValueError(
                f"{self.layer}: its input is a nested tensor, for which no rule is defined; pad the"
                " sequences (torch.nested.to_padded_tensor), or join them to rows (x.values())"
            )
        acts = x.requires_grad or self.trained
        if self.rule.acts_after_update and (acts or self.rule.follows_weight):
            self.history.took_part = True
        return acts

    def _refuse_if_computed(self, weight: Tensor) -> None:
        """A parametrization or a hook came after the conversion. Replicas of `nn.DataParallel` have
        copies of a parameter; weights given to `torch.func` are their caller's."""
        if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            return
        base = weight._base  # attention packs three weights
        node = weight.grad_fn if base is None else base.grad_fn
        if node is not None and type(node).__name__ != "BroadcastBackward":
            raise ValueError(f"{self.layer}: {computed_weight(self.rule)}")

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> "Feedback":
        """As of every module that is moved or cast; notes what `to_empty` leaves without values."""
        self.emptied = self._unwritten()
        with _Emptying() as mode:
            super()._apply(fn, *args, **kwargs)
        for name, tensor in (*self._parameters.items(), *self._buffers.items()):
            if tensor is not None and (mode.seen or tensor.is_meta or name in self.emptied):
                self.emptied[name] = -1 if tensor.is_meta else tensor._version
        return self

    def _unwritten(self) -> dict[str, float]:
        """Those of `emptied` that were not written in place since, by hand."""
        if torch.compiler.is_compiling():  # it reads no version counter
            return self.emptied
        kept = ((name, getattr(self, name), at) for name, at in self.emptied.items())
        return {name: at for name, t, at in kept if t.is_meta or t._version <= at}

    def _refuse_if_emptied(self) -> None:
        self.emptied = self._unwritten()
        if self.emptied:
            raise ValueError(
                f"{self.layer}: its feedback ({', '.join(self.emptied)}) has no values since the"
                " model was moved to the meta device or by to_empty. Load a state_dict of the"
                " converted model; or, when the weights have their values, apical.revert(model) and"
                " convert again"
            )

    def count_updates(self, count: int) -> None:
        """Set the number of updates that counted."""
        self.history.count = count
        self.history.observes = self.rule.observes_before(count + 1)

    def constrain(self, weight: Tensor) -> None:
        """Store the norm that `constrain_weights` keeps."""
        self.register_buffer("weight_norm", torch.linalg.vector_norm(weight.detach()))

    @torch.no_grad()
    def adopt(self, weight: Tensor) -> None:
        """Bring up to date what depends on a weight that a plain checkpoint has replaced."""
        self.history.weight_replaced = False
        if self.rule.constrain_weights:
            self.get_buffer("weight_norm").copy_(torch.linalg.vector_norm(weight))
        if not self.pending:
            self.rule.adopt(weight.detach(), *self.memory())
        for note in self.notes:
            note.zero_()

    def generator(
        self, name: str | None = None, *, device: torch.device | str = "cpu"
    ) -> torch.Generator:
        """Its numbers depend on the seed, the name (default: the layer's) and the update count."""
        key = f"{FEEDBACK_VERSION}/{self.seed}/{name or self.layer}/{self.history.count}"
        digest = hashlib.sha256(key.encode()).digest()
        return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)

    def store(self, memory: dict[str, Tensor], weight: Tensor) -> None:
        """Keep what the rule created, in the dtype, on the device and, where shapes are equal, in
        the memory layout of the weight; and the rule's notes."""
        if not isinstance(memory, dict):
            raise ValueError(
                f"{self.layer}: {type(self.rule).__name__}.create returned a"
                f" {type(memory).__name__}; it returns a dictionary of named tensors, as"
                ' {"matrix": tensor}'
            )
        for name, tensor in memory.items():
            self.register_tensor(name, _placed(tensor, weight))
        self.memory_names = tuple(memory)
        notes = self.rule.note(*self.memory())
        for name, tensor in notes.items():
            self.register_buffer(f"note_{name}", _placed(tensor, weight))
        self.note_names = tuple(f"note_{name}" for name in notes)

    def register_tensor(self, name: str, tensor: Tensor) -> None:
        """As a parameter or as a buffer."""
        if isinstance(tensor, nn.Parameter):
            self.register_parameter(name, tensor)
        else:
            self.register_buffer(name, tensor)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.rule.acts_after_update:
            destination[prefix + "updates"] = torch.tensor(self.history.count)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        saved = [key for key in state_dict if key.startswith(prefix)]
        self.history.loaded(plain=not saved)
        if not saved:  # a checkpoint of the plain model, as `check_checkpoint` has found
            return
        if prefix + "updates" in state_dict and self.rule.acts_after_update:
            self.count_updates(int(state_dict.pop(prefix + "updates")))
        super()._load_from_state_dict(state_dict, prefix, *args)
        for name in [key.removeprefix(prefix) for key in saved]:
            if name in self.emptied and not getattr(self, name).is_meta:  # meta keeps nothing
                del self.emptied[name]


class _Emptying(TorchFunctionMode):
    """Notes whether tensors are made without values within the block, as `to_empty` makes them."""

    seen = False

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function in (torch.empty_like, Tensor.copy_):
            self.seen = function is torch.empty_like
        return function(*args, **(kwargs or {}))


class TransportFeedback(Feedback):
    """The feedback of a rule that sends the gradient of a layer to the layer below.

    Attributes: weight_shape: that of the weight for which the memory was made.
    """

    rule: TransportRule

    def __init__(self, rule: TransportRule, layer: str, seed: int, weight: Tensor) -> None:
        super().__init__(rule, layer, seed)
        with torch.inference_mode(False), torch.no_grad():
            with torch.device("cpu"):  # whatever torch's default device is
                made = rule.create(weight, self.generator())
            self.store(made, weight)
        self.weight_shape = weight.shape

    def takes_part(self, x: Tensor, weight: Tensor) -> bool:
        if weight.shape != self.weight_shape and self.memory_names:
            raise ValueError(
                f"{self.layer}: its weight is {tuple(weight.shape)} now, but its feedback was made"
                f" for {tuple(self.weight_shape)}; after structural pruning, apical.revert(model)"
                " and convert again"
            )
        return super().takes_part(x, weight)


def computed_weight(rule: Rule) -> str:
    """Why a rule that changes the weight itself cannot act on one that is computed."""
    while not rule.constrain_weights and hasattr(rule, "inner"):  # of a rule around another
        rule = rule.inner
    name = type(rule).__name__
    option = "decay=0.0) and the optimizer's weight decay"
    if rule.constrain_weights:
        option = "constrain_weights=False)"
    return (
        f"{name} changes the weight itself after an update (a decay, or constrain_weights), but"
        " this weight is computed from other parameters (weight_norm, spectral_norm, pruning, a"
        " standardised weight) and the change would be lost. Remove what computes it, or convert"
        f" with {name}({option}"
    )


def check_checkpoint(model: nn.Module, state_dict: Any, prefix: str, *args: Any) -> None:
    """Hook of a converted model that runs before it loads a checkpoint (the arguments are those of
    `torch.nn.Module.register_load_state_dict_pre_hook`).

    A checkpoint without any feedback is one of the plain model: a warning. One with feedback for
    some layers only is incomplete, or of another conversion: an error.
    """
    *_, error_messages = args
    modules_with_keys = {key.rpartition(".")[0] for key in state_dict}
    present: list[str] = []
    absent: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, Feedback) and (module.pending or module.state_dict()):
            found = prefix + name in modules_with_keys
            (present if found else absent).append(module.layer)
    if present and absent:
        error_messages.append(
            f"the checkpoint has feedback for {present[0]} but not for {absent[0]}: it is"
            " incomplete, or of another conversion"
        )
    elif absent:
        warnings.warn(
            "the checkpoint holds no feedback; the converted model keeps its own", stacklevel=2
        )


def _versions(weight: Iterable[Tensor | None]) -> tuple[int, ...]:
    """Version counters of the parameters that a weight is made of."""
    return tuple([p._version for p in weight if p is not None and not p.is_inference()])


def _placed(tensor: Tensor, weight: Tensor) -> Tensor:
    if tensor.shape == weight.shape:
        placed = torch.empty_like(weight, memory_format=torch.preserve_format).copy_(tensor)
    else:
        placed = tensor.to(weight.device, weight.dtype)
    trained = isinstance(tensor, nn.Parameter)
    return nn.Parameter(placed.detach()) if trained else placed.detach()
