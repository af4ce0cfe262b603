"""How words lie in pieces: tokenizers of every kind, against what they decode and call words."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence

import pytest
import tokenizers
import torch
from tokenizers import decoders, models, normalizers, pre_tokenizers

from minivl.errors import InputError
from minivl.models.spelling import any_spelling, spelling, usual_spellings
from minivl.search import Automaton, Phrase
from minivl.text.tokenizer import Tokenizer

TEXTS = ["a dog runs", "two dogs and a doggy", 'a hot-dog and "hot dogs"', "the hot dog, a cat", "hotdogs!",
         "a hot day"]
SPECIALS = ["[PAD]", "[UNK]", "[BOS]", "[EOS]"]


def word_pieces() -> Tokenizer:
    """BERT's way: ## joins."""
    pieces = [*SPECIALS, "a", "dog", "##s", "##gy", "hot", "##dog", "the", "cat", "d", "##og", "##g", "-", ",", '"',
              "day", "runs", "##un", "r", "##ay", "##c", "two", "and", "!"]
    engine = tokenizers.Tokenizer(models.WordPiece({piece: id for id, piece in enumerate(pieces)}, unk_token="[UNK]"))
    engine.normalizer = normalizers.BertNormalizer()
    engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    engine.decoder = decoders.WordPiece()
    return Tokenizer(engine)


def byte_pieces() -> Tokenizer:
    """GPT-2's way: a space begins a word."""
    return Tokenizer.train(TEXTS * 3, kind="bpe", vocab_size=300)


def ends_of_words() -> Tokenizer:
    """CLIP's way: </w> ends a word, all else is open."""
    engine = tokenizers.Tokenizer(models.BPE(
        {piece: id for id, piece in enumerate([
            *SPECIALS, "a", "d", "o", "g", "s", "h", "t", "a</w>", "d</w>", "o</w>", "g</w>", "s</w>", "h</w>", "t</w>",
            "do", "dog</w>", "dog", "dogs</w>", "ho", "hot</w>", "-</w>", "-"])},
        [("d", "o"), ("do", "g</w>"), ("do", "g"), ("dog", "s</w>"), ("h", "o"), ("ho", "t</w>")],
        end_of_word_suffix="</w>", unk_token="[UNK]"))
    engine.normalizer = normalizers.Lowercase()
    engine.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    return Tokenizer(engine)


KINDS = {"words": lambda: Tokenizer.train(TEXTS), "word pieces": word_pieces, "byte pieces": byte_pieces,
         "ends of words": ends_of_words}


@pytest.fixture(params=KINDS, scope="module")
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return KINDS[request.param]()


def places(tokenizer: Tokenizer, ids: Sequence[int], phrase: str) -> list[tuple[int, ...]]:
    """The pieces of each place where the words of a phrase stand in a row in a text."""
    words, wanted = tokenizer.words(ids), phrase.split()
    return [tuple(ids[words[start].start:words[start + len(wanted) - 1].stop])
            for start in range(len(words) - len(wanted) + 1)
            if [word.text.casefold() for word in words[start:start + len(wanted)]] == wanted]


def letters_of(tokenizer: Tokenizer, *texts: str) -> list[int]:
    """Pieces of these texts, and specials."""
    found = {id for text in texts for one in (text, f"a {text}") for id in tokenizer.encode(one)}
    return sorted(found | {tokenizer.bos_id, tokenizer.eos_id})


@pytest.mark.parametrize("phrase", ["dog", "hot dog", "a"])
def test_a_required_word_is_one_that_stands_there(tokenizer: Tokenizer, phrase: str) -> None:
    """All texts of four pieces out of some: it stands where the automaton finds it, and nowhere else so spelled."""
    spellings = usual_spellings(tokenizer, phrase)
    automaton = Automaton.build([Phrase.of(phrase, spellings)], spelling(tokenizer).pieces)
    used = letters_of(tokenizer, "dog", "dogs", "doggy", "hot", "hot-dog") if tokenizer.unk_id is None else \
        letters_of(tokenizer, "dog", "dogs", "hot", "hot-dog")
    texts = [(tokenizer.bos_id, *rest) for rest in itertools.product(used, repeat=4)]
    found = automaton.final[automaton.follow(torch.tensor(texts))].tolist()
    assert 0 < sum(found) < len(found)
    for text, one in zip(texts, found):
        stands = any(place in spellings for place in places(tokenizer, text, phrase))
        assert one == stands, (tokenizer.decode(text), text)


@pytest.mark.parametrize("phrase", ["dog", "hot dog", "Dog"])
def test_a_forbidden_word_cannot_be_said_in_any_pieces(tokenizer: Tokenizer, phrase: str) -> None:
    way = any_spelling(tokenizer, phrase)
    assert way is not None
    automaton = Automaton.build([way], spelling(tokenizer).pieces, wanted="any")
    letters = sorted((text for text in spelling(tokenizer).ids if text and text in "hot dog"), key=len, reverse=True)
    used = [id for text in letters for id in spelling(tokenizer).ids[text]][:9]
    starts = [(tokenizer.bos_id, id) for id in [*used, *tokenizer.encode("a")] if not tokenizer.decode([id]).count("#")]
    texts = [(*start, *rest) for start in starts for rest in itertools.product(used, repeat=3)]
    found = automaton.settled[automaton.follow(torch.tensor(texts))].tolist()
    for text, one in zip(texts, found):
        said = [bool(places(tokenizer, text[:stop], phrase.casefold())) for stop in range(2, 6)]
        assert one == any(said), (tokenizer.decode(text), text)  # also where what joins it undoes it
    assert 0 < sum(found) < len(found)


def test_words_in_one_piece_or_several() -> None:
    assert usual_spellings(word_pieces(), "dogs") == [(5, 6)]
    assert usual_spellings(word_pieces(), "hot dog") == [(8, 5)]
    pieces = byte_pieces()
    assert usual_spellings(pieces, "dog") == [tuple(pieces.encode("a dog")[1:])]
    described = json.loads(pieces.to_json())
    described["pre_tokenizer"]["add_prefix_space"] = False  # as GPT-2 has it
    pieces = Tokenizer.from_json(json.dumps(described))
    start, inside = usual_spellings(pieces, "dog")
    assert start != inside and pieces.decode([*pieces.encode("a"), *inside]) == "a dog"
    assert usual_spellings(ends_of_words(), "dogs") == [(21,)]
    words = Tokenizer.train(TEXTS)
    assert usual_spellings(words, "Dog!") == [tuple(words.encode("dog"))]


@pytest.mark.parametrize("word", ["zebra", "a zebra", "dog zebra"])
def test_words_that_are_not_there(word: str) -> None:
    for make in (word_pieces, KINDS["words"]):
        with pytest.raises(InputError, match="'zebra' is not in the vocabulary"):
            usual_spellings(make(), word)
        assert any_spelling(make(), word) is None  # nothing to forbid
    assert usual_spellings(byte_pieces(), word)  # bytes write anything
    with pytest.raises(InputError, match="'!!' is not"):
        usual_spellings(KINDS["words"](), "dog !!")


def test_what_pieces_do() -> None:
    known = spelling(word_pieces())
    assert known.texts[6] == "s" and known.ids["dog"] == (5, 9)
    assert known.pieces.joins[[6, 7, 9]].all() and not known.pieces.joins[[4, 5, 8]].any()
    assert known.pieces.marks[[15, 17]].all() and not known.pieces.marks[[4, 6]].any()
    assert known.pieces.holds[[4, 5, 6]].all() and not known.pieces.holds[:4].any()
    clip = spelling(ends_of_words()).pieces
    assert clip.joins[18:25].all() and clip.holds[[18, 20]].all() and not clip.holds[[19, 21, 23]].any()
    words = spelling(Tokenizer.train(TEXTS)).pieces
    assert not words.joins.any() and not words.holds.any()
    assert spelling(word_pieces()) != spelling(byte_pieces())
