"""The course captioner, number for number: timm's encoder and torch's own decoder."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from captioner_references import Answer, base_sized, compare, pixels, words
from random_models import randomise
from references import refused, strictly
from torch import Tensor, nn

import minivl
from minivl.models.captioner import Captioner

SMALL = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}
DECODER = {"vocab_size": 23, "num_layers": 3, "nhead": 4, "d_model": 24, "activation": "gelu", "dropout": 0.1}
GIVEN = {"encoder.num_heads": 3, "decoder.num_heads": 4}  # no preset is so small
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "class token": ("vit_tiny_patch16_224", {}),
    "headless": ("vit_tiny_patch16_224", {"num_classes": 0}),
    "layer scale, table of patches": ("deit3_small_patch16_224", {}),
    "distilled": ("deit_tiny_distilled_patch16_224", {}),
    "registers": ("vit_tiny_patch16_224", {"reg_tokens": 4, "no_embed_class": True}),
    "mean, norm before": ("vit_tiny_patch16_224", {"global_pool": "avg", "class_token": False, "fc_norm": False}),
    "mean, norm after": ("vit_tiny_patch16_224", {"global_pool": "avg", "class_token": False}),
}


class Course(nn.Module):
    """The captioner as the course writes it, with a causal mask wherever it decodes."""

    def __init__(self, encoder: nn.Module, description: dict[str, Any]) -> None:
        super().__init__()
        width = description["d_model"]
        self.encoder = encoder
        self.word_embedding = nn.Embedding(description["vocab_size"], width)
        self.positional_embedding = nn.Module()
        self.positional_embedding.register_buffer("pe", waves(512, width)[None])
        layer = nn.TransformerDecoderLayer(width, description["nhead"], 2 * width, description["dropout"],
                                           description["activation"], batch_first=True)
        self.decoder = nn.TransformerDecoder(layer, description["num_layers"])
        self.head = nn.Linear(width, description["vocab_size"])

    def forward(self, images: Tensor, ids: Tensor) -> Tensor:
        x = self.word_embedding(ids) + self.positional_embedding.pe[:, :ids.shape[1]]
        causal = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).triu(1)
        return self.head(self.decoder(x, self.encoder.forward_features(images), tgt_mask=causal))


def waves(length: int, width: int) -> Tensor:
    """Positions as PyTorch's tutorial computes them."""
    rate = torch.exp(torch.arange(0, width, 2).float() * (-math.log(10000.0) / width))
    angles = torch.arange(length).float()[:, None] * rate
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)


def course(encoder: str, arguments: dict[str, Any], description: dict[str, Any],
           fill: Callable[..., nn.Module] = randomise, **how: Any) -> Course:
    """One whose encoder computes its attention openly, every parameter random."""
    model = Course(timm.create_model(encoder, **arguments), description)
    for block in model.encoder.blocks:
        block.attn.fused_attn = False
    fill(model, **how)
    return model


def small(name: str = "class token", seed: int = 0, **changes: Any) -> Course:
    encoder, arguments = ENCODERS[name]
    return course(encoder, {**SMALL, **arguments}, {**DECODER, **changes}, seed=seed, scale=0.15)


@torch.no_grad()
def answer(model: Course, images: Tensor, ids: Tensor) -> Answer:
    """Logits, and the weights that the layers of encoder and decoder give when they are called one by one."""
    weights: dict[str, list[Tensor]] = {"encoder": [], "self": [], "cross": []}
    hooks = [block.attn.attn_drop.register_forward_hook(lambda _, given, out: weights["encoder"].append(out))
             for block in model.encoder.blocks]
    memory = model.encoder.forward_features(images)
    for hook in hooks:
        hook.remove()
    causal = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).triu(1)
    x = model.word_embedding(ids) + model.positional_embedding.pe[:, :ids.shape[1]]
    for layer in model.decoder.layers:
        y, looked = layer.self_attn(x, x, x, attn_mask=causal, average_attn_weights=False)
        weights["self"].append(looked)
        x = layer.norm1(x + y)
        y, looked = layer.multihead_attn(x, memory, memory, average_attn_weights=False)
        weights["cross"].append(looked)
        x = layer.norm2(x + y)
        x = layer.norm3(x + layer.linear2(layer.activation(layer.linear1(x))))
    logits = model(images, ids)
    torch.testing.assert_close(model.head(x), logits, atol=1e-5, rtol=1e-5)
    return Answer(logits, weights)


@pytest.mark.parametrize("name", ENCODERS)
def test_equal_to_timm_and_torch(name: str) -> None:
    theirs = small(name)
    # a [class] token that is not there might have been lost
    no_class = {"encoder.class_token": False, "encoder.pool": "mean"} if "mean" in name else {}
    ours = minivl.from_state_dict(theirs.state_dict(), config={**GIVEN, **no_class})
    images, ids = pixels(3, (16, 16)), words(3, 11, 23)
    compare(ours, answer(theirs, images, ids), images, ids)
    config = ours.config
    assert not config.project and config.encoder.resize == "timm" and config.decoder.max_len == 512
    assert (config.decoder.pad_id, config.decoder.bos_id, config.decoder.eos_id) == (0, 2, 3)
    with torch.no_grad():  # a prefix is looked at too
        assert ours.encode(images).tokens.shape[1] == 16 + theirs.encoder.num_prefix_tokens


def test_relu_is_told_by_the_description() -> None:
    theirs = small(activation="relu")
    ours = minivl.from_state_dict(theirs.state_dict(), config={**GIVEN, "decoder.act": "relu"})
    images, ids = pixels(2, (16, 16)), words(2, 5, 23)
    compare(ours, answer(theirs, images, ids), images, ids)


@pytest.mark.parametrize("encoder, features", [
    ("vit_tiny_patch16_224", {"layer_scale": False, "pos_prefix": True}),
    ("vit_tiny_patch16_224.augreg_in21k_ft_in1k", {"layer_scale": False, "pos_prefix": True}),
    ("deit_tiny_distilled_patch16_224", {"dist_token": True}),
])
def test_described_by_its_json(encoder: str, features: dict[str, Any]) -> None:
    description = {**DECODER, "encoder": encoder, "num_layers": 2, "nhead": 3, "d_model": 192}
    theirs = course(encoder, {}, description, base_sized)
    done = minivl.loading.convert(theirs.state_dict(), config=description)
    ours, decoder = done.model, done.model.config.decoder
    images, ids = pixels(1, (224, 224)), words(1, 7, 23)
    compare(ours, answer(theirs, images, ids), images, ids)
    assert {field: getattr(ours.config.encoder, field) for field in features} == features
    assert (decoder.act, decoder.dropout, decoder.attn_dropout, decoder.num_heads) == ("gelu", 0.1, 0.1, 3)
    means = theirs.encoder.pretrained_cfg["mean"]
    assert ours.preprocessing is not None and ours.preprocessing.mean == tuple(means)
    assert ours.preprocessing.size == (224, 224) and done.family == "course"


@pytest.mark.slow
@pytest.mark.parametrize("encoder, nhead, num_layers, alias", [
    ("vit_base_patch16_224", 12, 6, "vit_base_patch16_224"),
    ("vit_base_patch16_gap_224", 12, 1, "vit_base_patch16_gap_224"),
    ("vit_base_patch16_clip_quickgelu_224", 12, 1, "vit_base_patch16_clip_quickgelu_224.openai"),
    ("deit3_large_patch16_224", 16, 2, "deit3_large_patch16_224_in21ft1k"),
])
def test_base_size(encoder: str, nhead: int, num_layers: int, alias: str) -> None:
    width = {12: 768, 16: 1024}[nhead]
    description = {**DECODER, "vocab_size": 10000, "encoder": alias, "num_layers": num_layers, "nhead": nhead,
                   "d_model": width}
    theirs = course(encoder, {}, description, base_sized)
    ours = minivl.from_state_dict(theirs.state_dict(), config=description)
    config = ours.config.encoder
    assert config.layer_scale == (config.class_token and not config.pos_prefix) == encoder.startswith("deit3")
    assert (config.act, config.pre_norm) == (("quick_gelu", True) if "clip" in encoder else ("gelu", False))
    images, ids = pixels(1, (224, 224)), words(1, 20, 10000)
    print(encoder, *(f"{difference:.1e}" for difference in compare(ours, answer(theirs, images, ids), images, ids)))


@torch.no_grad()
def test_greedy_search_equals_the_reference_under_its_mask() -> None:
    lengths = set()
    for seed in range(15):
        theirs = small(seed=seed)
        theirs.head.bias[3] += 0.3 * (seed % 5)
        ours = minivl.from_state_dict(theirs.state_dict(), config=GIVEN)
        images = pixels(2, (16, 16), seed)
        for caption, image in zip(ours.caption(images, beams=1, max_len=12), images):
            ids = [2]
            while len(ids) < 13 and (len(ids) == 1 or ids[-1] != 3):
                ids.append(int(theirs(image[None], torch.tensor([ids]))[0, -1].argmax()))
            assert caption.ids == tuple(ids)
            lengths.add(len(ids))
    assert len(lengths) > 2 and 13 in lengths, lengths


def test_other_image_sizes_as_timm_resizes() -> None:
    theirs, size = small(), (24, 12)
    ours = minivl.from_state_dict(theirs.state_dict(), config=GIVEN)
    minivl.loading.resize(ours, size)
    theirs.encoder.set_input_size(size)
    assert isinstance(ours, Captioner) and ours.config.encoder.image_size == size
    images, ids = pixels(2, size), words(2, 6, 23)
    compare(ours, answer(theirs, images, ids), images, ids)


@torch.no_grad()
def test_bfloat16() -> None:
    theirs = small()
    ours = minivl.from_state_dict({name: tensor.bfloat16() for name, tensor in theirs.state_dict().items()},
                                  config=GIVEN)
    images, ids = pixels(2, (16, 16)), words(2, 8, 23)
    logits = ours(images.bfloat16(), ids)
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), theirs(images, ids), atol=0.15, rtol=0.05)
    assert ours.caption(images.bfloat16(), max_len=5)


def test_every_tensor_counts() -> None:
    state = small("distilled").state_dict()
    for name in ("encoder.blocks.1.attn.qkv.weight", "encoder.blocks.0.mlp.fc2.weight",
                 "decoder.layers.2.self_attn.in_proj_weight", "decoder.layers.0.multihead_attn.in_proj_weight",
                 "decoder.layers.1.linear1.weight", "word_embedding.weight", "head.weight"):
        strictly(state, name, "decoder.norm.weight", config={**GIVEN, "decoder.vocab_size": 23})
    receipt = minivl.loading.convert(state, config=GIVEN).receipt
    assert set(receipt.used) | set(receipt.dropped) == set(state)
    assert receipt.dropped == {
        **{f"encoder.{head}.{kind}": "a head says classes, not words"
           for head in ("head", "head_dist") for kind in ("weight", "bias")},
        "positional_embedding.pe": "sines and cosines are computed"}


@pytest.mark.parametrize("change", [
    lambda pe: pe + 1e-4, lambda pe: pe.flip(1), lambda pe: pe[0], lambda pe: torch.cat([pe, pe]),
    lambda pe: pe[..., :-2], lambda pe: torch.cat([pe[..., 0::2], pe[..., 1::2]], -1), lambda pe: pe.round().long(),
])
def test_other_positions_are_refused(change: Callable[[Tensor], Tensor]) -> None:
    state = small().state_dict()
    state["positional_embedding.pe"] = change(state["positional_embedding.pe"])
    message = refused(state, config=GIVEN)
    assert "1 of other values: positional_embedding.pe (sines and cosines are computed)" in message
    del state["positional_embedding.pe"], state["head.bias"]
    assert "2 missing: head.bias, positional_embedding.pe" in refused(state, config=GIVEN)


def test_shorter_table_of_positions() -> None:
    theirs = small()
    state = theirs.state_dict()
    state["positional_embedding.pe"] = state["positional_embedding.pe"][:, :40] + 5e-6
    assert minivl.from_state_dict(state, config=GIVEN).config.decoder.max_len == 40


@pytest.mark.parametrize("change, message", [
    ({"encoder": "resnet50"}, "encoder='resnet50'"), ({"activation": "swish"}, "swish"),
    ({"num_layers": 4}, "decoder.depth=4"), ({"d_model": 384}, "decoder.width=384"),
    ({"encoder": "vit_small_patch16_224"}, "encoder.width=384"), ({"nhead": 7}, "7"), ({"dropout": 2}, "dropout=2"),
])
def test_descriptions_that_do_not_fit(change: dict[str, Any], message: str) -> None:
    description = {**DECODER, "encoder": "vit_tiny_patch16_224", "num_layers": 1, "nhead": 3, "d_model": 192}
    theirs = course("vit_tiny_patch16_224", {"depth": 12}, description)
    assert message in refused(theirs.state_dict(), config={**description, **change})


def test_heads_must_be_told() -> None:
    message = refused(small().state_dict())
    assert "of family course" in message and "encoder.num_heads" in message and "decoder.num_heads" in message


def test_saved_and_loaded_bit_for_bit(tmp_path: Any) -> None:
    ours = minivl.from_state_dict(small("distilled").state_dict(), config=GIVEN)
    minivl.save(ours, tmp_path / "course.safetensors")
    again = minivl.load(tmp_path / "course.safetensors", verify=True)
    assert again.config == ours.config
    images, ids = pixels(2, (16, 16)), words(2, 5, 23)
    with torch.no_grad():
        assert torch.equal(again(images, ids), ours(images, ids))
