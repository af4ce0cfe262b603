"""CLIP equals transformers' and open_clip's: features, logits, attention of both towers; and keeps the contract."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import open_clip.model
import pytest
import torch
import transformers
from random_models import randomise
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from minivl import AttnRecord, InputError, preprocess
from minivl.images import Preprocessing
from minivl.models.clip import CLIP, CLIPConfig, TextConfig
from minivl.models.vit import ViTConfig
from minivl.text.tokenizer import Tokenizer

VISION = ViTConfig((32, 32), (8, 8), 48, 3, 4, 80, num_classes=24, act="quick_gelu", eps=1e-5, pre_norm=True,
                   patch_bias=False, head_bias=False, resize="hf")  # 17 tokens
TEXT = TextConfig(99, 40, 2, 5, 72, 24, max_len=13, bos_id=97, eot_id=98)
ENDS = (5, 12, 1, 7, 5)  # of the texts below
CLOSE = {"atol": 5e-6, "rtol": 0}
SCALE = 0.15  # of the parameters: features are of order one


def tiny(act: str = "quick_gelu", seed: int = 0, **text: Any) -> CLIP:
    """A random CLIP of two different towers, its factor on cosines of an ordinary size."""
    model = CLIP(CLIPConfig(replace(VISION, act=act), replace(TEXT, act=act, **text)))
    randomise(model, seed, SCALE)
    return model


def pictures(count: int = 3, size: tuple[int, int] = (32, 32), seed: int = 1) -> Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(seed))


def texts(pad: int = 0, seed: int = 2) -> Tensor:
    """Five texts (5, 13): one fills every position, one is empty, in one the end token comes again later."""
    ids = torch.randint(1, 97, (len(ENDS), 13), generator=torch.Generator().manual_seed(seed))
    ids[:, 0] = 97
    for row, end in zip(ids, ENDS):
        row[end], row[end + 1:] = 98, pad
    ids[3, 9] = 98
    return ids


# -- transformers ------------------------------------------------------------------------------------------


def of_transformers(act: str = "quick_gelu", seed: int = 0) -> transformers.CLIPModel:
    vision = dict(hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4, image_size=32,
                  patch_size=8, hidden_act=act)
    text = dict(vocab_size=99, hidden_size=40, intermediate_size=72, num_hidden_layers=2, num_attention_heads=5,
                max_position_embeddings=13, hidden_act=act, bos_token_id=97, eos_token_id=98, pad_token_id=0)
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24,
                                     attn_implementation="eager")
    model = transformers.CLIPModel(config)
    randomise(model, seed, SCALE)
    return model


def from_transformers(theirs: transformers.CLIPModel, act: str = "quick_gelu") -> CLIP:
    """Ours with their weights, tower by tower."""
    state = theirs.state_dict()
    ours: dict[str, Tensor] = {"logit_scale": state["logit_scale"]}
    fixed = {"vision_model.embeddings.patch_embedding.weight": "visual.patch_embed.proj.weight",
             "visual_projection.weight": "visual.head.weight", "text_projection.weight": "text.head.weight",
             "text_model.embeddings.token_embedding.weight": "text.embed.weight",
             "text_model.embeddings.position_embedding.weight": "text.pos_embed"}
    ours.update({target: state[name] for name, target in fixed.items()})
    ours["visual.cls_token"] = state["vision_model.embeddings.class_embedding"][None, None]
    ours["visual.pos_embed"] = state["vision_model.embeddings.position_embedding.weight"][None]
    parts = {"vision_model.pre_layrnorm": "visual.norm_pre", "vision_model.post_layernorm": "visual.norm",
             "text_model.final_layer_norm": "text.norm", "vision_model.encoder.layers": "visual.blocks",
             "text_model.encoder.layers": "text.blocks", "layer_norm": "norm", "self_attn": "attn"}
    for name, tensor in state.items():
        if "encoder.layers" in name or "norm." in name:
            for part, target in parts.items():
                name = name.replace(part, target)
            ours[name] = tensor
    model = tiny(act, seed=7)
    model.load_state_dict(ours)
    return model


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
@torch.no_grad()
def test_features_logits_and_attention_equal_transformers(act: str) -> None:
    theirs = of_transformers(act)
    ours, images, ids = from_transformers(theirs, act), pictures(), texts()
    seen = torch.arange(13) <= torch.tensor(ENDS)[:, None]  # what its processor's mask says
    expected = theirs(input_ids=ids, pixel_values=images, attention_mask=seen.long(), output_attentions=True)
    record = AttnRecord()
    logits = ours(images, ids, attn=record)
    torch.testing.assert_close(logits, expected.logits_per_image, **CLOSE)
    assert logits.shape == (3, 5) and logits.std() > 0.03
    torch.testing.assert_close(ours.encode_image(images), theirs.get_image_features(images).pooler_output, **CLOSE)
    features = ours.encode_text(ids)
    torch.testing.assert_close(features, theirs.get_text_features(ids).pooler_output, **CLOSE)
    assert 0.3 < features.std() < 3 and features.norm(dim=-1).std() > 1e-2  # of order one, not normalised

    of_image, of_text = expected.vision_model_output.attentions, expected.text_model_output.attentions
    assert (len(of_image), len(of_text)) == (3, 2) and len(record) == 5
    for layer, weights in enumerate(of_image):
        torch.testing.assert_close(record["image", layer], weights, atol=1e-6, rtol=0)
        assert weights.std() > 1e-3
    future = torch.ones(13, 13, dtype=torch.bool).triu(1)
    for layer, weights in enumerate(of_text):
        got = record["text", layer]  # (5, 5, 13, 13)
        rows = seen[:, None, :, None]  # behind its end a text is masked there, and not here
        torch.testing.assert_close(got * rows, weights * rows, atol=1e-6, rtol=0)
        assert (got[:, :, future] == 0).all() and (got[:, :, ~future] > 0).all()
        torch.testing.assert_close(got.sum(-1), torch.ones(5, 5, 13), atol=1e-6, rtol=0)


@torch.no_grad()
def test_the_activation_and_the_first_norm_matter() -> None:
    """The comparisons above see both: with another activation, or without the norm, features are others."""
    theirs = of_transformers("quick_gelu")
    expected = theirs.get_image_features(pictures()).pooler_output
    assert (from_transformers(theirs, "gelu").encode_image(pictures()) - expected).abs().max() > 1e-3
    ours = from_transformers(theirs)
    ours.visual.norm_pre = nn.Identity()
    assert (ours.encode_image(pictures()) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("size", [(40, 24), (56, 32), (16, 16)])
@torch.no_grad()
def test_pictures_of_another_size_equal_transformers(size: tuple[int, int]) -> None:
    theirs = of_transformers(seed=3)
    ours, images, ids = from_transformers(theirs), pictures(size=size), texts()
    with pytest.raises(InputError, match="32, 32"):
        ours(images, ids)
    ours.visual.resize(size)
    expected = theirs(input_ids=ids, pixel_values=images, interpolate_pos_encoding=True, output_attentions=True)
    record = AttnRecord(sites="image")
    torch.testing.assert_close(ours(images, ids, attn=record), expected.logits_per_image, **CLOSE)
    features = theirs.get_image_features(images, interpolate_pos_encoding=True).pooler_output
    torch.testing.assert_close(ours.encode_image(images), features, **CLOSE)
    for layer, weights in enumerate(expected.vision_model_output.attentions):
        torch.testing.assert_close(record["image", layer], weights, atol=1e-6, rtol=0)
    assert ours.config.vision.image_size == size  # what a weight file will say


@torch.no_grad()
def test_a_whole_model_in_bfloat16() -> None:
    theirs = of_transformers()
    ours, images, ids = from_transformers(theirs), pictures(), texts()
    exact, record = ours(images, ids), AttnRecord()
    exactly = AttnRecord()
    ours(images, ids, attn=exactly)
    half = ours.bfloat16()
    logits = half(images.bfloat16(), ids, attn=record)
    assert logits.dtype == torch.bfloat16 and not torch.equal(logits.float(), exact)
    torch.testing.assert_close(logits.float(), exact, atol=0.05, rtol=0.05)
    for key in exactly:
        assert record[key].dtype == torch.float32
        torch.testing.assert_close(record[key], exactly[key], atol=0.03, rtol=0)
    expected = theirs.bfloat16()(input_ids=ids, pixel_values=images.bfloat16()).logits_per_image
    torch.testing.assert_close(logits, expected, atol=0.05, rtol=0.05)


# -- open_clip ---------------------------------------------------------------------------------------------


def from_open_clip(theirs: nn.Module, act: str, seed: int = 7) -> CLIP:
    """Ours with their weights: fused projections split, matrices of projections turned."""
    state, ours = theirs.state_dict(), {}
    for name, tensor in state.items():
        name = name if name.startswith(("visual.", "logit_scale")) else f"text.{name}"
        for part, target in {"transformer.resblocks": "blocks", "ln_1": "norm1", "ln_2": "norm2", "c_fc": "fc1",
                             "c_proj": "fc2", "ln_pre": "norm_pre", "ln_post": "norm", "ln_final": "norm",
                             "visual.conv1": "visual.patch_embed.proj", "token_embedding": "embed",
                             "positional_embedding": "pos_embed", "class_embedding": "cls_token"}.items():
            name = name.replace(part, target)
        if "in_proj" in name:
            for letter, third in zip("qkv", tensor.chunk(3)):
                ours[name.replace("in_proj_", f"{letter}_proj.")] = third
        elif name in ("visual.proj", "text.text_projection"):
            ours[name.split(".")[0] + ".head.weight"] = tensor.T
        else:
            ours[name] = {"visual.cls_token": tensor[None, None] if tensor.ndim else tensor,
                          "visual.pos_embed": tensor[None]}.get(name, tensor)
    model = tiny(act, seed)
    model.load_state_dict(ours)
    return model


@pytest.mark.parametrize(("act", "pool"), [("quick_gelu", "argmax"), ("gelu", "argmax"), ("gelu", "eos")])
@torch.no_grad()
def test_features_and_logits_equal_open_clip(act: str, pool: str) -> None:
    vision = dict(layers=3, width=48, head_width=12, mlp_ratio=80 / 48, patch_size=8, image_size=32)
    text = dict(context_length=13, vocab_size=99, width=40, heads=5, layers=2, mlp_ratio=1.8, pool_type=pool, eos_id=98)
    theirs = open_clip.model.CLIP(24, vision, text, quick_gelu=act == "quick_gelu")
    randomise(theirs, 4, SCALE)
    ours, images, ids = from_open_clip(theirs, act), pictures(), texts()
    torch.testing.assert_close(ours.encode_image(images), theirs.encode_image(images), **CLOSE)
    torch.testing.assert_close(ours.encode_text(ids), theirs.encode_text(ids), **CLOSE)
    logits, _ = theirs.get_logits(images, ids)
    torch.testing.assert_close(ours(images, ids), logits, **CLOSE)
    assert logits.std() > 0.03


# -- texts -------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_what_stands_behind_the_first_end_changes_nothing() -> None:
    model, ids = tiny(), texts()
    features = model.encode_text(ids)
    torch.testing.assert_close(model.encode_text(texts(pad=98)), features, **CLOSE)
    torch.testing.assert_close(model.encode_text(ids[[0, 2, 4], :6]), features[[0, 2, 4]], **CLOSE)
    torch.testing.assert_close(model.encode_text(ids.int()), features, atol=0, rtol=0)
    ids[0, 4] = ids[0, 4] % 96 + 1
    assert (model.encode_text(ids)[0] - features[0]).abs().max() > 1e-3


@pytest.mark.parametrize(("ids", "message"), [
    (torch.tensor([[97, 5, 98], [97, 5, 6]]), r"text 1 has no end-of-text token \(id 98\)"),
    (torch.tensor([[97, 99, 98]]), "ids from 97 to 99: the vocabulary has 99"),
    (torch.tensor([[97, -1, 98]]), "ids from -1 to 98"),
    (torch.full((1, 14), 98), r"14 text positions: this model has 13 \(max_len\)"),
    (torch.full((1, 3), 98.0), "float32"),
    (torch.ones(2, 3, dtype=torch.bool), "bool"),
    (torch.tensor([97, 98]), r"shape \(2,\)"),
    (torch.ones(2, 0, dtype=torch.long), r"shape \(2, 0\)"),
    (["a dog"], "list.*tokenize"),
])
def test_wrong_ids_are_refused(ids: Any, message: str) -> None:
    model = tiny()
    for call in (lambda: model.encode_text(ids), lambda: model(pictures(1), ids)):
        with pytest.raises(InputError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_no_texts_and_no_images_give_empty_logits() -> None:
    assert tiny()(pictures(2), torch.zeros(0, 4, dtype=torch.long)).shape == (2, 0)
    assert tiny()(torch.zeros(0, 3, 32, 32), texts()).shape == (0, 5)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["a dog runs on the grass", "two cats", "the end of a long text about dogs and cats"])


def test_tokenize(tokenizer: Tokenizer) -> None:
    special = {"bos_id": tokenizer.bos_id, "eot_id": tokenizer.eos_id}
    text = replace(TEXT, vocab_size=tokenizer.vocab_size, max_len=7, **special, pad_id=0)
    model = CLIP(CLIPConfig(VISION, text), tokenizer=tokenizer)
    given = ["two cats", "", "the end of a long text about dogs"]
    ids = model.tokenize(given)
    assert ids.shape == (3, 7) and ids.dtype == torch.int64
    bos, eos = tokenizer.bos_id, tokenizer.eos_id
    assert ids[0].tolist() == [bos, *tokenizer.encode("two cats"), eos, 0, 0, 0]
    assert ids[1].tolist() == [bos, eos, 0, 0, 0, 0, 0]
    assert ids[2].tolist() == [bos, *tokenizer.encode(given[2])[:5], eos]  # cut, its end stays
    assert model.encode_text(ids).shape == (3, 24)
    assert CLIP(CLIPConfig(VISION, replace(text, pad_id=5)), tokenizer=tokenizer).tokenize(["a"])[0, 3:].eq(5).all()
    with pytest.raises(InputError, match="one string"):
        model.tokenize("two cats")


def test_a_tokenizer_must_be_there_and_fit(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="no tokenizer"):
        tiny().tokenize(["a dog"])
    with pytest.raises(InputError, match=f"{tokenizer.vocab_size} entries, the text tower 99"):
        CLIP(CLIPConfig(VISION, TEXT), tokenizer=tokenizer)
    size, bos, eos = tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id
    for ids, message in (((eos, bos), f"bos_id is {bos} in the tokenizer, and bos_id {eos}"),
                         ((bos, bos + 2), f"eos_id is {eos} in the tokenizer, and eot_id {bos + 2}")):
        text = replace(TEXT, vocab_size=size, bos_id=ids[0], eot_id=ids[1])
        with pytest.raises(InputError, match=message):
            CLIP(CLIPConfig(VISION, text), tokenizer=tokenizer)


# -- config and header -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("wrong", "message"), [
    ({"vocab_size": 0}, "vocab_size=0"), ({"embed_dim": 2.5}, "embed_dim=2.5"), ({"max_len": -1}, "max_len=-1"),
    ({"eps": 0.0}, "eps=0.0"), ({"eot_id": 99}, "eot_id=99 is outside the vocabulary of 99"),
    ({"bos_id": -1}, "bos_id=-1"), ({"pad_id": None}, "pad_id=None"), ({"bos_id": 98}, "both 98"),
])
def test_a_text_tower_that_cannot_be(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(TEXT, **wrong)


def test_towers_need_features_of_one_width() -> None:
    with pytest.raises(InputError, match="num_classes=24 and text.embed_dim=25"):
        CLIPConfig(VISION, replace(TEXT, embed_dim=25))


def test_defaults_are_openais() -> None:
    text = TextConfig(49408, 512, 12, 8, 2048, 512)
    assert (text.max_len, text.act, text.eps, text.bos_id, text.eot_id, text.pad_id) == \
        (77, "quick_gelu", 1e-5, 49406, 49407, 0)
    model = CLIP(CLIPConfig(VISION, TEXT))
    assert model.logit_scale.shape == () and math.isclose(model.logit_scale.exp().item(), 1 / 0.07, rel_tol=1e-6)
    assert isinstance(model.logit_scale, nn.Parameter) and model.kind == "clip"
    assert model.visual.head.bias is None and model.text.head.bias is None
    assert model.cell == (8, 8) and model.attn_sites == {"image": (3, 4), "text": (2, 5)}


def test_config_and_header_go_through_json(tokenizer: Tokenizer) -> None:
    special = {"bos_id": tokenizer.bos_id, "eot_id": tokenizer.eos_id}
    config = CLIPConfig(VISION, replace(TEXT, vocab_size=tokenizer.vocab_size, **special))
    look = Preprocessing((32, 32), (0.5, 0.4, 0.3), (0.2, 0.2, 0.1))
    notes = {"name": "a pair of nothing", "scores": {"mean_recall": 0.25}}
    model = CLIP(config, tokenizer=tokenizer, preprocessing=look, notes=notes)
    randomise(model, 0, SCALE)
    model.visual.resize((40, 24))
    assert model.preprocessing is not None and model.preprocessing.size == (40, 24)
    header = json.loads(json.dumps({"config": asdict(model.config), **model.header()}))
    again = CLIP.from_header(header)
    again.load_state_dict(model.state_dict())
    assert again.config == model.config == replace(config, vision=replace(VISION, image_size=(40, 24)))
    assert again.preprocessing == model.preprocessing and again.notes == notes
    ids = again.tokenize(["two dogs", "the grass"])
    assert torch.equal(ids, model.tokenize(["two dogs", "the grass"]))
    images = pictures(size=(40, 24))
    assert torch.equal(again.eval()(images, ids), model(images, ids))
    with pytest.raises(TypeError, match="colour"):
        CLIPConfig.from_dict({**asdict(config), "colour": 1})
    with pytest.raises(TypeError, match="colour"):
        CLIPConfig.from_dict({**asdict(config), "text": {**asdict(config.text), "colour": 1}})
    bare = CLIP.from_header({"config": asdict(config), "preprocessing": None, "tokenizer": None})
    assert bare.tokenizer is None and bare.preprocessing is None and bare.notes == {}  # as files before notes
    bare.preprocessing = look
    assert bare.visual.preprocessing == look


def test_photos_are_preprocessed_as_the_image_tower_wants_them() -> None:
    from PIL import Image

    model = CLIP(CLIPConfig(VISION, TEXT), preprocessing=Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3))
    images, geometries = preprocess([Image.new("RGB", (50, 40), "red")], model)
    assert model.encode_image(images).shape == (1, 24) and len(geometries) == 1


# -- records -----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_named_rows_of_each_site() -> None:
    model, images, ids = tiny(), pictures(), texts()
    whole = AttnRecord()
    logits = model(images, ids, attn=whole)
    ends = torch.tensor(ENDS)
    # each name in calls that have both sites, and in calls of one tower
    for call in (lambda record: model(images, ids, attn=record), lambda record: model.encode_text(ids, attn=record)):
        record = AttnRecord(sites="text", queries="eot", layers=[-1])
        call(record)
        expected = whole["text", 1][torch.arange(5), :, ends][:, :, None]  # (5, 5, 1, 13)
        torch.testing.assert_close(record["text", -1], expected, atol=1e-6, rtol=0)
        assert len(record) == 1 and (record["text", 1] > 0).sum(-1).eq(ends[:, None, None] + 1).all()
    for call in (lambda record: model(images, ids, attn=record), lambda record: model.encode_image(images, record)):
        record = AttnRecord(sites=("image",), queries="class")
        call(record)
        assert list(record) == [("image", 0), ("image", 1), ("image", 2)]
        torch.testing.assert_close(record["image", 2], whole["image", 2][:, :, :1], atol=1e-6, rtol=0)
    for queries, site in (("class", "text"), ("eot", "image")):
        with pytest.raises(InputError, match=f"'{queries}'.*site {site}"):
            model(images, ids, attn=AttnRecord(queries=queries))
    assert torch.equal(model(images, ids), logits)


@torch.no_grad()
def test_rows_per_sample_count_the_batch_of_their_site() -> None:
    model, images, ids = tiny(), pictures(), texts()
    whole = AttnRecord()
    model(images, ids, attn=whole)
    for site, count in (("image", 3), ("text", 5)):
        rows = torch.arange(2 * count).view(count, 2) % 13
        record = AttnRecord(sites=site, queries=rows, heads=[1, 0])
        model(images, ids, attn=record)
        expected = torch.stack([weights[[1, 0]][:, row] for weights, row in zip(whole[site, 1], rows)])
        torch.testing.assert_close(record[site, 1], expected, atol=1e-6, rtol=0)
        with pytest.raises(InputError, match=f"4 rows for the batch of {count} of site {site}"):
            model(images, ids, attn=AttnRecord(sites=site, queries=torch.zeros(4, 1, dtype=torch.long)))


@pytest.mark.parametrize("detach", [True, False])
def test_outputs_with_a_record_are_those_without(detach: bool) -> None:
    model, images, ids = tiny(), pictures(), texts()
    logits = model(images, ids)
    got = model(images, ids, attn=AttnRecord(detach=detach))
    assert torch.equal(got, logits) if detach else torch.allclose(got, logits, atol=1e-5, rtol=0)


def test_gradients_of_recorded_weights() -> None:
    """Of a logit, with respect to the attention of both towers; of a text that ends early, none behind its end."""
    model, images, ids = tiny(), pictures(), texts()
    record = AttnRecord(detach=False)
    logits = model(images, ids, attn=record)
    weights = {key: record[key] for key in record}
    gradients = dict(zip(weights, torch.autograd.grad(logits[1, 0], list(weights.values()))))
    assert len(gradients) == 5
    for (site, _), gradient in gradients.items():
        of = {"image": 1, "text": 0}[site]  # the picture and the text of this logit, and no other
        assert gradient[of].abs().max() > 1e-4
        assert gradient[[i for i in range(len(gradient)) if i != of]].eq(0).all()
    last = gradients["text", 1][0]  # (h, T, T): only the row of the end is looked at
    assert last[:, 5].abs().max() > 1e-4 and last[:, [t for t in range(13) if t != 5]].eq(0).all()
    detached = AttnRecord()
    model(images, ids, attn=detached)
    assert not detached["text", 0].requires_grad


class NoNumbers(TorchDispatchMode):
    """No operation touches a number with a fraction."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        assert not any(isinstance(x, Tensor) and x.is_floating_point() for x in args), f"{func} ran"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("wanted", "message"), [
    ({"sites": ("encoder",)}, "'encoder'.*there are: image, text"), ({"layers": [2]}, "layer of text 2"),
    ({"heads": [4]}, "head of image 4"), ({"queries": [13]}, "row of text 13"),
])
def test_what_cannot_be_recorded_raises_before_any_compute(wanted: dict[str, Any], message: str) -> None:
    model, images, ids = tiny(), pictures(), texts()
    record = AttnRecord(**wanted)
    with NoNumbers(), pytest.raises(InputError, match=message):
        model(images, ids, attn=record)
    with NoNumbers(), pytest.raises(InputError, match="'text'.*there are: image"):
        model.encode_image(images, attn=AttnRecord(sites="text"))
    with NoNumbers(), pytest.raises(InputError, match="'image'.*there are: text"):
        model.encode_text(ids, attn=AttnRecord(sites="image"))
    with NoNumbers(), pytest.raises(InputError, match="no end-of-text"):
        model(images, ids[:, :3], attn=AttnRecord())


def test_a_record_is_filled_once_and_is_as_new_after_an_exception() -> None:
    model, images, ids = tiny(), pictures(), texts()
    record = AttnRecord()

    def stop(*_: Any) -> None:
        raise RuntimeError("stopped")

    hook = model.text.blocks[1].mlp.register_forward_hook(stop)  # the image tower has filled its part by then
    with pytest.raises(RuntimeError, match="stopped"):
        model(images, ids, attn=record)
    hook.remove()
    assert len(record) == 0
    with pytest.raises(InputError, match="empty"):
        record["image", 0]
    model(images, ids, attn=record)
    assert len(record) == 5
    with pytest.raises(InputError, match="earlier call"):
        model(images, ids, attn=record)


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler's own imports
@torch.no_grad()
def test_compiled_without_a_graph_break(fresh_compiler: None) -> None:
    model, images, ids = tiny(), pictures(), texts()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    expected, record = AttnRecord(sites="text", queries="eot"), AttnRecord(sites="text", queries="eot")
    logits = model(images, ids, attn=expected)
    torch.testing.assert_close(compiled(images, ids, attn=record), logits, atol=1e-6, rtol=0)
    for key in expected:
        torch.testing.assert_close(record[key], expected[key], atol=1e-6, rtol=0)
    ids[2, 1] = 3
    with pytest.raises(RuntimeError, match="without an end"):
        compiled(images, ids)
