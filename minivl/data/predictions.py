"""Captions to be scored: files of predictions, read into one form, and the images they are of."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from ..errors import InputError, kind_of, some
from ..files import Object, existing_file, parse_json, read_text
from .labels import SUFFIXES

Key = int | str
"""What a file calls an image: a number (COCO's ``image_id``), a file name or its stem."""

IDS = ("image_id", "file_name", "filename", "image")  # of a record; the first that is there
TEXTS = ("caption", "text")
MOST_WORDS = 1000  # what is longer is a whole file in place of a caption
LAYOUTS = '{"file name": "caption", ...}, [{"image_id": ..., "caption": ...}, ...] or such objects line by line'
NUMBER = re.compile(r"(?:COCO_[a-z]+\d{4}_)?(\d+)", re.ASCII)  # the stem of COCO's file names


# -- reading -------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Predictions:
    """One caption per image.

    Attributes:
        captions: what the file calls an image -> its caption, in the order of the file, unchanged.
        doubled: ids that are there again later; `captions` has the first caption of each.
        empty: ids whose caption has nothing but white space.
        source: the file.
    """

    captions: dict[Key, str]
    doubled: tuple[Key, ...] = ()
    empty: tuple[Key, ...] = ()
    source: str = ""

    def __len__(self) -> int:
        """The number of captions."""
        return len(self.captions)


def read_predictions(path: str | os.PathLike[str]) -> Predictions:
    """Read a file of predictions; its layout is recognised by its content.

    - ``{"file name or stem": "caption", ...}``
    - COCO results: ``[{"image_id": 397133, "caption": "..."}, ...]``
    - JSON lines: such an object on each line; blank lines carry nothing.

    An object's image is what it has as "image_id", else "file_name", "filename" or "image"; its caption is "caption",
    else "text". Nothing else is read of it.

    Args:
        path: the file.

    Raises:
        InputError: one line with the file and the entry: not JSON (with line and column), none of these layouts, no
            caption at all, an entry without image or caption, a caption that is no string, has half a character or
            more than `MOST_WORDS` words.
    """
    file = existing_file(path)
    captions: dict[Key, str] = {}
    doubled: dict[Key, None] = {}
    for entry in _entries(file):
        if entry.key in captions:
            doubled[entry.key] = None
        captions.setdefault(entry.key, entry.caption)
    empty = tuple(key for key, caption in captions.items() if not caption.strip())
    return Predictions(captions, tuple(doubled), empty, str(file))


def read_candidates(path: str | os.PathLike[str]) -> dict[Key, list[str]]:
    """Read a file of predictions with several captions per image.

    All captions of an image are its candidates: of an object "caption" (or "text") and those of its list "others", as
    eval.caption writes them, and the captions of all entries that name the image.

    Args:
        path: as of `read_predictions`.

    Returns:
        What the file calls an image -> its captions, in the order of the file, equal ones too.

    Raises:
        InputError: as `read_predictions`; "others" that is no list of objects with a caption each.
    """
    file = existing_file(path)
    found: dict[Key, list[str]] = {}
    for entry in _entries(file):
        texts = found.setdefault(entry.key, [])
        texts.append(entry.caption)
        if not isinstance(entry.others, list):
            raise InputError(f"{entry.where}: 'others' of {entry.key!r} is {kind_of(entry.others)}, a list of objects "
                             "is needed", source=file)
        for place, other in enumerate(entry.others):
            names = [name for name in TEXTS if name in other] if isinstance(other, dict) else []
            text: Any = other[names[0]] if names else None
            _check(f"{entry.where}, place {place} of 'others'", entry.key, text, file)
            texts.append(text)
    return found


class _Entry(NamedTuple):
    """A caption of a file.

    Attributes:
        where: the place in the file, where the id alone does not tell it.
        key: what the file calls the image.
        caption: of it.
        others: what it has for other captions, as it is there.
    """

    where: str
    key: Key
    caption: str
    others: Any


def _entries(file: Path) -> list[_Entry]:
    """The captions of a file, checked, in its order; there is one at least."""
    found = [_Entry(where, key, caption, record.get("others", []))
             for where, key, caption, record in _read(file)]
    for entry in found:
        _check(entry.where, entry.key, entry.caption, file)
    if not found:
        raise InputError("has no captions", source=file)
    return found


def _read(file: Path) -> list[tuple[str, Key, Any, dict[str, Any]]]:
    """(where, id, caption, the object they are of) of each entry."""
    text = read_text(file)
    first, _, rest = text.lstrip().partition("\n")
    if rest.strip() and _is_object(first):
        # not splitlines: U+2028 and the like may stand in a caption, and end no line here
        lines = [(f"line {number}", parse_json(line, file, line=number))
                 for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        return [_record(where, record, file) for where, record in lines]
    data = parse_json(text, file, doubled=True)
    if isinstance(data, list):
        return [_record(f"entry {place}", record, file) for place, record in enumerate(data)]
    if not isinstance(data, Object):
        raise InputError(f"is {kind_of(data)} at the top; predictions are {LAYOUTS}", source=file)
    if any(name in data for name in IDS) and any(name in data for name in TEXTS):  # a file of one line
        return [_record("line 1", data, file)]
    return [("", name, caption, {}) for name, caption in data.entries]


def _is_object(line: str) -> bool:
    """Whether a line is a whole JSON object."""
    try:
        return isinstance(parse_json(line, "", doubled=True), dict)
    except InputError:
        return False


def _record(where: str, record: Any, file: Path) -> tuple[str, Key, Any, dict[str, Any]]:
    """One object of COCO results or of JSON lines."""
    if not isinstance(record, dict):
        raise InputError(f"{where} is {kind_of(record)}: of which image is it? Predictions are {LAYOUTS}", source=file)
    if isinstance(record, Object) and record.doubled:
        raise InputError(f"{where} has {some(map(repr, record.doubled), 3)} twice", source=file)
    found = []
    for names in (IDS, TEXTS):
        name = next((name for name in names if name in record), None)
        if name is None:
            raise InputError(f"{where} has no {names[0]!r} (its keys: {some(record)})", source=file)
        found.append(record[name])
    return where, found[0], found[1], record


def _check(where: str, key: Any, caption: Any, file: Path) -> None:
    where += ": " if where else ""
    if type(key) not in (int, str) or not str(key).strip():
        raise InputError(f"{where}the image is {kind_of(key)}, a number or a file name is needed", source=file)
    if not isinstance(caption, str):
        hint = "; lists of captions are references" if isinstance(caption, list) else ""
        raise InputError(f"{where}the caption of {key!r} is {kind_of(caption)}, a string is needed{hint}", source=file)
    if any("\ud800" <= letter <= "\udfff" for letter in f"{key}{caption}"):
        raise InputError(f"{where}{ascii(key)} or its caption has half a character (a lone surrogate): "
                         f"{ascii(caption[:60])}", source=file)
    if (words := len(caption.split())) > MOST_WORDS:
        raise InputError(f"{where}the caption of {key!r} has {words} words, more than {MOST_WORDS}: that is no caption "
                         f"({caption[:30]!r}...)", source=file)


# -- whose captions they are ---------------------------------------------------------------------------------

@dataclass(frozen=True)
class Matched:
    """Which caption is of which image.

    Attributes:
        keys: file name of an image -> what the predictions call it, in the order of the predictions.
        missing: images without a caption, in the order of the images.
        extra: ids of no image.
        doubled: ids of an image that another id has named before ("a" and "a.jpg").
        rule: what of an image the ids are, in words.
    """

    keys: dict[str, Key]
    missing: tuple[str, ...]
    extra: tuple[Key, ...]
    doubled: tuple[Key, ...]
    rule: str


FAULTS = {"missing": "images without a caption", "extra": "captions of no image there",
          "doubled": "images with several captions", "empty": "empty captions"}


def faults(predictions: Predictions, matched: Matched) -> dict[str, list[Key]]:
    """What does not fit: a kind of `FAULTS` -> ids or, of those missing, file names; kinds without any are left out."""
    used = set(matched.keys.values())
    found: dict[str, list[Key]] = {
        "missing": list(matched.missing), "extra": list(matched.extra),
        "doubled": [*(key for key in predictions.doubled if key in used), *matched.doubled],
        "empty": [key for key in predictions.empty if key in used]}
    return {kind: keys for kind, keys in found.items() if keys}


def told(found: Mapping[str, Sequence[Key]]) -> str:
    """`faults` in words: how many of each kind, and the first of them."""
    return "; ".join(f"{FAULTS[kind]}: {len(keys)} ({some(map(repr, keys), 3)})" for kind, keys in found.items())


class _Rule(NamedTuple):
    """A way in which ids may name images.

    Attributes:
        name: what the id is, in words.
        of_key: what an id says; None: nothing, under this rule.
        of_image: what an image is called, by its name and its id.
    """

    name: str
    of_key: Callable[[Key], object]
    of_image: Callable[[str, Key], object]


def match(keys: Iterable[Key], images: Sequence[str], ids: Mapping[str, Key] | None = None, *,
          predictions: str = "the predictions", references: str = "the references") -> Matched:
    """Find the image of each id.

    All ids of a file are read by one rule. They are the file names of the images; or those without their folders,
    without the suffixes of pictures, or both; or the ids that the references give the images; or the numbers at the
    end of COCO's file names (397133 is 000000397133.jpg and COCO_val2014_000000397133.jpg). The first rule under
    which every id is an image is taken, or else the one under which most are. A number in place of a string is an id
    of the references wherever they have it.

    Args:
        keys: ids of the predictions; each once.
        images: file names, which differ.
        ids: file name -> id in the references, see `minivl.data.captions.CaptionSet`; None: there are none.
        predictions, references: the files, for the error.

    Raises:
        InputError: no id is an image, an id that names several images, or two rules under which ids name different
            images.
    """
    keys, numbers = list(keys), dict(ids or {})
    found = [(rule, *_under(rule, keys, images, numbers)) for rule in _RULES]
    sure = [(rule, named) for rule, named, _ in found if named]
    if any(rule.name == "ids" and any(isinstance(key, int) for key in named) for rule, named in sure):
        # a number is the id that the references declare, whatever numbers stand in their file names
        sure = [(rule, named) for rule, named in sure if rule.name != NUMBERS]
    for rule, named, several in found:
        open_keys = [key for key in several if not any(key in other for _, other in sure)]
        if open_keys:
            raise InputError(f"the id {open_keys[0]!r} of {predictions} may be {some(several[open_keys[0]], 3)} of "
                             f"{references}: give file names with their folders and suffixes")
    if not sure:
        names = some((f"{name} (id {numbers[name]})" if numbers.get(name, name) != name else name
                      for name in images), 3) or "none"
        raise InputError(f"no id of {predictions} ({some(map(repr, keys), 3)}) is an image of {references} ({names}): "
                         "are they of the same images?")
    return _matched(_agreed(sure, len(keys), predictions, references), keys, images)


def _under(rule: _Rule, keys: Sequence[Key], images: Sequence[str],
           ids: Mapping[str, Key]) -> tuple[dict[Key, str], dict[Key, list[str]]]:
    """Id -> its image under a rule, and id -> its images where there are several."""
    handles: dict[object, list[str]] = {}
    for image in images:
        handle = rule.of_image(image, ids.get(image, image))
        if handle is not None:
            handles.setdefault(handle, []).append(image)
    named = {key: handles[handle] for key in keys if (handle := rule.of_key(key)) in handles}
    return ({key: there[0] for key, there in named.items() if len(there) == 1},
            {key: there for key, there in named.items() if len(there) > 1})


def _agreed(sure: Sequence[tuple[_Rule, dict[Key, str]]], count: int, predictions: str,
            references: str) -> tuple[_Rule, dict[Key, str]]:
    """The rule to be taken, if those that could be taken as well name the same images."""
    whole = [one for one in sure if len(one[1]) == count] or sure
    rule, named = max(whole, key=lambda one: len(one[1]))  # the first of several
    for other, differently in whole:
        for key, image in differently.items():
            if named.get(key, image) != image:
                raise InputError(f"the id {key!r} of {predictions} is {named[key]} of {references} if the ids are "
                                 f"{rule.name}, and {image} if they are {other.name}: give file names with their "
                                 "suffixes, or image_id as a number")
    return rule, named


def _matched(chosen: tuple[_Rule, dict[Key, str]], keys: Sequence[Key], images: Sequence[str]) -> Matched:
    rule, named = chosen
    of_image: dict[str, Key] = {}
    doubled = []
    for key, image in named.items():
        if image in of_image:
            doubled.append(key)
        of_image.setdefault(image, key)
    return Matched(of_image, tuple(image for image in images if image not in of_image),
                   tuple(key for key in keys if key not in named), tuple(doubled), rule.name)


def _base(name: str) -> str:
    return PurePosixPath(name).name


def _stem(name: str) -> str:
    """A file name without the suffix of a picture; "a.b" has none."""
    return name[:-len(suffix)] if (suffix := PurePosixPath(name).suffix).lower() in SUFFIXES else name


def _number(name: str) -> int | None:
    """What a file of COCO is numbered."""
    found = NUMBER.fullmatch(_stem(_base(name)))
    return int(found[1]) if found else None


def _of_text(change: Callable[[str], object]) -> dict[str, Callable[..., object]]:
    """A rule for ids that are strings, which are changed as the file names are."""
    return {"of_key": lambda key: change(key) if isinstance(key, str) else None,
            "of_image": lambda image, id: change(image)}


NUMBERS = "numbers in file names"
_RULES = (
    _Rule("file names", **_of_text(str)),
    _Rule("file names without suffix", **_of_text(_stem)),
    _Rule("file names without folder", **_of_text(_base)),
    _Rule("file names without folder and suffix", **_of_text(lambda name: _stem(_base(name)))),
    _Rule("ids", str, lambda image, id: None if id == image else str(id)),
    _Rule(NUMBERS, lambda key: _number(str(key)), lambda image, id: _number(image)),
)
