"""Training and validation pictures, and what may be wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_labels import found, picture, table, tree

from minivl.data.labels import Labelled, read_labelled
from minivl.data.splits import check_readable, same_pictures, split_off, train_and_val
from minivl.errors import InputError
from minivl.images import Preprocessing


@pytest.mark.parametrize("name", ["val", "validation"])
def test_two_folders_share_their_classes(tmp_path: Path, name: str) -> None:
    tree(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "train/c/1.jpg", f"{name}/c/2.jpg", f"{name}/a/3.jpg",
         "test/x/1.jpg")
    train, val = train_and_val(tmp_path)
    assert found(val, tmp_path / name) == [("a/3.jpg", "a"), ("c/2.jpg", "c")]
    assert train.names == val.names == ("a", "b", "c") and val.labels == (0, 2) and train.labels == (0, 1, 2)


def test_tables_that_differ_are_told_apart(tmp_path: Path) -> None:
    table(tmp_path / "train", {"0": "cat", "1": "dog"})
    table(tmp_path / "val", {"1": "dog"})
    tree(tmp_path, "train/0_1.jpg", "train/1_1.jpg", "val/1_2.jpg")
    train, val = train_and_val(tmp_path)
    assert val.names == ("cat", "dog") and val.labels == (1,) and val.ids == (0, 1)
    table(tmp_path / "val", {"1": "cat"})
    with pytest.raises(InputError, match=r"val: 1 of its classes .* \(1, 'cat'\); there are \(0, 'cat'\)"):
        train_and_val(tmp_path)


@pytest.mark.parametrize("names, fraction, said", [
    (["train/a/1.jpg", "train/b/1.jpg"], None, r"holds no val/ or validation/: give a share"),
    (["a/1.jpg", "b/1.jpg"], None, "holds no val/ or validation/"),
    (["val/a/1.jpg"], None, "holds val/ but no train/"),
    (["train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg"], 0.5, "holds val/ already: val_fraction=0.5"),
    (["train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg", "val/wolf/1.jpg"], None, r"val: 1 of its classes .* 'wolf'"),
    (["train/a/1.jpg", "train/b/.1.jpg", "val/a/1.jpg"], None, r"train: 1 of 2 classes have no picture: 'b'"),
    (["a/1.jpg", "b/1.jpg"], 0.5, "no class has two pictures"), (["a/1.jpg", "b/1.jpg"], 1.0, "between 0 and 1"),
    (["a/1.jpg", "b/1.jpg"], 0.0, "between 0 and 1")])
def test_folders_without_two_parts(tmp_path: Path, names: list[str], fraction: float | None, said: str) -> None:
    tree(tmp_path, *names)
    with pytest.raises(InputError, match=said):
        train_and_val(tmp_path, val_fraction=fraction)


def test_splitting_off_a_share_of_each_class(tmp_path: Path) -> None:
    counts = {"a": 1, "b": 2, "c": 10, "d": 25}
    tree(tmp_path, *(f"{name}/{number}.jpg" for name, count in counts.items() for number in range(count)))
    train, val = train_and_val(tmp_path, val_fraction=0.2, seed=4)
    assert val.counts() == (0, 1, 2, 5) and train.counts() == (1, 1, 8, 20)
    assert sorted(train.files + val.files) == sorted(read_labelled(tmp_path).files)
    assert train_and_val(tmp_path, val_fraction=0.2, seed=4) == (train, val)
    assert train_and_val(tmp_path, val_fraction=0.2, seed=5)[1].files != val.files
    assert [file.parent.name for file in val.files] == [val.names[label] for label in val.labels]
    # classes do not draw alike, and most of a small class may be taken, but never all of it
    assert {file.stem for file in val.files if file.parent.name == "c"} != {
        file.stem for file in val.files if file.parent.name == "d"}
    assert split_off(read_labelled(tmp_path), 0.99)[0].counts() == (1, 1, 1, 1)


# -- torchvision's pets --------------------------------------------------------------------------------------

def oxford_pets(root: Path) -> Path:
    """A tree as torchvision leaves it: 3 breeds, 2 pictures of each in "trainval", one in "test"."""
    folder = root / "oxford-iiit-pet"
    lines: dict[str, list[str]] = {"trainval": [], "test": []}
    for label, breed in enumerate(("Abyssinian", "american_bulldog", "Bengal"), 1):
        for number in range(3):
            picture(folder / "images" / f"{breed}_{number}.jpg")
            lines["test" if number == 2 else "trainval"].append(f"{breed}_{number} {label} 1 {label}")
    (folder / "annotations").mkdir()
    for split, told in lines.items():
        (folder / "annotations" / f"{split}.txt").write_text("\n".join(told) + "\n")
    return folder


@pytest.mark.parametrize("aside", [False, True])
def test_folds_are_a_partition_of_the_training_pictures(tmp_path: Path, aside: bool) -> None:
    counts = {"a": 3, "b": 4, "c": 11}
    top = "train/" if aside else ""
    tree(tmp_path, *(f"{top}{name}/{number}.jpg" for name, count in counts.items() for number in range(count)))
    if aside:
        tree(tmp_path, "val/a/aside.jpg")
    every = sorted(read_labelled(tmp_path / top).files)
    parts = [train_and_val(tmp_path, fold=(number, 3), seed=5) for number in (1, 2, 3)]
    for train, val in parts:
        assert sorted(train.files + val.files) == every and train.names == val.names == ("a", "b", "c")
        assert all(0 <= had * 3 - whole <= 2 or 0 <= whole - had * 3 <= 2
                   for had, whole in zip(val.counts(), counts.values()))
    assert sorted(file for _, val in parts for file in val.files) == every
    assert train_and_val(tmp_path, fold=(2, 3), seed=5) == parts[1]
    assert train_and_val(tmp_path, fold=(2, 3), seed=6)[1].files != parts[1][1].files


@pytest.mark.parametrize("fold, fraction, said", [
    ((0, 3), None, "fold 0/3: give k/n"), ((4, 3), None, "fold 4/3"), ((1, 1), None, "n of 2 or more"),
    ((1, 3), None, "'b' has only 2 pictures, every fold needs one"), ((1, 2), 0.5, "give one of them")])
def test_folds_that_cannot_be_made(tmp_path: Path, fold: tuple[int, int], fraction: float | None, said: str) -> None:
    tree(tmp_path, "a/1.jpg", "a/2.jpg", "a/3.jpg", "b/1.jpg", "b/2.jpg")
    with pytest.raises(InputError, match=said):
        train_and_val(tmp_path, fold=fold, val_fraction=fraction)


def test_oxford_pets_by_name(tmp_path: Path) -> None:
    folder = oxford_pets(tmp_path)
    train, val = train_and_val(f"oxford-iiit-pet:{tmp_path}")
    assert train.names == val.names == ("Abyssinian", "American Bulldog", "Bengal") and train.ids is None
    assert train.counts() == (2, 2, 2) and val.counts() == (1, 1, 1)
    assert val.files[1] == folder / "images" / "american_bulldog_2.jpg" and val.labels[1] == 1
    part, rest = train_and_val(Path(f"oxford-iiit-pet:{tmp_path}"), val_fraction=0.5)
    assert part.counts() == rest.counts() == (1, 1, 1) and {*part.files, *rest.files} == {*train.files}
    (folder / "annotations" / "test.txt").unlink()
    with pytest.raises(InputError, match=r"oxford-iiit-pet: is not whole \(remove it to have it downloaded again\)"):
        train_and_val(f"oxford-iiit-pet:{tmp_path}")
    with pytest.raises(InputError, match="name the folder above it"):
        train_and_val("oxford-iiit-pet:")


def test_oxford_pets_are_downloaded_where_they_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import OxfordIIITPet

    def offline(self: Any) -> None:
        raise OSError("<urlopen error>")
    monkeypatch.setattr(OxfordIIITPet, "_download", offline)
    with pytest.raises(InputError, match=r"oxford-iiit-pet: could not be downloaded: <urlopen error>"):
        train_and_val(f"oxford-iiit-pet:{tmp_path}")
    asked: list[Path] = []

    def online(self: Any) -> None:
        if not asked:
            asked.append(oxford_pets(Path(self.root)))
    monkeypatch.setattr(OxfordIIITPet, "_download", online)
    assert len(train_and_val(f"oxford-iiit-pet:{tmp_path}")[0]) == 6 and asked == [tmp_path / "oxford-iiit-pet"]


# -- checks --------------------------------------------------------------------------------------------------

def noisy(path: Path, seed: int, size: tuple[int, int] = (24, 20)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def damaged(tmp_path: Path) -> Labelled:
    """Two classes of three, of which one of the first and two of the second do not open; one more is very thin."""
    for number in range(3):
        noisy(tmp_path / "a" / f"{number}.jpg", number)
        noisy(tmp_path / "b" / f"{number}.png", number + 3)
    (tmp_path / "a" / "0.jpg").write_bytes((tmp_path / "a" / "0.jpg").read_bytes()[:-40])
    (tmp_path / "b" / "1.png").write_text("<html>not found</html>")
    (tmp_path / "b" / "2.png").write_bytes(b"")
    noisy(tmp_path / "a" / "thin.png", 9, (60_000, 1))
    return read_labelled(tmp_path)


def test_broken_photos_are_left_out_and_listed(damaged: Labelled) -> None:
    asked: list[Any] = []

    def progress(places: Any, **options: Any) -> Any:
        asked.append(options)
        return places
    left, skipped = check_readable(damaged, progress)
    assert [file.name for file in left.files] == ["1.jpg", "2.jpg", "thin.png", "0.png"] and left.labels == (0, 0, 0, 1)
    assert [one.file.name for one in skipped] == ["0.jpg", "1.png", "2.png"]
    assert "truncated" in skipped[0].reason and "is not an image" in skipped[1].reason
    assert all("jpg" not in one.reason and "png" not in one.reason for one in skipped)
    assert asked == [{"total": 7, "desc": "checking photos"}]
    assert check_readable(left) == (left, ())
    thin = check_readable(damaged, preprocessing=Preprocessing((224, 224), (0.5,) * 3, (0.5,) * 3))[1]
    assert [one.file.name for one in thin] == ["0.jpg", "thin.png", "1.png", "2.png"] and "too thin" in thin[1].reason


def test_a_class_that_has_no_picture_left(damaged: Labelled) -> None:
    damaged.files[4].write_bytes(b"gone")
    with pytest.raises(InputError, match=r"no picture of 'b' can be used; the first: .*0\.png: is not an image"):
        check_readable(damaged)
    left, skipped = check_readable(damaged, every_class=False)
    assert left.counts() == (3, 0) and len(skipped) == 4
    with pytest.raises(InputError, match="no picture of 'b' can be used"):
        check_readable(damaged.only([4, 5]), every_class=False)


def test_the_same_file_in_both_parts(tmp_path: Path) -> None:
    for number in range(4):
        noisy(tmp_path / "train" / "a" / f"{number}.png", number)
        noisy(tmp_path / "train" / "b" / f"{number}.bmp", number)
    noisy(tmp_path / "val" / "a" / "other.bmp", 2)  # in training it is of the other class
    noisy(tmp_path / "val" / "a" / "own.bmp", 77)  # as large as others
    noisy(tmp_path / "val" / "b" / "3.png", 3)
    train, val = train_and_val(tmp_path)
    pairs = [tuple(path.relative_to(tmp_path).as_posix() for path in pair) for pair in same_pictures(train, val)]
    assert pairs == [("train/b/2.bmp", "val/a/other.bmp"), ("train/a/3.png", "val/b/3.png")]
    assert same_pictures(train, val.only([1])) == []


@pytest.mark.shared
def test_real_parts(shared: Path) -> None:
    train, val = train_and_val(shared / "data" / "pets")
    assert set(train.counts()) == {6} and set(val.counts()) == {2} and same_pictures(train, val) == []
    part, rest = split_off(train, 1 / 3, seed=1)
    assert set(part.counts()) == {4} and set(rest.counts()) == {2}
    assert check_readable(val) == (val, ())
