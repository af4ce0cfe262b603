"""train_p2.py --objective contrastive: image-text pairs, and what they do not take."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch
from small_runs import LEFT, PAIR, RECALLS, SCENES, mistake, options, pair_of, stops_at, story, train

import minivl
import train_p2
from minivl.data.captions import read_captions
from minivl.data.scenes import Scenes
from minivl.errors import InputError
from minivl.metrics.retrieval import recall_at_k
from minivl.models.captioner import Captioner
from minivl.models.clip import CLIP
from minivl.train import features
from minivl.train.contrasting import KS, ContrastTask
from minivl.train.starting import build_pair

# Python 3.12 warns of forks beside threads; torch's are idle here
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


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
                                                   capsys: pytest.CaptureFixture[str]) -> None:
    with stops_at(ContrastTask, 4), pytest.raises(KeyboardInterrupt):
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
