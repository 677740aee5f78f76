"""Pictures of a network and of what it does, as scikit-learn's Display classes.

Each keeps what is drawn; `plot` draws it, and can be called again with other axes. They need matplotlib
(``pip install matplotlib``), which is imported when something is drawn.
"""

from fastcnn.inspection.displays.curves import LearningCurvesDisplay
from fastcnn.inspection.displays.layers import ArchitectureDisplay
from fastcnn.inspection.displays.maps import FeatureMapsDisplay, FiltersDisplay
from fastcnn.inspection.displays.predictions import ConfusionDisplay, PredictionsDisplay
from fastcnn.inspection.displays.saliency import SaliencyDisplay

__all__ = [
    "ArchitectureDisplay",
    "ConfusionDisplay",
    "FeatureMapsDisplay",
    "FiltersDisplay",
    "LearningCurvesDisplay",
    "PredictionsDisplay",
    "SaliencyDisplay",
]
