"""Published tokenizers: ids, text and words as transformers and open_clip make them; roles; rows of one length."""

from __future__ import annotations

import copy
import gzip
import html
import json
import pickle
import re
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ftfy
import open_clip
import pytest
import tokenizers
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from transformers import BertTokenizerFast, CLIPTokenizerFast, GPT2TokenizerFast

from minivl.errors import InputError
from minivl.text.published import BERT, read_tokenizer
from minivl.text.tokenizer import Tokenizer, Word

CLIP_FILE = Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
CAPTIONS = [
    "A black dog is running after a white dog in the snow .",
    "Two men wearing red jackets are climbing an icy mountain, aren't they?",
    "The boy's t-shirt says 'hello'; doesn't it? We'll see: I've 3 girls & they're 25.",
    "A naïve café owner pours coffee (very hot) for Zoë, Ångström and señor Muñoz",
    "children running, jumping, unbelievable shouting at the playgrounds!!! 2,000 of 1999-2004",
    "一隻黑狗在雪地上奔跑 and the 猫 sleeps; 東京タワー ; 서울의 밤",
    "мальчик бежит по снегу, Ёлка и йод; παιδιά στην Αθήνα ΟΔΥΣΣΕΥΣ",
    "🐶 a dog 👩‍👧 and ☃ on 🏳️‍🌈 flags … “quoted” — dashes – and ‘single’",
    "हिंदी में एक लड़का עברית عربى ไทย",
]
ODD = [
    "", " ", "\n\t ", "a", "'", "''s", "'S 'LL don'T", "a  b\u00a0c\u3000d\u2028e", "a\x00b\x07c\ufffd\x7f", "\ufeffa",
    "x" * 99, "y" * 101, "supercalifragilistic" * 40, "ab" * 700, "ÀÉÎõü ǅ ß ﬁ İstanbul ıI ſ 'ſ Ω",
    "e\u0301 a\u0345! \u0345",
    "½ ² Ⅷ ٣٤ ₂ ①", "&amp;lt; &lt;b&gt; &#39;s &nbsp; &unknown; &amp;amp; &eacute; &#xD800; &#0;",
    "[CLS] a [SEP] [MASK] [PAD]", "<|endoftext|> b <|startoftext|>", "<|endoftext|>! a",
    "a</w>b </w>", "##ing ## #", "Ġa ĊĠ",
    "Rock'n'roll's o'clock", "C++/C#; foo@bar.com http://x.y/z?a=b", "\u202eabc\u200b\u200d\u00ad",
    "𝒜𝓫 𠀀 \U0001f468\u200d\U0001f469",
    "I 'm n't 's ' ve . , ? !", "a\r\nb\rc", "_under_score_",
]
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())


def encoded(reference: Any, texts: list[str]) -> list[list[int]]:
    """Ids of transformers' tokenizer, special tokens neither added nor recognised in the text."""
    return reference(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def compare(ours: Tokenizer, reference: Any, texts: list[str]) -> None:
    """Ids and decoded texts are those of a tokenizer of transformers."""
    ids = ours.encode_batch(texts)
    assert ids == encoded(reference, texts)
    for one in ids:
        framed = [ours.bos_id, *one, ours.eos_id]
        assert ours.decode(framed) == reference.decode(framed, skip_special_tokens=True)


def check_words(tokenizer: Tokenizer, ids: list[int]) -> None:
    """Words are the decoded text up to white space, in order, and hold no special token."""
    words = tokenizer.words(ids)
    assert "".join("".join(word.text for word in words).split()) == "".join(tokenizer.decode(ids).split())
    stop = 0
    for word in words:
        assert word.text and stop <= word.start < word.stop <= len(ids)
        assert not tokenizer.specials & set(ids[word.start:word.stop])
        stop = word.stop


# the files, as they are published --------------------------------------------------------------------------------


def write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def write_bert(folder: Path, texts: list[str], size: int, *, lowercase: bool = True) -> Path:
    engine = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    engine.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    engine.train_from_iterator(texts, trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=["[PAD]", "[unused0]", *list(BERT.values())[:2], "[CLS]", "[MASK]"],
        show_progress=False))
    vocab = engine.get_vocab()
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(sorted(vocab, key=vocab.__getitem__)) + "\n", encoding="utf-8")
    return folder


def write_byte_pairs(folder: Path, vocab: dict[str, int], merges: list[tuple[str, str]]) -> Path:
    folder.mkdir(exist_ok=True)
    write_json(folder / "vocab.json", vocab)
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def write_gpt2(folder: Path, texts: list[str], size: int) -> Path:
    engine = tokenizers.Tokenizer(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size, initial_alphabet=BYTES, show_progress=False))
    model = json.loads(engine.to_str())["model"]
    vocab = {**model["vocab"], "<|endoftext|>": len(model["vocab"])}  # the last one, as in GPT-2's file
    return write_byte_pairs(folder, vocab, [tuple(merge) for merge in model["merges"]])


@pytest.fixture(scope="module")
def openai() -> SimpleTokenizer:
    return SimpleTokenizer(str(CLIP_FILE))


@pytest.fixture(scope="module")
def clip_file() -> Tokenizer:
    return Tokenizer.from_file(CLIP_FILE)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, openai: SimpleTokenizer) -> dict[str, Path]:
    """One folder per kind; CLIP's holds the real vocabulary, as Hugging Face's repositories spell it."""
    folder = tmp_path_factory.mktemp("published")
    respelled = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocab = {respelled.get(token, token): id for token, id in openai.encoder.items()}
    cased = write_bert(folder / "cased", CAPTIONS, 400, lowercase=False)
    write_json(cased / "tokenizer_config.json", {"do_lower_case": False, "tokenizer_class": "BertTokenizer"})
    return {"bert": write_bert(folder / "bert", CAPTIONS, 400), "cased": cased,
            "gpt2": write_gpt2(folder / "gpt2", CAPTIONS, 500),
            "clip": write_byte_pairs(folder / "clip", vocab, list(openai.bpe_ranks))}


@pytest.fixture(scope="module")
def pairs(folders: dict[str, Path]) -> dict[str, tuple[Tokenizer, Any]]:
    """Ours and transformers' tokenizer of the same folder."""
    classes = {"bert": BertTokenizerFast, "cased": BertTokenizerFast, "gpt2": GPT2TokenizerFast,
               "clip": CLIPTokenizerFast}
    return {kind: (Tokenizer.from_file(folders[kind]), classes[kind].from_pretrained(folders[kind]))
            for kind in classes}


KINDS = ["bert", "cased", "gpt2", "clip"]
LETTERS = st.one_of(st.characters(exclude_categories=["Cs", "Cn"]),
                    st.sampled_from("abcst'  .,!#&;é猫\u0301\u0345ſ\n1９"))
FRAGMENTS = st.sampled_from([*" ".join(CAPTIONS).split(), *ODD[4:16], "&lt;", "&amp;amp;", "'s", "n't", "[SEP]",
                             "</w>"])
TEXTS = st.one_of(st.text(LETTERS, max_size=30), st.lists(FRAGMENTS, max_size=8).map(" ".join),
                  st.lists(st.one_of(FRAGMENTS, LETTERS), max_size=12).map("".join))


# transformers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_texts_are_those_of_transformers(kind: str, pairs: dict[str, tuple[Tokenizer, Any]]) -> None:
    ours, reference = pairs[kind]
    assert ours.vocab_size == len(reference)
    assert ours.specials == set(reference.all_special_ids)
    compare(ours, reference, [*CAPTIONS, *ODD])
    pieces = [len(ids) for ids in ours.encode_batch(CAPTIONS)]
    assert max(pieces) > 20 and len({id for ids in ours.encode_batch(CAPTIONS) for id in ids}) > 90


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, deadline=None)
@given(text=TEXTS)
def test_ids_and_texts_of_random_unicode(kind: str, pairs: dict[str, tuple[Tokenizer, Any]], text: str) -> None:
    compare(*pairs[kind], [text, text.upper(), f" {text}"])


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_decoding_any_ids(kind: str, pairs: dict[str, tuple[Tokenizer, Any]], data: st.DataObject) -> None:
    ours, reference = pairs[kind]
    some = st.one_of(st.integers(0, ours.vocab_size - 1), st.integers(0, 600).map(lambda id: id % ours.vocab_size),
                     st.sampled_from(sorted(ours.specials)))
    ids = data.draw(st.lists(some, max_size=20))
    assert ours.decode(ids) == reference.decode(ids, skip_special_tokens=True)
    check_words(ours, ids)


def test_roles_of_bare_files(pairs: dict[str, tuple[Tokenizer, Any]]) -> None:
    for kind in KINDS:
        ours, reference = pairs[kind]
        bos = reference.cls_token_id if kind in ("bert", "cased") else reference.bos_token_id
        eos = reference.sep_token_id if kind in ("bert", "cased") else reference.eos_token_id
        assert (ours.bos_id, ours.eos_id) == (bos, eos)
        assert ours.unk_id == (reference.unk_token_id if kind in ("bert", "cased") else None)
        assert ours.pad_id == (reference.pad_token_id if kind != "gpt2" else eos)
    assert pairs["gpt2"][0].bos_id == pairs["gpt2"][0].eos_id == pairs["gpt2"][0].vocab_size - 1
    assert pairs["cased"][0].encode("Zoë") != pairs["cased"][0].encode("zoe")
    assert pairs["bert"][0].encode("Zoë") == pairs["bert"][0].encode("zoe")


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_folder_of_transformers(kind: str, pairs: dict[str, tuple[Tokenizer, Any]], tmp_path: Path) -> None:
    """tokenizer.json with its config: the file wins over vocabularies beside it."""
    pairs[kind][1].save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").is_file() and (tmp_path / "tokenizer_config.json").is_file()
    (tmp_path / "vocab.txt").write_text("[UNK]\na\n")
    ours = Tokenizer.from_file(tmp_path)
    compare(ours, type(pairs[kind][1]).from_pretrained(tmp_path), [*CAPTIONS, *ODD])
    assert (ours.bos_id, ours.eos_id, ours.specials) == (pairs[kind][0].bos_id, pairs[kind][0].eos_id,
                                                         pairs[kind][0].specials)
    alone = Tokenizer.from_file(tmp_path / "tokenizer.json")
    assert alone.encode_batch(CAPTIONS) == ours.encode_batch(CAPTIONS)


@pytest.mark.parametrize("options", [
    {"do_lower_case": False}, {"do_lower_case": True, "strip_accents": False}, {"tokenize_chinese_chars": False},
    {"do_lower_case": False, "strip_accents": True}, {"clean_up_tokenization_spaces": True}, {"strip_accents": None}])
def test_bert_options(options: dict[str, Any], folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copy(folders["bert"] / "vocab.txt", tmp_path)
    write_json(tmp_path / "tokenizer_config.json", options)
    ours = Tokenizer.from_file(tmp_path / "vocab.txt")
    compare(ours, BertTokenizerFast.from_pretrained(tmp_path), [*CAPTIONS, *ODD])
    plain, different = Tokenizer.from_file(folders["bert"]), options != {"strip_accents": None}
    ids = [plain.encode_batch(CAPTIONS), plain.decode(plain.encode(CAPTIONS[2]))]
    assert ([ours.encode_batch(CAPTIONS), ours.decode(plain.encode(CAPTIONS[2]))] != ids) == different


def test_tidied_spaces_keep_words(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copy(folders["bert"] / "vocab.txt", tmp_path)
    write_json(tmp_path / "tokenizer_config.json", {"clean_up_tokenization_spaces": True})
    ours, plain = Tokenizer.from_file(tmp_path), Tokenizer.from_file(folders["bert"])
    ids = ours.encode("the boy's dog")
    count = len(ours.encode("boy"))
    assert plain.decode(ids) == "the boy ' s dog" and ours.decode(ids) == "the boy's dog"
    assert ours.words(ids)[1] == Word("boy's", 1, 1 + count + 2)
    assert plain.words(ids)[1:4] == [Word("boy", 1, 1 + count), Word("'", 1 + count, 2 + count),
                                     Word("s", 2 + count, 3 + count)]


def test_gpt2_prefix_space(folders: dict[str, Path], tmp_path: Path) -> None:
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(folders["gpt2"] / name, tmp_path / f"gpt2-{name}")
    write_json(tmp_path / "tokenizer_config.json", {"add_prefix_space": True})
    ours = Tokenizer.from_file(tmp_path / "gpt2-vocab.json")
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(folders["gpt2"] / name, tmp_path / name)
    compare(ours, GPT2TokenizerFast.from_pretrained(tmp_path), CAPTIONS)
    assert ours.encode("dog") == Tokenizer.from_file(folders["gpt2"]).encode(" dog")


# tokens beside a vocabulary --------------------------------------------------------------------------------------


def blip(style: str, size: int) -> dict[str, Any]:
    """The files beside BERT's vocabulary that add BLIP's two tokens, in the old and in the new form."""
    named = {"bos_token": "[DEC]", "additional_special_tokens": ["[ENC]"], "cls_token": {"content": "[CLS]"}}
    if style == "map":
        return {"special_tokens_map.json": {**named, "pad_token": "[PAD]"},
                "added_tokens.json": {"[ENC]": size + 1, "[DEC]": size}, "tokenizer_config.json": {}}
    if style == "unplaced":
        return {"special_tokens_map.json": named}
    decoder = {str(size + place): {"content": token, "lstrip": False, "normalized": False, "rstrip": False,
                                   "single_word": False, "special": True}
               for place, token in enumerate(("[DEC]", "[ENC]"))}
    return {"tokenizer_config.json": {"added_tokens_decoder": decoder, "bos_token": "[DEC]"},
            "special_tokens_map.json": {"bos_token": "[void]"}}


@pytest.mark.parametrize("style", ["map", "unplaced", "decoder"])
def test_tokens_behind_the_vocabulary(style: str, folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copy(folders["bert"] / "vocab.txt", tmp_path)
    size = Tokenizer.from_file(tmp_path).vocab_size
    for name, content in blip(style, size).items():
        write_json(tmp_path / name, content)
    ours, reference = Tokenizer.from_file(tmp_path), BertTokenizerFast.from_pretrained(tmp_path)
    assert ours.vocab_size == len(reference) == size + 2
    assert ours.bos_id == reference.bos_token_id == size and ours.eos_id == reference.sep_token_id
    assert ours.decode([size, size + 1, *ours.encode("a dog")]) == "a dog"
    assert {size, size + 1} <= ours.specials
    compare(ours, reference, CAPTIONS)


def test_an_added_token_that_is_not_special(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copy(folders["bert"] / "vocab.txt", tmp_path)
    size = Tokenizer.from_file(tmp_path).vocab_size
    write_json(tmp_path / "added_tokens.json", {"zyzzyva": size})
    ours, reference = Tokenizer.from_file(tmp_path), BertTokenizerFast.from_pretrained(tmp_path)
    assert ours.encode("a zyzzyva dog")[1] == size and size not in ours.specials
    assert ours.words(ours.encode("a zyzzyva dog"))[1] == Word("zyzzyva", 1, 2)
    compare(ours, reference, ["a zyzzyva dog", "zyzzyvas ZYZZYVA"])


def test_named_tokens_out_of_the_vocabulary(folders: dict[str, Path], tmp_path: Path) -> None:
    """They are put behind it, in the order of transformers, not that of the file."""
    shutil.copy(folders["bert"] / "vocab.txt", tmp_path)
    size = Tokenizer.from_file(tmp_path).vocab_size
    write_json(tmp_path / "special_tokens_map.json", {"pad_token": "[p]", "extra_special_tokens": ["[x]", "[y]"],
                                                      "eos_token": {"content": "[e]"}, "bos_token": "[b]"})
    ours, reference = Tokenizer.from_file(tmp_path), BertTokenizerFast.from_pretrained(tmp_path)
    assert (ours.bos_id, ours.eos_id, ours.pad_id) == (size, size + 1, size + 2)
    assert [reference.convert_tokens_to_ids(token) for token in ("[b]", "[e]", "[p]", "[x]", "[y]")] == [
        ours._engine.token_to_id(token) for token in ("[b]", "[e]", "[p]", "[x]", "[y]")] == [
        *range(size, size + 5)]
    compare(ours, reference, CAPTIONS)


def test_names_beside_gpt2(folders: dict[str, Path], tmp_path: Path) -> None:
    """The unknown token that GPT-2's files name is its end token, which no text ever becomes."""
    shutil.copytree(folders["gpt2"], tmp_path, dirs_exist_ok=True)
    end = Tokenizer.from_file(tmp_path).eos_id
    decoder = {str(end + 1): {"content": "<start>", "special": False}, str(end + 2): {"content": "<b>"}}
    write_json(tmp_path / "tokenizer_config.json", {
        "added_tokens_decoder": decoder, "bos_token": "<start>", "eos_token": "<|endoftext|>", "add_bos_token": False,
        "unk_token": {"__type": "AddedToken", "content": "<|endoftext|>"}, "pad_token": None})
    ours, reference = Tokenizer.from_file(tmp_path), GPT2TokenizerFast.from_pretrained(tmp_path)
    assert (ours.bos_id, ours.eos_id, ours.pad_id, ours.unk_id) == (end + 1, end, end, None)
    assert ours.specials == set(reference.all_special_ids) == {end, end + 1}  # "<start>" too: it has a name
    compare(ours, reference, [*CAPTIONS, "a <start>", "<b>old</b>"])
    assert end + 2 in ours.encode("<b>old</b>") and end + 1 not in ours.encode("a <start>")


def test_with_added_and_with_roles(pairs: dict[str, tuple[Tokenizer, Any]]) -> None:
    plain = pairs["bert"][0]
    size = plain.vocab_size
    with pytest.raises(InputError, match=f"BOS is id {size}, which is not in the vocabulary"):
        plain.with_roles({"BOS": size})
    blip_like = plain.with_added({"[ENC]": size + 1, "[DEC]": size}).with_roles({"BOS": size})
    assert (blip_like.vocab_size, blip_like.bos_id, blip_like.eos_id) == (size + 2, size, plain.eos_id)
    assert blip_like.specials == plain.specials | {size, size + 1}
    assert plain.with_roles({"EOS": 9}).with_added({"[DEC]": size}).eos_id == 9
    assert blip_like.encode("[DEC] a dog") == plain.encode("[DEC] a dog")  # a name written in a caption is text
    assert blip_like.decode([size, *plain.encode("a dog"), plain.eos_id]) == "a dog"
    assert (plain.vocab_size, plain.bos_id) == (size, plain._tokens and pairs["bert"][1].cls_token_id)
    for tokens, words in (({"[DEC]": size + 1}, "no holes"), ({"[DEC]": 5}, "which is that of"),
                          ({"[CLS]": size}, "the vocabulary has it as"), ({"": size}, "cannot have id"),
                          ({"[DEC]": size, "[ENC]": size}, "which is that of '.DEC.'")):
        with pytest.raises(InputError, match=words):
            plain.with_added(tokens)


def test_roles_win_over_spellings(pairs: dict[str, tuple[Tokenizer, Any]], folders: dict[str, Path]) -> None:
    plain = pairs["gpt2"][0]
    end = plain.eos_id
    ours = Tokenizer.from_json(plain.to_json(), roles={"BOS": end, "EOS": end, "PAD": 7})
    assert (ours.bos_id, ours.eos_id, ours.pad_id, ours.unk_id) == (end, end, 7, None)
    assert ours.specials == {7, end} and ours.decode([end, 7, *ours.encode("a dog"), 7]) == "a dog"
    assert ours.to_json() == plain.to_json()
    for again in (pickle.loads(pickle.dumps(ours)), copy.deepcopy(ours), ours.with_roles({}),
                  Tokenizer(ours._engine, roles={"BOS": end, "PAD": 7}),
                  Tokenizer.from_file(folders["gpt2"], roles={"PAD": 7}),
                  read_tokenizer(folders["gpt2"], roles={"PAD": 7})):
        assert again is not None
        assert (again.bos_id, again.eos_id, again.pad_id, again.specials) == (end, end, 7, {7, end})
    moved = ours.with_roles({"EOS": 3, "UNK": torch.tensor(4)})  # type: ignore[dict-item]
    assert (moved.bos_id, moved.eos_id, moved.pad_id, moved.unk_id) == (end, 3, 7, 4)
    assert (ours.eos_id, ours.unk_id) == (end, None)
    with pytest.raises(InputError, match="no BOS token"):
        Tokenizer.from_json(plain.to_json()).bos_id


@pytest.mark.parametrize("roles, words", [
    ({"BOS": 10**6}, "BOS is id 1000000, which is not in the vocabulary"), ({"EOS": -1}, "EOS is id -1"),
    ({"SEP": 1}, "'SEP' is unknown; there are PAD, UNK, BOS, EOS"), ({"PAD": "a"}, "PAD is 'a', an id is needed"),
    ({"PAD": None}, "PAD is None")])
def test_roles_that_cannot_be(roles: dict[str, Any], words: str, folders: dict[str, Path]) -> None:
    with pytest.raises(InputError, match=words) as caught:
        Tokenizer.from_file(folders["bert"] / "vocab.txt", roles=roles)
    assert str(caught.value).startswith(str(folders["bert"] / "vocab.txt"))


# CLIP's own file -------------------------------------------------------------------------------------------------


def decoded(openai: SimpleTokenizer, ids: list[int]) -> str:
    """CLIP's own decoding; it keeps the space after the last word."""
    return openai.decode([id for id in ids if id < 49406]).strip()


def test_clip_file(clip_file: Tokenizer, openai: SimpleTokenizer) -> None:
    assert (clip_file.vocab_size, clip_file.bos_id, clip_file.eos_id) == (49408, 49406, 49407)
    assert clip_file.specials == {49406, 49407} and clip_file.unk_id is None
    for text in [*CAPTIONS, *ODD]:
        text = ftfy.fix_text(text)
        ids = clip_file.encode(text)
        assert ids == openai.encode(text), text
        assert clip_file.decode([49406, *ids, 49407]) == decoded(openai, ids)
    names = "<|startoftext|> a <|endoftext|>"  # OpenAI's own names, which open_clip spells otherwise
    assert clip_file.encode(names) == openai.encode(names)


def test_clip_cleans_as_openai(clip_file: Tokenizer, folders: dict[str, Path]) -> None:
    plain = Tokenizer.from_file(folders["clip"])
    assert clip_file.encode("A  Dog &amp;amp; a&#39;s\tCAT") == plain.encode("a dog & a's cat")
    assert plain.encode("&amp;") != plain.encode("&")
    assert clip_file.encode("ΟΔΥΣΣΕΥΣ") == plain.encode("οδυσσευς")  # the last sigma, as Python lower-cases it
    assert clip_file.encode("\u0345!") == plain.encode("!")
    for again in (Tokenizer.from_json(clip_file.to_json()), pickle.loads(pickle.dumps(clip_file)),
                  clip_file.with_roles({"PAD": 0}), clip_file.with_added({"[X]": 49408})):
        assert again.encode("A &amp;amp; B") == clip_file.encode("a & b") != plain.encode("A &amp;amp; B")
    with pytest.raises(Exception, match="expected"):  # other readers would make other ids: they cannot read it at all
        tokenizers.Tokenizer.from_str(clip_file.to_json())


def test_unknown_cleaning() -> None:
    engine = tokenizers.Tokenizer(models.WordLevel({"a": 0, "minivl": 1}))
    text = Tokenizer(engine, clean="openai").to_json()
    assert Tokenizer.from_json(text).to_json() == text and Tokenizer(engine).encode("minivl") == [1]
    assert Tokenizer.from_json(Tokenizer(engine).to_json()).to_json() == Tokenizer(engine).to_json()
    for named in ('"html"', "{}", "3", "[1]"):
        with pytest.raises(InputError, match="^x.json: clean=.* is unknown; there is openai"):
            Tokenizer.from_json(text.replace('"openai"', named), source="x.json")
    with pytest.raises(InputError, match="no usable model"):
        Tokenizer.from_json('{"minivl": 3, ' + Tokenizer(engine).to_json()[1:])


@settings(max_examples=400, deadline=None)
@given(text=TEXTS)
def test_clip_file_on_random_unicode(clip_file: Tokenizer, openai: SimpleTokenizer, text: str) -> None:
    text = ftfy.fix_text(text)
    cleaned = html.unescape(html.unescape(text)).lower()
    assume(ftfy.fix_text(text) == text and "<start_of_text>" not in cleaned and "<end_of_text>" not in cleaned)
    assume(all(unicodedata.category(letter) != "Cn" for letter in cleaned))  # see test_every_character_alone
    ids = clip_file.encode(text)
    assert ids == openai.encode(text)
    assert clip_file.decode(ids) == decoded(openai, ids)
    check_words(clip_file, [49406, *ids, 49407])


@settings(max_examples=100, deadline=None)
@given(ids=st.lists(st.one_of(st.integers(0, 49407), st.integers(0, 600)), max_size=20))
def test_clip_file_decodes_any_ids(clip_file: Tokenizer, openai: SimpleTokenizer, ids: list[int]) -> None:
    assert clip_file.decode(ids) == decoded(openai, ids)
    check_words(clip_file, ids)


def test_every_character_alone(clip_file: Tokenizer, openai: SimpleTokenizer) -> None:
    """Letters, numbers and others are told apart alike, also beside a letter, a digit, a mark and an apostrophe.

    Not compared: characters that this Python's Unicode does not know. The engine's is newer, that of open_clip's
    regular expressions (Unicode 17) the newest: letters that it has besides are no letters for us.
    """
    kinds = {code: unicodedata.category(chr(code)) for code in range(0x110000)}
    characters = [chr(code) for code, kind in kinds.items() if kind not in ("Cn", "Cs", "Co")
                  and (kind != "Lo" or code % 50 == 0)]  # "Lo" has 120,000 ideographs and syllables
    texts = [ftfy.fix_text(f"a{one}1{one}!{one}'{one}b {one}") for one in characters]
    assert len(texts) > 15000
    ids = clip_file.encode_batch(texts)
    assert [text for text, one in zip(texts, ids) if one != openai.encode(text)] == []


@pytest.mark.shared
def test_clip_file_on_all_captions_of_coco(shared: Path, clip_file: Tokenizer, openai: SimpleTokenizer) -> None:
    listed = json.loads((shared / "data/coco/captions_val2017.json").read_text())["annotations"]
    texts = [one["caption"] for one in listed]
    assert len(texts) == 25014
    ids = clip_file.encode_batch(texts)
    assert ids == [openai.encode(text) for text in texts]
    assert [clip_file.decode(one) for one in ids] == [decoded(openai, one) for one in ids]
    rows = clip_file.padded(texts, 16)
    assert torch.equal(rows, openai(texts, 16)) and int((rows[:, -1] == 49407).sum()) > 1000


@pytest.mark.shared
def test_vocabularies_of_real_captions(shared: Path, tmp_path: Path, folders: dict[str, Path]) -> None:
    """Word pieces and byte pairs learned from half of COCO's captions, on the others."""
    listed = json.loads((shared / "data/coco/captions_val2017.json").read_text())["annotations"]
    texts = [one["caption"] for one in listed]
    write_bert(tmp_path / "bert", [*texts[::2], *CAPTIONS], 4000)
    write_gpt2(tmp_path / "gpt2", [*texts[::2], *CAPTIONS], 4000)
    for folder, kind in ((tmp_path / "bert", BertTokenizerFast), (tmp_path / "gpt2", GPT2TokenizerFast),
                         (folders["clip"], CLIPTokenizerFast)):
        ours = Tokenizer.from_file(folder)
        assert ours.vocab_size > 3500
        compare(ours, kind.from_pretrained(folder), [*texts[1::2], *ODD])
        words = 0
        for text in texts[1::50]:
            ids = ours.encode(text)
            if re.fullmatch("[A-Za-z ]+[.]?", text) and ours.unk_id not in ids:
                said = text if kind is GPT2TokenizerFast else text.lower()
                assert [word.text for word in ours.words(ids)] == re.findall("[A-Za-z]+|[.]", said)
                words += len(ids)
        assert words > 2000


# words -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*KINDS, "file"])
def test_words_of_captions(kind: str, pairs: dict[str, tuple[Tokenizer, Any]], clip_file: Tokenizer) -> None:
    """Each word with the positions of its pieces; pieces are counted by encoding the word alone."""
    tokenizer = clip_file if kind == "file" else pairs[kind][0]
    captions = ["a black dog is running after white jackets in the snow",
                "two unbelievable children climbing mountains",
                "snowing mountains colors" if kind in ("bert", "cased") else "zyzzyva xylophonists 猫", "a"]
    split = 0
    for caption in captions:
        ids, expected = [tokenizer.bos_id], []
        for word in caption.split():
            spaced = f" {word}" if kind == "gpt2" and expected else word  # GPT-2 writes the space before a word
            pieces = tokenizer.encode(spaced)
            expected.append(Word(word, len(ids), len(ids) + len(pieces)))
            split += len(pieces) > 1
            ids += pieces
        assert ids[1:] == tokenizer.encode(caption) and tokenizer.unk_id not in ids
        ids += [tokenizer.eos_id, tokenizer.pad_id, tokenizer.pad_id]
        assert tokenizer.words(ids) == expected
        assert tokenizer.decode(ids) == caption
    assert split >= 2  # else this test shows nothing


@pytest.mark.parametrize("kind, caption, expected", [
    ("bert", "the dog, running!", ["the", "dog", ",", "running", "!"]),
    ("gpt2", "the dog, running! the boy's", ["the", "dog", ",", "running", "!", "the", "boy's"]),
    ("clip", "The dog, running!", ["the", "dog", ",", "running", "!"]),
    ("clip", "the boy's t-shirt", ["the", "boy", "'s", "t", "-", "shirt"])])
def test_words_beside_punctuation(kind: str, caption: str, expected: list[str],
                                  pairs: dict[str, tuple[Tokenizer, Any]]) -> None:
    tokenizer = pairs[kind][0]
    words = tokenizer.words(tokenizer.encode(caption))
    assert [word.text for word in words] == expected
    assert [word.start for word in words] == [0, *(word.stop for word in words[:-1])]
    assert words[-1].stop == len(tokenizer.encode(caption))


# rows of one length ----------------------------------------------------------------------------------------------


def test_padded_is_open_clips(clip_file: Tokenizer, openai: SimpleTokenizer, pairs: dict[str, tuple[Tokenizer, Any]]
                              ) -> None:
    texts = [ftfy.fix_text(text) for text in [*CAPTIONS, *ODD, "dog " * 75, "dog " * 76, "dog " * 200]]
    for length in (77, 8, 2):
        rows = clip_file.padded(texts, length)
        assert rows.dtype == torch.int64 and rows.shape == (len(texts), length)
        assert torch.equal(rows, openai(texts, length))
    ours, reference = pairs["clip"]
    texts = [text for text in texts if "<|" not in text]  # transformers takes these names for the tokens
    theirs = reference(texts, padding="max_length", truncation=True, max_length=20, return_tensors="pt")["input_ids"]
    assert torch.equal(ours.padded(texts, 20, pad_id=ours.pad_id), theirs)
    assert ours.padded([], 5).shape == (0, 5)
    assert ours.padded(["dog"], 5, cut=False).tolist() == [[49406, *ours.encode("dog"), 49407, 0, 0]]


@pytest.mark.parametrize("arguments, words", [
    (dict(texts=["a"], length=1), "length=1"), (dict(texts=["a"], length=4, pad_id=49408), "pad_id=49408"),
    (dict(texts=["a"], length=4, pad_id=-1), "pad_id=-1"), (dict(texts="a dog", length=4), "one string"),
    (dict(texts=["a", "a a a"], length=4, cut=False), "text 1 has 3 pieces, 2 fit in a row of 4"),
    (dict(texts=[3], length=4), "text 0 is a int"), (dict(texts=["a\ud800"], length=4), "half a surrogate pair")])
def test_padded_refuses(arguments: dict[str, Any], words: str, clip_file: Tokenizer) -> None:
    with pytest.raises(InputError, match=words):
        clip_file.padded(**arguments)


# bad files -------------------------------------------------------------------------------------------------------


def edit(file: Path, change: Callable[[Any], Any]) -> Path:
    """Change a file's JSON, its lines or its bytes."""
    if file.suffix == ".json":
        write_json(file, change(json.loads(file.read_text(encoding="utf-8"))))
    elif file.suffix == ".txt":
        file.write_text("\n".join(change(file.read_text(encoding="utf-8").split("\n"))), encoding="utf-8")
    else:
        file.write_bytes(change(file.read_bytes()))
    return file


def packed(change: Callable[[list[str]], list[str]]) -> Callable[[bytes], bytes]:
    return lambda data: gzip.compress("\n".join(change(gzip.decompress(data).decode().split("\n"))).encode(), 1)


BAD: list[tuple[str, str, Callable[[Any], Any], str]] = [
    ("bert", "vocab.txt", lambda lines: [*lines[:50], lines[9], *lines[50:]], "has '.*' twice .entries 9 and 50."),
    ("bert", "vocab.txt", lambda lines: [*lines[:50], "", *lines[50:]], "line 51 is empty"),
    ("bert", "vocab.txt", lambda lines: ["a", "b", ""], "no vocabulary of word pieces: it has no .UNK."),
    ("bert", "vocab.txt", lambda lines: [""], "has no .UNK."),
    ("gpt2", "vocab.json", lambda vocab: {token: id for token, id in vocab.items() if id != 400}, "no token of id 400"),
    ("gpt2", "vocab.json", lambda vocab: {**vocab, "twin": 17}, "gives id 17 to .*, twin"),
    ("gpt2", "vocab.json", lambda vocab: {**vocab, "far": 10**9}, "has no token of id 501"),
    ("gpt2", "vocab.json", lambda vocab: {token: id + 1 for token, id in vocab.items()}, "no token of id 0"),
    ("gpt2", "vocab.json", lambda vocab: {**vocab, "x": "1"}, "an object of tokens and their ids"),
    ("gpt2", "vocab.json", lambda vocab: {**vocab, "x": True}, "an object of tokens and their ids"),
    ("gpt2", "vocab.json", lambda vocab: list(vocab), "an object of tokens and their ids"),
    ("gpt2", "vocab.json", lambda vocab: {}, "an object of tokens and their ids"),
    ("gpt2", "vocab.json", lambda vocab: {"zq" if token == "Q" else token: id for token, id in vocab.items()},
     "is no byte-level vocabulary: it lacks Q"),
    ("clip", "vocab.json", lambda vocab: {"zq" if token == "Q</w>" else token: id for token, id in vocab.items()},
     "is no byte-level vocabulary: it lacks Q</w>"),
    ("clip", "vocab.json", lambda vocab: {"</s>" if token == "<|endoftext|>" else token: id
                                          for token, id in vocab.items()}, "it lacks <.endoftext.>"),
    ("gpt2", "merges.txt", lambda lines: [*lines[:5], "Q zq", *lines[5:]],
     "line 6 merges Q and zq, but 'zq' is not in the vocabulary"),
    ("gpt2", "merges.txt", lambda lines: [*lines[:5], "Q Z", *lines[5:]], "line 6 .* 'QZ' is not in the vocabulary"),
    ("gpt2", "merges.txt", lambda lines: [*lines[:5], "a", *lines[5:]], "line 6 is no merge of two tokens: 'a'"),
    ("gpt2", "merges.txt", lambda lines: [*lines[:5], "a b c", *lines[5:]], "line 6 is no merge"),
    ("gpt2", "merges.txt", lambda lines: [*lines[:9], lines[2], *lines[9:]], "line 10 is line 3 again"),
    ("clip", "merges.txt", lambda lines: [*lines[:9], "", *lines[9:]], "line 10 is no merge"),
    ("file", CLIP_FILE.name, lambda data: data[:-100], "is no whole gzip file"),
    ("file", CLIP_FILE.name, lambda data: data[:5000] + bytes(50) + data[5050:], "is no whole gzip file"),
    ("file", CLIP_FILE.name, lambda data: b"PK" + data, "is no whole gzip file"),
    ("file", CLIP_FILE.name, lambda data: b"", "holds 0 merges, 48894 are needed"),
    ("file", CLIP_FILE.name, packed(lambda lines: lines[:40000]), "holds 39999 merges, 48894 are needed"),
    ("file", CLIP_FILE.name, packed(lambda lines: [*lines[:9], "i q\u00b2", *lines[9:]]),
     "line 10 merges i and q\u00b2, but 'q\u00b2' is not"),
    ("file", CLIP_FILE.name, packed(lambda lines: [*lines[:9], lines[5], *lines[9:]]), "has '.*' twice"),
    ("file", CLIP_FILE.name, lambda data: gzip.compress(bytes(40_000_000)), "unpacks to more than 16777216 bytes"),
    ("file", CLIP_FILE.name, lambda data: gzip.compress(b"\xff\xfe"), "is not UTF-8 text"),
]


@pytest.mark.parametrize("kind, name, change, words", BAD, ids=[f"{bad[1]}: {bad[3]}" for bad in BAD])
def test_bad_files(kind: str, name: str, change: Callable[[Any], Any], words: str, folders: dict[str, Path],
                   tmp_path: Path) -> None:
    if kind == "file":
        shutil.copy(CLIP_FILE, tmp_path)
    else:
        shutil.copytree(folders[kind], tmp_path, dirs_exist_ok=True)
    file = edit(tmp_path / name, change)
    with pytest.raises(InputError, match=words) as caught:
        Tokenizer.from_file(tmp_path)
    assert str(caught.value).startswith(str(file)) and "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_token_written_twice(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["gpt2"], tmp_path, dirs_exist_ok=True)
    text = (tmp_path / "vocab.json").read_text(encoding="utf-8")
    (tmp_path / "vocab.json").write_text(text[:-1] + ', "Q": 501}', encoding="utf-8")
    with pytest.raises(InputError, match="vocab.json: has 'Q' twice"):
        Tokenizer.from_file(tmp_path)
    (tmp_path / "vocab.json").write_bytes(b"\xff" + text.encode())
    with pytest.raises(InputError, match="vocab.json: is not UTF-8 text"):
        Tokenizer.from_file(tmp_path)
    (tmp_path / "vocab.json").write_text(text[:1000], encoding="utf-8")
    with pytest.raises(InputError, match="vocab.json: is not JSON"):
        Tokenizer.from_file(tmp_path)


def test_missing_files(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copy(folders["gpt2"] / "vocab.json", tmp_path)
    for path in (tmp_path, tmp_path / "vocab.json"):
        with pytest.raises(InputError, match="vocab.json: needs merges.txt beside it, which is not there"):
            Tokenizer.from_file(path)
    with pytest.raises(InputError, match="vocab.json: needs merges.txt"):
        read_tokenizer(tmp_path, missing_ok=True)
    with pytest.raises(InputError, match="merges.txt: holds only merges: give the vocab.json beside it"):
        Tokenizer.from_file(folders["gpt2"] / "merges.txt")
    shutil.copy(folders["bert"] / "vocab.txt", tmp_path)
    with pytest.raises(InputError, match="holds several tokenizers: give one of vocab.json, vocab.txt") as caught:
        Tokenizer.from_file(tmp_path)
    assert str(caught.value).startswith(str(tmp_path))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="empty: holds no tokenizer .looked for tokenizer.json, .*there is nothing"):
        Tokenizer.from_file(empty)
    (empty / "config.json").write_text("{}")
    with pytest.raises(InputError, match="there is config.json"):
        read_tokenizer(empty)
    assert read_tokenizer(empty, missing_ok=True) is None
    with pytest.raises(InputError, match="no such file"):
        read_tokenizer(tmp_path / "none", missing_ok=True)


@pytest.mark.parametrize("name, content, words", [
    ("tokenizer_config.json", [], "is a list, an object is needed"),
    ("tokenizer_config.json", {"do_lower_case": "yes"}, "do_lower_case is 'yes', true or false is needed"),
    ("tokenizer_config.json", {"clean_up_tokenization_spaces": 1}, "clean_up_tokenization_spaces is 1"),
    ("tokenizer_config.json", {"added_tokens_decoder": [1]}, "is damaged"),
    ("tokenizer_config.json", {"added_tokens_decoder": {"x": {"content": "[A]"}}}, "is damaged"),
    ("tokenizer_config.json", {"added_tokens_decoder": {"400": {"content": "[A]", "lstrip": "no"}}}, "is damaged"),
    ("tokenizer_config.json", {"added_tokens_decoder": {"400": {"text": "[A]"}}}, "is damaged: 'content' is missing"),
    ("tokenizer_config.json", {"added_tokens_decoder": {"400": {"content": 5}}}, "is damaged"),
    ("special_tokens_map.json", {"bos_token": {"text": "[A]"}}, "is damaged: 'content' is missing"),
    ("special_tokens_map.json", {"additional_special_tokens": 5}, "is damaged"),
    ("special_tokens_map.json", {"additional_special_tokens": [5]}, "is damaged"),
    ("added_tokens.json", {"[A]": "x"}, "is damaged"),
    ("added_tokens.json", {"[A]": [1]}, "is damaged"),
    ("added_tokens.json", ["[A]"], "is a list"),
])
def test_bad_files_beside(name: str, content: Any, words: str, folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copy(folders["bert"] / "vocab.txt", tmp_path)
    write_json(tmp_path / name, content)
    with pytest.raises(InputError, match=words) as caught:
        Tokenizer.from_file(tmp_path)
    assert str(caught.value).startswith(str(tmp_path / name)) and "\n" not in str(caught.value)


@pytest.mark.parametrize("tokens, words", [
    ({"[DEC]": 402}, "the next free one is 400: ids must have no holes"), ({"[DEC]": 7}, "which is that of"),
    ({"[CLS]": 400}, "shall have id 400, but the vocabulary has it as"), ({"[A]": -3}, "shall have id -3")])
def test_added_tokens_that_do_not_fit(tokens: dict[str, int], words: str, folders: dict[str, Path],
                                      tmp_path: Path) -> None:
    shutil.copy(folders["bert"] / "vocab.txt", tmp_path)
    write_json(tmp_path / "added_tokens.json", tokens)
    with pytest.raises(InputError, match=words) as caught:
        Tokenizer.from_file(tmp_path)
    assert str(caught.value).startswith(str(tmp_path))


def test_line_ends_of_windows(folders: dict[str, Path], tmp_path: Path) -> None:
    for kind in ("bert", "gpt2"):
        for file in folders[kind].iterdir():
            (tmp_path / file.name).write_bytes(b"\xef\xbb\xbf" * (file.suffix == ".txt" and kind == "bert")
                                               + file.read_bytes().replace(b"\n", b"\r\n"))
        read = Tokenizer.from_file(tmp_path)
        assert read.encode_batch(CAPTIONS) == Tokenizer.from_file(folders[kind]).encode_batch(CAPTIONS)
        for file in folders[kind].iterdir():
            (tmp_path / file.name).unlink()


def test_clip_decoder_strips(folders: dict[str, Path]) -> None:
    """The decoder that published CLIP files leave unfinished writes spaces between words, none at the ends."""
    ours = Tokenizer.from_file(folders["clip"])
    space, dog = ours._engine.token_to_id("Ġ"), ours.encode("dog")[0]
    assert ours.decode([space, space, dog, dog, space]) == "dog dog" and ours.decode([space]) == ""
    assert ours.words([space, dog, dog, space]) == [Word("dog", 0, 2), Word("dog", 2, 3)]
    assert isinstance(ours._engine.decoder, decoders.Decoder)
