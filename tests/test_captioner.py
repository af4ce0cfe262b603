"""The captioner: what it trains on, decodes and replays is one and the same function."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from random_models import ENCODER, SIZES, captioner, pictures, texts
from torch import Tensor

from minivl.errors import InputError
from minivl.images import Preprocessing, preprocess
from minivl.models.captioner import Captioner, CaptionerConfig
from minivl.models.decoder import DecoderConfig
from minivl.nn.record import AttnRecord
from minivl.text.tokenizer import Tokenizer

SETTINGS = Preprocessing((12, 8), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), crop_pct=1.0)


def speaking(seed: int = 0) -> Captioner:
    """A captioner with words."""
    tokenizer = Tokenizer.train(["a red dog runs", "two dogs on a hill", "the hill"])
    config = DecoderConfig(**{**SIZES, "vocab_size": tokenizer.vocab_size})
    model = captioner(seed, vocab_size=tokenizer.vocab_size)
    spoken = Captioner(CaptionerConfig(ENCODER, config), tokenizer=tokenizer, preprocessing=SETTINGS)
    spoken.load_state_dict(model.state_dict())
    return spoken.eval()


@torch.no_grad()
def test_forward_is_encoder_projection_and_decoder() -> None:
    model, images, ids = captioner(), pictures(), texts(2, 7)
    tokens = model.encoder.encode(images)
    seen = model.encode(images)
    torch.testing.assert_close(seen.tokens, tokens @ model.proj.weight.T + model.proj.bias)
    assert (seen.pos, seen.mask, seen.n_prefix, seen.grid) == (None, None, 1, (3, 2))
    logits = model(images, ids)
    assert logits.shape == (2, 7, 11)
    torch.testing.assert_close(logits, model.decoder(ids, seen))
    assert not torch.allclose(logits, model(images.flip(0), ids), atol=1e-2)  # it looks at the pictures
    for given in (seen, model.memory(tokens)):
        assert torch.equal(model(None, ids, memory=given), logits)
        assert torch.equal(model.replay(None, ids, memory=given), logits)


@torch.no_grad()
def test_no_row_sees_a_later_token() -> None:
    model, images, ids = captioner(), pictures(), texts(2, 8)
    before = model(images, ids)
    for t in range(7):
        changed = ids.clone()
        changed[:, t + 1] = (ids[:, t + 1] + 3) % 11
        after = model(images, changed)
        assert torch.equal(after[:, :t + 1], before[:, :t + 1])
        assert ((after[:, t + 1:] - before[:, t + 1:]).abs().amax(-1) > 1e-4).all()


@pytest.mark.parametrize("prompt", [1, 4])
@torch.no_grad()
def test_steps_equal_the_teacher_forced_pass(prompt: int) -> None:
    model, images, ids = captioner(), pictures(), texts(2, 12)
    whole, state = model(images, ids), model.start(model.encode(images))
    pieces = [model.step(ids[:, :prompt], state)]
    pieces += [model.step(ids[:, t:t + 1], state) for t in range(prompt, 12)]
    torch.testing.assert_close(torch.cat(pieces, 1), whole, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_many_captions_of_an_image_at_once() -> None:
    model, images, ids = captioner(), pictures(3), texts(6, 5)
    repeated = model(images.repeat_interleave(2, 0), ids)
    torch.testing.assert_close(model(images, ids), repeated, atol=1e-5, rtol=1e-5)


# -- attention -----------------------------------------------------------------------------------------------

@torch.no_grad()
def test_replay_gives_every_sites_weights() -> None:
    model, images, ids = captioner(), pictures(), texts(2, 6)
    record = AttnRecord()
    logits = model.replay(images, ids, attn=record)
    assert torch.equal(logits, model(images, ids))
    assert model.attn_sites == {"encoder": (2, 3), "self": (2, 4), "cross": (2, 4)}
    assert set(record) == {(site, layer) for site in model.attn_sites for layer in range(2)}
    encoder = AttnRecord()
    model.encoder(images, attn=encoder)
    assert torch.equal(record["encoder", 1], encoder["encoder", 1])
    assert record["encoder", 1].shape == (2, 3, 7, 7)

    inputs: dict[str, Tensor] = {}
    block = model.decoder.blocks[1]
    hooks = [module.register_forward_pre_hook(lambda module, args, name=name: inputs.update({name: args[0]}))
             for name, module in (("q", block.cross.q_proj), ("k", block.cross.k_proj), ("own", block.attn))]
    model(images, ids)
    for hook in hooks:
        hook.remove()
    q, k = block.cross.q_proj(inputs["q"]), block.cross.k_proj(inputs["k"])
    for head in range(4):
        part = slice(8 * head, 8 * head + 8)
        expected = (q[..., part] @ k[..., part].mT / 8 ** 0.5).softmax(-1)
        torch.testing.assert_close(record["cross", 1][:, head], expected, atol=1e-6, rtol=0)
    q, k = block.attn.q_proj(inputs["own"]), block.attn.k_proj(inputs["own"])
    scores = (q[..., :8] @ k[..., :8].mT / 8 ** 0.5).masked_fill(torch.ones(6, 6).triu(1).bool(), -torch.inf)
    torch.testing.assert_close(record["self", 1][:, 0], scores.softmax(-1), atol=1e-6, rtol=0)


@torch.no_grad()
def test_replayed_rows_are_those_of_the_steps() -> None:
    """Row t of the replay is the look of the step that chose token t + 1."""
    model, images = captioner(), pictures()
    caption = model.caption(images, beams=3, max_len=6)[1]
    record = AttnRecord(sites=("cross",))
    logits = model.replay(images[1:], [caption], attn=record)
    seen = model.encode(images[1:])
    state = model.start(seen)
    for t, token in enumerate(caption.ids[:-1]):
        block = model.decoder.blocks[1]
        caught: list[Tensor] = []
        hook = block.cross.q_proj.register_forward_hook(lambda module, args, out: caught.append(out))
        step = model.step(torch.tensor([[token]]), state)
        hook.remove()
        keys = state.cross_caches[1].k[0]  # (h, N, d)
        looks = (caught[0].view(4, 1, 8) @ keys.mT / 8 ** 0.5).softmax(-1)[:, 0]
        torch.testing.assert_close(record["cross", 1][0, :, t], looks, atol=1e-6, rtol=0)
        torch.testing.assert_close(logits[0, t], step[0, 0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_replay_pads_and_does_not_mind() -> None:
    model, images = captioner(), pictures(3)
    rows = [[2, 5, 6, 3], [2, 4], [2, 9, 8, 7, 6, 5, 3]]
    record = AttnRecord(sites="cross", layers=[1])
    together = model.replay(images, rows, attn=record)
    assert together.shape == (3, 7, 11)
    for i, row in enumerate(rows):
        one = AttnRecord(sites="cross", layers=[1])
        alone = model.replay(images[i:i + 1], torch.tensor([row]), attn=one)
        torch.testing.assert_close(together[i, :len(row)], alone[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(record["cross", 1][i, :, :len(row)], one["cross", 1][0], atol=1e-6, rtol=0)


def test_memory_has_no_encoder_to_record() -> None:
    model, ids = captioner(), texts(2, 4)
    seen, record = model.encode(pictures()), AttnRecord()
    model.replay(None, ids, attn=record, memory=seen)
    assert {site for site, _ in record} == {"self", "cross"}
    with pytest.raises(InputError, match="encoder"):
        model.replay(None, ids, attn=AttnRecord(sites=("encoder",)), memory=seen)


# -- captions ------------------------------------------------------------------------------------------------

def test_captions_can_be_read_and_replayed() -> None:
    model = speaking()
    for caption in model.caption(pictures(4), max_len=8, n_best=2):
        assert caption.ids[0] == 2 and 3 not in caption.ids[:-1] and len(caption.ids) <= 9
        assert caption.text == model.tokenizer.decode(caption.ids)
        assert " ".join(word.text for word in caption.words) == caption.text
        assert caption.others[0].text is not None and caption.others[0].logprob <= caption.logprob
    wordless = captioner()
    caption = wordless.caption(pictures(1), max_len=4)[0]
    assert caption.text is None and caption.words is None and caption.others == ()


@torch.no_grad()
def test_logprob_is_the_teacher_forced_sum() -> None:
    model, images = captioner(3, scale=0.3), pictures(5)
    for normalise in ("none", "mean"):
        captions = model.caption(images, beams=4, max_len=9, normalise=normalise, n_best=3)
        everything = [(i, one) for i, best in enumerate(captions) for one in (best, *best.others)]
        for i, one in everything:
            logp = model.replay(images[i:i + 1], [one]).log_softmax(-1)[0]
            total = sum(float(logp[t, token]) for t, token in enumerate(one.ids[1:]))
            assert one.logprob == pytest.approx(total, abs=1e-5)
            divisor = len(one.ids) - 1 if normalise == "mean" else 1
            assert one.score == pytest.approx(total / divisor, abs=1e-5)


def test_the_longest_caption_can_still_be_replayed() -> None:
    """<BOS> takes a position too, and a caption that never ends is fed to `replay` whole."""
    model, images = captioner(), pictures()
    with torch.no_grad():
        model.decoder.head.bias[3] = -100.0  # <EOS> never comes
    captions = model.caption(images, max_len=11)
    assert {len(one.ids) for one in captions} == {12} and model.config.decoder.max_len == 12
    assert model.replay(images, captions).shape == (2, 12, 11)
    with pytest.raises(InputError, match="12"):
        model.caption(images, max_len=12)


def test_photos_paths_tensors_and_memory_give_the_same(tmp_path: Path) -> None:
    model = speaking()
    photos = [Image.fromarray(np.random.default_rng(i).integers(0, 255, (30 + 9 * i, 40, 3), dtype=np.uint8))
              for i in range(3)]
    files = []
    for i, photo in enumerate(photos):
        files.append(tmp_path / f"{i}.png")
        photo.save(files[-1])
    tensor, _ = preprocess(photos, model)
    expected = model.caption(tensor, max_len=6)
    assert len({one.ids for one in expected}) > 1
    for given in (photos, files, tuple(map(str, files)), model.encode(tensor)):
        assert [one.ids for one in model.caption(given, max_len=6)] == [one.ids for one in expected]
    assert [one.ids for one in model.caption(files, max_len=6, batch_size=2)] == [one.ids for one in expected]
    assert model.caption([], max_len=6) == [] and model.caption(tensor[:0], max_len=6) == []


def test_captioning_leaves_the_mode_as_it_was() -> None:
    model = captioner(dropout=0.5)
    model.train()
    first, second = (model.caption(pictures(), max_len=5) for _ in range(2))
    assert first == second and model.training and model.decoder.training  # no dropout while decoding
    with pytest.raises(InputError):
        model.caption(pictures()[:, :2])
    assert model.training
    model.eval()
    model.caption(pictures(), max_len=5)
    assert not model.training


def test_progress_sees_every_batch() -> None:
    seen: list[int] = []

    def watch(batches: range) -> object:
        for batch in batches:
            seen.append(batch)
            yield batch

    captioner().caption(pictures(5), max_len=3, batch_size=2, progress=watch)
    assert seen == [0, 2, 4]


# -- mistakes ------------------------------------------------------------------------------------------------

def test_mistakes_of_forward_and_replay() -> None:
    model, images, ids = captioner(), pictures(), texts(2, 4)
    seen = model.encode(images)
    computed: list[int] = []
    hook = model.encoder.blocks[0].register_forward_pre_hook(lambda module, args: computed.append(1))
    calls = [
        ("one of the two", lambda: model(None, ids)),
        ("one of the two", lambda: model(images, ids, memory=seen)),
        (r"\(4,\)", lambda: model(images, ids[0])), (r"\(2, 0\)", lambda: model(images, ids[:, :0])),
        ("13", lambda: model(images, texts(2, 13))), ("3 captions for 2", lambda: model(images, texts(3, 4))),
        ("12, 8", lambda: model(images.mT, ids)),
        ("nowhere", lambda: model(images, ids, attn=AttnRecord("nowhere"))),
        ("layer", lambda: model(images, ids, attn=AttnRecord(layers=[2]))),
        ("row", lambda: model(images, ids, attn=AttnRecord("cross", queries=[4]))),
        ("row", lambda: model(images, ids, attn=AttnRecord("self", queries=[-5]))),
        ("head", lambda: model(images, ids, attn=AttnRecord("encoder", heads=[3]))),
        ("image_mask", lambda: model.replay(images, ids, image_mask=torch.ones(2, 12, 8, dtype=torch.bool))),
        ("3 captions for 2", lambda: model.replay(images, [[2], [2], [2]])),
        ("4 captions for 2", lambda: model.replay(images, texts(4, 4))),
        ("11", lambda: model.replay(images, [[2, 11], [2]])),
        ("-1", lambda: model.replay(images, [[2, -1], [2]])),
        ("at least one", lambda: model.replay(images, [[2, 4], []])),
        ("at least one", lambda: model.replay(images, [])),
        ("13", lambda: model.replay(images, [[2] * 13, [2]])),
        ("one of the two", lambda: model.replay(None, [[2]])),
        ("7, 24", lambda: model.memory(torch.zeros(2, 6, 24))),
    ]
    for message, call in calls:
        with pytest.raises(InputError, match=message):
            call()
    hook.remove()
    assert not computed  # refused before any compute


def test_mistakes_of_caption(tmp_path: Path) -> None:
    model, images = captioner(), pictures()
    (tmp_path / "text.jpg").write_text("no picture")
    calls = [
        ("13", {"max_len": 13}), ("max_len", {"max_len": 0}), ("beams", {"beams": 0}),
        ("n_best", {"n_best": 4}), ("length", {"normalise": "length"}), ("batch_size", {"batch_size": 0}),
        ("batch_size", {"batch_size": -1}),
    ]
    for message, options in calls:
        with pytest.raises(InputError, match=message):
            model.caption(images, **{"max_len": 5, **options})
    spoken = speaking()
    for message, given in (("text.jpg", [tmp_path / "text.jpg"]), ("missing.jpg", ["missing.jpg"]),
                           ("list", "photo.jpg"), ("list", tmp_path / "photo.jpg"),
                           ("list", Image.new("RGB", (9, 9))), ("12, 8", images[0])):
        with pytest.raises(InputError, match=message):
            spoken.caption(given, max_len=5)
    with pytest.raises(InputError, match="preprocessing"):
        model.caption([Image.new("RGB", (9, 9))], max_len=5)


def test_a_broken_model_says_so() -> None:
    model = captioner()
    with torch.no_grad():
        model.proj.weight[0, 0] = torch.nan
    with pytest.raises(InputError, match="nan"):
        model.caption(pictures(), max_len=5)


def test_parts_that_do_not_fit() -> None:
    config = captioner().config
    with pytest.raises(InputError, match="num_classes"):
        CaptionerConfig(replace(ENCODER, num_classes=3), config.decoder)
    tokenizer = Tokenizer.train(["a b c d e f g"])  # 11 entries, <BOS> 2, <EOS> 3
    Captioner(config, tokenizer=tokenizer)
    with pytest.raises(InputError, match="12"):
        Captioner(config, tokenizer=Tokenizer.train(["a b c d e f g h"]))
    with pytest.raises(InputError, match="eos_id"):
        Captioner(CaptionerConfig(ENCODER, replace(config.decoder, eos_id=5)), tokenizer=tokenizer)
