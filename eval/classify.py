"""The class of every photo of a folder as a CSV file and, where the photos have labels, how often it is right.

Labels are the names of the folders that the photos lie in, where these are names (or numbers) of classes, or the
beginnings of their file names, {label}_{anything}.jpg, where an id2label.json says what classes there are: --labels,
or one beside the photos or in one of the two folders above.
"""

from __future__ import annotations

import argparse
import csv
import logging
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import minivl
from minivl import programs
from minivl.data.labels import ClassTable, find_table, read_pictures, read_table
from minivl.errors import InputError, some
from minivl.files import atomic_path
from minivl.geometry import Pair
from minivl.images import Preprocessing, batch
from minivl.metrics.classification import accuracy, bootstrap_interval, confusion_pairs, mean_per_class, top_k
from minivl.models.vit import ViT
from minivl.train.loop import autocast

UNLABELLED = "--unlabelled classifies the photos whatever they are called"

log = logging.getLogger("classify")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = programs.Parser(__doc__)
    parser.add_argument("--images", type=Path, required=True, help="folder of photos, and of folders of photos")
    parser.add_argument("--weights", required=True, help="a ViT with a head")
    parser.add_argument("--out", type=Path, required=True, help='the predictions (.csv): "filename,label", sorted')
    parser.add_argument("--labels", type=Path, help="id2label.json: numbers and names of the classes of the head")
    parser.add_argument("--label-names", action="store_true", help="write names of classes, not their numbers")
    parser.add_argument("--unlabelled", action="store_true", help="take no labels from names of folders and files")
    parser.add_argument("--batch-size", type=int, default=64, help="photos computed together")
    parser.add_common()
    args = parser.parse_args(argv)
    programs.check_common(args)
    if args.batch_size < 1:
        raise InputError(f"--batch-size {args.batch_size}: give 1 or more")
    if args.out.suffix.lower() != ".csv" or args.out.is_dir():
        raise InputError(f"--out {args.out}: the predictions are written as a .csv file, name one")
    nearest = next(path for path in args.out.absolute().parents if path.exists())
    if not nearest.is_dir():
        raise InputError(f"--out {args.out}: {nearest} is a file, no folder can be made there")
    return args


# -- what the head says --------------------------------------------------------------------------------------

class Classes(NamedTuple):
    """The classes of a head, one per output.

    Attributes:
        names: None where nobody tells them.
        ids: what is written into the file: the numbers of id2label.json, or those of the outputs.
        table: the id2label.json, if there is one.
        source: the weights.
    """

    names: tuple[str, ...] | None
    ids: tuple[int, ...]
    table: ClassTable | None
    source: str

    def of_word(self, word: str) -> int | None:
        """The output of the class that has this name or number; a name of the weights comes first."""
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


def load(weights: str, device: torch.device) -> ViT:
    """A classifier that can be shown photos."""
    model = minivl.load(weights).to(device).float()  # computes in float32, or by autocast
    if not isinstance(model, ViT):
        raise InputError(f"is a {model.kind}, which has no classes: a ViT with a head is needed", source=weights)
    if not model.config.num_classes:
        raise InputError("has no head, so it knows no classes (train_p1.py trains one)", source=weights)
    if model.preprocessing is None:
        raise InputError("its preprocessing is unknown, so photos cannot be given to it: name the file after a "
                         "preset, or save it with minivl.save", source=weights)
    return model


def classes_of(model: ViT, weights: str, table: ClassTable | None) -> Classes:
    """Names and numbers of the outputs.

    Raises:
        InputError: an id2label.json that is not of this head.
    """
    count, names = model.config.num_classes, model.class_names
    if table is None:
        return Classes(names, tuple(range(count)), None, weights)
    if len(table.names) != count:
        raise InputError(f"has {len(table.names)} classes, the head of {weights} {count}: give --labels of this head; "
                         f"{UNLABELLED}", source=table.file)
    if names is None or names == table.names:
        return Classes(table.names, table.ids, table, weights)
    places = [table.place(name) for name in names]
    if sorted(place for place in places if place is not None) != list(range(count)):
        unknown = [name for name, place in zip(names, places) if place is None] or list(names)
        raise InputError(f"its classes are not those of {weights}, which has {some(map(repr, unknown), 4)} and it has "
                         f"{some(map(repr, table.names), 4)}: give --labels of this head; {UNLABELLED}",
                         source=table.file)
    log.info("%s and the weights number the classes differently: they are matched by name", table.file)
    known = [place for place in places if place is not None]
    return Classes(names, tuple(table.ids[place] for place in known), table, weights)


# -- photos and labels ---------------------------------------------------------------------------------------

def labels_of(files: Sequence[Path], folder: Path, classes: Classes) -> list[int] | None:
    """The output that each photo should give; None where the photos have no labels.

    Raises:
        InputError: some have a label and others have none.
    """
    parts = [file.relative_to(folder).parts for file in files]
    if all(len(one) == 1 for one in parts):
        labels = [classes.of_file(file.stem) for file in files]
        # what looks like a label shall be one, unless nobody says what the numbers mean
        sure = classes.table is not None and any(re.match(r"\d+_", file.name) for file in files)
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


class _Batches(Dataset["Tensor | InputError"]):
    """Photos as tensors, batch by batch; runs in worker processes, so that errors are handed over, not raised."""

    def __init__(self, files: Sequence[Path], preprocessing: Preprocessing, cell: Pair, size: int) -> None:
        self._parts = [files[first:first + size] for first in range(0, len(files), size)]
        self._preprocessing, self._cell = preprocessing, cell

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, number: int) -> Tensor | InputError:
        try:
            return batch(self._parts[number], self._preprocessing, self._cell)[0]
        except InputError as error:
            return error  # raised in a worker, it would come out wrapped in a traceback


class Predictions(NamedTuple):
    """What a model says of n photos.

    Attributes:
        predicted: (n,) outputs.
        top5: (n,) boolean, whether the label is among the five best; None without labels.
    """

    predicted: Tensor
    top5: Tensor | None


@torch.no_grad()
def predict(model: ViT, files: Sequence[Path], labels: Sequence[int] | None, args: argparse.Namespace) -> Predictions:
    """Classify photos.

    Raises:
        InputError: a photo that does not open, or logits that are no numbers.
    """
    device = model.pos_embed.device
    assert model.preprocessing is not None  # `load` saw to it
    dataset = _Batches(files, model.preprocessing, model.cell, args.batch_size)
    loader = DataLoader(dataset, batch_size=None, num_workers=args.workers)
    predicted, top5, first = [], [], 0
    for images in programs.progress(loader, total=len(dataset), desc="classifying"):
        if isinstance(images, InputError):
            raise images
        with autocast(device, programs.precision_of(args.precision, device)):
            logits = model(images.to(device)).float().cpu()  # (B, V)
        if logits.isnan().any():
            wrong = files[first + int(logits.isnan().any(1).int().argmax())]
            raise InputError(f"what {args.weights} says of it is not a number: the weights are damaged, or --precision "
                             f"{args.precision} is too coarse for them", source=wrong)
        predicted.append(logits.argmax(1))
        if labels is not None:
            top5.append(top_k(logits, torch.tensor(labels[first:first + len(logits)]), 5))
        first += len(logits)
    return Predictions(torch.cat(predicted), torch.cat(top5) if labels is not None else None)


# -- results -------------------------------------------------------------------------------------------------

def write(path: Path, rows: Sequence[tuple[str, Any]]) -> None:
    """The CSV file; names of files that are no UTF-8 keep their bytes."""
    with atomic_path(path) as temporary:
        with open(temporary, "w", newline="", encoding="utf-8", errors="surrogateescape") as opened:
            writer = csv.writer(opened, lineterminator="\n")
            writer.writerow(("filename", "label"))
            writer.writerows(rows)


def print_scores(args: argparse.Namespace, found: Predictions, labels: Sequence[int], classes: Classes) -> None:
    """Top-1 with its interval, top-5, mean per class and the most frequent confusions."""
    correct = found.predicted == torch.tensor(labels)
    assert found.top5 is not None  # there are labels
    low, high = bootstrap_interval(correct, seed=args.seed)
    told = {"top1": accuracy(found.predicted, labels), "correct": int(correct.sum()), "photos": len(labels),
            "interval": [low, high], "top5": float(found.top5.double().mean()),
            "mean_per_class": mean_per_class(found.predicted, labels, len(classes.ids)), "classes": len(set(labels))}
    pairs = confusion_pairs(found.predicted, labels, classes.shown())
    lines = [f"top-1           {told['top1']:.4f}  95 % interval {low:.4f} to {high:.4f}  ({told['correct']} of "
             f"{len(labels)} photos)",
             f"top-5           {told['top5']:.4f}",
             f"mean per class  {told['mean_per_class']:.4f}  ({told['classes']} of {len(classes.ids)} classes occur)"]
    if pairs:
        lines.append("most frequent confusions (photos: class -> taken for)")
        lines += [f"{pair.photos:5d}: {pair.true} -> {pair.predicted}" for pair in pairs]
    programs.report(args, {**told, "confusions": [pair._asdict() for pair in pairs]}, "\n".join(lines))


def main(argv: Sequence[str] | None) -> None:
    args = parse(argv)
    files, skipped = read_pictures(args.images, deep=True)
    named = sorted((file.relative_to(args.images).as_posix(), file) for file in files)
    files = tuple(file for _, file in named)
    if skipped:
        log.info("%d files are left out: %s", len(skipped), some(skipped, 2))
    given = None if args.labels is None else read_table(args.labels)
    table = given or (None if args.unlabelled else find_table(args.images))
    model = load(args.weights, programs.device_of(args.device))
    classes = classes_of(model, args.weights, table)
    if args.label_names and classes.names is None:
        raise InputError(f"--label-names: neither {args.weights} nor an id2label.json name the classes; give --labels")
    if args.label_names and (doubled := [name for name, count in Counter(classes.names).items() if count > 1]):
        log.warning("the file will not tell apart classes of one name: %s", some(doubled))
    labels = None if args.unlabelled else labels_of(files, args.images, classes)
    found = predict(model, files, labels, args)
    words: Callable[[int], Any] = (classes.names if args.label_names and classes.names else classes.ids).__getitem__
    write(args.out, [(name, words(output)) for (name, _), output in zip(named, found.predicted.tolist())])
    without = "" if labels is not None or args.unlabelled else " (no labels in their names, hence no scores)"
    programs.report(args, {"path": str(args.out), "photos": len(files), "labelled": labels is not None},
                    f"{args.out}: the classes of {len(files)} photos{without}")
    if labels is not None:
        print_scores(args, found, labels, classes)


if __name__ == "__main__":
    programs.program(main)
