"""The pictures that captioners and pairs are trained on: photos or built-in scenes with their captions, and what of
them a model is given."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data.augment import Augment, View
from ..data.pictures import Files, Members, open_captioned
from ..data.scenes import Scenes
from ..errors import InputError
from ..images import Photo, Preprocessing, preprocess
from ..models.captioner import Captioner
from ..models.clip import CLIP
from .features import Features, Recipe

Progress = Callable[..., Iterable[Any]]


class Data(NamedTuple):
    """Pictures and their captions, in the same order.

    Attributes:
        pictures: photos, or pixels.
        names: of each.
        captions: of each, at least one.
    """

    pictures: Files | Members | Pixels
    names: Sequence[str]
    captions: Sequence[Sequence[str]]

    def references(self) -> dict[str, Sequence[str]]:
        """The captions by name, all in memory."""
        return dict(zip(self.names, self.captions))

    def texts(self) -> Iterator[str]:
        """All captions."""
        return (text for several in self.captions for text in several)

    def json(self) -> Iterator[str]:
        """`references` as JSON, piece by piece."""
        yield "{"
        for place, (name, several) in enumerate(zip(self.names, self.captions)):
            yield f"{', ' * (place > 0)}{json.dumps(name)}: {json.dumps(list(several))}"
        yield "}"


def told_hash(sets: Sequence[Data], text: str) -> str:
    """By which a run knows its captions (and its tokenizer, say) again: of the JSON of ``[references, ..., text]``."""
    digest = hashlib.sha256(b"[")
    for one in sets:
        for piece in one.json():
            digest.update(piece.encode())
        digest.update(b", ")
    digest.update(f"{json.dumps(text)}]".encode())
    return digest.hexdigest()[:16]


def open_photos(images: Path, captions: Path | None, split: str | None, cache: Path,
                progress: Progress | None = None) -> Data:
    """Photos of a folder or of tar shards, see `open_captioned`; nothing is kept of each but names and captions of a
    caption file."""
    return Data(*open_captioned(images, captions, split, cache=cache, progress=progress))


def draw_scenes(start: int, count: int, preprocessing: Preprocessing, nouns: bool = False,
                progress: Progress | None = None) -> Data:
    """Scenes of the model's size, in memory; with `nouns` also captions that name one thing alone.

    Args:
        start: number of the first one.
        count: how many.
        preprocessing: of the model.
        nouns: see above.
        progress: tqdm-like.
    """
    scenes: Iterable[Any] = Scenes(count, start=start, size=preprocessing.size[0])
    if progress is not None:
        scenes = progress(scenes, total=count, desc="drawing scenes")
    drawn = [(np.asarray(scene.image), scene.captions + (scene.named() if nouns else ())) for scene in scenes]
    pixels = Pixels(np.stack([pixels for pixels, _ in drawn]), preprocessing)
    return Data(pixels, [f"scene {start + number}" for number in range(count)], [texts for _, texts in drawn])


class Photos:
    """Photos read and preprocessed each time they are asked for, in several versions: that of photo i with number v is
    asked for as ``i + v * len(photos)``.

    Args:
        photos: files or PIL images, opened when they are asked for.
        model: whose preprocessing applies.
        mirror: there is a second version of each, mirrored left to right.
        views: there are so many versions of each, the photo itself and parts of it drawn at random from (seed, photo,
            version), half of them mirrored with `mirror`.
        crop_scale: smallest share of a photo's area in such a part.
        seed: of these draws.

    Raises:
        InputError: a crop_scale out of range.
    """

    def __init__(self, photos: Sequence[Photo], model: Captioner | CLIP, mirror: bool = False, views: int = 1,
                 crop_scale: float = View.crop_scale, seed: int = 0) -> None:
        self._photos, self._model = photos, Recipe(model.preprocessing, model.cell)
        self._views, self._part = 1 + mirror, None
        if views > 1:
            assert model.preprocessing is not None  # else nothing says how photos become pixels
            self._views = views
            self._part = Augment(model.preprocessing, seed=seed, crop_scale=(crop_scale, 1.0), flip=0.5 * mirror)

    def __len__(self) -> int:
        return self._views * len(self._photos)

    def __getitem__(self, photos: Sequence[int]) -> Tensor:
        """(len(photos), 3, H, W)."""
        count = len(self._photos)
        if self._part is None:
            images = preprocess([self._photos[photo % count] for photo in photos], self._model)[0]
            for row, photo in enumerate(photos):
                if photo >= count:
                    images[row] = images[row].flip(-1)
            return images
        return torch.stack([self._part(self._photos[photo % count], photo // count, photo % count) if photo >= count
                            else preprocess([self._photos[photo]], self._model)[0][0] for photo in photos])


class Pixels:
    """Pictures of one size kept in memory as bytes.

    Args:
        pixels: (n, H, W, 3) uint8.
        preprocessing: its mean and std apply.
    """

    def __init__(self, pixels: np.ndarray, preprocessing: Preprocessing) -> None:
        if tuple(pixels.shape[1:3]) != preprocessing.size:
            raise InputError(f"pixels of {pixels.shape[1:3]}, the model takes {preprocessing.size}")
        self._pixels = torch.from_numpy(pixels)
        self._mean = torch.tensor(preprocessing.mean)[:, None, None]
        self._std = torch.tensor(preprocessing.std)[:, None, None]

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, photos: Sequence[int]) -> Tensor:
        """(len(photos), 3, H, W)."""
        chosen = self._pixels[torch.as_tensor(photos)].permute(0, 3, 1, 2)
        return (chosen.float() / 255 - self._mean) / self._std

    def photos(self) -> list[Image.Image]:
        """The pictures as they were."""
        return [Image.fromarray(pixels) for pixels in self._pixels.numpy()]


class Views:
    """Several versions of the same pictures (mirrored features, say): which one is drawn per look.

    A number i of the first len(views[0]) pictures with version v is asked for as ``i + v * len(views[0])``.

    Args:
        views: alike in length and shape.
    """

    def __init__(self, views: Sequence[Features]) -> None:
        self._views = list(views)

    def __len__(self) -> int:
        return sum(len(view) for view in self._views)

    def __getitem__(self, photos: Sequence[int]) -> Tensor:
        """Rows of the asked versions."""
        count = len(self._views[0])
        return torch.cat([self._views[photo // count][[photo % count]] for photo in photos])
