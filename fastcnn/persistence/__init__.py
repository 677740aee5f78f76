"""Models in files, without pickle, and weights from elsewhere."""

from fastcnn.persistence.checkpoints import Checkpoint
from fastcnn.persistence.foreign import keras_params, torch_params
from fastcnn.persistence.models import MAX_PARAMETERS, SavedModel, read_model, write_model
from fastcnn.persistence.onnx import Chain, write_onnx
from fastcnn.persistence.onnx_reader import read_onnx
from fastcnn.persistence.states import Training

__all__ = [
    "MAX_PARAMETERS",
    "Chain",
    "Checkpoint",
    "SavedModel",
    "Training",
    "keras_params",
    "read_model",
    "read_onnx",
    "torch_params",
    "write_model",
    "write_onnx",
]
