"""Random captioned pictures, and tar shards and folders made of them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

FORMATS = (("jpg", "JPEG"), ("png", "PNG"), ("bmp", "BMP"), ("pgm", "PPM"), ("webp", "WEBP"), ("tif", "TIFF"))
WORDS = "a red blue dog cat bird é 木 runs sits on \u2028 the grass".split(" ")
Files = list[tuple[str, bytes]]


def picture(draw: np.random.Generator, kind: str = "JPEG") -> bytes:
    """A random picture of a few pixels, in grey where the format is shown raw."""
    image = Image.fromarray(draw.integers(0, 256, (7, 9, 3), dtype=np.uint8))
    (image.convert("L") if kind in ("BMP", "PPM") else image).save(stored := io.BytesIO(), kind)
    return stored.getvalue()


def sentences(draw: np.random.Generator) -> list[str]:
    """One to four random captions."""
    return [" ".join(draw.choice(WORDS, draw.integers(2, 7))).strip() + "." for _ in range(draw.integers(1, 5))]


def samples(count: int, seed: int = 0, folder: str = "") -> tuple[Files, list[list[str]]]:
    """Files of so many samples in the WebDataset layout, sorted by name; and the captions of each.

    Formats of pictures and ways to write captions down take turns.
    """
    draw, files, captions = np.random.default_rng(seed), [], []
    for number in range(count):
        told, (ending, kind) = sentences(draw), FORMATS[number % len(FORMATS)]
        name = f"{folder}{number:05}"
        if number % 4 == 0:
            texts = [("json", json.dumps({"captions": told, "width": 9}))]
        elif number % 4 == 1:
            texts = [("txt", "\n".join(told) + "\r\n\n")]
        elif number % 4 == 2:
            texts = [("json", json.dumps({"caption": told[0]}, ensure_ascii=False)), ("txt", f" {told[0]}\n")]
            told = told[:1]
        else:
            texts = [("json", json.dumps({"width": 9, "caption": None})), ("txt", "\ufeff" + "\n".join(told))]
        captions.append(told)
        files += sorted([(f"{name}.{ending}", picture(draw, kind)),
                         *((f"{name}.{end}", text.encode()) for end, text in texts)])
    return files, captions


def tar(path: Path, files: Iterable[tuple[str, bytes]], format: int = tarfile.PAX_FORMAT) -> Path:
    """A tar of these members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as opened:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            opened.addfile(member, io.BytesIO(data))
    return path


def folder(path: Path, files: Iterable[tuple[str, bytes]]) -> Path:
    """A folder of these files."""
    for name, data in files:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path
