"""The error repeated over all output positions and sent through a transposed convolution.

Because the repeated error is the same everywhere, what an input position receives depends only
on which kernel elements reach it from a valid output position: away from the borders all of
them, near a border some. So there are few distinct results, one per pattern and axis.
"""

from functools import lru_cache

import torch
from torch import Tensor

from apical.rules.ops import ConvOp, Geometry, padded_from


def spread(error: Tensor, matrix: Tensor, geometry: Geometry) -> Tensor:
    """Equals `conv_transpose(error repeated over output positions, matrix)`, in closed form.

    Shapes: error (N, E), matrix (E, C, *kernel) -> (N, C, *spatial).
    """
    op = geometry.op
    assert isinstance(op, ConvOp)
    kernel, spatial = matrix.shape[2:], geometry.input_shape[2:]
    # The compiler looks through the cache, and warns that it does.
    table = _tables.__wrapped__ if torch.compiler.is_compiling() else _tables
    tables = [
        table(op, axis, spatial[axis], kernel[axis], matrix.dtype, matrix.device)
        for axis in range(len(kernel))
    ]
    for patterns, _ in tables:  # each contraction moves its axis from place 2 to the end
        matrix = torch.tensordot(matrix, patterns, dims=([2], [1]))
    if geometry.channels_last:
        matrix = matrix.movedim(1, -1)
    result = error.mm(matrix.reshape(len(matrix), -1)).view(len(error), *matrix.shape[1:])
    first = 1 if geometry.channels_last else 2
    for axis, (_, index) in enumerate(tables):
        result = result.index_select(first + axis, index)
    return result.movedim(-1, 1) if geometry.channels_last else result


@lru_cache(maxsize=256)
def _tables(
    op: ConvOp, axis: int, length: int, kernel: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    rows = _reached(op, axis, length, kernel)
    patterns = list(dict.fromkeys(rows))
    index = [patterns.index(row) for row in rows]
    table = torch.tensor(patterns, dtype=dtype, device=device)
    return table, torch.tensor(index, device=device)


def _reached(op: ConvOp, axis: int, length: int, kernel: int) -> list[tuple[int, ...]]:
    """For each input position of one axis: how often each kernel element reaches it."""
    axes = len(op.stride)
    place = 2 * (axes - 1 - axis)
    left, right = op.pad[place : place + 2] if op.pad else (0, 0)
    stride, padding, dilation = op.stride[axis], op.padding[axis], op.dilation[axis]
    padded, reach = length + left + right, dilation * (kernel - 1)
    if op.transposed:
        outputs = (padded - 1) * stride - 2 * padding + reach + op.output_padding[axis] + 1
    else:
        outputs = (padded + 2 * padding - reach - 1) // stride + 1
    counts = [[0] * kernel for _ in range(length)]
    for position in range(padded):
        source = padded_from(position - left, length, op.pad_mode)
        if source is None:
            continue
        for element in range(kernel):
            if op.transposed:
                valid = 0 <= position * stride - padding + element * dilation < outputs
            else:
                output, rest = divmod(position + padding - element * dilation, stride)
                valid = rest == 0 and 0 <= output < outputs
            counts[source][element] += valid
    return [tuple(row) for row in counts]
