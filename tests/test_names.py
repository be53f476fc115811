"""Misspelt names: what was given, what is near, what is allowed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import pytest

from apical.names import check_literals, literal_problems, unknown

if TYPE_CHECKING:
    from decimal import Decimal


def test_names_the_given_the_near_and_the_allowed():
    error = unknown("net", "resnet21", ["lenet", "resnet20", "resnet32"])
    assert isinstance(error, ValueError)
    text = str(error)
    assert "unknown net 'resnet21'" in text
    assert text.index("'resnet20'") < text.index("Allowed: lenet, resnet20, resnet32")


def test_case_is_no_distance_and_a_far_name_gets_no_suggestion():
    assert "did you mean 'ResNet'?" in str(unknown("net", "RESNET", ["ResNet"]))
    assert "did you mean" not in str(unknown("net", "zzz", ["lenet"]))
    assert "nothing" in str(unknown("option", "x", []))


def test_a_long_list_is_counted_not_printed():
    text = str(unknown("net", "vit_tini", [f"net{i:03}" for i in range(100)] + ["vit_tiny"]))
    assert "did you mean 'vit_tiny'?" in text
    assert "101 names, from net000 to vit_tiny" in text


def test_the_same_beginning_comes_first():
    text = str(unknown("net", "vit_tini", ["davit_tiny", "vit_tiny"]))
    assert "did you mean 'vit_tiny' or 'davit_tiny'?" in text


@dataclass
class Pooling:
    kind: Literal["max", "mean"] = "max"
    border: Literal["zero", "reflect"] | None = None
    name: Literal["a"] | str = ""


@dataclass
class Later(Pooling):
    price: Decimal | None = None  # not there while the program runs


def test_all_wrong_literals_are_named_with_what_is_allowed():
    with pytest.raises(ValueError) as raised:
        check_literals(Pooling("sum", "wrap", "b"), "Pooling")
    assert str(raised.value) == (
        "Pooling: kind='sum' is not one of 'max', 'mean';"
        " border='wrap' is not one of 'zero', 'reflect', None"
    )
    check_literals(Pooling("mean", "zero"), "Pooling")


def test_an_annotation_for_type_checking_leaves_inherited_fields_checked():
    assert literal_problems(Later("sum")) == ["kind='sum' is not one of 'max', 'mean'"]
