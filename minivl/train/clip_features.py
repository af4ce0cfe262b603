"""Features of photos and texts by a CLIP, as programs need them: loaded, named, batch by batch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.photos import photo_batches
from ..errors import InputError, counted, quoted
from ..files import tensor_bytes
from ..images import Photo
from ..loading import load
from ..models.clip import CLIP
from .loop import autocast

TOGETHER = 64  # photos, or four times as many texts, encoded in one pass

Progress = Callable[..., Iterable[Any]]


def load_clip(weights: str | PathLike[str], device: torch.device | str = "cpu") -> CLIP:
    """A CLIP that can be shown photos and told texts, in float32.

    Raises:
        InputError: as `minivl.load`; no CLIP, or one without tokenizer or of unknown preprocessing.
    """
    model = load(weights)
    if not isinstance(model, CLIP):
        raise InputError(f"is a {model.kind}; a CLIP is needed, which has features of images and of texts",
                         source=weights)
    if model.tokenizer is None:
        raise InputError("this CLIP has no tokenizer: convert it with --tokenizer", source=weights)
    if model.preprocessing is None:
        raise InputError("its preprocessing is unknown, so photos cannot be given to it: name the file after a "
                         "preset, or save it with minivl.save", source=weights)
    return model.to(device).float()


def check_reads(clip: CLIP, texts: Sequence[str], *, source: str | PathLike[str]) -> None:
    """Whether a CLIP can read captions: where it lacks most of their words, its features of them mean nothing.

    Args:
        clip: any.
        texts: captions, without a prefix; empty ones say nothing.
        source: who reads them, for the error.

    Raises:
        InputError: it has no tokenizer, or in half of the texts half of the tokens are unknown to it.
    """
    if clip.tokenizer is None:
        raise InputError("this CLIP has no tokenizer: it cannot read captions", source=source)
    unknown = clip.tokenizer.unk_id
    said = [text for text in texts if text.strip()]
    lost = [text for text, ids in zip(said, clip.tokenizer.encode_batch(said))
            if sum(id == unknown for id in ids) * 2 >= len(ids)]
    if lost and len(lost) * 2 >= len(said):
        raise InputError(f"this CLIP cannot read {len(lost)} of {counted(len(said), 'caption')}, such as "
                         f"{quoted(lost[0])}: half of their words or more are unknown to it; give one that was trained "
                         "on such captions", source=source)


def clip_name(clip: CLIP, weights: str | PathLike[str], precision: str = "fp32") -> str:
    """What a signature says of a CLIP: its file's stem (or hub id), a hash of all that decides a feature, precision.

    Two files of one name have two hashes, and one file under two names is told by its hash:
    ``"scenes-clip@1a2b3c4d(fp32)"``.
    """
    assert clip.preprocessing is not None and clip.tokenizer is not None  # `load_clip` saw to it
    digest = hashlib.sha256(json.dumps([asdict(clip.config), clip.preprocessing.to_dict()], sort_keys=True).encode())
    digest.update(clip.tokenizer.to_json().encode())
    for name, tensor in sorted(clip.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor_bytes(tensor))
    stem = fspath(weights)
    stem = Path(stem).stem if stem.endswith(".safetensors") else stem
    return f"{stem}@{digest.hexdigest()[:8]}({precision})"


@torch.no_grad()
def image_features(clip: CLIP, photos: Sequence[Photo], *, precision: str = "fp32", workers: int = 0,
                   progress: Progress | None = None) -> Tensor:
    """Features of photos.

    Args:
        clip: of `load_clip`.
        photos: files or PIL images.
        precision: "fp32", "bf16" or "fp16" (autocast).
        workers: processes that read photos.
        progress: tqdm-like: called with (iterable, total=, desc=).

    Returns:
        (B, D) float32 on the CPU, projected, not normalised.

    Raises:
        InputError: a photo that does not open, or whose features are not numbers.
    """
    assert clip.preprocessing is not None
    device, rows, done = clip.logit_scale.device, [], 0
    batches: Iterable[Tensor] = photo_batches(photos, clip.preprocessing, clip.cell, TOGETHER, workers=workers)
    if progress is not None:
        batches = progress(batches, total=-(-len(photos) // TOGETHER), desc="encoding photos")
    for images in batches:
        with autocast(device, precision):
            found = clip.encode_image(images.to(device)).float().cpu()  # (B, D)
        _finite(found, [str(photo) for photo in photos[done:done + len(found)]], precision)
        done += len(found)
        rows.append(found)
    return torch.cat(rows) if rows else torch.zeros(0, clip.config.text.embed_dim)


@torch.no_grad()
def text_features(clip: CLIP, texts: Sequence[str], *, precision: str = "fp32",
                  progress: Progress | None = None) -> Tensor:
    """Features of texts; one that is too long is cut before its end token.

    Args:
        clip: of `load_clip`.
        texts: whole, with whatever prefix they need; each different one is computed once.
        precision: "fp32", "bf16" or "fp16" (autocast).
        progress: tqdm-like: called with (iterable, total=, desc=).

    Returns:
        (B, D) float32 on the CPU, projected, not normalised.

    Raises:
        InputError: a text that is no string, or whose features are not numbers.
    """
    places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    different, device, rows = list(places), clip.logit_scale.device, []
    starts: Iterable[int] = range(0, len(different), 4 * TOGETHER)
    if progress is not None:
        starts = progress(starts, total=-(-len(different) // (4 * TOGETHER)), desc="encoding texts")
    for first in starts:
        part = different[first:first + 4 * TOGETHER]
        ids = clip.tokenize(part)
        last = int(clip.text.ends(ids).max()) + 1  # nothing looks beyond the end of a text
        with autocast(device, precision):
            rows.append(clip.encode_text(ids[:, :last]).float().cpu())  # (b, D)
        _finite(rows[-1], [repr(text[:60]) for text in part], precision)
    if not rows:
        return torch.zeros(0, clip.config.text.embed_dim)
    return torch.cat(rows)[[places[text] for text in texts]]


def _finite(features: Tensor, names: Sequence[str], precision: str) -> None:
    """Raise InputError for features that are no numbers, with the name of the first."""
    wrong = ~features.isfinite().all(1)
    if wrong.any():
        raise InputError("its features by this CLIP are not numbers: the weights are damaged, or --precision "
                         f"{precision} is too coarse for them", source=names[int(wrong.int().argmax())])
