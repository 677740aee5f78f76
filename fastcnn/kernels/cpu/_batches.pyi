from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Source: TypeAlias = NDArray[np.uint8] | NDArray[np.float32] | NDArray[np.float64]
Real: TypeAlias = NDArray[np.float32] | NDArray[np.float64]

def build_batch(
    images: Source,
    index: NDArray[np.int64],
    mean: NDArray[np.float64],
    inv_std: NDArray[np.float64],
    out: Real,
) -> None: ...
def augment_batch(
    images: Source,
    height: int,
    width: int,
    index: NDArray[np.int64],
    mean: NDArray[np.float64],
    inv_std: NDArray[np.float64],
    flip: NDArray[np.uint8],
    shift: NDArray[np.int64],
    erase: NDArray[np.int64],
    out: Real,
) -> None: ...
def warp_batch(
    images: Source,
    height: int,
    width: int,
    index: NDArray[np.int64],
    mean: NDArray[np.float64],
    inv_std: NDArray[np.float64],
    matrix: NDArray[np.float64],
    erase: NDArray[np.int64],
    out: Real,
) -> None: ...
def channel_mean_std(
    images: Source, channels: int, index: NDArray[np.int64] | None = None
) -> tuple[list[float], list[float]]: ...
