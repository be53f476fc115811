"""Corners where a converted model could go wrong silently; each runs at least two steps."""

import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import apical
from apical.core.layers import converted_layers, is_converted
from apical.rules import DFA, RULES, TransportRule, build

TRAINED = ("brsf", "dfa", "fa", "frsf", "kp", "usf")
BROADCAST = ("dfa",)
X, Y = torch.linspace(-1, 1, 24, dtype=torch.float64).view(6, 4).sin(), torch.arange(6) % 3


class Net(nn.Module):
    """Features and a head, as torchvision's nets."""

    def __init__(self, end: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 6), nn.Tanh())
        self.head = nn.Linear(6, 3)
        self.end = end
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(self.features(x))
        return y if self.end is None else self.end(y)


def converted(name: str = "dfa", model: nn.Module | None = None) -> nn.Module:
    return apical.convert(Net() if model is None else model, name, example=X)


def gradients(model: nn.Module, x: Tensor = X, y: Tensor = Y) -> dict[str, Tensor]:
    model.zero_grad()
    F.cross_entropy(model(x), y).backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


# Calls that are not whole forward passes of the model ---------------------------------------------


def test_part_of_a_model_called_alone_raises_and_leaves_the_next_step_alone() -> None:
    model = converted()
    before = gradients(model)
    for _ in range(2):
        with pytest.raises(
            RuntimeError, match=r"features\.2: called outside a forward pass.*exact"
        ):
            model.features(X)
        assert_close(gradients(model), before, rtol=0, atol=0)
    with torch.no_grad():
        assert model.features(X).shape == (6, 6)
    with apical.exact_gradients(model):
        model.features(X).sum().backward()
    assert model.features[0].weight.grad.any()


def test_an_aborted_forward_leaves_nothing_behind() -> None:
    for name in TRAINED:
        model = converted(name)
        before = gradients(model)
        for _ in range(2):
            handle = model.head.register_forward_pre_hook(_fail)
            with pytest.raises(KeyError, match="aborted"):
                model(X)
            handle.remove()
            if name in BROADCAST:  # no call was left open that would take this for its own
                with pytest.raises(RuntimeError, match="called outside a forward pass"):
                    model.features(X)
            assert_close(gradients(model), before, rtol=0, atol=0)


def _fail(*_: Any) -> None:
    raise KeyError("aborted")


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("name", BROADCAST)
def test_an_interrupted_forward_leaves_nothing_behind(name: str) -> None:
    """Hooks do not hear of Ctrl-C, and a notebook keeps the traceback with its frames."""
    model, kept = converted(name), []
    before = gradients(model)
    for _ in range(2):
        handle = model.head.register_forward_pre_hook(_interrupt)
        with pytest.raises(KeyboardInterrupt) as caught:
            model(X)
        kept.append(caught)
        handle.remove()
        with pytest.raises(RuntimeError, match="called outside a forward pass"):
            model.features(X)
        assert_close(gradients(model), before, rtol=0, atol=0)


def test_a_model_that_calls_itself_joins_each_call_to_its_own_output() -> None:
    class Twice(Net):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return y + self(-x) if x[0, 0] < 0 else y

    model, plain = converted(model=Twice()), converted()
    for _ in range(2):
        y = plain(X) + plain(-X)
        F.cross_entropy(y, Y).backward()
        expected = {n: p.grad.clone() for n, p in plain.named_parameters()}
        plain.zero_grad()
        assert_close(gradients(model), expected, rtol=1e-12, atol=1e-15)


class Checkpointed(Net):
    reentrant = False

    def forward(self, x: Tensor) -> Tensor:
        h = self.features[:2](x)
        h = checkpoint(self.features[2:], h, use_reentrant=self.reentrant)
        return self.head(h)


class Reentrant(Checkpointed):
    reentrant = True


def test_activation_checkpointing_changes_nothing() -> None:
    for name in TRAINED:
        model, plain = converted(name, Checkpointed()), converted(name)
        for lr in (0.1, 0.1):
            seen, expected = gradients(model), gradients(plain)
            assert_close(seen, expected, rtol=1e-12, atol=1e-15)
            for net in (model, plain):
                F.cross_entropy(net(X), Y).backward()
                torch.optim.SGD(net.parameters(), lr=lr).step()


@pytest.mark.parametrize("name", BROADCAST)
@pytest.mark.parametrize("pending", [False, True])
def test_checkpointing_with_feedback_that_waits_for_its_size(name: str, pending: bool) -> None:
    model = apical.convert(Checkpointed(), name, **({} if pending else {"example": X}))
    expected = gradients(converted(name))
    for _ in range(2):
        assert_close(gradients(model), expected, rtol=1e-12, atol=1e-15)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # of the evaluation
@pytest.mark.parametrize("name", BROADCAST)
def test_an_evaluation_between_forward_and_backward_changes_no_recomputation(name: str) -> None:
    model, expected = apical.convert(Checkpointed(), name), gradients(converted(name))
    for _ in range(2):
        loss = F.cross_entropy(model(X), Y)
        with torch.no_grad():
            model(X)
        loss.backward()
        seen = {n: p.grad.clone() for n, p in model.named_parameters()}
        assert_close(seen, expected, rtol=1e-12, atol=1e-15)
        model.zero_grad()
    refused = apical.convert(Reentrant(), name)
    loss = F.cross_entropy(refused(X), Y)
    with torch.no_grad():
        refused(X)
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        loss.backward()


@pytest.mark.parametrize("name", BROADCAST)
def test_reentrant_checkpointing_is_refused_with_the_remedy(name: str) -> None:
    model = apical.convert(Reentrant(), name)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="use_reentrant=False"):
            F.cross_entropy(model(X), Y).backward()


def test_evaluation_and_training_calls_may_alternate() -> None:
    for name in TRAINED:
        model = converted(name)
        before = gradients(model)
        for _ in range(2):
            with torch.no_grad():
                model(X[:2])
            with torch.inference_mode():
                model(X[:3])
            model.eval()
            assert_close(gradients(model), before, rtol=0, atol=0)
            model.train()
            assert_close(gradients(model), before, rtol=0, atol=0)


def test_a_first_forward_without_gradients_sizes_the_feedback() -> None:
    for context in (torch.no_grad(), torch.inference_mode()):
        model = apical.convert(Net(), "dfa")
        with context:
            model(X)
        assert model.head.feedback.matrix.shape == (3, 6)
        assert_close(gradients(model), gradients(converted()), rtol=1e-12, atol=1e-15)


# What happens to the output ----------------------------------------------------------------------


def test_in_place_operations_on_the_output_stay_legal() -> None:
    for name in TRAINED:
        model, plain = converted(name), Net()
        for _ in range(2):
            y, expected = model(X), plain(X)
            with torch.no_grad():
                assert torch.equal(y, expected)
            y.mul_(2).add_(1).square().sum().backward()
            expected.mul_(2).add_(1).square().sum().backward()
            assert torch.equal(model.head.weight.grad, plain.head.weight.grad)


def test_models_that_end_in_a_nonlinearity() -> None:
    """The error is the gradient at what the model returns; the last layer's stays exact."""
    for end in (nn.Softmax(-1), nn.LogSoftmax(-1), nn.Sigmoid(), nn.Tanh()):
        for name in TRAINED:
            model, plain = converted(name, Net(end)), Net(end)
            for _ in range(2):
                for net in (model, plain):
                    net.zero_grad()
                    net(X).square().sum().backward()
                assert torch.equal(model.head.weight.grad, plain.head.weight.grad)
                assert model.features[0].weight.grad.any()


# Attacks and inputs that require gradients -------------------------------------------------------


def test_under_attack_the_input_receives_the_first_layers_projection() -> None:
    model = converted()
    model.eval()
    for _ in range(2):
        x = X.clone().requires_grad_()
        y = model(x)
        y.retain_grad()
        F.cross_entropy(y, Y).backward()
        assert_close(x.grad, y.grad @ model.features[0].feedback.matrix)


def test_an_attack_changes_no_gradient_of_training_and_no_feedback() -> None:
    for name in TRAINED:
        model = converted(name)
        state, before = copy.deepcopy(model.state_dict()), gradients(model)
        for _ in range(2):
            x = X.clone().requires_grad_()
            own = torch.autograd.grad(F.cross_entropy(model(x), Y), x)[0]
            with apical.exact_gradients(model):
                exact = torch.autograd.grad(F.cross_entropy(model(x), Y), x)[0]
            plain = Net()
            x2 = X.clone().requires_grad_()
            assert torch.equal(exact, torch.autograd.grad(F.cross_entropy(plain(x2), Y), x2)[0])
            assert not torch.allclose(own, exact)
            assert_close(gradients(model), before, rtol=0, atol=0)
            assert_close(dict(model.state_dict()), dict(state), rtol=0, atol=0)


def test_exact_gradients_nest_survive_exceptions_and_refuse_graphs_from_outside() -> None:
    for name in TRAINED:
        model = converted(name)
        before, plain = gradients(model), gradients(Net())
        for _ in range(2):
            with apical.exact_gradients(model), apical.exact_gradients(model):
                pass
            with apical.exact_gradients(model), apical.exact_gradients(model.features):
                assert_close(
                    {k: v for k, v in gradients(model).items() if k in plain}, plain, rtol=0, atol=0
                )
            with pytest.raises(KeyError), apical.exact_gradients(model):
                raise KeyError
            assert_close(gradients(model), before, rtol=0, atol=0)
            loss = F.cross_entropy(model(X), Y)
            with (
                apical.exact_gradients(model),
                pytest.raises(RuntimeError, match="built outside exact"),
            ):
                loss.backward()


def test_a_copy_made_within_exact_gradients_does_not_stay_exact() -> None:
    for name in TRAINED:
        model = converted(name)
        with apical.exact_gradients(model):
            twins = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
        for twin in twins:
            assert_close(gradients(twin), gradients(model), rtol=0, atol=0)


def test_calls_in_several_threads_at_once_are_kept_apart() -> None:
    model, meeting = converted(), threading.Barrier(2, timeout=30)
    expected = [gradients(model, X[i : i + 3], Y[i : i + 3]) for i in (0, 3)]
    meet = model.features[1].register_forward_hook(lambda *_: (meeting.wait(), None)[1])
    again = model.features[3].register_forward_hook(lambda *_: (meeting.wait(), None)[1])
    with ThreadPoolExecutor(2) as pool:
        losses = list(
            pool.map(lambda i: F.cross_entropy(model(X[i : i + 3]), Y[i : i + 3]), (0, 3))
        )
    meet.remove(), again.remove()
    for loss, reference in zip(losses, expected, strict=True):
        found = torch.autograd.grad(loss, list(model.parameters()))
        named = dict(zip(dict(model.named_parameters()), found, strict=True))
        assert_close(named, reference, rtol=0, atol=0)


# Feedback that waits for its size ----------------------------------------------------------------


def test_pending_feedback_is_named_and_sized_by_the_first_forward() -> None:
    model = apical.convert(Net(), "dfa", seed=3)
    assert [row.feedback for row in apical.describe(model).rows] == ["pending"] * 3
    sized = apical.convert(Net(), "dfa", seed=3, example=X)
    for _ in range(2):
        assert_close(gradients(model), gradients(sized), rtol=1e-12, atol=1e-15)
    assert "pending" not in str(apical.describe(model))
    assert model.state_dict().keys() == sized.state_dict().keys()


def test_an_empty_first_batch_sizes_the_feedback_too() -> None:
    model, sized = apical.convert(Net(), "dfa"), converted()
    model(X[:0])
    assert_close(gradients(model), gradients(sized), rtol=0, atol=0)


def test_another_batch_size_or_a_shared_matrix_do_not_change_what_is_drawn() -> None:
    for rule in (DFA(), DFA(shared=True), DFA(layout="channel")):
        first = apical.convert(Net(), rule, example=X[:1])
        second = apical.convert(Net(), rule)
        second(X)
        assert_close(dict(first.state_dict()), dict(second.state_dict()), rtol=0, atol=0)


# Parts, copies, nesting -------------------------------------------------------------------------


def test_converting_a_part_makes_that_part_the_model() -> None:
    """The error is then what reaches the part's output."""
    model = Net()
    apical.convert(model.features, "dfa", example=X)
    hidden: list[Tensor] = []
    for _ in range(2):
        handle = model.features.register_forward_hook(lambda _m, _i, y: hidden.append(y))
        y = model(X)
        handle.remove()
        hidden[-1].retain_grad()
        model.zero_grad()
        F.cross_entropy(y, Y).backward()
        h = torch.tanh(X @ model.features[0].weight.T + model.features[0].bias)
        error = hidden[-1].grad
        delta = (error @ model.features[2].feedback.matrix) * (1 - h**2)
        assert_close(model.features[0].weight.grad, delta.T @ X)
        assert model.features(X).requires_grad  # may be called alone: it is a whole model


def test_two_parts_converted_apart_have_stars_of_their_own() -> None:
    model = Net()
    apical.convert(model.features, "dfa", example=X)
    apical.convert(model, {"head": "dfa", "features.*": "bp"}, example=X)
    assert len(list(converted_layers(model))) == 3
    assert model.head.feedback.broadcast is not model.features[0].feedback.broadcast
    for _ in range(2):
        y = model(X)
        y.retain_grad()
        model.zero_grad()
        F.cross_entropy(y, Y).backward()
        with apical.exact_gradients(model):
            h = torch.tanh(model.features[0](X))
            out = model.features(X)
        error = y.grad @ model.head.feedback.matrix  # what the part's output receives
        w, c = model.features[2].weight, model.features[2].bias
        assert_close(
            model.features[2].bias.grad, (error * (1 - torch.tanh(h @ w.T + c) ** 2)).sum(0)
        )
        assert out.shape == (6, 6)


def test_reverting_one_layer_leaves_the_others_at_work() -> None:
    model = converted()
    apical.revert(model.features[2])
    assert type(model.features[2]) is nn.Linear and is_converted(model.head)
    for _ in range(2):
        y = model(X)
        y.retain_grad()
        model.zero_grad()
        F.cross_entropy(y, Y).backward()
        h1 = torch.tanh(X @ model.features[0].weight.T + model.features[0].bias)
        w2 = model.features[2].weight
        h2 = torch.tanh(h1 @ w2.T + model.features[2].bias)
        delta = ((y.grad @ model.head.feedback.matrix) * (1 - h2**2)) @ w2 * (1 - h1**2)
        assert_close(model.features[0].bias.grad, delta.sum(0))
    apical.revert(model)
    assert not model._forward_hooks and not model._forward_pre_hooks


def test_a_copy_of_the_model_is_a_model_of_its_own() -> None:
    for name in TRAINED:
        model = converted(name)
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            before = gradients(model)
            for _ in range(2):
                assert_close(gradients(twin), before, rtol=0, atol=0)
            apical.revert(twin)
            assert_close(gradients(model), before, rtol=0, atol=0)


def test_a_copied_layer_without_its_model_says_what_is_missing() -> None:
    model = converted()
    layer = copy.deepcopy(model.head)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="called outside a forward pass"):
            layer(torch.ones(1, 6, dtype=torch.float64, requires_grad=True))
        gradients(model)
    apical.revert(layer)
    layer(torch.ones(1, 6, dtype=torch.float64, requires_grad=True)).sum().backward()


def test_a_converted_model_inside_another() -> None:
    """The inner model's error is what reaches its output; the outer one stays plain."""
    for name in TRAINED:
        inner = converted(name)
        outer = nn.Sequential(inner, nn.ReLU(), nn.Linear(3, 2).double())
        for _ in range(2):
            outer.zero_grad()
            outer(X).square().sum().backward()
            assert inner.features[0].weight.grad.any() and outer[2].weight.grad.any()
        with pytest.raises(ValueError, match="converted already"):
            apical.convert(outer, "fa")


def test_two_models_in_one_loss() -> None:
    for name in TRAINED:
        first, second = converted(name), converted(name)
        with torch.no_grad():
            second.head.weight.mul_(2)
        alone = gradients(first), gradients(second)
        for _ in range(2):
            first.zero_grad(), second.zero_grad()
            (F.cross_entropy(first(X), Y) + F.cross_entropy(second(X), Y)).backward()
            for model, expected in zip((first, second), alone, strict=True):
                seen = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
                assert_close(seen, expected, rtol=1e-12, atol=1e-15)


def test_an_optimizer_built_before_the_conversion_still_works() -> None:
    for name in ("brsf", "dfa", "fa", "frsf", "usf"):
        model = Net()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        converted(name, model)
        losses = []
        for _ in range(60):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(X), Y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.8 * losses[0]


# Export, transforms, higher orders --------------------------------------------------------------


def test_export_in_evaluation_gives_the_plain_outputs() -> None:
    for name in TRAINED:
        model = converted(name).eval()
        before = gradients(model)
        with torch.no_grad():
            program = torch.export.export(model, (X,))
            for _ in range(2):
                assert_close(program.module()(X), Net()(X))
        assert_close(gradients(model), before, rtol=0, atol=0)


@pytest.mark.parametrize("name", TRAINED)
def test_functional_gradients_and_per_sample_gradients(name: str) -> None:
    model = converted(name)
    if name == "dfa":
        model.eval()
    parameters = {n: p.detach() for n, p in model.named_parameters()}

    def loss(values: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(model, values, (x,)), y)

    for _ in range(2):
        expected = gradients(model)
        seen = torch.func.grad(loss)(parameters, X, Y)
        assert_close({n: seen[n] for n in expected}, expected, rtol=1e-10, atol=1e-13)
        one_by_one = [gradients(model, X[i : i + 1], Y[i : i + 1]) for i in range(len(X))]
        single = lambda v, x, y: loss(v, x[None], y[None])  # noqa: E731
        per_sample = torch.func.vmap(torch.func.grad(single), in_dims=(None, 0, 0))(
            parameters, X, Y
        )
        for n in expected:
            stacked = torch.stack([g[n] for g in one_by_one])
            assert_close(per_sample[n], stacked, rtol=1e-10, atol=1e-13)


def test_batched_gradients_and_labels_within_transforms() -> None:
    for name in ("le", "drtp"):
        model, one = (converted(name) for _ in range(2))
        parameters = {n: p.detach() for n, p in model.named_parameters()}

        def loss(values: dict[str, Tensor], x: Tensor, y: Tensor, model: Any = model) -> Tensor:
            with apical.labels(model, y[None]):
                return F.cross_entropy(torch.func.functional_call(model, values, x[None]), y[None])

        seen = torch.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters, X, Y)
        with apical.labels(one, Y[2:3]):
            for n, expected in gradients(one, X[2:3], Y[2:3]).items():
                assert_close(seen[n][2], expected, rtol=1e-10, atol=1e-13)
    for name in ("fa", "dfa", "pfa", "ia", "dkp"):
        model = converted(name)
        one_by_one = torch.autograd.functional.jacobian(model, X[:2])
        batched = torch.autograd.functional.jacobian(model, X[:2], vectorize=True)
        assert_close(batched, one_by_one, rtol=1e-10, atol=1e-13)
    for name in ("ldfa", "dldfa"):  # in training they collect what they learn from
        model = converted(name)
        for jacobian in (
            lambda model=model: torch.func.jacrev(model)(X[:2]),
            lambda model=model: torch.autograd.functional.jacobian(model, X[:2], vectorize=True),
        ):
            model.train()
            with pytest.raises(RuntimeError, match=r"\w+: in training .*Low.*torch.func.*eval"):
                jacobian()
            model.eval()
            jacobian()


def test_what_vjp_returns_is_called_without_a_graph() -> None:
    for name in ("fa", "dfa"):
        model = converted(name)
        x = X.clone().requires_grad_()
        expected = torch.autograd.grad(model(x).sum(), x)
        output, pull = torch.func.vjp(model, X)
        with pytest.raises(RuntimeError, match=r"vjp returns, call that inside torch\.no_grad"):
            pull(torch.ones_like(output))
        with torch.no_grad():
            assert_close(pull(torch.ones_like(output)), expected)


def test_a_model_on_the_meta_device_shows_its_shapes() -> None:
    for name in ("fa", "dfa"):
        model = converted(name).to("meta")
        model(X.to("meta")).sum().backward()
        assert model.features[0].weight.grad.is_meta


def test_double_backward_is_refused() -> None:
    for name in TRAINED:
        model = converted(name)
        for _ in range(2):
            loss = F.cross_entropy(model(X), Y)
            with pytest.raises(RuntimeError, match=r"\w+: .*create_graph=True.*exact_gradients"):
                torch.autograd.grad(loss, model.features[0].weight, create_graph=True)
            with apical.exact_gradients(model):
                loss = F.cross_entropy(model(X), Y)
                first = torch.autograd.grad(loss, model.features[0].weight, create_graph=True)[0]
                first.square().sum().backward()  # exact gradients have higher orders


def test_an_empty_batch_and_a_batch_of_one() -> None:
    for name in TRAINED:
        model = converted(name)
        for count in (0, 1, 6):
            model.zero_grad()
            model(X[:count]).sum().backward()
            assert all(p.grad is not None for p in apical.forward_parameters(model))


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors|.*is not linear in the grad")
def test_layers_without_entries_are_kept_and_an_output_without_entries_is_refused() -> None:
    for name in sorted(set(RULES) - {"bp"}):
        rule = build(name)
        for x in (X, X[:, None].expand(-1, 3, -1)):
            if x.dim() > 2 and not isinstance(rule, TransportRule):
                continue
            sizes = (nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 0), nn.Linear(0, 5), nn.Linear(5, 3))
            model = nn.Sequential(*sizes).double()
            kept = [row.layer for row in apical.plan(model, rule).rows if row.action == "keep"]
            assert kept == ["2", "3"]
            apical.convert(model, rule)
            for _ in range(2):
                with apical.labels(model, Y):
                    model(x).square().sum().backward()
                torch.optim.SGD(model.parameters(), lr=0.01).step()
        ends = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 0)).double()
        apical.convert(ends, rule)
        if isinstance(rule, TransportRule):
            ends(X[:, None]).sum().backward()
            continue
        with pytest.raises(ValueError, match=r"output \(6, 0\) has no entries"):
            ends(X)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors|`torch.jit.trace")
def test_what_no_rule_is_defined_for_is_refused_by_name() -> None:
    rows = torch.nested.nested_tensor([X[:4], X[4:]], layout=torch.jagged)
    for name in TRAINED:
        model = converted(name)
        with pytest.raises(ValueError, match=r"features.0: its input is a nested tensor"):
            model(rows)
        with pytest.raises(ValueError, match=r"features.0: torch.jit.trace.*torch.no_grad"):
            torch.jit.trace(model, X)
        for block in (torch.no_grad(), apical.exact_gradients(model)):
            with block:
                assert_close(torch.jit.trace(model, X)(X), model(X))
    for kind in (nn.RNN, nn.LSTM, nn.GRU):
        model = nn.Sequential(nn.Linear(4, 4), kind(4, 3))
        with pytest.raises(ValueError, match=r"1.weight_ih_l0: its input \(0, 2, 4\) has no time"):
            apical.convert(model, "fa")(torch.zeros(0, 2, 4))


@pytest.mark.parametrize("axis", ["folded", "steps"])
def test_an_empty_batch_of_rows_that_only_their_samples_would_group(axis: Any) -> None:
    class Folds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            rows = x.flatten(0, 1) if axis == "folded" else x.transpose(0, 1).flatten(0, 1)
            h = torch.tanh(self.b(torch.tanh(self.a(rows))))
            shape = (len(x), 2, 5) if axis == "folded" else (2, len(x), 5)
            return self.head(h.view(shape).mean(1 if axis == "folded" else 0))

    x = torch.randn(6, 2, 4)
    for name in ("dfa", "dkp", "drtp", "le"):
        if (name, axis) == ("le", "folded"):
            continue
        for counts in ((0, 6), (6, 0, 6)):
            model = apical.convert(
                Folds(), {"[ab]": apical.rules.build(name, sample_axis=axis), "*": name}
            )
            for count in counts:
                model.zero_grad()
                with apical.labels(model, Y[:count]):
                    F.cross_entropy(model(x[:count]), Y[:count], reduction="sum").backward()
            assert model.a.weight.grad is not None and model.a.weight.grad.isfinite().all()


def test_losses_on_parts_of_the_output_only() -> None:
    """Rows that the loss ignores have an error of zero and teach nothing."""
    model = converted()
    F.cross_entropy(model(X)[:2], Y[:2]).backward()
    seen = {n: p.grad.clone() for n, p in model.named_parameters()}
    assert_close(seen, gradients(model, X[:2], Y[:2]), rtol=1e-12, atol=1e-15)


def test_backward_twice_through_a_retained_graph_adds_up() -> None:
    for name in TRAINED:
        model = converted(name)
        once = gradients(model)
        loss = F.cross_entropy(model(X), Y)
        loss.backward(retain_graph=True)
        loss.backward()
        twice = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        assert_close(twice, {n: 2 * g for n, g in once.items()}, rtol=1e-12, atol=1e-15)
