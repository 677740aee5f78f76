"""Data loaders: files written into tmp_path, no network, never the real home."""

from __future__ import annotations

import builtins
import gzip
import hashlib
import io
import math
import os
import tempfile
import tracemalloc
import urllib.error
from email.message import Message
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_array_equal

from fastcnn import datasets
from fastcnn.datasets import (
    fetch_fashion_mnist,
    load_digits_images,
    load_idx_folder,
    load_image,
    load_image_folder,
)

NAMES = {
    ("train", "images"): "train-images-idx3-ubyte",
    ("train", "labels"): "train-labels-idx1-ubyte",
    ("test", "images"): "t10k-images-idx3-ubyte",
    ("test", "labels"): "t10k-labels-idx1-ubyte",
}


def idx_bytes(array: np.ndarray) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def make_arrays(n_train=5, n_test=3, height=4, width=6):
    rng = np.random.default_rng(0)
    return {
        ("train", "images"): rng.integers(0, 256, (n_train, height, width), np.uint8),
        ("train", "labels"): rng.integers(0, 10, n_train).astype(np.uint8),
        ("test", "images"): rng.integers(0, 256, (n_test, height, width), np.uint8),
        ("test", "labels"): rng.integers(0, 10, n_test).astype(np.uint8),
    }


def write_set(folder: Path, arrays, rename=lambda name: name, gz=False):
    folder.mkdir(parents=True, exist_ok=True)
    for key, array in arrays.items():
        content = idx_bytes(array)
        path = folder / (rename(NAMES[key]) + (".gz" if gz else ""))
        path.write_bytes(gzip.compress(content) if gz else content)


# --- IDX folders


@pytest.mark.parametrize("gz", [False, True])
@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name,
        lambda name: name.replace("-idx", ".idx"),
        lambda name: "emnist-letters-" + name.replace("t10k", "test"),
    ],
    ids=["dash", "dot", "prefix"],
)
def test_idx_folder_reads_every_naming(tmp_path, rename, gz):
    arrays = make_arrays()
    write_set(tmp_path, arrays, rename, gz)
    for part in ("train", "test"):
        X, y = load_idx_folder(tmp_path, part)
        assert X.dtype == np.uint8 and y.dtype == np.int64
        assert_array_equal(X, arrays[part, "images"])
        assert_array_equal(y, arrays[part, "labels"])
    X, y = load_idx_folder(str(tmp_path), "all")
    assert_array_equal(X, np.concatenate([arrays["train", "images"], arrays["test", "images"]]))
    assert_array_equal(y, np.concatenate([arrays["train", "labels"], arrays["test", "labels"]]))
    bunch = load_idx_folder(tmp_path, "all", return_X_y=False)
    assert_array_equal(bunch.data, X)
    assert_array_equal(bunch.target, y)
    assert str(tmp_path) in bunch.DESCR


def test_idx_folder_result_is_writable_and_one_part_is_enough(tmp_path):
    arrays = make_arrays()
    write_set(tmp_path, {key: array for key, array in arrays.items() if key[0] == "test"})
    X, y = load_idx_folder(tmp_path, "test")
    X[0] = 0
    y[0] = 0
    with pytest.raises(FileNotFoundError, match=r"train-images-idx3-ubyte and train-labels.*found t10k-images"):
        load_idx_folder(tmp_path)


def test_idx_folder_gzip_is_told_by_content(tmp_path):
    arrays = make_arrays()
    write_set(tmp_path, arrays, gz=True)
    for path in list(tmp_path.iterdir()):
        path.rename(path.with_suffix(""))
    assert_array_equal(load_idx_folder(tmp_path)[0], arrays["train", "images"])


def test_idx_folder_prefers_the_unpacked_file_and_ignores_the_rest(tmp_path):
    arrays = make_arrays()
    write_set(tmp_path, arrays)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(b"not gzip")
    (tmp_path / "._train-images-idx3-ubyte").write_bytes(b"left by another system")
    (tmp_path / "README").write_text("hello")
    (tmp_path / "old-train-images-idx3-ubyte").mkdir()
    assert_array_equal(load_idx_folder(tmp_path)[0], arrays["train", "images"])


def test_idx_folder_missing_things(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        load_idx_folder(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="found no IDX file"):
        load_idx_folder(tmp_path)
    with pytest.raises(ValueError, match="subset must be 'train', 'test' or 'all', got 'valid'"):
        load_idx_folder(tmp_path, "valid")


def test_idx_folder_with_two_sets_names_both(tmp_path):
    write_set(tmp_path, make_arrays(), lambda name: "emnist-letters-" + name)
    write_set(tmp_path, make_arrays(), lambda name: "emnist-digits-" + name)
    with pytest.raises(ValueError, match=r"expected one set.*emnist-digits-.*emnist-letters-"):
        load_idx_folder(tmp_path)


def test_idx_folder_counts_and_sizes_must_agree(tmp_path):
    arrays = make_arrays()
    write_set(tmp_path / "counts", arrays | {("train", "labels"): np.zeros(4, np.uint8)})
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte holds 5 images, .*train-labels.* 4 labels"):
        load_idx_folder(tmp_path / "counts")
    write_set(tmp_path / "sizes", arrays | {("test", "images"): np.zeros((3, 4, 5), np.uint8)})
    with pytest.raises(ValueError, match=r"t10k-images-idx3-ubyte: expected shape \(4, 6\), found \(4, 5\)"):
        load_idx_folder(tmp_path / "sizes", "all")


GOOD = idx_bytes(make_arrays()["train", "images"])
DAMAGED = {
    "empty": (b"", "found an empty file"),
    "header cut": (GOOD[:11], r"00000803 \.\.\. \(16 bytes\)"),
    "labels instead": (idx_bytes(np.zeros(5)), "expected an IDX header 00000803"),
    "float type": (bytes([0, 0, 13, 3]) + GOOD[4:], "found 00000d03"),
    "data cut": (GOOD[:-1], r"expected 120 bytes of data for the shape \(5, 4, 6\), found 119"),
    "data too long": (GOOD + b"x", "expected 120 bytes .* found more"),
    "no images": (GOOD[:4] + bytes(4) + GOOD[8:], r"at least one element, found the shape \(0, 4, 6\)"),
    "html": (b"<!DOCTYPE html><html>", "expected an IDX header"),
}


@pytest.mark.parametrize("gz", [False, True])
@pytest.mark.parametrize("case", DAMAGED)
def test_idx_file_of_another_format_is_named(tmp_path, case, gz):
    content, message = DAMAGED[case]
    write_set(tmp_path, make_arrays())
    (tmp_path / NAMES["train", "images"]).write_bytes(gzip.compress(content) if gz else content)
    with pytest.raises(ValueError, match=rf"train-images-idx3-ubyte: .*{message}"):
        load_idx_folder(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda packed: packed[:-4],  # the length at the end
        lambda packed: packed[:30],
        lambda packed: packed[:12],
        lambda packed: packed[:-8] + bytes(4) + packed[-4:],  # the checksum
        lambda packed: packed[:10] + b"\xff" * (len(packed) - 18) + packed[-8:],
        lambda packed: packed + b"garbage",
    ],
)
def test_damaged_gzip_is_a_value_error(tmp_path, damage):
    write_set(tmp_path, make_arrays(), gz=True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte.gz: truncated or damaged gzip file"):
        load_idx_folder(tmp_path)


@pytest.mark.parametrize("gz", [False, True])
@pytest.mark.parametrize(
    "sizes, filler", [((2**32 - 1, 2**32 - 1, 2**32 - 1), 10), ((5, 4, 6), 64 << 20)], ids=["claim", "bomb"]
)
def test_memory_follows_the_file_not_its_header(tmp_path, sizes, filler, gz):
    write_set(tmp_path, make_arrays())
    header = bytes([0, 0, 8, 3]) + b"".join(size.to_bytes(4, "big") for size in sizes)
    content = header + bytes(filler)
    path = tmp_path / NAMES["train", "images"]
    path.write_bytes(gzip.compress(content, 1) if gz else content)
    del content
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="bytes of data for the shape"):
            load_idx_folder(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@given(
    images=hnp.arrays(np.uint8, hnp.array_shapes(min_dims=3, max_dims=3, max_side=5)),
    gz=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_idx_round_trip(images, gz):
    labels = np.arange(len(images), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        write_set(Path(folder), {("train", "images"): images, ("train", "labels"): labels}, gz=gz)
        X, y = load_idx_folder(folder)
    assert_array_equal(X, images)
    assert_array_equal(y, labels)


@given(position=st.integers(0, 15), value=st.integers(0, 255), gz=st.booleans(), cut=st.integers(0, 40))
@example(position=15, value=5, gz=False, cut=20)  # a smaller width that fits the shorter data
@settings(max_examples=80, deadline=None)
def test_a_mutated_header_is_refused_or_harmless(position, value, gz, cut):
    content = bytearray(GOOD[: len(GOOD) - cut])
    content[position] = value
    with tempfile.TemporaryDirectory() as folder:
        write_set(Path(folder), make_arrays())
        path = Path(folder) / NAMES["train", "images"]
        path.write_bytes(gzip.compress(bytes(content)) if gz else bytes(content))
        sizes = [int.from_bytes(content[i : i + 4], "big") for i in (4, 8, 12)]
        if content[:8] == GOOD[:8] and 0 < math.prod(sizes) == len(content) - 16:
            assert load_idx_folder(folder)[0].shape == tuple(sizes)
        else:
            with pytest.raises(ValueError, match="train-images-idx3-ubyte"):
                load_idx_folder(folder)


# --- Fashion-MNIST


@pytest.fixture
def small_fashion(tmp_path, monkeypatch):
    """A stand-in of a few images with its own checksums, and neither Debian's package nor a real home."""
    arrays = make_arrays(height=28, width=28)
    sha = {key: hashlib.sha256(idx_bytes(array)).hexdigest() for key, array in arrays.items()}
    monkeypatch.setattr(datasets, "_FASHION_SHA256", sha)
    monkeypatch.setattr(datasets, "_FASHION_DEBIAN", tmp_path / "debian")
    monkeypatch.setenv("SCIKIT_LEARN_DATA", str(tmp_path / "home"))
    return arrays


class Server:
    """Stands in for urlopen: serves the given bytes by file name."""

    def __init__(self, files):
        self.files = files
        self.asked = []

    def __call__(self, url, timeout=None):
        assert url.startswith("https://") and timeout
        name = url.rpartition("/")[2]
        self.asked.append(name)
        if name not in self.files:
            raise urllib.error.HTTPError(url, 404, "Not Found", Message(), io.BytesIO(b"gone"))
        response = io.BytesIO(self.files[name])
        response.headers = {"Content-Length": str(len(self.files[name]))}
        return response


@pytest.fixture
def server(small_fashion, monkeypatch):
    server = Server({f"{NAMES[key]}.gz": gzip.compress(idx_bytes(a)) for key, a in small_fashion.items()})
    monkeypatch.setattr("urllib.request.urlopen", server)
    return server


@pytest.fixture
def offline(small_fashion, monkeypatch):
    def urlopen(url, timeout=None):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", urlopen)


@pytest.mark.parametrize("place", ["home", "home/fashion-mnist", "debian"])
@pytest.mark.parametrize("gz", [False, True])
def test_fashion_is_found_on_disk(tmp_path, small_fashion, offline, place, gz):
    write_set(tmp_path / place, small_fashion, gz=gz)
    before = sorted(tmp_path.rglob("*"))
    for kwargs in ({}, {"data_home": tmp_path / "home"}, {"data_home": str(tmp_path / "home")}):
        X, y = fetch_fashion_mnist("test", **kwargs)
        assert X.dtype == np.uint8 and y.dtype == np.int64
        assert_array_equal(X, small_fashion["test", "images"])
        assert_array_equal(y, small_fashion["test", "labels"])
    assert sorted(tmp_path.rglob("*")) == before  # looking creates nothing


def test_fashion_subsets_and_bunch(tmp_path, small_fashion, offline):
    write_set(tmp_path / "debian", small_fashion)
    X, y = fetch_fashion_mnist("all")
    assert X.shape == (8, 28, 28) and y.shape == (8,)
    assert_array_equal(X[:5], fetch_fashion_mnist()[0])
    bunch = fetch_fashion_mnist("all", return_X_y=False)
    assert_array_equal(bunch.data, X)
    assert_array_equal(bunch.target, y)
    assert len(bunch.target_names) == 10 and bunch.target_names[0] == "T-shirt/top"
    assert "1708.07747" in bunch.DESCR
    with pytest.raises(ValueError, match="subset must be"):
        fetch_fashion_mnist("validation")


def test_fashion_data_home_comes_first_and_expands_the_user(tmp_path, small_fashion, offline, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.delenv("SCIKIT_LEARN_DATA")
    write_set(tmp_path / "scikit_learn_data/fashion-mnist", small_fashion)
    (tmp_path / "debian").mkdir()
    (tmp_path / "debian" / NAMES["test", "images"]).write_bytes(b"must not be read")
    assert len(fetch_fashion_mnist("test")[0]) == 3
    assert len(fetch_fashion_mnist("test", data_home="~/scikit_learn_data")[0]) == 3


@pytest.mark.parametrize("gz", [False, True])
def test_fashion_damaged_file_is_named(tmp_path, small_fashion, server, gz):
    pixels = small_fashion["train", "images"].copy()
    pixels[2, 3, 4] ^= 1
    write_set(tmp_path / "home", small_fashion | {("train", "images"): pixels}, gz=gz)
    with pytest.raises(ValueError, match=r"home.train-images-idx3-ubyte.*: damaged .*expected SHA-256 \w{64}"):
        fetch_fashion_mnist()
    assert server.asked == []


def test_fashion_downloads_once_what_is_missing(tmp_path, small_fashion, server, capsys):
    write_set(tmp_path / "home", {("test", "labels"): small_fashion["test", "labels"]})
    X, y = fetch_fashion_mnist("test")
    assert_array_equal(X, small_fashion["test", "images"])
    assert_array_equal(y, small_fashion["test", "labels"])
    assert server.asked == ["t10k-images-idx3-ubyte.gz"]
    saved = tmp_path / "home/fashion-mnist"
    assert [path.name for path in saved.iterdir()] == ["t10k-images-idx3-ubyte.gz"]
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "downloading https://" in err
    fetch_fashion_mnist("all")
    assert len(server.asked) == 3 and len(list(saved.iterdir())) == 3
    server.files.clear()
    assert len(fetch_fashion_mnist("all")[0]) == 8


def test_fashion_download_shows_a_bar_on_a_terminal(small_fashion, server, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    X, _ = fetch_fashion_mnist("test")
    assert_array_equal(X, small_fashion["test", "images"])
    assert "t10k-images-idx3-ubyte.gz" in terminal.getvalue()
    assert "downloading" not in terminal.getvalue()


def assert_names_three_ways(error):
    assert isinstance(error.value, OSError)
    message = str(error.value)
    for way in ("(1) connect", "(2)", "apt install dataset-fashion-mnist", "(3) copy", "data_home"):
        assert way in message


def test_fashion_offline_tells_the_three_ways(tmp_path, small_fashion, offline):
    with pytest.raises(OSError, match="Name or service not known") as error:
        fetch_fashion_mnist(data_home=tmp_path / "new")
    assert_names_three_ways(error)
    assert str(tmp_path / "new" / "fashion-mnist") in str(error.value)


@pytest.mark.parametrize("reply", ["gone", "html", "cut", "other", "endless"])
def test_fashion_bad_download_leaves_nothing_behind(tmp_path, small_fashion, server, monkeypatch, reply):
    name = "t10k-images-idx3-ubyte.gz"
    good = server.files.pop(name)
    if reply == "endless":
        monkeypatch.setattr(datasets, "_MAX_DOWNLOAD", 1000)
    if reply != "gone":
        server.files[name] = {
            "html": b"<html>please log in</html>",
            "cut": good[:-20],
            "other": gzip.compress(idx_bytes(small_fashion["train", "images"])),
            "endless": bytes(5000),
        }[reply]
    with pytest.raises(OSError, match=name) as error:
        fetch_fashion_mnist("test")
    assert_names_three_ways(error)
    assert list((tmp_path / "home/fashion-mnist").iterdir()) == []


def test_fashion_interrupted_download_leaves_nothing_behind(tmp_path, small_fashion, server, monkeypatch):
    def interrupt(fd):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetch_fashion_mnist("test")
    assert list((tmp_path / "home/fashion-mnist").iterdir()) == []


def test_fashion_home_that_cannot_be_written(tmp_path, small_fashion, server):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError) as error:
        fetch_fashion_mnist(data_home=tmp_path / "file")
    assert_names_three_ways(error)


def test_fashion_real_files(tmp_path):
    if not datasets._FASHION_DEBIAN.is_dir():
        pytest.skip("Debian's package dataset-fashion-mnist is not installed")
    X, y = fetch_fashion_mnist("all", data_home=tmp_path)
    assert X.shape == (70_000, 28, 28) and X.dtype == np.uint8 and y.dtype == np.int64
    assert_array_equal(np.bincount(y[:60_000]), np.full(10, 6000))
    assert_array_equal(np.bincount(y[60_000:]), np.full(10, 1000))
    assert list(tmp_path.iterdir()) == []


# --- digits


def test_digits():
    X, y = load_digits_images()
    assert X.shape == (1797, 8, 8) and X.dtype == np.uint8 and X.max() == 255
    assert y.shape == (1797,) and y.dtype == np.int64
    bunch = load_digits_images(return_X_y=False)
    assert_array_equal(bunch.data, X)
    assert bunch.target_names == list("0123456789") and "digits" in bunch.DESCR


def test_digits_scaling_can_be_undone():
    sklearn_datasets = pytest.importorskip("sklearn.datasets")
    X, _ = load_digits_images()
    assert_array_equal(np.rint(X * (16 / 255)), sklearn_datasets.load_digits().images)


# --- pictures


def save(path: Path, pixels, **options):
    Image = pytest.importorskip("PIL.Image")
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels)).save(path, **options)


GREY = np.arange(30, dtype=np.uint8).reshape(5, 6) * 8
COLOR = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], axis=-1)


def test_image_folder_grey(tmp_path):
    save(tmp_path / "dog/b.png", GREY)
    save(tmp_path / "dog/a.BMP", GREY + 1)
    save(tmp_path / "cat/x.pgm", GREY + 2)
    save(tmp_path / "cat/y.tif", GREY + 3)
    save(tmp_path / ".hidden/z.png", COLOR)
    (tmp_path / "cat/.DS_Store").write_bytes(b"x")
    (tmp_path / "cat/.z.png").write_bytes(b"x")
    (tmp_path / "cat/notes.txt").write_text("no image")
    (tmp_path / "labels.csv").write_text("no folder")
    X, y = load_image_folder(tmp_path)
    assert X.dtype == np.uint8
    assert_array_equal(X, np.stack([GREY + 2, GREY + 3, GREY + 1, GREY]))
    assert y.tolist() == ["cat", "cat", "dog", "dog"] and y.dtype.kind == "U"


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "gif", "webp", "ppm", "png", "tiff"])
def test_image_folder_formats(tmp_path, suffix):
    save(tmp_path / f"a/1.{suffix}", np.full((8, 8, 3), 100, np.uint8))
    X, _ = load_image_folder(str(tmp_path), color=True)
    assert X.shape == (1, 8, 8, 3)
    assert np.abs(X.astype(int) - 100).max() <= 3


def test_image_folder_one_coloured_image_makes_all_coloured(tmp_path):
    save(tmp_path / "a/1.png", GREY)
    save(tmp_path / "b/2.png", COLOR)
    X, _ = load_image_folder(tmp_path)
    assert_array_equal(X, np.stack([np.stack([GREY] * 3, axis=-1), COLOR]))
    assert load_image_folder(tmp_path, color=False)[0].shape == (2, 5, 6)
    save(tmp_path / "b/2.png", GREY)
    assert load_image_folder(tmp_path, color=True)[0].shape == (2, 5, 6, 3)


def test_image_folder_mixed_sizes(tmp_path):
    save(tmp_path / "a/1.png", GREY)
    save(tmp_path / "b/2.png", GREY[:, :4])
    with pytest.raises(
        ValueError, match=r"2.png: expected \(H, W\) \(5, 6\) as .*1.png, found \(5, 4\); .*image_shape"
    ):
        load_image_folder(tmp_path)
    X, _ = load_image_folder(tmp_path, image_shape=(3, 7))
    assert X.shape == (2, 3, 7)


def test_image_folder_errors(tmp_path):
    pytest.importorskip("PIL")
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        load_image_folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="found no sub-folder"):
        load_image_folder(tmp_path)
    save(tmp_path / "a/1.png", GREY)
    (tmp_path / "b").mkdir()
    with pytest.raises(ValueError, match=r"b: expected the images of class 'b', found none"):
        load_image_folder(tmp_path)


@pytest.mark.parametrize("color", [None, True, False])
@pytest.mark.parametrize("keep", [0, 20, 60])
def test_unreadable_image_is_named(tmp_path, keep, color):
    save(tmp_path / "a/1.png", GREY)
    save(tmp_path / "a/2.png", np.random.default_rng(0).integers(0, 256, (40, 40), np.uint8))
    path = tmp_path / "a/2.png"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"2.png: cannot be read as an image"):
        load_image_folder(tmp_path, image_shape=(5, 6), color=color)


def test_image_keeps_or_takes_a_shape(tmp_path):
    save(tmp_path / "1.png", COLOR)
    assert_array_equal(load_image(tmp_path / "1.png"), COLOR)
    assert load_image(str(tmp_path / "1.png"), (9, 11)).shape == (9, 11, 3)
    assert load_image(tmp_path / "1.png", np.array([9, 11]), color=False).shape == (9, 11)
    save(tmp_path / "2.png", GREY)
    assert_array_equal(load_image(tmp_path / "2.png"), GREY)
    assert load_image(tmp_path / "2.png", color=True).shape == (5, 6, 3)
    with pytest.raises(FileNotFoundError, match=r"3\.png"):
        load_image(tmp_path / "3.png")


@pytest.mark.parametrize("shape", [5, (5,), (5, 6, 3), (0, 5), (-1, 5), (5.0, 6), "ab", ("5", "6")])
def test_image_shape_is_checked(tmp_path, shape):
    save(tmp_path / "1.png", GREY)
    with pytest.raises(ValueError, match="image_shape must be two positive integers"):
        load_image(tmp_path / "1.png", shape)


def test_image_with_16_bits_is_not_clipped(tmp_path):
    save(tmp_path / "1.png", GREY.astype(np.uint16) * 257)
    assert_array_equal(load_image(tmp_path / "1.png"), GREY)
    assert_array_equal(load_image(tmp_path / "1.png", color=True)[..., 1], GREY)
    save(tmp_path / "2.tif", np.full((3, 3), 70_000, np.int32))
    with pytest.raises(ValueError, match=r"2.tif: .*16 bits, found 70000 to 70000"):
        load_image(tmp_path / "2.tif")
    save(tmp_path / "3.tif", np.full((3, 3), 0.5, np.float32))
    with pytest.raises(ValueError, match=r"3.tif: .*floating-point"):
        load_image(tmp_path / "3.tif")


def test_image_other_modes(tmp_path):
    Image = pytest.importorskip("PIL.Image")
    Image.fromarray(COLOR).convert("P").save(tmp_path / "palette.png", transparency=bytes([0, 128, 255]))
    assert load_image(tmp_path / "palette.png").shape == (5, 6, 3)
    assert load_image(tmp_path / "palette.png", color=False).shape == (5, 6)
    grey = Image.fromarray(GREY).convert("P")
    grey.putpalette(np.repeat(np.arange(256), 3).tolist())
    grey.save(tmp_path / "grey.png")
    with Image.open(tmp_path / "grey.png") as stored:
        assert stored.mode == "P"
    assert_array_equal(load_image(tmp_path / "grey.png"), GREY)
    save(tmp_path / "alpha.png", np.dstack([COLOR, GREY]))
    assert_array_equal(load_image(tmp_path / "alpha.png"), COLOR)
    Image.fromarray(GREY > 100).save(tmp_path / "bits.png")
    assert_array_equal(load_image(tmp_path / "bits.png"), np.where(GREY > 100, 255, 0))


def test_image_orientation_is_applied(tmp_path):
    Image = pytest.importorskip("PIL.Image")
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    save(tmp_path / "1.png", GREY, exif=exif)
    assert_array_equal(load_image(tmp_path / "1.png"), np.rot90(GREY, -1))


def test_missing_pillow_tells_how_to_install_it(tmp_path, monkeypatch):
    save(tmp_path / "a/1.png", GREY)
    real_import = builtins.__import__

    def no_pillow(name, *args, **kwargs):
        if name.split(".")[0] == "PIL":
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_pillow)
    with pytest.raises(ImportError, match="pip install pillow"):
        load_image_folder(tmp_path)
