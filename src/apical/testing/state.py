"""Checks of what a rule remembers: saved, copied, reverted, drawn when and from where."""

import copy
import io
import pickle
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apical import rules
from apical.core.convert import convert, revert
from apical.core.converted import learn
from apical.core.layers import converted_layers, feedback_modules
from apical.rules import Rule
from apical.testing.specimen import (
    Broken,
    Tensors,
    batch,
    converted,
    expect_equal,
    gradients,
    net,
    train,
)


def describes_itself(rule: Rule) -> None:
    """The rule is hashable, has a docstring and a BibTeX reference, and survives its dict form."""
    hash(rule)
    if not (type(rule).__doc__ or "").strip():
        raise Broken("a docstring", "none")
    reference = getattr(rule, "reference", "")
    if not str(reference).lstrip().startswith("@"):
        raise Broken("a class attribute `reference`, a BibTeX entry", repr(reference))
    again = rules.from_dict(rules.to_dict(rule))
    if again != rule:
        raise Broken("the same rule from its dictionary form", f"{again!r} instead of {rule!r}")


def idle_layer_refused(rule: Rule) -> str | None:
    """A layer whose weight the model uses without calling the layer is an error."""
    model = _Bypass()
    try:
        convert(model, rule, example=torch.ones(2, 3))
    except ValueError as error:
        if "idle" in str(error):
            return None
        raise
    if not any(converted_layers(model)):
        return "the rule leaves layers as they are"
    raise Broken(idle_layer_refused.__doc__, "convert accepted it")


def revert_leaves_no_trace(rule: Rule) -> None:
    """After revert classes, attributes, hooks, keys and gradients are those of the plain net."""
    plain, model = net(), converted(rule)
    revert(model)
    expect_equal(gradients(model, *batch()), gradients(plain, *batch()), "backprop after revert")
    for (name, a), (_, b) in zip(model.named_modules(), plain.named_modules(), strict=True):
        if type(a) is not type(b):
            raise Broken(f"{name} to be a {type(b).__name__}", type(a).__name__)
        if a.__dict__.keys() != b.__dict__.keys():
            extra = ", ".join(sorted(a.__dict__.keys() ^ b.__dict__.keys()))
            raise Broken(f"attributes of {name} as before", extra)
        if a._forward_hooks or a._forward_pre_hooks:
            raise Broken(f"no hooks on {name or 'the model'}", "some remain")
    expect_equal(model.state_dict(), plain.state_dict(), "the plain state dict")


def state_dict_round_trip(rule: Rule) -> None:
    """A saved model continues alike when loaded; a plain checkpoint loads, with one warning."""
    model = converted(rule)
    train(model, 2)
    saved = copy.deepcopy(model.state_dict())
    waits = not any(feedback.trained for feedback in feedback_modules(model))
    # where nothing is trained, feedback may still wait for a first forward
    twin = convert(net(), rule, on_unsupported="keep") if waits else converted(rule)
    twin.load_state_dict(saved)
    _expect_same_future(twin, model, "the saved model's next steps after loading it")
    other = converted(rule, seed=1)
    other.load_state_dict(saved)
    model.load_state_dict(saved)
    expect_equal(
        gradients(other, *batch()), gradients(model, *batch()), "the saved feedback, not the seed's"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        converted(rule).load_state_dict(net().state_dict())


def deepcopy_is_independent(rule: Rule) -> None:
    """A deep copy continues as its original does, and neither changes the other."""
    model = converted(rule)
    train(model, 1)
    twin, kept = copy.deepcopy(model), copy.deepcopy(model)
    train(twin, 2)
    expect_equal(model.state_dict(), kept.state_dict(), "the original as it was")
    _expect_same_future(kept, model, "the original's next steps from a copy")


def pickle_round_trip(rule: Rule) -> None:
    """A model saved whole, by pickle or torch.save, continues as the original does."""
    model = converted(rule)
    train(model, 1)
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    twins = pickle.loads(pickle.dumps(model)), torch.load(stream, weights_only=False)
    train(model, 2)
    for twin in twins:
        train(twin, 2)
        expect_equal(twin.state_dict(), model.state_dict(), pickle_round_trip.__doc__)


def seed_decides(rule: Rule) -> None:
    """The same seed gives the same feedback whatever ran before; another seed, other feedback."""
    first = _feedback(converted(rule, seed=3))
    torch.rand(7)
    _feedback(converted(rule, seed=4))
    expect_equal(_feedback(converted(rule, seed=3)), first, "the same feedback from the same seed")
    part = converted(rule, seed=3)
    revert(part)
    layers = {"5": rule, "*": "bp"}
    expect_equal(
        _feedback(convert(part, layers, example=batch()[0], seed=3)),
        {name: tensor for name, tensor in first.items() if name.startswith("5.")},
        "a layer's feedback not to depend on which others are converted",
    )
    other = _feedback(converted(rule, seed=4))
    if first and all(torch.equal(other[name], first[name]) for name in first):
        raise Broken("other feedback from another seed", "the same")


def global_generator_untouched(rule: Rule) -> None:
    """Converting, sizing, training and learning draw nothing from the global generator."""
    _expect_no_draw("creating feedback", lambda: converted(rule))
    model = converted(rule)
    _expect_no_draw("three training steps", lambda: train(model, 3))
    _expect_no_draw("learn", lambda: learn(model))


def nothing_drawn_without_update(rule: Rule) -> None:
    """Repeated passes, in training or evaluation, with gradients or without, change nothing."""
    model, (x, y) = converted(rule), batch()
    train(model, 1)
    state, before = copy.deepcopy(_without_notes(model)), gradients(model, x, y)
    for mode in (True, False):
        model.train(mode)
        _expect_no_draw("a backward pass", lambda: gradients(model, x, y))
        with torch.no_grad():
            _expect_no_draw("a pass without gradients", lambda: model(x))
        expect_equal(gradients(model, x, y), before, "the same gradients from a repeated pass")
    expect_equal(_without_notes(model), state, "the same feedback after passes without an update")


def _without_notes(model: nn.Module) -> Tensors:
    """The state without what a rule collects in backward passes until an update."""
    return {k: v for k, v in model.state_dict().items() if ".feedback.note_" not in k}


class _Bypass(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.idle, self.used = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(F.linear(x, self.idle.weight))


def _feedback(model: nn.Module) -> Tensors:
    return {
        f"{feedback.layer}.{name}": tensor.clone()
        for feedback in feedback_modules(model)
        for name, tensor in zip(feedback.memory_names or (), feedback.memory(), strict=True)
    }


def _expect_same_future(twin: nn.Module, model: nn.Module, what: str) -> None:
    train(twin, 2)
    train(model, 2)
    expect_equal(twin.state_dict(), model.state_dict(), what)
    expect_equal(gradients(twin, *batch()), gradients(model, *batch()), what)


def _expect_no_draw(what: str, action: Callable[[], object]) -> None:
    before = torch.get_rng_state()
    action()
    if not torch.equal(torch.get_rng_state(), before):
        raise Broken(f"{what} without global random numbers", "the global generator moved on")
