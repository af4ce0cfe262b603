"""Locks that go with the process that has them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minivl.errors import InputError
from minivl.train import locks
from minivl.train.locks import locked

pytest.importorskip("fcntl")

# has the lock until it is killed; a child may have it for longer, as worker processes do
HOLDER = """
import os, sys, time
from pathlib import Path
from minivl.train.locks import locked
with locked(Path(sys.argv[1])):
    if sys.argv[2:] and os.fork() == 0:
        print("held", flush=True)
        time.sleep(float(sys.argv[2]))
        os._exit(0)
    if not sys.argv[2:]:
        print("held", flush=True)
    time.sleep(60)
"""


def holder(path: Path, *more: str) -> subprocess.Popen[str]:
    child = subprocess.Popen([sys.executable, "-c", HOLDER, str(path), *more], stdout=subprocess.PIPE, text=True,
                             env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])})
    assert child.stdout is not None and child.stdout.readline() == "held\n"
    return child


def test_a_lock_dies_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    child = holder(path)
    assert path.read_text() == f"{child.pid}\n"
    with pytest.raises(InputError, match="taken") as raised, locked(path, "taken"):
        pytest.fail("two have it")
    assert raised.value.source == str(tmp_path)
    child.kill()
    child.communicate()
    assert path.exists()  # nobody took it away
    with locked(path, "taken"):
        assert path.read_text() == f"{os.getpid()}\n"
        with pytest.raises(InputError, match="taken"), locked(path, "taken"):
            pytest.fail("two have it")
    assert list(tmp_path.iterdir()) == []


def test_the_workers_of_a_killed_process_are_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    child = holder(path, "1.5")
    child.kill()
    child.wait()
    begun = time.monotonic()
    with locked(path, "taken"):
        assert time.monotonic() - begun > 0.3
    child.communicate()


def test_a_lock_that_was_taken_away_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever had it removed it between our opening it and our locking it, and another has made a new one."""
    path, lock, calls = tmp_path / "lock", locks._lock, []

    def late(opened: object, *told: object) -> bool:
        calls.append(opened)
        if len(calls) == 1:
            path.unlink()
            path.write_text("")
        return lock(opened, *told)  # type: ignore[arg-type]

    monkeypatch.setattr(locks, "_lock", late)
    with locked(path, "taken"):
        assert len(calls) == 2
        with pytest.raises(InputError, match="taken"), locked(path, "taken"):
            pytest.fail("two have it")


def test_folders_closed_to_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a lock is there it is respected; where none is, none is needed."""
    def closed(path: Path, mode: str = "r", **told: str) -> object:
        if mode != "r":
            raise PermissionError(13, "Permission denied", str(path))
        return open(path, mode, encoding="utf-8")

    monkeypatch.setattr(locks, "open", closed, raising=False)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with locked(tmp_path / "none", "taken"):
        assert list(tmp_path.iterdir()) == []
    (tmp_path / "lock").write_text("")
    with locked(tmp_path / "lock", "taken"), pytest.raises(InputError, match="taken"):
        with locked(tmp_path / "lock", "taken"):
            pytest.fail("two have it")
    assert (tmp_path / "lock").exists()
    monkeypatch.setattr("os.access", lambda path, mode: True)
    with pytest.raises(PermissionError), locked(tmp_path / "lock", "taken"):
        pytest.fail("it was opened")
