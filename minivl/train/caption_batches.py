"""What a captioner is trained on: which captions of which pictures make a batch, and of it the share of a process."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..data.augment import mixed
from ..data.order import cuts
from ..errors import InputError
from .caption_ids import Sequences
from .distributed import ALONE, Processes
from .features import Images

IGNORED = -100  # target of a padded position
FILLED = -1  # in place of a caption where a picture has no more
POOL = 64  # batches among which captions of like length are brought together
READ = ("refs", "all", "one")  # how many captions of a picture are read in an epoch


class Batch(NamedTuple):
    """Pictures and r captions of each: what one process computes of a batch.

    Attributes:
        images: (B, ...) what `remember` takes.
        ids: (B*r, T) <BOS> and words; captions of a picture side by side.
        targets: (B*r, T) words and <EOS>; padding is `IGNORED`, and all of a row that only fills a picture's r.
        seeds: (B, 1 + r) int64: what is drawn for a picture and for each of its captions is drawn from these; empty:
            nothing can be.
        tokens: of the whole batch, over all processes; 0: of this one alone.
        counted: whether this process has a share of the batch; without one it only computes for the others' sake, who
            wait for its gradients.
        done: share of the training that lies behind, from 0 to 1.
    """

    images: Tensor
    ids: Tensor
    targets: Tensor
    seeds: Tensor = torch.zeros(0, 0, dtype=torch.int64)
    tokens: int = 0
    counted: bool = True
    done: float = 0.0

    def part(self, first: int, last: int) -> Batch:
        """Some of its pictures with their captions."""
        each = len(self.ids) // len(self.images)
        rows = slice(first * each, last * each)
        return self._replace(images=self.images[first:last], ids=self.ids[rows], targets=self.targets[rows],
                             seeds=self.seeds[first:last])


class Look(NamedTuple):
    """A picture in a batch, with places of its captions; None fills up."""

    photo: int
    captions: tuple[int | None, ...]
    view: int


class Reading(NamedTuple):
    """What is to be fetched as one batch: of pictures and captions those of this process. See `Batch`."""

    looks: list[Look]
    epoch: int = 0
    tokens: int = 0
    counted: bool = True
    done: float = 0.0


class Fetch:
    """Batches by what is to be read.

    Args:
        images: pictures; version v of picture i is number ``i + v * len(sequences)``.
        sequences: of each picture, its captions as ids.
        pad_id: fills ids.
        seed: of what is drawn for a caption.
    """

    def __init__(self, images: Images, sequences: Sequences, pad_id: int, seed: int = 0) -> None:
        self._images, self._sequences, self._pad_id, self._seed = images, sequences, pad_id, seed

    def __call__(self, reading: Reading) -> Batch:
        inputs, targets = [], []
        for look in reading.looks:
            for place in look.captions:
                row = self._sequences.caption(look.photo, place or 0)
                inputs.append(row[:-1] if place is not None else row[:1])
                targets.append(row[1:] if place is not None else torch.tensor([IGNORED]))
        seeds = [[mixed(self._seed, "captions", reading.epoch, look.photo, str(look.captions), row) for row in
                  range(1 + len(look.captions))] for look in reading.looks]
        rows = [look.photo + look.view * len(self._sequences) for look in reading.looks]
        return Batch(self._images[rows], pad_sequence(inputs, batch_first=True, padding_value=self._pad_id),
                     pad_sequence(targets, batch_first=True, padding_value=IGNORED), torch.tensor(seeds),
                     reading.tokens, reading.counted, reading.done)


class Readings:
    """The batches of an epoch, in an order of (seed, epoch), and of each the share of this process.

    Every picture is in an epoch once, with `refs` of its captions (the same again where it has fewer); or, with
    read="all", as often as it takes to read every caption just once.

    Args:
        lengths: of each caption of each picture, in tokens that are predicted.
        batch_size: captions in a batch, over all processes.
        refs: captions of a picture in a batch; they share its memory.
        seed: of order and choice.
        views: versions of each picture.
        read: see `READ`; "one" is "refs" with refs=1.
        bucket: bring captions of like length together, so that less of a batch is padding: within every 64 batches
            pictures are ordered by their longest caption, and batches are shuffled afterwards.
        epochs: of the training.
        processes: among which each batch is shared.

    Raises:
        InputError: a number or word out of range.
    """

    def __init__(self, lengths: Sequence[Sequence[int]], *, batch_size: int, refs: int = 1, seed: int = 0,
                 views: int = 1, read: str = "refs", bucket: bool = False, epochs: int = 1,
                 processes: Processes = ALONE) -> None:
        if refs < 1 or batch_size < refs:
            raise InputError(f"batch_size={batch_size} must hold at least the {refs} captions of one picture")
        if read not in READ:
            raise InputError(f"read={read!r}: give one of {', '.join(READ)}")
        if read == "one" and refs != 1:
            raise InputError(f"refs={refs}: with one caption of a picture read in an epoch (read='one') there is one "
                             "in a batch; give refs=1")
        self._lengths, self._refs, self._seed, self._views = lengths, refs, seed, views
        self._all, self._bucket, self._epochs, self._processes = read == "all", bucket, epochs, processes
        self._together = batch_size // refs  # pictures of a batch
        looks = sum(-(-len(told) // refs) for told in lengths) if self._all else len(lengths)
        self.steps = -(-looks // self._together)

    def of(self, epoch: int, start: int = 0) -> Iterator[Reading]:
        """Those of an epoch from number `start` on."""
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
        looks = self._looks(generator)
        order = torch.randperm(self.steps, generator=generator) if self._bucket else torch.arange(self.steps)
        for number in range(start, self.steps):
            first = int(order[number]) * self._together
            whole = [looks[place] for place in range(first, min(first + self._together, len(looks)))]
            first, last = cuts(len(whole), self._processes.count)[self._processes.rank]
            yield Reading(whole[first:last] or whole[:1], epoch, sum(map(self._tokens, whole)), last > first,
                          (epoch + number / self.steps) / self._epochs)

    def _looks(self, generator: torch.Generator) -> _Looks:
        """All of an epoch, in order."""
        photos, captions, views = array("q"), array("i"), array("i")
        for photo in map(int, torch.randperm(len(self._lengths), generator=generator).numpy()):
            count, refs = len(self._lengths[photo]), self._refs
            drawn: list[int] = torch.randperm(count, generator=generator).tolist()
            for first in range(0, count if self._all else 1, refs):
                captions.extend(drawn[place % count] if place < count or not self._all else FILLED
                                for place in range(first, first + refs))
                views.append(int(torch.randint(self._views, (), generator=generator)))
                photos.append(photo)
        looks = _Looks(np.array(photos), np.array(captions).reshape(-1, self._refs), np.array(views))
        if self._all:  # those of a picture apart
            looks = looks.ordered(torch.randperm(len(looks), generator=generator).numpy())
        if not self._bucket:
            return looks
        longest = np.array([max(self._each(look)) for look in map(looks.__getitem__, range(len(looks)))])
        pool = POOL * self._together
        return looks.ordered(np.concatenate([first + np.argsort(longest[first:first + pool], kind="stable")
                                             for first in range(0, len(looks), pool)]))

    def _each(self, look: Look) -> list[int]:
        return [self._lengths[look.photo][place] for place in look.captions if place is not None]

    def _tokens(self, look: Look) -> int:
        return sum(self._each(look))


class _Looks:
    """`Look`s in arrays.

    Args:
        photos, views: (n,).
        captions: (n, r); `FILLED` stands for None.
    """

    def __init__(self, photos: np.ndarray, captions: np.ndarray, views: np.ndarray) -> None:
        self._photos, self._captions, self._views = photos, captions, views

    def __len__(self) -> int:
        return len(self._photos)

    def __getitem__(self, place: int) -> Look:
        captions = tuple(None if one == FILLED else one for one in self._captions[place].tolist())
        return Look(int(self._photos[place]), captions, int(self._views[place]))

    def ordered(self, places: np.ndarray) -> _Looks:
        """The same in another order."""
        return _Looks(self._photos[places], self._captions[places], self._views[places])


def uniform(seeds: Tensor, columns: int, stream: int = 0) -> Tensor:
    """Numbers drawn evenly from [0, 1), row by row from a seed each: SplitMix64 (Steele et al. 2014).

    Args:
        seeds: (n,) int64.
        columns: numbers of a row; a longer row begins with a shorter one.
        stream: another one gives other numbers.

    Returns:
        (n, columns) float64.
    """
    with np.errstate(over="ignore"):
        counter = np.arange(1, columns + 1, dtype=np.uint64) + np.uint64(stream << 32)
        z = seeds.numpy().astype(np.uint64)[:, None] + counter * np.uint64(0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
    z ^= z >> np.uint64(31)
    return torch.from_numpy((z >> np.uint64(11)).astype(np.float64) * 2.0 ** -53)
