"""Tar shards in the WebDataset layout: which members are samples, and whether the shard is whole."""

from __future__ import annotations

import os
import tarfile
from array import array
from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from ..errors import InputError, some
from ..files import existing_file
from .handles import read_at
from .samples import PICTURES, TEXTS, Found, Part, grouped

BLOCK = 512  # bytes
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstandard"}


def tar_samples(path: Path, texts: str, left_out: Counter[str]) -> Iterator[Found]:
    """The samples of a tar shard, in its order; see `grouped`. Of a picture no more than the beginning is read.

    Args:
        path: an uncompressed tar.
        texts: as for `grouped`.
        left_out: counts members of other kinds.

    Raises:
        InputError: no tar, one that is compressed, cut short or damaged; what `grouped` raises; a key that is there
            twice. The shard is named, and the member.
    """
    with open(existing_file(path), "rb") as opened:
        def read(part: Part, size: int) -> bytes:
            return read_at(opened.fileno(), part.offset, min(size, part.size))

        keys = array("q")  # 8 bytes for each, where a set of names has a hundred
        for found in grouped(_parts(path, opened, left_out), read, path, texts, left_out, strict=True):
            keys.append(hash(found.key))
            yield found
        ordered = np.sort(np.frombuffer(keys, np.int64))
        alike = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
        if alike:
            count = Counter(key for key, _ in groupby(_parts(path, opened, Counter()), lambda part: part.key)
                            if hash(key) in alike)
            if twice := [key for key, times in count.items() if key and times > 1]:
                raise InputError(f"has samples of the same name in two places: {some(twice, 3)}", source=path)


def _parts(path: Path, opened: BinaryIO, left_out: Counter[str]) -> Iterator[Part]:
    """The regular members of a tar."""
    opened.seek(0)
    size, start = os.fstat(opened.fileno()).st_size, opened.read(8)
    for magic, kind in COMPRESSED.items():
        if start.startswith(magic):
            raise InputError(f"is compressed ({kind}): a picture in it cannot be reached without unpacking all before "
                             "it; unpack the shard to a plain .tar", source=path)
    opened.seek(0)
    try:
        tar = tarfile.open(fileobj=opened, mode="r:", encoding="utf-8")
    except Exception as error:  # damaged headers make tarfile raise more than its own errors
        raise InputError(f"is no tar that can be read ({error})", source=path) from None
    with tar:
        reached = 0
        while (member := _next(tar, path, reached, size)) is not None:
            cast(Any, tar).members.clear()  # it would keep them all
            reached, part = tar.offset, Part(member.name.removeprefix("./"), member.offset_data, member.size)
            if member.isreg():
                _check_member(member, part, path, size)
                yield part
            elif not member.isdir():
                if part.kind in (*PICTURES, *TEXTS):
                    raise InputError("is a link or a device: pack the file itself (tar --dereference)",
                                     source=f"{path}: {part.name}")
                left_out["links and devices"] += 1
        _check_end(path, opened, tar.offset)


def _next(tar: tarfile.TarFile, path: Path, reached: int, size: int) -> tarfile.TarInfo | None:
    try:
        member = tar.next()
    except Exception as error:  # as above
        raise InputError(f"is cut short: its last member ends at byte {tar.offset}, the file at {size}"
                         if tar.offset >= size else f"is damaged behind byte {reached} ({error})",
                         source=path) from None
    if member is not None and (tar.offset <= reached or member.size < 0):  # it would be read again for ever
        raise InputError(f"is damaged: the size of {member.name} cannot be", source=path)
    return member


def _check_member(member: tarfile.TarInfo, part: Part, path: Path, size: int) -> None:
    if part.offset + part.size > size:
        raise InputError(f"is cut short: {part.name} ends at byte {part.offset + part.size}, the file at {size}",
                         source=path)
    if member.sparse is not None:
        raise InputError("is stored with its holes left out: pack the shard without --sparse",
                         source=f"{path}: {part.name}")
    if "\0" in part.name:
        raise InputError(f"the name {part.name!r} cannot be", source=path)


def _check_end(path: Path, opened: BinaryIO, offset: int) -> None:
    """Two blocks of zeros end a tar. Without this look a shard cut between two members would pass for a whole one, and
    all behind a damaged header would be missing: tarfile ends there and says nothing."""
    opened.seek(offset)
    mark = opened.read(2 * BLOCK)
    if len(mark) < BLOCK:
        raise InputError(f"is cut short: it ends at byte {offset + len(mark)} without the mark that ends a tar",
                         source=path)
    if mark[:BLOCK].strip(b"\0"):
        raise InputError(f"is damaged: at byte {offset} there is neither a member nor the end of a tar", source=path)
    rest = mark[BLOCK:]
    while rest:
        if rest.strip(b"\0"):
            raise InputError(f"goes on behind its end at byte {offset}: are these several tars put together?",
                             source=path)
        rest = opened.read(1 << 20)
