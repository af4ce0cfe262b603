"""One process at a time writes to a folder."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ..errors import InputError

ORPHANS = 10.0  # seconds in which worker processes see that theirs has gone; until then they keep its lock

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def locked(path: Path, refusal: str | None = None) -> Iterator[None]:
    """While it is entered, no other process enters it; the lock goes with the process, however that ends.

    Args:
        path: of the lock, which is made and taken away again. A folder that is closed to writing is locked only where
            one is there: nobody writes to it.
        refusal: what is wrong and the way out where another process has it; None: wait for that.

    Raises:
        InputError: another process has it, and there is a refusal.
    """
    opened, mine = _opened(path), False
    try:
        while opened is not None and _lock(opened, path, refusal) and not _is(opened, path):
            opened.close()  # whoever had it took it away, and another may have made one since
            opened = _opened(path)
        mine = opened is not None and opened.writable()
        if opened is not None and mine:
            opened.truncate(0)
            opened.write(f"{os.getpid()}\n")
            opened.flush()
        yield
    finally:
        if mine:
            with contextlib.suppress(OSError):  # Windows removes no open file
                path.unlink()
        if opened is not None:
            opened.close()


def _opened(path: Path) -> IO[str] | None:
    """The file of a lock; None where there is none and the folder is closed to writing."""
    try:
        return open(path, "a+", encoding="utf-8")
    except OSError:
        if os.access(path.parent, os.W_OK | os.X_OK):
            raise
        return open(path, encoding="utf-8") if path.exists() else None


def _is(opened: IO[str], path: Path) -> bool:
    """Whether this open file is still the one of that path."""
    with contextlib.suppress(OSError):
        return os.path.samestat(os.fstat(opened.fileno()), os.stat(path))
    return False


def _lock(opened: IO[str], path: Path, refusal: str | None) -> bool:
    """Take the lock; False where the system has none."""
    try:
        import fcntl
    except ImportError:  # Windows has none
        logger.warning("%s: this system locks no files: let one program at a time write to this folder", path.parent)
        return False
    patience = time.monotonic() + ORPHANS
    waiting = False
    while True:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | (0 if waiting else fcntl.LOCK_NB))
            return True
        except BlockingIOError:
            if refusal is None:
                logger.info("%s: another process is filling this folder, waiting for it", path.parent)
                waiting = True
            elif _lives(opened) or time.monotonic() > patience:
                raise InputError(refusal, source=path.parent) from None
            else:
                time.sleep(0.1)


def _lives(opened: IO[str]) -> bool:
    """Whether the process that wrote its number into a lock is there (or has not written it yet)."""
    opened.seek(0)
    try:
        os.kill(int(opened.read()), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except (ValueError, PermissionError):
        pass
    return True
