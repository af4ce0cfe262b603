"""The options of decoding on a command line, the same for every program that decodes."""

from __future__ import annotations

import argparse
import contextlib
import re
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from ..errors import InputError
from .options import MOST_REQUIRED, Options

NAMED = re.compile(rf"(?<![\w'\"/.-])({'|'.join(field.name for field in fields(Options))})(=|(?=:))")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add --beams, --max-len and all other options but the seed, which programs have anyway."""
    default = Options()

    def add(group: Any, name: str, help: str, **settings: Any) -> None:
        group.add_argument(f"--{name.replace('_', '-')}", help=help,
                           **{"default": getattr(default, name), **settings})

    search = parser.add_argument_group("search")
    add(search, "beams", "captions kept open at every step; 1 is greedy", type=int)
    add(search, "max_len", "most new tokens, <EOS> counted; 30, or what the decoder has room for", type=int,
        default=None)
    add(search, "normalise", "how captions of several lengths are ranked: none, mean or, say, gnmt(0.6)")
    add(search, "n_best", "captions per photo", type=int)
    add(search, "stop", "when no open beam can win, or when transformers' generate would", choices=("exact", "hf"))
    add(search, "groups", "of beams that say different things", type=int)
    add(search, "diversity", "what a word loses that an earlier group says; 0.5 with --groups", type=float)
    drawn = parser.add_argument_group("samples, in place of a search")
    add(drawn, "samples", "captions drawn per photo", type=int)
    add(drawn, "temperature", "below 1 the likely becomes likelier", type=float)
    add(drawn, "top_k", "draw from so many most likely tokens", type=int)
    add(drawn, "top_p", "draw from the most likely tokens that have this probability together", type=float)
    wishes = parser.add_argument_group("what is said")
    add(wishes, "min_len", "fewest new tokens, <EOS> counted", type=int)
    add(wishes, "repetition_penalty", "factor on log-probabilities of what was said", type=float)
    add(wishes, "no_repeat_ngram", "no so many tokens in a row twice; 0 = off", type=int)
    add(wishes, "forbidden", "a word or phrase that is not said; may be given several times", action="append",
        metavar="WORD", default=None)
    add(wishes, "required", f"a word or phrase that must be said; may be given up to {MOST_REQUIRED} times, and each "
        "takes twice as long", action="append", metavar="WORD", default=None)
    add(wishes, "prefix", "what captions begin with", metavar="TEXT", default=None)
    add(wishes, "allow_unknown", "let captions say <UNK>", action="store_true")


def options_of(args: argparse.Namespace, max_len: int) -> Options:
    """The options that were given.

    Args:
        args: of a parser with `add_options`, or with --max-len and any other of them.
        max_len: where --max-len was not given.

    Raises:
        InputError: as `Options`, and `options_as_typed`.
    """
    given = {field.name: getattr(args, field.name) for field in fields(Options) if hasattr(args, field.name)}
    if given["max_len"] is None:
        given["max_len"] = max_len
    for name, none in (("forbidden", ()), ("required", ()), ("prefix", "")):
        given[name] = given.get(name) or none
    with options_as_typed():
        return Options(**given)


@contextlib.contextmanager
def options_as_typed() -> Iterator[None]:
    """Within the block errors name options as a command line has them: ``--max-len 17``, not ``max_len=17``. Those
    that a message recommends too; all others `minivl.programs` names, where they stand with the value that was typed.

    Raises:
        InputError: in place of one from inside.
    """
    try:
        yield
    except InputError as error:
        text = NAMED.sub(lambda found: f"--{found[1].replace('_', '-')}{' ' * len(found[2])}", str(error))
        typed = InputError(text)
        typed.source = error.source
        raise typed from None
