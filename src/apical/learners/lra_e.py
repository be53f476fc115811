"""LRA-E: local representation alignment of feed-forward nets, by error weights that learn."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from apical.core.layers import is_converted
from apical.learners.base import Batch, Info, Learner, add_gradients, memory_of

ACTIVATIONS = (nn.Tanh, nn.Sigmoid, nn.ReLU, nn.Identity)


@dataclass(frozen=True)
class LRAE(Learner):
    """Every layer gets a target from the error of the layer above; no derivative is taken.

    Layer l = 1 to L computes h_l = z_(l-1) W_l^T + b_l, z_l = phi(h_l), the last without phi.
    e_L is the gradient of each sample's loss at the outputs; d_l = e_(l+1) E_(l+1);
    target_l = phi(h_l - beta d_l); e_l = z_l - target_l. W_l gets e_l^T z_(l-1), its bias e_l, and
    E_l gamma e_l^T z_(l-1), each a mean over the batch; nothing is divided by the units.
    `learners.attach(model, learner)` gives the net its E; build the optimizer after it.

    Args:
        beta: size (> 0) of the step to a target.
        gamma: of the error weights' gradient (>= 0); 0 leaves them as drawn, 1 keeps E - W.
        spread: standard deviation (> 0) of the error weights at the start.
    Raises: ValueError for a value out of range.
    Source: Ororbia, Mali 2019, equations only. Its code draws E with 1.0, W with 0.1.
    """

    beta: float = 0.1
    gamma: float = 1.0
    spread: float = 1.0

    reference: ClassVar[str] = """@inproceedings{ororbia2019,
  title = {Biologically Motivated Algorithms for Propagating Local Target Representations},
  author = {Ororbia, Alexander G. and Mali, Ankur}, booktitle = {AAAI}, year = {2019}
}"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.beta > 0 and self.gamma >= 0 and self.spread > 0):
            raise self.error(
                f"beta={self.beta} and spread={self.spread} must be above 0, gamma={self.gamma} at "
                "least 0"
            )

    def create(self, model: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
        made: dict[str, Tensor] = {}
        for number, (layer, _) in enumerate(self._chain(model)[1:], start=2):
            weight = torch.empty(layer.weight.shape, dtype=torch.float64)
            drawn = weight.normal_(0, self.spread, generator=generator)
            made[f"error{number}"] = nn.Parameter(drawn)
        return made

    @torch.no_grad()
    def gradients(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Info]:
        chain, (x, y) = self._chain(model), batch
        errors = self._error_weights(model, len(chain))
        below, sums = [], []
        z = x.flatten(1)
        for layer, activation in chain:
            below.append(z)
            sums.append(layer(z))
            z = activation(sums[-1].clone() if getattr(activation, "inplace", False) else sums[-1])
        loss = self.objective.value(z, y)  # raises for targets that do not fit
        e = self.objective.error(z, y)
        found: dict[Tensor, Tensor | None] = {}
        for place in reversed(range(len(chain))):
            layer = chain[place][0]
            found[layer.weight] = e.t() @ below[place] / len(x)
            if layer.bias is not None:
                found[layer.bias] = e.mean(0)
            if place:
                weight, activation = errors[place - 1], chain[place - 1][1]
                found[weight] = self.gamma * (e.t() @ below[place]) / len(x)
                target = activation(sums[place - 1] - self.beta * (e @ weight))
                e = below[place] - target
        add_gradients(found)
        return loss, Info(z)

    def _error_weights(self, model: nn.Module, layers: int) -> list[Tensor]:
        if layers < 2:
            return []
        memory = memory_of(model, self)
        return [memory.get_parameter(f"error{number}") for number in range(2, layers + 1)]

    def _chain(self, model: nn.Module) -> list[tuple[nn.Linear, nn.Module]]:
        """Linear layers and the activation behind each, the identity behind the last."""
        modules: list[Any] = [child for name, child in model.named_children() if name != "learner"]
        if modules and isinstance(modules[0], nn.Flatten):
            modules = modules[1:]
        layers, activations = modules[::2], [*modules[1::2], nn.Identity()]
        if any(map(is_converted, layers)):
            raise self.error(
                "it does not use the feedback of converted layers; call apical.revert(model), or "
                "use learner Backprop"
            )
        plain = isinstance(model, nn.Sequential) and len(layers) == len(activations)
        if not (
            plain
            and all(type(layer) is nn.Linear for layer in layers)
            and all(type(each) in ACTIVATIONS for each in activations)
        ):
            raise self.error(
                "it trains a Sequential of Linear layers with Tanh, Sigmoid, ReLU or Identity "
                f"between them, as nets.build('mlp', ...) is; not {type(model).__name__}"
            )
        return list(zip(layers, activations, strict=True))
