"""torch.compile: one graph, and the same numbers as eager over steps that change the feedback."""

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

import apical
from apical.rules import DFA, FA, SignSymmetric

X, Y = (
    torch.linspace(-1, 1, 6 * 2 * 5 * 5, dtype=torch.float64).view(6, 2, 5, 5).sin(),
    torch.arange(6) % 3,
)
CASES: dict[str, Any] = {
    **{name: name for name in ("brsf", "dfa", "kp", "pfa")},
    "ldfa": {"3": "fa", "8": "usf", "*": "ldfa"},  # layer 3 has groups
    "mixed": {
        "0": SignSymmetric("fresh", redraw="pool"),
        "3": DFA(layout="channel", shared=True),
        "6": FA(scale="norm", constrain_weights=True),
        "8": "frsf",
    },
}


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.ReLU(), nn.Flatten(),
        nn.Linear(36, 6), nn.Tanh(), nn.Linear(6, 3),
    ).double()  # fmt: skip


def steps(model: nn.Module, called: Any, count: int = 3) -> list[dict[str, Tensor]]:
    """Gradients and state after each of some steps."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    seen = []
    for _ in range(count):
        optimizer.zero_grad()
        F.cross_entropy(called(X), Y).backward()
        gradients = {f"gradient {n}": p.grad.clone() for n, p in model.named_parameters()}
        optimizer.step()
        seen.append({**gradients, **copy.deepcopy(model.state_dict())})
    return seen


# torch's compilers use what torch deprecates
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch._dynamo.reset()


@pytest.mark.parametrize("rule", CASES.values(), ids=CASES)
def test_one_graph_with_the_numbers_of_eager(rule: Any) -> None:
    eager = apical.convert(net(), rule, example=X)
    model = apical.convert(net(), rule, example=X)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch._dynamo.utils.counters.clear()
    for seen, expected in zip(steps(model, compiled), steps(eager, eager), strict=True):
        assert_close(seen, expected, rtol=1e-10, atol=1e-12)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1  # no recompilation


def test_the_forward_pass_alone_is_compiled() -> None:
    model = apical.convert(net(), CASES["mixed"], example=X).eval()
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert_close(compiled(X), model(X), rtol=1e-12, atol=1e-14)


def test_feedback_without_a_size_says_what_to_do_before_compiling() -> None:
    model = apical.convert(net(), "dfa")
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match="run the model once, or give convert"):
        compiled(X)
    model(X)
    compiled(X).sum().backward()


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # dynamo asks for it
def test_parts_of_a_model_may_be_compiled_apart() -> None:
    eager, model = (
        apical.convert(nn.Sequential(net()[:6], net()[6:]), "dfa", example=X) for _ in range(2)
    )
    for part in model:
        part.compile(backend="aot_eager")
    for seen, expected in zip(steps(model, model), steps(eager, eager), strict=True):
        assert_close(seen, expected, rtol=1e-10, atol=1e-12)


def test_images_of_several_sizes_are_compiled() -> None:
    """The rule's signal has the shape of what the layer reads."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.Tanh(),
        nn.Conv2d(4, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    ).double()  # fmt: skip
    rules = {"2": DFA(layout="kernel"), "*": DFA(layout="channel")}
    apical.convert(model, rules, example=X)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for count, size in ((6, 5), (4, 5), (4, 4)):
        x, y = X[:count, :, :size, :size], Y[:count]
        weights = list(model.parameters())
        seen = torch.autograd.grad(F.cross_entropy(compiled(x), y), weights)
        expected = torch.autograd.grad(F.cross_entropy(model(x), y), weights)
        assert_close(seen, expected, rtol=1e-10, atol=1e-12)


def test_exact_gradients_are_compiled_for_themselves() -> None:
    model, plain = apical.convert(net(), "fa"), net()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        for net_ in (model, plain):
            net_.zero_grad()
        F.cross_entropy(compiled(X), Y).backward()
        own = model[0].weight.grad.clone()
        model.zero_grad()
        with apical.exact_gradients(model):
            F.cross_entropy(compiled(X), Y).backward()
        F.cross_entropy(plain(X), Y).backward()
        assert_close(model[0].weight.grad, plain[0].weight.grad, rtol=1e-10, atol=1e-12)
        assert not torch.allclose(own, plain[0].weight.grad)


@pytest.mark.skipif(
    os.environ.get("ATEN_CPU_CAPABILITY") == "default",
    reason="inductor writes vector code that the default capability does not declare",
)
@pytest.mark.slow
def test_inductor_gives_the_numbers_of_eager(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its shared cache gives code that another ATEN_CPU_CAPABILITY wrote, which computes nonsense.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(50, 6), nn.Tanh(), nn.Linear(6, 5), nn.ReLU(),
                          nn.Linear(5, 3)).double()  # fmt: skip
    rules = {"1": "dfa", "3": "brsf", "5": "dfa"}
    eager, model = (apical.convert(copy.deepcopy(plain), rules, example=X) for _ in range(2))
    compiled = torch.compile(model, fullgraph=True)
    for seen, expected in zip(steps(model, compiled), steps(eager, eager), strict=True):
        assert_close(seen, expected, rtol=1e-8, atol=1e-10)
