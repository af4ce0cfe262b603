"""Every row of the presets against timm's registry, and timm's plain ViTs against the presets."""

from __future__ import annotations

from dataclasses import asdict
from functools import cache
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform
from timm.layers import GluMlp, Mlp, PatchEmbed
from timm.layers.attention import Attention
from timm.models import _registry as registry
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

import minivl
from minivl.images import to_tensor
from minivl.models.other_presets import OTHER_PRESETS
from minivl.models.presets import ALIASES, PRESETS
from minivl.models.timm_presets import TIMM_PRESETS
from minivl.models.vit import ViTConfig

# Plain ViTs of timm that are no preset: part of a name, and what no field here expresses
LEFT_OUT = {
    "test_vit": "made for timm's own tests",
    "_siglip_2": "a pool that attends (map)", "_siglip_3": "a pool that attends (map)", "_siglip_5": "the same",
    "_map_256": "a pool that attends (map)",
    "vit_so400m_patch14_siglip_gap_384": "384 pixels are no whole number of patches of 14",
    "18x2_224": "parallel blocks", "_xp_": "parallel scaling blocks", "vit_pwee_": "parallel scaling blocks",
    "vit_dwee_": "differential attention", "vit_dlittle_": "differential attention", "vit_dpwee_": "both",
    "_rpn_": "norms after the branches", "_radio_": "no last norm", "vit_intern300m": "no last norm",
    "aimv2_": "RMS norms, gated MLPs, no biases", "beit3_": "norms inside attention and MLP",
}


def architectures() -> list[str]:
    """timm's ViTs and DeiTs, without the names it has given up."""
    return sorted(name for name, module in registry._model_to_module.items()
                  if module in ("vision_transformer", "deit") and name not in registry._deprecated_models)


def activation(module: nn.Module) -> str:
    kind = type(module).__name__
    return "gelu_tanh" if kind == "GELUTanh" else {"GELU": "gelu", "QuickGELU": "quick_gelu"}.get(kind, kind)


@cache
def built(name: str) -> VisionTransformer:
    """timm's model of that name, without memory."""
    with torch.device("meta"):
        return timm.create_model(name)


def as_config(name: str) -> ViTConfig:
    """What a model of timm is in our fields; AssertionError where it has something that none of them expresses."""
    model = built(name)
    block, embed = model.blocks[0], model.patch_embed
    assert type(model) in (VisionTransformer, VisionTransformerDistilled) and model.attn_pool is None
    assert type(block) is Block and type(block.attn) is Attention and type(embed) is PatchEmbed
    assert type(block.mlp) in (Mlp, GluMlp) and isinstance(block.norm1, nn.LayerNorm) and not model.pool_include_prefix
    nothing = [block.attn.q_norm, block.attn.k_norm, block.attn.norm, block.mlp.norm, embed.norm]
    assert all(isinstance(module, nn.Identity) for module in nothing) and block.attn.proj.bias is not None
    last, first = (isinstance(module, nn.LayerNorm) for module in (model.fc_norm, model.norm))
    assert last != first and all(side % patch == 0 for side, patch in zip(embed.img_size, embed.patch_size))
    gated = type(block.mlp) is GluMlp
    assert not gated or (type(block.mlp.act) is nn.SiLU and not block.mlp.gate_last)
    prefixed = model.cls_token is not None or model.num_reg_tokens > 0
    return ViTConfig(
        embed.img_size, embed.patch_size, model.embed_dim, len(model.blocks), block.attn.num_heads,
        block.mlp.fc2.in_features, num_classes=model.num_classes, class_token=model.cls_token is not None,
        pool={"token": "class", "avg": "mean"}[model.global_pool], act="gelu" if gated else activation(block.mlp.act),
        eps=block.norm1.eps, qkv_bias=block.attn.qkv.bias is not None,
        dist_token=type(model) is VisionTransformerDistilled, registers=model.num_reg_tokens,
        pos_prefix=prefixed and not model.no_embed_class, pre_norm=isinstance(model.norm_pre, nn.LayerNorm),
        patch_bias=embed.proj.bias is not None, layer_scale=hasattr(block.ls1, "gamma"),
        mlp="swiglu" if gated else "mlp", norm_after_pool=last,
        # as timm loads them, see its checkpoint filters
        resize="timm_npz" if name.startswith("flexivit") else "timm")


# -- rows ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("arch", [name for name in TIMM_PRESETS if "." not in name])
def test_every_row_is_timms(arch: str) -> None:
    """Sizes of the architecture, and preprocessing, classes, hub id and family of each of its tags."""
    published = registry.get_arch_pretrained_cfgs(arch)
    rows = {name: preset for name, preset in TIMM_PRESETS.items() if name.partition(".")[0] == arch}
    assert set(rows) == {arch, *published}
    assert rows[arch] == rows[f"{arch}.{registry.get_pretrained_cfg(arch).tag}"]  # the default tag
    for name, preset in rows.items():
        cfg = registry.get_pretrained_cfg(name)
        assert asdict(preset.config) == {**asdict(as_config(arch)), "num_classes": cfg.num_classes}, name
        assert preset.config.image_size == cfg.input_size[1:], name
        photos = preset.preprocessing
        mode = "crop" if cfg.crop_mode == "center" else "squash" if cfg.crop_pct == 1 else "squash_crop"
        assert (photos.size, photos.mean, photos.std) == (cfg.input_size[1:], cfg.mean, cfg.std), name
        assert (photos.crop_pct, photos.mode, photos.interpolation) == (cfg.crop_pct, mode, cfg.interpolation), name
        assert preset.hub == (cfg.hf_hub_id or None), name
        assert "npz" in preset.families or not cfg.custom_load, name


def left_out() -> list[str]:
    return [name for name in architectures() if any(part in name for part in LEFT_OUT)]


def test_no_plain_vit_is_forgotten() -> None:
    rows = {name for name in TIMM_PRESETS if "." not in name}
    assert set(architectures()) == rows | set(left_out()) and not rows & set(left_out())
    assert all(any(part in name for name in left_out()) for part in LEFT_OUT)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in left_out() if "test_vit" not in name])
def test_what_is_left_out_has_no_fields_here(name: str) -> None:
    with pytest.raises((AssertionError, minivl.InputError)):
        as_config(name)


def test_tags_of_one_model_keep_its_shapes() -> None:
    """A tag may change classes and preprocessing, never the model that timm builds."""
    for name in ("vit_base_patch16_224.bamboo", "vit_base_patch16_224.mae", "deit3_base_patch16_224.fb_in22k_ft_in1k"):
        assert as_config(name) == TIMM_PRESETS[name].config


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_base_distilled_patch16_384",
                                  "vit_giant_patch14_dinov2"])
def test_creates_models_of_timms_size(name: str) -> None:
    with torch.device("meta"):
        ours = minivl.create(name)
    assert sum(map(torch.numel, ours.parameters())) == sum(map(torch.numel, built(name).parameters()))


# -- photos ----------------------------------------------------------------------------------------------------

def looks() -> dict[str, str]:
    """A preset for each way timm's ViTs want their photos, by what differs."""
    found: dict[str, str] = {}
    for name, preset in TIMM_PRESETS.items():
        photos = preset.preprocessing
        found.setdefault(f"{photos.mode} {photos.crop_pct} {photos.interpolation} {photos.mean[0]:.2f}", name)
    return found


@pytest.mark.parametrize("name", looks().values(), ids=list(looks()))
def test_photos_are_prepared_as_timm_does(name: str) -> None:
    generator = np.random.default_rng(0)
    for height, width in ((300, 411), (640, 480)):
        photo = Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))
        cfg = registry.get_pretrained_cfg(name).to_dict()
        transform = create_transform(**{key: cfg[key] for key in ("input_size", "mean", "std", "crop_pct", "crop_mode",
                                                                  "interpolation")})
        mine, _ = to_tensor(photo, PRESETS[name].preprocessing, 16)
        torch.testing.assert_close(mine, transform(photo), atol=1e-6, rtol=0)


# -- names -----------------------------------------------------------------------------------------------------

def test_old_names_resolve_as_timms() -> None:
    """Those that timm maps to weights it no longer has (two of SAM's) go to the weights it has."""
    ours = {name: target for name, target in registry._deprecated_models.items()
            if isinstance(target, str) and target.partition(".")[0] in TIMM_PRESETS}
    gone = {name for name, target in ours.items() if target not in TIMM_PRESETS}
    assert gone == {"vit_base_patch32_224_sam", "vit_base_patch16_224_sam"}
    assert ALIASES == {name: f"{target}_in1k" if name in gone else target for name, target in ours.items()}
    assert all(target in PRESETS for target in ALIASES.values()) and not set(ALIASES) & set(PRESETS)


@pytest.mark.parametrize("old", ["deit3_large_patch16_224_in21ft1k", "vit_base_patch16_224_in21k",
                                 "vit_base_patch16_224_dino", "vit_large_patch14_224_clip_laion2b"])
def test_old_names_work_wherever_names_do(old: str) -> None:
    """deit3_large_patch16_224 alone is another crop, vit_base_patch16_224 alone another mean than DINO's."""
    expected = PRESETS[ALIASES[old]]
    with torch.device("meta"):
        state = built(ALIASES[old]).state_dict()
        for given in (old, f"{old}.pth", f"timm/{ALIASES[old]}", f"{ALIASES[old]}.safetensors"):
            done = minivl.loading.convert(state, name=given)
            assert (done.preset, done.model.preprocessing) == (ALIASES[old], expected.preprocessing)
        assert minivl.create(old).config == expected.config
        described: dict[str, Any] = {"architecture": old}
        assert minivl.from_state_dict(state, config=described).preprocessing == expected.preprocessing


@pytest.mark.parametrize("name", [name for name in OTHER_PRESETS if name.startswith(("dino", "deit", "mae"))])
def test_facebooks_names_are_those_of_timms_sources(name: str) -> None:
    """timm notes the file at Facebook that its weights come from."""
    targets = [target for target, preset in TIMM_PRESETS.items() if "." in target
               and preset.preprocessing == OTHER_PRESETS[name].preprocessing
               and {**asdict(preset.config), "resize": ""} == {**asdict(OTHER_PRESETS[name].config), "resize": ""}]
    files = [str(registry.get_pretrained_cfg(target).url).rpartition("/")[2] for target in targets]
    hub = {"dino_vits": "dino_deitsmall", "dino_vitb": "dino_vitbase"}  # torch.hub's name: the file's
    stem = next((name.replace(short, long) for short, long in hub.items() if name.startswith(short)
                 and "base" not in name), name)
    assert any(file.startswith(stem) for file in files), files


def test_a_longer_name_wins() -> None:
    with torch.device("meta"):
        state = built("vit_base_patch16_224").state_dict()
        for name, mean in (("vit_base_patch16_224-mine", 0.5), ("vit_base_patch16_224.mae.mine", 0.485),
                           ("vit_base_patch16_224.bamboo", 0.48145466)):
            assert minivl.from_state_dict(state, name=name).preprocessing.mean[0] == mean


def test_what_several_presets_fit_lists_each_kind_once() -> None:
    with torch.device("meta"), pytest.raises(minivl.InputError) as caught:
        minivl.from_state_dict(built("vit_base_patch16_224").state_dict())
    message = str(caught.value)
    for name in ("vit_base_patch16_224,", "deit_base_patch16_224", "vit_base_patch16_224.bamboo"):
        assert name in message
    assert "augreg" not in message and "mae" not in message  # the same numbers under other names
