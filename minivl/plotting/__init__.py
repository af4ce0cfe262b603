"""Data to figures: arrays, photos and words in, matplotlib figures out. No model is ever seen here."""
