"""What captions are worth, against the metrics themselves, and that nothing else changes it."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import tiny_run
import torch
from random_models import randomise

from minivl.errors import InputError
from minivl.images import Preprocessing
from minivl.metrics.cider import cider
from minivl.metrics.clipscore import PRESETS, clip_score
from minivl.metrics.docfreq import DocFreq
from minivl.models.clip import CLIP, CLIPConfig, TextConfig
from minivl.models.vit import ViTConfig
from minivl.text.tokenizer import Tokenizer
from minivl.train.clip_features import text_features
from minivl.train.rewards import END, CiderReward, ClipReward, Ended, Rewards, Said

REFERENCES = [[f"{text}." for text in told] for told in tiny_run.captions(40)]
PICTURES = 2 * torch.rand(40, 7, generator=torch.Generator().manual_seed(0)) - 1


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def pair(words: str = " ".join(tiny_run.WORDS), seed: int = 0) -> CLIP:
    tokenizer = Tokenizer.train([words])
    text = TextConfig(tokenizer.vocab_size, 16, 2, 2, 24, 7, max_len=9, bos_id=tokenizer.bos_id,
                      eot_id=tokenizer.eos_id)
    model = CLIP(CLIPConfig(ViTConfig((8, 8), (4, 4), 12, 1, 3, 24, num_classes=7), text), tokenizer=tokenizer,
                 preprocessing=Preprocessing((8, 8), (0.5,) * 3, (0.5,) * 3))
    randomise(model, seed, 0.3)
    return model


def said(count: int = 90, seed: int = 1) -> tuple[list[int], list[Said]]:
    """Captions of random pictures: references cut or mixed, some of them ended; the first two hold no word."""
    draw = random.Random(seed)
    photos, captions = [3, 4], [Said("", True), Said(" .", False)]
    for _ in range(count - 2):
        photos.append(draw.randrange(len(REFERENCES)))
        words = [*draw.choice(REFERENCES[photos[-1]])[:-1].split()[:draw.randint(2, 9)], *draw.choices(tiny_run.WORDS)]
        captions.append(Said(" ".join(words), draw.random() < 0.6))
    return photos, captions


def score_each(photos: list[int], texts: list[str], references: list[list[str]], **options: Any) -> list[float]:
    """`cider` of captions of which several may be of one picture."""
    told = {place: references[photo] for place, photo in enumerate(photos)}
    return list(cider(dict(enumerate(texts)), told, **options).per_item.values())


@pytest.mark.parametrize("tokenize", ["ptb-coco", "simple"])
def test_without_the_end_it_is_cider(tokenize: str) -> None:
    photos, captions = said()
    df = DocFreq.from_references(dict(enumerate(REFERENCES)), tokenize=tokenize)
    reward = CiderReward(REFERENCES, tokenize=tokenize, end=False)
    expected = score_each(photos, [one.text for one in captions], REFERENCES, df=df, tokenize=tokenize)
    assert np.array_equal(reward(photos, captions), expected) and 0.1 < np.mean(expected) < 9
    assert reward.signature == cider({0: "a"}, {0: REFERENCES[0]}, df=df, tokenize=tokenize).signature


def test_the_end_is_a_word_of_whoever_ends() -> None:
    """Against plain CIDEr-D of texts into which the end is written as a word."""
    photos, captions = said()
    written = [[f"{text} zend" for text in told] for told in REFERENCES]
    df = DocFreq.from_references(dict(enumerate(written)), tokenize="simple")
    texts = [one.text + " zend" * (one.ended and bool(one.text.strip(" ."))) for one in captions]
    found = CiderReward(REFERENCES, tokenize="simple")(photos, captions)
    np.testing.assert_allclose(found, score_each(photos, texts, written, df=df, tokenize="simple"), rtol=1e-12)
    ended = [one._replace(ended=True) for one in captions]
    df = DocFreq.from_references(dict(enumerate(REFERENCES)), tokenize=Ended())
    whole = score_each(photos, [one.text for one in ended], REFERENCES, df=df, tokenize=Ended())
    assert np.array_equal(CiderReward(REFERENCES, df=df)(photos, ended), whole)
    assert np.array_equal(CiderReward(REFERENCES)(photos, ended), whole)


def test_to_end_where_people_end_is_worth_more() -> None:
    reward, photos = CiderReward(REFERENCES), list(range(40))
    whole = reward(photos, [Said(told[0], True) for told in REFERENCES])
    cut = reward(photos, [Said(told[0], False) for told in REFERENCES])
    assert (whole > cut).all()
    early = reward(photos, [Said(told[0].rsplit(" ", 1)[0], True) for told in REFERENCES])
    open_ = reward(photos, [Said(told[0].rsplit(" ", 1)[0], False) for told in REFERENCES])
    assert (early < open_).sum() > 20  # an end where nobody ends is a wrong word
    assert Ended()("A dog's <END> end") == [*Ended().plain.split("A dog's <END> end"), END] and Ended()(".") == []
    assert Ended()("<END>").count(END) == 1


@pytest.mark.parametrize("weights", [{"cider": 1.0}, {"clip": 2.0}, {"cider": 0.7, "clip": 1.3}])
def test_nothing_but_picture_and_caption_matters(weights: dict[str, float]) -> None:
    def rewards() -> Rewards:
        needs = "clip" in weights
        return Rewards(REFERENCES, weights, clip=pair() if needs else None, images=PICTURES if needs else None)

    photos, captions = said()
    whole = rewards()(photos, captions)
    assert len(set(whole)) > 30
    alone, again = rewards(), rewards()
    one_by_one = [alone([photo], [caption])[0] for photo, caption in zip(photos, captions)]
    assert np.array_equal(whole, one_by_one)
    order = random.Random(0).sample(range(90), 90)
    for size in (2, 7, 31):
        for first in range(0, 90, size):
            places = order[first:first + size] * 2
            found = again([photos[place] for place in places], [captions[place] for place in places])
            assert np.array_equal(found, whole[places])


@pytest.mark.parametrize("preset", PRESETS)
def test_clip_is_the_clip_score(preset: str) -> None:
    photos, captions = said()
    model = pair()
    texts = torch.cat([text_features(model, [PRESETS[preset].text(one.text)]) for one in captions])
    expected = list(clip_score(PICTURES[photos], texts, preset=preset).per_item.values())
    reward = ClipReward(model, PICTURES, REFERENCES, preset=preset)
    np.testing.assert_allclose(reward(photos, captions), expected, rtol=1e-12, atol=1e-14)
    assert (min(expected) < 0) == (preset == "torchmetrics") and max(expected) > 0
    both = Rewards(REFERENCES, {"clip": 0.5, "cider": 2}, clip=model, images=PICTURES, preset=preset)
    np.testing.assert_allclose(both(photos, captions), 2 * CiderReward(REFERENCES)(photos, captions)
                               + 0.5 * np.array(expected), rtol=1e-12)
    coarse = ClipReward(model, PICTURES, REFERENCES, preset=preset, precision="bf16")(photos, captions)
    assert 0 < np.abs(coarse - expected).max() < 0.1 * PRESETS[preset].weight


def test_what_was_forgotten_is_computed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    photos, captions = said()
    expected = ClipReward(pair(), PICTURES, REFERENCES)(photos, captions)
    monkeypatch.setattr("minivl.train.rewards.CACHED", 3)
    assert np.array_equal(ClipReward(pair(), PICTURES, REFERENCES)(photos, captions), expected)


def test_fixed_frequencies_may_be_of_others() -> None:
    photos, captions = said()
    df = DocFreq.from_references(dict(enumerate(tiny_run.captions(200, seed=9))), tokenize=Ended())
    found = Rewards(REFERENCES, df=df)(photos, captions)
    np.testing.assert_allclose(found, CiderReward(REFERENCES, df=df)(photos, captions))
    assert not np.allclose(found, Rewards(REFERENCES)(photos, captions))
    few = Rewards(REFERENCES[:5], df=df)
    at = [place for place, photo in enumerate(photos) if photo < 5]
    assert np.array_equal(few([photos[place] for place in at], [captions[place] for place in at]), found[at])


def without_tokenizer() -> CLIP:
    model = pair()
    model.tokenizer = None
    return model


@pytest.mark.parametrize("options, words", [
    ({"weights": {"bleu": 1.0}}, "bleu: unknown; there are: cider, clip"),
    ({"weights": {"cider": 0.0, "clip": 0}}, "give cider or clip a weight above 0"),
    ({"weights": {}}, "give cider or clip a weight above 0"),
    ({"weights": {"cider": -1.0}}, "cider=-1.0: give a weight of 0 or more"),
    ({"weights": {"cider": float("nan")}}, "cider=nan"),
    ({"weights": {"clip": 1.0}}, '"clip" needs a CLIP'),
    ({"clip": pair(), "images": PICTURES}, 'need a weight for "clip"'),
    ({"weights": {"clip": 1.0}, "clip": pair(), "images": PICTURES[:9]}, r"\(9, 7\): 40 pictures have \(40, 7\)"),
    ({"weights": {"clip": 1.0}, "clip": pair(), "images": PICTURES[:, :6]}, r"have \(40, 7\) by this CLIP"),
    ({"weights": {"clip": 1.0}, "clip": pair(), "images": PICTURES * (torch.arange(40) != 8)[:, None]},
     "picture 8 are zero"),
    ({"weights": {"clip": 1.0}, "clip": pair(), "images": PICTURES, "preset": "best"}, "'best' is unknown"),
    ({"weights": {"clip": 1.0}, "clip": without_tokenizer(), "images": PICTURES}, "has no tokenizer"),
    ({"weights": {"clip": 1.0}, "clip": pair("nothing of that"), "images": PICTURES}, "cannot read 40 of 40 captions"),
    ({"df": DocFreq.from_references(dict(enumerate(REFERENCES)))}, r"tokens='ptb-coco\+end' are asked for"),
    ({"df": DocFreq.from_references(dict(enumerate(REFERENCES))), "weights": {"clip": 1.0}, "clip": pair(),
      "images": PICTURES}, "which has no weight"),
])
def test_refusals(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Rewards(REFERENCES, **options)


def test_references_must_say_something() -> None:
    with pytest.raises(InputError, match="has no references"):
        Rewards([["a dog"], []])
    with pytest.raises(InputError, match="the references of 1 have no 'ptb-coco.end' token"):
        Rewards([["a dog"], ["...", "!"]])
    with pytest.raises(InputError, match="of 1 image say nothing"):
        Rewards([["a dog"]])
