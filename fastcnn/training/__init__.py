"""Training: initial weights, batches, augmentation, optimisers, schedules, callbacks, and the loop itself."""
