"""train_p2.py on tar shards: the same training as on the folder of their photos, and what is wrong with one."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from shard_files import tar
from small_runs import PAIR, mistake, options, scst, step_losses, stops_at, story, train

from minivl.data.captions import read_captions
from minivl.errors import InputError
from minivl.train.captioning import CaptionTask
from minivl.train.pictures import Photos

# Python 3.12 warns of forks beside threads; torch's are idle here
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture(scope="session")
def shards(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photos of train.json in train-0.tar and train-1.tar, those of val.json in val.tar, with their captions."""
    path = tmp_path_factory.mktemp("shards")

    def write(name: str, captions: Path, first: int, last: int) -> None:
        told = read_captions(captions)
        tar(path / name, [file for image in told.images[first:last] for file in (
            (image, (data / "photos" / image).read_bytes()),
            (image.replace("jpg", "json"), json.dumps({"captions": told.captions[image]}).encode()))])

    write("train-0.tar", data / "train.json", 0, 5)
    write("train-1.tar", data / "train.json", 5, 8)
    write("val.tar", data / "val.json", 0, 3)
    return path


def of_shards(shards: Path) -> dict[str, Any]:
    return {"images": shards / "train-{0..1}.tar", "captions": None, "val_images": shards / "val.tar",
            "val_captions": None}


@pytest.mark.parametrize("kind", ["caption", "contrastive", "scst", "frozen"])
def test_shards_train_as_their_photos_do(data: Path, frozen: Path, frozen_pair: Path, shards: Path,
                                         tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bit; with captions in the shards or by name, read by workers or not; frozen features are those of the
    folder, and not computed again."""
    judge = {"reward_clip": 1.0, "reward_weights": frozen_pair / "best.safetensors"}
    changes: dict[str, Any] = {"freeze_encoder": kind == "frozen" or None, "mirror": True, **{
        "contrastive": PAIR, "scst": scst(frozen, **judge)}.get(kind, {"read": "all", "bucket": True})}
    train(data, tmp_path / "folder", **changes)
    assert len(step_losses(tmp_path / "folder")) > 3
    if kind == "frozen":
        monkeypatch.setattr("minivl.train.features._encode", lambda *args: pytest.fail("photos are encoded again"))
    train(data, tmp_path / "shards", **changes, **of_shards(shards), workers=1)
    assert story(tmp_path / "shards") == story(tmp_path / "folder")
    if kind in ("caption", "frozen"):
        train(data, tmp_path / "named", **changes, images=shards / "train-*.tar")
        assert story(tmp_path / "named") == story(tmp_path / "folder")


@pytest.mark.parametrize("freeze", [None, True])
def test_stopped_in_an_epoch_of_shards(data: Path, shards: Path, tmp_path: Path, freeze: bool | None) -> None:
    changes = {"freeze_encoder": freeze, "views": 3 if freeze else None, **of_shards(shards), "workers": 1}
    train(data, tmp_path / "whole", **changes)
    with stops_at(CaptionTask, 5), pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "parts", **changes)
    train(data, tmp_path / "parts", **changes, resume=True)
    assert story(tmp_path / "parts") == story(tmp_path / "whole")


@pytest.mark.parametrize("freeze", [None, True])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_member_that_does_not_decode(data: Path, shards: Path, tmp_path: Path, freeze: bool | None,
                                       workers: int) -> None:
    photo = (data / "photos" / "3.jpg").read_bytes()
    file = tar(tmp_path / "bad.tar", [("a.jpg", photo), ("a.txt", b"a dog"), ("b.jpg", photo[:len(photo) // 3]),
                                      ("b.txt", b"a cat")])
    with pytest.raises(InputError) as raised:
        train(data, tmp_path / "one", **{**of_shards(shards), "images": file, "freeze_encoder": freeze,
                                         "workers": workers})
    told = str(raised.value)
    assert told.startswith(f"{file}: b.jpg: ") and "Traceback" not in told and "\n" not in told


def test_shards_that_are_wrong(data: Path, shards: Path, tmp_path: Path,
                               capsys: pytest.CaptureFixture[str]) -> None:
    """All of it is found before any work, and nothing is left behind."""
    whole = (shards / "train-0.tar").read_bytes()
    file = tmp_path / "cut.tar"
    file.write_bytes(whole[:len(whole) // 2])

    def line(**changes: Any) -> str:
        return mistake(options(data, tmp_path / "one", **{**of_shards(shards), **changes}), capsys)

    assert f"{file}: is cut short" in line(images=file)
    assert f"{file}: is cut short" in line(val_images=file)
    assert "train-2.tar" in line(images=shards / "train-{0..2}.tar")
    alone = tar(tmp_path / "alone.tar", [("a.jpg", (data / "photos" / "3.jpg").read_bytes())])
    assert f"{alone}: a.jpg: has no captions" in line(images=alone)
    assert "go together" in line(val_images=None) and "go together" in line(images=None)
    assert "5 of the 8 images" in line(images=shards / "val.tar", captions=data / "train.json")
    wordless = tar(tmp_path / "wordless.tar", [(name, content) for number in range(2) for name, content in (
        (f"{number}.jpg", (data / "photos" / "3.jpg").read_bytes()), (f"{number}.txt", b"..."))])
    assert f"--val-images {wordless}: " in line(val_images=wordless)
    assert not (tmp_path / "one").exists()


def test_a_worker_that_dies(data: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
                            ) -> None:
    real = Photos.__getitem__

    def dying(photos: Photos, numbers: Any) -> Any:
        if torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(photos, numbers)

    monkeypatch.setattr(Photos, "__getitem__", dying)
    with pytest.raises(InputError, match="a process that reads pictures has ended before its work did"):
        train(data, tmp_path / "one", **{**of_shards(shards), "freeze_encoder": None, "workers": 1})
