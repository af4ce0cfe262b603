"""Distinct words and captions, counted by hand and against sets."""

from __future__ import annotations

import random
from typing import Any

import pytest

from minivl.errors import InputError
from minivl.metrics.diversity import distinct

CAPTIONS = {1: "A dog runs.", 2: "a dog runs", 3: "a dog and a dog", 4: ""}


def test_by_hand() -> None:
    result = distinct(CAPTIONS, tokenize="simple")
    assert (result.captions, result.different, result.vocabulary) == (4, 3, 4)
    assert result.distinct_1 == pytest.approx(4 / 11)
    assert result.distinct_2 == pytest.approx(4 / 11)  # a dog, dog runs, dog and, and a: per word, as in the paper
    assert result.mean_length == pytest.approx(11 / 4)
    assert result.novel is None
    assert result.signature == "distinct|n2|per:words|captions:4|training:none|tok:simple|v1"


def test_novel_captions() -> None:
    training = {"x": ["A dog runs!", "a cat"], "y": ["dog"]}
    result = distinct(CAPTIONS, training, tokenize="simple")
    assert result.novel == 0.5  # 3 and 4
    assert distinct(CAPTIONS, {"x": ["a bird"]}).novel == 1.0
    assert distinct({1: "a cat"}, training).novel == 0.0
    assert "|training:" in result.signature and "(3)|tok:simple|v1" in result.signature


def test_signature_is_of_the_training_captions() -> None:
    one = distinct(CAPTIONS, {"x": ["a dog", "a cat"], "y": ["dog"]}).signature
    assert one == distinct(CAPTIONS, {5: ["dog", "A cat", "a dog", "a dog."]}).signature  # order and copies are nothing
    assert one != distinct(CAPTIONS, {"x": ["a dog", "a cat"], "y": ["dogs"]}).signature
    assert one != distinct(CAPTIONS, {"x": ["a dog a", "cat"], "y": ["dog"]}).signature


@pytest.mark.parametrize("seed", range(3))
def test_random_captions(seed: int) -> None:
    draw = random.Random(seed)
    words = [f"w{number}" for number in range(30)]
    texts = [draw.choices(words, k=draw.randint(1, 6)) for _ in range(80)]
    texts += texts[:9]
    known = texts[:5] + [draw.choices(words, k=3) for _ in range(9)]
    result = distinct({number: " ".join(text) for number, text in enumerate(texts)},
                      {"all": [" ".join(text) for text in known]}, tokenize="simple")
    total = sum(map(len, texts))
    assert result.distinct_1 == pytest.approx(len({word for text in texts for word in text}) / total)
    assert result.distinct_2 == pytest.approx(
        len({(text[at], text[at + 1]) for text in texts for at in range(len(text) - 1)}) / total)
    assert result.different == len({" ".join(text) for text in texts})
    assert result.novel == pytest.approx(sum(text not in known for text in texts) / len(texts)) and result.novel < 1


def test_only_empty_captions() -> None:
    result = distinct({1: "", 2: " . "}, tokenize="simple")
    assert (result.distinct_1, result.distinct_2, result.mean_length, result.different) == (0.0, 0.0, 0.0, 1)


@pytest.mark.parametrize("arguments, words", [
    (dict(candidates={}), "there are no candidates"),
    (dict(candidates={1: None}), "candidate of 1 is a NoneType"),
    (dict(training={}), "there are no training captions"),
    (dict(training={1: "a dog"}), "references of 1 are a str"),
    (dict(training={1: ["a", None]}), "reference 1 of 1 is a NoneType"),
    (dict(tokenize="ptb"), "tokenize='ptb' is unknown"),
])
def test_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        distinct(**{"candidates": CAPTIONS, **arguments})
