"""Scores of captions and of looks: pure functions on plain values, one metric per module.

Nothing is re-exported, so that a module (`minivl.metrics.cider`) never hides behind the function it
defines (`minivl.metrics.cider.cider`).
"""
