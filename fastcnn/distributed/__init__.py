"""Beyond one machine, on Dask. It is imported when something is trained or predicted with it."""

from fastcnn.distributed.classifier import DaskCNNClassifier

__all__ = ["DaskCNNClassifier"]
