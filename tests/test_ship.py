"""weights.ship: what may be shipped, and that what is shipped is what was trained."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from random_models import ENCODER, captioner, randomise

import minivl
from minivl.errors import InputError
from minivl.files import read_json, sha256
from minivl.models.captioner import Captioner
from minivl.models.clip import CLIP, CLIPConfig, TextConfig
from minivl.models.vit import ViT
from minivl.text.tokenizer import Tokenizer
from weights import ship

LOOK = {"layer": 1, "heads": [3], "score": 0.5, "scenes": 8}
COMMITTED = Path(ship.__file__).parent


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A weights/ of its own."""
    folder = tmp_path / "weights"
    folder.mkdir()
    monkeypatch.setattr(ship, "HERE", folder)
    return folder


def finished(folder: Path, seed: int = 0, **notes: Any) -> Path:
    """A run's folder with random weights."""
    model = captioner(seed)
    model.notes = {"data": "scenes", "look": LOOK, "scores": {"cider_d": 1.5}, **notes}
    minivl.save(model, folder / "best.safetensors")
    (folder / "config.json").write_text(json.dumps({"epochs": 3, "seed": seed}))
    return folder


def run(*args: object) -> None:
    ship.main([str(arg) for arg in args])


def test_what_is_shipped_is_what_was_trained(tmp_path: Path, shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(finished(tmp_path / "b", seed=1), "--name", "beta")
    run(finished(tmp_path / "a", seed=2), "--name", "alpha", "--json")
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    manifest = read_json(shelf / "MANIFEST.json")
    assert list(manifest) == ["alpha", "beta"] and told == {"path": str(shelf / "alpha.safetensors"),
                                                            **manifest["alpha"]}
    for name, run_folder, seed in (("alpha", "a", 2), ("beta", "b", 1)):
        file = shelf / f"{name}.safetensors"
        entry = manifest[name]
        assert (entry["sha256"], entry["bytes"]) == (sha256(file), file.stat().st_size)
        assert entry["made_by"] == {"epochs": 3, "seed": seed} and entry["notes"]["look"] == LOOK
        trained, shipped = minivl.load(tmp_path / run_folder / "best.safetensors"), minivl.load(file, verify=True)
        assert isinstance(shipped, Captioner) and shipped.notes == trained.notes
        ours, theirs = shipped.state_dict(), trained.state_dict()
        assert list(ours) == list(theirs) and all(map(torch.equal, ours.values(), theirs.values()))
    run(finished(tmp_path / "c", seed=3), "--name", "beta")  # shipped anew
    again = read_json(shelf / "MANIFEST.json")
    assert again["alpha"] == manifest["alpha"] and again["beta"]["made_by"]["seed"] == 3


def test_a_pair_is_shipped_with_its_tokenizer(tmp_path: Path, shelf: Path) -> None:
    tokenizer = Tokenizer.train(["a red star", "two blue fish"])
    text = TextConfig(tokenizer.vocab_size, 16, 1, 2, 32, 8, max_len=6, bos_id=tokenizer.bos_id,
                      eot_id=tokenizer.eos_id)
    notes = {"data": "scenes", "name": "an image-text pair trained by minivl on scenes", "scores": {"mean_recall": 0.5}}
    model = CLIP(CLIPConfig(replace(ENCODER, num_classes=8), text), tokenizer=tokenizer, notes=notes)
    randomise(model, 4)
    minivl.save(model, tmp_path / "best.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"objective": "contrastive"}))
    run(tmp_path, "--name", "pair")
    shipped = minivl.load(shelf / "pair.safetensors", verify=True)
    assert isinstance(shipped, CLIP) and shipped.notes == notes and shipped.tokenizer is not None
    assert all(map(torch.equal, shipped.state_dict().values(), model.state_dict().values()))
    assert torch.equal(shipped.tokenize(["a red fish"]), model.tokenize(["a red fish"]))
    entry = read_json(shelf / "MANIFEST.json")["pair"]
    assert entry["notes"] == notes and entry["made_by"] == {"objective": "contrastive"}
    for change, told in (({"tokenizer": None}, "has no tokenizer"), ({"notes": {}}, "was trained on unknown data")):
        for name, value in change.items():
            setattr(model, name, value)
        minivl.save(model, tmp_path / "best.safetensors")
        with pytest.raises(InputError, match=told):
            run(tmp_path, "--name", "other")
    assert not (shelf / "other.safetensors").exists()


def test_the_size_limit(tmp_path: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ship.LARGEST == 10_000_000
    folder = finished(tmp_path / "run")
    size = (folder / "best.safetensors").stat().st_size
    monkeypatch.setattr(ship, "LARGEST", size - 1)
    with pytest.raises(InputError, match=f"best.safetensors: {size} bytes: shipped weights have at most {size - 1}"):
        run(folder, "--name", "x")
    assert list(shelf.iterdir()) == []
    monkeypatch.setattr(ship, "LARGEST", size)
    run(folder, "--name", "x")


@pytest.mark.parametrize("notes, told", [
    ({"data": "../shared/data/flickr8k/train.json"}, "was trained on ../shared/data/flickr8k/train.json: only"),
    ({"data": None}, "was trained on unknown data"), ({"look": None}, "do not say which layer and heads"),
    ({"look": {"layer": 9, "heads": "mean"}}, "note layer 9")])
def test_runs_that_are_not_shipped(tmp_path: Path, shelf: Path, notes: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError) as raised:
        run(finished(tmp_path / "run", **notes), "--name", "x")
    assert told in str(raised.value) and "best.safetensors" in str(raised.value) and list(shelf.iterdir()) == []


def test_other_mistakes(tmp_path: Path, shelf: Path) -> None:
    with pytest.raises(InputError, match="best.safetensors: no such file"):
        run(tmp_path / "nowhere", "--name", "x")
    folder = finished(tmp_path / "run")
    for name in ("../x", "a/b", "", ".hidden"):
        with pytest.raises(InputError, match="--name"):
            run(folder, "--name", name)
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match="config.json: no such file"):
        run(folder, "--name", "x")
    minivl.save(ViT(ENCODER), folder / "best.safetensors")
    with pytest.raises(InputError, match="is no captioner and no image-text pair"):
        run(folder, "--name", "x")
    assert list(shelf.iterdir()) == [] and not (tmp_path / "x.safetensors").exists()


def test_damaged_weights_are_not_shipped(tmp_path: Path, shelf: Path) -> None:
    file = finished(tmp_path / "run") / "best.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match="sha256"):
        run(tmp_path / "run", "--name", "x")
    assert list(shelf.iterdir()) == []


def test_help_says_which_options_act(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("--help")
    text = " ".join(capsys.readouterr().out.split())
    for option in ("--device {auto,cpu,cuda,mps}", "--precision {auto,fp32,bf16,fp16}", "--seed SEED",
                   "--workers WORKERS"):
        assert f"{option} no effect here" in text, option
    assert "--json print results" in text


def test_committed_weights() -> None:
    """All of them small, all described, nothing described that is not there."""
    files = {file.stem: file for file in COMMITTED.glob("*.safetensors")}
    if not files:
        pytest.skip("no weights are shipped yet (make weights)")
    manifest = read_json(COMMITTED / "MANIFEST.json")
    assert sorted(manifest) == sorted(files)
    for name, file in files.items():
        assert file.stat().st_size <= 10_000_000
        assert (manifest[name]["sha256"], manifest[name]["bytes"]) == (sha256(file), file.stat().st_size)
        assert manifest[name]["notes"] == ship.check(file).notes
