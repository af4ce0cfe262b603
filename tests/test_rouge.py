"""ROUGE-L against pycocoevalcap, on real captions and on random ones."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocoevalcap.rouge.rouge import Rouge, my_lcs

from minivl.data.captions import read_captions
from minivl.metrics.rouge import _common, rouge
from minivl.metrics.tokens import tokenizer


def agree(candidates: dict[Any, str], references: dict[Any, list[str]], tokenize: str) -> float:
    """Compare with pycocoevalcap's scores on our tokens."""
    split = tokenizer(tokenize, "test").split
    gts = {id: [" ".join(split(caption)) for caption in captions] for id, captions in references.items()}
    res = {id: [" ".join(split(candidates[id]))] for id in references}
    total, items = Rouge().compute_score(gts, res)
    result = rouge(candidates, references, tokenize=tokenize)
    assert result.score == pytest.approx(total, abs=1e-9, rel=0)
    assert np.abs(np.array([result.per_item[id] for id in references]) - items).max() < 1e-9
    return result.score


@pytest.mark.parametrize("length", [1, 5, 62, 63, 64, 65, 200])
def test_longest_common_subsequence(length: int) -> None:
    draw = random.Random(length)
    for words in (2, 5, 40):
        one = [draw.randrange(words) for _ in range(length)]
        places: dict[int, int] = {}
        for place, word in enumerate(one):
            places[word] = places.get(word, 0) | 1 << place
        for size in (0, 1, 7, length, 70):
            other = [draw.randrange(words + 2) for _ in range(size)]
            assert _common(places, length, other) == my_lcs(one, other)


@pytest.mark.parametrize("tokenize", ["simple", "ptb-coco"])
@pytest.mark.parametrize("seed", range(6))
def test_equals_pycocoevalcap(seed: int, tokenize: str) -> None:
    draw = random.Random(seed)
    words = "dog A the runs. boy's red (big) 2 over Snow".split()[:4 + seed]

    def caption(shortest: int) -> str:
        return " ".join(draw.choices(words, k=draw.choice([shortest, 1, 3, 8, 14])))

    candidates = {image: caption(0) for image in range(30)}
    references = {image: [caption(1) for _ in range(draw.randint(1, 5))] for image in range(30)}
    assert agree(candidates, references, tokenize) > 0.2


def test_by_hand() -> None:
    """Precision and recall may come from different references."""
    result = rouge({1: "a b c d", 2: "x"}, {1: ["a c", "a b c d e f g h"], 2: ["y"]}, tokenize="simple")
    precision, recall = 4 / 4, 2 / 2
    assert result.per_item == {1: pytest.approx((1 + 1.44) * precision * recall / (recall + 1.44 * precision)), 2: 0.0}
    assert result.score == pytest.approx(0.5)


def test_a_reference_without_tokens_beside_another() -> None:
    """Where pycocoevalcap takes two captions of no words for equal, an empty caption is worth nothing here."""
    references = {1: ["...", "a dog"], 2: ["a", "!"]}
    assert agree({1: "a cat", 2: "b"}, references, "simple") > 0
    assert rouge({1: "", 2: "?"}, references, tokenize="simple").score == 0.0


def at_spaces(text: str) -> list[str]:
    return text.split(" ")


def test_white_space_inside_tokens() -> None:
    """Stanford's tokenizer leaves a no-break space in "22 3/4"; the COCO code does not split there for ROUGE."""
    candidates, references = {1: "a sign of 22 3/4 street"}, {1: ["a sign of 22\xa03/4 street", "the sign"]}
    result = rouge(candidates, references, tokenize=at_spaces)
    assert 0.5 < result.score < 0.9
    assert result.score == pytest.approx(Rouge().compute_score(references, {1: [candidates[1]]})[0], abs=1e-9)


def test_result_and_signature() -> None:
    candidates, references = {"b": "a dog", 3: "the cat runs"}, {3: ["a cat runs"], "b": ["a dog", "dogs"]}
    result = rouge(candidates, references)
    assert list(result.per_item) == ["b", 3] and result.signature == "rouge-l|beta1.2|tok:ptb-coco|v1"
    assert result.score == math.fsum(result.per_item.values()) / 2 and result.per_item["b"] == 1.0


@pytest.mark.shared
@pytest.mark.parametrize("file", ["flickr8k/dev.json", "coco/captions_val2017.json"])
def test_equals_pycocoevalcap_on_real_captions(shared: Path, file: str) -> None:
    captions = read_captions(shared / "data" / file).references()
    candidates = {image: texts[0] for image, texts in captions.items()}
    assert 0.3 < agree(candidates, {image: texts[1:5] for image, texts in captions.items()}, "ptb-coco") < 0.6
