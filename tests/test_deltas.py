"""The signal at every layer against backprop's: closed forms, zeros where the rule is exact, and
a model left as it was."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import apical
from apical.core.layers import feedback_modules
from apical.measure import probes, signals
from apical.rules import DFA, RULES

X = torch.linspace(-1, 1, 32, dtype=torch.float64).view(8, 4).sin()
Y = torch.arange(8) % 3


def linear_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)).double()


def deep_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Dropout(0.3), nn.Linear(5, 6),
        nn.ReLU(inplace=True), nn.Linear(6, 3),
    ).double()  # fmt: skip


def degrees(a: Tensor, b: Tensor) -> Tensor:
    """The angle of every row of a to that of b, by the law of cosines."""
    between = (a / a.norm(dim=1, keepdim=True) - b / b.norm(dim=1, keepdim=True)).norm(dim=1)
    return torch.rad2deg(2 * torch.asin(between / 2))


@pytest.mark.parametrize("rule", ["fa", "dfa"])
def test_of_a_linear_net_is_the_closed_form(rule: str) -> None:
    """At the hidden layer e B arrives, and backprop would deliver e W."""
    model = apical.convert(linear_net(), rule, example=X)
    first, last = model
    target = torch.zeros(8, 3, dtype=torch.float64)
    error = 2 * (model(X).detach() - target) / target.numel()  # of the mean squared error
    matrix = last.feedback.memory()[0]
    arrived = error @ matrix.reshape(3, 6)
    exact = error @ last.weight.detach()
    found = probes.delta_alignment(model, F.mse_loss, X, target)
    assert found["0"]["angle_deg"] == pytest.approx(degrees(arrived, exact).mean().item())
    assert found["0"]["norm_ratio"] == pytest.approx((arrived.norm() / exact.norm()).item())
    assert found["1"]["angle_deg"] == pytest.approx(0, abs=1e-5)
    assert found["1"]["norm_ratio"] == pytest.approx(1, rel=1e-12)


def test_is_the_mean_over_examples_and_not_the_angle_of_the_batch() -> None:
    """One example with a signal a thousand times as strong counts once."""
    ours = torch.tensor([[1.0, 0], [0, 1000]], dtype=torch.float64)
    exact = torch.tensor([[0.0, 1], [0, 1000]], dtype=torch.float64)
    row = probes._delta_rows({"layer": [(ours, exact)]})["layer"]
    assert row["angle_deg"] == pytest.approx((90 + 0) / 2)
    assert row["norm_ratio"] == pytest.approx(1)
    both = torch.cat([ours, ours]), torch.cat([exact, ours])  # one call, or two calls
    calls = probes._delta_rows({"layer": [(ours, exact), (ours, ours)]})["layer"]
    assert calls == probes._delta_rows({"layer": [both]})["layer"]
    assert calls["angle_deg"] == pytest.approx(90 / 4)


def test_examples_without_a_signal_do_not_count() -> None:
    ours = torch.tensor([[1.0, 0], [0, 0], [1, 1]], dtype=torch.float64)
    exact = torch.tensor([[1.0, 1], [1, 0], [0, 0]], dtype=torch.float64)
    row = probes._delta_rows({"layer": [(ours, exact)]})["layer"]
    assert row["angle_deg"] == pytest.approx(45)
    nothing = torch.zeros(2, 3)
    assert probes._delta_rows({"layer": [(nothing, nothing)]})["layer"] == {}
    silent = probes._delta_rows({"layer": [(nothing, torch.ones(2, 3))]})["layer"]
    assert silent == {"norm_ratio": 0.0}


@pytest.mark.parametrize("rule", ["aa", "brsf", "fa", "frsf", "kp", "usf", "wm"])
def test_is_zero_where_the_matrix_is_the_weight(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(RULES[rule]), "matrix", lambda self, weight, *memory: weight)
    model = apical.convert(deep_net(), rule)
    found = probes.delta_alignment(model, F.cross_entropy, X, Y)
    assert list(found) == ["0", "4", "6"]
    for row in found.values():
        assert row["angle_deg"] == pytest.approx(0, abs=1e-5)
        assert row["norm_ratio"] == pytest.approx(1, rel=1e-12)


def test_backprop_has_no_layers_of_its_own() -> None:
    assert probes.delta_alignment(apical.convert(deep_net(), "bp"), F.cross_entropy, X, Y) == {}
    constrained = apical.convert(deep_net(), {"*": apical.rules.BP(constrain_weights=True)})
    for row in probes.delta_alignment(constrained, F.cross_entropy, X, Y).values():
        assert row["angle_deg"] == pytest.approx(0, abs=1e-5)


def test_is_taken_before_the_activation_even_if_that_works_in_place() -> None:
    """The gradient behind a ReLU would not be zero where the ReLU is."""
    model = apical.convert(nn.Sequential(nn.Linear(4, 6), nn.ReLU(True), nn.Linear(6, 3)), "fa")
    model = model.double()
    sent = signals.send(model, F.cross_entropy, X, Y)
    ((by_rule, exact),) = sent.deltas["0"]
    silent = model[0](X) <= 0
    assert silent.any()
    assert not by_rule[silent].any() and not exact[silent].any()
    assert by_rule[~silent].all()


def test_of_a_convolution_is_over_channels_and_positions() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(8, 3)
    ).double()
    apical.convert(model, "fa")
    x = torch.linspace(-2, 2, 8 * 16, dtype=torch.float64).view(8, 1, 4, 4).cos()
    hidden = torch.tanh(F.conv2d(x, model[0].weight, model[0].bias, padding=1))
    scores = model(x).detach()
    error = (scores.softmax(1) - F.one_hot(Y, 3)) / 8
    message = error @ model[4].feedback.matrix
    at_conv = message.view(8, 2, 2, 2)
    arrived = F.conv_transpose2d(at_conv, model[2].feedback.matrix) * (1 - hidden**2)
    at_conv = (error @ model[4].weight).view(8, 2, 2, 2)
    exact = F.conv_transpose2d(at_conv, model[2].weight) * (1 - hidden**2)
    found = probes.delta_alignment(model, F.cross_entropy, x, Y)
    expected = degrees(arrived.flatten(1), exact.flatten(1)).mean().item()
    assert found["0"]["angle_deg"] == pytest.approx(expected)
    assert found["0"]["norm_ratio"] == pytest.approx((arrived.norm() / exact.norm()).item())


def test_every_rule_is_measured_and_left_as_it_was() -> None:
    for rule in sorted(RULES):
        model = apical.convert(deep_net(), rule, example=X)
        with apical.labels(model, Y):
            F.cross_entropy(model(X), Y).backward()
        state = copy.deepcopy(model.state_dict())
        grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        random = torch.get_rng_state()
        found = probes.delta_alignment(model, F.cross_entropy, X, Y)
        assert list(found) == {"bp": [], "frozen": ["6"]}.get(rule, ["0", "4", "6"])
        if len(found) > 1:
            assert 1 < found["0"]["angle_deg"] < 180
            assert found["6"]["angle_deg"] < 1e-5  # the error itself
        assert torch.equal(torch.get_rng_state(), random)
        assert_close(dict(model.state_dict()), dict(state), rtol=0, atol=0)
        now = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        assert_close(now, grads, rtol=0, atol=0)
        for feedback in feedback_modules(model):
            assert not feedback.listeners


def test_a_measurement_is_no_pass_that_an_update_belongs_to() -> None:
    """brSF resamples after an update if its feedback was used since the last one."""

    def matrix_after(probe: Callable[[nn.Module], Any]) -> Tensor:
        model = apical.convert(deep_net(), "brsf")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        F.cross_entropy(model(X), Y).backward()
        optimizer.step()
        probe(model)
        optimizer.step()  # no pass of the training between: nothing is drawn
        return model[4].feedback.memory()[0].clone()

    measured = matrix_after(lambda m: probes.delta_alignment(m, F.cross_entropy, X, Y))
    assert torch.equal(measured, matrix_after(lambda m: None))


def test_the_pass_gives_what_gradient_alignment_gives() -> None:
    model = apical.convert(deep_net(), "fa")
    rows, whole = probes.measured(model, F.cross_entropy, X, Y)
    gradients = probes.gradient_alignment(model, F.cross_entropy, X, Y)
    deltas = probes.delta_alignment(model, F.cross_entropy, X, Y)
    weights = probes.alignment(model)
    for name, row in rows.items():
        assert row["gradient_angle_deg"] == gradients[name]["angle_deg"]
        assert row["delta_angle_deg"] == deltas[name]["angle_deg"]
        assert row["delta_norm_ratio"] == deltas[name]["norm_ratio"]
        assert row["angle_deg"] == weights[name]["angle_deg"]
    assert [row["heard"] for row in rows.values()] == [False, True, True]
    assert rows["6"]["signal"] == pytest.approx(1)
    assert whole["loss"] > 0 and 1 < whole["error_rank"] < 3


def test_frozen_layers_send_on_what_they_receive() -> None:
    model = apical.convert(linear_net(), "fa")
    model[0].requires_grad_(False)
    assert list(probes.delta_alignment(model, F.cross_entropy, X, Y)) == ["1"]  # nothing to teach
    model[0].requires_grad_(True)
    model[1].requires_grad_(False)
    assert list(probes.delta_alignment(model, F.cross_entropy, X, Y)) == ["0", "1"]
    model.requires_grad_(False)
    assert probes.delta_alignment(model, F.cross_entropy, X, Y) == {}


def test_projections_of_attention_are_rows_of_their_own() -> None:
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(3, 4)
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
            self.head = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.embed(x)
            return self.head(self.attention(h, h, h, need_weights=False)[0].mean(1))

    torch.manual_seed(0)
    model = apical.convert(Attending().double(), "fa")
    x = torch.linspace(-1, 1, 8 * 5 * 3, dtype=torch.float64).view(8, 5, 3)
    found = probes.delta_alignment(model, F.cross_entropy, x, Y)
    parts = [f"attention.{name}" for name in ("q", "k", "v", "out")]
    assert list(found) == ["embed", *parts, "head"]
    assert all(0 < found[name]["angle_deg"] < 180 for name in parts)


def test_a_layer_called_twice_and_a_tied_weight() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.b(torch.tanh(self.a(torch.tanh(self.a(x))))))

    torch.manual_seed(0)
    plain = Twice().double()
    untied = copy.deepcopy(plain)
    untied.b.weight = nn.Parameter(plain.b.weight.detach().clone())
    tied, untied = apical.convert(plain, "fa"), apical.convert(untied, "fa")
    untied.b.feedback.matrix.copy_(tied.b.feedback.matrix)
    sent = signals.send(tied, F.cross_entropy, X, Y)
    assert {name: len(calls) for name, calls in sent.deltas.items()} == {"a": 2, "b": 1, "out": 1}
    rows, others = (probes.delta_alignment(m, F.cross_entropy, X, Y) for m in (tied, untied))
    assert rows.keys() == others.keys()
    for name, row in rows.items():
        assert row == pytest.approx(others[name], rel=1e-9)


def test_recomputation_by_checkpointing_is_not_a_second_call() -> None:
    class Recomputed(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            below = checkpoint(lambda x: self[1](self[0](x)), x, use_reentrant=False)
            return self[2](below)

    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    again = Recomputed(*copy.deepcopy(plain))
    x = X.clone().requires_grad_()
    rows = [
        probes.delta_alignment(apical.convert(model, "fa"), F.cross_entropy, x, Y)
        for model in (plain, again)
    ]
    assert rows[0] == rows[1]


def test_a_model_that_returns_several_tensors() -> None:
    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = linear_net()

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"scores": self.net(x), "inputs": x}

    def loss(output: dict[str, Tensor], y: Tensor) -> Tensor:
        return F.cross_entropy(output["scores"], y)

    one = apical.convert(Several(), DFA(), output="scores", example=X)
    rows, whole = probes.measured(one, loss, X, Y)
    assert list(rows) == ["net.0", "net.1"] and "error_rank" in whole
    other = apical.convert(Several(), "fa")
    rows, whole = probes.measured(other, loss, X, Y)
    assert "delta_angle_deg" in rows["net.0"] and "error_rank" not in whole  # which error?


# how many directions


def test_rank_of_known_spectra() -> None:
    """k directions of equal variance: k; of variances s: (sum s)^2 / sum s^2."""
    for k in (1, 3, 5):
        rows = torch.cat([torch.eye(5)[:k], -torch.eye(5)[:k]]).double()
        assert probes.effective_rank(rows) == pytest.approx(k)
    spread = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)
    rows = torch.cat([spread.diag(), -spread.diag()])
    assert probes.effective_rank(rows) == pytest.approx((9 + 4 + 1) ** 2 / (81 + 16 + 1))


def test_rank_is_of_the_covariance_whatever_the_shape_scale_and_mean() -> None:
    torch.manual_seed(0)
    for shape in ((40, 7), (7, 40)):
        rows = torch.randn(shape, dtype=torch.float64) * torch.rand(shape[1], dtype=torch.float64)
        spectrum = torch.linalg.eigvalsh(rows.T.cov())
        expected = (spectrum.sum() ** 2 / (spectrum**2).sum()).item()
        for changed in (rows, 1e-9 * rows, rows + 5, rows.T.contiguous().T):
            assert probes.effective_rank(changed) == pytest.approx(expected, rel=1e-6)
    assert probes.effective_rank(torch.full((4, 3), 2.0)) == 0
    assert probes.effective_rank(torch.zeros(0, 3)) == 0
    tiny = 1e-12 * torch.cat([torch.eye(3), -torch.eye(3)])  # whose fourth powers do not exist
    assert probes.effective_rank(tiny) == pytest.approx(3)


def test_rank_of_many_rows_is_that_of_some() -> None:
    torch.manual_seed(0)
    rows = torch.randn(40_000, 6)
    assert probes.effective_rank(rows) == pytest.approx(6, rel=0.02)
    assert len(rows[:: -(-len(rows) // probes.RANK_ROWS)]) <= probes.RANK_ROWS


def test_rank_of_a_signal_is_by_units() -> None:
    """Feedback of rank 2 leaves the layer below with a signal of at most 2 directions."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 20), nn.Linear(20, 9)).double()
    apical.convert(model, {"1": apical.rules.LowDimensional(rank=2), "*": "fa"})
    x = torch.randn(64, 4, dtype=torch.float64)
    rows, whole = probes.measured(model, F.cross_entropy, x, torch.arange(64) % 9)
    assert 1 < rows["0"]["delta_rank"] < 2 + 1e-9
    assert 4 < whole["error_rank"] < 9
    assert rows["1"]["delta_rank"] == pytest.approx(whole["error_rank"])
    conv = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Tanh(), nn.Flatten(), nn.Linear(32, 3)).double()
    rows, _ = probes.measured(apical.convert(conv, "fa"), F.cross_entropy, x.view(16, 1, 4, 4),
                              torch.arange(16) % 3)  # fmt: skip
    assert 1 < rows["0"]["delta_rank"] <= 2  # channels, not positions


def test_without_variation_there_is_no_rank_and_math_stays_finite() -> None:
    rows, whole = probes.measured(
        apical.convert(linear_net(), "fa"), lambda y, _: 0 * y.sum(), X, Y
    )
    assert whole == {"loss": 0.0, "error_rank": 0.0}
    assert all(math.isfinite(value) for row in rows.values() for value in row.values())
    assert "signal" not in rows["0"]
