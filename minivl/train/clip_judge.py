"""CLIPScore of captions, one set after the other, of the same photos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from ..images import Photo
from ..metrics.clipscore import PRESETS, clip_score, ref_clip_score
from ..metrics.score import Score
from ..models.clip import CLIP
from .clip_features import Progress, image_features, text_features


class ClipJudge:
    """Features of photos and of references, computed once, to score captions with.

    Args:
        clip: of `load_clip`.
        photos: image -> photo.
        references: of the same images; none: there is no RefCLIPScore.
        preset, model: of `minivl.metrics.clipscore.clip_score`.
        precision, workers, progress: of `image_features`.

    Raises:
        InputError: as `image_features` and `text_features`.
    """

    def __init__(self, clip: CLIP, photos: Mapping[str, Photo], references: Mapping[str, Sequence[str]], *,
                 preset: str = "hessel", model: str | None = None, precision: str = "fp32", workers: int = 0,
                 progress: Progress | None = None) -> None:
        self._clip, self._preset, self._model = clip, preset, model
        self._precision, self._progress = precision, progress
        features = image_features(clip, list(photos.values()), precision=precision, workers=workers, progress=progress)
        self._images = dict(zip(photos, features))
        self._references: dict[str, Tensor] = {}
        if references and PRESETS[preset].reference:
            flat = self._texts([text for name in photos for text in references[name]])  # (R', D)
            self._references = dict(zip(photos, flat.split([len(references[name]) for name in photos])))

    def scores(self, captions: Mapping[str, str]) -> dict[str, Score]:
        """"clip_score" and, where the preset defines it and there are references, "ref_clip_score".

        Args:
            captions: image -> caption, of these photos.
        """
        texts = dict(zip(captions, self._texts(list(captions.values()))))
        found = {"clip_score": clip_score(self._images, texts, preset=self._preset, model=self._model)}
        if self._references:
            found["ref_clip_score"] = ref_clip_score(self._images, texts, self._references, preset=self._preset,
                                                     model=self._model)
        return found

    def _texts(self, texts: Sequence[str]) -> Tensor:
        return text_features(self._clip, [PRESETS[self._preset].text(text) for text in texts],
                             precision=self._precision, progress=self._progress)
