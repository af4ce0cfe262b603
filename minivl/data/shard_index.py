"""Where the samples of a shard lie, in a file of its own: made once, read place by place, never held in memory.

A file is: records | where each begins (u64) | what it is about (JSON) | length of that (u64) | `MARK`. A record is
offset and size of the picture (u64 each), its name and its captions, with NUL between. Numbers are little-endian.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..files import atomic_path
from .samples import Found

MARK = b"minivl shards 1\n"
PLACE, PICTURE = struct.Struct("<Q"), struct.Struct("<QQ")
CHUNK = 1 << 20


@dataclass(frozen=True)
class About:
    """What an index tells of its shard.

    Attributes:
        source: the shard, and what was asked of it.
        stamp: of the shard when it was read; another one makes the index stale.
        samples: how many.
        captions: of all samples.
        records: bytes of all records.
        left_out: files of other kinds, by what they are.
        checksum: CRC-32 of records and places.
    """

    source: str
    stamp: list[Any]
    samples: int
    captions: int
    records: int
    left_out: dict[str, int]
    checksum: int


def write_index(path: Path, source: str, stamp: list[Any], samples: Iterable[Found], left_out: Counter[str]) -> About:
    """Write an index, atomically, sample by sample.

    Args:
        path: of the index.
        source, stamp: see `About`.
        samples: of the shard.
        left_out: read when they are all there.

    Raises:
        InputError: what `samples` raises; nothing is left behind.
    """
    count = captions = records = checksum = 0
    with atomic_path(path) as temporary, open(temporary, "wb") as opened, tempfile.TemporaryFile() as places:
        for found in samples:
            text = "\0".join((found.name, *found.captions)).encode("utf-8", "surrogateescape")
            record = PICTURE.pack(found.offset, found.size) + text
            places.write(PLACE.pack(records))
            opened.write(record)
            checksum = zlib.crc32(record, checksum)
            count, captions, records = count + 1, captions + len(found.captions), records + len(record)
        places.write(PLACE.pack(records))
        places.seek(0)
        while chunk := places.read(CHUNK):
            opened.write(chunk)
            checksum = zlib.crc32(chunk, checksum)
        about = About(source, stamp, count, captions, records, dict(left_out), checksum)
        tail = json.dumps(asdict(about)).encode()
        opened.write(tail + PLACE.pack(len(tail)) + MARK)
    return about


def fresh(path: Path, source: str, stamp: list[Any]) -> About | None:
    """What an index is about; None where there is none, or a stale or damaged one, or one of another version."""
    with contextlib.suppress(OSError, ValueError, TypeError, struct.error), open(path, "rb") as opened:
        end = opened.seek(0, os.SEEK_END) - PLACE.size - len(MARK)
        opened.seek(max(0, end))
        length, = PLACE.unpack(opened.read(PLACE.size))
        if opened.read() != MARK or length > end:
            return None
        opened.seek(end - length)
        about = About(**json.loads(opened.read(length)))
        body = about.records + PLACE.size * (about.samples + 1)
        if [about.source, about.stamp, body + length] != [source, stamp, end]:
            return None
        opened.seek(0)
        checksum = 0
        while chunk := opened.read(min(CHUNK, body)):
            checksum, body = zlib.crc32(chunk, checksum), body - len(chunk)
        return about if checksum == about.checksum else None
    return None


def lookup(read: Callable[[int, int], bytes], about: About, row: int) -> tuple[int, int, str]:
    """Offset and size of a picture, and its name and captions with NUL between.

    Args:
        read: brings so many bytes of the index from an offset: ``(offset, size)``.
        about: of the index.
        row: which sample.
    """
    places = read(about.records + PLACE.size * row, 2 * PLACE.size)
    begin, end = (place for place, in PLACE.iter_unpack(places))
    record = read(begin, end - begin)
    offset, size = PICTURE.unpack_from(record)
    return offset, size, record[PICTURE.size:].decode("utf-8", "surrogateescape")
