"""How much of the classes a linear readout finds in what each layer reads."""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apical.core import outputs
from apical.core.adapters import mixin_for
from apical.core.example import call_with
from apical.core.layers import modes_kept, modules
from apical.measure import signals
from apical.names import unknown

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Strengths of the ridge among which leave-one-out errors choose, as factors of the features' mean
variance times the number of samples."""

BATCH = 250
"""Samples in one forward pass."""

Inputs = Tensor | Mapping[str, Tensor]
Labelled = tuple[Inputs, Tensor]
Activations = dict[str, Tensor]


def linear_probe(
    model: nn.Module,
    *,
    train: Labelled,
    test: Labelled,
    layers: Iterable[str] | None = None,
    features: int = 256,
    seed: int = 0,
) -> dict[str, float]:
    """Held-out accuracy of a ridge classifier on what each layer reads.

    What a layer reads is the output of everything below it, after activation, norm and pooling.
    The first layer's accuracy is thus that of the raw input, the difference between two successive
    layers is what the lower one added, and "" is the output of the model. Compare with the same
    net before training: a random layer adds something, too.

    The classifier is least squares on one-hot targets with a bias and a ridge, in closed form in
    float64. The strength of the ridge is the one of `RIDGES` with the smallest leave-one-out error
    on `train`, also in closed form. Activations with more than `features` numbers are reduced:
    maps (N, C, H, W) by average pooling to the largest grid that fits (at least 1x1), then, if
    still too many, by a fixed random projection. Rows of several steps for each sample,
    (T * N, ...) as in spiking nets, count by their mean over steps.

    The model is called in eval mode and without gradients; its modes, buffers and parameters and
    the global random numbers stay as they were.

    Args:
        train, test: inputs (N, ...), a tensor or a dictionary of keyword arguments, and classes
            (N,), integers from 0; no sample in both.
        layers: names of the layers; None: all linear, convolution and attention layers. One called
            several times counts by its last call.
        features: most numbers for each sample, at least 1.
        seed: of the random projection.

    Returns: layer -> fraction of `test` classified rightly, in [0, 1], in the order of the calls,
        "" at the end where the model gives one tensor of numbers. A layer that is not called, or
        whose activations are not finite, is not in the result.
    Raises: ValueError for an unknown layer, sizes or classes that do not fit, or fewer than two
        samples, or classes, to train on.
    Source: Alain and Bengio 2016, with a ridge for the logistic regression; leave-one-out: Golub,
        Heath, Wahba 1979.

    >>> x = torch.eye(4).repeat(5, 1)
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
    >>> linear_probe(net, train=(x, x.argmax(1)), test=(x, x.argmax(1)), layers=["0"])["0"]
    1.0
    """
    for name, (x, y) in {"train": train, "test": test}.items():
        shapes = {key: tuple(part.shape) for key, part in _parts(x).items()}
        wrong = [shape for shape in shapes.values() if shape[:1] != (len(y),)]
        if y.dim() != 1 or y.is_floating_point() or wrong or len(y) < 1:
            shown = ", ".join(f"{key} {shape}".strip() for key, shape in shapes.items())
            raise ValueError(
                f"linear_probe: {name} is {shown} with targets {tuple(y.shape)} of"
                f" {y.dtype}; give inputs (N, ...) and as many classes (N,), integers"
            )
        if y.min() < 0:
            raise ValueError(f"linear_probe: {name} holds the class {int(y.min())}, below 0")
    if len(train[1]) < 2 or features < 1:
        raise ValueError(
            f"linear_probe: {len(train[1])} samples to train on must be at least 2, and"
            f" features={features} at least 1"
        )
    if train[1].min() == train[1].max():
        raise ValueError(
            f"linear_probe: all of train is of class {int(train[1][0])}; give at least two classes"
        )
    named = dict(modules(model))
    if layers is None:
        chosen = {name: layer for name, layer in named.items() if name and mixin_for(layer)}
    else:
        chosen = {}
        for name in layers:
            if name not in named:
                raise unknown("layer", name, named)
            chosen[name] = named[name]
    seen = _activations(model, chosen, (train[0], test[0]), features, seed)
    classes = 1 + int(max(train[1].max(), test[1].max()))
    targets = F.one_hot(train[1].long(), classes).double()
    accuracies = {}
    for name, (a, b) in seen.items():
        if a.isfinite().all() and b.isfinite().all():
            scores = _ridge(a, targets.to(a.device), b)
            right = scores.argmax(1) == test[1].to(scores.device)
            accuracies[name] = right.double().mean().item()
    return accuracies


@torch.no_grad()
def _activations(
    model: nn.Module, layers: dict[str, nn.Module], parts: tuple[Inputs, Inputs], features: int,
    seed: int,
) -> dict[str, tuple[Tensor, Tensor]]:  # fmt: skip
    """What each layer reads of both parts, reduced: (N, at most `features`) in float64."""
    first = next(model.parameters(), next(iter(_parts(parts[0]).values())))
    found: dict[str, list[list[Tensor]]] = {}
    with signals.unchanged(model), modes_kept(model):
        model.eval()
        for number, inputs in enumerate(parts):
            pieces = {k: part.to(first.device).split(BATCH) for k, part in _parts(inputs).items()}
            for at in range(len(next(iter(pieces.values())))):
                piece = {key: part[at] for key, part in pieces.items()}
                x = piece if isinstance(inputs, Mapping) else piece[""]
                count = len(next(iter(piece.values())))
                for name, read in _read(model, layers, x).items():
                    reduced = _reduced(read, count, features, seed)
                    found.setdefault(name, [[], []])[number].append(reduced)
    return {name: (torch.cat(a), torch.cat(b)) for name, (a, b) in found.items() if a and b}


def _parts(inputs: Inputs) -> Mapping[str, Tensor]:
    """The tensors of inputs by name; "" for a single one."""
    return inputs if isinstance(inputs, Mapping) else {"": inputs}


def _read(model: nn.Module, layers: dict[str, nn.Module], x: Inputs) -> Activations:
    """The input of each layer in the last call of it, in the order of the calls; "" the output."""
    read: Activations = {}

    def keep(name: str, _: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        given = next((t for t in (*inputs, *named.values()) if isinstance(t, Tensor)), None)
        if given is not None:
            read[name] = given.clone()  # an in-place activation may change it later

    with ExitStack() as hooks:
        for name, layer in layers.items():
            hook = layer.register_forward_pre_hook(partial(keep, name), with_kwargs=True)
            hooks.enter_context(hook)
        output = call_with(model, x)
    with suppress(ValueError):  # several could be meant
        read[""] = outputs.find(output, None)
    return read


def _reduced(read: Tensor, count: int, features: int, seed: int) -> Tensor:
    """At most so many features for each of `count` samples, in float64."""
    if read.dtype in (torch.float16, torch.bfloat16):  # in which sums overflow, or lose digits
        read = read.float()
    if len(read) != count and len(read) % count == 0:
        read = read.unflatten(0, (-1, count)).mean(0)  # rows of all steps
    if len(read) != count:
        return read.new_full((count, 1), torch.nan, dtype=torch.float64)
    if read[0].numel() > features and read.dim() == 4:
        side = max(1, int((features / read.shape[1]) ** 0.5))
        height, width = read.shape[2:]
        read = F.adaptive_avg_pool2d(read, (min(side, height), min(side, width)))
    flat = read.reshape(count, -1)
    if flat.shape[1] > features:
        generator = torch.Generator().manual_seed(seed)  # of the CPU: the same on every device
        projection = torch.randn(flat.shape[1], features, generator=generator, device="cpu")
        flat = flat @ projection.to(flat) / features**0.5
    return flat.double()


def _ridge(a: Tensor, targets: Tensor, b: Tensor) -> Tensor:
    """Scores of the samples b by the ridge regression from a to targets, all float64.

    With the centred a = U S V^T the fitted values are the mean plus U diag(s) U^T targets, where
    s = S^2 / (S^2 + ridge), and the error on a sample that is left out is its residual over
    1 - 1/N - (U diag(s) U^T)_nn.

    Shapes: a (N, D), targets (N, classes), b (M, D) -> (M, classes).
    """
    mean, offset = a.mean(0), targets.mean(0)
    centred, wanted = a - mean, targets - offset
    # by a power of two, which leaves every digit as it is: squares neither overflow nor vanish
    scale = torch.ldexp(torch.ones_like(mean[0]), -torch.frexp(centred.abs().max())[1])
    centred = centred * scale
    variances, directions = torch.linalg.eigh(centred.T @ centred)  # S^2 and V
    variances = variances.clamp_min(0)
    size = variances.mean().clamp_min(1e-30)  # where nothing varies
    along = centred @ directions
    products = along.T @ wanted
    best = None
    for ridge in RIDGES:
        shrunk = 1 / (variances + ridge * size)
        weights = products * shrunk[:, None]
        leverage = 1 / len(a) + (along.square() * shrunk).sum(1, keepdim=True)
        left_out = (wanted - along @ weights) / (1 - leverage).clamp_min(1e-9)
        error = left_out.square().sum().item()
        if best is None or error < best[0]:
            best = error, weights
    assert best is not None
    return (b - mean) * scale @ (directions @ best[1]) + offset
