"""Local representation alignment along time."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from apical.learners.regulariser import Per, omega, vanished
from apical.learners.targets import Pairs, TargetLearner, local_gradients
from apical.learners.unrolled import Gradients, Run, SimpleNet, activate, bend_of, slope_of, summed


class _Above(NamedTuple):
    """The loss above a step, as a search descends it.

    Attributes: weight: from the step to that loss.     delta: gradient of the loss behind it.
        terms: what delta is a difference of, as in `vanished`.
        again: activation of the step -> delta there.
    """

    weight: Tensor
    delta: Tensor
    terms: Tensor
    again: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class LRA(TargetLearner):
    """LRA-diff on the unrolled net: targets by gradient steps on the loss one step later.

    From the last step T to the first, with step size gamma and c = clip:
    hbar <- h_(t-1); `inner` times: hbar <- hbar - gamma c(dl(z(hbar), target_t) / dhbar);
    target_(t-1) = tanh(hbar). Above the last step stands the loss at the outputs. Weights get the
    gradient of the local loss of each step, clipped, summed over steps; biases unclipped.
    Nothing flows through more than one step, and nothing through a target.

    Args:
        local: local loss of z and its target y: "log" log(1 + (y - z)^2), or "squared" (y - z)^2.
        inner: steps (>= 1) of each target search.
        gamma: their size (> 0); from 1 on the search diverges with reduction="sum", inner=1.
        gamma_output: size for the last target; absent: gamma.
        clip: "clip": gradients of weights, and of a search over the whole batch, are shortened to
            the norm `limit`; "force": they always have it, unless the signal has vanished; "none".
        limit: that norm (> 0).
        alpha_weights: weight (>= 0) of the regulariser Omega in the gradients of the recurrent
            weight and the readout. It is not clipped.
        alpha_targets: the same in the target searches.
            Omega does not depend on the size of a signal. One whose norm has fallen to sqrt(eps)
            times that of the numbers it is the difference of is rounding noise, and Omega is 0.
        omega_per: norms in Omega over the whole "batch", or of each "sample": then it is a
            sum over samples in searches and a mean in weight gradients under reduction="sum".
    Raises: ValueError for a reduction that is not stated, a value out of range, an option
        without effect.
    Source: the intended algorithm of Ororbia et al. 2018, along time as in Manchev and
        Garcia-Peraza-Herrera 2025. In the code released with the latter, targets are not cut off
        from the graph, Omega takes slopes of the wrong units, and it acts on the input weight; here
        on the one that carries the signal back. They use reduction="mean", gamma 10, inner 10.
    """

    local: Literal["log", "squared"] = "log"
    inner: int = 1
    gamma: float = 0.5
    gamma_output: float | None = None
    clip: Literal["clip", "force", "none"] = "clip"
    limit: float = 1.0
    alpha_weights: float = 0.0
    alpha_targets: float = 0.0
    omega_per: Per = "batch"

    reference: ClassVar[str] = """@article{ororbia2018,
  title = {Conducting Credit Assignment by Aligning Local Representations},
  author = {Ororbia, Alexander G. and Mali, Ankur and Kifer, Daniel and Giles, C. Lee},
  journal = {arXiv:1803.01834}, year = {2018}
}

@article{manchev2025,
  title = {Can Local Representation Alignment RNNs Solve Temporal Tasks?},
  author = {Manchev, Nikolay and Garcia-Peraza-Herrera, Luis C.},
  journal = {arXiv:2504.13531}, year = {2025}
}"""

    def __post_init__(self) -> None:
        super().__post_init__()
        steps = [self.gamma, self.limit]
        steps += [] if self.gamma_output is None else [self.gamma_output]
        if self.inner < 1 or not all(size > 0 for size in steps):
            raise self.error(
                f"inner={self.inner} must be at least 1; gamma={self.gamma}, gamma_output="
                f"{self.gamma_output} and limit={self.limit} above 0"
            )
        if not (self.alpha_weights >= 0 and self.alpha_targets >= 0):
            raise self.error(
                f"alpha_weights={self.alpha_weights} and alpha_targets={self.alpha_targets} must "
                "be at least 0"
            )
        if self.clip == "none" and self.limit != 1.0:
            raise self.error(f"limit={self.limit} has no effect with clip='none'")
        if not (self.alpha_weights or self.alpha_targets) and self.omega_per != "batch":
            raise self.error(f"omega_per={self.omega_per!r} has no effect: both alphas are 0")

    @property
    def version(self) -> int:
        # 2: the regulariser and clip="force" leave alone a signal that has vanished
        return 2 if self.alpha_weights or self.alpha_targets or self.clip == "force" else 1

    def local_loss(self, z: Tensor, target: Tensor) -> Tensor:
        distance = (target - z).square_()
        return distance.log1p_() if self.local == "log" else distance

    def local_error(self, z: Tensor, target: Tensor) -> Tensor:
        difference = z - target
        if self.local == "squared":
            return difference.mul_(2)
        half = _half(z.dtype, z.device)
        return difference.div_(torch.addcmul(half, difference, difference, value=0.5))

    def last_target(self, net: SimpleNet, run: Run, error: Tensor, y: Tensor) -> Tensor:
        scale = 1.0 if self.reduction == "sum" else 1 / len(error)
        gamma = self.gamma if self.gamma_output is None else self.gamma_output
        weight, bias = net.w_out, net.b_out

        def again(z: Tensor) -> Tensor:
            return self.objective.error(torch.addmm(bias, z, weight.t()), y)

        above = _Above(weight, error, self.objective.minuend(run.scores), again)
        return self._search(net, run, len(run.z) - 1, above, gamma, scale)

    def earlier_target(
        self, net: SimpleNet, run: Run, t: int, target: Tensor, signal: Tensor
    ) -> Tensor:
        weight = net.w_rec

        def again(z: Tensor) -> Tensor:
            later = activate(net, torch.addmm(run.drive[t], z, weight.t()))
            return self.local_error(later, target).mul_(slope_of(net, later))

        above = _Above(weight, signal, 2 * run.z[t] * run.slope[t], again)
        return self._search(net, run, t - 1, above, self.gamma, self.search_scale(target))

    def _search(
        self, net: SimpleNet, run: Run, t: int, above: _Above, gamma: float, scale: float
    ) -> Tensor:
        """The target of step t: `inner` steps down the loss above it."""
        h, z, slope = run.h[t], run.z[t], run.slope[t]
        weight, delta, terms, again = above
        for number in range(self.inner):
            if number:
                slope, delta = slope_of(net, z), again(z)
            down = torch.mm(delta, weight).mul_(slope)
            if scale != 1:
                down.mul_(scale)
            if self.alpha_targets:
                bend = bend_of(net, z)
                pull = omega(delta, weight, slope, bend, self.omega_per, terms).to_below
                mean = self.omega_per == "sample" and self.reduction == "mean"
                down.add_(pull, alpha=self.alpha_targets * (1 / len(pull) if mean else 1.0))
            if self.clip == "force":
                down.masked_fill_(vanished(delta, terms, (0, 1)), 0)
            if self.clip == "none":
                h = torch.sub(h, down, alpha=gamma)
            else:
                divisor = self._divisor(torch.linalg.vector_norm(down))
                h = torch.addcdiv(h, down, divisor, value=-gamma * self.limit)
            z = activate(net, h)
        return z

    def weights(self, net: SimpleNet, run: Run, pairs: Pairs) -> Gradients:
        factor = None if self.clip == "none" else self._factor
        samples = run.z[0].shape[0]
        mean_of = samples if self.reduction == "sum" else run.z[0].numel()
        terms_of = {
            "cell.recurrent.weight": 2 / mean_of * run.z_TNH * run.slope_TNH,
            "readout.weight": self.objective.minuend(run.scores)[None] / samples,
        }
        terms_of["cell.input.weight"] = terms_of["cell.recurrent.weight"]
        if self.clip == "force":
            pairs = {
                name: (weight, delta.masked_fill(vanished(delta, terms_of[name], (-2, -1)), 0), z)
                for name, (weight, delta, z) in pairs.items()
            }
        gradients = local_gradients(net, pairs, factor)
        if self.alpha_weights:
            last, first = slice(-1, None), slice(1, None)  # step 1 has no state before it
            for name, above, below in (
                ("readout.weight", slice(None), last),
                ("cell.recurrent.weight", first, slice(-1)),
            ):
                weight, delta = pairs[name][0], pairs[name][1][above]
                bend, terms = bend_of(net, run.z_TNH[below]), terms_of[name][above]
                found = omega(delta, weight, run.slope_TNH[below], bend, self.omega_per, terms)
                share = 1.0 if self.omega_per == "batch" else 1 / delta.shape[1]
                extra = summed(delta, found.to_weight)
                gradients[weight].add_(extra, alpha=self.alpha_weights * share)
        return gradients

    def _divisor(self, norm: Tensor) -> Tensor:
        """What a gradient of this norm is divided by, after it was multiplied by the limit."""
        if self.clip == "clip":
            return norm.clamp(min=self.limit)
        kind = torch.finfo(norm.dtype)
        return norm.clamp(min=max(kind.tiny, 2 * self.limit / kind.max))

    def _factor(self, norm: Tensor) -> Tensor:
        """What shortens gradients of these norms to the limit, or gives them that norm."""
        return self.limit / self._divisor(norm)


@cache
def _half(dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(0.5, dtype=dtype, device=device)
