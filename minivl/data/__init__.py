"""Data: the built-in scenes, and the readers of caption and label files."""
