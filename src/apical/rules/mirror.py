"""Weight mirror: feedback learns from the responses of its layer to noise, between updates."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from apical.rules.base import Law, Needs, TransportRule, Update, drawn
from apical.rules.ops import LinearOp, Op, mean_product

Activation = Literal["none", "sigmoid", "tanh", "relu"]
""""none", or the name of a function of torch."""


@dataclass(frozen=True)
class WeightMirror(TransportRule):
    """Weight mirror: B learns from noise, B <- (1 - decay) B + rate <y x^T>.

    x is noise at the layer's input and y the layer's response to it.
    As <y x^T> = sigma^2 W, B goes to rate sigma^2 / decay times W. A mirror phase follows updates
    of the weight, layer by layer on noise of its own, without labels or images; a layer whose
    input needs no signal has none. By default the layer responds linearly, its bias and activation
    blocked, and the decay is the one that lets B go to W itself: B - W shrinks by (1 - decay) per
    batch of noise, and the angle settles near atan(sqrt(rate sigma^2 fan_in / (2 samples))).
    Noise is drawn on the weight's device in every phase: from the same seed CUDA draws others
    than the CPU; B_0 is the same.

    Args:
        rate: of learning (eta_B), above 0, per batch of noise.
        sigma: standard deviation of the noise, above 0.
        decay: share of B that every batch takes away, in [0, 2); None: rate * sigma^2. With 0, B
            grows for ever, in the right direction.
        samples: noise vectors (>= 1) of a batch; for convolutions, noise images.
        batches: of a phase, >= 1.
        every: updates of the weight (>= 1) from one phase to the next; the first update has one.
        initial: further batches (>= 0) of the first phase.
        noise: its law, both with mean 0 and standard deviation sigma.
        whiten: orthonormal noise, under which <y x^T> is sigma^2 W exactly: linear layers with at
            most `samples` inputs.
        bias: let the layer add its bias, as in the literal circuit.
        activation: what the response passes through; "none" keeps it linear. Then the mirror
            learns sigma^2 diag(phi'(b)) W to first order in the noise, with errors of 1 /
            sqrt(samples) that phi(b) makes.
        patch: positions (>= 1) along each axis of the response of a convolution to its noise
            images, which are never padded: at the rim, padding would weaken some taps. For a
            transposed convolution, positions of the noise image.
        init: the law of B_0, as in `FA`.

    Raises: ValueError for values out of range, a decay that would diverge among them.
    Source: Akrout, Wilson, Humphreys, Lillicrap, Tweed 2019, equations 3-7. Their released code
        is `RELEASED`: biases and sigmoids take part, the noise is uniform with an amplitude of
        0.1, and nothing decays (its line against growth has no effect).
    """

    rate: float = 0.01
    sigma: float = 1.0
    decay: float | None = None
    samples: int = 128
    batches: int = 1
    every: int = 1
    initial: int = 0
    noise: Literal["normal", "uniform"] = "normal"
    whiten: bool = False
    bias: bool = False
    activation: Activation = "none"
    patch: int = 4
    init: Law = "xavier"

    name: ClassVar[str] = "wm"
    needs: ClassVar[Needs] = Needs("nothing", "layers above", phase=True)
    acts_after_update: ClassVar[bool] = True
    reference: ClassVar[str] = """@inproceedings{akrout2019,
  title = {Deep Learning without Weight Transport},
  author = {Akrout, Mohamed and Wilson, Collin and Humphreys, Peter and Lillicrap, Timothy and
            Tweed, Douglas B.},
  booktitle = {Advances in Neural Information Processing Systems}, year = {2019}
}"""

    def __post_init__(self) -> None:
        super().__post_init__()
        problems = [
            f"{name}={getattr(self, name)} must be positive and finite"
            for name in ("rate", "sigma")
            if not 0 < getattr(self, name) < math.inf
        ]
        least = {"samples": 1, "batches": 1, "every": 1, "initial": 0, "patch": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                problems.append(f"{name}={getattr(self, name)} must be at least {low}")
        if not problems and not 0 <= self.share < 2:
            given = "rate * sigma^2" if self.decay is None else "decay"
            problems.append(
                f"{given} = {self.share:g} is outside [0, 2): each batch multiplies what B still"
                " lacks by 1 - decay, so it would diverge; 0.01 is usual"
            )
        if problems:
            raise ValueError("WeightMirror: " + "; ".join(problems))

    @property
    def share(self) -> float:
        """The decay in force."""
        return self.rate * self.sigma**2 if self.decay is None else self.decay

    def create(self, weight: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        return {"matrix": drawn(self.init, weight.shape, generator)}

    def matrix(self, weight: Tensor, *memory: Tensor) -> Tensor:
        return memory[0]

    def obstacle(self, op: Op, weight: Tensor) -> str:
        if not self.whiten:
            return ""
        if not isinstance(op, LinearOp):
            return "noise can be whitened for linear layers only; use whiten=False here"
        if weight.shape[1] > self.samples:
            return (
                f"{self.samples} noise vectors cannot be orthonormal in {weight.shape[1]}"
                f" inputs; use samples={weight.shape[1]} or more, or whiten=False"
            )
        return ""

    def after_update(self, update: Update, *memory: Tensor) -> None:
        past = update.number - 1
        if past % self.every:
            return
        generator = update.generator()
        op = unpadded(update.op)
        bias = update.bias if self.bias else None
        for _ in range(self.batches + (0 if past else self.initial)):
            x = self.draw(op, update.weight, generator)
            seen = mirrored(op, x, update.weight, bias, self.activation)
            memory[0].mul_(1 - self.share).add_(seen, alpha=self.rate)

    def draw(self, op: Op, weight: Tensor, generator: torch.Generator) -> Tensor:
        """A batch of noise as the layer's input."""
        x = weight.new_empty((self.samples, *_input_shape(op, weight, self.patch)))
        if self.noise == "normal":
            x.normal_(0, self.sigma, generator=generator)
        else:
            half_width = self.sigma * 3**0.5
            x.uniform_(-half_width, half_width, generator=generator)
        if not self.whiten:
            return x
        exact = torch.promote_types(x.dtype, torch.float32)  # torch has no QR in half precision
        columns = torch.linalg.qr(x.to(exact)).Q
        return (columns * self.sigma * self.samples**0.5).to(x.dtype)


RELEASED = WeightMirror(
    rate=1.28,  # 0.01 on the sum over 128 samples
    sigma=0.1 / 12**0.5,
    decay=0.0,
    initial=468,
    noise="uniform",
    bias=True,
    activation="sigmoid",
    init="normal",
)
"""The mirror of the code released with the paper: a batch of 128 after every update, and one pass
over an epoch's 468 batches at the start (here after the first update, there before it)."""


def mirrored(
    op: Op, x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: Activation = "none"
) -> Tensor:
    """<y x^T>: the mean product of input and response, over samples and positions.

    For white noise of variance sigma^2 and a linear response its expectation is sigma^2 W, if no
    padding hides an input from a tap.

    Shapes: x as the layer's input, result as `weight`.
    """
    y = op.forward(x, weight, bias)
    if activation != "none":
        y = getattr(torch, activation)(y)
    return mean_product(op, y, x, weight)


def unpadded(op: Op) -> Op:
    """The operation without padding: every tap then has equally many inputs."""
    if isinstance(op, LinearOp):
        return op
    zeros = (0,) * len(op.padding)
    return op._replace(padding=zeros, output_padding=zeros, pad=(), pad_mode="constant")


def _input_shape(op: Op, weight: Tensor, patch: int) -> tuple[int, ...]:
    """Shape of one noise sample."""
    if isinstance(op, LinearOp):
        return (weight.shape[1],)
    kernel = weight.shape[2:]
    if op.transposed:
        return (weight.shape[0], *(patch for _ in kernel))
    sides = [
        s * (patch - 1) + d * (k - 1) + 1
        for k, s, d in zip(kernel, op.stride, op.dilation, strict=True)
    ]
    return (weight.shape[1] * op.groups, *sides)
