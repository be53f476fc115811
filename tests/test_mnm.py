"""The memory against its formulas, in float64; and what its net promises."""

import copy
import math
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

import apical
from apical import nets
from apical.data import sequences as tasks
from apical.nets import memory as mnm
from apical.nets.memory import ACTIVATIONS, Gradient, Local, MemoryNet, activations, recall

N, H, D, LAYERS = 3, 2, 5, 3
EXACT = {"rtol": 1e-12, "atol": 1e-14}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def memory(layers: int = LAYERS) -> tuple[Tensor, ...]:
    return tuple(normal(N, D, D, seed=i) / math.sqrt(D) for i in range(layers))


def asked(heads: int = H) -> tuple[Tensor, Tensor, Tensor]:
    """Keys, values and rates."""
    return (
        normal(N, heads, D, seed=10),
        normal(N, heads, D, seed=11),
        torch.tensor([0.2, 0.9, 0.0], dtype=torch.float64),
    )


def slowly(weights: tuple[Tensor, ...], keys: Tensor, activation: str) -> list[Tensor]:
    """The memory of one sample, head by head: activations of every layer, (H, D) each."""
    z = [keys]
    for place, weight in enumerate(weights, 1):
        drive = torch.stack([weight @ z[-1][head] for head in range(len(keys))])
        z.append(drive if place == len(weights) else ACTIVATIONS[activation].value(drive))
    return z


def net(write: str = "p", **options: Any) -> MemoryNet:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden": 7, "width": D, "heads": H} | options
    return MemoryNet(4, 3, write=write, **sizes).double()


def sequences(steps: int = 6, samples: int = N) -> Tensor:
    return normal(samples, steps, 4, seed=20)


each_activation = pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
each_write = pytest.mark.parametrize("write", list(mnm.WRITES))
writing = pytest.mark.parametrize("write", ["g", "p", "random"])


# The identities --------------------------------------------------------------------------------


@each_activation
def test_the_gradient_write_by_hand_is_that_of_autograd(activation: str) -> None:
    for heads in (1, H):
        keys, values, rate = asked(heads)
        before = tuple(weight.requires_grad_() for weight in memory())
        after = Gradient(D, LAYERS, activation)(before, keys, values, rate)
        off = recall(before, keys, activation) - values
        loss = off.square().sum() / (
            heads * D
        )  # each sample has weights of its own: the sum is fine
        for new, old, slope in zip(after, before, torch.autograd.grad(loss, before), strict=True):
            assert_close(new, old - rate[:, None, None] * slope, **EXACT)


@each_activation
def test_the_local_write_is_its_formula(activation: str) -> None:
    keys, values, rate = asked()
    write = Local(D, LAYERS, activation).double()
    after = write(memory(), keys, values, rate)
    weight, bias = write.targets.weight.detach(), write.targets.bias.detach()
    for n in range(N):
        own = tuple(layer[n] for layer in memory())
        z = slowly(own, keys[n], activation)
        for place in range(LAYERS):
            rows = slice(place * D, (place + 1) * D)
            expected = own[place].clone()
            for head in range(H):
                target = weight[rows] @ values[n, head] + bias[rows]
                off = z[place + 1][head] - target
                expected -= 2 / (H * D) * rate[n] * torch.outer(off, z[place][head])
            assert_close(after[place][n], expected.detach(), **EXACT)


@writing
def test_a_rate_of_zero_leaves_the_memory_as_it_is(write: str) -> None:
    keys, values, rate = asked()
    make = mnm.WRITES[write]
    assert make is not None
    after = make(D, LAYERS, "tanh").double()(memory(), keys, values, rate)
    for new, old in zip(after, memory(), strict=True):
        assert torch.equal(new[2], old[2])
        assert not torch.equal(new[1], old[1])


@pytest.mark.parametrize("kind", [Gradient, Local])
def test_one_layer_recalls_what_was_written_once(kind: type[mnm.Write]) -> None:
    """Effective rate 2 beta |key|^2 / (H D) = 1."""
    keys, values = F.normalize(normal(N, 1, D, seed=10), dim=2), normal(N, 1, D, seed=11)
    write = kind(D, 1, "tanh").double()
    if isinstance(write, Local):
        write.targets.weight.data.copy_(torch.eye(D))
        write.targets.bias.data.zero_()
    after = write(memory(1), keys, values, torch.full((N,), D / 2, dtype=torch.float64))
    assert_close(recall(after, keys, "tanh"), values, **EXACT)
    assert not torch.allclose(recall(memory(1), keys, "tanh"), values, atol=0.1)


@each_activation
def test_the_local_write_is_the_gradient_where_its_targets_are_chosen_so(activation: str) -> None:
    """Targets z - delta, delta the backpropagated error times H D / 2."""
    keys, values, rate = asked()
    z = activations(memory(), keys, activation)
    drives = [z[place] @ memory()[place].mT for place in range(LAYERS)]
    for drive in drives:
        drive.requires_grad_()
    deltas = []
    off = z[-1] - values
    for place in range(LAYERS - 1, -1, -1):
        deltas.insert(0, off)
        if place:
            off = (off @ memory()[place]) * ACTIVATIONS[activation].slope(z[place])
    chosen = torch.cat([z[place + 1] - deltas[place] for place in range(LAYERS)], 2)
    local = Local(D, LAYERS, activation).double()

    class Chosen(nn.Module):
        def forward(self, values: Tensor) -> Tensor:
            return chosen

    local.targets = Chosen()  # type: ignore[assignment]
    by_gradient = Gradient(D, LAYERS, activation)(memory(), keys, values, rate)
    for one, other in zip(local(memory(), keys, values, rate), by_gradient, strict=True):
        assert_close(one, other, **EXACT)


@each_write
def test_samples_of_a_batch_do_not_see_each_other(write: str) -> None:
    model, x = net(write), sequences()
    whole = model(x)
    for n in range(N):
        assert_close(model(x[n : n + 1])[0], whole[n], **EXACT)
    other = x.clone()
    other[1] = 0
    assert_close(model(other)[[0, 2]], whole[[0, 2]], **EXACT)


@each_write
def test_every_sequence_begins_anew(write: str) -> None:
    model, x = net(write), sequences()
    first = model(x)
    start = model.start.clone()
    model(sequences() + 1)
    assert torch.equal(model(x), first)
    assert torch.equal(model.start, start)
    moments = list(model.steps(x))
    moved = [not torch.equal(m.memory[0][0], model.start[0]) for m in moments]
    assert moved == [write != "none"] * len(moved)


@writing
def test_the_meta_gradient_is_that_of_finite_differences(write: str) -> None:
    """Through the writes: second order for "g"."""
    model, x = net(write, hidden=3, heads=1, reconstruction=0.3), sequences(steps=3, samples=2)
    y = torch.tensor([[0, 1, 2], [2, 2, 0]])

    def loss() -> Tensor:
        scores, own = model(x, own_loss=True)
        return F.cross_entropy(scores.flatten(0, 1), y.flatten()) + own

    loss().backward()
    step = 1e-6
    for name in ("emit.weight", "rate.bias", "cell.recurrent.weight", "before_rate.weight"):
        parameter = model.get_parameter(name)
        place = int(parameter.grad.abs().argmax())  # type: ignore[union-attr]
        flat = parameter.data.view(-1)
        kept, slope = flat[place].item(), parameter.grad.view(-1)[place]  # type: ignore[union-attr]
        ends = []
        for sign in (1, -1):
            flat[place] = kept + sign * step
            ends.append(loss().item())
        flat[place] = kept
        assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(float(slope), rel=1e-5)


# The net ---------------------------------------------------------------------------------------


def by_hand(model: MemoryNet, x: Tensor) -> Tensor:
    """Scores of one sequence with one head, MNM-p, LayerNorm, tanh: the equations one by one."""
    tensors = {name: p.detach() for name, p in model.named_parameters()}
    width = model.width
    hidden = tensors["cell.recurrent.weight"].shape[1]
    h = c = torch.zeros(hidden, dtype=torch.float64)
    read, weights, scores = torch.zeros(width, dtype=torch.float64), list(model.start), []

    def affine(name: str, z: Tensor) -> Tensor:
        return tensors[f"{name}.weight"] @ z + tensors[f"{name}.bias"]

    def normed(z: Tensor) -> Tensor:
        return (z - z.mean()) / (z.var(correction=0) + 1e-5).sqrt()

    for now in x:
        drive = affine("cell.input", torch.cat([now, read])) + tensors["cell.recurrent.weight"] @ h
        i, f, g, o = drive.chunk(4)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        key, value, read_key = map(normed, affine("emit", h).chunk(3))
        beta = torch.sigmoid(affine("rate", torch.tanh(affine("before_rate", h))))
        z = [key]
        for place, weight in enumerate(weights):
            z.append(weight @ z[-1] if place == 2 else torch.tanh(weight @ z[-1]))
        targets = affine("write.targets", value).chunk(3)
        weights = [
            weight - 2 / width * beta * torch.outer(z[place + 1] - targets[place], z[place])
            for place, weight in enumerate(weights)
        ]
        read = weights[2] @ torch.tanh(weights[1] @ torch.tanh(weights[0] @ read_key))
        scores.append(affine("readout", torch.cat([h, read])))
    return torch.stack(scores)


def test_the_net_is_its_equations() -> None:
    model, x = net(heads=1), sequences()
    assert_close(model(x)[0].detach(), by_hand(model, x[0]), rtol=1e-10, atol=1e-12)


@each_write
def test_it_writes_without_autograd(write: str) -> None:
    model, x = net(write), sequences()
    expected = model(x).detach()
    with torch.no_grad():
        assert_close(model(x), expected, **EXACT)
    with torch.inference_mode():
        assert_close(model(x), expected, **EXACT)


@each_write
def test_everything_is_taught_but_what_is_drawn_once(write: str) -> None:
    model = net(write)
    assert not model.start.requires_grad
    model(sequences()).square().sum().backward()
    idle = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert idle == ({"write.targets.weight", "write.targets.bias"} if write == "random" else set())


def test_its_own_loss_is_the_error_of_what_was_just_written() -> None:
    model, x = net("g", reconstruction=0.5), sequences()
    assert isinstance(model, nets.OwnLoss) and model.has_own_loss
    errors, state = [], model.cell.start(x)
    read, weights = x.new_zeros(N, D), tuple(w.expand(N, -1, -1) for w in model.start)
    for here in x.unbind(1):
        state, heads = model._think(here, read, state)
        weights = model.write(weights, heads.write_keys, heads.values, heads.rate)
        recalled = recall(weights, heads.write_keys, "tanh")
        errors.append((recalled - heads.values).square().mean())
        read = recall(weights, heads.read_keys, "tanh").mean(1)
    scores, own = model(x, own_loss=True)
    assert_close(own, 0.5 * sum(errors) / len(errors), **EXACT)
    assert_close(scores, model(x), **EXACT)
    assert not net("g").has_own_loss
    _, trace = model.trace(x)
    assert_close(trace["meta_loss"], torch.stack(errors).detach(), **EXACT)
    norms = torch.stack([w.square().sum((1, 2)) for w in weights]).sum(0).sqrt().mean()
    assert_close(trace["memory_norm"][-1], norms.detach(), **EXACT)
    assert ((trace["beta"] > 0) & (trace["beta"] < 1)).all()


@pytest.mark.parametrize("write", ["p", "g"])
def test_the_first_write_changes_little_with_keys_of_tanh(write: str) -> None:
    """docs/memory.md: by one to three hundredths, and by more than its norm with a layer norm."""
    task = tasks.Dictionary(8)
    x, _ = next(iter(tasks.batches(task, 100, seed=0)))
    changes = {}
    for keys in ("tanh", "layer"):
        torch.manual_seed(0)
        model = mnm.build(
            "mnm", inputs=task.inputs, outputs=task.outputs, write=write, hidden=48, width=48,
            keys=keys,
        )  # fmt: skip
        weights = tuple(w.expand(len(x), -1, -1) for w in model.start)
        _, heads = model._think(x[:, 0], x.new_zeros(len(x), 48), model.cell.start(x))
        before = recall(weights, heads.write_keys, "tanh")
        written = model.write(weights, heads.write_keys, heads.values, heads.rate)
        changes[keys] = (recall(written, heads.write_keys, "tanh") - before).norm() / before.norm()
    assert 0.01 <= changes["tanh"] <= 0.03 and changes["layer"] > 1


@writing
def test_memories_of_steps_gone_by_are_dropped(write: str) -> None:
    """Or long test stories, whose every step has weights of its own, fill the machine."""
    model, kept = net(write), []
    with torch.no_grad():
        for moment in model.steps(sequences()):
            kept.append(weakref.ref(moment.memory[0]))
            del moment
            assert sum(one() is not None for one in kept) <= 1


def test_nothing_is_told_of_writing_where_nothing_is_written() -> None:
    model = net("none")
    assert isinstance(model, nets.Traced)
    scores, trace = model.trace(sequences())
    assert_close(scores, model(sequences()).detach(), **EXACT)
    assert trace.keys() == {"memory_norm"}
    assert model.problems(trace, 0.1) == []


def test_a_reconstruction_that_collapses_is_told() -> None:
    for error, solved, kinds in ((0.02, 0.4, []), (0.009, 0.4, ["collapsed"]), (0.009, 0.9, [])):
        found = net().problems({"meta_loss": torch.full((4,), error)}, solved)
        assert [problem.kind for problem in found] == kinds
        assert all("smaller reconstruction" in problem.message for problem in found)


def test_the_last_step_alone() -> None:
    x = sequences()
    assert_close(net(output="last")(x), net()(x)[:, -1], **EXACT)


def test_rules_reach_the_controller_through_time() -> None:
    exact, taught = net(), net()
    apical.convert(taught, "fa")
    for model in (exact, taught):
        model(sequences()).square().sum().backward()
    assert torch.equal(exact(sequences()), taught(sequences()))
    one, other = exact.cell.recurrent.weight.grad, taught.cell.recurrent.weight.grad
    assert one is not None and other is not None and not torch.allclose(one, other)


def test_it_copies_and_is_saved() -> None:
    model, x = net("random"), sequences()
    twin = copy.deepcopy(model)
    other = net("random")
    other.start.zero_()
    other.load_state_dict(model.state_dict())
    assert torch.equal(twin(x), model(x)) and torch.equal(other(x), model(x))


def test_bad_values_are_told() -> None:
    for options, told in (
        ({"write": "q"}, "unknown write of net 'mnm' 'q'"),
        ({"keys": "layre"}, "unknown keys of net 'mnm' 'layre'; did you mean 'layer'"),
        ({"activation": "relu"}, "unknown activation of net 'mnm' 'relu'"),
        ({"width": 0}, "width=0 must be whole numbers of at least 1"),
        ({"heads": 1.5, "layers": 0}, "heads=1.5, layers=0 must be"),
        ({"reconstruction": -1.0}, "reconstruction=-1.0 .*must be 0 or more"),
        ({"reconstruction": math.nan}, "reconstruction=nan"),
        ({"reconstruction": 0.1, "write": "none"}, "and 0 where nothing is written"),
        ({"hiden": 3}, "unknown option of net 'mnm' 'hiden'; did you mean 'hidden'"),
    ):
        with pytest.raises(ValueError, match=told):
            mnm.build("mnm", inputs=4, outputs=3, **options)


def test_an_unknown_net_and_a_shape_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match="unknown net with a memory 'mmn'; did you mean 'mnm'"):
        mnm.build("mmn", inputs=4, outputs=3)
    with pytest.raises(ValueError, match=r"takes \(N, T, 4\) with T >= 1, not \(2, 3, 5\)"):
        net()(torch.zeros(2, 3, 5, dtype=torch.float64))
