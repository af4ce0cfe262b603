"""Features of a frozen encoder, computed once and memory-mapped.

A cache lies in a folder whose name is a hash of the weights, the preprocessing, the dtype and the view, and
every row is found by the hash of its photo's bytes: a stale row cannot be read, and a changed photo is
computed anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, some
from ..files import read_json, sha256, tensor_bytes, write_json
from ..images import preprocess
from ..models.vit import ViT
from .loop import PRECISIONS, autocast

# fields of a ViT's config that change no feature, or are told by another (norm_after_pool, by which tensors there are)
IDLE = ("num_classes", "dropout", "attn_dropout", "drop_path", "head_bias", "resize", "norm_after_pool")

logger = logging.getLogger(__name__)


class Images(Protocol):
    """Pictures by number, as what a model takes."""

    def __len__(self) -> int:
        ...

    def __getitem__(self, photos: Sequence[int], /) -> Tensor:
        """The tensor of these pictures, first dimension len(photos)."""
        ...


class Features:
    """Tokens of many photos on disk.

    Args:
        file: the memory-mapped rows.
        rows: row of each photo, in the caller's order.
        shape: (N, D) of a row.
        dtype: of a row.
    """

    def __init__(self, file: Path, rows: Sequence[int], shape: tuple[int, int], dtype: torch.dtype) -> None:
        self._file, self._rows, self._shape, self._dtype = file, list(rows), shape, dtype
        self._map: np.memmap | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, photos: Sequence[int]) -> Tensor:
        """Rows (len(photos), N, D) of photos, by the caller's numbering; in the cache's dtype."""
        if self._map is None:  # opened where it is read, so that a worker process maps it itself
            self._map = np.memmap(self._file, dtype=np.uint8, mode="r")
        size = self._shape[0] * self._shape[1] * self._dtype.itemsize
        rows = [self._rows[photo] for photo in photos]
        data = np.stack([self._map[row * size:(row + 1) * size] for row in rows])
        return torch.from_numpy(data).view(self._dtype).unflatten(1, self._shape)


def encoder_key(encoder: ViT, dtype: str, flip: bool) -> str:
    """Hash of all that decides a feature beside the photo."""
    if encoder.preprocessing is None:
        raise InputError("the encoder's preprocessing is unknown, so its features cannot be cached")
    # Only what departs from the defaults, so that a field added to the config makes no cache stale.
    config = {field.name: value for field in fields(encoder.config)
              if (value := getattr(encoder.config, field.name)) != field.default and field.name not in IDLE}
    digest = hashlib.sha256(json.dumps([config, encoder.preprocessing.to_dict(), dtype, flip],
                                       sort_keys=True).encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()[:16]


def compute_features(encoder: ViT, photos: Sequence[Path], cache: str | os.PathLike[str], *,
                     dtype: str = "bf16", flip: bool = False, batch_size: int = 64,
                     progress: Callable[..., Iterable[Any]] | None = None) -> Features:
    """Features of photos, from the cache where they are there.

    Args:
        encoder: frozen, with known preprocessing.
        photos: files.
        cache: folder of all caches.
        dtype: "bf16" or "fp32", of the computation (by autocast) and of the stored rows.
        flip: of the photos mirrored left to right.
        batch_size: photos encoded together.
        progress: tqdm-like: called with (iterable, total=, desc=).

    Returns:
        `Features`; row i belongs to ``photos[i]``.

    Raises:
        InputError: a photo that does not open, or a dtype that is not known.
    """
    if dtype not in PRECISIONS:
        raise InputError(f"feature dtype {dtype!r}: give one of {some(PRECISIONS)}")
    folder = Path(cache) / encoder_key(encoder, dtype, flip)
    folder.mkdir(parents=True, exist_ok=True)
    named: Iterable[Path] = photos
    if progress is not None:
        named = progress(photos, total=len(photos), desc="hashing photos")
    hashes = [sha256(photo) for photo in named]
    shape = (encoder.config.n_tokens, encoder.config.width)
    file, index_file = folder / "rows.bin", folder / "rows.json"
    with _locked(folder / "lock"):
        index = _read_index(index_file, file, shape[0] * shape[1] * PRECISIONS[dtype].itemsize)
        missing = {digest: photo for digest, photo in zip(hashes, photos) if digest not in index}
        todo = list(missing.items())
        starts: Iterable[int] = range(0, len(todo), batch_size)
        if progress is not None and todo:
            starts = progress(starts, total=-(-len(todo) // batch_size), desc="encoding photos")
        encoder.eval()
        for number, start in enumerate(starts, 1):
            part = todo[start:start + batch_size]
            images, _ = preprocess([photo for _, photo in part], encoder)
            rows = _encode(encoder, images.flip(-1) if flip else images, dtype)
            index_due = number % 16 == 0 or start + batch_size >= len(todo)
            with open(file, "r+b" if file.exists() else "wb") as opened:
                # rows behind the index are leftovers of a run that was stopped: write over them
                opened.seek(len(index) * rows[0].numel() * rows.element_size())
                opened.write(tensor_bytes(rows))
                if index_due:  # on disk before the index that names them, whatever happens to the machine
                    opened.flush()
                    os.fsync(opened.fileno())
            index.update({digest: len(index) + place for place, (digest, _) in enumerate(part)})
            if index_due:
                write_json(index_file, index)
    return Features(file, [index[digest] for digest in hashes], shape, PRECISIONS[dtype])


def _read_index(index_file: Path, file: Path, row_size: int) -> dict[str, int]:
    """Row of each photo's hash; empty where there is no index, or one that its rows do not bear out."""
    if not index_file.exists():
        return {}
    try:
        index = read_json(index_file)
        if sorted(index.values()) == list(range(len(index))) and file.stat().st_size >= len(index) * row_size:
            return index
    except (InputError, OSError, AttributeError, TypeError):
        pass
    logger.warning("%s: damaged, its features are computed anew", index_file.parent)
    return {}


@torch.no_grad()
def _encode(encoder: ViT, images: Tensor, dtype: str) -> Tensor:
    images = images.to(encoder.pos_embed.device)
    with autocast(images.device, dtype):
        return encoder.encode(images).to("cpu", PRECISIONS[dtype])


def encode_images(encoder: ViT, images: Images, *, dtype: str = "bf16", batch_size: int = 64,
                  progress: Callable[..., Iterable[Any]] | None = None) -> Tensor:
    """Features of pictures that are no files, kept in memory: (n, N, D) on the CPU; see `compute_features`."""
    starts: Iterable[int] = range(0, len(images), batch_size)
    if progress is not None:
        starts = progress(starts, total=-(-len(images) // batch_size), desc="encoding pictures")
    encoder.eval()
    return torch.cat([_encode(encoder, images[list(range(start, min(start + batch_size, len(images))))], dtype)
                      for start in starts])


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time fills a cache; the lock goes with the process."""
    with open(path, "w") as opened:
        try:
            import fcntl
        except ImportError:  # Windows has none
            logger.warning("%s: this system locks no files: let one program at a time fill this folder", path.parent)
        else:
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                logger.info("%s: another process is filling this folder, waiting for it", path.parent)
                fcntl.flock(opened, fcntl.LOCK_EX)
        yield
