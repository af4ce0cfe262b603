"""What it costs to see: a ViT's forward pass with and without its [class] attention recorded in every layer.

    python -m bench.capture                                   # vit_base_patch16_224, one image
    python -m bench.capture --model vit_tiny_patch16_224 --repeats 300

The two passes alternate, so that whatever else the machine does falls on both alike. Printed are the
median of the ratios of neighbouring passes with a bootstrap interval, the medians themselves, and the
bytes the record keeps. Exit code 1 if capture costs more than 3 %, the whole interval beyond it, or keeps
more than 1 MB per image. On a busy machine one thread and more repeats narrow the interval.
"""

from __future__ import annotations

import argparse
import json
import time
from statistics import median

import torch

import minivl
from minivl.errors import some
from minivl.models.presets import PRESETS
from minivl.models.vit import ViT

COST_LIMIT, BYTES_LIMIT = 0.03, 1_000_000


def seconds(model: torch.nn.Module, images: torch.Tensor, record: minivl.AttnRecord | None) -> float:
    """Wall-clock time of one forward pass."""
    synchronize(images.device)
    start = time.perf_counter()
    model(images, attn=record)
    synchronize(images.device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def interleaved(model: torch.nn.Module, images: torch.Tensor,
                repeats: int) -> tuple[list[float], list[float]]:
    """Seconds of `repeats` plain and `repeats` recording passes, whose order within a pair alternates."""
    plain: list[float] = []
    recording: list[float] = []
    for repeat in range(repeats):
        for record in (None, class_rows())[:: 1 if repeat % 2 else -1]:
            (plain if record is None else recording).append(seconds(model, images, record))
    return plain, recording


def class_rows() -> minivl.AttnRecord:
    """A record that asks for the row of the [class] token in all layers and heads."""
    return minivl.AttnRecord(sites=("encoder",), queries="class")


def interval(values: list[float], draws: int = 1000) -> tuple[float, float]:
    """95 % bootstrap interval of the median of `values`."""
    sample = torch.tensor(values, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    picks = torch.randint(len(values), (draws, len(values)), generator=generator)
    low, high = sample[picks].median(1).values.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
    return float(low), float(high)


def measure(args: argparse.Namespace) -> dict[str, float | str | int]:
    """All that is printed, by name."""
    torch.manual_seed(args.seed)
    device = torch.device(args.device)
    model = minivl.create(args.model).to(device).eval()
    assert isinstance(model, ViT)
    images = torch.randn(args.batch, model.config.in_channels, *model.config.image_size, device=device)
    with torch.inference_mode():
        interleaved(model, images, repeats=5)  # warm up
        plain, recording = interleaved(model, images, args.repeats)
        record = class_rows()
        model(images, attn=record)
    ratios = [with_record / without for with_record, without in zip(recording, plain)]
    low, high = interval(ratios)
    return {"model": args.model, "device": str(device), "threads": torch.get_num_threads(),
            "batch": args.batch, "repeats": args.repeats, "layers": len(record),
            "plain_ms": 1e3 * median(plain), "recording_ms": 1e3 * median(recording),
            "ratio": median(ratios), "ratio_low": low, "ratio_high": high,
            "bytes": sum(record[key].untyped_storage().nbytes() for key in record)}


def main() -> int:
    """Measure, print, and say whether the limits hold."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_base_patch16_224", help="a preset's name")
    parser.add_argument("--batch", type=int, default=1, help="images per pass")
    parser.add_argument("--repeats", type=int, default=120, help="pairs of passes")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    if args.model not in PRESETS:
        parser.error(f"unknown model {args.model!r}; known are: {some(PRESETS, 40)}")
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("--device cuda: there is none here")
    if args.threads:
        torch.set_num_threads(args.threads)
    found = measure(args)
    ratio, low, size = float(found["ratio"]), float(found["ratio_low"]), int(found["bytes"])
    exceeded = low > 1 + COST_LIMIT or size >= BYTES_LIMIT * args.batch
    verdict = "limits hold" if ratio < 1 + COST_LIMIT else "undecided: the interval spans the limit"
    if args.json:
        print(json.dumps(found))
    else:
        print(f"{args.model}, {args.batch} image(s), {found['device']}, {found['threads']} threads, "
              f"{args.repeats} pairs of passes")
        print(f"  plain      {found['plain_ms']:8.2f} ms (median)")
        print(f"  recording  {found['recording_ms']:8.2f} ms, the [class] row of {found['layers']} layers")
        print(f"  ratio      {found['ratio']:8.4f}    95 % interval {found['ratio_low']:.4f} to "
              f"{found['ratio_high']:.4f}, limit {1 + COST_LIMIT}")
        print(f"  recorded   {size:8d} bytes, limit {BYTES_LIMIT * args.batch}")
        print("LIMIT EXCEEDED" if exceeded else verdict)
    return int(exceeded)


if __name__ == "__main__":
    raise SystemExit(main())
