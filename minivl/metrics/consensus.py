"""The caption that the others agree with: a choice among candidates by how much they have in common."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..errors import InputError, counted
from .cider import Scorer
from .docfreq import DocFreq
from .tokens import Tokenize, check_candidate, tokenizer


class Chosen(NamedTuple):
    """What `consensus` chose for an image.

    Attributes:
        caption: the candidate.
        place: which of the candidates it is, the first of equal ones.
        agreement: its mean score against the candidates of its image that have words, itself among them, 0 to 10. It
            says how sure the captioner is, not how right.
    """

    caption: str
    place: int
    agreement: float


def consensus(candidates: Mapping[Any, Sequence[str]], *, variant: str = "cider-d", df: str | DocFreq = "corpus",
              n: int = 4, sigma: float = 6.0, tokenize: str | Tokenize = "ptb-coco") -> dict[Any, Chosen]:
    """Choose from several captions of each image the one that agrees most with all of them.

    A search gives the most likely caption, which is often short and says little: what is said in many ways is divided
    among them. Candidates that share words vote for each other here. This is the minimum Bayes risk decision (Kumar,
    Byrne: Minimum Bayes-Risk Decoding for Statistical Machine Translation, NAACL 2004) for CIDEr-D, and the consensus
    caption of Devlin et al.: Exploring Nearest Neighbor Approaches for Image Captioning (2015). Every candidate has
    one vote, whatever its probability; one that is there k times has k.

    Args:
        candidates: id -> captions: the n best of a search, samples, or what several captioners say. Empty ones are
            allowed and agree with nothing.
        variant, n, sigma, tokenize: as of `minivl.metrics.cider.cider`.
        df: "corpus" counts document frequencies over the candidates of all images; or a `DocFreq`, best that of the
            training captions.

    Returns:
        id -> what was chosen, in the order of `candidates`; of several that agree as much, the first. Where no
        candidate has a token, the first, with an agreement of 0.

    Raises:
        InputError: no images; an image without candidates; a candidate that is no string; one image with
            ``df="corpus"``; what `minivl.metrics.cider.Scorer` refuses of the other options.
    """
    split = tokenizer(tokenize, "consensus")
    if not candidates:
        raise InputError("there are no candidates", source="consensus")
    for id, texts in candidates.items():
        if isinstance(texts, str) or not isinstance(texts, Sequence) or not texts:
            raise InputError(f"the candidates of {id!r} are {texts!r:.60}, a list of strings is needed",
                             source="consensus")
        for text in texts:
            check_candidate(id, text, "consensus")
    voters = {id: [text for text in texts if text.strip()] for id, texts in candidates.items()
              if any(split.split(text) for text in texts)}
    if df == "corpus" and len(voters) < 2:
        raise InputError(f"{counted(len(voters), 'image')} with candidates: their document frequencies tell nothing "
                         "apart; give those of the training captions as df", source="consensus")
    chosen = {id: Chosen(texts[0], 0, 0.0) for id, texts in candidates.items()}
    if not voters:
        return chosen
    pairs = [(id, text) for id in voters for text in dict.fromkeys(candidates[id])]
    scorer = Scorer(voters, variant=variant, df=df, n=n, sigma=sigma, tokenize=tokenize)
    best = dict.fromkeys(voters, -math.inf)
    for (id, text), agreement in zip(pairs, scorer.score(pairs).tolist()):
        if agreement > best[id]:
            best[id] = agreement
            chosen[id] = Chosen(text, list(candidates[id]).index(text), agreement)
    return chosen
