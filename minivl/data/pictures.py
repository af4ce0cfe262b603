"""Photos that are captioned, by number: files of a folder or members of tar shards, opened when they are asked for."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np

from ..errors import InputError, some
from ..files import sha256
from ..images import Photo
from .captions import CaptionSet, read_captions
from .shards import Progress, ShardSet
from .sources import PACKED
from .strings import Strings, Told


class Files(Sequence[Path]):
    """Files of a folder.

    Args:
        folder: of them.
        names: of each, from the folder.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self._folder, self._names = folder, names

    def __len__(self) -> int:
        return len(self._names)

    @overload
    def __getitem__(self, place: int) -> Path: ...

    @overload
    def __getitem__(self, place: slice) -> Files: ...

    def __getitem__(self, place: int | slice) -> Path | Files:
        if isinstance(place, slice):
            return Files(self._folder, self._names[place])
        return self._folder / self._names[place]

    def digest(self, place: int) -> str:
        """SHA-256 of a file's bytes."""
        return sha256(self[place])


class Members(Sequence[Photo]):
    """Photos of shards, or some of them.

    Args:
        shards: where they are.
        places: which; int64. None: all.
    """

    def __init__(self, shards: ShardSet, places: np.ndarray | None = None) -> None:
        self._shards, self._places = shards, places

    def __len__(self) -> int:
        return len(self._shards) if self._places is None else len(self._places)

    @overload
    def __getitem__(self, place: int) -> Photo: ...

    @overload
    def __getitem__(self, place: slice) -> Members: ...

    def __getitem__(self, place: int | slice) -> Photo | Members:
        if isinstance(place, slice):
            chosen = np.arange(*place.indices(len(self)))
            return Members(self._shards, chosen if self._places is None else self._places[chosen])
        return self._shards.image(self._at(place))

    def _at(self, place: int) -> int:
        place = range(len(self))[place]
        return place if self._places is None else int(self._places[place])

    def digest(self, place: int) -> str:
        """SHA-256 of a photo's bytes: the same as if it lay in a file."""
        return hashlib.sha256(self._shards.read(self._at(place))).hexdigest()


class Captioned(NamedTuple):
    """Photos and their captions, in the same order.

    Attributes:
        photos: opened when they are asked for.
        names: of each; all differ.
        captions: of each, at least one.
    """

    photos: Files | Members
    names: Sequence[str]
    captions: Sequence[tuple[str, ...]]


def open_captioned(images: Path, captions: Path | None, split: str | None = None, *, cache: Path,
                   progress: Progress | None = None) -> Captioned:
    """Photos with the captions that lie with them, or those of a file by name.

    Args:
        images: a folder of photos or of .tar shards, a shard or a pattern of them (see `ShardSet`).
        captions: a caption file (see `read_captions`): its photos are taken, in its order. In shards they are named as
            the member is or, where several shards have such a member, with the shard before it. None: all photos,
            each with the captions beside it.
        split: of that file.
        cache: folder for the indexes of shards.
        progress: tqdm-like, for these.

    Raises:
        InputError: as `ShardSet` and `read_captions`; photos of the file that are not there, or in several shards.
    """
    if captions is None:
        shards = ShardSet(images, cache=cache, split=split, progress=progress)
        return Captioned(Members(shards), shards.names, shards.told)
    told = read_captions(captions, split=split)
    names, texts = Strings(told.images), Told(told.captions[name] for name in told.images)
    if not has_shards(images, told.images[0]):
        told.check_images(images)
        return Captioned(Files(images, names), names, texts)
    shards = ShardSet(images, cache=cache, texts="none", progress=progress)
    return Captioned(Members(shards, _places(shards, told, images)), names, texts)


def has_shards(images: Path, name: str = "") -> bool:
    """Whether it is meant to be shards; else a folder, be it there or not, in which such a photo is a file.

    Args:
        images: a folder, a shard or a pattern of them.
        name: of a photo, where one is known: in a folder that has it as a file shards are not looked for.
    """
    if images.is_dir():
        if name and (images / name).is_file():
            return False
        with os.scandir(images) as entries:
            return any(entry.name.lower().endswith(".tar") or PACKED.search(entry.name) for entry in entries)
    return bool(re.search(r"[*?\[{]|[.]tar$", str(images), re.IGNORECASE) or PACKED.search(str(images)))


def _places(shards: ShardSet, told: CaptionSet, images: Path) -> np.ndarray:
    """Where the photos of a caption file are: (len(told),) int64."""
    rows = {name: row for row, name in enumerate(told.images)}
    places = np.full(len(rows), -1, np.int64)
    for place in range(len(shards)):
        row = rows.get(shards.name(place), rows.get(shards.member(place)))
        if row is None:
            continue
        if places[row] >= 0:
            raise InputError(f"{told.images[row]} of {told.source} is both {shards.name(int(places[row]))} and "
                             f"{shards.name(place)}: name it so in the captions", source=images)
        places[row] = place
    missing = [told.images[row] for row in np.flatnonzero(places < 0)]
    if missing:
        raise InputError(f"{len(missing)} of the {len(told)} images of {told.source} are not there: {some(missing, 3)}",
                         source=images)
    return places
