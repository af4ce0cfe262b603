"""CLIPScore: each preset against the formula of its code, golden numbers, and what a mistake says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from random_models import randomise

from minivl.errors import InputError
from minivl.metrics.clipscore import PRESETS, clip_score, ref_clip_score
from minivl.models.clip import CLIP, CLIPConfig, TextConfig
from minivl.models.vit import ViTConfig
from minivl.text.tokenizer import Tokenizer

IDS = ["b", "a", 7, "c"]
LENGTHS = (2, 1, 5, 3)  # references of each


def embeddings(seed: int = 0, width: int = 6, count: int = 4) -> tuple[Any, Any, list[Any]]:
    """Features of images, captions and references that lean together or apart, of various lengths."""
    random = np.random.RandomState(seed)  # its stream never changes, so that golden numbers stay
    images = random.standard_normal((count, width)) * random.uniform(0.1, 9, (count, 1))
    texts = 0.8 * images / np.linalg.norm(images, axis=1, keepdims=True) + random.standard_normal((count, width)) * 0.7
    texts[-1] = -texts[-1]  # the last caption is of another world
    references = [texts[row] + random.standard_normal((LENGTHS[row % 4], width)) * 0.6 for row in range(count)]
    return images, texts, references


def as_dicts(*features: Any) -> list[dict[Any, torch.Tensor]]:
    return [dict(zip(IDS, (torch.tensor(one) for one in feature))) for feature in features]


# -- the three codes, in their own arithmetic ----------------------------------------------------------------

def hessel(images: Any, texts: Any) -> Any:
    """jmhessel/clipscore in float32: rows to unit length, 2.5 times the product, negative ones to 0."""
    one, other = (np.float32(rows) / np.sqrt((np.float32(rows) ** 2).sum(1, keepdims=True)) for rows in (images, texts))
    return 2.5 * np.clip((one * other).sum(1), 0, None)


def hessel_with_references(images: Any, texts: Any, references: Any) -> Any:
    """Its RefCLIPScore: the best product with a reference as it is, and a harmonic mean."""
    best = []
    for text, own in zip(texts, references):
        text, own = np.float32(text), np.float32(own)
        best.append(max(float(text @ one / np.sqrt(text @ text) / np.sqrt(one @ one)) for one in own))
    fits = hessel(images, texts)
    with np.errstate(invalid="ignore"):
        return 2 * fits * np.array(best) / (fits + np.array(best))


def torchmetrics(images: Any, texts: Any) -> tuple[Any, float]:
    """Its clip_score: 100 times the cosine; the mean, and that alone, is at least 0."""
    one, other = torch.tensor(images).float(), torch.tensor(texts).float()
    cosines = (one / one.norm(p=2, dim=-1, keepdim=True) * (other / other.norm(p=2, dim=-1, keepdim=True))).sum(-1)
    mean = (100 * cosines).mean(0)
    return (100 * cosines).numpy(), float(torch.max(mean, torch.zeros_like(mean)))


def course(images: Any, texts: Any) -> list[float]:
    """Pair by pair, as homework has it."""
    return [2.5 * max(float(torch.cosine_similarity(torch.tensor(image), torch.tensor(text), dim=0)), 0.0)
            for image, text in zip(images, texts)]


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("form", ["dicts", "tensors", "half"])
def test_each_preset_is_its_code(form: str, seed: int) -> None:
    images, texts, references = embeddings(seed, 40, 30)
    if form == "half":
        images, texts, references = np.float16(images), np.float16(texts), [np.float16(one) for one in references]
    ids: Any = [f"photo {number}" for number in range(30)] if form == "dicts" else range(30)
    turn = (lambda rows: dict(zip(ids, rows))) if form == "dicts" else (lambda rows: torch.tensor(np.stack(rows)))
    given = turn(images), turn(texts)
    listed = dict(zip(ids, references)) if form == "dicts" else [torch.tensor(one) for one in references]
    images, texts = np.float64(images), np.float64(texts)
    signed, mean = torchmetrics(images, texts)
    for preset, expected, total in (("hessel", hessel(images, texts), None), ("torchmetrics", signed, mean),
                                    ("course", course(images, texts), None)):
        found = clip_score(*given, preset=preset)
        assert list(found.per_item) == list(ids)
        np.testing.assert_allclose(list(found.per_item.values()), expected, rtol=0, atol=2e-6 * PRESETS[preset].weight)
        assert found.score == pytest.approx(np.mean(expected) if total is None else total, rel=1e-5)
    together = hessel_with_references(images, texts, references)
    assert np.isfinite(together).all() and (np.array(signed) < 0).any()
    found = ref_clip_score(*given, listed, preset="hessel")
    np.testing.assert_allclose(list(found.per_item.values()), together, rtol=1e-4, atol=2e-6)
    assert found.score == pytest.approx(np.mean(together), rel=1e-4)


def test_golden_numbers() -> None:
    """The three presets on the same four embeddings; the last caption has nothing to do with its image."""
    images, texts, references = as_dicts(*embeddings())
    scores = {name: clip_score(images, texts, preset=name) for name in PRESETS}
    assert {name: [round(value, 6) for value in score.per_item.values()] for name, score in scores.items()} == GOLDEN
    assert {name: round(score.score, 6) for name, score in scores.items()} == MEANS
    found = ref_clip_score(images, texts, references, preset="hessel")
    assert [round(value, 6) for value in found.per_item.values()] == TOGETHER
    assert found.score == pytest.approx(np.mean(TOGETHER), abs=1e-6)


GOLDEN = {"hessel": [1.616743, 1.087918, 0.132202, 0.0], "course": [1.616743, 1.087918, 0.132202, 0.0],
          "torchmetrics": [64.669718, 43.516707, 5.28808, -60.439252]}
MEANS = {"hessel": 0.709216, "course": 0.709216, "torchmetrics": 13.258813}
TOGETHER = [1.199327, 0.853836, 0.231309, 0.0]


def test_the_clamp_of_the_mean_is_not_that_of_the_images() -> None:
    images, texts = torch.eye(2), torch.tensor([[0.6, 0.8], [0.8, -0.6]])
    assert clip_score(images, texts, preset="course").score == pytest.approx(2.5 * 0.3)
    assert clip_score(images, texts, preset="torchmetrics").score == pytest.approx(0.0, abs=1e-6)
    assert list(clip_score(images, -texts, preset="torchmetrics").per_item.values()) == pytest.approx([-60, 60])
    assert clip_score(images, -images, preset="torchmetrics").score == 0.0


def test_nothing_with_nothing_is_nothing() -> None:
    """Where the image does not fit and no reference does, the code divides 0 by 0."""
    images, texts = {"a": [1.0, 0, 0], "b": [1.0, 0, 0]}, {"a": [0, 1.0, 0], "b": [1.0, 1, 0]}
    references = {"a": [[0, 0, 1.0], [1.0, 0, 0]], "b": [[1.0, 1, 0]]}
    assert np.isnan(hessel_with_references([[1, 0, 0]], [[0, 1, 0]], [[[0, 0, 1]]])).all()
    found = ref_clip_score(images, texts, references, preset="hessel")
    fits = 2.5 / 2 ** 0.5
    assert found.per_item == {"a": 0.0, "b": pytest.approx(2 * fits / (fits + 1))}
    assert found.score == pytest.approx(fits / (fits + 1))


def test_ids_are_matched_and_lengths_do_not_matter() -> None:
    images, texts, references = as_dicts(*embeddings())
    before = ref_clip_score(images, texts, references, preset="hessel")
    turned = {id: images[id] * 1e200 for id in reversed(images)}
    after = ref_clip_score(turned, {id: texts[id] * 1e-200 for id in texts}, {id: references[id] for id in sorted(
        references, key=str)}, preset="hessel")
    assert list(after.per_item) == IDS and after.per_item == pytest.approx(before.per_item, abs=1e-12)
    swapped = clip_score(dict(zip(images, reversed(images.values()))), texts, preset="hessel")
    assert abs(swapped.score - clip_score(images, texts, preset="hessel").score) > 0.1


def test_numbers_of_several_kinds() -> None:
    """Each is taken as it is: whole ones, halves and doubles side by side."""
    exact = [[3, -4, 12], [1, 2, 2], [0.5, 0.25, 2]]
    kinds = dict(zip("abc", (torch.tensor(exact[0]), torch.tensor(exact[1]).half(), np.float64(exact[2]))))
    texts = dict(zip("abc", exact))
    assert list(clip_score(kinds, texts, preset="course").per_item.values()) == pytest.approx([2.5] * 3, abs=1e-12)
    references = {"a": [exact[1], exact[0]], "b": torch.tensor([exact[1]]), "c": np.float32([exact[2], exact[0]])}
    found = ref_clip_score(kinds, texts, references, preset="hessel")
    assert list(found.per_item.values()) == pytest.approx([5 / 3.5] * 3, abs=1e-12)


def test_signatures_say_what_the_number_is() -> None:
    pair = torch.eye(3), torch.eye(3)
    told = {clip_score(*pair, preset=name).signature for name in PRESETS}
    assert told == {"clipscore:hessel|w2.5|prefix:'A photo depicts '|clamp:image|tok:eot-kept|v1",
                    "clipscore:torchmetrics|w100|prefix:''|clamp:mean|tok:eot-kept|v1",
                    "clipscore:course|w2.5|prefix:''|clamp:image|tok:eot-kept|v1"}
    found = ref_clip_score(*pair, torch.ones(3, 2, 3), preset="hessel", model="ViT-B-32-quickgelu")
    assert found.signature == ("refclipscore:hessel|w2.5|prefix:'A photo depicts '|clamp:image|tok:eot-kept|"
                               "model:ViT-B-32-quickgelu|v1")


# -- texts ---------------------------------------------------------------------------------------------------

def test_a_long_caption_keeps_its_end() -> None:
    """What torchmetrics cuts off, and features are read at: a caption too long is scored by its beginning."""
    words = Tokenizer.train(["a photo depicts two red dogs and one blue cat that run"])
    clip = CLIP(CLIPConfig(ViTConfig((8, 8), (4, 4), 12, 1, 3, 24, num_classes=7),
                           TextConfig(words.vocab_size, 16, 2, 2, 24, 7, max_len=9, bos_id=words.bos_id,
                                      eot_id=words.eos_id, pad_id=words.pad_id)), tokenizer=words)
    randomise(clip)
    captions = ["two dogs", "two red dogs and one blue cat " * 40, "two red dogs and tomorrow"]
    ids = clip.tokenize([PRESETS["hessel"].text(caption) for caption in captions])
    assert ids.shape == (3, 9) and ((ids == words.eos_id).sum(1) == 1).all()
    assert words.decode(ids[1]) == "a photo depicts two red dogs and" and int(ids[1, -1]) == words.eos_id
    with torch.no_grad():
        images = clip.encode_image(torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
        scores = clip_score(images, clip.encode_text(ids), preset="torchmetrics").per_item
        same = clip.encode_text(clip.tokenize([PRESETS["hessel"].text("two red dogs and cat run run run")]))
    assert len(set(scores.values())) == 3
    assert scores[1] == pytest.approx(clip_score(images[1:2], same, preset="torchmetrics").per_item[0], abs=1e-4)


# -- mistakes ------------------------------------------------------------------------------------------------

def put(features: dict[Any, Any], id: Any, value: Any) -> dict[Any, Any]:
    return {**features, id: value}


@pytest.mark.parametrize("change, told", [
    (lambda i, t: (put(i, 7, i[7] * float("nan")), t), "image_features of id 7 holds nan"),
    (lambda i, t: (i, put(t, "a", t["a"] / 0)), "text_features of id 'a' holds nan or infinite"),
    (lambda i, t: (i, put(t, "c", t["c"] * 0)), "text_features of id 'c' is all zeros"),
    (lambda i, t: (put(i, "c", i["c"][:-1]), t), "image_features of id 'c' has 5 numbers, that of id 'b' 6"),
    (lambda i, t: (i, {id: row[:-1] for id, row in t.items()}), "features of 6 numbers in image_features and 5 in"),
    (lambda i, t: ({id: row for id, row in i.items() if id != "a"}, t), "image_features lacks 'a': "),
    (lambda i, t: (put(i, "z", i["a"]), t), "image_features has also 'z': "),
    (lambda i, t: ({**{1: i["a"]}, "a": i["a"]}, t), "image_features lacks 'b', 7, 'c' and has also 1: "),
    (lambda i, t: ({}, {}), "text_features is empty"),
    (lambda i, t: (torch.zeros(0, 3), torch.zeros(0, 3)), "text_features is empty"),
    (lambda i, t: (torch.stack([*i.values()]), t), "a dict and a tensor"),
    (lambda i, t: (torch.ones(3, 4), torch.ones(2, 4)), "image_features has also 2: "),
    (lambda i, t: (torch.ones(3), t), r"image_features is Tensor of shape \(3,\): give"),
    (lambda i, t: ([1], t), "image_features is list: give a dict"),
    (lambda i, t: (put(i, "a", torch.ones(2, 6)), t), r"id 'a' is torch.float32 of shape \(2, 6\): a feature is"),
    (lambda i, t: (put(i, "a", "words"), t), "image_features of id 'a' is a str: a feature is"),
    (lambda i, t: (put(i, "a", None), t), "image_features of id 'a' is a NoneType")])
def test_features_that_cannot_be(change: Any, told: str) -> None:
    images, texts = change(*as_dicts(*embeddings()[:2]))
    with pytest.raises(InputError, match=told) as raised:
        clip_score(images, texts, preset="hessel")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("change, told", [
    (lambda r: put(r, "a", r["a"] * float("nan")), "reference_features of id 'a' holds nan"),
    (lambda r: put(r, 7, torch.cat([r[7][:1], r[7][:1] * 0])), "reference_features of id 7 is all zeros"),
    (lambda r: put(r, "a", torch.zeros(0, 6)), "reference_features of id 'a' has no reference"),
    (lambda r: put(r, "c", torch.ones(6)), "reference_features of id 'c' is Tensor"),
    (lambda r: put(r, "c", "words"), "reference_features of id 'c' is str"),
    (lambda r: put(r, "c", 3), "reference_features of id 'c' is int"),
    (lambda r: put(r, "c", [[1.0], [2.0, 3]]), "reference_features of id 'c' has 2 numbers, that of id 'c' 1"),
    (lambda r: put(r, "c", [[1.0, 2], [2.0, 3]]), "reference_features of id 'c' has 2 numbers, that of id 'b' 6"),
    (lambda r: put(r, "c", torch.ones(2, 6, dtype=torch.bool)), "reference_features of id 'c' is torch.bool"),
    (lambda r: put(r, "c", torch.ones(2, 0)), r"reference_features of id 'c' is torch.float32 of shape \(0,\)"),
    (lambda r: put(r, "c", ["words"]), "reference_features of id 'c' is a str"),
    (lambda r: {id: one[:, :3] for id, one in r.items()}, "features of 3 numbers in reference_features and 6 in"),
    (lambda r: {"a": r["a"]}, "reference_features lacks 'b', 7, 'c': "),
    (lambda r: torch.ones(4, 6), "reference_features is Tensor: give a dict"),
    (lambda r: [*r.values()][:3], "reference_features lacks 'b'")])
def test_references_that_cannot_be(change: Any, told: str) -> None:
    images, texts, references = as_dicts(*embeddings())
    with pytest.raises(InputError, match=told) as raised:
        ref_clip_score(images, texts, change(references), preset="hessel")
    assert "\n" not in str(raised.value)


def test_presets_that_cannot_be() -> None:
    pair = torch.eye(3), torch.eye(3)
    with pytest.raises(InputError, match="preset='clip' is unknown; there are: hessel, torchmetrics, course"):
        clip_score(*pair, preset="clip")
    for name in ("torchmetrics", "course"):
        with pytest.raises(InputError, match=f"preset '{name}' defines no RefCLIPScore; there is: hessel"):
            ref_clip_score(*pair, torch.ones(3, 2, 3), preset=name)


def test_a_name_that_no_signature_can_hold() -> None:
    rows = torch.randn(3, 4)
    with pytest.raises(InputError, match="model='a\\|b': a signature holds"):
        clip_score(rows, rows, preset="hessel", model="a|b")
