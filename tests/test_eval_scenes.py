"""eval.scenes: what lies in the folder, and that other programs take it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eval import scenes as program
from minivl.data.captions import read_captions
from minivl.data.labels import SCENE_CLASSES, read_labelled
from minivl.data.scenes import scene
from minivl.errors import InputError


@pytest.mark.parametrize("one_kind", [False, True])
def test_files(tmp_path: Path, one_kind: bool) -> None:
    program.main(["--out", str(tmp_path / "some"), "--scenes", "9", "--size", "40", "--seed", "3", "--json",
                  *["--one-kind"] * one_kind])
    folder = tmp_path / "some"
    assert {file.name for file in tmp_path.iterdir()} == {"some"}
    photos = sorted((folder / "photos").iterdir(), key=lambda file: file.stem.split("_")[1])
    told = json.loads((folder / "references.json").read_text())
    assert len(photos) == 9 and {file.name for file in photos} == set(told)
    for file in photos:
        label, number = (int(part) for part in file.stem.split("_"))
        one = scene(program.START + number, seed=3, size=40)
        assert np.array_equal(np.asarray(Image.open(file)), np.asarray(one.image))
        assert told[file.name] == list(one.captions)
        assert SCENE_CLASSES[label] == max(one.masks, key=lambda kind: int(one.masks[kind].sum()))
        assert len(one.masks) == 1 or not one_kind
    numbers = [int(file.stem.split("_")[1]) for file in photos]
    assert numbers == list(range(9)) if not one_kind else numbers[-1] > 9


def test_other_programs_read_it(tmp_path: Path) -> None:
    program.main(["--out", str(tmp_path / "some"), "--scenes", "6", "--size", "32", "--json"])
    assert len(read_captions(tmp_path / "some" / "references.json").references()) == 6
    pictures = read_labelled(tmp_path / "some" / "photos")
    assert [pictures.names[label] for label in pictures.labels] == [
        SCENE_CLASSES[int(file.name.split("_")[0])] for file in pictures.files]


def test_mistakes(tmp_path: Path) -> None:
    for argv, told in ((["--scenes", "0"], "--scenes 0: give 1 or more"), (["--size", "8"], "size of a scene is 8"),
                       (["--seed", "-1"], "--seed -1")):
        with pytest.raises(InputError, match=told):
            program.main(["--out", str(tmp_path / "some"), *argv])
        assert list(tmp_path.iterdir()) == []
    (tmp_path / "there").write_text("x")
    with pytest.raises(InputError, match="there: is there already"):
        program.main(["--out", str(tmp_path / "there")])


def test_a_folder_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    with program.atomic_folder(tmp_path / "new" / "one") as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "file.txt").write_text("text")
        assert not (tmp_path / "new" / "one").exists()
    assert (tmp_path / "new" / "one" / "deep" / "file.txt").read_text() == "text"
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "new" / "one").stat().st_mode == (tmp_path / "plain").stat().st_mode
    with pytest.raises(KeyboardInterrupt), program.atomic_folder(tmp_path / "new" / "two") as folder:
        (folder / "file.txt").write_text("text")
        raise KeyboardInterrupt
    with pytest.raises(InputError, match="one: is there already"), program.atomic_folder(tmp_path / "new" / "one"):
        raise AssertionError
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["one"]
