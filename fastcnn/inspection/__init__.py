"""Pictures and tables of a network."""

from fastcnn.inspection.diagram import draw
from fastcnn.inspection.summary import LayerSummary, Summary, summarize

__all__ = ["LayerSummary", "Summary", "draw", "summarize"]
