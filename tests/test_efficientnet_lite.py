"""EfficientNet-Lite0 is that of the package whose weights it takes."""

import pytest
import torch

import apical
from apical import nets
from apical.nets import pretrained


def test_it_computes_what_the_package_computes_from_the_same_weights():
    for shape in ((3, 64, 64), (3, 224, 160), (3, 50, 33)):
        from efficientnet_lite_pytorch import EfficientNet

        torch.manual_seed(0)
        oracle = EfficientNet.from_name("efficientnet-lite0")
        for (
            name,
            value,
        ) in oracle.state_dict().items():  # statistics of norms that show in the result
            if "running" in name:
                value.uniform_(0.5, 1.5)
        model = nets.build("efficientnet_lite0", in_shape=shape, num_classes=1000, seed=1)
        assert pretrained.load(model, oracle.state_dict()) == []
        assert sum(p.numel() for p in model.parameters()) == 4_652_008
        x = torch.randn(2, *shape)
        with torch.no_grad():
            expected = oracle.eval()(x)
            torch.testing.assert_close(model.eval()(x), expected)
        assert expected.std() > 1e-3


def test_rules_convert_all_of_it_and_its_head_is_found():
    model = nets.build("efficientnet_lite0", in_shape=(3, 32, 32), num_classes=1000, seed=0)
    head = pretrained.replace_head(model, 4)
    assert head == "_fc" and len(pretrained.norm_statistics(model, "frozen")) == 49
    apical.convert(model, {head: "bp", "*": "usf"}, example=torch.zeros(1, 3, 32, 32))
    model.train()(torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_what_it_cannot_take_is_said():
    with pytest.raises(ValueError, match="sides of 32 pixels or more"):
        nets.build("efficientnet_lite0", in_shape=(3, 31, 64), num_classes=2)
    with pytest.raises(ValueError, match=r"dropout=1.0"):
        nets.build("efficientnet_lite0", in_shape=(3, 32, 32), num_classes=2, dropout=1.0)
