"""What a network is and what it sees: tables, pictures, and the numbers beneath them.

Names are loaded when they are first used: a table of layers needs no compiler, and only pictures need matplotlib.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastcnn.inspection.diagram import draw
    from fastcnn.inspection.displays import (
        ArchitectureDisplay,
        ConfusionDisplay,
        FeatureMapsDisplay,
        FiltersDisplay,
        LearningCurvesDisplay,
        PredictionsDisplay,
        SaliencyDisplay,
    )
    from fastcnn.inspection.passes import activations, gradients
    from fastcnn.inspection.report import write_report
    from fastcnn.inspection.saliency import grad_cam, gradient_saliency, occlusion
    from fastcnn.inspection.summary import LayerSummary, Summary, summarize

__all__ = [
    "ArchitectureDisplay",
    "ConfusionDisplay",
    "FeatureMapsDisplay",
    "FiltersDisplay",
    "LayerSummary",
    "LearningCurvesDisplay",
    "PredictionsDisplay",
    "SaliencyDisplay",
    "Summary",
    "activations",
    "draw",
    "grad_cam",
    "gradient_saliency",
    "gradients",
    "occlusion",
    "summarize",
    "write_report",
]

_MODULES = {
    "diagram": ("draw",),
    "passes": ("activations", "gradients"),
    "report": ("write_report",),
    "saliency": ("grad_cam", "gradient_saliency", "occlusion"),
    "summary": ("LayerSummary", "Summary", "summarize"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME.get(name, 'displays')}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
