"""Google's .npz files as timm's own loader reads them, on files the tests write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from references import refused
from timm_reference import agree, answers, images_for, reference, small
from torch import Tensor, nn

import minivl
from minivl.models.presets import PRESETS

# layout: prefix, numbers of attention, MLP and second norm, where the positions are, whether blocks are stacked
LAYOUTS: dict[str, tuple[str, int, int, int, str, bool]] = {
    "augreg": ("", 1, 3, 2, "Transformer/posembed_input/pos_embedding", False),
    "augreg, whole state": ("opt/target/", 1, 3, 2, "Transformer/posembed_input/pos_embedding", False),
    "big_vision": ("params/", 0, 0, 1, "pos_embedding", False),
    "big_vision, bare": ("", 0, 0, 1, "pos_embedding", False),
    "big_vision, stacked": ("params/", 0, 0, 1, "pos_embedding", True),
}


def arrays(model: nn.Module, layout: str = "augreg") -> dict[str, Tensor]:
    """A timm model's tensors as JAX holds them: kernels (in, out), those of attention (D, h, d) and (h, d, D)."""
    prefix, attention, mlp, norm, positions, stacked = LAYOUTS[layout]
    heads, width = model.blocks[0].attn.num_heads, model.embed_dim
    named = {"embedding/kernel": model.patch_embed.proj.weight.permute(2, 3, 1, 0),
             "embedding/bias": model.patch_embed.proj.bias, positions: model.pos_embed}
    if model.cls_token is not None:
        named["cls"] = model.cls_token
    for name, jax in (("norm", "Transformer/encoder_norm"), ("head", "head")):
        module = getattr(model, name)
        if isinstance(module, nn.LayerNorm):
            named.update({f"{jax}/scale": module.weight, f"{jax}/bias": module.bias})
        elif isinstance(module, nn.Linear):
            named.update({f"{jax}/kernel": module.weight.T, f"{jax}/bias": module.bias})
    blocks = []
    for block in model.blocks:
        one = {}
        for number, module in ((0, block.norm1), (norm, block.norm2)):
            one.update({f"LayerNorm_{number}/scale": module.weight, f"LayerNorm_{number}/bias": module.bias})
        for number, module in enumerate((block.mlp.fc1, block.mlp.fc2)):
            one.update({f"MlpBlock_{mlp}/Dense_{number}/kernel": module.weight.T,
                        f"MlpBlock_{mlp}/Dense_{number}/bias": module.bias})
        heart = f"MultiHeadDotProductAttention_{attention}"
        for number, word in enumerate(("query", "key", "value")):
            one[f"{heart}/{word}/kernel"] = block.attn.qkv.weight.chunk(3)[number].T.unflatten(1, (heads, -1))
            one[f"{heart}/{word}/bias"] = block.attn.qkv.bias.chunk(3)[number].unflatten(0, (heads, -1))
        one[f"{heart}/out/kernel"] = block.attn.proj.weight.T.unflatten(0, (heads, width // heads))
        one[f"{heart}/out/bias"] = block.attn.proj.bias
        blocks.append(one)
    if stacked:
        named.update({f"Transformer/encoderblock/{name}": torch.stack([one[name] for one in blocks])
                      for name in blocks[0]})
    else:
        named.update({f"Transformer/encoderblock_{i}/{name}": tensor for i, one in enumerate(blocks)
                      for name, tensor in one.items()})
    return {prefix + name: tensor.detach().contiguous() for name, tensor in named.items()}


def by_timm(state: dict[str, Tensor], folder: Path, arch: str, **arguments: Any) -> nn.Module:
    """timm's model of that size with the file in it."""
    np.savez(folder / "weights.npz", **{name: tensor.numpy() for name, tensor in state.items()})
    model = small(arch, **arguments)
    model.load_pretrained(str(folder / "weights.npz"))
    return model


def arch_of(layout: str) -> str:
    """big_vision adds no position to the [class] token, as FlexiViT's models of timm do not."""
    return "flexivit_small" if layout.startswith("big_vision") else "vit_tiny_patch16_224"


# -- equality ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("changes", [{}, {"num_classes": 21843}, {"num_classes": 0}, {"num_heads": 6}])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_equal_to_timms_loader(layout: str, changes: dict[str, Any], tmp_path: Path) -> None:
    state = arrays(small(arch_of(layout), **changes), layout)
    theirs = by_timm(state, tmp_path, arch_of(layout), **changes)
    done, images = minivl.loading.convert(state), images_for(theirs)
    numbers = agree(done.model, answers(theirs, images), images)
    print(f"npz {layout} {changes}: logits {numbers[0]:.1e}, attention {numbers[1]:.1e}")
    config = done.model.config
    assert (done.family, config.num_heads, config.eps, config.resize) == (
        "npz", changes.get("num_heads", 3), 1e-6, "timm_npz")
    assert len(done.receipt.used) == len(state) and done.model.preprocessing is None


@pytest.mark.parametrize("layout", ["augreg", "big_vision"])
def test_a_mean_without_a_class_token(layout: str, tmp_path: Path) -> None:
    changes = {"global_pool": "avg", "fc_norm": False, "class_token": False}
    state = arrays(small(arch_of(layout), **changes), layout)
    theirs = by_timm(state, tmp_path, arch_of(layout), **changes)
    images = images_for(theirs)
    told = {"class_token": False, "pool": "mean"} if layout == "big_vision" else {}
    agree(minivl.from_state_dict(state, config=told), answers(theirs, images), images)
    if layout == "big_vision":  # as if the token were lost
        assert "1 missing: params/cls" in refused(state)


@pytest.mark.parametrize("grid", [(5, 5), (3, 6), (7, 2)])
@pytest.mark.parametrize("layout", ["augreg", "big_vision"])
def test_other_image_sizes_as_timms_loader_resizes(layout: str, grid: tuple[int, int], tmp_path: Path) -> None:
    state = arrays(small(arch_of(layout)), layout)
    size = (8 * grid[0], 8 * grid[1])
    theirs = by_timm(state, tmp_path, arch_of(layout), img_size=size)
    ours = minivl.from_state_dict(state)
    ours.resize(size)
    images = images_for(theirs)
    agree(ours, answers(theirs, images), images)


def test_what_timm_leaves_out_is_dropped_by_rule(tmp_path: Path) -> None:
    state = {**arrays(small("vit_tiny_patch16_224"), "augreg, whole state"),
             "opt/target/pre_logits/kernel": torch.randn(48, 48), "opt/target/pre_logits/bias": torch.randn(48),
             "opt/state/step": torch.tensor(7)}
    theirs = by_timm(state, tmp_path, "vit_tiny_patch16_224")
    done, images = minivl.loading.convert(state), images_for(theirs)
    agree(done.model, answers(theirs, images), images)
    assert set(done.receipt.dropped) == {"opt/target/pre_logits/kernel", "opt/target/pre_logits/bias", "opt/state/step"}


def test_bf16() -> None:
    theirs = small("vit_tiny_patch16_224").bfloat16()
    ours, images = minivl.from_state_dict(arrays(theirs)), images_for(theirs).bfloat16()
    with torch.no_grad():
        mine, logits = ours(images), theirs(images)
    assert mine.dtype == torch.bfloat16 and (mine - logits).float().norm() / logits.float().norm() < 0.05


# -- published sizes -------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["vit_tiny_patch16_224.augreg_in21k", "vit_base_patch32_384.augreg_in1k",
                                  "vit_large_patch32_384.orig_in21k_ft_in1k"])
def test_a_published_size_needs_no_name(name: str) -> None:
    with torch.device("meta"):
        model = minivl.from_state_dict(arrays(timm.create_model(name)))
    preset = PRESETS[name]
    assert model.preprocessing == preset.preprocessing and model.config.num_classes == preset.config.num_classes
    assert {**vars(model.config), "resize": "timm"} == vars(preset.config)


@pytest.mark.slow
@pytest.mark.parametrize("name, layout", [("vit_base_patch16_224.augreg_in21k", "augreg"),
                                          ("flexivit_base.1200ep_in1k", "big_vision, stacked")])
def test_base_size(name: str, layout: str, tmp_path: Path) -> None:
    state = arrays(reference(name, scale=PRESETS[name].config.width ** -0.5), layout)
    np.savez(tmp_path / "weights.npz", **{key: tensor.numpy() for key, tensor in state.items()})
    theirs = reference(name, scale=0.1)
    theirs.load_pretrained(str(tmp_path / "weights.npz"))
    images = images_for(theirs, 1)
    numbers = agree(minivl.from_state_dict(state), answers(theirs, images), images)
    print(f"npz {name}: logits {numbers[0]:.1e}, attention {numbers[1]:.1e}")


# -- strictness ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_tensor_is_needed_as_it_is(layout: str) -> None:
    state = arrays(small(arch_of(layout), depth=2, mlp_ratio=3), layout)
    told = {"image_size": 32, "patch_size": 8, "in_channels": 3}
    minivl.from_state_dict(state, config=told)
    for name, tensor in state.items():
        message = refused({key: value for key, value in state.items() if key != name}, config=told)
        assert f"1 missing: {name}" in message and ";" not in message, message
        message = refused({**state, name: tensor.double()}, config=told)
        assert f"1 of another type: {name} torch.float64" in message and ";" not in message, message
        if tensor.ndim > 1 and tensor.shape[-1] != tensor.shape[-2] and not name.endswith("embedding/kernel"):
            message = refused({**state, name: tensor.mT.contiguous()}, config=told)
            assert f"1 of another shape: {name} " in message and ";" not in message, message


def test_a_convolution_in_another_order_is_refused() -> None:
    state = arrays(small("vit_tiny_patch16_224"))
    for order in ((0, 1, 3, 2), (3, 2, 0, 1), (2, 3, 0, 1)):
        assert "embedding/kernel" in refused({**state, "embedding/kernel": state["embedding/kernel"].permute(order)})


def test_a_tensor_of_another_layout_is_named() -> None:
    state = arrays(small("vit_tiny_patch16_224"))
    for name in ("opt/target/cls", "pos_embedding", "MAPHead_0/probe", "Transformer/encoderblock_0/LayerNorm_1/scale"):
        message = refused({**state, name: torch.zeros(3)})
        assert f"1 unexpected: {name}" in message and ";" not in message, message
