"""Misspelt names: what was given, what is near, what is allowed."""

from apical.names import unknown


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
