"""What all groups of settings share: dataclasses that check themselves and have a JSON form.

Everything about one setting stands in one place: its field says its type, its default, its range
and what it cannot be combined with; the docstring of its class says what it means. Flags, JSON,
YAML and keys follow from the field.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from numbers import Integral, Real
from types import NoneType
from typing import Any, ClassVar, NamedTuple, TypeVar, get_args, get_origin

from apical.names import literal_problems, type_hints, unknown

S = TypeVar("S")

DEEPEST = 20
"""Levels of mappings and lists within a setting."""

SHORT = 60
"""Characters up to which a message repeats the value of a setting."""


def setting(
    default: Any = dataclasses.MISSING,
    interval: str | None = None,
    *,
    factory: Callable[[], Any] | None = None,
    needs: str | None = None,
    not_with: tuple[str, ...] = (),
) -> Any:
    """A dataclass field that says what it accepts.

    Args:
        default: of the field.     factory: makes the default where that is mutable.
        interval: of a number, as ``"[1, inf)"``; a default of None is allowed beside it.
        needs: another setting without which this one has no effect.
        not_with: other settings that this one cannot be combined with.
    """
    about = {"interval": interval, "needs": needs, "not_with": not_with}
    if factory is not None:
        return field(default_factory=factory, metadata=about)
    return field(default=default, metadata=about)


@dataclass(frozen=True)
class Settings:
    """A group of settings. It is complete and checked alone, and composed by inheritance.

    A class that overrides `__post_init__` or `problems` calls `super()`, so that every group of a
    composition takes part.

    Raises: ValueError naming everything that does not fit.
    """

    label: ClassVar[str]
    """How errors call the group."""

    def __post_init__(self) -> None:
        options = _options(type(self))
        for option in options:
            if option.listed and type(getattr(self, option.name)) is list:
                object.__setattr__(self, option.name, tuple(getattr(self, option.name)))
        numbers = [option.name for option in options if option.interval]
        alone = [
            *literal_problems(self, but=numbers),
            *self._number_problems(),
            *self._structure_problems(),
        ]
        if problems := alone or [*self.problems(), *self._combination_problems()]:
            raise ValueError(f"{self.label}: " + "; ".join(problems))

    def __repr__(self) -> str:
        """What differs from the defaults, so that it fits a line."""
        fields = [f.name for f in dataclasses.fields(self) if self.differs(f.name)]
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in fields)
        return f"{type(self).__name__}({shown})"

    def problems(self) -> list[str]:
        """What cannot be combined, a sentence each. Every value alone is valid by then."""
        return []

    def differs(self, name: str) -> bool:
        """Whether a setting means something else than its default."""
        return getattr(self, name) != default_of(type(self), name)

    def _number_problems(self) -> list[str]:
        """A sentence for each value that is not a number of its interval."""
        found = []
        for option in _options(type(self)):
            interval = option.interval
            value = getattr(self, option.name)
            if interval is None or (value is None and option.default is None):
                continue
            kind: Any = Integral if option.whole else Real
            if not isinstance(value, kind) or isinstance(value, bool):
                words = "a whole number" if option.whole else "a number"
                found.append(f"{option.name}={value!r}: must be {words}")
                continue
            low, high = map(float, interval[1:-1].split(","))
            above = value >= low if interval[0] == "[" else value > low
            below = value <= high if interval[-1] == "]" else value < high
            if not (above and below):
                if high != math.inf:
                    allowed = f"lie in {interval}"
                elif interval[0] == "[":
                    allowed = f"be at least {low:g}"
                else:
                    allowed = f"be above {low:g} and finite"
                found.append(f"{option.name}={value}: must {allowed}")
        return found

    def _structure_problems(self) -> list[str]:
        """A sentence for each value that is not the mapping or group of settings that it must be,
        or cannot be JSON."""
        found = []
        for option in _options(type(self)):
            value = getattr(self, option.name)
            absent = value is None and NoneType in option.members
            if option.groups and not absent and not isinstance(value, option.groups):
                groups = " or ".join(f"{group.__name__}(...)" for group in option.groups)
                found.append(
                    f"{self._shown(option.name)}: must be {groups}, or in a file a mapping of its"
                    " settings"
                )
            elif option.mapping:
                text = str in option.members and type(value) is str
                if not isinstance(value, Mapping) and not text:
                    found.append(f"{self._shown(option.name)}: must be a mapping")
                elif problem := not_json(value):
                    found.append(f"{option.name}: {problem}")
        return found

    def _combination_problems(self) -> list[str]:
        """A sentence for each pair of settings that their fields exclude. Settings of groups that
        are not part of this composition count as unset."""
        found = []
        for option in _options(type(self)):
            if not (option.needs or option.not_with) or not self.differs(option.name):
                continue
            if option.needs and not self.differs(option.needs):
                found.append(f"{self._shown(option.name)} has no effect without a {option.needs}")
            found += [
                f"{self._shown(option.name)} cannot be combined with {self._shown(other)}"
                for other in option.not_with
                if self.differs(other)
            ]
        return found

    def _shown(self, name: str) -> str:
        """A setting in a message: with its value where that is short."""
        text = f"{name}={getattr(self, name)!r}"
        return text if len(text) <= SHORT else name


class _Option(NamedTuple):
    """What is checked of a field. Attributes: members: its type, and those of a union. groups: of
    these, the groups of settings. listed: whether it is a tuple. needs, not_with: of the fields of
    the same class."""

    name: str
    default: Any
    interval: str | None
    members: tuple[Any, ...]
    groups: tuple[type, ...]
    whole: bool
    mapping: bool
    listed: bool
    needs: str | None
    not_with: tuple[str, ...]


def _options(kind: type) -> tuple[_Option, ...]:
    return _cached_options(kind)


@cache  # behind a function, as the type checker takes no class for hashable
def _cached_options(kind: type) -> tuple[_Option, ...]:
    hints = type_hints(kind)
    fields = dataclasses.fields(kind)
    names = {each.name for each in fields}
    found = []
    for each in fields:
        members = (hints[each.name], *get_args(hints[each.name]))
        needs = each.metadata.get("needs")
        found.append(
            _Option(
                each.name,
                each.default,
                each.metadata.get("interval"),
                members,
                tuple(m for m in members if isinstance(m, type) and dataclasses.is_dataclass(m)),
                whole=int in members,
                mapping=any(get_origin(member) is dict for member in members),
                listed=get_origin(hints[each.name]) is tuple,
                needs=needs if needs in names else None,
                not_with=tuple(n for n in each.metadata.get("not_with", ()) if n in names),
            )
        )
    return tuple(found)


def not_json(value: Any, place: str = "", depth: int = 0) -> str:
    """What in a value JSON would not give back as it is, "" if nothing.

    >>> not_json({"rate": float("nan")}), not_json({"a": [1, 2.5, None, "x"]})
    ('rate=nan is not a finite number', '')
    """
    if depth > DEEPEST:
        return f"{place.split('.')[0]} is nested more than {DEEPEST} deep"
    if isinstance(value, Mapping):
        items: Iterable[tuple[Any, Any]] = value.items()
        for key in value:
            if type(key) not in (str, int):
                return f"key {key!r} is not a text"
        if len({str(key) for key in value}) < len(value):
            return f"a key occurs twice, as number and as text: {', '.join(map(repr, value))}"
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    elif isinstance(value, bool | str | NoneType):
        return ""
    elif isinstance(value, Real):
        return "" if math.isfinite(value) else f"{place}={value} is not a finite number"
    else:
        return f"{place}={value!r} is a {type(value).__name__}, which JSON cannot hold"
    inner = (not_json(each, f"{place}.{key}".lstrip("."), depth + 1) for key, each in items)
    return next(filter(None, inner), "")


def default_of(kind: type, name: str) -> Any:
    """The default of a dataclass field."""
    option = kind.__dataclass_fields__[name]  # type: ignore[attr-defined]
    made = option.default_factory is not dataclasses.MISSING
    return option.default_factory() if made else option.default


def differing(value: Any) -> dict[str, Any]:
    """The fields of a dataclass that differ from its defaults, nested ones likewise: for keys."""
    result = {}
    for option in dataclasses.fields(value):
        own = getattr(value, option.name)
        if own != default_of(type(value), option.name):
            result[option.name] = differing(own) if dataclasses.is_dataclass(own) else own
    return result


def from_json(kind: type[S], values: Mapping[str, Any], where: str) -> S:
    """The dataclass of a JSON object, nested dataclasses likewise; absent keys take their
    defaults.

    Args: where: what errors call the object.
    Raises: ValueError for an unknown key, with similar names, or a value out of range.
    """
    hints = type_hints(kind)
    names = [option.name for option in dataclasses.fields(kind)]  # type: ignore[arg-type]
    if not isinstance(values, Mapping):
        raise ValueError(f"{where}: expected a mapping of settings, found {values!r:.60}")
    if problems := [str(unknown("key", key, names)) for key in values if key not in names]:
        raise ValueError(f"{where}: " + "; ".join(problems))
    made = dict(values)
    for name, value in values.items():
        if isinstance(value, Mapping):
            for hint in (hints[name], *get_args(hints[name])):
                if isinstance(hint, type) and dataclasses.is_dataclass(hint):
                    made[name] = from_json(hint, value, name)
    return kind(**made)
