"""eval.pointing as a program: what it prints, which scenes it takes, and what a mistake says."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import minivl
from eval import pointing
from minivl import programs
from minivl.data.scenes import scene
from minivl.errors import InputError
from minivl.images import Preprocessing
from minivl.metrics.grounding import Pointing
from minivl.models.captioner import Captioner, CaptionerConfig
from minivl.models.decoder import DecoderConfig
from minivl.models.vit import ViT, ViTConfig
from minivl.text.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[1]
LOOK = {"layer": 1, "heads": [0], "score": 0.5, "scenes": 8}


def vit() -> ViT:
    return ViT(ViTConfig((32, 32), (8, 8), 12, 1, 2, 24, num_classes=0))


def captioner(words: str = "star fish tree circles house hearts", **notes: Any) -> Captioner:
    """Random weights that can say nothing but these words."""
    tokenizer = Tokenizer.train([words])
    decoder = DecoderConfig(tokenizer.vocab_size, 16, 2, 2, 32, max_len=6, pad_id=tokenizer.pad_id,
                            bos_id=tokenizer.bos_id, eos_id=tokenizer.eos_id)
    model = Captioner(CaptionerConfig(vit().config, decoder), tokenizer=tokenizer, notes=notes,
                      preprocessing=Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3, 1.0))
    torch.manual_seed(4)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model.eval()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    minivl.save(captioner(look=LOOK, data="scenes"), path)
    return path


def run(*args: object) -> None:
    pointing.main([str(arg) for arg in args])


def test_lines_and_picture(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("--weights", weights, "--scenes", 6, "--beams", 2, "--out", tmp_path / "new" / "result.png")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "layer 1, heads [0] (fixed on 8 training scenes)"
    assert [line[:18].strip() for line in lines[1:5]] == ["attention", "shuffled pictures", "centre", "chance"]
    assert "95 % interval" in lines[1] and "nouns)" in lines[1] and "interval" not in lines[4]
    assert lines[5].startswith("attention ") and lines[6] == f"picture: {tmp_path / 'new' / 'result.png'}"
    with Image.open(tmp_path / "new" / "result.png") as picture:
        assert len(np.unique(np.asarray(picture))) > 10


def test_json_lines_agree_with_the_library(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("--weights", weights, "--scenes", 6, "--beams", 2, "--seed", 3, "--json")
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    model = minivl.load(weights)
    assert isinstance(model, Captioner)
    test_scenes = [scene(pointing.TEST_START + number, seed=3, size=32) for number in range(6)]
    expected = minivl.train.looks.measure(model, test_scenes, 2)  # type: ignore[attr-defined]
    assert rows[0]["look"] == LOOK and rows[0]["signature"] == expected["attention"].signature
    assert {row["name"]: row["score"] for row in rows[1:5]} == {
        name: value if isinstance(value, float) else value.score for name, value in expected.items()}
    assert rows[1]["interval"] == list(expected["attention"].interval)
    assert set(rows[5]) == {"beats_every_control"}


@pytest.mark.parametrize("asked, expected", [("fp32", None), ("bf16", torch.bfloat16), ("auto", torch.bfloat16)])
def test_precision_acts(weights: Path, monkeypatch: pytest.MonkeyPatch, asked: str, expected: Any) -> None:
    """auto is what `programs.precision_of` says of the device."""
    resolve, seen = programs.precision_of, []

    def measure(*args: Any, **options: Any) -> Any:
        product = torch.ones(2, 2) @ torch.ones(2, 2)
        seen.append(product.dtype)
        raise InterruptedError

    monkeypatch.setattr(programs, "precision_of", lambda name, device: "bf16" if name == "auto" else
                        resolve(name, device))
    monkeypatch.setattr(pointing, "measure", measure)
    with pytest.raises(InterruptedError):
        run("--weights", weights, "--scenes", 2, "--precision", asked, "--device", "cpu")
    assert seen == [expected or torch.float32]


def test_progress_is_shown(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = []

    def progress(items: Any, **options: Any) -> Any:
        told.append(options)
        return items

    monkeypatch.setattr(programs, "progress", progress)
    run("--weights", weights, "--scenes", 3, "--beams", 1)
    assert told == [{"total": 3, "desc": "drawing scenes"}, {"total": 1, "desc": "captioning"},
                    *[{"total": 1, "desc": "replaying"}] * 2]


# -- what counts as beaten -----------------------------------------------------------------------------------

def score(hits: list[int], interval: tuple[float, float] | None = None) -> Pointing:
    """Scenes with one noun each."""
    share = sum(hits) / len(hits)
    return Pointing(share, interval or (share, share), sum(hits), len(hits),
                    {number: (hit, 1) for number, hit in enumerate(hits)}, "s")


GOOD, BAD = score([1] * 90 + [0] * 10, (0.84, 0.95)), score([0] * 99 + [1])


@pytest.mark.parametrize("control, expected", [
    (0.839, True), (0.84, False), (0.9, False), (0.99, False), (BAD, True),
    (score([1] * 84 + [0] * 16), False),  # its score is the lower end
    (score([0] * 50 + [1] * 50), True),
    (score([1] * 89 + [0] * 11, (0.0, 0.5)), False)])
def test_a_control_is_beaten_by_the_whole_interval(control: Pointing | float, expected: bool,
                                                   capsys: pytest.CaptureFixture[str]) -> None:
    for names in (("shuffled pictures", "centre", "chance"), ("centre", "chance", "shuffled pictures")):
        results: dict[str, Pointing | float] = {"attention": GOOD, names[0]: BAD, names[1]: 0.01, names[2]: control}
        pointing.print_results(argparse.Namespace(json=True), results, LOOK)
        assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"beats_every_control": expected}
    pointing.print_results(argparse.Namespace(json=False), results, LOOK)
    assert ("does NOT beat" in capsys.readouterr().out.splitlines()[-1]) is not expected


def test_a_control_within_chance_of_the_score_is_not_beaten() -> None:
    """Though its score is below the interval: scene by scene the difference may be luck."""
    assert not pointing.beaten(score([1, 1, 0, 0], (0.4, 0.6)), score([1, 0, 0, 0]))


# -- mistakes ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("options, told", [
    (["--scenes", "1"], "--scenes 1: give 2 or more"), (["--beams", "0"], "--beams 0: give 1 or more"),
    (["--out", "result.pdf"], "--out result.pdf: the picture is written as .png"), (["--out", "result"], ".png"),
    (["--seed", "-1"], "--seed -1"), ([], "nowhere.safetensors: no such file")])
def test_options_are_looked_at_before_anything_is_loaded(options: list[str], told: str) -> None:
    with pytest.raises(InputError) as raised:
        run("--weights", "nowhere.safetensors", *options)
    assert told in str(raised.value)


def without_tokenizer() -> Captioner:
    model = captioner(look=LOOK)
    return Captioner(model.config, preprocessing=model.preprocessing, notes=model.notes)


@pytest.mark.parametrize("make, told", [
    (vit, "w.safetensors: is no captioner"), (without_tokenizer, "w.safetensors: is no captioner with a tokenizer"),
    (captioner, "w.safetensors: these weights do not say which layer and heads"),
    (lambda: captioner(look={"layer": 5, "heads": [0]}), "w.safetensors: these weights note layer 5"),
    (lambda: captioner("a the of", look=LOOK), "no nouns in the 3 items")])
def test_weights_that_cannot_be_scored(make: Any, told: str, tmp_path: Path) -> None:
    minivl.save(make(), tmp_path / "w.safetensors")
    with pytest.raises(InputError) as raised:
        run("--weights", tmp_path / "w.safetensors", "--scenes", 3)
    assert told in str(raised.value) and "\n" not in str(raised.value)


def test_as_a_program_a_mistake_is_one_line_and_code_2(tmp_path: Path) -> None:
    minivl.save(captioner(), tmp_path / "w.safetensors")
    done = subprocess.run([sys.executable, "-m", "eval.pointing", "--weights", str(tmp_path / "w.safetensors")],
                          capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert done.stderr.startswith("error: ") and "train_p2.py writes that" in done.stderr
