"""The candidate that the others agree with: against the mean of all pairs, and as a program."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from eval import consensus as program
from eval import score
from minivl.errors import InputError
from minivl.metrics.cider import cider
from minivl.metrics.consensus import Chosen, consensus
from minivl.metrics.docfreq import DocFreq

WORDS = "a dog cat runs sleeps on the grass bed red big two men with ball".split()


def captions(draw: random.Random, count: int) -> list[str]:
    return [" ".join(draw.choices(WORDS, k=draw.randint(3, 9))) for _ in range(count)]


def images(seed: int, number: int = 12, most: int = 9) -> dict[str, list[str]]:
    draw = random.Random(seed)
    return {f"{place}.jpg": captions(draw, draw.randint(1, most)) for place in range(number)}


@pytest.mark.parametrize("variant, n, tokens", [("cider-d", 4, "ptb-coco"), ("cider", 2, "simple")])
def test_highest_mean_of_all_pairs(variant: str, n: int, tokens: str) -> None:
    found = images(1, 20)
    found["0.jpg"] += found["0.jpg"][:1]  # which has two votes
    df = DocFreq.from_references(images(2, 40), n=n, tokenize=tokens)
    chosen = consensus(found, variant=variant, df=df, n=n, tokenize=tokens)
    assert list(chosen) == list(found)
    later = 0
    for id, texts in found.items():
        means = [sum(cider({0: text}, {0: [other]}, variant=variant, df=df, n=n, tokenize=tokens).score
                     for other in texts) / len(texts) for text in texts]
        assert chosen[id].agreement == pytest.approx(max(means), abs=1e-9)
        assert chosen[id].caption == texts[chosen[id].place]
        assert means[chosen[id].place] == pytest.approx(max(means), abs=1e-9)
        later += chosen[id].place > 0
    assert later > 5


def test_frequencies_of_the_candidates() -> None:
    found = images(3)
    df = DocFreq.from_references(found)
    for id, one in consensus(found, df=df).items():
        assert one == consensus(found)[id]


def test_who_says_it_twice_votes_twice() -> None:
    df = DocFreq.from_references(images(2, 40), tokenize="simple")
    both = ["a red dog runs on grass", "two men with a ball", "the cat sleeps"]
    for place, text in enumerate(both):
        assert consensus({1: [*both, text]}, df=df, tokenize="simple")[1][:2] == (text, place)
    assert consensus({1: both[:1] * 3}, df=df, tokenize="simple")[1] == Chosen(both[0], 0, pytest.approx(10.0))


def test_captions_without_words_agree_with_nothing() -> None:
    found = {**images(4, 3), "x": ["", " ", "..."], "y": ["", "a dog"]}
    chosen = consensus(found)
    assert chosen["x"] == Chosen("", 0, 0.0)
    assert chosen["y"][:2] == ("a dog", 1) and chosen["y"].agreement > 0
    assert consensus({"x": ["", ""], "y": [""]}, df=DocFreq.from_references(images(4))) == {
        "x": Chosen("", 0, 0.0), "y": Chosen("", 0, 0.0)}


@pytest.mark.parametrize("found, words", [
    ({}, "there are no candidates"), ({"a": []}, r"the candidates of 'a' are \[\], a list"),
    ({"a": "a dog", "b": ["x"]}, "the candidates of 'a' are 'a dog', a list of strings"),
    ({"a": ["x", None], "b": ["x"]}, "the candidate of 'a' is a NoneType"),
    ({"a": ["x", "y"]}, "1 image with candidates: .* give those of the training captions as df"),
    ({"a": [""], "b": [" "]}, "0 images with candidates"),
])
def test_faults(found: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        consensus(found)


# -- the program ---------------------------------------------------------------------------------------------

def run(*argv: object) -> None:
    program.main([str(word) for word in argv])


def write(path: Path, found: dict[Any, list[str]]) -> Path:
    path.write_text("".join(json.dumps({"image_id": id, "caption": texts[0],
                                        "others": [{"caption": text} for text in texts[1:]]}) + "\n"
                            for id, texts in found.items()))
    return path


def test_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = {f"COCO_val2014_{place:012d}": texts for place, texts in enumerate(images(5).values(), 7)}
    two = {id: captions(random.Random(id), 4) for id in one}
    files = write(tmp_path / "one.jsonl", one), write(tmp_path / "two.jsonl", two)
    both = {id: [*one[id], *two[id]] for id in one}
    references = tmp_path / "train.json"
    references.write_text(json.dumps(images(6, 30)))
    df = tmp_path / "train.df.safetensors"
    score.main(["--references", str(references), "--save-df", str(df), "--tokens", "simple"])
    capsys.readouterr()
    wanted = consensus(both, df=DocFreq.load(df), tokenize="simple")
    options = ("--candidates", *files, "--df", df, "--tokens", "simple", "--json")

    run(*options, "--out", tmp_path / "pred.jsonl")
    assert json.loads(capsys.readouterr().out) == {
        "path": str(tmp_path / "pred.jsonl"), "images": 12, "candidates": max(map(len, both.values())),
        "first": sum(one.place == 0 for one in wanted.values())}
    read = [json.loads(line) for line in (tmp_path / "pred.jsonl").read_text().splitlines()]
    assert read == [{"image_id": id, "caption": one.caption, "agreement": one.agreement, "place": one.place,
                     "candidates": len(both[id])} for id, one in wanted.items()]
    run(*options, "--out", tmp_path / "pred.json")
    assert json.loads((tmp_path / "pred.json").read_text()) == {id: one.caption for id, one in wanted.items()}
    run(*options, "--out", tmp_path / "pred.json", "--format", "coco")
    assert json.loads((tmp_path / "pred.json").read_text()) == [
        {"image_id": int(id[-12:]), "caption": one.caption} for id, one in wanted.items()]
    run("--candidates", files[0], "--out", tmp_path / "corpus.json")
    assert json.loads((tmp_path / "corpus.json").read_text()) == {
        id: one.caption for id, one in consensus(one).items()}


def test_bad_input(tmp_path: Path) -> None:
    several = write(tmp_path / "several.jsonl", {"a": ["a dog", "dogs"], "b": ["a cat"]})
    single = write(tmp_path / "single.jsonl", {"a": ["a dog"], "b": ["a cat"]})
    apart = write(tmp_path / "apart.jsonl", {"a": ["a dog"], "c": ["a cat"]})
    same = write(tmp_path / "same.jsonl", {"7": ["a dog", "dogs"], "07": ["a cat"]})
    out = tmp_path / "out.json"
    for argv, words in (
            ((single, "--out", out), f"{single}: has one caption per image, there is nothing to choose from"),
            ((several, apart, "--out", out), f"{apart}: is not of the same images as {several}: 2 are in one of them "
                                             "only ('b', 'c')"),
            ((several, "--out", out, "--format", "coco"), f"{several}: 'a': has no number in its name"),
            ((same, "--out", out, "--format", "coco"), f"{same}: '7' and '07' would both be 7 in {out}"),
            ((several, "--out", several), f"--out {several}: it would replace what is read"),
            ((several, "--out", out, "--df", single), f"{single}: "),
            ((several, "--out", tmp_path / "out.txt"), "format course is written as a .json file")):
        with pytest.raises(InputError) as caught:
            run("--candidates", *argv)
        assert words in str(caught.value), caught.value
    assert not out.exists()
    assert several.read_text().count("dogs") == 1
