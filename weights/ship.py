"""Put the best weights of a finished run on scenes into weights/ and write down in MANIFEST.json what they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import minivl
from minivl import programs
from minivl.errors import InputError
from minivl.files import existing_file, read_json, sha256, write_json
from minivl.models.captioner import Captioner
from minivl.models.clip import CLIP
from minivl.train.looks import noted_look

HERE = Path(__file__).resolve().parent
LARGEST = 10 * 10 ** 6  # bytes


def main(argv: Sequence[str] | None) -> None:
    parser = programs.Parser(__doc__)
    parser.add_argument("run", type=Path, help="folder of a training run on scenes")
    parser.add_argument("--name", required=True, help="name it is loaded by: minivl.load(NAME)")
    parser.add_common(idle=("device", "precision", "seed", "workers"))
    args = parser.parse_args(argv)
    programs.check_common(args)
    if not args.name or Path(args.name).name != args.name or args.name.startswith("."):
        raise InputError(f"--name {args.name!r}: give a plain name, without folders")
    source, target = existing_file(args.run / "best.safetensors"), HERE / f"{args.name}.safetensors"
    model = check(source)
    config = read_json(args.run / "config.json")
    minivl.save(model, target)
    manifest = HERE / "MANIFEST.json"
    entries = read_json(manifest) if manifest.exists() else {}
    entry = {"sha256": sha256(target), "bytes": target.stat().st_size, "made_by": config, "notes": model.notes}
    entries[args.name] = entry
    write_json(manifest, dict(sorted(entries.items())))
    programs.report(args, {"path": str(target), **entry},
                    f"{target}: {entry['bytes'] / 10 ** 6:.1f} MB, sha256 {entry['sha256'][:16]}...")


def check(source: Path) -> Captioner | CLIP:
    """The captioner or image-text pair of a file that may be shipped.

    Raises:
        InputError: it is too large, was changed after it was saved, is neither of them, was trained on other data
            than scenes (whose licences are not ours to pass on), is a captioner that does not say where to look, or
            a pair without a tokenizer.
    """
    size = source.stat().st_size
    if size > LARGEST:
        raise InputError(f"{size} bytes: shipped weights have at most {LARGEST}", source=source)
    model = minivl.load(source, verify=True)
    if not isinstance(model, (Captioner, CLIP)):
        raise InputError("is no captioner and no image-text pair: only these, of scenes, are shipped", source=source)
    data = model.notes.get("data")
    if data != "scenes":
        raise InputError(f"was trained on {data or 'unknown data'}: only weights made from scenes are shipped",
                         source=source)
    if isinstance(model, Captioner):
        noted_look(model, source)
    elif model.tokenizer is None:
        raise InputError("has no tokenizer, so nothing can be asked of it: only pairs with one are shipped",
                         source=source)
    return model


if __name__ == "__main__":
    programs.program(main)
