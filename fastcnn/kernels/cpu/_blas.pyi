from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Real = TypeVar("Real", np.float32, np.float64)

def gemm(
    a: NDArray[Real],
    b: NDArray[Real],
    out: NDArray[Real],
    trans_a: bool = False,
    trans_b: bool = False,
) -> None: ...
