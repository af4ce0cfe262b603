"""Ctrl-C and SIGTERM during training, alone and among several processes."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any


class Interrupts:
    """While it is entered, SIGTERM interrupts as Ctrl-C does (only the main thread may set handlers).

    Args:
        several: this process is one of several, none of which may leave the others in the middle of a step: within
            `held` the first signal is only noted.
    """

    def __init__(self, several: bool = False) -> None:
        self.noted = False
        self._several, self._held = several, False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            numbers = [signal.SIGTERM]
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else somebody wants it otherwise
                numbers.append(signal.SIGINT)
            self._before = {number: signal.signal(number, self._interrupt) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.noted and number == signal.SIGTERM:
            return  # it is ending; managers of jobs may send more than one
        if not self._held or self.noted:
            raise KeyboardInterrupt
        self.noted = True

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Around steps that several processes make together.

        Raises:
            KeyboardInterrupt: at its end, where a signal was noted.
        """
        self._held = self._several
        try:
            yield
        finally:
            self._held = False
        if self.noted:
            raise KeyboardInterrupt
