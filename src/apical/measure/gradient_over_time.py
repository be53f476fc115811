"""The teaching signal over the steps of a sequence: does it reach the early ones?

A pure function of rows of kind ``step``, as a run records them: at each measured epoch one for
every step ``t``, from 1, with the norm of its ``signal`` and, for some learners, more.
"""

import itertools
from collections.abc import Iterable, Sequence

from apical.measure.findings import Finding, Row

FADED = 1e-6
"""Of the strongest signal: what arrives weaker than this moves no weight by a digit of its own
in single precision."""
CUT = 1e-3
"""Of the strongest signal: a learner whose signal ends above this is set to cut it off there."""
VALUES = ("signal", "norm", "local_loss")
WHERE = "cell.recurrent"

ADVICE = (
    "reduction='sum' where the learner has it, a larger gamma, weights that keep the norm of what "
    "passes (orthogonal, a regulariser), a cell with gates (lstm, gru), or shorter sequences"
)


class Watch:
    """Follows the steps of a run; says once what is wrong with them."""

    def __init__(self) -> None:
        self._known: set[str] = set()  # values that were finite at every step of a measurement
        self._reported: set[str] = set()

    def recall(self, rows: Iterable[Row]) -> None:
        """Take up the rows of an earlier part of the run, its warnings among them."""
        rows = list(rows)
        self._reported |= {row["finding"] for row in rows if row["kind"] == "warning"}
        self.add(row for row in rows if row["kind"] == "step")

    def add(self, rows: Iterable[Row]) -> list[Finding]:
        """Take new rows; what they show that was not said before."""
        steps = [row for row in rows if row["kind"] == "step"]
        found = []
        for epoch, measured in itertools.groupby(steps, lambda row: row["epoch"]):
            each = list(measured)
            found += [faded(each, epoch), self._lost(each, epoch)]
        new = {f.kind: f for f in found if f is not None and f.kind not in self._reported}
        self._reported |= new.keys()
        return list(new.values())

    def _lost(self, rows: Sequence[Row], epoch: float) -> Finding | None:
        """A value that is finite no more: rows leave out what is not."""
        for name in VALUES:
            missing = [row["t"] for row in rows if name not in row]
            if not missing:
                self._known.add(name)
            elif name in self._known or len(missing) < len(rows):
                message = (
                    f"{name.replace('_', ' ')} is not finite at {_places(missing, len(rows))}. Try:"
                    " a smaller learning rate or gamma, or clipped gradients"
                )
                return Finding(WHERE, "not finite", len(missing), 0.0, epoch, message)
        return None


def faded(rows: Sequence[Row], epoch: float) -> Finding | None:
    """Whether the signal of one measurement vanishes on its way to the first step.

    A signal that was cut off on purpose (truncated, detached, forward in time) does not count.
    """
    signals = {row["t"]: row["signal"] for row in rows if "signal" in row}
    strongest = max(signals.values(), default=0.0)
    weak = [t for t, signal in signals.items() if signal < FADED * strongest]
    if not weak:
        return None
    silent = [t for t in weak if not signals[t]]
    weakest = min(signal for signal in signals.values() if signal) / strongest
    if silent == weak and weakest > CUT:
        return None
    how = "zero to the last bit" if silent else f"{weakest:.0e} of the strongest"
    message = (
        f"its teaching signal is {how} at {_places(silent or weak, len(rows))} (threshold "
        f"{FADED:g}): nothing is learned from what happened there. Try: {ADVICE}"
    )
    value = 0.0 if silent else weakest
    return Finding(WHERE, "signal vanishes", value, FADED, epoch, message)


def too_short(name: str, length: int, needed: int) -> Finding | None:
    """Whether a task of sequences is so short that solving it says nothing."""
    if length >= needed:
        return None
    message = (
        f"{name} with {length} steps is no evidence of learning through time: a random net with a "
        f"trained readout solves it, or nearly so. Try: at least {needed} steps"
    )
    return Finding("", "no evidence", length, needed, 0, message)


def _places(steps: Sequence[int], of: int) -> str:
    """ "step 3 of 20", "steps 1 to 8 of 20", "5 of 20 steps"."""
    first, last = min(steps), max(steps)
    if len(steps) == 1:
        return f"step {first} of {of}"
    if len(steps) == last - first + 1:
        return f"steps {first} to {last} of {of}"
    return f"{len(steps)} of {of} steps"
