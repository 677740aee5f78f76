"""Models in files, without pickle."""

from fastcnn.persistence.onnx import Chain, write_onnx
from fastcnn.persistence.onnx_reader import read_onnx
from fastcnn.persistence.safetensors import SavedModel, read_model, write_model

__all__ = ["Chain", "SavedModel", "read_model", "read_onnx", "write_model", "write_onnx"]
