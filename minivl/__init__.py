"""minivl: vision transformers and captioners in plain PyTorch, with every attention weight within reach."""

from . import loading, search
from .errors import InputError
from .images import preprocess
from .loading import create, from_state_dict, load, save
from .metrics import cider as _cider  # noqa: F401  (so that minivl.metrics.cider is there after import minivl)
from .nn.record import AttnRecord

__version__ = "0.1.0"

__all__ = ["AttnRecord", "InputError", "create", "from_state_dict", "load", "loading", "preprocess", "save", "search"]
