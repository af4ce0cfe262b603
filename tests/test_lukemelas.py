"""PyTorch-Pretrained-ViT 0.0.7, number for number."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_pretrained_vit
import torch
from pytorch_pretrained_vit.configs import PRETRAINED_MODELS
from pytorch_pretrained_vit.utils import load_pretrained_weights
from random_models import randomise
from references import refused
from timm_reference import agree
from torch import Tensor, nn

import minivl
from minivl.images import Preprocessing
from minivl.models.presets import PRESETS

SMALL = {"patches": (8, 8), "dim": 48, "ff_dim": 80, "num_heads": 3, "num_layers": 3, "representation_size": 20}
HEADS = {"num_heads": 3}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Callable[..., nn.Module]:
    """Makes random models of three blocks of 48 channels for 4 x 4 patches; without a name, which is the way the
    library documents, its constructor fails."""
    config = {**PRETRAINED_MODELS["B_16"]["config"], **SMALL}
    monkeypatch.setitem(PRETRAINED_MODELS, "tiny", {"config": config, "num_classes": 7, "image_size": (32, 32)})
    return lambda **arguments: randomise(pytorch_pretrained_vit.ViT("tiny", **arguments), scale=0.15)


@torch.no_grad()
def answers(model: nn.Module, images: Tensor) -> tuple[Tensor, None, list[Tensor]]:
    """Logits, and the attention that the library keeps of every block."""
    logits = model(images)
    return logits, None, [block.attn.scores for block in model.transformer.blocks]


def images_for(model: nn.Module, count: int = 2) -> Tensor:
    height, width = model.image_size if isinstance(model.image_size, tuple) else (model.image_size,) * 2
    channels = model.patch_embedding.in_channels
    return torch.randn(count, channels, height, width, generator=torch.Generator().manual_seed(5))


# -- equality ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("arguments", [{}, {"num_classes": 21843}, {"in_channels": 1}, {"image_size": (40, 24)},
                                       {"image_size": 48}])
def test_equal_to_the_library(arguments: dict[str, Any], small: Callable[..., nn.Module]) -> None:
    theirs = small(**arguments)
    size = {"image_size": arguments["image_size"]} if "image_size" in arguments else {}
    ours = minivl.from_state_dict(theirs.state_dict(), config={**HEADS, **size})
    images = images_for(theirs)
    numbers = agree(ours, answers(theirs, images), images)
    print(f"lukemelas {arguments}: logits {numbers[0]:.1e}, attention {numbers[1]:.1e}")
    assert ours.preprocessing == Preprocessing(ours.config.image_size, (.5,) * 3, (.5,) * 3, 1.0, "squash", "bilinear")
    assert (ours.config.eps, ours.config.act, ours.config.resize) == (1e-6, "gelu", "lukemelas")


@pytest.mark.slow
@pytest.mark.parametrize("name, side", [("B_16", 224), ("B_32_imagenet1k", 384), ("L_16", 384),
                                        ("L_32_imagenet1k", 224)])
def test_base_size(name: str, side: int) -> None:
    theirs = randomise(pytorch_pretrained_vit.ViT(name, image_size=side), scale=0.03)
    ours = minivl.from_state_dict(theirs.state_dict())
    images = images_for(theirs, 1)
    numbers = agree(ours, answers(theirs, images), images)
    print(f"lukemelas {name} at {side}: logits {numbers[0]:.1e}, attention {numbers[1]:.1e}")


def test_without_a_head(small: Callable[..., nn.Module]) -> None:
    theirs = small()
    state = {name: tensor for name, tensor in theirs.state_dict().items() if not name.startswith("fc.")}
    ours, images = minivl.from_state_dict(state, config=HEADS), images_for(theirs)
    theirs.fc = nn.Identity()
    agree(ours, answers(theirs, images), images)


@pytest.mark.parametrize("side", [16, 24, 40, 64])
def test_other_image_sizes_as_its_loader_resizes(side: int, small: Callable[..., nn.Module], tmp_path: Path) -> None:
    theirs = small()
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    ours = minivl.from_state_dict(theirs.state_dict(), config=HEADS)
    ours.resize(side)
    resized = small(image_size=side)
    load_pretrained_weights(resized, weights_path=tmp_path / "weights.pth", resize_positional_embedding=True,
                            verbose=False)
    images = images_for(resized)
    agree(ours, answers(resized, images), images)


def test_the_representation_layer_is_left_out_as_its_loader_does(small: Callable[..., nn.Module],
                                                                 tmp_path: Path) -> None:
    theirs = small()
    state = {**theirs.state_dict(), "pre_logits.weight": torch.randn(20, 48), "pre_logits.bias": torch.randn(20)}
    torch.save(state, tmp_path / "weights.pth")
    done = minivl.loading.convert(state, config=HEADS)
    assert set(done.receipt.dropped) == {"pre_logits.weight", "pre_logits.bias"}
    assert len(done.receipt.used) == len(theirs.state_dict()) and done.family == "lukemelas"
    again = small()
    # strict, its loader wants to miss what it has just left out
    load_pretrained_weights(again, weights_path=tmp_path / "weights.pth", strict=False, verbose=False)
    images = images_for(theirs)
    agree(done.model, answers(again, images), images)


def test_bf16(small: Callable[..., nn.Module]) -> None:
    theirs = small().bfloat16()
    ours, images = minivl.from_state_dict(theirs.state_dict(), config=HEADS), images_for(theirs).bfloat16()
    with torch.no_grad():
        mine, logits = ours(images), theirs(images)
    assert mine.dtype == torch.bfloat16 and (mine - logits).float().norm() / logits.float().norm() < 0.05


# -- names -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", PRETRAINED_MODELS)
def test_presets_are_the_librarys(name: str) -> None:
    preset, published = PRESETS[name], PRETRAINED_MODELS[name]
    config, theirs = preset.config, published["config"]
    assert (config.width, config.depth, config.num_heads, config.mlp_dim) == (
        theirs["dim"], theirs["num_layers"], theirs["num_heads"], theirs["ff_dim"])
    assert (config.patch_size, config.image_size, config.num_classes) == (
        theirs["patches"], published["image_size"], published["num_classes"])
    with torch.device("meta"):
        state = pytorch_pretrained_vit.ViT(name).state_dict()
        done = minivl.loading.convert(state, name=f"{name}.pth")
    assert (done.model.config, done.preset) == (config, name)
    assert done.model.preprocessing == preset.preprocessing


# -- strictness ------------------------------------------------------------------------------------------------

def test_each_tensor_is_needed_as_it_is(small: Callable[..., nn.Module]) -> None:
    state = dict(small(num_classes=5).state_dict())
    told = {**HEADS, "image_size": 32, "patch_size": 8, "in_channels": 3}
    minivl.from_state_dict(state, config=told)
    for name, tensor in state.items():
        message = refused({key: value for key, value in state.items() if key != name}, config=told)
        assert f"1 missing: {name}" in message and ";" not in message, message
        if tensor.ndim > 1 and tensor.shape[-1] != tensor.shape[-2]:
            message = refused({**state, name: tensor.mT.contiguous()}, config=told)
            assert f"1 of another shape: {name} " in message and ";" not in message, message
        message = refused({**state, name: tensor.half()}, config=told)
        assert f"1 of another type: {name} torch.float16" in message and ";" not in message, message
    for name in ("head.weight", "transformer.blocks.0.attn.proj_o.weight", "class_token.bias"):
        message = refused({**state, name: torch.zeros(3)}, config=told)
        assert f"1 unexpected: {name}" in message and ";" not in message, message


def test_unknown_shapes_need_heads(small: Callable[..., nn.Module]) -> None:
    assert "num_heads" in refused(small().state_dict())
