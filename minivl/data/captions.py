"""Caption files: COCO JSON, Karpathy JSON, captions by name and Flickr token files, read into one form."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError, kind_of, some
from ..files import existing_file, read_json, read_text

COCO_KEYS = {"images", "annotations", "info", "licenses", "categories", "dataset"}  # a name is none of these


@dataclass(frozen=True)
class CaptionSet:
    """Images and their captions, keyed by the image's file name.

    The file name (relative to the image folder, unique in a file) is the key, because it is what
    all formats have in common and what a person recognises; the number a file gives an image,
    such as COCO's, is in ``ids``.

    Attributes:
        images: file names relative to the image folder, in the order of the file.
        captions: file name -> its captions (at least one), in the order of the file, unchanged.
        ids: file name -> the id in the file: COCO ``id``, Karpathy ``cocoid`` or ``imgid``; the file
            name itself where the format has none.
        source: the file it was read from.
        split: the split that was read, "" where the file has none.
    """

    images: tuple[str, ...]
    captions: dict[str, tuple[str, ...]]
    ids: dict[str, int | str]
    source: str = ""
    split: str = ""

    def __len__(self) -> int:
        """The number of images."""
        return len(self.images)

    def references(self) -> dict[str, list[str]]:
        """``{file name: [caption, ...]}``, as the metrics take it."""
        return {image: list(self.captions[image]) for image in self.images}

    def check_images(self, folder: str | os.PathLike[str]) -> None:
        """Make sure that every image is there.

        Raises:
            InputError: ``folder`` is no folder, or images are missing in it: how many, and the first few.
        """
        if not os.path.isdir(folder):
            raise InputError("no such folder of images", source=folder)
        missing = [image for image in self.images if not os.path.isfile(os.path.join(folder, image))]
        if missing:
            raise InputError(f"{len(missing)} of the {len(self)} images of {self.source or 'the captions'} "
                             f"are not there: {some(missing, 3)}", source=folder)


def read_captions(path: str | os.PathLike[str], *, split: str | None = None) -> CaptionSet:
    """Read a caption file; its format is recognised by its content.

    - COCO JSON: ``images`` (``id``, ``file_name``) and ``annotations`` (``image_id``, ``caption``).
    - Karpathy JSON: ``images`` with ``filename``, ``split`` and ``sentences`` (``raw``); a ``filepath``
      is put before the name. ``sentids`` and ``tokens`` are not read.
    - JSON by name: ``{name: [caption, ...]}``. A name without a suffix is no file that could be opened, but it is
      enough to score with, see `minivl.data.predictions.match`.
    - Flickr8k/30k token files: ``name.jpg#0<TAB>caption`` a line, and the spellings as a table with the
      header ``image,caption`` or ``image_name| comment_number| comment``.

    Blank lines of a text file carry nothing. Nothing else is skipped: what cannot be used raises.

    Args:
        path: the file.
        split: for a file with splits, which: "train", "val", "test", "restval" or several joined as in
            "train+restval". Needed where the file has more than one.

    Returns:
        The captions of that split. Duplicate names are looked for in the whole file.

    Raises:
        InputError: one line with the file and the entry: not in any of these formats, a split that is
            not there or was not named, an unknown image id, an image without caption, a caption that is
            empty, no string or no whole characters, a duplicate name or id, a missing key, no image at all.
    """
    file = existing_file(path)
    if file.suffix.lower() == ".json" or _begins_as_json(file):
        data = read_json(file)
        entries = _json_entries(data, str(file))
    else:
        entries = _text_entries(read_text(file), str(file))
    return _checked(entries, str(file), split)


@dataclass
class _Entry:
    """One image as a format gives it; ``where`` names its place in the file."""

    where: str
    name: str
    id: int | str
    captions: list[tuple[str, Any]]  # (where, caption)
    split: str | None = None


def _checked(entries: list[_Entry], source: str, split: str | None) -> CaptionSet:
    """What holds for every format: a split that is there, and a caption or more for each image."""
    chosen, split = _of_split(entries, source, split)
    if not chosen:
        raise InputError("has no images", source=source)
    for entry in chosen:
        if not entry.captions:
            raise InputError(f"{entry.where} ({entry.name}) has no caption", source=source)
        for where, caption in entry.captions:
            if not isinstance(caption, str):
                raise InputError(f"{where}: the caption of {entry.name} is {kind_of(caption)}, "
                                 "a string is needed", source=source)
            if not caption.strip():
                raise InputError(f"{where}: the caption of {entry.name} is empty", source=source)
            if any("\ud800" <= letter <= "\udfff" for letter in caption):
                raise InputError(f"{where}: the caption of {entry.name} has half a character (a lone "
                                 f"surrogate): {ascii(caption[:60])}", source=source)
    return CaptionSet(images=tuple(entry.name for entry in chosen),
                      captions={entry.name: tuple(text for _, text in entry.captions) for entry in chosen},
                      ids={entry.name: entry.id for entry in chosen}, source=source, split=split)


def _unique(entries: list[_Entry], source: str) -> None:
    names: dict[int | str, str] = {}
    ids: dict[int | str, str] = {}
    for entry in entries:
        for kind, seen, key in (("file name", names, entry.name), ("id", ids, entry.id)):
            if key in seen:
                raise InputError(f"{entry.where} repeats the {kind} {key!r} of {seen[key]}", source=source)
            seen[key] = entry.where


def _of_split(entries: list[_Entry], source: str, split: str | None) -> tuple[list[_Entry], str]:
    sizes: dict[str, int] = {}
    for entry in entries:
        if entry.split is not None:
            sizes[entry.split] = sizes.get(entry.split, 0) + 1
    there = some(f"{name} ({size} images)" for name, size in sizes.items())
    if not sizes:
        if split is not None:
            raise InputError(f"split={split!r} was asked for, but the file has no splits", source=source)
        return entries, ""
    if split is None:
        if len(sizes) > 1:
            raise InputError(f"has several splits, name one with split=: {there}", source=source)
        split = next(iter(sizes))
    wanted = split.split("+")
    unknown = [name for name in wanted if name not in sizes]
    if unknown:
        raise InputError(f"has no split {some(map(repr, unknown))}; there are: {there}", source=source)
    return [entry for entry in entries if entry.split in wanted], split


# JSON ----------------------------------------------------------------------------------------------


def _json_entries(data: Any, source: str) -> list[_Entry]:
    if not isinstance(data, dict):
        raise InputError(f"is {kind_of(data)} at the top, an object with 'images' is needed", source=source)
    if data and not COCO_KEYS & data.keys():
        return _by_name(data, source)
    images = _get(data, "images", list, "the file", source)
    if "annotations" in data:
        return _coco(images, _get(data, "annotations", list, "the file", source), source)
    if not images:
        raise InputError("has no images", source=source)
    if isinstance(images[0], dict) and "sentences" in images[0]:
        return _karpathy(images, source)
    raise InputError("is neither COCO JSON ('images' and 'annotations') nor Karpathy JSON ('images' with "
                     f"'sentences'); its keys: {some(data)}", source=source)


def _by_name(data: dict[str, Any], source: str) -> list[_Entry]:
    entries = []
    for name, captions in data.items():
        if not isinstance(captions, list):
            raise InputError(f"{name!r} has {kind_of(captions)}, a list of captions is needed (COCO and Karpathy JSON "
                             "have 'images')", source=source)
        if not name.strip():
            raise InputError("has captions of an image without a name", source=source)
        texts = [(f"caption {place}", text) for place, text in enumerate(captions)]
        entries.append(_Entry("the entry", name, name, texts))
    return entries


def _coco(images: list[Any], annotations: list[Any], source: str) -> list[_Entry]:
    listed = []
    for index, image in enumerate(images):
        where = f"images[{index}]"
        listed.append(_Entry(where, _get(image, "file_name", str, where, source),
                             _get(image, "id", (int, str), where, source), []))
    _unique(listed, source)
    entries = {entry.id: entry for entry in listed}
    seen: dict[int | str, int] = {}
    for index, annotation in enumerate(annotations):
        where = f"annotations[{index}]"
        id = _get(annotation, "image_id", (int, str), where, source)
        if id not in entries:
            raise InputError(f"{where} is for image id {id!r}, which is not among the images", source=source)
        if "caption" not in annotation:
            raise InputError(f"{where} has no 'caption' (its keys: {some(annotation)})", source=source)
        if "id" in annotation:
            own = _get(annotation, "id", (int, str), where, source)
            if own in seen:
                raise InputError(f"{where} repeats the id {own!r} of annotations[{seen[own]}]", source=source)
            seen[own] = index
        entries[id].captions.append((where, annotation["caption"]))
    return listed


def _karpathy(images: list[Any], source: str) -> list[_Entry]:
    entries = []
    splits = any(isinstance(image, dict) and "split" in image for image in images)
    for index, image in enumerate(images):
        where = f"images[{index}]"
        name = _get(image, "filename", str, where, source)
        if image.get("filepath"):
            name = f"{_get(image, 'filepath', str, where, source).rstrip('/')}/{name}"
        sentences = _get(image, "sentences", list, where, source)
        captions = [(f"{where}.sentences[{place}]",
                     _get(sentence, "raw", object, f"{where}.sentences[{place}]", source))
                    for place, sentence in enumerate(sentences)]
        key = next((key for key in ("cocoid", "imgid") if key in image), "filename")
        id = name if key == "filename" else _get(image, key, (int, str), where, source)
        split = _get(image, "split", str, where, source) if splits else None
        entries.append(_Entry(where, name, id, captions, split))
    _unique(entries, source)
    return entries


def _get(entry: Any, key: str, kind: Any, where: str, source: str) -> Any:
    """``entry[key]``, if ``entry`` is an object that has it and it is of that kind."""
    if not isinstance(entry, dict):
        raise InputError(f"{where} is {kind_of(entry)}, an object is needed", source=source)
    if key not in entry:
        raise InputError(f"{where} has no {key!r} (its keys: {some(entry)})", source=source)
    value = entry[key]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not object) or \
            (isinstance(value, str) and kind is not object and not value.strip()):
        kinds = {str: "a name", list: "a list", (int, str): "a number or a name"}
        raise InputError(f"{where}: {key!r} is {kind_of(value)}, {kinds[kind]} is needed", source=source)
    return value


# text ----------------------------------------------------------------------------------------------


def _begins_as_json(file: Path) -> bool:
    with open(file, "rb") as opened:
        return opened.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"[")


def _text_entries(text: str, source: str) -> list[_Entry]:
    # Not splitlines: a caption may contain U+2028 and the like, which are no ends of a line here.
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise InputError("is empty", source=source)
    header = re.sub(r"\s", "", lines[0][1].lower())
    if header == "image,caption":
        rows = _comma_rows(lines[1:], source)
    elif header == "image_name|comment_number|comment":
        rows = _bar_rows(lines[1:], source)
    else:
        rows = _token_rows(lines, source)
    return _grouped(rows, source)


def _grouped(rows: Iterator[tuple[str, str, str | None, str]], source: str) -> list[_Entry]:
    """Rows ``(where, name, number of the caption, caption)`` -> images in order of first appearance."""
    entries: dict[str, _Entry] = {}
    seen: dict[tuple[str, str], str] = {}
    for where, name, number, caption in rows:
        if not name:
            raise InputError(f"{where} has no image name", source=source)
        if number is not None:
            if (name, number) in seen:
                raise InputError(f"{where} repeats caption {number} of {name} ({seen[name, number]})",
                                 source=source)
            seen[name, number] = where
        entries.setdefault(name, _Entry(where, name, name, [])).captions.append((where, caption))
    return list(entries.values())


def _token_rows(lines: list[tuple[int, str]], source: str) -> Iterator[tuple[str, str, str | None, str]]:
    for number, line in lines:
        match = re.fullmatch(r"([^\t]+)#(\d+)\t(.*)", line, re.DOTALL)
        if match is None:
            raise InputError(f"line {number} is no 'name.jpg#0<TAB>caption': {line.strip()[:60]!r} (the file "
                             "is no COCO or Karpathy JSON and has no header 'image,caption' either)",
                             source=source)
        yield f"line {number}", match[1].strip(), match[2], match[3].strip()


def _comma_rows(lines: list[tuple[int, str]], source: str) -> Iterator[tuple[str, str, str | None, str]]:
    for number, line in lines:
        try:
            # Line by line and strict, lest a quote that nothing closes swallow the lines after it.
            row = next(csv.reader([line], strict=True))
        except csv.Error as error:
            raise InputError(f"line {number} is no 'image,caption': {error} in {line.strip()[:60]!r}",
                             source=source) from None
        # A comma in a caption need not be quoted: the caption is all that follows the first one.
        yield f"line {number}", row[0].strip(), None, ",".join(row[1:]).strip()


def _bar_rows(lines: list[tuple[int, str]], source: str) -> Iterator[tuple[str, str, str | None, str]]:
    for number, line in lines:
        # One row of the published Flickr30k table has blanks in place of its second bar.
        match = re.fullmatch(r"([^|]*)\|\s*(\d+)(?:\s*\||\s\s)(.*)", line, re.DOTALL)
        if match is None:
            raise InputError(f"line {number} is no 'image_name| comment_number| comment': "
                             f"{line.strip()[:60]!r}", source=source)
        yield f"line {number}", match[1].strip(), match[2], match[3].strip()
