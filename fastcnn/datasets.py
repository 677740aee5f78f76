"""Real data in, uint8 images out.

Files are not trusted: what a header promises is compared with what the file holds before memory is spent.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import re
import sys
import zlib
from collections import ChainMap
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from sklearn.utils import Bunch

__all__ = ["fetch_fashion_mnist", "load_digits_images", "load_idx_folder", "load_image", "load_image_folder"]

StrPath: TypeAlias = str | os.PathLike[str]
Data: TypeAlias = tuple[np.ndarray, np.ndarray] | Bunch
Key: TypeAlias = tuple[str, str]  # (part, kind): "train" or "test", "images" or "labels"

_PIECE = 1 << 20  # bytes read at a time
_FASHION_URL = "https://fashion-mnist.s3.eu-central-1.amazonaws.com/"
_FASHION_DEBIAN = Path("/usr/share/datasets/fashion-mnist")
# SHA-256 of the decompressed content, which does not depend on the compressor.
_FASHION_SHA256 = {
    ("train", "images"): "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    ("train", "labels"): "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    ("test", "images"): "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    ("test", "labels"): "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
FASHION_NAMES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"]
FASHION_NAMES += ["Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
_FASHION_DESCR = """Fashion-MNIST: 60,000 + 10,000 grey images of clothes, 28 x 28 pixels, ten equal classes.
H. Xiao, K. Rasul, R. Vollgraf (2017), arXiv:1708.07747. MIT licence. github.com/zalandoresearch/fashion-mnist
"""
_MAX_DOWNLOAD = 1 << 26  # bytes; the largest file is 47 MB even before compression


def fetch_fashion_mnist(subset: str = "train", return_X_y: bool = True, data_home: StrPath | None = None) -> Data:
    """Load Fashion-MNIST, downloading it (30 MB) where it is not on disk yet.

    Each file is looked for in `data_home`, in its sub-folder ``fashion-mnist`` and where Debian's package
    ``dataset-fashion-mnist`` puts it; what is still missing is downloaded into ``data_home/fashion-mnist``.
    The SHA-256 of every file is checked, wherever it came from.

    Parameters
    ----------
    subset : {"train", "test", "all"}, default="train"
        60,000 training images, 10,000 test images, or both in this order.
    return_X_y : bool, default=True
        False gives a `sklearn.utils.Bunch` with `data`, `target`, `target_names` and `DESCR`.
    data_home : path-like, default=None
        None means what it means to scikit-learn: ``$SCIKIT_LEARN_DATA``, else ``~/scikit_learn_data``.

    Returns
    -------
    X : ndarray of uint8, shape (n, 28, 28)
        Images, white on black.
    y : ndarray of int64, shape (n,)
        T-shirt/top, trouser, pullover, dress, coat, sandal, shirt, sneaker, bag, ankle boot are 0 to 9.

    Raises
    ------
    OSError
        The data is not on disk and cannot be downloaded; the message tells three ways to get it.
    ValueError
        A file on disk is damaged, or `subset` is unknown.
    """
    keys = _subset_keys(subset)
    # Not sklearn.datasets.get_data_home, which creates the folder: reading must work with a read-only home.
    home = Path(data_home or os.environ.get("SCIKIT_LEARN_DATA", "~/scikit_learn_data")).expanduser()
    folders = [folder for folder in (home, home / "fashion-mnist", _FASHION_DEBIAN) if folder.is_dir()]
    files = ChainMap(*(_find_idx_files(folder).get("", {}) for folder in folders))
    paths = [files.get(key) or _download_fashion_file(key, home / "fashion-mnist") for key in keys]
    X, y = _read_parts(paths, [_FASHION_SHA256[key] for key in keys])
    if return_X_y:
        return X, y
    return Bunch(data=X, target=y, target_names=FASHION_NAMES.copy(), DESCR=_FASHION_DESCR)


def _download_fashion_file(key: Key, folder: Path) -> Path:
    """Download one file; `folder` sees it under its name only once it is complete and checked."""
    from http.client import HTTPException
    from urllib.error import HTTPError
    from urllib.request import urlopen

    from fastcnn.persistence.files import replacing

    name = _idx_name(*key) + ".gz"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (
            urlopen(_FASHION_URL + name, timeout=30) as response,
            _show_progress(response, name) as stream,
            replacing(folder / name) as out,
        ):
            while piece := stream.read(_PIECE):
                out.write(piece)
                if out.tell() > _MAX_DOWNLOAD:
                    raise ValueError(f"the server sent more than {_MAX_DOWNLOAD} bytes")
            out.flush()
            _read_idx(Path(out.name), _NDIM[key[1]], _FASHION_SHA256[key])
    except (OSError, HTTPException, ValueError) as error:
        if isinstance(error, HTTPError):
            error.close()  # it holds the connection open
        raise OSError(
            f"Fashion-MNIST is not on disk and downloading {_FASHION_URL}{name} failed ({error}). "
            f"Three ways to get it: (1) connect to the network and call again; (2) on Debian and Ubuntu: "
            f"apt install dataset-fashion-mnist; (3) copy {name} and the three files beside it from "
            f"github.com/zalandoresearch/fashion-mnist to {folder}, or pass their folder as data_home"
        ) from error
    return folder / name


def _show_progress(response: Any, name: str) -> AbstractContextManager[Any]:
    """Wrap the response in a progress bar if a person is watching, else print one line."""
    total = int(response.headers.get("Content-Length") or 0)
    if total and sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import wrap_file

        return wrap_file(response, total, description=name, console=Console(stderr=True))
    print(f"downloading {_FASHION_URL}{name}", file=sys.stderr)
    return nullcontext(response)


# train-images-idx3-ubyte.gz, t10k-labels.idx1-ubyte, emnist-letters-test-images-idx3-ubyte.gz ...
_IDX_NAME = re.compile(r"(?P<prefix>|.*[-_.])(?P<part>train|t10k|test)-(?P<kind>images|labels)[-.]idx[13]-ubyte(\.gz)?")
_NDIM = {"images": 3, "labels": 1}


def load_idx_folder(path: StrPath, subset: str = "train", return_X_y: bool = True) -> Data:
    """Load a folder of the MNIST family (MNIST, KMNIST, one set of EMNIST, ...).

    Its files are ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``, ``t10k-images-idx3-ubyte`` and
    ``t10k-labels-idx1-ubyte``; gzip, ``.idx`` for ``-idx``, ``test`` for ``t10k`` and one prefix for all
    (``emnist-letters-``) are understood. The format: http://yann.lecun.com/exdb/mnist.

    Parameters
    ----------
    path : path-like
        The folder; only the files of `subset` need to be there.
    subset : {"train", "test", "all"}, default="train"
        "all" is the training images followed by the test images.
    return_X_y : bool, default=True
        False gives a `sklearn.utils.Bunch` with `data`, `target` and `DESCR`.

    Returns
    -------
    X : ndarray of uint8, shape (n, H, W)
        The images as they are stored; note that EMNIST stores them transposed (``X.transpose(0, 2, 1)``).
    y : ndarray of int64, shape (n,)
        Labels as they are stored.

    Raises
    ------
    FileNotFoundError
        The folder or a file of the subset is missing.
    ValueError
        A file is damaged or of another format, images and labels differ in number, there are several sets.
    """
    keys = _subset_keys(subset)
    folder = Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    sets = _find_idx_files(folder)
    if len(sets) > 1:
        raise ValueError(f"{folder}: expected one set of IDX files, found the prefixes {list(sets)}")
    files = next(iter(sets.values()), {})
    if missing := [_idx_name(*key) for key in keys if key not in files]:
        found = ", ".join(file.name for file in files.values()) or "no IDX file"
        raise FileNotFoundError(f"{folder}: expected {' and '.join(missing)} (or .gz), found {found}")
    X, y = _read_parts([files[key] for key in keys], [None] * len(keys))
    return (X, y) if return_X_y else Bunch(data=X, target=y, DESCR=f"{len(X)} images from {folder}")


def _subset_keys(subset: str) -> list[Key]:
    parts = {"train": ["train"], "test": ["test"], "all": ["train", "test"]}
    if subset not in parts:
        raise ValueError(f"subset must be 'train', 'test' or 'all', got {subset!r}")
    return [(part, kind) for part in parts[subset] for kind in ("images", "labels")]


def _idx_name(part: str, kind: str) -> str:
    return f"{'train' if part == 'train' else 't10k'}-{kind}-idx{_NDIM[kind]}-ubyte"


def _find_idx_files(folder: Path) -> dict[str, dict[Key, Path]]:
    """Map prefix -> key -> file. Where a file is there twice, the one without gzip wins (faster)."""
    sets: dict[str, dict[Key, Path]] = {}
    for path in sorted(folder.iterdir(), key=lambda path: (path.suffix == ".gz", path.name)):
        match = _IDX_NAME.fullmatch(path.name)
        if match and not path.name.startswith(".") and path.is_file():
            key = ("train" if match["part"] == "train" else "test", match["kind"])
            sets.setdefault(match["prefix"], {}).setdefault(key, path)
    return sets


def _read_parts(paths: Sequence[Path], sha256: Sequence[str | None]) -> tuple[np.ndarray, np.ndarray]:
    """Read files given as images, labels, images, labels ... and join them: X (n, H, W), y (n,)."""
    arrays = [_read_idx(path, (3, 1)[i % 2], sha256[i]) for i, path in enumerate(paths)]
    images, labels = arrays[::2], arrays[1::2]
    for i, (X, y) in enumerate(zip(images, labels, strict=True)):
        if len(X) != len(y):
            raise ValueError(f"{paths[2 * i]} holds {len(X)} images, {paths[2 * i + 1]} {len(y)} labels")
        if X.shape[1:] != images[0].shape[1:]:
            raise ValueError(f"{paths[2 * i]}: expected shape {images[0].shape[1:]}, found {X.shape[1:]}")
    X = images[0] if len(images) == 1 else np.concatenate(images)  # which copies even a single array
    return X, np.concatenate(labels).astype(np.int64)


def _read_idx(path: Path, ndim: int, sha256: str | None = None) -> np.ndarray:
    """Read an IDX file of unsigned bytes; `sha256` is that of its decompressed content.

    Header: 0, 0, the type (8: unsigned byte), the number of dimensions; each size as a big-endian uint32.
    """
    magic, size = bytes([0, 0, 8, ndim]), 4 + 4 * ndim
    with open(path, "rb") as raw:
        # Told by content, not by name: some download tools unpack a .gz without renaming it.
        stream: Any = gzip.GzipFile(fileobj=raw) if raw.peek(2)[:2] == b"\x1f\x8b" else raw
        try:
            header = stream.read(size)
            if header[:4] != magic or len(header) < size:
                found = header.hex(" ", -4) or "an empty file"
                raise ValueError(f"{path}: expected an IDX header {magic.hex()} ... ({size} bytes), found {found}")
            shape = tuple(int.from_bytes(header[i : i + 4], "big") for i in range(4, size, 4))
            if 0 in shape:
                raise ValueError(f"{path}: expected at least one element, found the shape {shape}")
            # Piece by piece, so that memory follows what the file holds, not what its header claims; and
            # never more than one byte too many, whatever a gzip file would unpack to.
            expected = math.prod(shape)
            payload = bytearray()
            while piece := stream.read(min(_PIECE, expected + 1 - len(payload))):
                payload += piece
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{path}: truncated or damaged gzip file ({error})") from error
    if len(payload) != expected:
        found = "more" if len(payload) > expected else len(payload)
        raise ValueError(f"{path}: expected {expected} bytes of data for the shape {shape}, found {found}")
    found = hashlib.sha256(header + payload).hexdigest() if sha256 else None
    if found != sha256:
        raise ValueError(f"{path}: damaged or another data set: expected SHA-256 {sha256}, found {found}")
    return np.frombuffer(payload, np.uint8).reshape(shape)


def load_digits_images(return_X_y: bool = True) -> Data:
    """Load scikit-learn's embedded 8x8 digits as images; nothing is downloaded.

    The stored grey levels 0 to 16 are spread over 0 to 255, ``round(level * 255 / 16)``: all 17 stay apart.

    Parameters
    ----------
    return_X_y : bool, default=True
        False gives a `sklearn.utils.Bunch` with `data`, `target`, `target_names` and `DESCR`.

    Returns
    -------
    X : ndarray of uint8, shape (1797, 8, 8)
        Images, white on black.
    y : ndarray of int64, shape (1797,)
        Which digit it is.
    """
    from sklearn.datasets import load_digits  # here, because it loads all of scikit-learn's data sets

    digits = load_digits()
    X = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    y = digits.target.astype(np.int64)
    names = list("0123456789")
    return (X, y) if return_X_y else Bunch(data=X, target=y, target_names=names, DESCR=digits.DESCR)


_IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}
# Pillow's names of them. It tells formats by content and has many: for EPS it would start another program.
_IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "PPM", "TIFF")
_GREY_MODES = {"1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N", "F"}


def load_image_folder(
    path: StrPath, image_shape: tuple[int, int] | None = None, color: bool | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Load a folder of pictures with one sub-folder per class, e.g. ``pets/cat/1.jpg``, ``pets/dog/1.jpg``.

    Classes, and the images of a class, come in the order of their names. Hidden files and files that are not
    png, jpg, jpeg, bmp, gif, webp, ppm, pgm or tif are left out; links are followed. Pixels are converted as
    `load_image` tells.

    Parameters
    ----------
    path : path-like
        The folder that holds the class folders.
    image_shape : (H, W), default=None
        Resize every image to this. None: all images must have one size.
    color : bool, default=None
        True for colour, False for grey, None for grey unless any image is stored in colour, or with a palette that has
        one.

    Returns
    -------
    X : ndarray of uint8, shape (n, H, W) or (n, H, W, 3)
        Images.
    y : ndarray of str, shape (n,)
        The names of the class folders.

    Raises
    ------
    ValueError
        There are no class folders, one holds no image, an image cannot be read or has more pixels than
        ``PIL.Image.MAX_IMAGE_PIXELS``, or sizes differ.
    FileNotFoundError, ImportError
        The folder is missing; Pillow is missing.
    """
    root = Path(path)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder")
    folders = sorted(item for item in root.iterdir() if item.is_dir() and not item.name.startswith("."))
    if not folders:
        raise ValueError(f"{root}: expected one sub-folder of images per class, found no sub-folder")
    files: list[Path] = []
    for folder in folders:
        visible = (file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
        images = sorted(file for file in visible if file.suffix.lower() in _IMAGE_SUFFIXES)
        if not images:
            raise ValueError(f"{folder}: expected the images of class {folder.name!r}, found none")
        files += images
    if color is None:
        color = any(_is_colored(file) for file in files)

    first = load_image(files[0], image_shape, color)
    X = np.empty((len(files), *first.shape), np.uint8)
    for i, file in enumerate(files):
        image = load_image(file, image_shape, color) if i else first
        if image.shape != first.shape:
            sizes = f"{first.shape[:2]} as {files[0]}, found {image.shape[:2]}"
            raise ValueError(f"{file}: expected (H, W) {sizes}; pass image_shape (--image-size) to resize all")
        X[i] = image
    return X, np.array([file.parent.name for file in files])


def load_image(path: StrPath, image_shape: tuple[int, int] | None = None, color: bool | None = None) -> np.ndarray:
    """Load one picture.

    The camera's orientation tag is applied, transparency is dropped, 16-bit grey keeps its upper 8 bits, grey
    from colour is ITU-R 601 luma, an animation gives its first frame, resizing is bilinear.

    Parameters
    ----------
    path : path-like
        The file.
    image_shape : (H, W), default=None
        Resize the picture to this.
    color : bool, default=None
        True for colour, False for grey, None for what is stored.

    Returns
    -------
    ndarray of uint8, shape (H, W) or (H, W, 3)
        The picture.

    Raises
    ------
    ValueError
        The file cannot be read as an image, or `image_shape` is not one.
    FileNotFoundError, ImportError
        The file is missing; Pillow is missing.
    """
    if image_shape is not None:
        sizes = np.asarray(image_shape)
        if sizes.shape != (2,) or sizes.dtype.kind not in "iu" or sizes.min() < 1:
            raise ValueError(f"image_shape must be two positive integers (H, W), got {image_shape!r}")
    with _open_image(path) as opened:
        from PIL import Image, ImageOps

        image = ImageOps.exif_transpose(opened)
        if color is None:
            color = _has_color(image)
        if image.mode.startswith("I"):
            levels = np.asarray(image)
            if levels.min() < 0 or levels.max() > 0xFFFF:
                raise ValueError(f"expected grey levels of 16 bits, found {levels.min()} to {levels.max()}")
            image = Image.fromarray((levels >> 8).astype(np.uint8))
        elif image.mode == "F":
            raise ValueError("its pixels are floating-point numbers, which have no fixed range")
        elif image.mode == "P":
            image = image.convert("RGBA")  # straight to RGB or L, Pillow warns that transparency is lost
        image = image.convert("RGB" if color else "L")
        if image_shape is not None:
            height, width = image_shape
            image = image.resize((int(width), int(height)), Image.Resampling.BILINEAR)
        return np.array(image)


def _is_colored(path: Path) -> bool:
    with _open_image(path) as image:  # reads the header only, but where there is a palette
        return _has_color(image)


def _has_color(image: Any) -> bool:
    if image.mode == "P" and (palette := image.getpalette()):
        levels = np.reshape(palette, (-1, 3))
        return bool((levels != levels[:, :1]).any())
    return image.mode not in _GREY_MODES


@contextmanager
def _open_image(path: StrPath) -> Iterator[Any]:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("reading image files needs Pillow: pip install pillow") from error
    try:
        with Image.open(path, formats=_IMAGE_FORMATS) as image:
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and math.prod(image.size) > limit:
                raise ValueError(f"{image.width} x {image.height} pixels are more than Image.MAX_IMAGE_PIXELS, {limit}")
            yield image
    except (FileNotFoundError, PermissionError, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise many kinds for a damaged file
        raise ValueError(f"{path}: cannot be read as an image ({error})") from error
