"""Learning rates to begin with; `apical tune` finds the rate of one's own net.

Adam at 0.001 was stable on an MLP of 8 x 8 digits for every rule of the library but sDFA, whose
loss grew (one seed each). The rates of SGD with momentum 0.9 are, for each rule, the smaller of
those that the searches of the studies smoke (MLP) and biotorch-mnist (LeNet) chose.
"""

from collections.abc import Mapping
from typing import Any

from apical.bench.experiment.optimizers import OPTIMIZERS, unknown_optimizer
from apical.bench.experiment.rule_settings import rules_of

ADAM = 0.001
SGD = 0.05
MOMENTUM = {
    "bp": 0.01, "brsf": 0.01, "dfa": 0.0001, "fa": 0.003, "frozen": 0.1, "frsf": 0.01, "kp": 0.03,
    "redrawn": 0.001, "usf": 0.01,
}  # fmt: skip


def filled(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of an `Experiment` in which ``optimizer`` and ``lr`` are not None.

    Without both Adam begins, whose steps adapt to the scale of a rule's signal; a rate alone is one
    of SGD, as in an `Experiment`; an optimizer alone gets its `default`.

    Raises: as `default`.
    """
    made = dict(settings)
    if made.get("optimizer") is None:
        made["optimizer"] = "adam" if made.get("lr") is None else "sgd"
    if made.get("lr") is None:
        options = made.get("optimizer_options", {})
        made["lr"] = default(made.get("rule", "bp"), made["optimizer"], options)
    return made


def default(rule: str | dict[str, Any], optimizer: str, options: Mapping[str, Any]) -> float:
    """A learning rate to begin with.

    Args: rule, optimizer, options: as of an `Experiment` (``optimizer_options``).
    Returns: for adam and adamw 0.001; for sgd with momentum 0.9 the rate of the rule, of several
        the smallest; for sgd without momentum 0.05.
    Raises: ValueError where none is known.
    >>> default("fa", "adam", {}), default("fa", "sgd", {"momentum": 0.9})
    (0.001, 0.003)
    """
    if not isinstance(optimizer, str):
        raise ValueError(
            f"optimizer is a {type(optimizer).__name__}: give its name, as 'sgd', or "
            "'package.module:Class'; its settings are lr and optimizer_options"
        )
    if optimizer not in OPTIMIZERS and ":" not in optimizer:
        raise unknown_optimizer(optimizer)
    if optimizer in ("adam", "adamw"):
        return ADAM
    if optimizer == "sgd" and not options.get("momentum"):
        return SGD
    names = {each.name for each in rules_of(rule)}
    if optimizer == "sgd" and options["momentum"] == 0.9 and names <= set(MOMENTUM):
        return min(MOMENTUM[name] for name in names)
    raise ValueError(
        f"no default learning rate for rule={rule!r}, optimizer={optimizer!r} and "
        f"optimizer_options={dict(options)!r}: give lr, or let apical tune choose it"
    )
