"""Where a captioner of scenes looks when it names something: its peaks, the layer and heads that point best,
and its pointing score beside the controls.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import maps
from ..data.scenes import NOUNS, Scene
from ..errors import InputError
from ..geometry import Geometry
from ..images import preprocess
from ..metrics.grounding import Look, Pointing, chance, pointing_score
from ..models.captioner import Caption, Captioner
from ..nn.record import AttnRecord

BATCH = 50
Progress = Callable[..., Iterable[Any]]


@dataclass(frozen=True)
class Noun:
    """One noun of a generated caption.

    Attributes:
        scene: number of its scene.
        rows: (layers, h, gh, gw) its cross-attention, mean over its pieces; on the CPU.
        mask: (H, W) of what it names, or None.
        geometry: of the picture that was looked at.
    """

    scene: int
    rows: Tensor
    mask: np.ndarray | None
    geometry: Geometry


def caption_scenes(captioner: Captioner, scenes: Sequence[Scene], beams: int, *,
                   progress: Progress | None = None) -> list[Caption]:
    """One caption per scene, of at most `Captioner.longest` tokens.

    Args:
        captioner: with a tokenizer.
        scenes: what to caption.
        beams: of the search.
        progress: tqdm-like: called with (iterable, total=, desc=).

    Raises:
        InputError: the captioner has no tokenizer, or beams below 1.
    """
    if captioner.tokenizer is None:
        raise InputError("a captioner without a tokenizer names nothing: its captions are ids")
    batches = -(-len(scenes) // BATCH)
    return captioner.caption([scene.image for scene in scenes], beams=beams, max_len=captioner.longest,
                             batch_size=BATCH,
                             progress=partial(progress, total=batches, desc="captioning") if progress else iter)


@torch.no_grad()
def collect(captioner: Captioner, scenes: Sequence[Scene], captions: Sequence[Caption], shift: int = 0, *,
            progress: Progress | None = None) -> list[Noun]:
    """The nouns of captions with all their cross-attention.

    Args:
        captioner: with a tokenizer; in eval mode.
        scenes: what the captions are of.
        captions: one per scene.
        shift: look at the picture so many scenes further on instead (the control); masks stay.
        progress: tqdm-like: called with (iterable, total=, desc=).

    Raises:
        InputError: another number of captions than of scenes.
    """
    if len(captions) != len(scenes):
        raise InputError(f"{len(captions)} captions for {len(scenes)} scenes: one for each is needed")
    nouns = []
    starts: Iterable[int] = range(0, len(scenes), BATCH)
    if progress is not None:
        starts = progress(starts, total=-(-len(scenes) // BATCH), desc="replaying")
    for first in starts:
        numbers = range(first, min(first + BATCH, len(scenes)))
        seen = [scenes[(number + shift) % len(scenes)].image for number in numbers]
        images, geometries = preprocess(seen, captioner)
        record = AttnRecord(sites=("cross",))
        device = captioner.decoder.embed.weight.device
        captioner.replay(images.to(device), [captions[number] for number in numbers], attn=record)
        layers = [record["cross", layer] for layer in range(captioner.config.decoder.depth)]
        looks = torch.stack(layers, 1).cpu()  # (B, layers, h, T, N)
        grids = maps.to_grid(looks, looks.shape[-1] - math.prod(geometries[0].grid), geometries[0].grid)
        for row, number in enumerate(numbers):
            for word in captions[number].words or ():
                if word.text in NOUNS:
                    # row t chose ids[t + 1]
                    rows = grids[row, :, :, word.start - 1:word.stop - 1].mean(2)  # (layers, h, gh, gw)
                    nouns.append(Noun(number, rows, scenes[number].masks.get(NOUNS[word.text]), geometries[row]))
    return nouns


def looks_of(nouns: Sequence[Noun], count: int, layer: int, heads: Sequence[int] | str) -> dict[int, list[Look]]:
    """Peaks of one layer and the mean of some heads ("mean": of all): scene -> its nouns' looks."""
    looks: dict[int, list[Look]] = {number: [] for number in range(count)}
    for noun in nouns:
        rows = noun.rows[layer]
        chosen = rows.mean(0) if isinstance(heads, str) else rows[list(heads)].mean(0)
        looks[noun.scene].append((maps.peak_pixel(chosen, noun.geometry), noun.mask))
    return looks


def choose_look(captioner: Captioner, scenes: Sequence[Scene], beams: int, *,
                progress: Progress | None = None) -> dict[str, Any]:
    """The layer and heads (one, or the mean of all) that point best on these (training) scenes.

    Args:
        captioner: with a tokenizer.
        scenes: that the score is not to be measured on.
        beams: of the search.
        progress: tqdm-like: called with (iterable, total=, desc=).

    Returns:
        ``{"layer": int, "heads": "mean" or [head], "score": share of hits, "scenes": how many}``; empty where
        the captions name nothing.

    Raises:
        InputError: as `caption_scenes`.
    """
    nouns = collect(captioner, scenes, caption_scenes(captioner, scenes, beams, progress=progress), progress=progress)
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


def noted_look(captioner: Captioner, source: str | PathLike[str] | None = None) -> dict[str, Any]:
    """What `choose_look` found, as the weights note it.

    Args:
        captioner: any.
        source: its weights, for the error.

    Raises:
        InputError: nothing is noted, or a layer or head that is not there.
    """
    look = captioner.notes.get("look")
    if not look:
        raise InputError("these weights do not say which layer and heads to look at (train_p2.py writes that "
                         "for captioners of scenes)", source=source)
    n_layers, n_heads = captioner.attn_sites["cross"]
    layer, heads = (look.get(key) for key in ("layer", "heads")) if isinstance(look, dict) else (None, None)
    there = heads == "mean" or isinstance(heads, list) and heads and all(head in range(n_heads) for head in heads)
    if layer not in range(n_layers) or not there:
        raise InputError(f"these weights note layer {layer} and heads {heads} to look at: there are {n_layers} "
                         f"layers and {n_heads} heads, counted from 0", source=source)
    return look


def measure(captioner: Captioner, scenes: Sequence[Scene], beams: int, *,
            progress: Progress | None = None) -> dict[str, Pointing | float]:
    """The pointing score of the model and its three controls.

    Args:
        captioner: with a tokenizer and a noted look.
        scenes: at least two, all of one size in pixels.
        beams: of the search.
        progress: tqdm-like: called with (iterable, total=, desc=).

    Returns:
        "attention" (the score), "shuffled pictures" (the same captions, replayed on the next scene's picture),
        "centre" (peaks in the middle of the picture) and "chance" (a random pixel, in expectation).

    Raises:
        InputError: the weights do not say which layer and heads to look at, fewer than two scenes, or no
            caption names anything.
    """
    look = noted_look(captioner)
    if len(scenes) < 2:
        raise InputError(f"{len(scenes)} scenes: at least 2 are needed to show a model another picture")
    captions = caption_scenes(captioner, scenes, beams, progress=progress)

    def read(shift: int) -> dict[int, list[Look]]:
        nouns = collect(captioner, scenes, captions, shift, progress=progress)
        return looks_of(nouns, len(scenes), look["layer"], look["heads"])

    looks = read(0)
    centred: dict[int, list[Look]] = {}
    for number, found in looks.items():
        height, width = scenes[number].image.height, scenes[number].image.width
        centred[number] = [((height / 2, width / 2), mask) for _, mask in found]
    return {"attention": pointing_score(looks), "shuffled pictures": pointing_score(read(1)),
            "centre": pointing_score(centred), "chance": chance(looks)}
