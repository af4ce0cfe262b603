"""CIDEr-D and CIDEr: how well a caption agrees with what people wrote about the same image.

Vedantam, Zitnick, Parikh: CIDEr, Consensus-based Image Description Evaluation (CVPR 2015). The
numbers of ``cider-d`` are those of the COCO caption evaluation (pycocoevalcap's "CIDEr", which is
CIDEr-D) on the same tokens.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ..errors import InputError, some

Ngram = tuple[str, ...]
Tokenize = Callable[[str], Sequence[str]]

VARIANTS = ("cider-d", "cider")


def simple(text: str) -> list[str]:
    """The tokens named "simple": lower case, runs of ``[a-z0-9']``; all else separates."""
    return re.findall(r"[a-z0-9']+", text.lower())


@dataclass(frozen=True)
class CiderResult:
    """What `cider` returns.

    Attributes:
        score: mean over the images, 0 to 10 (papers print it times 10 or 100).
        per_item: id -> score, in the order of the candidates.
        signature: all that must be equal for two scores to be comparable.
    """

    score: float
    per_item: dict[Any, float]
    signature: str


@dataclass(frozen=True, eq=False)
class DocFreq:
    """In how many images of a collection an n-gram occurs: what makes a rare word count more.

    A fixed collection makes scores independent of which images are scored together: one image can
    be scored, and a batch that repeats images (as in reinforcement learning) scores as without.

    Attributes:
        counts: n-gram -> number of images with it in at least one reference.
        images: number of images in the collection.
        n: longest n-gram counted.
        tokens: name of the tokens the n-grams are made of.
        label: a name for the signature; "" uses the first 8 hex digits of the contents' sha256.
    """

    counts: Mapping[Ngram, int] = field(repr=False)
    images: int
    n: int = 4
    tokens: str = "simple"
    label: str = ""

    def __post_init__(self) -> None:
        if self.images < 2:
            raise InputError(f"document frequencies of {self.images} image say nothing (every n-gram would "
                             "weigh 0); at least 2 are needed", source="DocFreq")
        highest = max(self.counts.values(), default=0)
        if highest > self.images:
            raise InputError(f"an n-gram is counted in {highest} images, but there are only {self.images}",
                             source="DocFreq")

    @classmethod
    def from_references(cls, references: Mapping[Any, Sequence[str]], n: int = 4,
                        tokenize: str | Tokenize = "simple", *, label: str = "") -> DocFreq:
        """Count over the reference captions of a collection, such as a training set.

        Args:
            references: id -> captions of that image.
            n: longest n-gram.
            tokenize: as in `cider`.
            label: a name for the signature.

        Raises:
            InputError: fewer than two images, or what `cider` refuses in references.
        """
        tokens, split = _tokens(tokenize)
        _check_n(n)
        cooked = _cook_references(references, n, split, tokens)
        return cls(_count(cooked), len(cooked), n, tokens, label)

    @cached_property
    def name(self) -> str:
        """The label, or a hash of the counts, and the number of images: ``"1f0c22ab(5999)"``."""
        if self.label:
            return f"{self.label}({self.images})"
        digest = hashlib.sha256()
        for line in sorted(f"{' '.join(ngram)}\t{count}\n" for ngram, count in self.counts.items()):
            digest.update(line.encode())
        return f"{digest.hexdigest()[:8]}({self.images})"

    def idf(self, ngram: Ngram) -> float:
        """``ln(images / images with the n-gram)``; an n-gram never seen counts as seen once."""
        return math.log(self.images) - math.log(max(1, self.counts.get(ngram, 0)))


def cider(candidates: Mapping[Any, str], references: Mapping[Any, Sequence[str]], *, variant: str = "cider-d",
          df: str | DocFreq = "corpus", n: int = 4, sigma: float = 6.0,
          tokenize: str | Tokenize = "simple") -> CiderResult:
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
        tokenize: "simple" (see `simple`), or a function with a name, text -> tokens.

    Returns:
        The mean, the score per id and the signature, e.g.
        ``"cider-d|n4|s6.0|df:corpus(1000)|tok:simple|v1"``.

    Raises:
        InputError: no candidates; ids only on one side; an image without references or without a
            token in them; a caption that is no string; one image with ``df="corpus"`` (all weights would
            be 0); a DocFreq of other n or tokens; an unknown variant or tokenizer.
    """
    if variant not in VARIANTS:
        raise InputError(f"variant={variant!r} is unknown; there are: {some(VARIANTS)}", source="cider")
    if not sigma > 0:
        raise InputError(f"sigma={sigma} must be above 0", source="cider")
    _check_n(n)
    tokens, split = _tokens(tokenize)
    _check_ids(candidates, references)
    cooked = _cook_references(references, n, split, tokens)
    name, frequencies = _frequencies(df, cooked, n, tokens)
    idf = _Idf(frequencies)
    per_item = {}
    for id, caption in candidates.items():
        if not isinstance(caption, str):
            raise InputError(f"the candidate of {id!r} is a {type(caption).__name__}, a string is needed",
                             source="cider")
        candidate = _weigh(_cook(split(caption), n), idf, n)
        similarities = [_similarity(candidate, _weigh(counts, idf, n), variant == "cider-d", sigma)
                        for counts in cooked[id]]
        per_item[id] = 10.0 * math.fsum(similarities) / len(similarities)
    width = f"|s{float(sigma)}" if variant == "cider-d" else ""
    return CiderResult(math.fsum(per_item.values()) / len(per_item), per_item,
                       f"{variant}|n{n}{width}|df:{name}|tok:{tokens}|v1")


class _Idf(dict[Ngram, float]):
    """Weights of n-grams, looked up once each."""

    def __init__(self, frequencies: DocFreq) -> None:
        self.frequencies = frequencies

    def __missing__(self, ngram: Ngram) -> float:
        weight = self[ngram] = self.frequencies.idf(ngram)
        return weight


@dataclass(frozen=True)
class _Weighed:
    """A caption as tf-idf vectors, one per order: weights by n-gram and their Euclidean norms."""

    vectors: list[dict[Ngram, float]]
    norms: list[float]
    length: int  # the number of bigrams


def _cook(words: Sequence[str], n: int) -> Counter[Ngram]:
    """How often each n-gram of order 1 to n occurs."""
    return Counter(ngram for order in range(1, n + 1) for ngram in zip(*(words[i:] for i in range(order))))


def _weigh(counts: Counter[Ngram], idf: _Idf, n: int) -> _Weighed:
    vectors: list[dict[Ngram, float]] = [{} for _ in range(n)]
    words = 0
    for ngram, count in counts.items():
        vectors[len(ngram) - 1][ngram] = count * idf[ngram]
        if len(ngram) == 1:
            words += count
    norms = [math.sqrt(sum(weight * weight for weight in vector.values())) for vector in vectors]
    # Bigrams are counted by way of words, which makes the length the same for n = 1.
    return _Weighed(vectors, norms, max(words - 1, 0))


def _similarity(candidate: _Weighed, reference: _Weighed, clip: bool, sigma: float) -> float:
    """Mean over the orders of the cosine; with ``clip`` the terms of CIDEr-D."""
    total = 0.0
    for ours, theirs, norm, other in zip(candidate.vectors, reference.vectors,
                                         candidate.norms, reference.norms):
        if norm == 0 or other == 0:
            continue
        if clip:
            product = sum(min(weight, theirs[ngram]) * theirs[ngram]
                          for ngram, weight in ours.items() if ngram in theirs)
        else:
            product = sum(weight * theirs[ngram] for ngram, weight in ours.items() if ngram in theirs)
        total += product / (norm * other)
    if clip:
        total *= math.exp(-(candidate.length - reference.length) ** 2 / (2 * sigma**2))
    return total / len(candidate.vectors)


def _frequencies(df: str | DocFreq, cooked: Mapping[Hashable, list[Counter[Ngram]]], n: int,
                 tokens: str) -> tuple[str, DocFreq]:
    if isinstance(df, DocFreq):
        if (df.n, df.tokens) != (n, tokens):
            raise InputError(f"the DocFreq {df.name} counts n={df.n} tokens={df.tokens!r}, but n={n} "
                             f"tokens={tokens!r} are asked for", source="cider")
        return df.name, df
    if df != "corpus":
        raise InputError(f"df={df!r} is unknown; give 'corpus' or a DocFreq", source="cider")
    if len(cooked) < 2:
        raise InputError("df='corpus' with one image makes every weight and the score 0; pass a DocFreq "
                         "(DocFreq.from_references of a larger set)", source="cider")
    return f"corpus({len(cooked)})", DocFreq(_count(cooked), len(cooked), n, tokens)


def _count(cooked: Mapping[Hashable, list[Counter[Ngram]]]) -> Counter[Ngram]:
    return Counter(ngram for captions in cooked.values() for ngram in set().union(*captions))


def _cook_references(references: Mapping[Any, Sequence[str]], n: int, split: Tokenize,
                     tokens: str) -> dict[Any, list[Counter[Ngram]]]:
    cooked = {}
    for id, captions in references.items():
        if isinstance(captions, str) or not isinstance(captions, Sequence):
            raise InputError(f"the references of {id!r} are a {type(captions).__name__}, a list of strings "
                             "is needed", source="cider")
        if not captions:
            raise InputError(f"{id!r} has no references", source="cider")
        for index, caption in enumerate(captions):
            if not isinstance(caption, str):
                raise InputError(f"reference {index} of {id!r} is a {type(caption).__name__}, a string is "
                                 "needed", source="cider")
            if not caption.strip():
                raise InputError(f"reference {index} of {id!r} is empty", source="cider")
        cooked[id] = [_cook(split(caption), n) for caption in captions]
        if not any(cooked[id]):  # as of captions in another script, all of which would score 0
            raise InputError(f"the references of {id!r} have no {tokens!r} token, such as {captions[0]!r}",
                             source="cider")
    return cooked


def _check_ids(candidates: Mapping[Any, str], references: Mapping[Any, Sequence[str]]) -> None:
    if not candidates:
        raise InputError("there are no candidates", source="cider")
    for one, other, what in ((candidates, references, "have a candidate but no references"),
                             (references, candidates, "have references but no candidate")):
        lone = [repr(id) for id in one if id not in other]
        if lone:
            raise InputError(f"{len(lone)} ids {what}: {some(lone, 5)}", source="cider")


def _check_n(n: int) -> None:
    if not isinstance(n, int) or n < 1:
        raise InputError(f"n={n!r} must be a whole number above 0", source="cider")


def _tokens(tokenize: str | Tokenize) -> tuple[str, Tokenize]:
    """The name that stands for the tokens in signatures, and the function."""
    if tokenize == "simple" or tokenize is simple:
        return "simple", simple
    if not callable(tokenize):
        raise InputError(f"tokenize={tokenize!r} is unknown; give 'simple' or a function", source="cider")
    name = getattr(tokenize, "name", None) or getattr(tokenize, "__name__", "")
    if not isinstance(name, str) or not name.isprintable() or name in ("", "<lambda>", "simple"):
        raise InputError("the function given as tokenize= needs a name of its own for the signature (its "
                         "__name__ or an attribute 'name')", source="cider")
    return name, tokenize
