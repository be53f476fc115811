"""Plan, convert, revert, describe: nothing is silent, nothing is left half done."""

import copy
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm
from torch.testing import assert_close

import apical
from apical.core.layers import converted_layers, is_converted
from apical.rules import BP, DFA, FA, SignSymmetric

HIDDEN = ("brsf", "dfa", "fa", "frsf", "kp", "usf")
ALL = ("bp", *HIDDEN)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 2))


def convnet() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 8),
        nn.LayerNorm(8), nn.PReLU(), nn.Linear(8, 3),
    )  # fmt: skip


def actions(model: nn.Module, rule: Any, **options: Any) -> dict[str, tuple[str, str]]:
    return {row.layer: (row.action, row.why) for row in apical.plan(model, rule, **options).rows}


# Plan and patterns -------------------------------------------------------------------------------


def test_a_plan_lists_every_layer_with_weights_and_changes_nothing() -> None:
    model = convnet()
    keys, kinds = list(model.state_dict()), [type(m) for m in model.modules()]
    found = actions(model, "fa")
    assert list(found) == ["0", "1", "4", "5", "6", "7"]
    converted = [name for name, (action, _) in found.items() if action == "convert"]
    assert converted == ["0", "4", "7"]
    assert found["1"][1].startswith("norm") and found["5"][1].startswith("norm")
    assert found["6"][1].startswith("elementwise")
    assert keys == list(model.state_dict()) and kinds == [type(m) for m in model.modules()]
    lines = [line.split() for line in str(apical.plan(model, "fa")).splitlines()]
    assert lines[0] == "layer | type | action | rule | bytes | why".split()
    assert lines[2] == "0 | Conv2d | convert | fa | 144 | every layer".split()
    assert len({line.index("|") for line in str(apical.plan(model, "fa")).splitlines()}) == 1


def test_the_first_matching_pattern_wins() -> None:
    def wide(name: str, module: nn.Module) -> bool:
        return getattr(module, "out_features", 0) > 4

    model = apical.convert(mlp(), {wide: "dfa", "2": SignSymmetric("fixed"), "*": FA()})
    rules = {name: layer.feedback.rule for name, layer in converted_layers(model)}
    assert rules == {"0": DFA(), "2": SignSymmetric("fixed"), "4": FA()}


def test_layers_that_no_pattern_names_keep_their_exact_gradient() -> None:
    model = apical.convert(mlp(), {"2": "fa"})
    assert [name for name, _ in converted_layers(model)] == ["2"]
    assert actions(mlp(), {"2": "fa"})["0"] == ("keep", "no pattern names it: exact gradient")
    assert actions(mlp(), {"0": BP(), "*": "fa"})["0"] == ("keep", "rule BP: exact gradient")


def test_misspelt_rules_and_patterns_are_named_with_their_neighbours() -> None:
    for rule, text in (
        ("fq", "'fq'.*'fa'"),
        ({"*": "dffa"}, "'dffa'.*'dfa'"),
        ({"layer4.*": "fa"}, r"pattern 'layer4\.\*' matches no layer; near: '"),
        ({"features": "fa", "*": "bp"}, "'features' matches no layer; near: '0', '2', '4'"),
        ({"*": "fa", "2": "dfa"}, "pattern '2' comes too late.*'2'.*put it first"),
        ({"1": "fa", "*": "bp"}, "'1' matches no layer"),
        ({}, "empty mapping"),
        (3, "a rule is a name or a Rule object, not 3"),
        ({"rule": "fa", "initt": "xavier"}, "initt.*init"),
        ("fa(init='kaiming')", r"takes no options; .* rules\.FA\(\.\.\.\), or .*'rule': 'fa'"),
        (FA, r"FA is a class; a rule is an instance: FA\(\)"),
        ({nn.Linear: "fa"}, r"not the class Linear; .* isinstance\(layer, Linear\)"),
        ({3: "fa"}, r"a pattern is a name such as 'layer4\.\*', or a predicate .* not 3"),
    ):
        model = mlp()
        with pytest.raises(ValueError, match=text):
            apical.convert(model, rule)
        assert not list(converted_layers(model))


def test_a_pattern_for_a_layer_without_a_rule_says_so() -> None:
    with pytest.raises(ValueError, match="'1' matches only layers that no rule converts: '1'"):
        apical.convert(convnet(), {"1": "fa", "*": "dfa"})


def test_all_problems_come_at_once_and_nothing_is_converted() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.ones(3, 3))

    plural = nn.ParameterList([torch.ones(3, 3)])
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "odd": Odd(), "list": plural})
    with pytest.raises(ValueError, match="nothing was converted") as raised:
        apical.convert(model, {"nowhere": "fa", "*": "fa"})
    lines = str(raised.value).splitlines()[1:]
    assert len(lines) == 3
    assert any("odd (Odd): holds weights (table (3, 3))" in line for line in lines)
    assert any("list (ParameterList): is a list of weights (0 (3, 3))" in line for line in lines)
    assert any("'nowhere' matches no layer" in line for line in lines)
    assert not is_converted(model["a"])


NO_MODEL: dict[str, Callable[[Any], Any]] = {
    "convert": lambda given: apical.convert(given, "fa"),
    "plan": lambda given: apical.plan(given, "fa"),
    "describe": apical.describe,
    "revert": apical.revert,
    "learn": apical.learn,
    "cite": apical.cite,
    "exact_gradients": lambda given: apical.exact_gradients(given).__enter__(),
    "labels": lambda given: apical.labels(given, torch.zeros(1)).__enter__(),
    "feedback_parameters": lambda given: list(apical.feedback_parameters(given)),
    "forward_parameters": lambda given: list(apical.forward_parameters(given)),
    "alignment": apical.probes.alignment,
    "gradient_alignment": lambda given: apical.probes.gradient_alignment(
        given, F.cross_entropy, torch.ones(2, 4), torch.tensor([0, 1])
    ),
}


def test_what_is_no_model_is_named() -> None:
    for verb in NO_MODEL.values():
        with pytest.raises(ValueError, match="the model is a torch.nn.Module, not 'fa'"):
            verb("fa")
        with pytest.raises(ValueError, match="the model is a torch.nn.Module, not a list"):
            verb([torch.ones(2, 3), torch.ones(2, 3)])
        with pytest.raises(
            ValueError, match=r"Linear is a class; a model is an instance.*Linear\("
        ):
            verb(nn.Linear)


def test_options_out_of_range_change_nothing() -> None:
    model = mlp()
    with pytest.raises(ValueError, match="on_unsupported='skip' is neither 'error' nor 'keep'"):
        apical.convert(model, "fa", on_unsupported="skip")
    with pytest.raises(ValueError, match="seed='3' is no whole number"):
        apical.convert(model, "fa", seed="3")
    assert not list(converted_layers(model))
    with pytest.raises(ValueError, match="labels are a tensor, not a list"):
        apical.labels(model, [0, 1]).__enter__()


# Kinds of layers ----------------------------------------------------------------------------------


class Table(nn.Module):
    """A module with a matrix whose use is unknown."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.ones(3, 3))


def test_an_unknown_leaf_with_weights_is_refused_or_kept_knowingly() -> None:
    model = nn.ModuleDict({"t": Table(), "l": nn.Linear(2, 2)})
    with pytest.raises(ValueError, match=r"t \(Table\): holds weights \(table \(3, 3\).*register"):
        apical.convert(model, "fa")
    apical.convert(model, "fa", on_unsupported="keep")
    assert [name for name, _ in converted_layers(model)] == ["l"]
    assert "kept knowingly" in actions(model, "fa", on_unsupported="keep")["t"][1]


def test_parameters_that_a_container_holds_are_listed() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cls_token = nn.Parameter(torch.zeros(1, 1, 4))
            self.pos_embed = nn.Parameter(torch.zeros(1, 3, 4))
            self.layer = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
            return self.layer(x)[:, 0]

    model = Tokens()
    action, why = actions(model, "fa")[""]
    assert action == "keep"
    assert "cls_token (1, 1, 4), pos_embed (1, 3, 4)" in why
    apical.convert(model, "fa")
    assert "cls_token" in str(apical.describe(model))
    model(torch.ones(2, 2, 4)).sum().backward()
    assert model.cls_token.grad.any() and model.pos_embed.grad.any()


def test_embeddings_are_kept_with_the_reason() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 2))
    assert actions(model, "fa")["0"] == ("keep", "embedding: its input has no gradient to replace")
    apical.convert(model, "fa")
    model(torch.tensor([1, 2])).sum().backward()
    assert model[0].weight.grad.any()


def test_a_root_layer_is_converted_and_reverted() -> None:
    for name in HIDDEN:
        layer = nn.Linear(3, 2)
        assert apical.convert(layer, name) is layer
        assert isinstance(layer, nn.Linear) and is_converted(layer)
        layer(torch.ones(1, 3, requires_grad=True)).sum().backward()
        assert str(apical.describe(layer)).splitlines()[2].startswith("(root)")
        assert type(apical.revert(layer)) is nn.Linear


def test_a_child_that_is_none_is_no_obstacle() -> None:
    model = mlp()
    model.downsample = None
    model.register_module("extra", None)
    apical.convert(model, "fa")
    assert len(list(converted_layers(model))) == 3


class Overridden(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class OverriddenConv(nn.Conv2d):
    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x, weight - weight.mean(), bias)


class Named(nn.Linear):
    """A subclass that adds a name, no computation."""

    title = "named"


@pytest.mark.parametrize("layer", [Overridden(2, 2), OverriddenConv(1, 1, 1)])
def test_a_subclass_with_a_forward_of_its_own_is_refused_by_name(layer: nn.Module) -> None:
    with pytest.raises(ValueError, match=rf"{type(layer).__name__}\): overrides (_conv_)?forward"):
        apical.convert(nn.Sequential(layer), "fa")


def test_a_forward_of_the_object_itself_is_refused_before_and_kept_after() -> None:
    """As accelerate's hooks set it, which would run in the place of the converted one."""
    for layer, method in ((nn.Linear(2, 2), "forward"), (nn.Conv1d(2, 2, 1), "_conv_forward")):
        calls: list[Any] = []

        def hook(layer: nn.Module = layer, method: str = method, calls: list[Any] = calls) -> None:
            own = getattr(layer, method)
            setattr(layer, method, lambda *args: (calls.append(1), own(*args))[1])

        hook()
        with pytest.raises(ValueError, match=rf"0 \(\w+\): has a {method} of its own, not of its"):
            apical.convert(nn.Sequential(layer), "fa")
        delattr(layer, method)
        apical.convert(nn.Sequential(layer), "fa")
        hook()
        x = torch.ones(1, 2, 1 if method == "_conv_forward" else 2, requires_grad=True)
        layer(x).sum().backward()
        sent = layer.feedback.matrix.sum(0).flatten()
        assert calls and torch.equal(x.grad.flatten()[:2], sent)


def test_a_subclass_without_is_converted_and_stays_what_it_is() -> None:
    model = apical.convert(nn.Sequential(Named(2, 2)), "fa")
    assert isinstance(model[0], Named) and model[0].title == "named"
    assert type(copy.deepcopy(model)[0]) is type(model[0])
    assert type(pickle.loads(pickle.dumps(model))[0]) is type(model[0])
    assert type(apical.revert(model)[0]) is Named


class Owner(nn.Linear):
    """Has a child of the name that conversion adds."""

    def __init__(self) -> None:
        super().__init__(3, 3)
        self.feedback = nn.Linear(3, 3)


class Method(nn.Linear):
    """Has a method of that name."""

    def feedback(self) -> str:
        return "own"


@pytest.mark.parametrize("layer", [Owner(), Method(3, 3)], ids=["child", "method"])
def test_a_layer_with_feedback_of_its_own_is_refused_by_name(layer: nn.Module) -> None:
    model, own = nn.Sequential(layer, nn.Linear(3, 2)), layer.feedback
    refused = rf"0 \({type(layer).__name__}\): has a 'feedback' of its own"
    with pytest.raises(ValueError, match=refused):
        apical.convert(model, "fa")
    apical.convert(model, {"1": "fa"})
    apical.convert(apical.revert(model), "fa", on_unsupported="keep")
    assert is_converted(model[1]) and not is_converted(layer) and layer.feedback == own


def test_lazy_layers_are_refused_until_they_are_built() -> None:
    model = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"0 \(LazyLinear\): is not initialised; run one forward"):
        apical.convert(model, "fa")
    model(torch.ones(1, 4))
    apical.convert(model, "fa")
    assert is_converted(model[0])
    for rule in ("fa", "dfa"):  # a norm has no rule, and may be built by the first batch
        model = nn.Sequential(nn.Linear(4, 3), nn.LazyBatchNorm1d(), nn.Linear(3, 2))
        with pytest.raises(ValueError, match="1.weight is not initialised; run one forward"):
            apical.convert(model, rule, example=torch.ones(2, 4))
        apical.convert(model, rule)(torch.ones(2, 4)).sum().backward()


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_weights_that_hooks_have_computed_are_no_obstacle_to_an_example() -> None:
    """torch copies no tensor with a graph, which a call leaves in the place of such a weight."""
    for computed in (weight_norm, spectral_norm, partial(prune.l1_unstructured, amount=0.5)):
        for rule in ("fa", "dfa"):
            model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
            x = torch.randn(3, 4)
            computed(model[2], name="weight")
            model(x).sum().backward()
            assert apical.plan(model, rule, example=x).problems == ()
            apical.convert(model, rule, example=x)(x).sum().backward()
            assert type(model[2]).__name__ == "FeedbackLinear" and model[0].weight.grad.any()


def test_parametrized_layers_are_refused_and_may_be_parametrized_later() -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 3)), nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"0 \(.*\): is parametrized \(weight by .*convert first"):
        apical.convert(model, "fa")
    model = apical.convert(mlp().double(), "usf")
    x, y = torch.randn(6, 4).double(), torch.arange(6) % 2
    parametrizations.weight_norm(model[2])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    with pytest.raises(ValueError, match="remove_parametrizations"):
        apical.revert(model)
    assert is_converted(model[0])  # nothing was reverted
    parametrize.remove_parametrizations(model[2], "weight")
    assert type(apical.revert(model)[2]) is nn.Linear


def test_meta_and_complex_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="is on the meta device"):
        apical.convert(nn.Linear(2, 2, device="meta"), "fa")
    with pytest.raises(ValueError, match="has complex weights"):
        apical.convert(nn.Linear(2, 2, dtype=torch.complex64), "fa")


@pytest.mark.parametrize(
    ("wrap", "text"),
    [
        (lambda m: nn.DataParallel(m), "DataParallel.*convert the model first, then wrap"),
        (lambda m: torch.compile(m, backend="eager"), "convert the model first, then compile"),
    ],
)
def test_wrapped_models_are_refused_with_the_order(wrap: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        apical.convert(wrap(mlp()), "fa")


@pytest.mark.parametrize(
    "model", [nn.Sequential(nn.ReLU()), nn.Sequential(nn.BatchNorm1d(3))], ids=["none", "norm"]
)
def test_a_model_without_layers_to_convert_is_an_error(model: nn.Module) -> None:
    with pytest.raises(ValueError, match="no layer that a rule could convert"):
        apical.convert(model, "fa")


# What conversion keeps ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_conversion_is_in_place_and_keeps_identities(name: str) -> None:
    model = convnet().eval()
    model[4].train()
    parameters = [id(p) for p in model.parameters()]
    keys, flags = list(model.state_dict()), [m.training for m in model]
    weights = copy.deepcopy(model.state_dict())
    calls: list[str] = []
    model[4].register_forward_hook(lambda *_: calls.append("forward"))
    model[4].register_forward_pre_hook(lambda *_: calls.append("pre"))
    model[4].register_full_backward_hook(lambda *_: calls.append("backward"))
    rng = torch.get_rng_state()
    assert apical.convert(model, name, example=torch.ones(2, 1, 4, 4)) is model
    assert torch.equal(torch.get_rng_state(), rng)
    assert [id(p) for p in apical.forward_parameters(model)] == parameters
    assert [key for key in model.state_dict() if ".feedback." not in key] == keys
    assert [m.training for m in model] == flags
    assert all(torch.equal(model.state_dict()[key], weights[key]) for key in keys)
    for _ in range(2):
        calls.clear()
        model(torch.randn(2, 1, 4, 4)).sum().backward()
        assert sorted(calls) == ["backward", "forward", "pre"]


def test_frozen_layers_stay_frozen_and_still_pass_messages() -> None:
    for name in ("brsf", "dfa", "fa", "frsf", "usf"):
        model = mlp().double()
        model[2].requires_grad_(False)
        apical.convert(model, name)
        for _ in range(2):
            model.zero_grad()
            model(torch.ones(2, 4).double()).square().sum().backward()
            assert model[2].weight.grad is None
            assert model[0].weight.grad.any() and model[4].weight.grad.any()
        model[0].requires_grad_(False)
        for _ in range(2):
            model.zero_grad()
            model(torch.ones(2, 4).double()).square().sum().backward()
            assert model[0].weight.grad is None and model[4].weight.grad.any()


class Tied(nn.Module):
    """Two layers with one weight, and one layer called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.twice = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        self.b.weight = self.a.weight
        self.same = self.twice
        self.out = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.b(torch.tanh(self.a(x)))
        return self.out(self.same(torch.tanh(self.twice(torch.tanh(h)))))


def test_tied_and_reused_layers_stay_so_and_share_their_feedback() -> None:
    for name in ALL:
        torch.manual_seed(0)
        plain = Tied().double()
        model = apical.convert(copy.deepcopy(plain), name, example=torch.ones(1, 3).double())
        assert model.a.weight is model.b.weight and model.same is model.twice
        assert len(list(apical.forward_parameters(model))) == len(list(plain.parameters()))
        if name not in ("bp", "dfa"):
            assert model.a.feedback is model.b.feedback
        x = torch.randn(4, 3).double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(2):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            assert all(p.grad.any() for p in apical.forward_parameters(model))
            optimizer.step()
            if name == "brsf":
                assert model.a.feedback.history.count == step + 1
        with apical.exact_gradients(model):
            weights = list(apical.forward_parameters(model))
            seen = torch.autograd.grad(model(x).square().sum(), weights)
        plain.load_state_dict({k: v for k, v in model.state_dict().items() if "feedback" not in k})
        exact = torch.autograd.grad(plain(x).square().sum(), list(plain.parameters()))
        assert all(torch.equal(a, b) for a, b in zip(seen, exact, strict=True))
        assert type(apical.revert(model).b) is nn.Linear
        assert model.a.weight is model.b.weight


def test_a_reused_layer_is_tapped_at_every_call() -> None:
    model = apical.convert(Tied().double(), "dfa", example=torch.ones(1, 3).double())
    rows = {
        row.layer: row for row in apical.describe(model, example=torch.ones(2, 3).double()).rows
    }
    assert (rows["twice"].calls, rows["twice"].taps) == (2, 2)
    assert (rows["a"].calls, rows["a"].taps) == (1, 0)  # the first layer's input needs no gradient


def test_a_second_conversion_says_how_to_replace_the_first() -> None:
    model = apical.convert(mlp(), "fa")
    matrix = model[0].feedback.matrix
    with pytest.raises(ValueError, match=r"converted already; apical\.revert\(model\) first"):
        apical.convert(model, "dfa")
    assert model[0].feedback.matrix is matrix
    apical.convert(apical.revert(model), "dfa", example=torch.ones(1, 4))
    assert all(layer.feedback.rule == DFA() for _, layer in converted_layers(model))


def test_convert_revert_convert_gives_the_same_feedback() -> None:
    for name in ALL:
        model = apical.convert(mlp(), name, example=torch.ones(1, 4), seed=5)
        first = copy.deepcopy(model.state_dict())
        apical.convert(apical.revert(model), name, example=torch.ones(1, 4), seed=5)
        assert_close(dict(model.state_dict()), dict(first), rtol=0, atol=0)


def test_an_example_that_fails_leaves_the_model_plain() -> None:
    for example in (torch.ones(1, 7), {"x": torch.ones(1, 4)}):
        model = mlp()
        with pytest.raises((RuntimeError, TypeError)) as caught:
            apical.convert(model, "dfa", example=example)
        assert "ran the model on its example" in caught.value.__notes__[0]
        assert not list(converted_layers(model)) and not model._forward_hooks


def test_an_example_may_be_a_tuple_or_keywords() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 2), nn.Linear(2, 2)

        def forward(self, x: Tensor, scale: float) -> Tensor:
            return self.b(scale * self.a(x))

    for example in ((torch.ones(1, 3), 2.0), {"x": torch.ones(1, 3), "scale": 2.0}):
        model = apical.convert(Two(), "dfa", example=example)
        assert model.b.feedback.matrix.shape == (2, 2)


def test_layers_the_model_never_calls_are_refused_or_kept() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    with pytest.raises(ValueError, match="never calls these layers.*'unused'"):
        apical.convert(Idle(), "fa", example=torch.ones(1, 3))
    model = apical.convert(Idle(), "fa", example=torch.ones(1, 3), on_unsupported="keep")
    assert is_converted(model.used) and not is_converted(model.unused)
    apical.convert(Idle(), {"used": "fa"}, example=torch.ones(1, 3))


def test_buffers_and_global_numbers_survive_the_example() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2))
    before, rng = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    apical.convert(model, "dfa", example=torch.randn(3, 4))
    torch.set_rng_state(rng)
    apical.describe(model, example=torch.ones(3, 4))
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(model.state_dict()[key], before[key]) for key in before)


def test_an_unsupported_layer_may_be_left_alone_or_given_bp_by_name() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.odd, self.out = Table(), nn.Linear(4, 2)

    for rule in ({"out": "fa"}, {"odd": "bp", "*": "fa"}):
        model = apical.convert(Net(), rule)
        assert type(model.odd) is Table
        assert [row.rule for row in apical.describe(model).rows] == ["exact", "fa"]
    with pytest.raises(ValueError, match=r"odd \(Table\)"):
        apical.convert(Net(), {"*": "fa"})


def test_an_example_that_is_no_input_is_named() -> None:
    for example in ("x", b"x", 3, 1.5, True):
        with pytest.raises(ValueError, match=r"example=.* is no input of a model"):
            apical.convert(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), "dfa", example=example)


def test_models_of_inference_mode_are_refused() -> None:
    """Their tensors can never be trained, which torch says at the first backward pass only."""
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    with torch.inference_mode():
        made_there = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
        with pytest.raises(ValueError, match="inference_mode"):
            apical.convert(model, "fa")
    with pytest.raises(ValueError, match="inference_mode"):
        apical.convert(made_there, "fa")
    apical.convert(model, "fa")


def test_true_is_no_seed() -> None:
    with pytest.raises(ValueError, match="seed=True is no whole number"):
        apical.convert(nn.Sequential(nn.Linear(4, 3)), "fa", seed=True)
