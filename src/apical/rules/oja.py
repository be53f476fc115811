"""Oja's subspace rule: orthonormal rows that turn to where a signal is large."""

import torch
from torch import Tensor

Rank = int | float

HANUT_2025 = """@article{hanut2025,
  title = {Training Large Neural Networks With Low-Dimensional Error Feedback},
  author = {Hanut, Maher and Kadmon, Jonathan},
  journal = {arXiv preprint arXiv:2502.20580}, year = {2025}
}"""
"""The source of the rules that turn a projection of the error so."""


def check_rank(rule: str, rank: Rank) -> None:
    """Raises: ValueError unless the rank is a number of dimensions or a fraction of them."""
    if isinstance(rank, int) and rank < 1:
        raise ValueError(f"{rule}: rank={rank} must be at least 1, or a fraction in (0, 1]")
    if not isinstance(rank, int) and not 0 < rank <= 1:
        raise ValueError(
            f"{rule}: rank={rank} is outside (0, 1]; a fraction is of the dimensions there are,"
            " a whole number counts them"
        )


def dimensions(rank: Rank, size: int) -> int:
    """How many of `size` dimensions a rank means; at least 1.

    >>> dimensions(0.25, 10), dimensions(4, 10)
    (2, 4)
    """
    return rank if isinstance(rank, int) else max(1, round(rank * size))


def check_learning(rule: str, rate: float, decay: float, orthonormalise: int) -> None:
    """Raises: ValueError for a rate at which the rule diverges, or another value out of range."""
    if not 0 < rate <= 1:
        raise ValueError(f"{rule}: rate={rate} is outside (0, 1]; above 1 Oja's rule may diverge")
    if not 0 <= decay < 1:
        raise ValueError(f"{rule}: projection_decay={decay} is outside [0, 1)")
    if orthonormalise < 0:
        raise ValueError(f"{rule}: orthonormalise={orthonormalise} must count updates, 0 for never")


def orthonormal_rows(rows: int, size: int, generator: torch.Generator) -> Tensor:
    """A random matrix (rows, size) with orthonormal rows, rows <= size, float64 on the CPU."""
    gaussian = torch.randn(rows, size, dtype=torch.float64, generator=generator)
    return orthonormalised(gaussian)


def orthonormalised(rows: Tensor) -> Tensor:
    """Orthonormal rows that span the same space, each as near its old direction as QR allows."""
    exact = torch.promote_types(rows.dtype, torch.float32)  # torch has no QR in half precision
    q, r = torch.linalg.qr(rows.t().to(exact))
    signed = q * torch.where(r.diagonal() < 0, -1.0, 1.0).to(exact)
    return signed.t().contiguous().to(rows.dtype)


def collected(rows: Tensor) -> dict[str, Tensor]:
    """Empty notes for `collect`, under the names that they are saved by."""
    return {"projected": torch.zeros_like(rows), "power": rows.new_zeros(())}


def collect(
    rows: Tensor, signal: Tensor, change: Tensor, power: Tensor, low: Tensor | None = None
) -> None:
    """Add P S S^T (1 - P^T P) to the change of P, and trace(S S^T) to the power.

    Shapes: rows P (r, n); signal S^T (samples, n), or (samples, n, positions); low, if it is known,
        S^T P^T (samples, r) or (samples, r, positions); change (r, n).
    """
    signal = signal.to(rows.dtype)
    power.add_(torch.linalg.vector_norm(signal).square())
    if low is None:
        low = signal.mm(rows.t()) if signal.dim() == 2 else torch.matmul(rows, signal)
    if signal.dim() == 2 and len(signal) <= 2 * len(rows):  # few: what P does not see yet, first
        change.addmm_(low.t(), torch.addmm(signal, low, rows, alpha=-1))
        return
    if signal.dim() == 2:
        image = low.t().mm(signal)
    else:
        image = torch.matmul(low, signal.transpose(1, 2)).sum(0)
    change.add_(image).addmm_(image.mm(rows.t()), rows, alpha=-1)


def turn(rows: Tensor, change: Tensor, power: Tensor, *, rate: float, decay: float) -> None:
    """One step in place, and the notes emptied: P += rate (P C - P C P^T P) - decay P.

    C is the collected signal's second moment, divided by its trace, so that the step depends on
    no scale. Rows that are orthonormal stay so to second order in the rate, and end up spanning
    the leading directions of C; with a decay at squared lengths 1 - decay / (rate c_i).
    Nothing happens after signals whose squares vanish (those below the normal numbers have hardly
    a digit left, and rate / power would overflow), or that were not finite.
    """
    usable = (power >= torch.finfo(power.dtype).tiny) & power.isfinite()
    change.masked_fill_(~usable, 0)
    if decay:
        rows.mul_(torch.where(usable, 1 - decay, 1.0))
    rows.addcmul_(change, torch.where(usable, rate / power, 0.0))
    change.zero_()
    power.zero_()
