"""Reference models of timm, tiny and random, with what converters need of them."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import timm
import torch
from random_models import randomise
from timm.models._hub import save_config_for_hf
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn

import minivl

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "num_heads": 3, "depth": 3, "num_classes": 7}


def reference(arch: str, scale: float = 0.15, **arguments: Any) -> nn.Module:
    """A model of timm that computes its attention openly, every parameter random, in eval mode."""
    model = timm.create_model(arch, **arguments)
    for block in model.blocks:
        block.attn.fused_attn = False
    return randomise(model, scale=scale)


def small(arch: str, **changes: Any) -> nn.Module:
    """That of three blocks of 48 channels for 4 x 4 patches of 8 pixels."""
    return reference(arch, **{**SMALL, **changes})


def hub_config(model: nn.Module) -> dict[str, Any]:
    """What timm writes beside its weights on the hub."""
    with tempfile.TemporaryDirectory() as folder:
        save_config_for_hf(model, str(Path(folder) / "config.json"))
        return json.loads((Path(folder) / "config.json").read_text())


def loaded(model: nn.Module, state: dict[str, Tensor], **options: Any) -> nn.Module:
    """That model with a checkpoint in it, as timm itself would load it: names translated, positions resized."""
    model.load_state_dict(checkpoint_filter_fn(dict(state), model, **options), strict=True)
    return model.eval()


@torch.no_grad()
def answers(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Logits, all tokens, and the attention (B, h, N, N) of every layer of a timm model."""
    attentions: list[Tensor] = []
    hooks = [block.attn.attn_drop.register_forward_hook(lambda _, given, out: attentions.append(out))
             for block in model.blocks]
    logits = model(images)
    for hook in hooks:
        hook.remove()
    return logits, model.forward_features(images), attentions


def images_for(model: nn.Module, count: int = 2) -> Tensor:
    """Random images of the size a timm model takes."""
    generator = torch.Generator().manual_seed(5)
    return torch.randn(count, model.patch_embed.proj.in_channels, *model.patch_embed.img_size, generator=generator)


def agree(ours: minivl.loading.Model, expected: tuple[Tensor, Tensor | None, list[Tensor]],
          images: Tensor) -> tuple[float, float]:
    """Hold a model of ours against what a reference answered; the largest differences of logits and attention.

    Args:
        expected: logits, all tokens (None where the reference does not give them), and attention of every layer.
    """
    logits, tokens, attentions = expected
    record = minivl.AttnRecord()
    with torch.no_grad():
        mine, mine_tokens = ours(images, attn=record), ours.encode(images)
    assert mine.shape == logits.shape and 0.05 < logits.std() < 20  # of order one, or the bounds would say little
    torch.testing.assert_close(mine, logits, atol=1e-5, rtol=1e-5)
    if tokens is not None:
        size = tokens.std()  # before the last norm, where that comes after the pool, they are not of order one
        torch.testing.assert_close(mine_tokens / size, tokens / size, atol=1e-5, rtol=1e-5)
    assert len(attentions) == len(record) == ours.config.depth
    differences = [float((record["encoder", i] - weights).abs().max()) for i, weights in enumerate(attentions)]
    assert max(differences) <= 1e-6, differences
    assert max(float(weights.std(-1).max()) for weights in attentions) > 1e-3  # heads look somewhere
    return float((mine - logits).abs().max()), max(differences)
