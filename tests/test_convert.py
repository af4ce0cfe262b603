"""Foreign weights: strict, never guessed, and the real DeiT-tiny to the last photo."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from random_models import randomise
from safetensors.torch import load_file, save_file
from timm.data import create_transform
from timm.models._hub import save_config_for_hf
from torch import Tensor, nn

import minivl
from minivl.images import Preprocessing, open_photo
from minivl.models.presets import PRESETS

TINY = {"vit_tiny_patch16_224", "deit_tiny_patch16_224"}


@pytest.fixture(scope="module")
def tiny() -> nn.Module:
    return randomise(timm.create_model("deit_tiny_patch16_224"), scale=0.05)


def small(**arguments: object) -> dict[str, Tensor]:
    """A timm state dict that no preset has the shapes of."""
    sizes = {"img_size": 64, "depth": 2, "num_classes": 7, **arguments}
    return dict(randomise(timm.create_model("vit_tiny_patch16_224", **sizes)).state_dict())


def refused(state: dict[str, Tensor], **arguments: object) -> str:
    with pytest.raises(minivl.InputError) as caught:
        minivl.from_state_dict(state, **arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


# -- strictness ----------------------------------------------------------------------------------------------

def test_every_problem_is_in_one_error(tiny: nn.Module) -> None:
    state = dict(tiny.state_dict())
    dropped = ["norm.bias", "blocks.3.attn.qkv.bias", "blocks.0.mlp.fc1.weight"]
    added = ["dist_token", "head_dist.weight", "blocks.12x.norm1.weight", "blocks.5.ls1.gamma", "norm.scale"]
    for name in dropped:
        del state[name]
    state.update({name: torch.zeros(3) for name in added})
    state["blocks.7.mlp.fc2.weight"] = state["blocks.7.mlp.fc2.weight"].T
    state["blocks.8.attn.qkv.weight"] = state["blocks.8.attn.qkv.weight"].T
    state["head.weight"] = state["head.weight"].T
    message = refused(state, name="deit_tiny_patch16_224")
    missing, rest = message.split("unexpected:")
    unexpected, shapes = rest.split("of another shape:")
    assert "3 missing" in missing and all(name in missing for name in dropped)
    assert "5 " in missing[-5:] and all(name in unexpected for name in added)
    assert "blocks.7.mlp.fc2.weight (768, 192) instead of (192, 768)" in shapes
    assert "blocks.8.attn.qkv.weight (192, 576) instead of (576, 192)" in shapes
    assert "head.weight (192, 1000) instead of (1000, 192)" in shapes
    assert "q_proj" not in message  # the names are those of the file


def names_of_a_timm_vit() -> list[str]:
    with torch.device("meta"):
        return list(timm.create_model("vit_tiny_patch16_224", depth=2).state_dict())


@pytest.mark.parametrize("name", names_of_a_timm_vit())
def test_each_tensor_is_needed_as_it_is(name: str) -> None:
    """Whichever is dropped or transposed, the error names it; nothing that is right is blamed."""
    whole, config = small(), {"num_heads": 3, "image_size": 64, "patch_size": 16, "in_channels": 3}
    state = {key: value for key, value in whole.items() if key != name}
    message = refused(state, config=config)
    assert "1 missing" in message and message.rstrip().endswith(name), message
    assert "unexpected" not in message and "shape" not in message
    state[name] = whole[name].mT if whole[name].ndim > 1 else torch.cat([whole[name], whole[name][:1]])
    if state[name].shape != whole[name].shape:
        message = refused(state, config=config)
        # of a head's two tensors either may be the odd one
        assert f"1 of another shape: {'head.' if name == 'head.bias' else name} "[:-1] in message, message
        assert "missing" not in message and "unexpected" not in message


def test_a_block_too_many_or_too_few(tiny: nn.Module) -> None:
    state = dict(tiny.state_dict())
    block = {key: value for key, value in state.items() if key.startswith("blocks.11.")}
    more = {**state, **{key.replace(".11.", ".12."): value for key, value in block.items()}}
    fewer = {key: value for key, value in state.items() if key not in block}
    for wrong in (more, fewer):
        assert "shapes" in refused(wrong, name="deit_tiny_patch16_224")
        assert "num_heads" in refused(wrong)
        assert minivl.from_state_dict(wrong, config={"num_heads": 3}).config.depth in (11, 13)


def test_whole_numbers_are_no_weights() -> None:
    state = small()
    state["norm.bias"] = state["norm.bias"].to(torch.int8)
    assert "norm.bias torch.int8 instead of torch.float32" in refused(state, config={"num_heads": 3})


@pytest.mark.parametrize("state", [{}, {"model": {}}, {"conv1.weight": torch.zeros(3)},
                                   {"blocks.0.attn.qkv.weight": torch.zeros(())}])
def test_other_tensors_are_refused(state: dict[str, Tensor]) -> None:
    refused(state)
    refused(state, name="vit_tiny_patch16_224")
    refused(state, family="timm")
    assert "timm" in refused(state, family="tim")


# -- what a file cannot tell ---------------------------------------------------------------------------------

def test_twins_are_not_guessed(tiny: nn.Module) -> None:
    state = tiny.state_dict()
    assert all(name in refused(state) for name in TINY)
    assert all(name in refused(state, name="my_model.safetensors") for name in TINY)
    assert all(name in refused(state, config={"eps": 1e-5}) for name in TINY)
    for name in TINY:
        for given in (name, f"{name}.safetensors", f"{name}.fb_in1k.safetensors", f"{name}-mine"):
            model = minivl.from_state_dict(state, name=given)
            assert model.config == PRESETS[name].config and model.preprocessing == PRESETS[name].preprocessing


def test_a_file_stem_decides(tiny: nn.Module, tmp_path: Path) -> None:
    state = {key: value.clone() for key, value in tiny.state_dict().items()}
    for stem, mean in (("vit_tiny_patch16_224", 0.5), ("deit_tiny_patch16_224.timm", 0.485)):
        save_file(state, tmp_path / f"{stem}.safetensors")
        model = minivl.load(tmp_path / f"{stem}.safetensors")
        assert model.preprocessing.mean[0] == mean and not model.training
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(minivl.InputError, match="deit_tiny_patch16_224") as caught:
        minivl.load(tmp_path / "model.safetensors")
    assert str(caught.value).startswith(str(tmp_path / "model.safetensors"))
    (tmp_path / "model.safetensors").rename(tmp_path / "vit_small_patch16_224.safetensors")
    with pytest.raises(minivl.InputError, match="is named vit_small_patch16_224.*other shapes.*vit_tiny"):
        minivl.load(tmp_path / "vit_small_patch16_224.safetensors")


def test_the_one_preset_that_fits_needs_no_name() -> None:
    with torch.device("meta"):
        state = timm.create_model("vit_large_patch16_384").state_dict()
        model = minivl.from_state_dict(state)
    assert model.config == PRESETS["vit_large_patch16_384"].config
    assert model.preprocessing == PRESETS["vit_large_patch16_384"].preprocessing
    with torch.device("meta"):  # DINO's ViT-B/8 has the shapes of the supervised one
        refused(timm.create_model("vit_base_patch8_224.dino").state_dict())


def test_unknown_shapes_need_heads_and_have_no_preprocessing() -> None:
    state = small()
    assert "num_heads" in refused(state)
    model = minivl.from_state_dict(state, config={"num_heads": 3, "act": "relu", "eps": 1e-5})
    assert (model.config.num_heads, model.config.act, model.config.eps) == (3, "relu", 1e-5)
    assert model.preprocessing is None and model(torch.randn(1, 3, 64, 64)).shape == (1, 7)
    with pytest.raises(minivl.InputError, match="preprocessing"):
        minivl.preprocess([], model)


def test_our_fields_win_over_a_name(tiny: nn.Module) -> None:
    model = minivl.from_state_dict(tiny.state_dict(), name="deit_tiny_patch16_224", config={"eps": 1e-3})
    assert model.config.eps == 1e-3 and model.preprocessing == PRESETS["deit_tiny_patch16_224"].preprocessing
    images = torch.randn(1, 3, 224, 224)
    other = minivl.from_state_dict(tiny.state_dict(), name="deit_tiny_patch16_224")
    assert not torch.allclose(model(images), other(images), atol=1e-5)  # the field is used, not only noted


@pytest.mark.parametrize("config, wrong", [
    ({"width": 384}, "width"), ({"depth": 11}, "depth"), ({"mlp_dim": 192}, "mlp_dim"),
    ({"num_classes": 10}, "num_classes"), ({"patch_size": 8}, "patch_size"), ({"in_channels": 1}, "in_ch"),
    ({"class_token": False}, "class_token"), ({"qkv_bias": False}, "12 unexpected: blocks.0.attn.qkv.bias"),
    ({"pool": "mean", "norm_after_pool": True}, "norm_after_pool"), ({"pool": "max"}, "max"),
    ({"registers": 2}, "1 missing: reg_token"), ({"layer_scale": True}, "24 missing: blocks.0.ls1.gamma"),
    ({"image_size": 384}, "pos_embed"), ({"image_size": (224, 208)}, "pos_embed"),
    ({"num_heads": 5}, "num_heads"), ({"hidden_size": 192}, "hidden_size"),
])
def test_a_contradicting_field_raises(config: dict[str, object], wrong: str, tiny: nn.Module) -> None:
    assert wrong in refused(tiny.state_dict(), config=config, name="deit_tiny_patch16_224")


@pytest.mark.parametrize("pooled", [{"pool": "mean"}, {"pool": "mean", "norm_after_pool": False}])
def test_a_mean_of_normed_tokens_comes_from_the_caller(pooled: dict[str, object]) -> None:
    """Its keys are those of a [class] token's model: without a word it is taken for one."""
    theirs = timm.create_model("deit_tiny_patch16_224", depth=3, global_pool="avg", fc_norm=False)
    randomise(theirs, scale=0.05)
    images = torch.randn(2, 3, 224, 224)
    state, heads = theirs.state_dict(), {"num_heads": 3}
    model = minivl.from_state_dict(state, config={**heads, **pooled})
    assert not model.config.norm_after_pool and isinstance(model.norm, nn.LayerNorm)
    torch.testing.assert_close(model(images), theirs(images), atol=1e-5, rtol=1e-5)
    other = minivl.from_state_dict(state, config=heads)
    assert other.config.pool == "class" and not torch.allclose(other(images), theirs(images), atol=1e-3)


def test_agreeing_fields_are_accepted(tiny: nn.Module) -> None:
    config = {"image_size": 224, "patch_size": [16, 16], "width": 192, "num_heads": 3, "num_classes": 1000}
    model = minivl.from_state_dict(tiny.state_dict(), config=config)
    assert model.config == PRESETS["deit_tiny_patch16_224"].config


@pytest.mark.parametrize("size", [(32, 96), (32, 128)])  # 2 x 6 patches, and 2 x 8: as many as 4 x 4
def test_oblong_grids_come_from_the_caller(size: tuple[int, int]) -> None:
    theirs = randomise(timm.create_model("vit_tiny_patch16_224", img_size=size, depth=2, num_classes=7))
    state = theirs.state_dict()
    if size == (32, 96):
        assert "image_size" in refused(state, config={"num_heads": 3})
    model = minivl.from_state_dict(state, config={"num_heads": 3, "image_size": size})
    images = torch.randn(2, 3, *size)
    torch.testing.assert_close(model(images), theirs(images), atol=1e-5, rtol=1e-5)


# -- timm's own description ----------------------------------------------------------------------------------

def hub_config(model: nn.Module, folder: Path) -> dict[str, object]:
    """What timm writes beside its weights on the hub."""
    save_config_for_hf(model, str(folder / "config.json"))
    return json.loads((folder / "config.json").read_text())


def test_timms_config_json_decides(tmp_path: Path) -> None:
    theirs = timm.create_model("deit_tiny_patch16_224", num_classes=5, global_pool="avg")
    randomise(theirs, scale=0.05)
    theirs.pretrained_cfg = {**theirs.pretrained_cfg, "mean": (0.1, 0.2, 0.3), "crop_pct": 0.95,
                             "interpolation": "bilinear"}
    config = hub_config(theirs, tmp_path)
    for given in (config, {**config, "model_args": {}}, {**theirs.pretrained_cfg, "num_classes": 5}):
        model = minivl.from_state_dict(theirs.state_dict(), config=given)
        assert (model.config.num_heads, model.config.pool, model.config.num_classes) == (3, "mean", 5)
        assert model.preprocessing == Preprocessing((224, 224), (0.1, 0.2, 0.3), (0.229, 0.224, 0.225),
                                                    crop_pct=0.95, interpolation="bilinear")
    images = torch.randn(2, 3, 224, 224)
    torch.testing.assert_close(model(images), theirs(images), atol=1e-5, rtol=1e-5)


def test_timms_config_json_of_another_size(tmp_path: Path) -> None:
    theirs = timm.create_model("vit_tiny_patch16_224", img_size=96)
    config = hub_config(theirs, tmp_path)
    model = minivl.from_state_dict(theirs.state_dict(), config=config)
    assert model.config.image_size == model.preprocessing.size == (96, 96)


@pytest.mark.parametrize("change, wrong", [
    ({"architecture": "vit_small_patch16_224"}, "width"), ({"architecture": "resnet50"}, "resnet50"),
    ({"num_classes": 10}, "num_classes"), ({"global_pool": "avg"}, "pool"), ({"global_pool": "map"}, "map"),
    ({"model_args": {"act_layer": "silu"}}, "act_layer"), ({"model_args": {"qk_norm": True}}, "qk_norm"),
    ({"model_args": {"init_values": 1e-5}}, "24 missing: blocks.0.ls1.gamma"),
    ({"model_args": {"img_size": 384}}, "pos_embed"),
    ({"pretrained_cfg": {"crop_mode": "border"}}, "border"), ({"pretrained_cfg": {"mean": [0.5]}}, "mean"),
    ({"pretrained_cfg": {"input_size": [3, 384, 384]}, "model_args": {}}, "pos_embed"),
])
def test_timms_config_json_that_contradicts(change: dict[str, object], wrong: str, tiny: nn.Module,
                                            tmp_path: Path) -> None:
    config = {**hub_config(tiny, tmp_path), **change}
    assert wrong in refused(tiny.state_dict(), config=config)


# -- the source stays ----------------------------------------------------------------------------------------

def test_the_source_is_neither_changed_nor_shared() -> None:
    state = small()
    before = {key: value.clone() for key, value in state.items()}
    first, second = (minivl.from_state_dict(state, config={"num_heads": 3}) for _ in range(2))
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(1.0)
    assert list(state) == list(before) and all(torch.equal(state[key], before[key]) for key in before)
    assert all((a - b).abs().min() > 0.5 for a, b in zip(first.parameters(), second.parameters()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtypes_are_kept(dtype: torch.dtype) -> None:
    state = {key: value.to(dtype) for key, value in small().items()}
    model = minivl.from_state_dict(state, config={"num_heads": 3})
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in model.parameters())
    keys = state["blocks.1.attn.qkv.weight"][192:384]
    assert torch.equal(model.state_dict()["blocks.1.attn.k_proj.weight"], keys)


def test_parameters_will_do_as_tensors() -> None:
    theirs = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2)
    model = minivl.from_state_dict(dict(theirs.named_parameters()), config={"num_heads": 3})
    model(torch.randn(1, 3, 64, 64)).sum().backward()
    assert theirs.head.weight.grad is None and model.head.weight.grad is not None


# -- the real DeiT-tiny --------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def real(shared: Path) -> tuple[nn.Module, minivl.loading.ViT]:
    file = shared / "weights" / "deit_tiny_patch16_224.timm.safetensors"
    theirs = timm.create_model("deit_tiny_patch16_224").eval()
    theirs.load_state_dict(load_file(file))
    return theirs, minivl.load(file)


def photos(shared: Path) -> list[Path]:
    return sorted((shared / "data" / "imagenet_sample").glob("*.jpg"), key=label)


def label(photo: Path) -> int:
    """The class index that its name begins with."""
    return int(photo.stem.split("_")[0])


@pytest.mark.shared
@torch.no_grad()
def test_real_weights_on_real_photos(real: tuple[nn.Module, minivl.loading.ViT], shared: Path) -> None:
    theirs, ours = real
    files = photos(shared)[::62][:8]
    images, geometries = minivl.preprocess(files, ours)
    assert images.shape == (8, 3, 224, 224) and len(geometries) == 8
    transform = create_transform(**timm.data.resolve_data_config({}, model=theirs))
    torch.testing.assert_close(images, torch.stack([transform(open_photo(file)) for file in files]),
                               atol=1e-6, rtol=0)
    logits = theirs(images)
    assert len(set(logits.argmax(1).tolist())) > 4
    torch.testing.assert_close(ours(images), logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.encode(images), theirs.forward_features(images), atol=1e-5, rtol=1e-5)


@pytest.mark.shared
@torch.no_grad()
def test_real_attention_is_the_explicit_softmax(real: tuple[nn.Module, minivl.loading.ViT], shared: Path) -> None:
    theirs, ours = real
    images, _ = minivl.preprocess(photos(shared)[:2], ours)
    record = minivl.AttnRecord(queries=[0, 7])
    ours(images, attn=record)
    x = theirs._pos_embed(theirs.patch_embed(images))
    for layer, block in enumerate(theirs.blocks):
        q, k, _ = block.attn.qkv(block.norm1(x)).unflatten(2, (3, 3, 64)).permute(2, 0, 3, 1, 4)
        weights = (q.double() @ k.double().mT / 8).softmax(-1)[:, :, [0, 7]]
        assert (record["encoder", layer] - weights).abs().max() < 1e-6
        x = block(x)


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize(("crop_pct", "expected"), [(0.875, 388), (0.9, 384)])
@torch.no_grad()
def test_imagenet_top1(crop_pct: float, expected: int, real: tuple[nn.Module, minivl.loading.ViT],
                       shared: Path) -> None:
    """500 photos, short side 256 (or timm's 248), centre 224: as many right as timm's model on timm's tensors."""
    theirs, ours = real
    ours.preprocessing = replace(ours.preprocessing, crop_pct=crop_pct)
    transform = create_transform(**{**timm.data.resolve_data_config({}, model=theirs), "crop_pct": crop_pct})
    files = photos(shared)
    labels = torch.tensor([label(file) for file in files])
    right = torch.zeros(2, dtype=torch.long)
    for first in range(0, len(files), 25):
        part = files[first:first + 25]
        images, _ = minivl.preprocess(part, ours)
        theirs_too = torch.stack([transform(open_photo(file)) for file in part])
        for row, (model, batch) in enumerate(((ours, images), (theirs, theirs_too))):
            right[row] += (model(batch).argmax(1) == labels[first:first + 25]).sum()
    print(f"top-1, crop {crop_pct}: ours {right[0]}, timm's {right[1]} of {len(files)}")
    assert len(files) == 500 and right[0] == expected and abs(right[0] - right[1]) <= 1
