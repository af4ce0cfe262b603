"""Files kept open to be read in any order, as many as a process may well have."""

from __future__ import annotations

import contextlib
import os
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

from ..errors import InputError

OPEN = 64


def read_at(handle: int, offset: int, size: int) -> bytes:
    """So many bytes of an open file from an offset; fewer where it ends.

    Processes that have the handle in common do not get in each other's way (where the system knows how).
    """
    pieces = []
    while size > 0:
        if hasattr(os, "pread"):
            piece = os.pread(handle, size, offset)
        else:
            os.lseek(handle, offset, os.SEEK_SET)
            piece = os.read(handle, size)
        if not piece:
            break
        pieces.append(piece)
        offset, size = offset + len(piece), size - len(piece)
    return b"".join(pieces)


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Within the block, an OSError is an InputError of this file, or of the one it names."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror or error})", source=error.filename or path) from None


def stamp_of(about: os.stat_result) -> list[int]:
    """[size, time of the last change in ns], by which a file that was changed is known."""
    return [about.st_size, about.st_mtime_ns]


class OpenFiles:
    """The files that were read last, open; a copy in another process opens its own.

    Args:
        limit: how many.
    """

    def __init__(self, limit: int = OPEN) -> None:
        self._limit = limit
        self._open: OrderedDict[Path, int] = OrderedDict()
        weakref.finalize(self, _close, self._open)

    def __reduce__(self) -> tuple[type[OpenFiles], tuple[int]]:
        return type(self), (self._limit,)

    def read(self, path: Path, offset: int, size: int, stamp: list[int]) -> bytes:
        """So many bytes of a file from an offset.

        Args:
            path: the file.
            offset, size: which.
            stamp: what the file must be like when it is opened, see `stamp_of`; its size alone where another
                process may write the same anew.

        Raises:
            InputError: it cannot be opened or read, ends before, or is another than it was.
        """
        with readable(path):
            handle = self._open.get(path)
            if handle is None:
                handle = self._opened(path, stamp)
            self._open.move_to_end(path)
            data = read_at(handle, offset, size)
        if len(data) < size:
            raise InputError(f"is cut short: {size} bytes from {offset} on are needed, {len(data)} are there",
                             source=path)
        return data

    def _opened(self, path: Path, stamp: list[int]) -> int:
        if len(self._open) >= self._limit:
            os.close(self._open.popitem(last=False)[1])
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0))
        self._open[path] = handle
        if stamp_of(os.fstat(handle))[:len(stamp)] != stamp:
            os.close(self._open.pop(path))
            raise InputError("has changed since it was indexed: start again", source=path)
        return handle


def _close(handles: OrderedDict[Path, int]) -> None:
    while handles:
        os.close(handles.popitem()[1])
