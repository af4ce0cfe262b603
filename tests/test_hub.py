"""Downloads from a hub on loopback, by programs of their own; and weights in several files."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import struct
import subprocess
import sys
import termios
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

Files = Mapping[str, bytes | Mapping[str, Any] | list[Any]]

SNAPSHOT = "from minivl.hub import snapshot; print(snapshot('acme/tiny'))"
ANSWER = """
import json, os, sys, time
from huggingface_hub import constants
from minivl.errors import InputError
from minivl.hub import snapshot
time.sleep = lambda seconds: None  # between the library's attempts
constants.DOWNLOAD_CHUNK_SIZE = 10  # what it can resume after
for line in sys.stdin:
    asked = json.loads(line)
    os.environ["HF_TOKEN"] = asked.pop("token", "")
    try:
        answer = ["folder", str(snapshot(**asked))]
    except (InputError, OSError) as error:
        answer = [type(error).__name__, str(error)]
    print(json.dumps(answer), flush=True)
"""


def weights(seed: int = 0, size: int = 8) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {"one": torch.randn(size, 3, generator=draw), "two": torch.randn(size, generator=draw).bfloat16()}


def repository(hub: Hub, id: str, files: Files | None = None) -> Path:
    """A repository of the hub; by default a config, a vocabulary, weights, and what nobody wants."""
    if files is None:
        files = {"config.json": {"width": 12}, "vocab.txt": b"a\nb\n", "model.safetensors": save(weights()),
                 "README.md": b"read me", "pytorch_model.bin": b"never", "tf_model.h5": b"never",
                 "onnx/config.json": {"width": 0}, "trainer_state.json": {}}
    return put(hub.folder / id, files)


def put(folder: Path, files: Files) -> Path:
    """The folder, with these files written into it: bytes, or what becomes JSON."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return folder


def sharded(parts: Mapping[str, Mapping[str, torch.Tensor]], **more: str) -> Files:
    """The files of weights in parts, with an index of them."""
    index = {name: part for part, tensors in parts.items() for name in tensors}
    return {"model.safetensors.index.json": {"metadata": {"total_size": 1}, "weight_map": {**index, **more}},
            **{part: save(dict(tensors)) for part, tensors in parts.items()}}


def cache(home: Path, id: str) -> Path:
    return home / "huggingface" / "hub" / f"models--{id.replace('/', '--')}"


def contents(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


class Asker:
    """A process that takes snapshots one after another, while the hub changes its manners; ends with its block."""

    def __init__(self, hub: Hub, home: Path, **more: str) -> None:
        self.home = home
        self.process = subprocess.Popen(
            [sys.executable, "-c", ANSWER], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, bufsize=1, env={**hub.environment(home, **more), "OMP_NUM_THREADS": "1"})

    def ask(self, id: str, **options: Any) -> list[str]:
        """["folder", path], or the error's type and text."""
        assert self.process.stdin is not None and self.process.stdout is not None
        print(json.dumps({"id": id, **options}), file=self.process.stdin, flush=True)
        answer: list[str] = json.loads(self.process.stdout.readline())
        return answer

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

    def __enter__(self) -> Asker:
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self.stderr = self.process.communicate(timeout=30)[1]
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            raise


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with Hub(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


@pytest.fixture(scope="module")
def _asker(served: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asker]:
    with Asker(served, tmp_path_factory.mktemp("home"), HF_HUB_ETAG_TIMEOUT="1", HF_HUB_DOWNLOAD_TIMEOUT="1") as asker:
        yield asker


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
                 "a/b c", "a/b\n", "a--b/c", "a/b..c", "a/.b", "a/-b", "a/b.", "a/b.git", "a/ü", "", "a/" + "b" * 97):
        assert not is_id(text), text
    assert not is_id(Path("a/b")) and not is_id(None)


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
        found, shown = on_a_terminal(hub.environment(tmp_path))
        assert hub.fetched == ["config.json", "vocab.txt", "model.safetensors"]  # weights last
        assert all(f"{name}: 100%" in shown for name in hub.fetched)
        folder = Path(found.strip())
        assert contents(folder) == {name: source[name] for name in hub.fetched}
        assert folder.parents[1] == cache(tmp_path, "acme/tiny")
        hub.reset()
        second = python(SNAPSHOT, hub.environment(tmp_path))
        assert second.stdout == found and hub.requests == ["GET /api/models/acme/tiny"]
        hub.reset()
        third = python(SNAPSHOT, hub.environment(tmp_path, HF_HUB_OFFLINE="1"))
        assert third.stdout == found and hub.requests == [] and third.stderr == ""


def on_a_terminal(environment: dict[str, str]) -> tuple[str, str]:
    """What a snapshot prints, and what it shows on a terminal 200 columns wide."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 200, 0, 0))
    process = subprocess.Popen([sys.executable, "-c", SNAPSHOT], cwd=ROOT, env=environment, stderr=theirs,
                               stdout=subprocess.PIPE, text=True)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # Linux says so that the other side is closed
        while chunk := os.read(ours, 1 << 16):
            shown += chunk
    os.close(ours)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0, shown
    return printed, shown.decode()


def test_weights_in_parts(hub: Hub, asker: Asker) -> None:
    state = weights()
    parts = {f"model-0000{i}-of-00002.safetensors": {name: state[name]} for i, name in enumerate(state, 1)}
    repository(hub, "acme/parts", {"config.json": {}, **sharded(parts), "model-00003-of-00002.safetensors": b"stray",
                                   "pytorch_model.bin": b"", "pytorch_model.bin.index.json": []})
    folder = asker.folder("acme/parts")
    assert hub.fetched == ["config.json", "model.safetensors.index.json", *parts]
    found = weights_of(folder)
    assert found.keys() == state.keys() and all(torch.equal(found[name], state[name]) for name in state)


def test_other_names_of_configs_and_weights(hub: Hub, asker: Asker) -> None:
    repository(hub, "acme/open", {"open_clip_config.json": {}, "other.json": [], "merges.txt": b"a b\n",
                                  "open_clip_model.safetensors": save(weights()), "open_clip_pytorch_model.bin": b"?"})
    assert "one" in weights_of(asker.folder("acme/open"))
    assert hub.fetched == ["merges.txt", "open_clip_config.json", "open_clip_model.safetensors"]
    hub.reset()
    repository(hub, "acme/own", {"course.json": [1], "deep/own.json": [2], "tf_model.index.json": [3], "own.yaml": b"4",
                                 "model.safetensors": save(weights())})
    assert contents(asker.folder("acme/own")).keys() == {"course.json", "model.safetensors"}
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
    source = repository(hub, "acme/private")
    hub.token = "hf_right"
    line = asker.error("acme/private")
    assert f"no such model at {hub.url}; a private or gated one needs a token: set HF_TOKEN" in line
    assert f"{hub.url} refuses access (401), the token is wrong" in asker.error("acme/private", token="hf_wrong")
    assert asker.folder("acme/private", token="hf_right").name == hub.commit(source)


def test_gated_and_forbidden(hub: Hub, asker: Asker) -> None:
    repository(hub, "acme/secret")
    hub.gated.add("acme/secret")
    assert f"is gated: agree to its terms at {hub.url}/acme/secret, then set HF_TOKEN" in asker.error("acme/secret")
    hub.gated.clear()
    hub.status = 403
    assert f"{hub.url} refuses access (403)" in asker.error("acme/secret")


# -- no answer -----------------------------------------------------------------------------------------------

def test_no_answer(hub: Hub, asker: Asker) -> None:
    """An error without a copy in the cache; with one, the copy."""
    repository(hub, "acme/known")
    repository(hub, "acme/new")
    folder = asker.folder("acme/known")
    silences: list[tuple[dict[str, Any], str]] = [
        ({"silent": 2.0}, f"{hub.url} does not answer in time"), ({"status": 503}, f"{hub.url} answered 503"),
        ({"status": 429}, f"{hub.url} answered 429")]
    for manners, reason in silences:
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
    with Hub(tmp_path / "hub") as hub, Asker(hub, tmp_path) as asker:
        repository(hub, "acme/tiny")
        folder = asker.folder("acme/tiny")
        hub.close()
        assert asker.folder("acme/tiny") == folder
        line = asker.error("acme/new")
    nothing = ", and the cache does not have revision 'main'"
    assert line.startswith(f"acme/new: no connection to {hub.url} ([Errno") and line.endswith(f"refused){nothing}")
    assert f"acme/tiny: no connection to {hub.url} (" in asker.stderr
    assert asker.stderr.count("; the copy in the cache is used") == 1
    with Asker(hub, tmp_path, HF_ENDPOINT="http://hub.invalid") as asker:  # a name that by RFC 2606 nobody has
        line = asker.error("acme/new")
    assert line.startswith("acme/new: no connection to http://hub.invalid (") and line.endswith(f"){nothing}")
    assert not cache(tmp_path, "acme/new").exists()


def test_offline_takes_complete_copies_only(tmp_path: Path) -> None:
    """Other programs leave parts of a model in the cache."""
    parts: dict[str, Files] = {
        "acme/half": {"config.json": {}}, "acme/old": {"pytorch_model.bin": b""},
        "acme/parts": sharded({"a.safetensors": {"one": torch.zeros(2)}}, two="b.safetensors")}
    for id, files in parts.items():
        put(cache(tmp_path, id) / "refs", {"main": b"c0ffee"})
        put(cache(tmp_path, id) / "snapshots" / "c0ffee", files)
    offline = ": HF_HUB_OFFLINE is set, and the cache "
    with Hub(tmp_path / "hub") as hub, Asker(hub, tmp_path, HF_HUB_OFFLINE="1") as asker:
        repository(hub, "acme/tiny")
        assert asker.error("acme/tiny") == f"acme/tiny{offline}does not have revision 'main'"
        assert asker.error("acme/tiny", revision="v1") == f"acme/tiny{offline}does not have revision 'v1'"
        assert asker.error("acme/half") == f"acme/half{offline}has revision 'main' without weights"
        kind, line = asker.ask("acme/parts")
        assert (kind, line) == ("InputError", f"acme/parts{offline}has revision 'main' without b.safetensors")
        assert "python -m weights.fetch acme/old" in asker.error("acme/old")
        assert (asker.folder("acme/old", pickled=True) / "pytorch_model.bin").is_file()
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
def test_a_download_that_was_stopped_goes_on(hub: Hub, asker: Asker, number: signal.Signals) -> None:
    """With the file it was at; until then the old copy is what the cache has."""
    id = f"acme/{number.name}"
    source = repository(hub, id)
    old = asker.folder(id)
    repository(hub, id, {"config.json": {"new": 1}, "model.safetensors": save(weights(1, 1 << 18))})
    hub.pause["model.safetensors"] = threading.Event()
    # what a shell starts in the background is deaf to SIGINT
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    process = subprocess.Popen([sys.executable, "-c", heard + SNAPSHOT.replace("acme/tiny", id)], cwd=ROOT, text=True,
                               stderr=subprocess.PIPE, env=hub.environment(asker.home))
    assert hub.paused.wait(60)
    process.send_signal(number)
    _, complaint = process.communicate(timeout=60)  # while the hub still waits
    assert process.returncode == -number and ("KeyboardInterrupt" in complaint) is (number == signal.SIGINT)
    assert len(list(cache(asker.home, id).rglob("*.incomplete"))) == (number == signal.SIGKILL)
    hub.pause["model.safetensors"].set()
    hub.reset()
    hub.status = 503
    assert asker.folder(id) == old
    hub.reset()
    new = asker.folder(id)
    assert hub.fetched == ["model.safetensors"]
    wanted = ("config.json", "vocab.txt", "model.safetensors")
    assert contents(new) == {name: (source / name).read_bytes() for name in wanted}


def test_errors_of_the_disk_stay_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with Hub(tmp_path / "hub") as hub, Asker(hub, tmp_path, HF_HUB_CACHE=str(tmp_path / "file")) as asker:
        repository(hub, "acme/tiny")
        kind, line = asker.ask("acme/tiny")
    assert kind in ("NotADirectoryError", "FileExistsError") and str(tmp_path / "file") in line


# -- weights in several files --------------------------------------------------------------------------------

def test_weights_of_one_file_and_of_parts(tmp_path: Path) -> None:
    state = weights()
    put(tmp_path, sharded({"b.safetensors": {"one": state["one"]}, "a.safetensors": {"two": state["two"]}}))
    found = weights_of(tmp_path)
    assert found.keys() == state.keys() and all(torch.equal(found[name], state[name]) for name in state)
    assert found["two"].dtype == torch.bfloat16
    save_file({"three": state["one"]}, tmp_path / "model.safetensors")
    assert list(weights_of(tmp_path)) == ["three"]  # the whole goes before its parts


ONE = {"one": torch.zeros(2)}
INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize("files, line", [
    (sharded({"a.safetensors": {**ONE, "two": torch.ones(2)}, "b.safetensors": ONE}),
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
        weights_of(put(tmp_path, files))
    assert str(caught.value).startswith(f"{tmp_path / INDEX}: {line}")


def test_parts_and_folders_that_are_wrong(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no weights: none of model.safetensors"):
        weights_of(tmp_path)
    (tmp_path / "x.pth").write_bytes(b"")
    with pytest.raises(InputError, match=rf"only x.pth: python -m weights.convert {tmp_path}/x.pth OUT.safetensors"):
        weights_of(tmp_path)
    put(tmp_path, {**sharded({"a.safetensors": ONE}), "a.safetensors": save(ONE)[:-1]})
    with pytest.raises(InputError, match="a.safetensors: is not a whole safetensors file"):
        weights_of(tmp_path)
