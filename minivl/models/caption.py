"""A generated caption: its ids, its words and how likely the model finds them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ..search import Hypothesis
from ..text.tokenizer import Tokenizer, Word


@dataclass(frozen=True)
class Caption:
    """A generated caption.

    Attributes:
        ids: token ids, from <BOS> to <EOS> (if it was chosen): fit for `Captioner.replay`.
        text: the caption, or None without a tokenizer.
        words: its words with their places in ids, or None without a tokenizer. Row t of a replay chose
            ``ids[t + 1]``, so the looks of a word are rows ``word.start - 1 : word.stop - 1``.
        logprob: sum of the log-probabilities of ``ids[1:]`` without those of a prefix, which was given.
        score: what the search ranked by; for a sample, its logprob.
        others: the next best captions, with ``n_best > 1``, or the other samples.
        logps: log-probability of each of ``ids[1:]``, 0 for the tokens of a prefix; they sum to logprob.
    """

    ids: tuple[int, ...]
    text: str | None
    words: tuple[Word, ...] | None
    logprob: float
    score: float
    others: tuple[Caption, ...] = field(default=(), repr=False)
    logps: tuple[float, ...] = field(default=(), repr=False)

    @property
    def probabilities(self) -> tuple[float, ...] | None:
        """Of each word, given all before it: the product over its pieces. None without words or `logps`."""
        if self.words is None or len(self.logps) != len(self.ids) - 1:
            return None
        return tuple(math.exp(math.fsum(self.logps[word.start - 1:word.stop - 1])) for word in self.words)

    @classmethod
    def of(cls, hypotheses: Sequence[Hypothesis], tokenizer: Tokenizer | None) -> Caption:
        """The first of some findings, the others in `others`."""
        captions = [cls(one.ids, tokenizer.decode(one.ids) if tokenizer else None,
                        tuple(tokenizer.words(one.ids)) if tokenizer else None, one.logprob, one.score,
                        logps=(0.0,) * (len(one.ids) - 1 - len(one.logps)) + one.logps) for one in hypotheses]
        return replace(captions[0], others=tuple(captions[1:]))
