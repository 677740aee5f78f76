"""Models in files, without pickle."""

from fastcnn.persistence.safetensors import SavedModel, read_model, write_model

__all__ = ["SavedModel", "read_model", "write_model"]
