# %% [markdown]
# # First: a net that learns by feedback alignment
#
# Train one small net on handwritten digits three times: by backpropagation
# (BP), by feedback alignment (FA), and with frozen hidden layers, the
# control. Where FA has a lower error than the control, its hidden layers
# help.

# %%
import torch
from torch.nn import functional as F

import apical
from apical import data, nets

digits = data.load("digits")


def loader(split):
    return data.Batches(split, 64, mean=digits.mean, std=digits.std, shuffle_seed=0)


# %% [markdown]
# `convert` changes what each layer sends to the layer below. The loop is
# that of any PyTorch model.


# %%
def build():
    shape = {"in_shape": digits.shape, "num_classes": 10}
    return nets.build("mlp", hidden=[32, 32], seed=0, **shape)


def train(rule, epochs=10):
    model = apical.convert(build(), rule)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9)
    for epoch in range(epochs):
        for x, y in loader(digits.train).epoch(epoch):
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
    return model


def test_error(model):
    wrong = 0
    with torch.no_grad():
        for x, y in loader(digits.test).epoch(0):
            wrong += (model(x).argmax(1) != y).sum().item()
    return wrong / len(digits.test)


models = {rule: train(rule) for rule in ("bp", "fa", "frozen")}
errors = {rule: test_error(model) for rule, model in models.items()}
for rule, error in errors.items():
    print(f"{rule:6} test error {error:.1%}")

# %% [markdown]
# Why does FA work? During training the weights align with the fixed random
# feedback: the angle between them falls below 90 degrees, so that the error
# which arrives is useful.

# %%
before = apical.probes.alignment(apical.convert(build(), "fa"))
after = apical.probes.alignment(models["fa"])
for layer, values in after.items():
    angles = before[layer]["angle_deg"], values["angle_deg"]
    print(f"{layer}: {angles[0]:.0f} degrees, after training {angles[1]:.0f}")

# %% [markdown]
# One seed shows little. `apical study smoke` does the same for seven rules
# and two controls, each at a learning rate chosen by the same search, with
# ten seeds, and reports intervals.
