"""Training and validation pictures: found or split off, and checked before they are used."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, some
from ..files import sha256
from ..images import Preprocessing, open_photo, to_tensor
from .labels import SPLITS, Labelled, Progress, Skipped, read_labelled, split_folder

OXFORD_PETS = "oxford-iiit-pet"
THIN = 64  # only a picture this many times longer than wide may be too thin to be resized

log = logging.getLogger(__name__)


def train_and_val(folder: str | os.PathLike[str], *, val_fraction: float | None = None,
                  fold: tuple[int, int] | None = None, seed: int = 0) -> tuple[Labelled, Labelled]:
    """Training and validation pictures with the same classes.

    Args:
        folder: with ``train/`` and ``val/`` or ``validation/``; or, with `val_fraction`, with ``train/`` alone or
            pictures of its own; or "oxford-iiit-pet:ROOT", the Oxford-IIIT Pet data set as torchvision keeps it below
            ROOT (downloaded where it is missing): its "trainval" part with its "test" part or, with `val_fraction`,
            a split of "trainval".
        val_fraction: share of each class that is split off for validation; see `split_off`.
        fold: (k, n) takes part k of n of the training pictures for validation, for cross-validation: pictures set
            aside in ``val/`` are not looked at; see `one_fold`.
        seed: of that split.

    Raises:
        InputError: as `read_labelled`; no validation pictures, or both a folder of them and `val_fraction`; both
            `val_fraction` and `fold`; a class without training pictures.
    """
    if fold is not None and val_fraction is not None:
        raise InputError("val_fraction and fold both split the training pictures: give one of them")
    kind, _, root = str(folder).partition(":")
    if kind == OXFORD_PETS:
        train, val = _oxford_pets(root)
        if fold is not None:
            return one_fold(train, *fold, seed)
        return (train, val) if val_fraction is None else split_off(train, val_fraction, seed)
    train_folder, val_folder = (split_folder(folder, split) for split in SPLITS)
    if fold is not None:
        train = read_labelled(train_folder or folder)
        train.check_classes(train_folder or folder)
        return one_fold(train, *fold, seed)
    if val_folder is None and val_fraction is None:
        raise InputError("holds no val/ or validation/: give a share of the pictures to validate with "
                         "(val_fraction)", source=folder)
    if val_folder is not None and (train_folder is None or val_fraction is not None):
        raise InputError(f"holds {val_folder.name}/ " + ("but no train/" if train_folder is None else
                         f"already: val_fraction={val_fraction} would split another off"), source=folder)
    train = read_labelled(train_folder or folder)
    train.check_classes(train_folder or folder)
    if val_folder is None:
        assert val_fraction is not None
        return split_off(train, val_fraction, seed)
    return train, _aligned(train, read_labelled(val_folder), val_folder)


def split_off(labelled: Labelled, fraction: float, seed: int = 0) -> tuple[Labelled, Labelled]:
    """Two parts, the second with this share of each class: at least one picture, but never all of them.

    Which ones depends on the seed, the class and the number of its pictures.

    Raises:
        InputError: a fraction that is not between 0 and 1, or no class has two pictures.
    """
    if not 0 < fraction < 1:
        raise InputError(f"val_fraction={fraction}: give a number between 0 and 1")
    taken: set[int] = set()
    for label in range(len(labelled.names)):
        places = [place for place, own in enumerate(labelled.labels) if own == label]
        count = min(max(1, round(fraction * len(places))), len(places) - 1)
        drawn = np.random.default_rng([seed, label]).permutation(len(places))[:max(count, 0)]
        taken |= {places[place] for place in drawn}
    if not taken:
        raise InputError("no class has two pictures: nothing can be split off")
    rest = labelled.only(place for place in range(len(labelled)) if place not in taken)
    return rest, replace(labelled.only(sorted(taken)), skipped=())


def one_fold(labelled: Labelled, fold: int, folds: int, seed: int = 0) -> tuple[Labelled, Labelled]:
    """The other parts, and part `fold` (from 1) of `folds` parts of each class, alike in size to one picture.

    The parts of all folds together are the whole, each picture once; which ones depends on the seed, the class and
    the number of its pictures.

    Raises:
        InputError: a fold out of range, or a class with fewer pictures than folds.
    """
    if not 1 <= fold <= folds or folds < 2:
        raise InputError(f"fold {fold}/{folds}: give k/n with n of 2 or more and k from 1 to n")
    taken: set[int] = set()
    for label, name in enumerate(labelled.names):
        places = [place for place, own in enumerate(labelled.labels) if own == label]
        if len(places) < folds:
            raise InputError(f"fold {fold}/{folds}: {name!r} has only {len(places)} pictures, every fold needs one")
        drawn = np.random.default_rng([seed, label]).permutation(len(places))[fold - 1::folds]
        taken |= {places[place] for place in drawn}
    rest = labelled.only(place for place in range(len(labelled)) if place not in taken)
    return rest, replace(labelled.only(sorted(taken)), skipped=())


def _aligned(train: Labelled, val: Labelled, folder: Path) -> Labelled:
    """`val` with the classes of `train`."""
    keys: Sequence[Any] = train.names
    own: Sequence[Any] = val.names
    if train.ids is not None and val.ids is not None:
        keys, own = list(zip(train.ids, train.names)), list(zip(val.ids, val.names))
    if unknown := [key for key in own if key not in keys]:
        raise InputError(f"{len(unknown)} of its classes are not among those of training: {some(map(repr, unknown))}; "
                         f"there are {some(map(repr, keys))}", source=folder)
    places = [keys.index(key) for key in own]
    pairs = sorted((places[label], file) for label, file in zip(val.labels, val.files))
    return replace(val, files=tuple(file for _, file in pairs), labels=tuple(label for label, _ in pairs),
                   names=train.names, ids=train.ids)


def _oxford_pets(root: str) -> tuple[Labelled, Labelled]:
    """The "trainval" and "test" parts of what torchvision keeps below `root`."""
    from torchvision.datasets import OxfordIIITPet
    folder = Path(root).expanduser() / OXFORD_PETS
    missing = not folder.exists()
    if not root:
        raise InputError(f"name the folder above it: {OXFORD_PETS}:FOLDER", source=OXFORD_PETS)
    if missing:
        log.info("%s: not there, the Oxford-IIIT Pet data set (about 800 MB) is downloaded", folder)
    try:
        parts = [OxfordIIITPet(folder.parent, split=split, download=missing) for split in ("trainval", "test")]
    except (OSError, RuntimeError, ValueError) as error:
        what = "could not be downloaded" if missing else "is not whole (remove it to have it downloaded again)"
        raise InputError(f"{what}: {error}", source=folder) from None
    if parts[0].classes != parts[1].classes or max(parts[0]._labels, default=0) >= len(parts[0].classes):
        raise InputError("is not whole: its two parts have other classes (remove it to have it downloaded again)",
                         source=folder)
    train, val = (Labelled(tuple(part._images), tuple(part._labels), tuple(part.classes)) for part in parts)
    return train, val


def check_readable(labelled: Labelled, progress: Progress | None = None, *, preprocessing: Preprocessing | None = None,
                   every_class: bool = True) -> tuple[Labelled, tuple[Skipped, ...]]:
    """Open every picture once, before training, and leave out those that cannot be used.

    Args:
        labelled: the pictures.
        progress: tqdm-like: called with (iterable, total=, desc=).
        preprocessing: of the model; pictures too thin for it are found too.
        every_class: whether a class must have a picture left.

    Returns:
        The pictures that open, and those that do not, with the reason.

    Raises:
        InputError: a class has no picture left, or none is left at all.
    """
    good, skipped = [], []
    places: Iterable[int] = range(len(labelled))
    for place in progress(places, total=len(labelled), desc="checking photos") if progress else places:
        file = labelled.files[place]
        try:
            image = open_photo(file)
            if preprocessing is not None and max(image.size) > THIN * min(image.size):
                to_tensor(file, preprocessing, 1)
            good.append(place)
        except InputError as error:
            skipped.append(Skipped(file, str(error).removeprefix(str(file)).lstrip(": ")))
    left = labelled.only(good)
    counts = zip(labelled.counts(), left.counts())
    lost = [place for place, (before, after) in enumerate(counts) if before > after == 0]
    if lost and (every_class or not good):
        first = next(one for one in skipped if labelled.labels[labelled.files.index(one.file)] == lost[0])
        raise InputError(f"no picture of {some(repr(labelled.names[place]) for place in lost)} can be used; the first: "
                         f"{first}")
    return left, tuple(skipped)


def same_pictures(train: Labelled, val: Labelled) -> list[tuple[Path, Path]]:
    """Pairs of a training and a validation picture whose files are equal, byte for byte."""
    sizes = {file.stat().st_size for file in val.files}
    digests: dict[str, Path] = {}
    for file in train.files:
        if file.stat().st_size in sizes:
            digests.setdefault(sha256(file), file)
    sizes = {file.stat().st_size for file in digests.values()}
    return [(digests[digest], file) for file in val.files
            if file.stat().st_size in sizes and (digest := sha256(file)) in digests]
