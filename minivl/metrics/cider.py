"""CIDEr-D and CIDEr: how well a caption agrees with what people wrote about the same image.

Vedantam, Zitnick, Parikh: CIDEr, Consensus-based Image Description Evaluation (CVPR 2015). The
numbers of ``cider-d`` are those of the COCO caption evaluation (pycocoevalcap's "CIDEr", which is
CIDEr-D) on the same tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from ..errors import InputError, some
from .docfreq import DocFreq, check_n
from .ngrams import Ngram, Ngrams, common, hold
from .score import Score
from .tokens import Tokenize, Words, check_candidate, check_ids, encode, reference_words, tokenizer

VARIANTS = ("cider-d", "cider")
TOGETHER, IMAGES = 4096, 512  # captions scored, images weighed at a time: what is at hand fits into a cache


def cider(candidates: Mapping[Any, str], references: Mapping[Any, Sequence[str]], *, variant: str = "cider-d",
          df: str | DocFreq = "corpus", n: int = 4, sigma: float = 6.0,
          tokenize: str | Tokenize = "ptb-coco") -> Score:
    """Score captions against references.

    For each order 1 to n the tf-idf weighted n-gram counts of candidate and reference are compared
    by their cosine; the mean over orders and references, times 10, is the score of an image.
    ``"cider-d"`` clips the candidate's weight at the reference's and multiplies by
    ``exp(-d^2 / (2 sigma^2))``, d the difference in length, where the length is, as in the COCO code,
    the number of bigrams. ``"cider"`` is the plain cosine: no clipping, no length factor, and, unlike
    the paper's, no stemming.

    A caption of fewer than n words has no n-grams of the long orders, which count 0: a perfect caption of
    three words scores 7.5 with n = 4.

    Args:
        candidates: id -> caption. An empty caption is allowed and scores 0.
        references: id -> captions, the same ids.
        variant: "cider-d" or "cider".
        df: "corpus" counts document frequencies over ``references``, so that a score depends on the
            images scored with it; or a `DocFreq`.
        n: longest n-gram.
        sigma: width of the length factor, in words ("cider-d" only).
        tokenize: "ptb-coco", the tokens of the COCO evaluation, or "ptb-clean" (see `minivl.metrics.ptb`); "simple"
            (see `minivl.metrics.tokens.simple`); or a function with a name, text -> tokens.

    Returns:
        The mean, 0 to 10 (papers print it times 10 or 100), the score per id and the signature, e.g.
        ``"cider-d|n4|s6.0|df:corpus(1000)|tok:ptb-coco|v1"``.

    Raises:
        InputError: no candidates; ids only on one side; an image without references or without a
            token in them; a caption that is no string; one image with ``df="corpus"`` (all weights would
            be 0); a DocFreq of other n or tokens; an unknown variant or tokenizer.
    """
    check_ids(candidates, references, "cider")
    scorer = Scorer(references, variant=variant, df=df, n=n, sigma=sigma, tokenize=tokenize)
    values = scorer.score(list(candidates.items())).tolist()
    return Score(math.fsum(values) / len(values), dict(zip(candidates, values)), scorer.signature)


def explain(candidate: str, references: Sequence[str], *, df: DocFreq, variant: str = "cider-d", sigma: float = 6.0,
            tokenize: str | Tokenize = "ptb-coco") -> list[Contribution]:
    """Which n-grams the score of a caption comes from: why 0.4?

    Args:
        candidate: the caption.
        references: of its image.
        df: document frequencies; those of ``DocFreq.from_references(references of all images)`` explain what `cider`
            gave with ``df="corpus"``.
        variant, sigma, tokenize: as of `cider`.

    Returns:
        As `Scorer.explain`.

    Raises:
        InputError: as `cider`.
    """
    if not isinstance(df, DocFreq):
        raise InputError(f"df={df!r}: one image needs a DocFreq", source="cider")
    scorer = Scorer({"this image": references}, variant=variant, df=df, n=df.n, sigma=sigma, tokenize=tokenize)
    return scorer.explain("this image", candidate)


class Contribution(NamedTuple):
    """What one n-gram gives to a score.

    Attributes:
        ngram: its words.
        value: its part of the score; 0 where the caption lacks it, and where no reference has it.
        possible: what it gives to a caption that repeats a reference word for word, compared with that reference
            alone, on average over the references: together at most 10. An n-gram with ``value`` 0 and a
            large ``possible`` was missed.
    """

    ngram: Ngram
    value: float
    possible: float


class Scorer:
    """References made ready, to score many captions against them: CIDEr as a reward.

    What a caption scores depends neither on the captions scored with it nor on their number, to the last bit.

    Args:
        references: id -> captions.
        variant, df, n, sigma, tokenize: as of `cider`.

    Attributes:
        signature: as of `cider`.

    Raises:
        InputError: as `cider`, of references and options.
    """

    def __init__(self, references: Mapping[Any, Sequence[str]], *, variant: str = "cider-d",
                 df: str | DocFreq = "corpus", n: int = 4, sigma: float = 6.0,
                 tokenize: str | Tokenize = "ptb-coco") -> None:
        if variant not in VARIANTS:
            raise InputError(f"variant={variant!r} is unknown; there are: {some(VARIANTS)}", source="cider")
        if isinstance(sigma, bool) or not isinstance(sigma, (int, float)) or not sigma > 0:
            raise InputError(f"sigma={sigma!r} must be a number above 0", source="cider")
        check_n(n, "cider")
        self._clipped, self._sigma, self._split = variant == "cider-d", sigma, tokenizer(tokenize, "cider")
        texts, words = reference_words(references, self._split, "cider")
        self._image = {id: image for image, id in enumerate(texts.ids)}
        self._counts = np.asarray(texts.counts)  # (I,) references of each image
        self._first = np.cumsum(self._counts) - self._counts  # (I,) the first of them
        self._lengths = words.lengths  # (C,) words of each
        self._ngrams, self._held = hold(words, texts.image(), n)
        self._df, name, known = _frequencies(df, self._ngrams, len(texts.ids), self._split.name)
        self._norms = self._norm(known)
        width = f"|s{float(sigma)}" if self._clipped else ""
        self.signature = f"{variant}|n{n}{width}|df:{name}|tok:{self._split.name}|v1"

    def score(self, pairs: Sequence[tuple[Any, str]]) -> np.ndarray:
        """Score captions.

        Args:
            pairs: (id of an image, caption); an image may be there more than once, or not at all.

        Returns:
            (len(pairs),) float64, 0 to 10.

        Raises:
            InputError: an id without references, or a caption that is no string.
        """
        parts = [self._score(*self._read(pairs[start:start + TOGETHER])) for start in range(0, len(pairs), TOGETHER)]
        return np.concatenate([np.zeros(0), *parts])

    def score_tokens(self, pairs: Sequence[tuple[Any, Sequence[str]]]) -> np.ndarray:
        """Score captions that are tokens already, of the kind that the references were split into.

        Args:
            pairs: (id of an image, tokens).

        Returns:
            (len(pairs),) float64, 0 to 10.

        Raises:
            InputError: an id without references, or tokens that are no list of strings.
        """
        return self._score(self._images(pairs), encode([[tokens for _, tokens in pairs]]))

    def _read(self, pairs: Sequence[tuple[Any, str]]) -> tuple[np.ndarray, Words]:
        check_pairs(pairs)
        for id, caption in pairs:
            check_candidate(id, caption, "cider")
        return self._images(pairs), encode(self._split.batches([caption for _, caption in pairs]))

    def _images(self, pairs: Sequence[tuple[Any, Any]]) -> np.ndarray:
        """(B,) the images of pairs."""
        check_pairs(pairs)
        unknown = [repr(id) for id, _ in pairs if id not in self._image]
        if unknown:
            raise InputError(f"{len(unknown)} captions are of images without references: {some(unknown, 5)}",
                             source="cider")
        return np.fromiter((self._image[id] for id, _ in pairs), np.int64, len(pairs))

    def explain(self, id: Any, caption: str) -> list[Contribution]:
        """Which n-grams a score comes from.

        Args:
            id: of an image.
            caption: as of `score`.

        Returns:
            Every n-gram of the caption and of the image's references, by falling value, then by falling `possible`.
            The values sum up to the score.

        Raises:
            InputError: as `score`.
        """
        image, text = self._read([(id, caption)])
        against = self._comparisons(image, text.lengths)
        ngrams, matches = self._matches(image, text, against)
        found: dict[Ngram, float] = {}
        for order, match in enumerate(matches, 1):
            value = match.value * against.factor[match.comparison]
            values = np.bincount(match.term, value, len(ngrams.keys[order - 1])).tolist()
            found.update((ngrams.spell(order, number), value) for number, value in enumerate(values))
        possible = self._possible(int(image[0]))
        return sorted((Contribution(ngram, found.get(ngram, 0.0), possible.get(ngram, 0.0))
                       for ngram in {**found, **possible}), key=lambda one: (-one.value, -one.possible, one.ngram))

    def _possible(self, image: int) -> dict[Ngram, float]:
        """What each n-gram of an image's references gives to captions that repeat them."""
        found, factor = {}, 10.0 / (len(self._held) * self._counts[image])
        for order, (begin, end) in enumerate(self._ngrams.begins(np.array([image, image + 1])), 1):
            held, norms = self._held[order - 1], self._norms[order - 1]
            for number in range(begin, end):
                ngram, entries = self._ngrams.spell(order, number), slice(*held.start[number:number + 2])
                weight, norm = held.times[entries] * self._df.idf(ngram), norms[held.caption[entries]]
                share = np.divide(weight, norm, out=np.zeros(len(norm)), where=norm > 0)
                found[ngram] = float(factor * (share * share).sum())
        return found

    def _norm(self, known: list[np.ndarray]) -> list[np.ndarray]:
        """For each order (C,): the Euclidean norms of the references' weights.

        Args:
            known: for each order (G_k,) the numbers of the references' n-grams in the document frequencies.
        """
        images = [*range(0, len(self._counts), IMAGES), len(self._counts)]
        captions = np.append(self._first, len(self._lengths))[images].tolist()
        norms = []
        of_order = zip(self._held, self._df.weights, known, self._ngrams.begins(np.array(images)))
        for held, idf, numbers, begins in of_order:
            squares = np.zeros(len(self._lengths))
            for (begin, end), (first, last) in zip(pairwise(begins.tolist()), pairwise(captions)):
                start = held.start[begin:end + 1]
                weight = held.times[start[0]:start[-1]] * np.repeat(idf[numbers[begin:end]], np.diff(start))  # (E',)
                caption = held.caption[start[0]:start[-1]] - first
                squares[first:last] = np.bincount(caption, weight * weight, last - first)
            norms.append(np.sqrt(squares))
        return norms

    def _score(self, image: np.ndarray, text: Words) -> np.ndarray:
        """(B,) scores of B captions of these images."""
        against = self._comparisons(image, text.lengths)
        cosine = np.zeros(len(against.caption))  # (M,) summed over the orders
        for match in self._matches(image, text, against)[1]:
            cosine += np.bincount(match.comparison, match.value, len(cosine))
        return np.bincount(against.caption, cosine * against.factor, len(image))

    def _comparisons(self, image: np.ndarray, lengths: np.ndarray) -> _Comparisons:
        """Each of B captions of these images and lengths with each reference of its image."""
        counts = self._counts[image]  # (B,)
        first = np.cumsum(counts) - counts
        caption = np.repeat(np.arange(len(image)), counts)  # (M,)
        reference = np.arange(len(caption)) + (self._first[image] - first)[caption]
        factor = 10.0 / (len(self._held) * counts[caption])
        if self._clipped:
            apart = _bigrams(lengths)[caption] - _bigrams(self._lengths)[reference]
            factor = factor * np.exp(-(apart * apart) / (2 * self._sigma**2))
        return _Comparisons(caption, reference, factor, first)

    def _matches(self, image: np.ndarray, text: Words, against: _Comparisons) -> tuple[Ngrams, Iterator[_Matches]]:
        """The n-grams of B captions, and for each order those that a reference has too."""
        ngrams, own = hold(text, np.arange(len(image)), len(self._held))
        there, known = ngrams.numbers_in(self._ngrams, image), ngrams.numbers_in(self._df.ngrams)

        def of_order(place: int) -> _Matches:
            held, caption = self._held[place], own[place].caption
            idf = self._df.weights[place][known[place]]  # (E,)
            weight = own[place].times * idf
            norm = np.sqrt(np.bincount(caption, weight * weight, len(image)))  # (B,)
            term = np.flatnonzero(there[place] >= 0)
            number = there[place][term]
            begin = held.start[number]
            count = held.start[number + 1] - begin
            term = np.repeat(term, count)  # (X,) a match of a term with an entry of the references
            entry = np.arange(len(term)) + np.repeat(begin - (np.cumsum(count) - count), count)
            ours, theirs = weight[term], held.times[entry] * idf[term]
            product = (np.minimum(ours, theirs) if self._clipped else ours) * theirs
            caption, reference = caption[term], held.caption[entry]
            norms = norm[caption] * self._norms[place][reference]
            value = np.divide(product, norms, out=np.zeros(len(term)), where=norms > 0)
            return _Matches(term, against.first[caption] + reference - self._first[image[caption]], value)
        return ngrams, map(of_order, range(len(self._held)))


class _Comparisons(NamedTuple):
    """M comparisons of a caption with a reference.

    Attributes:
        caption, reference: (M,) their numbers.
        factor: (M,) what the sum of the cosines is multiplied by in the score.
        first: (B,) the first comparison of each caption.
    """

    caption: np.ndarray
    reference: np.ndarray
    factor: np.ndarray
    first: np.ndarray


class _Matches(NamedTuple):
    """n-grams of one order that a caption and a reference share.

    Attributes:
        term: (X,) the number of the n-gram among those of the captions.
        comparison: (X,) between which two captions.
        value: (X,) its part of their cosine.
    """

    term: np.ndarray
    comparison: np.ndarray
    value: np.ndarray


def _bigrams(lengths: np.ndarray) -> np.ndarray:
    """What CIDEr-D takes for the length, whatever n is."""
    return np.maximum(lengths - 1, 0)


def check_pairs(pairs: Sequence[tuple[Any, Any]]) -> None:
    """Raise InputError for what is no (id, caption)."""
    for place, pair in enumerate(pairs):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise InputError(f"pair {place} is {pair!r:.60}: give (id of an image, caption)", source="cider")


def _frequencies(df: str | DocFreq, ngrams: Ngrams, images: int,
                 tokens: str) -> tuple[DocFreq, str, list[np.ndarray]]:
    """Document frequencies, what they are called in signatures, and which of theirs these n-grams of images are."""
    n = len(ngrams.keys)
    if isinstance(df, DocFreq):
        if (df.n, df.tokens) != (n, tokens):
            raise InputError(f"the DocFreq {df.name} counts n={df.n} tokens={df.tokens!r}, but n={n} "
                             f"tokens={tokens!r} are asked for: give it those tokens (--tokens {df.tokens}), or count "
                             "the document frequencies anew", source="cider")
        return df, df.name, ngrams.numbers_in(df.ngrams)
    if df != "corpus":
        raise InputError(f"df={df!r} is unknown; give 'corpus' or a DocFreq", source="cider")
    if images < 2:
        raise InputError("df='corpus' with one image makes every weight and the score 0; pass a DocFreq "
                         "(DocFreq.from_references of a larger set)", source="cider")
    shared, counts, known = common(ngrams)
    return DocFreq(shared, tuple(counts), images, tokens), f"corpus({images})", known
