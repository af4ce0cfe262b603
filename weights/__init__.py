"""Weights and the programs that make them: ``python -m weights.<verb>``."""
