"""CLIP's presets and names are open_clip's and the hub's; what transformers' config.json says of one."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import Any

import open_clip
import open_clip.pretrained
import pytest
import torch
import transformers
from clip_references import as_transformers, numbers, of_open_clip
from open_clip.model import CLIP as OpenCLIP
from references import description, refused
from torch import Tensor

import minivl
from minivl.convert import clip, hf_clip
from minivl.convert.build import flatten
from minivl.loading import convert
from minivl.models.clip_presets import CLIP_PRESETS
from minivl.models.preset import INCEPTION_MEAN, OPENAI_MEAN, OPENAI_STD

# -- names and presets -----------------------------------------------------------------------------------------


def of_shape(name: str) -> dict[str, Tensor]:
    """Tensors without memory, of an architecture of open_clip's."""
    with torch.device("meta"):
        return OpenCLIP(**open_clip.get_model_config(name)).state_dict()


def test_what_keys_cannot_tell_raises() -> None:
    state = of_shape("ViT-B-32")
    message = refused(state)
    assert "several presets fit" in message and "ViT-B-32-quickgelu" in message and "ViT-B-32," in message
    with torch.device("meta"):
        state = transformers.CLIPModel(transformers.CLIPConfig()).state_dict()
    message = refused(state)
    assert "openai/clip-vit-base-patch32" in message and "laion/CLIP-ViT-B-32-laion2B-s34B-b79K" in message
    assert minivl.from_state_dict(state, name="clip-vit-base-patch32").config.text.act == "quick_gelu"
    message = refused(of_open_clip().state_dict())
    assert "no preset has these shapes" in message and "vision.num_heads" in message and "text.act" in message


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336"])
def test_presets_are_open_clips_and_files_of_that_name_convert(name: str) -> None:
    for behind in ("", "-quickgelu"):
        preset = CLIP_PRESETS[name + behind]
        described = clip.describe({"model_cfg": open_clip.get_model_config(name + behind)})
        assert described is not None and described.preprocessing == preset.preprocessing
        flat = flatten(preset.config)
        assert {field: flat[field] for field in described.fields} == described.fields
        done = convert(of_shape(name + behind), name=f"{name}{behind}.safetensors")
        assert done.model.config == preset.config and done.preset == name + behind
        assert done.model.preprocessing == preset.preprocessing
    entries = numbers(preset.config.vision.image_size[0], 77, 49408)
    stem = {"ViT-L-14-336": "ViT-L-14-336px"}.get(name, name)  # as OpenAI's files are called
    for given in (f"{stem}.pt", name, "model.pt", None):
        done = convert({**of_shape(name), **entries}, name=given)
        assert done.preset == f"{name}-quickgelu" and done.model.config.text.act == "quick_gelu"
        assert done.model.config.vision.act == "quick_gelu" and done.model.preprocessing == preset.preprocessing
    assert (preset.preprocessing.mean, preset.preprocessing.std) == (OPENAI_MEAN, OPENAI_STD)


def test_a_name_of_other_shapes_is_refused() -> None:
    assert "is named ViT-B-16, but its tensors have other shapes" in refused(of_shape("ViT-B-32"), name="ViT-B-16.pt")


def test_names_and_tags_of_open_clip_mean_their_own_activation_and_preprocessing() -> None:
    """Else ViT-B-32-openai.safetensors would be read as a ViT-B-32, which has the other activation."""
    seen, released = 0, set()
    for name in [preset for preset in CLIP_PRESETS if "/" not in preset]:
        for tag, told in open_clip.pretrained._PRETRAINED[name].items():
            file = told["url"].rpartition("/")[2]
            for given in (f"{name}-{tag}.safetensors", f"{name}.{tag}", f"{name}_{tag}", f"{name.lower()}-{tag}.pt",
                          file):
                entries = numbers(224, 77, 49408) if given == file and tag == "openai" else {}
                meant = clip.preset_name(given, entries)
                if given == file and meant == file:  # MetaCLIP's names say nothing
                    continue
                preset = CLIP_PRESETS[meant]
                assert preset.config.vision.act == ("quick_gelu" if told.get("quick_gelu") else "gelu"), given
                assert preset.preprocessing is not None and preset.preprocessing.mean == tuple(told["mean"]), given
                assert meant.startswith(name) or "/" in meant
                released |= {given} if given == file else set()
                seen += 1
    assert seen > 250
    assert {"ViT-L-14-336px.pt", "ViT-B-32.pt", "vit_b_32-quickgelu-laion400m_e31-d867053b.pt",
            "vit_b_16-laion400m_e31-00efa78f.pt", "vit_b_32-laion2b_e16-af8dbd0c.pth"} <= released
    for other in ("model.pt", "open_clip_model.safetensors", "timm/vit_base_patch32_clip_224.openai", "a-ViT-B-32"):
        assert clip.preset_name(other, {}) == other
    assert clip.preset_name("laion/CLIP-ViT-B-16-laion2B-s34B-b88K", {}) == "laion/CLIP-ViT-B-16-laion2B-s34B-b88K"


def test_presets_of_the_hub_are_open_clips_and_transformers() -> None:
    hub = {told["hf_hub"].rstrip("/"): told for tags in open_clip.pretrained._PRETRAINED.values()
           for told in tags.values()}
    described = hf_clip.describe(description(transformers.CLIPModel(transformers.CLIPConfig())))
    flat = flatten(CLIP_PRESETS["openai/clip-vit-base-patch32"].config)
    assert described is not None and {field: flat[field] for field in described.fields} == described.fields
    for name, preset in CLIP_PRESETS.items():
        if "/" not in name:
            continue
        assert preset.hub == name and preset.config.vision.resize == "hf" and preset.preprocessing is not None
        if name in hub:
            told = hub[name]
            assert preset.config.text.act == ("quick_gelu" if told.get("quick_gelu") else "gelu")
            assert (preset.preprocessing.mean, preset.preprocessing.std) == (tuple(told["mean"]), tuple(told["std"]))
        with torch.device("meta"):
            state = transformers.CLIPModel(as_transformers(preset.config)).state_dict()
        assert convert(state, name=name).model.config == preset.config
    laion = CLIP_PRESETS["laion/CLIP-ViT-L-14-laion2B-s32B-b82K"]
    assert laion.preprocessing is not None and laion.preprocessing.mean == INCEPTION_MEAN
    done = convert(of_shape("ViT-L-14"), name=laion.hub)  # their other files: by open_clip's rule
    assert done.model.config == replace(laion.config, vision=replace(laion.config.vision, resize="open_clip"))


# -- config.json of transformers ---------------------------------------------------------------------------------


def test_defaults_of_transformers() -> None:
    config = transformers.CLIPConfig()
    for name, part in (("vision", config.vision_config), ("text", config.text_config)):
        assert {key: getattr(part, key) for key in hf_clip.DEFAULTS[name]} == hf_clip.DEFAULTS[name]


@pytest.mark.parametrize("config", [
    {}, {"text_config": {"hidden_size": 384, "num_attention_heads": 6}, "projection_dim": 77},
    {"vision_config": {"image_size": 336, "patch_size": 14, "hidden_act": "gelu"}, "text_config": None},
    {"text_config": {"hidden_size": 384, "hidden_act": "gelu"}, "text_config_dict": {"hidden_size": 768},
     "vision_config": {"hidden_size": 1024, "num_attention_heads": 16}, "vision_config_dict": None},
    {"vision_config": {"num_hidden_layers": 7}, "vision_config_dict": {"layer_norm_eps": 1e-6, "hidden_act": "gelu"}},
    {"text_config": {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}}], ids=range(6))
def test_partial_configs_mean_what_transformers_makes_of_them(config: dict[str, Any]) -> None:
    described = hf_clip.describe({"model_type": "clip", **config})
    full = json.loads(transformers.CLIPConfig(**copy.deepcopy(config)).to_json_string(use_diff=False))
    again = hf_clip.describe({key: value for key, value in full.items() if not key.endswith("_dict")})
    assert described is not None and described == again
    assert (described.fields["text.bos_id"], described.fields["text.eot_id"]) == (49406, 49407)


def test_other_descriptions_are_left_to_others() -> None:
    assert hf_clip.describe({"model_type": "siglip"}) is None and hf_clip.describe({"embed_dim": 3}) is None
    assert hf_clip.describe({"model_type": "clip", "text_config": "clip"}) is None
    with pytest.raises(minivl.InputError, match="hidden_act='silu'"):
        hf_clip.describe({"model_type": "clip", "vision_config": {"hidden_act": "silu"}})
