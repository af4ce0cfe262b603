"""Write built-in scenes as files, for programs that take a folder: photos/{label}_{number}.png, id2label.json and
references.json (five captions of each photo, by its file name). The class of a photo is the kind of things that covers
most of it. No scene that a recipe trains or validates on is among them.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from itertools import count, islice
from pathlib import Path

from minivl import programs
from minivl.data.labels import SCENE_CLASSES, TABLE, scene_class
from minivl.data.scenes import Scene, scene
from minivl.errors import InputError
from minivl.files import write_json

START = 12_000_000  # behind the scenes of training, of validation and of eval.pointing


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = programs.Parser(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder that is made")
    parser.add_argument("--scenes", type=int, default=200, help="how many")
    parser.add_argument("--size", type=int, default=96, help="side of a photo in pixels")
    parser.add_argument("--one-kind", action="store_true", help="only scenes with one kind of things: what class they "
                        "are of is then no question of which thing is largest")
    parser.add_common(idle=("device", "precision", "workers"))
    args = parser.parse_args(argv)
    programs.check_common(args)
    if args.scenes < 1:
        raise InputError(f"--scenes {args.scenes}: give 1 or more")
    programs.check_place("--out", args.out)
    return args


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside ``path``, renamed to it when the block ends without an exception, else removed.

    Args:
        path: where the folder shall be; its parent is made.

    Yields:
        The folder to write into.

    Raises:
        InputError: there is something at ``path``.
        OSError: the parent cannot be written.
    """
    if path.exists():
        raise InputError("is there already: name another folder", source=path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as temporary:
        folder = Path(temporary) / path.name  # with the permissions of an ordinary folder
        folder.mkdir()
        yield folder
        folder.rename(path)


def drawn(args: argparse.Namespace) -> Iterator[tuple[int, Scene]]:
    """The scenes with their numbers."""
    numbered = ((number, scene(number, seed=args.seed, size=args.size)) for number in count(START))
    return islice(((number, one) for number, one in numbered if not args.one_kind or len(one.masks) == 1), args.scenes)


def main(argv: Sequence[str] | None) -> None:
    args = parse(argv)
    references = {}
    with atomic_folder(args.out) as folder:
        (folder / "photos").mkdir()
        for number, one in programs.progress(drawn(args), total=args.scenes, desc="drawing scenes"):
            name = f"{scene_class(one)}_{number - START:05d}.png"
            one.image.save(folder / "photos" / name)
            references[name] = list(one.captions)
        write_json(folder / "references.json", references)
        write_json(folder / TABLE, {str(label): name for label, name in enumerate(SCENE_CLASSES)})
    programs.report(args, {"out": str(args.out), "scenes": args.scenes, "classes": len(SCENE_CLASSES)},
                    f"{args.out}: {args.scenes} photos of {len(SCENE_CLASSES)} classes, references.json, {TABLE}")


if __name__ == "__main__":
    programs.program(main)
