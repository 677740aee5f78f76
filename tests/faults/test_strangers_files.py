"""Data from strangers: nothing but pixels comes out of a folder, whatever is in it."""

import gzip
import io
import os
import zipfile

import numpy as np
import pytest

from fastcnn.datasets import load_idx_folder, load_image, load_image_folder

GREY = np.arange(30, dtype=np.uint8).reshape(5, 6) * 8


def png(**options):
    Image = pytest.importorskip("PIL.Image")
    content = io.BytesIO()
    Image.fromarray(GREY).save(content, "PNG", **options)
    return content.getvalue()


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def idx(array):
    sizes = b"".join(n.to_bytes(4, "big") for n in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 5\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.mark.parametrize("name", ["1.png", "1.jpg", "1.tif"])
def test_postscript_under_another_name_starts_no_program(name, tmp_path, monkeypatch):
    """Pillow tells formats by content, and for this one it would start Ghostscript."""
    import subprocess

    def refuse(*args, **kwargs):
        raise AssertionError(f"started {args}")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    path = write(tmp_path / "a" / name, POSTSCRIPT)
    with pytest.raises(ValueError, match=rf"{name}: cannot be read as an image \(cannot identify image file"):
        load_image_folder(tmp_path)
    with pytest.raises(ValueError, match="cannot identify image file"):
        load_image(path)


@pytest.mark.filterwarnings("ignore:Image size")
def test_an_image_of_too_many_pixels_is_refused_by_its_header(tmp_path, monkeypatch):
    Image = pytest.importorskip("PIL.Image")
    path = write(tmp_path / "a/1.png", png())
    assert load_image(path).shape == (5, 6)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 29)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("pixels were read"))
    message = r"1.png: cannot be read as an image \(6 x 5 pixels are more than Image.MAX_IMAGE_PIXELS, 29\)"
    with pytest.raises(ValueError, match=message):
        load_image_folder(tmp_path)


def test_links_are_followed_and_nothing_else_is_opened(tmp_path):
    """A link gives the pixels it points to. What is no file (a pipe would block for ever) is left out."""
    inside, outside = tmp_path / "set", write(tmp_path / "private.png", png())
    write(inside / "a/1.png", png())
    (inside / "a/2.png").symlink_to(outside)
    (inside / "a/3.png").symlink_to(tmp_path / "missing.png")
    (inside / "a/4.png").symlink_to("/dev/zero")
    (inside / "a/5.png").symlink_to("5.png")
    (inside / "a/6.png").mkdir()
    os.mkfifo(inside / "a/7.png")
    (inside / "b").symlink_to(inside / "a")
    X, y = load_image_folder(inside)
    assert X.shape == (4, 5, 6) and y.tolist() == ["a", "a", "b", "b"]


def test_a_link_to_what_is_no_image_shows_nothing_of_it(tmp_path):
    secret = write(tmp_path / "secret", b"the secret")
    (tmp_path / "set/a").mkdir(parents=True)
    (tmp_path / "set/a/1.png").symlink_to(secret)
    with pytest.raises(ValueError, match="cannot identify image file") as caught:
        load_image_folder(tmp_path / "set")
    assert "the secret" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["a..\\..\\b.png", "-rf.png", "$(touch x).png", "%2e%2e%2fa.png", "a\nb.png", "\udcff.png"]
)
def test_names_are_only_names(name, tmp_path):
    """No name comes from within a file, and those of a folder's entries no shell sees."""
    write(tmp_path / "set/a" / name, png())
    before = sorted(tmp_path.rglob("*"))
    X, _ = load_image_folder(tmp_path / "set")
    assert X.shape == (1, 5, 6)
    assert sorted(tmp_path.rglob("*")) == before


def test_archives_are_not_unpacked(tmp_path):
    """A gzip file is read as a stream, and its own idea of a name is not looked at. Others are no images."""
    content = io.BytesIO()
    with gzip.GzipFile("../../../elsewhere", "wb", fileobj=content) as file:
        file.write(idx(GREY[None]))
    write(tmp_path / "set/train-images-idx3-ubyte.gz", content.getvalue())
    write(tmp_path / "set/train-labels-idx1-ubyte", idx(np.zeros(1, np.uint8)))
    before = sorted(tmp_path.rglob("*"))
    X, _ = load_idx_folder(tmp_path / "set")
    np.testing.assert_array_equal(X, GREY[None])
    assert sorted(tmp_path.rglob("*")) == before

    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("../../elsewhere.png", png())
    write(tmp_path / "images/a/1.png", packed.getvalue())
    with pytest.raises(ValueError, match="cannot identify image file"):
        load_image_folder(tmp_path / "images")


def test_links_among_idx_files(tmp_path):
    images = write(tmp_path / "elsewhere", idx(GREY[None]))
    (tmp_path / "set").mkdir()
    (tmp_path / "set/train-images-idx3-ubyte").symlink_to(images)
    os.mkfifo(tmp_path / "set/train-labels-idx1-ubyte")
    with pytest.raises(FileNotFoundError, match="expected train-labels-idx1-ubyte"):
        load_idx_folder(tmp_path / "set")
