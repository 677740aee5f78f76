"""One framework's side of `bench.peers`, in a process of its own.

`python -m bench.sides FRAMEWORK NETWORK THREADS DATA` answers each line of its input with one line of JSON.
"open train 128" builds a training step on 128 images in every mode the framework has, and gives what is to be
compared: the first three losses without dropout for "train", the logits for "predict". "run MODE 20" runs twenty
steps and gives the seconds. A mode that does not run answers with a text.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from importlib import import_module
from typing import Any

import numpy as np

from bench.framework import Run
from bench.machine import versions
from bench.networks import NETWORKS
from bench.process import answers

FRAMEWORKS = {
    "fastcnn": "bench.framework.FastCNN",
    "torch": "bench.framework_torch.Torch",
    "keras": "bench.framework_keras.Keras",
    "jax": "bench.framework_jax.Jax",
}


def main() -> None:
    name, network, threads, path = sys.argv[1:]
    out = answers()
    module, _, cls_name = FRAMEWORKS[name].rpartition(".")
    cls = getattr(import_module(module), cls_name)
    framework = cls(NETWORKS[network], dict(np.load(path)), int(threads))
    print(json.dumps(versions(*cls.packages)), file=out)
    runs: dict[str, Run] = {}
    for line in sys.stdin:
        command, *words = line.split()
        answer: Any = {}
        if command == "open":
            runs.clear()
            gc.collect()
            framework.reset()
            for mode in framework.modes(words[0]):
                try:
                    answer[mode], runs[mode] = framework.open(words[0], mode, int(words[1]))
                except Exception as error:  # a mode that does not run is left out; the others go on
                    lines = str(error).strip().splitlines()
                    answer[mode] = f"{type(error).__name__}: {lines[0] if lines else ''}"
        else:
            start = time.perf_counter()
            runs[words[0]](int(words[1]))
            answer = time.perf_counter() - start
        print(json.dumps(answer), file=out)


if __name__ == "__main__":
    main()
