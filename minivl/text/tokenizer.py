"""Ids <-> text on the `tokenizers` library, and which pieces form a word."""

from __future__ import annotations

import json
import operator
import os
from collections.abc import Iterable, Mapping

import tokenizers
import torch
from torch import Tensor

from ..errors import InputError, some
from .cleaning import CLEANERS, strings
from .specials import SPELLINGS, append_tokens, given_roles, spelled_roles
from .training import SPECIAL_TOKENS, check_training, train_engine
from .words import Word, mend_word_ends, words_of

__all__ = ["SPECIAL_TOKENS", "Tokenizer", "Word"]

OWN = "minivl"
"""The key of a tokenizer's JSON under which stands what the `tokenizers` library cannot say."""


class Tokenizer:
    """A `tokenizers.Tokenizer` that knows its special tokens by name and its words by position.

    Made by `train`, `from_file` or `from_json`. Truncation, padding and the automatic special tokens
    of a loaded file are switched off: an id is never lost or added unasked. The name of a special token
    written in a caption is text like any other.

    Special tokens are found by name (`SPELLINGS`): the earliest spelling of a role wins; tokens
    that the file declares special go before ordinary entries of the vocabulary, then the exact letter
    case before others, then the lower id. ``roles`` win over all of that.

    Args:
        engine: the tokenizer to wrap; it is copied.
        source: the file it came from, for error messages.
        roles: ids of "PAD", "UNK", "BOS", "EOS", any of them: GPT-2 has one token for three roles,
            and BLIP begins with a token of its own. They are no part of `to_json`.
        clean: what is done to a text before the engine sees it, a key of `CLEANERS`; None: nothing.

    Raises:
        InputError: an empty vocabulary, an unknown role or ``clean``, a role's id out of the vocabulary.
    """

    def __init__(self, engine: tokenizers.Tokenizer, *, source: str | os.PathLike[str] = "the tokenizer",
                 roles: Mapping[str, int] | None = None, clean: str | None = None) -> None:
        self.source = os.fspath(source)
        if clean is not None and clean not in list(CLEANERS):
            raise InputError(f"clean={clean!r} is unknown; there is {', '.join(CLEANERS)}", source=self.source)
        self._clean = clean
        self._engine = tokenizers.Tokenizer.from_str(engine.to_str())
        self._engine.no_truncation()
        self._engine.no_padding()
        self._engine.encode_special_tokens = True  # "<pad>" written in a caption is text like any other
        mend_word_ends(self._engine)
        self._tokens = {id: token for token, id in self._engine.get_vocab(with_added_tokens=True).items()}
        if not self._tokens:
            raise InputError("has an empty vocabulary", source=self.source)
        added = self._engine.get_added_tokens_decoder()
        declared = {id: token.content for id, token in added.items() if token.special}
        spelled = spelled_roles(self._tokens, declared)
        self._given = given_roles(roles, self._tokens, self.source)
        self._roles = {**spelled, **self._given}
        known = (*spelled.values(), *self._given.values())
        self._specials = frozenset(declared) | {id for id in known if id is not None}

    # making ------------------------------------------------------------------------------------

    @classmethod
    def train(cls, texts: Iterable[str], *, kind: str = "word", vocab_size: int | None = None,
              min_count: int = 1) -> Tokenizer:
        """A tokenizer learned from captions; the same texts always give the same tokenizer.

        Texts are normalised (Unicode NFKC) and lower-cased. ``"word"`` makes one token per word
        ``[a-z0-9']+`` and drops all other characters; ids go by falling count, then by spelling.
        ``"bpe"`` makes byte-pair pieces (Sennrich et al. 2016, on bytes as in GPT-2): nothing is
        dropped, nothing is ever unknown.

        Args:
            texts: captions.
            kind: "word" or "bpe".
            vocab_size: most tokens to have, the four special ones included. None: no limit for
                words, 4096 for bpe. A bpe vocabulary needs at least 260 (all bytes).
            min_count: words (for bpe: pairs to merge) seen less often are left out.

        Raises:
            InputError: no word in the texts, a text that is no string, an unknown ``kind``, or a
                ``vocab_size`` or ``min_count`` that is too small.
        """
        check_training(kind, vocab_size, min_count)
        return cls(train_engine(strings(texts, "Tokenizer.train"), kind, vocab_size, min_count))

    @classmethod
    def from_json(cls, text: str, *, source: str | os.PathLike[str] = "the tokenizer",
                  roles: Mapping[str, int] | None = None) -> Tokenizer:
        """The tokenizer that `to_json` or any ``tokenizer.json`` describes.

        Raises:
            InputError: not the JSON of a tokenizer (the message begins with ``source``), or ``roles`` that
                the constructor refuses.
        """
        engine, clean = parse_json(text, source)
        return cls(engine, source=source, roles=roles, clean=clean)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], *, roles: Mapping[str, int] | None = None) -> Tokenizer:
        """The tokenizer of a ``tokenizer.json`` or any other published form: `published.read_published`.

        Raises:
            InputError: no such file, or not a tokenizer; ``roles`` that the constructor refuses.
        """
        from .published import read_published  # it makes what this class wraps, from files of every kind
        found = read_published(path)
        return cls(found.engine, source=found.source, roles={**found.roles, **(roles or {})}, clean=found.clean)

    def to_json(self) -> str:
        """The whole tokenizer as JSON, for a file or a header; `from_json` reads it back.

        It is a ``tokenizer.json``, except where texts are cleaned before the engine: then it says so
        under a key of ours, which other readers refuse instead of making other ids.
        """
        described = self._engine.to_str()
        return described if self._clean is None else f'{{"{OWN}": {{"clean": "{self._clean}"}}, {described[1:]}'

    def with_roles(self, roles: Mapping[str, int]) -> Tokenizer:
        """A copy where the tokens of these ids play these roles, others as before.

        Raises:
            InputError: an unknown role, or an id out of the vocabulary.
        """
        return type(self)(self._engine, source=self.source, roles={**self._given, **roles}, clean=self._clean)

    def with_added(self, tokens: Mapping[str, int]) -> Tokenizer:
        """A copy with special tokens behind the vocabulary, e.g. BLIP's ``{"[DEC]": 30522, "[ENC]": 30523}``.

        Raises:
            InputError: a token has another id already, or its id is taken or leaves a hole.
        """
        engine = tokenizers.Tokenizer.from_str(self._engine.to_str())
        append_tokens(engine, [(id, tokenizers.AddedToken(token, special=True)) for token, id in tokens.items()],
                      self.source)
        return type(self)(engine, source=self.source, roles=self._given, clean=self._clean)

    def __reduce__(self) -> tuple[object, ...]:
        return _unpickle, (self.to_json(), self.source, self._given)

    # special tokens ----------------------------------------------------------------------------

    @property
    def vocab_size(self) -> int:
        """One more than the highest id: the rows an embedding needs."""
        return max(self._tokens) + 1

    @property
    def specials(self) -> frozenset[int]:
        """Ids of all special tokens: those the file declares, those found by name and those given as roles."""
        return self._specials

    @property
    def bos_id(self) -> int:
        """Id of the begin token; InputError where the file has none."""
        return self._required("BOS")

    @property
    def eos_id(self) -> int:
        """Id of the end token; InputError where the file has none."""
        return self._required("EOS")

    @property
    def pad_id(self) -> int:
        """Id of the padding token, or `eos_id` where the file has none."""
        pad = self._roles["PAD"]
        return self.eos_id if pad is None else pad

    @property
    def unk_id(self) -> int | None:
        """Id of the unknown token; None where nothing is ever unknown."""
        return self._roles["UNK"]

    # ids and text ------------------------------------------------------------------------------

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without special tokens (words out of the vocabulary are `unk_id`)."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """Ids of each text, without special tokens.

        Raises:
            InputError: a text is no string.
        """
        listed = strings(texts, "encode")
        if self._clean is not None:
            listed = [CLEANERS[self._clean](text) for text in listed]
        return [encoding.ids for encoding in self._engine.encode_batch(listed, add_special_tokens=False)]

    def padded(self, texts: Iterable[str], length: int, *, pad_id: int = 0, cut: bool = True) -> Tensor:
        """Ids of texts in rows of one length, as CLIP reads them: begin token, pieces, end token, padding.

        Args:
            texts: B texts.
            length: ids per row, at least 2.
            pad_id: what rows are filled up with. 0 is what CLIP's own code takes, whatever token that is.
            cut: leave out the last pieces of a text that is too long; its end token stays, as with
                ``truncate=True`` in OpenAI's code. False: such a text is an error.

        Returns:
            (B, length) int64.

        Raises:
            InputError: ``length`` below 2, ``pad_id`` out of the vocabulary, a text too long with
                ``cut=False``, a text that is no string, no begin or end token.
        """
        if length < 2:
            raise InputError(f"length={length}: the begin and the end token alone need 2", source="padded")
        if not 0 <= pad_id < self.vocab_size:
            raise InputError(f"pad_id={pad_id} is out of the vocabulary (0 to {self.vocab_size - 1})", source="padded")
        batch = self.encode_batch(texts)
        rows = torch.full((len(batch), length), pad_id, dtype=torch.int64)
        for index, ids in enumerate(batch):
            if len(ids) > length - 2 and not cut:
                raise InputError(f"text {index} has {len(ids)} pieces, {length - 2} fit in a row of {length}",
                                 source="padded")
            whole = [self.bos_id, *ids[:length - 2], self.eos_id]
            rows[index, :len(whole)] = torch.tensor(whole)
        return rows

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids (a list, or a 1-D array or tensor), special tokens left out.

        It is what ``decode(ids, skip_special_tokens=True)`` of transformers 5 writes: no tidying of
        spaces beyond what the file asks for. After CLIP's own code, the spaces at both ends are missing.

        Raises:
            InputError: an id is not in the vocabulary, or no integer.
        """
        return self._text([id for id in self._checked(ids) if id not in self._specials])

    def words(self, ids: Iterable[int]) -> list[Word]:
        """The words of a sequence, each with the positions of its pieces in that very sequence.

        A word is what white space separates in the decoded text. Punctuation at its edges is a word
        of its own where it has its own pieces ("dog" + "." are two, "t-shirt" and "don't" one). Pieces
        that share a character stay together; a piece that writes nothing visible by itself (a
        lone space, the first bytes of a character) belongs to the word after it, or to none at
        the end. Special tokens are in no word and end the word before them.

        Args:
            ids: T token ids, special tokens included, such as ``[BOS, ..., EOS]``.

        Returns:
            Words in order, not overlapping. Their joined texts are ``decode(ids)`` up to white space.

        Raises:
            InputError: as `decode`.
        """
        places = [(place, id) for place, id in enumerate(self._checked(ids)) if id not in self._specials]
        text, ends = self._ends([id for _, id in places])
        return words_of(text, ends, [place for place, _ in places])

    # inside ------------------------------------------------------------------------------------

    def _text(self, ids: list[int]) -> str:
        return self._engine.decode(ids, skip_special_tokens=False) if ids else ""

    def _ends(self, ids: list[int]) -> tuple[str, list[int]]:
        """The text of ids, and for each id how much of that text stands once it is decoded.

        Decoders join, strip and repair across pieces, so a piece has no text of its own. What the
        decoding of a prefix has in common with the whole text is settled by that prefix.
        """
        text = self._text(ids)
        ends: list[int] = []
        for count in range(1, len(ids) + 1):
            settled = len(os.path.commonprefix([text, self._text(ids[:count])]))
            ends.append(max(settled, ends[-1] if ends else 0))
        return text, ends

    def _checked(self, ids: Iterable[int]) -> list[int]:
        try:
            checked = [operator.index(id) for id in ids]
        except TypeError:
            raise InputError("ids must be one sequence of integers", source="decode") from None
        unknown = sorted({id for id in checked if id not in self._tokens})
        if unknown:
            raise InputError(f"ids {some(unknown)} are not in the vocabulary of {self.source} "
                             f"(0 to {self.vocab_size - 1})", source="decode")
        return checked

    def _required(self, role: str) -> int:
        id = self._roles[role]
        if id is None:
            there = some(self._tokens[id] for id in sorted(self._specials)) or "none"
            raise InputError(f"has no {role} token (looked for {some(SPELLINGS[role])}); "
                             f"its special tokens: {there}", source=self.source)
        return id


def parse_json(text: str, source: str | os.PathLike[str]) -> tuple[tokenizers.Tokenizer, str | None]:
    """The engine of a ``tokenizer.json`` or of `Tokenizer.to_json`, and how texts are cleaned before it.

    Raises:
        InputError: not the JSON of a tokenizer; the message begins with ``source``.
    """
    clean = None
    try:
        if f'"{OWN}"' in text:
            described = json.loads(text)
            clean = described.pop(OWN, {}).get("clean")
            text = json.dumps(described)
        return tokenizers.Tokenizer.from_str(text), clean
    except Exception as error:  # the library raises bare Exception, whatever the fault
        raise InputError(f"holds no usable model and vocabulary ({error})", source=source) from None


def _unpickle(text: str, source: str, roles: Mapping[str, int]) -> Tokenizer:
    return Tokenizer.from_json(text, source=source, roles=roles)
