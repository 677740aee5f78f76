"""What it saves to compile kernels on all cores: first fits of `bench.coldstart` with an empty cache, in alternating
order, each in a process of its own. `python -m bench.compiling [--rounds 7]`
"""

from __future__ import annotations

import argparse
import sys
import tempfile

from bench.coldstart import FIT, run
from bench.machine import save, versions

ALONE = "from fastcnn.kernels.cpu import together\ntogether.MOST = 1\n"  # Pythons that compile
WAYS = {"one process": ALONE + FIT, "all cores": FIT}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    for number in range(args.rounds):
        for name in list(WAYS)[:: -1 if number % 2 else 1]:
            with tempfile.TemporaryDirectory() as folder:
                answer, _ = run(sys.executable, WAYS[name], folder)  # it has learnt, or this fails
            seconds[name].append(answer["wall"])
            print(f"{name:12s} {answer['wall']:8.3f} s", flush=True)
    print(f"written: {save('compiling', {'versions': versions('fastcnn', 'numpy', 'numba'), 'seconds': seconds})}")


if __name__ == "__main__":
    main()
