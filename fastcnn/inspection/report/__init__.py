"""One HTML file that shows a model: what it is, how it learnt, how good it is, and what it makes of images."""

from fastcnn.inspection.report.page import write_report

__all__ = ["write_report"]
