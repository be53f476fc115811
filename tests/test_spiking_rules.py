"""What trains spiking nets: the identities of rules and learners through time, in float64."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

import apical
from apical import attacks, learners, nets
from apical.nets import spiking
from apical.rules import DFA, LocalError

T, N, CLASSES = 6, 5, 3
DECAY = 0.7


def net(*hidden: int, **options: Any) -> spiking.SpikingNet:
    given = {"hidden": list(hidden), "steps": T, "decay": DECAY, "encoding": "frames", **options}
    made = nets.build("spiking_mlp", in_shape=(T, 3, 3), num_classes=CLASSES, seed=0, **given)
    return made.double()


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = 2 * torch.rand(N, T, 3, 3, generator=generator, dtype=torch.float64)
    return x, torch.tensor([0, 1, 2, 0, 1])


def gradients(model: nn.Module, *, scale: float = 1.0) -> dict[str, Tensor]:
    model.zero_grad()
    x, y = batch()
    with apical.labels(model, y):
        (scale * F.cross_entropy(model(x), y)).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def phi(model: nn.Module, name: str) -> Tensor:
    """The slope of every neuron of a layer, (T, N, units): arctan, k = 2."""
    seen: list[Tensor] = []
    lif = model.get_submodule(name)
    handle = lif.register_forward_hook(lambda m, i, o: seen.append(m.membrane(i[0])))
    model(batch()[0])
    handle.remove()
    return 1 / (1 + (torch.pi * (seen[0] - 1)) ** 2)


def traces(rows: Tensor) -> Tensor:
    """xbar_t = decay xbar_(t-1) + x_t, from (T, N, units)."""
    found = [rows[0]]
    for arriving in rows[1:]:
        found.append(DECAY * found[-1] + arriving)
    return torch.stack(found)


def inputs() -> Tensor:
    return batch()[0].transpose(0, 1).flatten(2)


def fired(model: nn.Module, name: str) -> Tensor:
    return spiking.spikes(model, batch()[0])[name]


@torch.no_grad()
def error(model: nn.Module) -> Tensor:
    """The gradient of the loss at the scores, (N, classes)."""
    x, y = batch()
    return (model(x).softmax(1) - F.one_hot(y)).detach() / N


def test_feedback_alignment_with_the_weights_is_backpropagation_through_time() -> None:
    for reset in ("subtract", "zero", "none"):
        model = net(8, 6, reset=reset)
        exact = gradients(model)
        apical.convert(model, "fa")
        assert not torch.equal(gradients(model)["fc1.weight"], exact["fc1.weight"])
        for name in ("fc1", "fc2", "fc3"):
            layer = model.get_submodule(name)
            layer.feedback.matrix.copy_(layer.weight.detach())
        aligned = gradients(model)
        assert all(torch.equal(aligned[name], exact[name]) for name in exact)


def test_the_exact_gradient_of_a_converted_net_is_backpropagation_through_time() -> None:
    for rule in ("fa", DFA(sample_axis="steps"), LocalError(sample_axis="steps")):
        plain = gradients(net(8, 6))
        model = apical.convert(net(8, 6), rule)
        with apical.exact_gradients(model):
            found = gradients(model)
        assert all(torch.equal(found[name], plain[name]) for name in plain)


def test_direct_feedback_alignment_sends_the_error_to_every_step() -> None:
    """dW_l = sum_t (e B_l * phi(m_t))^T xbar_t: within a layer the membrane keeps its path."""
    model = apical.convert(net(8, 6), DFA(sample_axis="steps"), example=batch()[0])
    found, e = gradients(model), error(model)
    rows = {"fc1": inputs(), "fc2": fired(model, "lif1")}
    for name, above, lif in (("fc1", "fc2", "lif1"), ("fc2", "fc3", "lif2")):
        signal = e @ model.get_submodule(above).feedback.matrix * phi(model, lif)
        expected = torch.einsum("tno,tni->oi", signal, traces(rows[name]))
        assert_close(found[f"{name}.weight"], expected, rtol=1e-12, atol=1e-14)


def test_a_local_error_is_the_gradient_of_a_classifier_of_the_layers_own() -> None:
    for each in ("mean", "step"):
        for loss in ("cross_entropy", "squared_error"):
            rule = LocalError(loss=loss, each=each, magnitude="one", sample_axis="steps")
            model = apical.convert(net(8, 6), rule, example=batch()[0])
            found = gradients(model)
            x, y = batch()
            plain, losses = net(8, 6), []
            rows = plain.encode(x).flatten(1)
            for name, lif in (("fc2", "lif1"), ("fc3", "lif2")):
                below = {"fc2": "fc1", "fc3": "fc2"}[name]
                rows = plain.get_submodule(lif)(plain.get_submodule(below)(rows.detach()))
                seen = rows.view(T, N, -1)
                seen = seen.mean(0, keepdim=True) if each == "mean" else seen
                scores = seen @ model.get_submodule(name).feedback.matrix.t()
                if loss == "squared_error":
                    local = (scores - F.one_hot(y)).square().sum(-1).mean()
                else:
                    local = torch.stack([F.cross_entropy(step, y) for step in scores]).mean()
                losses.append(local)
            sum(losses).backward()
            for name in ("fc1.weight", "fc1.bias", "fc2.weight"):
                assert_close(found[name], plain.get_parameter(name).grad, rtol=1e-12, atol=1e-14)


def test_a_trained_read_out_learns_by_its_own_loss() -> None:
    rule = LocalError("trained", magnitude="one")
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, CLASSES)).double()
    x, y = torch.randn(N, 4, dtype=torch.float64), batch()[1]
    apical.convert(model, {"2": rule}, example=x)
    matrix = model[2].feedback.matrix
    with apical.labels(model, y):
        F.cross_entropy(model(x), y).backward()
    hidden = torch.tanh(model[0](x)).detach()
    twin = matrix.detach().clone().requires_grad_()
    F.cross_entropy(hidden @ twin.t(), y).backward()
    assert_close(matrix.grad, twin.grad, rtol=1e-12, atol=1e-14)


def test_a_local_error_of_the_size_of_the_output_error() -> None:
    one, same = (
        apical.convert(net(8), LocalError(magnitude=m, sample_axis="steps"), example=batch()[0])
        for m in ("one", "error")
    )
    x, y = batch()
    seen = fired(one, "lif1").mean(0)
    local = (seen @ one.fc2.feedback.matrix.t()).softmax(1) - F.one_hot(y)
    factor = N * error(same).abs().mean() / local.abs().mean()
    expected = factor * gradients(one)["fc1.weight"]
    assert_close(gradients(same)["fc1.weight"], expected, rtol=1e-10, atol=1e-14)


def test_e_prop_is_backpropagation_through_time_for_one_hidden_layer() -> None:
    for encoding in ("direct", "frames"):
        for reset in ("subtract", "none"):
            model = net(8, reset=reset, encoding=encoding)
            exact = gradients(model)
            model.zero_grad()
            loss, info = learners.EProp().gradients(model, batch())
            assert_close(info.scores, model(batch()[0]).detach())
            for name, expected in exact.items():
                assert_close(model.get_parameter(name).grad, expected, rtol=1e-12, atol=1e-14)


def test_random_e_prop_by_its_traces() -> None:
    """dW = sum_t (B delta) ebar_t, ebar_t = kappa ebar_(t-1) + phi(m_t) xbar_t."""
    model, learner = net(8, 6), learners.EProp(feedback="random")
    learners.attach(model, learner)
    learner.gradients(model, batch())
    delta = error(model) / T
    for name, lif, rows in (("fc1", "lif1", inputs()), ("fc2", "lif2", fired(model, "lif1"))):
        slope, trace = phi(model, lif), traces(rows)
        eligibility = torch.zeros(N, slope.shape[2], trace.shape[2], dtype=torch.float64)
        expected = torch.zeros_like(eligibility[0])
        signal = delta @ model.learner.get_buffer(name)
        for t in range(T):
            eligibility = DECAY * eligibility + slope[t][:, :, None] * trace[t][:, None]
            expected += torch.einsum("no,noi->oi", signal, eligibility)
        grad = model.get_submodule(name).weight.grad
        assert_close(grad, expected, rtol=1e-6, atol=1e-9)  # the memory of a net made in float32


def test_e_prop_refuses_nets_that_it_has_no_traces_for() -> None:
    for model, told in (
        (net(8, 6), "symmetric.*one hidden layer, this net has 2"),
        (net(8, output="count"), "output='membrane'"),
        (net(8, reset="zero"), "reset 'subtract' or 'none'"),
    ):
        with pytest.raises(ValueError, match=told):
            learners.EProp().gradients(model, batch())


def test_detached_backprop_learns_from_each_step_alone() -> None:
    model = net(8)
    learners.Backprop(through="detached").gradients(model, batch())
    read = model.read.weights.double()
    signal = torch.einsum("t,nc,co->tno", read, error(model), model.fc2.weight) * phi(model, "lif1")
    expected = torch.einsum("tno,tni->oi", signal, inputs())
    assert_close(model.fc1.weight.grad, expected, rtol=1e-6, atol=1e-9)
    assert model.lif1.through_time


def test_the_own_gradient_at_the_image_comes_from_the_first_layers_local_signal() -> None:
    rule = {"fc1": "bp", "*": DFA(sample_axis="steps")}
    model = apical.convert(net(8, 6), rule, example=batch()[0]).eval()
    x, y = batch()
    with attacks.source("own").open(model) as oracle:
        own = oracle.ask(x, y, lambda scores: F.cross_entropy(scores, y, reduction="none")).gradient
    e = N * error(model)  # of each example's own loss
    delta = e @ model.fc2.feedback.matrix * phi(model, "lif1")
    later = torch.zeros_like(delta[0])
    expected = []
    for t in range(T - 1, -1, -1):
        later = DECAY * later + delta[t]
        expected.append(later @ model.fc1.weight.detach())
    assert_close(own.transpose(0, 1).flatten(2), torch.stack(expected[::-1]), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("layout", ["full", "kernel", "channel"])
def test_conv_nets_hear_the_same_signal_at_every_step(layout: Any) -> None:
    options = {"steps": 2, "encoding": "frames", "channels": [3, 4], "hidden": []}
    model = nets.build("spiking_conv", in_shape=(2, 4, 4), num_classes=2, seed=0, **options)
    rule = {"conv2": DFA(layout=layout, sample_axis="steps")}
    x = torch.rand(3, 2, 4, 4)
    apical.convert(model, rule, example=x)
    heard: list[Tensor] = []
    model.pool1.register_full_backward_hook(lambda m, i, o: heard.append(o[0]))
    F.cross_entropy(model(x), torch.tensor([0, 1, 0])).backward()
    steps = heard[0].unflatten(0, (2, 3))
    assert torch.equal(steps[0], steps[1]) and steps.any()


def test_rules_that_broadcast_must_be_told_of_steps() -> None:
    model = apical.convert(net(8), "dfa")
    with pytest.raises(ValueError, match="for spiking nets sample_axis='steps'"):
        model(batch()[0])
    with pytest.raises(ValueError, match="each='step' has no effect"):
        LocalError(each="step")
