"""Training: initial weights, batches, augmentation, optimisers, schedules, callbacks, and the loop itself."""

from fastcnn.training.finder import LearningRates, find_learning_rate

__all__ = ["LearningRates", "find_learning_rate"]
