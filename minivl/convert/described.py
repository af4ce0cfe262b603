"""What a file beside the weights (timm's or Hugging Face's config.json, the course's JSON) says of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from ..images import Preprocessing


class Described(NamedTuple):
    """A model's description in our words.

    Attributes:
        fields: of the config, inner ones dotted ("decoder.width").
        preprocessing: of its photos, or None where it does not say.
        class_names: of its classes, or None.
    """

    fields: dict[str, Any]
    preprocessing: Preprocessing | None = None
    class_names: Sequence[str] | None = None
