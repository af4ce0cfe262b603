"""What every program has in common: options, device, progress bar, and how a mistake ends.

Only programs (train_p1.py, train_p2.py, viz.py, eval/, weights/) import this.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from tqdm import tqdm

from .errors import InputError, some
from .files import read_json

DEVICES = ("auto", "cpu", "cuda", "mps")
FIELDS = {"num_heads": "heads"}  # what the library calls otherwise than the option


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Every option with its default, unless that says nothing."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False or action.required:
            return action.help
        return super()._get_help_string(action) if action.help else "%(default)s"


class Parser(argparse.ArgumentParser):
    """argparse with the options every program has.

    Attributes:
        told: what the command line of this process says, by which `as_typed` names options.
    """

    told: argparse.Namespace | None = None

    def __init__(self, doc: str | None, **options: Any) -> None:
        super().__init__(description=doc, formatter_class=_Help,
                         allow_abbrev=False, **options)

    def add_common(self, precision: str = "fp32", idle: Sequence[str] = ()) -> None:
        """--device --precision --seed --workers --json, which every program takes.

        Args:
            precision: what this program computes in.
            idle: names of those that change nothing in this program; its help says so.
        """
        group = self.add_argument_group("common")
        group.add_argument("--device", choices=DEVICES, default="auto", help="where to compute")
        group.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16"), default=precision,
                           help="of matrix products; auto = bf16 where the hardware has it")
        group.add_argument("--seed", type=int, default=0, help="of everything random")
        group.add_argument("--workers", type=int, default=0, help="processes that read pictures")
        group.add_argument("--json", action="store_true", help="print results as one JSON object per line")
        for action in group._group_actions:
            if action.dest in idle:
                action.help = "no effect here; every program takes it"

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does, and keep what was told."""
        told = super().parse_args(args, namespace)
        if namespace is None:
            Parser.told = told  # what a program fills in later is seen here too
        return told

    def error(self, message: str) -> NoReturn:
        """One line, exit code 2."""
        self.exit(2, f"{self.prog}: {message} (see --help)\n")


def check_common(args: argparse.Namespace) -> None:
    """Raise InputError for a common option out of range."""
    if args.workers < 0:
        raise InputError(f"--workers {args.workers}: give 0 or more")
    if not 0 <= args.seed < 2 ** 31:
        raise InputError(f"--seed {args.seed}: give a number from 0 to {2 ** 31 - 1}")


def check_place(option: str, path: Path, *, folder: bool = False) -> None:
    """Raise InputError where no file, or no `folder`, can be written at `path`, before any work is done for it."""
    if path.is_file() and folder:
        raise InputError(f"{option} {path}: it is a file, a folder is needed")
    around = path.absolute()
    nearest = next(one for one in (*[around] * folder, *around.parents) if one.exists())
    if not nearest.is_dir():
        raise InputError(f"{option} {path}: {nearest} is a file, no folder can be made there")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"{option} {path}: the folder {nearest} cannot be written to, name another place")


def device_of(name: str) -> torch.device:
    """The device of --device.

    Raises:
        InputError: it is not there.
    """
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(device for device in ("cuda", "mps", "cpu") if there[device])
    if not there[name]:
        raise InputError(f"--device {name}: this machine has none; "
                         f"give one of {some(device for device, is_there in there.items() if is_there)}")
    return torch.device(name)


def precision_of(name: str, device: torch.device) -> str:
    """"fp32" or "bf16" for --precision: auto is bf16 where the device multiplies it natively."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    # Emulated bf16 is slower than float32, so only processors with the instructions count.
    return "bf16" if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported() else "fp32"


def progress(iterable: Iterable[Any], **options: Any) -> Iterable[Any]:
    """tqdm on standard error: gone when done where that is a terminal, else a line of its own."""
    return tqdm(iterable, leave=not sys.stderr.isatty(), dynamic_ncols=True, **options)


def _open_bars() -> list[tqdm]:
    """Progress bars that are being drawn, those of downloads too."""
    return list(getattr(tqdm, "_instances", ()))


class _Lines(logging.StreamHandler):
    """Log lines on standard error, each on a line of its own even where a bar is being drawn."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one."""
        with tqdm.external_write_mode(file=sys.stderr):  # wipes bars out, and draws them again below
            if _open_bars() and not sys.stderr.isatty():  # nothing is wiped out of a file
                self.stream.write("\n")
            super().emit(record)


def report(args: argparse.Namespace, values: dict[str, Any], text: str) -> None:
    """Print a result: as text, or as a line of JSON with --json."""
    print(json.dumps(values) if args.json else text, flush=True)


def recipe_defaults(parser: argparse.ArgumentParser, argv: Sequence[str] | None, folder: Path, program: str) -> None:
    """Let --recipe NAME set defaults; options on the command line win over it.

    Args:
        parser: with all other options.
        argv: the command line.
        folder: of the recipes, JSON objects of settings with the "program" they are for.
        program: this one.

    Raises:
        InputError: no such recipe, or a setting that is no option.
    """
    there = some(sorted(file.stem for file in folder.glob("*.json")
                        if f'"program": "{program}"' in file.read_text(encoding="utf-8")), 40)
    parser.add_argument("--recipe", help=f"settings by name: {there}")
    early = Parser(None, add_help=False)
    early.add_argument("--recipe")
    name = early.parse_known_args(argv)[0].recipe
    if name is None:
        return
    path = folder / f"{name}.json"
    if not path.exists():
        raise InputError(f"--recipe {name}: unknown; there are: {there}")
    settings = read_json(path)
    if not isinstance(settings, dict):
        raise InputError("is no JSON object of settings", source=path)
    settings.pop("about", None)
    if (other := settings.pop("program", program)) != program:
        raise InputError(f"is a recipe of {other}.py; those of {program}.py are: {there}", source=path)
    options = {action.dest: action for action in parser._actions if action.dest not in ("help", "recipe")}
    unknown = [key for key in settings if key not in options]
    if unknown:
        raise InputError(f"no such setting: {some(unknown)}; there are: {some(options, 60)}", source=path)
    wrong = [f"{key}: {value!r}" for key, value in settings.items() if not _fits(options[key], value)]
    if wrong:
        raise InputError(f"settings that the option would not take: {some(wrong)}", source=path)
    parser.set_defaults(**settings)


def said(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> set[str]:
    """Which options the command line gives, by their names in `parser.parse_args`; neither defaults nor recipes."""
    unsaid = object()
    marked = argparse.Namespace(**{action.dest: unsaid for action in parser._actions})
    return {name for name, value in vars(parser.parse_args(argv, marked)).items() if value is not unsaid}


def _fits(option: argparse.Action, value: Any) -> bool:
    """Whether a JSON value is one that the command line could have given."""
    if value is None:
        return option.default is None
    if option.nargs == 0:  # a switch
        return isinstance(value, bool)
    if option.choices is not None:
        return value in option.choices
    kinds: dict[Any, Any] = {int: int, float: (int, float)}
    return isinstance(value, kinds.get(option.type, str)) and not isinstance(value, bool)


def program(main: Callable[[Sequence[str] | None], None]) -> NoReturn:
    """Run a program's main; a user's mistake, or what no memory is left for, is one line and exit code 2, Ctrl-C
    exit code 130."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[_Lines(sys.stderr)])
    logging.getLogger("PIL").setLevel(logging.WARNING)
    try:
        try:
            main(None)
        finally:  # whatever ends it is told on a line of its own
            for bar in _open_bars():
                bar.close()
    except BrokenPipeError:  # the reader of a pipe has gone, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        leave(1)
    except (InputError, OSError) as error:
        line = as_typed(error, Parser.told) if isinstance(error, InputError) else str(error)
        print(f"error: {' '.join(line.split())}", file=sys.stderr)
        leave(2)
    except (MemoryError, RuntimeError) as error:
        if not _lacks_memory(error):
            raise
        print(f"error: not enough memory: {' '.join(str(error).split())[:200]}", file=sys.stderr)
        leave(2)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        leave(130)
    leave(0)


def _lacks_memory(error: Exception) -> bool:
    """Whether what was asked for is more than there is; on the CPU torch says so in words alone."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


def as_typed(error: InputError, told: argparse.Namespace | None) -> str:
    """The line of a mistake, in which an option is called as on the command line and not as in the library:
    ``unfreeze=99: ...`` is ``--unfreeze 99: ...`` where that is what the command line says, and ``max_len was 8, ...``
    is ``--max-len was 8, ...``.

    Args:
        error: the mistake. The file it names in front stays as it is.
        told: the options; None: the line stays as it is.
    """
    line = str(error)
    file = error.source if error.source is not None and line.startswith(error.source) else ""
    text = line[len(file):]
    for name, value in vars(told).items() if told is not None else ():
        option = f"--{name.replace('_', '-')}"
        text = re.sub(rf"(?<![\w/.-]){name}(?= was [^,]*, is )", option, text)  # of a run before
        if value is None or isinstance(value, bool):
            continue
        forms, link = {str(value), repr(value)}, "="
        if isinstance(value, (int, float)):
            forms, link = {*forms, f"({value}, {value})"}, "[= ]"  # a side, told as height and width
        names = "|".join([name, *(field for field, option in FIELDS.items() if option == name)])
        # not within a path or another word
        text = re.sub(rf"(?<![\w/.-])(?:{names}){link}(?:{'|'.join(map(re.escape, forms))})(?![\w/]|\.\w)",
                      lambda _: f"{option} {value}", text)
    return file + text


def leave(code: int) -> NoReturn:
    """End this process.

    One of several that `torchrun` started ends without taking Python down: torch keeps the threads that talked to the
    others, and one that comes to free a tensor at that moment aborts the process, when all work is done. (Workers that
    read pictures see that their process has gone.)
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        sys.exit(code)
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)
