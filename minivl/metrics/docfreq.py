"""Document frequencies: in how many images of a collection people used an n-gram."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch

from ..errors import InputError
from ..files import read_tensors, undamaged, write_tensors
from .ngrams import Ngrams, common, hold
from .tokens import Tokenize, is_label, reference_words, tokenizer

FORMAT = "minivl document frequencies 1"
LONGEST = 100  # words of an n-gram; captions are shorter


@dataclass(frozen=True, eq=False)
class DocFreq:
    """In how many images of a collection an n-gram occurs: what makes a rare word count more.

    A fixed collection makes scores independent of which images are scored together: one image can
    be scored, and a batch that repeats images (as in reinforcement learning) scores as without.

    Only n-grams of at least two images are kept, because one that is in a single image weighs what one that was
    never seen weighs.

    Attributes:
        ngrams: those kept.
        counts: for each order (G_k,) the number of images with the n-gram in at least one reference.
        images: number of images in the collection.
        tokens: name of the tokens the n-grams are made of.
        label: a name for people; the signature has it in front of a hash of the contents.
    """

    ngrams: Ngrams = field(repr=False)
    counts: tuple[np.ndarray, ...] = field(repr=False)
    images: int
    tokens: str
    label: str = ""

    def __post_init__(self) -> None:
        if self.images < 2:
            raise InputError(f"document frequencies of {self.images} image say nothing (every n-gram would "
                             "weigh 0); at least 2 are needed", source="DocFreq")
        if not is_label(self.label):
            raise InputError(f"label={self.label!r} must be printable and without '|'", source="DocFreq")

    @classmethod
    def from_references(cls, references: Mapping[Any, Sequence[str]], n: int = 4,
                        tokenize: str | Tokenize = "ptb-coco", *, label: str = "") -> DocFreq:
        """Count over the reference captions of a collection, such as a training set.

        Args:
            references: id -> captions of that image.
            n: longest n-gram.
            tokenize: as in `minivl.metrics.cider.cider`.
            label: a name for people, which signatures show.

        Raises:
            InputError: fewer than two images, a label that no signature can hold, or references that `cider` refuses.
        """
        check_n(n)
        split = tokenizer(tokenize, "DocFreq")
        texts, words = reference_words(references, split, "DocFreq")
        ngrams, counts, _ = common(hold(words, texts.image(), n)[0])
        return cls(ngrams, tuple(counts), len(texts.ids), split.name, label)

    @property
    def n(self) -> int:
        """The longest order counted."""
        return len(self.counts)

    @cached_property
    def digest(self) -> str:
        """sha256 of everything but the label, in hex."""
        return _digest(self.ngrams, self.counts, self.images, self.tokens)

    @property
    def name(self) -> str:
        """The label, 8 hex digits of `digest`, and the number of images: ``"flickr8k:1f0c22ab(5999)"``."""
        return f"{self.label}{':' * bool(self.label)}{self.digest[:8]}({self.images})"

    def count(self, ngram: Sequence[str]) -> int:
        """In how many images the n-gram is; 1 also stands for none."""
        number = self.ngrams.find(ngram)
        return 1 if number < 0 else int(self.counts[len(ngram) - 1][number])

    def idf(self, ngram: Sequence[str]) -> float:
        """``ln(images / images with the n-gram)``; an n-gram never seen counts as seen once."""
        return math.log(self.images) - math.log(self.count(ngram))

    @cached_property
    def weights(self) -> list[np.ndarray]:
        """For each order (G_k + 1,): the `idf` of its n-grams and, last, that of one not among them."""
        return [math.log(self.images) - np.log(np.append(counts, 1)) for counts in self.counts]

    # -- files -------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file, atomically.

        Of each n-gram it holds its last word, how many n-grams it begins, and its count, each in as few bytes as the
        largest of them needs: some 4 to 5 bytes for an n-gram.

        Raises:
            OSError: it cannot be written.
        """
        tensors = {"words": torch.frombuffer(bytearray(json.dumps(self.ngrams.words).encode()), dtype=torch.uint8)}
        for order, counts in enumerate(self.counts, 1):
            tensors[f"counts{order}"] = _packed(counts)
            if order > 1:
                first, last = self.ngrams.split(order)
                tensors[f"begun{order}"] = _packed(np.bincount(first, minlength=len(self.counts[order - 2])))
                tensors[f"last{order}"] = _packed(last)
        told = {"images": self.images, "tokens": self.tokens, "label": self.label, "n": self.n}
        write_tensors(path, tensors, {"format": FORMAT, "told": json.dumps(told),
                                      "sha256": _sealed(self.digest, self.label)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> DocFreq:
        """Read a file that `save` wrote.

        Raises:
            InputError: no such file, no file of document frequencies, or one that is damaged.
        """
        tensors, header = read_tensors(path)
        if header.get("format") != FORMAT:
            raise InputError(f"holds no document frequencies that this version reads (format "
                             f"{header.get('format')!r:.60}, {FORMAT!r} is needed)", source=path)
        with undamaged(path):
            told = json.loads(header["told"])
            words = json.loads(tensors["words"].numpy().tobytes())
            counts = tuple(_unpacked(tensors[f"counts{order}"]) for order in range(1, told["n"] + 1))
            keys = [np.arange(len(words))]
            for order in range(2, told["n"] + 1):
                begun, last = (_unpacked(tensors[f"{what}{order}"]) for what in ("begun", "last"))
                if begun.min(initial=0) < 0 or begun.sum() != len(last):
                    raise ValueError(f"begun{order} does not fit last{order}")
                keys.append(np.repeat(np.arange(len(keys[-1])), begun) << len(words).bit_length() | last)
            ngrams = Ngrams(words, tuple(keys))
            digest = _digest(ngrams, counts, told["images"], told["tokens"])
            if _sealed(digest, told["label"]) != header["sha256"]:
                raise ValueError("its contents are not those that were saved")
        return cls(ngrams, counts, told["images"], told["tokens"], told["label"])


def check_n(n: Any, source: str = "DocFreq") -> None:
    """The longest order of n-grams.

    Raises:
        InputError: it is no whole number from 1 to `LONGEST`.
    """
    if not isinstance(n, int) or isinstance(n, bool) or not 1 <= n <= LONGEST:
        raise InputError(f"n={n!r} must be a whole number from 1 to {LONGEST}", source=source)


def _digest(ngrams: Ngrams, counts: Sequence[np.ndarray], images: int, tokens: str) -> str:
    """sha256, in hex, of numbers that are the same for the same captions in any order."""
    digest = hashlib.sha256(json.dumps([FORMAT, len(counts), images, tokens, ngrams.words]).encode())
    for keys, count in zip(ngrams.keys, counts):
        for array in (keys, count):
            digest.update(array.astype("<i8").tobytes())
    return digest.hexdigest()


def _sealed(digest: str, label: str) -> str:
    """sha256, in hex, of a digest and a label."""
    return hashlib.sha256(json.dumps([digest, label]).encode()).hexdigest()


def _packed(values: np.ndarray) -> torch.Tensor:
    """Whole numbers in the smallest type that holds them."""
    most = int(values.max(initial=0))
    kind = next(kind for kind in (np.uint8, np.uint16, np.uint32, np.int64) if most <= np.iinfo(kind).max)
    return torch.from_numpy(values.astype(kind))


def _unpacked(tensor: torch.Tensor) -> np.ndarray:
    return tensor.numpy().astype(np.int64)
