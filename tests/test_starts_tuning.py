"""Heads that are replaced, what learns and how fast, norms that keep their statistics."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn

import apical
from apical import attacks, nets
from apical.nets import pretrained


class Named(nn.Module):
    """A net whose last layer has the given name."""

    def __init__(self, name: str, head: nn.Module | None = None, **more: nn.Module) -> None:
        super().__init__()
        self.name = name
        setattr(self, name, head or nn.Linear(4, 3))  # registered before the body
        self.body = nn.Linear(5, 4)
        for other, module in more.items():
            setattr(self, other, module)

    def forward(self, x):
        return getattr(self, self.name)(self.body(x).relu())


X = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))


def test_a_head_is_found_by_its_name():
    for name in ("fc", "classifier", "head", "heads", "last_linear", "output"):
        model = Named(name)
        assert pretrained.find_head(model) == pretrained.find_head(model, example=X) == name
        assert pretrained.replace_head(model, 7) == name
        assert model(X).shape == (3, 7)


def test_the_last_layer_of_a_container_is_the_head():
    for head, place in (
        (nn.Sequential(nn.Dropout(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)), "classifier.3"),
        (nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3)), "classifier.1"),
        (nn.Sequential(nn.Sequential(nn.Linear(4, 3))), "classifier.0.0"),
        (nn.ModuleDict({"fc": nn.Linear(4, 3), "norm": nn.LayerNorm(4)}), "classifier.fc"),
    ):
        assert pretrained.find_head(Named("classifier", head)) == place


def test_a_convolution_may_be_the_head():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 10, 1), nn.Flatten())
    assert pretrained.replace_head(model, 6, example=torch.zeros(1, 3, 3, 3)) == "2"
    assert model(torch.zeros(2, 3, 3, 3)).shape == (2, 6)
    assert model[2].kernel_size == (1, 1)


def test_heads_of_our_nets_by_name_and_by_running():
    for name in ("lenet", "mlp", "resnet20", "vgg", "vit"):
        size = 32
        model = nets.build(name, in_shape=(3, size, size), num_classes=4, seed=0)
        example = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
        assert pretrained.find_head(model) == pretrained.find_head(model, example=example)
        whole = attacks.Normalised(model, (0.5,) * 3, (0.5,) * 3)
        assert pretrained.find_head(whole) == "model." + pretrained.find_head(model)
        pretrained.replace_head(whole, 9)
        assert whole(example).shape == (2, 9)


def test_heads_of_torchvision(torchvision):
    for name, head in (
        ("resnet18", "fc"),
        ("alexnet", "classifier.6"),
        ("squeezenet1_1", "classifier.1"),
        ("convnext_tiny", "classifier.2"),
        ("vit_b_32", "heads.head"),
        ("swin_t", "head"),
    ):
        with torch.device("meta"):
            model = torchvision.models.get_model(name)
        assert pretrained.find_head(model) == head


def test_heads_of_timm(vision):
    for name, head in (("resnet18", "fc"), ("convnext_atto", "head.fc"), ("vgg11", "head.fc")):
        with torch.device("meta"):
            model = vision.create_model(name)
        assert pretrained.find_head(model) == head


def test_an_uncertain_head_is_an_error_that_names_the_candidates():
    two = Named("head", head_dist=nn.Linear(4, 3))
    with pytest.raises(ValueError, match="candidates: 'head', 'head_dist'"):
        pretrained.find_head(two)
    assert pretrained.find_head(two, example=X) == "head"
    three = Named("last", fc2=nn.Linear(4, 4))
    with pytest.raises(ValueError, match=r"candidates: 'last', 'body', 'fc2'.*example=x"):
        pretrained.replace_head(three, 4)
    assert pretrained.replace_head(three, 4, example=X) == "last"
    assert pretrained.replace_head(three, 6, head="fc2") == "fc2"
    with pytest.raises(ValueError, match="has no linear layer"):
        pretrained.find_head(nn.Sequential(nn.Conv2d(1, 2, 3)))


def test_looking_for_a_head_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).train()
    model[1].eval()
    before = copy.deepcopy(model.state_dict())
    pretrained.find_head(model, example=X)
    assert model.training and not model[1].training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())


def test_a_new_head_is_like_the_old_one_and_repeats():
    model = Named("fc", nn.Linear(4, 3, bias=False, dtype=torch.float64)).double().eval()
    state = torch.get_rng_state()
    pretrained.replace_head(model, 50, seed=3)
    assert torch.equal(state, torch.get_rng_state())
    assert model.fc.weight.dtype == torch.float64 and model.fc.bias is None
    assert not model.fc.training and model.fc.weight.requires_grad
    first = model.fc.weight.detach().clone()
    assert first.abs().max() <= 1 / math.sqrt(4)  # PyTorch's own law
    for seed, alike in [(3, True), (4, False)]:
        pretrained.replace_head(model, 50, seed=seed)
        assert torch.equal(model.fc.weight, first) == alike
    pretrained.replace_head(model, 2000, std=0.01)
    assert model.fc.weight.std().item() == pytest.approx(0.01, rel=0.05)


def test_heads_that_cannot_be_replaced_are_refused():
    with pytest.raises(ValueError, match="replace the head first, then convert"):
        pretrained.replace_head(apical.convert(Named("fc"), "fa"), 4)
    with pytest.raises(ValueError, match=r"no layer 'fx' to replace; layers with weights: 'fc'"):
        pretrained.replace_head(Named("fc"), 4, head="fx")
    with pytest.raises(ValueError, match=r"conv \(Conv2d\) is no Linear and no 1x1"):
        pretrained.replace_head(Named("fc", conv=nn.Conv2d(1, 1, 3)), 4, head="conv")
    with pytest.raises(ValueError, match="not initialised yet"):
        pretrained.replace_head(Named("fc", nn.LazyLinear(3)), 4)
    with pytest.raises(ValueError, match="outputs=2.5 must be a whole number of at least 1"):
        pretrained.replace_head(nn.Sequential(nn.Linear(2, 2)), 2.5)
    with pytest.raises(ValueError, match="outputs=0"):
        pretrained.replace_head(Named("fc"), 0)
    shared = Named("fc")
    shared.again = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
    with pytest.raises(ValueError, match="is parametrized"):
        pretrained.replace_head(shared, 4, head="again")


def small() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 6), nn.Linear(6, 2)
        )


def test_freezing_by_pattern():
    model = small()
    assert pretrained.freeze(model, "0.*", "1.bias") == ["0.weight", "0.bias", "1.bias"]
    assert pretrained.freeze(model, "3.weight") == ["0.weight", "0.bias", "1.bias", "3.weight"]
    assert pretrained.train_only(model, "4.*")[-1] == "3.bias"
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ["4.weight", "4.bias"]
    with pytest.raises(ValueError, match=r"unknown parameter, or pattern of parameters, '5.\*'"):
        pretrained.freeze(model, "5.*")
    with pytest.raises(ValueError, match="no parameter would be left"):
        pretrained.freeze(model, "*")
    assert model[4].weight.requires_grad


def test_learning_rates_by_layer_move_layers_by_so_much():
    model = small()
    pretrained.freeze(model, "1.*")
    groups = pretrained.parameter_groups(model, 0.1, {"0.weight": 0.5, "0.*": 0.0, "4.*": 10})
    assert {g["lr"]: g["names"] for g in groups} == {
        0.05: ["0.weight"],
        0.0: ["0.bias"],
        0.1: ["3.weight", "3.bias"],
        1.0: ["4.weight", "4.bias"],
    }
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(groups)
    model.eval()(X).sum().backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    optimizer.step()
    rates = {n: g["lr"] for g in groups for n in g["names"]}
    for name, now in model.named_parameters():
        moved = before[name] - now.detach()
        expected = rates[name] * gradients[name] if name in rates else torch.zeros_like(moved)
        torch.testing.assert_close(moved, expected, atol=1e-6, rtol=1e-4)
    changes = pretrained.weight_change(model, before)
    assert changes["0.bias"] == 0 and "1.weight" not in changes
    expected = (model[4].weight - before["4.weight"]).norm() / before["4.weight"].norm()
    assert changes["4.weight"] == pytest.approx(expected.item(), rel=1e-5)
    assert pretrained.weight_change(small(), {"4.bias": torch.zeros(2)}) == {"4.bias": math.inf}


def test_bad_rates_are_named():
    for rates, message in (
        ({"9.*": 1.0}, r"'9.\*'"),
        ({"0.*": 1.0, "0.weight": 2.0}, "'0.weight' has no effect"),
        ({"0.*": -1.0}, "must be at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            pretrained.parameter_groups(small(), 0.1, rates)
        with pytest.raises(ValueError, match="lr=0 must be above 0"):
            pretrained.parameter_groups(small(), 0, {})


def test_frozen_statistics_stay_through_training_and_live_ones_move():
    model = small().train()
    model[1].running_mean.fill_(0.3)
    assert pretrained.norm_statistics(model, "frozen") == ["1"]
    assert model.train().training and not model[1].training
    keys, stored = set(model.state_dict()), model[1].running_mean.clone()
    expected = (model[0](X) - 0.3) / math.sqrt(1 + 1e-5)
    torch.testing.assert_close(model[:2](X), expected)
    assert torch.equal(model[1].running_mean, stored)
    model(X).sum().backward()
    assert model[1].weight.grad is not None, "weights of norms still learn"
    assert isinstance(pickle.loads(pickle.dumps(model))[1], nn.BatchNorm2d | nn.BatchNorm1d)
    pretrained.norm_statistics(model, "frozen")
    pretrained.norm_statistics(model, "live")
    assert type(model[1]) is nn.BatchNorm1d and model[1].training
    assert set(model.state_dict()) == keys == set(small().state_dict())
    model(X)
    assert not torch.equal(model[1].running_mean, stored)


def test_frozen_statistics_go_with_conversion_and_attack():
    model = small()
    pretrained.norm_statistics(model, "frozen")
    apical.convert(model, {"4": "bp", "*": "usf"})
    torch.nn.functional.cross_entropy(model.train()(X), torch.tensor([0, 1, 0])).backward()
    x = torch.rand(3, 5)
    assert attacks.FGSM(0.1)(model.eval(), x, torch.tensor([0, 1, 0])).shape == x.shape


def test_norms_that_cannot_be_frozen_are_named():
    with pytest.raises(ValueError, match="no batch norm with stored statistics"):
        pretrained.norm_statistics(nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 2)), "frozen")
    with pytest.raises(ValueError, match=r"0 \(SyncBatchNorm\)"):
        pretrained.norm_statistics(nn.Sequential(nn.SyncBatchNorm(3)), "frozen")
    with pytest.raises(ValueError, match="'off' is not one of 'frozen', 'live'"):
        pretrained.norm_statistics(small(), "off")
