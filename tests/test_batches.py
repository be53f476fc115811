"""Batches: arithmetic written out, slow loops as oracle, epochs that depend on (seed, epoch)."""

import pytest
import torch
import torch.nn.functional as F

from apical.data import Batches, Split, split_validation
from apical.data.batches import PAD, flip_crop, flip_crop_draws

GREY = {"mean": (0.25,), "std": (0.5,)}


def numbered(count, channels=1, side=4):
    """Images that can be told apart: label i, random pixels."""
    generator = torch.Generator().manual_seed(0)
    shape = (count, channels, side, side)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return Split(images, torch.arange(count))


def seen(batches, epoch):
    return torch.cat([y for _, y in batches.epoch(epoch)])


def test_pixels_are_normalised_channel_by_channel():
    split = numbered(6, channels=5)  # any number of channels, not three
    mean, std = (0.1, 0.2, 0.3, 0.4, 0.5), (0.5, 0.4, 0.3, 0.2, 0.1)
    (x, y), (last, _) = Batches(split, 5, mean=mean, std=std).epoch(0)
    assert x.dtype == torch.float32
    assert y.tolist() == [0, 1, 2, 3, 4]
    assert last.shape == (1, 5, 4, 4)  # a last batch of one image keeps its axes
    for c in range(5):
        expected = (split.images[:5, c].double() / 255 - mean[c]) / std[c]
        # float32 of numbers up to 9
        torch.testing.assert_close(x[:, c].double(), expected, rtol=1e-6, atol=2e-6)


def test_an_epoch_is_every_image_once_in_an_order_of_its_own():
    batches = Batches(numbered(100), 16, **GREY, shuffle_seed=1)
    first, second = seen(batches, 0), seen(batches, 1)
    assert sorted(first.tolist()) == list(range(100))
    assert not torch.equal(first, second)
    assert not torch.equal(first, seen(Batches(numbered(100), 16, **GREY, shuffle_seed=2), 0))
    assert seen(Batches(numbered(100), 16, **GREY), 3).tolist() == list(range(100))
    assert len(batches) == 7 == len(list(batches.epoch(0)))


@pytest.mark.parametrize("augment", ["none", "flip_crop"])
def test_an_epoch_is_the_same_bits_whatever_ran_before(augment):
    def fresh():
        return Batches(numbered(40), 16, **GREY, shuffle_seed=7, augment=augment)

    used = fresh()
    for epoch in range(3):
        list(used.epoch(epoch))
    torch.manual_seed(1)
    next(iter(used.epoch(3)))  # abandoned half way
    before = torch.get_rng_state()
    pairs = list(zip(used.epoch(3), fresh().epoch(3), strict=True))
    assert all(torch.equal(a, b) for one, two in pairs for a, b in zip(one, two, strict=True))
    assert torch.equal(before, torch.get_rng_state())


def test_drop_last_leaves_out_the_short_batch_only():
    batches = Batches(numbered(10), 4, **GREY, drop_last=True)
    assert [len(y) for _, y in batches.epoch(0)] == [4, 4]
    assert len(batches) == 2
    assert len(Batches(numbered(8), 4, **GREY, drop_last=True)) == 2


def test_flip_crop_against_a_loop_over_images():
    images = numbered(50, channels=3, side=9).images[:, :, :, :7]
    draws = flip_crop_draws(50, torch.Generator().manual_seed(3))
    out = flip_crop(images, draws)
    for image, result, (row, column, flip) in zip(images, out, draws.tolist(), strict=True):
        part = F.pad(image, (PAD,) * 4)[:, row : row + 9, column : column + 7]
        assert torch.equal(result, part.flip(2) if flip else part)


def test_flip_crop_draws_every_place_and_a_fair_coin():
    row, column, flip = flip_crop_draws(8100, torch.Generator().manual_seed(0)).T
    for offsets in (row, column):
        # 900 expected of each of 9 places, standard deviation 28
        assert (offsets.bincount() - 900).abs().max() < 140
        assert len(offsets.bincount()) == 2 * PAD + 1
    assert abs(int(flip.sum()) - 4050) < 200


def test_augmentation_changes_images_and_keeps_labels():
    plain = Batches(numbered(32), 32, **GREY, shuffle_seed=0)
    moved = Batches(numbered(32), 32, **GREY, shuffle_seed=0, augment="flip_crop")
    (x, y), (u, v) = next(iter(plain.epoch(0))), next(iter(moved.epoch(0)))
    assert torch.equal(y, v)
    assert not torch.equal(x, u)


def test_channels_last_changes_the_layout_not_the_numbers():
    split = numbered(8, channels=3)
    rgb = {"mean": (0.5,) * 3, "std": (0.2,) * 3, "shuffle_seed": 0, "augment": "flip_crop"}
    (x, _), (u, _) = (
        next(iter(Batches(split, 8, **rgb, channels_last=flag).epoch(0))) for flag in (False, True)
    )
    assert torch.equal(x, u)
    assert x.is_contiguous()
    assert u.is_contiguous(memory_format=torch.channels_last)


def test_shards_are_the_parts_of_the_same_batches():
    settings = {**GREY, "shuffle_seed": 4, "augment": "flip_crop"}
    whole = list(Batches(numbered(43), 8, **settings).epoch(2))
    ranks = [list(Batches(numbered(43), 8, **settings, shard=(r, 2)).epoch(2)) for r in (0, 1)]
    assert len(ranks[0]) == len(ranks[1]) == len(whole) == 6
    for (x, y), *parts in zip(whole, *ranks, strict=True):
        together = [torch.cat(tensors) for tensors in zip(*parts, strict=True)]
        kept = len(y) // 2 * 2  # the last batch has 3 images; two processes share 2
        assert len(parts[0][1]) == len(parts[1][1])
        assert torch.equal(together[0], x[:kept])
        assert torch.equal(together[1], y[:kept])


def test_settings_out_of_range_are_refused():
    for settings, text in (
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 2.5}, "batch_size=2.5 must be a whole number of at least 1"),
        ({"std": (float("nan"),)}, "std above 0"),
        ({"mean": (0.1, 0.2)}, "1 channels"),
        ({"std": (0.0,)}, "std above 0"),
        ({"augment": "flip_crop"}, "needs a shuffle_seed"),
        ({"augment": "flipcrop", "shuffle_seed": 0}, "did you mean 'flip_crop'"),
        ({"shard": (2, 2)}, "(rank, world)"),
        ({"shard": (0, 3)}, "dividing 4"),
    ):
        with pytest.raises(ValueError) as caught:
            Batches(numbered(8), **{"batch_size": 4, **GREY, **settings})
        assert text in str(caught.value)


def test_zooming_needs_a_folder():
    batches = Batches(numbered(8), 4, **GREY, augment="zoom_flip", shuffle_seed=0)
    with pytest.raises(ValueError, match="use 'flip_crop'"):
        next(iter(batches.epoch(0)))


def test_validation_and_training_images_are_different_ones():
    train, validation = split_validation(numbered(50), 10, seed=3)
    assert len(validation) == 10
    assert sorted([*train.labels.tolist(), *validation.labels.tolist()]) == list(range(50))
    assert train.labels.tolist() == sorted(train.labels.tolist())
    again = split_validation(numbered(50), 10, seed=3)[1]
    assert torch.equal(again.labels, validation.labels)
    other = split_validation(numbered(50), 10, seed=4)[1]
    assert not torch.equal(other.labels, validation.labels)
    for count in (-1, 50):
        with pytest.raises(ValueError, match=f"count={count}"):
            split_validation(numbered(50), count, seed=0)


def test_a_split_is_bytes_and_whole_numbers():
    with pytest.raises(ValueError, match="uint8"):
        Split(torch.zeros(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"int64 \(2,\)"):
        Split(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64))


def test_resizing_is_antialiased_and_keeps_a_constant_image():
    lines = torch.tensor([255, 0, 0, 0], dtype=torch.uint8).tile(16, 4)
    images = torch.stack([lines, torch.full_like(lines, 77)]).unsqueeze(1)
    small = Split(images, torch.arange(2)).resized(4).images
    # a quarter of the pixels is white; picking pixels between the lines would leave black
    assert 40 < small[0].float().mean() < 90
    assert small[0].min() > 20
    assert small[1].eq(77).all()
