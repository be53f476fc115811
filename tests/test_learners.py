"""What every learner keeps, and the formulas of those that have no file of their own."""

import copy
import io
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

import apical
from apical import learners, nets
from apical.data import sequences
from apical.learners import (
    LRA,
    LRAE,
    TPTT,
    Backprop,
    EProp,
    Info,
    Learner,
    LocalClassifiers,
    ReadOut,
)
from apical.learners.tptt import backpropagated
from apical.learners.unrolled import simple_net, step_norms, unroll
from apical.rules import DFA, DRTP, FA, KolenPollack

N, T, INPUTS, HIDDEN, OUTPUTS = 4, 6, 3, 5, 2
ALL: dict[str, list[Learner]] = {
    "backprop": [Backprop(), Backprop(clip_norm=0.3), Backprop(truncate=2)],
    "eprop": [EProp(), EProp(feedback="random")],
    "local_classifiers": [LocalClassifiers("ell"), LocalClassifiers("decolle", "concordant")],
    "lra": [LRA("sum"), LRA("mean", inner=2)],
    "lra_e": [LRAE(), LRAE(gamma=0.0)],
    "readout": [ReadOut()],
    "tptt": [TPTT("sum"), TPTT("mean", noise=0.1, inputs="backprop")],
}
EVERY = [learner for several in ALL.values() for learner in several]
OTHERS: dict[str, dict[str, Any]] = {
    "backprop": {"clip_norm": 1e-3, "through": "detached", "truncate": 1},
    "eprop": {"feedback": "random"},
    "local_classifiers": {"form": "ell", "feedback": "concordant"},
    "lra": {
        "reduction": "mean",
        "local": "squared",
        "inner": 3,
        "gamma": 0.1,
        "gamma_output": 0.2,
        "clip": "force",
        "limit": 1e-3,
        "alpha_weights": 0.1,
        "alpha_targets": 0.1,
    },
    "lra_e": {"beta": 0.5, "gamma": 0.5, "spread": 0.1},
    "readout": {},
    "tptt": {"reduction": "mean", "gamma": 0.3, "noise": 0.2, "inputs": "backprop"},
}
each = pytest.mark.parametrize("learner", EVERY, ids=lambda v: str(learners.to_dict(v)))


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def net(name: str = "srn", *, output: Any = "last", **cell: Any) -> nets.Recurrent:
    made = nets.CELLS[name](INPUTS, HIDDEN, **cell)
    init = {"init": "uniform", "generator": generator(0), "output": output}
    return nets.Recurrent(made, OUTPUTS, **init).double()


def home(learner: Learner) -> Any:
    """A net that the learner teaches, and the ends of what it teaches."""
    if isinstance(learner, LocalClassifiers):
        output = "membrane" if learner.form == "decolle" else "count"
        options = {"hidden": [20, 10], "steps": 4, "output": output}
        shape = (1, T, INPUTS)
        snn = apical.nets.build(
            "spiking_mlp", in_shape=shape, num_classes=OUTPUTS, seed=0, **options
        )
        model = snn.double()
        ends = model.fc1, model.fc2
    elif not isinstance(learner, LRAE):
        model = net()
        ends = model.cell.input, model.readout
    else:
        flat = apical.nets.build("mlp", in_shape=(1, T, INPUTS), num_classes=OUTPUTS, seed=0,
                                 hidden=[HIDDEN, 3], activation="tanh")  # fmt: skip
        model = flat.double()
        ends = model.fc1, model.fc3
    object.__setattr__(model, "ends", ends)  # seen by no one but the test
    return model


def batch(steps: int = T) -> tuple[Tensor, Tensor]:
    x = torch.randn(N, steps, INPUTS, generator=generator(1), dtype=torch.float64)
    return x, torch.tensor([0, 1, 1, 0])


def taught(learner: Learner, model: nn.Module, data: Any = None) -> dict[str, Tensor]:
    model.zero_grad()
    learner.gradients(model, batch() if data is None else data)
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# The contract ----------------------------------------------------------------------------------


def test_the_table_holds_every_learner_there_is() -> None:
    from test_imports import classes_defined_in

    concrete = {c for c in classes_defined_in(learners) if issubclass(c, Learner)}
    assert set(learners.LEARNERS.values()) == concrete
    assert ALL.keys() == learners.LEARNERS.keys() == OTHERS.keys()
    for name, several in ALL.items():
        assert {type(learner) for learner in several} == {learners.LEARNERS[name]}


@each
def test_a_learner_is_its_own_configuration(learner: Learner) -> None:
    form = json.loads(json.dumps(learners.to_dict(learner)))
    assert learners.from_dict(form) == learner == learners.build(form) == learners.build(learner)
    assert learner.reference.startswith("@")
    assert isinstance(hash(learner), int)


@each
def test_it_adds_to_grad_and_returns_the_loss_without_a_graph(learner: Learner) -> None:
    model = learners.attach(home(learner), learner)
    x, y = batch()
    loss, info = learner.gradients(model, (x, y))
    once = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    assert all(p.grad is not None for p in model.ends[1].parameters())
    assert_close(loss, F.cross_entropy(model(x), y).detach())
    assert_close(info.scores, model(x).detach())
    assert not loss.requires_grad and not info.scores.requires_grad
    seen = [loss, info.scores, *(p.grad for p in model.parameters() if p.grad is not None)]
    assert not any(tensor.is_inference() for tensor in seen)  # may be changed in place
    if getattr(learner, "noise", 0):
        model.learner.calls.zero_()
    learner.gradients(model, (x, y))
    for name, gradient in once.items():
        assert_close(model.get_parameter(name).grad, 2 * gradient)


@each
def test_one_norm_for_every_step(learner: Learner) -> None:
    _, info = learner.gradients(learners.attach(home(learner), learner), batch())
    if isinstance(learner, ReadOut | LRAE | LocalClassifiers):
        assert not info.norms and not info.signals.numel()
        return
    assert info.signals.shape == info.norms["cell.recurrent.weight"].shape == (T,)
    assert info.norms["cell.recurrent.weight"][0] == 0  # the state before is zero
    assert info.signals[-1] > 0
    targets = isinstance(learner, learners.TargetLearner)
    assert info.local_losses.shape == ((T,) if targets else (0,))


@each
def test_frozen_parameters_and_global_random_numbers_are_left_alone(learner: Learner) -> None:
    model = learners.attach(home(learner), learner)
    model.ends[0].weight.requires_grad_(False)
    before = torch.get_rng_state()
    learner.gradients(model, batch())
    assert torch.equal(torch.get_rng_state(), before)
    assert model.ends[0].weight.grad is None
    assert model.ends[1].weight.grad is not None


@each
def test_any_optimizer_learns_from_it(learner: Learner) -> None:
    for optimizer in (torch.optim.SGD, torch.optim.Adam):
        model = learners.attach(home(learner), learner)
        steps = optimizer(model.parameters(), lr=0.05)
        losses = []
        for _ in range(40):
            steps.zero_grad()
            loss, _ = learner.gradients(model, batch())
            steps.step()
            losses.append(loss.item())
        assert losses[-1] < 0.97 * losses[0]


@each
def test_the_net_of_a_learner_is_saved_copied_and_goes_on_alike(learner: Learner) -> None:
    model = learners.attach(home(learner), learner, seed=3)
    learner.gradients(model, batch())
    twin = copy.deepcopy(model)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    loaded = learners.attach(home(learner), learner, seed=3)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    expected = taught(learner, model)
    assert same(taught(learner, twin), expected)
    assert same(taught(learner, loaded), expected)


def test_no_option_is_ignored() -> None:
    for name, option in [(key, option) for key in OTHERS for option in OTHERS[key]]:
        needed = {"reduction": "sum"} if name in ("lra", "tptt") else {}
        seen = []
        for options in ({}, {option: OTHERS[name][option]}):
            learner = learners.build(name, **{**needed, **options})
            seen.append(taught(learner, learners.attach(home(learner), learner)))
        assert not same(*seen)


def test_every_option_is_tried() -> None:
    for name in list(OTHERS):
        elsewhere = {"loss", "omega_per"}  # below, and in the tests of LRA
        names = {field.name for field in fields(learners.LEARNERS[name])}
        assert names - elsewhere == OTHERS[name].keys()


@each
def test_squared_error(learner: Learner) -> None:
    x, _ = batch()
    y = torch.randn(N, OUTPUTS, generator=generator(2), dtype=torch.float64)
    learner = learners.build({**learners.to_dict(learner), "loss": "squared_error"})
    model = learners.attach(home(learner), learner)
    loss, _ = learner.gradients(model, (x, y))
    assert_close(loss, ((model(x) - y) ** 2).sum(1).mean().detach())
    local = isinstance(learner, LocalClassifiers)  # their loss is none of the net's outputs
    if not local and getattr(learner, "clip_norm", None) is None:
        assert_close(model.ends[1].bias.grad, 2 * (model(x) - y).mean(0).detach())
    with pytest.raises(ValueError, match=r"outputs \(4, 2\) and targets \(4,\)"):
        learner.gradients(model, (x, y[:, 0]))


# Backprop --------------------------------------------------------------------------------------


def test_backprop_is_loss_backward() -> None:
    for name in list(nets.CELLS):
        model, (x, y) = net(name), batch()
        F.cross_entropy(model(x), y).backward()
        expected = {name: p.grad.clone() for name, p in model.named_parameters()}
        assert same(taught(Backprop(), model), expected)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        clipped = {name: p.grad.clone() for name, p in model.named_parameters()}
        assert norm > 0.01
        assert same(taught(Backprop(clip_norm=0.01), model), clipped)


def test_clipping_acts_on_what_this_batch_teaches_not_on_what_was_there() -> None:
    model, learner = net(), Backprop(clip_norm=0.01)
    once = taught(learner, model)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 5.0)
    learner.gradients(model, batch())
    for name, parameter in model.named_parameters():
        assert_close(parameter.grad, 5 + once[name])


def test_one_set_of_weights_runs_exactly_by_rule_and_detached() -> None:
    for name in list(nets.CELLS):
        plain, model = net(name), apical.convert(net(name), FA())
        exact = taught(Backprop(), plain)
        assert same(taught(Backprop(through="exact"), model), exact)
        assert not same(taught(Backprop(through="rule"), model), exact)
        detached = taught(Backprop(through="detached"), plain)
        assert same(detached, taught(Backprop(truncate=1), plain))
        assert torch.equal(detached["readout.weight"], exact["readout.weight"])
        _, info = Backprop(through="detached").gradients(plain, batch())
        assert not info.signals[:-1].any() and info.signals[-1] > 0
        assert same(taught(Backprop(truncate=T), plain), exact)


def test_kolen_pollack_learns_through_a_learner() -> None:
    model = apical.convert(net(), KolenPollack())
    gradients = taught(Backprop(clip_norm=0.1), model)
    feedback = gradients["cell.recurrent.feedback.matrix"]
    assert torch.equal(feedback, gradients["cell.recurrent.weight"])


@pytest.mark.parametrize("rule", [DFA(), DRTP()], ids=str)
def test_backprop_teaches_nets_without_steps_by_their_rules(rule: Any) -> None:
    x, y = torch.randn(6, 1, 2, 2), torch.tensor([0, 1, 2, 0, 1, 2])
    build = {"in_shape": (1, 2, 2), "num_classes": 3, "hidden": [8]}
    model = apical.convert(nets.build("mlp", seed=0, **build), rule, example=x)
    with apical.labels(model, y):
        F.cross_entropy(model(x), y).backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    assert same(taught(Backprop(), model, (x, y)), expected)
    with pytest.raises(ValueError, match="Sequential has no steps to cut errors off at"):
        Backprop(truncate=2).gradients(model, (x, y))


def test_backprop_teaches_recurrent_nets_by_rules_that_broadcast() -> None:
    for name in list(nets.CELLS):
        model, (x, y) = net(name), batch()
        apical.convert(model, DFA(), example=x)
        F.cross_entropy(model(x), y).backward()
        expected = {n: p.grad.clone() for n, p in model.named_parameters()}
        assert same(taught(Backprop(), model), expected)


def test_norms_of_backprop_are_those_of_each_steps_share() -> None:
    """Of the gradient of a copy of the recurrent weight that one step alone uses."""
    for name in list(nets.CELLS):
        model, (x, y) = net(name), batch()
        _, info = Backprop().gradients(model, (x, y))
        weight = model.cell.recurrent.weight
        for t in range(T):
            alone = weight.detach().clone().requires_grad_()
            state = model.cell.start(x)
            for s in range(T):
                layer = copy.deepcopy(model.cell)
                if s == t:
                    del layer.recurrent.weight
                    layer.recurrent.weight = alone
                state = layer(model.cell.input(x[:, s]), state).state
            F.cross_entropy(model.readout(state[0]), y).backward()
            assert_close(info.norms["cell.recurrent.weight"][t], alone.grad.norm())


@pytest.mark.parametrize("sizes", [(2, 5, 7), (6, 3, 4)])
def test_norms_without_forming_the_products(sizes: tuple[int, int, int]) -> None:
    samples, above, below = sizes
    d = torch.randn(3, samples, above, generator=generator(3), dtype=torch.float64)
    z = torch.randn(3, samples, below, generator=generator(4), dtype=torch.float64)
    assert_close(
        step_norms(d, z), torch.stack([(a.T @ b).norm() for a, b in zip(d, z, strict=True)])
    )


# Read-out only ---------------------------------------------------------------------------------


def test_the_read_out_alone_gets_its_own_gradient() -> None:
    for output in ("last", "every"):
        for name in list(nets.CELLS):
            model, (x, y) = net(name, output=output), batch()
            y = y if output == "last" else torch.stack([y] * T, 1)
            exact = taught(Backprop(), model, (x, y))
            seen = taught(ReadOut(), model, (x, y))
            assert seen.keys() == {"readout.weight", "readout.bias"}
            for weight, gradient in seen.items():
                assert_close(gradient, exact[weight])


@pytest.mark.parametrize("clip", [None, 100.0])
def test_backprop_with_a_frozen_cell_is_the_read_out_alone(clip: float | None) -> None:
    model = net()
    model.cell.requires_grad_(False)
    seen = taught(Backprop(clip_norm=clip), model)
    expected = taught(ReadOut(), net())
    assert seen.keys() == expected.keys()
    for name, gradient in seen.items():
        assert_close(gradient, expected[name])


# e-prop ----------------------------------------------------------------------------------------


def test_eprop_is_backprop_through_time_where_no_unit_is_connected_to_another() -> None:
    for leak in (0.0, 0.8, 1.0):
        for output in ("last", "every"):
            model, (x, y) = net(output=output, leak=leak), batch()
            with torch.no_grad():
                model.cell.recurrent.weight.zero_()
            y = y if output == "last" else torch.stack([y] * T, 1)
            exact, seen = taught(Backprop(), model, (x, y)), taught(EProp(), model, (x, y))
            assert exact.keys() == seen.keys()
            for name, gradient in seen.items():
                assert_close(gradient, exact[name], rtol=0, atol=1e-14)
            assert (exact["cell.input.weight"] != 0).all()


def test_eprop_is_backprop_without_what_passes_through_other_units() -> None:
    """The same loop in autograd, with the input of a unit from others detached."""
    for feedback in ("symmetric", "random"):
        for output in ("last", "every"):
            learner, (x, y) = EProp(feedback=feedback), batch()
            model = learners.attach(net(output=output, leak=0.7), learner)
            y = y if output == "last" else torch.stack([y] * T, 1)
            reference = net(output=output, leak=0.7)
            if feedback == "random":
                apical.convert(reference, {"readout": FA()})
                reference.readout.feedback.matrix.copy_(model.learner.matrix)
            h = z = torch.zeros(N, HIDDEN, dtype=torch.float64)
            activations = []
            for t in range(T):
                h = 0.7 * h + reference.cell.input(x[:, t]) + reference.cell.recurrent(z.detach())
                z = torch.tanh(h)
                activations.append(z)
            read = z if output == "last" else torch.stack(activations, 1)
            F.cross_entropy(reference.readout(read).flatten(0, -2), y.flatten()).backward()
            seen = taught(learner, model, (x, y))
            for name, gradient in seen.items():
                assert_close(gradient, reference.get_parameter(name).grad)


# Target propagation through time ---------------------------------------------------------------


def test_tptt_with_an_inverse_that_turns_back_is_backprop_through_time() -> None:
    """Linear net, orthogonal recurrence, V its inverse: displacements travel as gradients do."""
    learner, data = TPTT("sum", gamma=0.2), batch()
    model = net(activation="identity")
    with torch.no_grad():
        nn.init.orthogonal_(model.cell.recurrent.weight, generator=generator(5))
    learners.attach(model, learner)
    with torch.no_grad():
        model.learner.weight.copy_(model.cell.recurrent.weight.T)
        model.learner.bias.normal_(generator=generator(6))
    exact, seen = taught(Backprop(), model, data), taught(learner, model, data)
    for name in ("cell.input.weight", "cell.input.bias", "cell.recurrent.weight"):
        assert_close(seen[name], 2 * 0.2 * exact[name], rtol=0, atol=1e-14)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_tptt_is_what_its_equations_say(reduction: Any) -> None:
    learner, (x, y) = TPTT(reduction, gamma=0.3), batch()
    model = learners.attach(net(), learner)
    cell, v, c = model.cell, model.learner.weight, model.learner.bias
    drive = x @ cell.input.weight.T
    units = 1 if reduction == "sum" else HIDDEN
    share = 1 / (N * units)

    def undo(t: int, z: Tensor) -> Tensor:
        return torch.tanh(drive[:, t] + z @ v.T + c)

    z = [torch.zeros(N, HIDDEN, dtype=torch.float64)]
    for t in range(T):
        sums = drive[:, t] + cell.input.bias + z[-1].detach() @ cell.recurrent.weight.T
        z.append(torch.tanh(sums))
    last = z[-1].detach().requires_grad_()
    outputs = F.cross_entropy(model.readout(last), y, reduction=reduction)
    target = (last - 0.3 * torch.autograd.grad(outputs, last)[0]).detach()
    loss = F.cross_entropy(model.readout(z[-1].detach()), y)
    for t in reversed(range(T)):
        loss = loss + ((z[t + 1] - target) ** 2).sum() * share
        loss = loss + ((undo(t, z[t + 1].detach()) - z[t].detach()) ** 2).sum() * share
        target = (z[t] - undo(t, z[t + 1]) + undo(t, target)).detach()
    # the inverse has the input weight of the net, but only V and c learn from it
    others = {n: p for n, p in model.named_parameters() if n != "cell.input.weight"}
    expected = dict(zip(others, torch.autograd.grad(loss, list(others.values())), strict=True))
    seen = taught(learner, model)
    for name, gradient in expected.items():
        assert_close(seen[name], gradient)


def test_backprop_through_time_by_hand_is_that_of_autograd() -> None:
    model, (x, y) = net(), batch()
    simple = simple_net(model, Backprop())
    steps = model.steps(x)
    for step in steps:
        step.arrived.retain_grad()
    F.cross_entropy(model.read(steps), y).backward()
    run = unroll(simple, x)
    error = Backprop().objective.error(run.scores, y) / N
    deltas = backpropagated(simple, run, error)
    assert_close(deltas.detach(), torch.stack([step.arrived.grad for step in steps]))
    learner = TPTT("sum", inputs="backprop")
    seen = taught(learner, learners.attach(net(), learner))
    assert_close(seen["cell.input.weight"], taught(Backprop(), net())["cell.input.weight"])


def test_an_inverse_learns_to_undo_a_step() -> None:
    learner = TPTT("sum", gamma=1e-6)
    model = learners.attach(net(), learner)
    optimizer = torch.optim.Adam(model.learner.parameters(), lr=0.02)

    def wrong() -> float:
        states = [step.hidden for step in model.steps(batch()[0])]
        drive = batch()[0] @ model.cell.input.weight.T
        undone = torch.tanh(drive[:, -1] + states[-1] @ model.learner.weight.T + model.learner.bias)
        return (undone - states[-2]).square().mean().item()

    before = wrong()
    for _ in range(100):
        optimizer.zero_grad()
        learner.gradients(model, batch())
        optimizer.step()
    assert wrong() < 0.3 * before


def test_noise_is_another_at_every_call_and_of_the_seed_alone() -> None:
    learner = TPTT("sum", noise=0.5)
    model = learners.attach(net(), learner, seed=1)
    first, second = taught(learner, model), taught(learner, model)
    assert not torch.equal(first["learner.weight"], second["learner.weight"])
    assert torch.equal(first["cell.recurrent.weight"], second["cell.recurrent.weight"])
    again = learners.attach(net(), learner, seed=1)
    assert same(taught(learner, again), first) and same(taught(learner, again), second)
    other = learners.attach(net(), learner, seed=2)
    assert not torch.equal(other.learner.weight, model.learner.weight)
    with torch.no_grad():
        other.learner.weight.copy_(model.learner.weight)
    assert not torch.equal(taught(learner, other)["learner.weight"], first["learner.weight"])


# Memory, names, comparison ---------------------------------------------------------------------


def test_attach_adds_what_is_needed_and_detach_takes_it_away() -> None:
    model = net()
    before = set(model.state_dict())
    assert learners.attach(model, LRA("sum")) is model and set(model.state_dict()) == before
    learners.attach(model, TPTT("sum"))
    added = {"learner.weight", "learner.bias", "learner.calls"}
    assert set(model.state_dict()) - before == added
    with pytest.raises(ValueError, match="already has the memory of a learner; `detach` it first"):
        learners.attach(model, TPTT("sum"))
    with pytest.raises(ValueError, match="EProp: the net has the memory of another learner"):
        EProp(feedback="random").gradients(model, batch())
    assert set(learners.detach(model).state_dict()) == before
    with pytest.raises(ValueError, match=r"TPTT: .* call learners.attach\(model, learner\) before"):
        TPTT("sum").gradients(model, batch())


def test_alignment_is_zero_for_backprop_and_leaves_no_trace() -> None:
    learner = TPTT("sum", noise=0.1)
    model = learners.attach(net(), learner)
    model.readout.bias.grad = torch.ones(OUTPUTS, dtype=torch.float64)
    before = copy.deepcopy(model.state_dict())
    rows = learners.alignment(model, learner, batch())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert model.readout.bias.grad.tolist() == [1.0, 1.0] and model.readout.weight.grad is None
    assert rows["readout.weight"]["angle_deg"] < 1e-3
    assert 1 < rows["cell.recurrent.weight"]["angle_deg"] < 180
    assert "learner.weight" not in rows
    truncated = learners.alignment(net(), Backprop(truncate=1), batch())
    assert truncated["cell.recurrent.weight"]["angle_deg"] > 1
    scaled = LRA("sum", local="squared", gamma_output=0.3, clip="none")  # 2 * 0.3 of the gradient
    row = learners.alignment(net(activation="identity"), scaled, batch())["cell.input.weight"]
    assert row["angle_deg"] < 1e-3 and row["norm_ratio"] == pytest.approx(0.6)
    for row in learners.alignment(net(), Backprop(), batch()).values():
        assert row["angle_deg"] < 1e-3 and row["norm_ratio"] == pytest.approx(1)


def test_unknown_names_and_options_are_refused_with_the_known_ones() -> None:
    for make, text in (
        (lambda: learners.build("lar"), "did you mean 'lra'"),
        (lambda: learners.build("lra", reduction="sum", gama=1.0), "did you mean 'gamma'"),
        (lambda: learners.build("apical.learners:Info"), "its class, not"),
        (lambda: learners.build(3), "a name, a Learner object or its class, not 3"),
        (lambda: learners.build(ReadOut(), loss="squared_error"), "it is made already"),
        (lambda: learners.from_dict({"gamma": 1}), "needs the key 'learner'"),
        (lambda: learners.build("backprop", loss="hinge"), "'cross_entropy', 'squared_error'"),
        (lambda: Backprop(clip_norm=0.0), "clip_norm=0.0 must be above 0"),
        (lambda: Backprop(truncate=0), "truncate=0 must be at least 1"),
        (lambda: Backprop(truncate=2, through="detached"), "give one of them"),
        (lambda: TPTT(), "reduction is not stated"),
        (lambda: TPTT("sum", gamma=0.0), "gamma=0.0 must be above 0"),
        (lambda: TPTT("sum", noise=-1.0), "noise=-1.0"),
    ):
        with pytest.raises(ValueError) as caught:
            make()
        assert text in str(caught.value)


@dataclass(frozen=True)
class Mine(Learner):
    """A learner of one's own: only the signs of the gradient."""

    reference: ClassVar[str] = "@misc{mine}"

    def gradients(self, model: nn.Module, batch: Any) -> tuple[Tensor, Info]:
        loss, info = Backprop(loss=self.loss).gradients(model, batch)
        for parameter in model.parameters():
            parameter.grad.sign_()
        return loss, info


def test_a_learner_of_ones_own_is_named_by_its_path() -> None:
    learner = learners.build(f"{__name__}:Mine", loss="squared_error")
    assert learner == Mine(loss="squared_error")
    assert learners.to_dict(learner) == {"learner": f"{__name__}:Mine", "loss": "squared_error"}
    assert learners.from_dict(learners.to_dict(learner)) == learner


def test_nets_a_learner_cannot_teach_are_refused_with_the_remedy() -> None:
    for learner in (LRA("sum"), TPTT("sum"), EProp()):
        for model, text in (
            (net("gru"), "not of GRU; for that, use learner Backprop"),
            (nn.Linear(3, 2), "not of Linear"),
            (apical.convert(net(), "fa"), "call apical.revert(model), or use learner Backprop"),
        ):
            with pytest.raises(ValueError) as caught:
                learner.gradients(learners.attach(model, learner), batch())
            assert text in str(caught.value)
        if not isinstance(learner, EProp):
            for model, text in (
                (net(leak=0.5), "it has no leak; the cell has leak=0.5"),
                (net(output="every"), "it learns from the last step"),
            ):
                with pytest.raises(ValueError) as caught:
                    learner.gradients(learners.attach(model, learner), batch())
                assert text in str(caught.value)
        wrong = (torch.zeros(4, 6, 2).double(), batch()[1])
        with pytest.raises(ValueError, match=r"takes \(N, T, 3\)"):
            learner.gradients(learners.attach(net(), learner), wrong)


def test_the_read_out_alone_needs_a_read_out() -> None:
    with pytest.raises(ValueError, match=r"ReadOut: it needs a nets.Recurrent"):
        ReadOut().gradients(nn.Linear(3, 2), batch())


def test_every_learner_has_a_row_in_its_document() -> None:
    document = Path(__file__).resolve().parents[1] / "docs" / "learners.md"
    for name, kind in learners.LEARNERS.items():
        assert f"| `{name}` | `{kind.__name__}` |" in document.read_text()


# The real task ---------------------------------------------------------------------------------


def solved(learner: Learner, iterations: int) -> float:
    task = sequences.TemporalOrder(20)
    cell = nets.SRN(task.inputs, 100)
    model = nets.Recurrent(cell, task.outputs, generator=generator(0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for number, data in enumerate(sequences.batches(task, 20, seed=0)):
        if number == iterations:
            break
        optimizer.zero_grad()
        learner.gradients(model, data)
        optimizer.step()
    x, y = task.draw(500, generator(7))
    return task.correct(model(x), y).float().mean().item()


def test_lra_solves_temporal_order_where_the_read_out_alone_is_far_from_it() -> None:
    assert solved(LRA("sum"), 150) > 0.99
    assert solved(ReadOut(), 150) < 0.8
