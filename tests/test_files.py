"""Files: whole or not at all, and every way of being broken has one clear line."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from pathlib import Path

import pytest
import torch

from minivl import files
from minivl.errors import InputError, some

TENSORS = {"b": torch.randn(3, 5), "a": torch.arange(6).reshape(2, 3), "half": torch.randn(7).bfloat16(),
           "none": torch.zeros(0, 4), "one": torch.tensor(2.5)}


def left_in(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


# -- atomic_path ---------------------------------------------------------------------------------------------

def test_the_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "out.json"
    with files.atomic_path(target) as temporary:
        assert temporary.parent == target.parent and temporary.suffix == ".json" and temporary != target
        temporary.write_text("whole")
        assert not target.exists()
    assert target.read_text() == "whole" and left_in(target.parent) == {"out.json"}


def test_a_reader_of_the_old_file_never_sees_a_mixture(tmp_path: Path) -> None:
    target = tmp_path / "out.txt"
    target.write_text("old")
    with open(target) as reader:
        files.write_text(target, "new and longer")
        assert reader.read() == "old"  # the name moved to another file; the old one was not written into
    assert target.read_text() == "new and longer"


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), OSError(errno.ENOSPC, "full")])
def test_an_exception_leaves_what_was_there(tmp_path: Path, error: BaseException) -> None:
    target = tmp_path / "out.txt"
    for before in (None, "old"):
        if before is not None:
            target.write_text(before)
        with pytest.raises(type(error)):
            with files.atomic_path(target) as temporary:
                temporary.write_text("half")
                raise error
        assert left_in(tmp_path) == (set() if before is None else {"out.txt"})
    assert target.read_text() == "old"


def test_a_file_the_block_took_away_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        with files.atomic_path(tmp_path / "out.txt") as temporary:
            temporary.unlink()
    assert not left_in(tmp_path)


def test_two_writers_do_not_meet(tmp_path: Path) -> None:
    target = tmp_path / "out.txt"
    with files.atomic_path(target) as first, files.atomic_path(target) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert target.read_text() == "first" and left_in(tmp_path) == {"out.txt"}  # the last to end wins


def test_written_files_are_ordinary_files(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        files.write_text(tmp_path / "out.txt", "é\n")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "out.txt").stat().st_mode) == 0o640
    assert (tmp_path / "out.txt").read_bytes() == "é\n".encode()


def test_a_folder_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(OSError):
        files.write_text(tmp_path / "out", "text")
    assert left_in(tmp_path) == {"out"}
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        files.write_text(tmp_path / "file" / "out.txt", "text")


# -- JSON ----------------------------------------------------------------------------------------------------

def test_json_there_and_back(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, None, True], "ü": {"nested": "x"}}
    files.write_json(tmp_path / "v.json", value)
    assert files.read_json(tmp_path / "v.json") == value
    (tmp_path / "bom.json").write_bytes(b"\xef\xbb\xbf[1]")
    assert files.read_json(tmp_path / "bom.json") == [1]


@pytest.mark.parametrize("content, message", [
    (b'{"a": 1,}', "line 1 column"), (b'[1,\n 2', "line 2"), (b"", "line 1"), (b"\xff\xfe\x00", "UTF-8"),
])
def test_broken_json(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "v.json").write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        files.read_json(tmp_path / "v.json")
    assert str(caught.value).startswith(f"{tmp_path / 'v.json'}: ")
    assert caught.value.source == str(tmp_path / "v.json")


@pytest.mark.parametrize("read", [files.read_json, files.read_tensors, files.read_header, files.sha256])
def test_missing_files_and_folders(tmp_path: Path, read: object) -> None:
    with pytest.raises(InputError, match="nowhere.bin: no such file"):
        read(tmp_path / "nowhere.bin")
    with pytest.raises(InputError, match="folder"):
        read(tmp_path)


# -- safetensors ---------------------------------------------------------------------------------------------

def test_tensors_there_and_back(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    given = {**TENSORS, "turned": torch.randn(4, 6).T, "part": torch.randn(9, 2)[::3]}
    files.write_tensors(file, given, {"note": "ü"})
    tensors, header = files.read_tensors(file)
    assert header == {"note": "ü"} and set(tensors) == set(given)
    for name in given:
        assert torch.equal(tensors[name], given[name]) and tensors[name].dtype == given[name].dtype
    shapes, header = files.read_header(file)
    assert header == {"note": "ü"} and shapes == {name: tuple(tensor.shape) for name, tensor in given.items()}


def test_parts_of_one_tensor_are_stored_each_for_itself(tmp_path: Path) -> None:
    whole = torch.randn(6, 4)
    files.write_tensors(tmp_path / "w.safetensors", dict(zip("qkv", whole.chunk(3))))
    tensors, _ = files.read_tensors(tmp_path / "w.safetensors")
    assert torch.equal(torch.cat([tensors[name] for name in "qkv"]), whole)


def whole_file(tmp_path: Path) -> bytes:
    files.write_tensors(tmp_path / "good.safetensors", TENSORS, {"note": "x"})
    return (tmp_path / "good.safetensors").read_bytes()


@pytest.mark.parametrize("damage", [
    lambda b: b[:-1], lambda b: b[:len(b) // 2], lambda b: b[:8], lambda b: b[:3], lambda b: b"",
    lambda b: b + b"x", lambda b: b"\xff" * 8 + b[8:], lambda b: b[:8] + b"}" + b[9:],
    lambda b: b"PK\x03\x04" + bytes(200),
    lambda b: b.replace(b'"F32"', b'"F99"'), lambda b: b.replace(b"[3,5]", b"[3,6]"), lambda b: bytes(16),
    lambda b: json.dumps({"weights": 1}).encode(),
], ids=range(13))
def test_broken_weight_files(tmp_path: Path, damage: object) -> None:
    content = whole_file(tmp_path)
    broken = damage(content)
    assert broken != content
    (tmp_path / "bad.safetensors").write_bytes(broken)
    for read in (files.read_tensors, files.read_header):
        with pytest.raises(InputError, match="bad.safetensors: is not a whole safetensors file") as caught:
            read(tmp_path / "bad.safetensors")
        assert "\n" not in str(caught.value)


def test_a_failing_disk_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(tensors: object, path: Path, metadata: object = None) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    file = tmp_path / "w.safetensors"
    files.write_tensors(file, TENSORS)
    before = file.read_bytes()
    monkeypatch.setattr(files, "save_file", full)
    for target in (file, tmp_path / "new.safetensors"):
        with pytest.raises(OSError, match="No space"):
            files.write_tensors(target, TENSORS)
    assert left_in(tmp_path) == {"w.safetensors"} and file.read_bytes() == before


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # the standard's own example
    assert files.sha256(tmp_path / "abc") == known
    big = bytes(range(256)) * 9000  # more than one piece
    (tmp_path / "big").write_bytes(big)
    assert files.sha256(tmp_path / "big") == hashlib.sha256(big).hexdigest()


# -- errors --------------------------------------------------------------------------------------------------

def test_an_error_is_one_line_that_names_its_source() -> None:
    error = InputError("is\n  wrong", source=Path("some/file.json"))
    assert str(error) == "some/file.json: is wrong" and error.source == "some/file.json"
    assert str(InputError("file.json: is wrong", source="file.json")) == "file.json: is wrong"
    assert str(InputError("no such folder of images", source="images")) == "images: no such folder of images"
    assert InputError("wrong").source is None and isinstance(error, ValueError)


def test_some_names() -> None:
    assert some(range(3)) == "0, 1, 2" and some([]) == "" and some("abcd", 2) == "a, b and 2 more"
    assert some(iter("abc"), 3) == "a, b, c"


def test_a_full_disk_while_saving_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **options: object) -> None:
        raise files.safetensors.SafetensorError("No space left on device")

    monkeypatch.setattr(files, "save_file", full)
    with pytest.raises(OSError, match=r"a\.safetensors: cannot be written .*No space left"):
        files.write_tensors(tmp_path / "a.safetensors", {"x": torch.zeros(2)})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["[" * 100_000, "1" * 5000])
def test_json_that_python_cannot_hold(tmp_path: Path, content: str) -> None:
    (tmp_path / "v.json").write_text(content)
    with pytest.raises(InputError, match="v.json: is no JSON that can be read"):
        files.read_json(tmp_path / "v.json")


def test_what_has_not_its_form_is_damage() -> None:
    for wrong in (lambda: {}["x"], lambda: [][0], lambda: None.x, lambda: int("x"), lambda: 1 + "x"):
        with pytest.raises(InputError, match="^run/file: is damaged: ") as raised:
            with files.undamaged("run/file"):
                wrong()
        assert "\n" not in str(raised.value)
    with pytest.raises(InputError, match="^other$"), files.undamaged("run/file"):
        raise InputError("other")
