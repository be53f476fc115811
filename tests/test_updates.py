"""What follows an update of the weights: redraws, norms, and nothing when there was none."""

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.testing import assert_close

import apical
from apical.rules import BP, DFA, FA, KolenPollack, Rule, SignSymmetric, WeightMirror

X, Y = torch.linspace(-1, 1, 24, dtype=torch.float64).view(6, 4).sin(), torch.arange(6) % 3
FRESH = [SignSymmetric("fresh"), SignSymmetric("fresh", redraw="pool")]
each_redraw = pytest.mark.parametrize("rule", FRESH, ids=["exact", "pool"])


def net(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)
    ).to(dtype)


def backward(model: nn.Module, x: Tensor = X) -> None:
    model.zero_grad()
    F.cross_entropy(model(x.to(model[0].weight.dtype)), Y).backward()


def magnitudes(model: Any) -> list[Tensor]:
    return [model[i].feedback.magnitude.clone() for i in (2, 4)]


def prune_half(layer: nn.Module) -> None:
    prune.l1_unstructured(layer, "weight", 0.5)


def redrawn(model: nn.Module, action: Callable[[], Any]) -> bool:
    """Whether all layers but the first have new magnitudes afterwards; they change together."""
    before = magnitudes(model)
    action()
    changed = [not torch.equal(a, b) for a, b in zip(before, magnitudes(model), strict=True)]
    assert len(set(changed)) == 1
    return changed[0]


@each_redraw
@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, foreach=True),
        lambda p: torch.optim.SGD(p, lr=0.1, fused=True),
        lambda p: torch.optim.Adam(p, fused=True),
        lambda p: torch.optim.AdamW(p, foreach=True),
    ],
    ids=["sgd", "nesterov-foreach", "sgd-fused", "adam-fused", "adamw-foreach"],
)
def test_magnitudes_are_redrawn_once_per_step(rule: Rule, make: Any) -> None:
    model = apical.convert(net(), rule)
    optimizer = make(model.parameters())
    for step in range(1, 4):
        backward(model)
        assert redrawn(model, optimizer.step)
        # no layer uses the first layer's feedback, so its rule does nothing
        assert [model[i].feedback.history.count for i in (0, 2, 4)] == [0, step, step]
        assert not redrawn(model, lambda: apical.learn(model))  # the optimizer announced it
        bounds = [(6 / 11) ** 0.5, (6 / 9) ** 0.5]
        for magnitude, bound in zip(magnitudes(model), bounds, strict=True):
            assert magnitude.min() >= 0 and magnitude.max() <= bound
            assert magnitude.unique().numel() == magnitude.numel()


@each_redraw
def test_passes_evaluation_and_attacks_redraw_nothing(rule: Rule) -> None:
    model = apical.convert(net(), rule)
    state = copy.deepcopy(model.state_dict())

    def passes() -> None:
        for mode in (True, False):
            model.train(mode)
            backward(model)
            backward(model, X.clone().requires_grad_())
            with torch.no_grad():
                model(X)
            with apical.exact_gradients(model):
                backward(model)

    assert not redrawn(model, passes)
    assert_close(dict(model.state_dict()), dict(state), rtol=0, atol=0)


def test_a_step_that_a_scaler_skips_redraws_nothing() -> None:
    model = apical.convert(net(torch.float32), "brsf")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)

    def step(factor: float) -> None:
        optimizer.zero_grad()
        scaler.scale(factor * F.cross_entropy(model(X.float()), Y)).backward()
        scaler.step(optimizer)
        scaler.update()

    assert redrawn(model, lambda: step(1.0))
    assert not redrawn(model, lambda: step(float("inf")))
    assert redrawn(model, lambda: step(1.0))


def test_a_step_without_gradients_or_of_other_weights_redraws_nothing() -> None:
    model, other = apical.convert(net(), "brsf"), apical.convert(net(), "brsf")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(X)
    assert not redrawn(model, optimizer.step)
    backward(other)
    foreign = torch.optim.SGD(other.parameters(), lr=0.1)
    backward(model)
    assert not redrawn(model, foreign.step)
    assert redrawn(model, optimizer.step)


def test_only_the_layers_that_were_stepped_are_redrawn() -> None:
    model = apical.convert(net(), "brsf")
    optimizer = torch.optim.SGD(model[4].parameters(), lr=0.1)
    backward(model)
    before = magnitudes(model)
    optimizer.step()
    after = magnitudes(model)
    assert torch.equal(before[0], after[0]) and not torch.equal(before[1], after[1])


def test_accumulated_gradients_redraw_once() -> None:
    model = apical.convert(net(), "brsf")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = magnitudes(model)
    for part in (slice(3), slice(3, None)):
        F.cross_entropy(model(X[part]), Y[part]).backward()
        assert_close(magnitudes(model), before, rtol=0, atol=0)
    assert redrawn(model, optimizer.step)


def test_updates_by_hand_are_told_by_learn() -> None:
    model = apical.convert(net(), "brsf")

    def by_hand() -> None:
        backward(model)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * parameter.grad
        apical.learn(model)

    assert redrawn(model, by_hand)
    assert redrawn(model, by_hand)


def test_updates_by_hand_and_by_an_optimizer_give_the_same_stream() -> None:
    by_hand, stepped = (apical.convert(net(), "brsf") for _ in range(2))
    optimizer = torch.optim.SGD(stepped.parameters(), lr=0.1)
    for _ in range(3):
        backward(by_hand), backward(stepped)
        with torch.no_grad():
            for parameter in by_hand.parameters():
                parameter -= 0.1 * parameter.grad
        apical.learn(by_hand)
        optimizer.step()
        apical.learn(stepped)  # does nothing: the step was announced
        assert_close(dict(by_hand.state_dict()), dict(stepped.state_dict()), rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    "rule", [WeightMirror(initial=9), WeightMirror(every=2)], ids=["initial", "every"]
)
def test_a_layer_whose_feedback_is_used_late_starts_from_the_beginning(rule: Rule) -> None:
    """What a layer does at its first update does not depend on how long its feedback was unused."""
    seen = []
    for silent in (0, 1):
        model = apical.convert(net(), rule)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        model[0].requires_grad_(False)
        before = model[2].feedback.matrix.clone()
        for _ in range(silent):
            backward(model)
            optimizer.step()
        assert_close(model[2].feedback.matrix, before, rtol=0, atol=0)
        model[0].requires_grad_(True)
        backward(model)
        optimizer.step()
        assert not torch.equal(model[2].feedback.matrix, before)
        seen.append(model[2].feedback.matrix)
    assert_close(*seen, rtol=0, atol=0)


def test_learn_is_harmless_for_rules_that_do_nothing() -> None:
    for name in ("bp", "fa", "usf", "frsf", "dfa"):
        model = apical.convert(net(), name, example=X)
        state = copy.deepcopy(model.state_dict())
        backward(model)
        apical.learn(model)
        assert_close(dict(model.state_dict()), dict(state), rtol=0, atol=0)


def test_a_saved_model_resumes_the_same_stream() -> None:
    for rule in (*FRESH, FA(constrain_weights=True), KolenPollack()):
        model = apical.convert(net(), rule, seed=7)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            backward(model)
            optimizer.step()
        stream = io.BytesIO()
        torch.save(model.state_dict(), stream)
        stream.seek(0)
        resumed = apical.convert(net(), rule, seed=7)
        resumed.load_state_dict(torch.load(stream, weights_only=True))
        again = torch.optim.SGD(resumed.parameters(), lr=0.1)
        for _ in range(3):
            for m, o in ((model, optimizer), (resumed, again)):
                backward(m)
                o.step()
            assert_close(dict(resumed.state_dict()), dict(model.state_dict()), rtol=0, atol=0)


def test_other_seeds_and_other_layers_draw_other_magnitudes() -> None:
    plain = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    models = [apical.convert(copy.deepcopy(plain), "brsf", seed=seed) for seed in (0, 1)]
    drawn = [layer.feedback.magnitude for model in models for layer in model]
    assert len({tuple(m.flatten().tolist()) for m in drawn}) == 4


def test_constrained_weights_keep_their_norm_and_still_train() -> None:
    for rule in (
        BP(constrain_weights=True),
        FA(constrain_weights=True),
        DFA(constrain_weights=True),
        SignSymmetric("fresh", constrain_weights=True),
    ):
        model = net()
        with torch.no_grad():
            model[2].weight.mul_(3)  # the norm is that of the weights really used
        norms = [model[i].weight.norm().item() for i in (0, 2, 4)]
        apical.convert(model, rule, example=X)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
        first, losses = copy.deepcopy(model.state_dict()), []
        for _ in range(60):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(X), Y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            for i, norm in zip((0, 2, 4), norms, strict=True):
                assert model[i].weight.norm().item() == pytest.approx(norm, rel=1e-12)
        assert losses[-1] < 0.9 * losses[0]
        for i in (0, 2, 4):
            assert (model[i].weight - first[f"{i}.weight"]).abs().max() > 0.01


def test_a_constrained_weight_of_zero_stays_zero() -> None:
    model = net()
    nn.init.zeros_(model[2].weight)
    apical.convert(model, FA(constrain_weights=True))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        backward(model)
        optimizer.step()
        assert not model[2].weight.any()


def test_a_change_of_a_computed_weight_is_not_lost_in_silence() -> None:
    for hook in (parametrizations.weight_norm, prune_half):
        for rule in (KolenPollack(decay=0.1), FA(constrain_weights=True)):
            model = apical.convert(net(), rule)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            backward(model)
            hook(model[2])
            if hook is prune_half:  # the optimizer trains what the weight is now computed from
                with pytest.raises(RuntimeError, match="computed from other parameters"):
                    optimizer.step()
            with pytest.raises(ValueError, match="computed from other parameters"):
                backward(model)


def test_a_copy_of_a_parametrized_model_follows_its_optimizer() -> None:
    model = apical.convert(net(), "brsf")
    parametrizations.weight_norm(model[2])
    twin = copy.deepcopy(model)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    F.cross_entropy(twin(X), Y).backward()
    before = magnitudes(model)
    assert redrawn(twin, optimizer.step)
    assert_close(magnitudes(model), before, rtol=0, atol=0)


def test_a_reverted_model_is_no_longer_watched() -> None:
    model = net()
    norm = model[0].weight.norm().item()
    apical.revert(apical.convert(model, FA(constrain_weights=True)))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    backward(model)
    optimizer.step()
    assert model[0].weight.norm().item() != pytest.approx(norm, rel=1e-6)


def test_copies_hear_their_own_optimizer_only() -> None:
    model = apical.convert(net(), "brsf")
    twin = copy.deepcopy(model)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    backward(twin)
    before = magnitudes(model)
    assert redrawn(twin, optimizer.step)
    assert_close(magnitudes(model), before, rtol=0, atol=0)


def test_steps_taken_while_accumulating_with_frozen_layers() -> None:
    model = apical.convert(net(), "brsf")
    model[2].requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    backward(model)
    before = magnitudes(model)
    optimizer.step()
    after = magnitudes(model)
    assert torch.equal(before[0], after[0]) and not torch.equal(before[1], after[1])


def test_successive_exact_redraws_are_independent_and_pool_draws_are_not() -> None:
    """The pool is the stated price of `redraw="pool"`: its numbers come again."""
    seen = {}
    for rule in FRESH:
        model = apical.convert(net(), rule)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        drawn: list[float] = []
        for _ in range(40):
            drawn += model[4].feedback.magnitude.flatten().tolist()
            backward(model)
            optimizer.step()
        seen[rule.redraw] = len(set(drawn))
    assert seen["exact"] == 40 * 18
    assert seen["pool"] < 40 * 18
