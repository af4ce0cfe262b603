"""Data for small trainings of train_p2.py, and finished ones, shared by the tests of this folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_run
import torch
from PIL import Image
from random_models import randomise

import minivl
from minivl.images import Preprocessing
from minivl.models.captioner import Captioner, CaptionerConfig
from minivl.models.clip import CLIP, CLIPConfig, TextConfig
from minivl.models.vit import ViT, ViTConfig
from minivl.text.tokenizer import Tokenizer

pytest.register_assert_rewrite("small_runs")
from small_runs import PAIR, coco, train  # noqa: E402, isort: skip


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """photos/, train.json (8 photos), val.json (3 of them) and two small random encoders."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "photos").mkdir()
    draw = np.random.default_rng(0)
    names = [f"{number}.jpg" for number in range(8)]
    for number, name in enumerate(names):
        pixels = draw.integers(0, 256, (4, 6 + number % 3, 3), dtype=np.uint8).repeat(9, 0).repeat(7, 1)
        Image.fromarray(pixels).save(folder / "photos" / name)
    coco(folder / "train.json", names, 1)
    coco(folder / "val.json", names[2:5], 2)
    torch.manual_seed(0)
    config = ViTConfig((32, 32), (8, 8), 24, 2, 2, 48, num_classes=0)
    preprocessing = Preprocessing((32, 32), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    minivl.save(ViT(config, preprocessing=preprocessing), folder / "vit.safetensors")
    classifier = ViT(replace(config, num_classes=5), preprocessing=preprocessing)
    minivl.save(classifier, folder / "classifier.safetensors")
    minivl.save(ViT(config), folder / "unknown.safetensors")
    minivl.save(tiny_run.captioner(), folder / "captioner.safetensors")
    return folder


@pytest.fixture(scope="session")
def frozen(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on frozen features."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("frozen") / "runs" / "one"
    train(data, out)
    return out


@pytest.fixture(scope="session")
def frozen_pair(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a pair on frozen features."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("pair") / "runs" / "one"
    train(data, out, **PAIR)
    return out


@pytest.fixture(scope="session")
def starts(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A captioner and a pair over other encoders and words than those of `data`, every parameter random."""
    folder = tmp_path_factory.mktemp("starts")
    told = tiny_run.captioner()
    tokenizer = Tokenizer.train([" ".join([*tiny_run.WORDS, "blue"])])  # another order
    preprocessing = Preprocessing((24, 24), (0.4, 0.5, 0.6), (0.3, 0.2, 0.4), mode="crop")
    vision = ViTConfig((24, 24), (8, 8), 16, 3, 2, 24, num_classes=0, pre_norm=True)
    decoder = replace(told.config.decoder, vocab_size=tokenizer.vocab_size, max_len=9, dropout=0.25)
    captioner = Captioner(CaptionerConfig(vision, decoder), tokenizer=tokenizer, preprocessing=preprocessing,
                          notes={"look": {"layer": 0}, "scores": {"cider_d": 9.0}, "kept": 1})
    text = TextConfig(tokenizer.vocab_size, 16, 2, 2, 32, 6, max_len=9, bos_id=tokenizer.bos_id, dropout=0.25,
                      eot_id=tokenizer.eos_id, pad_id=tokenizer.pad_id)
    pair = CLIP(CLIPConfig(replace(vision, num_classes=6, head_bias=False, pool="class+mean"), text),
                tokenizer=tokenizer, preprocessing=preprocessing)
    for name, model in (("caption", captioner), ("contrastive", pair)):
        randomise(model, 3)
        minivl.save(model, folder / f"{name}.safetensors")
    return {name: folder / f"{name}.safetensors" for name in ("caption", "contrastive")}
