"""Training image-text pairs: a contrast of pictures and captions over each batch, scored by retrieval."""

from __future__ import annotations

import itertools
import math
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ..data.augment import mixed
from ..data.order import cuts
from ..data.workers import fetched
from ..errors import InputError
from ..loading import save
from ..metrics.retrieval import recall_at_k
from ..models.clip import CLIP
from ..models.vit import ViT
from ..text.tokenizer import Tokenizer
from .caption_batches import uniform
from .caption_ids import Sequences
from .classifying import Probe
from .distributed import ALONE, Processes
from .features import Images

T = TypeVar("T")
LARGEST_SCALE = math.log(100)  # of the cosines' factor, as in the paper (section 2.5): beyond it training is unstable
KS = (1, 5, 10)
CHUNK = 64  # pictures encoded together in validation; four times as many captions

Progress = Callable[..., Iterable[Any]]


def contrast(logits: Tensor, positive: Tensor) -> Tensor:
    """InfoNCE both ways (Radford et al. 2021, figure 3), with captions that are true of several pictures.

    Each of the B*r pairs is found twice: the caption among all captions by its picture, and the picture among all
    pictures by its caption. What else is true (other captions of the picture, other pictures of the caption) is
    left out of the choice: it is neither right nor wrong. With r = 1 and no such cases it is CLIP's loss.

    Args:
        logits: (B, B*r) scaled cosines; captions of a picture stand side by side.
        positive: (B, B*r) which captions are true of which pictures, a picture's own among them.

    Returns:
        The mean of the two mean cross-entropies, a scalar.
    """
    pictures, captions = logits.shape
    pair = torch.arange(captions, device=logits.device)
    own = pair // (captions // pictures)  # picture of each caption
    others = positive[own] & (pair[:, None] != pair)  # (B*r, B*r)
    to_text = logits[own].masked_fill(others, -math.inf)  # (B*r, B*r)
    others = positive.T & (own[:, None] != torch.arange(pictures, device=logits.device))  # (B*r, B)
    to_image = logits.T.masked_fill(others, -math.inf)  # (B*r, B)
    return (F.cross_entropy(to_text, pair) + F.cross_entropy(to_image, own)) / 2


class Batch(NamedTuple):
    """Pictures and r captions of each: what one process encodes of a batch of B.

    Attributes:
        images: (b, 3, H, W), or features (b, k, D) of `pooled`.
        ids: (b*r, T) begin, pieces, end, padding; captions of a picture side by side.
        positive: (B, B*r) whether a caption is the picture's own, or reads like one that is.
        seeds: (b*r,) int64 from which is drawn what is hidden of a caption; empty: nothing can be.
        shares: pictures that each process encodes, which sum to B; a process without any encodes one all the same.
            Empty: one process encodes all.
    """

    images: Tensor
    ids: Tensor
    positive: Tensor
    seeds: Tensor = torch.zeros(0, dtype=torch.int64)
    shares: tuple[int, ...] = ()


class Texts:
    """The captions of pictures as ids, and which of them read alike.

    Args:
        captions: of each picture.
        tokenizer: begin and end token are added; the end stays where a caption is cut.
        max_len: longest caption, end counted.

    Attributes:
        sequences: ids of each caption of each picture.
        cut: captions that were longer.
    """

    def __init__(self, captions: Iterable[Sequence[str]], tokenizer: Tokenizer, max_len: int) -> None:
        self.cut, self._numbers, alike = 0, array("i"), dict[bytes, int]()

        def encoded() -> Iterator[list[Tensor]]:
            for told in captions:
                rows = []
                for ids in tokenizer.encode_batch(told):
                    self.cut += len(ids) > max_len - 1
                    rows.append(torch.tensor([tokenizer.bos_id, *ids[:max_len - 1], tokenizer.eos_id]))
                    self._numbers.append(alike.setdefault(rows[-1].numpy().tobytes(), len(alike)))
                yield rows

        self.sequences = Sequences(encoded())
        self._pad_id = tokenizer.pad_id

    def __len__(self) -> int:
        """The number of pictures."""
        return len(self.sequences)

    def ids(self, chosen: Sequence[tuple[int, int]]) -> Tensor:
        """(len(chosen), T) of these (picture, caption)s, as long as the longest."""
        return pad_sequence([self.sequences.caption(photo, place) for photo, place in chosen], batch_first=True,
                            padding_value=self._pad_id)

    def positive(self, photos: Sequence[int], chosen: Sequence[tuple[int, int]]) -> Tensor:
        """(len(photos), len(chosen)): whether a caption reads like any caption of the picture."""
        said = torch.tensor([self._numbers[self.sequences.number(photo, place)] for photo, place in chosen])  # (m,)
        told = [torch.tensor(self._numbers[self.sequences.number(photo, 0):self.sequences.number(photo + 1, 0)])
                for photo in photos]
        every = pad_sequence(told, batch_first=True, padding_value=-1)
        return (said[:, None] == every[:, None]).any(-1)  # (n, m) of (n, m, captions)


class _Plan(NamedTuple):
    """What is to be fetched as one batch: its pictures and captions, and of each picture to encode its place and the
    row of the images (of a mirrored version, say)."""

    epoch: int
    photos: list[int]
    chosen: list[tuple[int, int]]
    own: list[tuple[int, int]]
    shares: tuple[int, ...]


class _Fetch:
    """Batches by their plan."""

    def __init__(self, images: Images, texts: Texts, seed: int) -> None:
        self._images, self._texts, self._seed = images, texts, seed

    def __call__(self, plan: _Plan) -> Batch:
        refs = len(plan.chosen) // len(plan.photos)
        rows = [(place, plan.chosen[place]) for picture, _ in plan.own
                for place in range(picture * refs, (picture + 1) * refs)]
        seeds = [mixed(self._seed, "hidden", plan.epoch, *pair, place % refs) for place, pair in rows]
        return Batch(self._images[[row for _, row in plan.own]], self._texts.ids([pair for _, pair in rows]),
                     self._texts.positive(plan.photos, plan.chosen), torch.tensor(seeds), plan.shares)


class Towers(nn.Module):
    """Pictures and texts to their features, in one pass: what losses are computed with.

    Args:
        model: the pair; its parameters are those of this module.
    """

    def __init__(self, model: CLIP) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised features (b, D) of pictures and (b', D) of texts in float32, and the factor on their cosines."""
        pictures, texts = features_of(self.model, images), self.model.encode_text(ids)
        with torch.autocast(ids.device.type, enabled=False):  # steps of bfloat16 are coarse beside a factor of 100
            return (F.normalize(pictures.float(), dim=-1), F.normalize(texts.float(), dim=-1),
                    self.model.logit_scale.exp())


class ContrastTask:
    """`minivl.train.loop.Task` for image-text pairs.

    A batch is no sum of smaller ones, because every picture in it is compared with every caption: processes encode
    each its share, and all compute the loss of the whole batch from the features of all. Best is the epoch with the
    highest mean of the six recalls.

    Args:
        model: the pair that will be trained (its tokenizer and config are read).
        images: training pictures, or features of `pooled`; with mirrored versions, `views` times as many as captions.
        captions: of each training picture.
        val_images: validation pictures, or features.
        val_captions: of each validation picture.
        batch_size: largest number of captions in a batch; batches of an epoch are alike in size.
        refs: captions of a picture in a batch.
        max_len: longest caption, end token counted.
        seed: of order and choice.
        views: versions of each picture in `images`.
        drop_words: probability with which a word is made unknown in training.
        workers: processes that read pictures.
        processes: among which each batch is shared.
        notes: added to those saved with the weights.
        progress: tqdm-like, for validation.

    Raises:
        InputError: no tokenizer, or one without the token that `drop_words` needs; fewer than two pictures, or two of
            a batch; other numbers of pictures than of sets of captions; max_len out of range.
    """

    def __init__(self, model: CLIP, images: Images, captions: Sequence[Sequence[str]], val_images: Images,
                 val_captions: Sequence[Sequence[str]], *, batch_size: int = 64, refs: int = 1, max_len: int = 30,
                 seed: int = 0, views: int = 1, drop_words: float = 0.0, workers: int = 0,
                 processes: Processes = ALONE, notes: Mapping[str, Any] | None = None,
                 progress: Progress | None = None) -> None:
        tokenizer = model.tokenizer
        if tokenizer is None:
            raise InputError("a pair is trained with a tokenizer; this one has none")
        if len(images) != views * len(captions) or len(val_images) != len(val_captions):
            raise InputError("as many pictures as sets of captions are needed")
        check_counts(len(captions), len(val_captions))
        if refs < 1 or batch_size < 2 * refs:
            raise InputError(f"batch_size={batch_size} must hold at least the {refs} captions of each of two pictures, "
                             "to be told apart")
        longest = model.text.config.max_len - 1  # a place for the begin token
        if not 2 <= max_len <= longest:
            raise InputError(f"max_len={max_len}: give 2 (a word and the end) to this text tower's {longest}")
        self._unknown = unknown_id(tokenizer) if drop_words else 0
        self._kept = torch.tensor([tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id])
        self._texts, self._val_texts = (Texts(told, tokenizer, max_len) for told in (captions, val_captions))
        self._train, self._val_images = _Fetch(images, self._texts, seed), val_images
        self._processes = processes
        self._refs, self._views, self._seed, self._drop_words = refs, views, seed, drop_words
        self._workers, self._notes, self._progress = workers, dict(notes or {}), progress
        self._pin = model.logit_scale.device.type == "cuda"
        self._signature: str | None = None  # of the last scores
        self._together = batch_size // refs  # pictures of a batch
        self.steps = -(-len(captions) // self._together)
        self.cut = self._texts.cut

    # -- training --------------------------------------------------------------------------------------------

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """Every picture once, in an order of (seed, epoch), each with `refs` of its captions; of each batch this
        process's share."""
        plans = itertools.islice(self._plans(epoch), start, None)
        return fetched(self._train, plans, workers=self._workers, pin=self._pin)

    def _plans(self, epoch: int) -> Iterator[_Plan]:
        """Those of an epoch, one by one."""
        generator = torch.Generator().manual_seed(mixed(self._seed, "contrast", epoch))
        order = torch.randperm(len(self._texts), generator=generator).numpy()
        for first, last in cuts(len(order), self.steps):
            photos = order[first:last].tolist()
            versions = torch.randint(self._views, (len(photos),), generator=generator).tolist()
            rows = [photo + version * len(order) for photo, version in zip(photos, versions)]
            chosen = []
            for photo in photos:
                count = self._texts.sequences.many(photo)
                drawn = torch.randperm(count, generator=generator).tolist()
                chosen += [(photo, drawn[place % count]) for place in range(self._refs)]
            parts = cuts(len(photos), self._processes.count)
            begin, end = parts[self._processes.rank]
            own = list(enumerate(rows))[begin:max(end, begin + 1)] or [(0, rows[0])]
            yield _Plan(epoch, photos, chosen, own, tuple(stop - start for start, stop in parts))

    def parts(self, batch: Batch) -> list[tuple[Batch, float]]:
        """The share as it is: parts of a batch would be other contrasts. Each process computes the whole loss."""
        return [(batch, 1 / self._processes.count)]

    def wrap(self, model: nn.Module) -> nn.Module:
        """What losses are computed with, for `minivl.train.loop.fit`."""
        assert isinstance(model, CLIP)
        return Towers(model)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """`contrast` of the whole batch; the factor on the cosines is held to 100 at most. `model` is what `wrap` made,
        or the pair itself."""
        pair = next(module for module in model.modules() if isinstance(module, CLIP))
        limit_scale(pair)
        device, ids = pair.logit_scale.device, batch.ids
        if self._drop_words:
            words = ~torch.isin(ids, self._kept)
            ids = ids.masked_fill(words & (uniform(batch.seeds, ids.shape[1]) < self._drop_words), self._unknown)
        towers = self.wrap(model) if isinstance(model, CLIP) else model
        pictures, texts, scale = towers(batch.images.to(device, non_blocking=True), ids.to(device))
        pictures = self._processes.gather(pictures, batch.shares)  # (B, D)
        texts = self._processes.gather(texts, [count * self._refs for count in batch.shares])  # (B*r, D)
        with torch.autocast(device.type, enabled=False):
            return contrast(scale * (pictures @ texts.T), batch.positive.to(device))

    # -- validation ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Recalls of the validation pictures and captions, their mean first, and the loss of batches as in training."""
        assert isinstance(model, CLIP)
        limit_scale(model)
        images, texts, owner = self._encoded(model)
        cosines = images @ texts.T  # (n, m)
        if not cosines.isfinite().all():
            raise InputError("what the model says of the validation pictures is not a number: training has diverged, "
                             "try a lower learning rate")
        found = recall_at_k(cosines, ks=KS, owner=owner)
        self._signature = found.signature
        recalls = {f"{way}_r{k}": share for way, one in (("image_to_text", found.image_to_text),
                                                         ("text_to_image", found.text_to_image))
                   for k, share in one.items()}
        return {"mean_recall": sum(recalls.values()) / len(recalls), **recalls,
                "val_loss": self._val_loss(model.logit_scale.exp().item() * cosines)}

    def _val_loss(self, logits: Tensor) -> float:
        """`contrast` of all validation pictures with their first captions, in batches as in training."""
        texts, total = self._val_texts, 0.0
        counts = [texts.sequences.many(photo) for photo in range(len(texts))]
        begins = [0, *accumulate(counts)]  # place of the first caption of each
        for first, last in cuts(len(texts), -(-len(texts) // self._together)):
            photos = range(first, last)
            chosen = [(photo, place % counts[photo]) for photo in photos for place in range(self._refs)]
            columns = [begins[photo] + place for photo, place in chosen]
            loss = contrast(logits[first:last, columns], texts.positive(photos, chosen))
            total += loss.item() * len(photos)
        return total / len(texts)

    def _encoded(self, model: CLIP) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised features of the validation pictures (n, D) and captions (m, D), and whose captions they are."""
        texts = self._val_texts
        every = [(photo, place) for photo in range(len(texts)) for place in range(texts.sequences.many(photo))]
        device = model.logit_scale.device
        photos = [list(range(*ends)) for ends in cuts(len(texts), -(-len(texts) // CHUNK))]
        images = [features_of(model, batch) for batch in self._watched(
            fetched(self._val_images.__getitem__, photos, workers=self._workers), len(photos), "validation pictures")]
        parts = cuts(len(every), -(-len(every) // (4 * CHUNK)))
        said = [model.encode_text(texts.ids(every[first:last]).to(device)) for first, last in
                self._watched(parts, len(parts), "validation captions")]
        pictures, captions = (F.normalize(torch.cat(one).float(), dim=-1).cpu() for one in (images, said))
        return pictures, captions, torch.tensor([photo for photo, _ in every])

    def _watched(self, parts: Iterable[T], count: int, what: str) -> Iterable[T]:
        return parts if self._progress is None else self._progress(parts, total=count, desc=what)

    def save(self, model: nn.Module, path: Path, scores: Mapping[str, float]) -> None:
        """A weight file whose notes hold settings and scores."""
        assert isinstance(model, CLIP)
        model.notes = {**model.notes, **self._notes, "scores": {**scores, "signature": self._signature}}
        save(model, path)


def check_counts(pictures: int, val_pictures: int, source: str | None = None) -> None:
    """Raise InputError for fewer than two pictures to train or to validate on."""
    if min(pictures, val_pictures) < 2:
        raise InputError(f"{pictures} training and {val_pictures} validation pictures: at least 2 of each are needed, "
                         "to be told apart", source=source)


def unknown_id(tokenizer: Tokenizer) -> int:
    """The token that stands for a word left out.

    Raises:
        InputError: there is none of its own: CLIP's tokenizer, say, would end the text there.
    """
    unknown = tokenizer.unk_id
    if unknown is None or unknown in (tokenizer.bos_id, tokenizer.eos_id):
        raise InputError("has no token of its own for unknown words: words cannot be dropped, give drop_words=0 "
                         "(--drop-words 0)", source=tokenizer.source)
    return unknown


@torch.no_grad()
def limit_scale(model: CLIP) -> None:
    """Hold the factor on the cosines to 100 at most, in place."""
    model.logit_scale.clamp_(max=LARGEST_SCALE)


def features_of(model: CLIP, images: Tensor) -> Tensor:
    """Projected features (B, D) of pictures (B, 3, H, W), or of what `pooled` stored (B, k, D')."""
    images = images.to(model.logit_scale.device, non_blocking=True)
    return model.encode_image(images) if images.ndim == 4 else Probe(model.visual)(images)


@torch.no_grad()
def pooled(tower: ViT, tokens: Images, progress: Progress | None = None) -> Tensor:
    """What the projection of a frozen image tower sees of each picture, of all its tokens.

    Args:
        tower: of these tokens.
        tokens: (N, D) of each picture: what `features.compute_features` or `encode_images` give.
        progress: tqdm-like: called with (iterable, total=, desc=).

    Returns:
        (n, k, D) float32 on the CPU: the pooled feature and, with a distillation token, that one.
    """
    starts: Iterable[int] = range(0, len(tokens), CHUNK)
    if progress is not None:
        starts = progress(starts, total=-(-len(tokens) // CHUNK), desc="pooling features")
    rows = []
    for start in starts:
        part = tokens[list(range(start, min(start + CHUNK, len(tokens))))].to(tower.pos_embed.device).float()
        seen = [tower.pool(part), *([part[:, 1]] if tower.config.dist_token else [])]  # k of (B, D)
        rows.append(torch.stack(seen, 1).cpu())
    return torch.cat(rows)
