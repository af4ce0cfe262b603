"""A folder of photos for programs that say a class of each: options, labels in names, CSV and scores."""

from __future__ import annotations

import argparse
import csv
import logging
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minivl import programs
from minivl.data.labels import ClassTable, read_pictures
from minivl.errors import InputError, some
from minivl.files import atomic_path
from minivl.metrics.classification import accuracy, bootstrap_interval, confusion_pairs, mean_per_class

UNLABELLED = "--unlabelled classifies the photos whatever they are called"

log = logging.getLogger("photos")


# -- options -------------------------------------------------------------------------------------------------

def add_options(parser: programs.Parser, *, weights: str, labels: str) -> None:
    """The options of such a program; ``weights`` and ``labels`` say what these two are."""
    parser.add_argument("--images", type=Path, required=True, help="folder of photos, and of folders of photos")
    parser.add_argument("--weights", required=True, help=weights)
    parser.add_argument("--out", type=Path, required=True, help='the predictions (.csv): "filename,label", sorted')
    parser.add_argument("--labels", type=Path, help=f"id2label.json: numbers and names of the classes{labels}")
    parser.add_argument("--label-names", action="store_true", help="write names of classes, not their numbers")
    parser.add_argument("--unlabelled", action="store_true", help="take no labels from names of folders and files")


def check_options(args: argparse.Namespace) -> None:
    """Raise InputError for an option out of range."""
    programs.check_common(args)
    if args.out.suffix.lower() != ".csv" or args.out.is_dir():
        raise InputError(f"--out {args.out}: the predictions are written as a .csv file, name one")
    programs.check_place("--out", args.out)


# -- photos and labels ---------------------------------------------------------------------------------------

class Classes(NamedTuple):
    """The classes of a model, one per output.

    Attributes:
        names: None where nobody tells them.
        ids: what is written into the file: the numbers of an id2label, or those of the outputs.
        table: the id2label, if there is one.
        source: where the names come from: the weights, or the id2label.json.
        sure: whether the id2label goes with the photos, not with the weights: then a file name that begins with a
            number and _ must be a label.
    """

    names: tuple[str, ...] | None
    ids: tuple[int, ...]
    table: ClassTable | None
    source: str
    sure: bool = False

    def of_word(self, word: str) -> int | None:
        """The output of the class that has this name or number; a name comes before a number."""
        if self.names is not None and self.names.count(word) == 1:
            return self.names.index(word)
        return self._output(self.table.place(word)) if self.table else None

    def of_file(self, stem: str) -> int | None:
        """The output of the class with whose number or name, and _, a file's name begins."""
        return self._output(self.table.of_name(stem)) if self.table else None

    def _output(self, place: int | None) -> int | None:
        assert self.table is not None
        return None if place is None else self.ids.index(self.table.ids[place])

    def shown(self) -> list[str]:
        """Names that tell all classes apart: ImageNet has two kinds of crane."""
        if self.names is None:
            return [str(id) for id in self.ids]
        counts = Counter(self.names)
        return [name if counts[name] == 1 else f"{name} ({id})" for name, id in zip(self.names, self.ids)]

    def words(self, label_names: bool) -> Sequence[Any]:
        """What the file says of each class: its number, or with --label-names its name."""
        return self.names if label_names and self.names is not None else self.ids


class Photos(NamedTuple):
    """The photos of a folder, and of its folders, sorted by name.

    Attributes:
        names: their paths inside the folder, with slashes.
        files: they.
    """

    names: tuple[str, ...]
    files: tuple[Path, ...]


def read_photos(folder: Path) -> Photos:
    """All photos of a folder; what is left out is logged.

    Raises:
        InputError: no such folder, or no photo in it.
    """
    files, skipped = read_pictures(folder, deep=True)
    if skipped:
        log.info("%d files are left out: %s", len(skipped), some(skipped, 2))
    named = sorted((file.relative_to(folder).as_posix(), file) for file in files)
    return Photos(tuple(name for name, _ in named), tuple(file for _, file in named))


def labels_of(files: Sequence[Path], folder: Path, classes: Classes) -> list[int] | None:
    """The output that each photo should give; None where the photos have no labels.

    Raises:
        InputError: some have a label and others have none.
    """
    parts = [file.relative_to(folder).parts for file in files]
    if all(len(one) == 1 for one in parts):
        labels = [classes.of_file(file.stem) for file in files]
        # what looks like a label shall be one, unless nobody says what the numbers mean
        sure = classes.sure and any(re.match(r"\d+_", file.name) for file in files)
        wanted = f"do not begin with a number or name of {classes.table and classes.table.file} and _"
    else:
        labels = [classes.of_word(one[0]) if len(one) > 1 else None for one in parts]
        sure, wanted = False, f"do not lie in a folder called as a class of {classes.source}"
    unknown = ["/".join(one) for one, label in zip(parts, labels) if label is None]
    if len(unknown) == len(files) and not sure:
        return None
    if unknown:
        raise InputError(f"{len(unknown)} of {len(files)} photos {wanted}: {some(unknown, 3)}; there are "
                         f"{len(classes.ids)} classes ({some(classes.shown(), 3)}); {UNLABELLED}", source=folder)
    return [label for label in labels if label is not None]


# -- results -------------------------------------------------------------------------------------------------

def write_predictions(path: Path, rows: Sequence[tuple[str, Any]]) -> None:
    """The CSV file; names of files that are no UTF-8 keep their bytes."""
    with atomic_path(path) as temporary:
        with open(temporary, "w", newline="", encoding="utf-8", errors="surrogateescape") as opened:
            writer = csv.writer(opened, lineterminator="\n")
            writer.writerow(("filename", "label"))
            writer.writerows(rows)


def print_scores(args: argparse.Namespace, predicted: Tensor, top5: Tensor, labels: Sequence[int],
                 classes: Classes, **told: Any) -> None:
    """Top-1 with its interval, top-5, mean per class and the most frequent confusions.

    Args:
        predicted: (n,) outputs.
        top5: (n,) boolean, whether the label is among the five best.
        told: more for the JSON.
    """
    correct = predicted == torch.tensor(labels)
    low, high = bootstrap_interval(correct, seed=args.seed)
    told |= {"top1": accuracy(predicted, labels), "correct": int(correct.sum()), "photos": len(labels),
             "interval": [low, high], "top5": float(top5.double().mean()),
             "mean_per_class": mean_per_class(predicted, labels, len(classes.ids)), "classes": len(set(labels))}
    pairs = confusion_pairs(predicted, labels, classes.shown())
    lines = [f"top-1           {told['top1']:.4f}  95 % interval {low:.4f} to {high:.4f}  ({told['correct']} of "
             f"{len(labels)} photos)",
             f"top-5           {told['top5']:.4f}",
             f"mean per class  {told['mean_per_class']:.4f}  ({told['classes']} of {len(classes.ids)} classes occur)"]
    if pairs:
        lines.append("most frequent confusions (photos: class -> taken for)")
        lines += [f"{pair.photos:5d}: {pair.true} -> {pair.predicted}" for pair in pairs]
    programs.report(args, {**told, "confusions": [pair._asdict() for pair in pairs]}, "\n".join(lines))
