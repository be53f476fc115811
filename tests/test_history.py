"""Which updates count: announced ones, those made by hand, both mixed; loads are none."""

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

import apical
from apical.core import products
from apical.core.adapters import parts
from apical.rules import (
    FA,
    AlignmentLoss,
    DirectKolenPollack,
    KolenPollack,
    LowDimensional,
    ProductFeedback,
    Rule,
    SignSymmetric,
    Sparse,
    WeightMirror,
)

X, Y = torch.linspace(-1, 1, 24, dtype=torch.float64).view(6, 4).sin(), torch.arange(6) % 3
FOLLOWERS = [
    KolenPollack(decay=0.1),
    LowDimensional(decay=0.1),
    LowDimensional(decay=0.1, follows="update"),
    ProductFeedback(decay=0.1),
    Sparse(KolenPollack(decay=0.1)),
]
each_follower = pytest.mark.parametrize("rule", FOLLOWERS, ids=apical.rules.spell)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)
    ).double()


def backward(model: nn.Module) -> None:
    model.zero_grad()
    F.cross_entropy(model(X), Y).backward()


def by_hand(model: nn.Module, *, through_data: bool = False) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                target = parameter.data if through_data else parameter
                target -= 0.1 * parameter.grad


def counts(model: Any) -> list[int]:
    return [model[i].feedback.history.count for i in (0, 2, 4)]


def gaps(model: Any) -> list[Tensor]:
    """B - W of Kolen-Pollack feedback, at every layer."""
    layers = [model[i] for i in (0, 2, 4)]
    return [(e.feedback.matrix - e.weight).detach().clone() for e in layers]


def sgd(model: nn.Module, lr: float = 0.1, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr, **options)


# Announced by an optimizer, and made by hand ----------------------------------------------------


def test_no_update_by_hand_is_skipped_after_announced_ones() -> None:
    for through_data in (False, True):
        for rule in (SignSymmetric("fresh"), WeightMirror(), KolenPollack()):
            model = apical.convert(net(), rule)
            optimizer, first = sgd(model), int(isinstance(rule, KolenPollack))
            for step in range(1, 3):  # after an optimizer's step no call of learn is needed
                backward(model)
                optimizer.step()
                assert counts(model) == [first * step, step, step]
            for step in range(3, 6):
                backward(model)
                by_hand(model, through_data=through_data)
                apical.learn(model)
                assert counts(model) == [first * step, step, step]
            backward(model)
            optimizer.step()
            apical.learn(model)
            assert counts(model) == [first * 6, 6, 6]


def test_an_update_by_hand_straight_after_a_step_counts_too() -> None:
    model = apical.convert(net(), KolenPollack(decay=0.1))
    start, optimizer = gaps(model), sgd(model)
    for _ in range(3):
        backward(model)
        optimizer.step()
        by_hand(model)  # of W and B alike, with the gradients that are still there
        apical.learn(model)
        apical.learn(model)  # tells of nothing new
    for gap, first in zip(gaps(model), start, strict=True):
        assert_close(gap, 0.9**6 * first, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_learn_after_a_step_leaves_every_bit_of_constrained_weights(dtype: torch.dtype) -> None:
    model = apical.convert(net().to(dtype), FA(constrain_weights=True))
    optimizer = sgd(model)
    for _ in range(5):
        model.zero_grad()
        F.cross_entropy(model(X.to(dtype)), Y).backward()
        optimizer.step()
        before = copy.deepcopy(model.state_dict())
        apical.learn(model)
        assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)
    by_hand(model)
    apical.learn(model)
    for i in (0, 2, 4):
        assert_close(model[i].weight.norm(), model[i].feedback.weight_norm, rtol=1e-6, atol=0)
        assert not torch.equal(model[i].weight, before[f"{i}.weight"])


class Attentive(nn.Module):
    """Two attentions of one packed weight, which holds three weights with feedback."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = (nn.MultiheadAttention(4, 2, batch_first=True) for _ in range(2))
        self.b.in_proj_weight = self.a.in_proj_weight
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x, x, x)[0]
        return self.b(h, h, h)[0]


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_of_a_packed_and_tied_weight_counts_once(fused: bool) -> None:
    model = apical.convert(Attentive(), KolenPollack(decay=0.1))
    feedback = model.a.feedback["q"]
    assert model.b.feedback["q"] is feedback and model.b.feedback["out"] is not feedback
    start = (feedback.matrix - model.a.in_proj_weight[:4]).detach().clone()
    optimizer = sgd(model, fused=fused)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(1, 2, 4).double()).square().sum().backward()
        optimizer.step()
        apical.learn(model)
    assert_close(feedback.matrix - model.a.in_proj_weight[:4], 0.9**3 * start, rtol=0, atol=1e-12)


def test_a_copy_has_no_update_of_its_own_yet() -> None:
    model = apical.convert(net(), "kp")
    backward(model)
    sgd(model).step()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        apical.learn(twin)
        assert counts(twin) == [1, 1, 1]
        backward(twin)
        by_hand(twin)
        apical.learn(twin)
        assert counts(twin) == [2, 2, 2] and counts(model) == [1, 1, 1]


def test_a_pass_of_a_data_parallel_replica_counts_for_its_original() -> None:
    model = apical.convert(net(), "brsf")
    replica = model[2].feedback._replicate_for_data_parallel()
    weight = model[2].weight
    x = torch.ones(1, 5).double().requires_grad_()
    products.apply(replica, parts(model[2])[""].op, x, weight, None)
    assert model[2].feedback.history.took_part


# Frozen weights ---------------------------------------------------------------------------------


@each_follower
def test_feedback_of_a_frozen_weight_rests(rule: Rule) -> None:
    model = apical.convert(net(), rule)
    optimizer = sgd(model, momentum=0.9, weight_decay=0.01)
    backward(model)
    optimizer.step()
    model[2].weight.requires_grad_(False)
    kept = copy.deepcopy([model[2].weight, *model[2].feedback.memory()])
    state = copy.deepcopy(model[4].feedback.memory())
    for told in (False, True):
        optimizer.zero_grad()
        backward(model)
        by_hand(model) if told else optimizer.step()
        apical.learn(model)
        for now, before in zip([model[2].weight, *model[2].feedback.memory()], kept, strict=True):
            assert torch.equal(now, before)
    moved = [not torch.equal(a, b) for a, b in zip(state, model[4].feedback.memory(), strict=True)]
    assert any(moved)
    model[2].weight.requires_grad_(True)
    backward(model)
    optimizer.step()
    assert not torch.equal(model[2].weight, kept[0])
    memory = model[2].feedback.memory()
    assert any(not torch.equal(a, b) for a, b in zip(memory, kept[1:], strict=True))


def test_feedback_with_a_loss_of_its_own_learns_of_a_frozen_weight() -> None:
    model = apical.convert(net(), "sa")
    model[2].weight.requires_grad_(False)
    backward(model)
    assert model[2].feedback.matrix.grad.any() and model[2].weight.grad is None


# Tied weights -----------------------------------------------------------------------------------


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)).double()
    model[2].weight = model[0].weight
    return model


def test_feedback_that_would_follow_only_part_of_a_weight_is_refused() -> None:
    for other in (KolenPollack(decay=0.1), "fa", "bp", "brsf", "ldfa"):
        model = tied()
        with pytest.raises(ValueError, match=r"0 \(Linear\): shares its weight with 2 \(Linear\)"):
            apical.convert(model, {"0": "kp", "2": other})
        assert type(model[0]) is nn.Linear
        packed = Attentive()
        with pytest.raises(ValueError, match=r"a \(MultiheadAttention\): shares its weight with b"):
            apical.convert(packed, {"a": "kp", "b": "ldfa"})


def test_feedback_does_not_follow_a_table_of_embeddings() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5, bias=False))
    model[1].weight = model[0].weight
    with pytest.raises(ValueError, match=r"1 \(Linear\): shares its weight with 0 \(Embedding\)"):
        apical.convert(model, "kp")
    assert len(apical.plan(tied(), {"0": "kp", "2": "fa"}).problems) == 1
    apical.convert(model, "usf")


# Checkpoints of the plain model -----------------------------------------------------------------


def load_plain(model: nn.Module) -> dict[str, Tensor]:
    """Load weights drawn anew; the feedback stays."""
    torch.manual_seed(7)
    other = nn.Sequential(
        *[nn.Linear(*s) if s else nn.Tanh() for s in ((4, 5), (), (5, 6), (), (6, 3))]
    )
    with pytest.warns(UserWarning, match="holds no feedback"):
        model.load_state_dict(other.double().state_dict())
    return copy.deepcopy(model.state_dict())


def test_a_loaded_weight_is_no_update_of_it() -> None:
    for within in (lambda rule: rule, Sparse):
        for decay in (0.0, 0.1):
            rule = LowDimensional(projection="fixed", decay=decay, follows="update")
            model: Any = apical.convert(net(), within(rule))
            optimizer = torch.optim.Adam(model.parameters(), 0.01)
            for load in (False, True):
                state = load_plain(model) if load else copy.deepcopy(model.state_dict())
                for _ in range(2):
                    backward(model)
                    optimizer.step()
                for i in (0, 2, 4):  # the first layer too, whose signal no layer uses
                    projection = model[i].feedback.projection
                    gap = model[i].feedback.factor - projection @ model[i].weight
                    first = state[f"{i}.feedback.factor"] - projection @ state[f"{i}.weight"]
                    assert_close(gap, (1 - decay) ** 2 * first, rtol=0, atol=1e-12)


def test_a_plain_checkpoint_leaves_feedback_and_counts_alone() -> None:
    for rule in (SignSymmetric("fresh"), WeightMirror(), LowDimensional(), KolenPollack()):
        model = apical.convert(net(), rule)
        optimizer = sgd(model)
        for _ in range(2):
            backward(model)
            optimizer.step()
        backward(model)  # counted as a pass; of weights that are gone
        before = {k: v for k, v in copy.deepcopy(model.state_dict()).items() if "feedback" in k}
        load_plain(model)
        apical.learn(model)  # nothing was updated
        optimizer.step()  # of gradients from before: no backward pass since
        after = model.state_dict()
        for name, tensor in before.items():
            if ".note_" not in name and not name.endswith((".factor", ".matrix")):
                assert torch.equal(after[name], tensor), name
        backward(model)
        optimizer.step()
        assert counts(model)[1:] == [3, 3]


def test_what_rules_noted_of_other_weights_is_forgotten() -> None:
    model = apical.convert(net(), LowDimensional())
    fresh = apical.convert(net(), LowDimensional())
    backward(model)
    load_plain(model), load_plain(fresh)
    for each in (model, fresh):
        backward(each)
    notes = [[note for i in (2, 4) for note in m[i].feedback.notes] for m in (model, fresh)]
    assert notes[0][0].any()
    assert_close(*notes, rtol=0, atol=0)


def test_the_norm_kept_is_that_of_the_loaded_weights() -> None:
    model = apical.convert(net(), FA(constrain_weights=True))
    state = load_plain(model)
    backward(model)
    sgd(model).step()
    for i in (0, 2, 4):
        norm = state[f"{i}.weight"].norm()
        assert_close(model[i].weight.norm(), norm, rtol=1e-12, atol=0)


def test_a_plain_checkpoint_of_a_compiled_model_is_no_update_either() -> None:
    rule = LowDimensional(projection="fixed", decay=0, follows="update")
    models = [apical.convert(net(), rule) for _ in range(2)]
    called = [models[0], torch.compile(models[1], fullgraph=True, backend="aot_eager")]
    for model, call in zip(models, called, strict=True):
        optimizer = sgd(model)
        for load in (False, True):
            if load:
                load_plain(model)
            for _ in range(2):
                optimizer.zero_grad()
                F.cross_entropy(call(X), Y).backward()
                optimizer.step()
    seen, expected = (dict(model.state_dict()) for model in models)
    assert_close(seen, expected, rtol=0, atol=1e-12)


# Optimizers that train feedback -----------------------------------------------------------------


def warned(model: nn.Module, step: Callable[[], Any], steps: int = 6) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(steps):
            backward(model)
            step()
    return [str(warning.message) for warning in caught]


def test_feedback_may_have_an_optimizer_of_its_own() -> None:
    for first in ("weights", "feedback"):
        for rule in (DirectKolenPollack(), KolenPollack()):
            model = apical.convert(net(), rule, example=X)
            pair = [
                torch.optim.SGD(apical.forward_parameters(model), 0.1),
                torch.optim.SGD(apical.feedback_parameters(model), 0.1),
            ]
            if first == "feedback":
                pair.reverse()
            both = lambda pair=pair: [optimizer.step() for optimizer in pair]  # noqa: E731
            assert warned(model, both) == []


def test_other_options_of_the_other_optimizer_are_told_of() -> None:
    model = apical.convert(net(), "kp")
    weights = torch.optim.SGD(apical.forward_parameters(model), 0.1)
    feedback = torch.optim.SGD(apical.feedback_parameters(model), 0.01)
    (text,) = warned(model, lambda: [weights.step(), feedback.step()])
    assert "different options (lr)" in text and text.startswith("0, 2, 4: ")


def test_steps_of_biases_say_nothing_about_feedback() -> None:
    model = apical.convert(net(), "kp")
    biases = torch.optim.SGD([model[i].bias for i in (0, 2, 4)], 0.1)
    assert warned(model, biases.step) == []


# A gradient scaler ------------------------------------------------------------------------------


def scaled_steps(model: nn.Module, scaler: Any, optimizers: Any, scaled: int) -> list[str]:
    """Warnings of some steps with a scaler; the first `scaled` optimizers step through it."""

    def step() -> None:
        for optimizer in optimizers:
            optimizer.zero_grad()
        scaler.scale(F.cross_entropy(model(X), Y)).backward()
        for place, optimizer in enumerate(optimizers):
            scaler.step(optimizer) if place < scaled else optimizer.step()
        scaler.update()

    return warned(model, step)


def test_a_gradient_scaler_is_told_to_take_alignment_losses_away() -> None:
    for fused in (False, True):
        for kind in ("symmetric", "activation"):
            model = apical.convert(net(), AlignmentLoss(kind))
            scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
            (text,) = scaled_steps(model, scaler, [sgd(model, fused=fused)], scaled=1)
            assert "divides the gradients by 1024" in text and "an optimizer of their own" in text


@pytest.mark.parametrize("scale", [None, 1.0])
def test_no_scale_draws_no_warning(scale: float | None) -> None:
    model = apical.convert(net(), "sa")
    scaler = torch.amp.GradScaler("cpu", init_scale=scale or 2.0, enabled=scale is not None)
    assert scaled_steps(model, scaler, [sgd(model)], scaled=1) == []


def test_the_remedy_for_a_gradient_scaler_is_right() -> None:
    models = [apical.convert(net(), AlignmentLoss(decay=0.1, amp=0.2)) for _ in range(2)]
    for model, scale in zip(models, (1024.0, 1.0), strict=True):
        pair = [
            torch.optim.SGD(apical.forward_parameters(model), 0.1),
            torch.optim.SGD(apical.feedback_parameters(model), 0.1),
        ]
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        assert scaled_steps(model, scaler, pair, scaled=1) == []
    seen, expected = (dict(model.state_dict()) for model in models)
    assert_close(seen, expected, rtol=1e-12, atol=0)
