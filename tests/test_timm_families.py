"""Every kind of ViT that timm has and Facebook publishes, number for number."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from references import refused
from timm_reference import SMALL, agree, answers, hub_config, images_for, loaded, reference, small
from torch import Tensor, nn

import minivl
from minivl.models.presets import PRESETS

# kind: timm's architecture, and what is changed beside its size
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit_tiny_patch16_224", {}),
    "vit headless": ("vit_tiny_patch16_224", {"num_classes": 0}),
    "vit oblong": ("vit_tiny_patch16_224", {"img_size": (24, 40)}),
    "vit oblong patches": ("vit_tiny_patch16_224", {"img_size": (24, 40), "patch_size": (8, 4), "in_chans": 1}),
    "vit with relu": ("vit_tiny_patch16_224", {"act_layer": "relu"}),
    "vit mean, norm last": ("vit_tiny_patch16_224", {"global_pool": "avg"}),
    "vit mean, norm first": ("vit_tiny_patch16_224", {"global_pool": "avg", "fc_norm": False}),
    "vit headless mean": ("vit_tiny_patch16_224", {"num_classes": 0, "global_pool": "avg"}),
    "vit without biases": ("vit_base_patch16_224_miil", {}),
    "vit scaled": ("vit_tiny_patch16_224", {"init_values": 1e-5, "reg_tokens": 2}),
    "dino": ("vit_small_patch16_224.dino", {"num_classes": 0}),
    "deit": ("deit_tiny_patch16_224", {}),
    "deit distilled": ("deit_tiny_distilled_patch16_224", {}),
    "deit distilled headless": ("deit_tiny_distilled_patch16_224", {"num_classes": 0}),
    "deit3": ("deit3_small_patch16_224", {}),
    "eva": ("eva_large_patch14_196", {}),
    "flexivit": ("flexivit_small", {}),
    "clip": ("vit_base_patch16_clip_224.openai", {}),
    "clip quickgelu": ("vit_base_patch16_clip_quickgelu_224.openai", {}),
    "dinov2": ("vit_small_patch14_dinov2", {"num_classes": 0}),
    "dinov2 with a head": ("vit_small_patch14_dinov2", {}),
    "dinov2 gated": ("vit_giant_patch14_dinov2", {}),
    "dinov2 registers": ("vit_small_patch14_reg4_dinov2", {}),
    "dinov2 gated registers": ("vit_giant_patch14_reg4_dinov2", {}),
    "mean": ("vit_medium_patch16_gap_256", {}),
    "siglip mean": ("vit_base_patch32_siglip_gap_256", {"num_classes": 0}),
    "mean, registers": ("vit_base_patch16_reg4_gap_256", {}),
    "mean, registers with positions": ("vit_so150m_patch16_reg4_gap_256", {}),
    "mean, scaled registers": ("vit_so150m2_patch16_reg1_gap_256", {}),
}
# a published name of each family, for its base size (a small one where that has none)
BASE = ("vit_base_patch16_224.augreg2_in21k_ft_in1k", "vit_base_patch32_384.augreg_in1k",
        "vit_base_patch16_224.dino", "deit_base_distilled_patch16_224.fb_in1k",
        "deit3_base_patch16_224.fb_in22k_ft_in1k", "flexivit_base.1200ep_in1k",
        "vit_base_patch16_clip_quickgelu_224.openai", "vit_base_patch14_dinov2",
        "vit_base_patch14_reg4_dinov2.lvd142m", "vit_base_patch16_siglip_gap_224.webli",
        "vit_medium_patch16_gap_256.sw_in12k_ft_in1k", "vit_betwixt_patch16_reg4_gap_256.sbb_in1k",
        "eva_large_patch14_196.in22k_ft_in1k", "vit_large_patch16_224.augreg_in21k", "vit_tiny_patch16_384")


def of(kind: str, **changes: Any) -> nn.Module:
    """timm's tiny model of a kind."""
    arch, arguments = KINDS[kind]
    return small(arch, **{**arguments, **changes})


def said(numbers: tuple[float, float], what: str) -> None:
    """Print the largest differences: the table of a report is made of these lines."""
    print(f"{what}: logits {numbers[0]:.1e}, attention {numbers[1]:.1e}")


# -- equality ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", KINDS)
def test_equal_to_timm(kind: str) -> None:
    theirs = of(kind)
    images = images_for(theirs)
    ours = minivl.from_state_dict(theirs.state_dict(), config=hub_config(theirs))
    said(agree(ours, answers(theirs, images), images), kind)
    assert ours.config.num_classes == theirs.num_classes and ours.config.eps == theirs.blocks[0].norm1.eps
    assert (ours.preprocessing is None) == (kind == "vit oblong patches")  # which has one channel


@pytest.mark.parametrize("kind", ["vit", "deit distilled", "deit3", "mean, registers", "clip quickgelu"])
def test_our_own_fields_will_do(kind: str) -> None:
    theirs = of(kind)
    told: dict[str, Any] = {"num_heads": 3}
    if kind.startswith("clip"):
        told.update(act="quick_gelu", eps=1e-5)
    if kind.startswith("mean"):
        told.update(class_token=False, pool="mean")
    images = images_for(theirs)
    agree(minivl.from_state_dict(theirs.state_dict(), config=told), answers(theirs, images), images)


@pytest.mark.slow
@pytest.mark.parametrize("name", BASE)
def test_base_size(name: str) -> None:
    theirs = reference(name, scale=PRESETS[name].config.width ** -0.5)
    ours = minivl.from_state_dict(theirs.state_dict(), name=f"{name}.safetensors")
    assert ours.config == PRESETS[name].config and ours.preprocessing == PRESETS[name].preprocessing
    images = images_for(theirs, 1)
    said(agree(ours, answers(theirs, images), images), name)


@pytest.mark.parametrize("kind", ["vit", "vit oblong", "deit distilled", "deit3", "flexivit", "clip",
                                  "dinov2 registers", "mean", "mean, registers with positions"])
@pytest.mark.parametrize("grid", [(5, 7), (3, 2), (4, 4)])
def test_other_image_sizes_as_timm_loads_them(kind: str, grid: tuple[int, int]) -> None:
    theirs = of(kind)
    ours = minivl.from_state_dict(theirs.state_dict(), config=hub_config(theirs))
    size = tuple(side * patch for side, patch in zip(grid, ours.config.patch_size))
    ours.resize(size)
    rule = {"interpolation": "bilinear", "antialias": False} if kind == "flexivit" else {}
    if kind == "vit oblong":  # a checkpoint does not say that its grid is oblong: the model in memory knows
        theirs.set_input_size(img_size=size)
    else:
        theirs = loaded(of(kind, img_size=size), theirs.state_dict(), **rule)
    images = images_for(theirs)
    agree(ours, answers(theirs, images), images)
    assert ours.preprocessing.size == size


@pytest.mark.parametrize("kind", ["vit", "clip quickgelu", "dinov2 gated registers"])
def test_bf16(kind: str) -> None:
    theirs = of(kind).bfloat16()
    ours = minivl.from_state_dict(theirs.state_dict(), config=hub_config(theirs))
    images = images_for(theirs).bfloat16()
    with torch.no_grad():
        mine, logits = ours(images), theirs(images)
    assert mine.dtype == torch.bfloat16
    assert (mine - logits).float().norm() / logits.float().norm() < 0.05


# -- Facebook's own files --------------------------------------------------------------------------------------

def original(kind: str, **changes: Any) -> tuple[dict[str, Tensor], nn.Module]:
    """A checkpoint as Facebook writes it, and timm's model with that checkpoint in it, loaded by timm's own code."""
    theirs = of(kind, **changes)
    state = dict(theirs.state_dict())
    generator = torch.Generator().manual_seed(3)
    if kind.startswith("deit3"):
        state = {name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): tensor
                 for name, tensor in state.items()}
    if kind.startswith("dinov2"):
        state["mask_token"] = torch.randn(1, 48, generator=generator)
    if "registers" in kind:
        state["register_tokens"] = state.pop("reg_token")
        state["pos_embed"] = torch.cat([torch.randn(1, 1, 48, generator=generator), state["pos_embed"]], dim=1)
    if "gated" in kind:
        state = {name.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): tensor
                 for name, tensor in state.items()}
    return state, loaded(of(kind, **changes), state, adapt_layer_scale=True)


@pytest.mark.parametrize("kind", ["dino", "deit3", "dinov2", "dinov2 gated", "dinov2 registers",
                                  "dinov2 gated registers"])
def test_facebooks_own_names(kind: str) -> None:
    state, theirs = original(kind)
    done = minivl.loading.convert(state, config={"num_heads": 3, "eps": 1e-6})
    images = images_for(theirs)
    said(agree(done.model, answers(theirs, images), images), f"Facebook's {kind}")
    assert len(done.receipt.used) + len(done.receipt.dropped) == len(state)
    assert set(done.receipt.dropped) == {"mask_token"} & set(state)
    assert done.model.config.resize == ("dinov2" if kind in ("dinov2", "dinov2 gated") else "timm")
    assert bool(done.receipt.notes) == ("registers" in kind)


def test_facebooks_dinov2_is_resized_by_its_own_rule() -> None:
    state, _ = original("dinov2")
    ours = minivl.from_state_dict(state, config={"num_heads": 3})
    ours.resize((40, 56))
    grid = state["pos_embed"][:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    expected = nn.functional.interpolate(grid, scale_factor=(5.1 / 4, 7.1 / 4), mode="bicubic")
    assert expected.shape[2:] == (5, 7)
    torch.testing.assert_close(ours.pos_embed[:, 1:], expected.flatten(2).mT, atol=1e-6, rtol=0)
    torch.testing.assert_close(ours.pos_embed[:, :1], state["pos_embed"][:, :1], atol=0, rtol=0)


@pytest.mark.parametrize("file, arch, resize", [
    ("dino_vitbase16_pretrain.pth", "vit_base_patch16_224.dino", "dinov2"),
    ("dino_deitsmall8_pretrain.pth", "vit_small_patch8_224.dino", "dinov2"),
    ("deit_3_large_224_21k.pth", "deit3_large_patch16_224.fb_in22k_ft_in1k", "timm"),
    ("deit_base_distilled_patch16_224-df68dfff.pth", "deit_base_distilled_patch16_224", "timm"),
    ("mae_pretrain_vit_base.pth", "vit_base_patch16_224.mae", "timm"),
    ("dinov2_vits14_reg4_pretrain.pth", "vit_small_patch14_reg4_dinov2", "timm"),
    ("dinov2_vits14_pretrain.pth", "vit_small_patch14_dinov2", "dinov2"),
])
def test_facebooks_file_names(file: str, arch: str, resize: str) -> None:
    with torch.device("meta"):
        state = timm.create_model(arch).state_dict()
    model = minivl.from_state_dict(state, name=file)
    assert model.preprocessing == PRESETS[arch].preprocessing and model.config.resize == resize


def test_old_representation_layers_are_dropped_as_timm_does() -> None:
    theirs = of("vit")
    state = {**theirs.state_dict(), "pre_logits.fc.weight": torch.randn(48, 48), "pre_logits.fc.bias": torch.randn(48)}
    done = minivl.loading.convert(state, config={"num_heads": 3})
    assert set(done.receipt.dropped) == {"pre_logits.fc.weight", "pre_logits.fc.bias"}
    assert all("representation" in why for why in done.receipt.dropped.values())
    images = images_for(theirs)
    agree(done.model, answers(loaded(of("vit"), state), images), images)


# -- strictness ------------------------------------------------------------------------------------------------

STRICT = ("vit", "vit mean, norm last", "vit scaled", "deit distilled", "deit3", "clip", "dinov2 gated registers",
          "mean, registers with positions", "Facebook's dinov2 gated registers", "Facebook's deit3")


def strict_case(kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A checkpoint and its description."""
    if kind.startswith("Facebook's "):
        state, theirs = original(kind.removeprefix("Facebook's "), depth=2)
    else:
        theirs = of(kind, depth=2)
        state = dict(theirs.state_dict())
    return state, hub_config(theirs)


@pytest.mark.parametrize("kind", STRICT)
def test_each_tensor_dropped_is_named(kind: str) -> None:
    state, config = strict_case(kind)
    minivl.from_state_dict(state, config=config)
    for name in set(state) - {"mask_token"}:
        message = refused({key: tensor for key, tensor in state.items() if key != name}, config=config)
        assert f"1 missing: {name}" in message, message
        assert name in ("register_tokens",) or ";" not in message, message


@pytest.mark.parametrize("kind", STRICT)
def test_each_tensor_transposed_or_of_another_type_is_named(kind: str) -> None:
    state, config = strict_case(kind)
    for name in set(state) - {"mask_token"}:
        tensor = state[name]
        if tensor.ndim > 1 and tensor.shape[-1] != tensor.shape[-2]:
            message = refused({**state, name: tensor.mT.contiguous()}, config=config)
            assert f"1 of another shape: {name} " in message and ";" not in message, message
        message = refused({**state, name: tensor.double()}, config=config)
        assert f"1 of another type: {name} torch.float64" in message and ";" not in message, message
        message = refused({**state, name: tensor.to(torch.int32)}, config=config)
        assert f"1 of another type: {name} torch.int32 instead of torch.float32" in message, message


@pytest.mark.parametrize("kind", STRICT)
@pytest.mark.parametrize("added", ["blocks.1.attn.q_norm.weight", "attn_pool.q.weight", "blocks.0.mlp.norm.weight",
                                   "blocks.00.norm1.weight", "head.scale"])
def test_each_tensor_added_is_named(kind: str, added: str) -> None:
    state, config = strict_case(kind)
    message = refused({**state, added: torch.zeros(3)}, config=config)
    assert f"1 unexpected: {added}" in message and ";" not in message, message


@pytest.mark.parametrize("kind, here, again", [
    ("deit3", "blocks.1.ls1.gamma", "blocks.1.gamma_1"),
    ("dinov2 gated", "blocks.1.mlp.fc1.weight", "blocks.1.mlp.w12.weight"),
    ("dinov2 gated", "blocks.1.mlp.fc2.bias", "blocks.1.mlp.w3.bias"),
    ("Facebook's dinov2 gated registers", "register_tokens", "reg_token")])
def test_doubled_tensors_are_named(kind: str, here: str, again: str) -> None:
    state, config = strict_case(kind)
    message = refused({**state, again: state[here]}, config=config)
    assert f"1 for one place: {here} and {again}" in message and ";" not in message, message


def test_one_block_is_not_enough_for_a_layer_scale() -> None:
    state = dict(of("vit").state_dict())
    state["blocks.1.ls1.gamma"] = torch.ones(48)
    message = refused(state, config={"num_heads": 3})
    assert "5 missing: blocks.0.ls1.gamma" in message and "unexpected" not in message


@pytest.mark.parametrize("lost", ["cls_token", "reg_token"])
def test_what_a_name_says_is_missing_is_missing(lost: str) -> None:
    """DINOv2 without its registers has the shapes of a DeiT III, and without its [class] token those of none."""
    with torch.device("meta"):
        state = timm.create_model("vit_small_patch14_reg4_dinov2").state_dict()
    del state[lost]
    assert f"1 missing: {lost}" in refused(state, name="vit_small_patch14_reg4_dinov2.lvd142m")


def test_a_lost_class_token_is_no_mean() -> None:
    """DeiT III without its [class] token has the shapes of a model that pools the mean: that must be said."""
    state = dict(of("deit3").state_dict())
    del state["cls_token"]
    assert "1 missing: cls_token" in refused(state, config={"num_heads": 3})
    assert minivl.from_state_dict(state, config={"num_heads": 3, "class_token": False, "pool": "mean"})


def test_clips_activation_and_eps_are_not_guessed() -> None:
    state = of("clip quickgelu").state_dict()
    for config in ({"num_heads": 3}, {"num_heads": 3, "eps": 1e-5}, {"num_heads": 3, "act": "quick_gelu"}):
        message = refused(state, config=config)
        assert "'act'" in message.replace('"', "'") or "act" in message and "eps" in message
    with torch.device("meta"):
        state = timm.create_model("vit_base_patch16_clip_quickgelu_224.openai").state_dict()
    message = refused(state)
    assert "vit_base_patch16_clip_224" in message and "vit_base_patch16_clip_quickgelu_224" in message
    for name in ("vit_base_patch16_clip_224.openai", "vit_base_patch16_clip_quickgelu_224.openai"):
        assert minivl.from_state_dict(state, name=name).config.act == ("quick_gelu" if "quick" in name else "gelu")


# -- timm's own description ------------------------------------------------------------------------------------

def test_the_name_of_a_preset_wins_over_a_description_published_under_another() -> None:
    """timm keeps weights trained with QuickGELU under a name that says GELU; who asks for the other gets it."""
    with torch.device("meta"):
        theirs = timm.create_model("vit_base_patch16_clip_224.openai")
        state, beside = theirs.state_dict(), hub_config(theirs)
        for name, act in (("vit_base_patch16_clip_quickgelu_224.openai", "quick_gelu"),
                          ("timm/vit_base_patch16_clip_224.openai", "gelu"), ("model.safetensors", "gelu")):
            done = minivl.loading.convert(state, name=name, description=beside)
            assert done.model.config.act == act and done.model.config.eps == 1e-5
        theirs = timm.create_model("vit_small_patch14_dinov2")
        state, beside = theirs.state_dict(), hub_config(theirs)
        for name, rule in (("dinov2_vits14", "dinov2"), ("timm/vit_small_patch14_dinov2.lvd142m", "timm")):
            assert minivl.loading.convert(state, name=name, description=beside).model.config.resize == rule


@pytest.mark.parametrize("arguments, field, value", [
    ({"dynamic_img_size": True}, "image_size", (32, 32)), ({"drop_path_rate": 0.1}, "dropout", 0.0),
    ({"no_embed_class": True}, "pos_prefix", False), ({"reg_tokens": 3}, "registers", 3),
    ({"class_token": False, "global_pool": "avg"}, "class_token", False), ({"init_values": 1e-4}, "layer_scale", True),
    ({"qkv_bias": False}, "qkv_bias", False), ({"mlp_ratio": 2.5}, "mlp_dim", 120), ({"in_chans": 5}, "in_channels", 5),
    ({"pre_norm": True}, "patch_bias", False), ({"act_layer": "gelu_tanh"}, "act", "gelu_tanh"),
    ({"global_pool": "avg", "fc_norm": False}, "norm_after_pool", False),
])
def test_arguments_of_timm(arguments: dict[str, Any], field: str, value: object) -> None:
    theirs = small("vit_tiny_patch16_224", **arguments)
    config = hub_config(theirs)
    ours = minivl.from_state_dict(theirs.state_dict(), config=config)
    assert getattr(ours.config, field) == value
    images = images_for(theirs)
    agree(ours, answers(theirs, images), images)


@pytest.mark.parametrize("arguments, wrong", [
    ({"qk_norm": True}, "qk_norm=True"), ({"pool_include_prefix": True}, "pool_include_prefix"),
    ({"final_norm": False}, "final_norm"), ({"norm_layer": "rmsnorm"}, "norm_layer"),
    ({"proj_bias": False}, "proj_bias"), ({"act_layer": "silu"}, "silu"), ({"global_pool": "map"}, "map"),
    ({"global_pool": ""}, "global_pool=''"), ({"fc_norm": True}, "fc_norm"), ({"block_fn": "x"}, "block_fn"),
])
def test_arguments_that_have_no_field_raise(arguments: dict[str, Any], wrong: str) -> None:
    theirs = small("vit_tiny_patch16_224")
    config = hub_config(theirs)
    config["model_args"].update(arguments)
    config.pop("global_pool")
    assert wrong in refused(theirs.state_dict(), config=config)


def test_classes_and_photos_of_the_description() -> None:
    theirs = small("vit_tiny_patch16_224", num_classes=3)
    config = {**hub_config(theirs), "label_names": ["cat", "dog", "owl"]}
    config["pretrained_cfg"].update(crop_mode="squash", crop_pct=1.0, interpolation="bilinear", tag="mine")
    ours = minivl.from_state_dict(theirs.state_dict(), config=config)
    assert ours.class_names == ("cat", "dog", "owl")
    assert (ours.preprocessing.mode, ours.preprocessing.interpolation) == ("squash", "bilinear")
    config["pretrained_cfg"].update(crop_pct=0.95)
    again = minivl.from_state_dict(theirs.state_dict(), config=config).preprocessing
    assert (again.mode, again.crop_pct, again.size) == ("squash_crop", 0.95, (32, 32))


def test_sizes_of_the_small_models_are_no_presets() -> None:
    """Or what tensors tell and what presets do would be mixed up here."""
    assert not any(preset.config.width == SMALL["embed_dim"] for preset in PRESETS.values()
                   if hasattr(preset.config, "width"))
