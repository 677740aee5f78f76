"""Small pictures for a page: PNG files as data URIs, and the colours of numbers."""

from __future__ import annotations

import zlib
from base64 import b64encode

import numpy as np

__all__ = ["DIVERGING", "SEQUENTIAL", "colored", "data_uri", "encode_png"]

# Every tenth of matplotlib's cividis and PuOr, which eyes of all kinds can read.
SEQUENTIAL = (
    "#00224e", "#0c326c", "#35456c", "#4f576c", "#666970", "#7d7c78", "#948e77", "#aea371", "#c8b866", "#e5cf52",
    "#fee838",
)  # fmt: skip
DIVERGING = (
    "#7f3b08", "#b35806", "#e08214", "#fdb863", "#fee0b6", "#f6f6f7", "#d8daeb", "#b2abd2", "#8073ac", "#542788",
    "#2d004b",
)  # fmt: skip

_COLOR_TYPES = {1: 0, 3: 2, 4: 6}  # by channels: grey, RGB, RGBA


def encode_png(pixels: np.ndarray) -> bytes:
    """A PNG file of uint8 `pixels` (H, W), (H, W, 1), (H, W, 3) or (H, W, 4).

    The format: https://www.w3.org/TR/png-3/.
    """
    pixels = np.ascontiguousarray(pixels, np.uint8)
    height, width, channels = (*pixels.shape, 1)[:3]
    header = width.to_bytes(4) + height.to_bytes(4) + bytes([8, _COLOR_TYPES[channels], 0, 0, 0])
    rows = np.zeros((height, 1 + width * channels), np.uint8)  # each begins with its filter: 0, none
    rows[:, 1:] = pixels.reshape(height, -1)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        len(data).to_bytes(4) + name + data + zlib.crc32(name + data).to_bytes(4) for name, data in chunks
    )


def data_uri(pixels: np.ndarray) -> str:
    """`pixels` as what stands in ``src="..."``."""
    return "data:image/png;base64," + b64encode(encode_png(pixels)).decode("ascii")


def colored(values: np.ndarray, limit: float) -> np.ndarray:
    """Numbers from -`limit` to `limit` in colours, uint8 (..., 3); zero is almost white."""
    stops = np.array([[int(color[i : i + 2], 16) for i in (1, 3, 5)] for color in DIVERGING], float)
    place = (np.clip(values / (limit or 1.0), -1, 1) + 1) / 2
    knots = np.linspace(0, 1, len(stops))
    return np.stack([np.interp(place, knots, stops[:, c]) for c in range(3)], axis=-1).round().astype(np.uint8)
