"""Engines learned from captions: whole words, or byte pairs."""

from __future__ import annotations

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from ..errors import InputError

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[BOS]", "[EOS]")
"""Special tokens of a trained tokenizer; their ids are 0 to 3, in this order."""

WORD = "[a-z0-9']+"
"""What a word-level tokenizer keeps of a lower-cased caption; everything else separates words."""


def check_training(kind: str, vocab_size: int | None, min_count: int) -> None:
    """Whether `train_engine` can do what these ask for.

    Raises:
        InputError: an unknown ``kind``, or a ``vocab_size`` or ``min_count`` that is too small.
    """
    if kind not in ("word", "bpe"):
        raise InputError(f"kind={kind!r} is unknown; there are 'word' and 'bpe'", source="Tokenizer.train")
    smallest = len(SPECIAL_TOKENS) + (1 if kind == "word" else len(pre_tokenizers.ByteLevel.alphabet()))
    if vocab_size is not None and vocab_size < smallest:
        raise InputError(f"vocab_size={vocab_size} is too small, kind={kind!r} needs at least {smallest}",
                         source="Tokenizer.train")
    if min_count < 1:
        raise InputError(f"min_count={min_count} must be at least 1", source="Tokenizer.train")


def train_engine(corpus: list[str], kind: str, vocab_size: int | None, min_count: int) -> tokenizers.Tokenizer:
    """An engine learned from texts; `Tokenizer.train` says what the arguments mean.

    Raises:
        InputError: no word in the texts.
    """
    make = _word_engine if kind == "word" else _bpe_engine
    engine, trainer = make(vocab_size, min_count)
    engine.train_from_iterator(corpus, trainer=trainer)
    if engine.get_vocab_size() == len(SPECIAL_TOKENS) or not any(map(str.strip, corpus)):
        raise InputError(f"no word with min_count={min_count} in the {len(corpus)} texts given",
                         source="Tokenizer.train")
    return engine


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
