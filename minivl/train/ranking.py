"""Photos with a caption each, and which captions fit best and worst by CLIPScore."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from os import PathLike
from typing import Any

from ..data.labels import read_pictures
from ..data.predictions import faults, match, read_predictions, told
from ..errors import InputError
from ..images import Photo
from ..models.captioner import Captioner
from .loop import autocast

TOGETHER = 16  # photos captioned together

Progress = Callable[..., Iterable[Any]]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Captioned:
    """Photos with a caption each, by name.

    Attributes:
        photos: name -> file or picture.
        captions: name -> caption, in the same order.
    """

    photos: Mapping[str, Photo]
    captions: Mapping[str, str]


def photos_of(folder: str | PathLike[str]) -> dict[str, Photo]:
    """Path inside the folder, with slashes -> file, of every photo of a folder and of its folders, sorted.

    Raises:
        InputError: no such folder, or no photo in it.
    """
    files, skipped = read_pictures(folder, deep=True)
    if skipped:
        log.info("%s: %d files that are no photos are left out", folder, len(skipped))
    return {file.relative_to(folder).as_posix(): file for file in files}


def read_captioned(predictions: str | PathLike[str], folder: str | PathLike[str]) -> Captioned:
    """The photos of a folder that a file of predictions has captions of, in the order of that file.

    Raises:
        InputError: what `read_predictions`, `match` and `photos_of` refuse; a caption of no photo there, two of one
            photo, an empty one.
    """
    photos, read = photos_of(folder), read_predictions(predictions)
    matched = match(read.captions, list(photos), predictions=str(predictions), references=str(folder))
    wrong = faults(read, matched)
    if missing := wrong.pop("missing", []):
        log.info("%s: %d photos without a caption are left out", folder, len(missing))
    if wrong:
        raise InputError(f"does not fit the photos of {folder}: {told(wrong)}", source=predictions)
    return Captioned({name: photos[name] for name in matched.keys},
                     {name: read.captions[key] for name, key in matched.keys.items()})


def say_captions(captioner: Captioner, photos: Mapping[str, Photo], beams: int, *, precision: str = "fp32",
                 progress: Progress | None = None) -> Captioned:
    """Photos with the captioner's own captions, of at most `Captioner.longest` tokens.

    Args:
        captioner: with a tokenizer.
        photos: name -> file or picture.
        beams: of the search.
        precision: "fp32", "bf16" or "fp16" (autocast).
        progress: tqdm-like: called with (iterable, total=, desc=).

    Raises:
        InputError: as `Captioner.caption`.
    """
    bar = partial(progress, total=-(-len(photos) // TOGETHER), desc="captioning") if progress else iter
    with autocast(captioner.decoder.embed.weight.device, precision):
        said = captioner.caption(list(photos.values()), beams=beams, max_len=captioner.longest, batch_size=TOGETHER,
                                 progress=bar)
    return Captioned(photos, {name: caption.text or "" for name, caption in zip(photos, said)})


def extremes(scores: Mapping[str, float], pairs: int) -> tuple[list[str], list[str]]:
    """Names of the highest and of the lowest scores, highest and lowest first; of equal ones the earlier first.

    Args:
        scores: name -> score.
        pairs: of each at most; where there are too few, none is in both.
    """
    names: Sequence[str] = list(scores)
    best = sorted(names, key=lambda name: -scores[name])[:min(pairs, -(-len(names) // 2))]
    rest = [name for name in names if name not in best]
    return best, sorted(rest, key=lambda name: scores[name])[:pairs]
