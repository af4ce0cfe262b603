"""The options that every training takes."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

import pytest

import train_p1
import train_p2
from minivl.errors import InputError
from minivl.train import arguments
from minivl.train.plan import Plan

TOLD = ["--optimizer", "sgd", "--lr", "0.2", "--encoder-lr", "0.1", "--layer-decay", "0.8", "--momentum", "0.7",
        "--weight-decay", "0.3", "--clip", "2", "--sam", "0.05", "--sam-adaptive", "--batch-size", "7", "--ema", "0.5",
        "--epochs", "3", "--schedule", "step", "--warmup", "4", "--factor", "0.25", "--period", "2", "--time-limit",
        "60", "--seed", "9", "--precision", "fp16"]
PLAN = Plan(3, 0.2, 0.3, 4, 2.0, "fp16", 0.5, 9, optimizer="sgd", momentum=0.7, schedule="step", factor=0.25, period=2,
            layer_decay=0.8, sam=0.05, sam_adaptive=True, time_limit=60.0, encoder_lr=0.1)


@pytest.mark.parametrize("program", [train_p1, train_p2])
def test_every_setting_reaches_the_plan(program: type[train_p1], tmp_path: Path) -> None:
    args = program.parse(["--out", str(tmp_path), "--refs", "3", *TOLD] if program is train_p2 else
                         ["--out", str(tmp_path), *TOLD])
    assert arguments.plan_of(args) == PLAN and args.batch_size == 7
    plain = Plan(1, 1.0)
    assert all(getattr(PLAN, field.name) != getattr(plain, field.name) for field in fields(Plan)
               if field.name not in ("save_every", "sam_local"))  # else it would say nothing
    defaults = program.parse(["--out", str(tmp_path), "--precision", "fp32"])
    wanted = {train_p1: (1e-4, 32, 50, 0.0), train_p2: (1e-3, 160, 200, 0.999)}[program]
    assert (defaults.lr, defaults.batch_size, defaults.warmup, defaults.ema) == wanted
    assert arguments.plan_of(defaults).sam == 0


def test_what_a_resumed_run_must_repeat() -> None:
    args = argparse.Namespace(lr=0.1, captions=Path("some") / "file", out=Path("runs"), workers=3, compile=True,
                              features=Path("cache"), shard=True, accumulate=4, resume=True)
    found = arguments.settings_of(args, [["a dog"]], ["features"])
    assert found.keys() == {"lr", "captions", "data_hash"} and found["captions"] == str(Path("some") / "file")
    assert found == arguments.settings_of(args, [("a dog",)], ["features"])
    assert found["data_hash"] != arguments.settings_of(args, [["a cat"]])["data_hash"]


def test_least_values() -> None:
    args = argparse.Namespace(val_scenes=1, refs=None, beams=0)
    arguments.check_least(args, [("val_scenes", 1), ("refs", 1)])
    for name, low, told in (("val_scenes", 2, "--val-scenes 1: give 2 or more"), ("beams", 1, "--beams 0: give 1")):
        with pytest.raises(InputError, match=told):
            arguments.check_least(args, [(name, low)])
    assert arguments.folder("runs/one") == Path("runs/one")
    with pytest.raises(argparse.ArgumentTypeError, match="name a folder"):
        arguments.folder(" ")
