"""Small trainings of a classifier, alone or in several processes, for tests.

    torchrun --nproc-per-node 2 tests/two_processes.py FOLDER    each of `CASES`, and stopped and resumed ones
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from minivl import programs
from minivl.data.augment import Augment
from minivl.images import Preprocessing
from minivl.models.vit import ViT, ViTConfig
from minivl.train.classifying import ClassifyTask
from minivl.train.distributed import ALONE, Processes, processes
from minivl.train.loop import Plan, fit

CLASSES = 5
PREPROCESSING = Preprocessing((16, 16), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), mode="squash")
PLAN = Plan(epochs=3, lr=3e-3, warmup=4, clip=1.0, ema=0.9, seed=7, save_every=0)
SGD = replace(PLAN, optimizer="sgd", lr=0.1, momentum=0.9, schedule="step", factor=0.5, period=2, sam=0.05)
CASES: dict[str, tuple[Plan, dict[str, Any]]] = {
    "adamw": (replace(PLAN, layer_decay=0.7), {"mixup": 0.8, "cutmix": 1.0}),
    "sam": (SGD, {"accumulate": 2}),
    "adaptive": (replace(PLAN, sam=0.5, sam_adaptive=True, clip=0.3), {"accumulate": 3}),
}


def vit(seed: int = 0, **changes: Any) -> ViT:
    """A ViT with random weights, norms and biases."""
    fields: dict[str, Any] = {"dist_token": True, "registers": 2, **changes}
    torch.manual_seed(seed)
    model = ViT(ViTConfig((16, 16), (8, 8), 16, 2, 2, 24, num_classes=CLASSES, **fields), preprocessing=PREPROCESSING)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def photos(count: int, seed: int = 0) -> list[Image.Image]:
    """Noise, 15 x 11."""
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 15, 11, 3), dtype=np.uint8)
    return [Image.fromarray(picture) for picture in pixels]


def task(model: ViT, group: Processes = ALONE, **options: Any) -> ClassifyTask:
    """40 augmented pictures, so that an epoch is seven batches, the last of four."""
    augment = Augment(PREPROCESSING, seed=2, crop_scale=(0.3, 1.0), flip=0.5, auto="randaugment", erase=0.3)
    labels = [number * 3 % CLASSES for number in range(40)]
    return ClassifyTask(model, photos(40), labels, photos(7, 1), labels[:7], augment=augment, batch_size=6, seed=2,
                        smoothing=0.1, processes=group, **options)


def stopping(plan: Plan, group: Processes, steps: int) -> tuple[Plan, Processes]:
    """A plan and processes whose time limit is over after so many steps."""
    left, group = itertools.count(steps - 1, -1), Processes(group.rank, group.count, group.shard)
    limits = group.any
    setattr(group, "any", lambda value: limits(value) and next(left) <= 0)
    return replace(plan, time_limit=1e-9), group


def train(folder: Path, case: str, group: Processes = ALONE, *, resume: bool = False, stop: int | None = None,
          kill: int | None = None, **changes: Any) -> None:
    """One of `CASES`; or up to `stop` steps of it, with a checkpoint of the last one; or until SIGTERM comes to the
    last process alone in step `kill`."""
    plan, options = CASES[case]
    model = vit()
    one = task(model, group, **options)
    if kill is not None and group.rank == group.count - 1:
        left, parts = itertools.count(kill - 1, -1), one.parts

        def killed(batch: Any) -> Any:
            if not next(left):
                os.kill(os.getpid(), signal.SIGTERM)
            return parts(batch)

        setattr(one, "parts", killed)
    if stop is not None:
        plan, group = stopping(plan, group, stop)
    for _ in fit(model, one, replace(plan, **changes), out=folder, settings={}, resume=resume, processes=group):
        pass


def main(folder: Path) -> None:
    with processes(torch.device("cpu")) as (shared, _):
        interrupted = 0
        for shard in (False, True):
            group = Processes(shared.rank, shared.count, shard)
            name = "shard" if shard else "shared"
            for case in CASES:
                train(folder / f"{name}-{case}", case, group)
            train(folder / f"{name}-resumed", "sam", group, stop=9)
            train(folder / f"{name}-resumed", "sam", group, resume=True)
            for stop in (9, 14):  # the second is the last step of an epoch
                try:
                    train(folder / f"{name}-interrupted", "sam", group, resume=stop > 9, kill=stop - 9 * (stop > 9))
                except KeyboardInterrupt:
                    interrupted += 1
            train(folder / f"{name}-interrupted", "sam", group, resume=True)
        assert interrupted == 4
        train(folder / "local", "sam", Processes(shared.rank, shared.count), sam_local=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    os.fsync = lambda handle: None  # slow, and of no use here
    programs.program(lambda argv: main(Path(sys.argv[1])))
