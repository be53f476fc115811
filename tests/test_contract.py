"""Every rule keeps the testing, and the contract refuses rules that are broken."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

import apical
from apical import rules, testing
from apical.rules import (
    BP,
    DFA,
    DRTP,
    FA,
    RULES,
    AlignmentLoss,
    BroadcastRule,
    DirectKolenPollack,
    DirectLowDimensional,
    KolenPollack,
    LocalError,
    LowDimensional,
    ProductFeedback,
    Quantised,
    Rule,
    SignDFA,
    SignSymmetric,
    Sparse,
    TransportRule,
    WeightMirror,
)
from apical.rules.base import Geometry, Local, Update, bound, fans, uniform
from apical.rules.mirror import RELEASED
from apical.rules.ops import LinearOp
from apical.testing import CHECKS, ContractError

VARIANTS = [
    BP(constrain_weights=True),
    FA(init="kaiming"),
    FA(scale="norm"),
    FA(constrain_weights=True),
    SignSymmetric("uniform", init="kaiming", zero_sign="plus"),
    SignSymmetric("uniform", scale="norm"),
    SignSymmetric("fresh", redraw="pool"),
    SignSymmetric("fresh", init="kaiming", constrain_weights=True),
    SignSymmetric("fixed", scale="norm"),
    DFA(layout="kernel"),
    DFA(layout="channel", init="kaiming"),
    DFA(init="noekland", shared=True),
    DFA(layout="channel", shared=True),
    DFA(constrain_weights=True, sample_axis="folded"),
    DFA(layout="kernel", sample_axis="steps"),
    DRTP(layout="kernel"),
    DirectKolenPollack(layout="channel", init="noekland"),
    DirectLowDimensional(rank=1, projection="labels", layout="channel"),
    DirectLowDimensional(projection="fixed"),
    LocalError("trained", loss="squared_error"),
    LowDimensional(rank=1.0, projection="fixed", follows="update", scale="norm"),
    LowDimensional(rank=0.75, follows="update", orthonormalise=2),
    ProductFeedback(expansion=1.0, decay=0, constrain_weights=True),
    Quantised(LowDimensional(), bits=1),
    Quantised(rules.build("brsf")),
    SignDFA(layout="channel"),
    Sparse(KolenPollack()),
    Sparse(Quantised(Sparse(FA()))),
    AlignmentLoss("mirror"),
    AlignmentLoss("symmetric", init="normal"),
    dataclasses.replace(RELEASED, initial=2),  # its 468 batches of noise say no more
    WeightMirror(every=2, noise="uniform"),
]


@pytest.mark.parametrize("name", RULES)
def test_every_rule_keeps_the_contract(name: str) -> None:
    report = apical.check_rule(name)
    assert {check for check, _ in report.rows} >= set(CHECKS)
    assert str(report).startswith(f"{name}: keeps the contract")


@pytest.mark.parametrize("rule", VARIANTS, ids=apical.rules.spell)
def test_every_variant_keeps_the_contract(rule: Rule) -> None:
    assert apical.check_rule(rule).rule == apical.rules.spell(rule)


@dataclass(frozen=True)
class Learned(TransportRule):
    """Feedback that gets the weight's gradient."""

    reference: ClassVar[str] = "@misc{learned}"

    def create(self, weight: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        half_width = bound("xavier", *fans(weight.shape))
        return {"matrix": nn.Parameter(uniform(weight.shape, half_width, generator))}

    def matrix(self, weight: Tensor, matrix: Tensor) -> Tensor:
        return matrix

    def memory_gradients(self, local: Local, *memory: Tensor) -> Sequence[Tensor]:
        return (local.grad_weight.clone(),)


def test_a_rule_whose_feedback_is_trained_keeps_the_contract() -> None:
    apical.check_rule(Learned())


@dataclass(frozen=True)
class Sound(TransportRule):
    """What the broken rules below break in one place each."""

    reference: ClassVar[str] = "@misc{sound}"

    def create(self, weight: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        return {"matrix": uniform(weight.shape, bound("xavier", *fans(weight.shape)), generator)}

    def matrix(self, weight: Tensor, matrix: Tensor) -> Tensor:
        return matrix


@dataclass(frozen=True)
class IgnoredField(Sound):
    """Accepts a gain and forgets it."""

    gain: float = 2.0


@dataclass(frozen=True)
class OpaqueField(Sound):
    """A field whose other values cannot be guessed."""

    path: str = "a"


@dataclass(frozen=True)
class DrawsInBackward(Sound):
    """Noise from the global generator at every backward pass."""

    def matrix(self, weight: Tensor, matrix: Tensor) -> Tensor:
        return matrix + 0.01 * torch.randn_like(matrix)


@dataclass(frozen=True)
class CountsPasses(Sound):
    """Its memory changes although no weight was updated."""

    def matrix(self, weight: Tensor, matrix: Tensor) -> Tensor:
        return matrix.mul_(1.01).clone()


@dataclass(frozen=True)
class GlobalDraw(Sound):
    """Feedback from the global generator."""

    def create(self, weight: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        return {"matrix": torch.randn(weight.shape, dtype=torch.float64)}


@dataclass(frozen=True)
class OneSeed(Sound):
    """The same feedback whatever the seed."""

    def create(self, weight: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        return super().create(weight, torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class Silent(Sound):
    """Hidden layers hear nothing."""

    def matrix(self, weight: Tensor, matrix: Tensor) -> Tensor:
        return torch.zeros_like(weight)


@dataclass(frozen=True)
class ChangesWeights(Sound):
    """The backward pass alters the weight, hence the next forward."""

    def matrix(self, weight: Tensor, matrix: Tensor) -> Tensor:
        weight.data.add_(0.1)
        return matrix


@dataclass(frozen=True)
class Steep(Sound):
    """Feedback so strong that no learning rate works."""

    def matrix(self, weight: Tensor, matrix: Tensor) -> Tensor:
        return 1e300 * matrix


@dataclass(frozen=True)
class Wide(Sound):
    """Feedback in float32 and of the wrong shape for convolutions."""

    def matrix(self, weight: Tensor, matrix: Tensor) -> Tensor:
        return matrix.flatten(1)


STASH: dict[torch.Size, Tensor] = {}


@dataclass(frozen=True)
class Uncited(Sound):
    """Without a source."""

    reference: ClassVar[str] = ""


@dataclass(frozen=True)
class NoReference(TransportRule):
    """Not even the attribute."""

    create = Sound.create
    matrix = Sound.matrix


@dataclass(frozen=True)
class IgnoresScale(BroadcastRule):
    """Sends signs: the loss's scale is lost."""

    reference: ClassVar[str] = "@misc{ignoresscale}"

    def create(
        self, geometry: Geometry, error_size: int, generator: torch.Generator
    ) -> dict[str, Tensor]:
        units = torch.Size(geometry.input_shape[1:]).numel()
        return {"matrix": uniform((error_size, units), 0.1, generator)}

    def signal(self, error: Tensor, geometry: Geometry, matrix: Tensor) -> Tensor:
        return (error.sign() @ matrix).view(geometry.input_shape)


@dataclass(frozen=True)
class KeepsError(IgnoresScale):
    """Remembers the first batch's error and sends it for ever."""

    def signal(self, error: Tensor, geometry: Geometry, matrix: Tensor) -> Tensor:
        first = STASH.setdefault(matrix.shape, error[:1].clone())
        return (first.expand(len(error), -1) @ matrix).view(geometry.input_shape)


@dataclass(frozen=True)
class Redraws(Sound):
    """Acts after updates, but from the global generator."""

    @property
    def acts_after_update(self) -> bool:
        return True

    def after_update(self, update: Update, *memory: Tensor) -> None:
        memory[0].uniform_(-0.1, 0.1)


@pytest.mark.parametrize(
    ("rule", "check", "text"),
    [
        (IgnoredField(), "field gain matters", "no difference between 2.0 and 1.0, 4.0"),
        (OpaqueField(), "field path matters", "alternatives={...}"),
        (DrawsInBackward(), "nothing drawn without an update", "generator moved on"),
        (DrawsInBackward(), "global generator untouched", "three training steps"),
        (CountsPasses(), "nothing drawn without an update", "differs by"),
        (GlobalDraw(), "global generator untouched", "creating feedback"),
        (GlobalDraw(), "seed decides", "the same feedback from the same seed"),
        (OneSeed(), "seed decides", "other feedback from another seed"),
        (Silent(), "hidden layers move", "gradient of zeros"),
        (Silent(), "every kind of layer", "Linear: below.weight got nothing"),
        (ChangesWeights(), "forward unchanged", "weights unchanged"),
        (Steep(), "a loss falls", "lr 0.1"),
        (Wide(), "every kind of layer", "B has the shape of the weight"),
        (Uncited(), "describes itself", "BibTeX"),
        (NoReference(), "describes itself", "BibTeX"),
        (IgnoresScale(), "scales with the loss", "differs by"),
        (KeepsError(), "scales with the loss", "differs by"),
        (Redraws(), "global generator untouched", "three training steps"),
        (Redraws(), "state dict", "differs by"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Rule) else None,
)
def test_a_broken_rule_is_named_with_what_was_seen(
    rule: Rule, check: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = {name: function for name, function in CHECKS.items() if name == check}
    monkeypatch.setattr(testing, "CHECKS", kept)  # the others would only take time
    with pytest.raises(ContractError) as raised:
        apical.check_rule(rule)
    failed = [line for line in str(raised.value).splitlines() if line.startswith(f"  - {check}:")]
    assert failed, str(raised.value)
    assert "expected: " in failed[0] and "; seen: " in failed[0]
    assert text in failed[0]


class BareTensor(Sound):
    def create(self, weight: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        return super().create(weight, generator)["matrix"]  # type: ignore[return-value]


class Turned(Sound):
    def matrix(self, weight: Tensor, matrix: Tensor) -> Tensor:
        return matrix.mT


class OwnInit(Sound):
    def __init__(self, gain: float = 2.0) -> None:
        object.__setattr__(self, "gain", gain)


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (BareTensor, "^0: BareTensor.create returned a Tensor; it returns a dictionary of named"),
        (Turned, r"^2: Turned.matrix returned the shape \(3, 2\); .* the weight, \(2, 3\)$"),
        (OwnInit, "^OwnInit has an __init__ of its own; a rule is a frozen dataclass"),
    ],
)
def test_a_rule_of_another_form_is_an_error_that_says_the_form(rule: type[Rule], text: str) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    with pytest.raises(ValueError, match=text):
        apical.convert(model, rule())(torch.ones(5, 4)).sum().backward()


def test_every_failed_check_is_named_at_once() -> None:
    with pytest.raises(ContractError, match="DrawsInBackward breaks") as raised:
        apical.check_rule(DrawsInBackward())
    failed = [line for line in str(raised.value).splitlines() if line.startswith("  - ")]
    assert len(failed) >= 3


@dataclass(frozen=True)
class Misspelt(Sound):
    """Fails wherever a message is sent."""

    def matrix(self, weight: Tensor, matrix: Tensor) -> Tensor:
        return matrx  # noqa: F821


def test_one_error_is_told_once_with_the_checks_it_breaks() -> None:
    with pytest.raises(ContractError, match="Misspelt breaks") as raised:
        apical.check_rule(Misspelt())
    text = str(raised.value)
    assert text.count("name 'matrx' is not defined") == 1
    (line,) = [line for line in text.splitlines() if "NameError" in line]
    place = Misspelt.matrix.__code__.co_firstlineno + 1
    assert f"(test_contract.py:{place}, in matrix), which breaks" in line
    assert "checks: forward unchanged, last layer exact, exact_gradients is backprop" in line


def test_alternatives_help_where_the_type_does_not() -> None:
    with pytest.raises(ContractError, match=r"no difference between 'a' and 'b'"):
        apical.check_rule(OpaqueField(), alternatives={"path": "b"})
    with pytest.raises(ValueError, match=r"unknown fields \['pth'\]"):
        apical.check_rule("fa", alternatives={"pth": "b"})


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    apical.check_rule("brsf")
    assert torch.equal(torch.get_rng_state(), before)


def test_generators_of_gpus_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def seed(value: int) -> None:
        raise AssertionError("all GPUs are seeded")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", seed)
    apical.check_rule("usf")
    apical.check_adapter(nn.Bilinear(4, 5, 3), torch.randn(2, 4), torch.randn(2, 5))


def test_feedback_is_drawn_on_the_cpu_whatever_the_default_device() -> None:
    x = torch.randn(6, 2, 5, 5, dtype=torch.float64)
    for rule in (*RULES.values(), *VARIANTS):
        models = []
        for device in ("cpu", "meta"):
            torch.manual_seed(0)
            layers = nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(27, 6)
            model = nn.Sequential(*layers, nn.Tanh(), nn.Linear(6, 3)).double()
            with torch.device(device):
                apical.convert(model, rule, on_unsupported="keep")
                with torch.no_grad():
                    model(x)
            models.append(model)
        for (name, a), (_, b) in zip(*(m.state_dict().items() for m in models), strict=True):
            assert a.device.type == "cpu" and torch.equal(a, b), (rule, name)


def test_a_pool_is_read_at_the_same_place_on_every_device() -> None:
    class OnGPU:
        device = torch.device("cuda")

        def initial_seed(self) -> int:
            return 7

    rule, weight = SignSymmetric("fresh", redraw="pool"), torch.ones(5, 4)
    drawn = []
    for generator in (torch.Generator().manual_seed(7), OnGPU()):
        memory = rule.create(weight, torch.Generator().manual_seed(0)).values()
        rule.after_update(Update(weight, None, LinearOp(), 1, lambda g=generator: g), *memory)  # type: ignore[misc]
        drawn.append(next(iter(memory)))
    assert torch.equal(*drawn)
