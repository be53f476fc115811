"""Event data: files of N-MNIST byte by byte, saccades, drifting bars; damaged files by name."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from apical import data
from apical.data.events import Events, SaccadeSplit, events, frames, gaze, load_nmnist, read_events
from apical.data.images import Split


def written(path: Path, *found: tuple[int, int, int, int]) -> Path:
    """A file of events (x, y, polarity, t)."""
    raw = bytearray()
    for x, y, polarity, t in found:
        raw += bytes([x, y, polarity << 7 | t >> 16, t >> 8 & 255, t & 255])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(raw)
    return path


def test_an_event_has_five_bytes(tmp_path: Path) -> None:
    path = written(tmp_path / "a.bin", (3, 33, 1, 5), (0, 1, 0, 0x7FFFFF))
    found = read_events(path)
    assert [part.tolist() for part in found] == [[3, 0], [33, 1], [1, 0], [5, 0x7FFFFF]]


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (b"", "0 bytes are no whole number of events"),
        (b"\1\2\3\4\5\6\7", "7 bytes are no whole number of events of 5 bytes: truncated"),
        (bytes([1, 1, 0, 0, 1, 34, 2, 0, 0, 2]), "event 1 at x=34, y=2 is outside .* 34x34"),
        (bytes([1, 1, 0, 0, 9, 1, 1, 0, 0, 8]), "event 1 at 8 microseconds comes before"),
    ],
)
def test_a_file_that_is_no_recording_is_named(tmp_path: Path, raw: bytes, told: str) -> None:
    path = tmp_path / "00001.bin"
    path.write_bytes(raw)
    with pytest.raises(data.DamagedFile, match=f"00001.bin: .*{told}"):
        read_events(path)


def test_frames_are_stretches_of_equal_time() -> None:
    found = frames(
        Events(np.array([0, 1, 2]), np.array([0, 0, 1]), np.array([1, 0, 1]),
               np.array([10, 14, 19])),
        2, height=2, width=3,
    )  # fmt: skip
    expected = np.zeros((2, 2, 2, 3))
    expected[0, 0, 0, 0] = expected[0, 1, 0, 1] = expected[1, 0, 1, 2] = 1  # ON before OFF
    assert np.array_equal(found, expected)
    assert found.dtype == np.uint8


def test_events_out_of_range_are_refused() -> None:
    for wrong, told in (
        (Events(*map(np.array, ([5], [0], [1], [0]))), "x from 5 to 5 is outside 0 to 2"),
        (Events(*map(np.array, ([0], [-1], [1], [0]))), "y from -1 to -1"),
        (Events(*map(np.array, ([0], [0], [2], [0]))), "polarity from 2 to 2 is outside 0 to 1"),
    ):
        with pytest.raises(ValueError, match=told):
            frames(wrong, 2, height=2, width=3)


def test_nmnist_is_read_from_its_folders(tmp_path: Path) -> None:
    for part in ("Train", "Test"):
        for digit in (0, 7):
            written(
                tmp_path / "N-MNIST" / part / str(digit) / "1.bin", (digit, 1, 1, 0), (9, 9, 0, 99)
            )
    found = data.load("nmnist", root=tmp_path)
    assert (found.shape, found.num_classes, found.train.labels.tolist()) == (
        (20, 34, 34),
        10,
        [0, 7],
    )
    mean, std = (0.0,) * 20, (1.0,) * 20
    ((x, y),) = data.Batches(found.test, 2, mean=mean, std=std).epoch(0)
    assert y.tolist() == [0, 7] and x.unique().tolist() == [0, 1] and x.sum() == 4
    assert x[1, 0, 1, 7] == 1 and x[1, 19, 9, 9] == 1  # the first ON frame, the last OFF frame
    with pytest.raises(ValueError, match="size=28: recordings of events are not resized"):
        data.load("nmnist", root=tmp_path, size=28)


def test_nmnist_that_is_nowhere_says_where_it_belongs(tmp_path: Path) -> None:
    with pytest.raises(data.MissingData, match=r"Train and Test of N-MNIST"):
        load_nmnist(tmp_path)


def test_the_gaze_comes_back_after_three_saccades() -> None:
    path = gaze(12)
    assert len(path) == 13 and path[0] == path[-1]
    steps = [max(abs(b[0] - a[0]), abs(b[1] - a[1])) for a, b in itertools.pairwise(path)]
    assert set(steps) == {1}


def test_an_event_is_a_change_of_brightness() -> None:
    image = torch.zeros(1, 1, 5, 5, dtype=torch.uint8)
    image[0, 0, 2, 2] = 255
    found = events(image, 3).view(3, 2, 5, 5).bool()  # (T, ON or OFF, ...)
    for (y0, x0), (y1, x1), (on, off) in zip(gaze(3), gaze(3)[1:], found, strict=False):
        assert on.nonzero().tolist() == [[2 + y1, 2 + x1]]
        assert off.nonzero().tolist() == [[2 + y0, 2 + x0]]


def test_saccades_over_any_images_are_made_when_asked_for() -> None:
    digits = data.load("digits").test
    split = SaccadeSplit(digits, steps=6)
    assert split.shape == (12, 8, 8) and len(split) == 360
    few = split.take(torch.tensor([5, 3]))
    ((x, y),) = few.batches([torch.arange(2)])
    assert torch.equal(y, digits.labels[[5, 3]]) and torch.equal(
        x, events(digits.images[[5, 3]], 6)
    )
    assert split.resized(10).shape == (12, 10, 10)
    with pytest.raises(ValueError, match="steps=4 must be a multiple of 3"):
        SaccadeSplit(digits, steps=4)


def bars() -> torch.Tensor:
    test = data.load("drifting_bars").test
    assert isinstance(test, Split)
    return test.images.float().div(255).view(500, 12, 2, 12, 12)


def test_bars_drift_into_the_direction_of_their_class() -> None:
    x, labels = bars(), data.load("drifting_bars").test.labels
    for label, axis in ((0, 3), (1, 3), (2, 2), (3, 2)):
        chosen = x[labels == label, :, 0]  # ON events
        profile = chosen.mean(5 - axis)  # (N, T, place)
        place = profile.argmax(-1)
        moved = ((place[:, 1:] - place[:, :-1]) % 12).flatten()
        assert moved.mode().values == (1 if label % 2 == 0 else 11)


def test_a_sum_over_time_says_nothing_of_the_class() -> None:
    """A linear readout of it, trained on half and tried on the other, is at chance."""
    x, labels = bars().sum(1).flatten(1).double(), data.load("drifting_bars").test.labels
    assert abs(float(x.sum(1).mean()) - 267) < 3
    x = torch.cat([x - x.mean(0), torch.ones(500, 1)], 1)
    weights = torch.linalg.lstsq(
        x[:250].T @ x[:250] + 100 * torch.eye(x.shape[1]),
        x[:250].T @ torch.nn.functional.one_hot(labels[:250]).double(),
    ).solution
    right = ((x[250:] @ weights).argmax(1) == labels[250:]).double().mean()
    assert right < 0.25 + 0.1  # chance and 3.6 deviations of 250
