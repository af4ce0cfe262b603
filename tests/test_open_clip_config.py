"""open_clip's descriptions: what ours can be is read, everything else is refused by the name of its field."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from clip_references import compare, model_cfg, pictures, texts
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from open_clip.transform import image_transform
from PIL import Image
from random_models import randomise

import minivl
from minivl.convert import open_clip_config as described
from minivl.convert.open_clip_config import read_config
from minivl.errors import InputError
from minivl.images import Preprocessing
from minivl.loading import convert
from minivl.models.preset import OPENAI_MEAN, OPENAI_STD


@pytest.mark.parametrize("kind, read, usual, other", [
    (CLIPVisionCfg, described.VISION, described.VISION_USUAL, described.VISION_OTHER),
    (CLIPTextCfg, described.TEXT, described.TEXT_USUAL, described.TEXT_OTHER)])
def test_every_field_of_open_clips_is_known(kind: Any, read: dict[str, Any], usual: dict[str, Any],
                                            other: set[str]) -> None:
    """With its default."""
    theirs = {field.name: field.default for field in fields(kind)}
    assert MISSING not in theirs.values()
    assert set(theirs) == {*read, *usual, *other} and not set(read) & set(usual) and not other & {*read, *usual}
    assert {name: theirs[name] for name in (*read, *usual)} == {**read, **usual}


def test_every_architecture_of_open_clips_converts_or_is_refused_by_field() -> None:
    """The tensors of those that are read have the shapes that the description says."""
    converted, refused = [], []
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        try:
            found = read_config(config)
        except InputError as error:
            assert str(error).startswith("config: ") and "_cfg." in str(error) and "not supported" in str(error)
            refused.append(name)
            continue
        assert found is not None and found.preprocessing is None  # that is said elsewhere
        with torch.device("meta"):
            state = CLIP(**config).state_dict()
        model = convert(state, config=config).model
        assert model.config.vision.num_heads * config["vision_cfg"].get("head_width", 64) == model.config.vision.width
        converted.append(name)
    assert {"ViT-B-32-256", "ViT-H-14", "ViT-bigG-14", "ViT-g-14", "ViT-B-16-plus-240"} <= set(converted)
    assert {"RN50", "ViT-B-16-SigLIP", "ViT-L-14-CLIPA", "coca_ViT-B-32", "roberta-ViT-B-32"} <= set(refused)


@pytest.mark.parametrize("part, field, value", [
    ("vision_cfg", "layers", [3, 4, 6, 3]), ("vision_cfg", "attentional_pool", True),
    ("vision_cfg", "attentional_pool", "parallel"), ("vision_cfg", "timm_model_name", "vit_base_patch16_224"),
    ("vision_cfg", "no_ln_pre", True), ("vision_cfg", "pool_type", "avg"), ("vision_cfg", "ls_init_value", 1e-4),
    ("vision_cfg", "final_ln_after_pool", True), ("vision_cfg", "qk_norm", True), ("vision_cfg", "width", "48"),
    ("vision_cfg", "head_width", 0), ("vision_cfg", "image_size", [32]), ("vision_cfg", "mlp_ratio", None),
    ("vision_cfg", "act_kwargs", {"approximate": "tanh"}), ("vision_cfg", "norm_kwargs", {"bias": False}),
    ("text_cfg", "hf_model_name", "roberta-base"), ("text_cfg", "no_causal_mask", True),
    ("text_cfg", "embed_cls", True), ("text_cfg", "pool_type", "last"), ("text_cfg", "proj_bias", True),
    ("text_cfg", "proj_type", "none"), ("text_cfg", "scale_fc", True), ("text_cfg", "tokenizer_mode", "syntax"),
    ("model_cfg", "init_logit_bias", -10), ("model_cfg", "multimodal_cfg", {"width": 3}),
    ("model_cfg", "quick_gelu", "yes"), ("model_cfg", "embed_dim", 0)])
def test_what_ours_cannot_be_is_refused_by_field(part: str, field: str, value: Any) -> None:
    config = model_cfg()
    (config if part == "model_cfg" else config[part])[field] = value
    with pytest.raises(InputError, match=rf"config: {part}\.{field}.* is not supported") as caught:
        read_config({"model_cfg": config})
    assert "\n" not in str(caught.value)


def test_unknown_fields_and_other_descriptions() -> None:
    config = model_cfg()
    config["vision_cfg"]["colour"] = "red"
    with pytest.raises(InputError, match="vision_cfg has unknown fields: colour"):
        read_config(config)
    with pytest.raises(InputError, match="text_cfg='x': fields and values are needed"):
        read_config({**model_cfg(), "text_cfg": "x"})
    assert read_config({"model_type": "clip"}) is None and read_config({"model_cfg": "ViT-B-32"}) is None


def test_what_changes_nothing_may_be_there() -> None:
    config = model_cfg()
    config["vision_cfg"] |= {"patch_dropout": 0.5, "ls_init_value": None, "pool_type": "tok", "output_tokens": True}
    config |= {"custom_text": True, "init_logit_scale": 1.0, "multimodal_cfg": None}
    config["text_cfg"] |= {"hf_tokenizer_name": "", "proj_bias": False, "norm_kwargs": {}}
    assert read_config(config) == read_config(model_cfg())


def test_eps_end_of_text_and_a_grid_that_is_not_square() -> None:
    config = model_cfg(norm_kwargs={"eps": 1e-3}, image_size=[24, 40], patch_size=[8, 4], mlp_ratio=1.7)
    config["text_cfg"] |= {"norm_kwargs": {"eps": 1e-2}, "pool_type": "eos", "eos_id": 98}
    theirs = randomise(CLIP(**config), 0, 0.15)
    ours = convert(theirs.state_dict(), config=config).model
    assert (ours.config.vision.eps, ours.config.text.eps) == (1e-3, 1e-2)
    assert ours.config.vision.grid == (3, 10) and ours.config.vision.mlp_dim == 81  # 81.6, cut
    compare(ours, theirs, pictures(size=(24, 40)), texts())
    config["text_cfg"]["eos_id"] = 2  # of another vocabulary than CLIP's
    found = read_config(config)
    assert found is not None and (found.fields["text.bos_id"], found.fields["text.eot_id"]) == (0, 2)


@pytest.mark.parametrize("told, expected", [
    ({}, Preprocessing((32, 32), OPENAI_MEAN, OPENAI_STD, 1.0, "crop", "bicubic")),
    ({"mean": [.5] * 3, "std": None, "interpolation": "bilinear", "resize_mode": "squash", "size": 224},
     Preprocessing((32, 32), (.5,) * 3, OPENAI_STD, 1.0, "squash", "bilinear")),
    ({"interpolation": "random", "resize_mode": "shortest"},
     Preprocessing((32, 32), OPENAI_MEAN, OPENAI_STD, 1.0, "crop", "bicubic")),
    ({"resize_mode": "longest"}, None)])
def test_photos_are_preprocessed_as_open_clip_does(told: dict[str, Any], expected: Preprocessing | None) -> None:
    found = read_config({"model_cfg": model_cfg(), "preprocess_cfg": told})
    assert found is not None and found.preprocessing == expected
    if expected is None:
        return
    model = convert(CLIP(**model_cfg()).state_dict(), config={"model_cfg": model_cfg(), "preprocess_cfg": told}).model
    theirs = image_transform(32, False, **{key: value for key, value in told.items() if key != "size"})
    for size in ((70, 50), (33, 91), (32, 32), (20, 27)):
        photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
        images, _ = minivl.preprocess([photo], model)
        torch.testing.assert_close(images[0], theirs(photo), atol=1e-5, rtol=0)
