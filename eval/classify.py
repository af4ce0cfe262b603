"""The class of every photo of a folder as a CSV file and, where the photos have labels, how often it is right.

Labels are the names of the folders that the photos lie in, where these are names (or numbers) of classes, or the
beginnings of their file names, {label}_{anything}.jpg, where an id2label.json says what classes there are: --labels,
or one beside the photos or in one of the two folders above, or the one that the weights were trained with.
"""

from __future__ import annotations

import argparse
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import minivl
from eval.photos import (UNLABELLED, Classes, add_options, check_options, labels_of, print_scores, read_photos,
                         write_predictions)
from minivl import programs
from minivl.data.labels import ClassTable, find_table, read_table, table_of
from minivl.data.photos import photo_batches
from minivl.errors import InputError, counted, some
from minivl.files import read_header
from minivl.loading import HEADER_KEY, find_weights, read_own
from minivl.metrics.classification import top_k
from minivl.models.vit import ViT
from minivl.train.loop import autocast

log = logging.getLogger("classify")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = programs.Parser(__doc__)
    add_options(parser, weights="a ViT with a head", labels=" of the head")
    parser.add_argument("--batch-size", type=int, default=64, help="photos computed together")
    parser.add_common()
    args = parser.parse_args(argv)
    check_options(args)
    if args.batch_size < 1:
        raise InputError(f"--batch-size {args.batch_size}: give 1 or more")
    return args


# -- what the head says --------------------------------------------------------------------------------------

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


def own_table(weights: str) -> ClassTable | None:
    """The id2label that train_p1.py noted in the header of a file of weights.

    Raises:
        InputError: it has another form.
    """
    path = find_weights(weights)
    metadata = read_header(path)[1] if path.is_file() else {}  # a folder of the hub has names in its config
    about = read_own(metadata[HEADER_KEY], path).get("about", {}) if HEADER_KEY in metadata else {}
    try:
        return table_of(about["id2label"], path) if "id2label" in about else None
    except InputError as error:
        raise InputError(f"its minivl header is damaged: about.id2label {str(error).removeprefix(f'{path}: ')}",
                         source=path) from None


def classes_of(model: ViT, weights: str, table: ClassTable | None) -> Classes:
    """Names and numbers of the outputs.

    Args:
        table: an id2label.json; None: the one that the weights note, if any.

    Raises:
        InputError: an id2label that is not of this head.
    """
    count, names, sure = model.config.num_classes, model.class_names, table is not None
    table = table or own_table(weights)
    if table is None:
        return Classes(names, tuple(range(count)), None, weights)
    if len(table.names) != count:
        raise InputError(f"has {len(table.names)} classes, the head of {weights} {count}: give --labels of this head; "
                         f"{UNLABELLED}", source=table.file)
    if names is None or names == table.names:
        return Classes(table.names, table.ids, table, weights, sure)
    places = [table.place(name) for name in names]
    if sorted(place for place in places if place is not None) != list(range(count)):
        unknown = [name for name, place in zip(names, places) if place is None] or list(names)
        raise InputError(f"its classes are not those of {weights}, which has {some(map(repr, unknown), 4)} and it has "
                         f"{some(map(repr, table.names), 4)}: give --labels of this head; {UNLABELLED}",
                         source=table.file)
    log.info("%s and the weights number the classes differently: they are matched by name", table.file)
    known = [place for place in places if place is not None]
    return Classes(names, tuple(table.ids[place] for place in known), table, weights, sure)


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
    batches = photo_batches(files, model.preprocessing, model.cell, args.batch_size, workers=args.workers)
    predicted, top5, first = [], [], 0
    for images in programs.progress(batches, total=-(-len(files) // args.batch_size), desc="classifying"):
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


def main(argv: Sequence[str] | None) -> None:
    args = parse(argv)
    photos = read_photos(args.images)
    given = None if args.labels is None else read_table(args.labels)
    table = given or (None if args.unlabelled else find_table(args.images))
    model = load(args.weights, programs.device_of(args.device))
    classes = classes_of(model, args.weights, table)
    if args.label_names and classes.names is None:
        raise InputError(f"--label-names: neither {args.weights} nor an id2label.json name the classes; give --labels")
    if args.label_names and (doubled := [name for name, count in Counter(classes.names).items() if count > 1]):
        log.warning("the file will not tell apart classes of one name: %s", some(doubled))
    labels = None if args.unlabelled else labels_of(photos.files, args.images, classes)
    found = predict(model, photos.files, labels, args)
    words = classes.words(args.label_names)
    write_predictions(args.out, [(name, words[output]) for name, output in zip(photos.names, found.predicted.tolist())])
    without = "" if labels is not None or args.unlabelled else " (no labels in their names, hence no scores)"
    programs.report(args, {"path": str(args.out), "photos": len(photos.files), "labelled": labels is not None},
                    f"{args.out}: the classes of {counted(len(photos.files), 'photo')}{without}")
    if labels is not None and found.top5 is not None:
        print_scores(args, found.predicted, found.top5, labels, classes)


if __name__ == "__main__":
    programs.program(main)
