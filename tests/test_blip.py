"""BLIP's captioners of transformers, number for number and word for word."""

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
from transformers import BlipConfig, BlipForConditionalGeneration, BlipImageProcessorPil

import minivl
from minivl.convert import blip, huggingface
from minivl.convert.build import flatten
from minivl.images import Preprocessing
from minivl.models.captioner import Captioner
from minivl.models.presets import PRESETS

VISION = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40,
          "image_size": 12, "patch_size": 4}
TEXT = {"vocab_size": 23, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48,
        "max_position_embeddings": 16, "bos_token_id": 20, "sep_token_id": 5, "eos_token_id": 2, "pad_token_id": 0}
WORDS = "text_decoder.bert.embeddings.word_embeddings.weight"
HEAD = "text_decoder.cls.predictions."
MODELS: dict[str, dict[str, Any]] = {
    "narrow memory": {},
    "wide memory": {"vision": {"hidden_size": 36, "intermediate_size": 20}},
    "one width": {"text": {"hidden_size": 24}},
    "other settings": {"vision": {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-3},
                       "text": {"hidden_act": "gelu_new", "layer_norm_eps": 1e-2}},
    "untied": {"text": {"tie_word_embeddings": False}, "tie_word_embeddings": False},
}
BASE = {
    "Salesforce/blip-image-captioning-base": {"text": {"num_attention_heads": 12}},
    "Salesforce/blip-image-captioning-large": {
        "vision": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
        "text": {"num_attention_heads": 12}},
}


def reference(settings: dict[str, Any], seed: int = 0) -> nn.Module:
    """A tiny BLIP that computes its attention openly, every parameter random."""
    rest = {key: value for key, value in settings.items() if key not in ("vision", "text")}
    config = BlipConfig(vision_config={**VISION, **settings.get("vision", {})},
                        text_config={**TEXT, **settings.get("text", {})}, **rest)
    model = BlipForConditionalGeneration._from_config(config, attn_implementation="eager")
    randomise(model, seed)
    return model


def published(model: nn.Module) -> dict[str, Tensor]:
    """Its tensors as the files on the hub have them: copies of tied ones and numbered positions are there too."""
    positions = torch.arange(model.config.text_config.max_position_embeddings)[None]
    return {**states(model, "published"), "text_decoder.bert.embeddings.position_ids": positions,
            f"{HEAD}decoder.weight": model.text_decoder.cls.predictions.decoder.weight.detach().clone(),
            f"{HEAD}decoder.bias": model.text_decoder.cls.predictions.decoder.bias.detach().clone()}


def tensors(model: nn.Module, mode: str) -> dict[str, Tensor]:
    return published(model) if mode == "published" else states(model, "memory")


@torch.no_grad()
def answer(model: nn.Module, images: Tensor, ids: Tensor, **options: Any) -> Answer:
    seen = model.vision_model(pixel_values=images, output_attentions=True, **options)
    said = model.text_decoder(input_ids=ids, encoder_hidden_states=seen.last_hidden_state, output_attentions=True,
                              return_dict=True)
    assert torch.equal(said.logits, model(pixel_values=images, input_ids=ids, **options).logits)
    return Answer(said.logits, {"encoder": seen.attentions, "self": said.attentions, "cross": said.cross_attentions})


@pytest.mark.parametrize("mode", ["memory", "published"])
@pytest.mark.parametrize("name", MODELS)
def test_equal_to_transformers(name: str, mode: str) -> None:
    theirs = reference(MODELS[name])
    ours = minivl.from_state_dict(tensors(theirs, mode), config=description(theirs))
    images, ids = pixels(3), words(3, 11, 23)
    compare(ours, answer(theirs, images, ids), images, ids)
    assert ours.config.decoder.tied == (name != "untied") and ours.config.encoder.resize == "hf"


@pytest.mark.slow
@pytest.mark.parametrize("name", BASE)
def test_base_size(name: str) -> None:
    settings = BASE[name]
    config = BlipConfig(vision_config=settings.get("vision", {}), text_config=settings["text"])
    theirs = base_sized(BlipForConditionalGeneration._from_config(config, attn_implementation="eager"))
    ours = minivl.from_state_dict(published(theirs), name=name)
    assert minivl.from_state_dict(published(theirs), config=description(theirs)).config == ours.config
    images, ids = pixels(1, (384, 384)), words(1, 20, 30524)
    print(name, *(f"{difference:.1e}" for difference in compare(ours, answer(theirs, images, ids), images, ids)))
    assert ours.preprocessing == PRESETS[name].preprocessing is not None


@pytest.mark.parametrize("name", BASE)
def test_preset_is_what_the_description_says(name: str) -> None:
    config = BlipConfig(vision_config=BASE[name].get("vision", {}), text_config=BASE[name]["text"])
    described = blip.describe(json.loads(config.to_json_string(use_diff=False)))
    assert described is not None
    preset = flatten(PRESETS[name].config)
    assert {field: preset[field] for field in described.fields} == described.fields
    processor = BlipImageProcessorPil()
    told = huggingface.preprocessing(json.loads(processor.to_json_string()))
    assert told is not None and Preprocessing(**told) == PRESETS[name].preprocessing


def leaning(seed: int) -> nn.Module:
    """A tiny BLIP that likes to end its captions, more or less so by its seed."""
    model = reference(MODELS["narrow memory"], seed)
    with torch.no_grad():
        model.text_decoder.cls.predictions.decoder.bias[TEXT["sep_token_id"]] += 0.8 * (seed % 4)
    return model


def test_captions_equal_generate() -> None:
    captions: dict[str, list[tuple[int, ...]]] = {search: [] for search in SEARCHES}
    for seed in range(20):
        theirs = leaning(seed)
        ours = minivl.from_state_dict(states(theirs, "memory"), config=description(theirs))
        for search in SEARCHES:
            captions[search] += same_captions(ours, theirs.generate, pixels(4, seed=seed), search)
    various(captions, TEXT["sep_token_id"])
    assert all(caption[0] == TEXT["bos_token_id"] for caption in captions["greedy"])


def test_cached_search_equals_one_without_a_cache() -> None:
    theirs = leaning(2)
    ours = minivl.from_state_dict(states(theirs, "memory"), config=description(theirs))
    images = pixels(3)
    for caption, image in zip(ours.caption(images, beams=1, max_len=9), images):
        ids = [TEXT["bos_token_id"]]
        while len(ids) < 10 and ids[-1] != TEXT["sep_token_id"]:
            with torch.no_grad():
                ids.append(int(ours(image[None], torch.tensor([ids]))[0, -1].argmax()))
        assert caption.ids == tuple(ids)


@pytest.mark.parametrize("size", [(16, 8), (20, 20), (12, 28)])
def test_other_image_sizes_as_transformers_interpolates(size: tuple[int, int]) -> None:
    theirs = reference(MODELS["wide memory"])
    ours = minivl.from_state_dict(states(theirs, "memory"), config=description(theirs))
    minivl.loading.resize(ours, size)
    assert isinstance(ours, Captioner) and ours.config.encoder.image_size == size
    images, ids = pixels(2, size), words(2, 6, 23)
    compare(ours, answer(theirs, images, ids, interpolate_pos_encoding=True), images, ids)


@torch.no_grad()
def test_bfloat16() -> None:
    theirs = reference(MODELS["narrow memory"])
    halves = {name: tensor.bfloat16() for name, tensor in states(theirs, "memory").items()}
    ours = minivl.from_state_dict(halves, config=description(theirs))
    images, ids = pixels(2), words(2, 8, 23)
    logits = ours(images.bfloat16(), ids)
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), answer(theirs, images, ids).logits, atol=0.15, rtol=0.05)
    assert ours.caption(images.bfloat16(), max_len=5)


def test_config_and_roles_come_from_the_description() -> None:
    theirs = reference({"text": {"bos_token_id": 11, "sep_token_id": 7, "pad_token_id": 1, "eos_token_id": 3},
                        "vision": {"layer_norm_eps": 1e-4}})
    ours = minivl.from_state_dict(states(theirs, "memory"), config=description(theirs))
    decoder = ours.config.decoder
    assert (decoder.bos_id, decoder.eos_id, decoder.pad_id) == (11, 7, 1)  # eos_token_id is not what ends a caption
    assert (ours.config.encoder.eps, decoder.eps, decoder.embed_eps) == (1e-4, 1e-12, 1e-12)
    message = refused(states(theirs, "memory"))
    assert "of family blip" in message and "encoder.num_heads" in message and "decoder.num_heads" in message
    assert "encoder.depth=5" in refused(states(theirs, "memory"), config={
        **description(theirs), "vision_config": {**description(theirs)["vision_config"], "num_hidden_layers": 5}})
    assert "silu" in refused(states(theirs, "memory"), config={
        **description(theirs), "text_config": {**description(theirs)["text_config"], "hidden_act": "silu"}})


@pytest.mark.parametrize("mode", ["memory", "published"])
def test_every_tensor_counts(mode: str) -> None:
    theirs = reference(MODELS["narrow memory"])
    state, config = tensors(theirs, mode), description(theirs)
    for name in ("vision_model.encoder.layers.1.self_attn.qkv.weight", "vision_model.encoder.layers.0.mlp.fc2.weight",
                 "text_decoder.bert.encoder.layer.2.crossattention.self.key.weight",
                 "text_decoder.bert.encoder.layer.0.intermediate.dense.weight",
                 "text_decoder.bert.embeddings.position_embeddings.weight"):
        strictly(state, name, "text_decoder.bert.pooler.dense.weight", config=config)
    receipt = minivl.loading.convert(state, config=config).receipt
    assert set(receipt.used) | set(receipt.dropped) == set(state) and not set(receipt.used) & set(receipt.dropped)


def test_tied_copies_are_equal_or_refused() -> None:
    theirs = reference(MODELS["narrow memory"])
    state, config = published(theirs), description(theirs)
    receipt = minivl.loading.convert(state, config=config).receipt
    assert receipt.dropped[f"{HEAD}decoder.weight"] == f"equal copy of {WORDS}"
    assert receipt.dropped["text_decoder.bert.embeddings.position_ids"] == "positions are counted"
    for name, copy in ((WORDS, f"{HEAD}decoder.weight"), (f"{HEAD}bias", f"{HEAD}decoder.bias")):
        for lost in (name, copy):  # either name is enough
            minivl.from_state_dict({key: tensor for key, tensor in state.items() if key != lost}, config=config)
        assert "1 missing" in refused({key: tensor for key, tensor in state.items() if key not in (name, copy)},
                                      config=config)
        message = refused({**state, copy: state[copy] + 1e-3}, config=config)
        assert f"1 for one place: {name} and {copy} (which should be equal)" in message
    # nobody says whether the other matrix is one of its own
    assert "decoder.tied" in refused({**state, f"{HEAD}decoder.weight": state[WORDS] + 1},
                                     config={"encoder.num_heads": 3, "decoder.num_heads": 4})


def test_untied_matrix_of_words() -> None:
    theirs = reference(MODELS["untied"])
    state, config = states(theirs, "published"), description(theirs)
    assert not torch.equal(state[WORDS], state[f"{HEAD}decoder.weight"])
    receipt = minivl.loading.convert(state, config=config).receipt
    assert receipt.used[f"{HEAD}decoder.weight"] == ("decoder.head.weight",)
    assert receipt.dropped == {f"{HEAD}bias": "the matrix of words has a bias of its own"}
    missing = {name: tensor for name, tensor in state.items() if name != f"{HEAD}decoder.weight"}
    assert "decoder.tied" in refused(missing, config=config)
    legacy = {name: tensor for name, tensor in state.items() if name != f"{HEAD}bias"}
    legacy[f"{HEAD}bias"] = legacy.pop(f"{HEAD}decoder.bias")  # of the two, once the same, one was saved
    ours = minivl.from_state_dict(legacy, config=config)
    images, ids = pixels(1), words(1, 4, 23)
    compare(ours, answer(theirs, images, ids), images, ids)


def test_folder_of_the_hub_and_file_of_ours(tmp_path: Path) -> None:
    theirs = reference(MODELS["wide memory"])
    theirs.save_pretrained(tmp_path / "hub")
    BlipImageProcessorPil(size={"height": 12, "width": 12}).save_pretrained(tmp_path / "hub")
    ours = minivl.load(tmp_path / "hub")
    assert ours.preprocessing is not None
    assert (ours.preprocessing.size, ours.preprocessing.mode) == ((12, 12), "squash")
    minivl.save(ours, tmp_path / "ours.safetensors")
    again = minivl.load(tmp_path / "ours.safetensors", verify=True)
    assert (again.config, again.preprocessing) == (ours.config, ours.preprocessing)
    images, ids = pixels(2), words(2, 5, 23)
    compare(ours, answer(theirs, images, ids), images, ids)
    with torch.no_grad():
        assert torch.equal(again(images, ids), ours(images, ids))
