"""Another rule under way: weights and optimizer state stay, feedback comes and goes."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

import apical
from apical.core.converted import feedback_parameters
from apical.core.layers import is_converted
from apical.rules import DFA, FA, RULES, KolenPollack, SignSymmetric

X = torch.randn(8, 4, generator=torch.Generator().manual_seed(3)).double()
Y = torch.arange(8) % 3


def net() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)
        return nn.Sequential(*layers).double()


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        with apical.labels(model, Y):
            F.cross_entropy(model(X), Y).backward()
        optimizer.step()


def speeds(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Momentum of every parameter that has one, by name."""
    named = model.named_parameters()
    return {
        name: optimizer.state[p]["momentum_buffer"].clone()
        for name, p in named
        if p in optimizer.state
    }


def everything(model: nn.Module, *optimizers: torch.optim.Optimizer) -> dict[str, Any]:
    """All that a switch might change."""
    return {
        "state": {key: value.clone() for key, value in model.state_dict().items()},
        "classes": [f"{type(m)} {id(m)}" for m in model.modules()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
        "groups": [[list(map(id, g["params"])) for g in o.param_groups] for o in optimizers],
        "optimizers": [copy.deepcopy(o.state_dict()) for o in optimizers],
    }


def assert_unchanged(before: dict[str, Any], *things: Any) -> None:
    after = everything(*things)
    for what in ("classes", "hooks", "groups"):
        assert after[what] == before[what]
    for what in ("state", "optimizers"):
        assert_close(after[what], before[what], rtol=0, atol=0)


def members(optimizer: torch.optim.Optimizer) -> list[set[int]]:
    return [set(map(id, group["params"])) for group in optimizer.param_groups]


# What stays ---------------------------------------------------------------------------------------


def test_weights_and_their_momentum_stay_bitwise_and_the_rule_is_the_new_one() -> None:
    for name in RULES:
        model = net()
        optimizer = sgd(model)
        train(model, optimizer)
        weights, momentum = copy.deepcopy(model.state_dict()), speeds(model, optimizer)
        before = torch.get_rng_state()
        assert apical.switch(model, name, optimizer=optimizer, example=X) is model
        assert torch.equal(before, torch.get_rng_state())
        assert all(torch.equal(weights[key], model.state_dict()[key]) for key in weights)
        after = speeds(model, optimizer)
        assert after.keys() == momentum.keys()
        assert all(torch.equal(momentum[key], after[key]) for key in momentum)
        # the gradients are those of a model converted from the start
        twin = net()
        twin.load_state_dict(weights)
        apical.convert(twin, name, example=X)
        for one in (model, twin):
            one.zero_grad()
            with apical.labels(one, Y):
                F.cross_entropy(one(X), Y).backward()
        expected = dict(twin.named_parameters())
        for key, parameter in model.named_parameters():
            assert_close(parameter.grad, expected[key].grad, rtol=0, atol=0)


def test_a_heavy_ball_goes_on_under_the_new_rule() -> None:
    """Backprop for two steps, then FA for two, written out for the first layer."""
    model = net()
    optimizer = sgd(model)
    weight = model[0].weight.detach().clone()
    speed = torch.zeros_like(weight)
    for step in range(4):
        if step == 2:
            apical.switch(model, "fa", optimizer=optimizer)
        train(model, optimizer, 1)
        speed = 0.9 * speed + model[0].weight.grad
        weight = weight - 0.1 * speed
        assert_close(model[0].weight.detach(), weight, rtol=0, atol=1e-15)


def test_fresh_feedback_starts_without_momentum() -> None:
    """B and W get the same gradient: their speeds differ by what W had before."""
    for fused in (False, True):
        for steps in (0, 2):
            model = net()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=fused)
            train(model, optimizer, steps)
            before = speeds(model, optimizer).get("2.weight", torch.zeros(6, 5).double())
            apical.switch(model, KolenPollack(decay=0.0), optimizer=optimizer)
            train(model, optimizer, 3)
            after = speeds(model, optimizer)
            assert_close(after["2.weight"] - after["2.feedback.matrix"], 0.9**3 * before)


def test_from_backprop_to_fa_to_kolen_pollack_and_back() -> None:
    model = net()
    optimizer = sgd(model)
    plain = everything(model, optimizer)
    train(model, optimizer)
    for rule, count in (("fa", 6), ("kp", 9), ("bp", 6)):
        apical.switch(model, rule, optimizer=optimizer)
        assert len(optimizer.param_groups[0]["params"]) == count
        train(model, optimizer)
        assert len(optimizer.state) == count
        assert set(optimizer.state) == set(model.parameters())
    after = everything(model, optimizer)
    assert after["state"].keys() == plain["state"].keys()
    for what in ("classes", "hooks", "groups"):
        assert after[what] == plain[what]


def test_feedback_whose_rule_stays_keeps_what_it_learned() -> None:
    stays = {"2": "kp", "4": SignSymmetric("fresh")}
    model, other = (apical.convert(net(), {**stays, "*": "fa"}) for _ in range(2))
    optimizer = sgd(model)
    train(model, optimizer)
    learned, momentum = model[2].feedback, speeds(model, optimizer)
    apical.switch(model, {**stays, "*": "dfa"}, optimizer=optimizer, example=X, seed=5)
    assert model[2].feedback is learned
    after = speeds(model, optimizer)
    assert torch.equal(after["2.feedback.matrix"], momentum["2.feedback.matrix"])
    before = learned.matrix.detach().clone()
    train(model, optimizer)
    assert not torch.equal(learned.matrix, before)
    # the stream of draws goes on where it was: one draw for each update
    train(other, sgd(other), 6)
    assert torch.equal(model[4].feedback.magnitude, other[4].feedback.magnitude)


def test_broadcast_feedback_that_stays_goes_on_under_the_new_star() -> None:
    model = apical.convert(net(), "dfa", example=X)
    kept = model[2].feedback.matrix
    apical.switch(model, {"4": "fa", "*": "dfa"})
    assert (
        model[2].feedback.matrix is kept
        and model[2].feedback.broadcast is model[0].feedback.broadcast
    )
    assert model[0].feedback.broadcast.error_shape == (3,)  # an output of another size is refused
    F.cross_entropy(model(X), Y).backward()
    # layer 2 gets its input's signal from the error; 0 learns from it
    model[0].weight.grad.zero_()
    scores = model(X)
    error = torch.autograd.grad(F.cross_entropy(scores, Y), scores, retain_graph=True)[0]
    hidden = torch.tanh(model[0](X)).detach()
    expected = ((error @ kept) * (1 - hidden**2)).t() @ X
    F.cross_entropy(scores, Y).backward()
    assert_close(model[0].weight.grad, expected)
    apical.switch(model, "bp")
    assert not model._forward_hooks and not model._forward_pre_hooks


def test_layers_that_share_a_weight_share_its_feedback_still() -> None:
    shared = nn.Linear(4, 4).double()
    twin = nn.Linear(4, 4).double()
    twin.weight = shared.weight
    model = nn.Sequential(shared, nn.Tanh(), twin, nn.Tanh(), nn.Linear(4, 3).double())
    apical.convert(model, {"[02]": "kp"})
    kept = model[0].feedback
    optimizer = sgd(model)
    apical.switch(model, "kp", optimizer=optimizer)
    assert model[0].feedback is kept and model[2].feedback is kept
    assert len(optimizer.param_groups[0]["params"]) == len(list(model.parameters()))


def test_a_rule_that_returns_starts_from_the_feedback_it_started_from() -> None:
    model = apical.convert(net(), "fa", seed=7)
    first = model[2].feedback.matrix.clone()
    apical.switch(model, "bp", seed=7)
    apical.switch(model, "fa", seed=7)
    assert torch.equal(model[2].feedback.matrix, first)
    apical.switch(model, "bp")
    apical.switch(model, "fa", seed=8)
    assert not torch.equal(model[2].feedback.matrix, first)


# The optimizer ------------------------------------------------------------------------------------


def test_trained_feedback_joins_the_group_of_its_weight() -> None:
    model = net()
    groups = [
        {"params": list(model[0].parameters()), "lr": 0.1},
        {"params": [*model[2].parameters(), *model[4].parameters()], "lr": 0.01},
    ]
    optimizer = torch.optim.SGD(groups, momentum=0.9, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    train(model, optimizer)
    apical.switch(model, "kp", optimizer=optimizer)
    first, second = members(optimizer)
    assert id(model[0].feedback.matrix) in first
    assert {id(model[2].feedback.matrix), id(model[4].feedback.matrix)} < second
    train(model, optimizer)
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.005]


def test_an_empty_group_stays_and_several_optimizers_are_served() -> None:
    model = apical.convert(net(), "kp")
    first = torch.optim.SGD(
        [{"params": [model[0].weight, model[0].bias]}, {"params": [model[0].feedback.matrix]}],
        lr=0.1,
        momentum=0.9,
    )  # fmt: skip
    second = torch.optim.Adam([*model[2].parameters(), *model[4].parameters()])
    for optimizer in (first, second):
        train(model, optimizer)
    apical.switch(model, "bp", optimizer=(first, second))
    assert [len(group["params"]) for group in first.param_groups] == [2, 0]
    assert set(first.state) | set(second.state) == set(model.parameters())
    for optimizer in (first, second):
        train(model, optimizer)
    apical.switch(model, "kp", optimizer=(first, second))
    assert id(model[0].feedback.matrix) in members(first)[0]
    assert id(model[4].feedback.matrix) in members(second)[0]


def test_named_groups_keep_their_names() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1, momentum=0.9)
    plain = list(optimizer.param_groups[0]["param_names"])
    apical.switch(model, "kp", optimizer=optimizer)
    added = [f"{layer}.feedback.matrix" for layer in (0, 2, 4)]
    assert optimizer.param_groups[0]["param_names"] == plain + added
    apical.switch(model, "bp", optimizer=optimizer)
    assert optimizer.param_groups[0]["param_names"] == plain


def test_attention_has_four_matrices_in_the_groups_of_their_weights() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.MultiheadAttention(4, 2))
    attention = model[1]
    groups = [{"params": [attention.in_proj_weight]}, {"params": [attention.out_proj.weight]}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    apical.switch(model, {"1": "kp"}, optimizer=optimizer)
    assert [len(group["params"]) for group in optimizer.param_groups] == [4, 2]
    kept = attention.feedback["k"]
    apical.switch(model, {"1": "kp", "0": "fa"}, optimizer=optimizer)
    assert attention.feedback["k"] is kept
    assert [len(group["params"]) for group in optimizer.param_groups] == [4, 2]


def test_without_an_optimizer_none_is_changed() -> None:
    model = net()
    optimizer = sgd(model)
    apical.switch(model, "kp")
    assert not members(optimizer)[0] & set(map(id, feedback_parameters(model)))


# Bad input: nothing is changed --------------------------------------------------------------------


class Sliced(torch.optim.SGD):
    """Looks like torch's optimizer of that name, which needs a process group to be made."""


Sliced.__name__ = "ZeroRedundancyOptimizer"


def test_bad_rules_change_nothing() -> None:
    for begin, rule, told in (
        ("kp", {"9": "fa", "*": "bp"}, "'9' matches no layer; near: '0'"),
        ("kp", "faa", "unknown rule 'faa'"),
        ("dfa", {"rule": "ldfa", "rank": 4}, "rank=4 is above 3"),
        ("fa", {"rule": "dldfa", "rank": 4}, "rank=4 is above 3, the number of the model's"),
        ("bp", {}, "an empty mapping"),
    ):
        model = apical.convert(net(), begin, example=X)
        optimizer = sgd(model)
        train(model, optimizer)
        before = everything(model, optimizer)
        with pytest.raises(ValueError, match=told):
            apical.switch(model, rule, optimizer=optimizer, example=X)
        assert_unchanged(before, model, optimizer)


def test_what_was_tried_out_does_not_act_on_updates_of_the_weights_it_shared() -> None:
    model, other = (apical.convert(net(), "kp") for _ in range(2))
    unfit = torch.optim.SGD([model[0].weight], lr=0.1)
    with pytest.raises(ValueError, match="would be trained") as caught:
        apical.switch(model, KolenPollack(constrain_weights=True), optimizer=unfit)
    for one in (model, other):
        train(one, sgd(one))
    assert_close(model.state_dict(), other.state_dict(), rtol=0, atol=0)
    assert caught.tb is not None  # which keeps what was tried out alive


def test_bad_optimizers_change_nothing() -> None:
    for make, told in (
        (lambda m: torch.optim.SGD([m[0].weight], lr=0.1), r"2\.feedback\.matrix would be trained"),
        (lambda m: torch.optim.LBFGS(m.parameters()), "LBFGS keeps one memory"),
        (lambda m: Sliced(m.parameters(), lr=0.1), "has distributed its parameters"),
        (lambda m: "sgd", "optimizer: str is not a torch.optim.Optimizer"),
    ):
        model = net()
        before, optimizer = everything(model), make(model)
        with pytest.raises(ValueError, match=told):
            apical.switch(model, "kp", optimizer=optimizer)
        assert_unchanged(before, model)


def test_lbfgs_may_stay_where_no_feedback_is_trained() -> None:
    model = net()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=2)
    apical.switch(model, "fa", optimizer=optimizer)
    assert is_converted(model[0])


def test_wrapped_models_are_refused_with_what_to_do() -> None:
    model = net()
    compiled = torch.compile(model, backend="eager")
    with pytest.raises(ValueError, match=r"compiled\._orig_mod.*compile it again"):
        apical.switch(compiled, "fa")
    shell = nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel)
    with pytest.raises(ValueError, match=r"Switch model\.module on every process.*wrap it again"):
        apical.switch(shell, "fa")
    with pytest.raises(ValueError, match="convert the model first, then compile it"):
        apical.switch(nn.Sequential(compiled), "fa")
    assert not is_converted(model[0])


def test_inside_exact_gradients_it_is_refused() -> None:
    model = apical.convert(net(), "fa")
    with apical.exact_gradients(model), pytest.raises(ValueError, match="leave the block first"):
        apical.switch(model, "kp")


def test_a_parametrized_layer_is_refused_before_anything_changes() -> None:
    model = apical.convert(net(), "kp")
    nn.utils.parametrizations.weight_norm(model[2])
    optimizer = sgd(model)
    before = everything(model, optimizer)
    with pytest.raises(ValueError, match="its class was changed after the conversion"):
        apical.switch(model, "fa", optimizer=optimizer)
    assert_unchanged(before, model, optimizer)


def test_a_model_that_keeps_what_it_computed_can_be_switched() -> None:
    model = net()
    model.register_forward_hook(lambda m, args, y: setattr(m, "seen", y))
    model(X)
    apical.switch(model, KolenPollack(), optimizer=sgd(model))
    assert model[0].feedback.rule == KolenPollack()


def test_feedback_that_waits_for_its_size_gets_it_from_an_example() -> None:
    model = apical.convert(net(), "dfa")
    apical.switch(model, {"0": FA(), "*": DFA()})
    assert model[4].feedback.pending
    apical.switch(model, {"0": FA(), "*": DFA()}, example=X)
    assert not model[4].feedback.pending
