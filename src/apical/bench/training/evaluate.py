"""What a run measures of its model as a whole: losses by name, from scores and class labels or from
outputs and numbers; accuracy, memory, where numbers went wrong."""

import resource
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from apical.core.converted import forward_parameters
from apical.core.describe import describe
from apical.data import Batches
from apical.data.sequences import Stream
from apical.learners.base import Memory

Loss = Callable[..., Tensor]


def binary_cross_entropy(
    scores: Tensor, labels: Tensor, *, reduction: Literal["mean", "sum"] = "mean"
) -> Tensor:
    """Cross entropy of a sigmoid at each output with the one-hot label, summed over outputs.

    Its error at the outputs is sigmoid(score) - label, over the number of images for "mean".

    Shapes: scores (N, classes), labels (N,) int64, result a number.

    >>> binary_cross_entropy(torch.zeros(4, 3), torch.tensor([0, 1, 2, 0]))  # 3 log 2
    tensor(2.0794)
    """
    targets = torch.zeros_like(scores).scatter_(1, labels[:, None], 1.0)
    total = F.binary_cross_entropy_with_logits(scores, targets, reduction="sum")
    return total / len(scores) if reduction == "mean" else total


def squared_error(
    scores: Tensor, targets: Tensor, *, reduction: Literal["mean", "sum"] = "mean"
) -> Tensor:
    """Squared distance of the scores from the targets, (N, outputs) both, summed over outputs."""
    total = (scores - targets).square().sum()
    return total / len(scores) if reduction == "mean" else total


def cross_entropy(
    scores: Tensor,
    labels: Tensor,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross entropy of a softmax with the label.

    Where a net answers at every step, the loss of a sequence is the mean over the steps that have
    a label, which is not -100.

    Shapes: scores (N, classes), labels (N,); or (N, T, classes) and (N, T); result a number.
    """
    if scores.dim() == 2:
        return F.cross_entropy(scores, labels, reduction=reduction, label_smoothing=label_smoothing)
    each = F.cross_entropy(
        scores.mT, labels, reduction="none", label_smoothing=label_smoothing
    ).sum(1)
    total = (each / (labels != -100).sum(1).clamp(min=1)).sum()
    return total / len(scores) if reduction == "mean" else total


LOSSES: dict[str, Loss] = {
    "binary_cross_entropy": binary_cross_entropy,
    "cross_entropy": cross_entropy,
    "squared_error": squared_error,
}
"""Each takes scores, labels and `reduction`, "mean" or "sum" over images."""


@torch.no_grad()
def evaluate(
    model: nn.Module, batches: Batches | Stream, autocast: Any, loss_fn: Loss
) -> tuple[float, float]:
    """Mean loss and accuracy (fraction) over a split, in eval mode; sequences count in the accuracy
    by the answers they ask for."""
    training = model.training
    model.eval()
    count, sums = 0, None
    for x, y in batches.epoch(0):
        with autocast():
            scores = model(x)
        if isinstance(batches, Stream):
            weights = batches.weights(y)
        else:
            weights = torch.ones(len(y), dtype=torch.float64, device=y.device)
        loss = loss_fn(scores.float(), y, reduction="sum").double()
        batch = torch.stack([loss, (batches.correct(scores, y) * weights).sum(), weights.sum()])
        sums = batch if sums is None else sums + batch
        count += len(y)
    model.train(training)
    if sums is None:
        raise ValueError("a split without images cannot be evaluated")
    total, correct, among = sums.tolist()
    return total / count, correct / among


def parameter_count(model: nn.Module) -> int:
    """Numbers the net computes with; those of its feedback and its learner are not counted."""
    of_learner = set(_memory(model))
    return sum(p.numel() for p in forward_parameters(model) if p not in of_learner)


def feedback_bytes(model: nn.Module) -> int:
    """Memory of everything the rules of a model store, and its learner."""
    return describe(model).feedback_bytes + sum(tensor.nbytes for tensor in _memory(model))


def _memory(model: nn.Module) -> list[Tensor]:
    """What a learner stores for this model, but for the count of its calls."""
    memory = getattr(model, "learner", None)
    if not isinstance(memory, Memory):
        return []
    return [t for t in (*memory.parameters(), *memory.buffers()) if t is not memory.calls]


def memory_mb(device: torch.device) -> float:
    """Peak memory of the process so far in MiB: on CUDA that of the tensors, else resident."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10, 1)


@torch.no_grad()
def first_nonfinite(model: nn.Module, x: Tensor) -> str:
    """Where the first number that is not finite appears when ``x`` runs through the model.

    Order: the images, then layer by layer in the order they are called, parameters before output.
    """
    if not x.isfinite().all():
        return "the images"
    found: list[str] = []
    names = {module: name or "(the net)" for name, module in model.named_modules()}

    def before(module: nn.Module, inputs: Any) -> None:
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.isfinite().all():
                found.append(f"parameter {name} of layer {names[module]}")

    def after(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and not output.isfinite().all():
            found.append(f"output of layer {names[module]}")

    with ExitStack() as hooks:
        for module in model.modules():
            hooks.enter_context(module.register_forward_pre_hook(before))
            hooks.enter_context(module.register_forward_hook(after))
        model(x)
    return found[0] if found else "the loss"
