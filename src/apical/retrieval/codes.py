"""Hash codes: one bit for each output, packed eight to a byte."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn


class ConstantBitWarning(UserWarning):
    """A bit is the same in every code of a database, so it distinguishes nothing."""


@dataclass(frozen=True, eq=False)
class Codes:
    """N codes of K bits in main memory. `codes[rows]` takes some of them.

    Attributes:
        packed: uint8 (N, ceil(K / 8)); bit k of a code is bit k % 8 of byte k // 8, bits beyond
            K are zero.
        bits: K, 1 to 32,767.

    Raises: ValueError if the two do not fit together.
    """

    packed: Tensor
    bits: int

    def __post_init__(self) -> None:
        if not 1 <= self.bits < 2**15:
            raise ValueError(f"Codes: bits={self.bits} must be 1 to {2**15 - 1}")
        given, width = self.packed, -(-self.bits // 8)
        if given.dtype != torch.uint8 or given.dim() != 2 or given.shape[1] != width:
            raise ValueError(
                f"Codes: {given.dtype} of shape {tuple(given.shape)}; {self.bits} bits are packed"
                f" into uint8 of shape (N, {width}): use retrieval.pack(outputs)"
            )

    def __len__(self) -> int:
        return len(self.packed)

    def __getitem__(self, rows: Tensor | slice) -> Codes:
        return Codes(self.packed[rows], self.bits)

    def signs(self) -> Tensor:
        """(N, K) int8 of -1 and +1."""
        ones = np.unpackbits(self.packed.numpy(), axis=1, count=self.bits, bitorder="little")
        return torch.from_numpy(ones.astype(np.int8) * 2 - 1)

    def inverted(self) -> Codes:
        """All bits inverted: an approximate bound on the effect of attacks on the query."""
        return pack(-self.signs())

    def constant_bits(self) -> list[int]:
        """The bits that are the same in all codes."""
        signs = self.signs()
        return (signs == signs[:1]).all(0).nonzero().flatten().tolist() if len(self) else []


def pack(outputs: Tensor) -> Codes:
    """The codes of a hash net's outputs: bit k is 1 where output k is at least 0.

    Shapes: outputs (N, K), on any device, before or after the tanh.
    Raises: ValueError for NaN, which has no sign.

    >>> codes = pack(torch.tensor([[0.3, -2.0, 0.0], [-0.1, 4.0, 1.0]]))
    >>> codes.packed.tolist(), codes.signs().tolist()
    ([[5], [6]], [[1, -1, 1], [-1, 1, 1]])
    """
    if outputs.dim() != 2:
        raise ValueError(f"codes of outputs of shape {tuple(outputs.shape)}: expected (N, bits)")
    outputs = outputs.detach()
    broken = outputs.isnan().any(1)
    if broken.any():
        raise ValueError(
            f"{int(broken.sum())} of {len(outputs)} codes hold NaN, first row"
            f" {int(broken.nonzero()[0])}: the net has diverged, or its input holds NaN"
        )
    ones = (outputs >= 0).cpu().numpy()
    packed = np.packbits(ones, axis=1, bitorder="little")
    return Codes(torch.from_numpy(packed), outputs.shape[1])


def encode(model: nn.Module, x: Tensor, *, batch: int = 500) -> Codes:
    """The codes of many inputs, batch by batch, without gradients.

    Shapes: x (N, ...); the model gives (N, K).
    Raises: ValueError for a model in training mode, whose codes would depend on the batch.
    """
    if model.training:
        raise ValueError("encode: the model is in training mode; call model.eval() first")
    if not len(x):
        raise ValueError("encode: no inputs")
    with torch.no_grad():
        return pack(torch.cat([model(rows) for rows in x.split(batch)]))


def warn_of_constant_bits(codes: Codes) -> None:
    """Warns: ConstantBitWarning for a database of two codes or more."""
    constant = codes.constant_bits() if len(codes) > 1 else []
    if constant:
        listed = ", ".join(map(str, constant[:8])) + (", ..." if len(constant) > 8 else "")
        warnings.warn(
            f"{len(constant)} of {codes.bits} bits are the same in all {len(codes)} codes of the"
            f" database ({listed}), so they contain no information. Either the net has collapsed"
            " (balanced pair weights or a smaller learning rate may help), or its loss causes it"
            " (the first bit of CSQ's first K centres)",
            ConstantBitWarning,
            stacklevel=3,
        )
