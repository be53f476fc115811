# %% [markdown]
# # Attack it honestly
#
# A net trained by feedback alignment looks robust to an attacker who calls
# `backward`, because `backward` returns the gradient of the rule. The
# attacker who has the true gradient breaks it.

# %%
import torch
from torch.nn import functional as F

import apical
from apical import attacks, data, nets

digits = data.load("digits")
plain = nets.build("mlp", in_shape=digits.shape, num_classes=10, seed=0)
model = apical.convert(attacks.Normalised(plain, digits.mean, digits.std), "fa")

# %% [markdown]
# `Normalised` puts the normalisation inside the model: attacks then work on
# pixels in [0, 1].


# %%
def loader(split):
    return data.Batches(split, 64, mean=(0.0,), std=(1.0,), shuffle_seed=0)


optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
for epoch in range(10):
    for x, y in loader(digits.train).epoch(epoch):
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
model.eval()

# %% [markdown]
# The same attack, by the net's own gradient and by the exact one.

# %%
x, y = next(iter(data.Batches(digits.test, 200, mean=(0.0,), std=(1.0,)).epoch(0)))
pgd = attacks.PGD(eps=0.1, steps=20)
accuracy = {"clean": (model(x).argmax(1) == y).float().mean().item()}
for gradient in ("own", "exact"):
    attacked = pgd(model, x, y, gradient=gradient)
    accuracy[gradient] = (model(attacked).argmax(1) == y).float().mean().item()
for name, value in accuracy.items():
    print(f"{name:6} accuracy {value:.1%}")

# %% [markdown]
# `audit` asks whether a gradient points uphill: it compares it with finite
# differences of the loss, which need no backward pass.

# %%
for gradient in ("own", "exact"):
    audit = attacks.audit(model, x[:64], y[:64], gradient=gradient)
    print(f"{gradient}: {audit.verdict}. " + "; ".join(audit.reasons))

# %% [markdown]
# For a finished run, `apical robustness RUN_FOLDER` tries every source of
# gradients and reports the worst case per image.
