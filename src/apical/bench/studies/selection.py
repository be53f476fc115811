"""Which learning rate a row of a table gets: one procedure, the same for every row.

Rates are tried in half decades with several seeds, none of them reported, and judged on a
validation split. The smallest rate whose mean error lies within one standard error of the lowest
is chosen: of rates that cannot be distinguished the most stable one. A rate at which a try
diverged is chosen only where every rate has one, and then where the fewest did, as the runs of the
table would be lost there. A choice at an edge of the grid extends the grid in that direction.
"""

import math
from collections.abc import Sequence

from apical.measure.rate_choice import Tried, choose

__all__ = ["Tried", "beyond", "choose", "half_decade", "half_decades"]


def beyond(rates: Sequence[float], chosen: float) -> float | None:
    """The rate by which a grid is extended, half a decade below or above; None for a choice that
    does not lie at an edge.

    >>> beyond((0.01, 0.03, 0.1), 0.1), beyond((0.01, 0.03, 0.1), 0.01)
    (0.3, 0.003)
    """
    if chosen == min(rates):
        return half_decade(chosen, -1)
    return half_decade(chosen, 1) if chosen == max(rates) else None


def half_decade(rate: float, steps: int) -> float:
    """The rate so many half decades above, negative: below.

    Args: rate: 1 or 3 times a power of ten.
    Raises: ValueError for any other.
    >>> [half_decade(0.03, steps) for steps in (-2, -1, 0, 1, 2)]
    [0.003, 0.01, 0.03, 0.1, 0.3]
    """
    if 0 < rate < math.inf:
        place = round(2 * math.log10(rate))
        if math.isclose(rate, _at(place)):
            return _at(place + steps)
    raise ValueError(
        f"learning rate {rate:g} is not on a grid of half decades: use 1 or 3 times a power of "
        "ten, such as 0.01 or 0.03; apical sweep --lr compares any rates"
    )


def half_decades(low: float, high: float) -> tuple[float, ...]:
    """All rates of the grid from ``low`` to ``high``, rising.

    >>> half_decades(0.003, 0.1)
    (0.003, 0.01, 0.03, 0.1)
    """
    rates = [half_decade(low, 0)]
    while rates[-1] < high:
        rates.append(half_decade(rates[-1], 1))
    return tuple(rates)


def _at(place: int) -> float:
    digit = 3 if place % 2 else 1
    return float(f"{digit}e{place // 2}")
