"""Oja's subspace rule: orthonormal rows that turn to where a signal is large."""

from __future__ import annotations

import torch
from torch import Tensor

Rank = int | float


def check_rank(rule: str, rank: Rank) -> None:
    """Raises: ValueError unless the rank is a number of dimensions or a fraction of them."""
    if isinstance(rank, bool) or not isinstance(rank, int | float):
        raise ValueError(f"{rule}: rank={rank!r} is neither a whole number nor a fraction")
    if isinstance(rank, int) and rank < 1:
        raise ValueError(f"{rule}: rank={rank} must be at least 1, or a fraction in (0, 1]")
    if isinstance(rank, float) and not 0 < rank <= 1:
        raise ValueError(
            f"{rule}: rank={rank} is outside (0, 1]; a fraction is of the dimensions there are,"
            " a whole number counts them"
        )


def dimensions(rank: Rank, size: int) -> int:
    """How many of `size` dimensions a rank means; at least 1.

    >>> dimensions(0.25, 10), dimensions(4, 10)
    (2, 4)
    """
    return max(1, round(rank * size)) if isinstance(rank, float) else rank


def check_learning(rule: str, rate: float, decay: float, every: int) -> None:
    """Raises: ValueError for a rate at which the rule diverges, or another value out of range."""
    if not 0 < rate <= 1:
        raise ValueError(f"{rule}: rate={rate} is outside (0, 1]; above 1 Oja's rule may diverge")
    if not 0 <= decay < 1:
        raise ValueError(f"{rule}: projection_decay={decay} is outside [0, 1)")
    if isinstance(every, bool) or not isinstance(every, int) or every < 0:
        raise ValueError(f"{rule}: orthonormalise={every} must count updates, 0 for never")


def orthonormal_rows(rows: int, size: int, generator: torch.Generator) -> Tensor:
    """A random matrix (rows, size) with orthonormal rows, rows <= size, float64 on the CPU."""
    gaussian = torch.randn(rows, size, dtype=torch.float64, generator=generator)
    return orthonormalised(gaussian)


def orthonormalised(rows: Tensor) -> Tensor:
    """Orthonormal rows that span the same space, each as near its old direction as QR allows."""
    exact = torch.promote_types(rows.dtype, torch.float32)  # QR knows no half precision
    q, r = torch.linalg.qr(rows.t().to(exact))
    signed = q * torch.where(r.diagonal() < 0, -1.0, 1.0).to(exact)
    return signed.t().contiguous().to(rows.dtype)


def collected(rows: Tensor) -> dict[str, Tensor]:
    """Empty notes for `collect`."""
    return {"projected": torch.zeros_like(rows), "power": rows.new_zeros(())}


def collect(rows: Tensor, signal: Tensor, projected: Tensor, power: Tensor) -> None:
    """Add the signal to P S S^T and to trace(S S^T).

    Shapes: rows P (r, n); signal (samples, n) or (samples, n, positions); projected (r, n).
    """
    signal = signal.to(rows.dtype)
    if signal.dim() == 2:
        projected.addmm_(rows.mm(signal.t()), signal)
    else:
        projected.add_(torch.matmul(torch.matmul(rows, signal), signal.transpose(1, 2)).sum(0))
    power.add_(signal.square().sum())


def turn(rows: Tensor, projected: Tensor, power: Tensor, *, rate: float, decay: float) -> None:
    """One step in place, and the notes emptied: P += rate (P C - P C P^T P) - decay P.

    C is the collected signal's second moment, divided by its trace, so that the step depends on
    no scale. Rows that are orthonormal stay so to second order in the rate, and end up spanning
    the leading directions of C; with a decay at squared lengths 1 - decay / (rate c_i).
    Nothing happens after signals of zero, or that were not finite.
    """
    image = projected / power
    change = rate * (image - image.mm(rows.t()).mm(rows)) - decay * rows
    usable = (power > 0) & change.isfinite().all()
    rows.add_(torch.where(usable, change, torch.zeros_like(change)))
    projected.zero_()
    power.zero_()
