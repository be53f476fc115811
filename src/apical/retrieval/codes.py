"""Hash codes: one bit for each output, packed eight to a byte; and their differentiable form."""

import math
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from apical.names import checked_count


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

    def __getitem__(self, rows: Tensor | slice) -> "Codes":
        return Codes(self.packed[rows], self.bits)

    def signs(self) -> Tensor:
        """(N, K) int8 of -1 and +1."""
        ones = np.unpackbits(self.packed.numpy(), axis=1, count=self.bits, bitorder="little")
        return torch.from_numpy(ones.astype(np.int8) * 2 - 1)

    def inverted(self) -> "Codes":
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
    batch = checked_count("encode", batch=batch)
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


def relax(outputs: Tensor, sharpness: float = 1.0) -> Tensor:
    """u = tanh(alpha h): a differentiable form of the code sign h, its limit for large alpha.

    The tanh is not part of the net: training and attacks each choose their own alpha, and for a
    large alpha h has information that u has lost by rounding.

    Args: sharpness: alpha, above 0.
    >>> relax(torch.tensor([-0.5, 2.0]), 3.0)
    tensor([-0.9051,  1.0000])
    """
    if not sharpness > 0:
        raise ValueError(f"relax: sharpness={sharpness} must be above 0")
    return torch.tanh(sharpness * outputs)


@dataclass(frozen=True)
class Continuation:
    """A tanh that becomes steeper while a net is trained: alpha = sqrt(1 + rate t).

    Args:
        rate: of the growth, at least 0; 0 keeps alpha at 1.
        every: t is the last multiple of this many steps, at least 1.
    The defaults are for t in batches; rate=1 / 20, every=20 for t in epochs is that of
    DeepHash-pytorch.
    Source: Cao, Long, Wang, Yu 2017 (HashNet).

    >>> [round(Continuation().sharpness(step), 3) for step in (0, 199, 200, 600)]
    [1.0, 1.0, 1.414, 2.0]
    """

    rate: float = 0.005
    every: int = 200

    def __post_init__(self) -> None:
        if not self.rate >= 0 or self.every < 1:
            raise ValueError(
                f"Continuation: rate={self.rate} must be at least 0, every={self.every} at least 1"
            )

    def sharpness(self, step: int) -> float:
        """alpha at this step, counted from 0."""
        return math.sqrt(1 + self.rate * (step - step % self.every))
