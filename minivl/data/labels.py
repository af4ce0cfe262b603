"""Pictures with classes: a folder per class, names that begin with the label, or built-in scenes."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from ..errors import InputError, some
from ..files import read_json
from .scenes import NOUNS, Scene, Scenes

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jp2")
TABLE = "id2label.json"
SCENE_CLASSES = tuple(dict.fromkeys(NOUNS.values()))
SPLITS = {"train": ("train",), "val": ("val", "validation")}  # split -> names its folder may have

log = logging.getLogger(__name__)
Progress = Callable[..., Iterable[Any]]


class Skipped(NamedTuple):
    """A file that is left out, and why."""

    file: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.file}: {self.reason}"


@dataclass(frozen=True)
class Labelled:
    """Pictures with classes.

    Attributes:
        files: the pictures, class by class, sorted.
        labels: class of each, an index of `names`.
        names: of the classes.
        ids: number that id2label.json gives each class, ascending; None without one.
        skipped: files that lie among the pictures and are not used: hidden, or no pictures by their names.
    """

    files: tuple[Path, ...]
    labels: tuple[int, ...]
    names: tuple[str, ...]
    ids: tuple[int, ...] | None = None
    skipped: tuple[Skipped, ...] = ()

    def __len__(self) -> int:
        """The number of pictures."""
        return len(self.files)

    def only(self, places: Iterable[int]) -> Labelled:
        """These pictures, with the same classes."""
        chosen = list(places)
        return replace(self, files=tuple(self.files[place] for place in chosen),
                       labels=tuple(self.labels[place] for place in chosen))

    def counts(self) -> tuple[int, ...]:
        """Pictures of each class."""
        found = Counter(self.labels)
        return tuple(found[label] for label in range(len(self.names)))

    def check_classes(self, where: str | os.PathLike[str]) -> None:
        """Raise InputError, with `where` in front, unless there are two classes or more, none without a picture."""
        empty = [name for name, count in zip(self.names, self.counts()) if not count]
        if empty:
            raise InputError(f"{len(empty)} of {len(self.names)} classes have no picture: {some(map(repr, empty))}; "
                             f"add some, or remove the class (its folder, or its line in {TABLE})", source=where)
        if len(self.names) < 2:
            raise InputError(f"has one class ({some(self.names)}), at least 2 are needed", source=where)


# -- files and folders ---------------------------------------------------------------------------------------

def read_labelled(folder: str | os.PathLike[str], *, split: str | None = None) -> Labelled:
    """Read a folder of pictures with classes.

    - A folder per class, at any depth below; classes in the order of their sorted names, as torchvision's
      ``ImageFolder`` has them.
    - ``{label}_{anything}.jpg`` (or another suffix) with an ``id2label.json`` (``{"0": "name", ...}``) beside the
      pictures or in one of the two folders above. The label is the number or the name; the classes are all those of
      the file, by ascending number.

    Class folders that are all numbers or names of an ``id2label.json`` have its classes too.

    Args:
        folder: with the pictures, or with ``train/`` and ``val/`` or ``validation/``.
        split: "train" or "val", of such a folder.

    Raises:
        InputError: no such folder, no picture in it, both layouts at once, a picture whose label is missing or
            unknown, an id2label.json that is not as it must be.
    """
    found = _existing(folder) if split is None else split_folder(folder, split, needed=True)
    assert found is not None
    return _read(found, split is None)


def _read(folder: Path, top: bool) -> Labelled:
    """`read_labelled` of the folder itself; at the top there may be splits in place of classes."""
    folders, files, skipped = _listing(folder)
    names = {one.name for one in folders}
    if top and "train" in names and (len(names) == 1 or names & {*SPLITS["val"]}):
        raise InputError(f"holds {some(f'{name}/' for name in sorted(names))}, not classes: name one of them",
                         source=folder)
    inside = {one: list(_walk(one, skipped)) for one in folders}
    if files and any(inside.values()):
        beside = next(one.name for one in folders if inside[one])
        raise InputError(f"holds pictures ({files[0].name}) beside folders of pictures ({beside}/): one of the two "
                         "must go", source=folder)
    if not files and not any(inside.values()):
        raise InputError(f"holds no pictures ({', '.join(SUFFIXES)}), neither itself nor in its folders",
                         source=folder)
    table = find_table(folder)
    read = _by_name(files, table, folder) if files else _by_folder(inside, table)
    return replace(read, skipped=tuple(skipped))


def read_pictures(folder: str | os.PathLike[str], *,
                  deep: bool = False) -> tuple[tuple[Path, ...], tuple[Skipped, ...]]:
    """The pictures of a folder, whatever their classes, sorted, and what lies among them.

    Args:
        folder: with the pictures.
        deep: those of its folders too.

    Raises:
        InputError: no such folder, or no picture in it.
    """
    folder = _existing(folder)
    _, files, skipped = _listing(folder)
    if deep:
        files = sorted(_walk(folder, skipped := []))
    if not files:
        raise InputError(f"holds no pictures ({', '.join(SUFFIXES)})", source=folder)
    return tuple(files), tuple(skipped)


def _existing(folder: str | os.PathLike[str]) -> Path:
    path = Path(folder)
    if not path.is_dir():
        raise InputError("is a file, a folder of pictures is needed" if path.exists() else "no such folder",
                         source=path)
    return path


def split_folder(folder: str | os.PathLike[str], split: str, needed: bool = False) -> Path | None:
    """The folder of a split ("train" or "val") inside a folder; None where it is not there.

    Raises:
        InputError: another split, no such folder, two for the same split, or none where one is needed.
    """
    if split not in SPLITS:
        raise InputError(f"split={split!r}: give one of {some(map(repr, SPLITS))}")
    there = [path for name in SPLITS[split] if (path := _existing(folder) / name).is_dir()]
    if len(there) > 1:
        raise InputError(f"holds {some(f'{path.name}/' for path in there)}: one of the two must go", source=folder)
    if needed and not there:
        raise InputError(f"holds no {' or '.join(f'{name}/' for name in SPLITS[split])}", source=folder)
    return there[0] if there else None


def _listing(folder: Path) -> tuple[list[Path], list[Path], list[Skipped]]:
    """(folders, pictures, what is neither) of a folder, sorted."""
    folders, files, skipped = [], [], []
    for path in sorted(folder.iterdir()):
        if path.name == TABLE:
            continue
        if path.name.startswith("."):
            skipped.append(Skipped(path, "hidden"))
        elif path.is_dir():
            folders.append(path)
        elif path.suffix.lower() not in SUFFIXES:
            skipped.append(Skipped(path, "no picture by its name"))
        elif not path.is_file():
            skipped.append(Skipped(path, "a link that leads nowhere, or no regular file"))
        else:
            files.append(path)
    return folders, files, skipped


def _walk(folder: Path, skipped: list[Skipped], above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """The pictures below a folder, in sorted order; links are followed, but not round in circles."""
    if folder.resolve() in above:
        skipped.append(Skipped(folder, "a link to a folder above it"))
        return
    folders, files, others = _listing(folder)
    skipped.extend(others)
    yield from files
    for one in folders:
        yield from _walk(one, skipped, (*above, folder.resolve()))


def _by_folder(inside: dict[Path, list[Path]], table: ClassTable | None) -> Labelled:
    """A folder per class."""
    names = tuple(folder.name for folder in inside)
    places, ids = list(range(len(names))), None
    if table is not None:
        known = [table.place(name) for name in names]
        if None in known or len(set(known)) < len(known):
            log.warning("%s: does not name all folders of classes (%s), so it is not used", table.file,
                        some(repr(name) for name, place in zip(names, known) if place is None) or "one is there twice")
        else:
            names, ids, places = table.names, table.ids, [place for place in known if place is not None]
    pairs = sorted((place, file) for place, files in zip(places, inside.values()) for file in files)
    return Labelled(tuple(file for _, file in pairs), tuple(place for place, _ in pairs), names, ids)


def _by_name(files: Sequence[Path], table: ClassTable | None, folder: Path) -> Labelled:
    """``{label}_{anything}``."""
    if table is None:
        raise InputError(f"its pictures have no class: it needs a folder per class, or {TABLE} (here or in a folder "
                         "above) and pictures named {label}_{anything}.jpg", source=folder)
    labels = [table.of_name(file.stem) for file in files]
    if None in labels:
        wrong = [file.name for file, label in zip(files, labels) if label is None]
        raise InputError(f"{len(wrong)} of {len(files)} pictures do not begin with a number or name of {table.file} "
                         f"(numbers {table.ids[0]} to {table.ids[-1]}) and _: {some(wrong, 3)}", source=folder)
    pairs = sorted((label, file) for label, file in zip(labels, files) if label is not None)
    return Labelled(tuple(file for _, file in pairs), tuple(label for label, _ in pairs), table.names, table.ids)


@dataclass(frozen=True)
class ClassTable:
    """An id2label.json.

    Attributes:
        file: it.
        ids: the numbers of the classes, ascending.
        names: of the same classes.
    """

    file: Path
    ids: tuple[int, ...]
    names: tuple[str, ...]

    def place(self, word: str) -> int | None:
        """Index of the class with this number or (only) name."""
        if word.isascii() and word.isdigit():
            return self.ids.index(int(word)) if int(word) in self.ids else None
        found = [place for place, name in enumerate(self.names) if _plain(name) == _plain(word)]
        return found[0] if len(found) == 1 else None

    def of_name(self, stem: str) -> int | None:
        """Index of the class with whose number or name, and _, a file's name begins; the longest of several names."""
        pieces = stem.split("_")
        tries = (self.place("_".join(pieces[:end])) for end in range(len(pieces) - 1, 0, -1))
        return next((place for place in tries if place is not None), None)


def _plain(name: str) -> str:
    return name.lower().replace(" ", "_")


def find_table(folder: Path) -> ClassTable | None:
    """The nearest id2label.json: in the folder or one of the two above."""
    file = next((file for one in (folder, *folder.resolve().parents[:2]) if (file := one / TABLE).exists()), None)
    return None if file is None else read_table(file)


def read_table(file: Path) -> ClassTable:
    """The classes of an id2label.json, which may be called otherwise.

    Raises:
        InputError: no such file, or none of this form.
    """
    return table_of(read_json(file), file)


def table_of(data: Any, file: Path) -> ClassTable:
    """The classes of what an id2label.json holds, wherever it stood.

    Raises:
        InputError: none of this form, with `file` in front.
    """
    wanted = 'an object such as {"0": "cat", "1": "dog"} is needed'
    if not isinstance(data, dict) or not data:
        raise InputError(f"is {type(data).__name__}, or empty: {wanted}", source=file)
    for key, name in data.items():
        if not (key.isascii() and key.isdigit()) or not isinstance(name, str) or not name.strip():
            raise InputError(f"has the entry {key!r}: {name!r:.60}: {wanted}", source=file)
    if len(numbers := {int(key): name for key, name in data.items()}) < len(data):
        raise InputError("has a number twice (01 and 1, say)", source=file)
    return ClassTable(file, tuple(sorted(numbers)), tuple(numbers[number] for number in sorted(numbers)))


# -- scenes --------------------------------------------------------------------------------------------------

class LabelledImages(NamedTuple):
    """Pictures in memory with classes.

    Attributes:
        images: RGB.
        labels: class of each, an index of `names`.
        names: of the classes.
    """

    images: tuple[Image.Image, ...]
    labels: tuple[int, ...]
    names: tuple[str, ...]


def scene_labels(count: int, *, start: int = 0, seed: int = 0, size: int = 96,
                 progress: Progress | None = None) -> LabelledImages:
    """Built-in scenes; the class of a scene is the kind of things that covers most of it.

    Args:
        count, start, seed, size: as in `Scenes`.
        progress: tqdm-like: called with (iterable, total=, desc=).

    Raises:
        InputError: as `Scenes`.
    """
    scenes = Scenes(count, seed=seed, size=size, start=start)
    images, labels = [], []
    for scene in progress(scenes, total=count, desc="drawing scenes") if progress else scenes:
        images.append(scene.image)
        labels.append(scene_class(scene))
    return LabelledImages(tuple(images), tuple(labels), SCENE_CLASSES)


def scene_class(scene: Scene) -> int:
    """The kind of things that covers most of a scene, an index of `SCENE_CLASSES`."""
    return max(range(len(SCENE_CLASSES)), key=lambda place: int(scene.masks[SCENE_CLASSES[place]].sum())
               if SCENE_CLASSES[place] in scene.masks else -1)
