"""One test for each published defect of an earlier library that must not come back: b01 to b36.

The docstrings say what must hold. Most cases are tested in breadth elsewhere; here each is short.
"""

import copy
import dataclasses
import math
import random
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

import apical
from apical import data, nets
from apical.attacks import FGSM, Normalised
from apical.bench.cli import main as cli
from apical.bench.experiment.experiment import Experiment, from_dict
from apical.bench.storage import records
from apical.bench.training import loop
from apical.core.layers import converted_layers
from apical.measure import probes
from apical.rules import BP, DFA, FA, SignSymmetric, build

SIX = ("bp", "brsf", "dfa", "fa", "frsf", "usf")
CONVERTED = SIX[1:]
SMALL = ["--net_options.hidden", "[8]", "--epochs", "1", "--batch_size", "512"]
X, Y = torch.linspace(-1, 1, 24, dtype=torch.float64).view(6, 4).sin(), torch.arange(6) % 3


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def gradients(
    model: nn.Module, x: Tensor = X, y: Tensor = Y, scale: float = 1
) -> dict[str, Tensor]:
    model.zero_grad()
    (scale * F.cross_entropy(model(x), y)).backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def trained(tmp_path: Path, **values: Any) -> list[dict[str, Any]]:
    folder = tmp_path / "run"
    values = {"net_options": {"hidden": [8]}, "epochs": 1, "batch_size": 512, **values}
    loop.run(Experiment(**values), folder)
    return list(records.read(folder / "records.jsonl"))


@pytest.mark.parametrize("rule", SIX)
def test_b01_every_rule_trains_and_evaluates_from_the_command_line(
    rule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """End to end on current torch, with a multistep schedule, and once more as a no-op."""
    monkeypatch.chdir(tmp_path)
    schedule = ["--schedule.kind", "multistep", "--schedule.milestones", "[1]"]
    for _ in range(2):
        assert cli.main(["train", "--rule", rule, *schedule, *SMALL]) == 0
    assert "test accuracy" in capsys.readouterr().out


def test_b02_a_norm_constraint_holds_the_norm_of_the_weights_in_use_and_trains() -> None:
    for name in ("fa", "kp", "pfa", "ldfa"):  # all but the first also decay the weight
        model = mlp()
        with torch.no_grad():
            model[0].weight.mul_(2)
        norm, start = model[0].weight.norm().item(), model[0].weight.detach().clone()
        apical.convert(model, build(name, constrain_weights=True))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(50):
            optimizer.zero_grad()
            F.cross_entropy(model(X), Y).backward()
            optimizer.step()
        assert model[0].weight.norm().item() == pytest.approx(norm, rel=1e-12)
        assert (model[0].weight - start).abs().max() > 0.01


@pytest.mark.parametrize("init", ["xavier", "kaiming"])
def test_b03_fresh_signs_run_with_every_law_on_convolutions_and_linear_layers(init: Any) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(18, 3))
    apical.convert(model, SignSymmetric("fresh", init=init))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        model(torch.ones(2, 1, 4, 4)).square().sum().backward()
        optimizer.step()
    assert model[2].feedback.history.count == 2


def test_b04_a_single_layer_learns_by_direct_feedback_with_default_options() -> None:
    for layer, x in (
        (nn.Linear(4, 3), torch.ones(2, 4)),
        (nn.Conv2d(1, 2, 2), torch.ones(2, 1, 3, 3)),
    ):
        apical.convert(layer, "dfa", example=x)
        layer(x).sum().backward()
        assert layer.weight.grad.any()


def test_b05_grouped_convolutions_have_a_backward_under_direct_feedback() -> None:
    for layout in ("full", "kernel", "channel"):
        model = nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.ReLU(), nn.Conv2d(4, 4, 2, groups=4),
                              nn.Flatten(), nn.Linear(16, 3))  # fmt: skip
        apical.convert(model, DFA(layout=layout))
        for _ in range(2):
            model(torch.randn(2, 2, 5, 5)).square().sum().backward()
        assert model[0].weight.grad.any() and model[2].weight.grad.any()


def test_b06_linear_layers_take_inputs_of_any_number_of_axes() -> None:
    for name in SIX:
        for shape in ((4,), (2, 4), (2, 3, 4), (2, 3, 2, 4)):
            if name == "dfa" and len(shape) == 1:  # a broadcast error belongs to a sample
                with pytest.raises(
                    ValueError, match=r"no axis that counts samples.*unsqueeze\(0\)"
                ):
                    apical.convert(mlp(), name)(torch.ones(shape).double().requires_grad_())
                continue
            # of a net that acts on every position alone, its user says which axis counts samples
            model = apical.convert(mlp(), name, output_axis=0 if name == "dfa" else None)
            y = model(torch.ones(shape).double().requires_grad_())
            assert y.shape == (*shape[:-1], 3)
            y.square().sum().backward()
            assert model[0].weight.grad.any()


def test_b07_one_output_with_a_bias() -> None:
    for name in SIX:
        model = apical.convert(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1)), name)
        model(torch.ones(3, 4)).square().mean().backward()
        assert model[2].bias.grad.shape == (1,) and model[0].weight.grad.any()


def test_b08_padding_modes_are_honoured_forward_and_backward() -> None:
    for name in CONVERTED:
        for options in [
            {"padding": 1, "padding_mode": m} for m in ("circular", "reflect", "replicate")
        ] + [{"padding": "same"}, {"padding": "same", "padding_mode": "circular"}]:
            plain = nn.Sequential(
                nn.Conv2d(1, 2, 3, **options), nn.Conv2d(2, 2, 3, **options)
            ).double()
            model, x = apical.convert(copy.deepcopy(plain), name), torch.randn(2, 1, 5, 5).double()
            assert torch.equal(model(x), plain(x))
            model(x).square().sum().backward()
            assert model[0].weight.grad.any()
            with apical.exact_gradients(model):
                seen = gradients_of(model, x)
            assert all(torch.equal(a, b) for a, b in zip(seen, gradients_of(plain, x), strict=True))


def gradients_of(model: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(model(x).square().sum(), list(apical.forward_parameters(model)))


def test_b09_gradients_scale_with_the_loss() -> None:
    for name in SIX:
        model = apical.convert(mlp(), name, example=X)
        large, small = gradients(model, scale=1000), gradients(model)
        assert_close(large, {n: 1000 * g for n, g in small.items()}, rtol=1e-12, atol=0)


def test_b10_two_forwards_before_one_backward_even_of_different_sizes() -> None:
    for name in SIX:
        model = apical.convert(mlp(), name, example=X)
        one, two = gradients(model, X[:2], Y[:2]), gradients(model, X[2:], Y[2:])
        (F.cross_entropy(model(X[:2]), Y[:2]) + F.cross_entropy(model(X[2:]), Y[2:])).backward()
        both = {n: p.grad for n, p in model.named_parameters()}
        assert_close(both, {n: one[n] + two[n] for n in one}, rtol=1e-12, atol=1e-15)


def test_b11_input_gradients_in_evaluation_are_those_of_this_batch() -> None:
    model = apical.convert(mlp(), "dfa").eval()  # a fresh model: never trained
    for rows in (slice(2), slice(2, 6)):
        x = X[rows].clone().requires_grad_()
        y = model(x)
        y.retain_grad()
        F.cross_entropy(y, Y[rows]).backward()
        assert_close(x.grad, y.grad @ model[0].feedback.matrix)


def test_b12_a_white_box_attack_takes_the_gradient_source_it_names() -> None:
    model = apical.convert(mlp().float(), "fa").eval()
    x = (X.float() + 1) / 2
    own, exact = (FGSM(eps=0.1)(model, x, Y, gradient=source) for source in ("own", "exact"))
    plain = FGSM(eps=0.1)(mlp().float().eval(), x, Y, gradient="own")
    assert torch.equal(exact, plain)
    assert not torch.equal(own, exact)


def test_b13_every_rule_works_under_autocast() -> None:
    for name in SIX:
        model = apical.convert(mlp().float(), name)
        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16):
                loss = F.cross_entropy(model(X.float()), Y)
            loss.backward()
        assert all(p.grad.dtype == torch.float32 and p.grad.any() for p in model.parameters())


def test_b14_feedback_has_the_dtype_of_the_model() -> None:
    for name in ("fa", "brsf", "frsf", "dfa"):
        model = apical.convert(mlp(), name, example=X)
        assert {b.dtype for b in model.buffers()} == {torch.float64}
        gradients(model)


def test_b15_alignment_of_fixed_signs_uses_the_effective_matrix() -> None:
    layer = apical.convert(nn.Linear(200, 200).double(), "frsf")
    weight = layer.weight.detach()
    used = layer.feedback.magnitude * weight.sign()
    cosine = (used * weight).sum() / (used.norm() * weight.norm())
    found = probes.alignment(layer)[""]["angle_deg"]
    assert found == pytest.approx(math.degrees(math.acos(cosine)), abs=1e-6)
    assert found == pytest.approx(41.4, abs=1)


@pytest.mark.parametrize(("name", "degrees"), [("usf", 30.0), ("brsf", 41.4)])
def test_b16_alignment_is_right_right_after_copying_weights(name: str, degrees: float) -> None:
    model = apical.convert(nn.Linear(200, 200), name)
    with torch.no_grad():
        model.weight.copy_(nn.Linear(200, 200).weight)
    assert probes.alignment(model)[""]["angle_deg"] == pytest.approx(degrees, abs=1)


def test_b17_a_forward_assigns_no_parameter() -> None:
    for name in CONVERTED:
        model = apical.convert(mlp(), name, example=X)
        before = [id(p) for p in model.parameters()], [id(b) for b in model.buffers()]
        gradients(model)
        assert ([id(p) for p in model.parameters()], [id(b) for b in model.buffers()]) == before


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_b18_every_rule_compiles_to_one_graph() -> None:
    for name in SIX:
        torch._dynamo.reset()
        model, eager = (apical.convert(mlp(), name, example=X) for _ in range(2))
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        F.cross_entropy(compiled(X), Y).backward()
        seen = {n: p.grad for n, p in model.named_parameters()}
        assert_close(seen, gradients(eager), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", SIX)
def test_b19_functional_transforms_work(name: str) -> None:
    model = apical.convert(mlp(), name, example=X)
    values = {n: p.detach() for n, p in model.named_parameters()}

    def loss(values: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(model, values, (x[None],)), y[None])

    per_sample = torch.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(values, X, Y)
    means = {n: g.mean(0) for n, g in per_sample.items()}
    assert_close(means, gradients(model), rtol=1e-10, atol=1e-13)


def test_b20_ties_roots_missing_children_hooks_and_flags_survive() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.none = nn.Linear(3, 3), nn.Linear(3, 3), None
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).tanh())

    calls: list[int] = []
    model = Odd().eval()
    model.a.register_forward_hook(lambda *_: calls.append(1))
    count = len(list(model.parameters()))
    assert apical.convert(model, "fa") is model  # in place
    assert model.a.weight is model.b.weight and model.a.feedback is model.b.feedback
    assert len(list(model.parameters())) == count and not model.a.training
    model(torch.ones(1, 3)).sum().backward()
    assert calls == [1]
    assert isinstance(apical.convert(nn.Conv1d(1, 1, 1), "usf"), nn.Conv1d)
    weighted = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match="parametrized"):
        apical.convert(weighted, "fa")


def test_b21_attention_that_is_reported_converted_is_not_exact() -> None:
    torch.manual_seed(0)
    plain = nn.MultiheadAttention(4, 2, batch_first=True).double()
    model, x = apical.convert(copy.deepcopy(plain), "fa"), torch.randn(2, 3, 4).double()
    assert [row.layer for row in apical.describe(model).rows] == ["q", "k", "v", "out"]
    found = []
    for layer in (model, plain):
        leaf = x.clone().requires_grad_()
        layer(leaf, leaf, leaf)[0].square().sum().backward()
        found.append((leaf.grad, layer.in_proj_weight.grad))
    assert not torch.allclose(found[0][0], found[1][0])
    assert not torch.allclose(found[0][1], found[1][1])


def test_b22_unknown_rules_and_laws_are_refused_and_options_may_be_partial() -> None:
    with pytest.raises(ValueError, match="'weight_mirrorr'|weight_mirrorr"):
        apical.convert(mlp(), "weight_mirrorr")
    with pytest.raises(ValueError, match="init='he' is not one of 'xavier', 'kaiming'"):
        FA(init="he")  # type: ignore[arg-type]
    assert apical.rules.build({"rule": "fa", "scale": "norm"}) == FA(scale="norm")


def test_b23_the_callers_options_are_left_alone_and_not_shared() -> None:
    options = {"rule": "fa", "init": "kaiming"}
    assignment = {"0": options, "*": options}
    before = copy.deepcopy(assignment)
    model = apical.convert(mlp(), assignment)
    assert assignment == before
    with pytest.raises(dataclasses.FrozenInstanceError):
        model[0].feedback.rule.init = "xavier"
    assert model[0].feedback.matrix.data_ptr() != model[2].feedback.matrix.data_ptr()


def test_b24_fresh_signs_change_with_updates_only() -> None:
    """Once per update; one B for a layer used twice; equal on all ranks: see test_ddp.py."""
    model = apical.convert(mlp(), "brsf")
    first, rng = model[2].feedback.magnitude.clone(), torch.get_rng_state()
    gradients(model), model.eval()(X)
    with torch.no_grad():
        model(X)
    assert torch.equal(model[2].feedback.magnitude, first)
    assert torch.equal(torch.get_rng_state(), rng)
    F.cross_entropy(model(X), Y).backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert not torch.equal(model[2].feedback.magnitude, first)


def test_b25_every_key_is_validated_and_every_default_applied() -> None:
    assert from_dict({}) == Experiment()  # nothing is mandatory, the schedule included
    for wrong, told in (
        ({"schedule": {"kidn": "cosine"}}, "kind"),
        ({"epoch": 3}, "epochs"),
        ({"optimizer": "sgd", "lr": -1}, "lr=-1"),
        ({"autocast": "fp8"}, "autocast='fp8'"),
    ):
        with pytest.raises(ValueError, match=told):
            from_dict(wrong)


def test_b26_a_run_without_a_test_has_none_and_options_of_nets_arrive(tmp_path: Path) -> None:
    rows = trained(tmp_path, test=False, validation=200)
    final = next(row for row in rows if row["kind"] == "final")
    assert "test_acc" not in final
    assert any("val_acc" in row for row in rows)
    with pytest.raises(ValueError, match="pretrained"):
        nets.build("lenet", in_shape=(1, 32, 32), num_classes=10, pretrained=True)
    net = nets.build(
        "test_cases:pretrained_net", in_shape=(1, 8, 8), num_classes=10, pretrained=True
    )
    assert net[1].bias.eq(7).all()


def pretrained_net(in_shape: tuple[int, ...], num_classes: int, pretrained: bool) -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(in_shape), num_classes))
    if pretrained:
        nn.init.constant_(model[1].bias, 7)
    return model


def test_b27_settings_and_checkpoints_are_read_without_running_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("evil.yaml").write_text(f"data: !!python/object/apply:os.mkdir ['{tmp_path}/ran']\n")
    assert cli.main(["train", "--config", "evil.yaml"]) != 0
    assert not (tmp_path / "ran").exists()
    assert "Traceback" not in capsys.readouterr().err
    trained(tmp_path, epochs=1)
    torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)


def test_b28_validation_and_test_sets_are_apart() -> None:
    images = data.load("digits")
    train, validation = data.split_validation(images.train, 200, seed=0)
    assert len(train) + len(validation) == len(images.train)
    assert len(validation) == 200

    def seen(split: Any) -> set[bytes]:
        return {image.numpy().tobytes() for image in split.images}

    assert not seen(train) & seen(validation)
    assert not seen(train) & seen(images.test)
    assert not seen(validation) & seen(images.test)


def test_b29_all_seeds_come_from_the_experiment_and_global_generators_stay(tmp_path: Path) -> None:
    def losses(seed: int, folder: str) -> list[float]:
        (tmp_path / folder).mkdir()
        rows = trained(tmp_path / folder, seed=seed, rule="brsf", augment="flip_crop")
        return [row["train_loss"] for row in rows if row["kind"] == "epoch"]

    random.seed(4), torch.manual_seed(4)
    states = random.getstate(), torch.get_rng_state()
    first = losses(0, "a")
    assert random.getstate() == states[0] and torch.equal(torch.get_rng_state(), states[1])
    torch.manual_seed(5)
    assert losses(0, "b") == first
    assert losses(1, "c") != first


def test_b30_a_last_batch_of_one_image_is_a_batch(tmp_path: Path) -> None:
    size = len(data.load("digits").train) - 1  # one image remains
    rows = trained(tmp_path, batch_size=size, rule="dfa")
    assert next(row for row in rows if row["kind"] == "final")["test_acc"] >= 0
    model = apical.convert(nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)), "dfa")
    for count in (3, 1):
        F.cross_entropy(model(torch.ones(count, 4)), torch.zeros(count).long()).backward()


def test_b31_no_parameters_are_added_and_plain_checkpoints_load_strictly() -> None:
    for name in SIX:
        plain = mlp()
        model = apical.convert(mlp(), name, example=X)
        assert len(list(model.parameters())) == len(list(plain.parameters()))
        with torch.no_grad():
            plain[0].weight.add_(1)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("default")
            model.load_state_dict(plain.state_dict(), strict=True)
        assert torch.equal(model[0].weight, plain[0].weight)
        assert len(told) == (name not in ("bp", "usf"))  # it says that feedback was not in there


def test_b32_no_error_tensor_gets_into_a_checkpoint() -> None:
    for name in SIX:
        model = apical.convert(mlp(), name, example=X)
        before = {key: value.shape for key, value in model.state_dict().items()}
        gradients(model)
        assert {key: value.shape for key, value in model.state_dict().items()} == before
        attributes = [vars(layer.feedback) for _, layer in converted_layers(model)]
        assert not any(isinstance(value, Tensor) for held in attributes for value in held.values())


def test_b33_records_hold_plain_numbers_and_an_interrupt_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = trained(tmp_path, rule="fa")
    assert "tensor" not in (tmp_path / "run" / "records.jsonl").read_text()
    assert all(isinstance(v, str | int | float | bool | list) for row in rows for v in row.values())

    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(probes, "alignment", interrupted)
    (tmp_path / "second").mkdir()
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "second", rule="fa")


def test_b34_the_number_of_classes_is_honoured() -> None:
    for name, shape in (("lenet", (1, 32, 32)), ("mlp", (1, 8, 8)), ("resnet20", (3, 32, 32))):
        net = nets.build(name, in_shape=shape, num_classes=7)
        assert net.eval()(torch.zeros(2, *shape)).shape == (2, 7)


def test_b35_any_number_of_channels_is_normalised() -> None:
    for channels in (1, 3, 4):
        mean, std = tuple(0.1 * c for c in range(channels)), tuple(0.5 + c for c in range(channels))
        images = torch.randint(0, 256, (5, channels, 4, 4), dtype=torch.uint8)
        split = data.Split(images, torch.zeros(5).long())
        ((x, _),) = data.Batches(split, 5, mean=mean, std=std).epoch(0)
        shape = (1, channels, 1, 1)
        expected = (images / 255 - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)
        assert_close(x, expected, rtol=1e-5, atol=1e-6)
        inner = Normalised(nn.Identity(), mean, std)
        assert_close(inner(images / 255), expected, rtol=1e-5, atol=1e-6)


def test_b36_double_backward_is_refused() -> None:
    for name in CONVERTED:
        model = apical.convert(mlp(), name, example=X)
        loss = F.cross_entropy(model(X), Y)
        with pytest.raises(RuntimeError, match=r"\d: .*create_graph=True.*exact_gradients"):
            torch.autograd.grad(loss, model[0].weight, create_graph=True)
        exact = apical.convert(mlp(), BP())
        first = torch.autograd.grad(
            F.cross_entropy(exact(X), Y), exact[0].weight, create_graph=True
        )[0]
        first.sum().backward()
