"""Models in files, without pickle, and weights from elsewhere."""

from fastcnn.persistence.foreign import keras_params, torch_params
from fastcnn.persistence.onnx import Chain, write_onnx
from fastcnn.persistence.onnx_reader import read_onnx
from fastcnn.persistence.safetensors import SavedModel, read_model, write_model

__all__ = [
    "Chain",
    "SavedModel",
    "keras_params",
    "read_model",
    "read_onnx",
    "torch_params",
    "write_model",
    "write_onnx",
]
