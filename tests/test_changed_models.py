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
from torch import nn
from torch.distributed.fsdp import fully_shard

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
