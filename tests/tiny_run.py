"""A captioner's training small enough for tests; as a program it trains, kills itself and resumes.

    python tests/tiny_run.py FOLDER SIGNAL TIMES    forked children train and get the signal at random moments
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minivl.images import Preprocessing
from minivl.loading import load
from minivl.models.captioner import Captioner, CaptionerConfig
from minivl.models.decoder import DecoderConfig
from minivl.models.vit import ViTConfig
from minivl.text.tokenizer import Tokenizer
from minivl.train.captioning import CaptionTask
from minivl.train.loop import Plan, fit

WORDS = "a red blue dog cat bird runs sits jumps on the grass sand near two three".split()
PREPROCESSING = Preprocessing((12, 8), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), mode="squash")


def captions(count: int, seed: int = 5, most: int = 4) -> list[list[str]]:
    """Random sentences: 1 to `most` of each picture, of 2 to 7 words."""
    draw = random.Random(seed)
    return [[" ".join(draw.choices(WORDS, k=draw.randint(2, 7))) for _ in range(draw.randint(1, most))]
            for _ in range(count)]


def captioner(dropout: float = 0.0, seed: int = 0, stem: tuple[int, ...] = (), **changes: Any) -> Captioner:
    """A random captioner over pictures of 12 x 8 pixels, with a tokenizer of `WORDS`; a stem has batch norms."""
    tokenizer = Tokenizer.train([" ".join(WORDS)])
    torch.manual_seed(seed)
    encoder = ViTConfig((12, 8), (4, 4), 12, 1, 2, 24, num_classes=0, dropout=dropout, stem=stem)
    fields = {"width": 16, "depth": 2, "num_heads": 2, "mlp_dim": 32, "max_len": 11, "tied": True, **changes}
    decoder = DecoderConfig(vocab_size=tokenizer.vocab_size, dropout=dropout, pad_id=tokenizer.pad_id,
                            bos_id=tokenizer.bos_id, eos_id=tokenizer.eos_id, **fields)
    return Captioner(CaptionerConfig(encoder, decoder), tokenizer=tokenizer, preprocessing=PREPROCESSING)


class Pictures:
    """Random pictures, float32 (count, 3, 12, 8)."""

    def __init__(self, count: int, seed: int = 0) -> None:
        self.pixels = torch.randn(count, 3, 12, 8, generator=torch.Generator().manual_seed(seed))

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, photos: Sequence[int]) -> Tensor:
        return self.pixels[list(photos)]


class Numbers:
    """Pictures whose every pixel is their number."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, photos: Any) -> Tensor:
        return torch.tensor(list(photos), dtype=torch.float32)[:, None, None, None].repeat(1, 3, 12, 8)


def task(model: Captioner, pictures: int = 21, **options: Any) -> CaptionTask:
    """Pictures with 1 to 4 captions, 3 validation pictures, batches of 4 pictures with 2 captions each."""
    told = {f"photo {number}": lines for number, lines in enumerate(captions(3, seed=6))}
    settings = {"batch_size": 8, "refs": 2, "smoothing": 0.1, "drop_tokens": 0.2, "beams": 1, "max_len": 6,
                **options}
    return CaptionTask(model, Pictures(pictures), captions(pictures), Pictures(3, seed=1), told,
                       remember=Captioner.encode, **settings)


class Watched:
    """A task that calls `before(step)` ahead of each loss; `step` counts from 0 within the process."""

    def __init__(self, inner: CaptionTask, before: Callable[[int], Any]) -> None:
        self.inner, self.before, self.calls = inner, before, 0
        self.steps, self.batches, self.evaluate = inner.steps, inner.batches, inner.evaluate
        self.parts = inner.parts

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        changed = self.before(self.calls)
        self.calls += 1
        loss = self.inner.loss(model, batch)
        return loss if changed is None else changed(loss)

    def save(self, model: nn.Module, path: Path, scores: Mapping[str, float]) -> None:
        self.inner.save(model, path, scores)


PLAN = Plan(epochs=3, lr=3e-3, warmup=4, clip=1.0, ema=0.9, seed=7, save_every=1e-9)


def train(folder: Path, *, resume: bool = False, plan: Plan = PLAN,
          before: Callable[[int], Any] = lambda step: None,
          settings: Mapping[str, Any] = {"kind": "tiny"}, stem: tuple[int, ...] = (),
          **options: Any) -> list[dict[str, Any]]:
    """A whole run with dropout; returns its rows per epoch."""
    model = captioner(dropout=0.1, stem=stem)
    return list(fit(model, Watched(task(model, **options), before), plan, out=folder, settings=settings,
                    resume=resume))


def hunted(folder: Path, number: int, times: int) -> None:
    """Train in children until one finishes; each of the first `times` gets the signal after a random while.

    Forked before any backward pass, which torch could not repeat in a child.
    """
    draw = random.Random(number)
    tries = 0
    while True:
        tries += 1
        resume = (folder / "checkpoint.safetensors").exists() or (folder / "history.jsonl").exists()
        child = os.fork()
        if child == 0:
            try:
                train(folder, resume=resume, before=lambda step: time.sleep(0.004))
                os._exit(0)
            except KeyboardInterrupt:
                os._exit(130)
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
                os._exit(1)
        if tries <= times:
            time.sleep(draw.uniform(0.05, 0.5))
            os.kill(child, number)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        for name in ("best", "last"):
            if (folder / f"{name}.safetensors").exists():
                load(folder / f"{name}.safetensors", verify=True)
        if status == 0:
            break
        # a child that had not yet come to install its handler dies of SIGTERM itself
        if status not in ((-number, 130) if number == signal.SIGTERM else (-number,)):
            sys.exit(f"child ended with {status}")
    print(json.dumps({"tries": tries}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    os.fsync = lambda handle: None  # slow, and of no use against signals
    hunted(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
