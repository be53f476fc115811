"""The weights that a run starts from, and which of them learn, as a value."""

from dataclasses import dataclass, field, fields
from math import inf
from typing import Any, Literal

from apical.names import literal_problems
from apical.nets.pretrained.weights import digest, read

WITHOUT_SOURCE = ("freeze", "train_only", "rates")
"""Fields that apply to a net's own initial weights too."""


@dataclass(frozen=True)
class Start:
    """The weights that a net starts from, trained ones or its own, and which parameters learn.

    ``freeze``, ``train_only`` and ``rates`` apply to a net's own initial weights too; all other
    fields have an effect only with a source. With trained weights, transport rules without an
    explicit scale use ``norm``: feedback has the norm of the trained weights.

    Args:
        source: a file, ``package:DISTRIBUTION/PATH``, ``torchvision:NAME`` or ``timm:NAME`` (see
            ``pretrained.read``); or the fields of another experiment, which is trained first.
            Empty: the net's own initial weights. From a checkpoint of Apical only the weights are
            loaded, not the feedback.
        digest: of the tensors, as ``pretrained.digest`` computes it; empty: that of the source as
            it is now. It represents the source in the key of an experiment.
        entry: key of the state dict in a file that holds several.
        rename: prefixes of names in the source, and their replacements in the net.
        skip: patterns of tensors that are not loaded.
        new_head: do not load the last layer, because its outputs are other classes.
        head: name of the last layer; empty: found by name.
        head_by: ``rule``: the last layer learns as all others; ``bp``: by its exact gradient.
        norms: ``frozen``: batch norms use their stored statistics; ``live``: those of each batch.
        freeze: patterns of parameters that do not learn.
        train_only: patterns of the only parameters that learn.
        rates: patterns of parameters and factors of the learning rate (>= 0); the first match
            counts.
    Raises: ValueError naming every value that does not fit, or a source that does not exist.
    """

    source: str | dict[str, Any] = ""
    digest: str = ""
    entry: str = ""
    rename: dict[str, str] = field(default_factory=dict)
    skip: tuple[str, ...] = ()
    new_head: bool = True
    head: str = ""
    head_by: Literal["rule", "bp"] = "rule"
    norms: Literal["live", "frozen"] = "live"
    freeze: tuple[str, ...] = ()
    train_only: tuple[str, ...] = ()
    rates: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("skip", "freeze", "train_only"):
            value = getattr(self, name)
            if not isinstance(value, str | tuple | list):
                raise ValueError(f"start: {name}={value!r} must be a list of patterns")
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        problems = self._problems()
        if problems:
            raise ValueError("start: " + "; ".join(problems))
        if isinstance(self.source, str) and self.source and not self.digest:
            object.__setattr__(self, "digest", digest(read(self.source, entry=self.entry or None)))

    def _problems(self) -> list[str]:
        changed = [
            f.name
            for f in fields(self)
            if getattr(self, f.name)
            != (f.default_factory() if callable(f.default_factory) else f.default)
        ]
        problems = literal_problems(self)
        if not isinstance(self.source, str | dict):
            problems.append(f"source={self.source!r} must be a text, or fields of an experiment")
        for name in ("rename", "rates"):
            if not isinstance(getattr(self, name), dict):
                problems.append(f"{name}={getattr(self, name)!r} must be a mapping")
        if problems:
            return problems
        if not self.source:
            without = [name for name in changed if name not in WITHOUT_SOURCE]
            problems += [f"{name} has no effect without a source" for name in without]
        elif not isinstance(self.source, str):
            problems += [
                f"{name}={getattr(self, name)!r} has no effect with an experiment as source"
                for name in ("digest", "entry")
                if name in changed
            ]
        if self.freeze and self.train_only:
            problems.append("freeze and train_only: give one of them")
        if self.head and not self.new_head and self.head_by == "rule":
            problems.append(f"head={self.head!r} has no effect on a head that stays as it is")
        if any(type(f) not in (int, float) or not 0 <= f < inf for f in self.rates.values()):
            problems.append(f"rates={self.rates}: factors must be numbers of at least 0")
        return problems
