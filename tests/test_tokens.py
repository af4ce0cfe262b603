"""What metrics take for captions and tokenizers, and what they refuse: the same for all of them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np
import pytest

from minivl.errors import InputError
from minivl.metrics import ptb
from minivl.metrics.bleu import bleu
from minivl.metrics.cider import cider
from minivl.metrics.rouge import rouge
from minivl.metrics.tokens import encode, simple, tokenizer

REFERENCES: dict[Any, list[str]] = {
    "x": ["A black dog runs in the snow.", "the dog is running"],
    7: ["two men climb a mountain", "Men in red jackets climb the icy mountain ."],
    "z": ["a surfer rides a big wave", "someone surfs", "the surfer's wave is big and blue"]}
CANDIDATES: dict[Any, str] = {"x": "a black dog runs in snow", 7: "two men in a mountain", "z": "The surfer rides."}
METRICS = (cider, bleu, rouge)


class Shouting:
    name = "shout"

    def __call__(self, text: str) -> list[str]:
        return text.upper().split()


class Odd:
    name = "a|b"

    def __call__(self, text: str) -> list[str]:
        return text.split()


def letters(text: str) -> Any:
    return text


def numbers(text: str) -> Any:
    return [len(word) for word in text.split()]


def pieces(text: str) -> Any:
    return (word for word in text.split())


def test_simple() -> None:
    assert simple("A dog's RUN, 2 times -- naïve!") == ["a", "dog's", "run", "2", "times", "na", "ve"]


def test_tokenizers_by_name_and_function() -> None:
    assert tokenizer("simple", "test").split is simple and tokenizer(simple, "test").name == "simple"
    assert tokenizer(Shouting(), "test").name == "shout" and tokenizer(str.split, "test").name == "split"
    texts = [f"{number} dogs run" for number in range(1000)]
    batches = list(tokenizer("simple", "test").batches(texts))
    assert len(batches) > 1 and list(chain.from_iterable(batches)) == [simple(text) for text in texts]


def test_words_as_numbers() -> None:
    captions = [["the", "dog"], [], ("a", "dog", "the", "the")]
    found = encode([captions[:2], captions[2:]])
    assert found.words == ["a", "dog", "the"] and found.lengths.tolist() == [2, 0, 4]
    assert [found.words[id] for id in found.ids] == list(chain.from_iterable(captions))
    nothing = encode([])
    assert nothing.words == [] and len(nothing.ids) == len(nothing.lengths) == 0


def test_white_space_inside_tokens() -> None:
    """Tokens of many, one and no part, against splitting one by one."""
    draw = np.random.default_rng(3)
    tokens = ["a", "22\xa03/4", "dog", "", " ", "x\u2028y z", "\xa0b", "3/4"]
    captions = [[tokens[number] for number in draw.integers(0, len(tokens), draw.integers(0, 7))] for _ in range(60)]
    batches = [captions[:20], captions[20:]]
    for whole, expected in ((True, captions), (False, [" ".join(caption).split() for caption in captions])):
        found = encode(batches, whole=whole)
        assert [found.words[id] for id in found.ids] == list(chain.from_iterable(expected))
        assert found.lengths.tolist() == list(map(len, expected))
        assert found.words == sorted(set(chain.from_iterable(expected)))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("arguments, words", [
    (dict(candidates={}, references={}), "no candidates"),
    (dict(candidates={"x": "a dog"}), "2 ids have references but no candidate: 7, 'z'"),
    (dict(candidates={**CANDIDATES, "new": "a"}), "1 ids have a candidate but no references: 'new'"),
    (dict(candidates={**CANDIDATES, 7: None}), "candidate of 7 is a NoneType"),
    (dict(candidates={**CANDIDATES, 7: ["two men"]}), "candidate of 7 is a list"),
    (dict(references={**REFERENCES, "z": []}), "'z' has no references"),
    (dict(references={**REFERENCES, "z": "a wave"}), "references of 'z' are a str"),
    (dict(references={**REFERENCES, "z": None}), "references of 'z' are a NoneType"),
    (dict(references={**REFERENCES, "z": {"a wave"}}), "references of 'z' are a set"),
    (dict(references={**REFERENCES, "z": ["a wave", 5]}), "reference 1 of 'z' is a int"),
    (dict(references={**REFERENCES, "z": ["a wave", " \n"]}), "reference 1 of 'z' is empty"),
    (dict(references={**REFERENCES, "z": [""]}), "reference 0 of 'z' is empty"),
    (dict(references={**REFERENCES, "z": ["雪の中の犬", "。"]}, tokenize="simple"),
     "references of 'z' have no 'simple' token, such as '雪の中の犬'"),
    (dict(tokenize="ptb"), "tokenize='ptb' is unknown; give 'ptb-coco', 'ptb-clean', 'simple' or a function"),
    (dict(tokenize=5), "tokenize=5 is unknown"),
    (dict(tokenize=lambda text: text.split()), "needs a name of its own"),
    (dict(tokenize=Odd()), "needs a name of its own"),
    (dict(tokenize=letters), "the tokens of a caption are a str, a list of strings is needed"),
    (dict(tokenize=pieces), "the tokens of a caption are a generator"),
    (dict(tokenize=numbers), "tokens are of type int, strings are needed"),
])
def test_refused(metric: Callable[..., Any], arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        metric(**{"candidates": CANDIDATES, "references": REFERENCES, **arguments})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("metric", METRICS)
def test_empty_and_endless_captions(metric: Callable[..., Any]) -> None:
    """0 of nothing, and 10,000 words take no time."""
    words = np.random.default_rng(5).choice(["a", "dog", "runs", "snow", "in", "the"], 10_000)
    result = metric({**CANDIDATES, "x": "", 7: " . "}, {**REFERENCES, "z": [" ".join(words)]})
    for id in ("x", 7):
        assert np.max(result.per_item[id]) == 0
    endless = metric({**CANDIDATES, "x": " ".join(words)}, REFERENCES)
    assert list(endless.per_item) == list(CANDIDATES)
    for one in (result, endless):
        every = np.array(list(one.per_item.values()))
        assert np.isfinite(every).all() and every.min() >= 0


@pytest.mark.parametrize("metric", METRICS)
def test_signature_names_the_tokens(metric: Callable[..., Any]) -> None:
    for tokenize, name in (("simple", "simple"), (simple, "simple"), (Shouting(), "shout"), (str.split, "split"),
                           ("ptb-coco", "ptb-coco"), ("ptb-clean", "ptb-clean"), (ptb.clean, "ptb-clean"),
                           (ptb.tokenize, "ptb-coco")):
        result = metric(CANDIDATES, REFERENCES, tokenize=tokenize)
        assert result.signature.endswith(f"|tok:{name}|v1")
    assert metric(CANDIDATES, REFERENCES) == metric(CANDIDATES, REFERENCES, tokenize="ptb-coco")
