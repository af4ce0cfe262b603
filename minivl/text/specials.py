"""Special tokens: which role each plays, and more of them behind a vocabulary."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping

import tokenizers

from ..errors import InputError

SPELLINGS: Mapping[str, tuple[str, ...]] = {
    "PAD": ("[PAD]", "<pad>", "<|pad|>"),
    "UNK": ("[UNK]", "<unk>", "<|unk|>"),
    "BOS": ("[BOS]", "<bos>", "<s>", "<start>", "<|startoftext|>", "[CLS]"),
    "EOS": ("[EOS]", "<eos>", "</s>", "<end>", "<|endoftext|>", "[SEP]"),
}
"""Accepted spellings per role, case ignored; the first in the list that a file has is taken."""


def spelled_roles(tokens: Mapping[int, str], declared: Mapping[int, str]) -> dict[str, int | None]:
    """The id of each role by the spelling of its token, or None.

    Tokens that the file declares special go before ordinary entries of the vocabulary, then the earliest
    spelling, the exact letter case before others, and the lower id.

    Args:
        tokens: the vocabulary.
        declared: what the file declares special, a part of ``tokens``.
    """
    alike: list[dict[str, list[int]]] = [{}, {}]  # lower-cased token -> ids
    for known, entries in zip(alike, (declared, tokens)):
        for id, token in entries.items():
            known.setdefault(token.lower(), []).append(id)
    roles: dict[str, int | None] = {}
    for role, spellings in SPELLINGS.items():
        fits = ((spelling, known[spelling.lower()]) for known in alike for spelling in spellings
                if spelling.lower() in known)
        spelling, ids = next(fits, ("", []))
        roles[role] = min(ids, key=lambda id: (tokens[id] != spelling, id)) if ids else None
    return roles


def given_roles(roles: Mapping[str, int] | None, tokens: Mapping[int, str], source: str) -> dict[str, int]:
    """Roles as a caller gives them, checked.

    Raises:
        InputError: an unknown role, or an id that is no integer or not in the vocabulary.
    """
    checked = {}
    for role, given in (roles or {}).items():
        if role not in SPELLINGS:
            raise InputError(f"roles: {role!r} is unknown; there are {', '.join(SPELLINGS)}", source=source)
        try:
            checked[role] = operator.index(given)
        except TypeError:
            raise InputError(f"roles: {role} is {given!r}, an id is needed", source=source) from None
        if checked[role] not in tokens:
            raise InputError(f"roles: {role} is id {given}, which is not in the vocabulary "
                             f"(0 to {max(tokens)})", source=source)
    return checked


def append_tokens(engine: tokenizers.Tokenizer, tokens: Iterable[tuple[int, tokenizers.AddedToken]],
                  source: str) -> None:
    """Put tokens behind the vocabulary of ``engine``, or declare ones it has, each with the id it must have.

    Raises:
        InputError: a token has another id in the vocabulary, or its id would leave a hole.
    """
    for id, token in sorted(tokens, key=lambda pair: pair[0]):
        content, there = token.content, engine.token_to_id(token.content)
        taken = engine.id_to_token(id) if 0 <= id < engine.get_vocab_size() else None
        if there not in (None, id):
            raise InputError(f"token {content!r} shall have id {id}, but the vocabulary has it as {there}",
                             source=source)
        if taken not in (None, content):
            raise InputError(f"token {content!r} shall have id {id}, which is that of {taken!r}", source=source)
        if there is None and id != engine.get_vocab_size():
            raise InputError(f"token {content!r} shall have id {id}, but the next free one is "
                             f"{engine.get_vocab_size()}: ids must have no holes", source=source)
        engine.add_tokens([token])
        if engine.token_to_id(content) != id:  # an empty token, say
            raise InputError(f"token {content!r} cannot have id {id}", source=source)
