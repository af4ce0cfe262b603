"""What a mistake gets from train_p2.py."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch
from PIL import Image
from small_runs import LEFT, PAIR, SCENES, begun, mistake, options, pair_of, story, train

import minivl
import train_p2
from minivl.errors import InputError
from minivl.images import Preprocessing
from minivl.models.captioner import Captioner, CaptionerConfig
from minivl.models.decoder import DecoderConfig
from minivl.models.grid import GridConfig
from minivl.models.vit import ViT, ViTConfig
from minivl.text.tokenizer import Tokenizer
from minivl.train import features

# Python 3.12 warns of forks beside threads; torch's are idle here
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.mark.parametrize("changes, told", [
    ({"images": "nowhere"}, "nowhere: no such folder"),
    ({"captions": "none.json"}, "none.json: no such file"),
    ({"val_captions": "none.json"}, "none.json: no such file"), ({"images": None}, "go together"),
    ({"captions": None}, "go together"), ({"val_captions": None}, "go together"),
    ({"split": "train"}, "split"), ({"encoder": "none.safetensors"}, "none.safetensors"),
    ({"encoder": "scenes_patch8_96"}, "--freeze-encoder: scenes_patch8_96 is a preset"),
    ({"recipe": "nothing"}, "--recipe nothing: unknown; there are: "),
    ({"width": 15}, "15"), ({"width": 0}, "width=0"), ({"depth": 0}, "depth=0"),
    ({"heads": 0}, "num_heads=0"),
    ({"heads": 3}, "3"), ({"norm": "both"}, "--norm"), ({"dropout": 1.0}, "--dropout"),
    ({"dropout": "nan"}, "--dropout"), ({"smoothing": -0.1}, "--smoothing"),
    ({"drop_tokens": 1}, "--drop-tokens"), ({"epochs": 0}, "epochs=0"),
    ({"epochs": "two"}, "--epochs"), ({"lr": -1}, "lr=-1.0: give a number from 0 up"),
    ({"lr": "nan"}, "lr=nan"), ({"ema": 2}, "ema=2"),
    ({"warmup": -1}, "warmup=-1"), ({"clip": -1}, "clip=-1"), ({"weight_decay": -1}, "weight_decay=-1"),
    ({"batch_size": 1}, "--batch-size 1"), ({"batch_size": 0, "refs": 0}, "--refs 0"),
    ({"beams": 0}, "--beams 0"), ({"max_len": 0}, "--max-len 0"), ({"min_count": 0}, "--min-count 0"),
    ({"min_count": 1000}, "min_count=1000"),
    ({"vocab_size": 3}, "vocab_size=3"), ({"workers": -1}, "--workers -1"), ({"seed": -1}, "--seed -1"),
    ({"tokenizer": "none.json", "min_count": None}, "none.json: no such file"),
    ({"tokenizer": "none.json"}, "--min-count does not go with --tokenizer: that file has its words"),
    ({"tokenizer": "none.json", "min_count": None, "vocab_size": 9}, "--vocab-size does not go with --tokenizer"),
    ({"tokenizer": "none.json", "min_count": None, "pieces": "word"}, "--pieces does not go with --tokenizer"),
    ({"scenes": 12}, "--scenes does not go with --images: these photos"),
    ({"val_scenes": 12}, "--val-scenes does not go with --images"),
    ({"views": 1}, "--views 1: give 2 or more"), ({"views": 2, **SCENES}, "--views is for --images: captions of"),
    ({"views": 2, **SCENES, "freeze_encoder": True}, "--views is for --images: captions of"),
    ({"crop_scale": 0.5}, "--crop-scale 0.5: it is for --views"),
    ({"views": 2, "crop_scale": 0}, "--crop-scale 0.0: give a share above 0"),
    ({"mirror": True, "images": None, "captions": None, "val_captions": None}, "--mirror"),
    ({**SCENES, "scenes": 0}, "--scenes 0"), ({**SCENES, "val_scenes": 1}, "--val-scenes 1"),
    ({"resume": True}, "nothing to resume"), ({"out": None}, "--out"), ({"device": "tpu"}, "--device"),
    ({"read": "one"}, "--read one: one caption of a picture is read in an epoch, and --refs 2"),
    ({"read": "some"}, "--read"), ({"scheduled_sampling": 1.1}, "--scheduled-sampling 1.1: give a share from 0 to 1"),
    ({"precision": "fp8"}, "--precision"), ({"ema": 1}, "ema=1.0: nothing of the past would ever be forgotten"),
    ({"momentum": 0.9}, "--momentum changes nothing with --optimizer adamw: it is for --optimizer sgd"),
    ({"period": 2}, "--period changes nothing with --schedule cosine: it is for --schedule step"),
    ({"factor": 0.1, "schedule": "constant"}, "--factor changes nothing with --schedule constant"),
    ({"features": "f", "freeze_encoder": None}, "--features changes nothing here: it is for features of photos with"),
    ({"features": "f", **SCENES}, "--features changes nothing here"),
    ({"features": "f", **SCENES, "freeze_encoder": True}, "--features changes nothing here"),
    ({"features": ""}, "argument --features: name a folder"),
    ({"features": __file__}, f"--features {__file__}: is a file, a folder is needed"),
    ({"features": f"{__file__}/deep"}, f"--features {__file__}/deep: {__file__} is a file, no folder can be made")])
def test_mistakes_of_the_command_line(data: Path, tmp_path: Path, changes: dict[str, Any], told: str,
                                      capsys: pytest.CaptureFixture[str]) -> None:
    assert told in mistake(options(data, tmp_path / "one", **changes), capsys)
    assert list(tmp_path.iterdir()) == []


def test_mistakes_in_files(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def line(**changes: Any) -> str:
        return mistake(options(data, tmp_path / "one", **changes), capsys)

    bad = tmp_path / "bad.json"
    bad.write_text('{"images": [')
    assert f"{bad}: is not JSON" in line(captions=bad)
    assert f"{bad}: " in line(tokenizer=bad, min_count=None)
    bad.write_text('{"a": 1}')
    assert str(bad) in line(captions=bad)
    told = json.loads((data / "train.json").read_text())
    others = [one for one in told["annotations"] if one["image_id"] != 3]
    bad.write_text(json.dumps({**told, "annotations": others}))
    assert f"{bad}: images[3] (3.jpg) has no caption" in line(captions=bad)
    assert "caption" in line(val_captions=bad)
    bad.write_text(json.dumps({**told, "images": [{"id": 3, "file_name": "lost.jpg"}], "annotations": [
        {"image_id": 3, "caption": "a dog", "id": 1}]}))
    assert "lost.jpg" in line(captions=bad)
    bad.write_text(json.dumps({**told, "images": told["images"][:1], "annotations": [
        one for one in told["annotations"] if one["image_id"] == 0]}))
    assert "1 validation" in line(val_captions=bad)
    whole = json.loads((data / "val.json").read_text())
    for annotation in whole["annotations"]:
        if annotation["image_id"] == 1:
            annotation["caption"] = ". ... !"  # punctuation alone, which is no token
    bad.write_text(json.dumps(whole))
    refusal = line(val_captions=bad)
    assert refusal.startswith(f"--val-captions {bad}: ") and "'3.jpg'" in refusal
    decoder = DecoderConfig(9, 8, 1, 2, 8, 6)
    minivl.save(Captioner(CaptionerConfig(GridConfig(8, 1, 2, 8, layers=(1, 1, 1, 1)), decoder)),
                tmp_path / "grid.safetensors")
    assert f"{tmp_path / 'grid.safetensors'}: is a captioner over a grid" in line(encoder=tmp_path / "grid.safetensors")
    assert f"{data / 'unknown.safetensors'}: its preprocessing is unknown" in line(
        encoder=data / "unknown.safetensors")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((data / "vit.safetensors").read_bytes()[:-100])
    assert str(cut) in line(encoder=cut)
    assert not (tmp_path / "one").exists() and not (tmp_path / "features").exists()


@pytest.mark.parametrize("frozen_encoder", [True, None])
def test_a_photo_that_does_not_open(data: Path, tmp_path: Path, frozen_encoder: bool | None,
                                    capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(data / "photos", tmp_path / "photos")
    (tmp_path / "photos" / "4.jpg").write_bytes(b"no picture")
    with pytest.raises(InputError) as raised:
        train(data, tmp_path / "one", images=tmp_path / "photos", freeze_encoder=frozen_encoder)
    assert str(tmp_path / "photos" / "4.jpg") in str(raised.value) and len(str(raised.value)) < 300
    train(data, tmp_path / "one", freeze_encoder=frozen_encoder, lr=1e-3)  # no step was made: begun anew, and otherwise
    assert json.loads((tmp_path / "one" / "config.json").read_text())["lr"] == 1e-3
    assert {file.name for file in (tmp_path / "one").iterdir()} == LEFT


def test_what_a_recipe_knows_for_other_runs(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipes").mkdir()
    recipe = {"program": "train_p2", "optimizer": "sgd", "momentum": 0.5, "schedule": "step", "factor": 0.5,
              "period": 3}
    (tmp_path / "recipes" / "mine.json").write_text(json.dumps(recipe))
    monkeypatch.setattr(train_p2, "HERE", tmp_path)
    argv = options(data, tmp_path / "one", recipe="mine")
    assert train_p2.parse([*argv, "--optimizer", "adamw", "--schedule", "cosine"]).momentum == 0.5
    assert train_p2.parse([*argv, "--momentum", "0.7", "--period", "4"]).period == 4
    with pytest.raises(InputError, match="--momentum changes nothing with --optimizer adamw"):
        train_p2.parse([*argv, "--optimizer", "adamw", "--momentum", "0.7"])


def test_features_in_a_folder_closed_to_writing(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there is found; what is not there is refused, before photos are hashed where that can be known."""
    closed, real = tmp_path / "features", open

    def opened(path: Any, mode: str = "r", **told: Any) -> Any:
        if closed in Path(path).parents and mode not in ("r", "rb"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, mode, **told)

    train(data, tmp_path / "one", epochs=1)
    for module in ("features", "locks"):
        monkeypatch.setattr(f"minivl.train.{module}.open", opened, raising=False)
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: closed not in (Path(path), *Path(path).parents) and access(
        path, mode))
    train(data, tmp_path / "two", epochs=1)
    assert story(tmp_path / "two") == story(tmp_path / "one")
    (tmp_path / "photos").mkdir()
    for photo in (data / "photos").iterdir():
        with Image.open(photo) as picture:
            picture.transpose(Image.Transpose.ROTATE_180).save(tmp_path / "photos" / photo.name)
    with pytest.raises(InputError, match="features cannot be written here .Permission denied.: give another --f"):
        train(data, tmp_path / "three", epochs=1, images=tmp_path / "photos")
    monkeypatch.setattr(features, "hash_photos", lambda *args: pytest.fail("photos were hashed first"))
    with pytest.raises(InputError, match=f"{closed}: is closed to writing, and holds no features of this encoder"):
        train(data, tmp_path / "three", epochs=1, encoder=data / "classifier.safetensors", precision="bf16")


@pytest.mark.parametrize("option", ["init", "encoder"])
def test_weights_that_are_not_finite(data: Path, starts: dict[str, Path], tmp_path: Path, option: str,
                                     capsys: pytest.CaptureFixture[str]) -> None:
    model = minivl.load(starts["caption"] if option == "init" else data / "vit.safetensors")
    name = next(name for name, _ in model.named_parameters() if name.endswith("blocks.1.mlp.fc1.bias"))
    model.state_dict()[name][3] = float("nan")
    path = tmp_path / "nan.safetensors"
    minivl.save(model, path)
    changes = begun(starts, "caption", init=path) if option == "init" else {"encoder": path}
    assert mistake(options(data, tmp_path / "one", **changes), capsys).startswith(
        f"{path}: 1 tensor with nan or infinite values, from which nothing can be trained: {name}")


def test_a_folder_that_holds_a_run(data: Path, frozen: Path, capsys: pytest.CaptureFixture[str],
                                   monkeypatch: pytest.MonkeyPatch) -> None:
    before = {file.name: file.read_bytes() for file in frozen.iterdir()}
    # long work before the refusal would be a waste
    monkeypatch.setattr(train_p2, "load_images", lambda *args: pytest.fail("features came first"))
    assert "already holds a run: give --resume" in mistake(options(data, frozen), capsys)
    monkeypatch.setattr(train_p2, "load_photos", lambda *args: pytest.fail("photos came first"))
    with pytest.raises(InputError, match="lr was 0.003, is 0.004") as raised:
        train(data, frozen, resume=True, lr=0.004, dropout=0.4)
    monkeypatch.undo()
    assert "dropout was 0.3, is 0.4" in str(raised.value) and str(frozen) in str(raised.value)
    assert {file.name: file.read_bytes() for file in frozen.iterdir()} == before


def test_other_captions_under_the_same_name(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "data")
    here = tmp_path / "data"
    here_run = {"epochs": 1, "tokenizer": tmp_path / "words.json", "min_count": None}
    tokenizer = tiny_run.captioner().tokenizer
    assert tokenizer is not None
    (tmp_path / "words.json").write_text(tokenizer.to_json())
    train(here, tmp_path / "one", **here_run)
    train(here, tmp_path / "one", **here_run, resume=True)
    for name in ("train.json", "val.json"):
        text = (here / name).read_text()
        told = json.loads(text)
        words = told["annotations"][0]["caption"].split()
        told["annotations"][0]["caption"] = " ".join(reversed(words))
        (here / name).write_text(json.dumps(told))
        with pytest.raises(InputError, match="data_hash was '[0-9a-f]{16}', is '"):
            train(here, tmp_path / "one", **here_run, resume=True)
        (here / name).write_text(text)
    other = Tokenizer.train([" ".join([*tiny_run.WORDS, "two"])])  # another order
    assert other.vocab_size == tokenizer.vocab_size
    (tmp_path / "words.json").write_text(other.to_json())
    with pytest.raises(InputError, match="data_hash"):
        train(here, tmp_path / "one", **here_run, resume=True)


def test_out_is_a_file(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                       monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_p2, "build_encoder", lambda *args: pytest.fail("work came first"))
    (tmp_path / "one").write_text("kept")
    assert f"{tmp_path / 'one'}: is a file" in mistake(options(data, tmp_path / "one"), capsys)
    assert (tmp_path / "one").read_text() == "kept"


def test_precision_auto_is_written_as_what_it_became(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path / "one", epochs=1, precision="auto")
    became = json.loads((tmp_path / "one" / "config.json").read_text())["precision"]
    assert became in ("fp32", "bf16")
    for precision in ("auto", became):
        train(data, tmp_path / "one", epochs=1, precision=precision, resume=True)


def test_another_encoder_under_the_same_name(data: Path, tmp_path: Path) -> None:
    shutil.copy(data / "vit.safetensors", tmp_path / "vit.safetensors")
    train(data, tmp_path / "one", encoder=tmp_path / "vit.safetensors", epochs=1)
    model = minivl.load(tmp_path / "vit.safetensors")
    with torch.no_grad():
        model.pos_embed[0, 1, 2] += 0.5
    minivl.save(model, tmp_path / "vit.safetensors")
    with pytest.raises(InputError, match="other frozen weights"):
        train(data, tmp_path / "one", encoder=tmp_path / "vit.safetensors", epochs=1, resume=True)


def test_an_encoder_that_cannot_be_pooled_so(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = ViTConfig((32, 32), (8, 8), 24, 1, 2, 48, num_classes=0, class_token=False, pool="mean")
    torch.manual_seed(0)
    preprocessing = Preprocessing((32, 32), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    minivl.save(ViT(config, preprocessing=preprocessing), tmp_path / "mean.safetensors")
    told = mistake(options(data, tmp_path / "one", **{**PAIR, "encoder": tmp_path / "mean.safetensors",
                                                      "pool": "class"}), capsys)
    assert "without class_token only" in told and not (tmp_path / "one").exists()
    train(data, tmp_path / "one", **{**PAIR, "encoder": tmp_path / "mean.safetensors", "epochs": 1})
    assert pair_of(tmp_path / "one").config.vision.norm_after_pool
