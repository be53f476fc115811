"""A converted model whose feedback lost its values, or whose layers were replaced."""

from __future__ import annotations

import copy
import io
import warnings
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint.state_dict
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.utils import parametrize, prune

import apical

X, Y = torch.randn(6, 4, generator=torch.Generator().manual_seed(1)), torch.arange(6) % 3


def net(rule: Any = None, **options: Any) -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    return model if rule is None else apical.convert(model, rule, example=X, **options)


def train(model: nn.Module, steps: int = 1) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(steps):
        with apical.labels(model, Y):
            model(X).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def emptied(model: Any) -> Any:
    """As libraries do that make the weights later; the weights have their values again."""
    model.to_empty(device="cpu")
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return model


WITH_MEMORY = [
    name
    for name in apical.rules.RULES
    if "matrix" in str(net(name).state_dict().keys()) or len(net(name).state_dict()) > 6
]


@pytest.mark.parametrize("rule", WITH_MEMORY)
def test_feedback_without_values_is_refused_until_it_has_some(rule: str) -> None:
    assert {"fa", "dfa", "kp", "ldfa", "pfa", "wm", "brsf", "sdfa"} <= set(WITH_MEMORY)
    state = net(rule).state_dict()
    for lose in (
        lambda m: emptied(m.to("meta")),
        lambda m: emptied(m),
        lambda m: copy.deepcopy(emptied(m)),
        lambda m: emptied(m).double().float(),
    ):
        model = lose(net(rule))
        with pytest.raises(ValueError, match=r"^0: its feedback \(.*to_empty.*state_dict.*revert"):
            train(model)
        with torch.no_grad():
            model(X)
        with apical.exact_gradients(model):
            model(X).sum().backward()
        model.load_state_dict(state)
        train(model)
    model = emptied(net(rule))
    apical.convert(apical.revert(model), rule, example=X)
    train(model)


def test_feedback_on_the_meta_device_is_refused_where_weights_are_not() -> None:
    for rule in ("fa", "kp", "dfa"):
        model = net(rule).to("meta")
        with pytest.warns(UserWarning, match="holds no feedback"):
            model.load_state_dict(net().state_dict(), assign=True)
        with pytest.raises(ValueError, match="^0: its feedback"):
            train(model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch: on meta, without assign, nothing is loaded
            model.load_state_dict(net(rule).state_dict())
        with pytest.raises(ValueError, match="^0: its feedback"):
            train(model)
        model.load_state_dict(net(rule).state_dict(), assign=True)
        train(model)


def test_a_norm_without_value_is_refused_and_values_written_by_hand_are_not() -> None:
    model = emptied(net(apical.rules.SignSymmetric("uniform", constrain_weights=True)))
    with pytest.raises(ValueError, match=r"^0: its feedback \(weight_norm\)"):
        train(model)
    for rule in ("fa", "kp", "sdfa"):
        model, source = emptied(net(rule)), net(rule)
        with torch.no_grad():
            for to, value in zip(model.buffers(), source.buffers(), strict=True):
                to.copy_(value)
            for to, value in zip(model.parameters(), source.parameters(), strict=True):
                to.copy_(value)
        train(model.double().float())


def test_moving_casting_and_sharing_keep_values() -> None:
    for rule in ("fa", "kp", "dfa", "wm"):
        model = net(rule)
        for change in (nn.Module.share_memory, nn.Module.cpu, lambda m: m.double().float()):
            train(change(model))
        train(torch.load(_saved(model), weights_only=False))


def test_values_given_to_an_emptied_model_or_written_at_once_are_values() -> None:
    for rule in ("fa", "kp", "dfa"):
        model = net(rule)
        for empty in (copy.deepcopy(model).to("meta"), copy.deepcopy(model.to("meta"))):
            given = {**dict(net(rule).named_parameters()), **dict(net(rule).named_buffers())}
            torch.func.functional_call(empty, given, (X,)).sum().backward()
        train(net(rule)._apply(lambda t: torch.empty_like(t).copy_(t)))


def _saved(model: nn.Module) -> io.BytesIO:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return buffer


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module .* returned a view")  # of DFA's output
def test_sharded_models_whose_weights_are_made_later() -> None:
    whole = dist.checkpoint.state_dict.StateDictOptions(full_state_dict=True)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = dist.init_device_mesh("cpu", (1,))
        for rule in ("fa", "kp", "dfa"):
            for state in (None, net(rule).state_dict()):
                model = net(rule).to("meta")
                for layer in model[::2]:
                    fully_shard(layer, mesh=mesh)
                fully_shard(model, mesh=mesh).to_empty(device="cpu")
                if state is None:
                    with pytest.raises(ValueError, match="^0: its feedback"):
                        model(X)
                else:
                    dist.checkpoint.state_dict.set_model_state_dict(model, state, options=whole)
                    train(model)
    finally:
        dist.destroy_process_group()


class Parts(nn.Module):
    """Layers in all kinds of containers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(4, 8)
        self.listed = nn.ModuleList([nn.Linear(8, 8), nn.Tanh()])
        self.named = nn.ModuleDict({"a": nn.Linear(8, 8)})
        self.block = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.named["a"](torch.tanh(self.first(x)))
        for layer in self.listed:
            h = layer(h)
        h = self.block(h)[:, None]
        return self.head(self.attention(h, h, h)[0][:, 0])


def insert(model: Any) -> None:
    """Past `setattr`, as `ModuleList.insert` does."""
    model.listed._modules["0"] = nn.Linear(8, 8)


REPLACED: dict[str, tuple[str, Any]] = {
    "attribute": ("head", lambda m: setattr(m, "head", nn.Linear(8, 3))),
    "add_module": ("head", lambda m: m.add_module("head", nn.Linear(8, 3))),
    "submodule": ("block.0", lambda m: m.set_submodule("block.0", nn.Linear(8, 8))),
    "item of a list": ("listed.0", lambda m: m.listed.__setitem__(0, nn.Linear(8, 8))),
    "appended": ("listed.2", lambda m: m.listed.append(nn.Linear(8, 8))),
    "item of a sequence": ("block.0", lambda m: m.block.__setitem__(0, nn.Linear(8, 8))),
    "item of a dictionary": ("named.a", lambda m: m.named.update({"a": nn.Linear(8, 8)})),
    "block": ("block.0", lambda m: setattr(m, "block", nn.Sequential(nn.Linear(8, 8)))),
    "further head": ("head.1", lambda m: setattr(m, "head", further(m.head))),
    "attention": (
        "attention",
        lambda m: setattr(m, "attention", nn.MultiheadAttention(8, 2, batch_first=True)),
    ),
    "frozen": ("head", lambda m: setattr(m, "head", nn.Linear(8, 3).requires_grad_(False))),
}


def further(head: nn.Module) -> nn.Module:
    return nn.Sequential(head, nn.Linear(3, 3))


@pytest.mark.parametrize("kind", REPLACED)
def test_layers_that_are_new_since_the_conversion_are_refused_at_once(kind: str) -> None:
    name, replace = REPLACED[kind]
    refusal = rf"- {name} \(\w+\): is new .*'{name}': 'bp'"
    for rule, steps in (("fa", 0), ("usf", 4), ("kp", 1), ("dfa", 1)):
        model = apical.convert(Parts(), rule)
        train(model, steps)
        replace(model)
        for _ in range(2):  # who catches the error meets it again
            with pytest.raises(ValueError, match=refusal):
                train(model)
        with apical.exact_gradients(model):
            model(X).sum().backward()
        for remedy in ({name: "bp", "*": rule}, rule):
            if (kind, remedy) == ("frozen", "kp"):
                continue  # nothing to follow
            mended = apical.switch(copy.deepcopy(model), remedy)
            assert ("feedback" in mended.get_submodule(name)._modules) == (remedy == rule)
            train(mended, 4)


def test_copies_know_the_layers_of_the_conversion() -> None:
    for rule in ("fa", "kp", "dfa"):
        model = apical.convert(Parts(), rule)
        for twin in (copy.deepcopy(model), torch.load(_saved(model), weights_only=False)):
            train(twin, 3)
            twin.head = nn.Linear(8, 3)
            with pytest.raises(ValueError, match=r"head \(Linear\): is new"):
                train(twin)


def test_a_layer_put_in_past_setattr_is_refused_in_a_call_that_is_examined() -> None:
    model = apical.convert(Parts(), "fa")
    train(model, 2)
    insert(model)
    train(model, 1)
    with pytest.raises(ValueError, match=r"listed.0 \(Linear\): is new"):
        train(model, 1)  # the fourth call


def test_under_keep_new_layers_are_warned_of_once() -> None:
    model = apical.convert(Parts(), "fa", on_unsupported="keep")
    model.head = nn.Linear(8, 3)
    with pytest.warns(UserWarning, match=r"head \(Linear\): is new") as given:
        train(model, 3)
    assert len(given) == 1


class LoRA(nn.Module):
    """As adapters of other libraries wrap a layer."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.base_layer = layer.requires_grad_(False)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(layer.in_features, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, layer.out_features, bias=False)})

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))


class Compiled(nn.Module):
    """As `torch.compile` wraps a part."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self._orig_mod = layer
        self.forward = layer.forward


def average(model: Any) -> None:
    model.average = torch.optim.swa_utils.AveragedModel(model.block)


def scaled(model: Any) -> None:
    parametrize.register_parametrization(model.head, "weight", nn.Softplus())


HONEST: dict[str, tuple[Any, Any]] = {
    "adapters": ("fa", lambda m: setattr(m, "head", LoRA(m.head))),
    "adapters in a block": ("dfa", lambda m: m.block.__setitem__(0, LoRA(m.block[0]))),
    "compiled": ("fa", lambda m: setattr(m, "block", Compiled(m.block))),
    "average": ("fa", average),
    "average of a part": ("kp", lambda m: setattr(m, "slow", copy.deepcopy(m.head))),
    "teacher": ("fa", lambda m: setattr(m, "teacher", Parts().requires_grad_(False))),
    "pruned": ("fa", lambda m: prune.random_unstructured(m.head, "weight", 0.5)),
    "parametrized": ("fa", scaled),
    "no layer": ("dfa", lambda m: m.listed.append(nn.Sequential(nn.LayerNorm(8), nn.Dropout()))),
    "reverted": ("fa", lambda m: apical.revert(m.head)),
    "moved": ("fa", lambda m: setattr(m, "block", m.listed[0])),
    "converted": ("fa", lambda m: setattr(m, "head", apical.convert(nn.Linear(8, 3), "fa"))),
    "converted attention": ("fa", lambda m: setattr(m, "attention", another_attention())),
    "exact": ({"head": "bp", "*": "fa"}, lambda m: setattr(m, "head", nn.Linear(8, 3))),
    "exact block": (
        {"head": "bp", "*": "dfa"},
        lambda m: setattr(m, "head", nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 3))),
    ),
    "unnamed": ({"block.*": "fa"}, lambda m: setattr(m, "head", nn.Linear(8, 3))),
    "elsewhere": ("fa", lambda m: Parts()),
    "discriminator": ("fa", lambda m: setattr(m, "discriminator", nn.Linear(3, 1))),
    "loaded": ("fa", lambda m: m.load_state_dict(copy.deepcopy(m.state_dict()))),
}


def another_attention() -> nn.Module:
    return apical.convert(nn.MultiheadAttention(8, 2, batch_first=True), "usf")


@pytest.mark.parametrize("kind", HONEST)
def test_honest_changes_of_a_converted_model_are_not_refused(kind: str) -> None:
    rule, change = HONEST[kind]
    for steps in (0, 3):
        model = apical.convert(Parts(), rule)
        train(model, steps)
        change(model)
        if not hasattr(model.head, "weight_mask"):  # torch copies no weight that a hook computed
            train(copy.deepcopy(model), 2)
        train(model, 2)


def test_wrapped_models_have_no_new_layers() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        for rule in ("fa", "kp", "dfa"):
            train(nn.parallel.DistributedDataParallel(apical.convert(Parts(), rule, example=X)), 3)
    finally:
        dist.destroy_process_group()
    model = apical.convert(Parts(), "fa")
    replica = model._replicate_for_data_parallel()  # as of nn.DataParallel
    replica.head = nn.Linear(8, 3)
    model.forward = replica.forward = lambda x: Parts.forward(replica, x)
    replica(X).sum().backward()


def test_tied_weights_that_a_mapping_names_are_not_refused() -> None:
    model = Parts()
    model.named["a"].weight = model.block[0].weight
    apical.convert(model, {"named.a": "bp", "block.0": "fa", "*": "kp"})
    train(model, 4)
