"""BLEU against pycocoevalcap, on real captions and on random ones."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocoevalcap.bleu.bleu import Bleu

from minivl.data.captions import read_captions
from minivl.metrics.bleu import bleu
from minivl.metrics.score import Scores
from minivl.metrics.tokens import tokenizer


def theirs(candidates: dict[Any, str], references: dict[Any, list[str]],
           tokenize: str) -> tuple[list[float], dict[Any, list[float]]]:
    """pycocoevalcap's scores on our tokens: of the set, and of each image."""
    split = tokenizer(tokenize, "test").split
    gts = {id: [" ".join(split(caption)) for caption in captions] for id, captions in references.items()}
    res = {id: [" ".join(split(candidates[id]))] for id in references}
    total, items = Bleu(4).compute_score(gts, res, verbose=0)
    return total, dict(zip(gts, map(list, zip(*items))))


def agree(ours: Scores, expected: tuple[list[float], dict[Any, list[float]]]) -> None:
    total, items = expected
    assert len(ours.scores) == 4 and ours.scores == pytest.approx(total, abs=1e-9, rel=0)
    assert ours.per_item.keys() == items.keys()
    assert np.abs(np.array([ours.per_item[id] for id in items]) - list(items.values())).max() < 1e-9


def random_set(seed: int, images: int) -> tuple[dict[Any, str], dict[Any, list[str]]]:
    """Captions over few words and of all lengths, so that n-grams repeat and lengths are equally close."""
    draw = random.Random(seed)
    words = "dog A the runs. boy's red (big) 2 over Snow".split()[:4 + seed]

    common = draw.choices(words, k=9)  # what captions share, so that there are long n-grams in common

    def caption(shortest: int) -> str:
        begin, own = draw.randint(0, 9), draw.choices(words, k=draw.choice([shortest, 2, 3, 6, 10]))
        return " ".join(own + common[begin:begin + draw.randint(0, 7)])

    return ({image: caption(0) for image in range(images)},
            {image: [caption(1) for _ in range(draw.randint(1, 6))] for image in range(images)})


@pytest.mark.parametrize("tokenize", ["simple", "ptb-coco"])
@pytest.mark.parametrize("seed", range(6))
def test_equals_pycocoevalcap(seed: int, tokenize: str) -> None:
    candidates, references = random_set(seed, images=25 + 20 * seed)
    result = bleu(candidates, references, tokenize=tokenize)
    agree(result, theirs(candidates, references, tokenize))
    assert result.scores[3] > 1e-3


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.text("ab ", max_size=14),
                          st.lists(st.text("ab ", min_size=1, max_size=14).filter(str.strip), min_size=1, max_size=3)),
                min_size=1, max_size=4))
def test_equals_pycocoevalcap_anywhere(items: list[tuple[str, list[str]]]) -> None:
    candidates = {index: item[0] for index, item in enumerate(items)}
    references = {index: item[1] for index, item in enumerate(items)}
    agree(bleu(candidates, references, tokenize="simple"), theirs(candidates, references, "simple"))


def test_by_hand() -> None:
    result = bleu({1: "the the dog runs", 2: "a b"}, {1: ["the dog runs fast now", "a dog"], 2: ["a b c d"]},
                  tokenize="simple")
    # "the" counts once; of 4 words the first reference, 5 long, is closest
    assert result.per_item[1][0] == pytest.approx(3 / 4 * math.exp(1 - 5 / 4), rel=1e-6)
    assert result.per_item[1][1] == pytest.approx(math.sqrt(3 / 4 * 2 / 3) * math.exp(1 - 5 / 4), rel=1e-6)
    assert result.per_item[2][0] == pytest.approx(math.exp(1 - 4 / 2), rel=1e-6)
    assert result.scores[0] == pytest.approx(5 / 6 * math.exp(1 - 9 / 6), rel=1e-6)  # of summed counts


def at_spaces(text: str) -> list[str]:
    return text.split(" ")


def test_white_space_inside_tokens() -> None:
    """Stanford's tokenizer leaves a no-break space in "22 3/4"; the COCO code splits there."""
    candidates, references = {1: "a sign of 22 3/4 street"}, {1: ["a sign of 22\xa03/4 street", "the sign"]}
    result = bleu(candidates, references, tokenize=at_spaces)
    assert result.scores[3] == pytest.approx(1.0)
    total, items = Bleu(4).compute_score(references, {1: [candidates[1]]}, verbose=0)
    agree(result, (total, {1: [one[0] for one in items]}))


def test_closest_of_equally_close_is_the_shorter() -> None:
    short = bleu({1: "a b c"}, {1: ["a b c d", "a b"]}, tokenize="simple").scores[0]
    assert short == pytest.approx(1.0, rel=1e-6)  # against 2 words there is no penalty


def test_result_and_signature() -> None:
    candidates, references = random_set(3, 9)
    result = bleu(candidates, references)
    assert list(result.per_item) == list(candidates) and result.signature == "bleu|n4|ref:closest|tok:ptb-coco|v1"
    assert all(type(value) is float for scores in result.per_item.values() for value in (*scores, *result.scores))
    backwards = bleu(dict(reversed(candidates.items())), references)
    assert backwards.scores == result.scores and backwards.per_item == result.per_item
    assert list(backwards.per_item) == list(reversed(candidates))


@pytest.mark.shared
@pytest.mark.parametrize("file", ["flickr8k/dev.json", "coco/captions_val2017.json"])
def test_equals_pycocoevalcap_on_real_captions(shared: Path, file: str) -> None:
    captions = read_captions(shared / "data" / file).references()
    candidates = {image: texts[0] for image, texts in captions.items()}
    references = {image: texts[1:5] for image, texts in captions.items()}
    result = bleu(candidates, references)
    agree(result, theirs(candidates, references, "ptb-coco"))
    assert 0.1 < result.scores[3] < result.scores[0] < 0.8
