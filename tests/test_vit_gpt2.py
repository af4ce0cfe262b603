"""ViT-GPT2 captioners of transformers, number for number and word for word."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from captioner_references import SEARCHES, Answer, base_sized, compare, pixels, same_captions, various, words
from random_models import randomise
from references import description, refused, states, strictly
from torch import Tensor, nn
from transformers import (DeiTConfig, GPT2Config, VisionEncoderDecoderConfig, VisionEncoderDecoderModel, ViTConfig,
                          ViTImageProcessorPil)

import minivl
from minivl.convert import huggingface, vit_gpt2
from minivl.convert.build import flatten
from minivl.images import Preprocessing
from minivl.models.captioner import Captioner
from minivl.models.presets import PRESETS

VISION = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40,
          "image_size": 12, "patch_size": 4}
TEXT = {"vocab_size": 23, "n_embd": 24, "n_layer": 3, "n_head": 4, "n_inner": 48, "n_positions": 16,
        "bos_token_id": 7, "eos_token_id": 7, "pad_token_id": 7}
WORDS, HEAD = "decoder.transformer.wte.weight", "decoder.lm_head.weight"
BASE = "nlpconnect/vit-gpt2-image-captioning"
MODELS: dict[str, dict[str, Any]] = {
    "one width": {},
    "two widths": {"text": {"n_embd": 32}},
    "four times as wide inside": {"text": {"n_inner": None}},
    "other settings": {"vision": {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-3, "qkv_bias": False},
                       "text": {"activation_function": "relu", "layer_norm_epsilon": 1e-2}},
    "distilled": {"kind": DeiTConfig},
    "untied": {"text": {"tie_word_embeddings": False}},
}
# how files on the hub call what transformers now holds under another name
PUBLISHED = {"encoder.layers.": "encoder.encoder.layer.", ".attention.q_proj.": ".attention.attention.query.",
             ".attention.k_proj.": ".attention.attention.key.", ".attention.v_proj.": ".attention.attention.value.",
             ".attention.o_proj.": ".attention.output.dense.", ".mlp.fc1.": ".intermediate.dense.",
             ".mlp.fc2.": ".output.dense."}


def configuration(settings: dict[str, Any]) -> Any:
    vision = settings.get("kind", ViTConfig)(**{**VISION, **settings.get("vision", {})})
    text = GPT2Config(**{**TEXT, **settings.get("text", {})}, is_decoder=True, add_cross_attention=True)
    roles = {"decoder_start_token_id": 7, "bos_token_id": 7, "eos_token_id": 7, "pad_token_id": 7}
    roles.update(settings.get("roles", {}))
    return VisionEncoderDecoderConfig.from_encoder_decoder_configs(vision, text, **roles)


def reference(settings: dict[str, Any], seed: int = 0) -> nn.Module:
    """A tiny ViT-GPT2 that computes its attention openly, every parameter random."""
    model = VisionEncoderDecoderModel._from_config(configuration(settings), attn_implementation="eager")
    randomise(model, seed)
    return model


def published(model: nn.Module) -> dict[str, Tensor]:
    """Its tensors as the files on the hub have them: with masks as buffers, and a copy of the word table."""
    state = {}
    for name, tensor in states(model, "memory").items():
        if name.startswith("encoder."):
            for ours, theirs in PUBLISHED.items():
                name = name.replace(ours, theirs)
        state[name] = tensor
    positions = model.config.decoder.n_positions
    for layer in range(model.config.decoder.n_layer):
        for attention in ("attn", "crossattention"):
            place = f"decoder.transformer.h.{layer}.{attention}"
            state[f"{place}.bias"] = torch.ones(1, 1, positions, positions, dtype=torch.uint8).tril()
            state[f"{place}.masked_bias"] = torch.tensor(-1e4)
    return state


def tensors(model: nn.Module, mode: str) -> dict[str, Tensor]:
    return published(model) if mode == "published" else states(model, mode)


@torch.no_grad()
def answer(model: nn.Module, images: Tensor, ids: Tensor, **options: Any) -> Answer:
    out = model(pixel_values=images, decoder_input_ids=ids, output_attentions=True, **options)
    assert torch.equal(out.logits, model(pixel_values=images, decoder_input_ids=ids, **options).logits)
    return Answer(out.logits, {"encoder": out.encoder_attentions, "self": out.decoder_attentions,
                               "cross": out.cross_attentions})


def test_published_names_are_those_transformers_writes() -> None:
    theirs = reference(MODELS["two widths"])
    legacy, saved = published(theirs), states(theirs, "published")
    assert all(torch.equal(tensor, legacy[name]) for name, tensor in saved.items())
    extra = {name for name in set(legacy) - set(saved) if not name.endswith(("attn.bias", "attention.bias"))}
    assert extra == {HEAD} | {f"decoder.transformer.h.{layer}.{attention}.masked_bias"
                              for layer in range(3) for attention in ("attn", "crossattention")}


@pytest.mark.parametrize("mode", ["memory", "published"])
@pytest.mark.parametrize("name", MODELS)
def test_equal_to_transformers(name: str, mode: str) -> None:
    theirs = reference(MODELS[name])
    ours = minivl.from_state_dict(tensors(theirs, mode), config=description(theirs))
    images, ids = pixels(3), words(3, 11, 23)
    compare(ours, answer(theirs, images, ids), images, ids)
    assert ours.config.project == (name == "two widths") and ours.config.decoder.tied == (name != "untied")
    assert ours.config.encoder.resize == "hf" and ours.config.encoder.dist_token == (name == "distilled")


@pytest.mark.slow
def test_base_size() -> None:
    text = GPT2Config(is_decoder=True, add_cross_attention=True, pad_token_id=50256)
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(ViTConfig(), text)
    theirs = base_sized(VisionEncoderDecoderModel._from_config(config, attn_implementation="eager"))
    state = published(theirs)
    ours = minivl.from_state_dict(state, name=BASE)
    assert minivl.from_state_dict(state, config=description(theirs)).config == ours.config
    images, ids = pixels(1, (224, 224)), words(1, 20, 50257)
    print(BASE, *(f"{difference:.1e}" for difference in compare(ours, answer(theirs, images, ids), images, ids)))
    assert ours.preprocessing == PRESETS[BASE].preprocessing is not None


def test_preset_is_what_the_description_says() -> None:
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        ViTConfig(), GPT2Config(is_decoder=True, add_cross_attention=True, pad_token_id=50256))
    described = vit_gpt2.describe(json.loads(config.to_json_string(use_diff=False)))
    assert described is not None
    preset = flatten(PRESETS[BASE].config)
    assert {field: preset[field] for field in described.fields} == described.fields
    processor = ViTImageProcessorPil()
    told = huggingface.preprocessing(json.loads(processor.to_json_string()))
    assert told is not None and Preprocessing(**told) == PRESETS[BASE].preprocessing


def leaning(seed: int) -> nn.Module:
    """A tiny ViT-GPT2 that likes to end its captions, more or less so by its seed."""
    model = reference(MODELS["two widths"], seed)
    with torch.no_grad():  # a word's logit grows along its row of the table
        row = model.decoder.transformer.wte.weight[TEXT["eos_token_id"]]
        model.decoder.transformer.ln_f.bias += 0.8 * (seed % 4) * row / row.square().sum()
    return model


def test_captions_equal_generate() -> None:
    captions: dict[str, list[tuple[int, ...]]] = {search: [] for search in SEARCHES}
    for seed in range(20):
        theirs = leaning(seed)
        ours = minivl.from_state_dict(states(theirs, "memory"), config=description(theirs))
        for search in SEARCHES:
            captions[search] += same_captions(ours, theirs.generate, pixels(4, seed=seed), search)
    various(captions, TEXT["eos_token_id"])
    assert all(caption[0] == TEXT["bos_token_id"] for caption in captions["greedy"])


@pytest.mark.parametrize("search", SEARCHES)
def test_captions_with_a_start_of_their_own(search: str) -> None:
    roles = {"decoder_start_token_id": 3, "bos_token_id": 4, "eos_token_id": 9, "pad_token_id": 0}
    theirs = reference({"roles": roles, "text": {name: roles[name] for name in roles if name in TEXT}}, seed=4)
    ours = minivl.from_state_dict(states(theirs, "memory"), config=description(theirs))
    decoder = ours.config.decoder
    assert (decoder.bos_id, decoder.eos_id, decoder.pad_id) == (3, 9, 0)
    assert {caption[0] for caption in same_captions(ours, theirs.generate, pixels(4), search)} == {3}


@pytest.mark.parametrize("size", [(16, 8), (20, 20), (12, 28)])
def test_other_image_sizes_as_transformers_interpolates(size: tuple[int, int]) -> None:
    theirs = reference(MODELS["two widths"])
    ours = minivl.from_state_dict(states(theirs, "memory"), config=description(theirs))
    minivl.loading.resize(ours, size)
    assert isinstance(ours, Captioner) and ours.config.encoder.image_size == size
    images, ids = pixels(2, size), words(2, 6, 23)
    compare(ours, answer(theirs, images, ids, interpolate_pos_encoding=True), images, ids)


@torch.no_grad()
def test_bfloat16() -> None:
    theirs = reference(MODELS["two widths"])
    halves = {name: tensor.bfloat16() for name, tensor in states(theirs, "memory").items()}
    ours = minivl.from_state_dict(halves, config=description(theirs))
    images, ids = pixels(2), words(2, 8, 23)
    logits = ours(images.bfloat16(), ids)
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), answer(theirs, images, ids).logits, atol=0.15, rtol=0.05)
    assert ours.caption(images.bfloat16(), max_len=5)


def test_description() -> None:
    theirs = reference({"vision": {"layer_norm_eps": 1e-4}})
    state, config = states(theirs, "memory"), description(theirs)
    ours = minivl.from_state_dict(state, config=config)
    assert (ours.config.encoder.eps, ours.config.decoder.eps, ours.config.decoder.act) == (1e-4, 1e-5, "gelu_tanh")
    assert (ours.config.decoder.dropout, ours.config.decoder.attn_dropout) == (0.1, 0.1)
    # without a start of its own a caption begins with bos, and pads with eos
    bare = {**config, "decoder": {**config["decoder"], "pad_token_id": None, "bos_token_id": 3, "eos_token_id": [9]}}
    bare = {key: value for key, value in bare.items() if not key.endswith("_token_id")}
    decoder = minivl.from_state_dict(state, config=bare).config.decoder
    assert (decoder.bos_id, decoder.eos_id, decoder.pad_id) == (3, 9, 9)
    message = refused(state)
    assert "of family vit_gpt2" in message and "encoder.num_heads" in message and "decoder.bos_id" in message


@pytest.mark.parametrize("key, value", [
    ("scale_attn_weights", False), ("scale_attn_by_inverse_layer_idx", True), ("activation_function", "silu"),
    ("n_layer", 5), ("eos_token_id", [1, 2]), ("eos_token_id", "</s>"),
])
def test_descriptions_that_are_refused(key: str, value: Any) -> None:
    theirs = reference(MODELS["one width"])
    config = {name: inner for name, inner in description(theirs).items() if name != "eos_token_id"}
    message = refused(states(theirs, "memory"), config={**config, "decoder": {**config["decoder"], key: value}})
    assert (key if key != "n_layer" else "decoder.depth=5") in message


@pytest.mark.parametrize("mode", ["memory", "published"])
def test_every_tensor_counts(mode: str) -> None:
    theirs = reference(MODELS["two widths"])
    state, config = tensors(theirs, mode), description(theirs)
    vision = "encoder.layers.1.mlp.fc1" if mode == "memory" else "encoder.encoder.layer.1.intermediate.dense"
    for name in (f"{vision}.weight", "enc_to_dec_proj.weight", "decoder.transformer.h.2.attn.c_attn.weight",
                 "decoder.transformer.h.0.crossattention.c_attn.weight", "decoder.transformer.h.1.mlp.c_proj.weight",
                 "decoder.transformer.wpe.weight"):
        strictly(state, name, "decoder.transformer.h.0.ln_3.weight", config=config)
    twice = "encoder.layers.0.attention.q_proj.weight"  # also in a published file: a layer under both of its names
    both = {**published(theirs), twice: states(theirs, "memory")[twice]}
    assert f"1 unexpected: {twice}" in refused(both, config=config)
    receipt = minivl.loading.convert(state, config=config).receipt
    assert set(receipt.used) | set(receipt.dropped) == set(state) and not set(receipt.used) & set(receipt.dropped)
    dropped = {name for name in receipt.dropped if not name.endswith((".attn.bias", ".attn.masked_bias"))
               and "crossattention" not in name}
    assert dropped == {"encoder.pooler.dense.weight", "encoder.pooler.dense.bias", HEAD} & set(state)


def test_tied_copies_are_equal_or_refused() -> None:
    theirs = reference(MODELS["one width"])
    state, config = published(theirs), description(theirs)
    assert minivl.loading.convert(state, config=config).receipt.dropped[HEAD] == f"equal copy of {WORDS}"
    for name in (WORDS, HEAD):  # either name is enough
        minivl.from_state_dict({key: tensor for key, tensor in state.items() if key != name}, config=config)
    message = refused({**state, HEAD: state[HEAD] + 1e-3}, config=config)
    assert f"1 for one place: {WORDS} and {HEAD} (which should be equal)" in message
    assert "1 missing" in refused({key: tensor for key, tensor in state.items() if key not in (WORDS, HEAD)},
                                  config=config)


def test_folder_of_the_hub_and_file_of_ours(tmp_path: Path) -> None:
    theirs = reference({**MODELS["two widths"], "roles": {"decoder_start_token_id": 3}})
    theirs.save_pretrained(tmp_path / "hub")
    ViTImageProcessorPil(size={"height": 12, "width": 12}).save_pretrained(tmp_path / "hub")
    ours = minivl.load(tmp_path / "hub")
    assert ours.preprocessing is not None and ours.config.decoder.bos_id == 3
    assert (ours.preprocessing.size, ours.preprocessing.mode) == ((12, 12), "squash")
    minivl.save(ours, tmp_path / "ours.safetensors")
    again = minivl.load(tmp_path / "ours.safetensors", verify=True)
    assert (again.config, again.preprocessing) == (ours.config, ours.preprocessing)
    images, ids = pixels(2), words(2, 5, 23)
    compare(ours, answer(theirs, images, ids), images, ids)
    with torch.no_grad():
        assert torch.equal(again(images, ids), ours(images, ids))
    assert all(tensor.is_contiguous() for tensor in ours.state_dict().values())  # though GPT-2's lie turned
