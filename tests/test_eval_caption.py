"""eval.caption as a program: what it writes for which photo, and what a mistake says."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from random_models import ENCODER, SIZES, captioner, randomise
from test_decoding import graphs

import minivl
from eval import caption as program
from minivl import programs
from minivl.data.predictions import read_predictions
from minivl.errors import InputError
from minivl.images import Preprocessing
from minivl.models.captioner import Captioner, CaptionerConfig
from minivl.models.decoder import DecoderConfig
from minivl.models.grid import GridConfig
from minivl.models.vit import ViT, ViTConfig
from minivl.text.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[1]
TEXTS = ["a red dog runs", "two dogs on a hill", "the hill"]
NAMES = ("0007.png", "COCO_val2014_000000000012.png", "3.JPG")


def speaking() -> Captioner:
    """A captioner with words that says something else of every photo."""
    tokenizer = Tokenizer.train(TEXTS)
    decoder = DecoderConfig(**{**SIZES, "vocab_size": tokenizer.vocab_size})
    model = Captioner(CaptionerConfig(ENCODER, decoder), tokenizer=tokenizer,
                      preprocessing=Preprocessing((12, 8), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), crop_pct=1.0))
    randomise(model, seed=1, scale=0.4)
    with torch.no_grad():  # more of the photo, less of what is the same for all of them
        for name, parameter in model.encoder.named_parameters():
            if name.endswith("bias") or name in ("pos_embed", "cls_token"):
                parameter.mul_(0.1)
        model.proj.weight.mul_(3)
    return model


def of_any_size() -> Captioner:
    """One that takes photos of any size, as CATR does."""
    tokenizer = Tokenizer.train(TEXTS)
    decoder = DecoderConfig(vocab_size=tokenizer.vocab_size, width=24, depth=1, num_heads=3, mlp_dim=40, max_len=10)
    encoder = GridConfig(width=24, depth=1, num_heads=3, mlp_dim=40, layers=(1, 1, 1, 1))
    model = Captioner(CaptionerConfig(encoder, decoder), tokenizer=tokenizer,
                      preprocessing=Preprocessing((64, 64), (0.5,) * 3, (0.5,) * 3, mode="long"))
    torch.manual_seed(0)
    randomise(model.decoder, scale=0.4)
    return model.eval()


def draw(folder: Path, *names: str) -> None:
    """Photos of large blots of colour, of several sizes, each another."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for place, name in enumerate(names):
        pixels = random.integers(0, 256, (2, 3, 3)).astype(np.uint8)
        Image.fromarray(pixels).resize((40, 20 + 9 * place), Image.Resampling.BICUBIC).save(folder / name)


@dataclass
class Place:
    """Photos, weights, and where the captions go."""

    photos: Path
    weights: Path
    out: Path
    model: Captioner

    def run(self, *args: object, out: str = "out.json") -> Any:
        self.out = self.out.parent / out
        program.main(["--images", str(self.photos), "--weights", str(self.weights), "--out", str(self.out),
                      *map(str, args)])
        text = self.out.read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()] if out.endswith("jsonl") else json.loads(text)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    draw(tmp_path / "photos", *NAMES)
    model = speaking()
    minivl.save(model, tmp_path / "captioner.safetensors")
    return Place(tmp_path / "photos", tmp_path / "captioner.safetensors", tmp_path / "out.json", model)


def files(place: Place) -> list[Path]:
    return [place.photos / name for name in NAMES]


# -- what is written -----------------------------------------------------------------------------------------

def test_a_caption_per_photo(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    expected = [one.text for one in place.model.caption(files(place), max_len=11)]
    assert len(set(expected)) > 1
    found = place.run()
    assert found == dict(zip(("0007", "COCO_val2014_000000000012", "3"), expected))
    assert list(found) == sorted(found) and "captions of 3 photos" in capsys.readouterr().out
    assert dict(read_predictions(place.out).captions) == found
    for extra in (("--batch-size", 1), ("--batch-size", 2, "--workers", 1)):
        assert place.run(*extra) == found
    assert not [path for path in place.out.parent.iterdir() if path.name.startswith(".")]


def test_compiled_says_the_same(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """In graphs of fixed shapes, here without a compiler behind them."""
    asked, caption = [], Captioner.caption

    def eager(model: Captioner, images: Any, **options: Any) -> Any:
        asked.append(options.get("compile"))  # `main` asks about no photo, without it
        return caption(model, images, **{**options, "compile": "eager" if asked[-1] else False})

    expected = place.run("--beams", 3)
    monkeypatch.setattr(Captioner, "caption", eager)
    assert place.run("--beams", 3, "--compile") == expected and asked[-1] is True
    assert place.run("--beams", 3) == expected and asked[-1] is False
    before = graphs()
    assert place.run("--beams", 3, "--compile", "--batch-size", 2) == expected
    assert graphs() - before <= 1  # the second batch, of one photo, needs none of its own


def test_no_graph_for_photos_of_any_size(place: Place, tmp_path: Path) -> None:
    minivl.save(of_any_size(), tmp_path / "any.safetensors")
    place.weights = tmp_path / "any.safetensors"
    with pytest.raises(InputError, match="--compile makes a graph for pictures of one size"):
        place.run("--compile")


def test_coco(place: Place) -> None:
    texts = [one.text for one in place.model.caption(files(place), max_len=11)]
    assert sorted(place.run("--format", "coco"), key=lambda one: one["image_id"]) == [
        {"image_id": id, "caption": text} for id, text in sorted(zip((7, 12, 3), texts))]
    assert set(read_predictions(place.out).captions) == {7, 12, 3}


def test_lines_with_all_there_is_to_say(place: Place) -> None:
    lines = place.run("--n-best", 2, "--normalise", "gnmt(0.7)", out="out.jsonl")
    expected = place.model.caption(sorted(files(place)), max_len=11, n_best=2, normalise="gnmt(0.7)")
    for line, caption, file in zip(lines, expected, sorted(files(place))):
        assert (line["image_id"], line["file_name"]) == (file.stem, file.name) and len(line["others"]) == 1
        for told, one in ((line, caption), (line["others"][0], caption.others[0])):
            assert told["caption"] == one.text and told["ids"] == list(one.ids)
            assert told["logprob"] == pytest.approx(one.logprob, abs=1e-5)
            assert told["score"] == pytest.approx(one.score, abs=1e-5)
            assert [word["text"] for word in told["words"]] == [word.text for word in one.words or ()]
            assert [word["probability"] for word in told["words"]] == pytest.approx(one.probabilities, abs=1e-5)
            spoken = math.fsum(math.log(word["probability"]) for word in told["words"])
            assert spoken >= told["logprob"] - 1e-6  # <EOS> has a probability, too
    assert {key: read_predictions(place.out).captions[key] for key in ("0007", "3")} == {
        line["image_id"]: line["caption"] for line in lines if len(line["image_id"]) < 5}
    assert place.run("--format", "jsonl", out="b.jsonl")[0].keys() == lines[0].keys() - {"others"}


CASES: dict[str, tuple[list[object], dict[str, Any]]] = {
    "greedy": (["--beams", 1], {"beams": 1}),
    "short": (["--max-len", 4, "--stop", "hf", "--normalise", "mean"],
              {"max_len": 4, "stop": "hf", "normalise": "mean"}),
    "groups": (["--beams", 4, "--groups", 2, "--diversity", 2], {"beams": 4, "groups": 2, "diversity": 2.0}),
    "wishes": (["--required", "hill", "--required", "two dogs", "--forbidden", "a", "--min-len", 6],
               {"required": ["hill", "two dogs"], "forbidden": ["a"], "min_len": 6}),
    "repetitions": (["--repetition-penalty", 1.7, "--no-repeat-ngram", 2],
                    {"repetition_penalty": 1.7, "no_repeat_ngram": 2}),
    "prefix": (["--prefix", "two dogs"], {"prefix": "two dogs", "max_len": 9}),
    "unknown": (["--allow-unknown", "--beams", 2], {"allow_unknown": True, "beams": 2}),
}


@pytest.mark.parametrize("name", CASES)
def test_every_option_reaches_the_search(name: str, place: Place) -> None:
    given, options = CASES[name]
    expected = place.model.caption(sorted(files(place)), **{"max_len": 11, **options})
    found = place.run(*given, out="out.jsonl")
    assert [line["ids"] for line in found] == [list(one.ids) for one in expected]


def test_samples_belong_to_their_photo(place: Place) -> None:
    options = ("--samples", 4, "--temperature", 1.5, "--top-k", 9, "--top-p", 0.9)
    first = {line["image_id"]: line for line in place.run(*options, "--seed", 3, out="a.jsonl")}
    drawn = {one["caption"] for line in first.values() for one in (line, *line["others"])}
    assert all(len(line["others"]) == 3 for line in first.values()) and len(drawn) > 5
    (place.photos / NAMES[0]).unlink()
    draw(place.photos / "other", "0001.png")
    (place.photos / "other" / "0001.png").rename(place.photos / "0001.png")
    again = {line["image_id"]: line for line in place.run(*options, "--seed", 3, "--batch-size", 1, out="b.jsonl")}
    for stem in ("3", "COCO_val2014_000000000012"):  # whatever else lies in the folder
        assert again[stem]["ids"] == first[stem]["ids"]
        assert [one["ids"] for one in again[stem]["others"]] == [one["ids"] for one in first[stem]["others"]]
    other = {line["image_id"]: line["ids"] for line in place.run(*options, "--seed", 4, out="c.jsonl")}
    assert other["3"] != first["3"]["ids"]


def test_photos_of_any_size_keep_their_aspect(place: Place) -> None:
    model = of_any_size()
    minivl.save(model, place.weights)
    alone = {file.stem: model.caption([file], max_len=9)[0] for file in files(place)}
    for size in (1, 64):
        found = place.run("--batch-size", size, out="out.jsonl")
        for line in found:
            assert line["ids"] == list(alone[line["image_id"]].ids)
            assert line["logprob"] == pytest.approx(alone[line["image_id"]].logprob, abs=1e-4)


def test_json_says_how_they_were_made(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.run("--json", "--beams", 2, "--normalise", "mean")
    told = json.loads(capsys.readouterr().out)
    assert told["path"] == str(place.out) and told["photos"] == 3 and told["seconds"] > 0
    assert (told["beams"], told["normalise"], told["max_len"]) == (2, "mean", 11) and "groups" not in told


def test_captions_without_a_word_are_counted(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    with torch.no_grad():
        place.model.decoder.head.bias[3] += 100
    minivl.save(place.model, place.weights)
    assert set(place.run("--json").values()) == {""}
    assert json.loads(capsys.readouterr().out)["empty"] == 3


def test_as_a_program(place: Place) -> None:
    command = [sys.executable, "-m", "eval.caption", "--images", place.photos, "--weights", place.weights]
    done = subprocess.run([*command, "--out", place.out], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and len(json.loads(place.out.read_text())) == 3, done.stderr
    assert done.stdout == f"{done.stdout.strip()}\n" and "captions of 3 photos" in done.stdout


# -- mistakes ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("given, out, message", [
    (["--beams", 0], "out.json", "^--beams 0: give"),
    (["--beams", 99], "out.json", "vocabulary has only"),
    (["--batch-size", 0], "out.json", "--batch-size 0"), (["--workers", -1], "out.json", "--workers"),
    (["--max-len", 12], "out.json", "^--max-len 12 tokens .* this decoder has 12, give at most 11$"),
    (["--prefix", "a " * 12], "out.json", "^--prefix 'a .* positions"),
    (["--samples", 2, "--beams", 2], "out.jsonl", "give one of the two"),
    (["--samples", 2, "--required", "dog"], "out.jsonl", "with beams"),
    (["--top-p", 0.5], "out.json", "^--top-p 0.5: .*--samples 1"),
    (["--groups", 2], "out.json", "^--groups 2 must divide --beams 3"),
    (["--min-len", 40], "out.json", "^--min-len 40 is more than --max-len 30"),
    (["--min-len", 12], "out.json", "^--min-len 12 is more than --max-len 11"),
    (["--n-best", 2], "out.json", "--format course has room for one"), (["--samples", 2], "out.json", "2 are asked"),
    (["--n-best", 2, "--format", "coco"], "out.json", "--format coco has room for one"),
    (["--format", "coco"], "out.jsonl", "written as a .json file"), (["--format", "jsonl"], "out.json", ".jsonl file"),
    ([], "out.csv", "--out .*csv: format course"), ([], "photos/3.JPG/out.json", "is a file"),
    (["--required", "cat"], "out.json", "'cat' is not in the vocabulary"),
    (["--required", "dog", "--forbidden", "dog"], "out.json", "required and forbidden"),
    (["--normalise", "gnmt"], "out.json", "^--normalise 'gnmt': give one"),
    (["--temperature", "inf", "--samples", 1], "out.json", "^--temperature inf: give a finite number"),
    (["--temperature", 0, "--samples", 1], "out.json", r"^--temperature 0.0: .* is --beams 1\)$"),
    (["--n-best", 9], "out.jsonl", "^--n-best 9 must lie between 1 and --beams 3"),
    (["--required", "dog dog", "--no-repeat-ngram", 1], "out.json",
     "^--required 'dog dog' says the same twice, which --no-repeat-ngram 1 rules out"),
    (["--required", "a dog runs", "--forbidden", "dog runs"], "out.json", "'a dog runs' is required and forbidden"),
    (["--required", "dog"] * 9, "out.json", "^--required: 9 words or phrases, and 8 are the most: .* twice as long"),
])
def test_mistakes_come_before_the_work(given: list[object], out: str, message: str, place: Place,
                                       monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "captions", lambda *args: pytest.fail("it began"))
    with pytest.raises(InputError, match=message):
        place.run(*given, out=out)
    assert not place.out.exists() or place.out.is_file() and place.out.name.endswith(".JPG/out.json")


def test_a_wish_that_only_decoding_finds_impossible_is_named_as_typed(place: Place) -> None:
    with pytest.raises(InputError, match="^image 0: no caption was found that meets --required 'red dog', --required "
                                         "'a dog', --no-repeat-ngram 1 within --max-len 11: leave out one"):
        place.run("--required", "red dog", "--required", "a dog", "--no-repeat-ngram", 1)
    assert not place.out.exists()


def test_a_forbidden_word_that_is_unknown_is_told_once(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    place.run("--forbidden", "cat", "--forbidden", "hill", "--batch-size", 1)
    told, = (record.getMessage() for record in caplog.records if record.levelname == "WARNING")
    assert told.startswith("forbidden: 'cat' is not in the vocabulary of ")


@pytest.mark.parametrize("options", [[], ["--samples", 1]])
def test_damaged_weights_are_named(options: list[object], place: Place, caplog: pytest.LogCaptureFixture) -> None:
    with torch.no_grad():
        place.model.proj.weight[0, 0] = torch.nan
    minivl.save(place.model, place.weights)
    with pytest.raises(InputError, match="log-probabilities that are nan: its weights are damaged, or too coarsely"):
        place.run(*options)
    assert f"{place.weights}: 1 tensors hold nan or infinite values: proj.weight" in caplog.messages
    assert not place.out.exists()


def test_weights_that_say_nothing(place: Place, tmp_path: Path) -> None:
    minivl.save(captioner(), place.weights)
    with pytest.raises(InputError, match="captioner.safetensors: has no tokenizer"):
        place.run()
    model = speaking()
    model.preprocessing = None
    minivl.save(model, place.weights)
    with pytest.raises(InputError, match="preprocessing is unknown"):
        place.run()
    minivl.save(ViT(ViTConfig((12, 8), (4, 4), 12, 1, 3, 24)), place.weights)
    with pytest.raises(InputError, match="says no captions"):
        place.run()
    with pytest.raises(InputError, match="nowhere"):
        program.main(["--images", str(place.photos), "--weights", "nowhere.safetensors", "--out", str(place.out)])


def test_photos_that_are_none(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.out.write_text("as before")
    (place.photos / "4.jpg").write_text("no picture")
    with monkeypatch.context() as patch:
        patch.setattr(program, "load", lambda *args: pytest.fail("weights were loaded"))
        with pytest.raises(InputError, match="4.jpg: is not an image"):
            place.run()
        (place.photos / "4.jpg").unlink()
        for name, message in (("3.png", "3.JPG and 3.png would both be '3'"), ("x.png", None)):
            draw(place.photos / "new", name)
            (place.photos / "new" / name).rename(place.photos / name)
            with pytest.raises(InputError, match=message or "x.png: has no number"):
                place.run(*([] if message else ["--format", "coco"]))
            (place.photos / name).unlink()
        draw(place.photos / "new", "03.png")
        (place.photos / "new" / "03.png").rename(place.photos / "03.png")
        with pytest.raises(InputError, match="03.png and 3.JPG would both be 3 "):
            place.run("--format", "coco")
        with pytest.raises(InputError, match="no such folder"):
            program.main(["--images", "nowhere", "--weights", "x", "--out", str(place.out)])
        (place.photos / "new").rmdir()
        with pytest.raises(InputError, match="holds no pictures"):
            program.main(["--images", str(place.weights.parent), "--weights", "x", "--out", str(place.out)])
    assert place.out.read_text() == "as before"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_photo_cut_short_is_named_and_nothing_is_written(workers: int, place: Place) -> None:
    place.out.write_text("as before")
    whole = (place.photos / "0007.png").read_bytes()
    (place.photos / "0007.png").write_bytes(whole[:len(whole) // 2])  # its beginning is that of a photo
    with pytest.raises(InputError, match="0007.png: cannot be opened"):
        place.run("--workers", workers)
    assert place.out.read_text() == "as before" and len(list(place.out.parent.iterdir())) == 3


def test_the_options_of_the_command_line_are_all_there_are() -> None:
    import dataclasses

    from minivl.search import Options
    parser = programs.Parser("")
    program.add_options(parser)
    names = {action.dest for action in parser._actions} - {"help"}
    assert names | {"seed"} == {field.name for field in dataclasses.fields(Options)}
