"""The contract of every rule, as tests that its author can run."""

import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from apical import rules
from apical.rules import Rule
from apical.testing import fields, gradients, state
from apical.testing.specimen import Broken

Check = Callable[[Rule], str | None]
"""Returns None, or why it does not apply to this rule; raises Broken."""

CHECKS: dict[str, Check] = {
    "describes itself": state.describes_itself,
    "forward unchanged": gradients.forward_unchanged,
    "last layer exact": gradients.last_layer_exact,
    "aligned feedback is backprop": gradients.aligned_is_backprop,
    "message is of the matrix": gradients.message_is_of_the_matrix,
    "exact_gradients is backprop": gradients.exact_is_backprop,
    "hidden layers move": gradients.hidden_layers_move,
    "a loss falls": gradients.a_loss_falls,
    "scales with the loss": gradients.scales_with_the_loss,
    "forwards add up": gradients.forwards_add_up,
    "every kind of layer": gradients.every_kind_of_layer,
    "autocast": gradients.autocast,
    "idle layer refused": state.idle_layer_refused,
    "revert leaves no trace": state.revert_leaves_no_trace,
    "state dict": state.state_dict_round_trip,
    "deepcopy": state.deepcopy_is_independent,
    "pickle": state.pickle_round_trip,
    "seed decides": state.seed_decides,
    "global generator untouched": state.global_generator_untouched,
    "nothing drawn without an update": state.nothing_drawn_without_update,
}


class ContractError(ValueError):
    """A rule breaks its contract; the text names every failed check."""


@dataclass(frozen=True)
class Report:
    """What was checked: rows of (check, outcome). `print` it."""

    rule: str
    rows: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        width = max(len(check) for check, _ in self.rows)
        lines = [f"  {check.ljust(width)}  {outcome}" for check, outcome in self.rows]
        return "\n".join([f"{self.rule}: keeps the contract", *lines])


def check_rule(rule: Rule | str, *, alternatives: Mapping[str, Any] | None = None) -> Report:
    """Test a rule on small nets, in a few seconds; global random numbers are left alone.

    Args:
        rule: a rule, or what names one.
        alternatives: for fields whose type does not tell another valid value, one to compare with:
            every field must change something.

    Returns: a printable report of what was checked and what does not apply.
    Raises: ContractError naming every failed check, what it expects and what was seen.

    >>> check_rule("fa").rule
    'fa'
    """
    rule = rules.build(rule)
    table: dict[str, Check] = {**CHECKS, **fields.checks(rule, alternatives or {})}
    # within a device context every call of torch takes longer
    away = torch.get_default_device().type != "cpu"
    with torch.random.fork_rng(devices=[]), torch.device("cpu") if away else nullcontext():
        outcomes = {name: _outcome(check, rule) for name, check in table.items()}
    failed = {name: error for name, error in outcomes.items() if isinstance(error, Exception)}
    if failed:
        listed = "".join(f"\n  - {line}" for line in _lines(failed, rule))
        raise ContractError(f"{rules.spell(rule)} breaks its contract:{listed}")
    return Report(rules.spell(rule), tuple((k, str(v)) for k, v in outcomes.items()))


def _outcome(check: Check, rule: Rule) -> str | Exception:
    try:
        reason = check(rule)
    except Exception as error:  # whatever a rule raises is its author's to read
        return error
    return "holds" if reason is None else f"does not apply: {reason}"


def _lines(failed: Mapping[str, Exception], rule: Rule) -> Iterator[str]:
    """One for each check that saw something else than it expects, one for each error raised."""
    raised: dict[tuple[type, str], list[str]] = {}
    for name, error in failed.items():
        if isinstance(error, Broken):
            yield f"{name}: {error}"
        else:
            raised.setdefault((type(error), _place(error, rule)), []).append(name)
    for (kind, place), names in raised.items():
        text = f"{kind.__name__}: {str(failed[names[0]]).strip() or 'no text'} ({place})"
        if len(names) == 1:
            yield f"{names[0]}: expected: no exception; seen: {text}"
        else:
            yield f"{text}, which breaks {len(names)} checks: {', '.join(names)}"


def _place(error: Exception, rule: Rule) -> str:
    """Where in the file of the rule an error came up, or else where at all."""
    frames = traceback.extract_tb(error.__traceback__)
    own = getattr(sys.modules.get(type(rule).__module__), "__file__", None)
    frame = ([frame for frame in frames if frame.filename == own] or frames)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno}, in {frame.name}"
