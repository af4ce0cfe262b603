"""Foreign state dicts to ours: one key table per family.

A family module has ``recognises(names)``, ``fields(state)`` (what the tensors tell of the config) and
``TABLE`` (its keys in our names). The models know nothing of this package.
"""
