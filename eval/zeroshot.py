"""The class of every photo of a folder by a CLIP that was never trained on these classes, from their names alone.

Each class name is put into a template, or several; a photo is of the class whose text it is most like. Every template
gives its own result, and all of them together another, from the mean of their text features: that one is written and
drawn. Labels are taken from names of folders and files as by eval.classify, and give accuracies with intervals.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from eval.photos import (Classes, Photos, add_options, check_options, labels_of, print_scores, read_photos,
                         write_predictions)
from minivl import programs
from minivl.data.labels import ClassTable, find_table, read_table
from minivl.errors import InputError, counted, some
from minivl.images import open_photo
from minivl.metrics.bootstrap import percentiles
from minivl.metrics.classification import top_k
from minivl.models.clip import CLIP
from minivl.plotting.figure import save_figure
from minivl.plotting.top5 import MOST, Guess, ranked, top5_sheet
from minivl.text.templates import TEMPLATES, check_template, prompt, spoken
from minivl.train.clip_features import clip_name, image_features, load_clip, text_features

CHUNK = 256  # photos compared together
DRAWS = 10_000  # of the bootstrap, as `bootstrap_interval` has them
SHOWN = 12   # photos of the picture
SHORT = 78   # letters of a template in the table

log = logging.getLogger("zeroshot")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = programs.Parser(__doc__)
    add_options(parser, weights="a CLIP with a tokenizer",
                labels="; without it the one beside the photos or in one of the two folders above")
    parser.add_argument("--template", action="append", help='a text with {} for the name of a class, such '
                        'as "This is a photo of a {}."; may be given several times')
    parser.add_argument("--templates", choices=tuple(TEMPLATES), help="a published set, before those of --template")
    parser.add_argument("--articles", choices=("auto", "mend", "keep"), default="auto", help='"a {}" becomes "an owl" '
                        "and \"the beach\" loses a second article (mend), or nothing changes (keep); auto: mend in "
                        "--template, and published sets as they were published")
    parser.add_argument("--each", action="store_true", help="also write what each template says: OUT-1.csv, OUT-2.csv")
    parser.add_argument("--top5", type=Path, metavar="PICTURE", help="draw photos beside bars of their five best "
                        "classes (.png)")
    parser.add_argument("--top5-photos", type=int, help=f"so many of them, drawn by --seed (without it: {SHOWN})")
    parser.add_common()
    args = parser.parse_args(argv)
    check_options(args)
    if args.top5 is not None:
        if args.top5.suffix.lower() != ".png" or args.top5.is_dir():
            raise InputError(f"--top5 {args.top5}: the picture is written as a .png file, name one")
        programs.check_place("--top5", args.top5)
    elif args.top5_photos is not None:
        raise InputError(f"--top5-photos {args.top5_photos}: nothing is drawn without --top5 PICTURE.png")
    args.top5_photos = SHOWN if args.top5_photos is None else args.top5_photos
    if not 1 <= args.top5_photos <= MOST:
        raise InputError(f"--top5-photos {args.top5_photos}: give 1 to {MOST}")
    args.template = args.template or []
    return args


# -- classes and texts ---------------------------------------------------------------------------------------

class Template(NamedTuple):
    """A template, and whether its articles are mended."""

    text: str
    mend: bool


def templates_of(args: argparse.Namespace) -> list[Template]:
    """Those of --templates, then those of --template.

    Raises:
        InputError: none, one that is no template, or one twice.
    """
    published = TEMPLATES[args.templates] if args.templates else ()
    for text in args.template:
        try:
            check_template(text)
        except InputError as error:
            raise InputError(str(error), source="--template") from None
    texts = [*published, *args.template]
    if not texts:
        raise InputError('give --template "a photo of a {}." (once or several times) or --templates '
                         f"({some(TEMPLATES)})")
    if doubled := sorted({text for text in texts if texts.count(text) > 1}):
        raise InputError(f"--template {doubled[0]!r} is there twice, and would count twice in the ensemble")
    kinds = {"auto": (False, True), "mend": (True, True), "keep": (False, False)}[args.articles]
    return [Template(text, kinds[place >= len(published)]) for place, text in enumerate(texts)]


def classes_of(args: argparse.Namespace) -> Classes:
    """The classes of --labels, or of an id2label.json near the photos.

    Raises:
        InputError: there is none, it has one class, or two of one name.
    """
    table: ClassTable | None = read_table(args.labels) if args.labels is not None else find_table(args.images)
    if table is None:
        raise InputError("has no id2label.json, neither itself nor the two folders above: give --labels, "
                         'an object such as {"0": "cat", "1": "dog"}', source=args.images)
    if len(table.names) < 2:
        raise InputError(f"has one class ({table.names[0]}): there is nothing to choose, at least 2 are needed",
                         source=table.file)
    said = [spoken(name).lower() for name in table.names]
    for place, name in enumerate(said):
        if not name:
            raise InputError(f"class {table.ids[place]} is called {table.names[place]!r}, which says nothing",
                             source=table.file)
        if name in said[:place]:
            first = said.index(name)
            raise InputError(f"classes {table.ids[first]} and {table.ids[place]} have one name "
                             f"({table.names[first]!r} and {table.names[place]!r}), and names are all that tells them "
                             'apart: say more, such as "crane (bird)"', source=table.file)
    return Classes(table.names, table.ids, table, str(table.file), True)


def prompts_of(clip: CLIP, classes: Classes, templates: Sequence[Template]) -> list[list[str]]:
    """The text of each class, template by template.

    Raises:
        InputError: two classes whose texts are the same to this CLIP: cut before they differ, or of words that its
            tokenizer does not tell apart.
    """
    assert clip.tokenizer is not None and classes.names is not None  # `load_clip` and `classes_of` saw to it
    prompts = [[prompt(text, name, mend=mend) for name in classes.names] for text, mend in templates]
    unknown = clip.tokenizer.unk_id
    if unknown is not None:
        told = [spoken(name).split() for name in classes.names]
        words = sorted({word for one in told for word in one})
        known = {word: bool(ids) and unknown not in ids  # tokenizers may leave out what they do not know
                 for word, ids in zip(words, clip.tokenizer.encode_batch(words))}
        strange = [name for name, one in zip(classes.names, told) if not all(known[word] for word in one)]
        if strange:
            log.warning("%d of %d class names have words that this CLIP does not know: %s", len(strange),
                        len(classes.names), some(map(repr, strange), 4))
    room, cut = clip.config.text.max_len - 2, 0
    for template, texts in zip(templates, prompts):
        pieces = clip.tokenizer.encode_batch(texts)
        cut += sum(len(ids) > room for ids in pieces)
        seen: dict[tuple[int, ...], int] = {}
        for place, ids in enumerate(pieces):
            if (other := seen.setdefault(tuple(ids[:room]), place)) != place:
                why = (f"what differs comes after the {room} pieces it has room for" if len(ids) > room else
                       "its tokenizer does not tell them apart (words it does not know?)")
                raise InputError(f"{template.text!r} is the same text to this CLIP for {classes.names[other]!r} and "
                                 f"{classes.names[place]!r}: {why}", source=classes.source)
    if cut:
        log.warning("%d of %d texts are longer than this CLIP has room for (%d pieces); they are cut before their end "
                    "token", cut, len(templates) * len(classes.names), room)
    return prompts


def class_features(clip: CLIP, prompts: Sequence[Sequence[str]], precision: str) -> Tensor:
    """(t + 1, V, D) normalised features of the texts of t templates and of their ensemble, which is last."""
    flat = text_features(clip, [text for texts in prompts for text in texts], precision=precision,
                         progress=programs.progress)
    each = F.normalize(flat, dim=-1).view(len(prompts), len(prompts[0]), -1)  # (t, V, D)
    return torch.cat([each, F.normalize(each.mean(0, keepdim=True), dim=-1)])


def signature_of(args: argparse.Namespace, model: str, templates: Sequence[Template],
                 prompts: Sequence[Sequence[str]]) -> str:
    """All that must be equal for two accuracies on the same photos to be comparable."""
    sets = [args.templates] * bool(args.templates) + ["own"] * bool(args.template)
    digest = hashlib.sha256("\n".join(text for texts in prompts for text in texts).encode()).hexdigest()[:8]
    return (f"zero-shot|clip:{model}|templates:{'+'.join(sets)}({len(templates)})|articles:{args.articles}|"
            f"classes:{len(prompts[0])}|texts:{digest}|tok:eot-kept|v1")


# -- results -------------------------------------------------------------------------------------------------

class Found(NamedTuple):
    """What t templates and, last, their ensemble say of n photos.

    Attributes:
        predicted: (t + 1, n) classes.
        top5: (n,) boolean, whether the ensemble has the label among its five best; None without labels.
    """

    predicted: Tensor
    top5: Tensor | None


def compare(images: Tensor, classes: Tensor, labels: Sequence[int] | None) -> Found:
    """Images (n, D) with classes (t + 1, V, D), both normalised."""
    predicted, top5 = [], []
    for first in range(0, len(images), CHUNK):
        cosines = images[first:first + CHUNK] @ classes.transpose(1, 2)  # (t + 1, b, V)
        predicted.append(cosines.argmax(2))
        if labels is not None:
            top5.append(top_k(cosines[-1], torch.tensor(labels[first:first + CHUNK]), 5))
    return Found(torch.cat(predicted, 1), torch.cat(top5) if labels is not None else None)


def print_templates(args: argparse.Namespace, found: Found, labels: Sequence[int] | None,
                    templates: Sequence[Template]) -> None:
    """A line per template: its accuracy or, without labels, how often it agrees with the ensemble."""
    each, agrees = found.predicted[:-1], (found.predicted[:-1] == found.predicted[-1]).sum(1).tolist()
    correct = None if labels is None else each == torch.tensor(labels)  # (t, n)
    bounds = None if correct is None else intervals(correct, args.seed)
    if not args.json:
        print("as the ensemble  template" if correct is None else "top-1   95 % interval     template")
    for place, (text, _) in enumerate(templates):
        short = text if len(text) <= SHORT else f"{text[:SHORT - 3]}..."
        told, line = {"template": text, "agrees": agrees[place]}, f"{agrees[place]:6d} of {each.shape[1]:<6d} {short}"
        if correct is not None and bounds is not None:
            (low, high), top1 = bounds[place], float(correct[place].double().mean())
            told |= {"top1": top1, "correct": int(correct[place].sum()), "interval": [low, high]}
            line = f"{top1:.4f}  {low:.4f} to {high:.4f}  {short}"
        programs.report(args, told, line)


def intervals(correct: Tensor, seed: int) -> list[tuple[float, float]]:
    """`bootstrap_interval` of each row of (t, n); the photos are drawn once for all rows."""
    count = correct.shape[1]
    if count == 1:
        return [(0.0, 1.0)] * len(correct)
    table, random = correct.T.numpy().astype(np.float32), np.random.default_rng(seed)  # (n, t)
    shares = np.stack([np.bincount(random.integers(0, count, count), minlength=count).astype(np.float32) @ table
                       for _ in range(DRAWS)]).astype(np.float64) / count  # (DRAWS, t)
    return [percentiles(column) for column in shares.T]


def draw(args: argparse.Namespace, photos: Photos, shares: Tensor, labels: Sequence[int] | None,
         classes: Classes, shown: Sequence[int], note: str) -> None:
    """The picture of the photos at the places `shown`, whose shares are (len(shown), V)."""
    assert classes.names is not None
    guesses = [Guess(open_photo(photos.files[place]), photos.names[place], ranked(
        row.tolist(), [spoken(name) for name in classes.names], None if labels is None else labels[place]))
        for row, place in zip(shares, shown)]
    title = (f"{len(shown)} of {len(photos.files)} photos" if len(shown) < len(photos.files) else
             counted(len(shown), "photo")) + ", zero-shot"
    save_figure(top5_sheet(guesses, title=title, note=note), args.top5)
    programs.report(args, {"picture": str(args.top5), "shown": [photos.names[place] for place in shown]},
                    f"picture: {args.top5}")


def main(argv: Sequence[str] | None) -> None:
    args = parse(argv)
    templates, photos, classes = templates_of(args), read_photos(args.images), classes_of(args)
    labels = None if args.unlabelled else labels_of(photos.files, args.images, classes)
    device = programs.device_of(args.device)
    precision = programs.precision_of(args.precision, device)
    clip = load_clip(args.weights, device)
    prompts = prompts_of(clip, classes, templates)
    texts = class_features(clip, prompts, precision)  # (t + 1, V, D)
    images = F.normalize(image_features(clip, photos.files, precision=precision, workers=args.workers,
                                        progress=programs.progress), dim=-1)  # (n, D)
    found = compare(images, texts, labels)
    write(args, photos, found, classes.words(args.label_names))
    signature = signature_of(args, clip_name(clip, args.weights, precision), templates, prompts)
    several = f" by the ensemble of {len(templates)} templates" if len(templates) > 1 else ""
    without = "" if labels is not None or args.unlabelled else (
        " (no labels in the names of these files or of the folders they lie in, hence no scores)")
    programs.report(args, {"path": str(args.out), "photos": len(photos.files), "labelled": labels is not None,
                           "signature": signature},
                    f"{args.out}: the classes of {counted(len(photos.files), 'photo')}{several}{without}\n{signature}")
    if len(templates) > 1:
        print_templates(args, found, labels, templates)
    if labels is not None and found.top5 is not None:
        if len(templates) > 1 and not args.json:
            print(f"the ensemble of {len(templates)} templates")
        print_scores(args, found.predicted[-1], found.top5, labels, classes, templates=len(templates))
    if args.top5 is not None:
        order = np.random.default_rng(args.seed).permutation(len(photos.files))[:args.top5_photos]
        shown = sorted(order.tolist())
        shares = (clip.logit_scale.detach().exp().cpu() * images[shown] @ texts[-1].T).softmax(1)  # (s, V)
        said = repr(templates[0].text) if len(templates) == 1 else f"the ensemble of {len(templates)} templates"
        draw(args, photos, shares, labels, classes, shown, f"bars: softmax over {len(classes.ids)} classes by {said}; "
             f"framed and hatched: the true class · {signature}")


def write(args: argparse.Namespace, photos: Photos, found: Found, words: Sequence[object]) -> None:
    """The file of the ensemble and, with --each, one per template beside it."""
    files = [args.out.with_name(f"{args.out.stem}-{number}{args.out.suffix}")
             for number in range(1, len(found.predicted))] if args.each else []
    for path, predicted in zip([args.out, *files], [found.predicted[-1], *found.predicted]):
        write_predictions(path, [(name, words[place]) for name, place in zip(photos.names, predicted.tolist())])


if __name__ == "__main__":
    programs.program(main)
