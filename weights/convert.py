"""Convert published weights into one file of ours: .safetensors, .pth, .pt, .bin, .npz, or a folder of the hub."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import minivl
from minivl import hub, programs
from minivl.convert.build import FAMILIES, Conversion, convert, family_of, not_finite
from minivl.convert.choose import begins
from minivl.convert.family import Family
from minivl.errors import InputError, some
from minivl.files import atomic_path, existing_file, read_json, sha256, undamaged
from minivl.fingerprint import fingerprint, outputs
from minivl.loading import from_folder
from minivl.models.presets import ALIASES, PRESETS
from minivl.text.published import read_tokenizer
from minivl.text.tokenizer import Tokenizer
from weights import reference, sources

log = logging.getLogger("weights.convert")


def main(argv: Sequence[str] | None) -> None:
    parser = programs.Parser(__doc__)
    parser.add_argument("source", type=Path, metavar="SOURCE", help="file of weights, or a folder with config.json")
    parser.add_argument("out", type=Path, metavar="OUT", help="the .safetensors to write")
    parser.add_argument("--family", choices=("auto", *FAMILIES), default="auto", help="whose layout it is")
    parser.add_argument("--name", help="the preset it is: tells heads, activation, eps and preprocessing")
    parser.add_argument("--config", type=Path, help="the model's own JSON (config.json of timm or Hugging Face, the "
                        "course captioner's), where none lies in the folder")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.json, vocab.txt, vocab.json with merges.txt, "
                        "CLIP's bpe_simple_vocab_16e6.txt.gz, or a folder with one of them")
    parser.add_argument("--entry", help="of a checkpoint that holds several models, the one to take")
    parser.add_argument("--quiet", action="store_true", help="the summary only, not a line per tensor")
    parser.add_common(idle=("device", "precision", "seed", "workers"))
    args = parser.parse_args(argv)
    programs.check_common(args)
    if args.name is not None and not any(begins(one.preset_name(args.name, {})) for one in FAMILIES.values()):
        alike = difflib.get_close_matches(args.name, [*PRESETS, *ALIASES], 4, cutoff=0.5)
        raise InputError(f"--name {args.name}: no preset is called so; " + (f"there are: {some(alike)}" if alike else
                         "python -m weights.list --presets lists them"))
    told = convert_file(args.source, args.out, family=args.family, name=args.name, config=args.config,
                        tokenizer=args.tokenizer, entry=args.entry)
    lines = told["receipt"] if not args.quiet else []
    programs.report(args, told, "\n".join([*lines, *told["summary"]]))


def convert_file(source: Path, out: Path, *, family: str = "auto", name: str | None = None,
                 config: Path | None = None, tokenizer: Path | None = None,
                 entry: str | None = None) -> dict[str, Any]:
    """Convert a file or folder into one of ours.

    Returns:
        What was done: path, family, preset, kind, receipt (a line per tensor), summary (lines), fingerprint.

    Raises:
        InputError: whatever is wrong with source, name, config, tokenizer or out; nothing is written then.
    """
    if out.suffix != ".safetensors":
        raise InputError("OUT must end in .safetensors", source=out)
    if out.exists() and source.exists() and out.samefile(source):
        raise InputError("OUT is SOURCE: give another name", source=out)
    file = weights_file(source)
    whole = source.is_dir() and file.name in hub.WEIGHTS  # one file, or the index of several
    read = sources.Source(hub.weights_of(source), []) if whole else sources.read(file, entry=entry)
    pieces = None if tokenizer is None else read_tokenizer(tokenizer)
    description = None if config is None else _description(config, family_of(set(read.state), family, source))
    done = _convert(source, read.state, family, name, description, pieces)
    if strange := not_finite(done.model):
        raise InputError(f"{len(strange)} of its tensors hold nan or infinite values: {some(strange)}", source=source)
    by, answers = reference.answers(read.state, done, _described(source, description)) or ("self", outputs(done.model))
    if not all(answer.isfinite().all() for answer in answers.values()):
        raise InputError("computes nan or infinite values: its weights are too large", source=source)
    mark = fingerprint(done.model, answers, by)
    about = {"source": file.name, "source_sha256": sha256(file), "family": done.family, "preset": done.preset,
             "dropped": done.receipt.dropped, "notes": [*read.notes, *done.receipt.notes], "fingerprint": mark,
             "minivl": minivl.__version__}
    with atomic_path(out) as temporary:
        minivl.save(done.model, temporary, about=about)
        try:  # what was written is what was meant, in the numbers of the library it came from
            minivl.load(temporary, verify=True)
        except InputError as error:
            raise InputError(str(error).removeprefix(f"{temporary}: "), source=source) from None
    return {"path": str(out), "family": done.family, "preset": done.preset, "kind": done.model.kind,
            "receipt": done.receipt.lines(), "summary": _summary(out, done, read.notes, by), "fingerprint": by}


def weights_file(source: Path) -> Path:
    """The file of weights that a path names, or that a folder holds."""
    if source.is_dir():
        return source / hub.weights_name({file.name for file in source.iterdir()}, source, pickled=True)
    return existing_file(source)


def _description(path: Path, family: Family) -> Mapping[str, Any]:
    description = read_json(path)
    if not isinstance(description, dict):
        raise InputError("is no JSON object", source=path)
    try:
        with undamaged(path):
            described = family.describe(description)
    except InputError as error:
        raise InputError(str(error), source=path) from None
    if described is None:
        raise InputError(f"does not describe a model of family {family.name}, which the tensors are of", source=path)
    return description


def _described(source: Path, description: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The description given, or the folder's own."""
    own = source / "config.json"
    return read_json(own) if description is None and source.is_dir() and own.is_file() else description


def _convert(source: Path, state: Mapping[str, Any], family: str, name: str | None,
             description: Mapping[str, Any] | None, tokenizer: Tokenizer | None) -> Conversion:
    if source.is_dir():
        return from_folder(source, name=name, state=state, family=family, description=description,
                           tokenizer=tokenizer)
    try:
        return convert(state, family=family, name=name or source.name, description=description, tokenizer=tokenizer)
    except InputError as error:
        raise InputError(str(error), source=source) from None


def _summary(out: Path, done: Conversion, notes: Sequence[str], by: str) -> list[str]:
    model = done.model
    lines = [*notes, f"family {done.family}" + (f", preset {done.preset}" if done.preset else ""),
             done.receipt.summary()]
    if model.preprocessing is None:
        lines.append("preprocessing unknown: it computes, and photos cannot be given to it (--name tells it)")
    if getattr(model, "tokenizer", False) is None:
        lines.append("no tokenizer: captions and texts are ids (--tokenizer gives it one)")
    lines.append(f"fingerprint by {by}"
                 + ("" if by != "self" else " (the library it comes from is not installed here, or has no such model)"))
    return [*lines, f"{out}: {out.stat().st_size / 10 ** 6:.1f} MB, {model.kind}, "
            f"{sum(parameter.numel() for parameter in model.parameters()) / 10 ** 6:.1f} M parameters, "
            f"sites {some(model.attn_sites)}"]


if __name__ == "__main__":
    programs.program(main)
