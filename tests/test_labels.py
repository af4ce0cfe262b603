"""Folders of pictures with classes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from minivl.data.labels import Labelled, read_labelled, read_pictures, scene_labels
from minivl.data.scene_shapes import KINDS
from minivl.data.scenes import Scenes
from minivl.errors import InputError


def picture(path: Path, colour: tuple[int, int, int] = (10, 200, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 7), colour).save(path)
    return path


def tree(folder: Path, *names: str) -> Path:
    for name in names:
        picture(folder / name)
    return folder


def table(folder: Path, names: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "id2label.json").write_text(json.dumps(names))


def found(labelled: Labelled, folder: Path) -> list[tuple[str, str]]:
    return [(file.relative_to(folder).as_posix(), labelled.names[label])
            for file, label in zip(labelled.files, labelled.labels)]


def test_a_folder_per_class_in_the_order_of_torchvision(tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder
    tree(tmp_path, "dog/2.jpg", "dog/10.PNG", "cat/deep/b.webp", "cat/a.jpeg", "Zebra/x.bmp", "10/x.tif", "9/x.ppm")
    read = read_labelled(tmp_path)
    theirs = ImageFolder(str(tmp_path))
    assert list(read.names) == theirs.classes == ["10", "9", "Zebra", "cat", "dog"] and read.ids is None
    assert sorted((str(file), label) for file, label in zip(read.files, read.labels)) == sorted(theirs.samples)
    assert read.counts() == (1, 1, 1, 2, 2) and len(read) == 7 and read.skipped == ()


def test_what_is_no_picture_is_counted(tmp_path: Path) -> None:
    tree(tmp_path, "a/1.jpg", "b/1.jpg", "a/.hidden.jpg", ".ipynb_checkpoints/1.jpg", "b/.cache/1.jpg")
    (tmp_path / "README.txt").write_text("read me")
    (tmp_path / "a" / "Thumbs.db").write_text("x")
    (tmp_path / "b" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "b" / "up").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "linked").symlink_to(tmp_path / "a")
    read = read_labelled(tmp_path)
    assert found(read, tmp_path) == [("a/1.jpg", "a"), ("b/1.jpg", "b"), ("b/linked/1.jpg", "b")]
    reasons = {one.file.relative_to(tmp_path).as_posix(): one.reason for one in read.skipped}
    assert reasons == {
        ".ipynb_checkpoints": "hidden", "a/.hidden.jpg": "hidden", "b/.cache": "hidden",
        "b/linked/.hidden.jpg": "hidden",
        "README.txt": "no picture by its name", "a/Thumbs.db": "no picture by its name",
        "b/linked/Thumbs.db": "no picture by its name",
        "b/gone.jpg": "a link that leads nowhere, or no regular file", "b/up": "a link to a folder above it"}
    assert str(read.skipped[0]) == f"{read.skipped[0].file}: {read.skipped[0].reason}"


def test_labels_in_names(tmp_path: Path) -> None:
    """By number or by name, with spaces or underscores; the longest name counts; numbers are sorted as such."""
    table(tmp_path, {"10": "British Shorthair", "2": "british", "7": "crane", "8": "crane"})
    tree(tmp_path / "train", "2_1.jpg", "10_b_c.png", "british_shorthair_4.jpg", "British_4.jpg", "007_5.jpg",
         "8_7_9.jpg")
    read = read_labelled(tmp_path, split="train")
    assert read.ids == (2, 7, 8, 10) and read.names == ("british", "crane", "crane", "British Shorthair")
    assert [(file.name, label) for file, label in zip(read.files, read.labels)] == [
        ("2_1.jpg", 0), ("British_4.jpg", 0), ("007_5.jpg", 1), ("8_7_9.jpg", 2), ("10_b_c.png", 3),
        ("british_shorthair_4.jpg", 3)]
    assert read_labelled(tmp_path / "train") == read


@pytest.mark.parametrize("name", ["11_1.jpg", "cat_1.jpg", "2.jpg", "crane_1.jpg", "-2_1.jpg", "²_1.jpg"])
def test_a_picture_without_a_known_label(tmp_path: Path, name: str) -> None:
    table(tmp_path, {"2": "british", "7": "crane", "8": "crane"})
    tree(tmp_path, "2_1.jpg", name)
    with pytest.raises(InputError, match=r"1 of 2 pictures do not begin .*id2label.json.*2 to 8.*") as caught:
        read_labelled(tmp_path)
    assert name in str(caught.value)


def test_class_folders_with_a_table(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table(tmp_path, {"0": "cat", "1": "small dog", "10": "fox"})
    tree(tmp_path / "train", "10/a.jpg", "small_dog/b.jpg", "0/c.jpg")
    read = read_labelled(tmp_path / "train")
    assert read.names == ("cat", "small dog", "fox") and read.ids == (0, 1, 10)
    assert found(read, tmp_path / "train") == [("0/c.jpg", "cat"), ("small_dog/b.jpg", "small dog"),
                                               ("10/a.jpg", "fox")]
    tree(tmp_path / "train", "wolf/a.jpg")
    read = read_labelled(tmp_path / "train")
    assert read.names == ("0", "10", "small_dog", "wolf") and read.ids is None
    assert "does not name all folders of classes ('wolf')" in caplog.text


@pytest.mark.parametrize("data, said", [
    ([1], "is list, or empty"), ({}, "is dict, or empty"), ({"cat": 0}, "has the entry 'cat': 0"),
    ({"0": ["cat"]}, "has the entry '0'"), ({"0": " "}, "has the entry '0'"),
    ({"1": "a", "01": "b"}, "a number twice")])
def test_a_table_that_is_none(tmp_path: Path, data: Any, said: str) -> None:
    table(tmp_path, data)
    tree(tmp_path, "1_1.jpg")
    with pytest.raises(InputError, match=r"id2label.json: .*" + said):
        read_labelled(tmp_path)


@pytest.mark.parametrize("make, said", [
    (lambda folder: folder, "holds no pictures"),
    (lambda folder: tree(folder, "a/1.jpg", "2.jpg"), r"pictures \(2.jpg\) beside folders of pictures \(a/\)"),
    (lambda folder: tree(folder, "1.jpg"), "have no class: it needs a folder per class, or id2label.json"),
    (lambda folder: tree(folder, "train/a/1.jpg", "val/a/1.jpg", "test/a/1.jpg"), "holds test/, train/, val/, not"),
    (lambda folder: tree(folder, "train/a/1.jpg"), "holds train/, not classes"),
    (lambda folder: folder / "missing", "no such folder"),
    (lambda folder: picture(folder / "a.jpg"), "is a file, a folder of pictures is needed")])
def test_folders_that_cannot_be_read(tmp_path: Path, make: Callable[[Path], Path], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        read_labelled(make(tmp_path))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_splits_by_name(tmp_path: Path) -> None:
    tree(tmp_path, "train/a/1.jpg", "validation/b/2.jpg")
    assert read_labelled(tmp_path, split="val").names == ("b",)
    with pytest.raises(InputError, match="split='test': give one of 'train', 'val'"):
        read_labelled(tmp_path, split="test")
    tree(tmp_path, "val/b/2.jpg")
    with pytest.raises(InputError, match=r"holds val/, validation/: one of the two must go"):
        read_labelled(tmp_path, split="val")
    with pytest.raises(InputError, match=r"holds no train/"):
        read_labelled(tmp_path / "val", split="train")


def test_pictures_without_classes(tmp_path: Path) -> None:
    tree(tmp_path, "b.jpg", "a.png", "deep/c.jpg", ".d.jpg")
    files, skipped = read_pictures(tmp_path)
    (empty := tmp_path / "empty").mkdir()
    assert [file.name for file in files] == ["a.png", "b.jpg"] and [one.file.name for one in skipped] == [".d.jpg"]
    files, skipped = read_pictures(tmp_path, deep=True)
    assert [file.name for file in files] == ["a.png", "b.jpg", "c.jpg"] and len(skipped) == 1
    for deep in (False, True):
        with pytest.raises(InputError, match="holds no pictures"):
            read_pictures(empty, deep=deep)


def test_classes_must_have_pictures(tmp_path: Path) -> None:
    tree(tmp_path, "a/1.jpg")
    with pytest.raises(InputError, match=r"here: has one class \(a\), at least 2"):
        read_labelled(tmp_path).check_classes("here")
    for name in ("b", "__MACOSX"):
        (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=r"2 of 3 classes have no picture: '__MACOSX', 'b'; add some"):
        read_labelled(tmp_path).check_classes(tmp_path)
    tree(tmp_path, "b/1.jpg", "__MACOSX/1.jpg")
    read_labelled(tmp_path).check_classes(tmp_path)


def test_scenes_have_the_class_that_covers_most() -> None:
    drawn = scene_labels(40, start=5, seed=3, size=48)
    assert drawn.names == tuple(KINDS) and len(set(drawn.labels)) >= 8
    for image, label, scene in zip(drawn.images, drawn.labels, Scenes(40, seed=3, size=48, start=5), strict=True):
        sizes = {kind: mask.sum() for kind, mask in scene.masks.items()}
        assert sizes[drawn.names[label]] == max(sizes.values()) and image.tobytes() == scene.image.tobytes()
    later = scene_labels(10, start=15, seed=3, size=48)
    assert later.labels == drawn.labels[10:20]
    assert scene_labels(2, progress=lambda scenes, total, desc: list(scenes)[:1]).labels == scene_labels(1).labels


@pytest.mark.shared
@pytest.mark.parametrize("name, count, classes, ids", [
    ("pets/train", 222, 37, True), ("pets/val", 74, 37, True), ("imagenet_sample", 500, 1000, True),
    ("clothing/train", 3068, 10, False), ("clothing/validation", 341, 10, False)])
def test_real_folders(shared: Path, name: str, count: int, classes: int, ids: bool) -> None:
    read = read_labelled(shared / "data" / name)
    assert (len(read), len(read.names)) == (count, classes)
    assert (read.ids == tuple(range(classes))) is ids
