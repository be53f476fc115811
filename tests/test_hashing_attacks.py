"""HAG and SDHA: their formulas written out, every gradient source, and what they leave alone."""

import math
from dataclasses import replace

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

import apical
from apical import attacks, retrieval
from apical.attacks.ball import Ball
from apical.retrieval import HAG, SDHA, Anchor, Database, relax
from apical.retrieval.attacks.attack import SHARPNESS

N, K, CLASSES = 6, 8, 3


def net(seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(16, 12), nn.Tanh()
        model = nn.Sequential(*layers, nn.Linear(12, K)).to(dtype).eval()
        model[-1].weight.data *= 9  # some bits are saturated
        with torch.no_grad():  # every bit changes
            model[-1].bias -= model(images(20, 9, dtype)).mean(0)
        return model


def images(count: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 1, 4, 4, dtype=dtype, generator=generator)


def database(model: nn.Module, *, several: bool = False) -> Database:
    x = images(20, 9, next(model.parameters()).dtype)
    labels = torch.arange(20) % CLASSES
    if several:
        labels = nn.functional.one_hot(labels, CLASSES + 1)
        labels[::4, 0] = 1
    return Database(retrieval.encode(model, x), labels)


MODEL = net()
X = images(N, 5)
Y = torch.tensor([0, 1, 2, 0, 1, 2])
KNOWN = database(MODEL)


def hag_loss(v: Tensor, u: Tensor, t: float, beta: float) -> Tensor:
    """L of one example, bit by bit."""
    total, norm, left = 0.0, 0.0, 0
    for k in range(K):
        if abs(v[k].item() - math.copysign(1, u[k])) < 1 + t:
            left += 1
            total = total + v[k] * u[k]
            norm = norm + v[k]
    similarity = total / left if left else v.sum() * 0
    return (similarity + 1) ** 2 + beta * (norm / K) ** 2


def sdha_loss(q: Tensor, codes: list[Tensor], change: Tensor, targeted: bool) -> Tensor:
    """L of one example, code by code and bit by bit."""
    s = 10 if targeted else 5
    mean = 0.0
    for r in codes:
        differ = sum((q[k] >= 0).item() != (r[k] > 0).item() for k in range(K))
        weight = differ**0.3 if targeted else max(differ, 1) ** -0.5
        distance = 0.0
        for k in range(K):
            near = torch.sigmoid(s * q[k] * r[k])
            gap = (q[k] - r[k]).abs() / 2
            distance = distance + (gap * (1 - near) if targeted else gap * near + 1 - near)
        mean = mean + weight * distance / len(codes)
    sign = 1 if targeted else -1
    return change.square().mean() + sign * 25 / K * mean


def written_out(attack, x: Tensor, loss_of) -> Tensor:
    """One example at a time: autograd through the loss, torch's optimizers, projection."""
    size, results = attack.step_size, []
    for i in range(len(x)):
        point = x[i : i + 1].clone().requires_grad_()
        optimizer = {
            "sgd": lambda p: torch.optim.SGD([p], 100.0 if size is None else size, momentum=0.9),
            "adam": lambda p: torch.optim.Adam([p], 0.01, betas=(0.9, 0.999)),
            "sign": lambda p: None,
        }[attack.optimizer](point)
        for step in range(attack.steps):
            alpha = attack.sharpness[int(step / attack.steps * len(attack.sharpness))]
            loss = loss_of(i, MODEL(point)[0], point - x[i : i + 1], alpha)
            (gradient,) = torch.autograd.grad(loss, point)
            with torch.no_grad():
                if optimizer is None:
                    point -= 2.5 * attack.eps / attack.steps * gradient.sign()
                else:
                    point.grad = gradient
                    optimizer.step()
                point.copy_(
                    torch.maximum(torch.minimum(point, x[i] + attack.eps), x[i] - attack.eps)
                )
                point.clamp_(0, 1)
        results.append(point.detach())
    return torch.cat(results)


@pytest.mark.parametrize("optimizer", ["sign", "sgd", "adam"])
@pytest.mark.parametrize(("margin", "balance"), [(0.5, 1.0), (0.1, 0.3)])
def test_hag_is_its_formula(optimizer, margin, balance):
    options = {"margin": margin, "balance": balance, "sharpness": SHARPNESS}
    attack = HAG(0.2, 10, optimizer=optimizer, **options)
    clean = torch.tanh(MODEL(X)).detach()
    expected = written_out(
        attack, X, lambda i, h, change, a: hag_loss(torch.tanh(a * h), clean[i], margin, balance)
    )
    torch.testing.assert_close(attack(MODEL, X), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("optimizer", ["sign", "sgd", "adam"])
@pytest.mark.parametrize("targeted", [False, True], ids=["away", "targeted"])
@pytest.mark.parametrize("several", [False, True], ids=["one label", "several labels"])
def test_sdha_is_its_formula(optimizer, targeted, several):
    known = database(MODEL, several=several)
    step = 0.05 if optimizer == "sgd" else None  # at 100 it jumps from corner to corner
    options = {"step_size": step, "database": known, "targeted": targeted, "sharpness": SHARPNESS}
    attack = SDHA(0.2, 10, optimizer=optimizer, **options)
    y = (Y + 1) % CLASSES if targeted else Y.clone()
    signs = known.codes.signs().double()
    if not several and not targeted:
        y[3] = 99  # nothing in the database is relevant: its own code counts
    labels = nn.functional.one_hot(y, CLASSES + 1) if several else y

    def loss(i: int, h: Tensor, change: Tensor, alpha: float) -> Tensor:
        if several:
            codes = [r for r, z in zip(signs, known.labels, strict=True) if z[y[i]] > 0]
        else:
            codes = [r for r, z in zip(signs, known.labels, strict=True) if z == y[i]]
        codes = codes or [MODEL(X[i : i + 1])[0].sign()]
        if optimizer == "sign":  # the ball alone limits the change
            change = torch.zeros_like(change)
        return sdha_loss(torch.tanh(alpha * h), codes, change, targeted)

    points = attack(MODEL, X, labels)
    torch.testing.assert_close(points, written_out(attack, X, loss), rtol=1e-9, atol=1e-12)
    assert not torch.equal(points, X)


def test_the_anchor_is_a_vote_for_and_against():
    attack = Anchor(0.1, database=database(MODEL))
    known = torch.tensor([[1.0, 1, -1, 1], [1, -1, -1, -1], [1, 1, 1, 1]])
    wanted = torch.tensor([[1.0, 1, 0], [0, 0, 0]])
    own = torch.tensor([[1.0, 1, 1, 1], [-1, 1, -1, 1]])
    # of those to be found (1, 0, -1, 0), of the other (1, 1, 1, 1): votes (0, -1, -2, -1)
    expected = torch.tensor([[1.0, -1, -1, -1], [-1, 1, -1, 1]])
    assert torch.equal(attack.anchor(known, wanted, own), expected)


@pytest.mark.parametrize("targeted", [False, True], ids=["away", "targeted"])
def test_anchor_is_its_formula(targeted):
    known = database(MODEL)
    attack = Anchor(0.2, 10, database=known, targeted=targeted)
    y = (Y + 1) % CLASSES if targeted else Y
    signs = known.codes.signs().double()

    def loss(i: int, h: Tensor, change: Tensor, alpha: float) -> Tensor:
        near = torch.stack([r for r, z in zip(signs, known.labels, strict=True) if z == y[i]])
        far = torch.stack([r for r, z in zip(signs, known.labels, strict=True) if z != y[i]])
        votes = near.mean(0) - far.mean(0)
        anchor = torch.where(votes >= 0, 1.0, -1.0).double()
        return (torch.tanh(alpha * h) * anchor).mean() * (-1 if targeted else 1)

    points = attack(MODEL, X, y)
    torch.testing.assert_close(points, written_out(attack, X, loss), rtol=1e-9, atol=1e-12)


def test_bits_that_are_safely_turned_get_no_gradient():
    clean = torch.tensor([[0.9, -0.9, 0.9, 0.9]], dtype=torch.float64)
    moved = torch.tensor([[-0.6, 0.4, -0.4, 0.9]], dtype=torch.float64, requires_grad=True)
    HAG(0.1).objective(moved, clean).sum().backward()
    assert (moved.grad != 0).tolist() == [[False, True, True, True]]
    turned = torch.tensor([[-0.6, 0.6, -0.7, -0.8]], dtype=torch.float64, requires_grad=True)
    loss = HAG(0.1).objective(turned, clean)
    loss.sum().backward()
    assert loss.item() == 1 and not turned.grad.any()


EVERY = {
    "hag": HAG(0.15, 12),
    "hag l2": HAG(0.6, 12, norm="l2"),
    "hag l1": HAG(3.0, 12, norm="l1"),
    "hag sgd": HAG(0.15, 12, optimizer="sgd"),
    "hag adam": HAG(0.15, 12, optimizer="adam"),
    "anchor": Anchor(0.15, 12, database=KNOWN),
    "anchor targeted l2": Anchor(0.6, 12, norm="l2", database=KNOWN, targeted=True),
    "sdha": SDHA(0.15, 12, database=KNOWN),
    "sdha sgd": SDHA(0.15, 12, optimizer="sgd", database=KNOWN),
    "sdha adam l2": SDHA(0.6, 12, norm="l2", optimizer="adam", database=KNOWN),
    "sdha targeted": SDHA(0.15, 12, database=KNOWN, targeted=True),
}


@settings(deadline=None, max_examples=25, derandomize=True)
@given(
    name=st.sampled_from(sorted(EVERY)),
    eps=st.floats(1e-6, 0.9),
    low=st.floats(-3, 3),
    width=st.floats(0.95, 5),
    rule=st.sampled_from(["bp", "usf", "fa", "dfa"]),
    gradient=st.sampled_from(["own", "exact", "rule:usf"]),
)
def test_no_attack_leaves_ball_range_or_model(name, eps, low, width, rule, gradient):
    model, bounds = net(), (low, low + width)
    if rule != "bp":
        apical.convert(model, rule, example=X[:1])
    attack = replace(EVERY[name], eps=eps, bounds=bounds, steps=3)
    x = (low + width * X).clamp(*bounds)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.get_rng_state()
    points = attack(model, x, Y, gradient=gradient)
    assert points.min() >= low and points.max() <= low + width
    assert not Ball(eps, attack.norm, *bounds).strays(points, x).any()
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not model.training


def test_an_example_does_not_depend_on_its_neighbours():
    for name in EVERY:
        whole = EVERY[name](MODEL, X, Y)
        alone = torch.cat([EVERY[name](MODEL, X[i : i + 1], Y[i : i + 1]) for i in range(N)])
        torch.testing.assert_close(whole, alone, rtol=1e-9, atol=1e-12)
        assert torch.equal(EVERY[name](MODEL, X, Y), whole)


def bits_turned(model: nn.Module, x: Tensor, points: Tensor) -> float:
    codes, moved = retrieval.encode(model, x), retrieval.encode(model, points)
    return retrieval.pairwise_distances(codes, moved).double().mean().item()


def test_they_do_what_they_are_for():
    noise = attacks.Noise(0.15, kind="gaussian")(MODEL, X, Y.new_zeros(N))
    by_noise = bits_turned(MODEL, X, noise)
    for name in ("hag", "hag adam", "sdha"):
        assert bits_turned(MODEL, X, EVERY[name](MODEL, X, Y)) > by_noise + 0.5
    target = (Y + 1) % CLASSES
    centre = KNOWN.codes.signs().double()

    def distance(points: Tensor) -> Tensor:
        now = retrieval.encode(MODEL, points).signs().double()
        return torch.stack(
            [
                (K - centre[KNOWN.labels == t] @ c).mean() / 2
                for t, c in zip(target, now, strict=True)
            ]
        ).mean()

    points = EVERY["sdha targeted"](MODEL, X, target)
    assert distance(points) < distance(X) - 0.5


def test_every_source_of_gradients_works_and_differs():
    model = apical.convert(net(), "brsf", example=X[:1])
    attack = HAG(0.1, 10, optimizer="sgd", step_size=1.0)
    found = {
        source: attack(model, X, gradient=source)
        for source in ["own", "exact", "own-averaged:3", "rule:fa", "finite-difference"]
    }
    plain = net()
    plain.load_state_dict(model.state_dict(), strict=False)
    assert torch.equal(found["exact"], attack(plain, X))
    torch.testing.assert_close(found["finite-difference"], found["exact"], atol=1e-4, rtol=0)
    distinct = [found[s] for s in ["own", "exact", "own-averaged:3", "rule:fa"]]
    for i, one in enumerate(distinct):
        assert not any(torch.equal(one, other) for other in distinct[i + 1 :])


def test_a_transfer_is_made_on_the_other_net_with_its_codes():
    other = net(3)
    inner = SDHA(0.1, 5, database=database(other))
    points = attacks.Transfer(inner, other)(MODEL, X, Y)
    assert torch.equal(points, inner(other, X, Y))
    averaged = attacks.EOT(HAG(0.1, 5), 2)
    torch.testing.assert_close(averaged(MODEL, X, Y), HAG(0.1, 5)(MODEL, X))
    with pytest.raises(ValueError, match=r"attacks.Transfer\(HAG"):
        HAG(0.1)(MODEL, X, gradient=attacks.From(other))


def test_sizes_of_changes():
    x = torch.zeros(2, 1, 2, 2)
    moved = torch.tensor([[0.3, 0, 0, 0.4], [0, 0, 0, 1.0]]).view(2, 1, 2, 2)
    seen = retrieval.perceptibility(x, moved)
    assert (seen.linf, seen.l2) == pytest.approx((0.7, 0.75))
    assert seen.mse == pytest.approx((0.25 / 4 + 1 / 4) / 2)


def test_labels_in_tables_tell_attacks_apart():
    labels = {name: attack.label for name, attack in EVERY.items()}
    assert labels["hag"] == "HAG-12" and labels["sdha targeted"] == "SDHA-12 targeted"
    assert labels["hag sgd"] == "HAG-12 sgd"
    assert EVERY["hag"].passes(K) == 13


def test_bad_input_is_named():
    for make, message in (
        (lambda: HAG(0.1, 0), "steps=0 must be at least 1"),
        (lambda: HAG(8), "did you mean 8/255"),
        (lambda: HAG(0.1, step_size=0), "step_size=0 must be above 0"),
        (lambda: HAG(0.1, sharpness=()), "numbers above 0"),
        (lambda: HAG(0.1, optimizer="lbfgs"), "optimizer='lbfgs' is not one of 'adam', 'sgd'"),
        (lambda: HAG(0.1, margin=-1), "margin=-1"),
        (lambda: HAG(0.1)(MODEL, X, gradient="none"), "follows a gradient"),
        (lambda: SDHA(0.1), "database= is missing"),
        (lambda: SDHA(0.1, database=KNOWN)(MODEL, X, Y[1:]), "for 6 items"),
        (
            lambda: SDHA(0.1, database=KNOWN)(MODEL, X, nn.functional.one_hot(Y)),
            "cannot be compared",
        ),
        (
            lambda: SDHA(0.1, database=KNOWN, targeted=True)(MODEL, X, Y + 1),
            r"no code of the database has target label 3 \(query 2\)",
        ),
        (
            lambda: SDHA(0.1, database=KNOWN)(nn.Sequential(MODEL, nn.MaxPool1d(2)).eval(), X, Y),
            "codes of 8 bits, the model gives 4",
        ),
        (lambda: retrieval.perceptibility(X, X[1:]), "the same examples"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


def test_an_empty_batch_and_no_room_change_nothing():
    for attack in EVERY.values():
        assert attack(MODEL, X[:0], Y[:0]).shape == (0, 1, 4, 4)
        assert torch.equal(replace(attack, eps=0.0)(MODEL, X, Y), X)


def test_relaxation_tends_to_the_code():
    h = MODEL(X).detach()
    torch.testing.assert_close(relax(h, 1e6), retrieval.pack(h).signs().double())
