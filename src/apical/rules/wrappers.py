"""Rules around another transport rule: its matrix made sparse, or rounded to few levels."""

import abc
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from apical.rules.base import Group, Needs, Rule, TransportRule, Update
from apical.rules.fa import FA
from apical.rules.ops import Local, Op


@dataclass(frozen=True)
class _Wrapper(TransportRule, abc.ABC):
    """A transport rule around another, which keeps its memory, its learning and its demands.

    Args:
        inner: the rule within. By name, write ``rules.build("sparse(kp)")``.
    """

    inner: Rule = field(default_factory=FA)

    source: ClassVar[str] = ""
    """BibTeX of the wrapper and of the rule that it wraps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.inner, Rule):
            kind = type(self).__name__
            raise ValueError(
                f"{kind}: inner={self.inner!r} is not a rule. Write {kind}(rules.FA()), or by name"
                f" rules.build('{kind.lower()}(fa)')"
            )
        if not isinstance(self.inner, TransportRule) or self.inner.sends_nothing:
            raise ValueError(
                f"{type(self).__name__}: {self.inner!r} is no transport rule that sends through a"
                " matrix; those have one for each layer (fa, usf, kp)"
            )
        if self._rule.constrain_weights:
            raise ValueError(
                f"{type(self).__name__}: give constrain_weights to the wrapper, not to the rule"
                " that it wraps"
            )

    @property
    def _rule(self) -> TransportRule:
        assert isinstance(self.inner, TransportRule)
        return self.inner

    @property
    def name(self) -> str:
        return f"{type(self).__name__.lower()}({self._rule.name})"

    @property
    def reference(self) -> str:
        return "\n\n".join(filter(None, (self._rule.reference, self.source)))

    @property
    def needs(self) -> Needs | None:
        return self._rule.needs

    @property
    def acts_after_update(self) -> bool:
        return self._rule.acts_after_update

    @property
    def changes_weight(self) -> bool:
        return self._rule.changes_weight or self.constrain_weights

    @property
    def follows_weight(self) -> bool:
        return self._rule.follows_weight

    def create(self, weight: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        return self._rule.create(weight, generator)

    def note(self, *memory: Tensor) -> dict[str, Tensor]:
        return self._rule.note(*memory)

    def observe(self, local: Local, *memory_and_notes: Tensor) -> None:
        self._rule.observe(local, *memory_and_notes)

    def observes_before(self, number: int) -> bool:
        return self._rule.observes_before(number)

    def memory_gradients(self, local: Local, *memory: Tensor) -> Sequence[Tensor | None]:
        return self._rule.memory_gradients(local, *memory)

    def after_update(self, update: Update, *memory: Tensor) -> None:
        self._rule.after_update(update, *memory)

    def adopt(self, weight: Tensor, *memory: Tensor) -> None:
        self._rule.adopt(weight, *memory)

    def obstacle(self, op: Op, weight: Tensor) -> str:
        return self._rule.obstacle(op, weight)

    def objection(self, optimizer: Optimizer, weight_group: Group, memory_group: Group) -> str:
        return self._rule.objection(optimizer, weight_group, memory_group)


@dataclass(frozen=True)
class Sparse(_Wrapper):
    """Sparse feedback: another rule with a fixed random share of the entries of B, the rest zero.

    A rule that learns its feedback still learns all entries. The entries kept are not rescaled.

    Args:
        density: share of the entries kept, in (0, 1]: exactly that number of them, rounded, and
            at least 1.

    Raises: ValueError for a density out of range, or a rule within that has no matrix.
    Source: Crafton, Parihar, Gebhardt, Raychowdhury 2019, for direct feedback alignment.
    """

    density: float = 0.5

    source: ClassVar[str] = """@article{crafton2019,
  title = {Direct Feedback Alignment With Sparse Connections for Local Learning},
  author = {Crafton, Brian and Parihar, Abhinav and Gebhardt, Evan and Raychowdhury, Arijit},
  journal = {Frontiers in Neuroscience}, volume = {13}, pages = {525}, year = {2019}
}"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.density <= 1:
            raise ValueError(f"Sparse: density={self.density} is outside (0, 1]")

    def create(self, weight: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        inner = super().create(weight, generator)
        mask = torch.zeros(weight.numel(), dtype=torch.float64)
        kept = max(1, round(self.density * len(mask)))
        mask[torch.randperm(len(mask), generator=generator)[:kept]] = 1
        name = "mask"
        while name in inner:  # of a sparse rule within
            name = f"outer_{name}"
        return {name: mask.view(weight.shape), **inner}

    def note(self, *memory: Tensor) -> dict[str, Tensor]:
        return super().note(*memory[1:])

    def matrix(self, weight: Tensor, *memory: Tensor) -> Tensor:
        return self._rule.matrix(weight, *memory[1:]) * memory[0]

    def observe(self, local: Local, *memory_and_notes: Tensor) -> None:
        super().observe(local, *memory_and_notes[1:])

    def memory_gradients(self, local: Local, *memory: Tensor) -> Sequence[Tensor | None]:
        return (None, *super().memory_gradients(local, *memory[1:]))

    def after_update(self, update: Update, *memory: Tensor) -> None:
        super().after_update(update, *memory[1:])

    def adopt(self, weight: Tensor, *memory: Tensor) -> None:
        super().adopt(weight, *memory[1:])


@dataclass(frozen=True)
class Quantised(_Wrapper):
    """Quantised feedback: another rule with B rounded to 2^bits levels or one less.

    A rule that learns its feedback learns in full precision; B is rounded where it is used.

    Args:
        bits: 1: the sign times the mean magnitude; more: 2^bits - 1 levels, evenly spaced and
            symmetric about zero, up to the largest magnitude in the layer. 1 to 16.

    Raises: ValueError for other bits, or a rule within that has no matrix.
    Source: the uniform symmetric quantiser, with the scale of Rastegari et al. 2016 (XNOR-Net) for
        one bit.
    """

    bits: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.bits <= 16:
            raise ValueError(f"Quantised: bits={self.bits!r} is no whole number from 1 to 16")

    def matrix(self, weight: Tensor, *memory: Tensor) -> Tensor:
        matrix = self._rule.matrix(weight, *memory)
        if self.bits == 1:
            return matrix.sign() * matrix.abs().mean()
        levels = 2 ** (self.bits - 1) - 1
        step = (matrix.abs().amax() / levels).clamp_min(torch.finfo(matrix.dtype).tiny)
        return (matrix / step).round() * step
