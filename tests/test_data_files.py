"""Files of data sets: every format, and what damaged or hostile ones get."""

import gzip
import hashlib
import io
import os
import pickle
import struct
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch

from apical.data import DamagedFile, cifar, mnist, parquet
from apical.data.cifar import read_binary, read_python
from apical.data.events import read_events
from apical.data.folder import load_folder
from apical.data.mnist import read_idx
from apical.data.places import MissingData

AGAIN = "copy it again"


def idx(array):
    shape = struct.pack(f">{array.ndim}I", *array.shape)
    return struct.pack(">HBB", 0, 8, array.ndim) + shape + array.tobytes()


def md5(content):
    return hashlib.md5(content).hexdigest()


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("APICAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("APICAL_DATA", raising=False)


# --- IDX ---


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_idx_plain_and_packed(tmp_path, pack):
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    (tmp_path / "f").write_bytes(pack(idx(array)))
    tensor = read_idx(tmp_path / "f", md5=md5(idx(array)), again=AGAIN)
    assert torch.equal(tensor, torch.from_numpy(array))
    tensor[0] = 0  # writable


ARRAY = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "no header"),
        (b"\x00\x00", "no header"),
        (b"<html>not found</html>", "the header reads"),
        (idx(ARRAY)[:-1], "39 bytes; expected 40 bytes"),
        (idx(ARRAY) + b"x", "41 bytes; expected 40 bytes"),
        (idx(ARRAY)[:-1] + b"x", "expected md5"),
        (gzip.compress(idx(ARRAY))[:-9], "gzip"),
    ],
    ids=["empty", "short", "page", "cut", "long", "changed", "cut gzip"],
)
def test_a_damaged_idx_file_is_named_with_the_way_to_get_it_again(tmp_path, content, text):
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(DamagedFile) as caught:
        read_idx(tmp_path / "f", md5=md5(idx(ARRAY)), again=AGAIN)
    message = str(caught.value)
    assert str(tmp_path / "f") in message
    assert text in message
    assert AGAIN in message


def tiny_mnist():
    """Four files of an IDX set, and what describes them."""
    rng = np.random.default_rng(0)
    files = {}
    for part, count in (("train", 6), ("t10k", 4)):
        files[f"{part}-images-idx3-ubyte"] = idx(rng.integers(0, 256, (count, 3, 2), np.uint8))
        files[f"{part}-labels-idx1-ubyte"] = idx(rng.integers(0, 10, count, np.uint8))
    sums = {name: md5(content) for name, content in files.items()}
    return replace(mnist.MNIST, md5=sums, mirrors=("https://mirror.invalid/",)), files


@pytest.mark.parametrize("sub", [".", "MNIST/raw", "mnist"])
def test_idx_sets_are_found_in_the_root_and_in_the_usual_folders(tmp_path, sub):
    which, files = tiny_mnist()
    (tmp_path / sub).mkdir(parents=True, exist_ok=True)
    for i, (name, content) in enumerate(files.items()):
        packed = i % 2  # mixed: some plain, some gzipped
        target = tmp_path / sub / (name + ".gz" * packed)
        target.write_bytes(gzip.compress(content) if packed else content)
    data = mnist._load(which, tmp_path, False)
    assert data.train.images.shape == (6, 1, 3, 2)
    assert len(data.test) == 4
    assert data.train.images.numpy().tobytes() == files["train-images-idx3-ubyte"][16:]
    assert data.train.labels.tolist() == list(files["train-labels-idx1-ubyte"][8:])
    assert data.test.labels.tolist() == list(files["t10k-labels-idx1-ubyte"][8:])


# --- CIFAR archives ---


def hostile():
    class Bad:
        def __reduce__(self):
            return print, ("this must never run",)

    return pickle.dumps({b"data": Bad(), b"labels": []})


def test_a_pickle_that_asks_for_code_is_refused(capsys):
    for content in (hostile(), b"cos\nsystem\n(S'true'\ntR.", b"", b"\x80\x04garbage"):
        with pytest.raises(ValueError, match="no batch of arrays"):
            read_python(content, "labels")
    assert capsys.readouterr().out == ""


def test_a_pickled_batch():
    for protocol in (0, 2, 5):
        images = np.random.default_rng(0).integers(0, 256, (3, 3072), np.uint8)
        batch = {b"data": images, b"fine_labels": [1, 0, 2], b"batch_label": b"x"}
        got, labels = read_python(pickle.dumps(batch, protocol), "fine_labels")
        assert np.array_equal(got, images)
        assert labels.tolist() == [1, 0, 2]


def test_a_pickle_of_python_2_as_the_published_files_are():
    images = np.random.default_rng(0).integers(0, 256, (2, 3072), np.uint8)
    content = (
        b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
        b"K\x00\x85U\x01b\x87R(K\x01K\x02M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        + b"T"
        + struct.pack("<I", images.size)
        + images.tobytes()
        + b"tbU\x06labels](K\x09K\x00eu."
    )
    got, labels = read_python(content, "labels")
    assert np.array_equal(got, images)
    assert labels.tolist() == [9, 0]


def test_a_pickle_of_something_else_is_refused():
    for batch in (
        {b"data": np.zeros((3, 3072)), b"labels": [0, 0, 0]},
        {b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 0, 0]},
        {b"data": [1, 2], b"labels": [0, 0]},
        {b"labels": [0]},
        [1, 2],
    ):
        with pytest.raises(ValueError):
            read_python(pickle.dumps(batch), "labels")


def test_a_binary_batch_reads_the_fine_label():
    rows = np.random.default_rng(0).integers(0, 256, (2, 3074), np.uint8)
    images, labels = read_binary(rows.tobytes(), 2)
    assert np.array_equal(images, rows[:, 2:])
    assert np.array_equal(labels, rows[:, 1])
    for content in (b"", rows.tobytes()[:-1]):
        with pytest.raises(ValueError, match="3074-byte"):
            read_binary(content, 2)


def tiny_cifar(monkeypatch):
    """CIFAR-10 with 10 + 2 images: file contents for both forms, and what describes them."""
    monkeypatch.setattr(cifar, "TRAIN_COUNT", 10)
    monkeypatch.setattr(cifar, "TEST_COUNT", 2)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, 3072), np.uint8)
    labels = rng.integers(0, 10, 12)
    python, binary = cifar.CIFAR10.forms
    contents = [{}, {}]
    for i, name in enumerate([*python.train, *python.test]):
        part = slice(2 * i, 2 * i + 2)
        batch = {b"data": images[part], b"labels": labels[part].tolist()}
        contents[0][name] = pickle.dumps(batch, 2)
        rows = np.column_stack([labels[part].astype(np.uint8), images[part]])
        contents[1][name + ".bin"] = rows.tobytes()
    sums = {name: md5(content) for name, content in contents[0].items()}
    python = replace(
        python,
        train={name: sums[name] for name in python.train},
        test={name: sums[name] for name in python.test},
    )
    return replace(cifar.CIFAR10, forms=(python, binary)), contents, images, labels


def packed(folder, contents):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.mark.parametrize("form", [0, 1])
@pytest.mark.parametrize("unpacked", [True, False])
def test_every_form_of_cifar_gives_the_same_images(tmp_path, monkeypatch, form, unpacked):
    which, contents, images, labels = tiny_cifar(monkeypatch)
    chosen = which.forms[form]
    archive = packed(chosen.folder, contents[form])
    forms = [replace(f, md5=md5(archive)) if f is chosen else f for f in which.forms]
    which = replace(which, forms=tuple(forms))
    place = tmp_path / "cifar10"
    if unpacked:
        (place / chosen.folder).mkdir(parents=True)
        for name, content in contents[form].items():
            (place / chosen.folder / name).write_bytes(content)
    else:
        place.mkdir()
        (place / chosen.archive).write_bytes(archive)
    data = cifar._load(which, tmp_path, False)
    assert np.array_equal(data.train.images.flatten(1).numpy(), images[:10])
    assert np.array_equal(data.test.images.flatten(1).numpy(), images[10:])
    assert np.array_equal(data.train.labels.numpy(), labels[:10])
    assert data.note == ""


def test_a_damaged_cifar_file_is_named(tmp_path, monkeypatch):
    which, contents, _, _ = tiny_cifar(monkeypatch)
    python, binary = which.forms
    (tmp_path / python.archive).write_bytes(packed(python.folder, contents[0])[:-20])
    with pytest.raises(DamagedFile, match=rf"{python.archive} is damaged.*md5.*fetch https"):
        cifar._load(which, tmp_path, False)
    (tmp_path / python.archive).unlink()
    for name, content in contents[0].items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "data_batch_3").write_bytes(hostile())
    with pytest.raises(DamagedFile, match=r"data_batch_3 is damaged: md5"):
        cifar._load(which, tmp_path, False)
    (tmp_path / "data_batch_3").unlink()
    for name, content in contents[1].items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "data_batch_2.bin").write_bytes(contents[1]["data_batch_2.bin"][:3073])
    with pytest.raises(DamagedFile, match=r"data_batch_2.bin is damaged: 1 images"):
        cifar._load(which, tmp_path, False)
    (tmp_path / "data_batch_2.bin").write_bytes(b"\xff" * 2 * 3073)
    with pytest.raises(DamagedFile, match=r"labels 255..255; expected labels 0..9"):
        cifar._load(which, tmp_path, False)


# --- Parquet ---


def write_table(path, images, labels, format, columns=("img", "label")):
    import pyarrow
    import pyarrow.parquet
    from PIL import Image

    encoded = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format)
        encoded.append({"bytes": buffer.getvalue(), "path": "x"})
    table = pyarrow.table({columns[0]: encoded, columns[1]: labels})
    pyarrow.parquet.write_table(table, path)


@pytest.fixture
def table(tmp_path):
    """A folder with three colour images of 4x5 in two Parquet shards, and the pixels."""
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), np.uint8)
    write_table(tmp_path / "train-00000-of-00002.parquet", images[:2], [4, 2], "PNG")
    write_table(tmp_path / "train-00001-of-00002.parquet", images[2:], [7], "PNG")
    return tmp_path, images


def read(folder, count=3, label="label", mode="RGB", size=(4, 5)):
    shards = parquet.find_parquet(folder, "train")
    return parquet.read_parquet(
        shards, count=count, classes=10, size=size, label=label, mode=mode, again=AGAIN
    )


def test_a_table_of_png_images_is_exact_and_decoded_once(table, monkeypatch):
    folder, images = table
    for _ in range(2):
        got, labels, jpeg = read(folder)
        assert np.array_equal(got, images.transpose(0, 3, 1, 2))
        assert labels.tolist() == [4, 2, 7]
        assert not jpeg
        monkeypatch.setattr(parquet, "_decode", None)  # the second time it must not be called


def test_a_table_of_jpeg_images_says_so_and_grey_ones_have_one_channel(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 5), np.uint8)
    target = tmp_path / "train-0.parquet"
    write_table(target, images, [1, 0], "JPEG", ("image", "digit"))
    got, _, jpeg = read(tmp_path, count=2, label="digit", mode="L")
    assert got.shape == (2, 1, 4, 5)
    assert jpeg


def test_a_damaged_cache_is_decoded_again_with_a_warning(table, tmp_path):
    folder, images = table
    read(folder)
    (kept,) = (tmp_path / "cache/decoded").glob("*.npz")
    kept.write_bytes(kept.read_bytes()[:-50])
    with pytest.warns(UserWarning, match="decoding again"):
        got, _, _ = read(folder)
    assert np.array_equal(got, images.transpose(0, 3, 1, 2))
    assert [path.name for path in kept.parent.iterdir()] == [kept.name]


def test_a_cache_that_cannot_be_written_warns_and_works(table, tmp_path, monkeypatch):
    folder, images = table
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("APICAL_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="set APICAL_CACHE"):
        got, _, _ = read(folder)
    assert len(got) == len(images)


def test_damaged_tables_are_named(table):
    folder, _ = table
    shard = folder / "train-00001-of-00002.parquet"
    with pytest.raises(DamagedFile, match="3 images; expected 50000 images"):
        read(folder, count=50000)
    with pytest.raises(DamagedFile, match=r"columns \['img', 'label'\]; expected .* fine_label"):
        read(folder, label="fine_label")
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-100])
    with pytest.raises(DamagedFile, match=r"00001-of-00002.parquet is damaged.*copy it again"):
        read(folder)
    write_table(shard, np.zeros((1, 6, 6, 3), np.uint8), [1], "PNG")
    with pytest.raises(DamagedFile, match="several sizes"):
        read(folder)


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ([-5, 0, 1], r"labels -5\.\.1; expected labels 0\.\.9"),
        ([300, 0, 1], r"labels 0\.\.300; expected labels 0\.\.9"),
        ([1.5, 0.0, 1.0], "column 'label' of type double; expected whole numbers"),
        (["a", "b", "c"], "column 'label' of type string"),
        ([None, 0, 1], "1 labels that are null"),
    ],
)
def test_labels_of_tables_are_checked_as_those_of_archives(tmp_path, labels, told):
    images = np.zeros((3, 4, 5, 3), np.uint8)
    write_table(tmp_path / "train-0.parquet", images, labels, "PNG")
    with pytest.raises(DamagedFile, match=told):
        read(tmp_path)


def test_images_of_another_size_are_no_images_of_this_set(table):
    with pytest.raises(DamagedFile, match=r"images \(3, 4, 5\); expected 32x32 pixels"):
        read(table[0], size=(32, 32))


@pytest.mark.parametrize(
    "column", [[1, 2], ["a", "b"], [b"x", b"y"], [{"path": "x"}] * 2, [{"bytes": 1}] * 2, [[1]] * 2]
)
def test_columns_of_other_types_are_named(tmp_path, column):
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"img": column, "label": [0, 1]})
    pyarrow.parquet.write_table(table, tmp_path / "train-0.parquet")
    with pytest.raises(DamagedFile, match="column 'img' of type"):
        read(tmp_path, count=2)


def test_a_picture_bomb_is_named(tmp_path, monkeypatch):
    from PIL import Image

    write_table(tmp_path / "train-0.parquet", np.zeros((1, 40, 50, 3), np.uint8), [0], "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 900)
    with pytest.raises(DamagedFile, match="row 0: .*decompression bomb"):
        read(tmp_path, count=1)
    folder = tmp_path / "images"
    for place in ("train/a", "train/b", "val/a"):
        (folder / place).mkdir(parents=True)
        Image.fromarray(np.zeros((40, 50), np.uint8)).save(folder / place / "0.png")
    with pytest.raises(DamagedFile, match=r"0\.png is damaged: .*decompression bomb"):
        load_folder(str(folder))  # its size is that of the images


def test_a_pipe_is_no_data_file(tmp_path):
    """Reading one would wait for ever."""
    names = ("train-0.parquet", "f/train/a/0.png", "f/train/b/0.png", "e.bin")
    for place in map(tmp_path.joinpath, names):
        place.parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(place)
    (tmp_path / "f/val/a").mkdir(parents=True)
    os.mkfifo(tmp_path / "f/val/a/0.png")
    with pytest.raises(DamagedFile, match="no ordinary file"):
        read(tmp_path)
    with pytest.raises(DamagedFile, match="no ordinary file"):
        next(iter(load_folder(str(tmp_path / "f")).train.batches([torch.tensor([0])])))
    with pytest.raises(DamagedFile, match="no ordinary file"):
        read_events(tmp_path / "e.bin")


def test_an_image_that_is_none_is_named_by_its_row(tmp_path):
    import pyarrow
    import pyarrow.parquet

    def of(content):
        return [{"bytes": content, "path": ""}]

    binary = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    for images, told in (
        (of(b"not an image"), "row 0"),
        ([*of(b"x"), *of(None)], "1 images that are null"),
        ([], "no images"),
    ):
        labels = pyarrow.array([0] * len(images), pyarrow.int64())
        rows = {"img": pyarrow.array(images, binary), "label": labels}
        pyarrow.parquet.write_table(pyarrow.table(rows), tmp_path / "train-0.parquet")
        with pytest.raises(DamagedFile, match=f"train-0.parquet is damaged: {told}"):
            read(tmp_path, count=len(images))


def test_a_set_that_is_nowhere_lists_the_ways_to_get_it(tmp_path):
    with pytest.raises(MissingData) as caught:
        cifar.load_cifar10(tmp_path, download=False)
    text = str(caught.value)
    for part in (str(tmp_path), "cifar-10-python.tar.gz", "APICAL_DATA", "--data-root", "digits"):
        assert part in text
