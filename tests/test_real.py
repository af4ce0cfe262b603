"""The whole way on real input: photographs, a pretrained ViT, a short training, pictures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import minivl
import train_p2
import viz
from minivl.files import read_json, write_json
from minivl.train.run import read_history

pytestmark = pytest.mark.shared


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def subset(source: Path, target: Path, count: int) -> None:
    """The first pictures of a COCO-JSON caption file."""
    whole = read_json(source)
    images = whole["images"][:count]
    ids = {image["id"] for image in images}
    write_json(target, {"images": images,
                        "annotations": [one for one in whole["annotations"] if one["image_id"] in ids]})


def test_flickr8k_photos_to_explained_coco_photos(shared: Path, tmp_path: Path,
                                                  capsys: pytest.CaptureFixture[str]) -> None:
    data = shared / "data"
    for split, count in (("train", 40), ("dev", 6)):
        subset(data / "flickr8k" / f"{split}.json", tmp_path / f"{split}.json", count)
    out = tmp_path / "run"
    train_p2.main([
        "--images", str(data / "flickr8k" / "images"), "--captions", str(tmp_path / "train.json"),
        "--val-captions", str(tmp_path / "dev.json"), "--freeze-encoder", "--epochs", "12", "--min-count", "2",
        "--encoder", str(shared / "weights" / "deit_tiny_patch16_224.timm.safetensors"), "--width", "64",
        "--depth", "2", "--heads", "4", "--warmup", "5", "--batch-size", "40", "--ema", "0", "--mirror",
        "--features", str(tmp_path / "features"), "--out", str(out)])
    losses = [row["loss"] for row in read_history(out) if "loss" in row]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])  # it learns
    captioner = minivl.load(out / "best.safetensors", verify=True)
    assert captioner.notes["scores"]["signature"].startswith("cider-d|n4")
    photo = sorted((data / "coco" / "images").glob("*.jpg"))[3]
    capsys.readouterr()
    viz.main(["caption", str(photo), "--weights", str(out / "best.safetensors"), "--out", str(tmp_path), "--json"])
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["ids"][0] == captioner.config.decoder.bos_id and told["logprob"] < 0
    with Image.open(tmp_path / f"{photo.stem}.png") as picture:
        assert min(picture.size) > 200
