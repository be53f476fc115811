"""Square attack: random search with square patches, by scores only; with random groups of values
where inputs are no images."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from apical.attacks.ball import Ball, Norm, lengths, per_example, unit
from apical.attacks.base import Attack
from apical.attacks.losses import broken, margin
from apical.attacks.sources import Oracle

_SHRINKS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""The queries of 10,000 after which the share of pixels in a square is halved."""


@dataclass(frozen=True)
class Square(Attack):
    """Proposes a change of one random square, and keeps it where it reduces the margin.

    Examples that are broken are left out of further queries. Of the others the point with the
    smallest margin is returned.

    Args:
        eps: radius. queries: proposals for each example, at least 1; 5000 are usual, and with
            fewer the schedule of sizes is compressed.
        share: of the pixels in the first square, in (0, 1]. restarts: at least 1.

    Where inputs are no images (N, channels, height, width), or smaller than 5 by 5 in "l2" or "l1",
    a proposal changes random values, the same share of them, in place of a square.

    Source: Andriushchenko, Croce, Flammarion, Hein 2020; "l1": Croce, Hein 2021, as in their code.
    """

    eps: float
    queries: int = 5000
    norm: Norm = "linf"
    share: float = 0.8
    restarts: int = 1

    default_gradient: ClassVar[str] = "none"

    def validate(self) -> None:
        super().validate()
        if self.queries < 1 or self.restarts < 1 or not 0 < self.share <= 1:
            raise ValueError(
                f"{self.name}: queries={self.queries}, restarts={self.restarts},"
                f" share={self.share}; needed are at least 1, at least 1, and (0, 1]"
            )

    @property
    def label(self) -> str:
        return f"Square-{self.queries}"

    def passes(self, classes: int) -> int:
        return self.restarts * (self.queries + 1)

    def perturb(self, oracle: Oracle, x: Tensor, y: Tensor) -> Tensor:
        least = 1 if self.norm == "linf" else 5
        images = x.dim() == 4 and min(x.shape[2:]) >= least
        kind = _Search if images else _Groups
        generator, result = self.generator(), x.clone()
        safe = ~broken(oracle.scores(x), y)
        smallest = torch.full((len(x),), float("inf"), dtype=x.dtype, device=x.device)
        for _ in range(self.restarts):
            rows = safe.nonzero().squeeze(1)
            if not len(rows):
                break
            search = kind(self, oracle, x[rows], y[rows], generator)
            search.run(self.queries)
            better = search.margins < smallest[rows]
            result[rows[better]] = search.point[better]
            smallest[rows[better]] = search.margins[better]
            safe[rows[search.margins <= 0]] = False
        return result

    def share_at(self, query: int) -> float:
        """Share of the pixels, or values, that this proposal changes."""
        place = int(query / self.queries * 10000)
        return self.share / 2 ** sum(place > limit for limit in _SHRINKS)

    def side(self, query: int, height: int, width: int) -> int:
        """Length of the square's side at this proposal, in pixels."""
        share = self.share_at(query)
        side = max(round(math.sqrt(share * height * width)), 1 if self.norm == "linf" else 3)
        if self.norm != "linf":
            side += 1 - side % 2
        return min(side, height, width)


class _Search:
    """One run. `point` and `margins`: the best so far; examples with margins <= 0 are broken."""

    def __init__(
        self, attack: Square, oracle: Oracle, x: Tensor, y: Tensor, generator: torch.Generator
    ) -> None:
        self.attack, self.oracle, self.x, self.y = attack, oracle, x, y
        self.generator = generator
        self.ball = Ball(attack.eps, attack.norm, *attack.bounds)
        self.point = self._start()
        self.margins = -margin(oracle.scores(self.point), y)

    def run(self, queries: int) -> None:
        for query in range(queries):
            rows = (self.margins > 0).nonzero().squeeze(1)
            if not len(rows):
                break
            proposed = self._proposed(self.x[rows], self.point[rows], query)
            margins = -margin(self.oracle.scores(proposed), self.y[rows])
            better = (margins < self.margins[rows]) | (margins <= 0)
            self.point[rows[better]] = proposed[better]
            self.margins[rows[better]] = margins[better]

    def _start(self) -> Tensor:
        if self.attack.norm != "linf":
            return self._tiles()
        count, channels, _, width = self.x.shape
        stripes = self.attack.eps * self._signs(count, channels, 1, width)
        return (self.x + stripes).clamp(*self.attack.bounds)

    def _proposed(self, x: Tensor, point: Tensor, query: int) -> Tensor:
        side = self.attack.side(query, *x.shape[2:])
        propose = self._square if self.attack.norm == "linf" else self._pair_of_squares
        return propose(x, point, side)

    def _square(self, x: Tensor, point: Tensor, side: int) -> Tensor:
        channels, height, width = x.shape[1:]
        top, left = self._place(height - side), self._place(width - side)
        change = torch.zeros_like(x[0])
        signs = self._signs(channels, 1, 1)
        change[:, top : top + side, left : left + side] = 2 * self.attack.eps * signs
        return self.ball.project(point + change, x)

    def _tiles(self) -> Tensor:
        count, channels, height, width = self.x.shape
        side, change = height // 5, torch.zeros_like(self.x)
        first = (height - side * 5) // 2
        for row in range(height // side):
            for column in range(width // side):
                top, left = first + row * side, first + column * side
                window = change[:, :, top : top + side, left : left + side]
                bump = self._bumps(side) * self._signs(count, channels, 1, 1)
                window += bump[:, :, : window.shape[2], : window.shape[3]]
        return self._scaled(self.x, change)

    def _pair_of_squares(self, x: Tensor, point: Tensor, side: int) -> Tensor:
        """Moves the norm of the change in one window to another one, with a new pattern."""
        count, channels, height, width = x.shape
        change = point - x
        power = 2 if self.attack.norm == "l2" else 1
        size = per_example(lengths(change, self.attack.norm), x)
        room = (self.attack.eps**power - size**power).clamp(min=0)
        to = self._window(height, width, side)
        away = self._window(height, width, side)
        either = torch.zeros_like(x)
        either[to], either[away] = 1, 1
        length = (change * either).abs().pow(power).sum((-2, -1), keepdim=True)
        old = self._normalised(change[to])
        new = self._normalised(self._bumps(side) * self._signs(count, channels, 1, 1) + old)
        change[away] = 0
        share = room / channels + length
        change[to] = new * (share.sqrt() if power == 2 else share * channels)
        return self._scaled(x, change)

    def _scaled(self, x: Tensor, change: Tensor) -> Tensor:
        if self.attack.norm == "l1":
            return self.ball.project(x + change, x)
        return (x + unit(change, "l2") * self.attack.eps).clamp(*self.attack.bounds)

    def _bumps(self, side: int) -> Tensor:
        """Two bumps of opposite sign, one above or next to the other, of norm 1 together."""
        above = self._normalised(_bump(side // 2, side, self.attack.norm))
        below = self._normalised(_bump(side - side // 2, side, self.attack.norm))
        shape = self._normalised(torch.cat([above, -below]))
        turned = torch.rand(1, generator=self.generator).item() > 0.5
        return (shape.t() if turned else shape).to(self.x.device, self.x.dtype)

    def _normalised(self, window: Tensor) -> Tensor:
        """Each channel of a window divided by its norm; zero stays zero."""
        squared = self.attack.norm == "l2"
        length = (window.square() if squared else window.abs()).sum((-2, -1), keepdim=True)
        length = length.sqrt() if squared else length
        return window / length.where(length > 0, torch.ones_like(length))

    def _window(self, height: int, width: int, side: int) -> tuple[slice, ...]:
        top, left = self._place(height - side), self._place(width - side)
        every = slice(None)
        return every, every, slice(top, top + side), slice(left, left + side)

    def _place(self, above: int) -> int:
        return int(torch.rand(1, generator=self.generator) * above)

    def _signs(self, *shape: int) -> Tensor:
        draw = 2 * torch.rand(shape, generator=self.generator) - 1
        return draw.sign().to(self.x.device, self.x.dtype)


class _Groups(_Search):
    """The same for inputs of any shape: random values in place of squares."""

    def _start(self) -> Tensor:
        signs = self._signs(*self.x.shape)
        if self.attack.norm == "linf":
            return (self.x + self.attack.eps * signs).clamp(*self.attack.bounds)
        return self._scaled(self.x, signs)

    def _proposed(self, x: Tensor, point: Tensor, query: int) -> Tensor:
        values = x[0].numel()
        count = max(1, round(self.attack.share_at(query) * values))
        order = torch.rand(x.shape, generator=self.generator).flatten(1)
        among = torch.zeros(len(x), values).scatter_(1, order.topk(count, 1).indices, 1)
        among = among.view_as(x).to(x.device) > 0
        signs = self._signs(*x.shape)
        if self.attack.norm == "linf":
            return self.ball.project(torch.where(among, x + self.attack.eps * signs, point), x)
        # The norm of the change in the group, and what is left of eps, go to new signs there.
        change = point - x
        kept = change.masked_fill(among, 0)
        if self.attack.norm == "l2":
            room = (self.attack.eps**2 - lengths(kept) ** 2).clamp(min=0).sqrt() / math.sqrt(count)
        else:
            room = (self.attack.eps - lengths(kept, "l1")).clamp(min=0) / count
        fresh = signs * among * per_example(room, x)
        return self.ball.project(x + kept + fresh, x)


def _bump(height: int, width: int, norm: Norm) -> Tensor:
    """Nested rectangles around the middle, the k-th (from 0) adding 1 / (k + 1)^2, in "l1" to the
    fourth power."""
    shape = torch.zeros(height, width)
    middle = (height // 2, width // 2)
    for ring in range(max(middle) + 1):
        top, left = middle[0] - ring, middle[1] - ring
        bottom, right = top + 2 * ring + 1, left + 2 * ring + 1
        share = 1 / (ring + 1) ** (2 if norm == "l2" else 4)
        shape[max(top, 0) : bottom, max(left, 0) : right] += share
    return shape
