"""How captions are decoded: every option, and which of them go together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from ..errors import InputError, some
from .choice import STOPS
from .constraints import check_shaping
from .steps import Normalisation

Said = str | Sequence[int]
"""Something to be said or not: a text, or the ids of its tokens."""


class Unsaid(int):
    """A default that nobody gave: where an option rules it out, it gives way, and a given number is refused."""


BEAMS = Unsaid(3)
MOST_REQUIRED = 8  # there are beams for every subset of them: with 8 a caption takes some seconds, with 12 minutes


@dataclass(frozen=True)
class Options:
    """How captions are decoded; `Captioner.caption` takes each of these by name, or all: ``**vars(options)``.

    Without `samples` it is a beam search, with ``beams=1`` a greedy one.

    Attributes:
        beams: captions kept open at every step.
        max_len: most new tokens, <EOS> counted, the prefix not.
        normalise: how captions of several lengths are ranked: "none" by the sum of log-probabilities, "mean" by their
            mean per token, "gnmt(0.6)" as Wu et al. 2016.
        n_best: captions per image.
        stop: "exact": when no open beam can win any more; "hf": when transformers' generate would.
        groups: of beams that say different things (Vijayakumar et al. 2018); must divide `beams`.
        diversity: log-probability that a word loses for each beam of an earlier group that says it at the same place.
        samples: draw so many captions per image instead of searching for the best.
        temperature: of the samples; below 1 the likely becomes likelier.
        top_k: draw from so many most likely tokens only.
        top_p: draw from the most likely tokens that have this probability together (Holtzman et al. 2020).
        seed: what samples are drawn from, with the number of the image and of the sample.
        min_len: fewest new tokens, <EOS> counted, as `max_len` counts.
        repetition_penalty: log-probabilities of tokens that were said are multiplied by it (Keskar et al. 2019); 1
            changes nothing.
        no_repeat_ngram: no so many tokens in a row twice; 0: off.
        forbidden: words or phrases that are not said.
        required: words or phrases that must be said (Anderson et al. 2017), 8 at most; `beams` are kept for every
            subset of them, so that each one takes twice as long.
        prefix: what captions begin with; it is given, so its probability does not count.
        allow_unknown: whether <UNK> may be said. It stands for every word that was rare in training, so it is likely
            where no single word is; a caption that says it lacks a word, and reads as if it broke off.

    Raises:
        InputError: an option out of range, or two that do not go together.
    """

    beams: int = BEAMS
    max_len: int = 30
    normalise: str = "none"
    n_best: int = 1
    stop: str = "exact"
    groups: int = 1
    diversity: float | None = None
    samples: int | None = None
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    min_len: int = 1
    repetition_penalty: float = 1.0
    no_repeat_ngram: int = 0
    forbidden: tuple[Said, ...] = ()
    required: tuple[Said, ...] = ()
    prefix: Said = ""
    allow_unknown: bool = False

    @classmethod
    def of(cls, **given: Any) -> Options:
        """Options by name.

        Raises:
            InputError: a name that there is not, too.
        """
        known = [field.name for field in fields(cls)]
        unknown = [name for name in given if name not in known]
        if unknown:
            raise InputError(f"no such option: {some(unknown)}; there are: {some(known, 40)}")
        return cls(**given)

    @property
    def single(self) -> bool:
        """Whether each image has one sequence to the end: a greedy search, or one sample."""
        return (self.beams if self.samples is None else self.samples) == 1 and not self.required

    def __post_init__(self) -> None:
        for name in ("forbidden", "required"):
            value = getattr(self, name)
            if isinstance(value, str) or not isinstance(value, Iterable):
                raise InputError(f"{name}={value!r}: give a list of words")
            object.__setattr__(self, name, tuple(value))
        self._check_numbers()
        if self.samples is None:
            self._check_search()
        else:
            self._check_samples()

    def _check_numbers(self) -> None:
        for name, least in (("beams", 1), ("max_len", 1), ("n_best", 1), ("groups", 1), ("min_len", 1), ("seed", 0),
                            ("no_repeat_ngram", 0)):
            _whole(name, getattr(self, name), least)
        if self.samples is not None:
            _whole("samples", self.samples, 1)
        Normalisation.parse(self.normalise)
        if self.stop not in STOPS:
            raise InputError(f"stop={self.stop!r}: give one of {', '.join(STOPS)}")
        if not _number(self.repetition_penalty) or self.repetition_penalty <= 0:
            raise InputError(f"repetition_penalty={self.repetition_penalty!r}: give a number above 0; 1 is none")
        if self.diversity is not None and (not _number(self.diversity) or self.diversity < 0):
            raise InputError(f"diversity={self.diversity!r}: give a number of at least 0")
        check_shaping(self.temperature, self.top_k, self.top_p)
        if self.min_len > self.max_len:
            raise InputError(f"min_len={self.min_len} is more than max_len={self.max_len}")

    def _check_search(self) -> None:
        if self.n_best > self.beams:
            raise InputError(f"n_best={self.n_best} must lie between 1 and beams={self.beams}")
        if self.beams % self.groups:
            raise InputError(f"groups={self.groups} must divide beams={int(self.beams)}")
        if self.groups == 1 and self.diversity is not None:
            raise InputError(f"diversity={self.diversity}: it keeps groups of beams apart; give groups=2 or more")
        if self.groups > 1 and self.required:
            raise InputError(f"groups={self.groups}: words that must appear divide the beams already; give groups=1")
        if len(self.required) > MOST_REQUIRED:
            raise InputError(f"required: {len(self.required)} words or phrases, and {MOST_REQUIRED} are the most: "
                             "beams are kept for every subset of them, so that each one more takes twice as long")
        shaped = [name for name, off in (("temperature", 1), ("top_k", None), ("top_p", None))
                  if getattr(self, name) != off]
        if shaped:
            raise InputError(f"{shaped[0]}={getattr(self, shaped[0])}: it shapes what samples are drawn from; "
                             "give samples=1 or more")

    def _check_samples(self) -> None:
        """A sample is drawn from the model as it is; what chooses among captions has nothing to choose."""
        if self.beams != 1 and not isinstance(self.beams, Unsaid):
            raise InputError(f"beams={self.beams} with samples={self.samples}: captions are searched for or drawn; "
                             "give one of the two")
        if self.required:
            raise InputError(f"required={list(self.required)} with samples={self.samples}: a word that must appear is "
                             "searched for, with beams; leave out samples")
        for name, off, why in (("n_best", 1, "samples says how many captions there are"),
                               ("normalise", "none", "samples are not ranked"),
                               ("stop", "exact", "a sample ends by itself"), ("groups", 1, "samples are no beams"),
                               ("diversity", None, "samples are no beams")):
            if getattr(self, name) != off:
                raise InputError(f"{name}={getattr(self, name)} with samples={self.samples}: {why}; leave out one")


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _whole(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name}={value!r}: give a whole number, at least {least}")
