"""CIDEr-D against pycocoevalcap, CIDEr against its definition, and what must not be silent."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.cider.cider_scorer import CiderScorer

from minivl.data.captions import read_captions
from minivl.errors import InputError
from minivl.metrics.cider import CiderResult, DocFreq, cider, simple

REFERENCES = {
    "x": ["A black dog runs in the snow.", "the dog is running", "A dog, black, in snow!"],
    7: ["two men climb a mountain", "Men in red jackets climb the icy mountain ."],
    "z": ["a surfer rides a big wave", "someone surfs", "the surfer's wave is big and blue"],
}
CANDIDATES = {"x": "a black dog runs in snow", 7: "two men in a mountain", "z": "The surfer rides the wave."}


def theirs(candidates: dict[Any, str], references: dict[Any, list[str]],
           **arguments: float) -> dict[Any, float]:
    """pycocoevalcap's scores on our tokens."""
    gts = {id: [" ".join(simple(caption)) for caption in captions] for id, captions in references.items()}
    res = {id: [" ".join(simple(candidates[id]))] for id in references}
    return dict(zip(gts, Cider(**arguments).compute_score(gts, res)[1]))


def agree(ours: CiderResult, expected: dict[Any, float]) -> None:
    assert ours.per_item.keys() == expected.keys()
    for id, score in expected.items():
        assert ours.per_item[id] == pytest.approx(score, abs=1e-9, rel=0)
    assert ours.score == pytest.approx(np.mean(list(expected.values())), abs=1e-9, rel=0)


def random_set(seed: int, images: int, vocabulary: int = 12) -> tuple[dict[Any, str], dict[Any, list[str]]]:
    """Captions over few words, so that n-grams of all orders are shared, repeated and clipped."""
    draw = random.Random(seed)
    words = "dog A the runs. boy's red (big) 2 over Snow cat and".split()[:vocabulary]

    def caption(shortest: int) -> str:
        return " ".join(draw.choices(words, k=draw.randint(shortest, 14)))

    ids: list[Any] = [draw.choice([f"image {index}", index]) for index in range(images)]
    return {id: caption(0) for id in ids}, {id: [caption(1) for _ in range(draw.randint(1, 6))] for id in ids}


@pytest.mark.parametrize("seed", range(8))
def test_equals_pycocoevalcap(seed: int) -> None:
    candidates, references = random_set(seed, images=5 + 9 * seed, vocabulary=4 + seed)
    expected = theirs(candidates, references)
    assert max(expected.values()) > 0.1
    agree(cider(candidates, references), expected)


@pytest.mark.parametrize("sigma", [1.0, 2.5, 40.0])
def test_sigma(sigma: float) -> None:
    candidates, references = random_set(50, images=20)
    agree(cider(candidates, references, sigma=sigma), theirs(candidates, references, sigma=sigma))


def test_other_orders() -> None:
    """pycocoevalcap's n does not reach its n-gram builder; given the right n-grams its sums do."""
    from pycocoevalcap.cider import cider_scorer
    candidates, references = random_set(51, images=20)
    for n in (2, 3, 5, 6):
        scorer = CiderScorer(n=n)
        for id in references:
            scorer.crefs.append([cider_scorer.precook(" ".join(simple(text)), n) for text in references[id]])
            scorer.ctest.append(cider_scorer.precook(" ".join(simple(candidates[id])), n))
        agree(cider(candidates, references, n=n), dict(zip(references, scorer.compute_score()[1])))
    words = REFERENCES["x"][0]
    perfect = cider({"x": words, 7: "two men climb a mountain"},
                    {"x": [words], 7: ["two men climb a mountain"]}, n=5)
    assert perfect.per_item == pytest.approx({"x": 10.0, 7: 10.0})


def test_first_order_by_hand() -> None:
    """n = 1, where the length is still counted in bigrams."""
    references = {1: ["a b b"], 2: ["a c"]}
    result = cider({1: "a b", 2: "a c c c"}, references, n=1, sigma=2.0)
    factor = math.exp(-1 / 8)  # 1 bigram against 2
    assert result.per_item[1] == pytest.approx(10 * (1 * 2) / (1 * 2) * factor)  # min(b, 2b) * 2b / (b * 2b)
    assert result.per_item[2] == pytest.approx(10 * (1 * 1) / (3 * 1) * math.exp(-4 / 8))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.text("ab '.B1é", max_size=12),
                          st.lists(st.text("ab '.B1é", min_size=1, max_size=12).filter(simple),
                                   min_size=1, max_size=3)), min_size=2, max_size=5))
def test_equals_pycocoevalcap_anywhere(items: list[tuple[str, list[str]]]) -> None:
    candidates = {index: item[0] for index, item in enumerate(items)}
    references = {index: item[1] for index, item in enumerate(items)}
    agree(cider(candidates, references), theirs(candidates, references))


def dense(candidates: dict[Any, str], references: dict[Any, list[str]], n: int) -> dict[Any, float]:
    """The paper's CIDEr on dense vectors: tf as a share of the caption's n-grams, cosine, mean."""
    def grams(text: str, order: int) -> list[tuple[str, ...]]:
        words = simple(text)
        return [tuple(words[i:i + order]) for i in range(len(words) - order + 1)]

    scores = dict.fromkeys(references, 0.0)
    for order in range(1, n + 1):
        everything = [*candidates.values(), *(text for texts in references.values() for text in texts)]
        axes = sorted({gram for text in everything for gram in grams(text, order)})
        has = [[any(axis in grams(text, order) for text in texts) for axis in axes]
               for texts in references.values()]
        idf = np.log(len(references) / np.maximum(np.sum(has, 0), 1))

        def vector(text: str) -> np.ndarray:
            found = grams(text, order)
            return np.array([found.count(axis) for axis in axes]) / max(len(found), 1) * idf

        for id, texts in references.items():
            for text in texts:
                one, other = vector(candidates[id]), vector(text)
                norm = np.linalg.norm(one) * np.linalg.norm(other)
                scores[id] += 10 / n / len(texts) * (one @ other / norm if norm else 0.0)
    return scores


@pytest.mark.parametrize("n", [1, 4, 5])
def test_plain_cider_is_the_papers(n: int) -> None:
    candidates, references = random_set(52, images=9)
    result = cider(candidates, references, variant="cider", n=n, sigma=0.5)  # sigma plays no part
    agree(result, dense(candidates, references, n))
    assert result.signature == f"cider|n{n}|df:corpus(9)|tok:simple|v1"
    clipped = cider(candidates, references, n=n)
    assert max(abs(result.per_item[id] - score) for id, score in clipped.per_item.items()) > 0.1


def test_short_and_empty_captions() -> None:
    references = {1: ["red dogs run"], 2: ["surfers"], 3: ["one two three four"]}
    result = cider({1: "Red dogs run!", 2: "surfers", 3: ""}, references)
    assert result.per_item == pytest.approx({1: 7.5, 2: 2.5, 3: 0.0})


def test_result_and_signature() -> None:
    result = cider(CANDIDATES, REFERENCES)
    assert list(result.per_item) == list(CANDIDATES)
    assert result.signature == "cider-d|n4|s6.0|df:corpus(3)|tok:simple|v1"
    assert isinstance(result.score, float) and 0 < result.score < 10
    backwards = cider(dict(reversed(CANDIDATES.items())), REFERENCES)
    assert backwards.score == result.score and backwards.per_item == result.per_item


def spaced(text: str) -> list[str]:
    return text.split()


class Shouting:
    name = "shout"

    def __call__(self, text: str) -> Sequence[str]:
        return text.upper().split()


def test_own_tokens() -> None:
    result = cider(CANDIDATES, REFERENCES, tokenize=spaced)
    assert result.signature.endswith("|tok:spaced|v1")
    gts = REFERENCES
    expected = Cider().compute_score(gts, {id: [text] for id, text in CANDIDATES.items()})
    agree(result, dict(zip(gts, expected[1])))
    shouted = cider(CANDIDATES, REFERENCES, tokenize=Shouting())
    assert shouted.signature.endswith("|tok:shout|v1") and shouted.score != result.score
    assert cider(CANDIDATES, REFERENCES, tokenize=simple) == cider(CANDIDATES, REFERENCES)


# document frequencies ------------------------------------------------------------------------------


def test_document_frequencies_count_images() -> None:
    df = DocFreq.from_references({1: ["a dog", "a dog a dog"], 2: ["a cat"], 3: ["the cat"]}, n=2)
    assert df.counts[("a",)] == 2 and df.counts[("a", "dog")] == 1 and df.counts[("dog", "a")] == 1
    assert df.images == 3 and max(map(len, df.counts)) == 2
    assert df.idf(("a",)) == pytest.approx(math.log(3 / 2))
    assert df.idf(("zebra",)) == pytest.approx(math.log(3))


def test_corpus_is_the_frequencies_of_its_references() -> None:
    candidates, references = random_set(53, images=12)
    df = DocFreq.from_references(references)
    fixed = cider(candidates, references, df=df)
    assert fixed.per_item == cider(candidates, references).per_item
    named = DocFreq.from_references(references, label="train")
    assert cider(candidates, references, df=named).signature == "cider-d|n4|s6.0|df:train(12)|tok:simple|v1"


def test_fixed_frequencies_do_not_depend_on_the_batch() -> None:
    candidates, references = random_set(54, images=30)
    df = DocFreq.from_references(references)
    whole = cider(candidates, references, df=df).per_item
    for id in list(references)[:5]:  # one image alone
        alone = cider({id: candidates[id]}, {id: references[id]}, df=df)
        assert alone.score == pytest.approx(whole[id], abs=1e-12)
    repeated = [(id, copy) for index, id in enumerate(references) for copy in range(8 if index < 5 else 1)]
    often = {key: candidates[key[0]] for key in repeated}, {key: references[key[0]] for key in repeated}
    assert cider(*often, df=df).per_item == {key: whole[key[0]] for key in repeated}
    corpus = cider(*often).per_item  # what the fixed frequencies are for
    assert max(abs(corpus[key] - whole[key[0]]) for key in repeated) > 0.3


def test_name_is_of_the_contents() -> None:
    base = {1: ["a dog"], 2: ["a cat"]}
    name = DocFreq.from_references(base).name
    assert name == DocFreq.from_references({2: ["a cat"], 1: ["a dog", "a dog"]}).name
    assert name.endswith("(2)") and len(name) == 11
    assert name != DocFreq.from_references({1: ["a dog"], 2: ["a pig"]}).name
    assert name != DocFreq.from_references(base, n=1).name


# faults --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments, words", [
    (dict(candidates={}, references={}), "no candidates"),
    (dict(candidates={"x": "a dog"}), "2 ids have references but no candidate: 7, 'z'"),
    (dict(candidates={**CANDIDATES, "new": "a"}), "1 ids have a candidate but no references: 'new'"),
    (dict(candidates={**CANDIDATES, 7: None}), "candidate of 7 is a NoneType"),
    (dict(candidates={**CANDIDATES, 7: ["two men"]}), "candidate of 7 is a list"),
    (dict(references={**REFERENCES, "z": []}), "'z' has no references"),
    (dict(references={**REFERENCES, "z": "a wave"}), "references of 'z' are a str"),
    (dict(references={**REFERENCES, "z": None}), "references of 'z' are a NoneType"),
    (dict(references={**REFERENCES, "z": ["a wave", 5]}), "reference 1 of 'z' is a int"),
    (dict(references={**REFERENCES, "z": ["a wave", " "]}), "reference 1 of 'z' is empty"),
    (dict(references={**REFERENCES, "z": ["雪の中の犬", "。"]}), "references of 'z' have no 'simple' token"),
    (dict(candidates={"x": "a dog"}, references={"x": ["a dog"]}), "one image .* pass a DocFreq"),
    (dict(variant="cider-r"), "variant='cider-r'"),
    (dict(df="coco"), "df='coco'"),
    (dict(n=0), "n=0"),
    (dict(n=2.0), "n=2.0"),
    (dict(sigma=0), "sigma=0"),
    (dict(sigma=float("nan")), "sigma=nan"),
    (dict(tokenize="ptb"), "tokenize='ptb' is unknown"),
    (dict(tokenize=lambda text: text.split()), "needs a name of its own"),
    (dict(df=DocFreq.from_references(REFERENCES, n=3)), "counts n=3 tokens='simple', but n=4"),
    (dict(df=DocFreq.from_references(REFERENCES), n=5), "counts n=4 tokens='simple', but n=5"),
    (dict(df=DocFreq.from_references(REFERENCES, tokenize=spaced)), "'spaced', but n=4 tokens='simple'"),
])
def test_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        cider(**{"candidates": CANDIDATES, "references": REFERENCES, **arguments})


def test_frequencies_refused() -> None:
    with pytest.raises(InputError, match="1 image say nothing"):
        DocFreq.from_references({1: ["a dog"]})
    with pytest.raises(InputError, match="in 5 images, but there are only 3"):
        DocFreq({("a",): 5}, images=3)
    with pytest.raises(InputError, match="reference 0 of 1 is empty"):
        DocFreq.from_references({1: [""], 2: ["a"]})


# real captions -------------------------------------------------------------------------------------


@pytest.mark.shared
def test_flickr8k_equals_pycocoevalcap(shared: Path) -> None:
    """Each image's first caption against the others, and against those of the next image."""
    captions = read_captions(shared / "data/flickr8k/dev.json").references()
    references = {image: texts[1:] for image, texts in captions.items()}
    names = list(captions)
    own = {image: captions[image][0] for image in names}
    shifted = {image: captions[names[index - 1]][0] for index, image in enumerate(names)}
    for candidates, low, high in ((own, 0.6, 1.2), (shifted, 0.0, 0.1)):
        result = cider(candidates, references)
        agree(result, theirs(candidates, references))
        assert low < result.score < high
        assert result.signature == "cider-d|n4|s6.0|df:corpus(1000)|tok:simple|v1"


def test_five_thousand_images_take_seconds() -> None:
    draw = random.Random(6)
    words = [f"w{min(int(draw.paretovariate(0.9)), 4000)}" for _ in range(50000)]
    references = {image: [" ".join(draw.sample(words, 11)) for _ in range(5)] for image in range(5000)}
    start = time.process_time()
    cider({image: texts[0] for image, texts in references.items()}, references)
    assert time.process_time() - start < 20  # about 3 on one core
