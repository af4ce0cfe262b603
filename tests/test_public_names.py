"""The names others build on, each called after every submodule was imported: none hides another."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from random_models import ENCODER, pictures, randomise, texts

import minivl
from minivl.models.captioner import Caption, Captioner, CaptionerConfig
from minivl.models.decoder import DecoderConfig
from minivl.models.vit import ViT

SEARCH = {"*beams": 3, "*max_len": 30, "*normalise": "none", "*n_best": 1}  # the defaults


@pytest.fixture(scope="module", autouse=True)
def everything() -> None:
    for module in pkgutil.walk_packages(minivl.__path__, "minivl."):
        importlib.import_module(module.name)


def parameters(function: object) -> dict[str, object]:
    """{name: default} in order; keyword-only names begin with *."""
    return {("*" if one.kind is one.KEYWORD_ONLY else "**" if one.kind is one.VAR_KEYWORD else "") + name:
            None if one.default is one.empty else one.default
            for name, one in inspect.signature(function).parameters.items()}


def tiny() -> ViT:
    return minivl.create("vit_tiny_patch16_224", num_classes=5, depth=2, image_size=32)


def tiny_captioner() -> Captioner:
    config = DecoderConfig(vocab_size=11, width=16, depth=2, num_heads=2, mlp_dim=16, max_len=32)
    model = Captioner(CaptionerConfig(ENCODER, config),
                      preprocessing=minivl.images.Preprocessing((12, 8), (0.5,) * 3, (0.5,) * 3))
    randomise(model)
    return model


def test_create_save_load(tmp_path: Path) -> None:
    model = tiny()
    assert list(parameters(minivl.create)) == ["name", "*num_classes", "**overrides"]
    assert minivl.save(model, tmp_path / "m.safetensors") is None
    assert list(parameters(minivl.save))[:2] == ["model", "path"]
    assert parameters(minivl.load) \
        == {"source": None, "*name": None, "*num_classes": None, "*image_size": None, "*verify": False}
    loaded = minivl.load(tmp_path / "m.safetensors", num_classes=None, verify=True)
    assert not loaded.training
    assert all(map(torch.equal, model.state_dict().values(), loaded.state_dict().values()))


def test_from_state_dict() -> None:
    assert parameters(minivl.from_state_dict) \
        == {"state": None, "*family": "auto", "*config": None, "*name": None}
    state = {name: tensor for name, tensor in tiny().state_dict().items() if ".attn." not in name}
    for i in range(2):
        for kind, shape in (("weight", (192,)), ("bias", ())):
            state[f"blocks.{i}.attn.qkv.{kind}"] = torch.randn(576, *shape)
            state[f"blocks.{i}.attn.proj.{kind}"] = torch.randn(192, *shape)
    assert isinstance(minivl.from_state_dict(state, family="timm", config={"num_heads": 3}, name=None), ViT)
    with pytest.raises(minivl.InputError):
        minivl.from_state_dict(state, config={"num_heads": 3, "depth": 3})


def test_preprocess(tmp_path: Path) -> None:
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8))
    photo.save(tmp_path / "a.png")
    assert list(parameters(minivl.preprocess))[1] == "model"
    tensor, geometries = minivl.preprocess([tmp_path / "a.png", str(tmp_path / "a.png"), photo], tiny())
    assert tensor.shape == (3, 3, 32, 32) and torch.equal(tensor[0], tensor[2])
    assert all(isinstance(one, minivl.geometry.Geometry) and one.source == (40, 50) for one in geometries)


def test_vit_and_record() -> None:
    model, images = tiny(), torch.randn(2, 3, 32, 32)
    record = minivl.AttnRecord(sites=("encoder",), layers=[-1], queries=[0])
    assert model(images, attn=record).shape == (2, 5)
    assert record["encoder", 1].shape == (2, 3, 1, 5) and record["encoder", 1].dtype == torch.float32
    assert model.encode(images, attn=minivl.AttnRecord()).shape == (2, 5, 192)
    assert parameters(minivl.AttnRecord) \
        == {"sites": None, "layers": "all", "queries": "all", "heads": "all", "detach": True}
    assert model.attn_sites == {"encoder": (2, 3)}


def test_input_error() -> None:
    assert issubclass(minivl.InputError, ValueError) and minivl.InputError("x", source="f").source == "f"


def test_captioner() -> None:
    model, images = tiny_captioner(), pictures(2)
    assert SEARCH.items() <= parameters(model.caption).items()
    captions = model.caption(images)
    assert len(captions) == 2 and all(isinstance(caption, Caption) for caption in captions)
    assert captions[0].ids[0] == 2 and captions[0].logprob < 0
    photo = Image.fromarray(np.zeros((20, 20, 3), dtype=np.uint8))
    assert len(model.caption([photo], beams=3, max_len=30, normalise="mean", n_best=2)) == 1
    assert list(parameters(model.replay)) == ["images", "ids", "*attn", "*image_mask", "*memory"]
    record = minivl.AttnRecord(sites=("cross",))
    ids = texts(2, 6)
    assert model.replay(images, ids, attn=record).shape == (2, 6, 11)
    assert record["cross", 0].shape == (2, 2, 6, 7)
    assert torch.equal(model.replay(None, ids, memory=model.encode(images)), model.replay(images, ids))
    assert model.attn_sites["cross"] == (2, 2)


def test_search() -> None:
    model = tiny_captioner()
    assert SEARCH.items() <= parameters(minivl.search.beam_search).items()
    memory = model.encode(pictures(2))
    found = minivl.search.beam_search(model.decoding(memory), torch.full((2, 1), 2), eos_id=3)
    assert [one[0].ids for one in found] == [one.ids for one in model.caption(memory)]


def test_cider() -> None:
    result = minivl.metrics.cider.cider(
        {"a": "a red dog runs fast", "b": "two cats on a mat"},
        {"a": ["a red dog runs fast", "the dog"], "b": ["some cats sit on a mat", "cats"]})
    assert result.score > 0 and "|tok:ptb-coco|" in result.signature
    assert np.mean(list(result.per_item.values())) == pytest.approx(result.score)


def test_the_dozen_public_names() -> None:
    for name in minivl.__all__:
        assert hasattr(minivl, name), name
    assert all(map(inspect.ismodule, (minivl.search, minivl.loading, minivl.metrics.cider)))
    for name in ("create", "load", "save", "from_state_dict", "preprocess"):
        assert inspect.isfunction(getattr(minivl, name)), name  # no module of that name took its place
    assert isinstance(minivl.__version__, str)
