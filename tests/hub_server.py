"""A small Hugging Face hub on loopback, served from a folder, for programs that run in a process of their own.

    with Hub(folder) as hub:                          # folder/owner/name/config.json, .../model.safetensors
        done = python("import minivl; minivl.load('owner/name')", hub.environment(tmp_path))
    assert hub.fetched == ["config.json", "model.safetensors"]

A revision other than main is a folder beside it, ``owner/name@revision``. Files are read when they are asked for, and
a changed file makes another commit.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parents[1]
LARGE = (".safetensors", ".bin", ".pth", ".pt", ".npz")  # what a hub keeps by its sha256, the rest by git's sha1


def python(code: str, environment: dict[str, str], timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """A Python program run in the checkout, one thread, its output kept."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=timeout,
                          env={**environment, "OMP_NUM_THREADS": "1"})


class Hub:
    """The hub, serving while its `with` block runs; its switches may be set before and while it does.

    Attributes:
        url: its address.
        requests: method and path of what was asked for, in order; the range too, where only one was.
        token: where given, everything is refused with 401 without it.
        gated: ids that are listed but whose access is refused with 403, as gated ones are.
        status: where given, every answer is this.
        statuses: file name -> the status of its answers.
        page: where given, every answer is this page, as of a network that wants a login first.
        silent: seconds without an answer.
        cut: file name -> how many bytes of each answer are sent before the connection is closed.
        cuts: how many answers are cut short, in all (None = every one).
        longer: file name -> bytes that the head promises beyond those that there are.
        damaged: file names one byte of which is sent wrong.
        pause: file name -> an event that its second half waits for.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.open: set[socket.socket] = set()
        self.reset()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def reset(self) -> None:
        """Forget the requests, and behave from now on."""
        self.requests: list[str] = []
        self.token: str | None = None
        self.gated: set[str] = set()
        self.status: int | None = None
        self.statuses: dict[str, int] = {}
        self.page: bytes | None = None
        self.silent = 0.0
        self.cut: dict[str, int] = {}
        self.cuts: int | None = None
        self.longer: dict[str, int] = {}
        self.damaged: set[str] = set()
        self.pause: dict[str, threading.Event] = {}
        self.paused = threading.Event()  # set when an answer waits

    def __enter__(self) -> Hub:
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Nobody listens there any more; twice does no harm."""
        for event in self.pause.values():
            event.set()
        self._server.shutdown()
        for connection in list(self.open):  # kept alive, they would be answered on
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._server.server_close()
        self._thread.join()

    @property
    def fetched(self) -> list[str]:
        """Names of the files that were downloaded (asked for with GET), in order."""
        asked = [request.split() for request in self.requests]
        return [path.split("/")[-1] for method, path, *_ in asked if method == "GET" and "/resolve/" in path]

    def environment(self, home: Path, **more: str) -> dict[str, str]:
        """Variables of a process that knows this hub only, with its caches in `home`, without proxies or token."""
        kept = {name: value for name, value in os.environ.items()
                if not name.startswith(("HF_", "HUGGING", "TRANSFORMERS_")) and not name.lower().endswith("_proxy")}
        return {**kept, "HF_ENDPOINT": self.url, "HF_HOME": str(home / "huggingface"),
                "XDG_CACHE_HOME": str(home / "cache"), "HF_HUB_DISABLE_TELEMETRY": "1", **more}

    def commit(self, folder: Path) -> str:
        """The commit of a repository's folder: another one when a file changes."""
        digest = hashlib.sha1()
        for file in _files(folder):
            digest.update(f"{file.name} {_hashes(file)}".encode())
        return digest.hexdigest()

    def find(self, id: str, revision: str) -> Path | None:
        """The folder of a revision: main, one that has its own, or a commit of either."""
        if "/" not in id or ".." in id:
            return None
        owner, name = id.split("/")
        main = self.folder / owner / name
        others = sorted((self.folder / owner).glob(f"{name}@*")) if main.is_dir() else []
        for folder in (main, *others):
            known = "main" if folder == main else folder.name.split("@")[1]
            if folder.is_dir() and revision in (known, self.commit(folder)):
                return folder
        return None


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def _hashes(file: Path) -> tuple[str, str]:
    """git's sha1 and the sha256 of a file."""
    content = file.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest(), hashlib.sha256(content).hexdigest()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            hub.open.add(self.connection)

        def finish(self) -> None:
            hub.open.discard(self.connection)
            super().finish()

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            path = unquote(urlsplit(self.path).path).strip("/")
            hub.requests.append(" ".join([self.command, f"/{path}", *filter(None, [self.headers.get("Range")])]))
            time.sleep(hub.silent)
            parts = path.split("/")
            api = parts[:2] == ["api", "models"]
            id, rest = "/".join(parts[2:4] if api else parts[:2]), parts[4:] if api else parts[2:]
            revision = unquote("/".join(rest[1:]) if api else rest[1]) if len(rest) > 1 else "main"
            folder = hub.find(id, revision)
            if hub.page is not None:
                self.send(hub.page, "text/html")
            elif hub.status is not None or parts[-1] in hub.statuses:
                self.refuse(hub.status or hub.statuses[parts[-1]], "")
            elif hub.token is not None and self.headers.get("Authorization") != f"Bearer {hub.token}":
                given = "Authorization" in self.headers
                self.refuse(401, "" if given else "RepoNotFound", "Invalid credentials in Authorization header"
                            if given else "Invalid username or password.")
            elif id in hub.gated:
                self.refuse(403, "GatedRepo", f"Access to model {id} is restricted")
            elif hub.find(id, "main") is None:
                self.refuse(404, "RepoNotFound", "Repository not found")
            elif folder is None:
                self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            elif api:
                self.listing(id, folder)
            elif not (folder / "/".join(rest[2:])).is_file():
                self.refuse(404, "EntryNotFound", "Entry not found")
            else:
                self.file(folder, folder / "/".join(rest[2:]))

        def refuse(self, status: int, code: str, message: str = "") -> None:
            self.send_response(status)
            for name, value in (("X-Error-Code", code), ("X-Error-Message", message)):
                if value:
                    self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def listing(self, id: str, folder: Path) -> None:
            siblings = []
            for file in _files(folder):
                git, sha256 = _hashes(file)
                one = {"rfilename": file.relative_to(folder).as_posix(), "size": file.stat().st_size, "blobId": git}
                if file.suffix in LARGE:
                    one["lfs"] = {"sha256": sha256, "size": one["size"], "pointerSize": 130}
                siblings.append(one)
            self.send(json.dumps({"id": id, "modelId": id, "sha": hub.commit(folder), "private": False, "tags": [],
                                  "siblings": siblings}).encode(), "application/json")

        def send(self, body: bytes, kind: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def file(self, folder: Path, file: Path) -> None:
            content = file.read_bytes()
            if file.name in hub.damaged:
                content = content[:-1] + bytes([content[-1] ^ 1])
            size = len(content) + hub.longer.get(file.name, 0)
            begin = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
            git, sha256 = _hashes(file)
            self.send_response(206 if "Range" in self.headers else 200)
            if "Range" in self.headers:
                self.send_header("Content-Range", f"bytes {begin}-{size - 1}/{size}")
            self.send_header("ETag", f'"{sha256 if file.suffix in LARGE else git}"')
            self.send_header("X-Repo-Commit", hub.commit(folder))
            self.send_header("Accept-Ranges", "bytes")
            whole = self.command == "HEAD" or file.name not in hub.longer
            self.send_header("Content-Length", str((size if whole else len(content)) - begin))
            self.end_headers()
            if self.command == "GET":
                self.body(file.name, content[begin:])

        def body(self, name: str, content: bytes) -> None:
            if name in hub.cut and hub.cuts != 0:
                hub.cuts = None if hub.cuts is None else hub.cuts - 1
                content, self.close_connection = content[:hub.cut[name]], True
            half = len(content) // 2 if name in hub.pause else 0
            try:
                self.wfile.write(content[:half])
                if name in hub.pause:
                    self.wfile.flush()
                    hub.paused.set()
                    hub.pause[name].wait()
                self.wfile.write(content[half:])
            except (BrokenPipeError, ConnectionResetError):  # who asked is gone
                self.close_connection = True

    return Handler
