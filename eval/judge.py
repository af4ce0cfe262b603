"""Captions and what they are scored with: whose images they are, references, document frequencies, photos."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from minivl import programs
from minivl.data.captions import CaptionSet, read_captions
from minivl.data.predictions import Key, faults, match, read_predictions, told
from minivl.errors import InputError, counted, some
from minivl.images import Photo
from minivl.metrics.bleu import bleu
from minivl.metrics.cider import cider
from minivl.metrics.diversity import distinct
from minivl.metrics.docfreq import DocFreq
from minivl.metrics.rouge import rouge
from minivl.metrics.score import Score
from minivl.train.clip_features import clip_name, load_clip
from minivl.train.clip_judge import ClipJudge

METRICS = ("cider-d", "cider", "bleu", "rouge-l", "diversity")
LABELS = {"cider_d": "CIDEr-D", "cider": "CIDEr", **{f"bleu_{order}": f"BLEU-{order}" for order in (1, 2, 3, 4)},
          "rouge_l": "ROUGE-L", "distinct_1": "distinct-1", "distinct_2": "distinct-2", "different": "different",
          "vocabulary": "vocabulary", "novel": "novel", "clip_score": "CLIPScore", "ref_clip_score": "RefCLIPScore"}


@dataclass(frozen=True)
class Images:
    """The images that captions may be of.

    Attributes:
        names: file names.
        ids: file name -> id in the references.
        references: file name -> what people wrote; empty without references.
        source: the file of references, or the folder of photos; "" where captions are all there is.
        split: of that file.
        whole: whether a caption is needed of each of them; of a folder of photos captions may be of a part.
    """

    names: tuple[str, ...]
    ids: Mapping[str, Key]
    references: Mapping[str, list[str]]
    source: str
    split: str = ""
    whole: bool = True


class Captions(NamedTuple):
    """Captions of images.

    Attributes:
        captions: file name -> caption, in the order of the predictions.
        keys: file name -> what the predictions call it.
        left_out: see `minivl.data.predictions.faults`.
        source: the file.
    """

    captions: dict[str, str]
    keys: dict[str, Key]
    left_out: dict[str, list[Key]]
    source: str


def images_of(args: argparse.Namespace, photos: Mapping[str, Photo]) -> Images:
    """Those of --references, else the photos themselves, else whatever the predictions say that they are of."""
    if args.references is None and args.images is None:
        ids = {str(key): key for key in read_predictions(args.predictions).captions}
        return Images(tuple(ids), ids, {}, "")
    if args.references is None:
        return Images(tuple(photos), {}, {}, str(args.images), whole=False)
    read: CaptionSet = read_captions(args.references, split=args.split)
    return Images(read.images, read.ids, read.references(), read.source, read.split)


def captions_of(path: Path, images: Images, partial: bool) -> Captions:
    """The captions of a file of predictions, by image.

    Raises:
        InputError: what `read_predictions` and `match` refuse; without `partial` also images without a caption (if
            one is needed of each), captions of no image or twice of one, and empty captions.
    """
    read = read_predictions(path)
    matched = match(read.captions, images.names, images.ids, predictions=str(path),
                    references=images.source or "the predictions")
    wrong = faults(read, matched)
    if not images.whole:
        wrong.pop("missing", None)
    if wrong and not partial:
        place = f"does not fit {images.source}" if images.source else "does not have one caption of each image"
        raise InputError(f"{place}: {told(wrong)}; --partial scores what there is, "
                         f"{counted(len(matched.keys), 'image')}", source=path)
    return Captions({name: read.captions[key] for name, key in matched.keys.items()}, matched.keys, wrong, str(path))


def others_of(images: Images, captions: Captions) -> Images:
    """The images that captions to be compared with these must be of: with references all, else those of these."""
    if images.references:
        return images
    names = tuple(captions.captions)
    return replace(images, names=names, ids={name: images.ids[name] for name in names if name in images.ids},
                   source=captions.source, whole=True)


def only(captions: Captions, names: Mapping[str, Any]) -> Captions:
    """Those of some images."""
    return captions._replace(captions={name: text for name, text in captions.captions.items() if name in names},
                             keys={name: key for name, key in captions.keys.items() if name in names})


def photos_by_name(names: Sequence[str], photos: Mapping[str, Photo], folder: Path, source: str) -> dict[str, Photo]:
    """The photo of each image.

    Raises:
        InputError: photos that are not in the folder, or names that fit several.
    """
    matched = match(names, list(photos), predictions=source, references=str(folder))
    if lost := [*matched.extra, *matched.doubled]:
        raise InputError(f"{len(lost)} of the {len(names)} images of {source} that are scored are not there: "
                         f"{some(map(repr, lost), 3)}", source=folder)
    of_name = {key: photos[file] for file, key in matched.keys.items()}
    return {name: of_name[name] for name in names}


class Judge:
    """Everything that captions of given images are scored with.

    Args:
        args: the options.
        images: of which the captions are.
        names: of the images that are scored, a part of them.
        photos: name -> file, of --images.
    """

    def __init__(self, args: argparse.Namespace, images: Images, names: Sequence[str],
                 photos: Mapping[str, Photo]) -> None:
        self._args = args
        self._references = {name: images.references[name] for name in names if images.references}
        self._df = "corpus" if args.df is None else DocFreq.load(args.df)
        if len(names) < 2 and args.df is None and {"cider-d", "cider"} & {*args.metrics}:
            raise InputError(f"one image ({names[0]}): the document frequencies of CIDEr need at least 2; give --df "
                             "(what --save-df wrote of a larger set), or leave it out with --metrics bleu rouge-l",
                             source=images.source)
        self._training = None
        if args.training is not None:
            self._training = read_captions(args.training, split=args.training_split).references()
        self._clip = None
        if args.clip:
            seen = photos_by_name(names, photos, args.images, images.source)
            device = programs.device_of(args.device)
            precision = programs.precision_of(args.precision, device)
            clip = load_clip(args.clip, device)
            self._clip = ClipJudge(clip, seen, self._references, preset=args.clip_preset or "hessel",
                                   model=clip_name(clip, args.clip, precision), precision=precision,
                                   workers=args.workers, progress=programs.progress)

    def scores(self, captions: Mapping[str, str]) -> dict[str, Score]:
        """All numbers that are asked for, by the names of `LABELS`."""
        args, references, found = self._args, self._references, {}
        for variant in ("cider-d", "cider"):
            if variant in args.metrics:
                found[variant.replace("-", "_")] = cider(captions, references, variant=variant, df=self._df,
                                                         tokenize=args.tokens)
        if "bleu" in args.metrics:
            whole = bleu(captions, references, tokenize=args.tokens)
            for place, number in enumerate(whole.scores):
                per_item = {name: numbers[place] for name, numbers in whole.per_item.items()}
                found[f"bleu_{place + 1}"] = Score(number, per_item, whole.signature)
        if "rouge-l" in args.metrics:
            found["rouge_l"] = rouge(captions, references, tokenize=args.tokens)
        if "diversity" in args.metrics:
            varied = distinct(captions, self._training, tokenize=args.tokens)
            for name in ("distinct_1", "distinct_2", "different", "vocabulary", "novel"):
                if (value := getattr(varied, name)) is not None:
                    found[name] = Score(value, {}, varied.signature_of(name))  # of all captions, of none alone
        return found | (self._clip.scores(captions) if self._clip else {})
