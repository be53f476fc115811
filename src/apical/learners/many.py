"""Many small nets in one: seeds of one architecture, trained in the same operations."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from apical.core.layers import converted_layers
from apical.learners.base import Batch, Learner, add_gradients


class Many(nn.Module):
    """S nets of one architecture; every parameter has a leading axis S.

    Small nets spend their time between operations, so that S of them together take little more
    than one. An optimizer that treats every number alone (SGD, Adam) trains each net as if it
    were alone; to clip gradients, give the learner its limit, which is then one for each net.

    Args: nets: plain ones, alike in all but their numbers; they are copied.
    Raises: ValueError if they differ, or cannot be batched.

    >>> from apical import nets
    >>> many = Many([nets.Recurrent(nets.SRN(6, 10), 4) for _ in range(3)])
    >>> many(torch.zeros(3, 2, 20, 6)).shape
    torch.Size([3, 2, 4])
    """

    def __init__(self, nets: Sequence[nn.Module]) -> None:
        super().__init__()
        _check(nets)
        # in a tuple: its own parameters are not among those to train
        self._template = (copy.deepcopy(nets[0]).requires_grad_(False),)
        self.names = tuple(name for name, _ in nets[0].named_parameters())
        self.stacks = nn.ParameterList(
            torch.stack([net.get_parameter(name).detach() for net in nets]) for name in self.names
        )

    def tensors(self) -> dict[str, Tensor]:
        """Name of a parameter of one net -> the parameter of all, (S, ...)."""
        return dict(zip(self.names, self.stacks, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        """Outputs of every net for its own inputs.     Shapes: x (S, N, ...) -> (S, N, ...)."""
        model = self._template[0]
        return vmap(lambda tensors, own: functional_call(model, tensors, (own,)))(self.tensors(), x)

    def gradients(self, learner: Learner, batch: Batch) -> Tensor:
        """Add the gradients of a batch for every net to `.grad`; the loss of each, (S,).

        Args: batch: inputs (S, N, ...) and targets (S, N, ...).
        Raises: ValueError for a learner that has tensors of its own.
        """
        model = self._template[0]
        if learner.create(model, torch.Generator()):
            raise learner.error("it has tensors of its own, and trains one net at a time")

        def teach(own: dict[str, Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            return learner.pure(model, own, (x, y))

        tensors = {name: stack.detach() for name, stack in self.tensors().items()}
        with torch.no_grad():
            losses, found = vmap(teach)(tensors, *batch)
        add_gradients({stack: found.get(name) for name, stack in self.tensors().items()})
        return losses

    def net(self, number: int) -> nn.Module:
        """A copy of one of the nets, trained so far."""
        single = copy.deepcopy(self._template[0]).requires_grad_(True)
        with torch.no_grad():
            for name, stack in self.tensors().items():
                single.get_parameter(name).copy_(stack[number])
        return single


def _check(nets: Sequence[nn.Module]) -> None:
    if not nets:
        raise ValueError("Many: give at least one net")
    kinds = [
        (str(net), [(name, p.shape, p.dtype) for name, p in net.named_parameters()]) for net in nets
    ]
    if any(kind != kinds[0] for kind in kinds):
        raise ValueError("Many: the nets must be alike in all but their numbers")
    if list(nets[0].buffers()) or any(True for _ in converted_layers(nets[0])):
        raise ValueError(
            "Many: nets with buffers, converted layers or the memory of a learner cannot be "
            "batched; train them one by one"
        )
