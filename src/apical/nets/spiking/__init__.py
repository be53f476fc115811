"""Neurons, encodings and readouts of spiking nets. Nets made of them are in `nets`.

>>> import torch
>>> lif = LIF(steps=3, decay=0.5)  # one neuron, one sample: current 0.8 at every step
>>> lif(torch.full((3, 1), 0.8)).flatten().tolist()
[0.0, 1.0, 0.0]
"""

from apical.nets.spiking.encodings import Delta, Direct, Frames, Latency, Poisson
from apical.nets.spiking.net import (
    Activity,
    Count,
    Membrane,
    SilentWarning,
    SpikingNet,
    activity,
    check_activity,
    has_spikes,
    spikes,
    within_steps,
)
from apical.nets.spiking.neurons import LIF, SURROGATES, DoubleExponential, OverTime

__all__ = [
    "ENCODINGS",
    "LIF",
    "SURROGATES",
    "Activity",
    "Count",
    "Delta",
    "Direct",
    "DoubleExponential",
    "Frames",
    "Latency",
    "Membrane",
    "OverTime",
    "Poisson",
    "SilentWarning",
    "SpikingNet",
    "activity",
    "check_activity",
    "has_spikes",
    "spikes",
    "within_steps",
]

ENCODINGS = {
    "delta": Delta,
    "direct": Direct,
    "frames": Frames,
    "latency": Latency,
    "poisson": Poisson,
}
