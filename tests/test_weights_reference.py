"""Fingerprints by the libraries that weights come from, family by family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import clip_references
import numpy as np
import pytest
import pytorch_pretrained_vit
import test_blip
import test_npz
import test_vit_gpt2
import timm
import torch
import transformers
from random_models import randomise
from references import random_reference
from safetensors.torch import save_file
from timm.models._hub import save_config_for_hf

import minivl
from weights import convert

VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
       "image_size": 32, "patch_size": 8, "num_labels": 3}
DINO = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "mlp_ratio": 2, "image_size": 28,
        "patch_size": 7, "num_labels": 3}


def of_timm(folder: Path) -> Path:
    model = randomise(timm.create_model("vit_tiny_patch16_224", num_classes=5), scale=0.05)
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    save_config_for_hf(model, str(folder / "config.json"))
    return folder


def of_npz(folder: Path) -> Path:
    folder.mkdir()
    state = test_npz.arrays(test_npz.small("vit_tiny_patch16_224"))
    np.savez(folder / "weights.npz", **{name: tensor.numpy() for name, tensor in state.items()})
    return folder / "weights.npz"


def of_openai(folder: Path) -> Path:
    folder.mkdir()
    state = clip_references.openai_shaped(mlp_ratio=4.0).state_dict()  # as open_clip takes for granted
    torch.save({**state, **clip_references.numbers(32, 13, 99)}, folder / "tiny.pt")
    return folder / "tiny.pt"


def saved(make: Callable[[], transformers.PreTrainedModel]) -> Callable[[Path], Path]:
    """A source that transformers saves."""
    def save(folder: Path) -> Path:
        make().save_pretrained(folder)
        return folder
    return save


SOURCES: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "timm": ("timm", of_timm),
    "npz": ("timm", of_npz),
    "clip": ("open_clip", of_openai),
    "hf_vit": ("transformers", saved(lambda: random_reference(
        transformers.ViTForImageClassification, transformers.ViTConfig(**VIT)))),
    "hf_vit headless": ("transformers", saved(lambda: random_reference(
        transformers.ViTModel, transformers.ViTConfig(**VIT)))),
    "hf_dinov2": ("transformers", saved(lambda: random_reference(
        transformers.Dinov2ForImageClassification, transformers.Dinov2Config(**DINO)))),
    "hf_dinov2 registers": ("transformers", saved(lambda: random_reference(
        transformers.Dinov2WithRegistersModel, transformers.Dinov2WithRegistersConfig(**DINO)))),
    "hf_clip": ("transformers", saved(lambda: clip_references.of_transformers())),
    "blip": ("transformers", saved(lambda: test_blip.reference({}))),
    "vit_gpt2": ("transformers", saved(lambda: test_vit_gpt2.reference({"text": {"n_embd": 32}}))),
}


@pytest.mark.filterwarnings("ignore")  # of foreign code that saves and loads
@pytest.mark.parametrize("name", SOURCES)
def test_the_library_agrees(name: str, tmp_path: Path) -> None:
    library, make = SOURCES[name]
    told = convert.convert_file(make(tmp_path / "source"), tmp_path / "out.safetensors")
    assert told["family"] == name.split()[0]
    assert told["fingerprint"].startswith(f"{library} "), told["fingerprint"]
    minivl.load(tmp_path / "out.safetensors", verify=True)


@pytest.mark.slow
def test_lukemelas_agrees(tmp_path: Path) -> None:
    model = pytorch_pretrained_vit.ViT("B_32_imagenet1k", pretrained=False)
    randomise(model, scale=0.03)
    torch.save(model.state_dict(), tmp_path / "B_32_imagenet1k.pth")
    told = convert.convert_file(tmp_path / "B_32_imagenet1k.pth", tmp_path / "out.safetensors")
    assert told["preset"] == "B_32_imagenet1k" and told["fingerprint"].startswith("pytorch_pretrained_vit ")


@pytest.mark.filterwarnings("ignore")
def test_a_library_that_disagrees_stops_the_conversion(tmp_path: Path) -> None:
    """QuickGELU in the config.json of weights that are said to be of GELU by name: nothing is written."""
    folder = saved(lambda: random_reference(transformers.ViTForImageClassification, transformers.ViTConfig(**VIT)))(
        tmp_path / "source")
    other = tmp_path / "other.json"
    other.write_text((folder / "config.json").read_text().replace('"gelu"', '"quick_gelu"'))
    told = convert.convert_file(folder, tmp_path / "out.safetensors", config=other)
    assert told["fingerprint"].startswith("transformers ")  # the given description counts for both
    assert minivl.load(tmp_path / "out.safetensors", verify=True).config.act == "quick_gelu"
