"""Does a captioner decode what it computes? Checks that a changed, converted or home-made model can be put to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError
from ..images import Photo
from ..nn.modes import evaluating
from ..search import Hypothesis, beam_search
from .captioner import Captioner
from .decoder import Memory
from .decoding import CompiledDecoding, Decoding, log_probabilities

LIMITS = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.15, torch.float16: 0.03}


@dataclass(frozen=True)
class Check:
    """One thing that must hold.

    Attributes:
        name: what.
        difference: the largest difference of log-probabilities that was found.
        limit: how large it may be.
        where: the place of that difference, or "".
    """

    name: str
    difference: float
    limit: float
    where: str = ""

    @property
    def passed(self) -> bool:
        """Whether it holds; nan never does."""
        return self.difference <= self.limit

    def __str__(self) -> str:
        found = f"{'ok  ' if self.passed else 'FAIL'} {self.name}: {self.difference:.1e} (limit {self.limit:.0e})"
        return found if self.passed or not self.where else f"{found}, {self.where}"


@dataclass(frozen=True)
class DecodingReport:
    """What `verify_decoding` found; printed, it is a table.

    Attributes:
        checks: all that were made.
        images: how many images they were made on.
    """

    checks: tuple[Check, ...]
    images: int

    @property
    def passed(self) -> bool:
        """Whether all hold."""
        return all(check.passed for check in self.checks)

    def __str__(self) -> str:
        return "\n".join(map(str, self.checks))


@torch.no_grad()
def verify_decoding(model: Captioner, images: Tensor | Memory | Sequence[Photo] | None = None, *, beams: int = 3,
                    max_len: int = 12, seed: int = 0, strict: bool = True) -> DecodingReport:
    """Check that decoding step by step gives what the model gives in one pass.

    - causal mask: a token changes nothing at the places before it;
    - whole prefixes: the last row of every prefix is that row of the whole text;
    - cache: token by token, and several at once, as without a cache;
    - greedy: one beam is the most likely token every time, computed without a cache;
    - beams: the same beam search with a cache and without one;
    - scores: the reported log-probabilities of every caption are those of one teacher-forced pass;
    - batch: images decoded together as one by one.

    The searches of the last four decode as `Captioner.caption` does, with `Captioner.ready`; the greedy one as it does
    of many photos, at first without keys and values of what is seen.

    Texts are random tokens, so that a model which always says the same is checked, too; captions that differ count by
    the difference of their log-probabilities, for a tie may go either way.

    Args:
        model: in any mode; it is checked in eval mode, and left as it was.
        images: as `Captioner.caption` takes them, at least 2; None: random ones.
        beams: of the search.
        max_len: tokens of texts and captions, at least 3; shorter where the decoder has no room for them.
        seed: of random images and texts.
        strict: raise where a check fails.

    Raises:
        InputError: fewer than 2 images, max_len below 3; with `strict`, the checks that failed.
    """
    longest = min(max_len, model.config.decoder.max_len - 1)
    if longest < 3:
        raise InputError(f"max_len={max_len} (the decoder has {model.config.decoder.max_len} positions): at least 3 "
                         "tokens are needed to check anything")
    with evaluating(model):
        generator = torch.Generator().manual_seed(seed)
        memory = model.memory_of(_random_images(model, generator) if images is None else images)
        if len(memory.tokens) < 2:
            raise InputError(f"{len(memory.tokens)} image: at least 2 are needed, to tell them apart")
        checks = tuple(_checks(model, memory, generator, beams, longest))
    report = DecodingReport(checks, len(memory.tokens))
    if strict and not report.passed:
        failed = "; ".join(str(check) for check in checks if not check.passed)
        raise InputError(f"this model does not decode what it computes: {failed}")
    return report


def _random_images(model: Captioner, generator: torch.Generator) -> Tensor:
    size = getattr(model.encoder.config, "image_size", (64, 96))
    weight = model.decoder.embed.weight
    return torch.randn(3, 3, *size, generator=generator).to(weight.device, weight.dtype)


def _checks(model: Captioner, memory: Memory, generator: torch.Generator, beams: int, length: int) -> Iterator[Check]:
    decoder = model.config.decoder
    limit = LIMITS[model.decoder.embed.weight.dtype]
    ids = torch.randint(0, decoder.vocab_size, (len(memory.tokens), length), generator=generator)  # (B, T)
    ids = ids.to(memory.tokens.device)
    ids[:, 0] = decoder.bos_id
    whole = log_probabilities(model(None, ids, memory=memory))  # (B, T, V)

    def rows(name: str, got: Tensor, wanted: Tensor = whole) -> Check:
        apart = (got - wanted).abs().amax((0, 2))  # (T,)
        return Check(name, float(apart.max()), limit, f"first at token {int((~(apart <= limit)).int().argmax()) + 1}")

    middle = length // 2
    changed = ids.clone()
    changed[:, middle:] = (ids[:, middle:] + 1) % decoder.vocab_size
    yield rows("causal mask", log_probabilities(model(None, changed, memory=memory))[:, :middle], whole[:, :middle])
    prefixes = [log_probabilities(model(None, ids[:, :stop], memory=memory))[:, -1:] for stop in range(1, length + 1)]
    yield rows("whole prefixes", torch.cat(prefixes, 1))
    for name, parts in (("cache, token by token", [1] * length), ("cache, several at once", [middle, length - middle])):
        state = model.start(memory)
        yield rows(name, torch.cat([log_probabilities(model.step(part, state)) for part in ids.split(parts, 1)], 1))
    prompt, ready = ids[:, :1], model.ready()
    single = _search(Decoding(ready, memory, single=True, many=1), prompt, model, 1, length)
    found = _search(ready.decoding(memory), prompt, model, beams, length)
    yield _same("greedy", single, [[one] for one in _greedy(model, memory, length)], limit * length)
    yield _same("beams", found, _search(_Uncached(model, memory), prompt, model, beams, length), limit * length)
    yield _scores(model, memory, found, limit)
    images = [memory.select(slice(place, place + 1)) for place in range(len(ids))]
    alone = [_search(ready.decoding(one), prompt[:1], model, beams, length)[0] for one in images]
    yield _same("batch", found, alone, limit * length)


def _search(decode: Decoding | CompiledDecoding | _Uncached, prompt: Tensor, model: Captioner, beams: int, length: int
            ) -> list[list[Hypothesis]]:
    return beam_search(decode, prompt, eos_id=model.config.decoder.eos_id, beams=beams, max_len=length, n_best=beams)


def _greedy(model: Captioner, memory: Memory, length: int) -> list[Hypothesis]:
    """The most likely token every time, the whole text computed anew for each."""
    decoder, found = model.config.decoder, []
    for place in range(len(memory.tokens)):
        ids, logps = [decoder.bos_id], list[float]()
        while len(logps) < length and (not logps or ids[-1] != decoder.eos_id):
            text = torch.tensor([ids], device=memory.tokens.device)
            logp = log_probabilities(model(None, text, memory=memory.select(slice(place, place + 1))))[0, -1]
            ids.append(int(logp.argmax()))
            logps.append(float(logp[ids[-1]]))
        found.append(Hypothesis(tuple(ids), sum(logps), sum(logps), tuple(logps)))
    return found


def _same(name: str, found: Sequence[Sequence[Hypothesis]], expected: Sequence[Sequence[Hypothesis]],
          limit: float) -> Check:
    """Equal hypotheses of equal log-probability; other ones count as far apart as their log-probabilities."""
    worst, where = 0.0, ""
    for place, (some, others) in enumerate(zip(found, expected)):
        for rank, (one, other) in enumerate(zip(some, others)):
            apart = abs(one.logprob - other.logprob)
            if not apart <= worst:
                worst, where = apart, f"image {place}, caption {rank}: {list(one.ids)} and {list(other.ids)}"
        if len(some) != len(others):
            worst, where = float("inf"), f"image {place}: {len(some)} and {len(others)} captions"
    return Check(name, worst, limit, where)


def _scores(model: Captioner, memory: Memory, found: Sequence[Sequence[Hypothesis]], limit: float) -> Check:
    """Reported log-probabilities against one teacher-forced pass over each caption."""
    worst, where = 0.0, ""
    for place, hypotheses in enumerate(found):
        seen = memory.select(slice(place, place + 1))
        for one in hypotheses:
            text = torch.tensor([one.ids], device=memory.tokens.device)
            logp = log_probabilities(model(None, text[:, :-1], memory=seen))[0].gather(1, text[0, 1:, None])[:, 0]
            apart = float((logp - logp.new_tensor(one.logps)).abs().max())
            if not apart <= worst:
                worst, where = apart, f"image {place}: {list(one.ids)}"
    return Check("scores", worst, limit, where)


class _Uncached:
    """The step protocol of a captioner that computes the whole text anew at every step."""

    def __init__(self, model: Captioner, memory: Memory) -> None:
        self._model, self._memory, self._ids = model, memory, torch.empty(0, 0, dtype=torch.long)

    def prefill(self, ids: Tensor) -> Tensor:
        """(B*r, T) -> (B*r, V)."""
        self._ids = ids
        return log_probabilities(self._model(None, ids, memory=self._memory))[:, -1]

    def step(self, ids: Tensor) -> Tensor:
        """(B*r,) -> (B*r, V)."""
        return self.prefill(torch.cat([self._ids, ids[:, None]], 1))

    def reorder(self, rows: Tensor) -> None:
        """See `Steps.reorder`."""
        self._ids = self._ids[rows]

    def select(self, images: Tensor) -> None:
        """See `Steps.select`."""
        share = len(self._ids) // len(self._memory.tokens)
        self._ids = self._ids.unflatten(0, (-1, share))[images].flatten(0, 1)
        self._memory = self._memory.select(images)
