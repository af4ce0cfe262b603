"""Tokenizers as others publish them: tokenizer.json, BERT's vocab.txt, GPT-2's and CLIP's vocabularies with merges.

Facts of the formats: BertTokenizer, GPT2Tokenizer and CLIPTokenizer of `transformers` 5, and OpenAI's CLIP.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from ..errors import InputError, some
from ..files import existing_file, read_json
from .beside import NAMES, Beside, read_beside
from .specials import append_tokens
from .tokenizer import Tokenizer, parse_json

TOKENIZER, VOCABULARY, MERGES, WORD_PIECES = "tokenizer.json", "vocab.json", "merges.txt", "vocab.txt"
CLIP_FILE = "bpe_simple_vocab_16e6.txt.gz"
CLIP_MERGES = 48894
"""How many merges of `CLIP_FILE` are used: with 2 x 256 bytes and two special tokens they make 49408 entries."""
MOST_BYTES = 1 << 24
"""The most that a .gz file may unpack to; CLIP's unpacks to 3 MB."""

BERT = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]",
        "mask_token": "[MASK]"}
GPT2 = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
CLIP = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>"}
PLAYED: Mapping[str, tuple[str, ...]] = {"BOS": ("bos_token", "cls_token"), "EOS": ("eos_token", "sep_token"),
                                         "PAD": ("pad_token",), "UNK": ("unk_token",)}
"""Role -> what `transformers` calls its token; the first that a file names is taken."""

CONTRACTIONS = "'s|'t|'re|'ve|'m|'ll|'d"
TIDIED = ((" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m"),
          (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"))
"""What ``clean_up_tokenization_spaces`` of a tokenizer_config.json replaces in a decoded text, in this order."""


class Published(NamedTuple):
    """What a published tokenizer consists of: arguments of `Tokenizer`, and the file it came from."""

    engine: tokenizers.Tokenizer
    roles: dict[str, int]
    clean: str | None
    source: Path


def read_tokenizer(path: str | os.PathLike[str], *, roles: Mapping[str, int] | None = None,
                   missing_ok: bool = False) -> Tokenizer | None:
    """The tokenizer of a file, or of a folder that holds one: `Tokenizer.from_file`.

    Args:
        path: the file or folder.
        roles: as in `Tokenizer`; they win over what the files say.
        missing_ok: a folder without any tokenizer is None, not an error.

    Raises:
        InputError: as `read_published`; ``roles`` that the constructor refuses.
    """
    if missing_ok and Path(path).is_dir() and not _files_in(Path(path)):
        return None
    return Tokenizer.from_file(path, roles=roles)


def read_published(path: str | os.PathLike[str]) -> Published:
    """The engine of a published tokenizer, and which of its tokens play which role.

    ======================================  =====================================================
    ``*.json``                              a whole tokenizer
    ``*vocab.txt`` (any other ``.txt``)     BERT's word pieces, lower-cased unless a
                                            ``tokenizer_config.json`` beside it says otherwise
    ``*vocab.json``, ``*merges.txt`` by it  byte pairs: CLIP's where an entry ends in ``</w>``,
                                            else GPT-2's
    ``*.gz``                                `CLIP_FILE`, with the cleaning of OpenAI's code
    a folder                                `TOKENIZER` if it is there, else the one of the others
    ======================================  =====================================================

    For a folder, and for the second and third kind, special and added tokens of the files beside
    (`read_beside`) are honoured; a ``tokenizer.json`` that is given itself is taken as it is.

    Raises:
        InputError: no such file, a folder with none or several of these, and what makes a file
            unusable: damage, a duplicate, a hole in the ids, a merge of unknown tokens, a missing
            ``merges.txt``. The message begins with the file.
    """
    given = Path(path)
    file = _file_in(given) if given.is_dir() else existing_file(given)
    name, clean, defaults = file.name.lower(), None, CLIP
    beside = read_beside(file.parent) if given.is_dir() or name.endswith((".txt", VOCABULARY)) else None
    if name.endswith(".gz"):
        engine, clean, beside = _clip_engine(*_read_clip_file(file), exact=True), "openai", None
    elif name.endswith(MERGES):
        raise InputError(f"holds only merges: give the {VOCABULARY} beside it", source=file)
    elif name.endswith(".txt") and beside:
        engine, defaults = _word_pieces(file, beside), BERT
    elif name.endswith(VOCABULARY) and beside:
        vocab = _read_vocabulary(file)
        merges = _read_merges(file, vocab)
        ends = any(token.endswith("</w>") for token in vocab)
        _check_bytes(vocab, "</w>" if ends else "", file)
        engine, defaults = (_clip_engine(vocab, merges), CLIP) if ends else (_gpt2_engine(vocab, merges, beside), GPT2)
    else:
        engine, clean = parse_json(_text(file), file)
        defaults = {}
    roles = _declare(engine, beside or Beside(file.parent, {}, [], {}, []), defaults, file)
    return Published(engine, roles, clean, file)


def _files_in(folder: Path) -> list[str]:
    return [name for name in (TOKENIZER, VOCABULARY, WORD_PIECES, CLIP_FILE) if (folder / name).is_file()]


def _file_in(folder: Path) -> Path:
    found = _files_in(folder)
    if not found:
        there = some(sorted(entry.name for entry in folder.iterdir())) or "nothing"
        raise InputError(f"holds no tokenizer (looked for {TOKENIZER}, {VOCABULARY} with {MERGES}, {WORD_PIECES}, "
                         f"{CLIP_FILE}; there is {there})", source=folder)
    if len(found) > 1 and found[0] != TOKENIZER:
        raise InputError(f"holds several tokenizers: give one of {', '.join(found)}", source=folder)
    return folder / found[0]


# special tokens ------------------------------------------------------------------------------------


def _declare(engine: tokenizers.Tokenizer, beside: Beside, defaults: Mapping[str, str],
             source: Path) -> dict[str, int]:
    """Tell the engine all special and added tokens; the roles of those that have a name."""
    vocab = engine.get_vocab()
    named = {**{name: token for name, token in defaults.items() if token in vocab}, **beside.named}
    append_tokens(engine, beside.placed, str(source))
    ranked = sorted(named, key=lambda name: NAMES.index(name) if name in NAMES else len(NAMES))
    new = [*(named[name] for name in ranked), *beside.extra]
    engine.add_special_tokens([AddedToken(token, special=True) for token in new])
    if beside.flag("clean_up_tokenization_spaces", False) and not isinstance(engine.model, models.BPE):
        engine.decoder = decoders.Sequence([engine.decoder or decoders.Fuse(), decoders.Fuse(),
                                            *(decoders.Replace(*pair) for pair in TIDIED)])
    vocab, roles = engine.get_vocab(), {}
    for role, names in PLAYED.items():
        token = next((named[name] for name in names if name in named), None)
        if token is not None:
            roles[role] = vocab[token]
    if roles.get("UNK") in (roles.get("BOS"), roles.get("EOS")):
        roles.pop("UNK", None)  # GPT-2 and CLIP name their end token: nothing is ever unknown to them
    return roles


# engines -------------------------------------------------------------------------------------------


def _word_pieces(file: Path, beside: Beside) -> tokenizers.Tokenizer:
    lines = _text(file).split("\n")
    tokens = lines[:-1] if lines[-1] == "" else lines
    if "" in tokens:
        raise InputError(f"line {tokens.index('') + 1} is empty: one word piece per line is needed", source=file)
    unknown = beside.named.get("unk_token", BERT["unk_token"])
    if unknown not in tokens:
        raise InputError(f"is no vocabulary of word pieces: it has no {unknown}", source=file)
    engine = tokenizers.Tokenizer(models.WordPiece(_numbered(tokens, file), unk_token=unknown))
    engine.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=beside.flag("tokenize_chinese_chars", True) is True,
        strip_accents=beside.flag("strip_accents", None), lowercase=beside.flag("do_lower_case", True) is True)
    engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    engine.decoder = decoders.WordPiece(prefix="##")
    return engine


def _gpt2_engine(vocab: dict[str, int], merges: list[tuple[str, str]], beside: Beside) -> tokenizers.Tokenizer:
    engine = tokenizers.Tokenizer(models.BPE(vocab, merges))
    spaced = beside.flag("add_prefix_space", False) is True
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=spaced)
    engine.decoder = decoders.ByteLevel()
    return engine


def _clip_engine(vocab: dict[str, int], merges: list[tuple[str, str]], *, exact: bool = False) -> tokenizers.Tokenizer:
    """CLIP's byte pairs, split as `transformers` does, or (``exact``) as OpenAI's own code does.

    That ignores case in contractions (long s is an s) and drops U+0345, which is neither a letter nor
    anything else under a pattern that ignores case; its texts are cleaned by `cleaning.openai`.
    """
    engine = tokenizers.Tokenizer(models.BPE(vocab, merges, end_of_word_suffix="</w>", unk_token=CLIP["eos_token"]))
    if exact:
        pattern = rf"(?i:{CONTRACTIONS})|[\p{{L}}]+|[\p{{N}}]|[^\s\p{{L}}\p{{N}}\x{{345}}]+"
    else:
        engine.normalizer = normalizers.Sequence([
            normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
        specials = "|".join(token.replace("|", r"\|") for token in CLIP.values())
        pattern = rf"{specials}|{CONTRACTIONS}|[\p{{L}}]+|[\p{{N}}]|[^\s\p{{L}}\p{{N}}]+"
    engine.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), "removed", invert=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not exact)])
    engine.decoder = decoders.ByteLevel()
    return engine


# files ---------------------------------------------------------------------------------------------


def _read_vocabulary(file: Path) -> dict[str, int]:
    """Tokens and ids of a vocab.json: every id from 0 on, once."""
    value = read_json(file)
    whole = isinstance(value, dict) and value and all(type(id) is int for id in value.values())
    if not whole:
        raise InputError("is no vocabulary: an object of tokens and their ids is needed", source=file)
    pairs = json.loads(_text(file), object_pairs_hook=list)  # a dictionary forgets duplicates
    _numbered([token for token, _ in pairs], file)
    ids = sorted(value.values())
    for place, id in enumerate(ids):
        if id == place:
            continue
        if place and id == ids[place - 1]:
            raise InputError(f"gives id {id} to {some(token for token in value if value[token] == id)}", source=file)
        raise InputError(f"has no token of id {place} (its ids: {ids[0]} to {ids[-1]})", source=file)
    return dict(value)


def _read_merges(vocabulary: Path, vocab: Mapping[str, int]) -> list[tuple[str, str]]:
    """The merges beside a vocab.json (beside x-vocab.json: x-merges.txt)."""
    file = vocabulary.with_name(vocabulary.name[:-len(VOCABULARY)] + MERGES)
    if not file.is_file():
        raise InputError(f"needs {file.name} beside it, which is not there", source=vocabulary)
    lines = _text(file).split("\n")
    first = 1 if lines[0].startswith("#version") else 0
    return _merges(lines[first:-1] if lines[-1] == "" else lines[first:], vocab, first + 1, file)


def _read_clip_file(file: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of `CLIP_FILE`: bytes, bytes that end a word, what merges make, special tokens."""
    try:
        with gzip.open(file) as opened:
            content = opened.read(MOST_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"is no whole gzip file ({error})", source=file) from None
    if len(content) > MOST_BYTES:
        raise InputError(f"unpacks to more than {MOST_BYTES} bytes: {CLIP_FILE} is needed", source=file)
    lines = _decoded(content, file).split("\n")[1:CLIP_MERGES + 1]
    if len(lines) < CLIP_MERGES or "" in lines:
        raise InputError(f"holds {len([line for line in lines if line])} merges, {CLIP_MERGES} are needed: "
                         f"{CLIP_FILE} is", source=file)
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())  # in the order of the code points, as CLIP counts them
    tokens = [*symbols, *(symbol + "</w>" for symbol in symbols)]
    tokens += ["".join(line.split(" ")) for line in lines] + list(CLIP.values())
    vocab = _numbered(tokens, file)
    return vocab, _merges(lines, vocab, 2, file)


def _merges(lines: Sequence[str], vocab: Mapping[str, int], first: int, file: Path) -> list[tuple[str, str]]:
    """Lines of two tokens each; ``first`` is the number of the first of them."""
    merges: dict[tuple[str, str], int] = {}
    for number, line in enumerate(lines, first):
        left, space, right = line.partition(" ")
        if not (left and space and right) or " " in right:
            raise InputError(f"line {number} is no merge of two tokens: {line[:80]!r}", source=file)
        for token in (left, right, left + right):
            if token not in vocab:
                raise InputError(f"line {number} merges {left} and {right}, but {token!r} is not in the vocabulary",
                                 source=file)
        if (left, right) in merges:
            raise InputError(f"line {number} is line {merges[left, right]} again", source=file)
        merges[left, right] = number
    return list(merges)


def _numbered(tokens: Iterable[str], file: Path) -> dict[str, int]:
    numbered: dict[str, int] = {}
    for id, token in enumerate(tokens):
        if numbered.setdefault(token, id) != id:
            raise InputError(f"has {token!r} twice (entries {numbered[token]} and {id})", source=file)
    return numbered


def _check_bytes(vocab: Mapping[str, int], mark: str, file: Path) -> None:
    """Whether every text can be written in the tokens of a byte-level vocabulary."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    absent = [symbol + end for end in dict.fromkeys(("", mark)) for symbol in symbols if symbol + end not in vocab]
    if mark and CLIP["eos_token"] not in vocab:
        absent.append(CLIP["eos_token"])
    if absent:
        raise InputError(f"is no byte-level vocabulary: it lacks {some(absent)}", source=file)


def _text(file: Path) -> str:
    return _decoded(file.read_bytes(), file)


def _decoded(content: bytes, file: Path) -> str:
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise InputError(f"is not UTF-8 text ({error.reason} at byte {error.start})", source=file) from None
