"""TorchScript archives as data: the tensors of torch's own, and nothing at all of hostile ones."""

from __future__ import annotations

import os
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from minivl.errors import InputError
from weights import sources, torchscript


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.randn(3 * width, width))
        self.out_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (x @ self.in_proj_weight.T).chunk(3, -1)
        return self.out_proj((query @ key.transpose(-1, -2)).softmax(-1) @ value)


class Tower(nn.Module):
    """A tree of modules as CLIP's: lists inside modules, parameters of the root, buffers of many types."""

    def __init__(self, width: int = 6, depth: int = 3) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.randn(4, width))
        self.resblocks = nn.ModuleList([nn.Sequential(nn.LayerNorm(width), Attention(width)) for _ in range(depth)])
        self.ln_post = nn.LayerNorm(width)
        self.logit_scale = nn.Parameter(torch.tensor(2.6592))
        self.register_buffer("input_resolution", torch.tensor(224))
        self.register_buffer("mask", torch.rand(4, 4) > 0.5)
        self.register_buffer("ids", torch.arange(7, dtype=torch.int32)[2:6])  # begins inside its storage
        self.register_buffer("turned", torch.randn(5, 3).t())
        self.register_buffer("every", torch.randn(8, 4)[::2, 1:3])
        self.register_buffer("row", torch.arange(9, dtype=torch.uint8).expand(1, -1))
        self.register_buffer("nothing", torch.zeros(0, 3))
        self.register_buffer("wide", torch.randn(2, dtype=torch.float64))
        self.register_buffer("wave", torch.randn(2, dtype=torch.complex64))
        self.register_buffer("absent", None)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.positional_embedding
        for block in self.resblocks:
            x = x + block(x)
        return self.ln_post(x) * self.logit_scale.exp()


def scripted(module: nn.Module, file: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        torch.jit.script(module).save(file)
    return file


def traced(module: nn.Module, file: Path, *inputs: Tensor) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(module, inputs).save(file)
    return file


def by_torch(file: Path) -> dict[str, Tensor]:
    """What torch itself makes of an archive."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.load(file).state_dict()


def equal(found: dict[str, Tensor], given: dict[str, Tensor]) -> None:
    """The same names, types, shapes and bits."""
    assert set(found) == set(given)
    for name, tensor in given.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape, name
        assert torch.equal(found[name], tensor), name
        assert type(found[name]) is Tensor and not found[name].requires_grad and found[name].device.type == "cpu"


def refused(file: Path) -> str:
    """The one line that a file gets, without its name."""
    with pytest.raises(InputError) as caught:
        sources.read(file)
    line = str(caught.value)
    assert line.startswith(f"{file}: ") and "\n" not in line and len(line) < 800
    return line.removeprefix(f"{file}: ")


# -- archives of torch's -------------------------------------------------------------------------------------

@pytest.mark.parametrize("how", ["script", "trace"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_archives_that_torch_writes(tmp_path: Path, how: str, dtype: torch.dtype) -> None:
    module = Tower().eval()
    file = traced(module, tmp_path / "a.pt", torch.randn(1, 4, 6)) if how == "trace" else None
    if dtype != torch.float32:  # saved again from the archive: half of it in low precision, as OpenAI's are
        module.resblocks.to(dtype)
        file = None if how == "script" else traced_low(module, tmp_path / "a.pt")
    file = file or scripted(module, tmp_path / "a.pt")
    found, notes = sources.read(file)
    equal(found, module.state_dict())
    if how == "script":
        assert list(found) == list(by_torch(file))  # torch's own order
    assert notes[0] == "read as a TorchScript archive, of which nothing was executed"


def traced_low(module: nn.Module, file: Path) -> Path:
    """Traced without running the blocks, whose types would not go together."""
    blocks, forward = module.resblocks, type(module).forward
    type(module).forward = lambda self, x: self.ln_post(x + self.positional_embedding)
    try:
        traced(module, file, torch.randn(1, 4, 6))
    finally:
        type(module).forward, module.resblocks = forward, blocks
    return file


def test_any_suffix_of_torch_holds_an_archive(tmp_path: Path) -> None:
    for suffix in (".pt", ".pth", ".bin", ".PT"):
        module = Tower()
        equal(sources.read(scripted(module, tmp_path / f"a{suffix}")).state, module.state_dict())


def test_a_clip_of_open_clip(tmp_path: Path) -> None:
    """Traced with both of its methods, in the precision and with the three numbers that OpenAI's archives have."""
    from open_clip.model import CLIP, convert_weights_to_fp16
    model = CLIP(16, {"image_size": 16, "patch_size": 8, "width": 64, "layers": 2, "head_width": 32},
                 {"context_length": 9, "vocab_size": 30, "width": 64, "heads": 2, "layers": 2}, quick_gelu=True).eval()
    numbers = {"input_resolution": 16, "context_length": 9, "vocab_size": 30}
    for name, number in numbers.items():
        model.__dict__.pop(name, None)
        model.register_buffer(name, torch.tensor(number))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.1)
    images, texts = torch.randn(2, 3, 16, 16), torch.randint(30, (2, 9))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive = torch.jit.trace_module(model, {"encode_image": images, "encode_text": texts}, check_trace=False)
        convert_weights_to_fp16(archive)
        for name, parameter in archive.named_parameters():
            if name.endswith(("conv1.weight", "in_proj_weight", "in_proj_bias", "fc.weight", "text_projection")):
                parameter.data = parameter.data.half()
        archive.save(tmp_path / "ViT-T-8.pt")
    expected = by_torch(tmp_path / "ViT-T-8.pt")
    found, notes = sources.read(tmp_path / "ViT-T-8.pt")
    assert {tensor.dtype for tensor in found.values()} >= {torch.float16, torch.float32, torch.int64}
    equal({name: found[name] for name in expected}, expected)
    given = model.state_dict()
    assert set(given) <= set(found) and {name: int(found[name]) for name in numbers} == numbers
    for name, tensor in given.items():
        assert torch.equal(found[name], tensor.to(found[name].dtype)), name
    # beside the state dict: buffers that are not persistent (the causal mask), and attributes
    assert set(found) - set(given) == {"attn_mask"} and len(notes) <= 2


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 3))
        self.tied = self.weight
        self.inner = nn.Linear(3, 2)
        self.inner.weight = self.weight
        self.register_buffer("passing", torch.randn(2), persistent=False)
        self.attribute = torch.randn(4)
        self.count, self.ratio, self.name, self.flag, self.maybe = 3, 0.5, "x", True, torch.jit.Attribute(None, None)
        self.names, self.sizes = ["a", "b"], [1, 2]
        self.pair, self.table = (1, "y"), {"k": 1}
        self.several, self.scales, self.flags = [torch.randn(2), torch.randn(3)], [0.5, 1.5], [True, False]
        del self.maybe

    def forward(self, x: Tensor) -> Tensor:
        if self.flag and self.name in self.names and self.table["k"] in self.sizes:
            x = x * self.ratio * self.count * self.scales[0] + self.pair[0]
        return self.inner(x) @ self.tied + self.several[0].sum() + self.attribute.sum() + self.passing.sum()


def test_attributes_beside_parameters(tmp_path: Path) -> None:
    """Tensors are taken, whatever they are to their module; all else is told; tied tensors share their memory."""
    module = Odd()
    found, notes = sources.read(scripted(module, tmp_path / "a.pt"))
    equal(found, {**module.state_dict(), "passing": module.passing, "attribute": module.attribute})
    assert found["weight"].data_ptr() == found["tied"].data_ptr() == found["inner.weight"].data_ptr()
    told, = notes[1:]
    assert told.startswith("left out, because they are no tensors: ")
    left = set(told.removeprefix("left out, because they are no tensors: ").split(", "))
    assert left == {"count", "ratio", "name", "flag", "names", "sizes", "pair", "table", "several", "scales", "flags"}


def test_parts_of_one_storage(tmp_path: Path) -> None:
    module = nn.Module()
    whole = torch.randn(6, 4)
    for name, part in zip("qkv", whole.chunk(3)):
        module.register_buffer(name, part)
    module.register_buffer("last", whole.view(-1)[-1])
    module.register_buffer("column", whole[:, 2])
    module.register_buffer("blank", whole[:0])
    found, _ = sources.read(scripted(module, tmp_path / "a.pt"))
    equal(found, module.state_dict())
    assert {tensor.untyped_storage().data_ptr() for name, tensor in found.items() if name != "blank"} == {
        found["q"].untyped_storage().data_ptr()}


def test_archives_without_weights(tmp_path: Path) -> None:
    assert "without tensors (a frozen one" in refused(scripted(nn.ReLU(), tmp_path / "a.pt"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.freeze(torch.jit.script(nn.Linear(2, 2).eval())).save(tmp_path / "b.pt")
    assert "without tensors (a frozen one" in refused(tmp_path / "b.pt")
    with pytest.raises(InputError, match="has no entry 'model': it is a TorchScript archive"):
        sources.read(scripted(nn.Linear(2, 2), tmp_path / "c.pt"), entry="model")


def test_nothing_of_torch_is_asked_to_load_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def called(*args: object, **options: object) -> None:
        raise AssertionError("executed")

    given = Tower()
    file = scripted(given, tmp_path / "a.pt")
    for owner, name in ((torch.jit, "load"), (torch, "load"), (pickle, "load"), (pickle, "loads"),
                        (pickle, "Unpickler"), (pickle, "_Unpickler"), (torch._utils, "_rebuild_tensor_v2")):
        monkeypatch.setattr(owner, name, called)
    equal(sources.read(file).state, given.state_dict())


# -- archives of others --------------------------------------------------------------------------------------

def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    return b"K" + bytes([value]) if 0 <= value < 256 else (
        b"\x8a" + bytes([len(raw := value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True))]) + raw)


def numbers(*values: int) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def called(name: str, *arguments: bytes) -> bytes:
    module, _, function = name.rpartition(".")
    return f"c{module}\n{function}\n".encode() + b"(" + b"".join(arguments) + b"tR"


def storage(key: str = "0", count: int = 6, kind: str = "FloatStorage", first: str = "storage") -> bytes:
    return b"(" + text(first) + f"ctorch\n{kind}\n".encode() + text(key) + text("cuda:0") + number(count) + b"tQ"


def tensor(size: bytes = numbers(2, 3), stride: bytes = numbers(3, 1), offset: bytes = number(0),
           stored: bytes | None = None, hooks: bytes = b"ccollections\nOrderedDict\n)R", more: bytes = b"") -> bytes:
    return called("torch._utils._rebuild_tensor_v2", stored or storage(), offset, size, stride, b"\x89", hooks, more)


def module(*attributes: tuple[str, bytes], name: str = "__torch__.M") -> bytes:
    owner, _, kind = name.rpartition(".")
    items = b"".join(text(key) + value for key, value in attributes)
    return f"c{owner}\n{kind}\n".encode() + b")\x81}(" + items + b"ub"


VALUES = torch.arange(6, dtype=torch.float32)


def archive(file: Path, pickled: bytes, *, members: dict[str, bytes] | None = None) -> Path:
    """A TorchScript archive of a pickle (its instructions alone) and one storage of six numbers."""
    if not pickled.startswith(b"\x80"):
        pickled = b"\x80\2" + pickled + b"."
    content = {"data.pkl": pickled, "constants.pkl": b"\x80\2).", "data/0": VALUES.numpy().tobytes(),
               "version": b"3\n", "code/__torch__.py": b"class M(Module): pass", **(members or {})}
    with zipfile.ZipFile(file, "w") as opened:
        for name, stored in content.items():
            opened.writestr(f"archive/{name}", stored)
    return file


def test_the_archive_that_the_rest_is_a_change_of(tmp_path: Path) -> None:
    """It is read, and what torch makes of its pieces is the same: what follows fails for its own reason."""
    inner = module(("bias", tensor(numbers(2), numbers(2), number(1))), name="__torch__.torch.nn.Linear")
    root = module(("weight", tensor()), ("training", b"\x88"), ("inner", inner),
                  ("turned", called("torch._utils._rebuild_parameter", tensor(numbers(3, 2), numbers(1, 3)), b"\x88",
                                    b"ccollections\nOrderedDict\n)R")),
                  ("scalar", tensor(b")", b")", number(5))), ("more", tensor(more=b"}")))
    equal(sources.read(archive(tmp_path / "a.pt", root)).state, {
        "weight": VALUES.view(2, 3), "inner.bias": VALUES[[1, 3]], "turned": VALUES.view(2, 3).T,
        "scalar": VALUES[5], "more": VALUES.view(2, 3)})


class Malice:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path, function: Callable[..., object] = os.mkdir) -> None:
        self.folder, self.function = folder, function

    def __reduce__(self) -> tuple[object, ...]:
        if self.function is os.mkdir:
            return os.mkdir, (str(self.folder),)
        return self.function, (f"__import__('os').mkdir({str(self.folder)!r})",)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("function, name", [(os.mkdir, "mkdir"), (eval, "eval"), (exec, "exec")])
@pytest.mark.parametrize("where", ["alone", "list", "attribute", "deep"])
def test_pickles_that_execute(tmp_path: Path, protocol: int, function: Callable[..., object], name: str,
                              where: str) -> None:
    made = tmp_path / "made"
    malice = Malice(made, function)
    pickled = pickle.dumps({"alone": malice, "list": [1, [malice]]}.get(where, malice), protocol)
    pickle.loads(pickled)
    assert made.is_dir()  # so they do execute
    made.rmdir()
    if where in ("attribute", "deep"):
        bare = pickled[2 if protocol > 1 else 0:-1]
        deeper = module(("y", b"](" + bare + b"e"))
        pickled = module(("weight", tensor()), ("x", bare if where == "attribute" else deeper))
    elif protocol < 2:
        pickled = b"\x80\2" + pickled
    assert (f".{name}, which is neither tensor nor module" in (line := refused(archive(tmp_path / "a.pt", pickled)))
            or protocol == 0 and "the pickle instruction" in line)
    assert not made.exists()


@pytest.mark.parametrize("name", [
    "torch.jit.load", "torch.load", "torch.storage._load_from_bytes", "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v3", "torch._utils._rebuild_qtensor", "torch._utils._rebuild_tensor_v2.__globals__",
    "torch._utils.os.system", "torch.FloatStorage.from_file", "torch.UntypedStorage", "torch.device", "torch.Size",
    "torch.QInt8Storage", "collections.OrderedDict.fromkeys", "collections.Counter", "collections.defaultdict",
    "builtins.getattr", "builtins.dict", "__builtin__.eval", "copyreg._reconstructor", "numpy._core.multiarray.scalar",
    "torch.jit._pickle.build_tensor_from_id", "torch.jit._pickle.os", "__torch__os.system", "torch__.M", "os.system",
    "weights.sources.read", "__main__.M", "__torch__.torch.classes.quantized.LinearPackedParamsBase",
    "torchFloatStorage.x",
    "torch.torch.FloatStorage", "x.FloatStorage"])
@pytest.mark.parametrize("form", ["GLOBAL", "STACK_GLOBAL", "INST", "NEWOBJ", "BUILD"])
def test_what_else_is_asked_for(tmp_path: Path, name: str, form: str) -> None:
    """By its full name, whatever is done with it."""
    owner, _, kind = name.rpartition(".")
    one = f"c{owner}\n{kind}\n".encode()
    value = {"GLOBAL": one, "STACK_GLOBAL": text(owner) + text(kind) + b"\x93", "INST": f"(i{owner}\n{kind}\n".encode(),
             "NEWOBJ": one + b")\x81", "BUILD": one + b"}b"}[form]
    line = refused(archive(tmp_path / "a.pt", module(("weight", tensor()), ("x", value))))
    assert line == f"is a TorchScript archive that asks for {name}, which is neither tensor nor module"


ORDERED = b"ccollections\nOrderedDict\n"
HELD = b"c__torch__\nM\n"
MAKER = b"ctorch._utils\n_rebuild_tensor_v2\n"


@pytest.mark.parametrize("value, problem", [
    (b"ctorch\nFloatStorage\n(K\5tR", "calls torch.FloatStorage in a way"),
    (HELD + b")R", "calls __torch__.M in a way"),
    (ORDERED + b")\x81", "makes a collections.OrderedDict in a way"),
    (MAKER + b")\x81", "makes a torch._utils._rebuild_t"),
    (HELD + b"(K\1t\x81", "makes a __torch__.M in a way"), (HELD + b"]\x81", "makes a __torch__.M in a way"),
    (HELD + b"}b", "gives a __torch__.M a dict as its state"), (ORDERED + b")R}b", "gives a dict a dict as its state"),
    (MAKER + b"N}\x86b", "gives a torch._utils._rebuild_tensor_v2 a tuple"),
    (tensor() + b"}b", "gives a tensor a dict"),
    (storage() + b"}b", "gives a storage a dict"),
    (HELD + b")\x81]b", "gives a module a list as its state (a quantized"),
    (HELD + b")\x81}b}b", "gives a module a dict as its state"), (HELD + b")\x81N}\x86b", "gives a module a tuple"),
    (HELD + b")\x81}(K\1Nub", "treats a int as a str"), (b"]K\1e", "treats a dict as a list"),
    (b"}]Ns", "has a list as the key of a dict"), (b"})Ns", "has a tuple as the key"),
    (b"}" + tensor() + b"Ns", "has a tensor as the key"), (b"}NNs", "has a NoneType as the key of a dict"),
    (b"(K\1" + text("x") + b"u", "treats a "), (b"}(K\1NK\1Nu", "names 1 twice in one module or dict"),
    (b"]N\x86NR", "treats a tuple as a class"), (text("a") + b")R", "treats a str as a class"),
    (b"N)R", "treats a NoneType as a class"), (b"N)\x81", "treats a NoneType as a class"),
    (ORDERED + b"NR", "treats a NoneType as a tuple"), (ORDERED + b"]R", "treats a list as a tuple"),
    (ORDERED + b"(]tR", "calls collections.OrderedDict in a way"), (b"NNa", "treats a NoneType as a list"),
    (b"NNNs", "treats a NoneType as a dict"), (b"]K\1Ns", "treats a list as a dict"),
    (b"}K\1a", "treats a dict as a list"),
    (b"NN\x93", "treats a NoneType as a str"), (b"h\x63", "damaged pickle (KeyError: 99)"), (b"0", "instruction POP"),
    (b"(1", "instruction POP_MARK"), (b"2", "instruction DUP"), (b"\x82\1", "instruction EXT1"), (b"P0\n", "n PERSID"),
    (b"\x83\1\1", "instruction EXT2"), (b"(" + HELD + b"o", "instruction OBJ"),
    (HELD + b")}\x92", "instruction NEWOBJ_EX"),
    (b"(i__torch__\nM\n", "holds the pickle instruction INST"), (b"I5\n", "instruction INT"), (b"S'x'\n", "n STRING"),
    (b"\x8f", "instruction EMPTY_SET"), (b"C\1x", "instruction SHORT_BINBYTES"), (b"(K\1Nd", "instruction DICT"),
    (b"\x96" + struct.pack("<Q", 2 ** 40), "damaged pickle (ValueError"),
    (b"X\xff\xff\xff\xff", "damaged pickle (ValueError"),
    (b"\x8b" + struct.pack("<I", 2 ** 31 - 1), "damaged pickle (ValueError"),
    (b"X\1\0\0\0\xff", "pickle (UnicodeDecodeError"),
    (b"\xfe", "damaged pickle (ValueError"), (b"", "damaged"), (b"\x87", "damaged"),
    (b"N(N\x86", "takes a value where there is none"), (b"t", "damaged"),
])
def test_pickles_that_torch_does_not_write(tmp_path: Path, value: bytes, problem: str) -> None:
    line = refused(archive(tmp_path / "a.pt", module(("weight", tensor()), ("x", value))))
    assert line.startswith("is a TorchScript archive that ") and problem in line


@pytest.mark.parametrize("value, problem", [
    (tensor(stored=storage("1")), "damaged: "), (tensor(stored=storage(count=7)), "holds 24 bytes of the 28 of data/0"),
    (tensor(stored=storage(kind="DoubleStorage")), "holds 24 bytes of the 48 of data/0, which is 'x'"),
    (tensor(stored=storage(count=5)), "the tensor 'x' of shape (2, 3), which ends at element 6 of 5"),
    (tensor(offset=number(1)), "ends at element 7 of 6"), (tensor(numbers(2, 4)), "ends at element 7 of 6"),
    (tensor(stride=numbers(3, 2)), "ends at element 8 of 6"), (tensor(stride=numbers(2 ** 62, 1)), "ends at element"),
    (tensor(numbers(2 ** 62, 2 ** 62), numbers(1, 1)), "ends at element"),
    (tensor(numbers(7), numbers(1)), "element 7 of 6"),
    (tensor(offset=number(-1)), "offset, shape or strides"),
    (tensor(stride=numbers(-3, 1)), "offset, shape or strides"),
    (tensor(numbers(-2, 3)), "offset, shape or strides"), (tensor(numbers(2 ** 63, 0)), "offset, shape or strides"),
    (tensor(numbers(6)), "offset, shape or strides"), (tensor(stride=b"]"), "offset, shape or strides"),
    (tensor(b"]", b"]"), "offset, shape or strides"), (tensor(offset=b"\x89"), "offset, shape or strides"),
    (tensor(offset=b"G" + bytes(8)), "offset, shape or strides"),
    (tensor(numbers(*[1] * 65), numbers(*[1] * 65)), "offset, sha"),
    (tensor(offset=b"N"), "offset, shape or strides"),
    (tensor(hooks=b"N"), "calls torch._utils._rebuild_tensor_v2 in a way"),
    (tensor(hooks=b"}(K\1Nu"), "calls torch._utils._rebuild_tensor_v2"),
    (tensor(more=b"}(K\1Nu"), "calls torch._utils._r"),
    (tensor(more=b"NN"), "calls torch._utils._rebuild_tensor_v2"),
    (tensor(stored=b"N"), "calls torch._utils._rebuild_t"),
    (tensor(stored=tensor()), "calls torch._utils._rebuild_tensor_v2"),
    (tensor(stored=b"ctorch\nFloatStorage\n"), "calls t"),
    (called("torch._utils._rebuild_parameter", b"N", b"\x88", b"}"), "calls torch._utils._rebuild_parameter in a way"),
    (called("torch._utils._rebuild_parameter", tensor(), b"\x88", b"}(K\1Nu"), "calls torch._utils._rebuild_parameter"),
    (called("torch.jit._pickle.restore_type_tag"), "calls torch.jit._pickle.restore_type_tag in a way"),
    (storage(first="module"), "persistent id"), (b"NQ", "persistent id"), (text("storage") + b"Q", "persistent id"),
    (storage(count=-1), "persistent id"), (b"(tQ", "persistent id"),
    (b"(" + text("storage") + HELD + text("0") + text("cpu") + b"K\6tQ", "persistent id"),
    (b"(" + text("storage") + ORDERED + text("0") + text("cpu") + b"K\6tQ", "persistent id"),
    (b"](" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\6eQ", "persistent id"),
    (b"(" + text("storage") + b"ctorch\nFloatStorage\n" + b"K\0" + text("cpu") + b"K\6tQ", "persistent id"),
    (tensor(stored=storage("../0")), "damaged: "), (tensor(stored=storage("../data.pkl")), "damaged: "),
    (tensor(stored=storage("x" * 10 ** 6)), "damaged: "),
])
def test_tensors_that_do_not_fit(tmp_path: Path, value: bytes, problem: str) -> None:
    assert problem in refused(archive(tmp_path / "a.pt", module(("y", tensor()), ("x", value))))


def test_roots_that_are_no_module(tmp_path: Path) -> None:
    for pickled in (tensor(), b"}", b"]", b"N", HELD, text("x")):
        assert "holds no module" in refused(archive(tmp_path / "a.pt", pickled))
    for pickled in (b"\x80\2NN.", b"\x80\2.", b"\x80\2N", b"\x80", b"\x80\2" + module(("w", tensor())) + b"N."):
        assert "has a damaged pickle" in refused(archive(tmp_path / "a.pt", pickled))


def test_names(tmp_path: Path) -> None:
    assert "names 'w' twice" in refused(archive(tmp_path / "a.pt", module(("w", tensor()), ("w", tensor()))))
    both = module(("a", module(("w", tensor()))), ("a.w", tensor()))
    assert "names 'a.w' twice" in refused(archive(tmp_path / "a.pt", both))
    assert "more than 1000 letters" in refused(archive(tmp_path / "a.pt", module(("w" * 1001, tensor()))))
    lone = b"X\3\0\0\0\xed\xa0\x80"  # half of a character, which pickle lets pass
    pickled = module(("w", tensor())).replace(text("w"), lone)
    assert "has a damaged pickle (UnicodeEncodeError" in refused(archive(tmp_path / "a.pt", pickled))
    odd = {"": VALUES, "é": VALUES, "a b\n": VALUES}
    flat = tensor(numbers(6), numbers(1))
    equal(sources.read(archive(tmp_path / "a.pt", module(*((name, flat) for name in odd)))).state, odd)


def test_modules_that_hold_themselves(tmp_path: Path) -> None:
    """And those that are there so often that their names would fill the memory."""
    itself = HELD + b")\x81q\0}(" + text("x") + b"h\0" + text("y") + b"h\0" + text("w") + tensor() + b"ub"
    assert "has a module that holds itself" in refused(archive(tmp_path / "a.pt", itself))
    laughs = module(("w", tensor())) + b"q\1"
    for _ in range(60):
        laughs = b"c__torch__\nM\n)\x81}(" + text("a") + laughs + text("b") + b"h\1ubq\1"
    assert "attributes" in refused(archive(tmp_path / "a.pt", laughs))
    deep = module(("w", tensor()))
    for _ in range(torchscript.DEEPEST + 1):
        deep = module(("a", deep))
    assert "more than 100 levels" in refused(archive(tmp_path / "a.pt", deep))
    twice = HELD + b")\x81}(" + text("a") + module(("w", tensor())) + b"q\1" + text("b") + b"h\1ub"
    assert set(sources.read(archive(tmp_path / "a.pt", twice)).state) == {"a.w", "b.w"}


@pytest.mark.parametrize("value", [
    b"]q\0h\0a", b"}q\0" + text("x") + b"h\0s", b")" + b"\x85" * 10 ** 5, b"](" * 10 ** 5 + b"e" * 10 ** 5,
    b"Nr\xff\xff\xff\x7f", b"N\x94", b"G" + bytes(8), b"\x8a\xff" + bytes(254) + b"\1", b"M\1\2", b"J\1\2\3\4",
    b"\x89", b"\x95" + bytes(8) + b"\x8c\1x", b"N\x85", b"NN\x86", b"NNN\x87", b"(NNt", b"](NNe", b"}(K\1NK\2Nu",
    b"}G" + bytes(8) + b"Ns", called("torch.jit._pickle.restore_type_tag", b"]", text("List[int]")),
    called("torch.jit._pickle.build_intlist", b"]"),
], ids=range(21))
def test_values_that_are_passed_over(tmp_path: Path, value: bytes) -> None:
    """Everything torch writes for an attribute; also what holds itself, is deep, or asks for much memory."""
    found, notes = sources.read(archive(tmp_path / "a.pt", module(("w", tensor()), ("x", value))))
    equal(found, {"w": VALUES.view(2, 3)})
    assert notes[1:] == ([] if value.startswith((b"Nr", b"N\x94")) else ["left out, because they are no tensors: x"])


def test_a_key_that_would_take_for_ever(tmp_path: Path) -> None:
    """A tuple of a tuple of ... of itself, twice each: hashing it takes 2^60 steps."""
    key = b")q\0"
    for _ in range(60):
        key = key[:-2] + b"q\0h\0\x86q\0"
    assert "has a tuple as the key of a dict" in refused(archive(tmp_path / "a.pt", module(("x", b"}" + key + b"Ns"))))


def test_tensors_that_repeat_few_bytes(tmp_path: Path) -> None:
    small = tensor(numbers(4, 6), numbers(0, 1))
    found = sources.read(archive(tmp_path / "a.pt", module(("x", small)))).state["x"]
    assert torch.equal(found, VALUES.expand(4, 6))
    huge = tensor(numbers(2 ** 40, 6), numbers(0, 1))
    assert "its tensors repeat few bytes until they are" in refused(archive(tmp_path / "a.pt", module(("x", huge))))
    blank = archive(tmp_path / "a.pt", module(("x", tensor(numbers(2 ** 40, 0), numbers(0, 1)))))
    assert sources.read(blank).state["x"].shape == (2 ** 40, 0)
    wide = tensor(numbers(2 ** 62, 2 ** 62, 0), numbers(0, 0, 1))
    assert "is damaged" in refused(archive(tmp_path / "a.pt", module(("x", wide))))


# -- the zip around it ---------------------------------------------------------------------------------------

GOOD = module(("weight", tensor()))


def test_members_that_are_missing_or_too_many(tmp_path: Path) -> None:
    file = archive(tmp_path / "a.pt", GOOD)
    with zipfile.ZipFile(file) as opened:
        content = {name: opened.read(name) for name in opened.namelist()}
    for lost, problem in (("data.pkl", "none of torch.save: it has no data.pkl in one"), ("data/0", "damaged: ")):
        with zipfile.ZipFile(file, "w") as opened:
            for name, stored in content.items():
                if name != f"archive/{lost}":
                    opened.writestr(name, stored)
        assert problem in refused(file)
    archive(file, GOOD, members={"byteorder": b"big"})
    assert "does not store its tensors in little-endian order" in refused(file)
    archive(file, GOOD, members={"byteorder": b"little"})
    sources.read(file)
    archive(file, GOOD, members={"../other/x": b"1"})
    sources.read(file)  # names of members are never paths
    archive(file, GOOD)
    with zipfile.ZipFile(file, "a") as opened:
        opened.writestr("other/data.pkl", b"x")
    assert "no data.pkl in one folder" in refused(file)
    archive(file, GOOD)
    with warnings.catch_warnings(), zipfile.ZipFile(file, "a") as opened:
        warnings.simplefilter("ignore")
        opened.writestr("archive/data/0", bytes(24))
    assert refused(file) == "has the member archive/data/0 twice"


def test_without_its_code_it_is_no_archive_of_modules(tmp_path: Path) -> None:
    """It goes to torch.load then, which refuses what it asks for."""
    file = archive(tmp_path / "a.pt", GOOD)
    with zipfile.ZipFile(file) as opened:
        content = {name: opened.read(name) for name in opened.namelist()}
    for kept in (("archive/constants.pkl",), ("archive/code/__torch__.py",), ()):
        with zipfile.ZipFile(file, "w") as opened:
            for name, stored in content.items():
                if "code" not in name and "constants" not in name or name in kept:
                    opened.writestr(name, stored)
        if kept:
            assert set(sources.read(file).state) == {"weight"}
        else:
            assert "its pickle asks for __torch__.M" in refused(file)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressed_members(tmp_path: Path, method: int) -> None:
    """torch compresses code only, so a small file cannot unpack to a large one."""
    file = archive(tmp_path / "a.pt", GOOD)
    with zipfile.ZipFile(file, "a") as opened:
        opened.writestr("archive/code/more.py", bytes(10 ** 6), zipfile.ZIP_DEFLATED)
    sources.read(file)
    with zipfile.ZipFile(file, "a") as opened:
        opened.writestr("archive/data/1", bytes(10 ** 6), method)
    assert refused(file) == "has compressed members (archive/data/1), which torch.save does not write"


def test_members_that_lie_over_each_other(tmp_path: Path) -> None:
    """Many entries of the list for the same bytes: together more than the file."""
    content = bytes(10 ** 5)
    file = archive(tmp_path / "a.pt", GOOD, members={f"data/{index}": content for index in (1, 2)})
    raw = file.read_bytes()
    with zipfile.ZipFile(file) as opened:
        first, second = (opened.getinfo(f"archive/data/{index}").header_offset for index in (1, 2))
        directory = opened.start_dir
    inner, rest = bytearray(raw[:second]), bytearray(raw[directory:])
    at = rest.find(b"archive/data/2") - 46
    rest[at + 42:at + 46] = struct.pack("<I", first)
    end = rest.rfind(b"PK\5\6")
    rest[end + 16:end + 20] = struct.pack("<I", len(inner))
    file.write_bytes(bytes(inner) + bytes(rest))
    assert "more than the file has" in refused(file) or "differ" in refused(file)


@pytest.mark.parametrize("size", [0, 23, 25, 2 ** 20, 2 ** 32 - 2])
def test_sizes_that_are_not_true(tmp_path: Path, size: int) -> None:
    file = archive(tmp_path / "a.pt", GOOD)
    raw = bytearray(file.read_bytes())
    entry = raw.rfind(b"archive/data/0") - 46
    assert raw[entry:entry + 4] == b"PK\1\2" and struct.unpack("<II", raw[entry + 20:entry + 28]) == (24, 24)
    for at in (entry + 20, entry + 24):
        raw[at:at + 4] = struct.pack("<I", size)
    file.write_bytes(raw)
    line = refused(file)
    assert ("more than the file has" if size > 1000 else "damaged") in line


def test_pickles_longer_than_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = archive(tmp_path / "a.pt", GOOD)
    size = len(GOOD) + 3
    monkeypatch.setattr(torchscript, "LARGEST_PICKLE", size)
    sources.read(file)
    monkeypatch.setattr(torchscript, "LARGEST_PICKLE", size - 1)
    assert f"has a data.pkl of more than {size - 1} bytes" in refused(file)


def test_damaged_archives(tmp_path: Path) -> None:
    """Cut anywhere, or with a bit changed anywhere: one clear line, or exactly the tensors that were in it."""
    module = nn.Linear(3, 2)
    raw = scripted(module, tmp_path / "good.pt").read_bytes()
    file, lines = tmp_path / "bad.pt", 0
    for length in range(0, len(raw), 13):
        file.write_bytes(raw[:length])
        refused(file)
    with zipfile.ZipFile(tmp_path / "good.pt") as opened:
        read = {info.header_offset: info.file_size for info in opened.infolist() if "/code/" not in info.filename}
    for place in range(0, len(raw), 4):
        file.write_bytes(raw[:place] + bytes([raw[place] ^ 1 << place // 4 % 8]) + raw[place + 1:])
        try:
            equal(sources.read(file).state, module.state_dict())
        except InputError as error:
            lines += 1
            assert str(error).startswith(f"{file}: ") and "\n" not in str(error)
    assert lines > sum(read.values()) / 4  # at least every bit of what is read


def test_members_whose_checksum_is_wrong(tmp_path: Path) -> None:
    for part in (b"", VALUES.numpy().tobytes()):
        file = archive(tmp_path / "a.pt", GOOD)
        raw = bytearray(file.read_bytes())
        at = raw.find(part) + 5 if part else raw.find(b"_rebuild_tensor_v2") + 4
        raw[at] ^= 1
        file.write_bytes(raw)
        assert "is no whole zip archive: cut short or damaged (Bad CRC-32 for file 'archive/data" in refused(file)
