"""Small trainings of a captioner and of an image-text pair, alone or in several processes, for tests.

    torchrun --nproc-per-node 2 tests/two_captioners.py FOLDER    each of `CASES`, and stopped and resumed ones
    torchrun --nproc-per-node 3 tests/two_captioners.py FOLDER    goes on with some that two have stopped
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import test_contrasting
import tiny_run
import torch
from random_models import randomise
from two_processes import stopping

from minivl import programs
from minivl.models.captioner import Captioner
from minivl.models.clip import CLIP
from minivl.train.captioning import CaptionTask, from_features
from minivl.train.contrasting import ContrastTask
from minivl.train.distributed import ALONE, Processes, processes
from minivl.train.loop import Plan, fit
from minivl.train.optim import freeze_encoder

PLAN = Plan(epochs=4, lr=3e-3, warmup=4, clip=1.0, ema=0.9, seed=7, save_every=0)
SGD = replace(PLAN, optimizer="sgd", lr=0.05)
# eleven pictures: of three batches of four the last has three, of six batches of two the last has one; of three
# pictures one process has one and the other two
CASES: dict[str, tuple[Plan, dict[str, Any]]] = {
    "adamw": (replace(PLAN, layer_decay=0.7, encoder_lr=1e-3, epochs=7), {"drop_words": 0.3, "bucket": True}),
    "sgd": (replace(SGD, sam=0.05, epochs=7), {"accumulate": 2, "drop_words": 0.2, "sampling": 0.5, "read": "all"}),
    "features": (SGD, {"batch_size": 4}),
    "uneven": (replace(SGD, epochs=5), {"batch_size": 6, "accumulate": 2}),
    "pair": (replace(SGD, lr=0.02, epochs=7), {"drop_words": 0.3}),
}
SHARDED = ("adamw", "sgd", "features", "uneven")


def made(case: str, group: Processes = ALONE) -> tuple[Captioner | CLIP, CaptionTask | ContrastTask]:
    """The random model and the task of a case."""
    options = {"processes": group, "seed": 2, **CASES[case][1]}
    if case == "pair":
        pair = test_contrasting.pair()
        return pair, test_contrasting.tiny_task(pair, 11, **options)
    model = tiny_run.captioner(num_heads=2, depth=2)
    randomise(model, 5)
    if case != "features":
        return model, tiny_run.task(model, 11, epochs=CASES[case][0].epochs, **options)
    freeze_encoder(model)
    told = {f"photo {number}": lines for number, lines in enumerate(tiny_run.captions(3, seed=6))}
    with torch.no_grad():
        features, val = (model.encoder.encode(tiny_run.Pictures(count, seed=seed).pixels)  # type: ignore[operator]
                         for count, seed in ((11, 0), (3, 1)))
    return model, CaptionTask(model, features, tiny_run.captions(11), val, told, remember=from_features, refs=2,
                              beams=1, max_len=6, **options)


def train(folder: Path, case: str, group: Processes = ALONE, *, resume: bool = False, stop: int | None = None) -> None:
    """One of `CASES`; or up to `stop` steps of it, with a checkpoint of the last one."""
    plan = CASES[case][0]
    if stop is not None:
        plan, group = stopping(plan, group, stop)
    model, task = made(case, group)
    for _ in fit(model, task, plan, out=folder, settings={}, resume=resume, processes=group, wrap=task.wrap):
        pass


def main(folder: Path) -> None:
    with processes(torch.device("cpu")) as (shared, _):
        for shard in (False, True):
            group = Processes(shared.rank, shared.count, shard)
            name = "shard" if shard else "shared"
            if shared.count == 3:
                train(folder / f"{name}-then-three", "sgd", group, resume=True)
                continue
            for case in SHARDED if shard else CASES:
                train(folder / f"{name}-{case}", case, group)
            train(folder / f"{name}-stopped", "sgd", group, stop=9)
            train(folder / f"{name}-then-three", "sgd", group, stop=9)
            train(folder / f"one-then-{name}", "sgd", group, resume=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    os.fsync = lambda handle: None  # slow, and of no use here
    programs.program(lambda argv: main(Path(sys.argv[1])))
