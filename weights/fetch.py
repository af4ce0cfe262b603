"""Download a model of the hub; where its weights are pickled, convert them into the cache for minivl.load."""

from __future__ import annotations

from collections.abc import Sequence

from minivl import hub, programs
from minivl.errors import InputError
from minivl.models.presets import ALIASES, PRESETS
from weights.convert import convert_file


def main(argv: Sequence[str] | None) -> None:
    parser = programs.Parser(__doc__)
    parser.add_argument("name", metavar="NAME", help="a hub id (owner/name), or a preset's name")
    parser.add_argument("--family", default="auto", help="whose layout pickled weights are in")
    parser.add_common(idle=("device", "precision", "seed", "workers"))
    args = parser.parse_args(argv)
    programs.check_common(args)
    preset = PRESETS.get(ALIASES.get(args.name, args.name))
    id = args.name if preset is None or preset.hub is None else preset.hub
    if not hub.is_id(id):
        raise InputError(f"{args.name!r} is neither a hub id (owner/name) nor a preset with published weights")
    folder = hub.snapshot(id, pickled=True)
    try:
        hub.weights_name({file.name for file in folder.iterdir()}, folder)
    except InputError:  # pickles only
        told = convert_file(folder, hub.converted(id), family=args.family, name=id)
        programs.report(args, told, "\n".join([*told["summary"], f"minivl.load({id!r}) finds it"]))
        return
    programs.report(args, {"path": str(folder)}, f"{folder}: safetensors, minivl.load({id!r}) finds them")


if __name__ == "__main__":
    programs.program(main)
