"""train_p2.py on photographs: a run, what it leaves, stopped and resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch
from PIL import Image
from small_runs import LEFT, PAIR, scst, step_losses, stops_at, story, train, weights

import minivl
import train_p2
from minivl.data.captions import read_captions
from minivl.train.captioning import CaptionTask
from minivl.train.contrasting import ContrastTask
from minivl.train.selfcritical import SelfCriticalTask

# Python 3.12 warns of forks beside threads; torch's are idle here
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


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


def test_stopped_and_resumed_is_the_same_run(data: Path, frozen: Path, tmp_path: Path) -> None:
    with stops_at(CaptionTask, 5) as losses:
        with pytest.raises(KeyboardInterrupt):
            train(data, tmp_path / "one")
        assert story(tmp_path / "one") == story(frozen)[:5]
        # where run and features lie and how it is watched does not matter
        (tmp_path / "one").rename(tmp_path / "two")
        train(data, tmp_path / "two", resume=True, features=tmp_path / "others", workers=1, json=True)
    assert len(losses) == 7  # the fifth that was stopped, again, and the last one
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
    with stops_at(task, 2) as losses, pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "parts", **changes, mirror=True)
    assert len(losses) == 2
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
