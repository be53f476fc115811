"""What an attack is given wrongly is said, with the remedy, before anything is computed."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import apical
from apical import attacks
from apical.attacks.checks import check_steady
from victims import convolutional, digits

X, Y = digits()[0][:4], digits()[1][:4]
NET = convolutional()


def test_options_that_cannot_be_meant() -> None:
    for make, message in (
        (lambda: attacks.PGD(8), r"PGD: eps=8 is outside \[0, 1\]; did you mean 8/255\?"),
        (lambda: attacks.FGSM(2), r"did you mean 2/255\?"),
        (lambda: attacks.APGD(-0.1), "at least 0"),
        (lambda: attacks.Square(float("nan")), "finite number"),
        (lambda: attacks.FGSM(8, bounds=(0, 2)), r"eps=8 is outside \[0, 2\]$"),
        (lambda: attacks.FGSM(0.1, bounds=(1, 0)), "low < high"),
        (lambda: attacks.PGD(0.1, steps=0), "steps=0 must be at least 1"),
        (lambda: attacks.PGD(0.1, step_size=-1.0), "step_size=-1.0 must be above 0"),
        (lambda: attacks.PGD(0.1, restarts=2, random_start=False), "would repeat one run"),
        (lambda: attacks.PGD(0.1, norm="l3"), "norm='l3' is not one of 'linf', 'l2', 'l1'"),
        (lambda: attacks.Noise(0.1, "l1", "sign"), "kind='sign' is for norm='linf', not 'l1'"),
        (lambda: attacks.PGD(0.1, loss="dlr-targeted"), "loss='dlr-targeted' is not one of"),
        (lambda: attacks.TPGD(0.1, start="none"), "start='none' is not one of"),
        (lambda: attacks.APGD(0.1, targets=3), "for loss='dlr-targeted' only"),
        (lambda: attacks.APGD(0.1, rho=1.5), "rho=1.5"),
        (lambda: attacks.Square(0.1, share=0), "share=0"),
        (lambda: attacks.Noise(0.1, draws=0), "draws=0"),
        (lambda: attacks.FewPixel(0), "pixels=0"),
        (lambda: attacks.EOT(attacks.PGD(0.1), samples=0), "samples=0"),
        (lambda: attacks.EOT(attacks.Square(0.1)), "no gradient to average"),
        (lambda: attacks.EOT(attacks.PGD(0.1), bounds=(0, 2)), "give them to that attack"),
        (lambda: attacks.FiniteDifference(step=0), "step above 0"),
        (lambda: attacks.FiniteDifference(1.5), "directions=1.5 is not a whole number"),
        (lambda: attacks.OwnAveraged(1.5), "redraws=1.5 is not a whole number"),
        (lambda: attacks.Averaged(attacks.Exact(), 1.5), "samples=1.5 is not a whole number"),
        (lambda: attacks.Averaged("exact", 2), "source='exact' must be a source"),
        (lambda: attacks.PGD(0.1, seed=10**23), "seed=1000.* is not a whole number from"),
        (lambda: attacks.PGD(0.1, seed=1.5), "seed=1.5 is not a whole number"),
        (lambda: attacks.PGD(0.1, bounds="01"), "bounds='01' is not a pair of numbers"),
        (lambda: attacks.PGD(0.1, bounds=(0, 1, 2)), "is not a pair of numbers"),
        (lambda: attacks.PGD(0.1, bounds=None), "bounds=None is not a pair of numbers"),
        (lambda: attacks.PGD(0.1, bounds=(0, float("inf"))), "finite and low < high"),
        (lambda: attacks.PGD(0.1, norm=["l2"]), "is not one of 'linf', 'l2'"),
        (lambda: attacks.PGD(0.1, norm="L0"), "For L0, attacks.FewPixel"),
        (lambda: attacks.Plugin(3, "p", 0.1), "call=3 must be a function"),
        (lambda: attacks.Protocol((attacks.PGD(0.0, norm="l2"),)), "a radius eps in 'linf'"),
        (lambda: attacks.Protocol((attacks.Flips(2),)), "a radius eps in 'linf'"),
        (lambda: attacks.Normalised(NET, 0.5, 0.5), "mean=0.5 must be a sequence"),
        (lambda: attacks.Normalised(NET, "0", "1"), "mean='0' must be a sequence"),
        (lambda: attacks.Normalised(3, [0.0], [1.0]), "must be a torch.nn.Module"),
        (lambda: attacks.source("finite-difference:²"), "a number after the colon"),
        (lambda: attacks.audit(NET, X, Y, directions=1.5), "directions=1.5 must be a whole"),
        (lambda: attacks.audit(NET, X, Y, seed=1.5), "seed=1.5 is not a whole number"),
        (lambda: attacks.audit(NET, X, Y, bounds="01"), "bounds='01' is not a pair"),
        (lambda: attacks.audit(NET, X, Y, limits={}), "limits={} must be"),
        (lambda: attacks.imitate(NET, convolutional(), X, epochs=1.5), "epochs=1.5"),
        (lambda: attacks.imitate(NET, convolutional(), X.numpy()), "inputs are ndarray"),
        (lambda: attacks.imitate(NET, 3, X), "must be a torch.nn.Module"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


def test_inputs_and_labels_that_do_not_fit() -> None:
    for x, y, message in (
        (X * 255, Y, r"outside the stated range \[0, 1\].*Normalised"),
        (X - 0.1, Y, "outside the stated range"),
        (X * float("nan"), Y, "256 values of the inputs are not finite, outside the stated range"),
        (X.to_sparse(), Y, "inputs are torch.sparse_coo: expected a torch.Tensor, dense"),
        (X[0, 0, 0, 0], Y, r"shape \(\): expected floating point"),
        (X.flatten(1), Y, r"Sequential fails on the inputs, torch.float32 of shape \(4, 64\)"),
        ({"image": X}, Y, "Sequential fails on the inputs, image=torch.float32 of shape"),
        ((X * 16).long(), Y, "floating point"),
        (X.numpy(), Y, "inputs are ndarray: expected a torch.Tensor"),
        (X, Y.tolist(), "labels are list: expected a torch.Tensor"),
        (X, Y[:3], r"labels of shape \(3,\): expected \(4,\)"),
        (X, nn.functional.one_hot(Y, 10), "one class number per input"),
        (X, Y.float(), "expected class numbers"),
        (X, Y + 9, "the model has classes 0 to 9"),
        (X, Y - 1, "labels from -1"),
    ):
        for attack in (attacks.PGD(0.1), attacks.Square(0.1)):
            with pytest.raises(ValueError, match=message):
                attack(NET, x, y)


def with_active(module: nn.Module) -> nn.Module:
    net = nn.Sequential(module, NET).eval()
    module.train()
    return net


class Whole(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1).long()


class Pair(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return NET(x), x


def test_models_that_cannot_be_attacked() -> None:
    for net, message in (
        (convolutional().train(), r"in training mode.*model.eval\(\)"),
        (with_active(nn.Dropout(0.5)), r"0 \(Dropout\) is in training mode.*EOT"),
        (with_active(nn.BatchNorm2d(1)), r"0 \(BatchNorm2d\) is in training mode"),
        (Whole().eval(), "scores are torch.int64: expected floating point"),
        (nn.Flatten(0).eval(), r"expected scores \(N, classes\)"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 1)).eval(), "a single score.*zeros_like"),
        (Pair().eval(), "the model gives tuple for 4 inputs.*wrap the model in a module"),
        (lambda x: x, "must be a torch.nn.Module"),
    ):
        with pytest.raises(ValueError, match=message):
            attacks.Square(0.1)(net, X, Y)


class Random(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return NET(x + 0.1 * torch.rand_like(x))


def test_a_random_model_needs_eot() -> None:
    net = Random().eval()
    with pytest.raises(ValueError, match=r"on the same inputs differ.*attacks.EOT"):
        attacks.PGD(0.1)(net, X, Y)
    attacks.EOT(attacks.PGD(0.1, steps=1), 2)(net, X, Y)
    attacks.EOT(attacks.PGD(0.1, steps=1), 2)(with_active(nn.Dropout(0.5)), X, Y)


def test_feedback_in_training_mode_is_no_obstacle() -> None:
    net = apical.convert(convolutional(), "fa")  # its feedback modules were made just now
    attacks.FGSM(0.1)(net, X, Y, gradient="own")


def test_another_model_with_other_classes() -> None:
    other, attack = convolutional(classes=12), attacks.PGD(0.1)
    with pytest.raises(ValueError, match=r"12 classes, the attacked one 10"):
        attacks.Transfer(attack, other)(NET, X, Y)
    with pytest.raises(ValueError, match=r"12 classes, the attacked one 10"):
        attack(NET, X, Y, gradient=attacks.From(other))


def test_sources_that_would_be_ignored_or_missing() -> None:
    with pytest.raises(ValueError, match="would ignore gradient='own'"):
        attacks.Square(0.1)(NET, X, Y, gradient="own")
    with pytest.raises(ValueError, match="gradient='none' provides none"):
        attacks.PGD(0.1)(NET, X, Y, gradient="none")
    attacks.Square(0.1, queries=1)(NET, X, Y, gradient="none")


def test_too_few_classes() -> None:
    for attack, classes in [
        (attacks.PGD(0.1, loss="dlr"), 2),
        (attacks.APGD(0.1, loss="dlr"), 2),
        (attacks.APGD(0.1, loss="dlr-targeted"), 3),
    ]:
        net = convolutional(classes=classes)
        with pytest.raises(ValueError, match="use 'margin'"):
            attack(net, X, Y % classes)
    with pytest.raises(ValueError, match="leave 9"):
        attacks.APGD(0.1, loss="dlr-targeted", targets=10)(NET, X, Y)


def test_a_radius_beyond_the_range() -> None:
    for norm, eps in (("l2", 8), ("l1", 64)):
        with pytest.raises(ValueError, match=f"whose diameter is {eps}"):
            attacks.PGD(eps + 1, norm=norm)(NET, X, Y)
    attacks.PGD(3.0, norm="l2", steps=1)(NET, X, Y)


def test_images_that_pixels_do_not_fit() -> None:
    flat = nn.Sequential(nn.Linear(64, 10)).eval()
    for attack in (attacks.FewPixel(), attacks.FewPixel(65)):
        with pytest.raises(ValueError, match=r"images"):
            attack(flat, X.flatten(1), Y)


def test_a_plugin_that_returns_something_else() -> None:
    for call, told in (
        (lambda model, x, y: x[:1], r"half: returned \(1, 1, 8, 8\)"),
        (lambda model, x, y: x.tolist(), "half: returned list"),
        (lambda model, x, y: x.numpy().astype(object), "expected a tensor or an array of numbers"),
    ):
        with pytest.raises(ValueError, match=told):
            attacks.Plugin(call, "half", 0.1)(NET, X, Y)
    for call in (lambda model, x, y: x + 0.2, lambda model, x, y: x * float("nan")):
        with pytest.warns(UserWarning, match="far: 4 of 4 points are outside the ball of eps=0.1"):
            attacks.Plugin(call, "far", 0.1)(NET, X, Y)


def test_a_plugin_that_changes_modes_leaves_no_trace() -> None:
    attacks.Plugin(lambda model, x, y: (model.train(), x)[1], "training", 0.1)(NET, X, Y)
    assert not any(module.training for module in NET.modules())


def test_models_and_inputs_of_different_types() -> None:
    """The model gets its own type, points have that of the inputs, and nothing else changes."""
    wanted = attacks.FGSM(0.1)(NET, X, Y)
    double = copy.deepcopy(NET).double()
    for model, x in ((NET, X.double()), (double, X), (double, X.double()), (NET, X.half())):
        assert attacks.audit(model, x, Y).cosine == pytest.approx(1)
        for source in ("exact", attacks.From(NET), attacks.From(double)):
            points = attacks.PGD(0.1, steps=3)(model, x, Y, gradient=source)
            assert points.dtype == x.dtype
            # float16 rounds points near 1 by 5e-4
            assert (points.float() - X).abs().max() < 0.1 + 1e-3
        transferred = attacks.Transfer(attacks.FGSM(0.1), double)(model, x, Y)
        torch.testing.assert_close(transferred.float(), wanted, atol=1e-3, rtol=0)


def test_inputs_may_be_rounded_beyond_the_range() -> None:
    points = attacks.PGD(0.1, steps=2)(NET, X - 3e-8, Y)
    assert points.min() >= 0
    with pytest.raises(ValueError, match="outside the stated range"):
        attacks.PGD(0.1)(NET, X - 1e-5, Y)


def test_a_point_beyond_a_tiny_radius_is_seen() -> None:
    ball = attacks.ball.Ball(1e-5, "linf")
    points = torch.full((1, 2), 0.5) + torch.tensor([[1.9e-5, 0.0]])
    assert ball.strays(points, torch.full((1, 2), 0.5)).all()
    assert not ball.strays(points, points - torch.tensor([[1e-5, 0.0]])).any()


def test_norms_as_others_spell_them() -> None:
    assert attacks.PGD(0.1, norm="Linf") == attacks.PGD(0.1)
    assert attacks.PGD(0.1, norm="L2").norm == "l2"
    assert {attacks.PGD(0.1, norm=norm).norm for norm in ("L1", "l_1", 1, 1.0)} == {"l1"}


class Output(dict):
    """As transformers return it: a mapping with attributes."""

    @property
    def logits(self) -> Tensor:
        return self["logits"]


class Named(nn.Module):
    """Takes its input by name."""

    def __init__(self, output: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.net, self.output = NET, output

    def forward(self, pixel_values: Tensor) -> object:
        return self.output(self.net(pixel_values))


def test_mappings_in_and_out() -> None:
    for output in (lambda z: z, lambda z: Output(logits=z), lambda z: {"logits": z}):
        model = Named(output).eval()
        attack = attacks.PGD(0.1, steps=2)
        plain = attack(NET, X, Y)
        assert torch.equal(attack(model, X, Y), plain)
        points = attack(model, {"pixel_values": X}, Y)
        assert list(points) == ["pixel_values"] and torch.equal(points["pixel_values"], plain)
        assert attacks.audit(model, {"pixel_values": X}, Y).cosine == pytest.approx(1)
        with pytest.raises(ValueError, match="give one tensor"):
            attack(model, {"pixel_values": X, "mask": X}, Y)


def test_plugins_may_answer_in_numpy() -> None:
    plugin = attacks.Plugin(lambda model, x, y: (x + 0.05).clamp(0, 1).numpy(), "numpy", 0.1)
    assert torch.equal(plugin(NET, X, Y), (X + 0.05).clamp(0, 1))


class Mixing(nn.Module):
    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(NET(x))


def test_scores_that_depend_on_the_batch_are_refused() -> None:
    for net in (
        Mixing(lambda z: z - z.mean(0)),
        Mixing(lambda z: z - z[:1] / 10),
        Mixing(lambda z: z - z[-1:] / 10),
        Mixing(lambda z: z * (1 + len(z) % 2) - len(z) % 2 * z.roll(1, 1)),
        nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), NET),
    ):
        with pytest.raises(ValueError, match="depend on the other examples"):
            attacks.PGD(0.1)(net.eval(), X, Y)


class Otherwise(nn.Module):
    """Turns its input where a condition holds that is no property of the values."""

    def __init__(self, turned: Callable[[Tensor], bool]) -> None:
        super().__init__()
        self.turned = turned

    def forward(self, x: Tensor) -> Tensor:
        return NET(x.flip(3) if self.turned(x) else x)


@pytest.mark.parametrize(
    ("turned", "what"),
    [
        (lambda x: x.requires_grad, "gradients are recorded"),
        (lambda x: not x.is_leaf, "gradients are recorded"),
        (lambda x: torch.is_grad_enabled() and not x.requires_grad, "gradients are recorded"),
        (lambda x: x.is_inference(), "torch.inference_mode"),
        (lambda x: not x.is_contiguous(), "the strides of the input"),
    ],
)
def test_a_report_refuses_scores_that_depend_on_the_way_of_a_pass(
    turned: Callable[[Tensor], bool], what: str
) -> None:
    with pytest.raises(ValueError, match=f"scores depend on .*{what}"):
        attacks.robust_report(Otherwise(turned).eval(), X, Y, eps=0.1)


def test_a_model_that_takes_gradients_and_views_is_not_refused() -> None:
    """Inference mode and other strides would be errors of torch."""

    def inside(x: Tensor) -> Tensor:
        with torch.enable_grad():
            moved = x if x.requires_grad else x.detach().requires_grad_()
            energy = NET(moved.view(len(x), 64).view_as(moved)).logsumexp(1).sum()
            return torch.autograd.grad(energy, moved, create_graph=True)[0]

    class Inside(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return NET(x + inside(x))

    model = Inside().eval()
    for mode, x in ((torch.inference_mode(), X), (torch.no_grad(), X.mT.contiguous().mT)):
        with mode, pytest.raises(RuntimeError):
            model(x)
    check_steady(model, X, model(X).detach())


def test_a_report_refuses_scores_of_another_shape_for_one_example() -> None:
    with pytest.raises(ValueError, match="for 1 inputs: expected scores"):
        attacks.robust_report(Mixing(lambda z: z.squeeze()).eval(), X, Y, eps=0.1)


class Jitter(nn.Module):
    """Noise of a given size, as sums in another order are noise; of the last example alone."""

    def __init__(self, size: float) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        scores = NET(x)
        noise = self.size * torch.randn_like(scores)
        noise[:-1] = 0
        return scores + noise


def test_rounding_is_no_randomness_and_every_example_is_compared() -> None:
    x, y = digits()[0][:40], digits()[1][:40]
    attacks.PGD(0.1, steps=1)(Jitter(1e-7).eval(), x, y)
    with pytest.raises(ValueError, match="on the same inputs differ"):
        attacks.PGD(0.1, steps=1)(Jitter(0.1).eval(), x, y)
