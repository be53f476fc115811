"""What would silently be a wrong gradient: each case is refused, or computed right."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

import apical
from apical.rules import DFA, DRTP, RULES, BroadcastRule, LowDimensional, build

SENDING = [name for name in RULES if name not in ("bp", "frozen")]


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)
    ).double()


X = torch.randn(6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.tensor([0, 1, 2, 0, 1, 2])


def penalty(model: nn.Module, x: Tensor) -> Tensor:
    """A gradient penalty, as in R1."""
    x = x.detach().requires_grad_()
    (slope,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
    return slope.square().sum()


def residual(model: nn.Module, x: Tensor) -> Tensor:
    """The residual of u'' = u, as in physics-informed nets."""
    x = x.detach().requires_grad_()
    u = model(x)[:, 0]
    (first,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x, create_graph=True)
    return (second.sum(1) - u).square().sum()


def hessian(model: nn.Module, x: Tensor) -> Tensor:
    def loss(bias: Tensor) -> Tensor:
        return torch.func.functional_call(model, {"2.bias": bias}, (x,)).square().sum()

    return torch.autograd.functional.hessian(loss, model[2].bias, create_graph=True).sum()


def nested(model: nn.Module, x: Tensor) -> Tensor:
    slope = torch.func.grad(lambda x: model(x).square().sum())
    return torch.func.grad(lambda x: slope(x).square().sum())(x).sum()


def tangent(model: nn.Module, x: Tensor) -> Tensor:
    return torch.func.jvp(model, (x,), (torch.ones_like(x),))[1].sum()


SECOND_ORDER = [penalty, residual, hessian, nested, tangent]


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch.func.jvp imports it
@pytest.mark.parametrize("name", SENDING)
@pytest.mark.parametrize("measure", SECOND_ORDER)
def test_recorded_gradients_are_refused_and_exact_inside_exact_gradients(
    name: str, measure: Any
) -> None:
    model = apical.convert(net(), name, example=X, on_unsupported="keep")
    with apical.labels(model, Y), pytest.raises(RuntimeError) as caught:
        measure(model, X)
    assert str(caught.value)[:3] in ("0: ", "2: ", "4: ")
    assert "exact_gradients" in str(caught.value)
    with apical.exact_gradients(model):
        seen = measure(model, X)
    expected = measure(net(), X)
    torch.testing.assert_close(seen, expected, rtol=1e-12, atol=0)
    if seen.requires_grad:
        with apical.exact_gradients(model):
            got = torch.autograd.grad(measure(model, X), model[2].weight, allow_unused=True)[0]
        plain = net()
        wanted = torch.autograd.grad(measure(plain, X), plain[2].weight, allow_unused=True)[0]
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # of torch's own import
@pytest.mark.parametrize("name", ["fa", "dfa"])
def test_forward_mode_differentiation_is_refused_also_without_a_graph(name: str) -> None:
    model = apical.convert(net(), name, example=X)
    with torch.no_grad(), torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(X, torch.ones_like(X))
        with pytest.raises(RuntimeError, match="0: .*forward-mode.*exact_gradients"):
            model(dual)


class Attends(nn.Module):
    """Attention over time on (time, samples, features), as `nn.Transformer` has it by default."""

    def __init__(self, pools: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=False)
        self.embed, self.block, self.head = nn.Linear(5, 8), block, nn.Linear(8, 3)
        self.pools = pools
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        h = self.block(self.embed(x))
        return self.head(h.mean(0) if self.pools else h)


class Spiking(nn.Module):
    """A leaky net run step by step; output (time, samples, classes)."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.last = nn.Linear(5, 12), nn.Linear(12, 12), nn.Linear(12, 3)
        self.norm = nn.BatchNorm1d(12) if norm else nn.Identity()
        self.double()

    def forward(self, x_TNF: Tensor) -> Tensor:
        u, steps = torch.zeros(()), []
        for x in x_TNF:
            u = 0.5 * u + self.norm(self.second(torch.tanh(self.first(x))))
            steps.append(self.last(torch.sigmoid(4 * u)))
        return torch.stack(steps)


def per_position(norm: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(5, 16), *([norm] if norm else []), nn.Tanh(), nn.Linear(16, 3)]
    return nn.Sequential(*layers).double()


def sequences(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def reached_samples(model: nn.Module, x: Tensor, axis: int) -> list[int]:
    """Which entries of an axis of the input an error on entry 0 of the same output axis reaches,
    in the second training call and with all gradients summed."""
    model(x.clone().requires_grad_())
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(x).select(axis, 0).sum(), x)
    return gradient.movedim(axis, 0).flatten(1).any(1).nonzero().flatten().tolist()


BROADCASTING = [name for name, rule in RULES.items() if isinstance(rule, BroadcastRule)]


@pytest.mark.parametrize("name", BROADCASTING)
@pytest.mark.parametrize("shape", [(7, 4, 5), (4, 4, 5)])
def test_positions_that_are_treated_alike_need_the_axis_of_samples_stated(
    name: str, shape: tuple[int, ...]
) -> None:
    rule = build(name)
    x, wanted = sequences(*shape), torch.zeros(*shape[:2], 3, dtype=torch.float64)
    everywhere = rule.needs_labels  # hidden layers learn from the labels of every sample
    model = apical.convert(per_position(), rule)
    with apical.labels(model, wanted), pytest.raises(ValueError, match="output_axis=1.*_axis=1.*2"):
        model(x)
    model = apical.convert(per_position(), build(name, sample_axis=1), output_axis=1)
    with apical.labels(model, wanted):
        assert everywhere or reached_samples(model, x, 1) == [0]
    model = apical.convert(per_position(), rule, output_axis=0)
    with apical.labels(model, wanted):
        assert everywhere or reached_samples(model, x, 0) == [0]


@pytest.mark.parametrize("size", [4, 6])
def test_a_transformer_with_time_first(size: int) -> None:
    x = sequences(4, size, 5)
    model = apical.convert(Attends(), "dfa")
    with pytest.raises(ValueError, match="output_axis=1|sample_axis"):
        model(x)
    rules = {"*.self_attn": DFA(), "*": DFA(sample_axis=1)}
    model = apical.convert(Attends(), rules, output_axis=1)
    assert reached_samples(model, x, 1) == [0]


def test_a_wrong_axis_of_a_layers_input_is_refused_also_when_sizes_are_equal() -> None:
    x = sequences(4, 4, 5)
    model = apical.convert(Attends(pools=True), "dfa")
    with pytest.raises(ValueError, match=r"linear1: .*axis 0 of its input.*DFA\(sample_axis=1\)"):
        model(x)
    rules = {"*.self_attn": DFA(), "*.linear?": DFA(sample_axis=1), "*": DFA()}
    apical.convert(apical.revert(model), rules)
    model(x).sum().backward()


class Inside(nn.Module):
    """Samples first outside, time first inside."""

    def __init__(self, pools: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.pools = nn.Linear(5, 8).double(), nn.Linear(8, 3).double(), pools

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x.transpose(0, 1)))
        return self.b(h.mean(0)) if self.pools else self.b(h).transpose(0, 1)


def test_with_the_output_axis_stated_it_is_the_axis_of_the_layer_that_is_refused() -> None:
    x = sequences(4, 4, 5)
    with pytest.raises(ValueError, match=r"a: .*Give it DFA\(sample_axis=1\)"):
        reached_samples(apical.convert(Inside(False), "dfa", output_axis=0), x, 0)
    model = apical.convert(Inside(False), DFA(sample_axis=1), output_axis=0)
    assert reached_samples(model, x, 0) == [0]


def test_a_last_layer_of_zeros_shows_no_axis_until_it_has_learnt() -> None:
    model, x = apical.convert(Inside(True), "dfa"), sequences(4, 4, 5).requires_grad_()
    nn.init.zeros_(model.b.weight)
    for _ in range(5):  # more passes than are examined at first
        model(x).square().sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    with pytest.raises(ValueError, match=r"a: .*Give it DFA\(sample_axis=1\)"):
        [model(x) for _ in range(4)]


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("steps", [4, 6])
def test_spiking_outputs_by_step(steps: int, norm: bool) -> None:
    x = sequences(steps, 4, 5)
    model = apical.convert(Spiking(norm), "dfa")
    if steps == 4 and norm:  # nothing is independent: samples through the norm, steps through time
        model(x)
    else:
        with pytest.raises(ValueError, match="output_axis=1|its input counts 4 samples"):
            model(x)
    model = apical.convert(Spiking(norm), "dfa", output_axis=1)
    if not norm:
        assert reached_samples(model, x, 1) == [0]
    model(x).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.first.parameters())


def test_rows_of_a_table_are_no_samples_also_where_there_are_as_many() -> None:
    class Table(nn.Module):
        def __init__(self, adds: bool) -> None:
            super().__init__()
            self.table, self.adds = nn.Parameter(torch.randn(6, 1)), adds
            self.p, self.a, self.b = nn.Linear(1, 5), nn.Linear(5, 5), nn.Linear(5, 3)
            self.q = nn.Linear(5, 5)

        def forward(self, x_NTF: Tensor) -> Tensor:
            table = torch.tanh(self.p(self.table))
            if self.adds:  # data
                table = table + x_NTF[:, 0]
            return self.b(torch.tanh(self.a(x_NTF + torch.tanh(self.q(table)))).mean(1))

    x = sequences(6, 6, 5).float()
    for rule in ("dfa", {"p": "fa", "*": "dfa"}):
        layer = "p" if rule == "dfa" else "q"
        with pytest.raises(ValueError, match=f"{layer}: its input .* from parameters alone"):
            apical.convert(Table(adds=False), rule)(x)
        apical.convert(Table(adds=True), {"p": "fa", "*": "dfa"})(x).sum().backward()
    apical.convert(Table(adds=False), {"[pq]": "fa", "*": "dfa"})(x).sum().backward()


def test_steps_and_folded_rows_are_not_confused() -> None:
    class Folds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x_TNF: Tensor) -> Tensor:
            rows = torch.tanh(self.b(torch.tanh(self.a(x_TNF.flatten(0, 1)))))
            return self.c(rows.unflatten(0, x_TNF.shape[:2]).mean(0))

    x = sequences(6, 4, 5).float()
    rules = lambda axis: {"c": DFA(), "*": DFA(sample_axis=axis)}  # noqa: E731
    model = apical.convert(Folds(), rules("folded"))
    with pytest.raises(ValueError, match=r"b: .*DFA\(sample_axis='steps'\)"):
        model(x)
    model = apical.convert(Folds(), rules("steps"))
    model(x).sum().backward()


class Reordered(nn.Module):
    """Its layer `b` reads the rows of the samples in another order."""

    def __init__(self, order: Tensor, mixes: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.order, self.mixes = order, mixes

    def forward(self, x_NTF: Tensor) -> Tensor:
        h = torch.tanh(self.a(x_NTF.flatten(0, 1)))
        h = torch.tanh(self.b(h[self.order]))[self.order.argsort()]
        means = h.unflatten(0, x_NTF.shape[:2]).mean(1)
        return self.c(means + means.roll(1, 0) if self.mixes else means)


def test_samples_in_another_order_than_the_outputs_are_refused() -> None:
    x = sequences(6, 4, 5).float()
    reverse, rotate = torch.arange(24).flip(0), torch.arange(24).roll(2)
    within, shuffle = torch.arange(24).view(6, 4).flip(1).flatten(), torch.arange(24).roll(9)
    for order in (reverse, rotate, shuffle):
        model = apical.convert(Reordered(order), {"c": DFA(), "*": DFA(sample_axis="folded")})
        with pytest.raises(ValueError, match=r"b: an error of one sample.*another order"):
            model(x)
    for order, mixes in ((within, False), (reverse, True)):
        rule = {"c": DFA(), "*": DFA(sample_axis="folded")}
        apical.convert(Reordered(order, mixes), rule)(x).sum().backward()
    flipped = apical.convert(Reordered(torch.arange(6).flip(0)), "dfa")
    with pytest.raises(ValueError, match=r"b: an error of one sample.*another order"):
        flipped(x[:, :1])


def test_a_sample_of_silent_units_beside_batch_norm_is_in_no_other_order() -> None:
    """Only the other sample's activations reach its output then, through the batch statistics."""
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 4), nn.ReLU(), nn.BatchNorm1d(4))
    with torch.no_grad():
        nn.init.eye_(net[0].weight)
        net[1].weight.abs_()
        for layer in net[:2]:
            layer.bias.zero_()
    x = torch.rand(2, 3)
    x[0] *= -1
    model = apical.convert(nn.Sequential(net, nn.Linear(4, 2)), "dfa")
    model(x).square().sum().backward()


RIGHT: dict[str, tuple[Any, tuple[int, ...]]] = {
    "linear": (net, (6, 4)),
    "as many samples as classes": (net, (3, 4)),
    "as many samples as features": (net, (8, 4)),
    "batch norm": (
        lambda: nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 3)
        ).double(),
        (8, 4),
    ),
    "batch norm and positions, stated": (lambda: per_position(nn.BatchNorm1d(6)), (4, 6, 5)),
    "depthwise convolutions": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(),
            nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.ReLU(), nn.Conv2d(6, 6, 1, groups=6),
        ).double(),
        (6, 3, 6, 6),
    ),
    "a dead net": (
        lambda: nn.Sequential(
            nn.Linear(4, 8), nn.Threshold(1e9, 0.0), nn.Linear(8, 8), nn.Linear(8, 3)
        ).double(),
        (6, 4),
    ),
    "dropout": (lambda: nn.Sequential(*net()[:2], nn.Dropout(), *net()[2:]), (6, 4)),
    "one sample": (net, (1, 4)),
    "attention, samples first": (
        lambda: nn.Sequential(
            nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), nn.Linear(4, 3)
        ).double(),
        (5, 5, 4),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", RIGHT)
def test_the_right_axis_is_accepted_and_changes_nothing(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, shape = RIGHT[case]
    stated = 0 if "stated" in case else None
    x = sequences(*shape)
    results = []
    make().train()  # whatever random numbers that takes
    state = torch.get_rng_state()
    for attempts in (3, 0):
        monkeypatch.setattr("apical.core.broadcast.ATTEMPTS", attempts)
        torch.manual_seed(3)
        model = apical.convert(make().train(), "dfa", output_axis=stated)
        torch.set_rng_state(state)
        for _ in range(5):
            model(x).square().sum().backward()
        left = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        results.append({**left, **dict(model.named_buffers()), "rng": torch.get_rng_state()})
    assert results[0].keys() == results[1].keys()
    for name, seen in results[0].items():
        assert torch.equal(seen, results[1][name]), name


def test_the_axis_is_verified_once_and_never_with_hooks_of_others() -> None:
    passes = []
    model = apical.convert(net(), "dfa")
    model[3].register_full_backward_hook(lambda *_: passes.append(1))
    model(X).sum().backward()
    assert len(passes) == 1
    model = apical.convert(net(), "dfa")
    seen = []
    for _ in range(4):
        output = model(X)
        output.sum().backward()
        (broadcast,) = apical.core.converted.broadcasts(model)
        seen.append(broadcast.attempts)
    assert seen == [0, 0, 0, 0]


@pytest.mark.parametrize("reused", [True, False])
def test_activation_checkpointing_and_changes_in_place(reused: bool) -> None:
    class Blocks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)
            self.double()

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x).relu_()
            block = lambda h: self.b(h).relu_()  # noqa: E731
            h = checkpoint(block, h, use_reentrant=False) if reused else block(h)
            return self.c(h).add_(1)

    plain = apical.convert(Blocks(), "dfa")
    for _ in range(2):
        plain(X).square().sum().backward()
    assert all(p.grad is not None for p in plain.parameters())


def test_an_output_axis_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="output_axis=1 has no effect"):
        apical.convert(net(), "fa", output_axis=1)
    for axis in (-1, "time", True):
        with pytest.raises(ValueError, match=f"output_axis={axis!r} is no axis"):
            apical.convert(net(), "dfa", output_axis=axis)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="has no axis 2"):
        apical.convert(net(), "dfa", output_axis=2)(X)
    with pytest.raises(ValueError, match=r"^0: its input .* has no axis 5 .*DFA\(sample_axis=5\)"):
        apical.convert(net(), DFA(sample_axis=5))(X)
    model = apical.convert(per_position(), DRTP(sample_axis=1), output_axis=1)
    with apical.labels(model, torch.zeros(4, dtype=torch.long)):
        with pytest.raises(ValueError, match="0|2: with output_axis=1, labels are numbers"):
            model(sequences(7, 4, 5))


class Product(nn.Module):
    """A matrix of its own, with or without a child."""

    def __init__(self, child: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(8))
        self.act = nn.ReLU() if child else torch.relu

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x @ self.weight)


class Experts(nn.Module):
    """Fused experts, as in mixtures of experts of transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.ones(4, 8, 16))
        self.act = nn.SiLU()


class Tables(nn.Module):
    """What is added to activations, not multiplied: class tokens and tables of positions."""

    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 8))
        self.pos_embed = nn.Parameter(torch.zeros(1, 5, 8))
        self.relative_position_bias_table = nn.Parameter(torch.zeros(9, 2))
        self.rel_pos_h = nn.Parameter(torch.zeros(9, 4))
        self.scale = nn.Parameter(torch.zeros(8, 1, 1))
        self.act = nn.ReLU()


@pytest.mark.parametrize("child", [False, True])
def test_a_matrix_of_unknown_use_is_refused_also_beside_a_child(child: bool) -> None:
    model = nn.Sequential(nn.Linear(8, 8), Product(child), nn.Linear(8, 3))
    with pytest.raises(ValueError, match=r"1 \(Product\): holds weights \(weight \(8, 8\)\)"):
        apical.convert(model, "fa")
    for rule, options in (({"1": "bp", "*": "fa"}, {}), ("fa", {"on_unsupported": "keep"})):
        planned = apical.plan(model, rule, **options)  # type: ignore[arg-type]
        assert not planned.problems
        (row,) = (row for row in planned.rows if row.layer == "1")
        assert row.action == "keep" and row.why


def test_fused_experts_are_refused_by_name_with_the_remedy() -> None:
    model = nn.Sequential(nn.Linear(8, 8), Experts())
    (problem,) = apical.plan(model, "dfa").problems
    for part in ("1 (Experts)", "gate_up_proj (4, 8, 16)", "{'1': 'bp', '*': ...}", "'keep'"):
        assert part in problem
    listed = nn.Sequential(nn.Linear(8, 8), nn.ParameterList([torch.ones(3, 3)]))
    (problem,) = apical.plan(listed, "fa").problems
    assert "1 (ParameterList)" in problem


def test_tables_of_positions_are_kept_for_a_printed_reason() -> None:
    planned = apical.plan(nn.Sequential(nn.Linear(8, 8), Tables()), "fa")
    assert not planned.problems
    (row,) = (row for row in planned.rows if row.layer == "1")
    assert "added to activations, exact gradient" in row.why
    assert "pos_embed (1, 5, 8)" in row.why and "rel_pos_h (9, 4)" in row.why


def test_a_further_matrix_of_a_supported_layer_is_refused() -> None:
    class WithBasis(nn.Linear):
        def __init__(self) -> None:
            super().__init__(8, 8)
            self.basis = nn.Parameter(torch.eye(8))

    with pytest.raises(ValueError, match=r"0 \(WithBasis\): also holds basis \(8, 8\)"):
        apical.convert(nn.Sequential(WithBasis(), nn.Linear(8, 3)), "fa")
    with pytest.warns(FutureWarning):
        normed = torch.nn.utils.weight_norm(nn.Linear(8, 8))
    apical.convert(nn.Sequential(normed, nn.Linear(8, 3)), "fa")


ORDER = "apical.revert.*quantise"
QUANTISATION = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore:Please use quant", "ignore:torch.quantize_per_tensor"
)


@QUANTISATION
@pytest.mark.parametrize("name", ["fa", "dfa"])
def test_quantisation_after_conversion_is_refused(name: str) -> None:
    model = apical.convert(net().float().train(), name)
    model.qconfig = torch.ao.quantization.get_default_qat_qconfig("fbgemm")
    with pytest.raises(ValueError, match=f"^0: .*{ORDER}"):
        torch.ao.quantization.prepare_qat(model, inplace=True)
    del model.qconfig
    model.eval()
    with pytest.warns(UserWarning, match=f"converted layers as they are.*{ORDER}"):
        torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    plain = torch.ao.quantization.quantize_dynamic(apical.revert(model), {nn.Linear})
    assert "Dynamic" in repr(plain)


@QUANTISATION
def test_a_layer_that_is_prepared_for_quantisation_is_not_converted() -> None:
    model = net().float().train()
    model.qconfig = torch.ao.quantization.get_default_qat_qconfig("fbgemm")
    torch.ao.quantization.propagate_qconfig_(model)
    with pytest.raises(ValueError, match=r"0 \(Linear\): .*qconfig.*train.*revert"):
        apical.convert(model, "fa")
    assert apical.plan(net(), "fa").problems == ()


class Two(nn.Module):
    """Two outputs, named, with hidden layers in common."""

    Outputs = namedtuple("Outputs", ["logits", "value"])

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 8)
        self.first, self.second = nn.Linear(8, 3), nn.Linear(8, 2)
        self.double()

    def forward(self, x: Tensor) -> Any:
        h = torch.tanh(self.b(torch.tanh(self.a(x))))
        return self.Outputs(self.first(h), self.second(h))


def signals(model: nn.Module, x: Tensor, *weights: float) -> dict[str, Tensor]:
    model.zero_grad()
    outputs = model(x)
    loss = sum(w * y.square().sum() for w, y in zip(weights, outputs, strict=True) if w)
    loss.backward()  # type: ignore[union-attr]
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("output", [["logits", "value"], (0, 1)])
def test_several_outputs_carry_the_error(output: Any) -> None:
    model = apical.convert(Two(), "dfa", output=output)
    model(X)
    one, two, both = (signals(model, X, *w) for w in ((1.0, 0.0), (0.0, 1.0), (1.0, 1.0)))
    for name in ("a.weight", "b.weight"):
        assert one[name].any() and two[name].any()
        torch.testing.assert_close(both[name], one[name] + two[name], rtol=1e-12, atol=1e-14)
    with apical.exact_gradients(model):
        h1 = torch.tanh(model.a(X))
        h2 = torch.tanh(model.b(h1))
        error = 2 * torch.cat([model.first(h2), model.second(h2)], 1)
    # the layers above b are its two heads: b's output receives the signals of both
    matrix = model.first.feedback.matrix + model.second.feedback.matrix
    expected = (error @ matrix * (1 - h2**2)).T @ h1
    torch.testing.assert_close(both["b.weight"], expected, rtol=1e-12, atol=1e-14)
    seen, plain = model(X), Two()(X)
    assert type(seen) is Two.Outputs
    assert all(torch.equal(a, b) for a, b in zip(seen, plain, strict=True))


def test_complex_outputs_carry_no_error_of_broadcast_rules() -> None:
    class Spectrum(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.fft(super().forward(x))

    model = apical.convert(Spectrum(*net()), "dfa")
    with pytest.raises(ValueError, match=r"complex.*view_as_real"):
        model(X)
    apical.convert(apical.revert(model), "fa")(X).abs().sum().backward()


def test_fields_of_a_namedtuple_are_named() -> None:
    by_name = apical.convert(Two(), "dfa", output="logits")
    by_place = apical.convert(Two(), "dfa", output=0)
    for name, seen in signals(by_name, X, 1.0, 0.0).items():
        assert torch.equal(seen, signals(by_place, X, 1.0, 0.0)[name])
    with pytest.raises(ValueError, match="output='score' is not in .*'logits' .*'value'"):
        apical.convert(Two(), "dfa", output="score")(X)


def test_an_output_whose_gradient_reaches_no_hidden_layer_is_warned_of_once() -> None:
    model = apical.convert(Two(), "dfa", output="logits")
    signals(model, X, 1.0, 0.0)
    with pytest.warns(UserWarning, match=r"output 'value' .*output=\['logits', 'value'\]"):
        assert "a.weight" not in signals(model, X, 0.0, 1.0)
    signals(model, X, 1.0, 1.0)  # a second warning would be an error


def test_lists_of_outputs_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match=r"output=\[\] is an empty list"):
        apical.convert(Two(), "dfa", output=[])
    with pytest.raises(ValueError, match="names an output twice"):
        apical.convert(Two(), "dfa", output=[0, 0])
    with pytest.raises(ValueError, match="'score' is not in"):
        apical.convert(Two(), "dfa", output=["logits", "score"])(X)
    model = apical.convert(Two(), "drtp", output=[0, 1])
    with apical.labels(model, Y), pytest.raises(ValueError, match="several outputs.*numbers"):
        model(X)
    with apical.labels(model, torch.zeros(6, 5, dtype=torch.float64)):
        signals(model, X, 1.0, 1.0)


def weight_normed(layer: nn.Module) -> None:
    with pytest.warns(FutureWarning):
        torch.nn.utils.weight_norm(layer)


CHANGES = {
    "weight_norm": weight_normed,
    "parametrized weight_norm": torch.nn.utils.parametrizations.weight_norm,
    "spectral_norm": torch.nn.utils.parametrizations.spectral_norm,
    "pruning": lambda layer: prune.l1_unstructured(layer, "weight", amount=0.5),
}
SHRINKING = ("kp", "ldfa", "pfa")


def three_steps(model: nn.Module, **options: float) -> list[float]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, **options)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        with apical.labels(model, Y):
            loss = nn.functional.cross_entropy(model(X), Y)
            loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", SENDING)
def test_a_weight_that_becomes_computed_after_conversion(name: str, change: str) -> None:
    """Works, or the next forward pass says what to do, not a later step of the optimizer."""
    model = apical.convert(net(), name, example=X, on_unsupported="keep")
    CHANGES[change](model[2])
    if name in SHRINKING:
        with pytest.raises(ValueError, match=r"^2: .*decay=0.0"):
            model(X)
        model = apical.convert(net(), build(name, decay=0.0), example=X)
        CHANGES[change](model[2])
    before = model[0].weight.detach().clone()
    assert all(loss < 2 for loss in three_steps(model))
    assert model[0].weight.grad.any() and not torch.equal(model[0].weight, before)


STORING = [n for n in SENDING if not isinstance(RULES[n], BroadcastRule) and n != "usf"]


@pytest.mark.parametrize("name", STORING)
def test_structural_pruning_after_conversion_is_refused_by_the_next_forward_pass(name: str) -> None:
    model = apical.convert(net(), name, on_unsupported="keep")
    model[0].weight = nn.Parameter(model[0].weight.detach()[:5])
    model[0].bias = nn.Parameter(model[0].bias.detach()[:5])
    model[2].weight = nn.Parameter(model[2].weight.detach()[:, :5])
    with pytest.raises(ValueError, match=r"^0: .*\(5, 4\).*\(8, 4\).*revert.*convert again"):
        model(X.clone().requires_grad_())


def test_structural_pruning_and_other_image_sizes_under_broadcast_rules() -> None:
    model = apical.convert(net(), "dfa", example=X)
    model[0].weight = nn.Parameter(model[0].weight.detach()[:5])
    model[0].bias = nn.Parameter(model[0].bias.detach()[:5])
    model[2].weight = nn.Parameter(model[2].weight.detach()[:, :5])
    with pytest.raises(ValueError, match=r"^2: .*\(6, 5\).*\(6, 8\).*convert again"):
        model(X)
    images = sequences(2, 3, 8, 8)
    conv = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).double()
    for layout in ("full", "kernel", "channel"):
        model = apical.convert(conv, DFA(layout=layout), example=images)
        model(images[:1]).sum().backward()  # another number of samples
        larger = sequences(2, 3, 10, 10)
        if layout == "full":
            with pytest.raises(ValueError, match=r"^2: .*\(2, 4, 8, 8\).*\(2, 4, 6, 6\).*channel"):
                model(larger)
        else:
            model(larger).sum().backward()
        apical.revert(conv)


def unet() -> nn.Module:
    """Maps in, maps out: every layer's full feedback is (output map) x (input map)."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
        nn.Conv2d(16, 2, 1),
    )  # fmt: skip


@pytest.mark.parametrize("with_example", [True, False])
def test_feedback_above_the_limit_is_refused_before_it_is_allocated(with_example: bool) -> None:
    images = torch.zeros(1, 3, 256, 256)  # 550 GB of feedback: to allocate it would kill the tests
    model = unet()
    example = {"example": images} if with_example else {}
    with pytest.raises(ValueError) as caught:
        apical.convert(model, "dfa", **example)(images)
    text = str(caught.value)
    assert text.startswith("2: ") and f"{2 * 256**2 * 16 * 256**2 * 4:,}" in text
    for remedy in ("layout='channel'", "shared=True", "'bp'", "max_feedback_bytes="):
        assert remedy in text
    for rule in (DFA(layout="channel"), DFA(layout="kernel", init="noekland")):
        small = unet()
        apical.convert(small, rule, example=images[..., :32, :32])
        small(images[..., :32, :32]).sum().backward()
        assert small[0].bias.grad.any()


@pytest.mark.parametrize("name", [*SENDING, LowDimensional(follows="update")])
def test_the_estimate_is_what_is_stored(name: Any) -> None:
    sized = apical.convert(net(), name, example=X, on_unsupported="keep")
    stored = apical.describe(sized).feedback_bytes
    for allowed in (stored, stored - 1):
        options = {"max_feedback_bytes": allowed, "on_unsupported": "keep", "example": X}
        if allowed == stored or not stored:
            apical.convert(net(), name, **{**options, "max_feedback_bytes": stored})
        else:
            with pytest.raises(ValueError, match=f"{stored:,} bytes .*max_feedback_bytes={stored}"):
                apical.convert(net(), name, **options)
    for wrong in (-1, "1GB", True, float("nan")):
        with pytest.raises(ValueError, match=f"max_feedback_bytes={wrong!r} is no number of bytes"):
            apical.convert(net(), name, max_feedback_bytes=wrong)


@pytest.mark.parametrize("name", [n for n in SENDING if not isinstance(RULES[n], BroadcastRule)])
def test_a_plan_says_what_feedback_costs(name: str) -> None:
    planned = apical.plan(net(), name, on_unsupported="keep")
    described = apical.describe(apical.convert(net(), name, on_unsupported="keep"))
    stored = {row.layer: row.feedback_bytes for row in described.rows}
    assert {row.layer: row.feedback_bytes for row in planned.rows} == stored
    assert all(f"{size:,}" in str(planned) for size in stored.values())
    (row, *_) = apical.plan(net(), "dfa").rows
    assert row.feedback_bytes is None and "needs example=" in str(apical.plan(net(), "dfa"))


def test_a_shared_matrix_counts_once() -> None:
    largest = 3 * 8 * 8  # outputs x units x bytes
    apical.convert(net(), DFA(shared=True), example=X, max_feedback_bytes=largest + 8)
    with pytest.raises(ValueError, match="max_feedback_bytes"):
        apical.convert(net(), DFA(shared=True), example=X, max_feedback_bytes=largest)
