"""CIDEr-D against pycocoevalcap, CIDEr against its definition, and what must not be silent."""

from __future__ import annotations

import math
import random
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
from minivl.metrics.cider import Scorer, cider, explain
from minivl.metrics.docfreq import DocFreq
from minivl.metrics.score import Score
from minivl.metrics.tokens import Tokenize, simple, tokenizer

REFERENCES = {
    "x": ["A black dog runs in the snow.", "the dog is running", "A dog, black, in snow!"],
    7: ["two men climb a mountain", "Men in red jackets climb the icy mountain ."],
    "z": ["a surfer rides a big wave", "someone surfs", "the surfer's wave is big and blue"],
}
CANDIDATES = {"x": "a black dog runs in snow", 7: "two men in a mountain", "z": "The surfer rides the wave."}


def theirs(candidates: dict[Any, str], references: dict[Any, list[str]], tokenize: str | Tokenize = "ptb-coco",
           **arguments: float) -> dict[Any, float]:
    """pycocoevalcap's scores on our tokens."""
    split = tokenizer(tokenize, "test").split
    gts = {id: [" ".join(split(caption)) for caption in captions] for id, captions in references.items()}
    res = {id: [" ".join(split(candidates[id]))] for id in references}
    return dict(zip(gts, Cider(**arguments).compute_score(gts, res)[1]))


def agree(ours: Score, expected: dict[Any, float]) -> None:
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
        agree(cider(candidates, references, n=n, tokenize="simple"), dict(zip(references, scorer.compute_score()[1])))
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
    agree(cider(candidates, references, tokenize="simple"), theirs(candidates, references, "simple"))


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
    result = cider(candidates, references, variant="cider", n=n, sigma=0.5, tokenize="simple")
    agree(result, dense(candidates, references, n))  # sigma plays no part
    assert result.signature == f"cider|n{n}|df:corpus(9)|tok:simple|v1"
    clipped = cider(candidates, references, n=n, tokenize="simple")
    assert max(abs(result.per_item[id] - score) for id, score in clipped.per_item.items()) > 0.1


def test_short_and_empty_captions() -> None:
    references = {1: ["red dogs run"], 2: ["surfers"], 3: ["one two three four"]}
    result = cider({1: "Red dogs run!", 2: "surfers", 3: ""}, references)
    assert result.per_item == pytest.approx({1: 7.5, 2: 2.5, 3: 0.0})


def test_result_and_signature() -> None:
    result = cider(CANDIDATES, REFERENCES)
    assert list(result.per_item) == list(CANDIDATES)
    assert result.signature == "cider-d|n4|s6.0|df:corpus(3)|tok:ptb-coco|v1"
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
    assert cider(CANDIDATES, REFERENCES, tokenize=simple) == cider(CANDIDATES, REFERENCES, tokenize="simple")


def at_spaces(text: str) -> list[str]:
    return text.split(" ")


def test_white_space_inside_tokens() -> None:
    """Stanford's tokenizer leaves a no-break space in "22 3/4"; the COCO code splits there."""
    references = {**REFERENCES, "z": ["22\xa03/4 street", "the sign says 22\xa03/4"]}
    candidates = {**CANDIDATES, "z": "a sign of 22 3/4 street"}
    result = cider(candidates, references, tokenize=at_spaces)
    agree(result, theirs(candidates, references, at_spaces))
    assert result.per_item["z"] > 1


# prepared references --------------------------------------------------------------------------------


def drawn(references: dict[Any, list[str]], count: int, seed: int) -> list[tuple[Any, str]]:
    """Images with captions of any image, as a captioner that learns might sample them."""
    draw, ids = random.Random(seed), list(references)
    return [(draw.choice(ids), draw.choice(references[draw.choice(ids)])) for _ in range(count)]


@pytest.mark.parametrize("variant", ["cider-d", "cider"])
@pytest.mark.parametrize("fixed", [False, True])
def test_scorer_is_cider(variant: str, fixed: bool) -> None:
    candidates, references = random_set(60, images=25)
    df: Any = DocFreq.from_references(random_set(61, images=40)[1]) if fixed else "corpus"
    expected = cider(candidates, references, variant=variant, df=df)
    scorer = Scorer(references, variant=variant, df=df)
    assert scorer.signature == expected.signature
    pairs = list(candidates.items())
    random.Random(1).shuffle(pairs)
    found = scorer.score(pairs)
    assert found.dtype == np.float64 and found.shape == (25,)
    assert found.tolist() == [expected.per_item[id] for id, _ in pairs]


@pytest.mark.parametrize("fixed", [False, True])
def test_reward_does_not_depend_on_the_batch(fixed: bool) -> None:
    """To the last bit: alone, among others, many times over, in another order."""
    references = random_set(62, images=30)[1]
    df: Any = DocFreq.from_references(random_set(63, images=20)[1]) if fixed else "corpus"
    scorer, pairs = Scorer(references, df=df), drawn(references, 200, 2)
    pairs += [(next(iter(references)), "words never seen before , words never seen")]
    together = scorer.score(pairs)
    assert together.max() > 1 and len(set(together.tolist())) > 100
    assert [float(scorer.score([pair])[0]) for pair in pairs] == together.tolist()
    assert scorer.score(pairs[::-1] * 3).tolist() == together[::-1].tolist() * 3
    assert scorer.score([]).shape == (0,)


def test_reward_of_tokens() -> None:
    references = random_set(64, images=12)[1]
    scorer, pairs = Scorer(references, tokenize="simple"), drawn(references, 40, 3)
    tokens = [(id, simple(caption)) for id, caption in pairs]
    assert scorer.score_tokens(tokens).tolist() == scorer.score(pairs).tolist()
    assert scorer.score_tokens([(id, tuple(words)) for id, words in tokens]).tolist() == scorer.score(pairs).tolist()
    assert scorer.score_tokens([]).shape == (0,)


@pytest.mark.parametrize("pairs, words", [
    ([("x", "a dog"), ("new", "a"), ("other", "b")], "2 captions are of images without references: 'new', 'other'"),
    ([("x", None)], "candidate of 'x' is a NoneType"),
    ([("x", ["a", "dog"])], "candidate of 'x' is a list"), ([3], r"pair 0 is 3: give \(id of an image, caption\)"),
    ("ab", "pair 0 is 'a'"),
])
def test_scorer_refuses(pairs: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Scorer(REFERENCES).score(pairs)


@pytest.mark.parametrize("pairs, words", [
    ([("new", ["a"])], "1 captions are of images without references: 'new'"),
    ([("x", "a dog")], "tokens of a caption are a str"),
    ([("x", None)], "tokens of a caption are a NoneType"),
    ([("x", [1, 2])], "tokens are of type int"),
])
def test_scorer_refuses_tokens(pairs: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Scorer(REFERENCES).score_tokens(pairs)


# why 0.4? ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["cider-d", "cider"])
def test_contributions_sum_to_the_score(variant: str) -> None:
    candidates, references = random_set(70, images=15)
    result = cider(candidates, references, variant=variant, sigma=3.0)
    scorer, df = Scorer(references, variant=variant, sigma=3.0), DocFreq.from_references(references)
    assert result.score > 0.1
    for id, caption in candidates.items():
        parts = scorer.explain(id, caption)
        assert math.fsum(part.value for part in parts) == pytest.approx(result.per_item[id], abs=1e-12)
        assert parts == sorted(parts, key=lambda part: (-part.value, -part.possible, part.ngram))
        assert len({part.ngram for part in parts}) == len(parts) and min(part.value for part in parts) >= 0
        alone = explain(caption, references[id], df=df, variant=variant, sigma=3.0)
        assert [part.ngram for part in alone] == [part.ngram for part in parts]
        assert np.allclose([part[1:] for part in alone], [part[1:] for part in parts], rtol=0, atol=1e-12)


def test_contributions_by_hand() -> None:
    df = DocFreq.from_references({1: ["red dogs run"], 2: ["red cats"], 3: ["a b"], 4: ["c d"]}, n=1)
    parts = {part.ngram: part for part in explain("red run zebra", ["red dogs run"], df=df)}
    red, rare = math.log(2), math.log(4)
    ours, told = math.hypot(red, rare, rare), math.hypot(red, rare, rare)
    assert parts[("red",)].value == pytest.approx(10 * red * red / (ours * told))
    assert parts[("run",)].value == pytest.approx(10 * rare * rare / (ours * told))
    assert parts[("zebra",)][1:] == (0.0, 0.0)  # said, and no reference has it
    assert parts[("dogs",)].value == 0.0  # missed
    assert parts[("dogs",)].possible == pytest.approx(10 * rare * rare / (told * told))
    assert [part.ngram[0] for part in explain("red run zebra", ["red dogs run"], df=df)] == [
        "run", "red", "dogs", "zebra"]


@pytest.mark.parametrize("variant", ["cider-d", "cider"])
def test_possible_is_what_repeating_gives(variant: str) -> None:
    references = random_set(71, images=10)[1]
    scorer = Scorer(references, variant=variant)
    df = DocFreq.from_references(references)
    for id, told in references.items():
        possible = math.fsum(part.possible for part in scorer.explain(id, "nothing"))
        repeated = [cider({0: text}, {0: [text]}, df=df, variant=variant).score for text in told]
        assert possible == pytest.approx(np.mean(repeated), abs=1e-12) and possible <= 10 + 1e-12


def test_one_image_is_explained_with_a_docfreq() -> None:
    with pytest.raises(InputError, match="df='corpus': one image needs a DocFreq"):
        explain("a dog", ["a dog"], df="corpus")  # type: ignore[arg-type]


# faults --------------------------------------------------------------------------------------------
# (of captions and tokenizers: tests/test_tokens.py)


@pytest.mark.parametrize("arguments, words", [
    (dict(candidates={"x": "a dog"}, references={"x": ["a dog"]}), "one image .* pass a DocFreq"),
    (dict(variant="cider-r"), "variant='cider-r'"),
    (dict(df="coco"), "df='coco'"),
    (dict(n=0), "n=0"),
    (dict(n=2.0), "n=2.0"),
    (dict(sigma=0), "sigma=0"),
    (dict(sigma=float("nan")), "sigma=nan"),
    (dict(df=DocFreq.from_references(REFERENCES, n=3)), "counts n=3 tokens='ptb-coco', but n=4"),
    (dict(df=DocFreq.from_references(REFERENCES), n=5), "counts n=4 tokens='ptb-coco', but n=5"),
    (dict(df=DocFreq.from_references(REFERENCES, tokenize=spaced)), "'spaced', but n=4 tokens='ptb-coco'"),
])
def test_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        cider(**{"candidates": CANDIDATES, "references": REFERENCES, **arguments})


# real captions -------------------------------------------------------------------------------------


@pytest.mark.shared
@pytest.mark.parametrize("file, images, shift, between", [
    ("flickr8k/dev.json", 1000, 0, (0.6, 1.2)), ("flickr8k/dev.json", 1000, 1, (0.0, 0.1)),
    ("coco/captions_val2017.json", 5000, 0, (0.8, 1.1))])
def test_equals_pycocoevalcap_on_real_captions(shared: Path, file: str, images: int, shift: int,
                                               between: tuple[float, float]) -> None:
    """Each image's first caption, or that of the next image, against four others."""
    captions = read_captions(shared / "data" / file).references()
    references = {image: texts[1:5] for image, texts in captions.items()}
    names = list(captions)
    candidates = {image: captions[names[place - shift]][0] for place, image in enumerate(names)}
    result = cider(candidates, references)
    agree(result, theirs(candidates, references))
    assert between[0] < result.score < between[1]
    assert result.signature == f"cider-d|n4|s6.0|df:corpus({images})|tok:ptb-coco|v1"


@pytest.mark.parametrize("options, words", [({"sigma": "6"}, "sigma='6' must be a number above 0"),
                                            ({"sigma": True}, "sigma=True"), ({"n": 101}, "n=101 .* from 1 to 100")])
def test_options_out_of_range(options: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Scorer(REFERENCES, **options)
