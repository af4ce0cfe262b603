"""CLIPScore of captions, one set after the other, of the same photos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

from torch import Tensor

from ..images import Photo
from ..metrics.clipscore import PRESETS, clip_score, ref_clip_score
from ..metrics.score import Score
from ..models.clip import CLIP
from .clip_features import Progress, check_reads, image_features, text_features


class ClipJudge:
    """Features of photos and of references, computed once, to score captions with.

    A CLIP that cannot read what is said of such photos is refused: by the references, or where there are none by the
    captions themselves. (With references it is the captions' own fault if they say what nobody says.)

    Args:
        clip: of `load_clip`.
        photos: image -> photo.
        references: of the same images; none: there is no RefCLIPScore.
        preset, model: of `minivl.metrics.clipscore.clip_score`.
        precision, workers, progress: of `image_features`.

    Raises:
        InputError: as `check_reads` of the references.
    """

    def __init__(self, clip: CLIP, photos: Mapping[str, Photo], references: Mapping[str, Sequence[str]], *,
                 preset: str = "hessel", model: str | None = None, precision: str = "fp32", workers: int = 0,
                 progress: Progress | None = None) -> None:
        self._clip, self._preset, self._model = clip, preset, model
        self._precision, self._progress = precision, progress
        self._photos, self._told, self._workers = photos, references, workers
        if references:
            self._check([text for name in photos for text in references[name]])

    @cached_property
    def _images(self) -> dict[str, Tensor]:
        """(D,) of each photo; made when captions are there that can be read."""
        return dict(zip(self._photos, image_features(self._clip, list(self._photos.values()), workers=self._workers,
                                                     precision=self._precision, progress=self._progress)))

    @cached_property
    def _references(self) -> dict[str, Tensor]:
        """(R, D) of what is said of each photo, where a score asks for it."""
        if not self._told or not PRESETS[self._preset].reference:
            return {}
        flat = self._texts([text for name in self._photos for text in self._told[name]])  # (R', D)
        return dict(zip(self._photos, flat.split([len(self._told[name]) for name in self._photos])))

    def _check(self, texts: Sequence[str]) -> None:
        check_reads(self._clip, texts, source=self._model or "CLIP")

    def scores(self, captions: Mapping[str, str]) -> dict[str, Score]:
        """"clip_score" and, where the preset defines it and there are references, "ref_clip_score".

        Args:
            captions: image -> caption, of these photos.

        Raises:
            InputError: as `image_features`, `text_features` and, without references, `check_reads`.
        """
        if not self._told:
            self._check(list(captions.values()))
        texts = dict(zip(captions, self._texts(list(captions.values()))))
        found = {"clip_score": clip_score(self._images, texts, preset=self._preset, model=self._model)}
        if self._references:
            found["ref_clip_score"] = ref_clip_score(self._images, texts, self._references, preset=self._preset,
                                                     model=self._model)
        return found

    def _texts(self, texts: Sequence[str]) -> Tensor:
        return text_features(self._clip, [PRESETS[self._preset].text(text) for text in texts],
                             precision=self._precision, progress=self._progress)
