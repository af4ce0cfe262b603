"""The training engine: one loop, its optimiser, checkpoints, feature cache and tasks."""
