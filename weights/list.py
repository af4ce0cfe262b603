"""List the weights that minivl.load finds by name, and the presets it knows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minivl import programs
from minivl.errors import InputError
from minivl.files import read_header
from minivl.loading import HEADER_KEY, read_own, weight_folders
from minivl.models.presets import ALIASES, PRESETS


def main(argv: Sequence[str] | None) -> None:
    parser = programs.Parser(__doc__)
    parser.add_argument("--presets", action="store_true", help="the presets and old names, too")
    parser.add_common(idle=("device", "precision", "seed", "workers"))
    args = parser.parse_args(argv)
    programs.check_common(args)
    found: dict[str, dict[str, Any]] = {}
    for folder in weight_folders():
        for file in sorted(folder.glob("*.safetensors")):
            found.setdefault(file.name.removesuffix(".safetensors"), describe(file))
    lines = table([("name", "kind", "MB", "family", "where")] + [
        (name, one["kind"], f"{one['bytes'] / 10 ** 6:.1f}", one["family"], one["path"])
        for name, one in found.items()]) if found else ["no weights: python -m weights.fetch NAME brings some"]
    if args.presets:
        lines += ["", *table([("preset", "kind", "family", "hub id")] + [
            (name, type(preset.config).__name__.removesuffix("Config").lower(), ", ".join(preset.families),
             preset.hub or "-") for name, preset in sorted(PRESETS.items())]),
            "", *table([("old name", "is")] + sorted(ALIASES.items()))]
    presets = {name: preset.hub for name, preset in PRESETS.items()} if args.presets else {}
    programs.report(args, {"weights": found, **({"presets": presets, "aliases": ALIASES} if presets else {})},
                    "\n".join(lines))


def describe(file: Path) -> dict[str, Any]:
    """What is known of a file without reading its tensors; one that is damaged is listed as such."""
    told: dict[str, Any] = {"path": str(file), "bytes": file.stat().st_size, "kind": "-", "family": "-"}
    try:
        _, metadata = read_header(file)
        header = read_own(metadata.get(HEADER_KEY, "{}"), file)
        told["kind"] = str(header.get("kind", "foreign"))
        told["family"] = str(header.get("about", {}).get("family", "minivl" if header else "-"))
    except (InputError, OSError) as error:
        told["kind"] = f"damaged ({error})"
    return told


def table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows of text in columns."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]


if __name__ == "__main__":
    programs.program(main)
