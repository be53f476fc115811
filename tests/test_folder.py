"""Image folders: the same batches as from memory, streamed; every image decided by its draw."""

import numpy as np
import pytest
import torch
from PIL import Image

from apical import data
from apical.data import Batches, DamagedFile, folder


@pytest.fixture
def place(tmp_path):
    """Two classes, sizes of all kinds, in train/ (5 + 4 images) and val/ (2 + 1)."""
    rng = np.random.default_rng(0)
    for part, counts in (("train", (5, 4)), ("val", (2, 1))):
        for name, count in zip(("ant", "bee"), counts, strict=True):
            target = tmp_path / part / name
            target.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (20 + i, 30 - i, 3), np.uint8)
                Image.fromarray(pixels).save(target / f"{i}.png")
            (target / "notes.txt").write_text("no image")
    return tmp_path


def batches(split, **settings):
    return Batches(split, 4, mean=folder.MEAN, std=folder.STD, **settings)


def test_a_folder_is_a_data_set(place):
    found = data.load(f"folder:{place}", size=16)
    assert found.shape == (3, 16, 16)
    assert found.num_classes == 2
    assert found.train.labels.tolist() == [0] * 5 + [1] * 4
    assert len(found.test) == 3
    x, y = next(iter(batches(found.train).epoch(0)))
    assert x.shape == (4, 3, 16, 16)
    assert y.tolist() == [0] * 4


def test_imagenet_is_such_a_folder_in_the_root(place, monkeypatch, tmp_path):
    monkeypatch.setenv("APICAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("APICAL_DATA", raising=False)
    assert data.load("imagenet", root=place).num_classes == 2
    with pytest.raises(data.MissingData, match=r"image-net.org.*train and val"):
        data.load("imagenet", root=place / "train")


def test_without_a_zoom_the_centre_is_kept(place):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 32, 3), np.uint8)
    Image.fromarray(pixels).save(place / "c.png")
    # 7/8 of the shorter side are 28 pixels, so nothing is left to resize
    found = folder.decode(str(place / "c.png"), 28, None)
    assert np.array_equal(found.permute(1, 2, 0).numpy(), pixels[6:34, 2:30])


def test_a_zoom_names_its_part_and_the_mirror():
    # area (0.08 + 0.5 * 0.92) of 100 x 100, aspect 1 half way between 3/4 and 4/3
    side = (100 * 100 * 0.54) ** 0.5
    left, top, right, bottom = folder._zoom((100, 100), (0.5, 0.5, 0.0, 1.0, 0.9))
    assert (left, bottom) == (0, pytest.approx(100))
    assert (right - left, bottom - top) == (pytest.approx(side), pytest.approx(side))
    for draw in torch.rand(200, 5, generator=torch.Generator().manual_seed(0)).tolist():
        left, top, right, bottom = folder._zoom((300, 50), tuple(draw))
        assert 0 <= left < right <= 300 + 1e-9
        assert 0 <= top < bottom <= 50 + 1e-9


def test_the_mirror_is_the_last_draw(place):
    path = str(place / "train/ant/0.png")
    plain, mirrored = (folder.decode(path, 8, (0.3, 0.5, 0.2, 0.7, m)) for m in (0.6, 0.4))
    assert torch.equal(plain.flip(2), mirrored)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_depends_on_seed_and_number_only(place, workers):
    from dataclasses import replace

    split = replace(data.load(f"folder:{place}", size=8).train, workers=workers)
    made = batches(split, shuffle_seed=3, augment="zoom_flip")
    before = torch.get_rng_state()
    one = torch.cat([x for x, _ in made.epoch(1)])
    assert torch.equal(before, torch.get_rng_state())
    alone = replace(split, workers=0)
    fresh = batches(alone, shuffle_seed=3, augment="zoom_flip")
    assert torch.equal(one, torch.cat([x for x, _ in fresh.epoch(1)]))
    assert not torch.equal(one, torch.cat([x for x, _ in fresh.epoch(2)]))
    labels = torch.cat([y for _, y in made.epoch(1)])
    assert sorted(labels.tolist()) == [0] * 5 + [1] * 4


def test_a_validation_part_can_be_held_out(place):
    train, validation = data.split_validation(data.load(f"folder:{place}").train, 3, seed=0)
    assert (len(train), len(validation)) == (6, 3)
    assert not set(train.paths) & set(validation.paths)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_named_in_one_line(place, workers):
    from dataclasses import replace

    split = replace(data.load(f"folder:{place}", size=8).train, workers=workers)
    bad = place / "train/ant/2.png"
    bad.write_bytes(bad.read_bytes()[:200])
    with pytest.raises(DamagedFile) as caught:
        list(batches(split).epoch(0))
    assert str(caught.value).startswith(f"{bad} is damaged")
    assert "\n" not in str(caught.value)


def test_splits_are_found_by_their_names(place):
    expected = data.load(f"folder:{place}", size=8)
    (place / "train").rename(place / "Training")
    for name in ("val", "test_images", "held_out", "whatever"):
        (next(c for c in place.iterdir() if c.name != "Training")).rename(place / name)
        found = data.load(f"folder:{place}", size=8)
        assert (len(found.train), len(found.test), found.mean) == (9, 3, expected.mean), name
    (place / "val/ant").mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(place / "val/ant/0.png")
    with pytest.warns(UserWarning, match="whatever is not read; Training trains, val tests"):
        assert len(data.load(f"folder:{place}", size=8).test) == 1
    (place / "Training").rename(place / "a")
    with pytest.raises(ValueError, match=r"\?train=a&test=whatever"):
        data.load(f"folder:{place}")
    assert len(data.load(f"folder:{place}?train=a&test=whatever", size=8).test) == 3
    with pytest.raises(ValueError, match="name both splits"):
        data.load(f"folder:{place}?train=a")


def test_a_folder_without_splits_holds_out_a_fifth_of_each_class(place):
    found, again = (data.load(f"folder:{place / 'train'}", size=8) for _ in range(2))
    assert found.train.labels.bincount().tolist() == [4, 3]
    assert found.test.labels.bincount().tolist() == [1, 1]
    assert not set(found.train.paths) & set(found.test.paths)
    assert found.test.paths == again.test.paths and "2 of 9 images" in found.note


def test_size_and_statistics_are_those_of_the_images(place):
    found = data.load(f"folder:{place}")
    # shorter sides of (20 + i) x (30 - i): 20, 21, 22, 23, 24 and 20, 21, 22, 23
    assert found.shape == (3, 22, 22)
    pixels = torch.cat([x for x, _ in found.train.batches([torch.arange(9)])]) / 255.0
    torch.testing.assert_close(torch.tensor(found.mean), pixels.mean((0, 2, 3)))
    deviation = pixels.std((0, 2, 3), correction=0)
    torch.testing.assert_close(torch.tensor(found.std), deviation)
    square = torch.arange(22 * 22 * 3, dtype=torch.uint8).view(22, 22, 3).numpy()
    for path in found.train.paths:
        Image.fromarray(square).save(path)
    x, _ = next(data.load(f"folder:{place}").train.batches([torch.arange(1)]))
    assert np.array_equal(x[0].permute(1, 2, 0).numpy(), square)  # all of it, as it is
    for path in found.train.paths:
        Image.fromarray(square).resize((300, 400)).save(path)
    assert data.load(f"folder:{place}").shape == (3, 224, 224)


def test_a_class_without_images_or_one_class_alone_is_refused(place):
    (place / "train/cat").mkdir()
    with pytest.raises(ValueError, match=r"without images: cat"):
        data.load(f"folder:{place}")
    one = place / "alone"
    (one / "a").mkdir(parents=True)
    for path in (place / "train/ant").glob("*.png"):
        path.rename(one / "a" / path.name)
    with pytest.raises(ValueError, match=r"at least two classes with training images; it has a$"):
        data.load(f"folder:{one}")


def test_folders_that_are_no_data_set_are_refused(place):
    with pytest.raises(ValueError, match=r"there is no folder"):
        data.load(f"folder:{place / 'absent'}")
    with pytest.raises(ValueError, match=r"holds no class folders"):
        data.load(f"folder:{place / 'train/ant'}")
    (place / "val/cat").mkdir()
    with pytest.raises(ValueError, match=r"train lacks: \['cat'\]"):
        data.load(f"folder:{place}")
    (place / "val/cat").rmdir()
    for path in (place / "val").glob("*/*.png"):
        path.unlink()
    with pytest.raises(ValueError, match=r"val holds no images; recognised endings"):
        data.load(f"folder:{place}")
