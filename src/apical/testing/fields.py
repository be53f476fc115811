"""Checks that every field of a rule does something: no option is accepted and ignored."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from typing import Any, Literal, get_args, get_origin, get_type_hints

from apical.rules import FA, KolenPollack, Rule
from apical.testing.specimen import Broken, Tensors, batch, converted, difference, gradients, train

OBSERVABLE = 1e-9
"""Relative; changes below are rounding."""


def checks(rule: Rule, alternatives: Mapping[str, Any]) -> dict[str, Callable[[Rule], str | None]]:
    """One check per field, named after it."""
    names = [field.name for field in dataclasses.fields(rule)]
    unknown = sorted(set(alternatives) - set(names))
    if unknown:
        raise ValueError(f"alternatives for unknown fields {unknown}; the fields are {names}")
    course = cache(_course)  # of the rules that others are compared with: once for all fields
    return {
        f"field {name} matters": partial(
            _matters, name=name, alternatives=alternatives, course=course
        )
        for name in names
    }


def _matters(
    rule: Rule, *, name: str, alternatives: Mapping[str, Any], course: Callable[[Rule], Tensors]
) -> str | None:
    """Another value of the field changes gradients, feedback or the course of training."""
    values = [alternatives[name]] if name in alternatives else list(_others(rule, name))
    if not values:
        raise Broken(
            f"a known other value for {name}", "none; give check_rule(..., alternatives={...})"
        )
    outcomes = [_changes(base, name, value, course) for base in _bases(rule) for value in values]
    if any(outcomes):
        return None
    if all(outcome is None for outcome in outcomes):
        return "the rule refuses every other value beside its present options"
    raise Broken(
        f"{name} to change gradients, feedback or training",
        f"no difference between {getattr(rule, name)!r} and {', '.join(map(repr, values))}",
    )


def _bases(rule: Rule) -> Iterator[Rule]:
    """The rule, and its defaults: some options act only beside others."""
    yield rule
    required = [
        field
        for field in dataclasses.fields(rule)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if not required and type(rule)() != rule:
        yield type(rule)()


def _changes(base: Rule, name: str, value: Any, course: Callable[[Rule], Tensors]) -> bool | None:
    """Whether the value makes a difference; None if the rule's constructor refuses it."""
    if getattr(base, name) == value:
        return None
    try:
        other = dataclasses.replace(base, **{name: value})
    except ValueError:
        return None
    try:
        seen = _course(other)
    except (ValueError, RuntimeError):  # the value was used, and does not fit these nets
        return True
    return bool(difference(seen, course(base), rtol=OBSERVABLE))


def _course(rule: Rule) -> Tensors:
    """First gradients, and all that two steps leave behind."""
    model = converted(rule)
    first = {f"gradient of {name}": g for name, g in gradients(model, *batch()).items()}
    train(model, 2)
    later = {f"later {name}": g for name, g in gradients(model, *batch()).items()}
    return {**first, **later, **model.state_dict()}


def _others(rule: Rule, name: str) -> Iterator[Any]:
    """Values that the field's type allows, beside the present one."""
    try:
        hint = get_type_hints(type(rule))[name]
    except NameError:  # an annotation imported for type checking only
        hint = type(getattr(rule, name))
    present = getattr(rule, name)
    for kind in _parts(hint):
        if isinstance(kind, type) and issubclass(kind, Rule):
            yield from (inner for inner in (KolenPollack(), FA()) if inner != present)
        elif get_origin(kind) is Literal:
            yield from (value for value in get_args(kind) if value != present)
        elif kind is bool:
            yield not present
        elif kind is int:
            base = present if isinstance(present, int) else 0
            yield from (base + 1, max(base - 1, 0), base + 2)
        elif kind is float:
            number = present if isinstance(present, float | int) else 0.5
            yield from (number / 2, number * 2, number + 0.5)


def _parts(hint: Any) -> Iterator[Any]:
    """The members of a union, or the type itself; a Literal is one member."""
    members = get_args(hint)
    if get_origin(hint) is Literal or not members:
        yield hint
    else:
        for member in members:
            yield from _parts(member)
