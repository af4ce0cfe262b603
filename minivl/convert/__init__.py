"""Foreign state dicts to ours: one module per family, with its key table and what its tensors and files tell.

What such a module may hold is written at `family.Family`. The models know nothing of this package.
"""
