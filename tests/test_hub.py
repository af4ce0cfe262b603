"""Downloads from a hub on loopback, by programs of their own; and weights in several files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import ROOT, Hub, python
from safetensors.torch import save, save_file

from minivl.errors import InputError
from minivl.hub import cache_folder, converted, is_id, weights_name, weights_of

SNAPSHOT = "from minivl.hub import snapshot; print(snapshot('acme/tiny'))"
ANSWER = """
import json, sys, time
import torch
from minivl.errors import InputError
from minivl.hub import snapshot
time.sleep = lambda seconds: None  # between the library's attempts
for line in sys.stdin:
    try:
        answer = ["folder", str(snapshot(**json.loads(line)))]
    except (InputError, OSError) as error:
        answer = [type(error).__name__, str(error)]
    print(json.dumps(answer), flush=True)
"""


def weights(seed: int = 0, size: int = 8) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {"one": torch.randn(size, 3, generator=draw), "two": torch.randn(size, generator=draw).bfloat16()}


def repository(hub: Hub, id: str, files: Mapping[str, bytes | Mapping[str, Any]] | None = None) -> Path:
    """A repository of the hub; by default a config, a vocabulary, weights, and what nobody wants."""
    folder = hub.folder / id
    if files is None:
        files = {"config.json": {"width": 12}, "vocab.txt": b"a\nb\n", "model.safetensors": save(weights()),
                 "README.md": b"read me", "pytorch_model.bin": b"never", "tf_model.h5": b"never",
                 "onnx/config.json": {}, "trainer_state.json": {}}
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return folder


def sharded(parts: Mapping[str, Mapping[str, torch.Tensor]], **more: str) -> dict[str, bytes | dict[str, Any]]:
    """The files of weights in parts, with an index of them."""
    index = {name: part for part, tensors in parts.items() for name in tensors}
    return {"model.safetensors.index.json": {"metadata": {"total_size": 1}, "weight_map": {**index, **more}},
            **{part: save(dict(tensors)) for part, tensors in parts.items()}}


def cache(home: Path, id: str) -> Path:
    return home / "huggingface" / "hub" / f"models--{id.replace('/', '--')}"


def contents(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


class Asker:
    """A process that takes snapshots one after another, while the hub changes its manners."""

    def __init__(self, hub: Hub, home: Path, **more: str) -> None:
        self.home = home
        self.process = subprocess.Popen(
            [sys.executable, "-c", ANSWER], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, env={**hub.environment(home, **more), "OMP_NUM_THREADS": "1"})

    def ask(self, id: str, **options: Any) -> list[str]:
        """["folder", path], or the error's type and text."""
        assert self.process.stdin is not None and self.process.stdout is not None
        print(json.dumps({"id": id, **options}), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def folder(self, id: str, **options: Any) -> Path:
        kind, path = self.ask(id, **options)
        assert kind == "folder", path
        return Path(path)

    def error(self, id: str, **options: Any) -> str:
        """The one line of an InputError; the cache then holds no weights of this id and no unfinished file."""
        kind, line = self.ask(id, **options)
        assert kind == "InputError" and "\n" not in line and line.startswith((f"{id}: ", repr(id))), (kind, line)
        left = [file.name for file in cache(self.home, id).rglob("*")]
        assert not [name for name in left if name.endswith((".incomplete", ".safetensors"))], left
        return line

    def stop(self) -> str:
        """What it wrote to stderr."""
        return self.process.communicate()[1]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with Hub(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


@pytest.fixture(scope="module")
def _asker(served: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asker]:
    asker = Asker(served, tmp_path_factory.mktemp("home"), HF_HUB_ETAG_TIMEOUT="1", HF_HUB_DOWNLOAD_TIMEOUT="1")
    yield asker
    asker.stop()


@pytest.fixture
def hub(served: Hub) -> Hub:
    served.reset()
    return served


@pytest.fixture
def asker(_asker: Asker, hub: Hub) -> Asker:
    return _asker


# -- what is fetched -----------------------------------------------------------------------------------------

def test_ids_and_paths() -> None:
    for text in ("timm/vit_base_patch16_224.augreg2_in21k_ft_in1k", "openai/clip-vit-base-patch32", "a/b", "A_1/b.c-d"):
        assert is_id(text), text
    for text in ("weights/x.safetensors", "./a/b", "../a", "a", "a/b/c", "/a/b", "a/", "/b", "~/b", "a\\b", "a/b.pth",
                 "a/b c", "a/b\n", "a--b/c", "a/b..c", "a/.b", "a/-b", "a/b.", "a/b.git", "a/ü", "", "a/" + "b" * 97,
                 Path("a/b"), None):
        assert not is_id(text), text


def test_where_converted_weights_lie(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert converted("acme/tiny") == cache_folder() / "acme--tiny.safetensors"
    assert cache_folder() == tmp_path / "minivl" / "weights"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert cache_folder() == tmp_path / "me" / ".cache" / "minivl" / "weights"


def test_first_from_the_hub_then_from_the_cache(tmp_path: Path) -> None:
    with Hub(tmp_path / "hub") as hub:
        source = contents(repository(hub, "acme/tiny"))
        first = python(SNAPSHOT, hub.environment(tmp_path))
        assert first.returncode == 0, first.stderr
        assert hub.fetched == ["config.json", "vocab.txt", "model.safetensors"]  # weights last
        folder = Path(first.stdout.strip())
        assert contents(folder) == {name: source[name] for name in hub.fetched}
        assert folder.parents[1] == cache(tmp_path, "acme/tiny")
        hub.reset()
        second = python(SNAPSHOT, hub.environment(tmp_path))
        assert second.stdout == first.stdout and hub.requests == ["GET /api/models/acme/tiny"]
        hub.reset()
        third = python(SNAPSHOT, hub.environment(tmp_path, HF_HUB_OFFLINE="1"))
        assert third.stdout == first.stdout and hub.requests == [] and third.stderr == ""


def test_progress_is_shown(tmp_path: Path) -> None:
    """On a terminal; elsewhere the library keeps quiet."""
    ours, theirs = os.openpty()
    with Hub(tmp_path / "hub") as hub:
        repository(hub, "acme/tiny")
        done = subprocess.run([sys.executable, "-c", SNAPSHOT], cwd=ROOT, env=hub.environment(tmp_path), stderr=theirs,
                              stdout=subprocess.PIPE, timeout=120)
    os.close(theirs)
    shown = b""
    while chunk := _read(ours):
        shown += chunk
    os.close(ours)
    assert done.returncode == 0 and b"model.safetensors: 100%" in shown, shown


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # what Linux says when the other side is closed
        return b""


def test_weights_in_parts(hub: Hub, asker: Asker) -> None:
    state = weights()
    parts = {f"model-0000{i}-of-00002.safetensors": {name: state[name]} for i, name in enumerate(state, 1)}
    repository(hub, "acme/parts", {"config.json": {}, **sharded(parts), "model-00003-of-00002.safetensors": b"stray",
                                   "pytorch_model.bin": b"", "pytorch_model.bin.index.json": {}})
    folder = asker.folder("acme/parts")
    assert hub.fetched == ["config.json", "model.safetensors.index.json", *parts]
    found = weights_of(folder)
    assert found.keys() == state.keys() and all(torch.equal(found[name], state[name]) for name in state)


def test_other_names_of_configs_and_weights(hub: Hub, asker: Asker) -> None:
    repository(hub, "acme/open", {"open_clip_config.json": {}, "other.json": {}, "merges.txt": b"a b\n",
                                  "open_clip_model.safetensors": save(weights()), "open_clip_pytorch_model.bin": b""})
    assert "one" in weights_of(asker.folder("acme/open"))
    assert hub.fetched == ["merges.txt", "open_clip_config.json", "open_clip_model.safetensors"]
    hub.reset()
    repository(hub, "acme/own", {"course.json": {}, "deep/own.json": {}, "tf_model.index.json": {},
                                 "model.safetensors": save(weights())})
    asker.folder("acme/own")
    assert hub.fetched == ["course.json", "model.safetensors"]


def test_weights_in_a_pickle(hub: Hub, asker: Asker) -> None:
    repository(hub, "acme/old", {"config.json": {}, "pytorch_model.bin": b"pickle", "training_args.bin": b"no",
                                 "optimizer.pt": b"no"})
    assert asker.error("acme/old") == ("acme/old: has no safetensors, only pytorch_model.bin: "
                                       "python -m weights.fetch acme/old")
    assert hub.fetched == []
    folder = asker.folder("acme/old", pickled=True)
    assert hub.fetched == ["config.json", "pytorch_model.bin"]
    assert weights_name({file.name for file in folder.iterdir()}, folder, pickled=True) == "pytorch_model.bin"
    assert "weights.fetch acme/old" in asker.error("acme/old")
    repository(hub, "acme/jax", {"B_16.npz": b"pickle", "scheduler.pt": b"no"})
    assert contents(asker.folder("acme/jax", pickled=True)) == {"B_16.npz": b"pickle"}
    repository(hub, "acme/many", {"a.pth": b"", "b.pth": b""})
    assert "several files that may be its weights: a.pth, b.pth" in asker.error("acme/many", pickled=True)
    repository(hub, "acme/none", {"config.json": {}, "weights.h5": b""})
    assert "has no weights: none of model.safetensors, " in asker.error("acme/none", pickled=True)
    repository(hub, "acme/both", {"model.safetensors": save(weights()), "pytorch_model.bin": b"pickle"})
    assert list(contents(asker.folder("acme/both", pickled=True))) == ["model.safetensors"]


def test_revisions(hub: Hub, asker: Asker) -> None:
    now = repository(hub, "acme/versions")
    old = repository(hub, "acme/versions@v1", {"model.safetensors": save(weights(1))})
    assert contents(asker.folder("acme/versions", revision="v1")) == contents(old)
    assert asker.folder("acme/versions", revision=hub.commit(old)).name == hub.commit(old)
    assert asker.folder("acme/versions").name == hub.commit(now)
    refs = cache(asker.home, "acme/versions") / "refs"
    assert {file.name: file.read_text() for file in refs.iterdir()} == {"main": hub.commit(now), "v1": hub.commit(old)}
    kind, line = asker.ask("acme/versions", revision="v2")
    assert (kind, line) == ("InputError", "acme/versions: has no revision 'v2'")


# -- who may not ---------------------------------------------------------------------------------------------

def test_no_such_model_and_no_token(hub: Hub, asker: Asker) -> None:
    assert f"no such model at {hub.url}" in asker.error("acme/typo")
    assert "owner/name is needed" in asker.error("./acme/typo")
    repository(hub, "acme/secret")
    hub.token = "hf_right"
    line = asker.error("acme/secret")
    assert f"no such model at {hub.url}; a private or gated one needs a token: set HF_TOKEN" in line
    hub.token = None
    hub.gated.add("acme/secret")
    assert f"is gated: agree to its terms at {hub.url}/acme/secret, then set HF_TOKEN" in asker.error("acme/secret")
    hub.gated.clear()
    hub.status = 403
    assert f"{hub.url} refuses access (403)" in asker.error("acme/secret")


@pytest.mark.parametrize("token, works", [("hf_wrong", False), ("hf_right", True)])
def test_the_token_is_sent(tmp_path: Path, token: str, works: bool) -> None:
    with Hub(tmp_path / "hub") as hub:
        repository(hub, "acme/tiny")
        hub.token = "hf_right"
        done = python(SNAPSHOT, hub.environment(tmp_path, HF_TOKEN=token))
        assert (done.returncode == 0) is works
        if not works:
            assert f"acme/tiny: {hub.url} refuses access (401), the token is wrong" in done.stderr


# -- no answer -----------------------------------------------------------------------------------------------

def test_no_answer(hub: Hub, asker: Asker) -> None:
    """An error without a copy in the cache; with one, the copy."""
    repository(hub, "acme/known")
    repository(hub, "acme/new")
    folder = asker.folder("acme/known")
    for manners, reason in (({"silent": 2.0}, f"{hub.url} does not answer in time"),
                            ({"status": 503}, f"{hub.url} answered 503"), ({"status": 429}, f"{hub.url} answered 429")):
        hub.reset()
        vars(hub).update(manners)
        assert asker.error("acme/new") == f"acme/new: {reason}, and the cache does not have revision 'main'"
        assert asker.folder("acme/known") == folder
    hub.reset()
    hub.page = b"<html>log in</html>"
    assert f"{hub.url} does not answer as a Hugging Face hub does" in asker.error("acme/new")
    hub.page = b"[1]"
    assert f"{hub.url} does not answer as a Hugging Face hub does" in asker.error("acme/new")


def test_no_network(tmp_path: Path) -> None:
    with Hub(tmp_path / "hub") as hub:
        repository(hub, "acme/tiny")
        python(SNAPSHOT, hub.environment(tmp_path))
    told = ("import logging; logging.basicConfig(format='%(name)s: %(message)s')\n" + SNAPSHOT)
    refused = python(told, hub.environment(tmp_path))  # nobody listens there any more
    assert refused.returncode == 0 and refused.stdout.strip().startswith(str(cache(tmp_path, "acme/tiny")))
    assert f"minivl.hub: acme/tiny: no connection to {hub.url} (" in refused.stderr
    assert refused.stderr.strip().endswith("; the copy in the cache is used")
    unknown = ("import socket\ndef getaddrinfo(*host, **more):\n"
               "    raise socket.gaierror(-2, 'Name or service not known')\nsocket.getaddrinfo = getaddrinfo\n")
    for code, line in ((SNAPSHOT, "Connection refused"), (unknown + SNAPSHOT, "Name or service not known")):
        done = python(code, hub.environment(tmp_path / "empty"))
        assert done.returncode == 1 and f"acme/tiny: no connection to {hub.url} ([Errno" in done.stderr
        assert f"{line}), and the cache does not have revision 'main'" in done.stderr
    assert not cache(tmp_path / "empty", "acme/tiny").exists()


def test_offline_takes_complete_copies_only(tmp_path: Path) -> None:
    state = weights()
    with Hub(tmp_path / "hub") as hub:
        for id in ("acme/tiny", "acme/half"):
            repository(hub, id)
        repository(hub, "acme/parts", sharded({"a.safetensors": {"one": state["one"]},
                                               "b.safetensors": {"two": state["two"]}}))
        repository(hub, "acme/old", {"pytorch_model.bin": b""})
        some = "from huggingface_hub import hf_hub_download as get\n" + "\n".join(
            f"get({id!r}, {name!r})" for id, name in (
                ("acme/half", "config.json"), ("acme/parts", "model.safetensors.index.json"),
                ("acme/parts", "a.safetensors"), ("acme/old", "pytorch_model.bin")))
        assert python(some, hub.environment(tmp_path)).returncode == 0  # another program's part of a model
        hub.reset()
        asker = Asker(hub, tmp_path, HF_HUB_OFFLINE="1")
        offline = ": HF_HUB_OFFLINE is set, and the cache "
        assert asker.error("acme/tiny") == f"acme/tiny{offline}does not have revision 'main'"
        assert asker.error("acme/tiny", revision="v1") == f"acme/tiny{offline}does not have revision 'v1'"
        assert asker.error("acme/half") == f"acme/half{offline}has revision 'main' without weights"
        kind, line = asker.ask("acme/parts")
        assert (kind, line) == ("InputError", f"acme/parts{offline}has revision 'main' without b.safetensors")
        assert "python -m weights.fetch acme/old" in asker.error("acme/old")
        assert (asker.folder("acme/old", pickled=True) / "pytorch_model.bin").is_file()
        asker.stop()
        assert hub.requests == []


# -- what does not arrive whole ------------------------------------------------------------------------------

def test_a_connection_that_breaks_is_resumed(hub: Hub, asker: Asker) -> None:
    source = repository(hub, "acme/broken")
    hub.cut, hub.cuts = {"model.safetensors": 50}, 1
    folder = asker.folder("acme/broken")
    path = f"/acme/broken/resolve/{hub.commit(source)}/model.safetensors"
    assert hub.requests[-2:] == [f"GET {path}", f"GET {path} bytes=50-"]
    assert (folder / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()


@pytest.mark.parametrize("manners, reason", [
    ({"cut": {"model.safetensors": 0}}, "no connection to "),
    ({"longer": {"model.safetensors": 7}}, "Consistency check failed: file should be of size "),
    ({"statuses": {"model.safetensors": 500}}, " answered 500; call again"),
    ({"statuses": {"model.safetensors": 404}}, " answered 404; call again"),
    ({"damaged": {"model.safetensors"}}, "came damaged and was removed: its hash is "),
], ids=["cut", "longer", "refused", "gone", "damaged"])
def test_what_is_not_whole_is_not_kept(hub: Hub, asker: Asker, request: pytest.FixtureRequest, manners: dict[str, Any],
                                       reason: str) -> None:
    id = f"acme/{request.node.callspec.id}"
    source = repository(hub, id)
    vars(hub).update(manners)
    line = asker.error(id)
    assert line.startswith(f"{id}: model.safetensors ") and reason in line and line.count("call again") == 1
    assert not (cache(asker.home, id) / "refs").exists()  # offline there is nothing yet
    hub.reset()
    assert asker.folder(id).name == hub.commit(source)
    assert hub.fetched == ["model.safetensors"]


def test_a_damaged_config_is_not_kept(hub: Hub, asker: Asker) -> None:
    """Small files have git's hash."""
    repository(hub, "acme/flipped")
    hub.damaged = {"config.json"}
    assert "config.json came damaged and was removed: its hash is " in asker.error("acme/flipped")
    hub.reset()
    asker.folder("acme/flipped")
    assert hub.fetched == ["config.json", "vocab.txt", "model.safetensors"]


def test_an_index_of_what_is_not_there(hub: Hub, asker: Asker) -> None:
    repository(hub, "acme/index", sharded({}, one="a.safetensors"))
    assert "names a.safetensors, which the hub does not have" in asker.error("acme/index")
    repository(hub, "acme/outside", sharded({}, one="../../x.safetensors"))
    kind, line = asker.ask("acme/outside")
    assert kind == "InputError" and "names '../../x.safetensors': a part is a .safetensors file beside it" in line
    assert hub.fetched == ["model.safetensors.index.json"] * 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["interrupted", "killed"])
def test_a_download_that_was_stopped_goes_on(tmp_path: Path, number: signal.Signals) -> None:
    """After the file it was at, and the old copy is there for offline work until the new one is."""
    with Hub(tmp_path / "hub") as hub:
        source = repository(hub, "acme/tiny")
        old = python(SNAPSHOT, hub.environment(tmp_path)).stdout
        repository(hub, "acme/tiny", {"config.json": {"new": 1}, "model.safetensors": save(weights(1, 1 << 18))})
        hub.reset()
        hub.pause["model.safetensors"] = threading.Event()
        process = subprocess.Popen([sys.executable, "-c", SNAPSHOT], cwd=ROOT, env=hub.environment(tmp_path),
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert hub.paused.wait(60)
        process.send_signal(number)
        _, complaint = process.communicate(timeout=60)  # while the hub still waits
        assert process.returncode == -number and ("KeyboardInterrupt" in complaint) is (number == signal.SIGINT)
        left = list(cache(tmp_path, "acme/tiny").rglob("*.incomplete"))
        assert len(left) == (number == signal.SIGKILL)
        assert python(SNAPSHOT, hub.environment(tmp_path, HF_HUB_OFFLINE="1")).stdout == old
        hub.pause.pop("model.safetensors").set()
        hub.reset()
        done = python(SNAPSHOT, hub.environment(tmp_path))
        assert hub.fetched == ["model.safetensors"]
        assert contents(Path(done.stdout.strip())) == {
            name: (source / name).read_bytes() for name in ("config.json", "vocab.txt", "model.safetensors")}


def test_errors_of_the_disk_stay_what_they_are(tmp_path: Path) -> None:
    with Hub(tmp_path / "hub") as hub:
        repository(hub, "acme/tiny")
        (tmp_path / "file").write_text("in the way")
        asker = Asker(hub, tmp_path, HF_HUB_CACHE=str(tmp_path / "file"))
        kind, line = asker.ask("acme/tiny")
        asker.stop()
    assert kind in ("NotADirectoryError", "FileExistsError") and str(tmp_path / "file") in line


# -- weights in several files --------------------------------------------------------------------------------

def folder_of(folder: Path, files: Mapping[str, bytes | Mapping[str, Any]]) -> Path:
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return folder


def test_weights_of_one_file_and_of_parts(tmp_path: Path) -> None:
    state = weights()
    folder_of(tmp_path, sharded({"b.safetensors": {"one": state["one"]}, "a.safetensors": {"two": state["two"]}}))
    found = weights_of(tmp_path)
    assert found.keys() == state.keys() and all(torch.equal(found[name], state[name]) for name in state)
    assert found["two"].dtype == torch.bfloat16
    save_file({"three": state["one"]}, tmp_path / "model.safetensors")
    assert list(weights_of(tmp_path)) == ["three"]  # the whole goes before its parts


ONE = {"one": torch.zeros(2)}
INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize("files, line", [
    (sharded({"a.safetensors": ONE, "b.safetensors": {**ONE, "two": torch.ones(2)}}),
     "does not fit its parts: one is in a.safetensors and in b.safetensors"),
    (sharded({"a.safetensors": ONE}, two="a.safetensors", three="a.safetensors"),
     "does not fit its parts: two is not in a.safetensors, three is not in a.safetensors"),
    ({INDEX: {"weight_map": {"one": "a.safetensors"}}, "a.safetensors": save({**ONE, "two": torch.ones(1)})},
     "does not fit its parts: two of a.safetensors is not in the index"),
    (sharded({"a.safetensors": ONE}, two="b.safetensors"), "names b.safetensors, missing beside it"),
    (sharded({"a.safetensors": ONE}, two="../../x"), "names '../../x': a part is a .safetensors file beside it"),
    (sharded({"a.safetensors": ONE}, two="../x.safetensors"), "names '../x.safetensors': a part is "),
    (sharded({"a.safetensors": ONE}, two="/etc/x.safetensors"), "names '/etc/x.safetensors': a part is "),
    (sharded({"a.safetensors": ONE}, two="..\\x.safetensors"), "names '..\\\\x.safetensors': a part is "),
    (sharded({"a.safetensors": ONE}, two="a.bin"), "names 'a.bin': a part is "),
    ({INDEX: b"{"}, "is not JSON"),
    ({INDEX: b"[]"}, "is no index of weights: a weight_map"),
    ({INDEX: {"weight_map": {}}}, "is no index of weights: a weight_map"),
    ({INDEX: {"weight_map": {"one": 1}}}, "is no index of weights: a weight_map"),
])
def test_an_index_that_is_wrong(tmp_path: Path, files: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError) as caught:
        weights_of(folder_of(tmp_path, files))
    assert str(caught.value).startswith(f"{tmp_path / INDEX}: {line}")


def test_parts_and_folders_that_are_wrong(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no weights: none of model.safetensors"):
        weights_of(tmp_path)
    (tmp_path / "x.pth").write_bytes(b"")
    with pytest.raises(InputError, match=rf"only x.pth: python -m weights.convert {tmp_path}/x.pth OUT.safetensors"):
        weights_of(tmp_path)
    folder_of(tmp_path, {**sharded({"a.safetensors": ONE}), "a.safetensors": save(ONE)[:-1]})
    with pytest.raises(InputError, match="a.safetensors: is not a whole safetensors file"):
        weights_of(tmp_path)
