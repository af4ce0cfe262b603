"""Files: whole or not at all, and every way of being broken has one clear line."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import struct
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


def test_a_name_twice_in_a_json_object_is_refused(tmp_path: Path) -> None:
    (tmp_path / "v.json").write_text('[{"a": 1, "b": {"c": 1, "d": 2, "c": 1}}]')
    with pytest.raises(InputError, match=r"^[^ ]*v.json: has 'c' twice in one object$"):
        files.read_json(tmp_path / "v.json")
    found = files.parse_json('{"a": {"x": 1, "x": 2}, "b": 3}', "f", doubled=True)
    assert found == {"a": {"x": 2}, "b": 3} and found.doubled == [] and found["a"].doubled == ["x"]
    assert found["a"].entries == [("x", 1), ("x", 2)]


def test_lines_are_counted_from_where_a_text_begins() -> None:
    with pytest.raises(InputError, match=r"^f: is not JSON: .* at line 8 column 3$"):
        files.parse_json('{\n  b}', "f", line=7)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_text_is_read_as_utf8(tmp_path: Path, end: str) -> None:
    (tmp_path / "t.txt").write_bytes(f"\ufeffü{end}\u2028b".encode())
    assert files.read_text(tmp_path / "t.txt") == "ü\n\u2028b"
    (tmp_path / "t.txt").write_bytes("ü".encode("latin-1"))
    with pytest.raises(InputError, match=r"^[^ ]*t.txt: is not UTF-8 text \(.* at byte 0\)$"):
        files.read_text(tmp_path / "t.txt")


READERS = [files.read_text, files.read_json, files.read_tensors, files.read_header, files.sha256]


@pytest.mark.parametrize("read", READERS)
def test_what_is_no_regular_file_is_not_opened(tmp_path: Path, read: object) -> None:
    """Reading a pipe waits for ever, reading a device may never end."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path / "link", Path("/dev/zero"), Path("/dev/null")):
        with pytest.raises(InputError, match=f"^{path}: is a pipe, a socket or a device"):
            read(path)
    (tmp_path / "lost").symlink_to(tmp_path / "nothing")
    with pytest.raises(InputError, match="lost: no such file"):
        read(tmp_path / "lost")
    files.write_json(tmp_path / "v.json", 1)
    (tmp_path / "found").symlink_to(tmp_path / "v.json")
    assert files.existing_file(tmp_path / "found") == tmp_path / "found"


@pytest.mark.parametrize("read", READERS)
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


# -- the header of a safetensors file, before safetensors sees it --------------------------------------------

A = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
B = {"dtype": "I16", "shape": [2, 3], "data_offsets": [8, 20]}
START = "is not a whole safetensors file: "


def stored(path: Path, header: object, data: int | bytes = 20) -> Path:
    """A file of that header (JSON, text or bytes) and that many bytes behind it."""
    if not isinstance(header, bytes):
        header = (header if isinstance(header, str) else json.dumps(header)).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + (bytes(data) if isinstance(data, int) else data))
    return path


def told(path: Path) -> str:
    """What both readers say, which is the same and one line, without the file's name and the beginning."""
    lines = set()
    for read in (files.read_tensors, files.read_header):
        with pytest.raises(InputError) as caught:
            read(path)
        lines.add(str(caught.value))
    line, = lines
    assert line.startswith(f"{path}: {START}") and "\n" not in line
    return line.removeprefix(f"{path}: {START}")


def pairs(*entries: tuple[str, object]) -> str:
    """A JSON object in which names may be there twice."""
    return "{" + ", ".join(f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in entries) + "}"


def test_headers_that_are_as_they_must_be(tmp_path: Path) -> None:
    scalar = {"dtype": "F64", "shape": [], "data_offsets": [20, 28]}
    none = {"dtype": "F32", "shape": [0, 7], "data_offsets": [8, 8]}
    for header, size in (({"a": A, "b": B}, 20), ({"b": B, "a": A}, 20), ({}, 0), ({"a": A}, 8),
                         ({"__metadata__": {}, "a": A}, 8), ({"__metadata__": {"": "x"}, "": A}, 8),
                         ({"s": scalar, "n": none, "b": B, "a": A}, 28), (json.dumps({"a": A}) + "   ", 8)):
        shapes, metadata = files.read_header(stored(tmp_path / "a.safetensors", header, size))
        tensors, same = files.read_tensors(tmp_path / "a.safetensors")
        entries = header if isinstance(header, dict) else json.loads(header)
        assert metadata == same == entries.get("__metadata__", {})
        assert {name: list(shape) for name, shape in shapes.items()} == {
            name: entry["shape"] for name, entry in entries.items() if name != "__metadata__"}
        assert shapes == {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def test_every_type_there_is(tmp_path: Path) -> None:
    """What torch can hold and safetensors writes is read: the table of sizes has no gap and no mistake."""
    from safetensors.torch import _TYPES
    for name, dtype in {**_TYPES, "F4": torch.float4_e2m1fn_x2, "F8_E8M0": torch.float8_e8m0fnu}.items():
        given = torch.arange(48, dtype=torch.uint8).remainder(2).view(dtype)
        files.write_tensors(tmp_path / "a.safetensors", {"x": given})
        found = files.read_tensors(tmp_path / "a.safetensors")[0]["x"]
        assert found.dtype == dtype and torch.equal(found.view(torch.uint8), given.view(torch.uint8)), name
        assert json.loads((tmp_path / "a.safetensors").read_bytes()[8:].split(b"}}")[0] + b"}}")["x"]["dtype"] == name
    assert set(_TYPES) | {"F4", "F8_E8M0"} == set(files.BITS)


@pytest.mark.parametrize("entry, problem", [
    (None, "'b' is no object of dtype, shape, data_offsets"), ([1], "'b' is no object of"), ("x", "'b' is no object"),
    ({}, "'b' has no dtype, shape, data_offsets"), ({**B, "dtype": None}, "'b' is of type None, which is none of BOOL"),
    ({key: B[key] for key in ("dtype", "shape")}, "'b' has no data_offsets"),
    ({**B, "offsets": 1}, "'b' has 'offsets' beside dtype, shape, data_offsets"),
    ({**B, "dtype": "F99"}, "'b' is of type 'F99', which is none of BOOL, U8"),
    ({**B, "dtype": ["I16"]}, "type ['I16']"),
    ({**B, "shape": 6}, "'b' has the shape 6, which is no list of up to 64 whole numbers"),
    ({**B, "shape": [2.0, 3]}, "the shape [2.0, 3]"), ({**B, "shape": [-2, -3]}, "the shape [-2, -3]"),
    ({**B, "shape": [True, 6]}, "the shape [True, 6]"), ({**B, "shape": ["2", 3]}, "the shape ['2', 3]"),
    ({**B, "shape": [2 ** 63, 0]}, "the shape [9223372036854775808, 0]"), ({**B, "shape": [1] * 65}, "the shape [1, 1"),
    ({**B, "shape": [2, 4]}, "'b' is I16 (2, 4), which are 16 bytes, and has 12"),
    ({**B, "dtype": "I8"}, "'b' is I8 (2, 3), which are 6 bytes, and has 12"),
    ({**B, "shape": [2 ** 62] * 20}, "which are "),
    ({**B, "dtype": "F4", "shape": [25]}, "which are 13 bytes, and has 12"),
    ({**B, "data_offsets": [8]}, "'b' has the data_offsets [8], which are no begin and end"),
    ({**B, "data_offsets": [20, 8]}, "the data_offsets [20, 8]"),
    ({**B, "data_offsets": [8, 20, 20]}, "data_offsets [8, 20, "),
    ({**B, "data_offsets": [-12, 0]}, "the data_offsets [-12, 0]"),
    ({**B, "data_offsets": {"0": 8}}, "data_offsets {'0'"),
    ({**B, "data_offsets": ["8", "20"]}, "the data_offsets ['8', '20']"),
    ({**B, "data_offsets": [8.0, 20]}, "[8.0, 20]"),
])
def test_an_entry_that_is_wrong(tmp_path: Path, entry: object, problem: str) -> None:
    """One problem, which names the tensor; nothing is said of the other, nor of bytes that would have been its."""
    line = told(stored(tmp_path / "a.safetensors", {"a": A, "b": entry}))
    assert problem in line and line.startswith("'b' ") and "'a'" not in line and "; " not in line
    assert "belong" not in line and len(line) < 1600


@pytest.mark.parametrize("header, size, problem", [
    (pairs(("a", A), ("b", B), ("a", A)), 20, "'a' is in the header twice"),  # safetensors takes the last
    (pairs(("a", A), ("a", {**A, "data_offsets": [8, 16]})), 16, "'a' is in the header twice"),
    (pairs(("__metadata__", {}), ("a", A), ("__metadata__", {})), 8, "'__metadata__' is in the header twice"),
    ('{"a": {"dtype": "F32", "shape": [2], "shape": [2], "data_offsets": [0, 8]}}', 8, "'a' has 'shape' twice"),
    ('{"__metadata__": {"x": "1", "y": "1", "x": "1"}, "a": %s}' % json.dumps(A), 8, "'__metadata__' has 'x' twice"),
    ({"__metadata__": {"x": 1, "y": "1", "z": None}, "a": A}, 8, "'__metadata__' has 'x', 'z', which is no text"),
    ({"__metadata__": ["x"], "a": A}, 8, "'__metadata__' is no object of texts"),
    ({"__metadata__": None, "a": A}, 8, "'__metadata__' is no object of texts"),
    ({"a": A, "c": A}, 8, "'a' and 'c' overlap"),
    ({"a": A, "b": {**B, "data_offsets": [7, 19]}}, 19, "'a' and 'b' overlap"),
    ({"a": A, "b": B, "c": {"dtype": "U8", "shape": [3], "data_offsets": [2, 5]}}, 20, "'a' and 'c' overlap"),
    ({"a": A, "c": {"dtype": "U8", "shape": [0], "data_offsets": [4, 4]}}, 8, "'a' and 'c' overlap"),
    ({"a": A, "b": {**B, "data_offsets": [9, 21]}}, 21, "1 bytes before 'b' belong to no tensor"),
    ({"b": B}, 20, "8 bytes before 'b' belong to no tensor"),
    ({"a": A, "b": B}, 21, "1 bytes behind the last tensor belong to none"),
    ({}, 3, "3 bytes behind the last tensor belong to none"),
    ({"a": A, "b": B}, 19, "its tensors need 20 bytes and 19 are there (cut short?): 'b' is not whole"),
    ({"b": B, "a": A}, 0, "its tensors need 20 bytes and 0 are there (cut short?): 'b' is not whole"),
])
def test_headers_that_contradict_themselves(tmp_path: Path, header: object, size: int, problem: str) -> None:
    assert told(stored(tmp_path / "a.safetensors", header, size)) == problem


def test_all_problems_of_a_header_in_one_line(tmp_path: Path) -> None:
    header = pairs(("__metadata__", {"k": 1}), ("a", A), ("a", {**A, "data_offsets": [28, 36]}),
                   ("b", {**B, "dtype": "F17"}), ("c", {**B, "shape": [7], "data_offsets": [10, 22]}),
                   ("d", {**A, "data_offsets": [40, 48]}))
    line = told(stored(tmp_path / "a.safetensors", header, 50))
    for problem in ("'a' is in the header twice", "'__metadata__' has 'k', which is no text", "'b' is of type 'F17'",
                    "'c' is I16 (7,), which are 14 bytes, and has 12", "'b' and 'c' overlap",
                    "6 bytes before 'a' belong", "4 bytes before 'd' belong", "2 bytes behind the last tensor"):
        assert line.count(problem) == 1, problem
    many = told(stored(tmp_path / "a.safetensors", {f"t{index}": 1 for index in range(1000)}))
    assert many.endswith("and 992 more") and many.count("is no object") == 8


@pytest.mark.parametrize("content, problem", [
    (b"", "it is an empty file"), (b"\0" * 7, "it has 7 bytes, a header alone needs 8"),
    (b"\0" * 16, "its header is no JSON object"),
    (struct.pack("<Q", 9) + b"{}", "tell of a header of 9 bytes where 2 follow"),
    (struct.pack("<Q", 2 ** 64 - 1) + b"{}", "a header of 18446744073709551615 bytes where 2 follow"),
    (struct.pack("<Q", 3) + b" {}", "its header is no JSON object"), (struct.pack("<Q", 4) + b"null", "no JSON object"),
    (struct.pack("<Q", 3) + b"{}\0", "its header is no JSON (Extra data"),
    (struct.pack("<Q", 1) + b"{", "is no JSON ("),
    (struct.pack("<Q", 8) + b'{"\xff": 1}', "its header is not UTF-8 text (invalid start byte at byte 2"),
    (struct.pack("<Q", 6 + 10 ** 5) + b'{"a": ' + b"[" * 10 ** 5, "its header is no JSON ("),
    (struct.pack("<Q", 5007) + b'{"a": ' + b"1" * 5000 + b"}", "its header is no JSON ("),
    (b"<!DOCTYPE html>\n<html><body>401</body></html>", "it is an HTML page"),
    (b"\xef\xbb\xbf\n <html lang=en>", "HTML page"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n", "it is a pointer of Git LFS"),
    (b'{"error": "not found"}', "it is JSON"), (b"PK\3\4" + bytes(100), "it is a zip archive, as torch.save"),
    (b"\x80\2}q\0X" + bytes(10), "it is a pickle"), (b"\x1f\x8b\x08\0" + bytes(10), "it is a gzip file"),
    (b"\x89HDF\r\n\x1a\n" + bytes(10), "it is an HDF5 file"),
    # lengths whose first byte is that of a pickle or of JSON
    (struct.pack("<Q", 0x0280) + b'{"a', "tell of a header of 640 bytes where 3 follow"),
    (struct.pack("<Q", 0x0280), "tell of a header of 640 bytes where 0 follow"),
    (struct.pack("<Q", 0x7b), "tell of a header of 123 bytes where 0 follow"),
    (struct.pack("<Q", 0x4b50) + b"{", "tell of a header of 19280 bytes where 1 follow"),
])
def test_files_without_a_header(tmp_path: Path, content: bytes, problem: str) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    assert problem in told(tmp_path / "a.safetensors")


def test_a_header_longer_than_any(tmp_path: Path) -> None:
    """Nothing is read of it, however many bytes follow: this file is 4 TB long and holds none of them."""
    with open(tmp_path / "a.safetensors", "wb") as opened:
        opened.write(struct.pack("<Q", files.LONGEST_HEADER + 1) + b"{")
        opened.truncate(2 ** 42)
    assert "tell of a header of 100000001 bytes where 4398046511096 follow" in told(tmp_path / "a.safetensors")


def test_files_that_are_long_and_hold_nothing(tmp_path: Path) -> None:
    file = stored(tmp_path / "a.safetensors", {"a": A, "b": B})
    whole = file.stat().st_size
    os.truncate(file, 2 ** 42)
    assert told(file) == f"{2 ** 42 - whole} bytes behind the last tensor belong to none"
    os.truncate(file, 150)
    assert "(cut short?)" in told(file)


def test_what_does_not_fit_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = stored(tmp_path / "a.safetensors", {"a": A}, 8)
    for error in (RuntimeError("unable to mmap 8 bytes"), MemoryError()):
        def full(*args: object, error: Exception = error, **options: object) -> None:
            raise error

        monkeypatch.setattr(files.safetensors, "safe_open", full)
        with pytest.raises(InputError, match=f"a.safetensors: cannot be read: {str(error) or 'not enough memory'}"):
            files.read_tensors(file)


def test_a_file_cut_at_any_length(tmp_path: Path) -> None:
    content = whole_file(tmp_path)
    for length in range(len(content)):
        (tmp_path / "bad.safetensors").write_bytes(content[:length])
        told(tmp_path / "bad.safetensors")


def test_one_bit_of_the_header(tmp_path: Path) -> None:
    """Either one clear line, or a file that is as whole as before: another letter in a name or a text, another type
    of the same size. No other exception, and nothing that safetensors alone would have refused gets through."""
    content = whole_file(tmp_path)
    length = struct.unpack("<Q", content[:8])[0]
    file, passed = tmp_path / "bad.safetensors", 0
    for bit in (*range(64), *range(64, 8 * (8 + length), 3)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        try:
            tensors, _ = files.read_tensors(file)
        except InputError as error:
            assert str(error).startswith(f"{file}: {START}") and "\n" not in str(error)
            continue
        passed += 1
        assert sorted(tensor.nbytes for tensor in tensors.values()) == sorted(
            tensor.nbytes for tensor in TENSORS.values())
    assert 0 < passed < 8 * length / 3 / 4


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
