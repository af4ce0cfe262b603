"""minivl.load and the programs on repositories as timm, transformers and open_clip write them, from a hub."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import test_blip
import test_vit_gpt2
import timm
import torch
import transformers
from captioner_references import pixels, words
from clip_references import model_cfg, of_open_clip, of_transformers, pictures, texts
from hub_server import ROOT, Hub
from open_clip.tokenizer import SimpleTokenizer
from random_models import randomise
from references import random_reference
from safetensors.torch import save_file
from test_published_tokenizers import CLIP_FILE, write_bert, write_byte_pairs, write_gpt2
from test_weights_convert import VIT
from timm.models._hub import save_for_hf
from torch import Tensor, nn

import minivl
from minivl.data.scenes import scene
from minivl.models.presets import PRESETS

CAPTIONS = ["a dog runs on the grass", "two cats sleep near the red ball"]
LABELS = {0: "cat", 1: "dog", 2: "owl"}
TINY, DEIT = "vit_tiny_patch16_224", "deit_tiny_patch16_224"
# a process that loads models and runs programs as they run by themselves: exit code, output and complaints
WORKER = """
import contextlib, io, json, runpy, sys
import minivl
answers, complaints = sys.stdout, io.StringIO()
for line in sys.stdin:
    asked, told = json.loads(line), io.StringIO()
    complaints.seek(0), complaints.truncate()
    code = 0
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(complaints):
        try:
            if "load" in asked:
                minivl.save(minivl.load(asked["load"]), asked["out"])
            else:
                sys.argv = ["program", *asked["argv"]]
                module = asked["module"]
                runpy.run_path(module, run_name="__main__") if module.endswith(".py") else runpy.run_module(
                    module, run_name="__main__")
        except minivl.InputError as error:
            code, told = "InputError", io.StringIO(str(error))
        except SystemExit as end:
            code = end.code
    print(json.dumps([code, told.getvalue(), complaints.getvalue()]), file=answers, flush=True)
"""


class Worker:
    """A process that asks this hub only; ends with its block."""

    def __init__(self, hub: Hub, home: Path, **more: str) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", WORKER], cwd=ROOT, stdin=subprocess.PIPE, text=True,
                                        stdout=subprocess.PIPE, bufsize=1,
                                        env={**hub.environment(home, **more), "OMP_NUM_THREADS": "1"})

    def ask(self, **asked: Any) -> tuple[int | str, str, str]:
        assert self.process.stdin is not None and self.process.stdout is not None
        print(json.dumps(asked), file=self.process.stdin, flush=True)
        code, out, err = json.loads(self.process.stdout.readline())
        return code, out, err

    def load(self, id: str, out: Path) -> Any:
        """The model as the process loaded it, through a file of ours."""
        code, told, _ = self.ask(load=id, out=str(out))
        assert code == 0, told
        return minivl.load(out, verify=True)

    def refused(self, id: str) -> str:
        code, line, _ = self.ask(load=id, out="never.safetensors")
        assert code == "InputError" and "\n" not in line, (code, line)
        return line

    def mistake(self, module: str, *argv: object) -> str:
        """The one line with which a program ends; what came before it is notes and progress, no traceback."""
        code, out, err = self.ask(module=module, argv=[str(one) for one in argv])
        line = err.rstrip("\n").split("\n")[-1]
        assert (code, out) == (2, "") and line.startswith("error: ") and "Traceback" not in err, (code, out, err)
        return line

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.communicate(timeout=30)


# -- repositories --------------------------------------------------------------------------------------------

def timm_vit(folder: Path) -> nn.Module:
    model = randomise(timm.create_model(TINY, depth=2, img_size=32, num_classes=5))
    save_for_hf(model, folder, model_args={"depth": 2, "img_size": 32}, safe_serialization=True)
    return model


def tiny_vit(folder: Path) -> nn.Module:
    """The smallest published size, under its name."""
    model = randomise(timm.create_model(TINY), scale=0.05)
    save_for_hf(model, folder, safe_serialization=True)
    return model


def hf_vit(folder: Path) -> nn.Module:
    model = random_reference(transformers.ViTForImageClassification, transformers.ViTConfig(**VIT, id2label=LABELS))
    model.save_pretrained(folder)
    transformers.ViTImageProcessorPil(size={"height": 32, "width": 32}, image_mean=[.5, .4, .3]).save_pretrained(folder)
    return model


def hf_clip(folder: Path) -> nn.Module:
    """With CLIP's real vocabulary, in the two files it is published in."""
    pieces = SimpleTokenizer(str(CLIP_FILE))
    respelled = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocab = {respelled.get(token, token): id for token, id in pieces.encoder.items()}
    model = of_transformers(text={"vocab_size": len(vocab), "bos_token_id": 49406, "eos_token_id": 49407})
    model.save_pretrained(folder)
    write_byte_pairs(folder, vocab, list(pieces.bpe_ranks))
    transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder)
    return model


def open_clip(folder: Path) -> nn.Module:
    model = of_open_clip()
    folder.mkdir(parents=True)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({
        "model_cfg": model_cfg(), "preprocess_cfg": {"mean": [.5, .5, .5], "std": [.2, .2, .2]}}))
    return model


def blip(folder: Path) -> nn.Module:
    """With BERT's vocab.txt; its two more tokens stand in the map beside it, as in BLIP's repositories."""
    write_bert(folder, CAPTIONS, 80)
    size = len((folder / "vocab.txt").read_text().split())
    named = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    (folder / "special_tokens_map.json").write_text(json.dumps(
        {**named, "bos_token": "[DEC]", "additional_special_tokens": ["[ENC]"]}))
    model = test_blip.reference({"text": {"vocab_size": size + 2, "bos_token_id": size, "sep_token_id": 3}})
    model.save_pretrained(folder)
    transformers.BlipImageProcessorPil(size={"height": 12, "width": 12}).save_pretrained(folder)
    return model


def vit_gpt2(folder: Path) -> nn.Module:
    write_gpt2(folder, CAPTIONS, 300)
    size = len(json.loads((folder / "vocab.json").read_text()))
    roles = {name: size - 1 for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model = test_vit_gpt2.reference({"text": {"vocab_size": size, **roles},
                                     "roles": {**roles, "decoder_start_token_id": size - 1}})
    model.save_pretrained(folder)
    transformers.ViTImageProcessorPil(size={"height": 12, "width": 12}).save_pretrained(folder)
    return model


def pickled(folder: Path) -> nn.Module:
    model = hf_vit(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return model


KINDS: dict[str, Callable[[Path], nn.Module]] = {
    "acme/vit-of-timm": timm_vit, "acme/vit-of-hf": hf_vit, "acme/clip-of-hf": hf_clip,
    "acme/clip-of-open-clip": open_clip, "acme/blip": blip, "acme/vit-gpt2": vit_gpt2}
PICKLE = "acme/old-vit"


class World:
    """The hub, what is on it, and the files of the models that were loaded from it."""

    def __init__(self, hub: Hub, home: Path) -> None:
        self.hub, self.home = hub, home
        self.models = {id: make(hub.folder / id) for id, make in KINDS.items()}
        self.models[PICKLE] = pickled(hub.folder / PICKLE)
        self.models[TINY] = tiny_vit(hub.folder / str(PRESETS[TINY].hub))
        timm_vit(hub.folder / str(PRESETS[DEIT].hub))  # not what the name says
        timm_vit(hub.folder / "acme/gated")
        hub.gated.add("acme/gated")

    def file(self, id: str) -> Path:
        return self.home / f"{id.replace('/', '--')}.safetensors"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with Hub(tmp_path_factory.mktemp("hub")) as hub:
        yield World(hub, tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def worker(world: World) -> Iterator[Worker]:
    with Worker(world.hub, world.home) as worker:
        yield worker


# -- what is loaded ------------------------------------------------------------------------------------------

def close(ours: Tensor, theirs: Tensor) -> None:
    assert theirs.std() > 0.01
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_classifiers(world: World, worker: Worker) -> None:
    images = pixels(2, (32, 32))
    for id in ("acme/vit-of-timm", "acme/vit-of-hf"):
        model, theirs = worker.load(id, world.file(id)), world.models[id](images)
        close(model(images), getattr(theirs, "logits", theirs))
        assert model.preprocessing.size == (32, 32)
    assert model.class_names == ("cat", "dog", "owl") and model.preprocessing.mean == (.5, .4, .3)


@torch.no_grad()
def test_clips(world: World, worker: Worker) -> None:
    id = "acme/clip-of-hf"
    model = worker.load(id, world.file(id))
    rows = [[49406, *model.tokenizer.encode(text), 49407] for text in ("a red dog", "two red cats")]
    ids = torch.tensor([row + [49407] * (9 - len(row)) for row in rows])
    reference = transformers.CLIPTokenizer.from_pretrained(world.hub.folder / id)
    assert [reference(text).input_ids for text in ("a red dog", "two red cats")] == rows
    close(model(pictures(), ids), world.models[id](input_ids=ids, pixel_values=pictures()).logits_per_image)
    assert model.preprocessing.size == (32, 32) and model.config.vision.resize == "hf"
    id = "acme/clip-of-open-clip"
    model = worker.load(id, world.file(id))
    close(model.encode_image(pictures()), world.models[id].encode_image(pictures()))
    close(model.encode_text(texts()), world.models[id].encode_text(texts()))
    assert model.preprocessing.std == (.2, .2, .2) and model.tokenizer is None


@torch.no_grad()
def test_captioners(world: World, worker: Worker) -> None:
    for id in ("acme/blip", "acme/vit-gpt2"):
        model, theirs = worker.load(id, world.file(id)), world.models[id]
        images, size = pixels(2), model.config.decoder.vocab_size
        ids = words(2, 7, size)
        more = {"input_ids": ids} if id == "acme/blip" else {"decoder_input_ids": ids}
        close(model(images, ids), theirs(pixel_values=images, **more).logits)
        assert model.tokenizer.vocab_size == size and model.tokenizer.bos_id == model.config.decoder.bos_id
        assert model.tokenizer.decode(model.tokenizer.encode("two cats sleep")).strip() == "two cats sleep"
        assert model.preprocessing.size == (12, 12) and len(model.caption(images, max_len=5)) == 2


@torch.no_grad()
def test_a_preset_brings_its_default_weights(world: World, worker: Worker) -> None:
    model = worker.load(TINY, world.file(TINY))
    assert any(line.startswith(f"GET /api/models/{PRESETS[TINY].hub}") for line in world.hub.requests)
    images = pixels(1, (224, 224))
    close(model(images), world.models[TINY](images))
    assert worker.refused(DEIT) == f"{DEIT}: is named {DEIT}, but its tensors have other shapes"


# -- pickles -------------------------------------------------------------------------------------------------

@torch.no_grad()
def test_a_pickle_is_converted_once(world: World, worker: Worker) -> None:
    line = worker.refused(PICKLE)
    assert line.endswith(f"only pytorch_model.bin: python -m weights.fetch {PICKLE}")
    code, out, err = worker.ask(module="weights.fetch", argv=[PICKLE])
    assert code == 0 and f"minivl.load('{PICKLE}') finds it" in out, err
    assert "fingerprint by transformers" in out
    converted = world.home / "cache" / "minivl" / "weights" / f"{PICKLE.replace('/', '--')}.safetensors"
    assert [file.name for file in converted.parent.iterdir()] == [converted.name]
    minivl.load(converted, verify=True)
    model, images = worker.load(PICKLE, world.file(PICKLE)), pixels(2, (32, 32))
    close(model(images), world.models[PICKLE](images).logits)
    assert model.class_names == ("cat", "dog", "owl") and model.preprocessing.mean == (.5, .4, .3)


def test_fetch_of_safetensors_and_of_a_preset(worker: Worker) -> None:
    for name, id in (("acme/vit-of-hf", "acme/vit-of-hf"), (TINY, PRESETS[TINY].hub)):
        code, out, _ = worker.ask(module="weights.fetch", argv=[name])
        assert code == 0 and out.endswith(f": safetensors, minivl.load('{id}') finds them\n")


def test_offline_afterwards(world: World, worker: Worker, tmp_path: Path) -> None:
    """All of it again, out of the caches, byte for byte; nothing is asked."""
    assert worker.ask(module="weights.fetch", argv=[PICKLE])[0] == 0
    for id in (*KINDS, TINY, PICKLE):
        if not world.file(id).exists():
            worker.load(id, world.file(id))
    before = len(world.hub.requests)
    with Worker(world.hub, world.home, HF_HUB_OFFLINE="1") as offline:
        for id in (*KINDS, TINY, PICKLE):
            offline.load(id, tmp_path / "again.safetensors")
            assert (tmp_path / "again.safetensors").read_bytes() == world.file(id).read_bytes(), id
        line = offline.mistake("weights.fetch", "acme/new")
    assert line == "error: acme/new: HF_HUB_OFFLINE is set, and the cache does not have revision 'main'"
    assert len(world.hub.requests) == before


# -- mistakes ------------------------------------------------------------------------------------------------

def test_what_is_not_there(world: World, worker: Worker, tmp_path: Path) -> None:
    scene(0).image.save(tmp_path / "photo.png")

    def everywhere(worker: Worker, id: str, reason: str) -> None:
        draw = ["attention", "--weights", id, tmp_path / "photo.png", "--out", tmp_path / "pictures"]
        for line in (worker.mistake("weights.fetch", id), worker.mistake("viz.py", *draw)):
            assert id in line and reason in line, line
        assert not (tmp_path / "pictures").exists()

    everywhere(worker, "acme/typo", f"no such model at {world.hub.url}; a private or gated one needs a token")
    everywhere(worker, "acme/gated", f"is gated: agree to its terms at {world.hub.url}/acme/gated")
    assert "acme/typo: no such file; as a hub id: no such model" in worker.refused("acme/typo")
    line = worker.refused("acme/vit/extra")
    assert line.startswith("acme/vit/extra: no such file") and line.endswith("a hub id is owner/name")
    assert "neither a hub id (owner/name) nor a preset" in worker.mistake("weights.fetch", "acme/vit/extra")
    nowhere = Hub(tmp_path / "hub")
    nowhere._server.server_close()
    with Worker(nowhere, tmp_path / "home") as alone:
        everywhere(alone, "acme/vit", f"no connection to {nowhere.url} (")


def test_draws_what_the_hub_has(worker: Worker, tmp_path: Path) -> None:
    scene(0).image.save(tmp_path / "photo.png")
    code, _, err = worker.ask(module="viz.py", argv=["attention", "--weights", "acme/vit-of-hf", "--out",
                                                     str(tmp_path / "out"), str(tmp_path / "photo.png")])
    assert code == 0, err
    assert (tmp_path / "out" / "photo.png").stat().st_size > 1000
