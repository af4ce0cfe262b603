"""ViT, DeiT, DINO and DINOv2 of transformers, number for number."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import transformers
from random_models import randomise
from references import MODES, description, random_reference, refused, states, strictly
from torch import Tensor, nn

import minivl
from minivl.convert import huggingface
from minivl.images import Preprocessing

SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48,
         "image_size": 32, "patch_size": 8, "num_labels": 7}
DINO = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "mlp_ratio": 2, "image_size": 28,
        "patch_size": 7, "num_labels": 7}
MODELS: dict[str, tuple[Any, Any]] = {
    "vit": (transformers.ViTForImageClassification, transformers.ViTConfig(**SMALL)),
    "vit headless": (transformers.ViTModel, transformers.ViTConfig(**SMALL)),
    "vit oblong": (transformers.ViTForImageClassification, transformers.ViTConfig(
        **{**SMALL, "image_size": (24, 40), "patch_size": (8, 4), "hidden_act": "gelu_new", "layer_norm_eps": 1e-3})),
    "vit without biases": (transformers.ViTForImageClassification,
                           transformers.ViTConfig(**SMALL, qkv_bias=False, num_channels=1)),
    "deit": (transformers.DeiTForImageClassificationWithTeacher, transformers.DeiTConfig(**SMALL)),
    "deit headless": (transformers.DeiTModel, transformers.DeiTConfig(**SMALL)),
    "dinov2": (transformers.Dinov2ForImageClassification, transformers.Dinov2Config(**DINO)),
    "dinov2 headless": (transformers.Dinov2Model, transformers.Dinov2Config(**DINO)),
    "dinov2 swiglu": (transformers.Dinov2ForImageClassification,
                      transformers.Dinov2Config(**DINO, use_swiglu_ffn=True)),
    "dinov2 registers": (transformers.Dinov2WithRegistersForImageClassification,
                         transformers.Dinov2WithRegistersConfig(**DINO, num_register_tokens=3)),
    "dinov2 registers headless": (transformers.Dinov2WithRegistersModel,
                                  transformers.Dinov2WithRegistersConfig(**DINO, use_swiglu_ffn=True)),
}
BASE: dict[str, tuple[Any, Any]] = {
    "google/vit-base-patch16-384": (transformers.ViTForImageClassification,
                                    transformers.ViTConfig(image_size=384, num_labels=1000)),
    "facebook/deit-base-distilled-patch16-224": (transformers.DeiTForImageClassificationWithTeacher,
                                                 transformers.DeiTConfig(num_labels=1000)),
    "facebook/dinov2-base": (transformers.Dinov2Model,
                             transformers.Dinov2Config(image_size=518, patch_size=14)),
    "facebook/dinov2-with-registers-base": (transformers.Dinov2WithRegistersModel,
                                            transformers.Dinov2WithRegistersConfig(image_size=518, patch_size=14)),
}


def answers(theirs: nn.Module, images: Tensor, **options: Any) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Logits (or the pooled [class] token of a headless model), tokens, and attention of every layer."""
    with torch.no_grad():
        whole = theirs(images, output_attentions=True, **options)
        inner = theirs
        for name in ("vit", "deit", "dinov2", "dinov2_with_registers"):
            inner = getattr(inner, name, inner)
        tokens = inner(images, **options).last_hidden_state
    if hasattr(whole, "logits"):
        return whole.logits, tokens, whole.attentions
    distilled = "deit" in type(theirs).__name__.lower()
    return tokens[:, :2].mean(1) if distilled else tokens[:, 0], tokens, whole.attentions


def compare(theirs: nn.Module, ours: minivl.loading.Model, images: Tensor, **options: Any) -> tuple[float, float]:
    """Largest differences of outputs and of attention."""
    logits, tokens, attentions = answers(theirs, images, **options)
    record = minivl.AttnRecord()
    with torch.no_grad():
        mine, mine_tokens = ours(images, attn=record), ours.encode(images)
    assert 0.1 < tokens.std() < 10  # of order one, or the bound would say little
    torch.testing.assert_close(mine_tokens, tokens, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mine, logits, atol=1e-5, rtol=1e-5)
    assert len(attentions) == len(record) == ours.config.depth
    differences = [float((record["encoder", i] - weights).abs().max()) for i, weights in enumerate(attentions)]
    assert max(differences) <= 1e-6
    assert max(float(weights.std(-2).max()) for weights in attentions) > 1e-3  # rows differ: heads look somewhere
    return float((mine - logits).abs().max()), max(differences)


def images_for(theirs: nn.Module, count: int = 2) -> Tensor:
    size = huggingface.pair(theirs.config.image_size)
    return torch.randn(count, theirs.config.num_channels, *size, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", MODELS)
def test_equal_to_transformers(name: str, mode: str) -> None:
    theirs = random_reference(*MODELS[name])
    ours = minivl.from_state_dict(states(theirs, mode), config=description(theirs))
    assert compare(theirs, ours, images_for(theirs))[0] < 1e-5
    for field in ("act", "eps"):
        assert getattr(ours.config, field) == {"gelu_new": "gelu_tanh"}.get(
            value := getattr(theirs.config, {"act": "hidden_act", "eps": "layer_norm_eps"}[field]), value)


@pytest.mark.slow
@pytest.mark.parametrize("name", BASE)
def test_base_size(name: str, record_property: Any) -> None:
    theirs = random_reference(*BASE[name], scale=0.03)
    ours = minivl.from_state_dict(states(theirs, "published"), name=name)
    logits, attention = compare(theirs, ours, images_for(theirs, 1))
    print(f"{name}: logits {logits:.1e}, attention {attention:.1e}")
    assert ours.preprocessing is not None


@pytest.mark.parametrize("name", ["vit", "deit", "dinov2", "dinov2 registers"])
def test_other_image_sizes_as_transformers_interpolates(name: str) -> None:
    theirs = random_reference(*MODELS[name])
    ours = minivl.from_state_dict(states(theirs, "memory"), config=description(theirs))
    patch = theirs.config.patch_size
    for size in ((6 * patch, 3 * patch), (5 * patch, 7 * patch)):
        ours.resize(size)
        images = torch.randn(2, 3, *size)
        options = {} if name.startswith("dinov2") else {"interpolate_pos_encoding": True}
        logits, tokens, attentions = answers(theirs, images, **options)
        record = minivl.AttnRecord()
        with torch.no_grad():
            torch.testing.assert_close(ours(images, attn=record), logits, atol=1e-5, rtol=1e-5)
        assert (record["encoder", -1] - attentions[-1]).abs().max() < 1e-6
        ours = minivl.from_state_dict(states(theirs, "memory"), config=description(theirs))


@pytest.mark.parametrize("name", ["vit", "dinov2 swiglu"])
def test_bf16(name: str) -> None:
    theirs = random_reference(*MODELS[name])
    ours = minivl.from_state_dict(states(theirs.bfloat16(), "published"), config=description(theirs))
    images = images_for(theirs).bfloat16()
    with torch.no_grad():
        mine, logits = ours(images), theirs(images).logits
    assert mine.dtype == torch.bfloat16
    assert (mine - logits).float().norm() / logits.float().norm() < 0.05


@pytest.mark.parametrize("name, weight", [
    ("vit", "vit.encoder.layer.1.intermediate.dense.weight"), ("deit", "deit.encoder.layer.2.output.dense.weight"),
    ("dinov2", "dinov2.encoder.layer.1.mlp.fc2.weight"),
    ("dinov2 swiglu", "dinov2.encoder.layer.0.mlp.weights_in.weight"),
    ("dinov2 registers", "classifier.weight")])
def test_strict(name: str, weight: str) -> None:
    theirs = random_reference(*MODELS[name])
    strictly(states(theirs, "published"), weight, "encoder.layer.0.extra", config=description(theirs))


def test_both_layouts_at_once_are_refused() -> None:
    theirs = random_reference(*MODELS["vit"])
    state, config = states(theirs, "published"), description(theirs)
    memory = "vit.layers.0.attention.q_proj.weight"
    assert memory in refused({**state, memory: states(theirs, "memory")[memory]}, config=config)
    head = {**state, "cls_classifier.weight": state["classifier.weight"]}
    assert "for one place: classifier.weight and cls_classifier.weight" in refused(head, config=config)


def test_legacy_tensors_are_dropped_by_rule() -> None:
    theirs = random_reference(*MODELS["vit headless"])
    state = {**states(theirs, "published"), "embeddings.position_ids": torch.arange(17)[None],
             "embeddings.mask_token": torch.randn(1, 1, 32)}
    done = minivl.loading.convert(state, config=description(theirs))
    assert set(done.receipt.dropped) == {"embeddings.position_ids", "embeddings.mask_token", "pooler.dense.weight",
                                         "pooler.dense.bias"}
    assert len(done.receipt.used) + 4 == len(state) and all(done.receipt.dropped.values())
    filled = [name for names in done.receipt.used.values() for name in names]
    assert sorted(filled) == sorted(done.model.state_dict())
    compare(theirs, done.model, images_for(theirs))


def test_what_keys_cannot_tell_raises() -> None:
    with torch.device("meta"):
        state = transformers.ViTForImageClassification(transformers.ViTConfig(num_labels=1000)).state_dict()
    message = refused(state)
    assert "google/vit-base-patch16-224" in message and "facebook/dino-vitb16" in message
    model = minivl.from_state_dict(state, name="vit-base-patch16-224.safetensors")
    assert model.config.eps == 1e-12 and model.preprocessing.mean == (0.5, 0.5, 0.5)
    assert "num_heads" in refused(states(randomise(transformers.ViTModel(transformers.ViTConfig(**SMALL))), "memory"))


def test_class_names_travel() -> None:
    config = transformers.ViTConfig(**{**SMALL, "num_labels": 3}, id2label={0: "cat", 1: "dog", 2: "owl"})
    theirs = random_reference(transformers.ViTForImageClassification, config)
    assert minivl.from_state_dict(states(theirs, "memory"), config=description(theirs)).class_names \
        == ("cat", "dog", "owl")
    assert huggingface.class_names({"id2label": {str(i): f"LABEL_{i}" for i in range(12)}}) is None
    assert huggingface.class_names({"id2label": {str(i): f"n{i}" for i in range(12)}})[10] == "n10"


@pytest.mark.parametrize("config, expected", [
    ({"size": 384, "resample": 2, "image_mean": [.5] * 3, "image_std": [.5] * 3},
     Preprocessing((384, 384), (.5,) * 3, (.5,) * 3, 1.0, "squash", "bilinear")),
    ({"size": {"height": 384, "width": 256}, "resample": 3, "image_mean": [.4] * 3, "image_std": [.5] * 3},
     Preprocessing((384, 256), (.4,) * 3, (.5,) * 3, 1.0, "squash", "bicubic")),
    ({"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}, "do_center_crop": True,
      "resample": 3, "image_mean": [.4] * 3, "image_std": [.5] * 3},
     Preprocessing((224, 224), (.4,) * 3, (.5,) * 3, 0.875, "crop", "bicubic")),
    ({"size": 224, "crop_size": 224, "do_center_crop": True, "resample": 3, "image_mean": [.4] * 3,
      "image_std": [.5] * 3}, Preprocessing((224, 224), (.4,) * 3, (.5,) * 3, 1.0, "crop", "bicubic")),
    ({"size": {"height": 256, "width": 256}, "crop_size": 224, "do_center_crop": True, "resample": 3,
      "image_mean": [.4] * 3, "image_std": [.5] * 3},
     Preprocessing((224, 224), (.4,) * 3, (.5,) * 3, 0.875, "squash_crop", "bicubic")),
    ({"size": {"height": 256, "width": 200}, "crop_size": 224, "do_center_crop": True, "resample": 3,
      "image_mean": [.4] * 3, "image_std": [.5] * 3}, None),
    ({"size": 224, "do_resize": False, "image_mean": [.4] * 3, "image_std": [.5] * 3}, None),
    ({"size": 224, "resample": 5, "image_mean": [.4] * 3, "image_std": [.5] * 3}, None),
])
def test_preprocessor_config(config: dict[str, Any], expected: Preprocessing | None) -> None:
    told = huggingface.preprocessing(config)
    assert Preprocessing.or_none(told) == expected


@pytest.mark.parametrize("short", range(225, 400, 7))
def test_no_pixel_is_lost_to_a_rounded_crop_share(short: int) -> None:
    told = huggingface.preprocessing({"size": {"shortest_edge": short}, "crop_size": 224, "do_center_crop": True,
                                      "resample": 3, "image_mean": [.4] * 3, "image_std": [.5] * 3})
    settings = Preprocessing.or_none(told)
    assert settings is not None and math.floor(224 / settings.crop_pct) == short
