"""Show what a file of weights says of itself, and whether it is what it says."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import minivl
from minivl import programs
from minivl.files import read_header
from minivl.loading import HEADER_KEY, find_weights, read_own

LONG = ("tokenizer", "class_names")  # told by their size


def main(argv: Sequence[str] | None) -> None:
    parser = programs.Parser(__doc__)
    parser.add_argument("file", metavar="FILE", help="a .safetensors, or the name of shipped weights")
    parser.add_argument("--tensors", action="store_true", help="names and shapes of all tensors, too")
    parser.add_argument("--verify", action="store_true", help="recompute its sha256 and its fingerprint")
    parser.add_common(idle=("device", "precision", "seed", "workers"))
    args = parser.parse_args(argv)
    programs.check_common(args)
    path = find_weights(args.file)
    shapes, metadata = read_header(path)
    header = read_own(metadata[HEADER_KEY], path) if HEADER_KEY in metadata else {}
    numbers = sum(map(math.prod, shapes.values()))
    lines = [f"{path}: {len(shapes)} tensors, {numbers / 10 ** 6:.1f} M numbers"]
    lines += [f"{name}: {_short(name, value)}" for name, value in header.items()] or [
        "not written by minivl.save: " + (", ".join(metadata) or "no header")]
    if args.tensors:
        lines += [f"  {name} {tuple(shape)}" for name, shape in shapes.items()]
    if args.verify:
        minivl.load(path, verify=True)
        noted = header.get("about", {}).get("fingerprint") is not None
        lines.append("verified: sha256" + (" and fingerprint" if noted else ""))
    programs.report(args, {"path": str(path), "header": header, **({"tensors": shapes} if args.tensors else {})},
                    "\n".join(lines))


def _short(name: str, value: Any, depth: int = 1) -> str:
    if name in LONG and value is not None:
        return f"{len(value)} {'characters' if isinstance(value, str) else 'names'}"
    if isinstance(value, dict):
        return "".join(f"\n{'  ' * depth}{inner}: {_short(inner, one, depth + 1)}"
                       for inner, one in value.items()) or "none"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else f"{text[:117]}..."


if __name__ == "__main__":
    programs.program(main)
