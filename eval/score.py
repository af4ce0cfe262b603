"""How good captions are: CIDEr-D, BLEU and ROUGE-L against what people wrote, how many different ones there are, and
CLIPScore where photos are given. Each number with its signature, everything per image as JSON, and the difference
between two sets of captions with its interval.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from eval.judge import LABELS, METRICS, Captions, Images, Judge, captions_of, images_of, only, others_of
from minivl import programs
from minivl.data.predictions import told
from minivl.errors import InputError, counted, some
from minivl.files import read_json, undamaged, write_json
from minivl.metrics.clipscore import PRESETS
from minivl.metrics.compare import Comparison, compare
from minivl.metrics.docfreq import DocFreq
from minivl.metrics.score import Score, same_signature
from minivl.metrics.tokens import NAMED
from minivl.train.ranking import photos_of

FORMAT = "minivl caption scores 1"
MEANS = ("cider_d", "cider", "rouge_l", "clip_score", "ref_clip_score")  # of their images' (or 0, if that is below)
USUAL = tuple(metric for metric in METRICS if metric != "cider")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = programs.Parser(__doc__)
    parser.add_argument("--predictions", type=Path,
                        help='captions: JSON {"file name": "caption"}, COCO results or JSON lines')
    parser.add_argument("--references", type=Path, help="what people wrote: COCO or Karpathy JSON, JSON "
                        '{"file name": ["caption", ...]} or a Flickr token file; without it only what needs none: '
                        "diversity and, with --images and --clip, CLIPScore")
    parser.add_argument("--split", help="of the references, where the file has several, such as test")
    parser.add_argument("--partial", action="store_true", help="score what there is where images and captions do not "
                        "fit each other, and tell how many are left out")
    parser.add_argument("--metrics", nargs="+", choices=METRICS, metavar="METRIC",
                        help=f"of {', '.join(METRICS)} (without it all but cider, which is the plain one)")
    parser.add_argument("--tokens", choices=tuple(NAMED), default="ptb-coco",
                        help="what captions are split into; COCO's numbers need ptb-coco")
    parser.add_argument("--df", type=Path, help="document frequencies for CIDEr, by --save-df; without it those of the "
                        "references that are scored against")
    parser.add_argument("--save-df", type=Path, metavar="FILE", help="write the document frequencies of the references "
                        "(.safetensors); no --predictions are needed for that")
    parser.add_argument("--training", type=Path, help="captions that were trained on, to tell new ones from them")
    parser.add_argument("--training-split", help="of these")
    clip = parser.add_argument_group("CLIPScore")
    clip.add_argument("--images", type=Path, help="folder of the photos, and of folders of photos")
    clip.add_argument("--clip", help="the CLIP: a file or a hub id")
    clip.add_argument("--clip-preset", choices=tuple(PRESETS), help="which definition (without it hessel, the paper's)")
    parser.add_argument("--out", type=Path, help="the scores, those of every image too (.json)")
    parser.add_argument("--compare", type=Path, help="other predictions for the same images, or what --out wrote of "
                        "them")
    parser.add_common()
    args = parser.parse_args(argv)
    check(args)
    return args


def check(args: argparse.Namespace) -> None:
    """Raise InputError for options that do not go together."""
    programs.check_common(args)
    for option, needed, reason in (
            ("images", "clip", "which CLIP shall see these photos?"), ("clip", "images", "what shall this CLIP see?"),
            ("clip_preset", "clip", "it is a preset of CLIPScore"), ("split", "references", "it is a split of them"),
            ("df", "references", "CIDEr is a score against references"), ("save_df", "references", "it counts in them"),
            ("training_split", "training", "it is a split of these captions"),
            ("training", "predictions", "they are compared with these"),
            ("compare", "predictions", "they are compared with these"), ("clip", "predictions", "it scores them"),
            ("out", "predictions", "it is for their scores"), ("df", "predictions", "it is for their CIDEr")):
        if getattr(args, option) is not None and getattr(args, needed) is None:
            raise InputError(f"--{option.replace('_', '-')} needs --{needed}: {reason}")
    if args.predictions is None and args.save_df is None:
        raise InputError("--predictions is missing: which captions shall be scored?")
    needing = [metric for metric in args.metrics or () if metric != "diversity"]
    if args.references is None and needing:
        raise InputError(f"--metrics needs --references for {some(needing)}: without them there are diversity and, "
                         "with --images and --clip, CLIPScore")
    if args.references is None and not (args.clip or args.metrics or args.training):
        raise InputError("--references is missing: captions are scored against what people wrote (or, with --images "
                         "and --clip, against the photos alone; --metrics diversity needs neither)")
    args.metrics = tuple(args.metrics or (USUAL if args.references else ("diversity",)))
    if args.df is not None and not {"cider-d", "cider"} & {*args.metrics}:
        raise InputError("--df: no CIDEr is asked for with --metrics")
    if args.training is not None and "diversity" not in args.metrics:
        raise InputError("--training: diversity is not asked for with --metrics")
    read = (args.predictions, args.references, args.compare, args.df, args.training)
    given = [path.resolve() for path in read if path]
    for option, path, suffix in (("--out", args.out, ".json"), ("--save-df", args.save_df, ".safetensors")):
        if path is None:
            continue
        if path.suffix.lower() != suffix or path.is_dir():
            raise InputError(f"{option} {path}: a {suffix} file is written, name one")
        if path.resolve() in given:
            raise InputError(f"{option} {path}: it would replace what is read")
        programs.check_place(option, path)


# -- results -------------------------------------------------------------------------------------------------

def written(images: Images, captions: Captions, scores: Mapping[str, Score]) -> dict[str, Any]:
    """What --out holds."""
    per_image = {image: {"id": captions.keys[image], "caption": text,
                         **{name: score.per_item[image] for name, score in scores.items() if score.per_item}}
                 for image, text in captions.captions.items()}
    return {"format": FORMAT, "predictions": captions.source, "references": images.source, "split": images.split,
            "images": len(per_image), "left_out": captions.left_out,
            "scores": {name: {"score": score.score, "signature": score.signature} for name, score in scores.items()},
            "per_image": per_image}


def is_scores(path: Path) -> bool:
    """Whether --out wrote it."""
    try:
        data = read_json(path)
    except InputError:  # JSON lines, say; who reads it as predictions tells what is wrong with it
        return False
    told = data.get("format") if isinstance(data, dict) else None
    if isinstance(told, str) and told != FORMAT and told.startswith(FORMAT.rstrip("0123456789")):
        raise InputError(f"was written by another version (format {told!r:.60}, {FORMAT!r} is needed): score its "
                         "predictions anew", source=path)
    return bool(told == FORMAT)


def read_scores(path: Path, names: Sequence[str]) -> dict[str, Score]:
    """What --out wrote of the same images.

    Raises:
        InputError: it is damaged, or of other images.
    """
    data = read_json(path)
    with undamaged(path):
        per_image = data["per_image"]
        if apart := sorted({*names} ^ {*per_image}):
            raise InputError(f"is of {counted(len(per_image), 'image')}, not of these {len(names)}; on one side only: "
                             f"{some(map(repr, apart), 3)} (give its predictions, with --partial)", source=path)
        saved = {name: Score(one["score"] + 0, {image: per_image[image][name] for image in names
                                                if name in per_image[image]}, str(one["signature"]))
                 for name, one in data["scores"].items()}
        for name, score in saved.items():
            check_saved(name, score, names)
        return saved


def check_saved(name: str, score: Score, names: Sequence[str]) -> None:
    """Raise ValueError for a score that was read and whose images' numbers are not what they must be."""
    if score.per_item and len(score.per_item) != len(names):
        raise ValueError(f"{name} is missing of {len(names) - len(score.per_item)} images")
    for image, value in score.per_item.items():
        values = value if isinstance(value, list) else [value]
        if any(isinstance(one, bool) or not isinstance(one, (int, float)) or not math.isfinite(one) for one in values):
            raise ValueError(f"{name} of {image} is {value!r:.60}, no number")
    if name in MEANS and score.per_item:
        mean = math.fsum(score.per_item.values()) / len(names)
        if abs(max(mean, 0.0) - score.score) > 1e-9 and abs(mean - score.score) > 1e-9:
            raise ValueError(f"{name} is {score.score}, and {mean} is the mean of its images'")


def print_scores(args: argparse.Namespace, captions: Captions, images: Images, scores: Mapping[str, Score]) -> None:
    """A line per number, with its signature."""
    count = sum(len(images.references[name]) for name in captions.captions if images.references)
    head = f"{captions.source}: {counted(len(captions.captions), 'caption')}"
    head += (f", {counted(count, 'reference')} of {images.source}" if count else
             f" of photos of {images.source}" if images.source else "")
    if captions.left_out:
        head += f"\nscored with --partial; {told(captions.left_out)}"
    programs.report(args, {"predictions": captions.source, "references": images.source,
                           "captions": len(captions.captions),
                           "left_out": {kind: len(keys) for kind, keys in captions.left_out.items()}}, head)
    for name, score in scores.items():
        number = f"{score.score:10d}" if isinstance(score.score, int) else f"{score.score:10.4f}"
        programs.report(args, {"metric": name, "score": score.score, "signature": score.signature},
                        f"{LABELS[name]:<12} {number}  {score.signature}")


class Difference(NamedTuple):
    """A number less another one; `sure` is None where nothing tells how sure that is, for a reason."""

    value: float
    sure: Comparison | None
    reason: str = ""


def differences_of(ours: Mapping[str, Score], theirs: Mapping[str, Score], seed: int, source: Path
                   ) -> dict[str, Difference | None]:
    """Every number of ours less that of theirs; None where only one of us has it.

    Raises:
        InputError: a number of another signature.
    """
    found: dict[str, Difference | None] = {name: None for name in theirs if name not in ours}
    for name, score in ours.items():
        other = theirs.get(name)
        if other is None:
            found[name] = None
            continue
        value, sure, reason = score.score - other.score, None, "of all captions together"
        try:
            same_signature(score, other)
        except InputError as error:
            raise InputError(f"{LABELS[name]}: {error}", source=source) from None
        if score.per_item and not name.startswith("bleu"):
            try:
                sure = compare(score, other, seed=seed)
            except InputError as error:  # of one image, say, or of a mean that was raised to 0
                reason = str(error)
        found[name] = Difference(value, sure, reason)
    return found


def print_differences(args: argparse.Namespace, differences: Mapping[str, Difference | None], ours: Mapping[str, Score],
                      theirs: Captions | None) -> None:
    """A line per number: how much higher it is, and how sure that is."""
    head = f"{args.predictions} less {args.compare}: difference, 95 % interval over images, p"
    if theirs is not None and theirs.left_out:
        head += f"\nof the other, with --partial; {told(theirs.left_out)}"
    if not args.json:
        print(head)
    for name, found in differences.items():
        values: dict[str, Any] = {"compared": name, "difference": None if found is None else found.value}
        if found is None:
            text = f"not in {args.compare}" if name in ours else f"only in {args.compare}"
        else:
            number = f"{found.value:+10d}" if isinstance(found.value, int) else f"{found.value:+10.4f}"
            text = f"{number}  no interval: {found.reason}"
            if found.sure is not None:
                low, high = found.sure.interval
                values |= {"interval": [low, high], "p": found.sure.p, "differing": found.sure.differing,
                           "signature": found.sure.signature}
                text = f"{number}  {low:+.4f} to {high:+.4f}  p {found.sure.p:.4f}"
        programs.report(args, values, f"{LABELS.get(name, name):<12} {text}")


def main(argv: Sequence[str] | None) -> None:
    args = parse(argv)
    photos = photos_of(args.images) if args.images else {}
    images = images_of(args, photos)
    if args.save_df is not None:
        df = DocFreq.from_references(images.references, tokenize=args.tokens)
        df.save(args.save_df)
        programs.report(args, {"path": str(args.save_df), "df": df.name, "tokens": df.tokens},
                        f"{args.save_df}: document frequencies {df.name} of {images.source}, tok:{df.tokens}")
    if args.predictions is None:
        return
    ours = captions_of(args.predictions, images, args.partial)
    saved = args.compare is not None and is_scores(args.compare)
    theirs = None
    if args.compare is not None and not saved:
        theirs = captions_of(args.compare, others_of(images, ours), args.partial)
    if theirs is not None:
        ours, theirs = only(ours, theirs.captions), only(theirs, ours.captions)
        if not ours.captions:
            raise InputError(f"has no image in common with {args.compare}", source=args.predictions)
    others = read_scores(args.compare, list(ours.captions)) if saved else {}
    judge = Judge(args, images, list(ours.captions), photos)
    scores = judge.scores(ours.captions)
    others = judge.scores(theirs.captions) if theirs is not None else others
    differences = differences_of(scores, others, args.seed, args.compare) if args.compare is not None else {}
    print_scores(args, ours, images, scores)
    if differences:
        print_differences(args, differences, scores, theirs)
    if args.out is not None:
        write_json(args.out, written(images, ours, scores))
        programs.report(args, {"path": str(args.out)}, f"scores of every image: {args.out}")


if __name__ == "__main__":
    programs.program(main)
