"""Long sets: tar shards and folders by number, resident memory, sharing, resuming, and everything that can be wrong."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shard_files import Files, folder, picture, samples, tar

from minivl.data import order
from minivl.data.handles import OpenFiles
from minivl.data.order import Batches, Order, Share
from minivl.data.photos import photo_batches
from minivl.data.shards import ShardSet
from minivl.data.workers import fetched
from minivl.errors import InputError
from minivl.images import Preprocessing, open_photo

PREPROCESSING = Preprocessing((8, 8), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), mode="squash")
JPEG = picture(np.random.default_rng(1))


def shards(path: Path, counts: tuple[int, ...] = (7, 1, 12)) -> tuple[str, list[list[str]], Files]:
    """Tars of so many samples; their pattern, all captions, all files."""
    told: list[list[str]] = []
    files: Files = []
    for number, count in enumerate(counts, 8):
        own, captions = samples(count, number, folder=f"{number}/")
        tar(path / f"set-{number:03}.tar", own)
        told, files = told + captions, files + own
    return f"{path}/set-{{008..{7 + len(counts):03}}}.tar", told, files


def opened(path: Path, sources: Any = None, **options: Any) -> ShardSet:
    return ShardSet(path / "set.tar" if sources is None else sources, cache=path / "cache", **options)


def sample(name: str = "a", image: bytes = JPEG, text: bytes = b"a dog") -> Files:
    return [(f"{name}.jpg", image), (f"{name}.txt", text)]


# -- what is in a set ----------------------------------------------------------------------------------------

def test_tars_and_the_same_photos_in_a_folder(tmp_path: Path) -> None:
    """Names, captions, bytes, decoded pictures and tensors are those of the files."""
    pattern, told, files = shards(tmp_path)
    both = opened(tmp_path, pattern), opened(tmp_path, folder(tmp_path / "files", files))
    pictures = [(name, data) for name, data in files if not name.endswith((".txt", ".json"))]
    order = sorted(range(20), key=lambda place: pictures[place][0])  # a folder is sorted: 10/ before 8/
    assert [len(one) for one in both] == [20, 20]
    assert list(both[0].names) == [f"set-{int(name.split('/')[0]):03}/{name}" for name, _ in pictures]
    assert list(both[1].names) == [pictures[place][0] for place in order]
    assert [both[1].name(place) for place in range(20)] == list(both[1].names)
    for one, places in zip(both, (range(20), order)):
        assert one.caption_count == sum(map(len, told)) and not one.left_out
        for number, place in enumerate(places):
            name, image, captions = one[number]
            assert captions == one.captions(number) == one.told[number] == tuple(told[place])
            assert one.read(number) == pictures[place][1] and name == one.name(number)
            expected = open_photo(tmp_path / "files" / pictures[place][0])
            for shown in (image, one.image(number), one.images[number]):
                assert open_photo(shown).tobytes() == expected.tobytes()
    tensors = [torch.cat(list(photo_batches(one.images, PREPROCESSING, 8, 6))) for one in both]
    assert tensors[0].shape == (20, 3, 8, 8) and torch.equal(tensors[0][order], tensors[1])


def test_numbers_and_slices(tmp_path: Path) -> None:
    one = opened(tmp_path, shards(tmp_path)[0])
    assert one[-1].name == one.name(19) == one.name(-1) and one[:3][2].name == one.name(2)
    assert [shown.name for shown in one[15:][::2]] == [one.name(place) for place in (15, 17, 19)]
    assert list(one.names[3:9:2][1:]) == [one.name(5), one.name(7)] and len(one.names[18:40]) == 2
    assert [len(captions) for _, _, captions in one] == [len(captions) for captions in one.told]
    for place in (20, -21):
        with pytest.raises(IndexError):
            one[place]
        with pytest.raises(IndexError):
            one.names[place]


def test_a_copy_in_another_process_opens_its_own_files(tmp_path: Path) -> None:
    one = opened(tmp_path, shards(tmp_path)[0])
    one.read(3)
    sent = pickle.dumps(one)
    copy = pickle.loads(sent)
    assert len(sent) < 4000 and [copy.read(place) for place in range(20)] == [one.read(place) for place in range(20)]


@pytest.mark.parametrize("way", ["list", "glob", "folder", "braces", "one by one"])
def test_ways_to_name_shards(tmp_path: Path, way: str) -> None:
    """All give the same set; shards of a folder or glob are sorted, others as given."""
    shards(tmp_path, (2, 3, 1))
    (tmp_path / "set-notes.md").write_text("notes")
    paths = [tmp_path / f"set-{number:03}.tar" for number in (8, 9, 10)]
    sources = {"list": paths, "glob": f"{tmp_path}/set-*.tar", "folder": tmp_path,
               "braces": f"{tmp_path}/set-0{{08,09,10}}.tar",
               "one by one": [str(paths[0]), f"{tmp_path}/set-{{009..010}}.tar"]}[way]
    one = opened(tmp_path, sources)
    assert [name.split("/")[0] for name in one.names] == ["set-008"] * 2 + ["set-009"] * 3 + ["set-010"]
    assert opened(tmp_path, paths[::-1]).name(0).startswith("set-010/")


def test_names_tell_where_a_sample_is(tmp_path: Path) -> None:
    """Several folders and shards have one base; braces in a name that exists are part of it."""
    tar(tmp_path / "x" / "a{1..2}.TAR", sample("deep/k"))
    folder(tmp_path / "y" / "z", sample("k"))
    one = opened(tmp_path, [tmp_path / "x" / "a{1..2}.TAR", tmp_path / "y" / "z"])
    assert list(one.names) == ["x/a{1..2}.TAR/deep/k.jpg", "y/z/k.jpg"]
    assert list(opened(tmp_path, tmp_path / "y").names) == ["z/k.jpg"]


def test_captions_of_a_file(tmp_path: Path) -> None:
    """A folder of pictures whose captions are in a COCO, Karpathy or Flickr file, in its order."""
    files = [(f"{name}.jpg", picture(np.random.default_rng(seed))) for seed, name in enumerate("abcd")]
    folder(tmp_path / "photos", [*files, ("a.txt", b"not this")])
    told = {"images": [{"filename": f"{name}.jpg", "split": split, "sentences": [{"raw": f"{name} {split}"}] * 2}
                       for name, split in (("c", "train"), ("b", "val"), ("a", "train"))]}
    (tmp_path / "told.json").write_text(json.dumps(told))
    one = opened(tmp_path, tmp_path / "photos", captions=tmp_path / "told.json", split="train")
    assert [(name, captions) for name, _, captions in one] == [("c.jpg", ("c train",) * 2), ("a.jpg", ("a train",) * 2)]
    assert one.read(0) == files[2][1] and open_photo(one.image(1)).size == (9, 7)
    (tmp_path / "told.txt").write_text("b.jpg#0\tbee\na.jpg#0\tay\na.jpg#1\tzero \0 one")
    with pytest.raises(InputError, match=r"told.txt: has '\\x00' in a caption of a.jpg"):
        opened(tmp_path, tmp_path / "photos", captions=tmp_path / "told.txt")
    (tmp_path / "told.txt").write_text("b.jpg#0\tbee\nx.jpg#0\tex")
    with pytest.raises(InputError, match="photos: 1 of the 2 images of .*told.txt are not there: x.jpg"):
        opened(tmp_path, tmp_path / "photos", captions=tmp_path / "told.txt")
    (tmp_path / "told.txt").write_text("b.jpg#0\tbee")
    (tmp_path / "photos" / "b.jpg").write_bytes(b"<html>")
    with pytest.raises(InputError, match="photos: b.jpg: is not an image"):
        opened(tmp_path, tmp_path / "photos", captions=tmp_path / "told.txt")


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_formats_of_tars(tmp_path: Path, format: int) -> None:
    """Long names, names in other scripts, folders and a name that begins with ./ are read in each."""
    names = ["./x/a", "y" * 40 + "/" + "z" * 90, "木/" + "é" * (40 if format == tarfile.USTAR_FORMAT else 60)]
    files = [file for name in names for file in sample(name, text=name.encode())]
    tar(tmp_path / "set.tar", files, format=format)
    with tarfile.open(tmp_path / "set.tar", "a") as added:
        added.addfile(directory := tarfile.TarInfo("w"))
        directory.type = tarfile.DIRTYPE
        added.addfile(directory)
    one = opened(tmp_path)
    assert list(one.names) == [f"set/{name.removeprefix('./')}.jpg" for name in names]
    assert [one.captions(place) for place in range(3)] == [(name,) for name in names]


def test_what_is_left_out_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In shards and folders alike; only texts without a picture are an error in one and left out of the other."""
    files = [("00000_stats.json", b"{}"), (".DS_Store", b"x"), ("._a.jpg", b"x"), ("LICENSE", b"free"),
             ("a.CLS", b"1"), ("a.JPG", JPEG), ("a.seg.png", JPEG), ("a.txt", b"a dog"), ("b.cls", b"2")]
    expected = {"hidden or without an ending": 3, ".cls": 2, ".seg.png": 1}
    one = opened(tmp_path, tar(tmp_path / "set.tar", files[1:]))
    assert one.left_out == expected and list(one.names) == ["set/a.JPG"]
    assert "set.tar: left out: 3 hidden or without an ending, 2 .cls, 1 .seg.png" in caplog.text
    two = opened(tmp_path, folder(tmp_path / "files", [*files, (".cache/x.jpg", JPEG)]))
    assert two.left_out == {**expected, "texts without a picture": 1} and list(two.names) == ["a.JPG"]
    assert opened(tmp_path, tmp_path / "files").left_out == two.left_out  # from the index
    both = opened(tmp_path, [tmp_path / "set.tar", tmp_path / "files"])
    assert both.left_out[".cls"] == 4 and "2 shards: left out" in caplog.text


# -- the index -----------------------------------------------------------------------------------------------

def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of tars that are gone through from now on."""
    from minivl.data import sources
    gone: list[str] = []

    def told(path: Path, *others: Any) -> Any:
        gone.append(path.name)
        return real(path, *others)

    real = sources.tar_samples
    monkeypatch.setattr(sources, "tar_samples", told)
    return gone


def test_each_shard_is_indexed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Again only if it has changed, its index is damaged, or something else is asked of it."""
    gone, (pattern, _, _) = reads(monkeypatch), shards(tmp_path, (2, 3))
    first = opened(tmp_path, pattern)
    assert gone == ["set-008.tar", "set-009.tar"]
    shards(tmp_path / "other", (2, 3))
    assert list(opened(tmp_path, pattern).told) == list(first.told) and len(gone) == 2
    opened(tmp_path, tmp_path / "set-009.tar")
    assert len(gone) == 2
    about = (tmp_path / "set-009.tar").stat()
    os.utime(tmp_path / "set-009.tar", ns=(about.st_atime_ns, about.st_mtime_ns + 1))
    opened(tmp_path, pattern)
    assert gone[2:] == ["set-009.tar"]
    with pytest.raises(InputError, match="says otherwise|has no captions"):
        opened(tmp_path, pattern, texts="json")
    assert gone[3:] == ["set-008.tar"]


@pytest.mark.parametrize("damage", [
    lambda data: data[:-1], lambda data: data[:30], lambda data: b"", lambda data: data[:20] + b"?" + data[21:],
    lambda data: data[:-40] + b"\xff" * 24 + data[-16:], lambda data: data + b"x", lambda data: b"?" * len(data)])
def test_a_damaged_index_is_made_anew(tmp_path: Path, damage: Callable[[bytes], bytes],
                                      monkeypatch: pytest.MonkeyPatch) -> None:
    gone, (pattern, told, _) = reads(monkeypatch), shards(tmp_path, (3,))
    opened(tmp_path, pattern)
    index, = (tmp_path / "cache").iterdir()
    whole = index.read_bytes()
    index.write_bytes(damage(whole))
    assert [list(captions) for captions in opened(tmp_path, pattern).told] == told and len(gone) == 2
    assert index.read_bytes() == whole


def test_a_folder_is_read_again_when_any_file_has_changed(tmp_path: Path) -> None:
    files = folder(tmp_path / "files", [*sample("x/a"), *sample("b")])
    assert list(opened(tmp_path, files).told) == [("a dog",), ("a dog",)]
    (files / "x" / "a.txt").write_text("a cat")
    assert list(opened(tmp_path, files).told) == [("a dog",), ("a cat",)]
    folder(files, sample("x/y/c", text=b"two\ndogs"))
    assert list(opened(tmp_path, files).told) == [("a dog",), ("a cat",), ("two", "dogs")]
    (files / "b.jpg").unlink()
    assert list(opened(tmp_path, files).names) == ["x/a.jpg", "x/y/c.jpg"]
    with pytest.raises(InputError, match="inner: lies in .*files, whose files it would be one of"):
        ShardSet(files, cache=files / "cache" / "inner")


def test_an_error_leaves_no_index(tmp_path: Path) -> None:
    tar(tmp_path / "set.tar", [*sample(), ("b.jpg", JPEG)])
    with pytest.raises(InputError):
        opened(tmp_path)
    assert not list((tmp_path / "cache").iterdir())


# -- memory, sharing, resuming -------------------------------------------------------------------------------

def test_memory_does_not_grow_with_the_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Open, and through a whole epoch; while it is indexed, some bytes a picture."""
    monkeypatch.setattr(order, "AHEAD", 64)
    held, through, indexed, counts = [], [], [], (100, 2100)
    for count in (100, *counts):  # the first fills what Python keeps for itself
        tar(tmp_path / f"{count}.tar", [file for number in range(count) for file in sample(f"{number:06}")])
        tracemalloc.start()
        opened(tmp_path, tmp_path / f"{count}.tar")
        indexed.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        tracemalloc.start()
        one = opened(tmp_path, tmp_path / f"{count}.tar")
        held.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.reset_peak()
        seen = 0
        for share in Batches(Order(len(one), seed=1), 32, 0):
            seen += sum(len(one.read(place)) + len(one.captions(place)[0]) for place in share.samples)
        assert seen == count * (len(JPEG) + 5)
        through.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    for kept in (held, through):
        assert kept[2] - kept[1] < 8000, kept  # 4 bytes for each of 2,000 pictures; a list has 8
    assert (indexed[2] - indexed[1]) / 2000 < 60, indexed


class Reading:
    """What a training step would want: names, captions and pixels; notes what was read."""

    def __init__(self, one: ShardSet) -> None:
        self.one = one

    def __call__(self, share: Share) -> tuple[Share, list[tuple[str, tuple[str, ...], int]]]:
        rows = [self.one[place] for place in share.samples[:share.counted]]
        return share, [(row.name, row.captions, hash(open_photo(row.image).tobytes())) for row in rows]


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")  # on a machine of two cores
@pytest.mark.parametrize("window", [None, 20])
def test_two_processes_of_three_workers_see_each_sample_once(tmp_path: Path, window: int | None) -> None:
    """And their batches together are those of one process; begun in the middle, those from there on."""
    one = opened(tmp_path, shards(tmp_path, (17, 2, 24))[0])
    order = Order(len(one), seed=5, window=window)

    def read(start: int = 0, workers: int = 0, **share: int) -> list[list[tuple[str, tuple[str, ...], int]]]:
        return [rows for _, rows in fetched(Reading(one), Batches(order, 6, 2, start, **share), workers=workers)]

    alone = read()
    ranks = [read(workers=3, rank=rank, ranks=2) for rank in range(2)]
    assert sorted(sum(map(len, rows)) for rows in ranks) == [21, 22]
    names = sorted(name for rows in (*ranks[0], *ranks[1]) for name, _, _ in rows)
    assert names == sorted(one.names) and len(set(names)) == 43
    assert [first + second for first, second in zip(*ranks, strict=True)] == alone
    assert read(5, workers=3, rank=1, ranks=2) == ranks[1][5:] and read(8) == []


def test_what_is_skipped_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, asked = opened(tmp_path, shards(tmp_path, (40,))[0]), []
    real = OpenFiles.read

    def read(self: OpenFiles, path: Path, offset: int, size: int, stamp: list[int]) -> bytes:
        asked.extend([size] if path.suffix == ".tar" else [])
        return real(self, path, offset, size, stamp)

    monkeypatch.setattr(OpenFiles, "read", read)
    list(fetched(Reading(one), Batches(Order(40, seed=1), 8, 0, 4)))
    wanted = [len(one.read(place)) for place in Order(40, seed=1).samples(0, 32, 40)]
    assert asked[:8] == wanted and len(asked) == 16


def test_few_files_stay_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever their number; and they are read alike where the system cannot read at an offset."""
    pattern, _, _ = shards(tmp_path, (2,) * 40)
    one = opened(tmp_path, pattern)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    expected = [one.read(place) for place in Order(80, seed=1).samples(0, 0, 80)]
    if before is not None:
        assert before < len(os.listdir("/proc/self/fd")) <= before + 64
    other = opened(tmp_path, pattern)
    monkeypatch.delattr(os, "pread", raising=False)
    assert [other.read(place) for place in Order(80, seed=1).samples(0, 0, 80)] == expected
    del one, other
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) == before


# -- bad input -----------------------------------------------------------------------------------------------

def refused(path: Path, told: str, sources: Any = None, **options: Any) -> None:
    with pytest.raises(InputError, match=told) as caught:
        opened(path, sources, **options)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_a_shard_cut_short_anywhere(tmp_path: Path) -> None:
    """Within a picture, a header, between two members, before the end mark: found before the first step."""
    whole = tar(tmp_path / "set.tar", [file for name in "abcd" for file in sample(name)]).read_bytes()
    opened(tmp_path)
    end = len(whole.rstrip(b"\0"))
    draw = np.random.default_rng(3)
    for cut in (*range(0, end + 512, 512), *draw.integers(1, end, 20).tolist()):
        (tmp_path / "set.tar").write_bytes(whole[:cut])
        refused(tmp_path, "^[^ ]*set.tar: is (cut short: |no tar that can be read)")
    (tmp_path / "set.tar").write_bytes(whole[:end // 512 * 512 + 1024])
    assert len(opened(tmp_path)) == 4  # one block of zeros is an end
    (tmp_path / "set.tar").write_bytes(whole[:3 * 512 + 100 + len(JPEG) // 512 * 512])
    refused(tmp_path, "is cut short: .* ends at byte 2560, the file at 2148")


def test_a_damaged_shard(tmp_path: Path) -> None:
    whole = tar(tmp_path / "set.tar", [file for name in "abcd" for file in sample(name)]).read_bytes()
    with tarfile.open(tmp_path / "set.tar") as read:
        headers = [member.offset for member in read.getmembers()]
    for header in headers:  # of which tarfile makes the end of the tar
        (tmp_path / "set.tar").write_bytes(whole[:header + 100] + b"X" + whole[header + 101:])
        refused(tmp_path, "set.tar: is (damaged: at byte|no tar that can be read)")
    (tmp_path / "set.tar").write_bytes(whole + whole)
    refused(tmp_path, "set.tar: goes on behind its end at byte .*several tars put together")
    for nonsense in (b"", b"?" * 3000, JPEG * 3):
        (tmp_path / "set.tar").write_bytes(nonsense)
        refused(tmp_path, "set.tar: is no tar that can be read")


@pytest.mark.parametrize("name, packed", [
    ("set.tar", gzip.compress), ("set.tar.gz", gzip.compress), ("set.tgz", lambda data: data),
    ("set.tar", lambda data: b"\x28\xb5\x2f\xfd" + data), ("set.tar.zst", lambda data: data)])
def test_a_compressed_shard(tmp_path: Path, name: str, packed: Callable[[bytes], bytes]) -> None:
    data = tar(tmp_path / "plain", sample()).read_bytes()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(packed(data))
    for sources in (tmp_path / "in" / name, tmp_path / "in", f"{tmp_path}/in/s*"):
        refused(tmp_path, f"{name}: is compressed.*unpack the shard to a plain .tar", sources)


BAD: dict[str, tuple[Files, str]] = {
    "no picture": ([*sample(), ("b.txt", b"a cat")], "set.tar: b.txt: has no picture beside it"),
    "apart": ([("a.jpg", JPEG), *sample("b"), ("a.txt", b"a dog")],
              "set.tar: a.jpg: has no captions: no .json or .txt"),
    "key twice": ([*sample("x/a"), *sample("b"), *sample("x/a")],
                  "set.tar: has samples of the same name in two places: x/a$"),
    "member twice": ([*sample(), ("a.jpg", JPEG)], "set.tar: has a.jpg and a.jpg: a sample has one of each kind"),
    "two pictures": ([*sample(), ("a.png", JPEG)], "set.tar: has a.jpg, a.png: a sample has one picture"),
    "html": (sample(image=b"<!doctype html>"), "set.tar: a.jpg: is not an image"),
    "empty picture": (sample(image=b""), "set.tar: a.jpg: is empty"),
    "no captions": ([("a.jpg", JPEG)], "set.tar: a.jpg: has no captions: no .json or .txt lies beside it"),
    "empty text": (sample(text=b" \n\t\n"), "set.tar: a.txt: is empty"),
    "not UTF-8": (sample(text=b"caf\xe9"), "set.tar: a.txt: is not UTF-8 text .* at byte 3"),
    "NUL": (sample(text=b"a \0 dog"), r"set.tar: a.txt: has '\\x00' in a caption, which is no character"),
    "only left out": ([("a.cls", b"1")], r"set.tar: holds no pictures with captions, only 1 \.cls"),
    "nothing": ([], "set.tar: holds no pictures with captions$")}


@pytest.mark.parametrize("files, told", BAD.values(), ids=BAD.keys())
def test_bad_samples(tmp_path: Path, files: Files, told: str) -> None:
    tar(tmp_path / "set.tar", files)
    refused(tmp_path, told)


def test_bad_samples_of_a_folder(tmp_path: Path) -> None:
    for name, (files, told) in BAD.items():
        if name not in ("no picture", "apart", "key twice", "member twice", "nothing"):
            refused(tmp_path, told.replace("set.tar", name), folder(tmp_path / name, files))
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "up").symlink_to(tmp_path / "links")
    refused(tmp_path, "links/up: is a link to a folder that it lies in", tmp_path / "links")
    (tmp_path / "links" / "up").unlink()
    (tmp_path / "links" / "a.jpg").symlink_to(tmp_path / "nowhere")
    refused(tmp_path, "links/a.jpg: cannot be read", tmp_path / "links")


@pytest.mark.parametrize("text, told", [
    ("{}", "no captions: a.json has no 'caption' or 'captions'"), ('{"caption": null}', "no captions"),
    ("[]", "no captions"), ("3", "holds a number, a caption or a list"), ('{"caption": 3}', "holds a number"),
    ('{"captions": ["x", null]}', "a.json: has null for a caption"), ('["x", " "]', "a.json: has an empty caption"),
    ('{"caption": "x", "captions": ["x"]}', "a.json: has both 'caption' and 'captions'"),
    ('"\\ud83d"', r"a.json: has '\\ud83d' in a caption"), ('{"caption": "x"', "a.json: is not JSON"),
    ('{"caption": "x", "caption": "y"}', "a.json: .*'caption' twice")])
def test_bad_json(tmp_path: Path, text: str, told: str) -> None:
    tar(tmp_path / "set.tar", [("a.jpg", JPEG), ("a.json", text.encode())])
    refused(tmp_path, told)


def test_json_and_txt_that_differ(tmp_path: Path) -> None:
    files = [("a.jpg", JPEG), ("a.json", b'{"captions": ["a dog", "a  cat"]}'), ("a.txt", b"a cow")]
    tar(tmp_path / "set.tar", files)
    refused(tmp_path, "set.tar: a.txt: says otherwise than a.json")
    assert opened(tmp_path, texts="json").captions(0) == ("a dog", "a  cat")
    assert opened(tmp_path, texts="txt").captions(0) == ("a cow",)
    tar(tmp_path / "set.tar", [*files[:2], ("a.txt", b"a cat")])
    assert opened(tmp_path).captions(0) == ("a dog", "a  cat")
    tar(tmp_path / "set.tar", [files[0], ("a.json", b'{"caption": "a\\ndog"}'), ("a.txt", b"a\ndog")])
    assert opened(tmp_path).captions(0) == ("a\ndog",)
    tar(tmp_path / "set.tar", [files[0], files[2]])
    refused(tmp_path, "set.tar: a.jpg: has no captions: no .json lies", texts="json")


def test_a_long_text_is_no_caption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from minivl.data import samples as module
    monkeypatch.setattr(module, "LONGEST_TEXT", 4)
    tar(tmp_path / "set.tar", sample())
    refused(tmp_path, "set.tar: a.txt: has 5 bytes, captions have at most 4")


def test_members_that_are_no_files(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "set.tar", "w") as made:
        member = tarfile.TarInfo("a.jpg")
        member.type, member.linkname = tarfile.SYMTYPE, "b.jpg"
        made.addfile(member)
    refused(tmp_path, "set.tar: a.jpg: is a link or a device: pack the file itself")
    with tarfile.open(tmp_path / "set.tar", "w") as made:
        member = tarfile.TarInfo("a.jpg")
        member.size, member.pax_headers = len(JPEG), {"GNU.sparse.map": "0,5", "GNU.sparse.size": str(len(JPEG))}
        made.addfile(member, io.BytesIO(JPEG))
    refused(tmp_path, "set.tar: a.jpg: is stored with its holes left out")


def test_picture_of_a_format_known_to_pillow_alone(tmp_path: Path) -> None:
    """Its first bytes are in no table, but it opens; named .jpg, as crawlers do."""
    draw = np.random.default_rng(2)
    tar(tmp_path / "set.tar", sample(image=picture(draw, "PCX")))
    assert open_photo(opened(tmp_path).image(0)).size == (9, 7)


def test_a_picture_that_breaks_off(tmp_path: Path) -> None:
    """Its beginning is well: the error comes when it is decoded, by its shard and member, from a worker too."""
    tar(tmp_path / "set.tar", [*sample(), *sample("b", JPEG[:len(JPEG) // 2])])
    one = opened(tmp_path)
    with pytest.raises(InputError, match="set.tar: b.jpg: cannot be opened as an image"):
        open_photo(one.image(1))
    for workers in (0, 1):
        with pytest.raises(InputError, match="^[^ ]*set.tar: b.jpg: cannot be opened as an image [^\n]*$"):
            list(fetched(Reading(one), Batches(Order(2, seed=None), 1, 0), workers=workers))
    tar(tmp_path / "set.tar", sample(image=JPEG[:3]))
    with pytest.raises(InputError, match="set.tar: a.jpg: (is not an image|cannot be opened)"):
        opened(tmp_path).image(0)


@pytest.mark.parametrize("sources, told", [
    ("no.tar", "no.tar: no such shard or folder"),
    ("a-{0..2}.tar", "2 of its 3 shards are not there: .*a-0.tar, .*a-2"),
    ("b*.tar", "b.*: nothing is there by this pattern"), ("a-{1}.tar", r"braces hold a range or a list"),
    ("a-{2..1}.tar", "is no range from a lower to a higher number"), ("a-{0..9999999}.tar", "at most 1000000"),
    ("a-{1,1}.tar", "shards are given twice: .*a-1.tar"), ("empty", "empty: holds no pictures with captions$")])
def test_bad_patterns(tmp_path: Path, sources: str, told: str) -> None:
    tar(tmp_path / "a-1.tar", sample())
    (tmp_path / "empty").mkdir()
    refused(tmp_path, told, f"{tmp_path}/{sources}")


def test_bad_arguments(tmp_path: Path) -> None:
    shard, photos = tar(tmp_path / "a.tar", sample()), folder(tmp_path / "photos", sample())
    refused(tmp_path, "no shards: give a .tar", [])
    refused(tmp_path, "s3://bucket/a.tar: is no path", "s3://bucket/a.tar")
    refused(tmp_path, "pipe:cat a.tar: is no path", "pipe:cat a.tar")
    refused(tmp_path, "shards are given twice", [shard, f"{tmp_path}/*.tar"])
    refused(tmp_path, "texts='xml': give one of 'auto', 'json', 'txt'", shard, texts="xml")
    refused(tmp_path, "split='val': captions that lie beside", shard, split="val")
    for sources, texts in ((shard, "auto"), ([shard, photos], "auto"), (photos, "txt")):
        refused(tmp_path, "t.json: captions of a file are for the pictures of one folder", sources, texts=texts,
                captions="t.json")
    folder(tmp_path / "a", sample())
    refused(tmp_path, "whose samples would have the same names: a/", [shard, tmp_path / "a"])
    (photos / "z.tar").write_bytes(shard.read_bytes())
    refused(tmp_path, r"photos: holds pictures \(a.jpg\) beside shards \(z.tar\)", photos)
    (tmp_path / "pipe.tar").mkdir()
    os.mkfifo(tmp_path / "pipe.tar" / "p.tar")
    refused(tmp_path, "p.tar: is a pipe", tmp_path / "pipe.tar")


def test_a_shard_that_changes_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tar(tmp_path / "set.tar", [*sample(), *sample("b")])
    one, two = opened(tmp_path), opened(tmp_path)
    two.read(0)
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])
    with pytest.raises(InputError, match="set.tar: has changed since it was indexed: start again"):
        one.image(0)
    with pytest.raises(InputError, match="set.tar: is cut short: .* are needed, 0 are there"):  # it was open
        two.image(1)
    path.unlink()
    with pytest.raises(InputError, match="set.tar: cannot be read .No such file"):
        one.read(1)
    path.write_bytes(whole)
    from minivl.data import sources

    def meanwhile(path: Path, *others: Any) -> Any:
        yield from real(path, *others)
        os.utime(path)

    real = sources.tar_samples
    monkeypatch.setattr(sources, "tar_samples", meanwhile)
    refused(tmp_path, "set.tar: has changed while it was read")
    monkeypatch.undo()
    assert len(opened(tmp_path)) == 2


def test_a_shard_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bad disk, or no permission: while it is indexed, and in a worker."""
    path = tar(tmp_path / "set.tar", sample())
    one = opened(tmp_path)

    def fails(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pread", fails)
    for workers in (0, 1):
        with pytest.raises(InputError, match="set.tar-.*index: cannot be read .Input/output error"):
            list(fetched(Reading(one), Batches(Order(1), 1, 0), workers=workers))
    os.utime(path)
    refused(tmp_path, "set.tar: cannot be read .Input/output error")


@pytest.mark.shared
def test_real_photos_packed_and_in_their_folder(tmp_path: Path, shared: Path) -> None:
    """Flickr8k: photos with their caption file, and the same packed into shards."""
    photos = opened(tmp_path, shared / "data/flickr8k/images", captions=shared / "data/flickr8k/dev.json")
    places = Order(len(photos), seed=3).samples(0, 0, 24).tolist()
    for part in range(2):
        files = [file for place in places[12 * part:12 * part + 12] for file in
                 ((photos.name(place), photos.read(place)),
                  (photos.name(place).replace(".jpg", ".json"), json.dumps(photos.captions(place)).encode()))]
        tar(tmp_path / f"set-{part}.tar", files)
    packed = opened(tmp_path, f"{tmp_path}/set-{{0..1}}.tar")
    assert [name.split("/")[1] for name in packed.names] == [photos.name(place) for place in places]
    assert list(packed.told) == [photos.captions(place) for place in places]
    assert min(map(len, packed.told)) == 5
    both = [torch.cat(list(photo_batches(images, PREPROCESSING, 8, 10))) for images in
            (packed.images, [photos.image(place) for place in places])]
    assert both[0].shape == (24, 3, 8, 8) and torch.equal(*both)
