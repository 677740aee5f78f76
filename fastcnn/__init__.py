"""fastcnn: convolutional neural networks for scikit-learn, compiled for the machine they run on.

A short map of the house:

- `classifier` : `CNNClassifier`, the only door to scikit-learn's estimator API
- `recipes` : classifiers that are ready to train
- `layers` : layer specs to stack like legos; `datasets` : real data in, uint8 images out
- `preprocessing` : transformers of images for pipelines; `inspection` : what a network is and sees, as
  tables, pictures and a report
- `engine` : layers -> ops -> fusion -> memory -> plan; `Network` runs it without scikit-learn
- `training` : the loop, mini-batches, augmentation, optimisers, schedules, callbacks
- `kernels` : the contract, its NumPy reference, and the compiled CPU kernels
- `persistence` : models and checkpoints in files; `cli`, `commands`, `speed`, `doctor`, `console` : the
  command line

Names are loaded when they are first used: importing the package does not import Numba.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastcnn.classifier import CNNClassifier
    from fastcnn.engine.network import Network

__version__ = "0.1.0"
__all__ = ["CNNClassifier", "Network", "__version__"]

_LAZY = {"CNNClassifier": "fastcnn.classifier", "Network": "fastcnn.engine.network"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'fastcnn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
