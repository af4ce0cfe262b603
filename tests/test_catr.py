"""CATR: its published layout, number for number, and captions of photos of every size."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from catr_reference import SIZES, Reference, catr_state
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import minivl
from minivl.errors import InputError
from minivl.images import Preprocessing, image_mask, preprocess
from minivl.loading import convert
from minivl.models.captioner import Captioner, CaptionerConfig
from minivl.models.grid import GridConfig
from minivl.nn.record import AttnRecord

LONG = Preprocessing((96, 96), (0.5,) * 3, (0.5,) * 3, mode="long")
PUBLISHED = {"layers": (3, 4, 23, 3), "width": 256, "depth": 6, "mlp_dim": 2048, "vocab_size": 30522,
             "max_len": 128, "head_dim": 512}


def worst(one: Tensor, other: Tensor) -> float:
    assert one.shape == other.shape
    return (one - other).abs().max().item()


def ours(state: dict[str, Tensor]) -> Captioner:
    model = minivl.from_state_dict(state)
    assert isinstance(model, Captioner) and not model.training
    return model


# -- the published size --------------------------------------------------------------------------------------

class Golden(NamedTuple):
    """What CATR itself computed, and the weights it computed it with."""

    keys: dict[str, list]
    state: dict[str, Tensor]
    case: dict[str, Tensor]


@pytest.fixture(scope="module")
def golden(shared: Path) -> Golden:
    folder = shared / "golden"
    sys.path.insert(0, str(folder))
    try:
        from seeded import seeded_state_dict
    finally:
        sys.path.remove(str(folder))
    keys = json.loads((folder / "catr_keys.json").read_text())
    return Golden(keys, seeded_state_dict(keys, seed=7), load_file(folder / "catr_case.safetensors"))


@pytest.mark.shared
@torch.no_grad()
def test_the_published_layout_gives_catrs_numbers(golden: Golden) -> None:
    model, family, _, receipt = convert(golden.state)
    assert family == "catr" and set(receipt.used) == set(golden.keys) and not receipt.dropped
    assert isinstance(model, Captioner) and isinstance(model.config.encoder, GridConfig)
    assert {**asdict(model.config.encoder), **asdict(model.config.decoder)}.items() >= {
        "layers": (3, 4, 23, 3), "width": 256, "depth": 6, "num_heads": 8, "mlp_dim": 2048, "vocab_size": 30522,
        "max_len": 128, "head_dim": 512, "bos_id": 101, "eos_id": 102, "pad_id": 0}.items()
    assert model.preprocessing == Preprocessing((299, 299), (0.5,) * 3, (0.5,) * 3, mode="long")
    case, record = golden.case, AttnRecord()
    ids, picture = case["ids"][:, :9], ~case["image_mask"]
    logits = model.replay(case["image"], ids, attn=record, image_mask=picture)
    assert worst(logits, case["logits"]) < 1e-5 and 1 < case["logits"].abs().max() < 3  # measured 1.5e-6
    assert worst(record["cross", 0], case["cross_attention_first_layer"]) < 1e-6  # measured 1e-7
    assert worst(record["cross", -1], case["cross_attention_last_layer"]) < 1e-6
    whole = model.replay(case["image"], case["ids"], image_mask=picture)  # padded ids behind change nothing
    assert worst(whole[:, :9], case["logits"]) < 1e-5
    # and the weights of every other layer
    reference = Reference(golden.state)
    assert worst(reference(case["image"], ids, case["image_mask"]), case["logits"]) < 1e-5
    assert len(record) == len(reference.weights) == 18
    assert max(worst(record[key], reference.weights[key]) for key in record) < 1e-6
    # a mask the wrong way round is refused, and had it not been, would show
    with pytest.raises(InputError, match="True = picture"):
        model.replay(case["image"], ids, image_mask=case["image_mask"])
    memory = model.encoder.look(case["image"][1:], case["image_mask"][1:], None)
    assert worst(model.replay(None, ids[1:], memory=memory), case["logits"][1:]) > 0.1
    with pytest.raises(InputError, match="image 1 of the batch ends in a row or column of exact zeros"):
        model.replay(case["image"], ids)


@pytest.mark.shared
def test_small_ones_have_the_published_names(golden: Golden) -> None:
    with torch.device("meta"):
        names = {name: list(tensor.shape) for name, tensor in catr_state(**PUBLISHED).items()}
    assert names == {name: shape for name, (shape, _) in golden.keys.items()}


# -- small ones ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("seed, changes", [
    (0, {}), (1, {"layers": (2, 1, 3, 2), "width": 64, "depth": 3, "mlp_dim": 20, "head_dim": 72})])
@pytest.mark.parametrize("size, contents", [
    ((64, 80), None), ((50, 77), None), ((96, 80), [(96, 80), (60, 41), (33, 80)]), ((1, 17), None)])
def test_logits_and_every_weight_are_the_references(seed: int, changes: dict, size: tuple[int, int],
                                                    contents: list[tuple[int, int]] | None) -> None:
    state = catr_state(seed, **changes)
    model, reference = ours(state), Reference(state)
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(3, 3, *size, generator=generator)
    ids = torch.randint(0, SIZES["vocab_size"], (3, 11), generator=generator)
    ids[:, 2] = 7
    mask = None
    if contents is not None:
        mask = torch.zeros(3, *size, dtype=torch.bool)
        for row, (height, width) in zip(mask, contents, strict=True):
            row[:height, :width] = True
        images = images * mask[:, None]
    record = AttnRecord()
    with torch.no_grad():
        logits = model.replay(images, ids, attn=record, image_mask=mask)
    expected = reference(images, ids, None if mask is None else ~mask)
    assert worst(logits, expected) < 1e-5 * expected.abs().max() and expected.std() > 0.2
    assert set(record) == set(reference.weights)
    assert max(worst(record[key], reference.weights[key]) for key in record) < 1e-6
    assert size == (1, 17) or all(weights.amax() > 1.5 / weights.shape[-1] for weights in reference.weights.values())


def test_masked_cells_are_not_looked_at() -> None:
    model, images = ours(catr_state()), torch.randn(2, 3, 64, 64)
    mask = torch.ones(2, 64, 64, dtype=torch.bool)
    mask[1, 30:] = mask[1, :, 40:] = False
    record = AttnRecord()
    with torch.no_grad():
        model.replay(images, [[101, 5, 6], [101, 7]], attn=record, image_mask=mask)
    cells = torch.zeros(4, 4, dtype=torch.bool)
    cells[:2, :3] = True
    for key in record:
        if key[0] != "self":
            weights = record[key][1]
            assert not weights[..., ~cells.flatten()].any() and (weights[..., cells.flatten()] > 0).all()


@torch.no_grad()
def test_half_precision() -> None:
    images, ids = torch.randn(2, 3, 80, 64), torch.randint(0, 120, (2, 9))
    model = ours(catr_state())
    exact = model.replay(images, ids)
    with torch.autocast("cpu", torch.bfloat16):
        cast = model.replay(images, ids).float()
    low = model.bfloat16().replay(images.bfloat16(), ids).float()
    for other in (cast, low):
        assert 1e-4 < (other - exact).abs().mean() < 0.05 * exact.std()


# -- captions ------------------------------------------------------------------------------------------------

def photos() -> list[Image.Image]:
    """Of five sizes; the first, fourth and last become tensors of one size."""
    shapes = [(60, 80), (80, 60), (50, 31), (120, 160), (70, 70), (10, 97), (60, 80)]
    generator = torch.Generator().manual_seed(4)
    colours = (torch.rand(len(shapes), 2, 2, 3, generator=generator) * 256).byte().numpy()
    return [Image.fromarray(four).resize((width, height)) for four, (height, width) in zip(colours, shapes)]


def speaking() -> dict[str, Tensor]:
    """A small CATR whose captions end, and differ from photo to photo."""
    state = catr_state(3)
    for name in state:
        if name.endswith("multihead_attn.out_proj.weight"):
            state[name] *= 4
    state["mlp.layers.2.weight"] *= 3
    state["mlp.layers.2.bias"][102] += 3
    return state


@pytest.fixture(scope="module")
def speaker() -> Captioner:
    model = ours(speaking())
    model.preprocessing = LONG
    return model


@pytest.mark.parametrize("beams", [1, 3])
def test_photos_together_are_captioned_as_one_by_one(speaker: Captioner, beams: int) -> None:
    together = speaker.caption(photos(), beams=beams, max_len=15)
    alone = [speaker.caption([photo], beams=beams, max_len=15)[0] for photo in photos()]
    tensors = [speaker.caption(preprocess([photo], speaker)[0], beams=beams, max_len=15)[0] for photo in photos()]
    assert [one.ids for one in together] == [one.ids for one in alone] == [one.ids for one in tensors]
    assert [one.logprob for one in together] == pytest.approx([one.logprob for one in alone], abs=1e-4)
    assert len({one.ids for one in together}) > 4 and len({len(one.ids) for one in together}) > 2
    split = speaker.caption(photos(), beams=beams, max_len=15, batch_size=3)
    assert [one.ids for one in split] == [one.ids for one in together]


def test_greedy_captions_are_the_references(speaker: Captioner) -> None:
    reference = Reference(speaking())
    for photo, caption in zip(photos(), speaker.caption(photos(), beams=1, max_len=15)):
        images, _ = preprocess([photo], speaker)
        ids, logprob = [101], 0.0
        while len(ids) <= 15 and ids[-1] != 102:
            scores = reference(images, torch.tensor([ids]))[0, -1].log_softmax(-1)
            logprob += scores.max().item()
            ids.append(int(scores.argmax()))
        assert list(caption.ids) == ids and caption.logprob == pytest.approx(logprob, abs=1e-4)


def test_padded_photos_and_their_mask(speaker: Captioner) -> None:
    images, geometries = preprocess(photos(), speaker)
    with pytest.raises(InputError, match="image 0 .*exact zeros"):
        speaker.caption(images, max_len=5)
    mask = image_mask(geometries)
    with torch.no_grad():
        memory = speaker.encode(images, image_mask=mask)
        captions = speaker.caption(memory, max_len=5)
        record = AttnRecord(sites=("cross",))
        logits = speaker.replay(images, captions, attn=record, image_mask=mask)
        assert worst(speaker.replay(None, captions, memory=memory), logits) < 1e-5
    assert memory.grid == (6, 6) and record["cross", 0].shape == (7, 8, logits.shape[1], 36)
    for row, caption in enumerate(captions):
        steps = logits[row, :len(caption.ids) - 1].log_softmax(-1)
        told = steps.gather(1, torch.tensor(caption.ids[1:])[:, None]).sum().item()
        assert told == pytest.approx(caption.logprob, abs=1e-4)
    with pytest.raises(InputError, match="image_mask belongs to images"):
        speaker.replay(None, captions, memory=memory, image_mask=mask)
    with pytest.raises(InputError, match="use encode"):
        speaker.memory(memory.tokens)


def test_a_record_asks_for_cells(speaker: Captioner) -> None:
    images = preprocess(photos()[:1], speaker)[0]  # 72 x 96: 5 x 6 cells
    assert speaker.attn_sites == {"encoder": (2, 8), "self": (2, 8), "cross": (2, 8)} and speaker.cell == (16, 16)
    record = AttnRecord(sites=("encoder",), layers=[-1], queries=[29], heads="mean")
    speaker.encode(images, attn=record)
    assert record["encoder", 1].shape == (1, 1, 1, 30)
    with pytest.raises(InputError, match="no row of encoder 30: there are 30"):
        speaker.encode(images, attn=AttnRecord(queries=[30]))
    with pytest.raises(InputError, match="no row of that name"):
        speaker.encode(images, attn=AttnRecord(queries="class"))


# -- conversion ----------------------------------------------------------------------------------------------

def test_the_config_is_read_off_the_tensors_and_survives_json() -> None:
    sizes = {"layers": (1, 2, 3, 1), "width": 64, "depth": 3, "mlp_dim": 20, "vocab_size": 150, "max_len": 30,
             "head_dim": 16}
    model = ours(catr_state(**sizes))
    encoder, decoder = asdict(model.config.encoder), asdict(model.config.decoder)
    assert {key: {**decoder, **encoder}[key] for key in sizes} == sizes
    for part in (encoder, decoder):
        assert (part["depth"], part["width"], part["num_heads"], part["act"], part["eps"]) == (3, 64, 8, "relu", 1e-5)
    assert not model.config.project and decoder["memory_width"] == 64 and decoder["embed_eps"] == 1e-12
    assert CaptionerConfig.from_dict(json.loads(json.dumps(asdict(model.config)))) == model.config


def test_each_tensor_is_needed_as_it_is() -> None:
    whole, some = catr_state(), ("backbone.0.body.layer3.0.bn2", "backbone.0.body.layer3.0.downsample")
    names = [name for name in whole if name.startswith(some)
             or not name.startswith("backbone.0.body.layer") and ".layers.1." not in name]
    assert len(names) > 50
    for name in names:
        state = {key: tensor for key, tensor in whole.items() if key != name}
        with pytest.raises(InputError, match=rf"1 missing: {name}$"):
            minivl.from_state_dict(state)
        if "position_embeddings" in name:  # whose rows alone tell how many there are
            continue
        state[name] = torch.cat([whole[name], whole[name][:3]])
        with pytest.raises(InputError, match=rf"1 of another shape: {name} \(\d+.*\) instead of \(\d+.*\)$"):
            minivl.from_state_dict(state)


def test_tensors_of_nothing_are_refused() -> None:
    strange = ["transformer.encoder.layers.0.norm3.weight", "backbone.0.body.fc.weight.x", "query_embed.weight",
               "transformer.decoder.layers.0.self_attn.q_proj_weight", "transformer.other.norm.weight"]
    state = {**catr_state(), **{name: torch.zeros(32) for name in strange}}
    with pytest.raises(InputError, match="5 unexpected") as caught:
        minivl.from_state_dict(state)
    assert all(name in str(caught.value) for name in strange)
