"""A layer's own forward, in which the products with its weights go through feedback.

For layers whose forward does more than the product, or differs from release to release: only calls
that torch's operations make with a registered weight are replaced. A use of the weight that is no
such call is an error, never silently exact.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from apical.core.products import Product
from apical.rules.ops import ConvOp, LinearOp

_SAME = {
    *(Tensor.to, Tensor.type, Tensor.float, Tensor.half, Tensor.bfloat16, Tensor.double),
    *(Tensor.contiguous, Tensor.type_as),
}
"""What returns the weight itself, perhaps in another dtype."""

_TRANSPOSED = {torch.t, Tensor.t, Tensor.T.__get__, Tensor.mT.__get__}  # type: ignore[attr-defined]
_MATRIX_PRODUCTS = {*(torch.matmul, Tensor.matmul, torch.mm, Tensor.mm, Tensor.__matmul__)}
_CONVOLUTIONS = {F.conv1d: 1, F.conv2d: 2, F.conv3d: 3}

REMEDY = (
    "declare what it computes: apical.adapters.register(..., forward), with Weight(..., value=...)"
    " where the layer computes the weight itself (docs/adapters.md), or keep the layer's exact"
    " gradient"
)


class OwnForward(TorchFunctionMode):
    """Replaces the products with the weights of one layer while its own forward runs."""

    def __init__(self, uses: "Uses") -> None:
        super().__init__()
        self.uses = uses

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return self.uses.replaced(function, args, kwargs or {})


class Uses:
    """What a forward under way has done with the weights of its layer."""

    def __init__(self, product: Product) -> None:
        self._product = product
        # by identity: the tensor (kept alive), its part, and whether it is transposed to W
        self._known: dict[int, tuple[Tensor, str, bool]] = {
            id(tensor): (tensor, key, transposed)
            for key, tensor, transposed in product.parameters()
        }
        self._unused = {key for _, key, _ in self._known.values()}

    def replaced(
        self, function: Callable[..., Any], args: tuple[Any, ...], named: dict[str, Any]
    ) -> Any:
        """The result of a call of torch, or of the product with feedback in its place."""
        given: list[Any] = []
        for argument in (*args, *named.values()):  # torch.cat and the like take lists
            given.extend(argument if isinstance(argument, tuple | list) else [argument])
        used = [self._known[id(value)] for value in given if id(value) in self._known]
        if not used:
            return function(*args, **named)
        _, key, transposed = used[0]
        if len(used) == 1:
            if function in _SAME or function in _TRANSPOSED:
                result = function(*args, **named)
                turned = transposed != (function in _TRANSPOSED)
                self._known[id(result)] = (result, key, turned)
                return result
            call = _linear(function, args, named, transposed) or _convolution(function, args, named)
            if call is not None:
                self._unused.discard(key)
                return self._product.with_weight(key, *call)
        result = function(*args, **named)
        if isinstance(result, Tensor) or (
            isinstance(result, tuple | list) and any(isinstance(part, Tensor) for part in result)
        ):
            name = getattr(function, "__name__", str(function))
            raise ValueError(
                f"{self._product.layer}: its forward uses a weight in {name!r}, to which no"
                f" rule can be applied; {REMEDY}"
            )
        return result  # its shape, its dtype

    def check(self) -> None:
        """Raises: ValueError if the forward called no product with one of the weights."""
        if self._unused:
            raise ValueError(
                f"{self._product.layer}: its forward called no product with"
                f" {', '.join(key or 'its weight' for key in sorted(self._unused))}, so no rule can"
                f" be applied; {REMEDY}"
            )


Call = tuple[LinearOp | ConvOp, Tensor, Tensor, Tensor | None]
"""Operation, input, weight in its layout, bias."""


def _linear(
    function: Callable[..., Any], args: tuple[Any, ...], named: dict[str, Any], transposed: bool
) -> Call | None:
    """The call of a linear map, if this is one with the weight in the right place."""
    if function is F.linear and not transposed:
        x, weight, bias = _arguments(("input", "weight", "bias"), args, named)
        return LinearOp(), x, weight, bias
    if function in _MATRIX_PRODUCTS and transposed and not named and len(args) == 2:
        return LinearOp(), args[0], args[1].t(), None
    if function is torch.addmm and transposed and not named and len(args) == 3:
        return LinearOp(), args[1], args[2].t(), args[0]
    return None


def _convolution(
    function: Callable[..., Any], args: tuple[Any, ...], named: dict[str, Any]
) -> Call | None:
    if function not in _CONVOLUTIONS:
        return None
    axes = _CONVOLUTIONS[function]
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    x, weight, bias, stride, padding, dilation, groups = _arguments(
        names, args, {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, **named}
    )
    if isinstance(padding, str):
        return None

    def each(value: Any) -> tuple[int, ...]:
        listed = (value,) if isinstance(value, int) else tuple(value)
        return listed * axes if len(listed) == 1 else listed

    op = ConvOp(each(stride), each(padding), each(dilation), False, (0,) * axes, groups)
    return op, x, weight, bias


def _arguments(names: tuple[str, ...], args: tuple[Any, ...], named: dict[str, Any]) -> list[Any]:
    given = {**named, **dict(zip(names, args, strict=False))}
    return [given.get(name) for name in names]
