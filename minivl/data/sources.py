"""Which tar shards and folders are meant by a pattern, and what each of them is."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError, some
from ..files import existing_file
from .handles import readable, stamp_of
from .samples import PICTURES, TEXTS, Found, folder_samples, listed_samples, walk
from .tars import tar_samples

PACKED = re.compile(r"\.(tar\.\w+|t[bgx]z2?)$", re.IGNORECASE)
MOST = 1_000_000  # shards that braces stand for

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


@dataclass(frozen=True)
class Source:
    """A tar shard, or a folder of pictures.

    Attributes:
        path: it.
        label: put before the names of its samples.
        is_tar: which of the two it is.
        captions: file that holds the captions of a folder; None = they lie beside the pictures.
        split: of that file.
        texts: see `grouped`.
    """

    path: Path
    label: str
    is_tar: bool
    captions: Path | None = None
    split: str | None = None
    texts: str = "auto"

    @property
    def key(self) -> str:
        """What decides the samples beside the bytes on the disk, as text."""
        captions = None if self.captions is None else os.path.abspath(self.captions)
        return json.dumps([os.path.abspath(self.path), captions, self.split, self.texts])

    def stamp(self) -> list[Any]:
        """Of the bytes: a changed size or time of any file changes it."""
        with readable(self.path):
            if self.is_tar:
                return stamp_of(existing_file(self.path).stat())
            total = count = 0
            for file in walk(self.path):  # a sum: no matter in what order they come
                total += int.from_bytes(hashlib.blake2b(repr(file).encode(), digest_size=8).digest(), "little")
                count += 1
            captions = [] if self.captions is None else stamp_of(existing_file(self.captions).stat())
            return [count, f"{total % 2 ** 64:016x}", *captions]

    def samples(self, left_out: Counter[str]) -> Iterator[Found]:
        """What is in it.

        Args:
            left_out: counts files that are not used, by what they are.

        Raises:
            InputError: what is wrong with it; see `tar_samples`, `folder_samples` and `listed_samples`.
        """
        with readable(self.path):
            if self.is_tar:
                yield from tar_samples(self.path, self.texts, left_out)
            elif self.captions is None:
                yield from folder_samples(self.path, self.texts, left_out)
            else:
                yield from listed_samples(self.path, self.captions, self.split)


def find_sources(sources: Paths, captions: str | os.PathLike[str] | None = None, split: str | None = None,
                 texts: str = "auto") -> list[Source]:
    """The tar shards and folders that paths and patterns stand for; arguments as of `ShardSet`.

    Raises:
        InputError: nothing there, or twice; compressed shards; options that do not fit what is there.
    """
    given = [sources] if isinstance(sources, (str, os.PathLike)) else list(sources)
    paths = [Path(path) for one in given for path in _expanded(os.fspath(one))]
    if not paths:
        raise InputError("no shards: give a .tar, a pattern of them, or a folder")
    if texts not in ("auto", *TEXTS, "none"):
        raise InputError(f"texts={texts!r}: give one of 'auto', {some(map(repr, TEXTS))}, 'none'")
    folders = [path.is_dir() for path in paths]
    if captions is None and split is not None:
        raise InputError(f"split={split!r}: captions that lie beside their pictures have no splits")
    if captions is not None and (folders != [True] or texts != "auto"):
        raise InputError("captions of a file are for the pictures of one folder, and are the only ones",
                         source=captions)
    real = Counter(os.path.realpath(path) for path in paths)
    if twice := [path for path, count in real.items() if count > 1]:
        raise InputError(f"shards are given twice: {some(twice, 3)}")
    # one base for all, so that names are unique and tell where a sample is
    base = os.path.commonpath([os.path.abspath(path if folder else path.parent)
                               for path, folder in zip(paths, folders)])
    labels = [os.path.relpath(os.path.abspath(path), base).replace(os.sep, "/") for path in paths]
    labels = ["" if label == "." else f"{label if folder else re.sub('[.]tar$', '', label)}/"
              for label, folder in zip(labels, folders)]
    if twice := [label for label, count in Counter(labels).items() if count > 1]:
        raise InputError(f"shards whose samples would have the same names: {some(twice, 3)}")
    return [Source(path, label, not folder, None if captions is None else Path(captions), split, texts)
            for path, label, folder in zip(paths, labels, folders)]


def _expanded(pattern: str) -> list[str]:
    """Existing paths that a pattern stands for; of a folder with shards, those."""
    if os.path.exists(pattern):
        return _of_folder(pattern) if os.path.isdir(pattern) else [_plain(pattern)]
    if re.match(r"\w+://|pipe:", pattern):
        raise InputError("is no path: shards are read from files of this machine", source=pattern)
    names = _braced(pattern)
    missing = [name for name in names if not glob.has_magic(name) and not os.path.exists(name)]
    if missing:
        raise InputError("no such shard or folder" if names == [pattern] else
                         f"{len(missing)} of its {len(names)} shards are not there: {some(missing, 3)}", source=pattern)
    found = []
    for name in names:
        there = [name] if os.path.exists(name) else sorted(glob.glob(name, recursive=True))
        if not there:
            raise InputError("nothing is there by this pattern", source=name)
        found += [inner for one in there for inner in (_of_folder(one) if os.path.isdir(one) else [_plain(one)])]
    return found


def _braced(pattern: str) -> list[str]:
    """``a-{08..11}.{x,y}`` -> all it stands for, in order."""
    brace = re.search(r"\{([^{}]*)\}", pattern)
    if brace is None:
        return [pattern]
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", brace[1])
    if numbers is None and "," not in brace[1]:
        raise InputError(f"braces hold a range or a list, as in {{000..012}} and {{a,b}}: {brace[0]}", source=pattern)
    if numbers is None:
        inner = brace[1].split(",")
    else:
        first, last = int(numbers[1]), int(numbers[2])
        if not 0 <= last - first < MOST:
            raise InputError(f"{brace[0]} is no range from a lower to a higher number, of at most {MOST}",
                             source=pattern)
        padded = any(len(number) > 1 and number[0] == "0" for number in numbers.groups())
        width = max(map(len, numbers.groups())) if padded else 1
        inner = [f"{number:0{width}}" for number in range(first, last + 1)]
    return [name for one in inner for name in _braced(pattern[:brace.start()] + one + pattern[brace.end():])]


def _of_folder(folder: str) -> list[str]:
    """The shards of a folder, sorted; where there are none, the folder itself."""
    with os.scandir(folder) as entries:
        files = sorted(entry.name for entry in entries if not entry.name.startswith(".") and not entry.is_dir())
    shards = [name for name in files if name.lower().endswith(".tar")]
    for name in files:
        if PACKED.search(name):
            _plain(os.path.join(folder, name))
        if shards and name.lower().endswith(tuple(f".{kind}" for kind in PICTURES)):
            raise InputError(f"holds pictures ({name}) beside shards ({shards[0]}): one of the two must go",
                             source=folder)
    return [os.path.join(folder, name) for name in shards] or [folder]


def _plain(path: str) -> str:
    if PACKED.search(path):
        raise InputError("is compressed: a picture in it cannot be reached without unpacking all before it; unpack the "
                         "shard to a plain .tar", source=path)
    return path
