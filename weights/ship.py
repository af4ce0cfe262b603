"""Put a finished run's best weights into weights/ and write down in MANIFEST.json what they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import minivl
from minivl import programs
from minivl.errors import InputError
from minivl.files import read_json, sha256, write_json

HERE = Path(__file__).resolve().parent
LARGEST = 10 * 2 ** 20  # bytes


def main(argv: Sequence[str] | None) -> None:
    parser = programs.Parser(__doc__)
    parser.add_argument("run", type=Path, help="folder of a training run")
    parser.add_argument("--name", required=True, help="name it is loaded by: minivl.load(NAME)")
    parser.add_common()
    args = parser.parse_args(argv)
    programs.check_common(args)
    source, target = args.run / "best.safetensors", HERE / f"{args.name}.safetensors"
    model = minivl.load(source, verify=True)
    if source.stat().st_size > LARGEST:
        raise InputError(f"{source.stat().st_size} bytes: shipped weights have at most {LARGEST}", source=source)
    minivl.save(model, target)
    manifest = HERE / "MANIFEST.json"
    entries = read_json(manifest) if manifest.exists() else {}
    config = read_json(args.run / "config.json")
    entries[args.name] = {"sha256": sha256(target), "bytes": target.stat().st_size, "made_by": config,
                          "notes": getattr(model, "notes", {})}
    write_json(manifest, dict(sorted(entries.items())))
    entry = entries[args.name]
    programs.report(args, {"path": str(target), **entry},
                    f"{target}: {entry['bytes'] / 2 ** 20:.1f} MiB, sha256 {entry['sha256'][:16]}...")


if __name__ == "__main__":
    programs.program(main)
