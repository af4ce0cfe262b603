"""Fine-tuning a classifier: `train_p1.py` beside a plain loop over timm's own model, in one run.

    python -m bench.classify step
    python -m bench.classify accuracy --data clothing --weights deit_tiny_patch16_224.timm.safetensors --seeds 0 1 2

``step``: seconds of a training step (forward, backward, AdamW) of DeiT-tiny at 32 photos, in float32 and under bfloat16
autocast; medians of interleaved steps, in process time, so that other work on the machine matters less. Above 1 ours
is faster.

``accuracy``: both are trained on the same folders with the settings of recipes/clothing-deit-tiny.json and scored on
every validation photo after each epoch. Needs timm.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms
from torchvision.transforms import InterpolationMode

import minivl
from minivl.metrics.classification import bootstrap_interval
from minivl.train.loop import autocast

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes" / "clothing-deit-tiny.json"


# -- the training step ---------------------------------------------------------------------------------------

def seconds_of(model: nn.Module, precision: str, images: Tensor, labels: Tensor) -> Callable[[], float]:
    """A function that makes one training step and returns its seconds."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05)
    model.train()

    def step() -> float:
        begun = time.process_time()
        optimizer.zero_grad(set_to_none=True)
        with autocast(images.device, precision):
            loss = F.cross_entropy(model(images), labels, label_smoothing=0.1)
        loss.backward()
        optimizer.step()
        return time.process_time() - begun
    return step


def compare_steps(args: argparse.Namespace) -> None:
    """Print the ratio of the two models' steps, per precision."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    images, labels = torch.randn(32, 3, 224, 224), torch.randint(10, (32,))
    for precision in ("fp32", "bf16"):
        steps = [seconds_of(minivl.create("deit_tiny_patch16_224", num_classes=10), precision, images, labels),
                 seconds_of(timm.create_model("deit_tiny_patch16_224", num_classes=10), precision, images, labels)]
        taken = [[step() for step in steps] for _ in range(args.repeats + 2)][2:]  # the first two warm up
        ours, theirs = (statistics.median(column) for column in zip(*taken))
        print(f"{precision}  ours {ours:6.3f} s  timm {theirs:6.3f} s of processor time for 32 photos   "
              f"ratio {theirs / ours:.3f}", flush=True)


# -- accuracy ------------------------------------------------------------------------------------------------

def plain_loop(data: Path, weights: Path, seed: int, precision: str) -> list[Tensor]:
    """timm's model in the loop that everybody writes; whether each validation photo is right, per epoch."""
    settings = json.loads(RECIPE.read_text())
    torch.manual_seed(seed)
    random.seed(seed)
    normalise = [transforms.ToTensor(), transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
    bicubic = InterpolationMode.BICUBIC
    train = datasets.ImageFolder(str(data / "train"), transforms.Compose([
        transforms.RandomResizedCrop(224, (settings["crop_scale"], 1.0), interpolation=bicubic),
        transforms.RandomHorizontalFlip(settings["flip"]), *normalise]))
    val = datasets.ImageFolder(str(data / "validation"), transforms.Compose([
        transforms.Resize(248, bicubic), transforms.CenterCrop(224), *normalise]))  # timm's crop of 0.9
    model = timm.create_model("deit_tiny_patch16_224")
    model.load_state_dict(load_file(weights))
    model.reset_classifier(len(train.classes))  # type: ignore[operator]
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings["lr"], weight_decay=settings["weight_decay"])
    loader = DataLoader(train, settings["batch_size"], shuffle=True)
    total, warmup = settings["epochs"] * len(loader), settings["warmup"]
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(
        (step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * max(0, step - warmup) / (total - warmup))))
    found = []
    for _ in range(settings["epochs"]):
        model.train()
        for images, labels in loader:
            optimizer.zero_grad()
            with autocast(images.device, precision):
                loss = F.cross_entropy(model(images), labels, label_smoothing=settings["smoothing"])
            loss.backward()
            optimizer.step()
            rates.step()
        found.append(right(model, DataLoader(val, 64), precision))
    return found


@torch.no_grad()
def right(model: nn.Module, loader: DataLoader[tuple[Tensor, Tensor]], precision: str) -> Tensor:
    """(photos,) whether each is classified as its label says."""
    model.eval()
    parts = []
    for images, labels in loader:
        with autocast(images.device, precision):
            parts.append(model(images).argmax(1) == labels)
    return torch.cat(parts)


def our_program(data: Path, weights: Path, seed: int, precision: str, out: Path,
                options: Sequence[str]) -> list[float]:
    """`train_p1.py` with its recipe; top-1 after each epoch."""
    call = [sys.executable, str(ROOT / "train_p1.py"), "--recipe", RECIPE.stem, "--data", str(data), "--init",
            str(weights), "--out", str(out), "--seed", str(seed), "--precision", precision, "--json", *options]
    told = subprocess.run(call, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    rows = [json.loads(line) for line in told.splitlines() if line.startswith("{")]
    return [row["top1"] for row in rows if "epoch" in row and "best" not in row]


def compare_accuracy(args: argparse.Namespace) -> None:
    """Print both per seed, then their means."""
    torch.set_num_threads(args.threads)
    last: dict[str, list[float]] = {"timm": [], "minivl": []}
    for seed in args.seeds:
        if args.who in ("both", "timm"):
            theirs = plain_loop(args.data, args.weights, seed, args.precision)
            low, high = bootstrap_interval(theirs[-1])
            report("timm", seed, [float(one.double().mean()) for one in theirs],
                   f"  last: 95 % {low:.3f} to {high:.3f}")
            last["timm"].append(float(theirs[-1].double().mean()))
        if args.who in ("both", "minivl"):
            ours = our_program(args.data, args.weights, seed, args.precision, args.out / f"seed{seed}", args.options)
            report("minivl", seed, ours)
            last["minivl"].append(ours[-1])
    if args.who != "both":
        return
    difference = np.subtract(last["minivl"], last["timm"])
    print(f"after the last epoch: timm {np.mean(last['timm']):.4f}, minivl {np.mean(last['minivl']):.4f}; difference "
          f"{difference.mean():+.4f} (per seed {', '.join(f'{one:+.4f}' for one in difference)})")


def report(who: str, seed: int, top1: Sequence[float], more: str = "") -> None:
    print(f"{who:<7} seed {seed}  top-1 by epoch {' '.join(f'{one:.4f}' for one in top1)}{more}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("step", "accuracy"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9, help="of a step")
    parser.add_argument("--data", type=Path, help="train/ and validation/ with a folder per class")
    parser.add_argument("--weights", type=Path, help="DeiT-tiny under timm's key names")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-classify"), help="folder for the runs")
    parser.add_argument("--who", choices=("both", "timm", "minivl"), default="both", help="whose accuracy")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="more options of train_p1.py")
    args = parser.parse_args()
    if args.what == "step":
        compare_steps(args)
    elif args.data is None or args.weights is None:
        parser.error("accuracy needs --data and --weights")
    else:
        compare_accuracy(args)


if __name__ == "__main__":
    main()
