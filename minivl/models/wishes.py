"""What is wished of captions, in words, as what a search needs: a prompt, constraints and an automaton."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from ..errors import InputError, some
from ..search import Automaton, Constraint, Hypothesis, Options, Phrase, Pieces, Said, Steps, beam_search, sample_search
from ..search.constraints import Avoid, MinLength, NoRepeatNgram, RepetitionPenalty, Suppress
from ..text.tokenizer import Tokenizer
from .decoder import DecoderConfig
from .spelling import any_spelling, spelling, usual_spellings


class Wishes(NamedTuple):
    """What a search needs beside a decoding.

    Attributes:
        prompt: <BOS> and the prefix.
        constraints: on the next token.
        required: of what must be said, or None.
    """

    prompt: tuple[int, ...]
    constraints: tuple[Constraint, ...]
    required: Automaton | None


def wishes(options: Options, decoder: DecoderConfig, tokenizer: Tokenizer | None, device: torch.device) -> Wishes:
    """The wishes of some options for a model.

    Raises:
        InputError: more beams than words, a caption longer than the decoder, a word that the vocabulary has not, words
            where there is no tokenizer, or wishes that contradict each other.
    """
    vocabulary = decoder.vocab_size
    if options.beams > vocabulary:
        raise InputError(f"beams={int(options.beams)}: the vocabulary has only {vocabulary} entries")
    prompt = (decoder.bos_id, *_prefix(options.prefix, vocabulary, tokenizer))
    if len(prompt) + options.max_len > decoder.max_len:  # a whole caption with its <BOS> must fit a replay
        begin = "<BOS>" if len(prompt) == 1 else f"<BOS> and the {len(prompt) - 1} of the prefix"
        raise InputError(f"max_len={options.max_len}: give at most {max(0, decoder.max_len - len(prompt))}; with "
                         f"{begin} these tokens need {len(prompt) + options.max_len} text positions: this decoder has "
                         f"{decoder.max_len}")
    pieces = spelling(tokenizer).pieces if tokenizer and (options.forbidden or options.required) \
        else Pieces.words(vocabulary)
    bans = _bans(options, decoder, tokenizer, pieces, device)
    if _banned(bans, prompt[:1], prompt[1:], vocabulary, device):
        raise InputError(f"prefix={options.prefix!r} says what is forbidden")
    required = None
    if options.required:
        phrases = [_usual(said, vocabulary, tokenizer) for said in options.required]
        for phrase in phrases:
            if all(_banned(bans, prompt, path, vocabulary, device) for path in _paths(phrase)):
                raise InputError(f"{phrase.name!r} is required and forbidden at once")
        required = Automaton.build(phrases, pieces).to(device)
        needed = int(required.distance[required.follow(torch.tensor([prompt], device=device))])
        if needed > options.max_len:
            raise InputError(f"required: to say {some(phrase.name for phrase in phrases)} takes {needed} tokens, "
                             f"max_len={options.max_len}")
    constraints: list[Constraint] = []
    if options.repetition_penalty != 1:
        constraints.append(RepetitionPenalty(options.repetition_penalty))
    constraints += bans
    if options.no_repeat_ngram:
        constraints.append(NoRepeatNgram(options.no_repeat_ngram, decoder.eos_id))
    if options.min_len > 1:
        constraints.append(MinLength(options.min_len, len(prompt), decoder.eos_id))
    return Wishes(prompt, tuple(constraints), required)


def search(decode: Steps, options: Options, wished: Wishes, *, eos_id: int, seeds: Sequence[Sequence[int]],
           device: torch.device) -> list[list[Hypothesis]]:
    """What is found by the search that the options ask for.

    Args:
        decode: the decoding of B images.
        options: as given to `wishes`.
        wished: its result.
        eos_id: the token that ends a caption.
        seeds: of each image, for samples.
        device: of the ids.
    """
    prompt = torch.tensor([wished.prompt], device=device).expand(len(seeds), -1)  # (B, T)
    if options.samples is not None:
        return sample_search(decode, prompt, eos_id=eos_id, samples=options.samples, max_len=options.max_len,
                             temperature=options.temperature, top_k=options.top_k, top_p=options.top_p, seeds=seeds,
                             constraints=wished.constraints)
    diversity = {} if options.diversity is None else {"diversity": options.diversity}
    return beam_search(decode, prompt, eos_id=eos_id, beams=options.beams, max_len=options.max_len,
                       normalise=options.normalise, n_best=options.n_best, stop=options.stop, groups=options.groups,
                       constraints=wished.constraints, required=wished.required, **diversity)


def _ids(said: Said, vocabulary: int, tokenizer: Tokenizer | None, name: str) -> tuple[int, ...] | None:
    """Ids that were given as such, None for a text.

    Raises:
        InputError: neither, ids out of the vocabulary, or a text where there is no tokenizer.
    """
    if isinstance(said, str):
        if tokenizer is None:
            raise InputError(f"{name}: {said!r}: this captioner has no tokenizer, give ids of tokens such as (5, 7)")
        return None
    if not isinstance(said, Sequence) or not said or not all(type(id) is int and 0 <= id < vocabulary for id in said):
        raise InputError(f"{name}: {said!r}: give a text, or ids of tokens from 0 to {vocabulary - 1}")
    return tuple(int(id) for id in said)


def _prefix(prefix: Said, vocabulary: int, tokenizer: Tokenizer | None) -> tuple[int, ...]:
    if isinstance(prefix, str) and not prefix.strip():
        return ()
    given = _ids(prefix, vocabulary, tokenizer, "prefix")
    if given is not None:
        return given
    assert tokenizer is not None and isinstance(prefix, str)
    unknown = [word for word in prefix.split() if not (ids := tokenizer.encode(word)) or tokenizer.unk_id in ids]
    if unknown:
        raise InputError(f"prefix={prefix!r}: not in the vocabulary of {tokenizer.source}: {some(map(repr, unknown))}")
    return tuple(tokenizer.encode(prefix))


def _usual(said: Said, vocabulary: int, tokenizer: Tokenizer | None) -> Phrase:
    ids = _ids(said, vocabulary, tokenizer, "required")
    if ids is not None:
        return Phrase.of(str(list(ids)), [ids])
    assert tokenizer is not None and isinstance(said, str)
    try:
        return Phrase.of(said, usual_spellings(tokenizer, said))
    except InputError as error:
        raise InputError(f"required: {error}") from None


def _bans(options: Options, decoder: DecoderConfig, tokenizer: Tokenizer | None, pieces: Pieces,
          device: torch.device) -> list[Constraint]:
    """What may never be said."""
    single, phrases = set(), []
    unknown = None if tokenizer is None else tokenizer.unk_id
    if unknown is not None and not options.allow_unknown and unknown not in (decoder.eos_id, decoder.bos_id):
        single.add(unknown)
    for said in options.forbidden:
        ids = _ids(said, decoder.vocab_size, tokenizer, "forbidden")
        if ids is None:
            assert tokenizer is not None and isinstance(said, str)
            if not said.strip():
                raise InputError("forbidden: an empty text is in every caption")
            phrase = any_spelling(tokenizer, said)  # None: it cannot be said anyway
        else:
            phrase = Phrase.of(str(list(ids)), [ids])
        if phrase is not None and len(phrase.edges) == 2 and not bool(pieces.joins.any()):
            single.update(phrase.edges[0])  # one token is a word: no state is needed
        elif phrase is not None:
            phrases.append(phrase)
    if decoder.eos_id in single:
        raise InputError(f"forbidden: token {decoder.eos_id} ends a caption, without it none can end")
    bans: list[Constraint] = [Suppress(tuple(sorted(single)))] if single else []
    return bans + ([Avoid(Automaton.build(phrases, pieces, wanted="any").to(device))] if phrases else [])


def _paths(phrase: Phrase, node: int = 0) -> Iterator[tuple[int, ...]]:
    """All sequences of tokens that say a phrase without circles."""
    if node == phrase.last:
        yield ()
    for token, to in phrase.edges[node].items():
        yield from ((token, *rest) for after in to for rest in _paths(phrase, after))


def _banned(bans: Sequence[Constraint], begin: Sequence[int], ids: Sequence[int], vocabulary: int,
            device: torch.device) -> bool:
    """Whether some of these ids may not follow what stands before them."""
    nothing = torch.zeros(1, vocabulary, device=device)
    text = torch.tensor([(*begin, *ids)], device=device)
    return any(bool(ban(text[:, :len(begin) + place], nothing, 1)[0, id] < 0)
               for ban in bans for place, id in enumerate(ids))
