"""The folder of a training run: what is in it, when it may be begun or continued, and its history."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError, some
from ..files import read_header, read_json, undamaged, write_json, write_text
from .checkpoint import whole_number
from .locks import locked

HISTORY, CHECKPOINT, CONFIG = "history.jsonl", "checkpoint.safetensors", "config.json"
BEST, LAST, SKIPPED = "best.safetensors", "last.safetensors", "skipped.txt"
LOCK = ".lock"
FOUND = ("look",)  # keys of config.json that training found out: no settings, which a resumed run must repeat

FRESH: dict[str, Any] = {"step": 0, "epoch": 0, "sum": 0.0, "best": None, "seconds": 0.0}  # progress of a new run

logger = logging.getLogger(__name__)


class Run:
    """The folder of a training run.

    Args:
        folder: made when the run opens.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._held = contextlib.ExitStack()  # the lock

    def check(self, resume: bool, settings: Mapping[str, Any] | None = None) -> None:
        """Ask before long work whether the run can be begun or continued.

        Args:
            resume: continue one that is there, and begin none where one is. A run that never came to a step is none.
            settings: those that are known so far, to be held against those of the run that is continued.

        Raises:
            InputError: a run is there and none is to be resumed, or none where one is; no folder can be made or
                written; another process is training here; other settings; a run has finished epochs, but lost its
                checkpoint.
        """
        with contextlib.suppress(OSError):  # such as a name too long, which making it reports
            nearest = next((path for path in (self.folder, *self.folder.parents) if path.exists()), None)
            if nearest is not None and not nearest.is_dir():
                raise InputError("is a file, a run needs a folder: give another --out", source=nearest)
        self._try_folder()
        if self.folder.is_dir():
            with self._locked():
                pass
        self._allow(resume)
        if resume and settings is not None:
            self._compare_config(settings, part=True)

    def _locked(self) -> contextlib.AbstractContextManager[None]:
        return locked(self.folder / LOCK, "another process is training here: wait for its end, or give another --out")

    def _allow(self, resume: bool) -> None:
        """Raise InputError unless a run is there just if one is to be resumed."""
        there = (self.folder / CHECKPOINT).exists() or (self.folder / HISTORY).exists()
        if resume and not (self.folder / CHECKPOINT).exists() and self._finished_an_epoch():
            raise InputError(f"its checkpoint is missing: there is a finished epoch but no {CHECKPOINT}, so that it "
                             "cannot be continued, and starting over would overwrite it; give another --out",
                             source=self.folder)
        if resume and not there:
            raise InputError("nothing to resume: no checkpoint here", source=self.folder)
        if there and not resume and self._made_a_step():
            raise InputError("already holds a run: give --resume to continue it, or another --out",
                             source=self.folder)

    def _made_a_step(self) -> bool:
        return any((self.folder / name).exists() for name in (CHECKPOINT, BEST, LAST)) or bool(
            (self.folder / HISTORY).read_bytes().strip())

    def _try_folder(self) -> None:
        """Make the folder and a file in it, and take away again what was made."""
        made: list[Path] = []
        try:
            made = [path for path in (self.folder, *self.folder.parents) if not path.exists()]  # deepest first
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            raise InputError(f"no run can be written here ({error.strerror}): give another --out",
                             source=self.folder) from None
        finally:
            for path in made:
                with contextlib.suppress(OSError):
                    path.rmdir()

    def _finished_an_epoch(self) -> bool:
        return any((self.folder / name).exists() for name in (BEST, LAST)) or (
            (self.folder / HISTORY).exists() and any("epoch" in row for row in read_history(self.folder)))

    def open(self, settings: Mapping[str, Any], resume: bool,
             restore: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
        """Begin or continue; returns the progress so far. Other processes are kept out until `close`. See `fit` for
        what raises."""
        self.check(resume)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._held.enter_context(self._locked())
        self._allow(resume)  # again: another process may have trained here meanwhile
        if resume:
            self._compare_config(settings)
        if resume or (self.folder / CONFIG).exists():
            self._clear()
        if not resume or not (self.folder / CHECKPOINT).exists():  # killed before the first checkpoint
            (self.folder / SKIPPED).unlink(missing_ok=True)
            write_json(self.folder / CONFIG, dict(settings))
            write_text(self.folder / HISTORY, "")
            return dict(FRESH)
        state = self._restored(restore, settings)
        if not (self.folder / CONFIG).exists():
            write_json(self.folder / CONFIG, dict(settings))
        kept = [row for row in read_history(self.folder) if row["step"] <= state["step"]
                and row.get("epoch", 0) <= state["epoch"]]
        write_text(self.folder / HISTORY, "".join(json.dumps(row) + "\n" for row in kept))
        logger.info("resumed %s at step %d", self.folder, state["step"])
        return state

    def close(self) -> None:
        """Let other processes in again."""
        self._held.close()

    @contextlib.contextmanager
    def stoppable(self, first: bool = True) -> Iterator[None]:
        """Around a training: where it is told to end, the log says how to go on.

        Args:
            first: whether this is the process that says so.
        """
        try:
            yield
        except KeyboardInterrupt:
            if first:
                logger.info(self._how_to_go_on())
            raise

    def _how_to_go_on(self) -> str:
        try:
            step = json.loads(read_header(self.folder / CHECKPOINT)[1]["training"])["step"]
        except (InputError, OSError, ValueError, KeyError, TypeError):
            return "told to end before a checkpoint was written: there is nothing to go on from"
        return f"told to end: --resume goes on from step {step}"

    def follow(self, resume: bool, restore: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
        """The progress so far for a process that does not write, after the one that does has called `open`."""
        if not resume or not (self.folder / CHECKPOINT).exists():
            return dict(FRESH)
        return {key: value for key, value in restore(self.folder / CHECKPOINT).items() if key in FRESH}

    def _restored(self, restore: Callable[[Path], dict[str, Any]],
                  settings: Mapping[str, Any]) -> dict[str, Any]:
        """The progress in the checkpoint; whatever is wrong with the file is one error."""
        path = self.folder / CHECKPOINT
        with undamaged(path):
            saved = restore(path)
            self._compare(saved.get("settings", settings), settings)  # config.json may be lost
            step, epoch = whole_number(saved, "step"), whole_number(saved, "epoch")
            steps = settings.get("steps_per_epoch")
            if steps is not None and not epoch * steps <= step <= (epoch + 1) * steps:
                raise ValueError(f"step {step} is not in epoch {epoch + 1} of {steps} steps")
            best = saved["best"] if saved["best"] is None else float(saved["best"])
            return {"step": step, "epoch": epoch, "sum": float(saved["sum"]), "best": best,
                    "seconds": float(saved["seconds"])}

    def _compare_config(self, settings: Mapping[str, Any], part: bool = False) -> None:
        """`_compare` with config.json, if it is there."""
        if not (self.folder / CONFIG).exists():
            return
        before = read_json(self.folder / CONFIG)
        if not isinstance(before, dict):
            raise InputError("is damaged: it is no JSON object of settings", source=self.folder / CONFIG)
        self._compare(before, settings, part)

    def _compare(self, before: Mapping[str, Any], settings: Mapping[str, Any], part: bool = False) -> None:
        """Raise InputError where settings are others than before; part: where there may be more of them."""
        now = json.loads(json.dumps(dict(settings)))
        before = json.loads(json.dumps(dict(before)))
        differ = [f"{key} was {before.get(key)!r}, is {now.get(key)!r}"
                  for key in sorted({*now} if part else {*before, *now})
                  if before.get(key) != now.get(key) and key not in FOUND]
        if differ:
            raise InputError(f"cannot resume with other settings: {some(differ, 4)}", source=self.folder)

    def _clear(self) -> None:
        """Remove what a killed process was about to write: `atomic_path`'s files, and safetensors' own."""
        names = (CHECKPOINT, BEST, LAST, HISTORY, CONFIG, SKIPPED)
        for pattern in (*(f".{Path(name).stem}-*" for name in names), ".tmp??????"):
            for half in self.folder.glob(pattern):
                half.unlink()

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a row to the history."""
        with open(self.folder / HISTORY, "a", encoding="utf-8") as opened:
            opened.write(json.dumps(dict(row)) + "\n")

    def note(self, key: str, value: Any) -> None:
        """Write down in config.json what training found out, under one of the keys `FOUND`."""
        assert key in FOUND
        write_json(self.folder / CONFIG, {**read_json(self.folder / CONFIG), key: value})

    def last_good(self) -> str:
        """Where the last checkpoint is, in words."""
        path = self.folder / CHECKPOINT
        return f"the last good checkpoint is {path}" if path.exists() else "no checkpoint was written yet"


def read_history(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The rows of a run's history: steps have "loss", epochs have "epoch" and scores.

    A line cut short by a crash at the very end is left out, and so are blank ones.

    Raises:
        InputError: no history there, or a damaged line.
    """
    path = Path(folder) / HISTORY
    if not path.exists():
        raise InputError("no training history here (history.jsonl)", source=folder)
    lines = path.read_bytes().rstrip(b"\n").split(b"\n")
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode())
            if not all(type(count) is int for count in (row["step"], row.get("epoch", 0))):
                raise TypeError("a step or epoch that is no whole number")
            rows.append(row)
        except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError):
            if number < len(lines):
                raise InputError(f"line {number} is no JSON object with a whole-number step", source=path) from None
    return rows
