"""Weights that a model uses outside their layers: no silent exact gradient, and no false alarm."""

import copy
import io
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.utils.checkpoint import checkpoint

import apical
from apical.core import updates

FOREIGN: dict[str, Callable[[Tensor, nn.Linear], Tensor]] = {
    "F.linear": lambda h, layer: F.linear(h, layer.weight, layer.bias),
    "without bias": lambda h, layer: F.linear(h, layer.weight),
    "@": lambda h, layer: h @ layer.weight.T,
    "transposed": lambda h, layer: h @ layer.weight,
    "mm": lambda h, layer: torch.mm(h, layer.weight.t()),
    "addmm": lambda h, layer: torch.addmm(layer.bias, h, layer.weight.t()),
    "sequence": lambda h, layer: F.linear(h[:, None].expand(-1, 2, -1), layer.weight).sum(1),
    "baddbmm": lambda h, layer: torch.baddbmm(
        layer.bias, h[:, None], layer.weight.t().expand(len(h), -1, -1)
    )[:, 0],
    "einsum": lambda h, layer: torch.einsum("bi,oi->bo", h, layer.weight),
    "product and sum": lambda h, layer: (h[:, None] * layer.weight).sum(-1),
    "a part": lambda h, layer: F.pad(F.linear(h, layer.weight[:2]), (0, 3)),
    "scaled": lambda h, layer: F.linear(h, 0.5 * layer.weight),
    "convolution": lambda h, layer: F.conv1d(h[..., None], layer.weight[..., None])[..., 0],
    "functional_call": lambda h, layer: torch.func.functional_call(
        nn.Linear(5, 5, bias=False), {"weight": layer.weight}, h
    ),
    "vmap": lambda h, layer: torch.vmap(lambda row: layer.weight @ row)(h),
    "autocast": lambda h, layer: _autocast(h, layer),
    "joined": lambda h, layer: F.linear(h, torch.cat([layer.weight, layer.weight]))[:, :5],
    "stacked": lambda h, layer: torch.bmm(
        h.expand(2, -1, -1), torch.stack([layer.weight, 0.5 * layer.weight.T])
    ).sum(0),
    "normalised": lambda h, layer: F.linear(F.normalize(h), F.normalize(layer.weight)),
    "normalised, product and sum": lambda h, layer: (h[:, None] * F.normalize(layer.weight)).sum(
        -1
    ),
    "moved": lambda h, layer: F.linear(h, layer.weight + layer.bias),
    "rounded": lambda h, layer: F.linear(
        h, layer.weight + (layer.weight.round() - layer.weight).detach()
    ),
    "masked": lambda h, layer: F.linear(h, layer.weight.tril()),
    "with its transpose": lambda h, layer: h @ (layer.weight.T @ layer.weight),
    "exponential": lambda h, layer: h @ torch.matrix_exp(layer.weight),
    "solved": lambda h, layer: torch.linalg.solve(layer.weight + torch.eye(5), h.T).T,
    "distances": lambda h, layer: torch.cdist(h, layer.weight),
    "attention": lambda h, layer: F.scaled_dot_product_attention(
        h[None, None], layer.weight[None, None], layer.weight[None, None]
    )[0, 0],
    "chosen rows": lambda h, layer: h @ layer.weight[torch.arange(5).flip(0)].T,
    "rows of an embedding": lambda h, layer: h @ F.embedding(torch.arange(5), layer.weight).T,
    "gathered": lambda h, layer: h @ layer.weight.gather(0, torch.eye(5).long()),
    "normalised, then chosen": lambda h, layer: h @ F.normalize(layer.weight)[torch.arange(5)].T,
    "scattered": lambda h, layer: h @ torch.zeros(5, 5).index_add(0, torch.arange(5), layer.weight),
    "a row of each sample": lambda h, layer: (
        (h * layer.weight[torch.arange(len(h)) % 5]).sum(-1, keepdim=True).expand(-1, 5)
    ),
    "one row": lambda h, layer: (h * layer.weight[0]).sum(-1, keepdim=True).expand(-1, 5),
    "one column": lambda h, layer: torch.outer(h[:, 0], layer.weight[0]),
    "times a constant": lambda h, layer: h @ (torch.eye(5) @ layer.weight),
    "constant on the right": lambda h, layer: torch.linalg.multi_dot(
        [h, layer.weight, torch.eye(5)]
    ),
    "of a computed weight": lambda h, layer: h @ (torch.eye(5) @ torch.matrix_exp(layer.weight)),
    "divided": lambda h, layer: (h[:, None] / (layer.weight + 9)).sum(-1),
    "distances written out": lambda h, layer: (h[:, None] - layer.weight).square().sum(-1),
    "cosines": lambda h, layer: F.cosine_similarity(h[:, None], layer.weight[None], dim=-1),
    "detached": lambda h, layer: F.linear(h, layer.weight.detach()),
    "detached, of a sequence": lambda h, layer: F.linear(h[:, None], layer.weight.data)[:, 0],
    "detached, in a convolution": lambda h, layer: F.conv1d(
        h[..., None], layer.weight.detach()[..., None]
    )[..., 0],
    "detached, product and sum": lambda h, layer: (h[:, None] * layer.weight.detach()).sum(-1),
    "frozen": lambda h, layer: F.linear(h, layer.weight.requires_grad_(False)),
    "a constant times W^T": lambda h, layer: h @ (torch.randn(5, 5) @ layer.weight.T),
    "a codebook": lambda h, layer: torch.cdist(h, F.linear(torch.randn(5, 5), layer.weight)),
    "a codebook, written out": lambda h, layer: (
        (h[:, None] - torch.tanh(F.linear(torch.randn(5, 5), layer.weight, layer.bias)))
        .square()
        .sum(-1)
    ),
    "normalised rows of each sample": lambda h, layer: (
        (h * F.normalize(layer.weight)[torch.arange(len(h)) % 5])
        .sum(-1, keepdim=True)
        .expand(-1, 5)
    ),
}

COPIES: dict[str, Callable[[Tensor, nn.Linear, Tensor], Tensor]] = {
    "times a parameter": lambda h, layer, p: F.linear(h, layer.weight.detach() * p),
    "by rows": lambda h, layer, p: h @ (layer.weight.detach().T * (p * torch.randn(5))),
    "added": lambda h, layer, p: F.linear(h, layer.weight.detach() + 0.01 * p * torch.randn(5, 1)),
    "doubled": lambda h, layer, p: F.linear(h, 2 * layer.weight.detach()),
    "copied": lambda h, layer, p: h @ layer.weight.data.clone(),
    "rounded": lambda h, layer, p: F.linear(h, (layer.weight.detach() * 8).round() / 8),
    "signs": lambda h, layer, p: F.linear(h, layer.weight.detach().sign() * p),
    "pruned": lambda h, layer, p: F.linear(h, F.hardshrink(layer.weight.detach(), 0.1)),
    "normalised": lambda h, layer, p: torch.cdist(h, F.normalize(layer.weight.detach())),
    "half": lambda h, layer, p: F.linear(h.bfloat16(), layer.weight.detach().bfloat16()).float(),
    "repeated": lambda h, layer, p: torch.bmm(
        (2 * layer.weight.detach()).expand(len(h), -1, -1), h[..., None]
    )[..., 0],
    "product and sum": lambda h, layer, p: (h[:, None] * (2 * layer.weight.detach())).sum(-1),
    "convolution": lambda h, layer, p: F.conv1d(h[..., None], 2 * layer.weight.detach()[..., None])[
        ..., 0
    ],
}
"""Products with what is computed, in this forward pass, from a weight without its gradient."""


def _autocast(h: Tensor, layer: nn.Linear) -> Tensor:
    with torch.autocast("cpu"):
        return F.linear(h, layer.weight).float()


class Net(nn.Module):
    """Its layer `b` is used by a function, and called too if `called` says so."""

    def __init__(
        self, use: Callable[[Tensor, nn.Linear], Tensor] | None = None, called: bool = True
    ) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3)
        self.use, self.called = use, called

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x))
        if self.called:
            h = torch.tanh(self.b(h))
        if self.use is not None:
            h = torch.tanh(self.use(h, self.b))
        return self.c(h)


def train(model: nn.Module, steps: int = 2, x: Tensor | None = None) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(steps):
        with apical.labels(model, torch.arange(6) % 3):
            model(torch.randn(6, 4) if x is None else x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.fixture(autouse=True)
def _strict() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a warning is an alarm
        yield


@pytest.mark.parametrize("rule", ["fa", "kp", "usf", "dfa", "drtp"])
def test_every_product_with_a_converted_weight_is_refused(rule: str) -> None:
    """Also where the layer is called as well, at once and at a later call."""
    some = ("F.linear", "einsum", "chosen rows", "detached")
    uses = FOREIGN.values() if rule == "fa" else [FOREIGN[name] for name in some]
    for use in uses:
        for called in (False, True):
            model = apical.convert(Net(use, called), rule)
            for _ in range(2):  # who catches the error meets it again
                with pytest.raises(ValueError, match=r"\n  - b: the model multiplies.*'b': 'bp'"):
                    train(model)
            if rule != "drtp":
                with pytest.raises(ValueError, match="b: the model multiplies|'b'") as caught:
                    apical.convert(Net(use, called), rule, example=torch.randn(6, 4))
                assert "nothing was converted" in caught.value.__notes__[0]
    model = apical.convert(Net(), rule)
    train(model, 2)
    model.use = FOREIGN["F.linear"]
    train(model, 1)
    with pytest.raises(ValueError, match="b: the model multiplies"):
        train(model, 1)  # the fourth call


def test_products_with_changed_copies_of_a_detached_weight_are_refused() -> None:
    """Also within activation checkpointing of both kinds, in the backward pass."""
    x = torch.randn(6, 4)
    for name, copied in COPIES.items():
        torch.manual_seed(0)
        for reentrant in (None, False, True):
            if reentrant is not None and name not in ("times a parameter", "doubled", "signs"):
                continue

            def use(h: Tensor, layer: Any, copied: Any = copied, reentrant: Any = reentrant) -> Any:
                p = nn.Parameter(torch.ones(()))
                if reentrant is None:
                    return copied(h, layer, p)
                return checkpoint(copied, h, layer, p, use_reentrant=reentrant)

            with pytest.raises(ValueError, match="b: the model multiplies its weight itself"):
                train(apical.convert(Net(use), "fa"))
            with pytest.raises(ValueError, match="b: the model multiplies its weight itself"):
                apical.convert(Net(use), "dfa", example=x)


class Product(torch.autograd.Function):
    """As a library's own kernel."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(h, weight)
        return h @ weight.T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        h, weight = ctx.saved_tensors
        return grads[0] @ weight, grads[0].T @ h if ctx.needs_input_grad[1] else None


def filtered(h: Tensor, kernel: Tensor) -> Tensor:
    return torch.fft.irfft(torch.fft.rfft(h) * torch.fft.rfft(kernel), n=5)


def row_by_row(weight: Tensor) -> Tensor:
    matrix = torch.zeros(5, 5)
    for row, values in zip(matrix, weight, strict=True):
        row.copy_(values.exp())
    return matrix


UNKNOWN: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "function": lambda h, layer: Product.apply(h, layer.weight),
    "function, detached": lambda h, layer: Product.apply(h, layer.weight.detach()),
    "function, moved": lambda h, layer: Product.apply(h, 0.5 * layer.weight + 1),
    "function, a copy": lambda h, layer: Product.apply(h, 2 * layer.weight.detach()),
    "function, checkpointed": lambda h, layer: checkpoint(
        Product.apply, h, layer.weight.detach(), use_reentrant=False
    ),
    "frequencies": lambda h, layer: filtered(h, layer.weight[0]),
    "frequencies of each sample": lambda h, layer: filtered(h, layer.weight[torch.arange(6) % 5]),
}
"""Products that are no operation of torch's."""

FOLLOWED: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "joined": lambda h, w: F.linear(h, torch.cat([w, w]))[:, :5],
    "stacked": lambda h, w: F.linear(h, torch.stack([w, -3 * w]).mean(0)),
    "of two layers": lambda h, w: F.linear(h, torch.cat([torch.randn(5, 5), w]))[:, :5],
    "multiplied": lambda h, w: h @ (w @ w.T),
    "times a constant": lambda h, w: h @ (torch.randn(5, 5) @ w),
    "exponential": lambda h, w: h @ torch.exp(30 * w),
    "rows and columns scaled": lambda h, w: h @ (torch.randn(5, 1) * w * torch.randn(1, 5)),
    "row by row": lambda h, w: h @ row_by_row(w),
    "in place": lambda h, w: h @ torch.zeros(5, 5).add_(w.sin()).square_(),
    "a convolution": lambda h, w: F.conv1d(h[..., None], torch.cat([w, w])[..., None])[:, :5, 0],
    "mapped": lambda h, w: torch.vmap(lambda row: w.exp() @ row)(h),
    "frequencies": lambda h, w: filtered(h, w[0]),
    "function": lambda h, w: Product.apply(h, torch.cat([w, w])[3:8]),
    "checkpointed": lambda h, w: checkpoint(lambda h: h @ w.exp(), h, use_reentrant=False),
    "recomputed": lambda h, w: checkpoint(lambda h: h @ w.exp(), h, use_reentrant=True),
    "compiled": torch.compile(lambda h, w: F.linear(h, w), backend="aot_eager"),
}
"""Products with what is computed from a detached weight: seen with an example."""


@pytest.mark.parametrize("rule", ["fa", "kp", "dfa"])
def test_products_that_are_no_operation_of_torch_are_refused(rule: str) -> None:
    for use in UNKNOWN.values():
        with pytest.raises(ValueError, match="b: the model multiplies its weight itself"):
            train(apical.convert(Net(use), rule))
        with pytest.raises(ValueError, match="b: the model multiplies its weight itself"):
            apical.convert(Net(use), rule, example=torch.randn(6, 4))


@pytest.mark.parametrize("name", FOLLOWED)
def test_an_example_shows_all_that_is_computed_from_detached_weights(name: str) -> None:
    use = FOLLOWED[name]
    warnings.simplefilter("ignore")  # of dynamo, of checkpoints that no gradient passes
    for rule in ("fa", "usf", "dfa"):
        model = Net(lambda h, layer: use(h, layer.weight.detach()))
        with pytest.raises(ValueError, match="b: the model multiplies its weight itself"):
            apical.convert(model, rule, example=torch.randn(6, 4))
        assert type(model.b) is nn.Linear
        model = Net(lambda h, layer: layer(h) + use(h.detach(), layer.weight.detach()))
        apical.convert(model, rule, example=torch.randn(6, 4))  # no gradient passes there
        apical.convert(Net(lambda h, layer: use(h, matrix)), rule, example=torch.randn(6, 4))


matrix = torch.randn(5, 5)


class Rounds(torch.autograd.Function):
    """As in training for quantisation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


class Scales(torch.autograd.Function):
    """As fused norms."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor) -> Tensor:
        ctx.save_for_backward(x, gain)
        return x * gain

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, gain = ctx.saved_tensors
        return grads[0] * gain, (grads[0] * x).sum(0)


def keep(m: Any, args: tuple[Tensor]) -> Tensor:
    m.given = args[0]
    return args[0].clone()  # the layers are given another tensor


def averaged(m: Any) -> Any:
    """A teacher that follows in the forward pass, as in contrastive learning."""
    with torch.no_grad():
        for slow, fast in zip(m.teacher.parameters(), m.b.parameters(), strict=True):
            slow.lerp_(fast, 0.1)
    return m.teacher


def test_what_an_example_shows_is_not_refused_where_it_is_no_product_with_a_weight() -> None:
    uses: list[Callable[[Any, Tensor], Tensor]] = [
        lambda m, h: m.b(h) / (m.b.weight.detach().norm(dim=1) + 1).sum(),
        lambda m, h: (m.b(h) / m.b.weight.detach().norm(dim=1)).cumsum(-1),
        lambda m, h: (m.b(h) / m.b.weight.detach().norm(dim=1)).sum(-1, keepdim=True).expand(6, 5),
        lambda m, h: Rounds.apply(m.b(Rounds.apply(h))),
        lambda m, h: Scales.apply(m.b(h), torch.ones(5) * m.scale),
        lambda m, h: filtered(m.b(h), torch.randn(5)),
        lambda m, h: averaged(m)(h),
        lambda m, h: h @ m.b(matrix[None])[0].detach().exp(),
        lambda m, h: F.dropout(m.b(h)) - m.b.weight.detach().exp().mean(0),
        lambda m, h: (m.b(h) @ (h.detach() @ m.b.weight.detach()).T)[:, :5],
        lambda m, h: (m.b(h) @ (m.given @ m.a.weight.detach().T).T)[:, :5],
    ]
    for use in uses:
        for rule in ("fa", "usf"):
            model = Own(use, None)
            model.register_forward_pre_hook(keep)
            train(apical.convert(model, {"teacher": "bp", "*": rule}, example=torch.randn(6, 4)))


class Own(Net):
    """Weights with the values of `b`, and others, that are no copies made in the forward pass."""

    def __init__(self, use: Callable[[Any, Tensor], Tensor], reentrant: bool | None) -> None:
        super().__init__()
        self.teacher = copy.deepcopy(self.b).requires_grad_(False)
        self.register_buffer("buffer", self.b.weight.detach().clone())
        self.scale = nn.Parameter(torch.ones(()))
        self.within, self.reentrant = use, reentrant

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.b(torch.tanh(self.a(x))))
        if self.reentrant is None:
            return self.c(self.within(self, h))
        return self.c(checkpoint(self.within, self, h, use_reentrant=self.reentrant))


def test_weights_of_their_own_are_no_copies() -> None:
    """Nor what a layer makes of a constant, nor what passes no gradient or mixes nothing."""
    constant = torch.randn(5, 5)
    uses: list[Callable[[Any, Tensor], Tensor]] = [
        lambda m, h: m.teacher(h),
        lambda m, h: F.linear(h, m.teacher.weight),
        lambda m, h: F.linear(h, m.buffer),
        lambda m, h: h @ (constant * m.scale),
        lambda m, h: h @ m.b(constant).T,
        lambda m, h: torch.cdist(h, m.b(torch.eye(5))),
        lambda m, h: h @ m.b(constant[None])[0].detach(),
        lambda m, h: h + F.linear(h.detach(), 2 * m.b.weight.detach()),
        lambda m, h: m.b(h) / m.b.weight.detach().norm(dim=1),
        lambda m, h: h * (2 * m.b.weight.detach())[torch.arange(6) % 5],
    ]
    for use in uses:
        for reentrant in (None, False, True):
            for example in (None, torch.randn(6, 4)):
                model = Own(use, reentrant)
                rules = {"teacher": "bp", "*": "fa"}
                train(apical.convert(model, rules, example=example), 2)
    model = Net(lambda h, layer: teacher(h))
    teacher = copy.deepcopy(model.b).requires_grad_(False)  # of no model
    train(apical.convert(model, "fa", example=torch.randn(6, 4)))


def test_what_is_accepted_is_not_refused() -> None:
    x = torch.randn(6, 4)
    for called in (False, True):
        model = Net(FOREIGN["F.linear"], called)
        plain = copy.deepcopy(model)
        train(apical.convert(model, {"b": "bp", "*": "fa"}))
        model = apical.convert(copy.deepcopy(plain), "fa", example=x, on_unsupported="keep", seed=1)
        assert type(model.b) is nn.Linear
        train(model)
        model = apical.convert(copy.deepcopy(plain), "fa", on_unsupported="keep")
        with pytest.warns(UserWarning, match="b: the model multiplies its weight itself") as given:
            train(model, 9)
        assert len(given) == 1
        train(apical.revert(model), 1)


class Tied(nn.Module):
    """A language model whose last layer shares the table of embeddings."""

    def __init__(self, head: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 5)
        self.hidden = nn.Linear(5, 5)
        self.head = nn.Linear(5, 7, bias=False) if head else None
        if self.head is not None:
            self.head.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        h = torch.tanh(self.hidden(self.table(tokens)))
        return F.linear(h, self.table.weight) if self.head is None else self.head(h)


class Further(nn.Module):
    """Uses that no rule need reach: penalties, frozen layers, one layer called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice, self.last = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3)
        self.scale, self.token = nn.Parameter(torch.ones(1, 5)), nn.Parameter(torch.zeros(1, 1, 5))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = F.linear(x, self.first.weight) + self.first(x)  # nothing below receives a gradient
        h = torch.cat([self.token.expand(len(h), -1, -1), (self.scale * h)[:, None]], 1).sum(1)
        h = torch.tanh(self.twice(torch.tanh(self.twice(h))))
        h = h / (1 + self.twice.weight.norm()) + self.twice.weight[torch.arange(len(h)) % 5]
        unit = self.twice(h) / self.twice.weight.norm(dim=1)
        h = h + unit.sum(-1, keepdim=True) * self.twice.weight.mean() - self.twice.weight.mean(0)
        h = h * F.embedding(torch.arange(len(h)) % 5, self.twice.weight) + self.twice.weight[0]
        h = h @ self.twice(torch.eye(5))  # a constant, but through the layer
        h = h @ (h.T @ h) + F.embedding(torch.arange(len(h)) % 5, self.twice.weight)
        gram = self.twice.weight @ self.twice.weight.T
        return self.last(h), (gram - torch.eye(5)).square().sum() + self.last.weight.abs().sum()


@pytest.mark.parametrize("rule", ["fa", "kp", "usf"])
def test_no_false_alarm(rule: str) -> None:
    x, tokens = torch.randn(6, 4), torch.randint(7, (6, 3))
    model = apical.convert(Further(), rule, example=x)
    model.first.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, weight_decay=0.1)
    for _ in range(2):
        for _ in range(2):  # accumulated
            output, penalty = model(x)
            (output.square().mean() + penalty + model.twice.weight.square().sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
        with apical.exact_gradients(model):
            torch.autograd.grad(model(x)[0].sum(), model.twice.weight)
        with torch.no_grad():
            model(x)
    tied = {"head": "bp", "*": rule} if rule == "kp" else rule
    train(apical.convert(Tied(head=True), tied, example=tokens), 2, tokens)
    layers: list[tuple[nn.Module, Tensor]] = [
        (nn.LSTM(4, 3, num_layers=2, bidirectional=True), torch.randn(5, 6, 4)),
        (nn.GRUCell(4, 3), torch.randn(6, 4)),
        (nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), torch.randn(6, 5, 4)),
        (
            nn.Sequential(nn.Conv2d(1, 2, 3, padding_mode="circular"), nn.Conv2d(2, 2, 1)),
            torch.randn(6, 1, 5, 5),
        ),
    ]
    for plain, given in layers:
        model = apical.convert(plain, rule)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for twin in (model, copy.deepcopy(model)):
            out = twin(given)
            (out[0] if isinstance(out, tuple) else out).sum().backward()
            optimizer.step()


def test_no_false_alarm_of_broadcast_rules() -> None:
    for layout in ("full", "channel"):
        net = nn.Sequential(
            nn.Conv2d(1, 2, 3, padding_mode="circular"),
            nn.Tanh(),
            nn.Conv2d(2, 2, 2, padding="same"),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(18, 3),
        )
        train(apical.convert(net, apical.rules.DFA(layout=layout)), 4, torch.randn(6, 1, 5, 5))
    train(apical.convert(Net(), "drtp"), 4)
    train(apical.convert(Net(), "dfa", example=torch.zeros(2, 4)), 4)


def test_ties_that_change_after_the_conversion_are_refused_where_feedback_follows() -> None:
    def net(tied: bool) -> nn.Sequential:
        model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)))
        if tied:
            model[1].weight = model[2].weight
        return model

    now, since = "1: now shares its weight with {}", "2: no longer shares its weight with 1"
    changes: list[tuple[bool, Callable[[nn.Module], object], str]] = [
        (False, lambda m: setattr(m[1], "weight", m[2].weight), now.format(2)),
        (False, lambda m: setattr(m[1], "weight", nn.Parameter(m[2].weight.data.T)), now.format(2)),
        (False, lambda m: m.register_parameter("own", m[1].weight), now.format(r"\(root\)")),
        (True, lambda m: setattr(m[2], "weight", nn.Parameter(torch.randn(4, 4))), since),
    ]
    for tied, change, text in changes:
        for rule in ("kp", "fa"):
            model = apical.convert(net(tied), rule)
            train(model, 2)
            change(model)
            if rule == "fa":
                train(model, 2)
                continue
            with pytest.raises(ValueError, match=f"{text}.*KolenPollack would not follow"):
                train(model, 2)  # the fourth call
    model = apical.convert(net(tied=True), "kp")
    model[1].weight = model[2].weight = nn.Parameter(torch.randn(4, 4))
    train(model)


def test_the_guard_leaves_the_state_of_a_parametrization_alone() -> None:
    torch.manual_seed(0)
    models = [apical.convert(Net(), "fa")]
    torch.nn.utils.parametrizations.spectral_norm(models[0].b)
    torch.nn.utils.parametrizations.weight_norm(models[0].c)
    models.append(copy.deepcopy(models[0]))
    models[1]._forward_hooks.clear()
    for model in models:
        train(model, 5, torch.ones(6, 4))
    for one, other in zip(*(model.state_dict().values() for model in models), strict=True):
        assert torch.equal(one, other)


class Checkpointed(Net):
    def __init__(self, use: Any = None, *, reentrant: bool) -> None:
        super().__init__(use)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x))
        h = checkpoint(self.within, h, use_reentrant=self.reentrant)
        return self.c(h)

    def within(self, h: Tensor) -> Tensor:
        return (
            torch.tanh(self.b(h)) if self.use is None else self.use(torch.tanh(self.b(h)), self.b)
        )


def test_checkpointing() -> None:
    x = torch.randn(6, 4)
    for reentrant in (False, True):
        train(apical.convert(Checkpointed(reentrant=reentrant), "fa", example=x), 4)
        for use in (FOREIGN["@"], FOREIGN["detached"], FOREIGN["a constant times W^T"]):
            for example in (None, x):
                model = Checkpointed(use, reentrant=reentrant)
                with pytest.raises(ValueError, match="b: the model multiplies"):
                    train(apical.convert(model, "fa", example=example))
            model = Checkpointed(use, reentrant=reentrant)
            apical.convert(model, "fa", on_unsupported="keep")
            with pytest.warns(UserWarning, match="b: the model multiplies") as given:
                train(model, 4)
            assert len(given) == 1
    plain = nn.Linear(5, 5)
    model = Net(lambda h, layer: checkpoint(plain, h, use_reentrant=True))
    train(apical.convert(model, "dfa"), 4)  # the axis of samples cannot be measured


class Penalised(Net):
    """A part of its own forward is exact."""

    def forward(self, x: Tensor) -> Tensor:
        with apical.exact_gradients(self.b):
            h = torch.tanh(self.b(torch.tanh(self.a(x))))
        return self.c(h)


def test_exact_gradients() -> None:
    train(apical.convert(Penalised(), "fa"), 4)
    model = apical.convert(Net(FOREIGN["@"]), "fa")
    with apical.exact_gradients(model):
        train(model)
    with pytest.raises(ValueError, match="b: the model multiplies"):
        train(model)


def test_the_guard_goes_with_the_model_and_with_revert() -> None:
    for rule in ("fa", "dfa"):
        model = apical.convert(Net(), rule, example=torch.zeros(2, 4))
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        for twin in (copy.deepcopy(model), torch.load(buffer, weights_only=False)):
            train(twin, 1)
            twin.use = FOREIGN["@"]
            with pytest.raises(ValueError, match="b: the model multiplies"):
                train(twin, 1)
        apical.revert(model.b)
        model.use = FOREIGN["@"]
        train(model)  # it is no converted layer any more
        apical.revert(model)
        assert not model._forward_hooks and not model._forward_pre_hooks


class Bypassed(nn.Module):
    """Its parts are used by a function, not by its forward, as in some training loops."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3)

    def loss(self, x: Tensor, *, calls: bool) -> Tensor:
        h = torch.tanh(self.a(x))
        h = self.b(h) if calls else F.linear(h, self.b.weight)
        return self.c(torch.tanh(h)).square().mean()


def test_a_layer_that_is_trained_but_never_called_is_warned_of_once() -> None:
    model = apical.convert(Bypassed(), "fa")
    plain = Bypassed()
    plain.loss(torch.randn(6, 4), calls=True).backward()
    late = apical.convert(plain, "fa")  # its gradients are older than its layers
    torch.optim.SGD(late.parameters(), lr=0.1).step()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    optimizer.step()  # no gradient yet
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # nor one that says anything
    with torch.no_grad():
        model.b(torch.zeros(1, 5))
    model.loss(torch.randn(6, 4), calls=False).backward()
    torch.optim.SGD(late.parameters(), lr=0.1).step()  # of other weights
    with pytest.warns(UserWarning, match="^b: the weight has a gradient, but") as given:
        optimizer.step()
    assert len(given) == 1
    model.loss(torch.randn(6, 4), calls=False).backward()
    optimizer.step()
    for other in (copy.deepcopy(model), apical.convert(Bypassed(), "kp")):
        optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
        (other.loss(torch.randn(6, 4), calls=True) + other.b.weight.square().sum()).backward()
        optimizer.step()


def test_a_layer_that_is_never_called_is_examined_ever_more_rarely() -> None:
    model, other = apical.convert(Bypassed(), "fa"), apical.convert(Bypassed(), "fa")
    optimizer, of_other = (torch.optim.SGD(m.parameters(), lr=0.01) for m in (model, other))
    x, due = torch.randn(6, 4), []
    for _ in range(1000):
        of_other.step()  # has a count of its own
        due.append(updates._is_due(optimizer))
    assert all(due[:16]) and sum(due) < 100

    def train_b_at_every_third_step() -> None:
        for step in range(600):
            optimizer.zero_grad()
            if step % 3 == 1:
                model.loss(x, calls=False).backward()
            optimizer.step()

    with pytest.warns(UserWarning, match="^b: the weight has a gradient, but"):
        train_b_at_every_third_step()


def test_compiled() -> None:
    warnings.simplefilter("ignore", DeprecationWarning)  # of dynamo, about its own call of torch
    torch.compiler.reset()
    graphs = torch._dynamo.utils.counters["stats"]
    before = graphs["unique_graphs"]  # a reset does not count anew
    model = apical.convert(Net(), "fa")
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    train(compiled, 3)
    assert graphs["unique_graphs"] == before + 1
    outside = torch.compile(apical.convert(Net(FOREIGN["@"], called=False), "fa"), backend="eager")
    with pytest.warns(UserWarning, match="^b: the weight has a gradient, but"):
        train(outside)


def test_distributed() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        for use in (None, FOREIGN["@"]):
            wrapped = nn.parallel.DistributedDataParallel(apical.convert(Net(use), "fa"))
            sharded = apical.convert(Net(use), "fa")
            mesh = dist.init_device_mesh("cpu", (1,))
            for layer in (sharded.a, sharded.b, sharded.c):
                fully_shard(layer, mesh=mesh, reshard_after_forward=False)
            fully_shard(sharded, mesh=mesh)
            for model in (wrapped, sharded):
                if use is None:
                    train(model, 3)
                else:
                    with pytest.raises(ValueError, match="b: the model multiplies"):
                        train(model)
    finally:
        dist.destroy_process_group()


class Kept(nn.Module):
    """A parameter that its shape or its name shows as no matrix of a layer, in a product."""

    def __init__(self, name: str, value: Tensor, use: Callable[[Tensor, Any], Tensor]) -> None:
        super().__init__()
        self.a, self.c = nn.Linear(4, 5), nn.LazyLinear(3)
        self.part = nn.Module()
        self.part.register_parameter(name, nn.Parameter(value))
        self.name, self.use = name, use
        self.c(self.use(torch.zeros(6, 5), value))

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.use(torch.tanh(self.a(x)), getattr(self.part, self.name)))


def test_an_example_may_pass_operators_into_which_nothing_is_followed() -> None:
    """In a process of its own: within `torch.cond` torch warns, which is an error in tests."""
    code = """if True:
        import torch
        import apical

        class Branches(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b = torch.nn.Linear(4, 4), torch.nn.Linear(4, 3)

            def forward(self, x):
                return self.b(torch.cond(x.sum() > 0, torch.sin, torch.cos, (self.a(x),)))

        model, x = Branches(), torch.randn(5, 4)
        apical.convert(model, "dfa", example=x)
        model(x).sum().backward()
        assert model.a.weight.grad is not None
    """
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_parameters_kept_by_their_shape_or_name_are_no_factors_of_products() -> None:
    x, tokens = torch.randn(6, 4), torch.randint(7, (6, 3))
    products: list[tuple[str, Tensor, Callable[[Tensor, Any], Tensor]]] = [
        ("row", torch.randn(1, 5), lambda h, p: F.linear(h, p)),
        ("flat", torch.randn(10), lambda h, p: F.linear(h, p.view(2, 5))),
        ("vector", torch.randn(5), lambda h, p: (h @ p)[:, None]),
        ("cube", torch.randn(1, 5, 2), lambda h, p: h @ p[0]),
        ("pos_weight", torch.randn(2, 5), lambda h, p: h @ p.t()),
        ("soft", torch.randn(1, 5, 2), lambda h, p: h @ p[0].softmax(0)),
        ("centres", torch.randn(1, 2, 5), lambda h, p: torch.cdist(h, p[0])),
    ]
    for name, value, use in products:
        kind = r"part \(Module\): its " + name
        for rule in ("fa", "dfa"):
            with pytest.raises(ValueError, match=kind):
                train(apical.convert(Kept(name, value, use), rule))
            with pytest.raises(ValueError, match=kind):
                apical.convert(Kept(name, value, use), rule, example=x)
        for assignment, keep in (({"part": "bp", "*": "fa"}, "error"), ("fa", "keep")):
            model = apical.convert(
                Kept(name, value, use),
                assignment,
                example=x,
                on_unsupported=keep,  # type: ignore[arg-type]
            )
            train(model)
    adds: list[Callable[[Tensor, Any], Tensor]] = [
        lambda h, p: h + p,
        lambda h, p: h * p,
        lambda h, p: F.linear(h, torch.eye(5)) - p,
    ]
    for use in adds:
        for name, value in (("row", torch.randn(1, 5)), ("vector", torch.randn(5))):
            train(apical.convert(Kept(name, value, use), "fa", example=x))
    with pytest.raises(ValueError, match=r"table \(Embedding\): its weight \(7, 5\) was kept"):
        train(apical.convert(Tied(head=False), "fa"), 1, tokens)
    train(apical.convert(Tied(head=False), {"table": "bp", "*": "fa"}), 1, tokens)


def test_the_remedy_of_an_adapter() -> None:
    class Row(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.row = nn.Parameter(torch.randn(1, 5))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.row)

    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), Row())
    with pytest.raises(ValueError, match=r"register\(Row, \{'row': Weight\('x W\^T'\)\}\)"):
        train(apical.convert(copy.deepcopy(model), "fa"))
    apical.adapters.register(Row, {"row": apical.adapters.Weight("x W^T")})
    train(apical.convert(model, "fa"))
    assert type(model[2]).__name__ == "FeedbackRow"


class ScaledBy(torch.autograd.Function):
    """A Function that is given activations, and numbers that are computed from a weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(scale)
        return x * scale

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient * ctx.saved_tensors[0], None


def test_scales_and_shapes_that_come_from_a_weight_are_no_products_with_it() -> None:
    uses: list[Callable[[Tensor, Tensor], Tensor]] = [
        lambda h, w: ScaledBy.apply(h, w.norm(dim=1)),
        lambda h, w: ScaledBy.apply(h, w.detach().norm(dim=1)),
        lambda h, w: ScaledBy.apply(h, w.square().sum()),
        lambda h, w: h @ w.new_ones(5, 5).tril(),
        lambda h, w: h @ torch.ones_like(w.detach()),
    ]

    class Scaled(nn.Module):
        def __init__(self, use: Any) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3)
            self.use = use

        def forward(self, x: Tensor) -> Tensor:
            h = self.b(torch.tanh(self.a(x)))
            return self.c(self.use(h, self.b.weight))

    for use in uses:
        train(apical.convert(Scaled(use), "fa"))
        train(apical.convert(Scaled(use), "fa", example=torch.randn(6, 4)))


class LearnedQuery(nn.Module):
    """Attention whose query is a projected parameter, as in Perceiver and in pooling heads."""

    def __init__(self, *, whole: bool) -> None:
        super().__init__()
        self.below, self.query = nn.Linear(6, 8), nn.Parameter(torch.randn(1, 3, 8))
        self.project, self.above = nn.Linear(8, 8), nn.Linear(8, 4)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True) if whole else None

    def forward(self, x: Tensor) -> Tensor:
        keys, query = self.below(x).relu(), self.query.expand(len(x), -1, -1)
        if self.attention is not None:
            return self.above(self.attention(self.project(query), keys, keys)[0].mean(1))
        scores = self.project(query) @ keys.transpose(1, 2)
        return self.above((scores.softmax(-1) @ keys).mean(1))


@pytest.mark.filterwarnings("ignore")
def test_what_a_layer_makes_of_a_parameter_is_an_activation() -> None:
    for rule in ("fa", "dfa", "ldfa", "kp"):
        for whole in (False, True):
            model = apical.convert(LearnedQuery(whole=whole), rule)
            for _ in range(5):
                model(torch.randn(5, 7, 6)).square().mean().backward()
