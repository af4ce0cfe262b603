"""Self-critical training: captions are drawn, and those better than the model's usual ones are made likelier.

Rennie et al. 2017: Self-critical Sequence Training for Image Captioning (https://arxiv.org/abs/1612.00563); Luo 2020:
A Better Variant of Self-Critical Sequence Training (https://arxiv.org/abs/2003.09971).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ..data.augment import mixed
from ..data.order import Batches, Order, Share, cuts
from ..data.workers import fetched
from ..errors import InputError
from ..models.captioner import Captioner
from ..models.decoder import Memory
from ..models.wishes import search, wishes
from ..nn.modes import evaluating
from ..search import Options
from ..search.constraints import constrained
from .caption_batches import IGNORED
from .captioning import CaptionTask, TeacherForced
from .distributed import ALONE, Processes
from .features import Images
from .rewards import Rewards, Said
from .step import autocast

BASELINES = ("leave-one-out", "greedy")


class Batch(NamedTuple):
    """Pictures to be captioned: the share of one process.

    Attributes:
        epoch: of the batch.
        photos: B numbers, of which captions are drawn and judged.
        images: (B, ...) what `remember` takes.
        counted: B, or 0 where this process has no share and only computes one picture for the others' sake.
    """

    epoch: int
    photos: list[int]
    images: Tensor
    counted: int


class Judged(NamedTuple):
    """What captions of B pictures are worth, float64.

    Attributes:
        rewards: (B, n) of the samples.
        advantages: (B, n) what they are above their baseline.
    """

    rewards: np.ndarray
    advantages: np.ndarray


class Part(NamedTuple):
    """A micro-batch: samples that are drawn, and rewards that another thread may still be computing.

    Attributes:
        images: (B, ...) on the model's device.
        ids: (B*n, T) <BOS> and the samples' tokens; those of a picture side by side.
        targets: (B*n, T) the samples' tokens with <EOS>, if it was drawn; padding is `IGNORED`.
        judged: of the samples.
    """

    images: Tensor
    ids: Tensor
    targets: Tensor
    judged: Future[Judged]


class _Fetch:
    """Pictures of a share; a version of each is drawn from (seed, epoch, picture)."""

    def __init__(self, images: Images, count: int, views: int, seed: int) -> None:
        self._images, self._count, self._views, self._seed = images, count, views, seed

    def __call__(self, share: Share) -> Batch:
        rows = [photo + mixed(self._seed, "view", share.epoch, photo) % self._views * self._count
                for photo in share.samples]
        return Batch(share.epoch, share.samples, self._images[rows], share.counted)


class SelfCriticalTask:
    """`minivl.train.loop.Task` that trains a captioner to a reward; scored and saved as any captioner.

    Of each picture n captions are drawn, without gradients, from the captioner as it decodes: dropout off, <UNK> never
    said. A teacher-forced pass then gives the loss

        sum over samples of (baseline - reward) * sum over tokens of log p(token)  /  number of tokens

    over the whole batch, <EOS> being a token (Luo's normalisation). p is what the tokens were drawn from, temperature
    and <UNK> included, so that its gradient is that of the expected reward (Williams 1992) up to the number of tokens;
    `dropout` lets the pass have the model's dropout, which departs from that.

    Everything is drawn before any gradient of the step, from the very weights that the step then changes. One thread
    computes rewards beside it: of a micro-batch while the next is decoded, of the last one while the first pass with
    gradients runs. The numbers of a sample are drawn from (seed, epoch, picture, sample), and a micro-batch counts by
    its tokens among those of all processes, so that neither resuming nor dividing a batch otherwise changes what is
    computed, but for the last bits, which now and then draw another word (in bf16 more often).

    Args:
        scored: evaluates and saves the captioner.
        model: the captioner that `fit` trains.
        images: training pictures; with mirrored versions, `views` times as many as rewards are for.
        rewards: of each picture's captions.
        remember: ``(model, images) -> Memory``: `Captioner.encode` or, for features, `captioning.from_features`.
        batch_size: pictures in a batch, over all processes and micro-batches; the last of an epoch may have fewer.
        samples: captions drawn of each.
        baseline: "leave-one-out", the mean reward of the picture's other samples (Luo), or "greedy", the reward of
            its greedy caption (Rennie et al.).
        temperature: of the samples.
        max_len: longest sample, <EOS> counted.
        dropout: whether the pass with gradients has the model's dropout.
        accumulate: micro-batches of a process's share.
        precision: of the decoding, as of the plan: "fp32", "bf16" or "fp16".
        seed: of order and samples.
        views: versions of each picture in `images`.
        workers: processes that read pictures.
        processes: among which each batch is shared, those given to `fit`.

    Raises:
        InputError: no tokenizer, an unknown baseline, one sample with "leave-one-out", other numbers of pictures than
            of rewards, or a number out of range.
    """

    def __init__(self, scored: CaptionTask, model: Captioner, images: Images, rewards: Rewards, *,
                 remember: Callable[[Captioner, Tensor], Memory], batch_size: int = 32, samples: int = 5,
                 baseline: str = "leave-one-out", temperature: float = 1.0, max_len: int = 30, dropout: bool = False,
                 accumulate: int = 1, precision: str = "fp32", seed: int = 0, views: int = 1, workers: int = 0,
                 processes: Processes = ALONE) -> None:
        if model.tokenizer is None:
            raise InputError("a captioner is rewarded for words; this one has no tokenizer")
        if baseline not in BASELINES:
            raise InputError(f"baseline={baseline!r} is unknown; there are: {', '.join(BASELINES)}")
        for name, value in (("samples", samples), ("batch_size", batch_size), ("accumulate", accumulate),
                            ("views", views)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{name}={value!r}: give a whole number, at least 1")
        if baseline == "leave-one-out" and samples < 2:
            raise InputError("samples=1: leave-one-out compares samples of a picture with each other; give 2 or more, "
                             'or baseline="greedy"')
        if len(images) != views * len(rewards):
            raise InputError(f"{len(images)} pictures in {views} versions, rewards of {len(rewards)}: as many are "
                             "needed")
        self.scored, self.cut = scored, None  # no captions are read, which could be cut
        self._model, self._tokenizer, self._rewards = model, model.tokenizer, rewards
        self._remember, self._samples, self._leave_one_out = remember, samples, baseline == "leave-one-out"
        self._dropout, self._accumulate, self._precision, self._seed = dropout, accumulate, precision, seed
        self._batch_size, self._workers, self._processes = batch_size, workers, processes
        self._fetch = _Fetch(images, len(rewards), views, seed)
        self._order = Order(len(rewards), seed=seed)
        self._options = Options(samples=samples, temperature=temperature, max_len=max_len)
        self._greedy = Options(beams=1, max_len=max_len)
        device = model.decoder.embed.weight.device
        self._wished = wishes(self._options, model.config.decoder, model.tokenizer, device)
        never = torch.zeros(1, 1, model.config.decoder.vocab_size, device=device)
        start = torch.tensor([[self._wished.prompt]], device=device)
        self._ruled_out = constrained(self._wished.constraints, start, never, max_len)[0, 0]  # (V,) 0 or -inf
        self._last: list[Future[Judged]] = []  # of the last step
        self.steps = -(-len(rewards) // batch_size)

    # -- drawing ---------------------------------------------------------------------------------------------

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """This process's share of each batch of an epoch from number `start` on."""
        shares = Batches(self._order, self._batch_size, epoch, start, rank=self._processes.rank,
                         ranks=self._processes.count)
        pin = self._ruled_out.device.type == "cuda"
        return fetched(self._fetch, shares, workers=self._workers, pin=pin)

    def parts(self, batch: Batch) -> list[tuple[Part, float]]:
        """Micro-batches of drawn captions, weighted by their tokens among those of the whole batch."""
        model = self._processes.whole(self._model, everywhere=True)
        assert isinstance(model, Captioner)
        places = [(first, last) for first, last in cuts(batch.counted, self._accumulate)
                  if last > first or self._processes.count > 1]  # processes do as many passes each
        drawn: list[tuple[Part, float]] = []
        judge = ThreadPoolExecutor(1, "rewards")  # of this step: a thread that lives on would be there at a fork
        try:
            for first, last in places:
                part = self._draw(model, batch, slice(first, last) if last > first else slice(0, 1), judge)
                drawn.append((part, float((part.targets != IGNORED).sum()) * (last > first)))
        finally:
            judge.shutdown(wait=False)  # what it was given, it does
        self._last = [part.judged for part, tokens in drawn if tokens]
        whole = self._processes.sum(sum(tokens for _, tokens in drawn))
        return [(part, tokens / whole) for part, tokens in drawn]

    @torch.no_grad()
    def _draw(self, model: Captioner, batch: Batch, rows: slice, judge: ThreadPoolExecutor) -> Part:
        """Captions of some pictures of a batch, judged by another thread."""
        decoder, photos = model.config.decoder, batch.photos[rows]
        device = model.decoder.embed.weight.device
        images = batch.images[rows].to(device, non_blocking=True)
        seeds = [(self._seed, batch.epoch, photo) for photo in photos]
        found: list[list[tuple[int, ...]]] = []
        with evaluating(model), autocast(device, self._precision):
            memory = self._remember(model, images)
            for options in [self._options, *([] if self._leave_one_out else [self._greedy])]:
                hypotheses = search(model.decoding(memory), options, self._wished, eos_id=decoder.eos_id, seeds=seeds,
                                    device=device)
                found.append([one.ids for several in hypotheses for one in several])
        sequences = [torch.tensor(ids) for ids in found[0]]
        ids = pad_sequence([row[:-1] for row in sequences], batch_first=True, padding_value=decoder.pad_id)
        targets = pad_sequence([row[1:] for row in sequences], batch_first=True, padding_value=IGNORED)
        judged = judge.submit(self._judge, photos, *found)
        return Part(images, ids.to(device), targets.to(device), judged)

    def _judge(self, photos: Sequence[int], samples: Sequence[tuple[int, ...]],
               greedy: Sequence[tuple[int, ...]] = ()) -> Judged:
        """Rewards of the samples, and of the greedy captions where they are the baseline."""
        pictures = [photo for photo in photos for _ in range(self._samples)]
        end = self._model.config.decoder.eos_id
        said = [Said(self._tokenizer.decode(ids), ids[-1] == end) for ids in (*samples, *greedy)]
        values = self._rewards([*pictures, *photos[:len(greedy)]], said)
        rewards = values[:len(samples)].reshape(len(photos), -1)  # (B, n)
        if self._leave_one_out:
            baseline = (rewards.sum(1, keepdims=True) - rewards) / (self._samples - 1)
        else:
            baseline = values[len(samples):, None]  # (B, 1)
        return Judged(rewards, rewards - baseline)

    def shown(self) -> dict[str, float]:
        """The mean "reward" of the last step's samples, over all processes: each of them must call this."""
        rewards = [one.result().rewards for one in self._last]
        total, count = (self._processes.sum(value) for value in (
            math.fsum(float(one.sum()) for one in rewards), float(sum(one.size for one in rewards))))
        return {"reward": total / count} if count else {}

    # -- gradients -------------------------------------------------------------------------------------------

    def wrap(self, model: nn.Module) -> nn.Module:
        """What losses are computed with, for `minivl.train.loop.fit`."""
        assert isinstance(model, Captioner)
        return TeacherForced(model, self._remember, model.config.decoder.pad_id)  # no word is hidden

    def loss(self, model: nn.Module, batch: Part) -> Tensor:
        """The loss of a micro-batch; `model` is what `wrap` made of the captioner that is trained, or that itself."""
        if isinstance(model, Captioner):
            model = self.wrap(model)
        with contextlib.nullcontext() if self._dropout else evaluating(self._model):
            logits = model(batch.images, batch.ids)  # (B*n, T, V)
        logits = (logits.float() + self._ruled_out) / self._options.temperature
        unlikely = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORED,
                                   reduction="none").view(batch.targets.shape)  # (B*n, T), 0 at padding
        judged = batch.judged.result()  # as late as can be
        advantages = torch.from_numpy(judged.advantages).to(unlikely.device, unlikely.dtype)  # (B, n)
        return (unlikely.sum(1) * advantages.flatten()).sum() / (batch.targets != IGNORED).sum()

    # -- validation ------------------------------------------------------------------------------------------

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """As `CaptionTask`."""
        return self.scored.evaluate(model)

    def save(self, model: nn.Module, path: Path, scores: Mapping[str, float]) -> None:
        """As `CaptionTask`."""
        self.scored.save(model, path, scores)
