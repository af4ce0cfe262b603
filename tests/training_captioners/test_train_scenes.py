"""train_p2.py on the built-in scenes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from small_runs import SCENES, scenes_run, train, weights

import minivl
import train_p2
from minivl.data.scenes import Scenes
from minivl.train import features

# Python 3.12 warns of forks beside threads; torch's are idle here
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


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
