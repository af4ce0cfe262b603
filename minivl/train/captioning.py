"""Training captioners: cross-entropy over reference captions, scored by CIDEr-D of what they say."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.order import cuts
from ..data.workers import fetched
from ..errors import InputError
from ..loading import save
from ..metrics.cider import cider
from ..metrics.docfreq import DocFreq
from ..metrics.score import Score
from ..models.captioner import Caption, Captioner
from ..models.decoder import Memory
from ..models.vit import ViTConfig
from ..models.wishes import wishes
from ..search import Options
from ..search.sample import draw
from .caption_batches import IGNORED, Batch, Fetch, Look, Reading, Readings, uniform
from .caption_ids import Sequences, encode_captions
from .distributed import ALONE, Processes
from .features import Images


class TeacherForced(nn.Module):
    """Pictures and the captions they have to logits of every next word, in one pass: what losses are computed with.

    Args:
        model: the captioner; its parameters are those of this module.
        remember: ``(model, images) -> Memory``.
        unknown: id of a word that is hidden.
    """

    def __init__(self, model: Captioner, remember: Callable[[Captioner, Tensor], Memory], unknown: int) -> None:
        super().__init__()
        self.model, self._remember, self._unknown = model, remember, unknown

    def forward(self, images: Tensor, ids: Tensor, seen: Tensor | None = None, hidden: Tensor | None = None,
                said: Tensor | None = None) -> Tensor:
        """Logits (B*r, T, V).

        Args:
            images: (B, ...) what `remember` takes.
            ids: (B*r, T).
            seen: (B, N) which tokens of the memory the decoder sees; None: all.
            hidden: (B*r, T) which words are read as unknown; None: none.
            said: (B*r, T) numbers from 0 to 1 where a word is replaced by what the model says there itself, drawn by
                these numbers in a first pass without gradients; above 1: not replaced. None: no first pass.
        """
        memory = self._remember(self.model, images)
        if seen is not None:
            memory = memory._replace(mask=seen if memory.mask is None else seen & memory.mask)
        if said is not None:
            with torch.no_grad():
                logits = self.model(None, ids, memory=memory)
                ids = torch.where(said <= 1, shifted(draw(logits.float(), said.roll(-1, 1))), ids)
            torch.clear_autocast_cache()  # until torch 2.10 it kept casts of the weights that no gradient flows through
        if hidden is not None:
            ids = ids.masked_fill(hidden, self._unknown)
        return self.model(None, ids, memory=memory)


def shifted(ids: Tensor) -> Tensor:
    """What was said at each position (n, T), where it is read: one later; the first column is of no use."""
    return ids.roll(1, 1)


class CaptionTask:
    """`minivl.train.loop.Task` for captioners.

    Args:
        model: the captioner that will be trained (its tokenizer and config are read).
        images: training pictures; with mirrored versions, `views` times as many as captions.
        captions: references of each training picture.
        val_images: validation pictures.
        val_captions: name -> references of each validation picture, in the order of val_images.
        remember: ``(model, images) -> Memory``: `Captioner.encode` or, for features, `from_features`.
        batch_size: captions in a batch.
        refs: captions of a picture in a batch; they share its memory.
        smoothing: label smoothing.
        seed: of order and choice.
        views: versions of each picture in `images`.
        drop_tokens: probability with which a token of the memory is hidden from the decoder in training.
        drop_words: probability with which a word the decoder has read is made unknown in training, so that
            it looks at the picture more than at its own words (Bowman et al. 2016, section 3.1).
        sampling: probability with which at the end of the training a word the decoder reads is one it has drawn itself
            (scheduled sampling: Bengio et al. 2015); it rises in a line from 0. What is said is drawn in a first pass
            over the true words (Mihaylova and Martins 2019), in which no gradient is taken.
        read, bucket: see `Readings`.
        epochs: of the training.
        accumulate: micro-batches of a process's share.
        processes: among which each batch is shared.
        beams: of the validation captions.
        max_len: longest caption, <EOS> counted.
        workers: processes that read pictures.
        notes: added to those saved with the weights.
        progress: tqdm-like, for validation.
    """

    def __init__(self, model: Captioner, images: Images, captions: Sequence[Sequence[str]],
                 val_images: Images, val_captions: Mapping[str, Sequence[str]], *,
                 remember: Callable[[Captioner, Tensor], Memory], batch_size: int = 64, refs: int = 1,
                 smoothing: float = 0.0, seed: int = 0, views: int = 1, drop_tokens: float = 0.0,
                 drop_words: float = 0.0, sampling: float = 0.0, read: str = "refs", bucket: bool = False,
                 epochs: int = 1, accumulate: int = 1, beams: int = 3, max_len: int = 30, workers: int = 0,
                 processes: Processes = ALONE, notes: Mapping[str, Any] | None = None,
                 progress: Callable[..., Iterable[Any]] | None = None) -> None:
        tokenizer, encoder = model.tokenizer, model.config.encoder
        if tokenizer is None:
            raise InputError("a captioner is trained with a tokenizer; this one has none")
        if len(images) != views * len(captions) or len(val_images) != len(val_captions):
            raise InputError("as many pictures as sets of captions are needed")
        if len(captions) < 1 or len(val_captions) < 2:
            raise InputError(f"{len(captions)} training and {len(val_captions)} validation pictures: "
                             "at least 1 and 2 are needed (CIDEr-D compares pictures)")
        check_references(val_captions)
        longest = model.config.decoder.max_len - 1  # a place for <BOS>
        for name, value in (("beams", beams), ("accumulate", accumulate), ("max_len", max_len)):
            if value < 1:
                raise InputError(f"{name}={value}: give 1 or more")
        if max_len > longest:
            raise InputError(f"max_len={max_len}: give at most {longest}, which this decoder has room for")
        device = model.decoder.embed.weight.device
        wishes(Options(beams=beams, max_len=max_len), model.config.decoder, tokenizer, device)  # as validation will
        if drop_tokens and not isinstance(encoder, ViTConfig):
            raise InputError(f"drop_tokens={drop_tokens}: only a ViT has as many tokens for every picture; give 0")
        sequences, val_sequences = (Sequences(encode_captions(list(told), tokenizer, max_len) for told in one)
                                    for one in (captions, val_captions.values()))
        self._readings = Readings(sequences.lengths, batch_size=batch_size, refs=refs, seed=seed, views=views,
                                  read=read, bucket=bucket, epochs=epochs, processes=processes)
        pad_id = model.config.decoder.pad_id
        self._train = Fetch(images, sequences, pad_id, seed)
        self._val, self._val_captions = Fetch(val_images, val_sequences, pad_id), val_captions
        self._remember, self._smoothing, self._accumulate = remember, smoothing, accumulate
        self._several = processes.count > 1
        self._drop_tokens, self._drop_words, self._sampling = drop_tokens, drop_words, sampling
        self._n_tokens = encoder.n_tokens if isinstance(encoder, ViTConfig) else 0
        self._unknown = tokenizer.pad_id if tokenizer.unk_id is None else tokenizer.unk_id
        self._beams, self._max_len, self._workers = beams, max_len, workers
        self._notes, self._progress = dict(notes or {}), progress
        self._pin = model.decoder.embed.weight.device.type == "cuda"
        self._signature: str | None = None  # of the last score
        self.steps = self._readings.steps
        self.cut = sequences.cut(tokenizer.eos_id)

    # -- training ----------------------------------------------------------------------------------------

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """This process's share of each batch of an epoch, in an order of (seed, epoch)."""
        return fetched(self._train, self._readings.of(epoch, start), workers=self._workers, pin=self._pin)

    def parts(self, batch: Batch) -> list[tuple[Batch, float]]:
        """Micro-batches, weighted by their tokens among those of the whole batch."""
        places = [(first, last) for first, last in cuts(len(batch.images) if batch.counted else 0, self._accumulate)
                  if last > first or self._several]  # processes wait for each other: all make as many passes
        parts = [batch.part(first, last) if last > first else batch.part(0, 1) for first, last in places]
        counts = [int((part.targets != IGNORED).sum()) * (last > first) for part, (first, last) in zip(parts, places)]
        return [(part, count / (batch.tokens or sum(counts))) for part, count in zip(parts, counts)]

    def wrap(self, model: nn.Module) -> nn.Module:
        """What losses are computed with, for `minivl.train.loop.fit`."""
        assert isinstance(model, Captioner)
        return TeacherForced(model, self._remember, self._unknown)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean cross-entropy per token, with label smoothing; `model` is what `wrap` made, or the captioner itself.

        What is hidden or replaced is drawn from (seed, epoch, picture and caption): any division of a batch draws the
        same.
        """
        device = next(model.parameters()).device
        if isinstance(model, Captioner):
            model = self.wrap(model)
        pictures, captions = batch.seeds[:, 0], batch.seeds[:, 1:].flatten()  # (B,), (B*r,)
        length = batch.ids.shape[1]
        seen = hidden = said = None
        if self._drop_tokens:
            seen = (uniform(pictures, self._n_tokens) >= self._drop_tokens).to(device)
        if self._drop_words:
            hidden = uniform(captions, length) < self._drop_words
            hidden[:, 0] = False  # <BOS> is no word
            hidden = hidden.to(device)
        if self._sampling and batch.done:
            kept = uniform(captions, length, stream=1) >= self._sampling * batch.done
            kept[:, 0] = True
            said = uniform(captions, length, stream=2).masked_fill(kept, 2.0).float().to(device)
        logits = model(batch.images.to(device, non_blocking=True), batch.ids.to(device), seen, hidden, said)
        return _cross_entropy(logits, batch.targets, self._smoothing)

    def _memory(self, model: Captioner, batch: Batch) -> Memory:
        return self._remember(model, batch.images.to(model.decoder.embed.weight.device, non_blocking=True))

    # -- validation --------------------------------------------------------------------------------------

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """CIDEr-D of beam-search captions of the validation pictures, and their references' loss."""
        assert isinstance(model, Captioner)
        found, loss, tokens, pictures = [], 0.0, 0, len(self._val_captions)
        # one reference per picture is enough to follow the loss
        readings = [Reading([Look(photo, (0,), 0) for photo in range(start, min(start + 64, pictures))])
                    for start in range(0, pictures, 64)]
        batches: Iterable[Batch] = fetched(self._val, readings, workers=self._workers, pin=self._pin)
        if self._progress is not None:
            batches = self._progress(batches, total=len(readings), desc="validation")
        for batch in batches:
            count = int((batch.targets != IGNORED).sum())
            memory = self._memory(model, batch)
            logits = model(None, batch.ids.to(memory.tokens.device), memory=memory)
            loss += _cross_entropy(logits, batch.targets, 0.0).item() * count
            tokens += count
            found += model.caption(memory, beams=self._beams, max_len=self._max_len)
        result = score(found, self._val_captions)
        self._signature = result.signature
        return {"cider_d": result.score, "val_loss": loss / tokens}

    def save(self, model: nn.Module, path: Path, scores: Mapping[str, float]) -> None:
        """A weight file whose notes hold settings and scores."""
        assert isinstance(model, Captioner)
        model.notes = {**model.notes, **self._notes, "scores": {**scores, "signature": self._signature}}
        save(model, path)


def _cross_entropy(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """Mean over the tokens that are no padding; of (n, T, V) and (n, T)."""
    return F.cross_entropy(logits.flatten(0, 1), targets.to(logits.device).flatten(), ignore_index=IGNORED,
                           label_smoothing=smoothing)


def score(captions: Sequence[Caption], references: Mapping[str, Sequence[str]]) -> Score:
    """CIDEr-D of captions in the order of their references."""
    said = {name: caption.text or "" for name, caption in zip(references, captions)}
    return cider(said, {name: list(told) for name, told in references.items()})


def check_references(references: Mapping[str, Sequence[str]]) -> None:
    """Find before training what would end its first scoring.

    Raises:
        InputError: fewer than two pictures, or captions that CIDEr-D cannot compare with; it names the picture.
    """
    if len(references) < 2:
        raise InputError(f"{len(references)} validation pictures: at least 2 are needed (CIDEr-D compares pictures)")
    DocFreq.from_references({name: list(told) for name, told in references.items()})


def from_features(model: Captioner, features: Tensor) -> Memory:
    """Stored tokens (B, N, D) in any dtype to a memory."""
    return model.memory(features.to(model.decoder.embed.weight.dtype))
