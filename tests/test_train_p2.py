"""train_p2.py: on photographs and on scenes, stopped and resumed, and what a mistake gets."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_run
import torch
from PIL import Image
from random_models import randomise

import minivl
import train_p2
from minivl.data.captions import read_captions
from minivl.data.scenes import Scenes
from minivl.errors import InputError
from minivl.images import Preprocessing
from minivl.metrics.retrieval import recall_at_k
from minivl.models.captioner import Captioner, CaptionerConfig
from minivl.models.clip import CLIP, CLIPConfig, TextConfig
from minivl.models.decoder import DecoderConfig
from minivl.models.grid import GridConfig
from minivl.models.vit import ViT, ViTConfig
from minivl.text.tokenizer import Tokenizer
from minivl.train import features
from minivl.train.captioning import CaptionTask
from minivl.train.contrasting import KS, ContrastTask
from minivl.train.run import read_history
from minivl.train.selfcritical import SelfCriticalTask
from minivl.train.starting import build_pair

ROOT = Path(__file__).resolve().parents[1]
LEFT = {"best.safetensors", "last.safetensors", "checkpoint.safetensors", "config.json", "history.jsonl",
        "history.png"}

# Python 3.12 warns of forks beside threads; torch's are idle here
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def coco(file: Path, names: list[str], seed: int) -> None:
    """A COCO-JSON of random captions, 2 to 3 of each photo."""
    draw = random.Random(seed)
    images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    annotations = [{"id": 10 * number + place, "image_id": number,
                    "caption": " ".join(draw.choices(tiny_run.WORDS, k=5))}
                   for number in range(len(names)) for place in range(draw.randint(2, 3))]
    file.write_text(json.dumps({"images": images, "annotations": annotations}))


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """photos/, train.json (8 photos), val.json (3 of them) and two small random encoders."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "photos").mkdir()
    draw = np.random.default_rng(0)
    names = [f"{number}.jpg" for number in range(8)]
    for number, name in enumerate(names):
        pixels = draw.integers(0, 256, (4, 6 + number % 3, 3), dtype=np.uint8).repeat(9, 0).repeat(7, 1)
        Image.fromarray(pixels).save(folder / "photos" / name)
    coco(folder / "train.json", names, 1)
    coco(folder / "val.json", names[2:5], 2)
    torch.manual_seed(0)
    config = ViTConfig((32, 32), (8, 8), 24, 2, 2, 48, num_classes=0)
    preprocessing = Preprocessing((32, 32), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    minivl.save(ViT(config, preprocessing=preprocessing), folder / "vit.safetensors")
    classifier = ViT(replace(config, num_classes=5), preprocessing=preprocessing)
    minivl.save(classifier, folder / "classifier.safetensors")
    minivl.save(ViT(config), folder / "unknown.safetensors")
    minivl.save(tiny_run.captioner(), folder / "captioner.safetensors")
    return folder


def options(data: Path, out: Path, /, **changes: Any) -> list[str]:
    """The command line of a small run; a change of None leaves an option out."""
    told = {"images": data / "photos", "captions": data / "train.json", "val-captions": data / "val.json",
            "encoder": data / "vit.safetensors", "freeze-encoder": True, "width": 16, "depth": 1, "heads": 2,
            "min-count": 1, "max-len": 8, "epochs": 2, "batch-size": 6, "refs": 2, "lr": 3e-3, "warmup": 2,
            "ema": 0.9, "beams": 2, "precision": "fp32", "device": "cpu", "out": out,
            "features": out.parent / "features",
            **{key.replace("_", "-"): value for key, value in changes.items()}}
    if "features" not in changes and not (told["freeze-encoder"] and told["images"]):
        del told["features"]  # it would change nothing
    argv = []
    for key, value in told.items():
        if value is not None and value is not False:
            argv += [f"--{key}"] if value is True else [f"--{key}", str(value)]
    return argv


def train(data: Path, out: Path, /, **changes: Any) -> None:
    train_p2.main(options(data, out, **changes))


def story(folder: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in read_history(folder)]


def weights(folder: Path, name: str = "best") -> Captioner:
    model = minivl.load(folder / f"{name}.safetensors", verify=True)
    assert isinstance(model, Captioner)
    return model


# -- photographs ---------------------------------------------------------------------------------------------

@pytest.fixture(scope="session")
def frozen(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on frozen features."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("frozen") / "runs" / "one"
    train(data, out)
    return out


def test_a_run_on_photographs(data: Path, frozen: Path) -> None:
    assert {file.name for file in frozen.iterdir()} == LEFT
    rows = story(frozen)
    assert [row["step"] for row in rows] == [1, 2, 3, 3, 4, 5, 6, 6]  # 8 photos, 3 a batch
    with Image.open(frozen / "history.png") as picture:
        assert picture.size[0] > 300
    config = json.loads((frozen / "config.json").read_text())
    assert config["captions"] == str(data / "train.json")
    assert config["width"] == 16 and config["steps_per_epoch"] == 3
    assert not {"out", "resume", "json", "workers", "device"} & set(config)
    model = weights(frozen)
    scores = [row["cider_d"] for row in rows if "epoch" in row]
    assert model.notes["scores"]["cider_d"] == max(scores) and model.notes["data"] == str(data / "train.json")
    assert weights(frozen, "last").notes["scores"]["cider_d"] == scores[-1]
    vit = minivl.load(data / "vit.safetensors")
    for name, tensor in model.encoder.state_dict().items():
        assert torch.equal(tensor, vit.state_dict()[name]), name
    assert model.preprocessing is not None and model.preprocessing.mode == "squash"
    caption = model.caption([data / "photos" / "3.jpg"], beams=2, max_len=8)[0]
    assert caption.text is not None and set(caption.text.split()) <= set(tiny_run.WORDS)


def test_saved_scores_are_those_of_the_saved_weights(data: Path, frozen: Path) -> None:
    from minivl.train.captioning import score
    told = read_captions(data / "val.json")
    model = weights(frozen)
    said = model.caption([data / "photos" / name for name in told.images], beams=2, max_len=8)
    found = score(said, told.captions)
    assert found.score == pytest.approx(model.notes["scores"]["cider_d"], rel=1e-6)
    assert found.signature == model.notes["scores"]["signature"]


def test_stopped_and_resumed_is_the_same_run(data: Path, frozen: Path, tmp_path: Path,
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = CaptionTask.loss, []

    def stopping(task: CaptionTask, *args: Any) -> Any:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(task, *args)

    with monkeypatch.context() as patched:
        patched.setattr(CaptionTask, "loss", stopping)
        with pytest.raises(KeyboardInterrupt):
            train(data, tmp_path / "one")
    assert story(tmp_path / "one") == story(frozen)[:5]
    # where run and features lie and how it is watched does not matter
    (tmp_path / "one").rename(tmp_path / "two")
    with monkeypatch.context() as patched:
        patched.setattr(CaptionTask, "loss", stopping)
        train(data, tmp_path / "two", resume=True, features=tmp_path / "others", workers=1, json=True)
    assert len(calls) == 7  # the fifth that was stopped, again, and the last one
    assert story(tmp_path / "two") == story(frozen)
    for name in ("best", "last"):
        one, two = (weights(folder, name).state_dict() for folder in (frozen, tmp_path / "two"))
        assert all(torch.equal(tensor, two[key]) for key, tensor in one.items())


def test_resuming_a_finished_run_says_its_result_again(data: Path, frozen: Path, tmp_path: Path,
                                                       capsys: pytest.CaptureFixture[str]) -> None:
    before = story(frozen)
    (frozen / "history.png").unlink()
    train(data, frozen, resume=True)
    assert story(frozen) == before and {file.name for file in frozen.iterdir()} == LEFT
    assert str(frozen / "best.safetensors") in capsys.readouterr().out


def test_json_lines(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(data, tmp_path / "one", json=True, epochs=1, mirror=True, drop_tokens=0.2, max_len=4)
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert rows[0]["images"] == 8 and rows[0]["vocabulary"] <= 4 + len(tiny_run.WORDS)
    assert rows[0]["cut_captions"] == len(json.loads((data / "train.json").read_text())["annotations"])
    assert rows[1]["epoch"] == 1 and rows[1]["cider_d"] == rows[2]["cider_d"]
    assert len(list((tmp_path / "features").iterdir())) == 2  # plain and mirrored


def test_encoder_that_learns(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path / "one", encoder=data / "classifier.safetensors", freeze_encoder=None, epochs=1,
          fit="crop", precision="bf16", norm="post", positions="sinusoidal", tied=None, no_tied=True,
          pieces="bpe", ema=0)
    model = weights(tmp_path / "one")
    vit = minivl.load(data / "classifier.safetensors").state_dict()
    name = "blocks.0.mlp.fc1.weight"
    assert not torch.equal(model.encoder.state_dict()[name], vit[name])
    assert not (tmp_path / "features").exists()
    assert model.preprocessing is not None and model.preprocessing.mode == "crop"
    assert not model.config.decoder.tied and model.config.decoder.norm == "post"


@pytest.mark.parametrize("objective", ["caption", "contrastive", "scst"])
def test_mirrored_while_the_encoder_learns(data: Path, frozen: Path, frozen_pair: Path, tmp_path: Path, objective: str,
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    """Mirrored photos change the losses; a run that is stopped goes on as it would have, and what judges captions sees
    the photos as they are."""
    judge = {"reward_clip": 1.0, "reward_weights": frozen_pair / "best.safetensors"}
    changes = {"freeze_encoder": None, **{"caption": {}, "contrastive": PAIR, "scst": scst(frozen, **judge)}[objective]}
    shown = []
    real = train_p2.image_features
    monkeypatch.setattr(train_p2, "image_features",
                        lambda clip, photos, **told: shown.append(list(photos)) or real(clip, photos, **told))
    train(data, tmp_path / "plain", **changes)
    train(data, tmp_path / "mirrored", **changes, mirror=True)
    assert step_losses(tmp_path / "plain") != step_losses(tmp_path / "mirrored")
    task: Any = {"caption": CaptionTask, "contrastive": ContrastTask, "scst": SelfCriticalTask}[objective]
    loss, calls = task.loss, []

    def stops(*args: Any) -> Any:
        calls.append(None)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return loss(*args)

    with monkeypatch.context() as patched:
        patched.setattr(task, "loss", stops)
        with pytest.raises(KeyboardInterrupt):
            train(data, tmp_path / "parts", **changes, mirror=True)
    assert calls == [None, None]
    train(data, tmp_path / "parts", **changes, mirror=True, resume=True)
    assert story(tmp_path / "parts") == story(tmp_path / "mirrored")
    assert shown == ([[data / "photos" / f"{number}.jpg" for number in range(8)]] * 4 if objective == "scst" else [])


@pytest.mark.parametrize("objective", ["caption", "contrastive", "scst"])
def test_stored_views(data: Path, frozen: Path, tmp_path: Path, objective: str,
                      monkeypatch: pytest.MonkeyPatch) -> None:
    """Views are computed once, every one of them is shown, and more of them find those that are there."""
    changes = {"epochs": 3, **{"caption": {}, "contrastive": PAIR, "scst": scst(frozen, epochs=3)}[objective]}
    task: Any = {"caption": CaptionTask, "contrastive": ContrastTask, "scst": SelfCriticalTask}[objective]
    init, seen = task.__init__, []
    monkeypatch.setattr(task, "__init__", lambda own, *args, **told: seen.append(args + (told["views"],)) or
                        init(own, *args, **told))
    features = tmp_path / "features"
    train(data, tmp_path / "three", **changes, views=3)
    assert len(list(features.iterdir())) == 3 and seen[-1][-1] == 3
    images = seen[-1][2 if objective == "scst" else 1]
    assert len(images) == 24
    rows = images[list(range(24))]
    assert len({tuple(row.flatten().float().tolist()) for row in rows}) == 24
    with monkeypatch.context() as patched:
        patched.setattr("minivl.train.features._encode", lambda *args: pytest.fail("encoded again"))
        train(data, tmp_path / "again", **changes, views=3)
    assert story(tmp_path / "again") == story(tmp_path / "three")
    train(data, tmp_path / "four", **changes, views=4, mirror=True)
    assert len(list(features.iterdir())) == 4
    train(data, tmp_path / "others", **changes, views=3, no_mirror=True)
    assert len(list(features.iterdir())) == 6  # never mirrored: two others
    train(data, tmp_path / "wide", **changes, views=3, crop_scale=0.9)
    assert len(list(features.iterdir())) == 8
    losses = [step_losses(tmp_path / name) for name in ("three", "others", "wide")]
    assert losses[0] != losses[1] != losses[2] != losses[0]


def test_recipe_and_options(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "small.json").write_text(json.dumps({"about": "small", "epochs": 7, "width": 32}))
    monkeypatch.setattr(train_p2, "HERE", tmp_path)
    train(data, tmp_path / "one", recipe="small", epochs=1, width=None)
    config = json.loads((tmp_path / "one" / "config.json").read_text())
    assert config["width"] == 32 and config["epochs"] == 1 and config["recipe"] == "small"


# -- scenes --------------------------------------------------------------------------------------------------

SCENES = {"images": None, "captions": None, "val_captions": None, "freeze_encoder": None, "scenes": 12,
          "val_scenes": 4, "epochs": 14, "lr": 0.02, "dropout": 0, "smoothing": 0, "max_len": 12, "batch_size": 12,
          "beams": 1}


def scenes_run(out: Path) -> None:
    assert {file.name for file in out.iterdir()} == LEFT
    model = weights(out)
    look = model.notes["look"]
    assert look["layer"] == 0 and look["heads"] in ("mean", [0], [1]) and look["scenes"] == 12
    assert model.notes["data"] == "scenes"
    assert json.loads((out / "config.json").read_text())["look"] == look
    assert [row["step"] for row in read_history(out) if "loss" in row] == list(range(1, 29))


def test_scenes(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path / "one", **SCENES)
    scenes_run(tmp_path / "one")
    train(data, tmp_path / "one", resume=True, **SCENES)
    scenes_run(tmp_path / "one")


def test_scenes_before_anything_is_named(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                         capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("minivl.train.looks.collect", lambda *args, **options: [])
    train(data, tmp_path / "one", **{**SCENES, "epochs": 1})
    assert "the captions name nothing yet" in capsys.readouterr().out
    assert "look" not in weights(tmp_path / "one").notes
    assert json.loads((tmp_path / "one" / "config.json").read_text())["look"] is None


def test_scenes_with_a_frozen_encoder(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    real = features.encode_images
    monkeypatch.setattr(features, "encode_images",
                        lambda encoder, images, **options: told.append(len(images)) or real(encoder, images, **options))
    train(data, tmp_path / "one", **{**SCENES, "freeze_encoder": True, "epochs": 2})
    assert told == [12, 4]  # once, not in every epoch
    model = weights(tmp_path / "one")
    vit = minivl.load(data / "vit.safetensors").state_dict()
    assert all(torch.equal(tensor, vit[name]) for name, tensor in model.encoder.state_dict().items())
    # the stored features are those of the model's own encoder
    from minivl.train.captioning import score
    scenes = list(Scenes(4, start=train_p2.VAL_START, size=32))
    said = model.caption([scene.image for scene in scenes], beams=1, max_len=12)
    found = score(said, {str(number): scene.captions for number, scene in enumerate(scenes)})
    assert found.score == pytest.approx(model.notes["scores"]["cider_d"], rel=1e-6)


# -- image-text pairs ----------------------------------------------------------------------------------------

PAIR = {"objective": "contrastive", "refs": None, "beams": None, "embed_dim": 12}
RECALLS = [f"{way}_r{k}" for way in ("image_to_text", "text_to_image") for k in KS]


def pair_of(folder: Path, name: str = "best") -> CLIP:
    model = minivl.load(folder / f"{name}.safetensors", verify=True)
    assert isinstance(model, CLIP)
    return model


@pytest.fixture(scope="session")
def frozen_pair(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a pair on frozen features."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("pair") / "runs" / "one"
    train(data, out, **PAIR)
    return out


def test_a_pair_on_photographs(data: Path, frozen_pair: Path) -> None:
    assert {file.name for file in frozen_pair.iterdir()} == LEFT
    rows = story(frozen_pair)
    assert [row["step"] for row in rows] == [1, 2, 2, 3, 4, 4]  # 8 photos, 4 and 4
    epochs = [row for row in rows if "epoch" in row]
    assert list(epochs[0])[:4] == ["epoch", "step", "train_loss", "mean_recall"] and set(RECALLS) < set(epochs[0])
    config = json.loads((frozen_pair / "config.json").read_text())
    assert config["objective"] == "contrastive" and config["refs"] == 1 and config["mirror"] is True
    assert all(config[name] is None for name in ("norm", "positions", "tied", "smoothing", "drop_tokens", "beams"))
    model = pair_of(frozen_pair)
    assert model.notes["scores"]["mean_recall"] == max(row["mean_recall"] for row in epochs)
    assert model.notes["scores"]["signature"].startswith("recall|images:3|captions:")
    told = str(data / "train.json")
    assert model.notes["name"] == f"an image-text pair trained by minivl on {told}" and model.notes["data"] == told
    assert model.preprocessing is not None and model.preprocessing.mode == "squash"
    vit = minivl.load(data / "vit.safetensors").state_dict()
    state = model.visual.state_dict()
    assert {name for name in state if name not in vit} == {"head.weight"} and state["head.weight"].shape == (12, 24)
    assert all(torch.equal(tensor, state[name]) for name, tensor in vit.items())
    start = build_pair(train_p2.parse(options(data, frozen_pair, **PAIR)),
                       minivl.load(data / "vit.safetensors"), model.tokenizer)  # type: ignore[arg-type]
    assert not torch.equal(start.visual.head.weight, model.visual.head.weight)  # type: ignore[arg-type]
    assert not torch.equal(start.text.blocks[0].mlp.fc1.weight, model.text.blocks[0].mlp.fc1.weight)


def test_saved_recalls_are_those_of_the_saved_pair(data: Path, frozen_pair: Path) -> None:
    """Photos opened anew and captions tokenised by the file alone give the scores that training noted."""
    told = read_captions(data / "val.json")
    model = pair_of(frozen_pair)
    images, _ = minivl.preprocess([data / "photos" / name for name in told.images], model)
    texts = [text for name in told.images for text in told.captions[name]]
    owner = [number for number, name in enumerate(told.images) for _ in told.captions[name]]
    with torch.no_grad():
        found = recall_at_k(model(images, model.tokenize(texts)), ks=KS, owner=owner)
    scores = model.notes["scores"]
    assert [scores[name] for name in RECALLS] == [*found.image_to_text.values(), *found.text_to_image.values()]


def test_a_stopped_pair_is_resumed_as_the_same_run(data: Path, frozen_pair: Path, tmp_path: Path,
                                                   monkeypatch: pytest.MonkeyPatch,
                                                   capsys: pytest.CaptureFixture[str]) -> None:
    real, calls = ContrastTask.loss, []

    def stopping(task: ContrastTask, *args: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(task, *args)

    monkeypatch.setattr(ContrastTask, "loss", stopping)
    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "one", **PAIR)
    assert story(tmp_path / "one") == story(frozen_pair)[:4]
    train(data, tmp_path / "one", resume=True, **PAIR)
    assert story(tmp_path / "one") == story(frozen_pair)
    for name in ("best", "last"):
        one, two = (pair_of(folder, name).state_dict() for folder in (frozen_pair, tmp_path / "one"))
        assert all(torch.equal(tensor, two[key]) for key, tensor in one.items())
    capsys.readouterr()
    train(data, tmp_path / "one", resume=True, **PAIR)
    assert "best: R@1/5/10 % picture to text " in capsys.readouterr().out
    with pytest.raises(InputError, match="cannot resume with other settings: beams was None, is 2"):
        train(data, tmp_path / "one", resume=True)


def test_pair_and_captioner_share_their_cached_features(data: Path, tmp_path: Path,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    train(data, tmp_path / "one", epochs=1)
    monkeypatch.setattr(features, "_encode", lambda *args: pytest.fail("photos are encoded again"))
    for pool in (None, "mean", "class+mean"):
        train(data, tmp_path / str(pool), epochs=1, pool=pool, **PAIR)
        model = pair_of(tmp_path / str(pool))
        assert model.config.vision.pool == (pool or "class") and not model.config.vision.norm_after_pool
        scores, told = model.notes["scores"], read_captions(data / "val.json")
        with torch.no_grad():
            images, _ = minivl.preprocess([data / "photos" / name for name in told.images], model)
            texts = [text for name in told.images for text in told.captions[name]]
            owner = [number for number, name in enumerate(told.images) for _ in told.captions[name]]
            found = recall_at_k(model(images, model.tokenize(texts)), ks=KS, owner=owner)
        assert [scores[name] for name in RECALLS] == [*found.image_to_text.values(), *found.text_to_image.values()]


def test_a_pair_whose_image_tower_learns(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(data, tmp_path / "one", encoder=data / "classifier.safetensors", freeze_encoder=None, epochs=1, fit="crop",
          precision="bf16", pieces="bpe", ema=0, json=True, workers=1, max_len=5,
          **{**PAIR, "refs": 2, "embed_dim": None})
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert rows[0]["cut_captions"] > 0 and rows[1]["mean_recall"] == rows[2]["mean_recall"] and rows[1]["step"] == 3
    model = pair_of(tmp_path / "one")
    vit = minivl.load(data / "classifier.safetensors").state_dict()
    name = "blocks.0.mlp.fc1.weight"
    assert not torch.equal(model.visual.state_dict()[name], vit[name]) and not (tmp_path / "features").exists()
    assert model.config.text.embed_dim == 256 and model.preprocessing is not None
    assert model.preprocessing.mode == "crop" and model.tokenizer is not None
    assert model.tokenize(["a red dog runs"])[0, -1] == model.tokenizer.eos_id  # a long text keeps its end


@pytest.mark.parametrize("freeze", [None, True])
def test_a_pair_on_scenes(data: Path, tmp_path: Path, freeze: bool | None) -> None:
    changes = {**SCENES, **PAIR, "smoothing": None, "epochs": 2, "freeze_encoder": freeze}
    train(data, tmp_path / "one", **changes)
    model = pair_of(tmp_path / "one")
    assert model.notes["name"] == "an image-text pair trained by minivl on scenes" and "look" not in model.notes
    assert "look" not in json.loads((tmp_path / "one" / "config.json").read_text())
    images, _ = minivl.preprocess([scene.image for scene in Scenes(4, start=train_p2.VAL_START, size=32)], model)
    with torch.no_grad():
        assert model(images, model.tokenize(["a red star", "two blue boxes"])).shape == (4, 2)


@pytest.mark.parametrize("changes", [{}, PAIR])
def test_a_captioner_gives_its_encoder(data: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    train(data, tmp_path / "one", encoder=data / "captioner.safetensors", epochs=1, fit="crop", **changes)
    model, theirs = minivl.load(tmp_path / "one" / "best.safetensors"), minivl.load(data / "captioner.safetensors")
    assert isinstance(theirs, Captioner) and isinstance(model, (Captioner, CLIP))
    state = (model.visual if isinstance(model, CLIP) else model.encoder).state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in theirs.encoder.state_dict().items())
    assert model.preprocessing == replace(tiny_run.PREPROCESSING, mode="crop")


def test_a_clip_gives_its_image_tower_to_a_pair(data: Path, frozen_pair: Path, tmp_path: Path) -> None:
    best = frozen_pair / "best.safetensors"
    train(data, tmp_path / "one", encoder=best, epochs=1, **{**PAIR, "embed_dim": 5})
    ours, theirs = pair_of(tmp_path / "one"), pair_of(frozen_pair)
    assert torch.equal(ours.visual.norm.weight, theirs.visual.norm.weight)
    assert ours.config.vision.num_classes == 5 and ours.notes["encoder"] == str(best)


@pytest.mark.parametrize("changes, told", [
    ({"norm": "pre"}, "--norm does not go with --objective contrastive: the text tower"),
    ({"positions": "learned"}, "--positions does not go"), ({"tied": True}, "--tied does not go"),
    ({"no-tied": True}, "--tied does not go"), ({"beams": 3}, "--beams does not go"),
    ({"smoothing": 0.0}, "--smoothing does not go"), ({"drop_tokens": 0.0}, "--drop-tokens does not go"),
    ({"objective": "caption"}, "--embed-dim does not go with --objective caption: a captioner has no"),
    ({"objective": "caption", "embed_dim": None, "pool": "mean"}, "--pool does not go with --objective caption"),
    ({"pool": "max"}, "--pool"), ({"objective": "both"}, "--objective"), ({"embed_dim": 0}, "--embed-dim 0: give 1"),
    ({"batch_size": 1}, "--batch-size 1 must hold at least the --refs 1 of each of two pictures"),
    ({"batch_size": 5, "refs": 3}, "--batch-size 5"), ({"max_len": 1}, "--max-len 1: give 2"),
    ({"refs": 0}, "--refs 0"), ({"width": 15}, "15"), ({"heads": 3}, "3"), ({"dropout": 1.0}, "--dropout"),
    ({**SCENES, "smoothing": None, "beams": None, "scenes": 1}, "--scenes 1: give 2"),
    ({"encoder": "scenes_patch8_96"}, "--freeze-encoder: scenes_patch8_96 is a preset"),
    ({"resume": True}, "nothing to resume"),
    ({"nouns": True}, "--nouns is for the built-in scenes"),
    ({"objective": "caption", "embed_dim": None, "nouns": True}, "--nouns does not go with --objective caption")])
def test_what_a_pair_does_not_take(data: Path, tmp_path: Path, changes: dict[str, Any], told: str,
                                   capsys: pytest.CaptureFixture[str]) -> None:
    assert told in mistake(options(data, tmp_path / "one", **{**PAIR, **changes}), capsys)
    assert list(tmp_path.iterdir()) == []


def test_captions_of_one_noun(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are trained on, and not scored."""
    seen: list[list[tuple[str, ...]]] = []
    task = train_p2.contrasting.ContrastTask

    def told(model: CLIP, images: Any, captions: Any, val_images: Any, val_captions: Any, **more: Any) -> Any:
        seen.append([tuple(one) for one in (*captions, *val_captions)])
        return task(model, images, captions, val_images, val_captions, **more)

    monkeypatch.setattr(train_p2.contrasting, "ContrastTask", told)
    train(data, tmp_path / "one", **{**PAIR, **SCENES, "smoothing": None, "beams": None, "scenes": 4, "nouns": True,
                                     "epochs": 1})
    scenes = [*Scenes(4, size=32)], [*Scenes(len(seen[0]) - 4, start=train_p2.VAL_START, size=32)]
    assert seen[0][:4] == [scene.captions + scene.named() for scene in scenes[0]]
    assert seen[0][4:] == [scene.captions for scene in scenes[1]]


def test_mistakes_of_pairs_in_files(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = json.loads((data / "val.json").read_text())
    one = {**told, "images": told["images"][:1],
           "annotations": [note for note in told["annotations"] if note["image_id"] == 0]}
    (tmp_path / "val.json").write_text(json.dumps(one))
    line = mistake(options(data, tmp_path / "one", **{**PAIR, "val_captions": tmp_path / "val.json"}), capsys)
    assert f"--val-captions {tmp_path / 'val.json'}: 8 training and 1 validation pictures" in line
    (tmp_path / "train.json").write_text(json.dumps(one))
    line = mistake(options(data, tmp_path / "one", **{**PAIR, "captions": tmp_path / "train.json"}), capsys)
    assert line.startswith(f"--captions {tmp_path / 'train.json'}, ") and "1 training and 3 validation" in line
    tokenizer = tiny_run.captioner().tokenizer
    assert tokenizer is not None
    described = json.loads(tokenizer.to_json())
    text = json.dumps(described).replace("[UNK]", "nothing")
    (tmp_path / "words.json").write_text(text)
    changes = {**PAIR, "tokenizer": tmp_path / "words.json", "min_count": None}
    line = mistake(options(data, tmp_path / "one", **changes), capsys)
    assert line.startswith(f"{tmp_path / 'words.json'}: has no token of its own for unknown words")
    assert not (tmp_path / "one").exists() and not (tmp_path / "features").exists()


@pytest.mark.parametrize("changes, told", [({"read": "all"}, "--read does not go with --objective contrastive"),
                                           ({"bucket": True}, "--bucket does not go with --objective"),
                                           ({"scheduled_sampling": 0.1}, "--scheduled-sampling does not go with"),
                                           ({"accumulate": 2}, "--accumulate does not go with --objective contrastive"),
                                           ({"sam": 0.1, "sam_local": True}, "--sam-local does not go with"),
                                           ({"shard": True}, "--shard does not go with --objective contrastive")])
def test_what_no_contrast_can_be_divided_by(data: Path, tmp_path: Path, changes: dict[str, Any], told: str,
                                            capsys: pytest.CaptureFixture[str]) -> None:
    assert told in mistake(options(data, tmp_path / "one", **PAIR, **changes), capsys)


# -- as classifiers are trained ------------------------------------------------------------------------------------

def step_losses(folder: Path) -> list[float]:
    return [row["loss"] for row in read_history(folder) if "loss" in row]


LEARNS = {"freeze_encoder": None, "dropout": 0, "drop_words": 0.2, "drop_tokens": 0.2}


def test_every_option_of_the_optimiser(data: Path, tmp_path: Path) -> None:
    """SGD with SAM and steps of the rate, in one go and in micro-batches of blocks computed twice."""
    told = {**LEARNS, "optimizer": "sgd", "momentum": 0.5, "sam": 0.05, "sam_adaptive": True, "schedule": "step",
            "factor": 0.25, "period": 1, "lr": 0.01, "layer_decay": 0.5, "scheduled_sampling": 1.0, "read": "all",
            "bucket": True}
    train(data, tmp_path / "one", **told)
    train(data, tmp_path / "two", accumulate=3, checkpointing=True, **told)
    assert step_losses(tmp_path / "two") == pytest.approx(step_losses(tmp_path / "one"), abs=1e-6)
    rows = [row for row in read_history(tmp_path / "one") if "lr" in row]
    half = len(rows) // 2
    assert [row["lr"] for row in rows] == pytest.approx([0.005] + [0.01] * (half - 1) + [0.0025] * half)
    config = json.loads((tmp_path / "two" / "config.json").read_text())
    assert config["scheduled_sampling"] == 1.0 and config["read"] == "all" and config["optimizer"] == "sgd"


@pytest.mark.parametrize("changes", [LEARNS, {**PAIR, "freeze_encoder": None, "dropout": 0}])
def test_compiled_and_stopped_by_the_clock(data: Path, tmp_path: Path, changes: dict[str, Any],
                                           monkeypatch: pytest.MonkeyPatch,
                                           capsys: pytest.CaptureFixture[str]) -> None:
    train(data, tmp_path / "one", **changes)
    asked: list[Any] = []

    def compiled(model: Any) -> Any:  # as torch.compile traces it, without code being generated
        asked.append(model)
        return real(model, backend="eager")

    real = torch.compile
    monkeypatch.setattr(torch, "compile", compiled)
    capsys.readouterr()
    train(data, tmp_path / "two", compile=True, time_limit=1e-9, **changes)
    assert len(step_losses(tmp_path / "two")) == 1 and "best" not in capsys.readouterr().out
    while len(step_losses(tmp_path / "two")) < 3:
        train(data, tmp_path / "two", compile=True, time_limit=1e-9, resume=True, **changes)
    train(data, tmp_path / "two", resume=True, **changes)
    assert step_losses(tmp_path / "two") == pytest.approx(step_losses(tmp_path / "one"), abs=1e-6)
    assert len(asked) == 3


@pytest.mark.parametrize("changes", [{}, LEARNS])
def test_half_precision(data: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    for precision in ("fp32", "fp16"):
        train(data, tmp_path / precision, precision=precision, **changes)
    found, wanted = (step_losses(tmp_path / precision) for precision in ("fp16", "fp32"))
    assert found != wanted and found == pytest.approx(wanted, rel=0.02)


def test_half_precision_of_a_pair(data: Path, tmp_path: Path) -> None:
    """Steps whose gradients overflow are left out until the scale fits; then it learns."""
    for precision in ("fp32", "fp16"):
        train(data, tmp_path / precision, precision=precision, **{**PAIR, "epochs": 12, "drop_words": 0, "dropout": 0})
    found, wanted = (step_losses(tmp_path / precision) for precision in ("fp16", "fp32"))
    assert found != wanted and found[0] == pytest.approx(wanted[0], rel=1e-3)
    assert found[-1] < found[0] - 0.1


# -- from a trained model ----------------------------------------------------------------------------------------

GIVEN = {"encoder": None, "width": None, "depth": None, "heads": None, "min_count": None, "max_len": None}
STAYS = {"lr": 0, "ema": 0, "weight_decay": 0, "epochs": 1}  # weights stay as they are


@pytest.fixture(scope="session")
def starts(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A captioner and a pair over other encoders and words than those of `data`, every parameter random."""
    folder = tmp_path_factory.mktemp("starts")
    told = tiny_run.captioner()
    tokenizer = Tokenizer.train([" ".join([*tiny_run.WORDS, "blue"])])  # another order
    preprocessing = Preprocessing((24, 24), (0.4, 0.5, 0.6), (0.3, 0.2, 0.4), mode="crop")
    vision = ViTConfig((24, 24), (8, 8), 16, 3, 2, 24, num_classes=0, pre_norm=True)
    decoder = replace(told.config.decoder, vocab_size=tokenizer.vocab_size, max_len=9, dropout=0.25)
    captioner = Captioner(CaptionerConfig(vision, decoder), tokenizer=tokenizer, preprocessing=preprocessing,
                          notes={"look": {"layer": 0}, "scores": {"cider_d": 9.0}, "kept": 1})
    text = TextConfig(tokenizer.vocab_size, 16, 2, 2, 32, 6, max_len=9, bos_id=tokenizer.bos_id, dropout=0.25,
                      eot_id=tokenizer.eos_id, pad_id=tokenizer.pad_id)
    pair = CLIP(CLIPConfig(replace(vision, num_classes=6, head_bias=False, pool="class+mean"), text),
                tokenizer=tokenizer, preprocessing=preprocessing)
    for name, model in (("caption", captioner), ("contrastive", pair)):
        randomise(model, 3)
        minivl.save(model, folder / f"{name}.safetensors")
    return {name: folder / f"{name}.safetensors" for name in ("caption", "contrastive")}


def begun(starts: dict[str, Path], objective: str, **changes: Any) -> dict[str, Any]:
    """Options of a run that starts from one of them."""
    own: dict[str, Any] = {**PAIR, "embed_dim": None} if objective == "contrastive" else {}
    return {**GIVEN, **own, "init": starts[objective], "freeze_encoder": None, **changes}


@pytest.mark.parametrize("objective", ["caption", "contrastive"])
@pytest.mark.parametrize("freeze", [None, True])
def test_init_is_the_file(data: Path, starts: dict[str, Path], tmp_path: Path, objective: str,
                          freeze: bool | None) -> None:
    train(data, tmp_path / "one", **begun(starts, objective, freeze_encoder=freeze, dropout=0.125, **STAYS))
    found, wanted = (minivl.load(path) for path in (tmp_path / "one" / "best.safetensors", starts[objective]))
    assert isinstance(found, (Captioner, CLIP)) and isinstance(wanted, (Captioner, CLIP))
    assert wanted.state_dict().keys() == found.state_dict().keys()
    assert all(torch.equal(tensor, found.state_dict()[name]) for name, tensor in wanted.state_dict().items())
    assert found.tokenizer is not None and wanted.tokenizer is not None
    assert found.tokenizer.to_json() == wanted.tokenizer.to_json() and found.preprocessing == wanted.preprocessing
    part = "decoder" if objective == "caption" else "text"
    theirs = getattr(wanted.config, part)
    assert theirs.dropout == 0.25
    assert found.config == replace(wanted.config, **{part: replace(theirs, dropout=0.125)})
    assert found.notes["init"] == str(starts[objective]) and found.notes.get("kept") == wanted.notes.get("kept")
    assert "look" not in found.notes and found.notes["scores"].get("cider_d") != 9.0
    assert (tmp_path / "features").exists() == bool(freeze)
    config = json.loads((tmp_path / "one" / "config.json").read_text())
    assert config["max_len"] == 8 and config["width"] is None  # its room


def test_scores_of_a_frozen_start_are_those_of_the_file(data: Path, starts: dict[str, Path], tmp_path: Path) -> None:
    from minivl.train.captioning import score
    train(data, tmp_path / "one", **begun(starts, "caption", freeze_encoder=True, **STAYS))
    told, model = read_captions(data / "val.json"), minivl.load(starts["caption"])
    assert isinstance(model, Captioner)
    said = model.caption([data / "photos" / name for name in told.images], beams=2, max_len=8)
    assert score(said, told.captions).score == pytest.approx(weights(tmp_path / "one").notes["scores"]["cider_d"])


@pytest.mark.parametrize("objective", ["caption", "contrastive"])
@pytest.mark.parametrize("freeze", [None, True])
@pytest.mark.parametrize("fresh", [False, True])
def test_pictures_of_another_size(data: Path, starts: dict[str, Path], tmp_path: Path, objective: str,
                                  freeze: bool | None, fresh: bool) -> None:
    told = {**(PAIR if objective == "contrastive" else {}), "freeze_encoder": freeze} if fresh else \
        begun(starts, objective, freeze_encoder=freeze)
    train(data, tmp_path / "one", **{**told, "image_size": 40, **STAYS})
    found, wanted = (minivl.load(path) for path in (tmp_path / "one" / "best.safetensors",
                                                    data / "vit.safetensors" if fresh else starts[objective]))
    assert isinstance(found, (Captioner, CLIP)) and found.preprocessing is not None
    tower = found.visual if isinstance(found, CLIP) else found.encoder
    before = wanted.visual if isinstance(wanted, CLIP) else wanted.encoder if isinstance(wanted, Captioner) else wanted
    assert tower.config.image_size == found.preprocessing.size == (40, 40) != before.config.image_size
    before.resize(40)
    same = [name for name, tensor in before.state_dict().items() if not name.startswith("head.")
            and torch.equal(tensor, tower.state_dict()[name])]
    assert "pos_embed" in same and len(same) > 20


def test_scenes_of_another_size(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path / "one", **{**SCENES, "encoder": "scenes_patch8_96", "epochs": 1, "lr": 0, "weight_decay": 0,
                                     "image_size": 48})
    encoder = weights(tmp_path / "one").encoder
    assert encoder.config.image_size == (48, 48)
    assert encoder.pos_embed.std().item() == pytest.approx(0.02, rel=0.1)  # drawn at this size, not made smaller


@pytest.mark.parametrize("objective", ["caption", "contrastive"])
def test_only_the_last_block_moves(data: Path, starts: dict[str, Path], tmp_path: Path, objective: str) -> None:
    train(data, tmp_path / "one", **begun(starts, objective, unfreeze=1, epochs=1, ema=0, lr=0.01, encoder_lr=0.001))
    found, wanted = (minivl.load(path).state_dict() for path in (tmp_path / "one" / "last.safetensors",
                                                                 starts[objective]))
    prefix = "encoder." if objective == "caption" else "visual."
    for name, tensor in wanted.items():
        moves = not name.startswith(prefix) or name.startswith(tuple(
            f"{prefix}{part}" for part in ("blocks.2.", "norm.", "head.")))
        if "k_proj.bias" not in name and name != "visual.blocks.2.attn.q_proj.bias":  # a bias of keys has no gradient
            assert torch.equal(tensor, found[name]) != moves, name
    moved = {part: max((found[name] - tensor).abs().max() for name, tensor in wanted.items() if name.startswith(part))
             for part in (f"{prefix}blocks.2.mlp", "proj." if objective == "caption" else "text.blocks.0.mlp")}
    first, second = moved.values()
    assert 0 < first < 0.3 * second  # AdamW moves by the rate, whatever the gradient


@pytest.mark.parametrize("changes, told", [
    ({name: value}, f"--{name.replace('_', '-').removeprefix('no-')} does not go with --init, whose file says it")
    for name, value in (("encoder", "x"), ("tokenizer", "x"), ("pieces", "bpe"), ("vocab_size", 30), ("min_count", 2),
                        ("width", 8), ("depth", 2), ("heads", 2), ("norm", "pre"), ("positions", "learned"),
                        ("tied", True), ("no_tied", True), ("fit", "crop"))] + [
    ({"unfreeze": 1, "freeze_encoder": True}, "--unfreeze is for an encoder that is trained"),
    ({"encoder_lr": 1e-4, "freeze_encoder": True}, "--encoder-lr is for an encoder that is trained"),
    ({"layer_decay": 0.5, "freeze_encoder": True}, "--layer-decay is for an encoder that is trained"),
    ({"checkpointing": True, "freeze_encoder": True}, "--checkpointing is for an encoder that is trained"),
    ({"image_size": 30}, "caption.safetensors: image_size (30, 30) is not a whole number of patches (8, 8): 24 or 32 "
     "would be"), ({"image_size": 5}, "(8, 8): 8 would be"),
    ({"image_size": 0}, "--image-size 0: give 1 or more"), ({"image_size": 4097}, "at most 4096 pixels a side"),
    ({"accumulate": 0}, "--accumulate 0: give 1"), ({"sam_adaptive": True}, "sam_adaptive"),
    ({"shard": True}, "--shard: there is one process"), ({"time_limit": -1}, "time_limit=-1"),
    ({"unfreeze": 0}, "--unfreeze 0: give 1 or more"), ({"unfreeze": 4}, "unfreeze=4: the encoder has 3 blocks"),
    ({"encoder_lr": -1}, "encoder_lr=-1.0"), ({"layer_decay": 2}, "layer_decay=2"),
    ({"max_len": 9}, "--max-len 9: it has room for 8 tokens, give at most that"),
    ({"init": "none.safetensors"}, "none.safetensors")])
def test_what_does_not_go_with_init(data: Path, starts: dict[str, Path], tmp_path: Path, changes: dict[str, Any],
                                    told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert told in mistake(options(data, tmp_path / "one", **begun(starts, "caption", **changes)), capsys)
    assert list(tmp_path.iterdir()) == []


def test_what_no_start_is(data: Path, starts: dict[str, Path], tmp_path: Path,
                          capsys: pytest.CaptureFixture[str]) -> None:
    def line(objective: str = "caption", **changes: Any) -> str:
        return mistake(options(data, tmp_path / "one", **begun(starts, objective, **changes)), capsys)

    for objective, other in (("caption", "contrastive"), ("contrastive", "caption")):
        assert f"{starts[other]}: is no " in line(objective, init=starts[other])
    assert "an encoder alone is for --encoder" in line(init=data / "vit.safetensors")
    assert "preset without published weights" in line(init="scenes_patch8_96")
    for name, value in (("pool", "mean"), ("embed_dim", 7)):
        assert f"--{name.replace('_', '-')} does not go with --init" in line("contrastive", **{name: value})
    minivl.save(Captioner(CaptionerConfig(GridConfig(8, 1, 2, 8, layers=(1, 1, 1, 1)), replace(
        tiny_run.captioner().config.decoder, memory_width=16)), tokenizer=tiny_run.captioner().tokenizer,
        preprocessing=Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3)), tmp_path / "grid.safetensors")
    assert f"{tmp_path / 'grid.safetensors'}: is a captioner over a grid" in line(init=tmp_path / "grid.safetensors")
    start = minivl.load(starts["caption"])
    assert isinstance(start, Captioner)
    start.tokenizer = None
    minivl.save(start, tmp_path / "wordless.safetensors")
    assert "has no tokenizer" in line(init=tmp_path / "wordless.safetensors")
    refusal = mistake(options(data, tmp_path / "one", encoder="scenes_patch8_96", freeze_encoder=None, unfreeze=1),
                      capsys)
    assert "--unfreeze: scenes_patch8_96 is a preset with random weights" in refusal
    assert not (tmp_path / "one").exists()


# -- as a program --------------------------------------------------------------------------------------------

def run(argv: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(ROOT / "train_p2.py"), *argv], capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}, cwd=ROOT)


def test_program_trains(data: Path, frozen: Path, tmp_path: Path) -> None:
    done = run(options(data, tmp_path / "one"))
    assert done.returncode == 0, done.stderr
    assert "epoch   2" in done.stdout and str(tmp_path / "one" / "best.safetensors") in done.stdout
    assert story(tmp_path / "one") == story(frozen)  # another process, the same numbers


def test_program_trains_a_pair(data: Path, frozen_pair: Path, tmp_path: Path) -> None:
    done = run(options(data, tmp_path / "one", **PAIR))
    assert done.returncode == 0, done.stderr
    assert "epoch   2" in done.stdout and "text to picture" in done.stdout
    assert story(tmp_path / "one") == story(frozen_pair)  # another process, the same numbers


def test_program_ends_with_one_line_and_code_2(data: Path, tmp_path: Path) -> None:
    done = run(options(data, tmp_path / "one", images=tmp_path / "nowhere"))
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == f"error: {tmp_path / 'nowhere'}: no such folder of images\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_program_on_scenes(data: Path, tmp_path: Path) -> None:
    done = run(options(data, tmp_path / "one", **SCENES))
    assert done.returncode == 0, done.stderr
    scenes_run(tmp_path / "one")
    again = run(options(data, tmp_path / "one", **SCENES))
    assert again.returncode == 2 and again.stderr.count("\n") == 1 and "already holds a run" in again.stderr
    resumed = run([*options(data, tmp_path / "one", **SCENES), "--resume"])
    assert resumed.returncode == 0, resumed.stderr


# -- mistakes ------------------------------------------------------------------------------------------------

def mistake(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a user's mistake gets; exit code 2 either way."""
    capsys.readouterr()
    try:
        train_p2.main(argv)
    except InputError as error:
        line = str(error)
        assert "\n" not in line
    except SystemExit as stopped:
        assert stopped.code == 2
        line = capsys.readouterr().err
        assert line.count("\n") == 1
    else:
        pytest.fail("nothing was wrong")
    assert capsys.readouterr().out == ""  # nothing was begun
    return line


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


# -- self-critical training ----------------------------------------------------------------------------------

NEW = dict.fromkeys(("encoder", "width", "depth", "heads", "min_count", "refs"))
SCST: dict[str, Any] = {**NEW, "objective": "scst", "samples": 3, "batch_size": 3, "epochs": 2, "lr": 1e-2}


def scst(frozen: Path, **changes: Any) -> dict[str, Any]:
    return {**SCST, "init": frozen / "best.safetensors", **changes}


@pytest.mark.parametrize("changes", [{}, {"freeze_encoder": None, "encoder_lr": 1e-3, "baseline": "greedy",
                                          "samples": 1, "accumulate": 2, "scst_dropout": True}])
def test_self_critical_runs(data: Path, frozen: Path, tmp_path: Path, changes: dict[str, Any],
                            capsys: pytest.CaptureFixture[str]) -> None:
    train(data, tmp_path / "one", **scst(frozen, **changes))
    assert "8 training pictures, vocabulary" in (said := capsys.readouterr().out) and " cut at " not in said
    assert {file.name for file in (tmp_path / "one").iterdir()} == LEFT
    rows = story(tmp_path / "one")
    assert [row["step"] for row in rows] == [1, 2, 3, 3, 4, 5, 6, 6]
    rewards = [row["reward"] for row in rows if "loss" in row]
    assert len(rewards) == 6 and all(0 <= reward <= 10 for reward in rewards) and len(set(rewards)) > 1
    start, model = weights(frozen), weights(tmp_path / "one", "last")
    assert not torch.equal(start.decoder.embed.weight, model.decoder.embed.weight)
    moved = not torch.equal(start.encoder.blocks[0].mlp.fc1.weight, model.encoder.blocks[0].mlp.fc1.weight)
    assert moved == bool(changes)
    assert model.notes["init"] == str(frozen / "best.safetensors") and model.notes["scores"]["cider_d"] >= 0


def test_self_critical_stopped_and_resumed(data: Path, frozen: Path, tmp_path: Path,
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    train(data, tmp_path / "whole", **scst(frozen))
    real, calls = SelfCriticalTask.loss, []

    def stops(*args: Any) -> Any:
        calls.append(None)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(SelfCriticalTask, "loss", stops)
        with pytest.raises(KeyboardInterrupt):
            train(data, tmp_path / "parts", **scst(frozen))
    train(data, tmp_path / "parts", resume=True, **scst(frozen))
    assert story(tmp_path / "parts") == story(tmp_path / "whole")


def test_a_pair_judges(data: Path, frozen: Path, frozen_pair: Path, tmp_path: Path) -> None:
    """On photographs and, where the pictures lie in memory, on scenes."""
    judge = {"reward_cider": 0, "reward_clip": 2.0, "reward_weights": frozen_pair / "best.safetensors"}
    train(data, tmp_path / "one", **scst(frozen, epochs=1, **judge))
    rewards = [row["reward"] for row in story(tmp_path / "one") if "loss" in row]
    assert all(0 <= reward <= 5 for reward in rewards) and len(set(rewards)) > 1
    train(data, tmp_path / "two", **{**SCENES, "epochs": 1})
    told = {**SCENES, **SCST, "smoothing": None, "dropout": None, "max_len": None, "epochs": 1}
    train(data, tmp_path / "three", **{**told, "init": tmp_path / "two" / "best.safetensors", "reward_clip": 1.0,
                                       "reward_weights": "scenes-clip"})
    assert {file.name for file in (tmp_path / "three").iterdir()} == LEFT


@pytest.mark.parametrize("changes, told", [
    ({"init": None}, "--objective scst makes a captioner that can already write better: give it as --init"),
    ({"refs": 2}, "--refs does not go with --objective scst: it reads the captions it draws"),
    ({"smoothing": 0.1}, "--smoothing does not go with --objective scst"),
    ({"drop_words": 0.1}, "--drop-words does not go"), ({"read": "all"}, "--read does not go"),
    ({"nouns": True}, "--nouns does not go with --objective scst: a captioner would"),
    ({"width": 8}, "--width does not go with --init"), ({"samples": 1}, "--samples 1: leave-one-out"),
    ({"samples": 0, "baseline": "greedy"}, "--samples 0: give 1"), ({"reward_cider": 0}, "nothing is rewarded"),
    ({"reward_cider": -1}, "--reward-cider -1.0: give a weight"), ({"reward_clip": 1}, "--reward-clip (a weight) and"),
    ({"reward_weights": "scenes-clip"}, "--reward-clip (a weight) and"), ({"temperature": 0}, "--temperature 0.0"),
    ({"objective": "caption", "batch_size": 6}, "--samples does not go with --objective caption: only"),
    ({"dropout": 0.4}, "--dropout 0.4: self-critical training has none"), ({"temperature": "inf"}, "--temperature inf"),
    ({"beams": 10 ** 5}, "beams=100000: the vocabulary has only"),
    ({"reward_clip": 1, "reward_weights": "nowhere"}, "nowhere")])
def test_what_self_critical_training_does_not_take(data: Path, frozen: Path, tmp_path: Path, changes: dict[str, Any],
                                                   told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert told in mistake(options(data, tmp_path / "one", **scst(frozen, **changes)), capsys)
    assert not (tmp_path / "one").exists()


@pytest.mark.parametrize("changes, told", [
    ({"images": None, "captions": None, "val_captions": None, "split": "train"}, "--split is one of the --captions"),
    ({"vocab_size": 0}, "--vocab-size 0: give 1"), ({"beams": 10 ** 6}, "beams=1000000: the vocabulary has only")])
def test_options_that_would_be_ignored_or_fail_late(data: Path, tmp_path: Path, changes: dict[str, Any], told: str,
                                                    capsys: pytest.CaptureFixture[str]) -> None:
    assert told in mistake(options(data, tmp_path / "one", **changes), capsys)
    assert not (tmp_path / "one").exists()


def test_the_encoder_of_a_recipe_may_be_trained_after_all(data: Path, tmp_path: Path) -> None:
    args = train_p2.parse(["--recipe", "flickr8k-deit-tiny-scst", "--init", "captioner", "--no-freeze-encoder",
                           "--out", str(tmp_path / "one")])
    assert args.freeze_encoder is False and args.objective == "scst"


def test_what_no_gradient_reaches_is_not_trained(data: Path, tmp_path: Path) -> None:
    """The norm behind the mean of an encoder that was trained to classify by it."""
    vit = minivl.load(data / "vit.safetensors")
    assert isinstance(vit, ViT)
    mean = ViT(replace(vit.config, pool="mean", norm_after_pool=True), preprocessing=vit.preprocessing)
    minivl.save(mean, tmp_path / "mean.safetensors")
    args = train_p2.parse(options(data, tmp_path / "one", encoder=tmp_path / "mean.safetensors", freeze_encoder=None))
    encoder = train_p2.build_encoder(args, None)
    tokenizer = tiny_run.captioner().tokenizer
    assert tokenizer is not None
    model = train_p2.build_model(args, encoder, tokenizer, None)
    assert isinstance(model, Captioner)
    model(torch.randn(2, 3, 32, 32), torch.tensor([[2, 5, 6], [2, 7, 4]])).square().sum().backward()
    unreached = [name for name, one in model.named_parameters() if one.requires_grad and one.grad is None]
    assert unreached == [] and not model.encoder.fc_norm.weight.requires_grad  # type: ignore[union-attr]


def test_photos_on_both_sides_are_told(data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(data, tmp_path / "one", epochs=1)
    assert "3 of 3 validation photos are training photos, such as 2.jpg: scores will look too good" in caplog.text
    caplog.clear()
    coco(tmp_path / "train.json", ["0.jpg", "1.jpg", "5.jpg", "6.jpg"], 1)
    train(data, tmp_path / "two", epochs=1, captions=tmp_path / "train.json")
    assert "validation photos" not in caplog.text
