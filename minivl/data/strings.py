"""Names and captions of many pictures in a few arrays: a Python string has fifty bytes beside its letters."""

from __future__ import annotations

from abc import abstractmethod
from array import array
from collections.abc import Iterable, Sequence
from typing import TypeVar, overload

T = TypeVar("T")


class Made(Sequence[T]):
    """A sequence whose items are made when they are asked for; a slice is a list of them."""

    @abstractmethod
    def make(self, place: int) -> T:
        """The item at a place from 0 up."""

    @overload
    def __getitem__(self, place: int) -> T: ...

    @overload
    def __getitem__(self, place: slice) -> list[T]: ...

    def __getitem__(self, place: int | slice) -> T | list[T]:
        places = range(len(self))[place]
        return self.make(places) if isinstance(places, int) else [self.make(one) for one in places]


class Strings(Made[str]):
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

    def make(self, place: int) -> str:
        """The string at a place."""
        return self._letters[self._ends[place]:self._ends[place + 1]].decode("utf-8", "surrogatepass")


class Told(Made[tuple[str, ...]]):
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

    def make(self, place: int) -> tuple[str, ...]:
        """The captions of the picture at a place."""
        return tuple(self._texts[self._ends[place]:self._ends[place + 1]])
