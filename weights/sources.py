"""Tensors of published weight files for conversion: .safetensors, .pth, .pt, .bin, .ckpt and .npz.

Nothing of a file is executed: pickles go through ``weights_only=True``, TorchScript archives are read as data
(`weights.torchscript`), and ``.npz`` without Python objects.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import torch
from numpy.lib import format as npy
from torch import Tensor

from minivl.errors import InputError, some
from minivl.files import existing_file, looks_like, read_tensors

from . import torchscript

PICKLED = (".pth", ".pt", ".bin", ".ckpt")
SUFFIXES = (".safetensors", *PICKLED, ".npz")
# Entries of a checkpoint that hold a model's tensors; those behind are running averages of the ones before.
WRAPPERS = ("model", "state_dict", "model_state_dict", "module", "student", "teacher",
            "model_ema", "state_dict_ema", "ema", "ema_state_dict")
PREFIXES = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile
HEADS = ("head.", "dino_head.", "ibot_head.")  # what DINO trains a backbone with
DEEPEST = 4  # such entries inside one another
LARGEST = 64  # times the file: what its tensors may be unpacked
READ = 1 << 20  # bytes at a time


class Source(NamedTuple):
    """What a file of weights holds.

    Attributes:
        state: its tensors by its own names.
        notes: what was done to get them, a line each, for the receipt of a conversion.
    """

    state: dict[str, Tensor]
    notes: list[str]


def read(path: str | os.PathLike[str], *, entry: str | None = None) -> Source:
    """The tensors of a weight file, on the CPU, in their dtype.

    A checkpoint that wraps them is unwrapped: ``model``, ``state_dict`` and the like, if there is one of them, or
    ``teacher`` beside ``student`` (DINO publishes its teachers; then its ``backbone.`` is what is taken). Names lose
    ``module.`` and ``_orig_mod.`` where all have it. What is left out is in the notes.

    Args:
        path: ``.safetensors``; ``.pth .pt .bin .ckpt`` as `torch.save` or `torch.jit.save` write them; ``.npz``.
        entry: the entry of a checkpoint to take where it holds several models.

    Raises:
        InputError: no such file, another suffix, a file that is not what its suffix says, damaged, or asks for more
            than tensors; several models; an entry that is no tensor but holds some; no tensors at all.
    """
    file = existing_file(path)
    suffix = file.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"is none of {', '.join(SUFFIXES)}: weights are read from these", source=file)
    if entry is not None and suffix not in PICKLED:
        raise InputError(f"has no entry {entry!r}: only {', '.join(PICKLED)} have entries", source=file)
    if suffix == ".safetensors":
        source = Source(read_tensors(file)[0], [])
    else:
        source = _numpy(file) if suffix == ".npz" else _torch(file, entry)
        size = sum(tensor.nbytes for tensor in source.state.values())
        if size > LARGEST * file.stat().st_size:
            raise InputError(f"its tensors repeat few bytes until they are {size}, more than {LARGEST} times the file: "
                             f"no weights are like this", source=file)
    if not source.state:
        raise InputError("holds no tensors", source=file)
    return source


# -- torch ---------------------------------------------------------------------------------------------------

def _torch(file: Path, entry: str | None) -> Source:
    kind = looks_like(file)
    if kind.startswith("a zip"):
        with _archive(file) as opened:
            folder = _checked(opened, file)
            if torchscript.is_archive(opened.namelist(), folder):
                if entry is not None:
                    raise InputError(f"has no entry {entry!r}: it is a TorchScript archive", source=file)
                return _script(opened, folder, file)
    elif kind not in ("", "a pickle"):
        way = ": name it .safetensors" if kind == "a safetensors file" else ""
        raise InputError(f"is {kind}, not what torch.save writes{way}", source=file)
    notes: list[str] = []
    value, taken = _unwrapped(_loaded(file), entry, notes, file)
    return Source(_renamed(_tensors(value, notes, file), taken, notes), notes)


def _loaded(file: Path) -> Any:
    """What torch.load makes of a file without executing its pickle."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old formats and of types that are refused below
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a parser of others on any bytes: every error means that they are not right
        text = " ".join(str(error).split())
        if asked := re.search(r"GLOBAL (\S+)", text):
            told = (f"its pickle asks for {asked[1]:.200}, and only plain tensors are made of one; who trusts the file "
                    f"can store them alone: torch.save(model.state_dict(), FILE)")
        else:
            text = text.rsplit("WeightsUnpickler error: ", 1)[-1].split(" Check the documentation")[0]
            told = f"is no whole file of torch.save ({type(error).__name__}: {text:.200})"
        raise InputError(told, source=file) from None


def _unwrapped(value: Any, entry: str | None, notes: list[str], file: Path) -> tuple[Mapping[Any, Any], str | None]:
    """The dict of tensors inside a checkpoint, and the name of the entry it was found in."""
    taken = None
    for _ in range(DEEPEST + 1):
        if not isinstance(value, Mapping):
            raise InputError(f"holds a {type(value).__name__}, not named tensors", source=file)
        there = [name for name in WRAPPERS if _holds(value.get(name), Mapping)]
        if entry is not None:
            if not isinstance(value.get(entry), Mapping):
                raise InputError(f"has no entry {entry!r} with tensors; there are: {some(value, 20)}", source=file)
            chosen, entry = entry, None
        elif len(there) == 1:
            chosen, = there
        elif there == ["student", "teacher"]:
            chosen = "teacher"
            notes.append("of teacher and student the teacher, which is what DINO publishes")
        elif there:
            raise InputError(f"holds several models ({', '.join(there)}): say which by --entry (entry=)", source=file)
        else:
            return value, taken
        others = [name for name in value if name != chosen]
        if mixed := [name for name in others if isinstance(value[name], Tensor) and value[name].ndim]:
            raise InputError(f"holds tensors ({some(mixed)}) beside its entry {chosen!r}: which of them are the model "
                             f"cannot be told", source=file)
        notes.append(f"taken from the entry {chosen!r}" + (f", without {some(others)} beside it" if others else ""))
        value, taken = value[chosen], chosen
    raise InputError(f"wraps its tensors more than {DEEPEST} times, or holds itself", source=file)


def _holds(value: Any, kind: type) -> bool:
    """Whether a value is a `kind` and somewhere inside it there is a tensor."""
    found, waiting = set[int](), [value] if isinstance(value, kind) else []
    while waiting:
        one = waiting.pop()
        if isinstance(one, Tensor):
            return True
        if id(one) not in found:  # lists that hold themselves
            found.add(id(one))
            waiting.extend(one.values() if isinstance(one, Mapping) else
                           one if isinstance(one, (list, tuple, set, frozenset)) else ())
    return False


def _tensors(value: Mapping[Any, Any], notes: list[str], file: Path) -> dict[str, Tensor]:
    """The tensors of a dict; entries that hold none are left out, those that hold some refused."""
    if unnamed := [name for name in value if not isinstance(name, str)]:
        raise InputError(f"its tensors have no names: {some(unnamed)} for a name", source=file)
    tensors = {name: one for name, one in value.items() if isinstance(one, Tensor)}
    left = [name for name in value if name not in tensors]
    if nested := [name for name in left if _holds(value[name], object)]:
        known = "" if tensors else (f"; tensors are looked for in {', '.join(WRAPPERS)}, others are named by --entry "
                                    f"(entry=)")
        raise InputError(f"its entries {some(nested)} are no tensors but hold some{known}", source=file)
    if left:
        notes.append(f"left out, because they hold no tensors: {some(left, 20)}")
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu" or tensor.is_nested:
            kind = ("quantized" if tensor.is_quantized else "nested" if tensor.is_nested else
                    str(tensor.layout) if tensor.layout != torch.strided else f"on the device {tensor.device}")
            raise InputError(f"its tensor {name!r} is {kind}: only plain tensors are read", source=file)
    return {name: tensor.detach() for name, tensor in tensors.items()}


def _renamed(tensors: dict[str, Tensor], taken: str | None, notes: list[str]) -> dict[str, Tensor]:
    """Names without the prefixes that wrappers of a model put before all of them."""
    while prefix := next((one for one in PREFIXES if tensors and all(name.startswith(one) for name in tensors)), None):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        notes.append(f"names without {prefix!r}, which all had")
    heads = [name for name in tensors if name.startswith(HEADS)]
    backbone = [name for name in tensors if name.startswith("backbone.")]
    if taken in ("teacher", "student") and backbone and len(backbone) + len(heads) == len(tensors):
        notes.append("names without 'backbone.'"
                     + (f"; left out, because only DINO's training needs them: {some(heads, 20)}" if heads else ""))
        tensors = {name.removeprefix("backbone."): tensors[name] for name in backbone}
    return tensors


def _script(opened: zipfile.ZipFile, folder: str, file: Path) -> Source:
    try:
        tensors, others = torchscript.tensors(opened, folder)
    except torchscript.Refused as error:
        raise InputError(f"is a TorchScript archive that {str(error):.400}", source=file) from None
    except (KeyError, RuntimeError, MemoryError) as error:
        raise InputError(f"is a TorchScript archive that is damaged: {str(error):.400}", source=file) from None
    if not tensors:
        raise InputError("is a TorchScript archive without tensors (a frozen one, whose weights are constants of its "
                         "code, it may be)", source=file)
    notes = ["read as a TorchScript archive, of which nothing was executed"]
    if others:
        notes.append(f"left out, because they are no tensors: {some(others, 20)}")
    return Source(tensors, notes)


# -- zip archives --------------------------------------------------------------------------------------------

@contextlib.contextmanager
def _archive(file: Path) -> Iterator[zipfile.ZipFile]:
    """An opened zip as torch and numpy write them: no name twice, no folders, no comments.

    A flipped bit makes a comment of members, and torch takes what is marked as a folder for memory it need not fill.
    """
    try:
        with zipfile.ZipFile(file) as opened:
            members = opened.infolist()
            if doubled := [name for name, count in Counter(opened.namelist()).items() if count > 1]:
                raise InputError(f"has the member {some(doubled)} twice", source=file)
            odd = opened.comment or any(one.comment or one.is_dir() or one.external_attr & 0x10 for one in members)
            if odd or _told_members(file) not in (len(members), 0xFFFF):  # which means: more than this can say
                raise zipfile.BadZipFile("its list of members has been changed")
            yield opened
    except InputError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError, ValueError) as error:
        raise InputError(f"is no whole zip archive: cut short or damaged ({str(error) or 'it ends too early':.200})",
                         source=file) from None


def _told_members(file: Path) -> int:
    """How many members the end of a zip without a comment says that there are."""
    with open(file, "rb") as opened:
        opened.seek(-22, os.SEEK_END)
        return int.from_bytes(opened.read(22)[10:12], "little")


def _checked(opened: zipfile.ZipFile, file: Path) -> str:
    """The one folder of an archive of torch's whose members are plain, no more than the file, and undamaged.

    torch itself does not look at the checksums.
    """
    folders = {name.split("/")[0] for name in opened.namelist()}
    folder = min(folders, default="")
    if len(folders) != 1 or f"{folder}/data.pkl" not in opened.namelist():
        raise InputError("is a zip archive, but none of torch.save: it has no data.pkl in one folder", source=file)
    members = [member for member in opened.infolist() if not member.filename.startswith(f"{folder}/code/")]
    if packed := [member.filename for member in members if member.compress_type != zipfile.ZIP_STORED]:
        raise InputError(f"has compressed members ({some(packed)}), which torch.save does not write", source=file)
    if (size := sum(member.file_size for member in members)) > file.stat().st_size:
        raise InputError(f"its members would be {size} bytes, more than the file has", source=file)
    for member in members:
        with opened.open(member) as content:
            while content.read(READ):  # the end of it compares its checksum
                pass
    return folder


# -- numpy ---------------------------------------------------------------------------------------------------

def _numpy(file: Path) -> Source:
    """The arrays of an .npz; names as they are."""
    if not (kind := looks_like(file)).startswith("a zip"):
        raise InputError(f"is {kind or 'something else'}, not what numpy.savez writes", source=file)
    tensors, notes = {}, []
    with _archive(file) as opened:
        if strangers := [name for name in opened.namelist() if not name.endswith(".npy")]:
            raise InputError(f"holds {some(strangers)}, which are no .npy: numpy.savez did not write it", source=file)
        if (size := sum(member.file_size for member in opened.infolist())) > LARGEST * file.stat().st_size:
            raise InputError(f"unpacks to {size} bytes, more than {LARGEST} times the file: no weights are like this",
                             source=file)
        for member in opened.infolist():
            name = member.filename.removesuffix(".npy")
            array = _array(opened, member, name, file)
            if array.dtype == "V2":  # how numpy stores a bfloat16 that it does not know
                notes.append(f"{name}: two bytes of no type, read as bfloat16")
                tensors[name] = torch.from_numpy(array.view("<i2")).view(torch.bfloat16)
            else:
                tensors[name] = torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
    return Source(tensors, notes)


def _array(opened: zipfile.ZipFile, member: zipfile.ZipInfo, name: str, file: Path) -> numpy.ndarray[Any, Any]:
    """One array of an .npz, whose header is held against its size before anything is made of it."""
    with opened.open(member) as content:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of files of Python 2
                version = npy.read_magic(content)
                header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
                shape, by_columns, dtype = header(content)
        except Exception as error:  # as in _loaded
            raise InputError(f"its array {name!r} is damaged ({type(error).__name__}: {str(error):.200})",
                             source=file) from None
        there = member.file_size - content.tell()
        if dtype.hasobject:
            raise InputError(f"its array {name!r} holds Python objects, which are pickled: not read", source=file)
        if dtype != "V2" and (dtype.kind not in "biufc" or dtype.itemsize > (16 if dtype.kind == "c" else 8)):
            raise InputError(f"its array {name!r} is of type {dtype}, which is no tensor's", source=file)
        needed = math.prod(shape) * dtype.itemsize
        if needed != there or not all(type(length) is int and length >= 0 for length in shape):
            raise InputError(f"its array {name!r} {shape} of {dtype} should have {needed} bytes, there are {there}",
                             source=file)
        values = numpy.frombuffer(bytearray(content.read()), dtype)
    return values.reshape(shape, order="F" if by_columns else "C")
