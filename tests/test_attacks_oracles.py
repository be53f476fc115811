"""Our attacks against independent implementations, on the same seeds.

torchattacks draws from torch's global generator, and so does pyautoattack after seeding it: an own
generator of the same seed gives the same numbers.

pyautoattack's APGD works in float32 whatever it is given. Its Square does not: it is compared in
float64, since in L2 it divides the old change in a window by its norm also where little but the
rounding of `point - x` is left of it, and another order of summation, as another CPU has it, then
moves an example by 1e-4 in float32.
"""

import copy
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType

import numpy
import pytest
import torch
from torch import Tensor, nn

from apical import attacks
from apical.attacks.pixels import Draws
from victims import correct, digits, trained

# Their loss is a mean over the batch, ours a sum: with 128 images the factor is a power of two, and
# both gradients have the same digits on every CPU.
X, Y = digits()[0][1300:1428], digits()[1][1300:1428]


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return trained()


@pytest.fixture
def double(net: nn.Module) -> Iterator[nn.Module]:
    """The net in float64, with that as the default type of both implementations."""
    torch.set_default_dtype(torch.float64)
    yield copy.deepcopy(net).double()
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def torchattacks(torchvision: ModuleType) -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torchattacks

    return torchattacks


@pytest.fixture(scope="module")
def pyautoattack() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pyautoattack
        import pyautoattack.autopgd_base
        import pyautoattack.square

    return pyautoattack


def seeded(make: Callable[[], Tensor], seed: int = 3) -> Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        with warnings.catch_warnings():  # of zero gradients, where it means them
            warnings.simplefilter("ignore")
            return make()


def test_fgsm_equals_torchattacks(net: nn.Module, torchattacks: ModuleType) -> None:
    reference = torchattacks.FGSM(net, eps=0.1)(X, Y)
    assert torch.equal(attacks.FGSM(0.1)(net, X, Y), reference)
    assert not correct(net, reference, Y).all()


def test_pgd_equals_torchattacks(net: nn.Module, torchattacks: ModuleType) -> None:
    reference = seeded(lambda: torchattacks.PGD(net, eps=0.1, alpha=0.01, steps=20)(X, Y))
    ours = attacks.PGD(0.1, steps=20, step_size=0.01, seed=3)(net, X, Y)
    assert torch.equal(ours, reference)


def test_pgd_in_l2_equals_torchattacks(net: nn.Module, torchattacks: ModuleType) -> None:
    # Its 1e-10 is not small beside the gradient of a mean over examples that are far from broken.
    options = {"eps": 1.0, "alpha": 0.1, "steps": 5, "eps_for_division": 1e-20}
    reference = seeded(lambda: torchattacks.PGDL2(net, **options)(X, Y))
    ours = attacks.PGD(1.0, steps=5, step_size=0.1, norm="l2", seed=3)(net, X, Y)
    # Norms are divided out in another order; five steps carry the rounding of float32 on.
    torch.testing.assert_close(ours, reference, rtol=0, atol=1e-5)


def test_tpgd_equals_torchattacks(net: nn.Module, torchattacks: ModuleType) -> None:
    reference = seeded(lambda: torchattacks.TPGD(net, eps=0.1, alpha=0.02, steps=7)(X, Y))
    ours = attacks.TPGD(0.1, steps=7, step_size=0.02, start="clamped", seed=3)(net, X, Y)
    assert torch.equal(ours, reference)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_apgd_equals_pyautoattack(
    net: nn.Module, pyautoattack: ModuleType, norm: str, loss: str
) -> None:
    eps = {"linf": 0.08, "l2": 0.5}[norm]
    options = {"norm": norm.replace("l", "L", 1), "eps": eps, "loss": loss, "seed": 5}
    make = pyautoattack.autopgd_base.APGDAttack(net, n_iter=40, n_restarts=2, **options)
    reference = seeded(lambda: make.perturb(X, Y))
    ours = attacks.APGD(eps, 40, norm, restarts=2, loss=loss, seed=5)(net, X, Y)
    same_where_broken(net, X, ours, reference, atol=1e-5, share=1 if norm == "linf" else 0.9)


def test_targeted_apgd_equals_pyautoattack(net: nn.Module, pyautoattack: ModuleType) -> None:
    make = pyautoattack.autopgd_base.APGDAttack_targeted(
        net, n_iter=20, norm="Linf", eps=0.08, seed=5, n_target_classes=4
    )
    reference = seeded(lambda: make.perturb(X, Y))
    ours = attacks.APGD(0.08, 20, loss="dlr-targeted", targets=4, seed=5)(net, X, Y)
    same_where_broken(net, X, ours, reference, atol=1e-5)


def projection(x: Tensor, change: Tensor, eps: float) -> Tensor:
    """What moves a point into ball and range, in place of pyautoattack's, which is in float32."""
    return attacks.ball.Ball(eps, "l1").project(x + change, x) - (x + change)


def test_apgd_in_l1_equals_pyautoattack(
    double: nn.Module, pyautoattack: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for its projection, and its number of changed values, which counts those where x + u - u
    is not x by rounding. The cross entropy: DLR is constant where the label has the third largest
    score, as in the larger balls, and a step by signs then follows the rounding of a zero."""
    base = pyautoattack.autopgd_base
    monkeypatch.setattr(base, "L1_projection", projection)
    monkeypatch.setattr(base, "L0_norm", lambda change: (change.abs() > 1e-12).flatten(1).sum(1))
    right, eps = correct(double, X.double(), Y), 1.2
    x, y = X.double()[right], Y[right]
    make = base.APGDAttack(double, n_iter=40, norm="L1", eps=eps)
    make.init_hyperparam(x)
    radii = [3 * eps, 2 * eps, eps]
    best, safe, _, broken = seeded(lambda: make.decr_eps_pgd(x, y, radii, [12, 12, 16]), 5)
    ours = attacks.APGD(eps, 40, "l1", seed=5)(double, x, y)
    safe = safe.bool()
    assert torch.equal(correct(double, ours, y), safe) and 10 < safe.sum() < len(x) - 10
    reference = torch.where(safe.view(-1, 1, 1, 1), best, broken)
    torch.testing.assert_close(ours, reference, rtol=0, atol=1e-9)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_fab_is_as_near_as_pyautoattack(
    net: nn.Module, pyautoattack: ModuleType, norm: str
) -> None:
    """Towards one class, where both take the same steps; ours then takes the overshoot back, which
    is 0.5 % where the boundary is flat and 10 % at most. In L1 rounding can decide which entries a
    step changes, and so another course: of one image in twenty at most."""
    import pyautoattack.fab_pt

    right = correct(net, X, Y)
    x, y = X[right][:64], Y[right][:64]
    name = norm.replace("l", "L", 1)
    make = pyautoattack.fab_pt.FABAttack_PT(
        net, norm=name, n_iter=20, n_restarts=1, eps=100.0, n_target_classes=1, targeted=True,
        device="cpu",
    )  # fmt: skip
    reference = seeded(lambda: make.perturb(x, y))
    ours = attacks.FAB(None, 20, norm, targets=1)(net, x, y)
    sizes = [attacks.ball.lengths(points - x, norm) for points in (ours, reference)]
    assert (sizes[0] > 0).all()
    ratio = sizes[0] / sizes[1]
    same = (ratio < 1 + 1e-4) & (ratio > 0.9)
    assert same.float().mean() >= (0.95 if norm == "l1" else 1) and ratio.mean() > 0.99


def test_apgd_finds_the_same_highest_loss(net: nn.Module, pyautoattack: ModuleType) -> None:
    right = correct(net, X, Y)
    x, y = X[right], Y[right]  # of these both attack all
    make = pyautoattack.autopgd_base.APGDAttack(net, n_iter=40, norm="Linf", eps=0.03, seed=5)
    reference = seeded(lambda: make.perturb(x, y, best_loss=True), 5)
    ours = attacks.APGD(0.03, 40, seed=5)(net, x, y)
    unbroken = correct(net, ours, y)
    assert unbroken.sum() > 50
    torch.testing.assert_close(ours[unbroken], reference[unbroken], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.08), ("l2", 0.6), ("l1", 4.0)])
def test_square_equals_pyautoattack(
    double: nn.Module,
    pyautoattack: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    norm: str,
    eps: float,
) -> None:
    def lengthened(x: Tensor, change: Tensor, radius: float) -> Tensor:
        return projection(x, change, radius / (1 - 1e-6))  # for its rounding

    monkeypatch.setattr(pyautoattack.square, "L1_projection", lengthened)
    make = pyautoattack.square.SquareAttack(
        double, norm=norm.replace("l", "L", 1), eps=eps, n_queries=200, n_restarts=2, seed=5
    )
    with torch.no_grad():
        reference = seeded(lambda: make.perturb(X.double(), Y))
    ours = attacks.Square(eps, 200, norm, restarts=2, seed=5)(double, X.double(), Y)
    same_where_broken(double, X.double(), ours, reference, atol=1e-9)


def same_where_broken(
    net: nn.Module, x: Tensor, ours: Tensor, reference: Tensor, *, atol: float, share: float = 1
) -> None:
    """They return the clean input where they fail, we the best point: compare where they succeed.

    Args: share: of the examples that must agree; the rest may come to a tie of two losses that
        rounding decides.
    """
    attacked, broken = correct(net, x, Y), ~correct(net, reference, Y)
    assert torch.equal(~correct(net, ours, Y), broken)
    gap = (ours - reference)[attacked & broken].abs().flatten(1).amax(1)
    assert len(gap) > 10
    assert (gap < atol).float().mean() >= share


class Replayed(Draws):
    """NumPy's numbers in the order in which torchattacks draws them, for one image."""

    def __init__(self, seed: int) -> None:
        self.numpy = numpy.random.RandomState(seed)

    def genomes(self, count: int, size: int, length: int) -> Tensor:
        return torch.from_numpy(self.numpy.random_sample((size, length)))[None]

    def challengers(self, genomes: Tensor) -> Tensor:
        _, size, length = genomes.shape
        factor = self.numpy.rand() * 0.5 + 0.5
        pairs = [self._pair(size, length, candidate) for candidate in range(size)]
        one, another = torch.tensor(pairs).t()
        trials = genomes[:, :1] + factor * (genomes[:, one] - genomes[:, another])
        for trial in trials[0]:
            outside = (trial < 0) | (trial > 1)
            trial[outside] = torch.from_numpy(self.numpy.rand(int(outside.sum())))
        return trials

    def _pair(self, size: int, length: int, candidate: int) -> list[int]:
        self.numpy.randint(0, length)
        others = [index for index in range(size) if index != candidate]
        self.numpy.shuffle(others)
        self.numpy.rand(length)
        return others[:2]


@pytest.mark.parametrize("pixels", [1, 3])
def test_few_pixels_equal_torchattacks(
    net: nn.Module,
    torchattacks: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    pixels: int,
) -> None:
    reference = torchattacks.OnePixel(net, pixels=pixels, steps=6, popsize=30)
    attack = attacks.FewPixel(pixels, steps=6, population=30)
    state, broken = numpy.random.get_state(), 0
    for row in range(6):
        x, y = X[row : row + 1], Y[row : row + 1]
        numpy.random.seed(row)
        expected = reference(x, y)
        monkeypatch.setattr(attacks.FewPixel, "draws", lambda self, row=row: Replayed(row))
        ours = attack(net, x, y)
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)
        broken += int(not correct(net, ours, y).item())
    numpy.random.set_state(state)
    assert broken > 0
