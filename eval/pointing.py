"""Does attention point at what is named? The pointing score of a captioner on the built-in scenes.

For every noun of every generated caption, the peak of its cross-attention (one layer and set of heads,
fixed beforehand on training scenes) must fall inside the mask of what the noun names; a noun that names
nothing in the picture is a miss. Beside it stand a random pixel, the centre of the picture, and the same
captions with the attention of the same model on another picture.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import minivl
from minivl import programs
from minivl.data.scenes import Scenes
from minivl.errors import InputError
from minivl.metrics.grounding import Pointing, difference
from minivl.models.captioner import Captioner
from minivl.plotting.figure import save_figure
from minivl.plotting.pointing import pointing_chart
from minivl.train.looks import measure, noted_look
from minivl.train.loop import autocast

TEST_START = 11_000_000  # scenes that no training, validation or choice of heads has seen


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = programs.Parser(__doc__)
    parser.add_argument("--weights", default="scenes-captioner", help="a captioner trained on scenes")
    parser.add_argument("--scenes", type=int, default=500, help="how many test scenes")
    parser.add_argument("--beams", type=int, default=3, help="of the search; 1 is greedy")
    parser.add_argument("--out", type=Path, help="picture of the result (.png)")
    parser.add_common(idle=("workers",))
    args = parser.parse_args(argv)
    programs.check_common(args)
    for name, least in (("scenes", 2), ("beams", 1)):
        if getattr(args, name) < least:
            raise InputError(f"--{name} {getattr(args, name)}: give {least} or more")
    if args.out is not None and args.out.suffix.lower() != ".png":
        raise InputError(f"--out {args.out}: the picture is written as .png, name it so")
    if args.out is not None:
        programs.check_place("--out", args.out)
    return args


def main(argv: Sequence[str] | None) -> None:
    args = parse(argv)
    device = programs.device_of(args.device)
    captioner = minivl.load(args.weights).to(device).float()
    if not isinstance(captioner, Captioner) or captioner.tokenizer is None:
        raise InputError("is no captioner with a tokenizer", source=args.weights)
    look = noted_look(captioner, args.weights)
    if captioner.preprocessing is None:
        raise InputError("its preprocessing is unknown, so it cannot be shown scenes", source=args.weights)
    size = captioner.preprocessing.size[0]
    drawn = Scenes(args.scenes, start=TEST_START, seed=args.seed, size=size)
    scenes = list(programs.progress(drawn, total=len(drawn), desc="drawing scenes"))
    with autocast(device, programs.precision_of(args.precision, device)):
        results = measure(captioner, scenes, args.beams, progress=programs.progress)
    print_results(args, results, look)
    if args.out is not None:
        save_figure(pointing_chart({name: _row(value) for name, value in results.items()}), args.out)
        programs.report(args, {"picture": str(args.out)}, f"picture: {args.out}")


def _row(value: Pointing | float) -> tuple[float, tuple[float, float] | None]:
    return (value.score, value.interval) if isinstance(value, Pointing) else (value, None)


def beaten(attention: Pointing, control: Pointing | float) -> bool:
    """Whether the score's interval, and that of the difference where there is one, lie above the control."""
    better = not isinstance(control, Pointing) or difference(attention, control)[1][0] > 0
    return better and attention.interval[0] > _row(control)[0]


def print_results(args: argparse.Namespace, results: dict[str, Pointing | float], look: dict[str, Any]) -> None:
    """The scores, one line each, and whether attention beats every control."""
    attention = results["attention"]
    assert isinstance(attention, Pointing)
    programs.report(args, {"look": look, "signature": attention.signature},
                    f"layer {look['layer']}, heads {look['heads']} (fixed on {look.get('scenes', 'some')} training "
                    "scenes)")
    for name, value in results.items():
        score, interval = _row(value)
        text, values = f"{name:<18} {score:.3f}", {"name": name, "score": score}
        if interval:
            text += f"  95 % interval {interval[0]:.3f} to {interval[1]:.3f}"
            values["interval"] = interval
        if isinstance(value, Pointing) and name != "attention":
            low, high = difference(attention, value)[1]
            text += f"  attention is better by {low:.3f} to {high:.3f}"
            values["better_by"] = [low, high]
        if name == "attention":
            text += f"  ({attention.hits} of {attention.nouns} nouns)"
        programs.report(args, values, text)
    every = all(beaten(attention, value) for name, value in results.items() if name != "attention")
    programs.report(args, {"beats_every_control": every},
                    "attention beats every control by its interval" if every
                    else "attention does NOT beat every control by its interval")


if __name__ == "__main__":
    programs.program(main)
