"""The tensors of a TorchScript archive, read as data: neither its code nor its pickle is executed.

Such an archive is a zip of one folder: ``data.pkl`` (the tree of modules), ``data/KEY`` (the bytes of tensors) and
``code/`` (never read here). ``pickletools`` takes the pickle apart; the few instructions that `torch.jit.save` writes
are followed on inert values of our own, and everything else is refused by its name.
"""

from __future__ import annotations

import pickletools
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any
from zipfile import ZipFile

import torch
from torch import Tensor

STORAGES = {f"{name}Storage": dtype for name, dtype in {
    "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16, "Double": torch.float64,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool, "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128}.items()}
TENSOR, PARAMETER = "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"
ORDERED = "collections.OrderedDict"
TYPED = tuple(f"torch.jit._pickle.{name}" for name in (  # marks the type of a list or dict
    "restore_type_tag", "build_intlist", "build_tensorlist", "build_doublelist", "build_boollist"))
PLUMBING = ("training", "_is_full_backward_hook")  # attributes of every module
LARGEST_PICKLE = 1 << 24  # bytes; that of a large model has half a million
DEEPEST, MOST, LONGEST = 100, 1_000_000, 1000  # levels of modules, attributes of all of them, letters of a name


class Refused(Exception):
    """What an archive holds that is not read, or what is wrong with it."""


@dataclass(frozen=True, slots=True)
class _Global:
    name: str


@dataclass(frozen=True, slots=True)
class _Storage:
    dtype: torch.dtype
    key: str
    count: int


@dataclass(frozen=True, slots=True)
class _Tensor:
    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(slots=True, eq=False)
class _Module:
    """A module or other object of a class that the archive's code defines: its attributes and nothing else."""

    attributes: dict[str, Any] | None = None


KINDS = {_Global: "class", _Storage: "storage", _Tensor: "tensor", _Module: "module"}  # for error lines


def is_archive(members: Collection[str], folder: str) -> bool:
    """Whether a zip of torch's, given the names of its members and its folder, is a TorchScript archive."""
    return f"{folder}/constants.pkl" in members or any(name.startswith(f"{folder}/code/") for name in members)


def tensors(archive: ZipFile, folder: str) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a TorchScript archive.

    Args:
        archive: the opened zip; its members must be those that `torch.jit.save` stores, uncompressed.
        folder: the one that holds all of them.

    Returns:
        ``({dotted name: tensor}, [names of other attributes, which are left out])``: parameters, buffers and other
        tensors of every module, in the order of the archive. Tensors of one storage share their memory.

    Raises:
        Refused: it asks for anything that is not a tensor or module, its pickle is damaged, or its tensors do not fit
            the bytes that are there.
        KeyError: a member is missing.
    """
    if archive.getinfo(f"{folder}/data.pkl").file_size > LARGEST_PICKLE:
        raise Refused(f"has a data.pkl of more than {LARGEST_PICKLE} bytes")
    if f"{folder}/byteorder" in archive.namelist() and archive.read(f"{folder}/byteorder") != b"little":
        raise Refused("does not store its tensors in little-endian order")
    root = _tree(archive.read(f"{folder}/data.pkl"))
    if type(root) is not _Module:
        raise Refused("holds no module")
    found: dict[str, _Tensor] = {}
    others: list[str] = []
    _Walk(found, others).into(root)
    storages: dict[str, Tensor] = {}
    for key in {tensor.storage.key for tensor in found.values()}:
        content = bytearray(archive.read(f"{folder}/data/{key}"))
        storages[key] = torch.frombuffer(content, dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)
    return {name: _made(name, tensor, storages[tensor.storage.key]) for name, tensor in found.items()}, others


# -- the pickle ----------------------------------------------------------------------------------------------

def _tree(pickled: bytes) -> Any:
    """The one value of a pickle, made of plain values, `_Tensor` and `_Module`.

    Raises:
        Refused: it asks for anything else, or is damaged.
    """
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(pickled):
            machine.do(opcode.name, argument)
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise Refused(f"has a damaged pickle ({type(error).__name__}: {error})") from None
    value, = machine.stack or [None]
    return value


class _Machine:
    """The stack and memory of a pickle, and what the instructions of `torch.jit.save` do to them."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memory: dict[int, Any] = {}

    def do(self, name: str, argument: Any) -> None:
        """One instruction."""
        stack = self.stack
        match name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                if len(stack) != 1:
                    raise ValueError(f"it ends with {len(stack)} values")
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE" | "SHORT_BINUNICODE":
                stack.append(argument)
            case "EMPTY_TUPLE" | "EMPTY_LIST" | "EMPTY_DICT":
                stack.append({"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict}[name]())
            case "MARK":
                self.marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(self.marked()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(self.last(int(name[-1]))))
            case "APPEND" | "APPENDS":
                values = self.last(1) if name == "APPEND" else self.marked()
                _typed(stack[-1], list).extend(values)
            case "SETITEM" | "SETITEMS":
                values = self.last(2) if name == "SETITEM" else self.marked()
                _put(_typed(stack[-1], dict), values)
            case "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                self.memory[len(self.memory) if argument is None else argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self.memory[argument])
            case "GLOBAL" | "INST":
                stack.append(_named(argument.replace(" ", ".", 1), name))
            case "STACK_GLOBAL":
                stack.append(_named(".".join(_typed(part, str) for part in self.last(2)), name))
            case "BINPERSID":
                stack.append(_storage(*self.last(1)))
            case "REDUCE":
                stack.append(_called(*self.last(2)))
            case "NEWOBJ":
                stack.append(_new(*self.last(2)))
            case "BUILD":
                state, = self.last(1)
                _build(stack[-1], state)
            case _:
                raise Refused(f"holds the pickle instruction {name}, which torch.jit.save does not write")

    def last(self, count: int) -> list[Any]:
        """Take that many values off the stack."""
        if len(self.stack) - count < (self.marks[-1] if self.marks else 0):
            raise ValueError("it takes a value where there is none")
        values = self.stack[-count:]
        del self.stack[-count:]
        return values

    def marked(self) -> list[Any]:
        """Take the values above the last mark off the stack."""
        mark = self.marks.pop()
        values = self.stack[mark:]
        del self.stack[mark:]
        return values


def _typed(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise Refused(f"treats a {_kind(value)} as a {KINDS.get(kind, kind.__name__)}")
    return value


def _kind(value: Any) -> str:
    return value.name if isinstance(value, _Global) else KINDS.get(type(value), type(value).__name__)


def _put(target: dict[Any, Any], values: list[Any]) -> None:
    if len(values) % 2:
        raise ValueError("a key without a value")
    for key, value in zip(values[::2], values[1::2]):
        if type(key) not in (str, int, float, bool):  # tuples of tuples take for ever to hash
            raise Refused(f"has a {_kind(key)} as the key of a dict")
        if key in target:
            raise Refused(f"names {key!r} twice in one module or dict")
        target[key] = value


def _named(name: str, instruction: str) -> _Global:
    """The inert stand-in of a class or function that an archive may name."""
    module = name.split(".")[0]
    known = name in (TENSOR, PARAMETER, ORDERED, *TYPED) or module == "torch" and name[len("torch."):] in STORAGES
    own = module == "__torch__" and not name.startswith("__torch__.torch.classes.")  # these are C++
    if not known and not own:
        raise Refused(f"asks for {name}, which is neither tensor nor module")
    if instruction == "INST":
        raise Refused("holds the pickle instruction INST, which torch.jit.save does not write")
    return _Global(name)


def _storage(value: Any) -> _Storage:
    """The tensor bytes that a persistent id speaks of; the device they were on does not matter."""
    match value:
        case ("storage", _Global(name), str(key), str(_), int(count)) if type(value) is tuple and count >= 0:
            if name.startswith("torch.") and (dtype := STORAGES.get(name[len("torch."):])):
                return _Storage(dtype, key, count)
    raise Refused("has a persistent id that is none of a tensor's storage")


def _called(function: Any, arguments: Any) -> Any:
    name = _typed(function, _Global).name
    match name, _typed(arguments, tuple):
        case ("torch._utils._rebuild_tensor_v2", (_Storage() as storage, offset, size, stride, bool(_), dict(hooks),
                                                  *metadata)):
            if not hooks and not any(metadata) and len(metadata) < 2:
                return _Tensor(storage, *_places(offset, size, stride))
        case ("torch._utils._rebuild_parameter", (_Tensor() as tensor, bool(_), dict(hooks))) if not hooks:
            return tensor
        case ("collections.OrderedDict", ()):
            return {}
        case (_, (value, *rest)) if name in TYPED and len(rest) < 2:
            return value
    raise Refused(f"calls {name} in a way that torch.jit.save does not")


def _places(offset: Any, size: Any, stride: Any) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    fits = type(size) is tuple and type(stride) is tuple and len(size) == len(stride) <= 64
    if not fits or not all(type(one) is int and 0 <= one < 2 ** 63 for one in (offset, *size, *stride)):
        raise Refused("has a tensor whose offset, shape or strides are no whole numbers from 0")
    return offset, size, stride


def _new(kind: Any, arguments: Any) -> _Module:
    if not _typed(kind, _Global).name.startswith("__torch__.") or arguments != ():
        raise Refused(f"makes a {kind.name} in a way that torch.jit.save does not")
    return _Module()


def _build(module: Any, state: Any) -> None:
    if type(module) is not _Module or module.attributes is not None or type(state) is not dict:
        raise Refused(f"gives a {_kind(module)} a {_kind(state)} as its state (a quantized model, it may be)")
    for name in state:
        if len(_typed(name, str).encode()) > LONGEST:  # an error where it is no text that can be written
            raise Refused(f"has a name of more than {LONGEST} letters")
    module.attributes = state


# -- modules and tensors -------------------------------------------------------------------------------------

class _Walk:
    """Collects the tensors of a tree of modules under dotted names, and the names of what else there is."""

    def __init__(self, found: dict[str, _Tensor], others: list[str]) -> None:
        self.found, self.others, self.seen = found, others, 0

    def into(self, module: _Module, prefix: str = "", depth: int = 0) -> None:
        """Go through one module and those inside it."""
        attributes = module.attributes or {}
        self.seen += 1 + len(attributes)
        if depth > DEEPEST or self.seen > MOST:
            raise Refused(f"has a module that holds itself, or more than {DEEPEST} levels or {MOST} attributes")
        for name, value in attributes.items():
            if type(value) is _Module:
                self.into(value, f"{prefix}{name}.", depth + 1)
            elif type(value) is _Tensor:
                if prefix + name in self.found:
                    raise Refused(f"names {prefix + name!r} twice")
                self.found[prefix + name] = value
            elif value is not None and name not in PLUMBING:
                self.others.append(prefix + name)


def _made(name: str, tensor: _Tensor, content: Tensor) -> Tensor:
    """A tensor over the bytes of its storage."""
    dtype, count = tensor.storage.dtype, tensor.storage.count
    needed = count * dtype.itemsize
    if len(content) < needed:
        raise Refused(f"holds {len(content)} bytes of the {needed} of data/{tensor.storage.key}, which is {name!r}")
    if 0 in tensor.size:
        return torch.empty(tensor.size, dtype=dtype)
    end = tensor.offset + sum((size - 1) * stride for size, stride in zip(tensor.size, tensor.stride)) + 1
    if end > count:
        raise Refused(f"has the tensor {name!r} of shape {tensor.size}, which ends at element {end} of {count}")
    return content[:needed].view(dtype).as_strided(tensor.size, tensor.stride, tensor.offset)
