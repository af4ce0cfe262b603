"""Programs that score: ``python -m eval.<noun>``."""
