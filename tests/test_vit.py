"""The ViT equals timm's, number for number: logits, features, attention, published sizes, preprocessing."""

from __future__ import annotations

import pytest
import timm
import torch
from random_models import randomise
from torch import Tensor, nn

import minivl
from minivl import InputError
from minivl.models.vit import ViT, ViTConfig

# timm's name, arguments of its create_model, side of the picture
MODELS = {
    "vit_tiny": ("vit_tiny_patch16_224", {"img_size": 64, "num_classes": 17}, 64),
    "vit_small": ("vit_small_patch32_224", {"depth": 3}, 224),
    "gap": ("vit_tiny_patch16_224", {"img_size": 64, "global_pool": "avg", "num_classes": 9, "depth": 4}, 64),
    "deit_tiny": ("deit_tiny_patch16_224", {"img_size": (48, 80), "depth": 5}, (48, 80)),
    "no_token": ("vit_tiny_patch16_224", {"img_size": 64, "global_pool": "avg", "class_token": False,
                                          "num_classes": 9, "depth": 3}, 64),
    "no_bias": ("vit_tiny_patch16_224", {"img_size": 64, "qkv_bias": False, "depth": 3}, 64),
}


def pair(case: str, seed: int = 0, **changes: object) -> tuple[nn.Module, ViT, Tensor]:
    """timm's model, ours from its tensors, and pictures."""
    name, arguments, size = MODELS[case]
    height, width = (size, size) if isinstance(size, int) else size
    theirs = randomise(timm.create_model(name, **{**arguments, **changes}), seed, scale=0.1)
    ours = minivl.from_state_dict(theirs.state_dict(), config={
        "num_heads": theirs.blocks[0].attn.num_heads, "image_size": (height, width)})
    return theirs, ours, torch.randn(3, 3, height, width, generator=torch.Generator().manual_seed(seed + 1))


@pytest.mark.parametrize("case", MODELS)
@torch.no_grad()
def test_features_and_logits_equal_timm(case: str) -> None:
    theirs, ours, images = pair(case)
    expected = theirs.forward_features(images)
    torch.testing.assert_close(ours.encode(images), expected, atol=1e-5, rtol=1e-5)
    logits = theirs(images)
    assert logits.std() > 0.1 and (logits[0] - logits[1]).abs().max() > 1e-2  # not a trivial comparison
    torch.testing.assert_close(ours(images), logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", ["vit_tiny", "gap"])
@torch.no_grad()
def test_without_a_head_it_gives_timms_pooled_features(case: str) -> None:
    theirs, ours, images = pair(case, num_classes=0)
    assert ours.config.num_classes == 0 and ours(images).shape == (3, 192)
    torch.testing.assert_close(ours(images), theirs(images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", ["vit_tiny", "gap", "deit_tiny", "no_bias"])
@torch.no_grad()
def test_attention_equals_the_softmax_of_timms_own_qkv(case: str) -> None:
    theirs, ours, images = pair(case, seed=5)
    inputs: list[Tensor] = []
    hooks = [block.attn.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
             for block in theirs.blocks]
    theirs(images)
    for hook in hooks:
        hook.remove()
    expected = []
    for block, x in zip(theirs.blocks, inputs):
        attn = block.attn
        q, k, _ = attn.qkv(x).reshape(*x.shape[:2], 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
        expected.append(((q @ k.mT) / q.shape[-1] ** 0.5).softmax(-1))  # (B, h, N, N)
    everything, chosen = minivl.AttnRecord(), minivl.AttnRecord(layers=[0, -1], queries=[3, 0], heads=[2, 0])
    logits = ours(images)
    assert torch.equal(ours(images, attn=everything), logits)
    ours(images, attn=chosen)
    assert len(everything) == len(expected)
    for layer, weights in enumerate(expected):
        torch.testing.assert_close(everything["encoder", layer], weights, atol=1e-6, rtol=0)
    assert (expected[0] - expected[1]).abs().max() > 1e-3 and expected[0].std() > 1e-4
    for layer in (0, -1):
        torch.testing.assert_close(chosen["encoder", layer], expected[layer][:, [2, 0]][:, :, [3, 0]],
                                   atol=1e-6, rtol=0)


def test_class_row_by_name_and_its_absence() -> None:
    _, ours, images = pair("vit_tiny")
    record, whole = minivl.AttnRecord(queries="class", layers=[1]), minivl.AttnRecord(layers=[1])
    ours(images, attn=record)
    ours(images, attn=whole)
    torch.testing.assert_close(record["encoder", 1], whole["encoder", 1][:, :, :1], atol=1e-6, rtol=0)
    _, without, images = pair("no_token")
    with pytest.raises(minivl.InputError, match="class"):
        without(images, attn=minivl.AttnRecord(queries="class"))


@pytest.mark.parametrize("shape", [(1, 3, 64, 48), (1, 3, 48, 64), (1, 1, 64, 64), (3, 64, 64)])
def test_other_pictures_are_refused(shape: tuple[int, ...]) -> None:
    model = minivl.create("vit_tiny_patch16_224", image_size=64, depth=1)
    with pytest.raises(minivl.InputError, match="64, 64"):
        model(torch.zeros(shape))
    with pytest.raises(minivl.InputError):
        model.encode(torch.zeros(shape))


@pytest.mark.parametrize("changes, message", [
    ({"image_size": 225}, "225"), ({"image_size": (224, 0)}, "image"), ({"patch_size": "16"}, "patch_size"),
    ({"pool": "max"}, "max"), ({"class_token": False}, "class_token"), ({"num_heads": 5}, "5"),
    ({"act": "swish"}, "swish"), ({"depth": 0}, "depth"), ({"depth": -1}, "depth"), ({"width": 0}, "width"),
    ({"num_classes": -1}, "num_classes"), ({"mlp_dim": 2.5}, "mlp_dim"), ({"heads": 3}, "heads"),
])
def test_impossible_sizes_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(minivl.InputError, match=message):
        minivl.create("vit_tiny_patch16_224", **changes)


def test_config_takes_numbers_for_squares_and_derives_the_rest() -> None:
    config = ViTConfig((96, 32), 16, 8, 1, 2, 16)
    assert config.patch_size == (16, 16) and config.grid == (6, 2) and config.n_tokens == 13
    assert ViTConfig([96, 32], 16, 8, 1, 2, 16, class_token=False, pool="mean").n_tokens == 12
    assert ViT(config).attn_sites == {"encoder": (1, 2)}


def test_dropout_acts_in_training_only() -> None:
    model = randomise(minivl.create("vit_tiny_patch16_224", image_size=32, depth=2, dropout=0.5))
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(images), model(images))
    model.train()
    assert not torch.equal(model(images), model(images))


def test_inputs_of_the_wrong_kind_are_told_so() -> None:
    model = randomise(minivl.create("vit_tiny_patch16_224", image_size=32, depth=1)).eval()
    images = torch.rand(1, 3, 32, 32)
    for wrong, match in ((images.numpy(), "ndarray"), (images.half(), "float16"), ((images * 255).byte(), "uint8")):
        with pytest.raises(InputError, match=match):
            model(wrong)
    with pytest.raises(InputError, match="AttnRecord"):
        model(images, attn=True)  # type: ignore[arg-type]
    with torch.autocast("cpu", torch.bfloat16):
        assert model(images.bfloat16()).isfinite().all()


@pytest.mark.parametrize(("field", "value"), [("eps", "x"), ("eps", 0), ("dropout", 1.0), ("attn_dropout", -1)])
def test_rates_out_of_range(field: str, value: object) -> None:
    with pytest.raises(InputError, match=field):
        minivl.create("vit_tiny_patch16_224", image_size=32, depth=1, **{field: value})
