"""Files: atomic writes, JSON with clear errors, and safetensors with their header.

A file of ours is either the old one or the whole new one, never half of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file

from .errors import InputError


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
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem}-", suffix=target.suffix)
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
        InputError: it does not exist, or is a folder.
    """
    file = Path(path)
    if file.is_dir():
        raise InputError("is a folder, a file is needed", source=file)
    if not file.exists():
        raise InputError("no such file", source=file)
    return file


def read_json(path: str | os.PathLike[str]) -> Any:
    """The value of a JSON file.

    Raises:
        InputError: no such file, not UTF-8 text, not JSON (with line and column), or JSON that Python cannot
            hold (nested too deep, a number of thousands of digits).
    """
    file = existing_file(path)
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"is not UTF-8 text ({error.reason} at byte {error.start})", source=file) from None
    except json.JSONDecodeError as error:
        raise InputError(f"is not JSON: {error.msg} at line {error.lineno} column {error.colno}",
                         source=file) from None
    except (RecursionError, ValueError) as error:
        raise InputError(f"is no JSON that can be read: {error}", source=file) from None


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
        InputError: no such file, not a safetensors file, or cut short.
    """
    file = existing_file(path)
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            header = dict(opened.metadata() or {})
            return {name: opened.get_tensor(name) for name in opened.keys()}, header
    except safetensors.SafetensorError as error:
        raise InputError(f"is not a whole safetensors file ({error})", source=file) from None


def read_header(path: str | os.PathLike[str]) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """Shapes and header of a safetensors file, without reading its tensors.

    Returns:
        ``({name: shape}, {key: text})``.

    Raises:
        InputError: as `read_tensors`.
    """
    file = existing_file(path)
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            header = dict(opened.metadata() or {})
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}, header
    except safetensors.SafetensorError as error:
        raise InputError(f"is not a whole safetensors file ({error})", source=file) from None


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
