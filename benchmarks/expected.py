"""Values that step times are compared with: our targets, and the ratios of BioTorch."""

from __future__ import annotations

KP = "kp without B's step"

_CONVOLUTIONS = {
    "fa": 1.03, "usf": 1.05, "frsf": 1.05, "brsf": 1.06, "brsf pool": 1.06, KP: 1.05
}  # fmt: skip

TARGETS: dict[str, dict[str, float]] = {
    "mlp": {
        "fa": 1.08, "usf": 1.17, "frsf": 1.17, "brsf": 1.60, "brsf pool": 1.20, KP: 1.15,
        "dfa": 0.90,
    },
    "lenet": _CONVOLUTIONS | {"dfa": 0.92},
    "resnet20": _CONVOLUTIONS | {"dfa": 0.87},
    "vit": _CONVOLUTIONS | {"dfa": 0.92},
    "resnet18": _CONVOLUTIONS,
}  # fmt: skip
"""Step over backprop's, eager, at most. All layouts of DFA have the target of "dfa"."""

COMPILED_TARGETS: dict[str, float] = {"fa": 1.03, "dfa": 0.87}
"""Compiled step over compiled backprop's, at most."""

# jsalbert/biotorch release 0.0.16, its own layers, float32: step over that of plain backprop in
# contiguous layout with torch's default SGD. Measured on another machine of the same kind (two
# cores, one thread, process CPU time, medians, control within 3 %); lowest and highest of the runs.
# ViT and ResNet-18 come from one run at batch 16 and 8, its linear layer wrapped to take (N, T, D).
BIOTORCH: dict[str, dict[str, tuple[float, float]]] = {
    "mlp": {
        "fa": (1.02, 1.11), "dfa kernel": (0.98, 1.14), "usf": (1.23, 1.36),
        "brsf": (2.14, 2.43), "frsf": (1.45, 1.62),
    },
    "lenet": {
        "fa": (1.04, 1.04), "dfa kernel": (1.10, 1.15), "usf": (1.05, 1.07),
        "brsf": (1.07, 1.07), "frsf": (1.05, 1.07),
    },
    "resnet20": {
        "fa": (1.04, 1.13), "dfa kernel": (1.27, 1.33), "usf": (1.04, 1.11),
        "brsf": (1.06, 1.15), "frsf": (1.05, 1.09),
    },
    "vit": {"fa": (1.02, 1.02), "usf": (1.06, 1.06)},
    "resnet18": {"fa": (1.13, 1.13), "usf": (1.30, 1.30)},
}  # fmt: skip

AGAINST_BIOTORCH: dict[str, dict[str, float]] = {
    "resnet20": {"fa": 0.78, "usf": 0.78, "frsf": 0.78, "brsf": 0.78, "dfa kernel": 0.55},
    "lenet": {"fa": 0.70, "usf": 0.70, "frsf": 0.70, "brsf": 0.70, "dfa kernel": 0.60},
    "mlp": {"brsf": 0.55},
}
"""Our step over BioTorch's with the same rule, at most."""


def target(net: str, rule: str, *, compiled: bool) -> float | None:
    """The ratio a rule may reach on a net; None where none was set."""
    name = rule.removesuffix(" full").removesuffix(" kernel").removesuffix(" channel")
    return COMPILED_TARGETS.get(name) if compiled else TARGETS.get(net, {}).get(name)


def biotorch(net: str, rule: str) -> tuple[float, float] | None:
    """Lowest and highest ratio of BioTorch's step to plain backprop's; its DFA is our "kernel"."""
    return BIOTORCH.get(net, {}).get(rule)
