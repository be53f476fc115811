"""LRA against its equations in plain autograd, and against theorems. All in float64."""

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from apical import nets
from apical.learners import LRA, Backprop, targets
from apical.learners.regulariser import omega
from apical.learners.unrolled import simple_net, unroll

N, T, INPUTS, HIDDEN, OUTPUTS = 3, 12, 4, 6, 5


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def net(activation: Any = "tanh", scale: float = 1.0) -> nets.Recurrent:
    cell = nets.SRN(INPUTS, HIDDEN, activation=activation)
    model = nets.Recurrent(cell, OUTPUTS, init="uniform", generator=generator(0)).double()
    with torch.no_grad():
        cell.recurrent.weight.mul_(scale)
    return model


def batch(loss: str = "cross_entropy") -> tuple[Tensor, Tensor]:
    x = torch.randn(N, T, INPUTS, generator=generator(1), dtype=torch.float64)
    if loss == "cross_entropy":
        return x, torch.tensor([0, 3, 4])
    return x, torch.randn(N, OUTPUTS, generator=generator(2), dtype=torch.float64)


def taught(learner: Any, model: nets.Recurrent, data: Any) -> tuple[dict[str, Tensor], Any]:
    model.zero_grad()
    _, info = learner.gradients(model, data)
    return {name: p.grad.clone() for name, p in model.named_parameters()}, info


# The equations, slowly -------------------------------------------------------------------------


def shortened(a: Tensor, learner: LRA) -> Tensor:
    norm = a.norm()
    if not norm:
        return a
    if learner.clip == "none" or (learner.clip == "clip" and norm < learner.limit):
        return a
    return a * learner.limit / norm


def local_loss(z: Tensor, target: Tensor, learner: LRA) -> Tensor:
    squared = (target - z) ** 2
    each = torch.log(1 + squared) if learner.local == "log" else squared
    return each.sum() if learner.reduction == "sum" else each.mean()


EPS = torch.finfo(torch.float64).eps


def regulariser(
    delta: Tensor, weight: Tensor, h: Tensor, learner: LRA, terms: Tensor | None = None
) -> Tensor:
    """Written for tanh; sum over samples of each one's, or one for the batch. A delta that is
    smaller than sqrt(eps) of the terms it is the difference of counts as none."""
    back = delta @ weight * (1 - torch.tanh(h) ** 2)
    axes = (0, 1) if learner.omega_per == "batch" else (1,)
    size = delta.norm(dim=axes)
    each = (back.norm(dim=axes) / size - 1) ** 2
    return each.sum() if terms is None else each[size > EPS**0.5 * terms.norm(dim=axes)].sum()


def well_apart(delta: Tensor, terms: Tensor, learner: LRA) -> float:
    """|terms| / |delta| of the smallest delta that counts; none is near the floor, so that
    rounding decides nothing."""
    axes = (0, 1) if learner.omega_per == "batch" else (1,)
    ratio = delta.norm(dim=axes) / terms.norm(dim=axes)
    assert not ((ratio > 0.9 * EPS**0.5) & (ratio < 1.1 * EPS**0.5)).any()
    counted = ratio[ratio > EPS**0.5]
    return 1 / counted.min().item() if len(counted) else 0.0


def search(h: Tensor, above: Any, weight: Tensor, gamma: float, learner: LRA) -> Tensor:
    """above: activation -> (loss, input sums of the loss's own layer, their terms)."""
    for _ in range(learner.inner):
        h = h.detach().requires_grad_()
        loss, sums, terms = above(torch.tanh(h))
        down, delta = torch.autograd.grad(loss, [h, sums])
        if learner.alpha_targets:
            mean = learner.omega_per == "sample" and learner.reduction == "mean"
            well_apart(delta, terms, learner)
            term = regulariser(delta, weight, h, learner, terms) / (N if mean else 1)
            down = down + learner.alpha_targets * torch.autograd.grad(term, h)[0]
        h = h - gamma * shortened(down, learner)
    return torch.tanh(h).detach()


def reference(
    model: nets.Recurrent, x: Tensor, y: Tensor, learner: LRA
) -> tuple[dict[str, Tensor], list[Tensor], dict[str, float]]:
    """Gradients, local losses, and what rounding may add to a gradient beside 1e-13."""
    w_in, b = model.cell.input.weight, model.cell.input.bias
    w_rec, w_out, b_out = model.cell.recurrent.weight, model.readout.weight, model.readout.bias

    def output_loss(scores: Tensor, reduction: str) -> Tensor:
        if learner.loss == "cross_entropy":
            return F.cross_entropy(scores, y, reduction=reduction)
        total = ((scores - y) ** 2).sum()
        return total / N if reduction == "mean" else total

    h, z = [], [torch.zeros(N, HIDDEN, dtype=torch.float64)]
    for t in range(T):
        h.append((x[:, t] @ w_in.T + b + z[-1] @ w_rec.T).detach())
        z.append(torch.tanh(h[-1]))
    grads = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    rounding = dict.fromkeys(grads, 0.0)

    def regularise(name: str, weight: Tensor, delta: Tensor, below: Tensor, terms: Tensor) -> None:
        term = regulariser(delta, weight, below, learner, terms)
        extra = torch.autograd.grad(term / (1 if learner.omega_per == "batch" else N), weight)[0]
        grads[name] += learner.alpha_weights * extra
        # delta has a relative error of eps |terms| / |delta|, and so has what is made of its
        # direction; 10 for the operations in between
        error = 10 * EPS * well_apart(delta, terms, learner)
        rounding[name] += learner.alpha_weights * error * extra.norm().item()

    scores = z[-1] @ w_out.T + b_out
    first_terms = (torch.softmax(scores, 1) if y.dim() == 1 else 2 * scores).detach()
    loss = output_loss(scores, "mean")
    at_w, at_b, error = torch.autograd.grad(loss, [w_out, b_out, scores])
    grads["readout.weight"] += shortened(at_w, learner)
    grads["readout.bias"] += at_b
    if learner.alpha_weights:
        regularise("readout.weight", w_out, error, h[-1], first_terms / N)

    def above_last(activation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        sums = activation @ w_out.T + b_out
        terms = first_terms if learner.reduction == "sum" else first_terms / N
        return output_loss(sums, learner.reduction), sums, terms

    gamma = learner.gamma if learner.gamma_output is None else learner.gamma_output
    target, losses = search(h[-1], above_last, w_out, gamma, learner), []
    for t in reversed(range(T)):
        sums = x[:, t] @ w_in.T + b + z[t] @ w_rec.T
        loss = local_loss(torch.tanh(sums), target, learner)
        losses.append(loss.detach() / (N if learner.reduction == "sum" else 1))
        if learner.reduction == "sum":
            loss = loss / N
        at_rec, at_in, at_b, delta = torch.autograd.grad(loss, [w_rec, w_in, b, sums])
        grads["cell.recurrent.weight"] += shortened(at_rec, learner)
        grads["cell.input.weight"] += shortened(at_in, learner)
        grads["cell.input.bias"] += at_b
        if not t:
            break
        values = torch.tanh(sums.detach())
        terms = 2 * values * (1 - values**2) / (1 if learner.reduction == "sum" else N * HIDDEN)
        if learner.alpha_weights:
            over_batch = terms / N if learner.reduction == "sum" else terms
            regularise("cell.recurrent.weight", w_rec, delta, h[t - 1], over_batch)

        def above(
            activation: Tensor, t: int = t, target: Tensor = target, terms: Tensor = terms
        ) -> Any:
            sums = x[:, t] @ w_in.T + b + activation @ w_rec.T
            return local_loss(torch.tanh(sums), target, learner), sums, terms

        target = search(h[t - 1], above, w_rec, learner.gamma, learner)
    return grads, losses[::-1], rounding


VARIANTS = [
    {"reduction": reduction, "local": local, "inner": inner, "clip": clip}
    for reduction, local, inner, clip in itertools.product(
        ("sum", "mean"), ("log", "squared"), (1, 3), ("clip", "force", "none")
    )
] + [
    {"reduction": reduction, "inner": 2, "omega_per": per, **alphas}
    for reduction, per, alphas in itertools.product(
        ("sum", "mean"),
        ("batch", "sample"),
        ({"alpha_weights": 0.3}, {"alpha_targets": 0.2}),
    )
]


def test_it_is_what_its_equations_say() -> None:
    for options in VARIANTS:
        for loss in ("cross_entropy", "squared_error"):
            limit = {} if options.get("clip") == "none" else {"limit": 0.1}
            gamma = {"gamma": 0.4, "gamma_output": 0.7}
            learner, model = LRA(loss=loss, **gamma, **limit, **options), net()
            expected, losses, rounding = reference(model, *batch(loss), learner)
            seen, info = taught(learner, model, batch(loss))
            for name in expected:
                assert (
                    rounding[name] < 1e-7
                )  # the bound says something: gradients are of the order of 0.1
                assert_close(seen[name], expected[name], rtol=1e-10, atol=1e-13 + rounding[name])
            # the log of a tiny distance: 1 + d^2 has lost its digits in the reference
            assert_close(info.local_losses, torch.stack(losses), rtol=1e-6, atol=1e-15)
            assert_close(info.scores, model(batch()[0]))


def test_linear_with_squared_loss_is_backprop_through_time_times_2g() -> None:
    g = 0.3
    learner = LRA("sum", local="squared", gamma=0.5, gamma_output=g, clip="none")
    model = net("identity")
    exact, _ = taught(Backprop(), model, batch())
    seen, _ = taught(learner, model, batch())
    for name in ("cell.input.weight", "cell.input.bias", "cell.recurrent.weight"):
        assert_close(seen[name], 2 * g * exact[name], rtol=0, atol=2e-14)
    for name in ("readout.weight", "readout.bias"):
        assert_close(seen[name], exact[name], rtol=0, atol=2e-14)


# The regulariser -------------------------------------------------------------------------------


@pytest.mark.parametrize("per", ["batch", "sample"])
def test_the_regulariser_and_both_gradients_are_those_of_autograd(per: Any) -> None:
    delta = torch.randn(2, N, OUTPUTS, generator=generator(3), dtype=torch.float64)
    weight = torch.randn(OUTPUTS, HIDDEN, generator=generator(4), dtype=torch.float64)
    h = torch.randn(2, N, HIDDEN, generator=generator(5), dtype=torch.float64)
    weight.requires_grad_(), h.requires_grad_()
    learner = LRA("sum", omega_per=per, alpha_weights=1.0)
    terms = torch.stack([regulariser(delta[t], weight, h[t], learner) for t in range(2)])
    to_weight, to_h = torch.autograd.grad(terms.sum(), [weight, h])
    z = torch.tanh(h.detach())
    slope = 1 - z**2
    found = omega(delta, weight.detach(), slope, -2 * z * slope, per, delta)
    value = found.value if per == "batch" else found.value.sum(1)
    assert_close(value, terms.detach())
    assert_close((delta.mT @ found.to_weight).sum(0), to_weight)
    assert_close(found.to_below, to_h)


@pytest.mark.parametrize(
    "options",
    [{"alpha_weights": 0.3}, {"alpha_weights": 0.3, "omega_per": "sample"}],
)
def test_a_signal_of_rounding_noise_teaches_nothing(options: dict[str, Any]) -> None:
    """With "mean" signals fall by N * HIDDEN at every step: those of the first steps are noise."""
    learner, model = LRA("mean", inner=2, gamma=0.4, **options), net()
    gradients = []
    for x in (batch()[0], batch()[0] * (1 + 4 * EPS)):
        model.zero_grad()
        _, info = learner.gradients(model, (x, batch()[1]))
        gradients.append(model.cell.recurrent.weight.grad.clone())
    assert 0 < info.signals.min() < EPS * info.signals.max() or info.signals.min() == 0
    moved = (gradients[1] - gradients[0]).norm() / gradients[0].norm()
    # above the floor sqrt(eps), a direction moves by at most eps / sqrt(eps) a unit in the last
    # place; below it, by everything
    assert moved < 100 * EPS**0.5


def test_forcing_a_norm_does_not_amplify_rounding_noise() -> None:
    """Targets 1e-11 away from the activations: the difference has no digit that means much."""
    gradients, info = taught(LRA("sum", clip="force", limit=1e-11), net(), batch())
    assert info.signals[-1] > 0
    assert not gradients["cell.recurrent.weight"].any() and not gradients["cell.input.weight"].any()
    assert gradients["readout.weight"].norm().item() == pytest.approx(1e-11)


def test_what_the_weight_cancels_has_no_direction() -> None:
    weight = torch.tensor([[1.0, 2.0], [-1.0, -2.0]], dtype=torch.float64)
    delta = torch.ones(N, 2, dtype=torch.float64) * (1 + 1e-15 * torch.rand(N, 2).double())
    one = torch.ones(N, 2, dtype=torch.float64)
    assert not any(tensor.any() for tensor in omega(delta, weight, one, one, "sample", one))


@pytest.mark.parametrize("per", ["batch", "sample"])
def test_a_signal_that_keeps_its_norm_is_left_alone(per: Any) -> None:
    turn = torch.linalg.qr(torch.randn(6, 6, generator=generator(6), dtype=torch.float64))[0]
    delta = torch.randn(N, 6, generator=generator(7), dtype=torch.float64)
    one, bend = torch.ones(N, 6, dtype=torch.float64), torch.full((N, 6), 0.5).double()
    found = omega(delta, turn, one, bend, per, delta)
    for tensor in found:
        assert tensor.abs().max() < 1e-14
    assert omega(delta, 2 * turn, one, bend, per, delta).value.max() == pytest.approx(1)


def test_without_a_signal_there_is_no_direction_to_keep() -> None:
    for per in ("batch", "sample"):
        for zero in ("delta", "slope"):
            delta, slope = torch.randn(N, OUTPUTS), torch.rand(N, HIDDEN)
            delta[0], slope[0] = 0, 0  # of one sample alone
            if per == "batch":
                (delta if zero == "delta" else slope).zero_()
            found = omega(delta, torch.randn(OUTPUTS, HIDDEN), slope, slope, per, delta)
            assert all(tensor.isfinite().all() for tensor in found)
            assert not any(tensor[0].any() for tensor in (found.to_weight, found.to_below))
            assert not found.value.flatten()[0]


def test_a_solved_batch_gives_no_nan_from_the_regulariser() -> None:
    learner = LRA("mean", loss="squared_error", alpha_weights=0.1, alpha_targets=0.1)
    model, (x, _) = net(), batch()
    seen, info = taught(learner, model, (x, model(x).detach()))
    assert not any(gradient.any() for gradient in seen.values())
    assert not info.local_losses.any()


# Clipping, locality, targets -------------------------------------------------------------------


def test_clipping_keeps_the_direction_and_spares_what_is_short() -> None:
    norms = torch.tensor([0.5, 2.0, 0.0])
    assert LRA("sum", limit=1.0)._factor(norms).tolist() == [1.0, 0.5, 1.0]
    forced = LRA("sum", clip="force", limit=4.0)._factor(norms)
    assert forced[:2].tolist() == [8.0, 2.0]
    assert forced[2] * norms[2] == 0
    model = net()
    free, info = taught(LRA("sum", clip="none", gamma=1e-3), model, batch())
    limit = 2 * float(max(norms.max() for norms in info.norms.values()))
    short, _ = taught(LRA("sum", limit=max(limit, 10.0), gamma=1e-3), model, batch())
    for name in free:
        assert_close(short[name], free[name])


@pytest.mark.parametrize("inner", [1, 3])
def test_what_came_before_a_step_and_its_state_does_not_matter_to_it(
    inner: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Perturb x_s with all states held: later steps' gradients stay the same to the last bit."""
    learner, model, s = LRA("sum", inner=inner), net(), 5
    _, before = taught(learner, model, batch())

    def perturbed(simple: Any, x: Tensor) -> Any:
        run = unroll(simple, x)
        other = run.x_TNI.clone()
        other[s] += 1
        drive = F.linear(other, simple.w_in, simple.b_in).unbind(0)
        return run._replace(x_TNI=other, drive=drive)

    monkeypatch.setattr(targets, "unroll", perturbed)
    _, after = taught(learner, model, batch())
    for name in ("cell.recurrent.weight", "cell.input.weight"):
        assert torch.equal(before.norms[name][s + 1 :], after.norms[name][s + 1 :])
    changed = before.norms["cell.input.weight"] != after.norms["cell.input.weight"]
    assert changed[s]
    # and earlier ones hear of it through their targets, which only a second inner step computes
    assert changed[:s].all() == (inner > 1) and changed[:s].any() == (inner > 1)


def test_nothing_in_the_rule_has_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    plain = LRA.local_error

    def watched(self: LRA, z: Tensor, target: Tensor) -> Tensor:
        seen.extend([z, target])
        return plain(self, z, target)

    monkeypatch.setattr(LRA, "local_error", watched)
    model, learner = net(), LRA("sum", inner=2, alpha_weights=0.1, alpha_targets=0.1)
    loss, info = learner.gradients(model, batch())
    seen += [loss, info.scores, info.signals, info.local_losses, *info.norms.values()]
    seen += [p.grad for p in model.parameters()]
    assert len(seen) > 2 * T
    assert not any(tensor.requires_grad for tensor in seen)


@pytest.mark.parametrize("local", ["log", "squared"])
def test_targets_lower_the_loss_above_them_the_more_the_longer_one_searches(local: Any) -> None:
    x, y = batch()
    losses = []
    for inner in range(1, 6):
        learner = LRA("sum", local=local, inner=inner, gamma=0.02, gamma_output=0.5, clip="none")
        simple = simple_net(net(), learner)
        with torch.no_grad():
            run = unroll(simple, x)
            error = learner.objective.error(run.scores, y)
            last = learner.last_target(simple, run, error, y)
            signal = learner.local_error(run.z[-1], last) * run.slope[-1]
            earlier = learner.earlier_target(simple, run, T - 1, last, signal)
            later = torch.tanh(run.drive[-1] + earlier @ simple.w_rec.T)
            above = learner.objective.value(F.linear(last, simple.w_out, simple.b_out), y)
            losses.append((above.item(), learner.local_loss(later, last).sum().item()))
            if inner == 1:
                start = learner.objective.value(run.scores, y).item()
                # the target is another with other `inner`: compare within one search
                assert losses[0][1] < learner.local_loss(run.z[-1], last).sum().item()
    outer = [start, *(pair[0] for pair in losses)]
    assert all(b < a for a, b in itertools.pairwise(outer))


@pytest.mark.parametrize("local", ["log", "squared"])
def test_an_earlier_target_comes_closer_with_every_inner_step(local: Any) -> None:
    (x, _), distances = batch(), []
    target = torch.full((N, HIDDEN), 0.3, dtype=torch.float64)
    for inner in range(1, 6):
        learner = LRA("sum", local=local, inner=inner, gamma=0.05, clip="none")
        simple = simple_net(net(), learner)
        with torch.no_grad():
            run = unroll(simple, x)
            signal = learner.local_error(run.z[-1], target) * run.slope[-1]
            earlier = learner.earlier_target(simple, run, T - 1, target, signal)
            later = torch.tanh(run.drive[-1] + earlier @ simple.w_rec.T)
            distances.append(learner.local_loss(later, target).sum().item())
    start = learner.local_loss(run.z[-1], target).sum().item()
    assert all(b < a for a, b in itertools.pairwise([start, *distances]))


def test_mean_shrinks_signals_by_the_size_at_every_step_and_sum_does_not() -> None:
    model = net()
    _, summed = taught(LRA("sum"), model, batch())
    _, mean = taught(LRA("mean"), model, batch())
    ratios = (summed.signals[1:] / summed.signals[:-1], mean.signals[1:] / mean.signals[:-1])
    # with the log and the slopes of targets that are not near
    assert_close(
        ratios[1][-4:] / ratios[0][-4:], torch.full((4,), N * HIDDEN).double(), rtol=0.1, atol=0
    )
    assert mean.signals[0] == 0 < summed.signals[0]  # to the last bit, in float64


def test_values_that_make_no_sense_are_refused() -> None:
    for options, text in (
        ({}, "reduction is not stated. Write reduction='sum'"),
        ({"reduction": "total"}, "reduction='total' is unknown"),
        ({"reduction": "sum", "local": "huber"}, "local='huber' is not one of 'log', 'squared'"),
        ({"reduction": "sum", "inner": 0}, "inner=0 must be at least 1"),
        ({"reduction": "sum", "gamma": 0.0}, "gamma=0.0"),
        ({"reduction": "sum", "gamma_output": -1.0}, "gamma_output=-1.0"),
        ({"reduction": "sum", "limit": 0.0}, "limit=0.0 above 0"),
        ({"reduction": "sum", "limit": 2.0, "clip": "none"}, "limit=2.0 has no effect"),
        ({"reduction": "sum", "alpha_weights": -1.0}, "alpha_weights=-1.0"),
        ({"reduction": "sum", "alpha_targets": float("nan")}, "alpha_targets=nan"),
        ({"reduction": "sum", "omega_per": "sample"}, "omega_per='sample' has no effect"),
    ):
        with pytest.raises(ValueError) as caught:
            LRA(**options)
        assert text in str(caught.value)
