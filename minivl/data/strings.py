"""Names and captions of many pictures in a few arrays: a Python string has fifty bytes beside its letters."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from typing import overload


class Strings(Sequence[str]):
    """Strings that are made when they are asked for.

    Args:
        texts: read once.
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._letters, self._ends = bytearray(), array("q", [0])
        for text in texts:
            self.append(text)

    def append(self, text: str) -> None:
        """One more, at the end."""
        self._letters += text.encode("utf-8", "surrogatepass")  # names of files may be no whole characters
        self._ends.append(len(self._letters))

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, place: int) -> str: ...

    @overload
    def __getitem__(self, place: slice) -> list[str]: ...

    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            return [self[one] for one in range(len(self))[place]]
        place = range(len(self))[place]
        return self._letters[self._ends[place]:self._ends[place + 1]].decode("utf-8", "surrogatepass")


class Told(Sequence[tuple[str, ...]]):
    """The captions of each picture.

    Args:
        captions: of each, in their order; read once.
    """

    def __init__(self, captions: Iterable[Sequence[str]] = ()) -> None:
        self._texts, self._ends = Strings(), array("q", [0])
        for several in captions:
            for text in several:
                self._texts.append(text)
            self._ends.append(len(self._texts))

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, place: int) -> tuple[str, ...]: ...

    @overload
    def __getitem__(self, place: slice) -> list[tuple[str, ...]]: ...

    def __getitem__(self, place: int | slice) -> tuple[str, ...] | list[tuple[str, ...]]:
        if isinstance(place, slice):
            return [self[one] for one in range(len(self))[place]]
        place = range(len(self))[place]
        return tuple(self._texts[self._ends[place]:self._ends[place + 1]])
