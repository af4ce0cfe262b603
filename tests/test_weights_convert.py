"""weights.convert, show and list: from a published file to ours, with a receipt, a fingerprint, and clear refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from random_models import randomise
from references import random_reference
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from timm.models._hub import save_config_for_hf
from torch import Tensor, nn

import minivl
from minivl.fingerprint import TOLERANCE, check_fingerprint, fingerprint, outputs, probe, traits
from minivl.models.vit import ViT
from weights import convert
from weights import list as listing
from weights import show

VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
       "image_size": 32, "patch_size": 8, "num_labels": 3}


@pytest.fixture()
def folder(tmp_path: Path) -> Path:
    """A repository of transformers: a ViT with its processor."""
    config = transformers.ViTConfig(**VIT, id2label={0: "cat", 1: "dog", 2: "owl"})
    path = tmp_path / "repository"
    random_reference(transformers.ViTForImageClassification, config).save_pretrained(path)
    (path / "preprocessor_config.json").write_text(json.dumps({
        "do_resize": True, "size": {"height": 32, "width": 32}, "resample": 2, "do_normalize": True,
        "image_mean": [.5, .4, .3], "image_std": [.2, .3, .4]}))
    return path


def told(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    convert.main([*map(str, arguments), "--json"])
    return json.loads(capsys.readouterr().out)


def header(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as opened:
        return json.loads(opened.metadata()["minivl"])


def images() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


# -- what is written -----------------------------------------------------------------------------------------

def test_a_folder_of_the_hub(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "mine.safetensors"
    result = told(capsys, folder, out)
    model = minivl.load(out, verify=True)
    theirs = transformers.ViTForImageClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(images()), theirs(images()).logits, atol=1e-5, rtol=1e-5)
    assert model.class_names == ("cat", "dog", "owl")
    assert (model.preprocessing.mode, model.preprocessing.mean) == ("squash", (.5, .4, .3))
    assert result["family"] == "hf_vit" and result["fingerprint"].startswith("transformers ")
    source = load_file(folder / "model.safetensors")
    assert len(result["receipt"]) == len(source) and all("->" in line for line in result["receipt"])
    about = header(out)["about"]
    assert about["source"] == "model.safetensors" and len(about["source_sha256"]) == 64
    assert set(about["fingerprint"]["values"]) == {"tokens", "logits"}
    assert about["fingerprint"]["eps"] == [1e-12] and about["fingerprint"]["act"] == ["gelu"]
    torch.testing.assert_close(minivl.load(folder)(images()), model(images()), atol=0, rtol=0)


def test_every_kind_of_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = randomise(timm.create_model("deit_tiny_patch16_224"), scale=0.05).state_dict()
    results = []
    for suffix in (".safetensors", ".pth", ".pt", ".bin"):
        source, out = tmp_path / f"deit_tiny_patch16_224{suffix}", tmp_path / f"out{suffix[1:]}.safetensors"
        if suffix == ".safetensors":
            save_file(state, source)
        else:
            torch.save({"model": state, "epoch": 3} if suffix == ".pth" else state, source)
        result = told(capsys, source, out)
        assert result["preset"] == "deit_tiny_patch16_224" and result["fingerprint"].startswith("timm ")
        results.append(minivl.load(out, verify=True).state_dict())
    for one in results[1:]:
        assert all(map(torch.equal, results[0].values(), one.values()))


def test_a_description_beside_a_bare_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = randomise(timm.create_model("vit_tiny_patch16_224", num_classes=5))
    save_file(theirs.state_dict(), tmp_path / "m.safetensors")
    with pytest.raises(minivl.InputError, match="several presets fit"):
        convert.convert_file(tmp_path / "m.safetensors", tmp_path / "out.safetensors")
    save_config_for_hf(theirs, str(tmp_path / "timm.json"))
    told(capsys, tmp_path / "m.safetensors", tmp_path / "out.safetensors", "--config", tmp_path / "timm.json")
    assert minivl.load(tmp_path / "out.safetensors", verify=True).preprocessing.mean == (.5, .5, .5)
    told(capsys, tmp_path / "m.safetensors", tmp_path / "out.safetensors", "--name", "deit_tiny_patch16_224")
    assert minivl.load(tmp_path / "out.safetensors").preprocessing.mean == (.485, .456, .406)


def test_the_receipt_is_for_people(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert.main([str(folder), str(tmp_path / "o.safetensors")])
    whole = capsys.readouterr().out
    convert.main([str(folder), str(tmp_path / "o.safetensors"), "--quiet"])
    brief = capsys.readouterr().out
    assert "-> head.weight" in whole and "->" not in brief
    assert "0 dropped by rule" in brief and "fingerprint by transformers" in brief and "3 " not in brief.split("\n")[0]


# -- fingerprints --------------------------------------------------------------------------------------------

def changed(path: Path, target: Path, **changes: Any) -> Path:
    """The same file with other fields in its config and a sha256 that fits: what a careless hand may do."""
    model = minivl.load(path)
    told = header(path)
    other = ViT(type(model.config)(**{**told["config"], **changes}), preprocessing=model.preprocessing)
    other.load_state_dict(model.state_dict())
    minivl.save(other, target, about=told["about"])
    return target


@pytest.mark.parametrize("changes, trait", [({"act": "quick_gelu"}, "act"), ({"eps": 1e-6}, "eps"),
                                            ({"act": "gelu_tanh"}, "act"), ({"eps": 1e-5}, "eps")])
def test_fields_are_compared(folder: Path, tmp_path: Path, changes: dict[str, Any], trait: str) -> None:
    convert.convert_file(folder, tmp_path / "a.safetensors")
    other = changed(tmp_path / "a.safetensors", tmp_path / "b.safetensors", **changes)
    minivl.load(other)  # all tensors fit
    with pytest.raises(minivl.InputError, match=f"{trait} is") as caught:
        minivl.load(other, verify=True)
    assert str(caught.value).startswith(str(other))


@pytest.mark.shared
@pytest.mark.parametrize("changes", [{"act": "quick_gelu"}, {"act": "gelu_tanh"}, {"eps": 1e-12}, {"eps": 1e-5}])
def test_behaviour_shows_what_fields_hide(shared: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    """On trained weights the outputs alone tell a wrong activation and a wrong eps, far above what is noise."""
    real = minivl.load(shared / "weights" / "deit_tiny_patch16_224.timm.safetensors")
    mark = fingerprint(real, outputs(real), "self")
    other = minivl.from_state_dict(load_file(shared / "weights" / "deit_tiny_patch16_224.timm.safetensors"),
                                   name="deit_tiny_patch16_224", config=changes)
    hidden = {**mark, **traits(other)}
    assert max(check_fingerprint(real, mark, "x").values()) <= TOLERANCE / 10
    with pytest.raises(minivl.InputError, match="does not compute"):
        check_fingerprint(other, hidden, "x")


def swapped(model: ViT) -> None:
    attn = model.blocks[1].attn
    attn.q_proj, attn.k_proj = attn.k_proj, attn.q_proj


def transposed(model: ViT) -> None:
    with torch.no_grad():
        model.blocks[0].attn.v_proj.weight.copy_(model.blocks[0].attn.v_proj.weight.T.clone())


@pytest.mark.parametrize("change", [swapped, transposed])
def test_wrong_wires_that_fit_are_caught(change: Any) -> None:
    """Queries for keys, a square matrix transposed: no shape tells."""
    model = minivl.create("vit_tiny_patch16_224", depth=2, image_size=64, num_classes=5)
    randomise(model)
    mark = json.loads(json.dumps(fingerprint(model, outputs(model), "self")))
    check_fingerprint(model, mark, "x")
    change(model)
    with pytest.raises(minivl.InputError, match="does not compute"):
        check_fingerprint(model, mark, "x")


def test_the_probe_holds_tokens_that_are_nearly_the_same() -> None:
    model = minivl.create("vit_tiny_patch16_224", depth=1)
    given = probe(model)["images"]
    assert torch.equal(given, probe(model)["images"]) and given[0].std() > 0.9 and given[1].std() < 2e-3


@pytest.mark.parametrize("damage", [{}, {"by": "x"}, {"values": {}}, {"values": {"logits": ["x"]}},
                                    {"values": {"nothing": [1.0] * 64}}, {"values": {"logits": [1.0]}}])
def test_a_damaged_fingerprint(damage: dict[str, Any]) -> None:
    model = minivl.create("vit_tiny_patch16_224", depth=1, image_size=32)
    whole = fingerprint(model, outputs(model), "self")
    with pytest.raises(minivl.InputError):
        check_fingerprint(model, {**{key: whole[key] for key in ("act", "eps", "norm")}, **damage}, "x")


# -- refusals ------------------------------------------------------------------------------------------------

def test_nothing_is_written_when_something_is_wrong(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    state = load_file(folder / "model.safetensors")

    def refuse(match: str, source: Path = folder, **options: Any) -> None:
        before = out.read_bytes() if out.exists() else None
        with pytest.raises(minivl.InputError, match=match) as caught:
            convert.convert_file(source, out, **options)
        assert "\n" not in str(caught.value)
        assert (out.read_bytes() if out.exists() else None) == before

    out.write_bytes(b"mine")
    refuse("no such file", tmp_path / "nothing.pth")
    refuse("no JSON object", config=_json(tmp_path / "list.json", []))
    refuse("is not JSON", config=_text(tmp_path / "bad.json", "{"))
    refuse("the tensors say", config=_json(tmp_path / "c.json", {"model_type": "vit", **VIT, "hidden_size": 64}))
    save_file({**state, "extra": torch.zeros(2)}, folder / "model.safetensors")
    refuse("1 unexpected: extra")
    save_file({key: value for key, value in state.items() if key != "vit.layernorm.bias"}, folder / "model.safetensors")
    refuse("1 missing: vit.layernorm.bias")
    refuse("unknown family|tensors do not fit|missing", family="timm")
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-9])
    refuse("model.safetensors")
    (folder / "model.safetensors").unlink()
    refuse("no weights")
    with pytest.raises(minivl.InputError, match="OUT must end"):
        convert.convert_file(folder, tmp_path / "out.pth")


def _json(path: Path, value: Any) -> Path:
    return _text(path, json.dumps(value))


def _text(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_out_is_not_source(folder: Path) -> None:
    source = folder / "model.safetensors"
    before = source.read_bytes()
    with pytest.raises(minivl.InputError, match="OUT is SOURCE"):
        convert.convert_file(source, source)
    assert source.read_bytes() == before


def test_load_names_the_way_to_convert_a_pickle(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "m.pth")
    with pytest.raises(minivl.InputError, match="python -m weights.convert"):
        minivl.load(tmp_path / "m.pth")


# -- show and list -------------------------------------------------------------------------------------------

def test_show(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "o.safetensors"
    convert.convert_file(folder, out)
    show.main([str(out), "--tensors", "--verify"])
    text = capsys.readouterr().out
    assert "verified: sha256 and fingerprint" in text and 'resize: "hf"' in text and "head.weight (3, 32)" in text
    show.main([str(out), "--json"])
    assert json.loads(capsys.readouterr().out)["header"] == header(out)
    show.main([str(folder / "model.safetensors")])
    assert "not written by minivl.save" in capsys.readouterr().out


def test_list(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
              capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MINIVL_WEIGHTS", str(tmp_path / "named"))
    convert.convert_file(folder, tmp_path / "named" / "pets.v1.safetensors")
    shutil.copy(folder / "model.safetensors", tmp_path / "named" / "foreign.safetensors")
    (tmp_path / "named" / "broken.safetensors").write_bytes(b"x" * 40)
    listing.main(["--json"])
    found = json.loads(capsys.readouterr().out)["weights"]
    assert (found["pets.v1"]["kind"], found["pets.v1"]["family"]) == ("vit", "hf_vit")
    assert found["foreign"]["kind"] == "foreign" and found["broken"]["kind"].startswith("damaged")
    assert found["scenes-captioner"]["kind"] == "captioner"
    listing.main(["--presets"])
    text = capsys.readouterr().out
    assert "google/vit-base-patch16-384" in text and "vit_base_patch16_224" in text and "pets.v1" in text


def test_reference_traits_read_any_library() -> None:
    theirs: nn.Module = timm.create_model("vit_tiny_patch16_224", depth=1)
    assert traits(theirs) == {"act": ["gelu"], "eps": [1e-6]}
    config = transformers.CLIPConfig(vision_config={"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2,
                                                    "intermediate_size": 32},
                                     text_config={"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2,
                                                  "intermediate_size": 32, "vocab_size": 99})
    assert traits(transformers.CLIPModel(config)) == {"act": ["quick_gelu"], "eps": [1e-5]}
