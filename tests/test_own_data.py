"""Data of one's own: what a function may return, and what is refused."""

import random
import sys

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from apical import data
from apical.data import Batches

GENERATOR = torch.Generator().manual_seed(0)
X = torch.rand(40, 3, 8, 6, generator=GENERATOR)
Y = torch.arange(40) % 4
BYTES = (X * 255).to(torch.uint8)


class Items(Dataset):
    """A map-style dataset, with a random transform where asked."""

    def __init__(self, inputs=X, labels=Y, noise=False):
        self.inputs, self.labels, self.noise = inputs, labels, noise

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        shift = torch.rand(()) + random.random() + np.random.rand() if self.noise else 0.0
        return self.inputs[i] + shift if self.noise else self.inputs[i], int(self.labels[i])


def first_batch(found, count=40):
    shared = {"mean": found.mean, "std": found.std}
    return next(iter(Batches(found.train, count, **shared).epoch(0)))


def test_every_form_gives_the_same_batches() -> None:
    for given in (
        (X, Y),
        (X.double().numpy(), Y.to(torch.int32).numpy()),
        TensorDataset(X, Y),
        Items(),
        DataLoader(Items(), batch_size=7),
        DataLoader(TensorDataset(X, Y), batch_size=7),
        [(X[:30], Y[:30]), (X[30:], Y[30:])],
    ):
        found = data.from_splits(given, (X[:8], Y[:8]))
        assert (found.shape, found.num_classes, len(found.test)) == ((3, 8, 6), 4, 8)
        x, y = first_batch(found)
        torch.testing.assert_close(x, X, rtol=0, atol=0)  # floats reach the net as they are
        assert torch.equal(y, Y) and y.dtype == torch.int64
        assert found.unit
        train, held_out = data.split_validation(found.train, 10, 0)
        assert (len(train), len(held_out)) == (30, 10)
        rest = [y for _, y in Batches(train, 30, mean=found.mean, std=found.std).epoch(0)]
        assert torch.equal(torch.cat([*rest, held_out.labels]).sort().values, Y.sort().values)


@pytest.mark.parametrize("given", [(BYTES, Y), Items(BYTES)], ids=["tensors", "Dataset"])
def test_bytes_are_images_and_normalised_by_the_training_split(given) -> None:
    found = data.from_splits(given, (BYTES[:8], Y[:8]))
    pixels = BYTES.double() / 255
    mean, std = pixels.mean((0, 2, 3)), pixels.std((0, 2, 3), correction=0)
    torch.testing.assert_close(torch.tensor(found.mean).double(), mean)
    torch.testing.assert_close(torch.tensor(found.std).double(), std)
    expected = (pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    torch.testing.assert_close(first_batch(found)[0].double(), expected, rtol=1e-5, atol=1e-5)
    grey = data.from_splits((BYTES[:, 0], Y), (BYTES[:, 1], Y))
    assert grey.shape == (1, 8, 6)


def test_names_are_digests_of_the_content() -> None:
    one, same = (data.from_splits((X, Y), (X, Y)).name for _ in range(2))
    other = X.clone()
    other[3, 0, 0, 0] += 1
    assert one == same != data.from_splits((other, Y), (X, Y)).name
    assert one != data.from_splits((X, Y), (X, Y.flip(0))).name
    assert one.startswith("given:")
    assert not data.from_splits((other, Y), (X, Y)).unit  # no box for an attack


@pytest.mark.parametrize("workers", [0, 2])
def test_random_transforms_follow_the_order_of_the_epoch(workers) -> None:
    loader = DataLoader(Items(noise=True), batch_size=8, shuffle=True, num_workers=workers)
    before = torch.get_rng_state(), random.getstate()
    found = data.from_splits(loader, (X, Y))
    assert found.loader == {"batch_size": 8, "shuffle": True, "drop_last": False}
    batches = Batches(found.train, 8, mean=found.mean, std=found.std, shuffle_seed=1)
    first, again, other = (torch.cat([x for x, _ in batches.epoch(e)]) for e in (0, 0, 1))
    assert torch.equal(first, again)
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == random.getstate()
    flat = {e: x.flatten(1) for e, x in ((0, first), (1, other))}
    # the same images with other random numbers: shifts, so the differences within an image stay
    assert not set(flat[0][:, 0].tolist()) & set(flat[1][:, 0].tolist())
    alone = DataLoader(Items(noise=True), batch_size=8, shuffle=True)
    split = data.from_splits(alone, (X, Y)).train
    without = Batches(split, 8, mean=found.mean, std=found.std, shuffle_seed=1)
    assert torch.equal(first, torch.cat([x for x, _ in without.epoch(0)]))  # whatever the workers


class Weighted(torch.utils.data.WeightedRandomSampler):
    def __init__(self):
        super().__init__([1.0] * 40, 40)


class Pictures(Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, i):
        from PIL import Image

        return Image.new("RGB", (4, 4)), i


REFUSED = {
    "a name": ("cifar", "is a str: give"),
    "no labels": (X, r"is a Tensor: give \(inputs, labels\)"),
    "one-hot labels": ((X, torch.eye(4)[Y]), r"one_hot.argmax\(1\)"),
    "float labels": ((X, Y.float()), r"labels.long\(\)"),
    "negative labels": ((X, Y - 1), "has the label -1"),
    "too few labels": ((X, Y[:-1]), "one label for each"),
    "none": ((X[:0], Y[:0]), "one label for each"),
    "channels last": ((BYTES.permute(0, 2, 3, 1), Y), r"permute\(0, 3, 1, 2\)"),
    "bytes of vectors": ((BYTES.flatten(1), Y), r"give inputs.float\(\)"),
    "whole numbers": ((X.long(), Y), "or a floating type"),
    "not a number": ((X / X.clone().zero_(), Y), "infinite or not a number"),
    "items not a number": (Items(X / 0), "infinite or not a number"),
    "items of other shapes": (
        Items([X[0], X[0], X[0, :, :4]], Y[:3]),
        r"item 2 of train has shape \(3, 4, 6\)",
    ),
    "items without labels": ([1, 2], "batch 0 of train is a int"),
    "pictures": (Pictures(), r"ToTensor\(\)"),
    "a sampler": (DataLoader(Items(), sampler=Weighted()), "a sampler of its own .Weighted"),
    "another shape": ((X[:, :2], Y), "they must be alike"),
    "one class": ((X, Y * 0), "one class leaves nothing to learn"),
    "items of one number": (Items(X[:, 0, 0, 0], Y), r"an input of train has shape \(\)"),
    "images without pixels": ((BYTES[..., :0], Y), r"has shape \(3, 8, 0\)"),
    "vectors without features": ((X.flatten(1)[:, :0], Y), r"has shape \(0,\)"),
    "batches of other shapes": ([(X, Y), (X[:, :2], Y)], "batch 1 of train has inputs"),
    "batches of one item": ([(X[0, 0, 0, 0], Y[0])], r"the labels of train are .* \(\)"),
    "labels far apart": ((X, Y * 10**9), "at most 1,000,000 of them"),
    "labels of text": ((X, ["a"] * len(X)), "labels of train are no tensor"),
    "no labels in a batch": ([(X, None)], "labels of train are no tensor"),
    "sparse inputs": ((X.flatten(1).to_sparse(), Y), r"give .to_dense\(\)"),
    "fewer classes": ((X[:2], Y[:2]), "test has the label 3, train only 0 to 1"),
}


def test_what_does_not_fit_is_refused() -> None:
    for name in REFUSED:
        given, message = REFUSED[name]
        with pytest.raises(ValueError, match=message) as caught:
            data.from_splits(given, (X, Y))
        assert "\n" not in str(caught.value)


def test_a_function_in_the_current_folder_is_a_data_set(tmp_path, monkeypatch) -> None:
    (tmp_path / "my_vectors.py").write_text(
        "import torch\n"
        "x, y = torch.randn(20, 5), torch.arange(20) % 3\n"
        "def make():\n    return (x, y), (x[:5], y[:5])\n"
        "def three():\n    return 1, 2, 3\n"
    )
    monkeypatch.chdir(tmp_path)
    found = data.load("my_vectors:make")
    assert (found.name, found.shape, found.num_classes) == ("my_vectors:make", (5,), 3)
    for name, message in {
        "my_vectors:three": r"a tuple of 3 values: it must return \(train, test\)",
        "my_vectors:x": "is a Tensor, not a function",
        "my_vectors:mke": "did you mean 'make'",
        "absent:make": "no module 'absent'",
    }.items():
        with pytest.raises(ValueError, match=message):
            data.load(name)
    with pytest.raises(ValueError, match="not resized"):
        data.load("my_vectors:make", size=3)


def test_a_split_at_random_is_the_same_for_every_run(tmp_path, monkeypatch) -> None:
    """Else a resumed run trains on images that it is tested on."""
    (tmp_path / "split_at_random.py").write_text(
        "import random, numpy, torch\n"
        "x = torch.tensor(numpy.random.permutation(50)).float()[:, None]\n"  # once for a process
        "def make():\n"
        "    p = numpy.random.permutation(50) + torch.randperm(50).numpy()\n"
        "    order = sorted(range(50), key=lambda i: (p[i], random.random()))\n"
        "    return (x[order[:40]], p[:40] % 2), (x[order[40:]], p[40:] % 2)\n"
    )
    monkeypatch.chdir(tmp_path)
    before = torch.get_rng_state(), random.getstate()
    splits = []
    for _ in range(2):
        found = data.load("split_at_random:make")
        splits.append(torch.cat([found.train.inputs, found.test.inputs]))
        sys.modules.pop("split_at_random")
    assert torch.equal(*splits) and len(splits[0].unique()) == 50
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]


def test_an_error_in_a_function_of_data_names_its_line(tmp_path, monkeypatch) -> None:
    (tmp_path / "broken_data.py").write_text("def make():\n    return {}['x']\n")
    (tmp_path / "asking_data.py").write_text("def make(size):\n    return size\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"raised KeyError: 'x' \(.*broken_data.py, line 2\)"):
        data.load("broken_data:make")
    with pytest.raises(ValueError, match="raised TypeError.*called without arguments"):
        data.load("asking_data:make")
