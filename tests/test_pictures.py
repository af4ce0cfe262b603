"""Photos of folders and shards with their captions, and what a task is given of them."""

from __future__ import annotations

import hashlib
import json
import pickle
import random
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_run
import torch
from shard_files import Files as Members
from shard_files import folder, picture, tar

from minivl.data.pictures import Captioned, open_captioned
from minivl.data.shards import ShardSet
from minivl.data.strings import Strings, Told
from minivl.errors import InputError
from minivl.images import open_photo
from minivl.models.captioner import Captioner
from minivl.train.caption_ids import Lengths, Sequences
from minivl.train.captioning import CaptionTask
from minivl.train.distributed import Processes
from minivl.train.features import hash_photos
from minivl.train.pictures import Photos, open_photos, told_hash


def members(count: int, seed: int, name: str = "{:03}") -> tuple[Members, dict[str, list[str]]]:
    """JPEGs with a .json of captions beside each, and the captions by name."""
    draw, files, captions = np.random.default_rng(seed), [], {}
    for number, told in enumerate(tiny_run.captions(count, seed)):
        key = name.format(number)
        files += [(f"{key}.jpg", picture(draw)), (f"{key}.json", json.dumps(told).encode())]
        captions[f"{key}.jpg"] = told
    return files, captions


@pytest.fixture
def photos(tmp_path: Path) -> tuple[Path, dict[str, list[str]]]:
    """Eleven photos in folder/ and, seven and four of them, in part-0.tar and part-1.tar; told.json names nine."""
    files, captions = members(11, 3)
    folder(tmp_path / "folder", files)
    tar(tmp_path / "part-0.tar", files[:14])
    tar(tmp_path / "part-1.tar", files[14:])
    names = random.Random(4).sample(sorted(captions), 9)
    (tmp_path / "told.json").write_text(json.dumps({name: captions[name][::-1] for name in names}))
    return tmp_path, captions


def opened(path: Path, images: str, captions: str | None = None, **options: Any) -> Captioned:
    return open_captioned(path / images, None if captions is None else path / captions, cache=path / "cache", **options)


def test_folder_and_shards_are_the_same_photos(photos: tuple[Path, dict[str, list[str]]]) -> None:
    """With their own captions, and by name in the order of a file."""
    path, captions = photos
    for told in (None, "told.json"):
        one, two = opened(path, "folder", told), opened(path, "part-{0..1}.tar", told)
        assert len(one.photos) == len(two.photos) == len(one.names) == len(two.captions) == (9 if told else 11)
        assert list(one.captions) == list(two.captions)
        wanted = json.loads((path / "told.json").read_text()) if told else captions
        assert [list(several) for several in two.captions] == list(wanted.values())
        assert list(one.names) == list(wanted)
        assert list(two.names) == (list(wanted) if told else [f"part-{place // 7}/{place:03}.jpg"
                                                              for place in range(11)])
        for place in range(len(one.photos)):
            pair = [np.asarray(open_photo(one_of.photos[place])) for one_of in (one, two)]
            assert np.array_equal(*pair)
        hashes = [hashlib.sha256((path / "folder" / name).read_bytes()).hexdigest() for name in wanted]
        assert hash_photos(one.photos) == hash_photos(two.photos) == hashes
        part = pickle.loads(pickle.dumps(two.photos[2:8:3]))  # as a worker gets it
        assert [part.digest(place) for place in range(len(part))] == hashes[2:8:3]
        assert len(one.photos[2:8:3]) == 2 and one.photos[2:8:3].digest(-1) == hashes[5]


def test_shards_need_no_captions_where_a_file_has_them(photos: tuple[Path, dict[str, list[str]]]) -> None:
    """Nor names that differ between shards, where the file says which is meant."""
    path, _ = photos
    files, _ = members(3, 8)
    for number in range(2):
        tar(path / "bare" / f"{number}.tar", [file for file in files if file[0].endswith("jpg")])
    (path / "bare.json").write_text(json.dumps({"1/002.jpg": ["b"], "0/002.jpg": ["a"], "0/000.jpg": ["c", "d"]}))
    one = opened(path, "bare", "bare.json")
    assert list(one.captions) == [("b",), ("a",), ("c", "d")] and len(one.photos) == 3
    (path / "both.json").write_text(json.dumps({"002.jpg": ["a"]}))
    with pytest.raises(InputError, match="bare: 002.jpg of .*both.json is both 0/002.jpg and 1/002.jpg: name it so"):
        opened(path, "bare", "both.json")
    (path / "gone.json").write_text(json.dumps({"001.jpg": ["a"], "007.jpg": ["b"], "1/002.jpg": ["c"]}))
    with pytest.raises(InputError, match="0.tar: 2 of the 3 images of .*gone.json are not there: 007.jpg, 1/002.jpg$"):
        opened(path, "bare/0.tar", "gone.json")
    with pytest.raises(InputError, match="0.tar: 000.jpg: has no captions"):
        opened(path, "bare")


def test_a_folder_that_also_holds_a_tar(photos: tuple[Path, dict[str, list[str]]]) -> None:
    """The archive it came from, say."""
    path, _ = photos
    tar(path / "folder" / "all.tar", members(2, 1)[0])
    assert isinstance(opened(path, "folder", "told.json").photos[0], Path)
    with pytest.raises(InputError, match="holds pictures .* beside shards"):
        opened(path, "folder")


@pytest.mark.parametrize("images, captions, told", [
    ("nowhere", "told.json", "nowhere: no such folder of images"), ("no.tar", "told.json", "no.tar: no such shard"),
    ("part-{0..2}.tar", "told.json", r"1 of its 3 shards are not there: .*part-2.tar"),
    ("part-[7-9].tar", None, "nothing is there by this pattern"), ("part-0.tar", "told.json", r"of the 9 images of .*"),
    ("folder", "none.json", "none.json: no such file")])
def test_what_is_not_there(photos: tuple[Path, dict[str, list[str]]], images: str, captions: str | None,
                           told: str) -> None:
    with pytest.raises(InputError, match=told):
        opened(photos[0], images, captions)


def test_splits_are_of_a_file(photos: tuple[Path, dict[str, list[str]]]) -> None:
    with pytest.raises(InputError, match="have no splits"):
        opened(photos[0], "part-0.tar", split="train")


# -- what is kept ------------------------------------------------------------------------------------------------

def test_strings_and_captions_come_back() -> None:
    texts = ["", "a dog", "é 木 \U0001f600", "\udc80.jpg", "x" * 300]
    kept = Strings(texts)
    assert list(kept) == texts and kept[-1] == texts[-1] and kept[1:4] == texts[1:4] and len(kept) == 5
    several = [("a", "b\0c"), ("",), ("é", "木", "d")]
    told = Told(several)
    assert list(told) == several and told[-1] == several[-1] and told[::2] == several[::2]
    with pytest.raises(IndexError):
        kept[5]
    with pytest.raises(IndexError):
        told[3]


def test_ids_come_back() -> None:
    draw = random.Random(3)
    rows = [[torch.tensor([draw.randint(0, 70_000) for _ in range(draw.randint(1, 9))])
             for _ in range(draw.randint(1, 4))] for _ in range(20)]
    kept = Sequences(rows)
    assert len(kept) == 20 and all(torch.equal(mine, one) and mine.dtype == torch.int64 for found, wanted in
                                   zip(kept, rows) for mine, one in zip(found, wanted, strict=True))
    assert isinstance(kept.lengths, Lengths)
    assert list(kept.lengths) == [[len(row) - 1 for row in several] for several in rows]
    end = int(rows[3][0][-1])
    assert kept.cut(end) == sum(int(row[-1]) != end for several in rows for row in several)
    assert torch.equal(kept.caption(4, len(rows[4]) - 1), rows[4][-1])


def test_told_hash_is_of_the_json(photos: tuple[Path, dict[str, list[str]]]) -> None:
    """As it always was, so that runs that were begun can be resumed."""
    path, _ = photos
    data = [open_photos(path / images, told, None, path / "cache") for images, told in
            (("folder", path / "told.json"), ("part-*.tar", None))]
    whole = json.dumps([data[0].references(), data[1].references(), "a \"tokenizer\" é"])
    assert told_hash(data, "a \"tokenizer\" é") == hashlib.sha256(whole.encode()).hexdigest()[:16]
    assert told_hash(data[::-1], "a") != told_hash(data, "a") != told_hash(data, "b")


def test_processes_read_their_own_photos_alone(photos: tuple[Path, dict[str, list[str]]],
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    """Together each photo of the shards once in an epoch; one that goes on in its middle reads nothing before it."""
    path, _ = photos
    data = open_photos(path / "part-*.tar", None, None, path / "cache")
    read: list[int] = []
    real = ShardSet.image
    monkeypatch.setattr(ShardSet, "image", lambda own, place: read.append(place) or real(own, place))
    model, found = tiny_run.captioner(), []
    for rank in range(2):
        task = CaptionTask(model, Photos(data.pictures, model), data.captions,  # type: ignore[arg-type]
                           Photos(data.pictures, model), data.references(), remember=Captioner.encode, batch_size=4,
                           max_len=10, processes=Processes(rank, 2))
        read.clear()
        whole = list(task.batches(1, 0))
        found.append(list(read))
        assert len(whole) == 3
        read.clear()
        part = list(task.batches(1, 1))
        assert torch.equal(part[0].images, whole[1].images) and read == found[-1][-len(read):]
        assert len(read) == len(found[-1]) - len(whole[0].images)
    assert sorted(found[0] + found[1]) == list(range(11)) and min(map(len, found)) == 5


def test_memory_of_a_task_is_some_bytes_a_photo(tmp_path: Path) -> None:
    """Of shards with their own captions; through half an epoch of batches."""
    model, held = tiny_run.captioner(), []
    draw = np.random.default_rng(0)
    image = picture(draw)
    for count in (100, 100, 3100):  # the first fills what Python keeps for itself
        path = tar(tmp_path / f"{count}.tar", [file for number in range(count) for file in (
            (f"{number:06}.jpg", image), (f"{number:06}.txt", b"a red dog\ntwo birds on the grass"))])
        open_photos(path, None, None, tmp_path / "cache")
        val = open_photos(tmp_path / "100.tar", None, None, tmp_path / "cache")
        tracemalloc.start()
        data = open_photos(path, None, None, tmp_path / "cache")
        task = CaptionTask(model, Photos(data.pictures, model), data.captions,  # type: ignore[arg-type]
                           Photos(val.pictures, model), val.references(),  # type: ignore[arg-type]
                           remember=Captioner.encode, batch_size=50, max_len=10)
        for batch, _ in zip(task.batches(0, 0), range(2)):
            assert len(batch.images) == 50
        held.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (held[2] - held[1]) / 3000 < 200, held  # 15 ids of 4 bytes, ends of 8, the plan of an epoch
