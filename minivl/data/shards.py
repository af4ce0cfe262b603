"""Long sets of captioned pictures: tar shards and folders, read where they lie, in any order and by any process.

A set keeps nothing per picture in memory. Where each picture lies, and its captions, is in an index on disk (see
`shard_index`), made once for each shard and made again when the shard has changed.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar, overload

from PIL import Image

from ..errors import InputError, some
from ..files import existing_file
from ..images import Photo
from .handles import OpenFiles
from .shard_index import About, fresh, lookup, write_index
from .sources import Paths, Source, find_sources

Progress = Callable[..., Iterable[Any]]
T = TypeVar("T")

log = logging.getLogger(__name__)


class Sample(NamedTuple):
    """A picture and its captions.

    Attributes:
        name: unique in the set.
        image: a PIL image not yet decoded, or the file.
        captions: at least one, but for texts="none".
    """

    name: str
    image: Photo
    captions: tuple[str, ...]


class ShardSet(Sequence[Sample]):
    """Captioned pictures of tar shards or folders, by number.

    Shards are in the order given (those of a folder or a glob sorted by name), samples in the order of the shard.
    Workers and other processes get a copy that opens the files itself.

    Args:
        sources: one or several of: a .tar, a pattern with braces (``train-{000..012}.tar``, ``{a,b}.tar``) or wildcards
            (``train-*.tar``), a folder of .tar files, a folder of pictures with their captions beside them. In the
            WebDataset layout: what belongs to a sample lies side by side and shares its name up to the first dot of
            the last piece; one picture, and its captions as `grouped` reads them.
        cache: folder for the indexes.
        captions: for one folder of pictures: the captions are in this file (see `read_captions`), not beside them.
        split: of that file.
        texts: "json" or "txt" where a sample has both and only one is to be read; "auto" takes what is there; "none"
            leaves all out, and samples have no captions.
        progress: tqdm-like: called with (iterable, total=, desc=) while shards are indexed.

    Attributes:
        left_out: files that are not used, by what they are: other kinds, hidden ones, texts without a picture in a
            folder (in a shard they are an error).
        caption_count: captions of all pictures.

    Raises:
        InputError: nothing there, or twice; a shard that is cut short, damaged, compressed or no tar; a member that is
            no picture, a sample without picture or captions, a key that is there twice. All this is found before
            the first picture is read; whether pictures can be decoded to their end is not.
    """

    def __init__(self, sources: Paths, *, cache: str | os.PathLike[str], captions: str | os.PathLike[str] | None = None,
                 split: str | None = None, texts: str = "auto", progress: Progress | None = None) -> None:
        found = find_sources(sources, captions, split, texts)
        named: Iterable[Source] = found
        if progress is not None:
            named = progress(found, total=len(found), desc="indexing shards")
        self._shards = [_indexed(source, Path(cache)) for source in named]
        self._starts = list(itertools.accumulate((shard.about.samples for shard in self._shards), initial=0))
        self._files = OpenFiles()
        self.caption_count = sum(shard.about.captions for shard in self._shards)
        self.left_out: Counter[str] = Counter()
        for shard in self._shards:
            self.left_out.update(shard.about.left_out)
        if self.left_out:
            log.warning("%s: left out: %s", found[0].path if len(found) == 1 else f"{len(found)} shards",
                        some(f"{count} {kind}" for kind, count in self.left_out.most_common()))

    def __len__(self) -> int:
        """The number of pictures."""
        return self._starts[-1]

    @overload
    def __getitem__(self, place: int) -> Sample: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[Sample]: ...

    def __getitem__(self, place: int | slice) -> Sample | Sequence[Sample]:
        """A sample, or samples that are read when they are asked for."""
        if isinstance(place, slice):
            return _Column(self.__getitem__, range(len(self)))[place]
        found = self._found(place)
        return Sample(found.shard.source.label + found.name, self._photo(found), found.captions)

    def name(self, place: int) -> str:
        """The name of a picture: its shard (without .tar; of one folder alone, nothing), and its own in it."""
        found = self._found(place)
        return found.shard.source.label + found.name

    def member(self, place: int) -> str:
        """The name of a picture within its shard or folder."""
        return self._found(place).name

    def captions(self, place: int) -> tuple[str, ...]:
        """The captions of a picture."""
        return self._found(place).captions

    def image(self, place: int) -> Photo:
        """A picture as `open_photo` takes it: a PIL image that is not decoded yet, or the file in a folder.

        Raises:
            InputError: the shard has changed or cannot be read, or this is no image; shard and member are named.
        """
        return self._photo(self._found(place))

    def read(self, place: int) -> bytes:
        """The bytes of a picture, as they were stored.

        Raises:
            InputError: the shard has changed or cannot be read.
        """
        found = self._found(place)
        source = found.shard.source
        return self._bytes(found) if source.is_tar else existing_file(source.path / found.name).read_bytes()

    @property
    def names(self) -> Sequence[str]:
        """`name` of each picture, read when it is asked for."""
        return _Column(self.name, range(len(self)))

    @property
    def images(self) -> Sequence[Photo]:
        """`image` of each picture, read when it is asked for."""
        return _Column(self.image, range(len(self)))

    @property
    def told(self) -> Sequence[tuple[str, ...]]:
        """`captions` of each picture, read when they are asked for."""
        return _Column(self.captions, range(len(self)))

    def _found(self, place: int) -> _Place:
        place = range(len(self))[place]  # from the end where it is negative; an IndexError beyond
        number = bisect_right(self._starts, place) - 1
        shard = self._shards[number]
        offset, size, text = lookup(lambda begin, count: self._files.read(shard.file, begin, count, shard.stamp),
                                    shard.about, place - self._starts[number])
        name, *captions = text.split("\0")
        return _Place(shard, offset, size, name, tuple(captions))

    def _bytes(self, found: _Place) -> bytes:
        return self._files.read(found.shard.source.path, found.offset, found.size, found.shard.about.stamp)

    def _photo(self, found: _Place) -> Photo:
        source = found.shard.source
        if not source.is_tar:
            return source.path / found.name
        where = f"{source.path}: {found.name}"
        try:
            image = Image.open(BytesIO(self._bytes(found)))
        except InputError:
            raise
        except Image.UnidentifiedImageError:
            raise InputError("is not an image (or of a format that Pillow does not read)", source=where) from None
        except Exception as error:  # broken files make Pillow raise nearly every type there is
            raise InputError(f"cannot be opened as an image ({error})", source=where) from error
        image.filename = where  # what `open_photo` calls it in an error
        return image


class _Shard(NamedTuple):
    """A source and its index.

    Attributes:
        source: the shard.
        file: the index.
        stamp: [bytes] of that file.
        about: what it tells.
    """

    source: Source
    file: Path
    stamp: list[int]
    about: About


class _Place(NamedTuple):
    """Where a picture lies, and its captions."""

    shard: _Shard
    offset: int
    size: int
    name: str
    captions: tuple[str, ...]


def _indexed(source: Source, cache: Path) -> _Shard:
    """A source with its index, which is made where there is none that fits."""
    if not source.is_tar and cache.resolve().is_relative_to(source.path.resolve()):
        raise InputError(f"lies in {source.path}, whose files it would be one of: choose another cache", source=cache)
    stamp = source.stamp()
    path = cache / f"{source.path.name}-{hashlib.sha256(source.key.encode()).hexdigest()[:16]}.index"
    about = fresh(path, source.key, stamp)
    if about is None:
        left_out: Counter[str] = Counter()
        about = write_index(path, source.key, stamp, source.samples(left_out), left_out)
        if source.stamp() != stamp:
            path.unlink(missing_ok=True)
            raise InputError("has changed while it was read: start again when it is complete", source=source.path)
    if not about.samples:
        held = some((f"{count} {kind}" for kind, count in about.left_out.items()), 4)
        raise InputError("holds no pictures with captions" + (f", only {held}" if held else ""), source=source.path)
    return _Shard(source, path, [path.stat().st_size], about)


class _Column(Sequence[T], Generic[T]):
    """One thing of each sample, made when it is asked for."""

    def __init__(self, get: Callable[[int], T], places: range) -> None:
        self._get, self._places = get, places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, place: int) -> T: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[T]: ...

    def __getitem__(self, place: int | slice) -> T | Sequence[T]:
        if isinstance(place, slice):
            return _Column(self._get, self._places[place])
        return self._get(self._places[place])
