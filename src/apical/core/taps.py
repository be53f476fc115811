"""What a broadcast rule keeps for a layer, and the taps of a forward pass under way."""

import inspect
import math
import operator
import threading
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from apical.core.feedback import Feedback
from apical.core.sample_axis import Probe
from apical.rules.base import BroadcastRule
from apical.rules.ops import ConvOp, Geometry, LinearOp, Op, as_rows


class BroadcastFeedback(Feedback):
    """The feedback of a rule that broadcasts; its memory is sized by a first forward pass.

    Attributes:
        broadcast: from whose output the error comes;
        unchecked: whether the memory was loaded before its shapes were known;
        fitting: shapes of the layer's input that the memory is known to fit.
    """

    rule: BroadcastRule

    def __init__(self, rule: BroadcastRule, layer: str, seed: int, broadcast: Any) -> None:
        super().__init__(rule, layer, seed)
        self.broadcast = broadcast
        self.unchecked = False
        self.fitting: list[torch.Size] = []
        broadcast.layers += 1

    @property
    def pending(self) -> bool:
        return self.memory_names is None or self.unchecked

    @torch.inference_mode(False)
    @torch.no_grad()
    def create(self, weight: Tensor, geometry: Geometry, error_size: int) -> None:
        """Make the memory, or compare what was loaded with what would be made.

        Raises: ValueError if what was loaded has other names or shapes.
        """
        name = "shared" if self.rule.shared else self.layer
        self.fitting = [geometry.input_shape]
        with torch.device("cpu"):  # whatever torch's default device is
            made = self.rule.create(geometry, error_size, self.generator(name))
        if not self.unchecked:
            self.store(made, weight)
            return
        loaded = {name: tuple(getattr(self, name).shape) for name in self.memory_names or ()}
        expected = {name: tuple(tensor.shape) for name, tensor in made.items()}
        if loaded != expected:
            raise ValueError(
                f"{self.layer}: the checkpoint's feedback is {loaded}, but"
                f" {type(self.rule).__name__} here is {expected}; it is of another rule, model or"
                " size of input"
            )
        self.memory_names = tuple(made)  # a file may have sorted them
        self.unchecked = False

    def check_fit(self, geometry: Geometry, error_size: int) -> None:
        """Raises: ValueError if the memory does not fit the layer's input, which another size of
        images or structural pruning has changed."""
        shape = geometry.input_shape
        if shape in self.fitting:
            return
        stored = [tensor.to("meta") for tensor in self.memory()]
        error = torch.empty(geometry.samples, error_size, device="meta")
        labels = [error] if self.rule.needs_labels else []
        inputs = [torch.empty(shape, device="meta")] if self.rule.needs_input else []
        try:
            cast = [tensor.to(error.dtype) for tensor in stored]
            fits = self.rule.signal(error, geometry, *cast, *labels, *inputs).shape == shape
        except RuntimeError:
            fits = False
        if not fits:
            before = f", it was {tuple(self.fitting[0])} before" if self.fitting else ""
            raise ValueError(
                f"{self.layer}: its input is {tuple(shape)}{before}, and the feedback of"
                f" {type(self.rule).__name__} has no signal of that size. Revert and convert again"
                " after structural pruning; for inputs of several sizes use layout='channel' or"
                " 'kernel', for sequences with an error at every position positions='samples'"
            )
        self.fitting = [*self.fitting[-7:], shape]  # batches of a few sizes take turns

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        names = [key.removeprefix(prefix) for key in state_dict if key.startswith(prefix)]
        names = [name for name in names if name not in ("updates", "weight_norm")]
        if names and self.pending:
            if self.rule.trains_memory:
                raise ValueError(
                    f"{self.layer}: its feedback has no size yet, and what of it is trained is not"
                    " known; give convert(..., example=x) before loading"
                )
            for name in (*(self.memory_names or ()), *self.note_names):
                delattr(self, name)  # of an earlier load
            for name in names:
                self.register_tensor(name, torch.empty_like(state_dict[prefix + name]))
            self.memory_names = tuple(name for name in names if not name.startswith("note_"))
            self.note_names = tuple(name for name in names if name.startswith("note_"))
            self.unchecked = True
        super()._load_from_state_dict(state_dict, prefix, *args)


class Tap(NamedTuple):
    """The input of a layer in a forward pass. `differentiated`: whether it requires a gradient;
    otherwise it only shows its shape. `positions`: (samples, *positions), where x holds them as
    rows, for a rule to which every position is a sample."""

    feedback: BroadcastFeedback
    op: Op
    x: Tensor
    weight: Tensor
    differentiated: bool
    positions: tuple[int, ...] | None = None

    def by_rows(self, positions: tuple[int, ...] | None = None) -> "Tap":
        """The tap of a rule to which every position is a sample, with the positions as rows.

        Args: positions: of the output; None before it is known.
        """
        axis = getattr(self.feedback.rule, "sample_axis", 0)
        x = self.x.movedim(1, -1) if isinstance(self.op, ConvOp) else self.x
        if axis != "folded":
            x = x.movedim(axis, 0) if 0 < axis < x.dim() - 1 else x
            positions = tuple(x.shape[:-1])
        elif positions is None or x.shape[0] != math.prod(positions):
            positions = (x.shape[0],)  # which the output has not
        rows = as_rows(x)
        return self._replace(x=rows, op=LinearOp(), positions=positions)

    def geometry(self, samples: int) -> Geometry:
        x = self.x
        shape = x.shape
        channels_last = x.dim() == 4 and not x.is_contiguous() and x.stride(1) == 1
        if torch.compiler.is_compiling():  # one graph for all batch sizes, but for one image size
            shape = torch.Size([shape[0], *map(operator.index, shape[1:])])
        return Geometry(shape, samples, self.weight.shape, self.op, channels_last)


class Call:
    """A forward pass of the model.

    Attributes:
        tokens: feedback and token of each tap;
        late: taps whose number of samples, or whose memory, is only known at the output;
        verifies: whether it shows which axis counts samples; bridged: the taps of such a pass, with
            what their layers run on; probe: lets gradients pass the bridges.
        part: how each layer takes part: "tapped", "late", or "hidden" from autograd in a pass that
            others take part in.
    """

    def __init__(self, caller: FrameType | None) -> None:
        self.grad_enabled = torch.is_grad_enabled()
        self.tokens: list[tuple[BroadcastFeedback, Tensor]] = []
        self.late: list[Tap] = []
        self.verifies = False
        self.bridged: list[tuple[Tap, Tensor]] = []
        self.probe = Probe()
        self.part: dict[str, str] = {}
        self._caller = caller

    def note(self, layer: str, part: str) -> None:
        """Remember the layer's part; of a layer called several times that it was hidden."""
        if self.part.get(layer) != "hidden" and not torch.compiler.is_compiling():
            self.part[layer] = part

    def is_running(self) -> bool:
        """Whether the function that called the hooks is still running, that is, among the callers.

        torch calls no hook after KeyboardInterrupt, so the call may have ended without `close`.
        """
        frame = inspect.currentframe() if self._caller is not None else None
        while frame is not self._caller and frame is not None:
            frame = frame.f_back
        return frame is self._caller


class OpenCalls(threading.local):
    """The open calls of each thread (`nn.DataParallel` runs many threads)."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def __reduce__(self) -> "tuple[type[OpenCalls], tuple[()]]":
        return OpenCalls, ()  # in a copy of the model no call is open


def measurable(model: nn.Module) -> bool:
    """Whether a further backward pass through the graph of a forward pass has no effects of its
    own: none through hooks of others on modules, sharded parameters or transforms."""
    if torch._C._are_functorch_transforms_active() or torch.jit.is_tracing():
        return False
    hooked = any(
        m._backward_hooks or m._backward_pre_hooks or type(m).__name__.startswith("FSDP")
        for m in model.modules()
    )
    return not hooked and not any(
        p.is_meta or type(p) not in (nn.Parameter, Tensor) for p in model.parameters()
    )


def recorded_in_memory() -> bool:
    """Whether autograd keeps what it saves; checkpointing would compute it again."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is None
