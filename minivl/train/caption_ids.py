"""Captions as ids, kept in arrays: a tensor for each would take a hundred times the room of its ids."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from ..data.strings import Made
from ..text.tokenizer import Tokenizer


def encode_captions(captions: Sequence[str], tokenizer: Tokenizer, max_len: int) -> list[Tensor]:
    """<BOS> words <EOS> as ids, at most max_len + 1 of them: a longer caption is cut and has no <EOS>."""
    encoded = tokenizer.encode_batch(captions)
    return [torch.tensor([tokenizer.bos_id, *ids, tokenizer.eos_id][: max_len + 1]) for ids in encoded]


class Sequences(Made[list[Tensor]]):
    """The captions of each picture as ids, all in three arrays.

    Args:
        captions: of each picture, the ids of each of its captions; read once.
    """

    def __init__(self, captions: Iterable[Sequence[Tensor]]) -> None:
        self._ids, self._ends, self._firsts = array("i"), array("q", [0]), array("q", [0])
        for rows in captions:
            for row in rows:
                self._ids.extend(row.tolist())
                self._ends.append(len(self._ids))
            self._firsts.append(len(self._ends) - 1)

    def __len__(self) -> int:
        return len(self._firsts) - 1

    def make(self, photo: int) -> list[Tensor]:
        """The captions of a picture."""
        return [self.caption(photo, place) for place in range(self.many(photo))]

    def many(self, photo: int) -> int:
        """How many captions a picture has."""
        return self._firsts[photo + 1] - self._firsts[photo]

    def number(self, photo: int, place: int) -> int:
        """Of a caption of a picture, among those of all."""
        return self._firsts[photo] + place

    def caption(self, photo: int, place: int) -> Tensor:
        """(T,) int64: one caption of a picture."""
        row = self.number(photo, place)
        return torch.tensor(self._ids[self._ends[row]:self._ends[row + 1]], dtype=torch.int64)

    @property
    def lengths(self) -> Lengths:
        """Of each caption of each picture, in tokens that are predicted: all but the first."""
        return Lengths(np.array(self._firsts), np.diff(self._ends) - 1)

    def cut(self, end: int) -> int:
        """How many captions do not end with this id."""
        ids, ends = np.array(self._ids), np.array(self._ends)
        return int((ids[ends[1:] - 1] != end).sum())


class Lengths(Made[list[int]]):
    """So many tokens each caption of each picture has.

    Args:
        firsts: (pictures + 1,) number of each picture's first caption.
        lengths: (captions,).
    """

    def __init__(self, firsts: np.ndarray, lengths: np.ndarray) -> None:
        self._firsts, self._lengths = firsts, lengths

    def __len__(self) -> int:
        return len(self._firsts) - 1

    def make(self, photo: int) -> list[int]:
        """The lengths of a picture's captions."""
        return self._lengths[self._firsts[photo]:self._firsts[photo + 1]].tolist()
