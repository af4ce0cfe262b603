"""Saving and loading: bit for bit, complete alone, and nothing wrong gets through."""

from __future__ import annotations

import errno
import json
import logging
from pathlib import Path

import pytest
import timm
import tiny_run
import torch
from random_models import ENCODER, SIZES, captioner, pictures, randomise, texts
from safetensors.torch import save_file

import minivl
from minivl import files, loading
from minivl.images import Preprocessing
from minivl.models.captioner import Captioner, CaptionerConfig
from minivl.models.decoder import DecoderConfig
from minivl.models.vit import ViT, ViTConfig
from minivl.text.tokenizer import Tokenizer

SETTINGS = Preprocessing((12, 8), (0.1, 0.2, 0.3), (0.4, 0.5, 0.7), crop_pct=0.9, interpolation="bilinear")
NOTES = {"layer": 1, "heads": [0, 3], "data": "scenes", "rates": {"b": 0.1, "a": 1e-5}, 10: "ten", 9: None}


def classifier(seed: int = 0, **changes: object) -> ViT:
    fields = {**vars(ENCODER), "num_classes": 3, "act": "gelu_tanh", "eps": 1e-3, **changes}
    model = ViT(ViTConfig(**fields), preprocessing=SETTINGS, class_names=("cat", "dög", "a \"b\""))
    randomise(model, seed)
    return model


def speaker(**changes: object) -> Captioner:
    tokenizer = Tokenizer.train(["a red dog's tail", "two dogs"])
    decoder = DecoderConfig(**{**SIZES, "vocab_size": tokenizer.vocab_size, **changes})
    model = Captioner(CaptionerConfig(ENCODER, decoder), tokenizer=tokenizer, preprocessing=SETTINGS,
                      notes=NOTES)
    randomise(model, 1)
    return model


def identical(one: torch.nn.Module, other: torch.nn.Module) -> None:
    first, second = one.state_dict(), other.state_dict()
    assert list(first) == list(second)
    for name in first:
        assert first[name].dtype == second[name].dtype and torch.equal(first[name], second[name]), name


# -- there and back ------------------------------------------------------------------------------------------

@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_a_classifier_comes_back(dtype: torch.dtype, tmp_path: Path) -> None:
    model = classifier().to(dtype)
    minivl.save(model, tmp_path / "m.safetensors")
    model.eval()
    loaded = minivl.load(tmp_path / "m.safetensors", verify=True)
    identical(model, loaded)
    assert type(loaded) is ViT and not loaded.training
    assert (loaded.config, loaded.preprocessing, loaded.class_names) \
        == (model.config, model.preprocessing, model.class_names)
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    images = pictures().to(dtype)
    assert torch.equal(model(images), loaded(images))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("changes", [{}, {"positions": "sinusoidal", "norm": "post"}, {"tied": True}])
@torch.no_grad()
def test_a_captioner_comes_back(changes: dict[str, object], dtype: torch.dtype, tmp_path: Path) -> None:
    model = speaker(**changes).to(dtype)
    minivl.save(model, tmp_path / "m.safetensors")
    loaded = minivl.load(tmp_path / "m.safetensors", verify=True)
    identical(model, loaded)
    assert type(loaded) is Captioner and not loaded.training
    assert (loaded.config, loaded.preprocessing) == (model.config, model.preprocessing)
    assert loaded.notes == json.loads(json.dumps(NOTES))
    assert loaded.tokenizer.to_json() == model.tokenizer.to_json()
    images, ids = pictures().to(dtype), texts(2, 6, 10)
    assert torch.equal(model(images, ids), loaded(images, ids))
    assert model.caption(images, max_len=6) == loaded.caption(images, max_len=6)
    first = (tmp_path / "m.safetensors").read_bytes()
    minivl.save(loaded, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == first  # and the file is the same


def test_a_model_without_anything_comes_back(tmp_path: Path) -> None:
    for model in (captioner(), ViT(ENCODER)):
        minivl.save(model, tmp_path / "m.safetensors")
        loaded = minivl.load(tmp_path / "m.safetensors", verify=True)
        identical(model, loaded)
        assert loaded.preprocessing is None and not getattr(loaded, "notes", None)


def test_converted_weights_come_back(tmp_path: Path) -> None:
    theirs = randomise(timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, num_classes=7))
    model = minivl.from_state_dict(theirs.state_dict(), config={"num_heads": 3})
    minivl.save(model, tmp_path / "m.safetensors")
    identical(model, minivl.load(tmp_path / "m.safetensors", verify=True))


def test_the_stem_of_a_file_of_ours_means_nothing(tmp_path: Path) -> None:
    minivl.save(classifier(), tmp_path / "vit_tiny_patch16_224.safetensors")
    assert minivl.load(tmp_path / "vit_tiny_patch16_224.safetensors").config == classifier().config


def test_the_file_tells_all_in_json(tmp_path: Path) -> None:
    minivl.save(classifier(), tmp_path / "m.safetensors")
    shapes, header = files.read_header(tmp_path / "m.safetensors")
    told = json.loads(header["minivl"])
    assert shapes["head.weight"] == (3, 24) and told["config"]["eps"] == 1e-3 and len(told["sha256"]) == 64
    assert told["class_names"] == list(classifier().class_names) and told["preprocessing"]["crop_pct"] == 0.9


# -- damaged files -------------------------------------------------------------------------------------------

def refused(file: Path, message: str | None = None, **options: object) -> str:
    with pytest.raises(minivl.InputError, match=message) as caught:
        minivl.load(file, **options)
    assert str(caught.value).startswith(str(file)) and "\n" not in str(caught.value)
    return str(caught.value)


def test_verify_finds_one_flipped_bit_anywhere(tmp_path: Path) -> None:
    file = tmp_path / "m.safetensors"
    minivl.save(speaker(), file)
    content = bytearray(file.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")  # of the tensors
    places = torch.linspace(start, len(content) - 1, 25).long().tolist()
    for place in places:
        content[place] ^= 1
        file.write_bytes(content)
        refused(file, "sha256", verify=True)
        content[place] ^= 1
    file.write_bytes(content)
    minivl.load(file, verify=True)


@pytest.mark.parametrize("old, new", [("gelu_tanh", "relu"), ("0.001", "0.01"), ("cat", "cot"),
                                      ("0.4", "0.5"), ("bilinear", "bicubic")])
def test_verify_finds_a_changed_header(old: str, new: str, tmp_path: Path) -> None:
    file = tmp_path / "m.safetensors"
    minivl.save(classifier(), file)
    tensors, header = files.read_tensors(file)
    assert header["minivl"].count(old) == 1
    files.write_tensors(file, tensors, {"minivl": header["minivl"].replace(old, new)})
    refused(file, "sha256", verify=True)
    minivl.load(file)  # asked for only


def test_verify_needs_a_sum_to_verify(tmp_path: Path) -> None:
    save_file(randomise(timm.create_model("deit_tiny_patch16_224", depth=12)).state_dict(),
              tmp_path / "deit_tiny_patch16_224.safetensors")
    refused(tmp_path / "deit_tiny_patch16_224.safetensors", "sha256", verify=True)


@pytest.mark.parametrize("change", [
    lambda told: told.pop("config"), lambda told: told.pop("sha256") and told.pop("kind"),
    lambda told: told["config"].pop("width"), lambda told: told["config"].update(wide=3),
    lambda told: told["config"].update(width="24"), lambda told: told["config"].update(width=-24),
    lambda told: told["config"].update(depth=3), lambda told: told["config"].update(num_heads=7),
    lambda told: told.update(config=[1, 2]), lambda told: told.update(kind="decoder"),
    lambda told: told.update(kind=3), lambda told: told.update(format=2),
    lambda told: told.update(format=None), lambda told: told.pop("preprocessing"),
    lambda told: told["preprocessing"].pop("mean"), lambda told: told.update(preprocessing=5),
    lambda told: told.update(class_names=5), lambda told: told.update(class_names=["a", "b"]),
    lambda told: told.update(kind="captioner"),
], ids=range(19))
def test_damaged_headers(change: object, tmp_path: Path) -> None:
    file = tmp_path / "m.safetensors"
    minivl.save(classifier(), file)
    tensors, header = files.read_tensors(file)
    told = json.loads(header["minivl"])
    change(told)
    files.write_tensors(file, tensors, {"minivl": json.dumps(told)})
    refused(file)


@pytest.mark.parametrize("text", ["", "{", "[]", "5", "null", '"x"', "{}"])
def test_headers_that_are_no_object(text: str, tmp_path: Path) -> None:
    file = tmp_path / "m.safetensors"
    files.write_tensors(file, classifier().state_dict(), {"minivl": text})
    refused(file, "header")


@pytest.mark.parametrize("tokenizer", ["no", "{}", 5, [1], {"a": 1}, "", 0, False, {}])
def test_damaged_tokenizers(tokenizer: object, tmp_path: Path) -> None:
    file = tmp_path / "m.safetensors"
    minivl.save(speaker(), file)
    tensors, header = files.read_tensors(file)
    told = {**json.loads(header["minivl"]), "tokenizer": tokenizer}
    files.write_tensors(file, tensors, {"minivl": json.dumps(told)})
    refused(file)


def test_tensors_that_do_not_fit_the_header(tmp_path: Path) -> None:
    file = tmp_path / "m.safetensors"
    minivl.save(classifier(), file)
    tensors, header = files.read_tensors(file)
    del tensors["blocks.0.attn.q_proj.bias"]
    tensors["extra"] = torch.zeros(2)
    tensors["head.weight"] = tensors["head.weight"].T
    files.write_tensors(file, tensors, header)
    message = refused(file, "do not fit")
    assert "1 missing: blocks.0.attn.q_proj.bias" in message and "1 unexpected: extra" in message
    assert "1 of another shape: head.weight (24, 3) instead of (3, 24)" in message


@pytest.mark.parametrize("content", [b"", b"no tensors here", b"PK\x03\x04" + bytes(100)])
def test_files_that_are_no_weights(content: bytes, tmp_path: Path) -> None:
    for name in ("m.safetensors", "m.pth"):
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, "safetensors")


def test_a_truncated_file(tmp_path: Path) -> None:
    file = tmp_path / "m.safetensors"
    minivl.save(classifier(), file)
    content = file.read_bytes()
    for length in (len(content) - 1, len(content) // 2, 100, 7):
        file.write_bytes(content[:length])
        refused(file, "safetensors")


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "sprung",)

    torch.save({"a": Trap()}, tmp_path / "m.pth")
    refused(tmp_path / "m.pth", "safetensors")
    assert not (tmp_path / "sprung").exists()


# -- saving --------------------------------------------------------------------------------------------------

def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "m.safetensors"
    minivl.save(classifier(0), file)
    before = file.read_bytes()

    def full(tensors: object, path: Path, metadata: object = None) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "save_file", full)
    for target in (file, tmp_path / "new.safetensors"):
        with pytest.raises(OSError):
            minivl.save(classifier(1), target)
    assert file.read_bytes() == before and [one.name for one in tmp_path.iterdir()] == ["m.safetensors"]


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    for name in ("m.pth", "m", "safetensors"):
        with pytest.raises(minivl.InputError, match=r"\.safetensors"):
            minivl.save(classifier(), tmp_path / name)
    with pytest.raises(minivl.InputError, match="Linear"):
        minivl.save(torch.nn.Linear(2, 2), tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())


# -- create --------------------------------------------------------------------------------------------------

def test_create() -> None:
    model = minivl.create("deit_tiny_patch16_224", num_classes=5, depth=2, image_size=(64, 32))
    assert model.config.num_classes == 5 and model.config.grid == (4, 2) and model.training
    assert model.preprocessing.size == (64, 32) and model.preprocessing.mean == (0.485, 0.456, 0.406)
    assert model(torch.randn(1, 3, 64, 32)).shape == (1, 5)
    assert minivl.create("scenes_patch8_96").config.num_classes == 0
    torch.manual_seed(3)
    first = minivl.create("vit_tiny_patch16_224", depth=1)
    torch.manual_seed(3)
    identical(first, minivl.create("vit_tiny_patch16_224", depth=1))


def test_create_lists_what_there_is() -> None:
    with pytest.raises(minivl.InputError, match="vit_tiny_patch_224.*known are, among.*vit_tiny_patch16_224"):
        minivl.create("vit_tiny_patch_224")
    with pytest.raises(minivl.InputError, match="hidden_size.*mlp_dim"):
        minivl.create("vit_tiny_patch16_224", hidden_size=3)


# -- num_classes ---------------------------------------------------------------------------------------------

def test_another_number_of_classes_is_another_head(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file, model = tmp_path / "m.safetensors", classifier().eval()
    minivl.save(model, file)
    with caplog.at_level(logging.INFO, logger="minivl"):
        same = minivl.load(file, num_classes=3)
        identical(model, same)
        assert same.class_names == model.class_names and not caplog.records
        other = minivl.load(file, num_classes=11)
    assert "11" in caplog.text and "3" in caplog.text
    assert other.config.num_classes == 11 and other.class_names is None and not other.training
    assert other.head.weight.std() > 0 and other(pictures()).shape == (2, 11)
    torch.testing.assert_close(other.encode(pictures()), model.encode(pictures()))
    headless = minivl.load(file, num_classes=0)
    torch.testing.assert_close(headless(pictures()), model.pool(model.encode(pictures())))
    minivl.save(other, tmp_path / "other.safetensors")
    identical(other, minivl.load(tmp_path / "other.safetensors", verify=True))
    minivl.save(classifier().bfloat16(), file)
    assert minivl.load(file, num_classes=4)(pictures().bfloat16()).dtype == torch.bfloat16
    with pytest.raises(minivl.InputError, match="num_classes"):
        minivl.load(file, num_classes=-1)


def test_a_captioner_has_no_classes(tmp_path: Path) -> None:
    minivl.save(speaker(), tmp_path / "m.safetensors")
    refused(tmp_path / "m.safetensors", "captioner", num_classes=3)


# -- where weights lie ---------------------------------------------------------------------------------------

def test_names_are_found_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("named", "weights", "minivl/_weights", "cache/minivl/weights")
    named, checkout, packaged, cache = folders = [tmp_path / name for name in names]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(loading, "__file__", str(tmp_path / "minivl" / "loading.py"))
    monkeypatch.setenv("MINIVL_WEIGHTS", str(named))
    monkeypatch.chdir(tmp_path)
    assert [one.resolve() for one in loading.weight_folders()] == [one.resolve() for one in folders]
    with pytest.raises(minivl.InputError, match="there are: none"):
        minivl.load("model.x")
    for seed, folder in reversed(list(enumerate(folders))):
        minivl.save(classifier(seed), folder / "model.x.safetensors")
        for name in ("model.x", "model.x.safetensors"):  # names may hold dots
            assert loading.find_weights(name) == folder / "model.x.safetensors"
        identical(minivl.load("model.x", verify=True), classifier(seed))
    minivl.save(classifier(9), checkout / "other.safetensors")
    with pytest.raises(minivl.InputError, match="modell: no such file.*model.x"):
        minivl.load("modell")
    monkeypatch.delenv("MINIVL_WEIGHTS")
    assert loading.find_weights("model.x") == checkout / "model.x.safetensors"
    minivl.save(classifier(8), tmp_path / "other.safetensors")
    assert loading.find_weights("other.safetensors") == Path("other.safetensors")  # a path goes before a name


def test_paths_are_not_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIVL_WEIGHTS", str(tmp_path))
    minivl.save(classifier(), tmp_path / "model.safetensors")
    for wrong in ("elsewhere/deep/model", "elsewhere/model.safetensors", "model.pth", tmp_path / "no.safetensors"):
        with pytest.raises(minivl.InputError, match="no such file") as caught:
            minivl.load(wrong)
        assert str(caught.value).startswith(str(wrong))
    with pytest.raises(minivl.InputError, match="folder"):
        minivl.load(tmp_path)


def test_what_a_training_leaves_is_told_apart(tmp_path: Path) -> None:
    """Its folder has a config.json, as folders of the hub have, and its checkpoint is safetensors, as weights are."""
    run = tmp_path / "run"
    tiny_run.train(run)
    assert (run / "config.json").is_file()
    with pytest.raises(minivl.InputError) as caught:
        minivl.load(run)
    assert str(caught.value) == f"{run}: is the folder of a training: give best.safetensors or last.safetensors in it"
    with pytest.raises(minivl.InputError) as caught:
        minivl.load(run / "checkpoint.safetensors")
    assert str(caught.value) == (f"{run / 'checkpoint.safetensors'}: is the state of a training, which --resume goes "
                                 "on from, and holds no whole model: "
                                 "give best.safetensors or last.safetensors beside it")
    assert minivl.load(run / "best.safetensors").kind == "captioner"
    (run / "model.safetensors").write_bytes(b"")
    assert loading.find_weights(run) == run  # as the hub has them, whatever else lies there
    (run / "model.safetensors").unlink()
    (run / "last.safetensors").unlink()
    with pytest.raises(minivl.InputError, match="is the folder of a training: give best.safetensors in it$"):
        loading.find_weights(run)
    (run / "best.safetensors").unlink()
    with pytest.raises(minivl.InputError, match="best.safetensors will lie beside it when its weights have been"):
        minivl.load(run / "checkpoint.safetensors")
