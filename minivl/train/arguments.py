"""The options that every training takes, whatever it trains, and the plan they make."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Container, Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..errors import InputError
from .optim import OPTIMIZERS, SCHEDULES
from .plan import Plan

# options that change nothing of what is computed (but for dropout), or only where or how: a resumed run may have others
FREE = ("out", "resume", "json", "workers", "device", "time_limit", "compile", "accumulate", "checkpointing", "shard")


LARGEST_SIDE = 4096  # pixels: 65,536 patches of 16; beyond it attention and its position table cannot be meant


def add_memory(group: Any, blocks: str = "blocks") -> None:
    """--checkpointing and --compile, into a group of the parser."""
    group.add_argument("--checkpointing", action="store_true", help=f"compute {blocks} twice: less memory")
    group.add_argument("--compile", action="store_true", help="torch.compile the model")


def add_optimiser(parser: argparse.ArgumentParser, *, of: str, lr: float | None, batch_size: int | None,
                  weight_decay: float = 0.05, clip: float = 1.0, ema: float = 0.0,
                  told: Callable[[str, str], str] = lambda name, what: what) -> None:
    """The group of the optimiser.

    Args:
        parser: of the program.
        of: what a batch is of.
        lr, batch_size, weight_decay, clip, ema: defaults; None where the program fills them in.
        told: ``(name, help) -> help`` of lr and batch_size.
    """
    step = parser.add_argument_group("optimiser")
    step.add_argument("--optimizer", choices=OPTIMIZERS, default="adamw", help="SGD has a momentum")
    step.add_argument("--lr", type=float, default=lr, help=told("lr", "highest learning rate"))
    step.add_argument("--encoder-lr", type=float, help="the same for the encoder of pictures (without it: as --lr)")
    step.add_argument("--layer-decay", type=float, default=1.0,
                      help="factor on the rate per layer of that encoder, from its head down")
    step.add_argument("--momentum", type=float, default=0.9, help="of SGD")
    step.add_argument("--weight-decay", type=float, default=weight_decay, help="on matrices only")
    step.add_argument("--clip", type=float, default=clip, help="largest norm of the gradient; 0 = none")
    step.add_argument("--sam", type=float, default=0.0, help="radius of sharpness-aware minimisation; 0 = off")
    step.add_argument("--sam-adaptive", action="store_true", help="its adaptive variant (a radius ten times larger)")
    step.add_argument("--sam-local", action="store_true", help="each process perturbs by its own share of the batch")
    step.add_argument("--batch-size", type=int, default=batch_size,
                      help=told("batch_size", f"{of} of a step, over all processes"))
    step.add_argument("--accumulate", type=int, default=1, help="micro-batches a process computes one after the other")
    step.add_argument("--ema", type=float, default=ema, help="decay of the averaged weights; 0 = none")


def add_schedule(parser: argparse.ArgumentParser, *, of: str, epochs: int, warmup: int) -> None:
    """The group of the schedule.

    Args:
        parser: of the program.
        of: what an epoch passes over.
        epochs, warmup: defaults.
    """
    plan = parser.add_argument_group("schedule")
    plan.add_argument("--epochs", type=int, default=epochs, help=f"passes over the {of}; end of the schedule")
    plan.add_argument("--schedule", choices=SCHEDULES, default="cosine", help="after the warm-up")
    plan.add_argument("--warmup", type=int, default=warmup, help="steps of rising learning rate")
    plan.add_argument("--factor", type=float, default=0.5, help="of the step schedule")
    plan.add_argument("--period", type=int, default=10, help="of the step schedule, in epochs")
    plan.add_argument("--time-limit", type=float, default=0.0, help="seconds, after which to stop resumably; 0 = none")


def add_run(parser: argparse.ArgumentParser) -> Any:
    """The group of the run, which is returned to be added to."""
    run = parser.add_argument_group("run")
    run.add_argument("--out", type=folder, required=True, help="folder of the run")
    run.add_argument("--resume", action="store_true", help="continue the run in --out")
    run.add_argument("--shard", action="store_true", help="with torchrun: each process keeps a part of the weights")
    return run


def folder(text: str) -> Path:
    """The path of a folder that is written to, such as --out."""
    if not text.strip():
        raise argparse.ArgumentTypeError("name a folder")
    return Path(text)


def check_least(args: argparse.Namespace, least: Iterable[tuple[str, int]]) -> None:
    """Raise InputError for an option that is given and below its least value."""
    for name, low in least:
        if (value := getattr(args, name)) is not None and value < low:
            raise InputError(f"--{name.replace('_', '-')} {value}: give {low} or more")


def check_image_size(args: argparse.Namespace) -> None:
    """Raise InputError for an --image-size that no model can be meant to take, before its position table is made."""
    if args.image_size is not None and not 1 <= args.image_size <= LARGEST_SIDE:
        raise InputError(f"--image-size {args.image_size}: give 1 or more, at most {LARGEST_SIDE} pixels a side")


def check_idle(args: argparse.Namespace, said: Container[str]) -> None:
    """Raise InputError for an option that the command line gives and that changes nothing; a recipe may know it for
    runs in which it does.

    Args:
        args: the options.
        said: those that the command line gives (see `programs.said`).
    """
    for names, other, value in ((("momentum",), "optimizer", "sgd"), (("factor", "period"), "schedule", "step")):
        if getattr(args, other) != value and (idle := [name for name in names if name in said]):
            raise InputError(f"--{idle[0]} changes nothing with --{other} {getattr(args, other)}: it is for --{other} "
                             f"{value}")


def plan_of(args: argparse.Namespace) -> Plan:
    """The plan of the options.

    Raises:
        InputError: one of them out of range.
    """
    given = vars(args)
    return Plan(**{field.name: given[field.name] for field in fields(Plan) if field.name in given})


def settings_of(args: argparse.Namespace, told: Any, free: Iterable[str] = ()) -> dict[str, Any]:
    """What a resumed run must repeat: the options, and by its hash what else it was told.

    Args:
        args: the options.
        told: JSON-able: labels, captions, a tokenizer.
        free: options that may change, beside `FREE`.
    """
    return {**known_settings(args, free), "data_hash": hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]}


def known_settings(args: argparse.Namespace, free: Iterable[str] = ()) -> dict[str, Any]:
    """Those of `settings_of` that are known before data is read: the options.

    Args:
        args: the options.
        free: those that may change, beside `FREE`, or are filled in later.
    """
    return {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()
            if key not in (*FREE, *free)}
