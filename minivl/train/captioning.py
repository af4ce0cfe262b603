"""Training captioners: cross-entropy over reference captions, scored by CIDEr-D of what they say."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from ..errors import InputError
from ..images import Preprocessing, preprocess
from ..loading import save
from ..metrics.cider import cider
from ..metrics.docfreq import DocFreq
from ..metrics.score import Score
from ..models.captioner import Caption, Captioner
from ..models.clip import CLIP
from ..models.decoder import Memory
from ..text.tokenizer import Tokenizer
from .features import Features, Images

IGNORED = -100  # target of a padded position


class Photos:
    """Photos read and preprocessed each time they are asked for.

    Args:
        files: the photos.
        model: whose preprocessing applies.
    """

    def __init__(self, files: Sequence[Path], model: Captioner | CLIP) -> None:
        self._files, self._model = list(files), _Recipe(model.preprocessing, model.cell)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, photos: Sequence[int]) -> Tensor:
        """(len(photos), 3, H, W)."""
        return preprocess([self._files[photo] for photo in photos], self._model)[0]


class _Recipe(NamedTuple):
    """What `preprocess` reads of a model, without its weights (worker processes get a copy)."""

    preprocessing: Preprocessing | None
    cell: tuple[int, int]


class Pixels:
    """Pictures of one size kept in memory as bytes.

    Args:
        pixels: (n, H, W, 3) uint8.
        preprocessing: its mean and std apply.
    """

    def __init__(self, pixels: np.ndarray, preprocessing: Preprocessing) -> None:
        if tuple(pixels.shape[1:3]) != preprocessing.size:
            raise InputError(f"pixels of {pixels.shape[1:3]}, the model takes {preprocessing.size}")
        self._pixels = torch.from_numpy(pixels)
        self._mean = torch.tensor(preprocessing.mean)[:, None, None]
        self._std = torch.tensor(preprocessing.std)[:, None, None]

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, photos: Sequence[int]) -> Tensor:
        """(len(photos), 3, H, W)."""
        chosen = self._pixels[torch.as_tensor(photos)].permute(0, 3, 1, 2)
        return (chosen.float() / 255 - self._mean) / self._std


class Views:
    """Several versions of the same pictures (mirrored features, say): which one is drawn per look.

    A number i of the first len(views[0]) pictures with version v is asked for as ``i + v * len(views[0])``.

    Args:
        views: alike in length and shape.
    """

    def __init__(self, views: Sequence[Features]) -> None:
        self._views = list(views)

    def __len__(self) -> int:
        return sum(len(view) for view in self._views)

    def __getitem__(self, photos: Sequence[int]) -> Tensor:
        """Rows of the asked versions."""
        count = len(self._views[0])
        return torch.cat([self._views[photo // count][[photo % count]] for photo in photos])


class Batch(NamedTuple):
    """Pictures and r captions of each.

    Attributes:
        images: (B, ...) what `remember` takes.
        ids: (B*r, T) <BOS> and words; captions of a picture side by side.
        targets: (B*r, T) words and <EOS>; padding is `IGNORED`.
    """

    images: Tensor
    ids: Tensor
    targets: Tensor


class _Fetch(Dataset["Batch | InputError"]):
    """Batches by their plan; runs in worker processes, so that errors are handed over, not raised."""

    def __init__(self, images: Images, sequences: Sequence[Sequence[Tensor]], pad_id: int) -> None:
        self._images, self._sequences, self._pad_id = images, sequences, pad_id

    def __getitem__(self, plan: tuple[list[int], list[tuple[int, int]]]) -> Batch | InputError:
        try:
            return self.batch(*plan)
        except InputError as error:
            return error  # raised in a worker, it would come out wrapped in a traceback

    def batch(self, photos: list[int], chosen: list[tuple[int, int]]) -> Batch:
        """These pictures with these (picture, caption)s."""
        sequences = [self._sequences[photo][caption] for photo, caption in chosen]
        ids = pad_sequence([row[:-1] for row in sequences], batch_first=True, padding_value=self._pad_id)
        targets = pad_sequence([row[1:] for row in sequences], batch_first=True, padding_value=IGNORED)
        return Batch(self._images[photos], ids, targets)


def encode_captions(captions: Sequence[str], tokenizer: Tokenizer, max_len: int) -> list[Tensor]:
    """<BOS> words <EOS> as ids, at most max_len + 1 of them: a longer caption is cut and has no <EOS>."""
    encoded = tokenizer.encode_batch(captions)
    return [torch.tensor([tokenizer.bos_id, *ids, tokenizer.eos_id][: max_len + 1]) for ids in encoded]


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
                 drop_words: float = 0.0, beams: int = 3, max_len: int = 30, workers: int = 0,
                 notes: Mapping[str, Any] | None = None,
                 progress: Callable[..., Iterable[Any]] | None = None) -> None:
        tokenizer = model.tokenizer
        if tokenizer is None:
            raise InputError("a captioner is trained with a tokenizer; this one has none")
        if refs < 1 or batch_size < refs:
            raise InputError(f"batch_size={batch_size} must hold at least the {refs} captions of one picture")
        if len(images) != views * len(captions) or len(val_images) != len(val_captions):
            raise InputError("as many pictures as sets of captions are needed")
        if len(captions) < 1 or len(val_captions) < 2:
            raise InputError(f"{len(captions)} training and {len(val_captions)} validation pictures: "
                             "at least 1 and 2 are needed (CIDEr-D compares pictures)")
        check_references(val_captions)
        longest = model.config.decoder.max_len - 1  # a place for <BOS>
        if beams < 1 or not 1 <= max_len <= longest:
            raise InputError(f"beams={beams} must be at least 1, max_len={max_len} from 1 to this decoder's "
                             f"{longest}")
        self._images, self._val_images, self._val_captions = images, val_images, val_captions
        self._sequences = [encode_captions(list(told), tokenizer, max_len) for told in captions]
        self._val_sequences = [encode_captions(list(told), tokenizer, max_len)
                               for told in val_captions.values()]
        self._remember, self._refs, self._smoothing, self._seed = remember, refs, smoothing, seed
        self._views, self._drop_tokens, self._drop_words = views, drop_tokens, drop_words
        self._unknown = tokenizer.pad_id if tokenizer.unk_id is None else tokenizer.unk_id
        self._beams, self._max_len, self._workers = beams, max_len, workers
        self._notes, self._progress = dict(notes or {}), progress
        self._pad_id = model.config.decoder.pad_id
        self._signature: str | None = None  # of the last score
        self._together = max(1, batch_size // refs)  # pictures of a batch
        self.steps = -(-len(captions) // self._together)
        self.cut = sum(int(row[-1]) != tokenizer.eos_id for rows in self._sequences for row in rows)

    # -- training ----------------------------------------------------------------------------------------

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """Every picture once, in an order of (seed, epoch), each with `refs` of its captions."""
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
        order = torch.randperm(len(self._sequences), generator=generator).tolist()
        plans = []
        for first in range(0, len(order), self._together):
            chosen, photos = [], []
            for photo in order[first:first + self._together]:
                count = len(self._sequences[photo])
                drawn = torch.randperm(count, generator=generator).tolist()
                chosen += [(photo, drawn[place % count]) for place in range(self._refs)]
                view = int(torch.randint(self._views, (), generator=generator))
                photos.append(photo + view * len(self._sequences))
            plans.append((photos, chosen))
        fetch = _Fetch(self._images, self._sequences, self._pad_id)
        loader: DataLoader[Batch | InputError] = DataLoader(
            fetch, batch_size=None, sampler=plans[start:],
            num_workers=self._workers, generator=generator)
        for batch in loader:
            if isinstance(batch, InputError):
                raise batch
            yield batch

    def parts(self, batch: Batch) -> list[tuple[Batch, float]]:
        """The batch as it is."""
        return [(batch, 1.0)]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean cross-entropy per token, with label smoothing."""
        assert isinstance(model, Captioner)
        memory = self._memory(model, batch)
        if self._drop_tokens:
            drawn = torch.rand(memory.tokens.shape[:2], device=memory.tokens.device)  # (B, N)
            memory = memory._replace(mask=drawn >= self._drop_tokens)
        if self._drop_words:
            hidden = torch.rand(batch.ids.shape) < self._drop_words
            hidden[:, 0] = False  # <BOS> is no word
            batch = batch._replace(ids=batch.ids.masked_fill(hidden, self._unknown))
        return _cross_entropy(model, memory, batch, self._smoothing)

    def _memory(self, model: Captioner, batch: Batch) -> Memory:
        return self._remember(model, batch.images.to(model.decoder.embed.weight.device, non_blocking=True))

    # -- validation --------------------------------------------------------------------------------------

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """CIDEr-D of beam-search captions of the validation pictures, and their references' loss."""
        assert isinstance(model, Captioner)
        found, loss, tokens = [], 0.0, 0
        fetch = _Fetch(self._val_images, self._val_sequences, self._pad_id)
        starts: Iterable[int] = range(0, len(self._val_images), 64)
        if self._progress is not None:
            starts = self._progress(starts, total=-(-len(self._val_images) // 64), desc="validation")
        for start in starts:
            photos = list(range(start, min(start + 64, len(self._val_images))))
            # one reference per picture is enough to follow the loss
            batch = fetch.batch(photos, [(photo, 0) for photo in photos])
            count = int((batch.targets != IGNORED).sum())
            memory = self._memory(model, batch)
            loss += _cross_entropy(model, memory, batch, 0.0).item() * count
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


def _cross_entropy(model: Captioner, memory: Memory, batch: Batch, smoothing: float) -> Tensor:
    """Mean over the tokens that are no padding."""
    logits = model(None, batch.ids.to(memory.tokens.device), memory=memory)  # (B*r, T, V)
    return F.cross_entropy(logits.flatten(0, 1), batch.targets.to(logits.device).flatten(),
                           ignore_index=IGNORED, label_smoothing=smoothing)


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
