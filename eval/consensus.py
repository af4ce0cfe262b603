"""Of several captions per photo, the one that the others agree with.

What a captioner says with several beams or samples (eval.caption --n-best or --samples), or what several captioners
say, votes: the caption with the highest mean CIDEr-D against all candidates of its photo is taken.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from eval.layouts import add_layout, check_layout, key_of, write_captions
from minivl import programs
from minivl.data.predictions import Key, read_candidates
from minivl.errors import InputError, some
from minivl.metrics.consensus import consensus
from minivl.metrics.docfreq import DocFreq
from minivl.metrics.tokens import NAMED


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = programs.Parser(__doc__)
    parser.add_argument("--candidates", type=Path, nargs="+", required=True, metavar="FILE",
                        help="captions of the same photos: JSON lines of eval.caption, of which 'others' count too, or "
                        "any other predictions; several files vote together")
    parser.add_argument("--df", type=Path, help="document frequencies by eval.score --save-df, best those of the "
                        "training captions; without it those of the candidates")
    parser.add_argument("--tokens", choices=tuple(NAMED), default="ptb-coco", help="what captions are split into")
    add_layout(parser)
    parser.add_common(idle=("device", "precision", "seed", "workers"))
    args = parser.parse_args(argv)
    programs.check_common(args)
    check_layout(args)
    for path in (*args.candidates, args.df):
        if path and path.resolve() == args.out.resolve():
            raise InputError(f"--out {args.out}: it would replace what is read")
    return args


def candidates_of(files: Sequence[Path]) -> dict[Key, list[str]]:
    """The captions of each image in all files, those of the first file first.

    Raises:
        InputError: what `read_candidates` refuses, files of other images, or nothing to choose from.
    """
    found = read_candidates(files[0])
    for file in files[1:]:
        more = read_candidates(file)
        if apart := [key for key in (*found, *more) if key not in found or key not in more]:
            raise InputError(f"is not of the same images as {files[0]}: {len(apart)} are in one of them only "
                             f"({some(map(repr, apart), 3)})", source=file)
        for key, texts in more.items():
            found[key].extend(texts)
    if all(len(texts) == 1 for texts in found.values()):
        raise InputError("has one caption per image, there is nothing to choose from: write several with eval.caption "
                         "--n-best or --samples, or give several files", source=files[0])
    return found


def main(argv: Sequence[str] | None) -> None:
    args = parse(argv)
    found = candidates_of(args.candidates)
    names: dict[Key, Key] = {}  # as --format has them -> as the candidates have them
    for key in found:
        name = (key if isinstance(key, int) and args.format != "course"
                else key_of(str(key), args.format, f"{args.candidates[0]}: {key!r}"))
        if name in names:
            raise InputError(f"{names[name]!r} and {key!r} would both be {name!r} in {args.out}: rename one",
                             source=args.candidates[0])
        names[name] = key
    df = "corpus" if args.df is None else DocFreq.load(args.df)
    chosen = consensus(found, df=df, tokenize=args.tokens)
    write_captions(args.out, args.format, {name: chosen[key].caption for name, key in names.items()},
                   [{"caption": one.caption, "agreement": one.agreement, "place": one.place,
                     "candidates": len(found[key])} for key, one in chosen.items()])
    first = sum(one.place == 0 for one in chosen.values())
    most = max(map(len, found.values()))
    programs.report(args, {"path": str(args.out), "images": len(chosen), "candidates": most, "first": first},
                    f"{args.out}: of up to {most} captions each of {len(chosen)} images; {first} times the first one")


if __name__ == "__main__":
    programs.program(main)
