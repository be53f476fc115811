"""Data sets by name: the table, the places, the embedded digits, the real files."""

import importlib
import os
import pkgutil

import pytest
import torch

from apical import data
from apical.bench import Execution
from apical.data import places

REAL = pytest.mark.skipif(
    not os.environ.get("APICAL_DATA"), reason="needs real files: set APICAL_DATA to their folder"
)


def test_the_table_lists_what_the_folder_defines():
    found = {}
    for module in pkgutil.iter_modules(data.__path__):
        contents = vars(importlib.import_module(f"apical.data.{module.name}"))
        for name, value in contents.items():
            if name.startswith("load_") and value.__module__.endswith(module.name):
                found[name.removeprefix("load_")] = value
    assert {name: found[name] for name in found.keys() - {"folder", "own"}} == data.DATA
    assert list(data.DATA) == sorted(data.DATA)


def test_digits_are_real_balanced_and_always_split_alike():
    digits = data.load("digits", download=False)
    assert digits.shape == (1, 8, 8)
    assert (len(digits.train), len(digits.test), digits.num_classes) == (1437, 360, 10)
    assert digits.test.labels[:8].tolist() == [2, 8, 2, 6, 6, 7, 1, 9]
    assert digits.test.labels.bincount().min() >= 25
    assert digits.train.images.max() == 255
    x = torch.cat(
        [x for x, _ in data.Batches(digits.train, 500, mean=digits.mean, std=digits.std).epoch(0)]
    )
    assert abs(float(x.mean())) < 1e-5
    assert float(x.std()) == pytest.approx(1, abs=1e-4)


def test_a_size_resizes_both_splits():
    digits = data.load("digits", size=32)
    assert digits.shape == (1, 32, 32)
    assert digits.test.images.shape == (360, 1, 32, 32)
    for size in (0, 8.5):
        with pytest.raises(ValueError, match=f"size={size} must be a whole number of at least 1"):
            data.load("digits", size=size)


def test_a_misspelt_set_gets_near_names_and_all_names():
    with pytest.raises(ValueError) as caught:
        data.load("fasion-mnist")
    text = str(caught.value)
    assert "did you mean 'fashion_mnist'" in text
    assert "cifar10, cifar100, cifar10_first5, cifar10_unseen, digits, drifting_bars" in text


def test_places_come_in_order_and_a_named_one_must_exist(tmp_path, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    for place in (here, there, there / "mnist", here / "mnist"):
        place.mkdir()
    monkeypatch.setenv("APICAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("APICAL_DATA", str(there))
    assert places.roots(here) == [here, there, tmp_path / "cache/data"]
    # the argument itself may be the set's folder; the environment variable holds many sets
    assert places.candidates(here, ("mnist",)) == [here, here / "mnist", there / "mnist"]
    with pytest.raises(data.MissingData, match="is not a folder"):
        places.roots(tmp_path / "nowhere")
    with pytest.raises(data.MissingData, match="is not a folder"):
        data.load("digits", root=tmp_path / "nowhere")  # which need no files
    with pytest.raises(ValueError, match=r"data_root='nowhere' \(--data-root\) is not a folder"):
        Execution(data_root="nowhere")
    monkeypatch.setenv("APICAL_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(data.MissingData, match="APICAL_DATA"):
        places.roots(here)
    with pytest.raises(data.MissingData, match="APICAL_DATA"):
        data.load("digits")


def test_the_cache_is_where_the_user_says(monkeypatch):
    monkeypatch.setenv("APICAL_CACHE", "~/kept")
    assert str(places.cache_folder()).endswith("/kept")
    assert "~" not in str(places.cache_folder())
    monkeypatch.delenv("APICAL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert str(places.cache_folder()) == "/somewhere/apical"


@REAL
@pytest.mark.data
@pytest.mark.parametrize(("name", "size"), [("mnist", 28), ("cifar10", 32)])
def test_the_real_files(name, size):
    found = data.load(name, download=False)
    assert (len(found.train), len(found.test)) == (60_000 if name == "mnist" else 50_000, 10_000)
    assert found.shape[1:] == (size, size)
    assert found.train.labels.unique().tolist() == list(range(10))
    for c, (mean, std) in enumerate(zip(found.mean, found.std, strict=True)):
        channel = found.train.images[:, c].float() / 255
        # the published constants have four digits; CIFAR may be a re-compressed copy
        assert float(channel.mean()) == pytest.approx(mean, abs=1e-3)
        assert float(channel.std()) == pytest.approx(std, abs=3e-3)
    assert found.note in (["", "JPEG re-compressed"] if name == "cifar10" else [""])


def test_parts_of_cifar10(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five classes of ten; and two halves of the test split, none of them trained on before."""
    from apical.data import Split, cifar

    def split(count: int) -> Split:
        numbers = torch.arange(count)
        images = numbers.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
        return Split(images.clone(), numbers % 10)

    whole = data.ImageData("cifar10", split(40), split(20), 10, (0.5,) * 3, (0.2,) * 3, "told")
    monkeypatch.setattr(cifar, "load_cifar10", lambda root, *, download: whole)
    five = data.load("cifar10_first5")
    assert five.num_classes == 5 and five.note == "told; the first five of ten classes"
    assert five.train.labels.unique().tolist() == [0, 1, 2, 3, 4] and len(five.train) == 20
    assert five.train.images[5:10, 0, 0, 0].tolist() == [10, 11, 12, 13, 14]
    halves = data.load("cifar10_unseen")
    seen = [part.images[:, 0, 0, 0].tolist() for part in (halves.train, halves.test)]
    assert seen == [list(range(10)), list(range(10, 20))] and halves.num_classes == 10
