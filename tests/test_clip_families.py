"""CLIP of transformers, of open_clip and of OpenAI converts: features, logits and attention of both towers."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import transformers
from clip_references import (SCALE, TEXT, VISION, answers, as_transformers, base_sized, compare, model_cfg, numbers,
                             of_open_clip, of_openai, of_transformers, openai_shaped, pictures, texts)
from open_clip.model import CLIP as OpenCLIP
from open_clip.model import (CustomTextCLIP, build_model_from_openai_state_dict, convert_weights_to_fp16,
                             resize_pos_embed)
from random_models import randomise
from references import MODES, description, refused, states, strictly
from safetensors.torch import save_file
from torch import Tensor

import minivl
from minivl.convert import clip
from minivl.images import Preprocessing
from minivl.loading import convert
from minivl.models.clip import CLIP
from minivl.models.clip_presets import CLIP_PRESETS
from minivl.models.preset import OPENAI_MEAN, OPENAI_STD
from minivl.text import Tokenizer
from weights import sources

BPE = Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"


# -- equality ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("changes", [
    {}, {"vision": {"hidden_act": "gelu"}, "text": {"hidden_act": "gelu"}},
    {"vision": {"hidden_act": "gelu", "layer_norm_eps": 1e-3}, "text": {"layer_norm_eps": 1e-4, "eos_token_id": 2}}],
    ids=["quick_gelu", "gelu", "one of each, legacy end"])
def test_equal_to_transformers(changes: dict[str, Any], mode: str) -> None:
    theirs = of_transformers(**changes)
    done = convert(states(theirs, mode), config=description(theirs))
    assert done.family == "hf_clip" and done.model.config.vision.resize == "hf"
    for ours, their in ((done.model.config.vision, theirs.config.vision_config),
                        (done.model.config.text, theirs.config.text_config)):
        assert (ours.act, ours.eps) == (their.hidden_act, their.layer_norm_eps)
    assert (done.model.config.text.bos_id, done.model.config.text.eot_id) == (97, 98)
    compare(done.model, theirs, pictures(), texts())


@pytest.mark.parametrize("quick_gelu", [True, False])
@pytest.mark.parametrize("kind", [OpenCLIP, CustomTextCLIP])
def test_equal_to_open_clip(kind: Any, quick_gelu: bool) -> None:
    theirs = of_open_clip(kind, quick_gelu=quick_gelu)
    done = convert(theirs.state_dict(), config=model_cfg(quick_gelu))
    assert done.family == "clip" and done.model.config.vision.resize == "open_clip"
    assert done.model.config.text.act == done.model.config.vision.act == ("quick_gelu" if quick_gelu else "gelu")
    compare(done.model, theirs, pictures(), texts())
    other = convert(theirs.state_dict(), config=model_cfg(not quick_gelu)).model
    for site, given in (("image", pictures()), ("text", texts())):
        with torch.no_grad():
            flipped, right = (getattr(model, f"encode_{site}")(given) for model in (other, done.model))
            assert (flipped - right).norm() > 1e-2


def test_equal_to_openais() -> None:
    state, theirs = of_openai()
    before = {name: tensor.clone() for name, tensor in state.items()}
    done = convert(state)  # nothing else is needed: they tell heads, activation and eps
    vision, text = done.model.config.vision, done.model.config.text
    assert (vision.act, vision.num_heads, vision.eps) == ("quick_gelu", 3, 1e-5)
    assert (text.act, text.num_heads, text.eps) == ("quick_gelu", 2, 1e-5)
    assert (text.bos_id, text.eot_id, text.pad_id, text.max_len) == (97, 98, 0, 13)
    assert set(done.receipt.dropped) == set(clip.ENTRIES) and "half precision" in done.receipt.notes[0]
    assert {tensor.dtype for tensor in done.model.state_dict().values()} == {torch.float32}
    assert all(torch.equal(state[name], tensor) and state[name].dtype == tensor.dtype
               for name, tensor in before.items())
    compare(done.model, theirs, pictures(), texts())
    assert done.model.preprocessing == Preprocessing((32, 32), OPENAI_MEAN, OPENAI_STD, 1.0, "crop", "bicubic")
    with pytest.raises(minivl.InputError, match="config says vision.act='gelu', the tensors say 'quick_gelu'"):
        convert(state, config={"vision": {"act": "gelu"}})


def test_the_loader_of_openais_own_files_reads_ours_alike() -> None:
    """Heads, activation and ends as open_clip's loader of these files infers them from the shapes."""
    model = openai_shaped(mlp_ratio=4)
    state = {**model.state_dict(), **numbers(32, 13, 99)}
    theirs = build_model_from_openai_state_dict(dict(state), cast_dtype=torch.float32).float()
    theirs.load_state_dict(model.state_dict())  # that loader has halved them
    compare(convert(state).model, theirs, pictures(), texts())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-32-quickgelu", "ViT-L-14-quickgelu"])
def test_base_size_of_open_clip(name: str) -> None:
    theirs = base_sized(OpenCLIP(**open_clip.get_model_config(name)))
    ours = convert(theirs.state_dict(), name=f"{name}.safetensors").model
    logits, attention = compare(ours, theirs, pictures(2, (224, 224)), texts(49408, 77))
    print(f"{name}: logits {logits:.1e}, attention {attention:.1e}")
    assert ours.preprocessing is not None and ours.preprocessing.mean == OPENAI_MEAN


@pytest.mark.slow
@pytest.mark.parametrize("name", ["openai/clip-vit-base-patch32", "openai/clip-vit-large-patch14"])
def test_base_size_of_transformers(name: str) -> None:
    config = CLIP_PRESETS[name].config
    theirs = transformers.CLIPModel._from_config(as_transformers(config), attn_implementation="eager")
    ours = convert(states(base_sized(theirs), "published"), name=name).model
    logits, attention = compare(ours, theirs, pictures(2, (224, 224)), texts(49408, 77))
    print(f"{name}: logits {logits:.1e}, attention {attention:.1e}")
    assert ours.config == config and ours.preprocessing is not None


@pytest.mark.parametrize("library", ["transformers", "open_clip"])
def test_bf16(library: str) -> None:
    theirs = of_transformers() if library == "transformers" else of_open_clip()
    config = description(theirs) if library == "transformers" else model_cfg()
    ours = convert(theirs.bfloat16().state_dict(), config=config).model
    images, ids = pictures().bfloat16(), texts()
    expected = answers(theirs, images, ids)
    with torch.no_grad():
        found = {"image": ours.encode_image(images), "text": ours.encode_text(ids)}
    for name, values in found.items():
        assert values.dtype == torch.bfloat16
        assert (values - expected[name]).float().norm() / expected[name].float().norm() < 0.05


# -- pictures of another size ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(40, 24), (56, 56), (16, 32)])
def test_other_image_sizes_as_open_clip_resizes(size: tuple[int, int]) -> None:
    state = of_open_clip().state_dict()
    ours = convert(state, config=model_cfg()).model
    ours.visual.resize(size)
    theirs, resized = of_open_clip(image_size=size, seed=5), dict(state)
    resize_pos_embed(resized, theirs)
    assert resized["visual.positional_embedding"].shape != state["visual.positional_embedding"].shape
    theirs.load_state_dict(resized)
    compare(ours, theirs, pictures(size=size), texts())


@pytest.mark.parametrize("size", [(40, 24), (56, 56), (16, 32)])
def test_other_image_sizes_as_transformers_interpolates(size: tuple[int, int]) -> None:
    theirs = of_transformers()
    ours = convert(states(theirs, "memory"), config=description(theirs)).model
    ours.visual.resize(size)
    compare(ours, theirs, pictures(size=size), texts(), interpolate_pos_encoding=True)


# -- what does not fit -----------------------------------------------------------------------------------------


WEIGHTS = {
    "transformers": ("text_model.encoder.layers.1.mlp.fc1.weight", "visual_projection.weight",
                     "vision_model.embeddings.position_embedding.weight", "text_projection.weight",
                     "text_model.embeddings.token_embedding.weight"),
    "open_clip": ("visual.transformer.resblocks.2.attn.in_proj_weight", "visual.proj", "text_projection",
                  "visual.positional_embedding", "token_embedding.weight", "transformer.resblocks.1.mlp.c_proj.weight"),
    "custom text": ("text.transformer.resblocks.0.attn.in_proj_weight", "text.positional_embedding"),
    "openai": ("visual.transformer.resblocks.2.attn.in_proj_weight", "visual.proj", "token_embedding.weight",
               "positional_embedding", "visual.positional_embedding"),
}


def published(library: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors, and the arguments with which they convert."""
    if library == "openai":
        return of_openai()[0], {}
    if library == "transformers":
        theirs = of_transformers()
        return states(theirs, "published"), {"config": description(theirs)}
    return dict(of_open_clip(CustomTextCLIP if library == "custom text" else OpenCLIP).state_dict()), \
        {"config": model_cfg()}


@pytest.mark.parametrize("library, name", [(library, name) for library, names in WEIGHTS.items() for name in names])
def test_strict(library: str, name: str) -> None:
    state, arguments = published(library)
    strictly(state, name, "visual.transformer.resblocks.0.extra", **arguments)


@pytest.mark.parametrize("library", WEIGHTS)
def test_every_tensor_is_missed(library: str) -> None:
    state, arguments = published(library)
    for name in state:
        message = refused({key: tensor for key, tensor in state.items() if key != name}, **arguments)
        told = library == "openai" and name == "visual.conv1.weight"  # nothing else says how large a patch is
        assert ("vision.patch_size" if told else f"1 missing: {name}") in message, message
        assert told or "of another shape" not in message and "unexpected" not in message


def test_numbers_that_are_not_those_of_the_shapes_are_refused() -> None:
    state, _ = of_openai()
    for name, number in (("input_resolution", 40), ("context_length", 77), ("vocab_size", 49408)):
        message = refused({**state, name: torch.tensor(number)})
        assert f"1 of other values: {name}" in message and "missing" not in message
        assert f"1 of other values: {name}" in refused({**state, name: torch.tensor([1, 2])})


def test_both_layouts_at_once_are_refused() -> None:
    state, arguments = published("custom text")
    message = refused({**state, "token_embedding.weight": state["text.token_embedding.weight"]}, **arguments)
    assert "1 unexpected: token_embedding.weight" in message
    assert "unexpected: logit_bias" in refused({**state, "logit_bias": torch.zeros(())}, **arguments)


def test_position_ids_are_dropped_by_rule() -> None:
    state, arguments = published("transformers")
    legacy = {"text_model.embeddings.position_ids": torch.arange(13)[None],
              "vision_model.embeddings.position_ids": torch.arange(17)[None]}
    done = convert({**state, **legacy}, **arguments)
    assert done.receipt.dropped == dict.fromkeys(legacy, "positions are counted")
    filled = [name for names in done.receipt.used.values() for name in names]
    assert sorted(filled) == sorted(done.model.state_dict()) and len(done.receipt.used) == len(state)


def test_scale_of_one_element_and_causal_mask() -> None:
    state, arguments = published("open_clip")
    mask = torch.full((13, 13), float("-inf")).triu(1)
    done = convert({**state, "logit_scale": state["logit_scale"][None], "attn_mask": mask}, **arguments)
    assert done.model.logit_scale.shape == () and set(done.receipt.dropped) == {"attn_mask"}
    for wrong in (mask.T, torch.zeros(13, 13), mask[0], torch.zeros(13, 13, dtype=torch.bool)):
        assert "1 of other values: attn_mask" in refused({**state, "attn_mask": wrong}, **arguments)


@pytest.mark.parametrize("name", ["RN50", "ViT-B-16-SigLIP"])
def test_other_image_towers_are_refused_by_name(name: str) -> None:
    with torch.device("meta"):
        parts = open_clip.get_model_config(name)
        kind = CustomTextCLIP if "timm_model_name" in parts["vision_cfg"] else OpenCLIP
        state = kind(**{key: parts[key] for key in ("embed_dim", "vision_cfg", "text_cfg")}).state_dict()
    assert re.search(r"its image tower is no ViT .* visual\.", refused(state))


# -- files -------------------------------------------------------------------------------------------------------


def write_tokenizer(folder: Path) -> None:
    """CLIP's own vocabulary as the hub has it."""
    pieces = open_clip.tokenizer.SimpleTokenizer(str(BPE))
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocab = {names.get(token, token): id for token, id in pieces.encoder.items()}
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    merges = ["#version: 0.2", *(" ".join(pair) for pair in pieces.bpe_ranks)]
    (folder / "merges.txt").write_text("\n".join(merges) + "\n", encoding="utf-8")


CAPTIONS = ["a photo of a cat", "", "Two dogs, running!", "the end of a long text about dogs and cats " * 12]


def test_a_folder_of_transformers_comes_with_its_tokenizer(tmp_path: Path) -> None:
    ends = {"bos_token_id": 0, "eos_token_id": 2}  # as OpenAI's own config.json has them
    theirs = of_transformers(text={"vocab_size": 49408, "max_position_embeddings": 77, **ends})
    theirs.save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({
        "size": 32, "crop_size": 32, "do_center_crop": True, "resample": 3, "image_mean": OPENAI_MEAN,
        "image_std": OPENAI_STD}))
    ours = minivl.load(tmp_path)
    assert isinstance(ours, CLIP) and ours.preprocessing is not None
    assert (ours.preprocessing.size, ours.preprocessing.mode, ours.preprocessing.crop_pct) == ((32, 32), "crop", 1.0)
    ids = ours.tokenize(CAPTIONS)
    theirs_ids = transformers.CLIPTokenizer.from_pretrained(tmp_path)(
        CAPTIONS, padding="max_length", truncation=True, max_length=77, return_tensors="pt")["input_ids"]
    for row, their in zip(ids, theirs_ids):  # behind the end CLIP's own code has 0, transformers the end again
        end = int((row == 49407).int().argmax())
        assert row[: end + 1].tolist() == their[: end + 1].tolist()
        assert row[end + 1:].eq(0).all() and their[end + 1:].eq(49407).all()
    with torch.no_grad():
        expected = theirs(input_ids=theirs_ids, pixel_values=pictures()).logits_per_image
        torch.testing.assert_close(ours(pictures(), ids), expected, atol=1e-5, rtol=0)
    minivl.save(ours, tmp_path / "ours.safetensors")
    again = minivl.load(tmp_path / "ours.safetensors")
    assert torch.equal(again.tokenize(CAPTIONS), ids)


def test_a_folder_of_open_clips_beside_transformers(tmp_path: Path) -> None:
    """Its own description counts, not that of other weights beside it; and its tokenizer is open_clip's."""
    theirs = randomise(OpenCLIP(24, VISION, {**TEXT, "vocab_size": 49408, "context_length": 77}, True), 0, SCALE)
    save_file(theirs.state_dict(), tmp_path / "open_clip_model.safetensors")
    config = {**model_cfg(), "text_cfg": {**TEXT, "vocab_size": 49408, "context_length": 77}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({
        "model_cfg": config, "preprocess_cfg": {"mean": [.5] * 3, "std": [.25] * 3}}))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": {"hidden_act": "gelu"}}))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({
        "size": 224, "crop_size": 224, "do_center_crop": True, "resample": 3, "image_mean": OPENAI_MEAN,
        "image_std": OPENAI_STD}))
    write_tokenizer(tmp_path)
    ours = minivl.load(tmp_path)
    assert isinstance(ours, CLIP) and ours.preprocessing is not None
    assert (ours.preprocessing.mean, ours.preprocessing.size) == ((.5, .5, .5), (32, 32))
    ids = ours.tokenize(CAPTIONS)
    assert torch.equal(ids, open_clip.tokenize(CAPTIONS))
    compare(ours, theirs, pictures(), ids)


def test_openais_archive_end_to_end(tmp_path: Path) -> None:
    """A TorchScript archive, of which nothing is executed; its tokenizer is CLIP's own file."""
    state, theirs = of_openai()
    model = openai_shaped()
    convert_weights_to_fp16(model)
    for name in clip.ENTRIES:
        model.__dict__.pop(name, None)
        model.register_buffer(name, state[name])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch has given up writing them
        torch.jit.script(model).save(tmp_path / "ViT-tiny.pt")
    read = sources.read(tmp_path / "ViT-tiny.pt")
    done = convert(read.state, name="ViT-tiny.pt")
    assert done.family == "clip" and set(done.receipt.dropped) == {*clip.ENTRIES, "attn_mask"}
    compare(done.model, theirs, pictures(), texts())
    with pytest.raises(minivl.InputError, match="no tokenizer.*--tokenizer"):
        done.model.tokenize(["a cat"])
    with pytest.raises(minivl.InputError, match="49408 entries, the text tower 99"):
        convert(read.state, tokenizer=Tokenizer.from_file(BPE))
