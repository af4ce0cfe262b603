"""train_p2.py --objective scst: self-critical training, stopped and resumed, and what it does not take."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch
from small_runs import LEFT, SCENES, SCST, coco, mistake, options, scst, stops_at, story, train, weights

import minivl
import train_p2
from minivl.models.captioner import Captioner
from minivl.models.vit import ViT
from minivl.train.selfcritical import SelfCriticalTask

# Python 3.12 warns of forks beside threads; torch's are idle here
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


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


def test_self_critical_stopped_and_resumed(data: Path, frozen: Path, tmp_path: Path) -> None:
    train(data, tmp_path / "whole", **scst(frozen))
    with stops_at(SelfCriticalTask, 5), pytest.raises(KeyboardInterrupt):
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
