"""The captioner: what it trains on, decodes and replays is one and the same function."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from random_models import ENCODER, SIZES, captioner, pictures, texts
from torch import Tensor

from minivl.errors import InputError
from minivl.images import Preprocessing, preprocess
from minivl.models.captioner import Caption, Captioner, CaptionerConfig
from minivl.models.decoder import DecoderConfig
from minivl.nn.record import AttnRecord
from minivl.search import Options
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


# -- decoding as one likes -----------------------------------------------------------------------------------

def leaning_to(model: Captioner, id: int, much: float) -> Captioner:
    """The model, liking one token more than it did."""
    with torch.no_grad():
        model.decoder.head.bias[id] += much
    return model


def test_an_unknown_word_is_not_said_unless_it_may() -> None:
    images = pictures(6)
    for options in ({"beams": 1}, {"beams": 4, "n_best": 4}, {"samples": 5}, {"beams": 4, "groups": 2}):
        model = leaning_to(speaking(), 1, 4.0)
        assert model.tokenizer is not None and model.tokenizer.unk_id == 1
        told = [one for first in model.caption(images, max_len=8, **options) for one in (first, *first.others)]
        assert not any(1 in one.ids for one in told)
        free = [one for first in model.caption(images, max_len=8, allow_unknown=True, **options)
                for one in (first, *first.others)]
        assert sum(1 in one.ids for one in free) > 0.8 * len(free)
        for image, one in ((0, told[0]), (0, free[0])):  # nothing is renormalised
            logp = model.replay(images[image:image + 1], [one]).detach().log_softmax(-1)[0]
            assert one.logps == pytest.approx([float(logp[t, id]) for t, id in enumerate(one.ids[1:])], abs=1e-5)


def test_words_that_must_and_must_not_appear() -> None:
    model, images = speaking(), pictures(6)
    plain = [one.text for one in model.caption(images, max_len=9)]
    said = {word for text in plain for word in (text or "").split()}
    for word in sorted({"hill", "dogs", "red"} - said) or ["hill"]:
        for beams in (1, 3):
            for one in model.caption(images, max_len=9, beams=beams, required=[word, "two dogs"]):
                assert one.words is not None and word in [found.text for found in one.words]
                assert "two dogs" in (one.text or "")
    for text in model.caption(images, max_len=9, forbidden=sorted(said)):
        assert not said & set((text.text or "").split())
    for one in model.caption(images, max_len=9, required=["Hill!"], forbidden=["a", "red dog"], min_len=5,
                             no_repeat_ngram=1):
        words = (one.text or "").split()
        assert "hill" in words and "a" not in words and len(one.ids) >= 6 and len(set(one.ids)) == len(one.ids)


def test_a_prefix_is_given_and_not_counted() -> None:
    model, images = speaking(), pictures(4)
    assert model.tokenizer is not None
    begin = (2, *model.tokenizer.encode("two dogs"))
    for options in ({"beams": 1}, {"beams": 3, "n_best": 2}, {"samples": 2}, {"beams": 4, "groups": 2}):
        for image, one in enumerate(model.caption(images, max_len=5, prefix="Two dogs", **options)):
            assert one.ids[:3] == begin and len(one.ids) <= 8 and (one.text or "").startswith("two dogs")
            logp = model.replay(images[image:image + 1], [one]).detach().log_softmax(-1)[0]
            each = [float(logp[t, id]) for t, id in enumerate(one.ids[1:])]
            assert one.logps == pytest.approx([0.0, 0.0, *each[2:]], abs=1e-5)
            assert one.probabilities is not None and one.probabilities[:2] == (1.0, 1.0)
    required = model.caption(images, max_len=4, prefix="two dogs", required=["two", "dogs"])
    assert [one.ids for one in required] == [one.ids for one in model.caption(images, max_len=4, prefix="two dogs")]
    assert model.caption(images, max_len=5, prefix=begin[1:]) == model.caption(images, max_len=5, prefix="two dogs")
    assert model.caption(images, max_len=5, prefix=" ") == model.caption(images, max_len=5)


def test_probabilities_of_words_are_those_of_their_pieces() -> None:
    tokenizer = Tokenizer.train(["a red dog runs", "two dogs on a hill", "the hill"] * 2, kind="bpe", vocab_size=275)
    config = DecoderConfig(**{**SIZES, "vocab_size": tokenizer.vocab_size})
    model = Captioner(CaptionerConfig(ENCODER, config), tokenizer=tokenizer)
    model.load_state_dict(captioner(5, scale=0.4, vocab_size=tokenizer.vocab_size).state_dict())
    several, images = 0, pictures(6)
    for caption in model.caption(images, max_len=11, min_len=9, required=["red"], n_best=3):
        for one in (caption, *caption.others):
            assert one.words is not None and one.probabilities is not None
            assert "red" in [word.text for word in one.words]
            assert len(one.probabilities) == len(one.words) and sum(one.logps) == pytest.approx(one.logprob, abs=1e-9)
            for word, probability in zip(one.words, one.probabilities):
                product = np.prod([np.exp(one.logps[place - 1]) for place in range(word.start, word.stop)])
                assert probability == pytest.approx(float(product))
                several += word.stop - word.start > 1
    assert several > 3
    assert captioner().caption(images[:1], max_len=4)[0].probabilities is None  # no words
    assert Caption((2, 5, 3), "a", (), -1.0, -1.0).probabilities is None  # no log-probabilities


def test_samples_do_not_depend_on_the_batch() -> None:
    model, images = captioner(3, scale=0.3), pictures(6)
    options = {"samples": 4, "max_len": 9, "temperature": 1.3, "top_k": 9, "top_p": 0.95}
    together = model.caption(images, **options)
    assert together == model.caption(images, **options)  # nothing is drawn from a global state
    ids = [[one.ids for one in (first, *first.others)] for first in together]
    assert all(len(one) == 4 for one in ids) and len({text for one in ids for text in one}) > 15
    for size in (1, 4):
        split = model.caption(images, batch_size=size, **options)
        assert [[one.ids for one in (first, *first.others)] for first in split] == ids
    alone = model.caption(images[4:5], numbers=[4], **options)[0]
    assert [one.ids for one in (alone, *alone.others)] == ids[4]
    assert [one.ids for one in model.caption(images[4:5], **options)] != [ids[4][0]]
    other = model.caption(images, seed=1, **options)
    assert sum(a.ids != b.ids for a, b in zip(together, other)) >= 4


def test_every_combination_works_or_is_refused() -> None:
    """120 random choices of options: captions that keep to all of them, or one line that says why not."""
    draw, done, refused = np.random.default_rng(0), 0, set()
    choices: dict[str, list[Any]] = {
        "beams": [1, 2, 4], "max_len": [4, 7], "normalise": ["none", "mean", "gnmt(0.6)"], "n_best": [1, 2],
        "stop": ["exact", "hf"], "groups": [1, 2], "samples": [None, None, 3], "temperature": [1.0, 1.0, 0.7],
        "top_k": [None, None, 5], "top_p": [None, None, 0.8], "min_len": [1, 4], "repetition_penalty": [1.0, 1.5],
        "no_repeat_ngram": [0, 2], "forbidden": [(), ("a", "hill"), ((7, 8),)], "required": [(), ("red dog",), ((9,),)],
        "prefix": ["", "two dogs"], "allow_unknown": [False, True]}
    model, images = leaning_to(speaking(3), 1, 1.0), pictures(3)
    for _ in range(120):
        options = {name: some[draw.integers(len(some))] for name, some in choices.items() if draw.random() < 0.5}
        try:
            captions = model.caption(images, **{"max_len": 7, **options})
        except InputError as error:
            assert "\n" not in str(error)
            refused.add(str(error).split("=")[0])
            continue
        done += 1
        begin = 3 if options.get("prefix") else 1
        for place, first in enumerate(captions):
            assert 1 + len(first.others) <= (options.get("samples") or options.get("n_best", 1))
            for one in (first, *first.others):
                new, words = one.ids[begin:], (one.text or "").split()
                assert options.get("min_len", 1) <= len(new) + (3 not in new) and len(new) <= options.get("max_len", 7)
                assert 1 not in new or options.get("allow_unknown")
                assert not options.get("forbidden") == ("a", "hill") or not {"a", "hill"} & set(words)
                assert not options.get("forbidden") == ((7, 8),) or (7, 8) not in zip(one.ids, one.ids[1:])
                assert not options.get("required") == ("red dog",) or "red dog" in (one.text or "")
                assert not options.get("required") == ((9,),) or 9 in one.ids
                pairs = list(zip(one.ids, one.ids[1:]))
                assert not options.get("no_repeat_ngram") or len(set(pairs)) == len(pairs)
                logp = model.replay(images[place:place + 1], [one]).detach().log_softmax(-1)[0]
                each = [float(logp[t, id]) for t, id in enumerate(one.ids[1:])]
                assert one.logps == pytest.approx([0.0] * (begin - 1) + each[begin - 1:], abs=1e-5)
    assert done >= 25 and len(refused) >= 6, (done, refused)


def test_options_as_one_object() -> None:
    model, images = captioner(), pictures()
    options = Options(beams=4, max_len=6, groups=2, diversity=1.0, n_best=2)
    assert model.caption(images, **vars(options)) \
        == model.caption(images, beams=4, max_len=6, groups=2, diversity=1.0, n_best=2)


def test_a_list_of_tensors() -> None:
    model, images = captioner(), pictures(4)
    expected = model.caption(images, max_len=6)
    assert [one.ids for one in model.caption(list(images), max_len=6)] == [one.ids for one in expected]
    with pytest.raises(InputError, match="12, 8"):
        model.caption([images[0], images[1, :, :8]], max_len=6)


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
        ("batch_size", {"batch_size": -1}), ("vocabulary has only 11", {"beams": 12}), ("beam;", {"beam": 3}),
        ("beams=2 with samples=3", {"beams": 2, "samples": 3}), ("numbers", {"numbers": [1], "samples": 2}),
        ("numbers", {"numbers": [1, -1], "samples": 2}), ("13 text positions", {"prefix": (4, 5), "max_len": 10}),
        ("max_len=10: give at most 9; with <BOS> and the 2 of the prefix", {"prefix": (4, 5), "max_len": 10}),
        ("prefix.*from 0 to 10", {"prefix": (4, 11)}), ("no tokenizer", {"prefix": "a dog"}),
        ("forbidden: 'dog'.*no tokenizer", {"forbidden": ["dog"]}), ("required.*no tok", {"required": ["dog"]}),
        ("forbidden.*from 0 to 10", {"forbidden": [4]}), ("required.*from 0", {"required": [()]}),
        ("token 3 ends", {"forbidden": [(3,)]}), (r"'\[4, 5\]' is required and forbidden",
                                                  {"forbidden": [(5,)], "required": [(4, 5)]}),
        ("says what is forbidden", {"forbidden": [(5, 6)], "prefix": (4, 5, 6)}),
        ("takes 6 tokens, max_len=5", {"required": [(4, 5, 6), (7, 8, 9)]}), ("min_len=6 is more", {"min_len": 6}),
    ]
    for message, options in calls:
        with pytest.raises(InputError, match=message):
            model.caption(images, **{"max_len": 5, **options})
    spoken = speaking()
    for message, options in (("'cat' is not in the vocabulary", {"required": ["dog", "cat"]}),
                             ("prefix='a cat': not in the vocabulary of .*'cat'", {"prefix": "a cat"}),
                             ("'dog' is required and forbidden", {"required": ["dog"], "forbidden": ["Dog"]}),
                             ("'red dog' is required and forbidden", {"required": ["red dog"], "forbidden": ["dog"]}),
                             ("prefix='a dog' says what is", {"prefix": "a dog", "forbidden": ["dog"]}),
                             ("empty text", {"forbidden": [" "]}), ("no tokens|'' ", {"required": [""]})):
        with pytest.raises(InputError, match=message):
            spoken.caption(images, max_len=5, **options)
        with pytest.raises(InputError, match=message):  # also where there is nothing to do
            spoken.caption([], max_len=5, **options)
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
