"""Samples of a picture and its captions, made of files side by side: what tar shards and folders have in common."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from ..errors import InputError, kind_of, some
from ..files import parse_json
from .captions import read_captions
from .labels import SUFFIXES

PICTURES = tuple(suffix[1:] for suffix in SUFFIXES)
TEXTS = ("json", "txt")
LONGEST_TEXT = 1 << 24  # bytes
MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  ",
         b"\xff\x4f\xff\x51", *(b"P%d" % number for number in range(1, 7)))
LONGEST_MAGIC = 12


class Found(NamedTuple):
    """A picture with its captions, and where it lies.

    Attributes:
        key: its name up to the first dot of the last piece; shared by all that belongs to it.
        name: of its member or file, as the tar or the folder has it.
        offset: of its bytes in the tar; 0 for a file.
        size: of them.
        captions: its captions; at least one, where any are read.
    """

    key: str
    name: str
    offset: int
    size: int
    captions: tuple[str, ...]


class Part(NamedTuple):
    """A member of a tar, or a file of a folder.

    Attributes:
        name: with "/" between folders.
        offset: of its bytes in the tar; 0 for a file.
        size: of them.
    """

    name: str
    offset: int
    size: int

    @property
    def key(self) -> str:
        """Its name up to the first dot of the last piece; "" for what is hidden or has no ending."""
        folder, slash, last = self.name.rpartition("/")
        stem, dot, _ = last.partition(".")
        return f"{folder}{slash}{stem}" if stem and dot else ""

    @property
    def kind(self) -> str:
        """What follows that dot: "jpg", "seg.png"."""
        return self.name.rpartition("/")[2].partition(".")[2].lower()


Read = Callable[[Part, int], bytes]  # so many bytes from the beginning of a part, or all where it has fewer


def grouped(parts: Iterable[Part], read: Read, source: Path, texts: str, left_out: Counter[str], *,
            strict: bool) -> Iterator[Found]:
    """Neighbours that share their key, as a sample: one picture, and its captions in a .json or .txt.

    A .json holds captions as ``{"caption": "..."}``, ``{"captions": ["...", ...]}`` or a list alone; a .txt one
    caption a line. Where there are both, they must agree, or the .json have none.

    Args:
        parts: those of a key side by side.
        read: brings their bytes.
        source: the tar or folder, for errors.
        texts: "auto", or "json" or "txt" where one of them is to be read and not the other; "none": no captions.
        left_out: counts parts of other kinds, by their endings.
        strict: a text without a picture is an error, not left out.

    Raises:
        InputError: a sample without picture or captions or with two pictures, a picture that is none, captions that
            cannot be read.
    """
    for key, group in groupby(parts, lambda part: part.key):
        kinds: dict[str, Part] = {}
        for part in group:
            if not key or part.kind not in (*PICTURES, *TEXTS):
                left_out[f".{part.kind}" if key else "hidden or without an ending"] += 1
            elif part.kind in kinds:
                raise InputError(f"has {kinds[part.kind].name} and {part.name}: a sample has one of each kind",
                                 source=source)
            else:
                kinds[part.kind] = part
        pictures = [part for kind, part in kinds.items() if kind in PICTURES]
        if len(pictures) > 1:
            raise InputError(f"has {some((part.name for part in pictures), 4)}: a sample has one picture, and its name "
                             "ends at the first dot", source=source)
        if not pictures and kinds and strict:
            raise InputError("has no picture beside it: what belongs to a sample lies side by side and shares its name "
                             "up to the first dot", source=f"{source}: {next(iter(kinds.values())).name}")
        if pictures:
            check_picture(pictures[0], read, source)
            told = _captions(pictures[0], kinds, read, source, texts)
            yield Found(key, *pictures[0], told)
        elif kinds:
            left_out["texts without a picture"] += len(kinds)


def check_picture(part: Part, read: Read, source: Path) -> None:
    """Raise InputError where the first bytes are of no picture; whether the rest can be decoded is not looked at."""
    start = read(part, LONGEST_MAGIC)
    if start.startswith(MAGIC) or start[:4] + start[8:12] == b"RIFFWEBP":
        return
    try:
        with Image.open(BytesIO(read(part, part.size))):  # of another format that Pillow knows
            pass
    except Exception:
        raise InputError("is empty" if not part.size else "is not an image (or of a format that Pillow does not read)",
                         source=f"{source}: {part.name}") from None


# -- captions ------------------------------------------------------------------------------------------------

def _captions(picture: Part, kinds: dict[str, Part], read: Read, source: Path, texts: str) -> tuple[str, ...]:
    """Of a sample's .json and .txt."""
    if texts == "none":
        return ()
    there = {kind: kinds[kind] for kind in TEXTS if kind in kinds and texts in ("auto", kind)}
    told = {kind: _told(kind, part, read, f"{source}: {part.name}") for kind, part in there.items()}
    json, txt = told.get("json", []), told.get("txt", [])
    if json and txt and json != txt:
        plain = {" ".join(caption.split()) for caption in json}
        if not plain >= {" ".join(caption.split()) for caption in txt} and " ".join(" ".join(txt).split()) not in plain:
            raise InputError(f"says otherwise than {there['json'].name}: which of them is to be read must be told "
                             "(texts='txt' or 'json')", source=f"{source}: {there['txt'].name}")
    if not json and not txt:
        wanted = " or ".join(f".{kind}" for kind in TEXTS if texts in ("auto", kind))
        raise InputError(f"has no captions: {some(part.name for part in there.values())} has no 'caption' or "
                         "'captions'" if there else f"has no captions: no {wanted} lies beside it",
                         source=f"{source}: {picture.name}")
    return tuple(json or txt)


def _told(kind: str, part: Part, read: Read, source: str) -> list[str]:
    """The captions of a .json or .txt; a .json may have none."""
    if part.size > LONGEST_TEXT:
        raise InputError(f"has {part.size} bytes, captions have at most {LONGEST_TEXT}", source=source)
    try:
        text = read(part, part.size).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"is not UTF-8 text ({error.reason} at byte {error.start})", source=source) from None
    if kind == "json":
        captions = _of_json(parse_json(text, source), source)
    else:  # not splitlines: a caption may contain U+2028 and the like
        captions = [line.strip() for line in text.split("\n") if line.strip()]
        if not captions:
            raise InputError("is empty, a caption a line is needed", source=source)
    for caption in captions:
        if not isinstance(caption, str):
            raise InputError(f"has {kind_of(caption)} for a caption, a string is needed", source=source)
        if not caption.strip():
            raise InputError("has an empty caption", source=source)
        if wrong := next((letter for letter in caption if letter == "\0" or "\ud800" <= letter <= "\udfff"), ""):
            raise InputError(f"has {wrong!a} in a caption, which is no character: {ascii(caption[:60])}", source=source)
    return captions


def _of_json(value: Any, source: str) -> list[Any]:
    if isinstance(value, dict):
        there = [key for key in ("caption", "captions") if value.get(key) is not None]
        if len(there) > 1:
            raise InputError("has both 'caption' and 'captions': one of them must go", source=source)
        value = value[there[0]] if there else []
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise InputError(f"holds {kind_of(value)}, a caption or a list of captions is needed, or an object with "
                         "'caption' or 'captions'", source=source)
    return value


# -- folders and caption files -------------------------------------------------------------------------------

def folder_samples(root: Path, texts: str, left_out: Counter[str]) -> Iterator[Found]:
    """The samples of a folder and of those in it, at any depth, sorted.

    Args:
        root: the folder.
        texts: as for `grouped`.
        left_out: counts files of other kinds, and texts without a picture.

    Raises:
        InputError: as `grouped`.
    """
    parts = (Part(name, 0, size) for name, size, _ in walk(root))
    yield from grouped(parts, _reader(root), root, texts, left_out, strict=False)


def listed_samples(root: Path, captions: Path, split: str | None) -> Iterator[Found]:
    """The pictures of a folder that a caption file names, in its order.

    Raises:
        InputError: as `read_captions`; a picture that is missing or none.
    """
    told = read_captions(captions, split=split)
    told.check_images(root)
    read = _reader(root)
    for name in told.images:
        part = Part(name, 0, (root / name).stat().st_size)
        check_picture(part, read, root)
        for caption in told.captions[name]:
            if "\0" in caption:
                raise InputError(f"has '\\x00' in a caption of {name}, which is no character", source=captions)
        yield Found(name, *part, told.captions[name])


def _reader(root: Path) -> Read:
    def read(part: Part, size: int) -> bytes:
        with open(root / part.name, "rb") as opened:
            return opened.read(size)
    return read


def walk(root: Path) -> Iterator[tuple[str, int, int]]:
    """(name, size, time of the last change in ns) of the files below a folder.

    Names are from the folder, with "/"; files of a folder are sorted and come before those of the folders in it.
    Folders that are hidden are left out, links are followed.

    Raises:
        InputError: a link that leads nowhere, or to a folder that it lies in.
    """
    todo: list[tuple[str, tuple[str, ...]]] = [("", (os.path.realpath(root),))]
    while todo:
        folder, above = todo.pop()
        with os.scandir(root / folder) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
        inner = []
        for entry in listed:
            if not entry.is_dir():
                try:
                    about = entry.stat()
                except OSError as error:
                    raise InputError(f"cannot be read ({error.strerror})", source=entry.path) from None
                yield folder + entry.name, about.st_size, about.st_mtime_ns
            elif not entry.name.startswith("."):
                real = os.path.realpath(entry.path)
                if real in above:
                    raise InputError("is a link to a folder that it lies in", source=entry.path)
                inner.append((f"{folder}{entry.name}/", (*above, real)))
        todo.extend(reversed(inner))
