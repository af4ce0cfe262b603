"""Files of captions as programs write them: which layouts there are, and what each has room for."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minivl import programs
from minivl.data.predictions import NUMBER, Key
from minivl.errors import InputError
from minivl.files import write_json, write_text

LAYOUTS = ("course", "coco", "jsonl")


def add_layout(parser: argparse.ArgumentParser) -> None:
    """Add --out and --format."""
    parser.add_argument("--out", type=Path, required=True, help="the captions (.json or .jsonl)")
    parser.add_argument("--format", choices=LAYOUTS, help="of --out: jsonl if it is so called, else course")


def check_layout(args: argparse.Namespace) -> None:
    """Settle --format, where it was not given, by the name of --out.

    Raises:
        InputError: they do not fit each other, or nothing can be written there.
    """
    lines = args.out.suffix.lower() == ".jsonl"
    args.format = args.format or ("jsonl" if lines else "course")
    if args.out.suffix.lower() not in (".json", ".jsonl") or args.out.is_dir() or lines != (args.format == "jsonl"):
        raise InputError(f"--out {args.out}: format {args.format} is written as a "
                         f"{'.jsonl' if args.format == 'jsonl' else '.json'} file, name one")
    programs.check_place("--out", args.out)


def key_of(stem: str, layout: str, source: str | Path) -> Key:
    """What a layout calls an image: its stem or, in COCO's, the number that it has in its name.

    Raises:
        InputError: it has none.
    """
    if layout != "coco":
        return stem
    number = NUMBER.fullmatch(stem)
    if number is None:
        raise InputError("has no number in its name, which --format coco needs (as 000000397133.jpg has); "
                         "--format course takes any name", source=source)
    return int(number[1])


def write_captions(path: Path, layout: str, captions: Mapping[Key, str], details: Sequence[Mapping[str, Any]]) -> None:
    """Write captions, all or none.

    Args:
        path: the file.
        layout: of `LAYOUTS`.
        captions: image -> caption.
        details: what JSON lines have of each caption besides its image.
    """
    if layout == "course":
        write_json(path, dict(captions))
    elif layout == "coco":
        write_json(path, [{"image_id": key, "caption": text} for key, text in captions.items()])
    else:
        lines = [json.dumps({"image_id": key, **told}, ensure_ascii=False) for key, told in zip(captions, details)]
        write_text(path, "\n".join(lines) + "\n")
