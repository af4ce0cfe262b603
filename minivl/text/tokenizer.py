"""Ids <-> text on the `tokenizers` library, and which pieces form a word."""

from __future__ import annotations

import json
import operator
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from ..errors import InputError, some
from ..files import existing_file

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[BOS]", "[EOS]")
"""Special tokens of a trained tokenizer; their ids are 0 to 3, in this order."""

SPELLINGS: Mapping[str, tuple[str, ...]] = {
    "PAD": ("[PAD]", "<pad>", "<|pad|>"),
    "UNK": ("[UNK]", "<unk>", "<|unk|>"),
    "BOS": ("[BOS]", "<bos>", "<s>", "<start>", "<|startoftext|>", "[CLS]"),
    "EOS": ("[EOS]", "<eos>", "</s>", "<end>", "<|endoftext|>", "[SEP]"),
}
"""Accepted spellings per role, case ignored; the first in the list that a file has is taken."""

WORD = "[a-z0-9']+"
"""What a word-level tokenizer keeps of a lower-cased caption; everything else separates words."""


class Word(NamedTuple):
    """One word of a sequence of ids: its text, and the positions ``[start, stop)`` of its pieces."""

    text: str
    start: int
    stop: int


class Tokenizer:
    """A `tokenizers.Tokenizer` that knows its special tokens by name and its words by position.

    Made by `train`, `from_file` or `from_json`. Truncation, padding and the automatic special tokens
    of a loaded file are switched off: an id is never lost or added unasked.

    Special tokens are found by name (`SPELLINGS`): the earliest spelling of a role wins; tokens
    that the file declares special go before ordinary entries of the vocabulary, then the exact letter
    case before others, then the lower id.

    Args:
        engine: the tokenizer to wrap; it is copied.
        source: the file it came from, for error messages.
    """

    def __init__(self, engine: tokenizers.Tokenizer, *,
                 source: str | os.PathLike[str] = "the tokenizer") -> None:
        self.source = os.fspath(source)
        self._engine = tokenizers.Tokenizer.from_str(engine.to_str())
        self._engine.no_truncation()
        self._engine.no_padding()
        self._engine.encode_special_tokens = True  # "<pad>" written in a caption is text like any other
        self._mend_word_ends()
        self._tokens = {id: token for token, id in self._engine.get_vocab(with_added_tokens=True).items()}
        if not self._tokens:
            raise InputError("has an empty vocabulary", source=self.source)
        added = self._engine.get_added_tokens_decoder()
        self._declared = {id: token.content for id, token in added.items() if token.special}
        self._roles = {role: self._find(spellings) for role, spellings in SPELLINGS.items()}
        self._specials = frozenset(self._declared) | {id for id in self._roles.values() if id is not None}

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
        if kind not in ("word", "bpe"):
            raise InputError(f"kind={kind!r} is unknown; there are 'word' and 'bpe'",
                             source="Tokenizer.train")
        smallest = len(SPECIAL_TOKENS) + (1 if kind == "word" else len(pre_tokenizers.ByteLevel.alphabet()))
        if vocab_size is not None and vocab_size < smallest:
            raise InputError(f"vocab_size={vocab_size} is too small, kind={kind!r} needs at least {smallest}",
                             source="Tokenizer.train")
        if min_count < 1:
            raise InputError(f"min_count={min_count} must be at least 1", source="Tokenizer.train")
        corpus = _strings(texts, "Tokenizer.train")
        make = _word_engine if kind == "word" else _bpe_engine
        engine, trainer = make(vocab_size, min_count)
        engine.train_from_iterator(corpus, trainer=trainer)
        if engine.get_vocab_size() == len(SPECIAL_TOKENS) or not any(map(str.strip, corpus)):
            raise InputError(f"no word with min_count={min_count} in the {len(corpus)} texts given",
                             source="Tokenizer.train")
        return cls(engine)

    @classmethod
    def from_json(cls, text: str, *, source: str | os.PathLike[str] = "the tokenizer") -> Tokenizer:
        """The tokenizer that `to_json` or any ``tokenizer.json`` describes.

        Raises:
            InputError: not the JSON of a tokenizer; the message begins with ``source``.
        """
        try:
            engine = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises bare Exception, whatever the fault
            raise InputError(f"holds no usable model and vocabulary ({error})", source=source) from None
        return cls(engine, source=source)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """The tokenizer of a ``tokenizer.json`` file.

        Raises:
            InputError: no such file, or not a tokenizer.
        """
        file = existing_file(path)
        try:
            text = file.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(f"is not UTF-8 text ({error.reason} at byte {error.start})",
                             source=file) from None
        return cls.from_json(text, source=file)

    def to_json(self) -> str:
        """The whole tokenizer as JSON, for a file or a header; `from_json` reads it back."""
        return self._engine.to_str()

    def __reduce__(self) -> tuple[object, ...]:
        return _unpickle, (self.to_json(), self.source)

    # special tokens ----------------------------------------------------------------------------

    @property
    def vocab_size(self) -> int:
        """One more than the highest id: the rows an embedding needs."""
        return max(self._tokens) + 1

    @property
    def specials(self) -> frozenset[int]:
        """Ids of all special tokens: those the file declares and those found by name."""
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
        encodings = self._engine.encode_batch(_strings(texts, "encode"), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids (a list, or a 1-D array or tensor), special tokens left out.

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
        words = []
        for group in _groups(text, ends, [place for place, _ in places]):
            for run in _without_edges(group, text, ends):
                first = ends[run[0] - 1] if run[0] else 0
                content = text[first:ends[run[-1]]].strip()
                words.append(Word(content, places[run[0]][0], places[run[-1]][0] + 1))
        return words

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

    def _find(self, spellings: Sequence[str]) -> int | None:
        for entries in (self._declared, self._tokens):
            for spelling in spellings:
                alike = [id for id, token in entries.items() if token.lower() == spelling.lower()]
                if alike:
                    return min(alike, key=lambda id: (entries[id] != spelling, id))
        return None

    def _required(self, role: str) -> int:
        id = self._roles[role]
        if id is None:
            there = some(self._tokens[id] for id in sorted(self._specials)) or "none"
            raise InputError(f"has no {role} token (looked for {some(SPELLINGS[role])}); "
                             f"its special tokens: {there}", source=self.source)
        return id

    def _mend_word_ends(self) -> None:
        """Let a decoder that leaves the end-of-word mark in the text (CLIP's files) write a space."""
        mark = json.loads(self._engine.to_str())["model"].get("end_of_word_suffix")
        vocab = self._engine.get_vocab()
        sample = next((vocab[token] for token in sorted(vocab) if mark and token.endswith(mark)), None)
        if sample is None or mark not in self._engine.decode([sample, sample]):
            return
        # `Strip` would do for the last mark, but it panics on an empty text.
        last = tokenizers.Regex(re.escape(mark) + r"\z")
        self._engine.decoder = decoders.Sequence([
            self._engine.decoder or decoders.Fuse(), decoders.Fuse(), decoders.Replace(last, ""),
            decoders.Replace(mark, " ")])


def _unpickle(text: str, source: str) -> Tokenizer:
    return Tokenizer.from_json(text, source=source)


def _strings(texts: Iterable[str], source: str) -> list[str]:
    if isinstance(texts, str):
        raise InputError("one string given where a list of texts is needed", source=source)
    listed = list(texts)
    for index, text in enumerate(listed):
        if not isinstance(text, str):
            raise InputError(f"text {index} is a {type(text).__name__}, a string is needed", source=source)
    return listed


def _word_engine(vocab_size: int | None, min_count: int) -> tuple[tokenizers.Tokenizer, trainers.Trainer]:
    engine = tokenizers.Tokenizer(models.WordLevel(unk_token="[UNK]"))
    engine.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    engine.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(WORD), "removed", invert=True)
    return engine, trainers.WordLevelTrainer(vocab_size=vocab_size or 2**62, min_frequency=min_count,
                                             special_tokens=list(SPECIAL_TOKENS), show_progress=False)


def _bpe_engine(vocab_size: int | None, min_count: int) -> tuple[tokenizers.Tokenizer, trainers.Trainer]:
    engine = tokenizers.Tokenizer(models.BPE(unk_token="[UNK]"))
    engine.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    engine.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    # All bytes are in the alphabet, hence no prefix or suffix marks: those would be numbered in the
    # order of a hash map, and two trainings would differ.
    return engine, trainers.BpeTrainer(vocab_size=vocab_size or 4096, min_frequency=min_count,
                                       special_tokens=list(SPECIAL_TOKENS), show_progress=False,
                                       initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))


def _groups(text: str, ends: list[int], places: list[int]) -> list[list[int]]:
    """Indices of the pieces between white space: ``[[0, 1], [2], ...]``."""
    groups: list[list[int]] = []
    pending: list[int] = []  # pieces that wrote nothing visible yet
    for index, end in enumerate(ends):
        if pending and places[index] != places[index - 1] + 1:
            pending = []
        start = ends[index - 1] if index else 0
        pending.append(index)
        if not text[start:end].strip():
            continue
        first = pending[0]
        joins = bool(groups) and groups[-1][-1] == first - 1 and places[first] == places[first - 1] + 1
        # A space may end the last visible piece, be the first the invisible ones wrote, or begin this one.
        before = ends[first - 1] if first else 0
        spaced = text[before:before + 1].isspace() or text[max(before - 1, 0):before].isspace()
        if joins and not spaced:
            groups[-1] += pending
        else:
            groups.append(pending)
        pending = []
    return groups


def _without_edges(group: list[int], text: str, ends: list[int]) -> list[list[int]]:
    """A group of pieces, with pieces of nothing but punctuation at either edge apart."""
    units: list[list[int]] = [[]]  # what cannot be cut: a visible piece and the invisible ones before it
    marks: list[bool] = []
    for index in group:
        units[-1].append(index)
        content = text[ends[index - 1] if index else 0:ends[index]].strip()
        if content:
            marks.append(all(unicodedata.category(letter).startswith("P") for letter in content))
            units.append([])
    if all(marks):
        return [group]
    left = marks.index(False)
    right = len(marks) - marks[::-1].index(False)
    parts = (units[:left], units[left:right], units[right:-1])
    return [[index for unit in part for index in unit] for part in parts if part]
