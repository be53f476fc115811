"""Settings of the net."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from apical.bench.experiment.settings import Settings, setting
from apical.nets.pretrained import Start


@dataclass(frozen=True)
class NetSettings(Settings):
    """The net, its initial weights, and how it is run.

    Args:
        net: name of a net, ``timm:NAME``, ``torchvision:NAME`` or ``package.module:callable``.
        net_options: keyword arguments of the net.
        init: distribution of the initial weights: ``net`` keeps those of the net, ``xavier``
            samples them from U(+-sqrt(6/(fan_in+fan_out))) with zero biases, as BioTorch does,
            ``normal`` samples weights and biases from N(0, 1/(fan_in+fan_out)), ``default`` uses
            PyTorch's distribution.
        start: trained weights to begin with, if any; which parameters learn, and how fast.
        compile: run the net through ``torch.compile``.
        channels_last: memory layout of images and convolutions.
    """

    net: str = "mlp"
    net_options: dict[str, Any] = setting(factory=dict)
    init: Literal["net", "default", "normal", "xavier"] = setting("net", not_with=("task",))
    start: Start = setting(factory=Start, not_with=("task",))
    compile: bool = setting(False, not_with=("learner",))
    channels_last: bool = setting(False, not_with=("task",))

    label: ClassVar[str] = "net"
