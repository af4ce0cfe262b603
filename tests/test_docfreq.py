"""Document frequencies: counts, files that hold them, and what damage of a file gives."""

from __future__ import annotations

import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from minivl.data.captions import read_captions
from minivl.errors import InputError
from minivl.files import read_tensors, write_tensors
from minivl.metrics.cider import cider
from minivl.metrics.docfreq import DocFreq


def spaced(text: str) -> list[str]:
    return text.split()


def captions(seed: int, images: int) -> tuple[dict[Any, str], dict[Any, list[str]]]:
    draw = random.Random(seed)
    words = "dog a the runs boy's red big 2 over snow cat and ü \U0001f600 -lrb- \u2028".split(" ")

    def caption() -> str:
        return " ".join(["dog", *draw.choices(words, k=draw.randint(0, 14))])

    return ({image: caption() for image in range(images)},
            {image: [caption() for _ in range(draw.randint(1, 5))] for image in range(images)})


def test_counts_are_of_images() -> None:
    df = DocFreq.from_references({1: ["a dog", "a dog a dog"], 2: ["a cat"], 3: ["the cat", "a dog"]}, n=2,
                                 tokenize="simple")
    assert df.count(["a"]) == 3 and df.count(["dog"]) == 2 and df.count(("a", "dog")) == 2
    assert df.count(["the"]) == df.count(["zebra"]) == df.count(["dog", "a"]) == df.count(["a", "dog", "a"]) == 1
    assert (df.images, df.n, df.tokens) == (3, 2, "simple")
    assert df.idf(["dog"]) == pytest.approx(math.log(3 / 2))
    assert df.idf(["the"]) == df.idf(["zebra"]) == pytest.approx(math.log(3))


@pytest.mark.parametrize("n", [1, 4, 5])
def test_all_counts(n: int) -> None:
    references = captions(1, 40)[1]
    df = DocFreq.from_references(references, n=n, tokenize=spaced)
    expected: Counter[tuple[str, ...]] = Counter()
    for told in references.values():
        expected.update({tuple(words[place:place + order]) for text in told for words in [text.split()]
                         for order in range(1, n + 1) for place in range(len(words) - order + 1)})
    assert max(expected.values()) > 20
    assert {ngram: df.count(ngram) for ngram in expected} == expected
    assert sum(map(len, df.counts)) == sum(count > 1 for count in expected.values())


def test_corpus_is_the_frequencies_of_its_references() -> None:
    candidates, references = captions(53, 12)
    df = DocFreq.from_references(references)
    fixed = cider(candidates, references, df=df)
    assert fixed.per_item == cider(candidates, references).per_item
    named = DocFreq.from_references(references, label="train")
    assert named.name == f"train:{df.name}" and df.name.endswith("(12)")
    assert cider(candidates, references, df=named).signature == f"cider-d|n4|s6.0|df:{named.name}|tok:ptb-coco|v1"


def test_fixed_frequencies_do_not_depend_on_the_batch() -> None:
    candidates, references = captions(54, 30)
    df = DocFreq.from_references(references)
    whole = cider(candidates, references, df=df).per_item
    for id in list(references)[:5]:  # one image alone
        assert cider({id: candidates[id]}, {id: references[id]}, df=df).score == whole[id]
    repeated = [(id, copy) for index, id in enumerate(references) for copy in range(8 if index < 5 else 1)]
    often = {key: candidates[key[0]] for key in repeated}, {key: references[key[0]] for key in repeated}
    assert cider(*often, df=df).per_item == {key: whole[key[0]] for key in repeated}
    corpus = cider(*often).per_item  # what the fixed frequencies are for
    assert max(abs(corpus[key] - whole[key[0]]) for key in repeated) > 0.1


def test_name_is_of_the_contents() -> None:
    base = {1: ["a dog"], 2: ["a cat"]}
    name = DocFreq.from_references(base).name
    assert name == DocFreq.from_references({2: ["a cat"], 1: ["a dog", "a dog"]}).name
    assert name.endswith("(2)") and len(name) == 11
    assert name != DocFreq.from_references({1: ["a dog"], 2: ["a dog"]}).name
    assert name != DocFreq.from_references({**base, 3: ["pigs"]}).name
    assert name != DocFreq.from_references(base, n=1).name
    assert name != DocFreq.from_references(base, tokenize=spaced).name
    assert DocFreq.from_references(base, label="coco train").name == f"coco train:{name}"
    # what was written yesterday is called the same tomorrow
    assert DocFreq.from_references(captions(8, 9)[1], tokenize="simple").name == "afdee127(9)"


# files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", ["", "Flickr8k train, ü"])
@pytest.mark.parametrize("n, images", [(1, 5), (4, 60), (4, 700)])
def test_round_trip(n: int, images: int, label: str, tmp_path: Path) -> None:
    candidates, references = captions(2, images)
    df = DocFreq.from_references(references, n=n, tokenize=spaced, label=label)
    file = tmp_path / "deep" / "df.safetensors"
    df.save(file)
    found = DocFreq.load(file)
    assert (found.name, found.label, found.n, found.tokens, found.images) == (df.name, label, n, "spaced", images)
    assert [file.name for file in file.parent.iterdir()] == ["df.safetensors"]
    ours, theirs = (cider(candidates, references, df=one, n=n, tokenize=spaced) for one in (df, found))
    assert ours == theirs and ours.score > 0.1


def test_nothing_in_common_is_a_file_too(tmp_path: Path) -> None:
    df = DocFreq.from_references({1: ["a dog"], 2: ["the cat"]})
    df.save(tmp_path / "df")
    assert DocFreq.load(tmp_path / "df").name == df.name and df.idf(["a"]) == math.log(2)


def test_any_damage_is_one_line(tmp_path: Path) -> None:
    """Bits changed, bytes lost or added anywhere: never other numbers, never another exception."""
    file, bad = tmp_path / "df.safetensors", tmp_path / "bad.safetensors"
    df = DocFreq.from_references(captions(4, 50)[1], label="train")
    df.save(file)
    whole = file.read_bytes()
    draw, refused = random.Random(9), 0
    changed = [whole[:place] + bytes([whole[place] ^ 1 << draw.randrange(8)]) + whole[place + 1:]
               for place in draw.sample(range(len(whole)), 150)]
    for data in [*changed, whole[:-1], whole[:100], whole[:len(whole) // 2], b"", whole + b"\0", b"[]"]:
        bad.write_bytes(data)
        try:
            found = DocFreq.load(bad)
        except InputError as error:
            refused += 1
            assert str(bad) in str(error) and "\n" not in str(error)
        else:  # \u00fc and \u00FC are the same letter
            assert (found.digest, found.images, found.label) == (df.digest, df.images, df.label)
    assert refused > 140


@pytest.mark.parametrize("change, words", [
    (lambda tensors, header: tensors.pop("last3"), "is damaged: 'last3' is missing"),
    (lambda tensors, header: tensors.update(begun2=tensors["begun2"] + 1), "begun2 does not fit last2"),
    (lambda tensors, header: tensors.update(begun3=tensors["begun3"].long() * 10 ** 12), "begun3 does not fit last3"),
    (lambda tensors, header: header.update(told=header["told"].replace("50", "1")), "not those that were saved"),
    (lambda tensors, header: tensors.update(counts1=tensors["counts1"].flip(0)), "are not those that were saved"),
    (lambda tensors, header: header.update(told=header["told"].replace("train", "test")), "not those that were saved"),
    (lambda tensors, header: header.update(told="7"), "is damaged"),
    (lambda tensors, header: header.update(format="other 2"), "holds no document frequencies .* 'other 2'"),
    (lambda tensors, header: header.clear(), "holds no document frequencies .* None"),
    (lambda tensors, header: tensors.update(words=torch.tensor([91, 93], dtype=torch.uint8)), "is damaged"),
])
def test_changed_files(change: Any, words: str, tmp_path: Path) -> None:
    file = tmp_path / "df.safetensors"
    DocFreq.from_references(captions(4, 50)[1], label="train").save(file)
    tensors, header = read_tensors(file)
    change(tensors, header)
    write_tensors(file, tensors, header)
    with pytest.raises(InputError, match=words):
        DocFreq.load(file)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        DocFreq.load(tmp_path / "none")
    with pytest.raises(InputError, match="is a folder"):
        DocFreq.load(tmp_path)


@pytest.mark.parametrize("arguments, words", [
    (dict(references={1: ["a dog"]}), "1 image say nothing"),
    (dict(references={}), "0 image say nothing"),
    (dict(references={1: [""], 2: ["a"]}), "reference 0 of 1 is empty"),
    (dict(n=0), "n=0 must be"),
    (dict(n=True), "n=True must be"),
    (dict(label="a|b"), "label='a|b' must be printable"),
    (dict(label="a\nb"), "must be printable"),
    (dict(tokenize="ptb"), "tokenize='ptb' is unknown"),
])
def test_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words.replace("|", r"\|")):
        DocFreq.from_references(**{"references": {1: ["a dog"], 2: ["a cat"]}, **arguments})


@pytest.mark.shared
def test_flickr8k_training_set_is_a_small_file(shared: Path, tmp_path: Path) -> None:
    references = read_captions(shared / "data/flickr8k/train.json").references()
    df = DocFreq.from_references(references, label="flickr8k-train")
    df.save(tmp_path / "df.safetensors")
    assert (tmp_path / "df.safetensors").stat().st_size < 400_000
    dev = read_captions(shared / "data/flickr8k/dev.json").references()
    candidates, told = ({image: texts[0] for image, texts in dev.items()},
                        {image: texts[1:] for image, texts in dev.items()})
    result = cider(candidates, told, df=DocFreq.load(tmp_path / "df.safetensors"))
    assert result.signature == f"cider-d|n4|s6.0|df:{df.name}|tok:ptb-coco|v1" and "flickr8k-train:" in df.name
    assert abs(result.score - cider(candidates, told).score) > 0.01  # another collection, another number
