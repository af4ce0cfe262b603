"""The commands of docs/ do what they say."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_readme import ROOT, run, user

import minivl
from minivl.train.run import read_history


def commands(name: str) -> list[list[str]]:
    """The `python` lines of a page."""
    page = (ROOT / "docs" / name).read_text(encoding="utf-8")
    lines = "\n".join(re.findall(r"```sh\n(.*?)```", page, re.DOTALL)).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.startswith("python ")]


def photos(folder: Path, classes: list[str], count: int) -> None:
    """Photos that differ by class, with their classes as folders."""
    for number, name in enumerate(classes):
        for part, parts in (("train", range(count)), ("val", range(count, 2 * count))):
            (folder / part / name).mkdir(parents=True)
            for place in parts:
                noise = np.random.default_rng([number, place]).integers(0, 120, (60, 80, 3))
                noise[..., number % 3] += 120
                Image.fromarray(noise.astype(np.uint8)).save(folder / part / name / f"{place}.png")


@pytest.mark.slow
def test_fine_tuning(tmp_path: Path) -> None:
    for name in ("clothing", "pets"):
        photos(tmp_path / name, ["one", "two", "three"], 2)
    torch.manual_seed(0)
    minivl.save(minivl.create("deit_tiny_patch16_224"), tmp_path / "deit_tiny_patch16_224.safetensors")
    told = [run(command, tmp_path) for command in commands("classify.md")]
    assert len(told) == 6 and "top-1" in told[2]
    assert (tmp_path / "predictions.csv").read_text().count("\n") == 7
    probe, pets = (read_history(tmp_path / "runs" / name) for name in ("probe", "pets"))
    assert sum("epoch" in row for row in probe) == 40 and sum("epoch" in row for row in pets) == 5
    assert "a new head" not in told[5]  # the one of the probe is kept


__all__ = ["user"]  # a fixture


@pytest.mark.slow
def test_captioning(user: Path) -> None:  # noqa: F811
    told = commands("captioning.md")
    assert [command[1] for command in told] == ["train_p2.py"] * 3 + ["-m"]
    run([*told[0], "--epochs", "1", "--min-count", "1"], user)
    for command in told[1:3]:
        run([*command, "--epochs", "1"], user)
    run(told[3], user)
    assert all("reward" in row for row in read_history(user / "runs" / "scst") if "epoch" not in row)
    assert (user / "pred.json").stat().st_size > 20
