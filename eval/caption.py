"""A caption for every photo of a folder, in one file.

Formats: "course" is {"stem": "caption"}; "coco" is [{"image_id": 397133, "caption": "..."}] with the number that a file
name such as 000000397133.jpg or COCO_val2014_000000397133.jpg has; "jsonl" is an object per line that has also the
log-probability, the probability of every word and, with --n-best or --samples, the other captions.
"""

from __future__ import annotations

import argparse
import logging
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import minivl
from eval.layouts import add_layout, check_layout, key_of, write_captions
from minivl import programs
from minivl.data.labels import read_pictures
from minivl.data.photos import photo_batches
from minivl.data.predictions import Key
from minivl.errors import InputError, counted, some
from minivl.images import open_photo
from minivl.models.captioner import Caption, Captioner
from minivl.models.vit import ViT
from minivl.search import Options
from minivl.search.arguments import add_options, options_as_typed, options_of
from minivl.train.loop import autocast

log = logging.getLogger("caption")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = programs.Parser(__doc__)
    parser.add_argument("--images", type=Path, required=True, help="folder of photos")
    parser.add_argument("--weights", required=True, help="a captioner: a file, a name or a folder")
    add_layout(parser)
    parser.add_argument("--batch-size", type=int, default=64, help="photos decoded together")
    parser.add_argument("--compile", action="store_true", help="decode in graphs of torch.compile (CUDA graphs on a "
                        "GPU), which are made once, in a minute or so: for many photos")
    add_options(parser)
    parser.add_common()
    args = parser.parse_args(argv)
    programs.check_common(args)
    options = options_of(args, Options.max_len)  # what does not go together is said before anything is read
    if args.batch_size < 1:
        raise InputError(f"--batch-size {args.batch_size}: give 1 or more")
    check_layout(args)
    count = options.samples or options.n_best
    if count > 1 and args.format != "jsonl":
        raise InputError(f"--format {args.format} has room for one caption per photo, and {count} are asked for: give "
                         "--out a name in .jsonl")
    return args


# -- photos --------------------------------------------------------------------------------------------------

def photos(folder: Path, layout: str) -> dict[Key, Path]:
    """The photos of a folder by what the file of captions calls them, sorted by name.

    Raises:
        InputError: no photos, two of one name but for the suffix, a name that has no number or is no UTF-8, or a file
            that is no photo by its first bytes.
    """
    files, skipped = read_pictures(folder)
    if skipped:
        log.info("left out: %s (%s)", counted(len(skipped), "file"), some(skipped, 2))
    found: dict[Key, Path] = {}
    for file in files:
        key = key_of(file.stem, layout, file)
        if key in found:
            raise InputError(f"{found[key].name} and {file.name} would both be {key!r} in the file of captions: rename "
                             "or remove one", source=folder)
        if any("\ud800" <= letter <= "\udfff" for letter in file.name):
            raise InputError(f"the name {ascii(file.name)} is no UTF-8, as JSON must be: rename it", source=folder)
        found[key] = file
    for file in files:
        try:
            with Image.open(file):  # its beginning only
                pass
        except Exception:  # whatever it is, opening it whole says it in one line, or finds nothing wrong
            open_photo(file)
    return found


def load(weights: str, device: torch.device) -> Captioner:
    """A captioner that can be shown photos and has words."""
    model = minivl.load(weights).to(device).float()  # computes in float32, or by autocast
    if not isinstance(model, Captioner):
        raise InputError(f"is a {model.kind}, which says no captions: the weights of a captioner are needed "
                         "(train_p2.py makes them)", source=weights)
    if model.tokenizer is None:
        raise InputError("has no tokenizer: its captions are ids, no words", source=weights)
    if model.preprocessing is None:
        raise InputError("its preprocessing is unknown, so photos cannot be given to it: name the file after a "
                         "preset, or save it with minivl.save", source=weights)
    return model


# -- captions ------------------------------------------------------------------------------------------------

def captions(model: Captioner, files: Sequence[Path], options: Options, args: argparse.Namespace) -> Iterator[Caption]:
    """One per photo, each photo in its own size where the encoder takes any.

    Samples are drawn from the name of a photo, not from its place, so that they stay the same if others come or go.
    """
    device = model.decoder.embed.weight.device
    assert model.preprocessing is not None  # `load` saw to it
    single = photo_batches(files, model.preprocessing, model.cell, 1, workers=args.workers)  # (1, 3, H, W) each
    numbers = [zlib.crc32(file.stem.encode()) for file in files]
    starts: Iterable[int] = range(0, len(files), args.batch_size)
    for start in programs.progress(starts, desc="captioning"):
        part = numbers[start:start + args.batch_size]
        images: list[Tensor] = [next(single)[0] for _ in part]
        with autocast(device, programs.precision_of(args.precision, device)):
            # a graph is of so many images: the last batch is filled up with what nobody reads
            spare = args.batch_size - len(part) if args.compile and start else 0
            yield from model.caption(images + images[:1] * spare, numbers=part + part[:1] * spare,
                                     batch_size=args.batch_size, compile=args.compile, **vars(options))[:len(part)]


def record(caption: Caption) -> dict[str, Any]:
    """A caption as JSON lines have it."""
    words = zip(caption.words or (), caption.probabilities or ())
    return {"caption": caption.text, "logprob": caption.logprob, "score": caption.score, "ids": list(caption.ids),
            "words": [{"text": word.text, "probability": probability} for word, probability in words]}


def detail(file: Path, caption: Caption) -> dict[str, Any]:
    """All that a line of JSON has of a photo, but for what it is called."""
    others = {"others": [record(other) for other in caption.others]} if caption.others else {}
    return {"file_name": file.name, **record(caption), **others}


def main(argv: Sequence[str] | None) -> None:
    args = parse(argv)
    files = photos(args.images, args.format)
    model = load(args.weights, programs.device_of(args.device))
    prefix = len(model.tokenizer.encode(args.prefix or "")) if model.tokenizer else 0
    if args.compile and not isinstance(model.encoder, ViT):
        raise InputError(f"--compile makes a graph for pictures of one size, and {args.weights} takes them in any: "
                         "leave it out")
    options = options_of(args, max(1, min(model.longest, model.config.decoder.max_len - 1 - prefix)))
    began = time.perf_counter()
    with options_as_typed():
        model.caption([], **vars(options))  # words that it has not, and the like, before any photo is opened
        told = list(captions(model if args.compile else model.ready(), list(files.values()), options, args))
    seconds = time.perf_counter() - began
    write_captions(args.out, args.format, {key: one.text or "" for key, one in zip(files, told)},
                   [detail(file, one) for file, one in zip(files.values(), told)])
    empty = sum(not one.text for one in told)
    if empty:
        log.warning("%s no word at all", "1 caption has" if empty == 1 else f"{empty} captions have")
    changed = {field.name: getattr(options, field.name) for field in fields(Options)
               if getattr(options, field.name) != field.default or field.name in ("beams", "max_len")}
    if options.samples:
        del changed["beams"]
    programs.report(args, {"path": str(args.out), "photos": len(told), "empty": empty, "seconds": seconds, **changed},
                    f"{args.out}: captions of {counted(len(told), 'photo')} in {seconds:.1f} s ("
                    f"{', '.join(f'{name} {value}' for name, value in changed.items())})")


if __name__ == "__main__":
    programs.program(main)
