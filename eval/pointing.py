"""Does attention point at what is named? The pointing score of a captioner on the built-in scenes.

For every noun of every generated caption, the peak of its cross-attention (one layer and set of heads,
fixed beforehand on training scenes) must fall inside the mask of what the noun names; a noun that names
nothing in the picture is a miss. Beside it stand a random pixel, the centre of the picture, and the same
captions with the attention of the same model on another picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import minivl
from minivl import maps, programs
from minivl.data.scenes import NOUNS, Scenes
from minivl.errors import InputError
from minivl.geometry import Geometry
from minivl.images import preprocess
from minivl.metrics.grounding import Look, Pointing, chance, difference, pointing_score
from minivl.models.captioner import Caption, Captioner
from minivl.nn.record import AttnRecord
from minivl.plotting.figure import save_figure
from minivl.plotting.pointing import pointing_chart

TEST_START = 11_000_000  # scenes that no training, validation or choice of heads has seen
BATCH = 50


@dataclass(frozen=True)
class Noun:
    """One noun of a generated caption.

    Attributes:
        scene: number of its scene.
        rows: (layers, h, gh, gw) its cross-attention, mean over its pieces.
        mask: (H, W) of what it names, or None.
        geometry: of its picture.
    """

    scene: int
    rows: Tensor
    mask: np.ndarray | None
    geometry: Geometry


def caption_scenes(captioner: Captioner, scenes: Sequence[Any], beams: int) -> list[Caption]:
    """One caption per scene."""
    max_len = min(30, captioner.config.decoder.max_len - 1)
    return captioner.caption([scene.image for scene in scenes], beams=beams, max_len=max_len, batch_size=BATCH)


@torch.no_grad()
def collect(captioner: Captioner, scenes: Sequence[Any], captions: Sequence[Caption], shift: int = 0) -> list[Noun]:
    """The nouns of captions with all their cross-attention.

    Args:
        captioner: with a tokenizer.
        scenes: what the captions are of.
        captions: one per scene.
        shift: look at the picture so many scenes further on instead (the control); masks stay.
    """
    nouns = []
    for first in range(0, len(scenes), BATCH):
        numbers = range(first, min(first + BATCH, len(scenes)))
        seen = [scenes[(number + shift) % len(scenes)].image for number in numbers]
        images, geometries = preprocess(seen, captioner)
        record = AttnRecord(sites=("cross",))
        captioner.replay(images.to(captioner.proj.weight.device), [captions[number] for number in numbers], attn=record)
        layers = [record[key] for key in sorted(record, key=lambda key: key[1])]
        looks = torch.stack(layers, 1)  # (B, layers, h, T, N)
        grids = maps.to_grid(looks, captioner.config.encoder.n_prefix, captioner.config.encoder.grid)
        for row, number in enumerate(numbers):
            for word in captions[number].words or ():
                if word.text in NOUNS:
                    rows = grids[row, :, :, word.start - 1: word.stop - 1].mean(2)
                    nouns.append(Noun(number, rows, scenes[number].masks.get(NOUNS[word.text]), geometries[row]))
    return nouns


def looks_of(nouns: Sequence[Noun], count: int, layer: int, heads: Sequence[int] | str) -> dict[int, list[Look]]:
    """Peaks of one layer and the mean of some heads: scene -> its nouns' looks."""
    looks: dict[int, list[Look]] = {number: [] for number in range(count)}
    for noun in nouns:
        rows = noun.rows[layer]
        chosen = rows.mean(0) if isinstance(heads, str) else rows[list(heads)].mean(0)
        looks[noun.scene].append((maps.peak_pixel(chosen, noun.geometry), noun.mask))
    return looks


def choose_look(captioner: Captioner, scenes: Sequence[Any], beams: int) -> dict[str, Any]:
    """The layer and heads (one, or the mean of all) that point best on these (training) scenes.

    Returns:
        ``{"layer": int, "heads": "mean" or [head], "score": share of hits, "scenes": how many}``; empty where
        the captions name nothing.
    """
    nouns = collect(captioner, scenes, caption_scenes(captioner, scenes, beams))
    if not nouns:
        return {}
    n_layers, n_heads = captioner.attn_sites["cross"]
    best: dict[str, Any] = {}
    for layer in range(n_layers):
        choices: list[list[int] | str] = ["mean", *([head] for head in range(n_heads))]
        for heads in choices:
            score = pointing_score(looks_of(nouns, len(scenes), layer, heads), samples=1).score
            if not best or score > best["score"]:
                best = {"layer": layer, "heads": heads, "score": score, "scenes": len(scenes)}
    return best


def measure(captioner: Captioner, scenes: Sequence[Any], beams: int) -> dict[str, Pointing | float]:
    """The pointing score of the model and its three controls.

    Raises:
        InputError: the weights do not say which layer and heads to look at.
    """
    look = captioner.notes.get("look")
    if look is None:
        raise InputError("these weights do not say which layer and heads to look at (train_p2.py writes that "
                         "for captioners of scenes)")
    captions = caption_scenes(captioner, scenes, beams)
    read: Callable[[int], dict[int, list[Look]]] = lambda shift: looks_of(  # noqa: E731
        collect(captioner, scenes, captions, shift), len(scenes), look["layer"], look["heads"])
    looks = read(0)
    centred: dict[int, list[Look]] = {}
    for number, found in looks.items():
        height, width = scenes[number].image.height, scenes[number].image.width
        centred[number] = [((height / 2, width / 2), mask) for _, mask in found]
    return {"attention": pointing_score(looks), "shuffled pictures": pointing_score(read(1)),
            "centre": pointing_score(centred), "chance": chance(looks)}


def main(argv: Sequence[str] | None) -> None:
    parser = programs.Parser(__doc__)
    parser.add_argument("--weights", default="scenes-captioner", help="a captioner trained on scenes")
    parser.add_argument("--scenes", type=int, default=500, help="how many test scenes")
    parser.add_argument("--beams", type=int, default=3)
    parser.add_argument("--out", type=Path, help="picture of the result (.png)")
    parser.add_common()
    args = parser.parse_args(argv)
    programs.check_common(args)
    captioner = minivl.load(args.weights)
    if not isinstance(captioner, Captioner) or captioner.tokenizer is None:
        raise InputError("is no captioner with a tokenizer", source=args.weights)
    captioner.to(programs.device_of(args.device))
    if args.scenes < 2:
        raise InputError(f"--scenes {args.scenes}: at least 2 are needed")
    size = captioner.config.encoder.image_size[0]
    drawn = Scenes(args.scenes, start=TEST_START, seed=args.seed, size=size)
    results = measure(captioner, list(programs.progress(drawn, desc="drawing scenes")), args.beams)
    print_results(args, results, captioner.notes["look"])
    if args.out:
        save_figure(pointing_chart({name: _row(value) for name, value in results.items()}), args.out)
        programs.report(args, {"picture": str(args.out)}, f"picture: {args.out}")


def _row(value: Pointing | float) -> tuple[float, tuple[float, float] | None]:
    return (value.score, value.interval) if isinstance(value, Pointing) else (value, None)


def print_results(args: Any, results: dict[str, Pointing | float], look: dict[str, Any]) -> None:
    """The scores, one line each, and whether attention beats every control."""
    attention = results["attention"]
    assert isinstance(attention, Pointing)
    programs.report(args, {"look": look, "signature": attention.signature},
                    f"layer {look['layer']}, heads {look['heads']} (fixed on {look['scenes']} training scenes)")
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
    beaten = all(attention.interval[0] > _row(value)[0] for name, value in results.items() if name != "attention")
    programs.report(args, {"beats_every_control": beaten},
                    "attention beats every control by its interval" if beaten
                    else "attention does NOT beat every control by its interval")


if __name__ == "__main__":
    programs.program(main)
