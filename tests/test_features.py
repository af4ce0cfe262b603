"""The cache of frozen features."""

from __future__ import annotations

import errno
import json
import logging
import multiprocessing
import os
import pickle
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from minivl.data.augment import Augment, View
from minivl.errors import InputError
from minivl.files import sha256
from minivl.images import Preprocessing, preprocess
from minivl.models.vit import ViT, ViTConfig
from minivl.train import features
from minivl.train.features import Features, compute_features, encode_images, encoder_key

# Python 3.12 warns of forks beside threads; torch's are idle here
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


class Counting(ViT):
    """A random ViT that counts the photos it encodes."""

    photos = 0

    def encode(self, images: Tensor, attn: Any = None) -> Tensor:
        self.photos += len(images)
        return super().encode(images, attn)


def vit(seed: int = 0, **changes: Any) -> Counting:
    torch.manual_seed(seed)
    fields = {"width": 12, "depth": 1, "num_heads": 2, "mlp_dim": 24, "num_classes": 0, **changes}
    model = Counting(ViTConfig((16, 24), (8, 8), **fields),
                     preprocessing=Preprocessing((16, 24), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), mode="squash"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.3)
    return model


def photos(folder: Path, count: int = 7) -> list[Path]:
    """Random photos of several sizes."""
    folder.mkdir(exist_ok=True)
    draw = np.random.default_rng(count)
    files = []
    for number in range(count):
        pixels = draw.integers(0, 256, (20 + 3 * number, 30, 3), dtype=np.uint8)
        files.append(folder / f"{number}.png")
        Image.fromarray(pixels).save(files[-1])
    return files


@torch.no_grad()
def direct(model: ViT, files: list[Path], flip: bool = False) -> Tensor:
    images = preprocess(files, model)[0]
    return ViT.encode(model.eval(), images.flip(-1) if flip else images)


def cached(tmp_path: Path, model: ViT, files: list[Path], **options: Any) -> Tensor:
    features = compute_features(model, files, tmp_path / "cache", **{"dtype": "fp32", **options})
    assert len(features) == len(files)
    return features[list(range(len(files)))]


def test_rows_are_the_encoder_s(tmp_path: Path) -> None:
    model, files = vit(), photos(tmp_path / "photos")
    features = compute_features(model, files, tmp_path / "cache", dtype="fp32", batch_size=3)
    expected = direct(model, files)
    rows = features[[5, 0, 5, 2]]
    assert rows.shape == (4, 7, 12) and rows.dtype == torch.float32
    torch.testing.assert_close(rows, expected[[5, 0, 5, 2]], rtol=0, atol=1e-5)
    assert not torch.allclose(expected[0], expected[1], atol=1e-2)
    rows.zero_()  # a copy: the file is not written to
    torch.testing.assert_close(features[[5]], expected[[5]], rtol=0, atol=1e-5)


def test_rows_of_bf16(tmp_path: Path) -> None:
    model, files = vit(), photos(tmp_path / "photos")
    rows = cached(tmp_path, model, files, dtype="bf16")
    assert rows.dtype == torch.bfloat16
    torch.testing.assert_close(rows.float(), direct(model, files), rtol=0.05, atol=0.1)


def test_mirrored(tmp_path: Path) -> None:
    model, files = vit(), photos(tmp_path / "photos")
    plain, mirrored = cached(tmp_path, model, files), cached(tmp_path, model, files, flip=True)
    torch.testing.assert_close(mirrored, direct(model, files, flip=True), rtol=0, atol=1e-5)
    assert not torch.allclose(plain, mirrored, atol=1e-2)


def test_drawn_views(tmp_path: Path) -> None:
    """Each is of a part of its photo, drawn from (seed, photo, number) whatever else there is, and is stored once."""
    model, files = vit(), photos(tmp_path / "photos")
    view = View(2, seed=5, crop_scale=0.3, flip=0.5)
    rows = cached(tmp_path, model, files, view=view)
    assert model.photos == 7 and model.preprocessing is not None
    change = Augment(model.preprocessing, seed=5, crop_scale=(0.3, 1.0), flip=0.5)
    images = torch.stack([change(file, 2, int(sha256(file)[:16], 16)) for file in files])
    with torch.no_grad():
        torch.testing.assert_close(rows, ViT.encode(model, images), rtol=0, atol=1e-5)
    alone = cached(tmp_path / "other", vit(), [files[4], files[1]], view=view, batch_size=1)
    torch.testing.assert_close(alone, rows[[4, 1]], rtol=0, atol=1e-5)
    changed = [View(3, 5, 0.3, 0.5), View(2, 6, 0.3, 0.5), View(2, 5, 0.4, 0.5), View(2, 5, 0.3, 0.0)]
    for other in changed[:2]:
        assert not torch.allclose(cached(tmp_path, model, files, view=other), rows, atol=1e-2)
    again = vit()
    assert torch.equal(cached(tmp_path, again, files[::-1], view=view), rows.flip(0)) and again.photos == 0
    keys = {encoder_key(model, "fp32", False, one) for one in (None, view, *changed)}
    assert len(keys) == 6 and encoder_key(model, "fp32", True) not in keys
    assert sum(row in keys for row in map(lambda folder: folder.name, (tmp_path / "cache").iterdir())) == 3


def test_a_view_that_is_cut_short_is_computed_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, files, view = vit(), photos(tmp_path / "photos"), View(1, crop_scale=0.5)
    rows = cached(tmp_path, model, files, view=view, dtype="bf16")
    file = tmp_path / "cache" / encoder_key(model, "bf16", False, view) / "rows.bin"
    assert file.stat().st_size == rows.numel() * 2
    os.truncate(file, file.stat().st_size - 1)
    assert torch.equal(cached(tmp_path, model, files, view=view, dtype="bf16"), rows) and model.photos == 14
    assert "damaged, its features are computed anew" in caplog.text


def test_what_no_view_is(tmp_path: Path) -> None:
    model, files = vit(), photos(tmp_path / "photos", 2)
    with pytest.raises(InputError, match="flip and view"):
        cached(tmp_path, model, files, view=View(1), flip=True)
    with pytest.raises(InputError, match="crop_scale="):
        cached(tmp_path, model, files, view=View(1, crop_scale=0.0))
    assert not (tmp_path / "cache").exists() and model.photos == 0


def test_second_time_nothing_is_computed(tmp_path: Path) -> None:
    model, files = vit(), photos(tmp_path / "photos")
    first = cached(tmp_path, model, files)
    assert model.photos == 7
    again = vit()  # the same weights, another object
    assert torch.equal(cached(tmp_path, again, files), first) and again.photos == 0


def test_order_subset_and_repetition_are_free(tmp_path: Path) -> None:
    model, files = vit(), photos(tmp_path / "photos")
    first = cached(tmp_path, model, files[:5])
    order = [4, 6, 0, 4, 5, 1]
    rows = cached(tmp_path, model, [files[place] for place in order])
    assert model.photos == 7  # 5, then the two new ones
    torch.testing.assert_close(rows, direct(model, files)[order], rtol=0, atol=1e-5)
    assert torch.equal(rows[[0, 2]], first[[4, 0]])


def test_equal_photos_share_a_row(tmp_path: Path) -> None:
    model, files = vit(), photos(tmp_path / "photos", 2)
    copy = tmp_path / "photos" / "copy.png"
    copy.write_bytes(files[0].read_bytes())
    rows = cached(tmp_path, model, [*files, copy])
    assert model.photos == 2 and torch.equal(rows[0], rows[2])


def test_changed_photo_recomputes_its_row_alone(tmp_path: Path) -> None:
    model, files = vit(), photos(tmp_path / "photos")
    before = cached(tmp_path, model, files)
    stamp = files[3].stat()
    Image.fromarray(np.full((20, 30, 3), 200, dtype=np.uint8)).save(files[3])
    os.utime(files[3], ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # the clock must not matter
    after = cached(tmp_path, model, files)
    assert model.photos == 8
    others = [0, 1, 2, 4, 5, 6]
    assert torch.equal(after[others], before[others]) and not torch.allclose(after[3], before[3], atol=1e-2)
    torch.testing.assert_close(after, direct(model, files), rtol=0, atol=1e-5)


def test_keys_differ(tmp_path: Path) -> None:
    model = vit()
    changed_weight = vit()
    with torch.no_grad():
        changed_weight.blocks[0].mlp.fc2.bias[3] += 1e-3
    other_mean, other_mode, eps, act = vit(), vit(), vit(eps=1e-5), vit(act="gelu_tanh")
    assert model.preprocessing is not None
    other_mean.preprocessing = replace(model.preprocessing, mean=(0.5, 0.5, 0.3))
    other_mode.preprocessing = replace(model.preprocessing, mode="crop")
    others = (changed_weight, other_mean, other_mode, eps, act)
    keys = [encoder_key(model, "fp32", False), encoder_key(model, "bf16", False),
            encoder_key(model, "fp32", True), *(encoder_key(other, "fp32", False) for other in others)]
    assert len(set(keys)) == len(keys)
    assert encoder_key(vit(), "fp32", False) == keys[0]


def test_other_weights_are_other_features(tmp_path: Path) -> None:
    files = photos(tmp_path / "photos")
    one, two = vit(0), vit(1)
    first, second = cached(tmp_path, one, files), cached(tmp_path, two, files)
    torch.testing.assert_close(second, direct(two, files), rtol=0, atol=1e-5)
    assert not torch.allclose(first, second, atol=1e-2) and len(list((tmp_path / "cache").iterdir())) == 2


def test_dropout_is_off(tmp_path: Path) -> None:
    files = photos(tmp_path / "photos", 3)
    model = vit(dropout=0.5).train()
    torch.testing.assert_close(cached(tmp_path, model, files), direct(vit(), files), rtol=0, atol=1e-5)


class Stop(Exception):
    """In the middle of filling."""


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("batches", [0, 1, 5, 17, 19])
def test_interrupted_filling_continues(tmp_path: Path, batches: int, killed: bool,
                                       monkeypatch: pytest.MonkeyPatch) -> None:
    def stopping(starts: Iterable[int], **options: Any) -> Iterator[int]:
        assert options["total"] == 20
        for number, start in enumerate(starts):
            if number == batches and options["desc"] == "encoding photos":
                raise Stop
            yield start

    model, files = vit(), photos(tmp_path / "photos", 20)
    with pytest.raises(Stop), monkeypatch.context() as patch:
        if killed:  # nothing more is done
            patch.setattr(features._Rows, "__exit__", lambda *_: None)
        cached(tmp_path, model, files, batch_size=1, progress=stopping)
    assert model.photos == batches
    rows = cached(tmp_path, model, list(reversed(files)), batch_size=3)
    torch.testing.assert_close(rows.flip(0), direct(model, files), rtol=0, atol=1e-5)
    assert model.photos == (batches + 20 - 16 * (batches >= 16) if killed else 20)  # 16 batches, then the index


def spoil(folder: Path, how: str) -> None:
    rows, index = folder / "rows.bin", folder / "rows.json"
    told = json.loads(index.read_text())
    match how:
        case "rows cut":
            rows.write_bytes(rows.read_bytes()[:-1])
        case "rows empty":
            rows.write_bytes(b"")
        case "no rows":
            rows.unlink()
        case "no index":
            index.unlink()
        case "index cut":
            index.write_text(index.read_text()[:-9])
        case "index empty":
            index.write_text("")
        case "index binary":
            index.write_bytes(b"\xff\xfe\x00")
        case "index list":
            index.write_text("[1, 2]")
        case "index strings":
            index.write_text(json.dumps({key: str(row) for key, row in told.items()}))
        case "index beyond":
            index.write_text(json.dumps({key: row + 1 for key, row in told.items()}))
        case "index twice":
            index.write_text(json.dumps(dict.fromkeys(told, 0)))


@pytest.mark.parametrize("how", [
    "rows cut", "rows empty", "no rows", "no index", "index cut", "index empty", "index binary", "index list",
    "index strings", "index beyond", "index twice"])
def test_damage_is_found_told_and_mended(tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture) -> None:
    model, files = vit(), photos(tmp_path / "photos")
    before = cached(tmp_path, model, files)
    folder = next((tmp_path / "cache").iterdir())
    spoil(folder, how)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(cached(tmp_path, model, files), before)
    assert model.photos == 14
    assert how == "no index" or str(folder) in caplog.text
    assert torch.equal(cached(tmp_path, model, files), before) and model.photos == 14


def fill(folder: Path, files: list[Path], results: Any) -> None:
    """Fill the cache slowly and say how many photos were encoded (in a process of its own)."""
    def slow(starts: Iterable[int], **options: Any) -> Iterator[int]:
        for start in starts:
            time.sleep(0.02)
            yield start

    model = vit()
    rows = cached(folder, model, files, batch_size=1, progress=slow)
    torch.testing.assert_close(rows, direct(model, files), rtol=0, atol=1e-5)
    results.put(model.photos)


def test_two_processes_at_once(tmp_path: Path) -> None:
    files = photos(tmp_path / "photos", 12)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    both = [context.Process(target=fill, args=(tmp_path, part, results)) for part in (files, files[::-1])]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert results.get() + results.get() == 12  # each photo was encoded once
    model = vit()
    torch.testing.assert_close(cached(tmp_path, model, files), direct(model, files), rtol=0, atol=1e-5)
    assert model.photos == 0


def test_waiting_for_another_process_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fcntl = pytest.importorskip("fcntl")
    model, files = vit(), photos(tmp_path / "photos", 3)
    cached(tmp_path, model, files)
    folder = next((tmp_path / "cache").iterdir())
    with open(folder / "lock", "w") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        timer = threading.Timer(0.3, fcntl.flock, (opened, fcntl.LOCK_UN))
        timer.start()
        with caplog.at_level(logging.INFO):
            cached(tmp_path, model, files)
        timer.join()
    assert caplog.messages == [f"{folder}: another process is filling this folder, waiting for it"]
    caplog.clear()
    cached(tmp_path, model, files)
    assert caplog.messages == []


def test_a_system_without_locks(tmp_path: Path, caplog: pytest.LogCaptureFixture,
                                monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    model, files = vit(), photos(tmp_path / "photos", 3)
    with caplog.at_level(logging.WARNING):
        torch.testing.assert_close(cached(tmp_path, model, files), direct(model, files), rtol=0, atol=1e-5)
    assert "locks no files" in caplog.text and str(tmp_path / "cache") in caplog.text


def test_rows_are_on_disk_before_the_index_names_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, files = vit(), photos(tmp_path / "photos", 20)
    synced: list[int] = []  # size of the rows at their last fsync
    named: list[tuple[int, int]] = []
    fsync, write_json = os.fsync, features.write_json

    def syncing(handle: int) -> None:
        fsync(handle)
        rows = next((tmp_path / "cache").glob("*/rows.bin"))
        if os.fstat(handle).st_ino == rows.stat().st_ino:
            synced.append(os.fstat(handle).st_size)

    def writing(path: Path, index: dict[str, int]) -> None:
        named.append((len(index), synced[-1]))
        write_json(path, index)

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(features, "write_json", writing)
    cached(tmp_path, model, files, batch_size=1)
    row = 7 * 12 * 4
    assert named == [(16, 16 * row), (20, 20 * row)]


def test_the_index_is_written_seldom_where_that_takes_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, named = [0.0], list[int]()
    encode, write_json = features._encode, features.write_json

    def encoding(*given: Any) -> torch.Tensor:
        now[0] += 1
        return encode(*given)

    def writing(path: Path, index: dict[str, int]) -> None:
        named.append(len(index))
        now[0] += len(index) / 16
        write_json(path, index)

    monkeypatch.setattr(features, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(features, "_encode", encoding)
    monkeypatch.setattr(features, "write_json", writing)
    monkeypatch.setattr(features, "INDEXED", 2)
    monkeypatch.setattr(features, "SELDOM", 8)
    model, files = vit(), photos(tmp_path / "photos", 90)
    cached(tmp_path, model, files, batch_size=2)
    assert named == [4, 8, 16, 32, 64, 90]  # 1/4 s, 1/2 s, ... each; the next 2, 4, ... batches later
    torch.testing.assert_close(cached(tmp_path, model, files), direct(model, files), rtol=0, atol=1e-5)
    assert model.photos == 90


def test_progress_of_hashing_and_encoding(tmp_path: Path) -> None:
    told: list[tuple[str, int]] = []

    def progress(items: Iterable[Any], **options: Any) -> Iterator[Any]:
        listed = list(items)
        assert len(listed) == options["total"]
        told.append((options["desc"], options["total"]))
        yield from listed

    model, files = vit(), photos(tmp_path / "photos", 5)
    cached(tmp_path, model, files, batch_size=2, progress=progress)
    cached(tmp_path, model, files, batch_size=2, progress=progress)
    assert told == [("hashing photos", 5), ("encoding photos", 3), ("hashing photos", 5)]
    encode_images(model, preprocess(files, model)[0], batch_size=2, progress=progress)
    assert told[3:] == [("encoding pictures", 3)]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_features_in_memory_are_those_of_the_cache(tmp_path: Path, dtype: str) -> None:
    model, files = vit(dropout=0.5).train(), photos(tmp_path / "photos", 5)
    held = encode_images(model, preprocess(files, model)[0], dtype=dtype, batch_size=2)
    assert not held.requires_grad and held.shape == (5, 7, 12)
    stored = cached(tmp_path, model, files, dtype=dtype, batch_size=2)
    assert held.dtype == stored.dtype and torch.equal(held, stored)


def test_features_travel_to_another_process(tmp_path: Path) -> None:
    model, files = vit(), photos(tmp_path / "photos", 3)
    features = compute_features(model, files, tmp_path / "cache", dtype="fp32")
    rows = features[[2, 0]]  # now the file is mapped
    copy = pickle.loads(pickle.dumps(features))
    assert isinstance(copy, Features) and torch.equal(copy[[2, 0]], rows)
    assert len(pickle.dumps(features)) < 2000  # the map itself is not sent


def test_mistakes(tmp_path: Path) -> None:
    model, files = vit(), photos(tmp_path / "photos", 3)
    with pytest.raises(InputError, match="none.png: no such file"):
        cached(tmp_path, model, [*files, tmp_path / "none.png"])
    bad = tmp_path / "photos" / "bad.png"
    bad.write_bytes(b"no picture")
    with pytest.raises(InputError, match="bad.png"):
        cached(tmp_path, model, [*files, bad], batch_size=2)
    assert torch.equal(cached(tmp_path, model, files), cached(tmp_path, vit(), files))  # the good ones
    with pytest.raises(InputError, match="fp8"):
        cached(tmp_path, model, files, dtype="fp8")
    model.preprocessing = None
    with pytest.raises(InputError, match="preprocessing"):
        cached(tmp_path, model, files)


def test_an_error_of_the_system_is_the_caches_only_where_it_is(tmp_path: Path) -> None:
    for error, told in ((OSError(errno.ENOSPC, "No space left on device"), "cache: .*No space left.*--features"),
                        (OSError(errno.EIO, "Input/output error", str(tmp_path / "cache/x/rows")), "cache: .*Input"),
                        (OSError(errno.EIO, "Input/output error", str(tmp_path / "photo.jpg")), None),
                        (OSError("image file is truncated"), None)):
        with pytest.raises(OSError if told is None else InputError, match=told) as caught, \
                features._naming(tmp_path / "cache"):
            raise error
        assert (caught.value is error) == (told is None)
