"""Features of a frozen encoder, computed once and memory-mapped.

A cache lies in a folder whose name is a hash of the weights, the preprocessing, the dtype and the view (mirrored or
how it is augmented), and every row is found by the hash of its photo's bytes: a stale row cannot be read, and a changed
photo is computed anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from ..data.augment import View
from ..data.pictures import Files, Members
from ..data.workers import fetched
from ..errors import InputError, some
from ..files import read_json, sha256, tensor_bytes, write_json
from ..images import Preprocessing, preprocess
from ..models.vit import ViT
from .locks import locked
from .loop import PRECISIONS, autocast

# fields of a ViT's config that change no feature, or are told by another (norm_after_pool, by which tensors there are)
IDLE = ("num_classes", "dropout", "attn_dropout", "drop_path", "head_bias", "resize", "norm_after_pool")

INDEXED = 16  # batches after which their rows are named in the index, at the soonest
SELDOM = 20  # times as long as that writing takes is the pause between two

Progress = Callable[..., Iterable[Any]]

logger = logging.getLogger(__name__)


class Images(Protocol):
    """Pictures by number, as what a model takes."""

    def __len__(self) -> int:
        ...

    def __getitem__(self, photos: Sequence[int], /) -> Tensor:
        """The tensor of these pictures, first dimension len(photos)."""
        ...


class Recipe(NamedTuple):
    """What `preprocess` reads of a model, without its weights (worker processes get a copy)."""

    preprocessing: Preprocessing | None
    cell: tuple[int, int]


class Features:
    """Tokens of many photos on disk.

    Args:
        file: the memory-mapped rows.
        rows: row of each photo, in the caller's order.
        shape: (N, D) of a row.
        dtype: of a row.
    """

    def __init__(self, file: Path, rows: Sequence[int], shape: tuple[int, int], dtype: torch.dtype) -> None:
        self._file, self._rows, self._shape, self._dtype = file, np.array(rows, np.int64), shape, dtype
        self._map: np.memmap | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, photos: Sequence[int]) -> Tensor:
        """Rows (len(photos), N, D) of photos, by the caller's numbering; in the cache's dtype."""
        if self._map is None:  # opened where it is read, so that a worker process maps it itself
            self._map = np.memmap(self._file, dtype=np.uint8, mode="r")
        size = self._shape[0] * self._shape[1] * self._dtype.itemsize
        rows = self._rows[list(photos)].tolist()
        data = np.stack([self._map[row * size:(row + 1) * size] for row in rows])
        return torch.from_numpy(data).view(self._dtype).unflatten(1, self._shape)


def encoder_key(encoder: ViT, dtype: str, flip: bool, view: View | None = None) -> str:
    """Hash of all that decides a feature beside the photo."""
    if encoder.preprocessing is None:
        raise InputError("the encoder's preprocessing is unknown, so its features cannot be cached")
    # Only what departs from the defaults, so that a field added to the config makes no cache stale.
    config = {field.name: value for field in fields(encoder.config)
              if (value := getattr(encoder.config, field.name)) != field.default and field.name not in IDLE}
    shown = flip if view is None else asdict(view)
    digest = hashlib.sha256(json.dumps([config, encoder.preprocessing.to_dict(), dtype, shown],
                                       sort_keys=True).encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()[:16]


def hash_photos(photos: Sequence[Path] | Files | Members, progress: Progress | None = None) -> list[str]:
    """SHA-256 of the bytes of each photo.

    Args:
        photos: files, or photos of shards.
        progress: tqdm-like: called with (iterable, total=, desc=).

    Raises:
        InputError: a photo that cannot be read.
    """
    places: Iterable[int] = range(len(photos))
    if progress is not None:
        places = progress(places, total=len(photos), desc="hashing photos")
    if isinstance(photos, (Files, Members)):
        return [photos.digest(place) for place in places]
    return [sha256(photos[place]) for place in places]


def check_closed(encoder: ViT, cache: str | os.PathLike[str], dtype: str, views: Iterable[Mapping[str, Any]]) -> None:
    """Find before photos are read what would end the writing of their features.

    Args:
        encoder, cache, dtype: as of `compute_features`.
        views: its flip or view, of each time it will be called.

    Raises:
        InputError: the cache is closed to writing, and holds nothing of this encoder and one of these views.
    """
    if os.access(cache, os.W_OK | os.X_OK) or not Path(cache).exists():
        return
    for how in views:
        if not (Path(cache) / encoder_key(encoder, dtype, **{"flip": False, **how})).is_dir():
            raise InputError("is closed to writing, and holds no features of this encoder: give another --features",
                             source=cache)


@contextlib.contextmanager
def _naming(folder: Path) -> Iterator[None]:
    """An error of the system about the cache is one that names its folder and the way out."""
    try:
        yield
    except OSError as error:
        named = error.filename is not None
        if error.errno is None or (named and folder not in (Path(error.filename), *Path(error.filename).parents)):
            raise  # of a photo
        raise InputError(f"features cannot be written here ({error.strerror}): give another --features",
                         source=folder) from None


def compute_features(encoder: ViT, photos: Sequence[Path] | Files | Members, cache: str | os.PathLike[str], *,
                     dtype: str = "bf16", flip: bool = False, view: View | None = None,
                     hashes: Sequence[str] | None = None, batch_size: int = 64, workers: int = 0,
                     progress: Progress | None = None) -> Features:
    """Features of photos, from the cache where they are there.

    Args:
        encoder: frozen, with known preprocessing.
        photos: files, or photos of shards.
        cache: folder of all caches.
        dtype: "bf16", "fp16" or "fp32", of the computation (by autocast) and of the stored rows.
        flip: of the photos mirrored left to right.
        view: of this drawn version of them.
        hashes: `hash_photos` of them, if they are known.
        batch_size: photos encoded together.
        workers: processes that read photos.
        progress: tqdm-like: called with (iterable, total=, desc=).

    Returns:
        `Features`; row i belongs to ``photos[i]``.

    Raises:
        InputError: a photo that does not open, a dtype that is not known, a view together with flip, or a cache that
            lacks features and cannot be written.
    """
    if dtype not in PRECISIONS:
        raise InputError(f"feature dtype {dtype!r}: give one of {some(PRECISIONS)}")
    if flip and view is not None:
        raise InputError("flip and view: a view has its own mirroring; give one of them")
    show = _Show(photos, encoder, flip, view)
    folder = Path(cache) / encoder_key(encoder, dtype, flip, view)
    with _naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
    hashes = hash_photos(photos, progress) if hashes is None else hashes
    shape = (encoder.config.n_tokens, encoder.config.width)
    file, index_file = folder / "rows.bin", folder / "rows.json"
    with _naming(folder), locked(folder / "lock"):
        index = _read_index(index_file, file, shape[0] * shape[1] * PRECISIONS[dtype].itemsize)
        missing = {digest: place for place, digest in enumerate(hashes) if digest not in index}
        todo = list(missing.items())
        parts = [todo[start:start + batch_size] for start in range(0, len(todo), batch_size)]
        shown: Iterable[Tensor] = fetched(show, parts, workers=workers)
        if progress is not None and todo:
            shown = progress(shown, total=len(parts), desc="encoding photos")
        encoder.eval()
        with _Rows(file, index_file, index) as kept:
            for images, part in zip(shown, parts):
                kept.add(_encode(encoder, images, dtype), [digest for digest, _ in part])
    return Features(file, [index[digest] for digest in hashes], shape, PRECISIONS[dtype])


class _Rows:
    """Rows that are added to a file, and the index that names them: written now and then, and when the block ends,
    however it ends."""

    def __init__(self, file: Path, index_file: Path, index: dict[str, int]) -> None:
        self._file, self._index_file, self._index = file, index_file, index
        self._unnamed, self._paused, self._took = 0, time.monotonic(), 0.0  # batches; since when; seconds it took

    def __enter__(self) -> _Rows:
        return self

    def __exit__(self, *_: object) -> None:
        if self._unnamed:
            self._name()

    def add(self, rows: Tensor, digests: Sequence[str]) -> None:
        """Write the rows of these photos behind those that the index has."""
        with open(self._file, "r+b" if self._file.exists() else "wb") as opened:
            # rows behind the index are leftovers of a run that was killed: write over them
            opened.seek(len(self._index) * rows[0].numel() * rows.element_size())
            opened.write(tensor_bytes(rows))
        self._index.update({digest: len(self._index) + place for place, digest in enumerate(digests)})
        self._unnamed += 1
        if self._unnamed >= INDEXED and time.monotonic() - self._paused >= SELDOM * self._took:
            self._name()

    def _name(self) -> None:
        begun = time.monotonic()
        with open(self._file, "r+b") as opened:  # on disk before the index that names them, whatever happens to it
            os.fsync(opened.fileno())
        write_json(self._index_file, self._index)
        self._unnamed, self._paused = 0, time.monotonic()
        self._took = self._paused - begun


class _Show:
    """Makes of photos, by hash and place, what the encoder is given; worker processes get a copy."""

    def __init__(self, photos: Sequence[Path] | Files | Members, encoder: ViT, flip: bool, view: View | None) -> None:
        self._photos, self._recipe, self._flip = photos, Recipe(encoder.preprocessing, encoder.cell), flip
        if view is not None and encoder.preprocessing is None:
            raise InputError("the encoder's preprocessing is unknown, so photos cannot be given to it")
        self._augment = None if view is None or encoder.preprocessing is None else view.augment(encoder.preprocessing)

    def __call__(self, part: Sequence[tuple[str, int]]) -> Tensor:
        """(B, 3, H, W)."""
        if self._augment is not None:
            return torch.stack([self._augment(self._photos[place], digest) for digest, place in part])
        images, _ = preprocess([self._photos[place] for _, place in part], self._recipe)
        return images.flip(-1) if self._flip else images


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
                  progress: Progress | None = None) -> Tensor:
    """Features of pictures that are no files, kept in memory: (n, N, D) on the CPU; see `compute_features`."""
    starts: Iterable[int] = range(0, len(images), batch_size)
    if progress is not None:
        starts = progress(starts, total=-(-len(images) // batch_size), desc="encoding pictures")
    encoder.eval()
    return torch.cat([_encode(encoder, images[list(range(start, min(start + batch_size, len(images))))], dtype)
                      for start in starts])
