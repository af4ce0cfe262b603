"""Tokenizer: training, special tokens by name, and words by position for every kind of pieces."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

from minivl.errors import InputError
from minivl.text.tokenizer import SPECIAL_TOKENS, Tokenizer, Word

CORPUS = [
    "a black dog is running after a white dog in the snow .",
    "two men wearing red jackets are climbing an icy mountain",
    "the boy's t-shirt says 'hello', doesn't it?",
    "a naïve café owner pours coffee (very hot) for 3 girls",
    "children running, jumping and shouting at the playground!",
    "a surfer rides waves near o'clock rocks ... while waiting",
] * 3
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())


def trained(engine: tokenizers.Tokenizer, trainer: trainers.Trainer) -> Tokenizer:
    engine.train_from_iterator(CORPUS, trainer=trainer)
    return Tokenizer(engine)


def wordpiece() -> Tokenizer:
    engine = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    engine.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=False)
    engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    engine.decoder = decoders.WordPiece(prefix="##")
    return trained(engine, trainers.WordPieceTrainer(
        vocab_size=90, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"], show_progress=False))


def byte_level() -> Tokenizer:
    engine = tokenizers.Tokenizer(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    return trained(engine, trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=BYTES, special_tokens=["<s>", "<|endoftext|>"], show_progress=False))


def metaspace() -> Tokenizer:
    engine = tokenizers.Tokenizer(models.Unigram())
    engine.pre_tokenizer = pre_tokenizers.Metaspace()
    engine.decoder = decoders.Metaspace()
    return trained(engine, trainers.UnigramTrainer(
        vocab_size=70, unk_token="<unk>", show_progress=False,
        special_tokens=["<unk>", "<s>", "</s>", "<pad>"]))


def byte_fallback() -> Tokenizer:
    """As SentencePiece BPE files of the Llama family: unseen characters as <0xC3> pieces."""
    pieces = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)] + ["▁"] \
        + list("abcdefghijklmnopqrstuvwxyz") + ["do", "do" "g", "▁dog", "▁a"]
    engine = tokenizers.Tokenizer(models.BPE(
        vocab={piece: id for id, piece in enumerate(pieces)}, unk_token="<unk>", byte_fallback=True,
        fuse_unk=True, merges=[("d", "o"), ("do", "g"), ("▁", "dog"), ("▁", "a")]))
    engine.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    engine.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                        decoders.Strip(" ", 1, 0)])
    engine.add_special_tokens(["<s>", "</s>", "<unk>"])
    return Tokenizer(engine)


def clip(decoder: str = "bpe") -> Tokenizer:
    engine = tokenizers.Tokenizer(models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
    engine.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    pattern = tokenizers.Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    engine.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(pattern, "removed", invert=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False)])
    # "byte": the decoder of the published files, which leaves every "</w>" in the text
    engine.decoder = {"bpe": decoders.BPEDecoder(suffix="</w>"), "byte": decoders.ByteLevel()}[decoder]
    engine.train_from_iterator(CORPUS, trainer=trainers.BpeTrainer(
        vocab_size=340, initial_alphabet=BYTES, end_of_word_suffix="</w>", show_progress=False,
        special_tokens=["<|startoftext|>", "<|endoftext|>"]))
    described = json.loads(engine.to_str())
    vocab = described["model"]["vocab"]
    for byte in BYTES:  # as in the published vocabulary, every byte may end a word
        vocab.setdefault(byte + "</w>", len(vocab))
    return Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(described)))


KINDS = {
    "word": Tokenizer.train(CORPUS),
    "bpe": Tokenizer.train(CORPUS, kind="bpe", vocab_size=300),
    "wordpiece": wordpiece(),
    "byte_level": byte_level(),
    "metaspace": metaspace(),
    "byte_fallback": byte_fallback(),
    "clip": clip(),
    "clip_byte": clip("byte"),
}


def squeeze(text: str) -> str:
    return "".join(text.split())


def check_words(tokenizer: Tokenizer, ids: list[int]) -> list[Word]:
    """All that must hold of the words of any sequence."""
    words = tokenizer.words(ids)
    text = tokenizer.decode(ids)
    assert squeeze("".join(word.text for word in words)) == squeeze(text)
    stop = 0
    for word in words:
        assert word.text and word.text == word.text.strip()
        assert stop <= word.start < word.stop <= len(ids)
        assert not tokenizer.specials & set(ids[word.start:word.stop])
        stop = word.stop
    return words


# words ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_words_of_a_plain_caption(kind: str) -> None:
    tokenizer = KINDS[kind]
    caption = "a black dog is running after two girls wearing jackets"
    pieces = tokenizer.encode(caption)
    ids = [tokenizer.bos_id, *pieces, tokenizer.eos_id]
    words = check_words(tokenizer, ids)
    assert [word.text for word in words] == caption.split()
    assert tokenizer.decode(ids) == caption
    # No piece is left out, and the first begins right after <BOS>. "byte_fallback" and "metaspace"
    # write some spaces as pieces of their own, which must not open holes either.
    assert words[0].start == 1
    assert [word.stop for word in words] == [word.start for word in words[1:]] + [len(ids) - 1]
    # Each word alone, decoded from its own pieces, is the word: the positions are the right ones.
    # (A WordPiece or metaspace decoder treats a first piece like the first of a text.)
    for word in words:
        assert tokenizer.decode(ids[word.start:word.stop]).strip() == word.text
    if kind not in ("word", "bpe"):
        assert len(pieces) > len(words)  # else this test shows nothing


@pytest.mark.parametrize("kind", ["bpe", "byte_level", "byte_fallback"])
def test_characters_split_over_pieces_stay_in_one_word(kind: str) -> None:
    tokenizer = KINDS[kind]
    for caption in ("a 猫 dog", "猫 a", "dog ☃", "a über dog", "a dog猫"):
        ids = [tokenizer.bos_id, *tokenizer.encode(caption)]
        words = check_words(tokenizer, ids)
        assert [word.text for word in words] == caption.split()
        assert [word.stop for word in words] == [word.start for word in words[1:]] + [len(ids)]


@pytest.mark.parametrize("kind", ["bpe", "byte_level", "clip", "clip_byte", "wordpiece"])
def test_edge_punctuation_is_a_word_of_its_own(kind: str) -> None:
    tokenizer = KINDS[kind]
    ids = tokenizer.encode("a dog , running .")
    assert [word.text for word in check_words(tokenizer, ids)] == ["a", "dog", ",", "running", "."]
    if kind.startswith("clip"):  # CLIP's own text has spaces around punctuation
        return
    ids = tokenizer.encode("(dog) running.")
    assert [word.text for word in check_words(tokenizer, ids)] == ["(", "dog", ")", "running", "."]


@pytest.mark.parametrize("kind", ["bpe", "byte_level"])
def test_inner_punctuation_stays(kind: str) -> None:
    tokenizer = KINDS[kind]
    ids = tokenizer.encode("a t-shirt doesn't, boy's ... a")
    texts = [word.text for word in check_words(tokenizer, ids)]
    assert texts == ["a", "t-shirt", "doesn't", ",", "boy's", "...", "a"]


def test_lone_space_piece_joins_the_next_word() -> None:
    tokenizer = KINDS["byte_fallback"]
    ids = [1, *tokenizer.encode("a boy"), 2]
    assert tokenizer.words(ids) == [Word("a", 1, 2), Word("boy", 2, 6)]  # "▁" "b" "o" "y"


def test_special_tokens_end_a_word_and_are_in_none() -> None:
    tokenizer = KINDS["byte_level"]
    pieces = tokenizer.encode("xyz")
    assert len(pieces) == 3
    ids = [0, 0, pieces[0], 1, pieces[1], pieces[2], 1, 1]
    assert tokenizer.words(ids) == [Word("x", 2, 3), Word("yz", 4, 6)]
    assert tokenizer.decode(ids) == "xyz"
    fallback = KINDS["byte_fallback"]
    space, dog = fallback.encode("  dog")[0], fallback.encode("dog")[-1]
    assert fallback.decode([space]) == "" and fallback.decode([dog]) == "dog"
    assert fallback.words([space, 2, dog]) == [Word("dog", 2, 3)]  # the space is of no word then
    assert tokenizer.words([0, 1]) == [] and tokenizer.words([]) == []
    assert tokenizer.decode([]) == ""


def test_spaces_anywhere_in_a_piece() -> None:
    vocab = {piece: id for id, piece in enumerate(["dog ", "runs", " a", "s", "  ", "in the", "."])}
    engine = tokenizers.Tokenizer(models.WordLevel(vocab))
    engine.decoder = decoders.Fuse()
    words = check_words(Tokenizer(engine), [0, 1, 3, 2, 4, 3, 4, 5, 6, 4])  # "dog runss a  s  in the.  "
    assert words == [("dog", 0, 1), ("runss", 1, 3), ("a", 3, 4), ("s", 4, 6), ("in the", 6, 8), (".", 8, 9)]


def test_words_at_the_end_of_an_unfinished_character() -> None:
    tokenizer = KINDS["byte_level"]
    ids = tokenizer.encode("a dog 猫")
    words = check_words(tokenizer, ids[:-1])  # the last byte of the character is missing
    assert [word.text for word in words[:2]] == ["a", "dog"]


def test_unknown_words_are_in_no_word() -> None:
    tokenizer = KINDS["word"]
    ids = tokenizer.encode("a zebra dog")
    assert ids[1] == tokenizer.unk_id == 1
    assert tokenizer.words(ids) == [Word("a", 0, 1), Word("dog", 2, 3)]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_words_of_random_ids(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(sorted(KINDS)))
    tokenizer = KINDS[kind]
    known = sorted(tokenizer._tokens)
    check_words(tokenizer, data.draw(st.lists(st.sampled_from(known), max_size=24)))


PIECES = st.lists(st.sampled_from([
    "dog", "running", "a", "t-shirt", "doesn't", "naïve", ".", ",", "(", "猫", "é", "👩‍👧", "हिंदी", "#",
    "\u3000", "\n", " ", "\u2028"]), max_size=10)
TEXTS = st.one_of(PIECES.map(" ".join), PIECES.map("".join), st.text(max_size=20))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(KINDS)), TEXTS)
def test_words_of_random_texts(kind: str, text: str) -> None:
    tokenizer = KINDS[kind]
    ids = tokenizer.encode(text)
    words = check_words(tokenizer, [tokenizer.bos_id, *ids, tokenizer.eos_id])
    visible = [word for word in words if any(letter.isalnum() for letter in word.text)]
    assert all(not any(letter.isspace() for letter in word.text) for word in visible)  # pre-split at spaces


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=30))
def test_trained_bpe_loses_nothing(text: str) -> None:
    tokenizer = KINDS["bpe"]
    ids = tokenizer.encode(text)
    assert not tokenizer.specials & set(ids)
    normal = tokenizer._engine.normalizer.normalize_str(text)
    assert tokenizer.decode(ids) == (normal[1:] if normal.startswith(" ") else normal)


# training ------------------------------------------------------------------------------------------


def test_word_training() -> None:
    tokenizer = Tokenizer.train(["The dog's ＢＡＬＬ, the bat!", "the cat - a Ball"])
    assert [tokenizer._tokens[id] for id in range(4)] == list(SPECIAL_TOKENS)
    # by falling count, then by spelling
    assert [tokenizer._tokens[id] for id in range(4, 10)] == ["the", "ball", "a", "bat", "cat", "dog's"]
    assert tokenizer.vocab_size == 10
    assert tokenizer.encode("A (cat) bites the DOG'S ball.") == [6, 8, 1, 4, 9, 5]
    assert tokenizer.decode([2, 6, 8, 4, 3]) == "a cat the"
    assert Tokenizer.train(["b b a a c", "c c"], min_count=3).vocab_size == 5
    assert Tokenizer.train(["b b a a c"], vocab_size=6)._tokens[5] == "b"
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2, 3)
    assert tokenizer.specials == frozenset(range(4))


def test_special_names_in_a_caption_are_text() -> None:
    assert KINDS["word"].encode("[BOS] a <|endoftext|> [PAD]") == [1, KINDS["word"].encode("a")[0], 1, 1]
    for kind in ("bpe", "byte_level", "clip"):
        tokenizer = KINDS[kind]
        for token in sorted(tokenizer.specials):
            assert not tokenizer.specials & set(tokenizer.encode(f"a {tokenizer._tokens[token]} b"))


def ties() -> list[str]:
    """Texts where nearly every count is a tie."""
    rng = np.random.default_rng(5)
    return ["".join(chr(97 + letter) for letter in rng.integers(0, 26, 4)) + " é猫" for _ in range(3000)]


def fingerprint(kind: str) -> str:
    return hashlib.sha256(Tokenizer.train(ties(), kind=kind, vocab_size=900).to_json().encode()).hexdigest()


def test_training_is_deterministic() -> None:
    here = [fingerprint("word"), fingerprint("bpe")]
    assert here == [fingerprint("word"), fingerprint("bpe")]
    code = "import test_tokenizer as t; print(t.fingerprint('word'), t.fingerprint('bpe'))"
    root = Path(__file__).resolve().parents[1]
    for seed, threads in (("1", "1"), ("77", "4")):
        environment = dict(os.environ, PYTHONHASHSEED=seed, RAYON_NUM_THREADS=threads,
                           PYTHONPATH=os.pathsep.join([str(root), str(root / "tests")]))
        run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True,
                             check=True)
        assert run.stdout.split() == here
    shuffled = Tokenizer.train(ties()[::-1], vocab_size=900)  # nor does the order of the texts matter
    assert hashlib.sha256(shuffled.to_json().encode()).hexdigest() == here[0]


@pytest.mark.parametrize("arguments, words", [
    (dict(texts=["a"], kind="char"), "kind='char'"),
    (dict(texts=["a"], vocab_size=4), "vocab_size=4"),
    (dict(texts=["a"], kind="bpe", vocab_size=100), "at least 260"),
    (dict(texts=["a"], min_count=0), "min_count=0"),
    (dict(texts=["...", ""]), "no word"),
    (dict(texts=["a b"], min_count=2), "no word"),
    (dict(texts=["", " "], kind="bpe"), "no word"),
    (dict(texts=["a", 3]), "text 1 is a int"),
    (dict(texts="a dog"), "one string"),
])
def test_training_refuses(arguments: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Tokenizer.train(**arguments)


# files and special tokens --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_json_round_trip(kind: str, tmp_path: Path) -> None:
    tokenizer = KINDS[kind]
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    for again in (Tokenizer.from_json(tokenizer.to_json()), Tokenizer.from_file(tmp_path / "tokenizer.json"),
                  pickle.loads(pickle.dumps(tokenizer)), copy.deepcopy(tokenizer)):
        assert again.to_json() == tokenizer.to_json()
        assert again.specials == tokenizer.specials
        ids = again.encode("a dog <s> [SEP] running")
        assert ids == tokenizer.encode("a dog <s> [SEP] running")
        assert again.words(ids) == tokenizer.words(ids)


def test_bert_file_has_its_extras_switched_off(tmp_path: Path) -> None:
    engine = tokenizers.Tokenizer.from_str(KINDS["wordpiece"].to_json())
    bos, eos = engine.token_to_id("[CLS]"), engine.token_to_id("[SEP]")
    engine.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", bos), ("[SEP]", eos)])
    engine.enable_truncation(3)
    engine.enable_padding(length=64)
    engine.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_file(tmp_path / "tokenizer.json")
    assert tokenizer.encode("a dog is running") == KINDS["wordpiece"].encode("a dog is running")
    assert len(tokenizer.encode("a dog is running")) > 3
    assert (tokenizer.bos_id, tokenizer.eos_id) == (bos, eos)
    batch = ["a dog", "two men wearing red jackets", ""]
    assert tokenizer.encode_batch(batch) == [tokenizer.encode(text) for text in batch]
    assert engine.truncation is not None  # the engine given is not touched


def plain(*tokens: str, special: tuple[str, ...] = ()) -> Tokenizer:
    engine = tokenizers.Tokenizer(models.WordLevel({token: id for id, token in enumerate(tokens)}))
    engine.add_special_tokens([AddedToken(token, special=True) for token in special])
    return Tokenizer(engine)


@pytest.mark.parametrize("tokens, special, roles", [
    (("a", "<PAD>", "<Unk>", "<START>", "<END>"), (), (1, 2, 3, 4)),
    (("<pad>", "<s>", "</s>", "<unk>", "a"), (), (0, 3, 1, 2)),
    (("<|startoftext|>", "<|endoftext|>"), (), (1, None, 0, 1)),  # PAD falls back to EOS
    (("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[BOS]", "[EOS]"), (), (0, 1, 5, 6)),
    (("<S>", "<s>", "</s>"), (), (2, None, 1, 2)),  # exact case first
    (("[BOS]", "[EOS]", "<s>", "</s>"), ("<s>", "</s>"), (3, None, 2, 3)),  # declared special tokens first
    (("x", "[PAD]", "<|PAD|>", "[BOS]", "[EOS]"), (), (1, None, 3, 4)),
])
def test_special_tokens_by_name(tokens: tuple[str, ...], special: tuple[str, ...],
                                roles: tuple[int | None, ...]) -> None:
    tokenizer = plain(*tokens, special=special)
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id) == roles
    assert tokenizer.specials >= {role for role in roles if role is not None}


def test_declared_special_tokens_are_special() -> None:
    tokenizer = plain("a", "[BOS]", "[EOS]", "[MASK]", "b", special=("[MASK]",))
    assert tokenizer.specials == {1, 2, 3}
    assert tokenizer.decode([1, 0, 3, 4, 2]) == "a b"
    engine = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    engine.add_tokens([AddedToken("zebra", special=False)])
    added = Tokenizer(engine)
    assert added.specials == {1, 2, 3} and added.vocab_size == 6 and added.decode([0, 5]) == "a zebra"


def test_missing_special_tokens() -> None:
    tokenizer = plain("a", "b", "<pad>", "[MASK]", special=("[MASK]",))
    assert tokenizer.pad_id == 2 and tokenizer.unk_id is None
    with pytest.raises(InputError, match=r"no BOS token .*\[CLS\].*; its special tokens: <pad>, \[MASK\]"):
        tokenizer.bos_id
    with pytest.raises(InputError, match="no EOS token"):
        tokenizer.eos_id
    with pytest.raises(InputError, match="no EOS token .* none"):
        plain("a").pad_id


def test_vocab_size_covers_the_highest_id() -> None:
    tokenizer = Tokenizer(tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 9, "[EOS]": 4})))
    assert tokenizer.vocab_size == 10
    assert tokenizer.decode([0, 9, 4]) == "a b"
    with pytest.raises(InputError, match="ids 5 are not in the vocabulary"):
        tokenizer.decode([0, 5])


@pytest.mark.parametrize("ids", [[4, -1], [4, 10**6], [4, 2**40], [1.5], ["a"], 7, [[4, 5]]])
def test_ids_out_of_range(ids: object) -> None:
    for method in (KINDS["word"].decode, KINDS["word"].words):
        with pytest.raises(InputError):
            method(ids)  # type: ignore[arg-type]


def test_ids_may_be_arrays_and_tensors() -> None:
    tokenizer = KINDS["byte_level"]
    ids = tokenizer.encode("a black dog")
    for given_ids in (np.array(ids), torch.tensor(ids), tuple(ids), iter(ids)):
        assert tokenizer.decode(given_ids) == "a black dog"
    assert tokenizer.words(torch.tensor(ids)) == tokenizer.words(ids)


@pytest.mark.parametrize("content", [b"{", b"[1, 2]", b'{"model": 3}', b"\xff\xfe\x00", b"",
                                     json.dumps({"version": "1.0", "model": {"type": "Magic"}}).encode()])
def test_bad_files_are_named(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_bytes(content)
    with pytest.raises(InputError) as caught:
        Tokenizer.from_file(file)
    assert str(caught.value).startswith(str(file)) and "\n" not in str(caught.value)
    with pytest.raises(InputError, match="no such file"):
        Tokenizer.from_file(tmp_path / "none.json")


def test_encode_refuses_what_is_no_text() -> None:
    with pytest.raises(InputError, match="NoneType"):
        KINDS["word"].encode(None)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="one string"):
        KINDS["word"].encode_batch("a dog")


def test_published_style_clip_decoder_is_mended() -> None:
    tokenizer = KINDS["clip_byte"]
    ids = tokenizer.encode("a naïve dog 猫 running")
    assert tokenizer.decode(ids) == "a naïve dog 猫 running"
    assert "</w>" in "".join(tokenizer._tokens[id] for id in ids)
    again = Tokenizer.from_json(tokenizer.to_json())
    assert again.to_json() == tokenizer.to_json()
