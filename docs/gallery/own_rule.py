# %% [markdown]
# # Your own rule
#
# A rule is a frozen dataclass with two methods. `create` returns what it
# stores for a layer, and `matrix` returns the feedback matrix B, in the
# shape of the weight. Here B has random signs and one magnitude, and never
# changes.

# %%
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

import apical
from apical import data, nets, rules


@dataclass(frozen=True)
class RandomSigns(rules.TransportRule):
    """B is random and fixed: all entries have one magnitude and random signs.

    Args: gain: that magnitude times the square root of the fan-in, > 0.
    Raises: ValueError if gain is not positive.
    """

    gain: float = 1.0
    reference: ClassVar[str] = "@misc{randomsigns, title = {An example}}"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.gain > 0:
            raise ValueError(f"RandomSigns: gain={self.gain} is not positive")

    def create(self, weight: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        numbers = torch.rand(weight.shape, generator=generator)
        magnitude = self.gain / weight[0].numel() ** 0.5
        return {"matrix": magnitude * (numbers - 0.5).sign()}

    def matrix(self, weight: Tensor, matrix: Tensor) -> Tensor:
        return matrix


# %% [markdown]
# `check_rule` tests it against the contract that every rule of the library
# satisfies: layer types, data types, checkpoints, seeds, and the gradients
# themselves.

# %%
print(apical.check_rule(RandomSigns()))

# %% [markdown]
# It is used like any other rule, for all layers or for those that a pattern
# names.

# %%
digits = data.load("digits")
shape = {"in_shape": digits.shape, "num_classes": 10}
model = nets.build("mlp", hidden=[32, 32], seed=0, **shape)
apical.convert(model, {"fc3": "bp", "*": RandomSigns(gain=0.5)})
print(apical.describe(model))

optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
scale = {"mean": digits.mean, "std": digits.std}
batches = data.Batches(digits.train, 64, shuffle_seed=0, **scale)
losses = []
for epoch in range(5):
    for x, y in batches.epoch(epoch):
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    losses.append(loss.item())
print("loss after each epoch:", " ".join(f"{loss:.2f}" for loss in losses))

# %% [markdown]
# In a file `my_rules.py`, it trains from the command line too: `apical
# train --rule my_rules:RandomSigns`.
