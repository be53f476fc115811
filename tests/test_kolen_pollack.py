"""Kolen-Pollack: the laws by which B - W decays, exact and independent of the data."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import apical
from apical.rules import KolenPollack

STEPS = 40
LR, DECAY = 0.05, 0.3


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 3)
    ).double()


def _gaps(model: nn.Module) -> list[Tensor]:
    return [
        (layer.feedback.matrix - layer.weight).detach().clone()
        for layer in model.modules()
        if hasattr(layer, "feedback")
    ]


def _train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    parts: int = 1,
    between: Callable[[], Any] = lambda: None,
) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        x = torch.randn(6, 2, 6, 6, dtype=torch.float64, generator=generator)
        y = torch.randint(3, (6,), generator=generator)
        optimizer.zero_grad()
        for x_part, y_part in zip(x.chunk(parts), y.chunk(parts), strict=True):
            (F.cross_entropy(model(x_part), y_part) / parts).backward()
        between()
        optimizer.step()


def _step_alone(parameter: Tensor) -> None:
    optimizer = torch.optim.SGD([parameter], LR)
    optimizer.step()
    optimizer.zero_grad()


def _heavy_ball(lr: float, momentum: float, decay: float) -> float:
    """What is left of a gap of 1 whose only gradient is its decay."""
    gap, velocity = 1.0, 0.0
    for _ in range(STEPS):
        velocity = momentum * velocity + decay * gap
        gap -= lr * velocity
    return gap


LAWS: list[tuple[str, Callable[[Any], torch.optim.Optimizer], float, float]] = [
    ("sgd", lambda p: torch.optim.SGD(p, LR, weight_decay=DECAY), 0.0, (1 - LR * DECAY) ** STEPS),
    ("no decay", lambda p: torch.optim.SGD(p, LR), 0.0, 1.0),
    (
        "momentum",
        lambda p: torch.optim.SGD(p, LR, momentum=0.9, weight_decay=DECAY),
        0.0,
        _heavy_ball(LR, 0.9, DECAY),
    ),
    (
        "adamw",
        lambda p: torch.optim.AdamW(p, LR, weight_decay=DECAY),
        0.0,
        (1 - LR * DECAY) ** STEPS,
    ),
    ("the rule's own decay under adam", lambda p: torch.optim.Adam(p, LR), 0.01, 0.99**STEPS),
]


def test_the_rule_is_its_equation() -> None:
    """Five steps of a net of two layers, written out."""
    decay, lr = 0.1, 0.05
    generator = torch.Generator().manual_seed(4)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6, bias=False), nn.Tanh(), nn.Linear(6, 3, bias=False))
    apical.convert(model.double(), KolenPollack(decay=decay))
    optimizer = torch.optim.SGD(model.parameters(), lr)
    w1, w2 = (layer.weight.detach().clone() for layer in (model[0], model[2]))
    b2 = model[2].feedback.matrix.detach().clone()
    for _ in range(5):
        x = torch.randn(5, 4, dtype=torch.float64, generator=generator)
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
        h = torch.tanh(x @ w1.T)
        error = 2 * h @ w2.T
        g2, g1 = error.T @ h, (error @ b2 * (1 - h**2)).T @ x
        w1, w2, b2 = ((1 - decay) * (m - lr * g) for m, g in ((w1, g1), (w2, g2), (b2, g2)))
    seen = [model[0].weight, model[2].weight, model[2].feedback.matrix]
    for matrix, expected in zip(seen, [w1, w2, b2], strict=True):
        torch.testing.assert_close(matrix.detach(), expected, rtol=1e-12, atol=1e-14)


def test_weight_and_feedback_may_have_an_optimizer_each() -> None:
    """Whichever steps first, and also in the backward pass, the result is that of one."""
    made = []
    for order in ("one", "weight", "feedback", "each parameter"):
        for constrain in (False, True):
            rule = KolenPollack(decay=0.1, constrain_weights=constrain)
            model = apical.convert(_net(), rule)
            memory = {id(p) for p in apical.feedback_parameters(model)}
            groups: list[list[nn.Parameter]] = [[], []]
            for p in model.parameters():
                groups[id(p) in memory].append(p)
            if order == "one":
                groups = [[*groups[0], *groups[1]]]
            elif order == "feedback":
                groups.reverse()
            elif order == "each parameter":
                groups = []
                for p in model.parameters():
                    p.register_post_accumulate_grad_hook(_step_alone)
            optimizers = [torch.optim.SGD(group, LR) for group in groups]
            for seed in range(4):
                x = torch.randn(6, 2, 6, 6, generator=torch.Generator().manual_seed(seed))
                model(x.double()).square().mean().backward()
                for optimizer in optimizers:
                    optimizer.step()
                model.zero_grad()
            made.append([tensor.clone() for tensor in model.state_dict().values()])
    for state in range(2, len(made)):
        for tensor, expected in zip(made[state], made[state % 2], strict=True):
            assert torch.equal(tensor, expected)


def test_the_gap_decays_by_law() -> None:
    for _, build, decay, left in LAWS:
        model = apical.convert(_net(), KolenPollack(decay=decay))
        start = _gaps(model)
        _train(model, build(model.parameters()))
        for gap, first in zip(_gaps(model), start, strict=True):
            torch.testing.assert_close(gap, left * first, rtol=0, atol=1e-12)


def test_accumulation_clipping_and_nesterov_keep_the_law() -> None:
    model = apical.convert(_net(), KolenPollack(decay=0))
    start = _gaps(model)
    optimizer = torch.optim.SGD(
        model.parameters(), LR, momentum=0.9, nesterov=True, weight_decay=0.0, foreach=True
    )
    clip = lambda: nn.utils.clip_grad_norm_(model.parameters(), 0.01)  # noqa: E731
    _train(model, optimizer, parts=2, between=clip)
    for gap, first in zip(_gaps(model), start, strict=True):
        torch.testing.assert_close(gap, first, rtol=0, atol=1e-12)


def test_adam_with_coupled_decay_breaks_the_law_and_warns() -> None:
    model = apical.convert(_net(), KolenPollack(decay=0))
    start = _gaps(model)
    with pytest.warns(UserWarning, match="AdamW"):
        _train(model, torch.optim.Adam(model.parameters(), LR, weight_decay=DECAY))
    left = (1 - LR * DECAY) ** STEPS
    assert max((g - left * s).abs().max() for g, s in zip(_gaps(model), start, strict=True)) > 0.1


def test_feedback_has_the_gradient_of_its_weight_in_a_tensor_of_its_own() -> None:
    model = apical.convert(_net(), "kp")
    F.cross_entropy(model(torch.randn(6, 2, 6, 6).double()), torch.arange(6) % 3).backward()
    for layer in (model[0], model[3], model[5]):
        assert torch.equal(layer.feedback.matrix.grad, layer.weight.grad)
        assert layer.feedback.matrix.grad.data_ptr() != layer.weight.grad.data_ptr()


def test_an_optimizer_built_before_conversion_is_told_of() -> None:
    model = _net()
    optimizer = torch.optim.SGD(model.parameters(), LR)
    apical.convert(model, "kp")
    with pytest.warns(UserWarning, match=r"3\.feedback\.matrix"):
        _train(model, optimizer)


def test_a_frozen_or_other_group_for_feedback_is_told_of() -> None:
    model = apical.convert(_net(), "kp")
    groups = [
        {"params": list(apical.forward_parameters(model))},
        {"params": list(apical.feedback_parameters(model)), "lr": 0.001},
    ]
    with pytest.warns(UserWarning, match="different options"):
        _train(model, torch.optim.SGD(groups, LR))


def test_a_right_optimizer_gives_no_warning() -> None:
    model = apical.convert(_net(), "kp")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _train(model, torch.optim.AdamW(model.parameters(), LR))


def name_of(model: Any) -> str:
    return next(name for name, _ in model[3].feedback.named_parameters())


def penalty(model: Any) -> None:
    model[3].weight.square().sum().backward()


def noise(model: Any) -> None:
    """As for differential privacy, of every parameter's own."""
    for parameter in model.parameters():
        parameter.grad.add_(torch.randn_like(parameter))


def exact_pass(model: Any) -> None:
    with apical.exact_gradients(model):
        model(torch.ones(2, 2, 6, 6, dtype=torch.float64)).square().sum().backward()


CHANGES: dict[str, Callable[[Any], Any]] = {
    "clipped alone": lambda m: nn.utils.clip_grad_norm_(list(apical.forward_parameters(m)), 1e-3),
    "one clipped": lambda m: nn.utils.clip_grad_norm_(m[3].weight, 1e-5),
    "by hand": lambda m: m[3].weight.grad.mul_(0.5),
    "feedback alone": lambda m: m[3].feedback.get_parameter(name_of(m)).grad.mul_(3),
}
HOOKS: dict[str, Callable[[Tensor], Tensor]] = {
    "scaled": lambda g: 2 * g,
    "signs": torch.sign,
    "masked": lambda g: g.triu(),
}


@pytest.mark.parametrize("rule", ["kp", "pfa", "ldfa"])
def test_gradients_of_the_weight_alone_that_are_changed_are_warned_of_once(rule: str) -> None:
    text = (
        r"3.*: what the optimizer was given as the gradient of the weight is not that of its feed"
    )
    for change in (*CHANGES.values(), None):
        for hook in HOOKS.values() if change is None else [None]:
            model = apical.convert(_net(), rule)
            if hook is not None:
                model[3].weight.register_hook(hook)
            between = (lambda: change(model)) if change is not None else (lambda: None)  # noqa: B023
            with pytest.warns(UserWarning, match=text) as given:
                _train(model, torch.optim.SGD(model.parameters(), LR), between=between)
            assert len(given) == 1


@pytest.mark.parametrize("rule", ["kp", "pfa", "ldfa", "quantised(kp)", "sparse(kp)"])
def test_gradients_that_are_changed_alike_or_added_to_give_no_warning(rule: str) -> None:
    for change in (
        lambda m: nn.utils.clip_grad_norm_(m.parameters(), 1e-3),
        lambda m: [p.grad.mul_(0.1) for p in m.parameters() if p.grad is not None],
        lambda m: None,
        penalty,
        noise,
        exact_pass,
    ):
        model = apical.convert(_net().float(), rule).double()
        between = lambda: change(model)  # noqa: B023, E731
        _train(model, torch.optim.SGD(model.parameters(), LR, weight_decay=0.1), between=between)


def test_penalties_and_exact_passes_that_are_parallel_to_the_gradient_give_no_warning() -> None:
    torch.manual_seed(0)
    x, target = torch.randn(6, 4), torch.randn(6, 1)
    for case in ("one entry", "logged", "balanced", "exact"):
        width = 1 if case == "one entry" else 8
        layers = (nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 1))
        model: Any = apical.convert(nn.Sequential(*layers), "kp")
        if case == "logged":  # by a hook of every parameter
            for parameter in model.parameters():
                parameter.register_hook(lambda gradient: None)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(1030 if case == "balanced" else 8):
            optimizer.zero_grad()
            F.mse_loss(model(x), target).backward()
            if case == "exact":
                with apical.exact_gradients(model):
                    F.mse_loss(model(x), target).backward()
            else:
                penalties = [m.weight.square().sum() for m in model[::2]]
                (0.02 * torch.stack(penalties).sum()).backward()
            optimizer.step()


def test_the_law_holds_in_autocast() -> None:
    model = apical.convert(_net().float(), KolenPollack(decay=0))
    start = _gaps(model)
    optimizer = torch.optim.SGD(model.parameters(), LR, weight_decay=DECAY)
    x, y = torch.randn(6, 2, 6, 6), torch.arange(6) % 3
    for _ in range(STEPS):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
    left = (1 - LR * DECAY) ** STEPS  # in float32, the masters' precision
    for gap, first in zip(_gaps(model), start, strict=True):
        torch.testing.assert_close(gap, left * first, rtol=0, atol=1e-5)


def test_a_decay_that_would_diverge_is_refused() -> None:
    for decay in (-0.1, 1.0, 3.0):
        with pytest.raises(ValueError, match=r"outside \[0, 1\)"):
            KolenPollack(decay=decay)


def test_a_frozen_layer_is_refused_by_name() -> None:
    model = _net()
    model[3].weight.requires_grad_(False)
    with pytest.raises(ValueError, match=r"3 \(Linear\): its weight is frozen"):
        apical.convert(model, "kp")


def test_a_convolution_and_its_transpose_that_share_a_weight_obey_one_law() -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(
        nn.Conv2d(2, 2, 1), nn.Conv2d(2, 3, 3), nn.Tanh(), nn.ConvTranspose2d(3, 2, 3)
    ).double()
    model[3].weight = model[1].weight
    apical.convert(model, KolenPollack(decay=0.1))
    assert model[3].feedback is model[1].feedback
    start = (model[1].feedback.matrix - model[1].weight).detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.ones(1, 2, 5, 5).double()).square().mean().backward()
        optimizer.step()
    gap = (model[1].feedback.matrix - model[1].weight).detach()
    torch.testing.assert_close(gap, 0.9**5 * start, rtol=1e-12, atol=1e-14)
