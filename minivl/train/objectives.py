"""What `train_p2.py` trains to: which options each objective has, with which defaults, and why others are refused."""

from __future__ import annotations

import argparse
from typing import Any

from ..errors import InputError

CAPTIONER: dict[str, Any] = {"norm": "pre", "positions": "learned", "tied": True, "beams": 3}
# What an objective takes, where the command line does not say; options of the others alone are refused.
OWN: dict[str, dict[str, Any]] = {
    "caption": {**CAPTIONER, "batch_size": 160, "lr": 1e-3, "refs": 5, "smoothing": 0.1, "drop_tokens": 0.2,
                "drop_words": 0.1, "scheduled_sampling": 0.0, "bucket": False, "read": "refs"},
    "contrastive": {"embed_dim": 256, "pool": None, "batch_size": 160, "lr": 1e-3, "refs": 1, "drop_words": 0.1,
                    "nouns": False},
    "scst": {**CAPTIONER, "batch_size": 32, "lr": 5e-5, "samples": 5, "baseline": "leave-one-out", "temperature": 1.0,
             "reward_cider": 1.0, "reward_clip": 0.0, "reward_weights": None, "scst_dropout": False},
}
TOWER = "the text tower of a pair is CLIP's"
DRAWN = "only --objective scst draws captions and rewards them"
# why an objective that does not have it does not
WHY = {"norm": f"{TOWER}: pre-norm", "positions": f"{TOWER}: its positions are learned",
       "tied": f"{TOWER}: it has no head over words", "beams": "a pair writes no captions",
       "smoothing": "the factor on the cosines, which is learned, does what smoothing would",
       "drop_tokens": "a pair sees one feature of a picture, not its tokens",
       "scheduled_sampling": "a pair writes no captions",
       "bucket": "captions of any length are compared with each other",
       "read": "a picture is compared with all captions of a batch, and once in an epoch",
       "embed_dim": "a captioner has no features that pictures and texts share",
       "pool": "a captioner looks at all tokens",
       "nouns": "a captioner would learn to say no more than these",
       **dict.fromkeys(("samples", "baseline", "temperature", "reward_cider", "reward_clip", "reward_weights",
                        "scst_dropout"), DRAWN)}
SCST_WHY = dict.fromkeys(("refs", "smoothing", "drop_tokens", "drop_words", "scheduled_sampling", "bucket", "read"),
                         "it reads the captions it draws, all of them as they are")

# What a new model is, where the command line does not say; of --init it is the file's own.
NEW: dict[str, Any] = {"encoder": "scenes_patch8_96", "fit": "squash", "width": 256, "depth": 4, "heads": 8,
                       "dropout": 0.3, "pieces": "word", "min_count": 5, "max_len": 30}
FIXED = ("encoder", "fit", "width", "depth", "heads", "norm", "positions", "tied", "embed_dim", "pool", "tokenizer",
         "pieces", "vocab_size", "min_count")  # by the file of --init


def own_help(name: str, what: str) -> str:
    """Help of an option that not every objective has, or not with the same default."""
    values = [f"{objective}: {own[name]}" for objective, own in OWN.items() if own.get(name) is not None]
    return f"{what} (default of {', '.join(values)})" if values else what


def new_help(name: str, what: str) -> str:
    """Help of an option of new models, whose default does not count with --init."""
    return f"{what} (default: {NEW[name]})"


def choose_new(args: argparse.Namespace) -> None:
    """Fill in what a new model is where nothing is said; with --init refuse what its file says.

    Raises:
        InputError: such an option with --init, or self-critical training without it.
    """
    if args.init is None:
        if args.objective == "scst":
            raise InputError("--objective scst makes a captioner that can already write better: give it as --init")
        for name, value in NEW.items():
            if getattr(args, name) is None:
                setattr(args, name, value)
        return
    told = [name for name in FIXED if getattr(args, name) is not None]
    if told:
        raise InputError(f"--{told[0].replace('_', '-')} does not go with --init, whose file says it: leave one out")


def choose_own(args: argparse.Namespace) -> None:
    """Fill in what the objective takes where nothing is said; refuse what only others have.

    Raises:
        InputError: an option that this objective does not have, with the reason.
    """
    own = OWN[args.objective]
    if args.read == "one" and args.refs is None:
        args.refs = 1
    for name in dict.fromkeys(name for values in OWN.values() for name in values):
        if name not in own and getattr(args, name) is not None:
            why = SCST_WHY.get(name) if args.objective == "scst" else None
            raise InputError(f"--{name.replace('_', '-')} does not go with --objective {args.objective}: "
                             f"{why or WHY[name]}")
    for name, value in own.items():
        if getattr(args, name) is None and not (args.init and name in FIXED):
            setattr(args, name, value)


def check_rewards(args: argparse.Namespace) -> None:
    """Refuse rewards and samples that make no sense together.

    Raises:
        InputError: as it says.
    """
    if args.baseline == "leave-one-out" and args.samples < 2:
        raise InputError(f"--samples {args.samples}: leave-one-out compares samples of a picture with each other; give "
                         "2 or more, or --baseline greedy")
    for name in ("reward_cider", "reward_clip"):
        if not 0 <= getattr(args, name) < float("inf"):
            raise InputError(f"--{name.replace('_', '-')} {getattr(args, name)}: give a weight of 0 or more")
    if not (args.reward_cider or args.reward_clip):
        raise InputError("--reward-cider 0 --reward-clip 0: nothing is rewarded; give one of them a weight")
    if bool(args.reward_clip) != bool(args.reward_weights):
        raise InputError("--reward-clip (a weight) and --reward-weights (the CLIP that judges) go together")
    if not 0 < args.temperature < float("inf"):
        raise InputError(f"--temperature {args.temperature}: give a number above 0")
    if args.dropout is not None and not args.scst_dropout:
        raise InputError(f"--dropout {args.dropout}: self-critical training has none without --scst-dropout")
