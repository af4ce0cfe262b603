"""Files: atomic writes, JSON with clear errors, and safetensors with their header, checked before it is used.

A file of ours is either the old one or the whole new one, never half of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file

from .errors import InputError, some

# bits of an element, by the names that safetensors has for its types
BITS = {"BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
        "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64,
        "C64": 64, "F4": 4}
LONGEST_HEADER = 100_000_000  # bytes; safetensors' own limit
FIELDS = ("dtype", "shape", "data_offsets")
LISTED = 8  # problems in an error line


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside ``path``, moved onto it when the block ends without an exception.

    The parent folder is made. On any exception the temporary file is removed and ``path`` is
    what it was before.

    Args:
        path: where the file shall be.

    Yields:
        The path to write to; it has the suffix of ``path``.

    Raises:
        OSError: the folder cannot be written.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem}-", suffix=target.suffix)
    except OSError as error:  # which names the temporary file, or the folder
        raise OSError(error.errno, error.strerror, str(target)) from None
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp (and safetensors) make files that only their owner reads; ours are ordinary files
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write ``value`` as indented UTF-8 JSON, atomically."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def existing_file(path: str | os.PathLike[str]) -> Path:
    """``path`` as a Path, if it is a file.

    Raises:
        InputError: it does not exist, is a folder, or is a pipe or device (which could be read only once, or for ever).
    """
    file = Path(path)
    if file.is_dir():
        raise InputError("is a folder, a file is needed", source=file)
    if not file.exists():
        raise InputError("no such file", source=file)
    if not file.is_file():
        raise InputError("is a pipe, a socket or a device, a regular file is needed", source=file)
    return file


def looks_like(path: str | os.PathLike[str]) -> str:
    """What the first bytes of a file tell of it, to be put into an error line: "an HTML page"; "" = nothing known."""
    with open(path, "rb") as opened:
        start = opened.read(64)
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not start:
        return "an empty file"
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "an HTML page (of a login or an error, it may be)"
    if text.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS (`git lfs pull` fetches the file itself)"
    if start[8:9] == b"{" and start[6:8] == b"\0\0":
        return "a safetensors file"
    if start[:1] == b"\x80" and start[1:2] in b"\2\3\4\5" and any(start[2:8]):
        return "a pickle"
    if start[:1] in b"{[" and b"\0" not in start:
        return "JSON"
    known = {b"PK\3\4": "a zip archive, as torch.save and numpy.savez write them", b"\x1f\x8b\x08": "a gzip file",
             b"\x89HDF": "an HDF5 file"}
    return next((what for magic, what in known.items() if start.startswith(magic)), "")


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a UTF-8 file, a byte order mark at its beginning left out; every end of a line is "\\n".

    Raises:
        InputError: no such file, or not UTF-8 text.
    """
    file = existing_file(path)
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"is not UTF-8 text ({error.reason} at byte {error.start})", source=file) from None


def read_json(path: str | os.PathLike[str]) -> Any:
    """The value of a JSON file.

    Raises:
        InputError: no such file, not UTF-8 text, or what `parse_json` refuses.
    """
    return parse_json(read_text(path), path)


def parse_json(text: str, source: str | os.PathLike[str], *, line: int = 1, doubled: bool = False) -> Any:
    """The value of a JSON text.

    Args:
        text: the whole of it.
        source: the file it came from, for the error.
        line: of the file that the text begins on.
        doubled: let a name pass that an object has twice; objects are then `Object`, which knows its entries.

    Raises:
        InputError: not JSON (with line and column), an object that has a name twice (of which Python's own reader
            keeps the last and says nothing), or JSON that Python cannot hold (nested too deep, a number of
            thousands of digits).
    """
    try:
        return json.loads(text, object_pairs_hook=Object if doubled else _single)
    except json.JSONDecodeError as error:
        raise InputError(f"is not JSON: {error.msg} at line {error.lineno + line - 1} column {error.colno}",
                         source=source) from None
    except InputError as error:
        raise InputError(str(error), source=source) from None
    except (RecursionError, ValueError) as error:
        raise InputError(f"is no JSON that can be read: {error}", source=source) from None


class Object(dict[str, Any]):
    """A JSON object that knows all its entries, those of a name that is there twice too.

    Attributes:
        entries: (name, value) in the order of the text; as a dict it has the last value of each name.
    """

    def __init__(self, entries: list[tuple[str, Any]]) -> None:
        super().__init__(entries)
        self.entries = entries

    @property
    def doubled(self) -> list[str]:
        """Names that are there more than once."""
        return [name for name, count in Counter(name for name, _ in self.entries).items() if count > 1]


def _single(entries: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object of names that differ."""
    found = dict(entries)
    if len(found) < len(entries):
        raise InputError(f"has {some(map(repr, Object(entries).doubled), 3)} twice in one object")
    return found


@contextlib.contextmanager
def undamaged(path: str | os.PathLike[str]) -> Iterator[None]:
    """Within the block, what does not have the form that we wrote it in is damage of this file.

    Raises:
        InputError: in place of the error of a missing key, a wrong type or a value that cannot be.
    """
    try:
        yield
    except InputError:
        raise
    except KeyError as error:
        raise InputError(f"is damaged: {error} is missing", source=path) from None
    except (TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        raise InputError(f"is damaged: {error}", source=path) from None


def write_tensors(path: str | os.PathLike[str], tensors: Mapping[str, torch.Tensor],
                  header: Mapping[str, str] | None = None) -> None:
    """Write tensors and a string-to-string header as one safetensors file, atomically.

    Args:
        path: the file.
        tensors: name -> tensor, any device; copied to the CPU and stored contiguous.
        header: the ``__metadata__`` of the file.

    Raises:
        OSError: it cannot be written (a full disk, say); nothing is left behind.
    """
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        try:
            save_file(stored, temporary, metadata=dict(header or {}))
        except safetensors.SafetensorError as error:
            raise OSError(f"{path}: cannot be written ({error})") from None


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """All tensors of a safetensors file and its header.

    Returns:
        ``({name: tensor}, {key: text})``.

    Raises:
        InputError: no such file, not a safetensors file, cut short, or with a header that is not as it must be: a
            name that is there twice (which safetensors itself lets pass), a type that is not known, a shape that
            does not fill its bytes, bytes of two tensors or of none. All problems are listed.
    """
    with open_tensors(path) as (opened, metadata):
        return {name: opened.get_tensor(name) for name in opened.keys()}, metadata


def read_header(path: str | os.PathLike[str]) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """Shapes and header of a safetensors file, without reading its tensors.

    Returns:
        ``({name: shape}, {key: text})``.

    Raises:
        InputError: as `read_tensors`.
    """
    with open_tensors(path) as (opened, metadata):
        return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}, metadata


@contextlib.contextmanager
def open_tensors(path: str | os.PathLike[str]) -> Iterator[tuple[Any, dict[str, str]]]:
    """A safetensors file whose header has been checked, and its metadata, to read some of its tensors.

    Yields:
        ``(opened, {key: text})``, the first as `safetensors.safe_open` gives it.

    Raises:
        InputError: as `read_tensors`.
    """
    file = existing_file(path)
    try:
        size, entries = _header_of(file)
        if problems := _problems(entries, size):
            raise _Damaged(some(problems, LISTED))
        with safetensors.safe_open(file, framework="pt") as opened:
            yield opened, dict(opened.metadata() or {})
    except (_Damaged, safetensors.SafetensorError) as error:
        raise InputError(f"is not a whole safetensors file: {error}", source=file) from None
    except (RuntimeError, MemoryError) as error:  # larger than the memory there is
        raise InputError(f"cannot be read: {str(error) or 'not enough memory'}", source=file) from None


class _Damaged(Exception):
    """What is wrong with a safetensors file."""


def _header_of(file: Path) -> tuple[int, Object]:
    """The number of bytes behind the header of a safetensors file, and the header.

    Raises:
        _Damaged: there is none.
    """
    size = file.stat().st_size
    with open(file, "rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if size < 8 or length > min(size - 8, LONGEST_HEADER):
            kind = looks_like(file)
            raise _Damaged(f"it is {kind}" if kind not in ("", "a safetensors file") else
                           f"it has {size} bytes, a header alone needs 8" if size < 8 else
                           f"its first 8 bytes tell of a header of {length} bytes where {size - 8} follow")
        text = opened.read(length)
    if not text.startswith(b"{"):
        raise _Damaged("its header is no JSON object")
    try:
        return size - 8 - length, json.loads(text.decode("utf-8"), object_pairs_hook=Object)
    except UnicodeDecodeError as error:
        raise _Damaged(f"its header is not UTF-8 text ({error.reason} at byte {error.start})") from None
    except (RecursionError, ValueError) as error:
        raise _Damaged(f"its header is no JSON ({error})") from None


def _problems(header: Object, size: int) -> list[str]:
    """All that is wrong with the header of a safetensors file whose tensors have that many bytes together."""
    problems = [f"{name!r} is in the header twice" for name in header.doubled]
    ranges: set[tuple[int, int, str]] = set()
    lost = False  # bytes of an unknown place: then others cannot be missed
    for name, entry in header.entries:
        wrong = _metadata_problem(entry) if name == "__metadata__" else _entry_problem(entry)
        if wrong:
            problems.append(f"{name!r} {wrong}")
        if name == "__metadata__":
            continue
        if isinstance(entry, dict) and _is_range(entry.get("data_offsets")):
            begin, end = entry["data_offsets"]
            ranges.add((begin, end, name))  # a name twice for the same bytes is one problem, not two
        else:
            lost = True
    return problems + _range_problems(sorted(ranges), size, lost)


def _metadata_problem(entry: Any) -> str:
    if not isinstance(entry, Object):
        return "is no object of texts"
    if entry.doubled:
        return f"has {some(map(repr, entry.doubled))} twice"
    wrong = [name for name, text in entry.items() if not isinstance(text, str)]
    return f"has {some(map(repr, wrong))}, which is no text" if wrong else ""


def _entry_problem(entry: Any) -> str:
    """What is wrong with the entry of one tensor, "" = nothing."""
    if not isinstance(entry, Object):
        return f"is no object of {', '.join(FIELDS)}"
    if entry.doubled:
        return f"has {some(map(repr, entry.doubled))} twice"
    if missing := [field for field in FIELDS if field not in entry]:
        return f"has no {some(missing)}"
    if unknown := [field for field in entry if field not in FIELDS]:
        return f"has {some(map(repr, unknown))} beside {', '.join(FIELDS)}"
    dtype, shape, offsets = (entry[field] for field in FIELDS)
    if not isinstance(dtype, str) or dtype not in BITS:
        return f"is of type {dtype!r:.40}, which is none of {', '.join(BITS)}"
    if not _are_sizes(shape):
        return f"has the shape {shape!r:.80}, which is no list of up to 64 whole numbers"
    if not _is_range(offsets):
        return f"has the data_offsets {offsets!r:.80}, which are no begin and end"
    needed, there = math.prod(shape) * BITS[dtype], (offsets[1] - offsets[0]) * 8
    if needed != there:
        return f"is {dtype} {tuple(shape)}, which are {-(-needed // 8)} bytes, and has {there // 8}"
    return ""


def _are_sizes(value: Any) -> bool:
    return (isinstance(value, list) and len(value) <= 64
            and all(type(one) is int and 0 <= one < 2 ** 63 for one in value))


def _is_range(value: Any) -> bool:
    return _are_sizes(value) and len(value) == 2 and value[0] <= value[1]


def _range_problems(ranges: Sequence[tuple[int, int, str]], size: int, lost: bool) -> list[str]:
    """Bytes that belong to two tensors or, unless an entry is lost, to none; and whether they end with the file."""
    problems, reached, last = [], 0, ""
    for begin, end, name in ranges:
        if begin < reached:
            problems.append(f"{last!r} and {name!r} overlap")
        elif begin > reached and not lost:
            problems.append(f"{begin - reached} bytes before {name!r} belong to no tensor")
        if end > reached or not last:
            reached, last = end, name
    if reached > size:
        problems.append(f"its tensors need {reached} bytes and {size} are there (cut short?): {last!r} is not whole")
    elif reached < size and not lost:
        problems.append(f"{size - reached} bytes behind the last tensor belong to none")
    return problems


def tensor_bytes(tensor: torch.Tensor) -> bytes:
    """The bytes of a tensor's elements, row by row, wherever and however it lies: what is hashed of it."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def sha256(path: str | os.PathLike[str]) -> str:
    """The sha256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with open(existing_file(path), "rb") as opened:
        while chunk := opened.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
