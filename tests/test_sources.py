"""Published files become named tensors: each format bit for bit, each wrapper by a rule that is told."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import random
import re
import struct
import sys
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from test_torchscript import Malice, equal, refused
from torch import Tensor, nn

from minivl.errors import InputError
from minivl.files import write_tensors
from weights import sources

W, B = torch.randn(3, 2), torch.randn(2)
STATE = {"fc.weight": W, "fc.bias": B}
TENSORS = {"float": torch.randn(3, 5), "half": torch.randn(4).half(), "bf": torch.randn(4).bfloat16(),
           "long": torch.arange(6).view(2, 3), "bool": torch.rand(7) > 0.5, "scalar": torch.tensor(2.5),
           "none": torch.zeros(0, 4), "bytes": torch.arange(9, dtype=torch.uint8)}
FORMS = {"zip": True, "legacy": False}  # how torch.save writes, and wrote until 1.6


def saved(file: Path, value: Any, form: str = "zip") -> Path:
    torch.save(value, file, _use_new_zipfile_serialization=FORMS[form])
    return file


@pytest.fixture(params=list(FORMS))
def form(request: pytest.FixtureRequest) -> str:
    return request.param


# -- every format --------------------------------------------------------------------------------------------

@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".ckpt", ".PTH"])
def test_state_dicts_of_torch(tmp_path: Path, suffix: str, form: str) -> None:
    turned = {**TENSORS, "turned": torch.randn(4, 6).T, "part": torch.randn(9, 2)[::3], "tied": TENSORS["float"],
              "parameter": nn.Parameter(torch.randn(2))}
    state, notes = sources.read(saved(tmp_path / f"a{suffix}", turned, form))
    equal(state, {**turned, "parameter": turned["parameter"].detach()})
    assert notes == [] and list(state) == list(turned) and state["tied"].data_ptr() == state["float"].data_ptr()
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))  # an OrderedDict with metadata
    equal(sources.read(saved(tmp_path / f"a{suffix}", module.state_dict(), form)).state, module.state_dict())


def test_safetensors(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.safetensors", TENSORS, {"format": "pt"})
    state, notes = sources.read(tmp_path / "a.safetensors")
    equal(state, TENSORS)
    assert notes == []
    content = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "b.safetensors").write_bytes(content[:-1])
    assert "is not a whole safetensors file: its tensors need" in refused(tmp_path / "b.safetensors")
    (tmp_path / "b.safetensors").write_bytes(content.replace(b'"half"', b'"bool"'))
    assert "'bool' is in the header twice" in refused(tmp_path / "b.safetensors")


ARRAYS = {"Transformer/encoderblock_0/LayerNorm_0/scale": numpy.random.randn(3, 4).astype("f4"),
          "embedding/kernel": numpy.random.randn(2, 2, 3).astype("f2"), "step": numpy.int32(7), "a.b": numpy.arange(3),
          "turned": numpy.asfortranarray(numpy.random.randn(3, 2)), "big": numpy.random.randn(3).astype(">f4"),
          "flag": numpy.array([True, False]), "none": numpy.zeros((0, 3), "f4"), "wave": numpy.ones(2, "c8"),
          "high": numpy.arange(2, dtype=">u2"), "odd name.npy": numpy.ones(1, "i1"), "": numpy.ones(1)}


@pytest.mark.parametrize("save", [numpy.savez, numpy.savez_compressed])
def test_arrays_of_numpy(tmp_path: Path, save: Any) -> None:
    save(tmp_path / "a.npz", **ARRAYS)
    state, notes = sources.read(tmp_path / "a.npz")
    assert list(state) == list(ARRAYS) and notes == []
    for name, array in ARRAYS.items():
        assert state[name].shape == array.shape and state[name].dtype.itemsize == array.dtype.itemsize, name
        assert numpy.array_equal(state[name].numpy(), array) and state[name].numpy().dtype.kind == array.dtype.kind


def test_bfloat16_of_jax(tmp_path: Path) -> None:
    """numpy does not know it and stores two bytes of no type."""
    given = {name: torch.randn(shape).bfloat16() for name, shape in (("w", (3, 4)), ("one", ()), ("turned", (4, 2)))}
    arrays = {name: tensor.view(torch.int16).numpy().view("V2") for name, tensor in given.items()}
    numpy.savez(tmp_path / "a.npz", **{**arrays, "turned": numpy.asfortranarray(arrays["turned"])}, f=W.numpy())
    state, notes = sources.read(tmp_path / "a.npz")
    equal(state, {**given, "f": W})
    assert notes == [f"{name}: two bytes of no type, read as bfloat16" for name in given]


def test_arrays_of_an_old_python(tmp_path: Path) -> None:
    """Its whole numbers end in L; newer versions of the format are read too."""
    content = io.BytesIO()
    numpy.save(content, W.numpy())
    old = content.getvalue().replace(b"(3, 2), }  ", b"(3L, 2L), }")
    newer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        numpy.lib.format.write_array(newer, W.numpy(), version=(2, 0))
    newest = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        numpy.lib.format.write_array(newest, W.numpy(), version=(3, 0))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as opened:
        for name, one in (("old", old), ("newer", newer.getvalue()), ("newest", newest.getvalue())):
            opened.writestr(f"{name}.npy", one)
    equal(sources.read(tmp_path / "a.npz").state, {"old": W, "newer": W, "newest": W})


# -- wrappers ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("wrapper", ["model", "state_dict", "model_state_dict", "module", "model_ema", "teacher"])
def test_one_model_in_a_checkpoint(tmp_path: Path, wrapper: str, form: str) -> None:
    beside = {"epoch": 3, "optimizer": {"state": {0: {"exp_avg": W}}, "param_groups": [{"lr": 0.1}]}, "name": "x",
              "best": torch.tensor(0.7), "args": None, "seen": [W]}
    state, notes = sources.read(saved(tmp_path / "a.pth", {"epoch": 3, wrapper: STATE, **beside}, form))
    equal(state, STATE)
    assert notes == [f"taken from the entry {wrapper!r}, without epoch, optimizer, name, best, args, seen beside it"]
    state, notes = sources.read(saved(tmp_path / "a.pth", {wrapper: OrderedDict(STATE)}, form))
    equal(state, STATE)
    assert notes == [f"taken from the entry {wrapper!r}"]


def test_wrappers_in_wrappers(tmp_path: Path) -> None:
    state, notes = sources.read(saved(tmp_path / "a.pth", {"state_dict": {"model": STATE, "x": 1}, "epoch": 2}))
    equal(state, STATE)
    assert notes == ["taken from the entry 'state_dict', without epoch beside it",
                     "taken from the entry 'model', without x beside it"]


def test_tensors_whose_names_are_those_of_wrappers(tmp_path: Path) -> None:
    """They are tensors: nothing is wrapped."""
    state, notes = sources.read(saved(tmp_path / "a.pth", {"model": W, "module": B, "teacher": W}))
    equal(state, {"model": W, "module": B, "teacher": W})
    assert notes == []


@pytest.mark.parametrize("prefixes", [("module.",), ("_orig_mod.",), ("module.", "_orig_mod."),
                                      ("_orig_mod.", "module."), ("module.", "module.")])
def test_prefixes_that_all_names_have(tmp_path: Path, prefixes: tuple[str, ...]) -> None:
    full = "".join(prefixes)
    state, notes = sources.read(saved(tmp_path / "a.pth", {full + name: tensor for name, tensor in STATE.items()}))
    equal(state, STATE)
    assert notes == [f"names without {prefix!r}, which all had" for prefix in prefixes]
    mixed = {full + "w": W, "module": B}
    state, notes = sources.read(saved(tmp_path / "a.pth", mixed))
    equal(state, mixed)
    assert notes == []


def test_a_teacher_of_dino(tmp_path: Path) -> None:
    teacher = {"module.backbone.cls_token": W, "module.backbone.head.bias": B, "module.head.mlp.0.weight": W}
    student = {name: tensor + 1 for name, tensor in teacher.items()}
    both = {"student": student, "teacher": teacher, "epoch": 1}
    state, notes = sources.read(saved(tmp_path / "a.pth", both))
    equal(state, {"cls_token": W, "head.bias": B})
    assert notes == ["of teacher and student the teacher, which is what DINO publishes",
                     "taken from the entry 'teacher', without student, epoch beside it",
                     "names without 'module.', which all had",
                     "names without 'backbone.'; left out, because only DINO's training needs them: head.mlp.0.weight"]
    equal(sources.read(tmp_path / "a.pth", entry="student").state, {"cls_token": W + 1, "head.bias": B + 1})
    second = {"teacher": {"backbone.w": W, "dino_head.x": W, "ibot_head.y": W}}
    equal(sources.read(saved(tmp_path / "a.pth", second)).state, {"w": W})
    for other in ({"backbone.w": W, "decoder.x": W}, {"w": W, "head.x": W}):  # whose parts those are is not known
        equal(sources.read(saved(tmp_path / "a.pth", {"teacher": other})).state, other)
    equal(sources.read(saved(tmp_path / "a.pth", {"backbone.w": W, "head.x": W})).state, {"backbone.w": W, "head.x": W})


@pytest.mark.parametrize("names", [("model", "model_ema"), ("state_dict", "state_dict_ema"), ("model", "state_dict"),
                                   ("model", "teacher"), ("student", "teacher", "model")])
def test_several_models_are_not_chosen_from(tmp_path: Path, names: tuple[str, ...]) -> None:
    several = {name: {"w": torch.full((2,), float(index))} for index, name in enumerate(names)}
    file = saved(tmp_path / "a.pth", several)
    line = refused(file)
    assert line.startswith("holds several models (") and line.endswith("): say which by --entry (entry=)")
    assert set(line[len("holds several models ("):line.index(")")].split(", ")) == set(names)
    for index, name in enumerate(names):
        state, notes = sources.read(file, entry=name)
        assert float(state["w"][0]) == index and notes[0].startswith(f"taken from the entry {name!r}, without ")


def test_entries_of_other_names(tmp_path: Path) -> None:
    file = saved(tmp_path / "a.pth", {"net": STATE, "epoch": 3, "cfg": {"depth": 2}})
    assert refused(file) == ("its entries net are no tensors but hold some; tensors are looked for in "
                             + ", ".join(sources.WRAPPERS) + ", others are named by --entry (entry=)")
    equal(sources.read(file, entry="net").state, STATE)
    with pytest.raises(InputError, match="a.pth: has no entry 'nett' with tensors; there are: net, epoch, cfg"):
        sources.read(file, entry="nett")
    with pytest.raises(InputError, match="has no entry 'epoch' with tensors"):
        sources.read(file, entry="epoch")
    with pytest.raises(InputError, match="holds no tensors"):
        sources.read(file, entry="cfg")
    for other in ("a.safetensors", "a.npz"):
        write_tensors(tmp_path / "a.safetensors", STATE)
        numpy.savez(tmp_path / "a.npz", w=W.numpy())
        with pytest.raises(InputError, match=f"{other}: has no entry 'x': only .pth, .pt, .bin, .ckpt have entries"):
            sources.read(tmp_path / other, entry="x")


def test_entries_that_are_no_tensors(tmp_path: Path, form: str) -> None:
    plain = {"epoch": 3, "name": "x", "none": None, "sizes": [1, (2, {"a": 3.5})], "config": {"depth": 2}, "flag": True,
             "shape": torch.Size([2]), "type": torch.float16}
    state, notes = sources.read(saved(tmp_path / "a.pth", {**STATE, **plain}, form))
    equal(state, STATE)
    assert notes == ["left out, because they hold no tensors: " + ", ".join(plain)]
    for hidden in ([W], (1, [W]), {"x": {"y": W}}, {1: W}):
        assert refused(saved(tmp_path / "a.pth", {**STATE, "more": hidden}, form)) == (
            "its entries more are no tensors but hold some")
    assert refused(saved(tmp_path / "a.pth", {"model": {**STATE, "more": [W]}}, form)) == (
        "its entries more are no tensors but hold some")
    assert refused(saved(tmp_path / "a.pth", {"model": STATE, "queue": W, "ptr": torch.zeros(1), "t": torch.tensor(1)},
                         form)) == ("holds tensors (queue, ptr) beside its entry 'model': which of them are the model "
                                    "cannot be told")


def test_a_list_that_holds_itself(tmp_path: Path) -> None:
    itself: list[Any] = [1]
    itself.append(itself)
    state, notes = sources.read(saved(tmp_path / "a.pth", {**STATE, "x": itself}))
    equal(state, STATE)
    assert notes == ["left out, because they hold no tensors: x"]
    circle: dict[str, Any] = {}
    circle["model"] = circle
    assert refused(saved(tmp_path / "a.pth", circle)) == "holds no tensors"
    circle["w"] = W
    assert "holds tensors (w) beside its entry 'model'" in refused(saved(tmp_path / "a.pth", circle))
    circle["w"] = W[0, 0]
    assert "wraps its tensors more than" in refused(saved(tmp_path / "a.pth", circle))


@pytest.mark.parametrize("value, problem", [
    (W, "holds a Tensor, not named tensors"), ([W], "holds a list, not named tensors"),
    (None, "holds a NoneType, not named tensors"), (3, "holds a int, not named tensors"),
    ({}, "holds no tensors"), ({"model": {}}, "holds no tensors"), ({"epoch": 1}, "holds no tensors"),
    ({0: W, 1: B}, "its tensors have no names: 0, 1 for a name"),
    ({"a": W, None: B}, "its tensors have no names: None for a name"),
    ({"model": {3: W}}, "its tensors have no names: 3 for a name"),
    ({"w": torch.eye(3).to_sparse()}, "its tensor 'w' is torch.sparse_coo: only plain tensors are read"),
    ({"w": W.to("meta")}, "its tensor 'w' is on the device meta: only plain"),
])
def test_values_that_are_no_state_dict(tmp_path: Path, value: Any, problem: str, form: str) -> None:
    assert refused(saved(tmp_path / "a.pth", value, form)).startswith(problem)


def test_quantized_tensors(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = saved(tmp_path / "a.pth", {"w": torch.quantize_per_tensor(W, 0.1, 0, torch.qint8)})
    assert refused(file) == "its tensor 'w' is quantized: only plain tensors are read"


def test_tensors_that_repeat_few_bytes(tmp_path: Path, form: str) -> None:
    """Ten terabytes in a file of a kilobyte; a table that is expanded a little is read."""
    small = torch.arange(5).expand(3, 5)
    equal(sources.read(saved(tmp_path / "a.pth", {"w": small}, form)).state, {"w": small})
    line = refused(saved(tmp_path / "a.pth", {"w": B[:1].expand(10 ** 13)}, form))
    assert line.startswith("its tensors repeat few bytes until they are 40000000000000, more than 64 times the file")


# -- pickles that are more -----------------------------------------------------------------------------------

class Config:
    """A class of the writer's own."""


@pytest.mark.parametrize("value, asked", [
    ({"model": STATE, "args": argparse.Namespace(lr=0.1)}, "argparse.Namespace"),
    (nn.Linear(2, 2), "torch.nn.modules.linear."),
    ({"model": STATE, "best": numpy.float64(0.5)}, r"numpy\S*multiarray.scalar"),
    ({"model": STATE, "path": Path("x")}, "pathlib"),
    ({"w": numpy.ones(2)}, r"numpy\S*multiarray._reconstruct"), ({"config": Config()}, "test_sources.Config"),
    ({"model": STATE, "optimizer": torch.optim.SGD([B])}, r"torch\S*SGD"),
])
def test_checkpoints_with_objects(tmp_path: Path, value: Any, asked: str, form: str) -> None:
    """One line that names the object and the way out."""
    way = re.escape("store them alone: torch.save(model.state_dict(), FILE)")
    assert re.fullmatch(rf"its pickle asks for \S*{asked}\S*, and only plain tensors are made of one; who trusts the "
                        rf"file can {way}", refused(saved(tmp_path / "a.pth", value, form)))


@pytest.mark.parametrize("variable", [None, "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"])
def test_pickles_that_execute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str | None,
                              form: str) -> None:
    made = tmp_path / "made"
    if variable:
        monkeypatch.setenv(variable, "1")
    for function in (os.mkdir, eval, exec):
        file = saved(tmp_path / "a.pth", {"model": STATE, "x": Malice(made, function)}, form)
        torch.load(file, weights_only=False)
        assert made.is_dir()  # so they do execute
        made.rmdir()
        line = refused(file)
        assert re.match(r"its pickle asks for \S*(mkdir|eval|exec), ", line) or "is no whole file of torch.save" in line
        for protocol in range(6):
            (tmp_path / "b.bin").write_bytes(pickle.dumps(Malice(made, function), protocol))
            line = refused(tmp_path / "b.bin")
            assert "its pickle asks for" in line or "is no whole file of torch.save" in line
        assert not made.exists()


def test_nothing_is_imported_for_a_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even the module of a class that it names."""
    (tmp_path / "evil.py").write_text("import os\nos.mkdir('made')\nclass Evil: pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with zipfile.ZipFile("a.pth", "w") as opened:
        opened.writestr("a/data.pkl", b"\x80\2}X\1\0\0\0xcevil\nEvil\n)\x81s.")
        opened.writestr("a/version", "3\n")
    assert refused(Path("a.pth")).startswith("its pickle asks for evil.Evil, ")
    assert "evil" not in sys.modules and not Path("made").exists()
    import evil  # so it can be
    assert evil.Evil and Path("made").is_dir()
    del sys.modules["evil"]


# -- files that are something else, or broken ----------------------------------------------------------------

@pytest.mark.parametrize("suffix", sources.SUFFIXES)
@pytest.mark.parametrize("content, problem", [
    (b"", "an empty file"), (b"<!DOCTYPE html><html>Sign in", "an HTML page"), (b'{"error": "x"}', "JSON"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "a pointer of Git LFS"),
    (b"\x1f\x8b\x08\0" + bytes(90), "a gzip file"), (b"\x89HDF\r\n\x1a\n" + bytes(90), "an HDF5 file"),
])
def test_files_of_another_kind(tmp_path: Path, suffix: str, content: bytes, problem: str) -> None:
    (tmp_path / f"a{suffix}").write_bytes(content)
    assert f"is {problem}" in refused(tmp_path / f"a{suffix}")


def test_files_under_the_suffix_of_another(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.bin", STATE)
    assert refused(tmp_path / "a.bin") == "is a safetensors file, not what torch.save writes: name it .safetensors"
    numpy.savez(tmp_path / "a.npz", w=W.numpy())
    (tmp_path / "b.pth").write_bytes((tmp_path / "a.npz").read_bytes())
    assert "a zip archive, but none of torch.save: it has no data.pkl in one folder" in refused(tmp_path / "b.pth")
    saved(tmp_path / "c.npz", STATE)
    assert "which are no .npy: numpy.savez did not write it" in refused(tmp_path / "c.npz")
    saved(tmp_path / "d.safetensors", STATE)
    assert "it is a zip archive, as torch.save and numpy.savez write them" in refused(tmp_path / "d.safetensors")
    saved(tmp_path / "e.npz", STATE, "legacy")
    assert refused(tmp_path / "e.npz") == "is a pickle, not what numpy.savez writes"
    numpy.save(tmp_path / "f.npy", W.numpy())
    (tmp_path / "f.npy").rename(tmp_path / "f.npz")
    assert refused(tmp_path / "f.npz") == "is something else, not what numpy.savez writes"
    (tmp_path / "g.pt").write_bytes(b"abc" * 99)
    assert "is no whole file of torch.save (" in refused(tmp_path / "g.pt")


@pytest.mark.parametrize("name", ["a.h5", "a.onnx", "a.msgpack", "a", "a.pth.tar", "a.index.json", ".pth"])
def test_other_suffixes(tmp_path: Path, name: str) -> None:
    saved(tmp_path / "x.pth", STATE).rename(tmp_path / name)
    assert refused(tmp_path / name) == (
        "is none of .safetensors, .pth, .pt, .bin, .ckpt, .npz: weights are read from these")


@pytest.mark.parametrize("suffix", sources.SUFFIXES)
def test_no_files(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"a{suffix}"
    assert refused(file) == "no such file"
    file.mkdir()
    assert refused(file) == "is a folder, a file is needed"
    file.rmdir()
    os.mkfifo(file)
    assert "is a pipe, a socket or a device" in refused(file)


def damaged(raw: bytes, draws: random.Random) -> list[bytes]:
    """Cut, and with one bit or many bytes changed."""
    cuts = [raw[:length] for length in range(0, len(raw), 11)]
    flips = [raw[:place] + bytes([raw[place] ^ 1 << draws.randrange(8)]) + raw[place + 1:]
             for place in range(draws.randrange(2), len(raw), 2)]
    for _ in range(200):
        changed = bytearray(raw)
        for _ in range(draws.randint(2, 30)):
            changed[draws.randrange(len(raw))] = draws.randrange(256)
        flips.append(bytes(changed))
    return [*cuts, *flips]


@pytest.mark.parametrize("kind", ["zip", "npz", "compressed"])
def test_damaged_files_with_checksums(tmp_path: Path, kind: str) -> None:
    """One clear line, or exactly the tensors that were in it: nothing else, whatever is changed."""
    good = {"a": torch.randn(3, 2), "b": torch.arange(3), "c": torch.randn(2).half()}
    file = tmp_path / ("a.pth" if kind == "zip" else "a.npz")
    if kind == "zip":
        saved(file, good)
    else:
        save = numpy.savez if kind == "npz" else numpy.savez_compressed
        save(file, **{name: tensor.numpy() for name, tensor in good.items()})
    raw, same = file.read_bytes(), 0
    contents = damaged(raw, random.Random(0))
    for content in contents:
        file.write_bytes(content)
        try:
            equal(sources.read(file).state, good)
            same += 1
        except InputError as error:
            line = str(error)
            assert line.startswith(f"{file}: ") and "\n" not in line and len(line) < 600 and not line.endswith("()")
    assert 0 < same < len(contents) / 2  # padding, dates


def test_damaged_files_without_checksums(tmp_path: Path) -> None:
    """The old form has none: its numbers can change unseen, and nothing else happens."""
    file = saved(tmp_path / "a.pth", {"model": STATE, "epoch": 1}, "legacy")
    raw = file.read_bytes()
    for content in damaged(raw, random.Random(0)):
        file.write_bytes(content)
        try:
            state, _ = sources.read(file)
        except InputError as error:
            assert str(error).startswith(f"{file}: ") and "\n" not in str(error) and len(str(error)) < 600
        else:
            assert len(content) == len(raw) and state and all(type(tensor) is Tensor for tensor in state.values())


@pytest.mark.parametrize("kind", ["zip", "npz"])
def test_lists_of_members_that_were_changed(tmp_path: Path, kind: str) -> None:
    """One bit there, which no checksum covers: a member that becomes the comment of the one before is lost, and what
    is marked as a folder torch takes for bytes that it need not read."""
    file = tmp_path / ("a.pth" if kind == "zip" else "a.npz")
    if kind == "zip":
        saved(file, STATE)
    else:
        numpy.savez(file, **{name: tensor.numpy() for name, tensor in STATE.items()})
    raw = file.read_bytes()
    with zipfile.ZipFile(file) as opened:
        names = opened.namelist()
    entries = [raw.rfind(name.encode()) - 46 for name in names]
    following = 46 + len(names[-1].encode())
    end = len(raw) - 22
    assert all(raw[at:at + 4] == b"PK\1\2" for at in entries) and raw[end:end + 4] == b"PK\5\6"
    for at, value in ((entries[-2] + 32, following), (entries[-2] + 38, 16), (entries[0] + 38, 16),
                      (end + 10, len(names) - 1), (end + 10, len(names) + 1)):
        changed = bytearray(raw)
        assert changed[at:at + 2] != struct.pack("<H", value)
        changed[at:at + 2] = struct.pack("<H", value)
        file.write_bytes(changed)
        assert "its list of members has been changed" in refused(file)
    file.write_bytes(raw[:-2] + b"\3\0abc")
    assert "its list of members has been changed" in refused(file)
    with zipfile.ZipFile(tmp_path / file.name, "w") as opened:
        opened.writestr("a/data.pkl" if kind == "zip" else "w.npy", b"x")
        opened.writestr("a/", b"")
    assert "its list of members has been changed" in refused(file)
    file.write_bytes(raw)
    equal(sources.read(file).state, STATE)


def test_members_of_torch_that_are_compressed(tmp_path: Path) -> None:
    """A megabyte of zeros in a kilobyte, which torch itself would unpack."""
    whole = saved(tmp_path / "whole.pth", {"w": torch.zeros(10 ** 6)})
    with zipfile.ZipFile(whole) as opened, zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in opened.namelist():
            packed.writestr(name, opened.read(name))
    assert (tmp_path / "a.pth").stat().st_size < 10 ** 5
    assert "which torch.save does not write" in refused(tmp_path / "a.pth")


# -- arrays that are broken ----------------------------------------------------------------------------------

def packed(file: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in members.items():
            opened.writestr(name + ".npy", content)
    return file


def array(value: Any = W.numpy()) -> bytes:
    content = io.BytesIO()
    numpy.save(content, value)
    return content.getvalue()


def described(text: str, data: bytes = bytes(24)) -> bytes:
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text.encode() + data


@pytest.mark.parametrize("content, problem", [
    (array(numpy.array([1, "x", None], object)), "holds Python objects, which are pickled: not read"),
    (array(numpy.zeros(2, [("a", object), ("b", "f4")])), "holds Python objects"),
    (array(numpy.zeros(2, [("a", "f4"), ("b", "f4")])), "is of type [('a', '<f4'), "),
    (array(numpy.zeros(2, [("a", "i1"), ("b", "i1")])), "which is no tensor's"),
    (array(numpy.array(["x"])), "of type <U1"),
    (array(numpy.array([b"x"])), "of type |S1"), (array(numpy.zeros(2, "M8[s]")), "of type datetime64[s]"),
    (array(numpy.zeros(2, "V4")), "of type |V4"), (array(numpy.zeros(2, numpy.longdouble)), "of type float128"),
    (array(numpy.zeros(2, numpy.clongdouble)), "of type complex256"),
    (array()[:-1], "'x' (3, 2) of float32 should have 24 bytes, there are 23"),
    (array() + b"\0", "24 bytes, there are 25"),
    (array()[:20], "is damaged ("), (array()[:7], "is damaged ("), (b"", "is damaged ("), (b"text", "is damaged ("),
    (array().replace(b"(3, 2)", b"(9, 9)"), "'x' (9, 9) of float32 should have 324 bytes, there are 24"),
    (described("{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000,), }\n"), "should have 40000000000 "),
    (described("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -6), }\n"), "there are 24"),
    (described("{'descr': '<f4', 'fortran_order': False, 'shape': (-6,), }\n"), "should have -24 bytes"),
    (described("{'descr': '<f4', 'fortran_order': False, 'shape': (True, 6), }\n"), "'x' "),
    (described("{'descr': '<f4', 'fortran_order': False, 'shape': 6, }\n"), "is damaged ("),
    (described("{'descr': '<f4', 'fortran_order': 3, 'shape': (6,), }\n"), "is damaged ("),
    (described("{'descr': '<q9', 'fortran_order': False, 'shape': (6,), }\n"), "is damaged ("),
    (described("{'descr': __import__('os').mkdir('made'), 'fortran_order': False, 'shape': (6,), }\n"), "is damaged ("),
    (described("{" * 5000), "is damaged ("),
    (described("(" * 2000 + ")" * 2000, os.urandom(10 ** 4)), "is damaged ("),
    (b"\x93NUMPY\7\0" + bytes(50), "is damaged ("), (b"\x93NUMPY\2\0\xff\xff\xff\xff" + bytes(50), "is damaged ("),
], ids=lambda value: None if isinstance(value, bytes) else value)
def test_arrays_that_are_none(tmp_path: Path, content: bytes, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    line = refused(packed(tmp_path / "a.npz", good=array(), x=content))
    assert line.startswith("its array 'x' ") and problem in line
    assert not (tmp_path / "made").exists()


def test_names_of_arrays(tmp_path: Path) -> None:
    with warnings.catch_warnings(), zipfile.ZipFile(tmp_path / "a.npz", "w") as opened:
        warnings.simplefilter("ignore")
        for _ in range(2):
            opened.writestr("w.npy", array())
    assert refused(tmp_path / "a.npz") == "has the member w.npy twice"
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as opened:
        opened.writestr("w.npy", array())
        opened.writestr("w", array())  # which numpy would call by the same name
    assert refused(tmp_path / "a.npz") == "holds w, which are no .npy: numpy.savez did not write it"
    with zipfile.ZipFile(tmp_path / "a.npz", "w"):
        pass
    assert refused(tmp_path / "a.npz").startswith("is ")
    outside = packed(tmp_path / "a.npz", **{"../../x": array(), "/etc/x": array()})
    equal(sources.read(outside).state, {"../../x": W, "/etc/x": W})  # a name, never a path


def test_arrays_that_unpack_to_more_than_any(tmp_path: Path) -> None:
    numpy.savez_compressed(tmp_path / "a.npz", w=numpy.zeros(10 ** 6, "f4"))
    assert "unpacks to 4000128 bytes, more than 64 times the file" in refused(tmp_path / "a.npz")
    few = numpy.arange(10 ** 4, dtype="f4")
    numpy.savez_compressed(tmp_path / "a.npz", w=few)
    equal(sources.read(tmp_path / "a.npz").state, {"w": torch.from_numpy(few)})
