"""Files that are damaged, hostile or not what was said: one line each, and what was there before stays."""

from __future__ import annotations

import io
import json
import os
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import timm
import torch
from random_models import randomise
from safetensors.torch import save_file
from test_loading import classifier, speaker
from test_vit_gpt2 import reference
from timm.models._hub import save_config_for_hf
from torch import Tensor

import minivl
from minivl import files
from minivl.loading import _digest
from minivl.models.vit import ViT
from minivl.programs import program
from weights import convert
from weights import list as listing
from weights import show

NAN = float("nan")
FINGERPRINT = {"by": "x", "act": ["gelu_tanh"], "eps": [1e-3], "norm": "pre"}


def ours(path: Path, change: Callable[[dict[str, Any]], Any], model: Any = None) -> Path:
    """A file of ours with something else in its header, whose sha256 is right again."""
    minivl.save(model or classifier(), path)
    tensors, header = files.read_tensors(path)
    told = json.loads(header["minivl"])
    change(told)
    told["sha256"] = _digest(tensors, told)
    files.write_tensors(path, tensors, {"minivl": json.dumps(told)})
    return path


def refused(path: Path, match: str, **options: Any) -> None:
    with pytest.raises(minivl.InputError, match=match) as caught:
        minivl.load(path, **options)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def ends(main: Callable[[Any], None], capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """The one line with which a program ends, its exit code being 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        program(lambda none: main([str(one) for one in argv]))
    told = capsys.readouterr()
    assert end.value.code == 2 and not told.out
    line = told.err.rstrip("\n").split("\n")[-1]
    assert line.startswith("error: ") and "Traceback" not in told.err
    return line


# -- headers of ours -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("change, match", [
    ({"width": 10 ** 9}, "width 1000000000"),
    ({"width": 3 * 10 ** 17}, "damaged .RuntimeError"),
    ({"width": -24}, "width=-24"), ({"width": True}, "damaged"),
    ({"mlp_dim": 10 ** 12}, r"6 of another shape.*\(1000000000000"),
    ({"depth": 10 ** 9}, "depth=1000000000: that many blocks in a file of 40 tensors cannot be"),
    ({"depth": 41}, "depth=41"), ({"eps": 0}, "eps=0: give a number"), ({"eps": NAN}, "eps=nan"),
    ({"eps": "1e-6"}, "eps='1e-6'"), ({"registers": 10 ** 9}, "1 missing: reg_token"), ({"act": ["gelu"]}, "damaged"),
    ({"patch_size": None}, "damaged"), ({"class_token": "yes"}, "damaged"),
], ids=str)
def test_numbers_that_cannot_be(change: dict[str, Any], match: str, tmp_path: Path) -> None:
    """However large, no memory is filled with them."""
    refused(ours(tmp_path / "m.safetensors", lambda told: told["config"].update(change)), match)


@pytest.mark.parametrize("change, match", [
    ({"max_len": 10 ** 9, "positions": "sinusoidal"}, "decoder.max_len=1000000000: more than any text has"),
    ({"depth": 10 ** 9}, "decoder.depth=1000000000"), ({"bos_id": "a"}, "damaged"), ({"bos_id": 99}, "bos_id=99"),
    ({"vocab_size": 10 ** 12}, "the tokenizer has 10 entries"), ({"memory_width": 7}, "of another shape")], ids=str)
def test_numbers_of_a_decoder(change: dict[str, Any], match: str, tmp_path: Path) -> None:
    refused(ours(tmp_path / "m.safetensors", lambda told: told["config"]["decoder"].update(change), speaker()), match)


@pytest.mark.parametrize("change, match", [
    ({"about": 5}, "its about is no object"), ({"about": "fingerprint"}, "its about is no object"),
    ({"about": {"fingerprint": 3}}, "its fingerprint is damaged"),
    ({"about": {"fingerprint": {}}}, "act is .* noted was None"),
    ({"about": {"fingerprint": {**FINGERPRINT, "values": {"logits": [NAN] * 64}}}}, "does not compute what x"),
    ({"about": {"fingerprint": {**FINGERPRINT, "values": [1]}}}, "its fingerprint is damaged"),
    ({"class_names": "cat"}, "its class_names are no list of texts"),
    ({"class_names": [1, 2, 3]}, "its class_names are no list of texts")], ids=str)
def test_notes_of_another_form(change: dict[str, Any], match: str, tmp_path: Path,
                               capsys: pytest.CaptureFixture[str]) -> None:
    path = ours(tmp_path / "m.safetensors", lambda told: told.update(change))
    refused(path, match, verify=True)
    assert str(path) in ends(show.main, capsys, path, "--verify")


@pytest.mark.parametrize("text", ["[]", "5", "null", '"x"', "[" * 100_000, '{"a":' + "9" * 5000 + "}", "{",
                                  '{"kind":[]}', '{"class_names":5}', '{"tokenizer":true}', '{"about":[]}'],
                         ids=lambda text: text[:20])
def test_headers_of_another_form(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                 capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MINIVL_WEIGHTS", str(tmp_path))
    path = tmp_path / "m.safetensors"
    files.write_tensors(path, classifier().state_dict(), {"minivl": text})
    refused(path, "its minivl header is damaged")
    assert "its minivl header is damaged" in ends(show.main, capsys, path, "--verify")
    listing.main([])
    assert "\nm " in capsys.readouterr().out


# -- files of ours -------------------------------------------------------------------------------------------

def test_cut_and_flipped_files_in_the_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "m.safetensors"
    minivl.save(classifier(), path)
    whole = path.read_bytes()
    for size in (0, 5, 100, len(whole) - 1):
        path.write_bytes(whole[:size])
        for options in ([], ["--verify"], ["--tensors"]):
            assert "is not a whole safetensors file" in ends(show.main, capsys, path, *options)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    show.main([str(path)])
    assert "its sha256 is not that of its content" in ends(show.main, capsys, path, "--verify")
    entry = b'"cls_token"'
    assert whole.count(entry) == 1 and len(b'"pos_embed"') == len(entry)
    path.write_bytes(whole.replace(entry, b'"pos_embed"'))
    assert "'pos_embed' is in the header twice" in ends(show.main, capsys, path)


@pytest.mark.parametrize("value", [NAN, float("inf")])
def test_values_that_are_no_numbers(value: float, tmp_path: Path, caplog: pytest.LogCaptureFixture,
                                    capsys: pytest.CaptureFixture[str]) -> None:
    """A model of them loads, with a warning (what broke a training can be looked at); conversion refuses them."""
    model = classifier()
    with torch.no_grad():
        model.blocks[1].mlp.fc1.weight[3, 2] = value
    minivl.save(model, tmp_path / "m.safetensors")
    minivl.load(tmp_path / "m.safetensors", verify=True)
    assert caplog.messages == [f"{tmp_path / 'm.safetensors'}: 1 tensors hold nan or infinite values: "
                               "blocks.1.mlp.fc1.weight"]
    state, config = source(tmp_path)
    state["blocks.1.mlp.fc1.weight"][3, 2] = value
    folder = _folder(tmp_path / "theirs")
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_bytes(config.read_bytes())
    caplog.clear()
    minivl.load(folder)  # of another library: named, too
    assert caplog.messages == [f"{folder}: 1 tensors hold nan or infinite values: blocks.1.mlp.fc1.weight"]
    save_file(state, tmp_path / "theirs.safetensors")
    line = ends(convert.main, capsys, tmp_path / "theirs.safetensors", tmp_path / "out.safetensors", "--config", config)
    assert "1 of its tensors hold nan or infinite values: blocks.1.mlp.fc1.weight" in line
    state["blocks.1.mlp.fc1.weight"].fill_(3e38)
    save_file(state, tmp_path / "theirs.safetensors")
    line = ends(convert.main, capsys, tmp_path / "theirs.safetensors", tmp_path / "out.safetensors", "--config", config)
    assert "computes nan or infinite values" in line and not (tmp_path / "out.safetensors").exists()


# -- what is converted ---------------------------------------------------------------------------------------

def source(folder: Path) -> tuple[dict[str, Tensor], Path]:
    """The tensors of a small ViT of timm's, and its config.json."""
    model = randomise(timm.create_model("vit_tiny_patch16_224", depth=2, img_size=32, num_classes=5), scale=0.05)
    save_config_for_hf(model, str(folder / "timm.json"), model_args={"depth": 2, "img_size": 32})
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}, folder / "timm.json"


@pytest.fixture()
def foreign(tmp_path: Path) -> tuple[Path, Path]:
    state, config = source(tmp_path)
    save_file(state, tmp_path / "theirs.safetensors")
    return tmp_path / "theirs.safetensors", config


def test_what_is_said_wrongly(foreign: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, config = foreign
    out = tmp_path / "out" / "mine.safetensors"
    out.parent.mkdir()
    out.write_bytes(b"mine")

    def line(*options: object) -> str:
        told = ends(convert.main, capsys, path, out, *options)
        assert [one.name for one in out.parent.iterdir()] == [out.name] and out.read_bytes() == b"mine"
        return told

    assert "its tensors do not fit family 'clip': they are of 'timm'" in line("--family", "clip")
    assert "no preset is called so; there are: vit_gigantic_patch14_224" in line("--name", "vit_gigantic_patch14")
    assert "no preset is called so; python -m weights.list --presets" in line("--name", "?")
    assert "is named vit_base_patch16_224, but its tensors have other" in line("--name", "vit_base_patch16_224")
    for text, reason in (("{}", "does not describe a model of family timm"), ('{"model_type": "vit"}', "family timm"),
                         ('{"architecture": "vit_base_patch16_224"}', "the tensors say"), ("[]", "no JSON object"),
                         ('{"architecture": "vit_tiny_patch16_224", "model_args": {"img_size": "x"}}', "is damaged"),
                         ('{"architecture": "vit_tiny_patch16_224", "pretrained_cfg": 5}', "is damaged"),
                         ('{"architecture": "vit_tiny_patch16_224", "model_args": [1]}', "is damaged")):
        (tmp_path / "other.json").write_text(text)
        assert reason in line("--config", tmp_path / "other.json"), text
    assert "/proc/nowhere" in ends(convert.main, capsys, path, "/proc/nowhere/o.safetensors", "--config", config)
    assert "Is a directory" in ends(convert.main, capsys, path, _folder(tmp_path / "f.safetensors"), "--config", config)
    convert.main([str(path), str(out), "--config", str(config)])
    assert isinstance(minivl.load(out, verify=True), ViT)  # the old file is replaced


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def test_a_conversion_that_does_not_verify_leaves_nothing(foreign: tuple[Path, Path], tmp_path: Path,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out" / "mine.safetensors"
    honest = convert.outputs
    monkeypatch.setattr(convert.reference, "answers", lambda *given: None)
    monkeypatch.setattr(convert, "outputs", lambda model: {name: 2 * one for name, one in honest(model).items()})
    with pytest.raises(minivl.InputError, match="does not compute what self computed") as caught:
        convert.convert_file(foreign[0], out, config=foreign[1])
    assert str(caught.value).startswith(f"{foreign[0]}: does") and not list(out.parent.iterdir())


def test_tokenizers_of_another_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = reference({})
    model.save_pretrained(tmp_path / "captioner")
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\n")
    line = ends(convert.main, capsys, tmp_path / "captioner", tmp_path / "o.safetensors", "--tokenizer",
                tmp_path / "vocab.txt")
    assert line.endswith("the tokenizer has 7 entries, the decoder 23") and not (tmp_path / "o.safetensors").exists()


@pytest.mark.parametrize("name", ["1000000000", "100000", "9" * 5000])
def test_a_block_of_a_huge_number(name: str, tmp_path: Path) -> None:
    """Models are not built to be told that a billion blocks are missing."""
    state, _ = source(tmp_path)
    state[f"blocks.{name}.norm1.weight"] = torch.ones(192)
    with pytest.raises(minivl.InputError, match="that many blocks in a file of 33 tensors|5020 characters long"):
        minivl.from_state_dict(state, config={"num_heads": 3})


class Trap:
    """What a pickle runs when it is opened carelessly."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def test_files_that_are_no_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state, _ = source(tmp_path)
    sprung = tmp_path / "sprung"
    trap = {"model": state, "optimizer": Trap(sprung)}

    def zipped(name: str) -> bytes:
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as opened:
            opened.writestr(name, bytes(1 << 25))
        return content.getvalue()

    def saved(value: object, **options: Any) -> bytes:
        content = io.BytesIO()
        torch.save(value, content, **options)
        return content.getvalue()

    arrays = io.BytesIO()
    numpy.savez(arrays, a=numpy.array([Trap(sprung)], dtype=object))
    script = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, its archives are there
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), script)
    cases: dict[str, tuple[bytes, str]] = {
        "empty.pth": (b"", "is an empty file"), "page.pth": (b"<!DOCTYPE html><html>log in", "is an HTML page"),
        "bomb.pth": (zipped("archive/data.pkl"), "has compressed members"),
        "bomb.npz": (zipped("a.npy"), "more than 64 times the file"),
        "trap.pth": (saved(trap), "its pickle asks for posix.mkdir"),
        "old.pth": (saved(trap, _use_new_zipfile_serialization=False), "its pickle asks for posix.mkdir"),
        "trap.npz": (arrays.getvalue(), "holds Python objects"), "script.pt": (script.getvalue(), "of no known family"),
        "x.h5": (b"\x89HDF", "is none of .safetensors"), "some.pth": (saved([1]), "holds a list")}
    for name, (content, reason) in cases.items():
        (tmp_path / name).write_bytes(content)
        line = ends(convert.main, capsys, tmp_path / name, tmp_path / "out.safetensors")
        assert line.startswith(f"error: {tmp_path / name}: ") and reason in line, line
        assert not (tmp_path / "out.safetensors").exists() and not sprung.exists()


def test_folders_that_are_no_models(foreign: tuple[Path, Path], tmp_path: Path,
                                    capsys: pytest.CaptureFixture[str]) -> None:
    folder = _folder(tmp_path / "folder")
    refused(folder, "is a folder without a config.json")
    assert "has no weights" in ends(convert.main, capsys, folder, tmp_path / "out.safetensors")
    (folder / "model.safetensors").write_bytes(foreign[0].read_bytes())
    assert "no preset has these shapes" in ends(convert.main, capsys, folder, tmp_path / "out.safetensors")
    (folder / "config.json").write_text("[]")
    with pytest.raises(minivl.InputError, match="config.json: is no JSON object"):
        minivl.load(folder)
    (folder / "config.json").write_bytes(foreign[1].read_bytes())
    minivl.load(folder)
    means: dict[str, Any] = {"image_mean": [0, 0, 0], "image_std": [1, 1, 1]}
    for told in ([], {**means, "size": {"height": "a", "width": 3}}, {**means, "size": {"height": -1, "width": 0}},
                 {**means, "size": 32, "resample": []}, {"size": 32, "image_mean": "abc", "image_std": [0, 0, 0]}):
        (folder / "preprocessor_config.json").write_text(json.dumps(told))
        with pytest.raises(minivl.InputError) as caught:
            minivl.load(folder)
        assert str(caught.value).startswith(str(folder)) and "\n" not in str(caught.value)
    (folder / "preprocessor_config.json").unlink()
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "lost.safetensors"}}))
    with pytest.raises(minivl.InputError, match="names lost.safetensors, missing beside it"):
        minivl.load(folder)
