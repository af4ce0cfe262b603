"""The README's commands and code do what they say."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import minivl
from minivl.convert import timm
from minivl.convert.table import rename
from minivl.data.scenes import scene
from minivl.files import write_json, write_tensors

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[list[str]]:
    lines = "\n".join(blocks("sh")).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


def run(command: list[str], folder: Path) -> str:
    """A `python PROGRAM` line of the README, run in `folder`."""
    program = [part if part.startswith("-") else str(ROOT / part) if (ROOT / part).is_file() else part
               for part in command[1:]]
    done = subprocess.run([sys.executable, *program], cwd=folder, capture_output=True, text=True, timeout=600,
                          env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
                               "XDG_CACHE_HOME": str(folder / "cache")})
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stderr}"
    return done.stdout


def timm_file(path: Path) -> None:
    """A random DeiT-tiny under timm's names."""
    model = minivl.create("deit_tiny_patch16_224")
    ours = model.state_dict()
    theirs = {}
    for name in ours:
        match = re.fullmatch(r"(blocks\.\d+\.attn)\.(q|k|v|out)_proj\.(weight|bias)", name)
        if match is None:
            theirs[name] = ours[name]
        elif match[2] == "out":
            theirs[f"{match[1]}.proj.{match[3]}"] = ours[name]
        elif match[2] == "q":
            parts = [ours[f"{match[1]}.{one}_proj.{match[3]}"] for one in "qkv"]
            theirs[f"{match[1]}.qkv.{match[3]}"] = torch.cat(parts)
    assert not rename(theirs, timm.table(theirs)).unknown
    write_tensors(path, theirs)


@pytest.fixture()
def user(tmp_path: Path) -> Path:
    """A folder with the files the README speaks of."""
    images = tmp_path / "flickr8k" / "images"
    images.mkdir(parents=True)
    for split, numbers in (("train", range(6)), ("dev", range(6, 9))):
        drawn = {number: scene(number) for number in numbers}
        for number, one in drawn.items():
            one.image.resize((80, 60)).save(images / f"{number}.jpg")
        write_json(tmp_path / "flickr8k" / f"{split}.json", {
            "images": [{"id": number, "file_name": f"{number}.jpg"} for number in drawn],
            "annotations": [{"id": 10 * number + place, "image_id": number, "caption": text}
                            for number, one in drawn.items() for place, text in enumerate(one.captions)]})
    scene(3).image.save(tmp_path / "photo.jpg")
    timm_file(tmp_path / "deit_tiny_patch16_224.safetensors")
    torch.save(load_file(tmp_path / "deit_tiny_patch16_224.safetensors"), tmp_path / "deit_tiny_patch16_224.pth")
    return tmp_path


def test_python_blocks_run(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(user)
    names: dict[str, object] = {}
    for code in blocks("python"):
        exec(compile(code, "README.md", "exec"), names)
    assert tuple(names["heat"].shape) == (96, 96)  # type: ignore[attr-defined]
    assert names["vit"].config.num_classes == 37  # type: ignore[attr-defined]


def test_viz_without_arguments(user: Path) -> None:
    assert ["python", "viz.py", "caption"] in commands()
    run(["python", "viz.py", "caption"], user)
    assert len(list((user / "runs" / "viz").glob("scene-*.png"))) >= 2
    assert ["python", "viz.py", "ranking"] in commands()
    assert "clipscore:hessel" in run(["python", "viz.py", "ranking"], user)
    assert (user / "runs" / "viz" / "ranking.png").stat().st_size > 10_000


def test_training_and_drawing_commands(user: Path) -> None:
    train = [command for command in commands() if command[:2] == ["python", "train_p2.py"]]
    draw = [command for command in commands() if command[:2] == ["python", "viz.py"] and "--weights" in command]
    assert len(train) == len(draw) == 1
    run([*train[0], "--min-count", "1"], user)  # the few words of this small set are all rare
    run(draw[0], user)
    assert (user / "pictures" / "photo.png").stat().st_size > 10_000
    rows = [json.loads(line) for line in (user / "runs/flickr8k/history.jsonl").read_text().splitlines()]
    assert sum("epoch" in row for row in rows) == json.loads((user / "runs/flickr8k/config.json").read_text())["epochs"]


def test_weights_commands(user: Path) -> None:
    told = [run(command, user) for command in commands() if command[:2] == ["python", "-m"] and "weights" in command[2]]
    assert "200 of the model" in told[0] and "verified: sha256 and fingerprint" in told[1] and len(told) == 2


def test_every_program_of_the_table_has_help(tmp_path: Path) -> None:
    for name in re.findall(r"^\| `([^`]+)`", README, re.MULTILINE):
        parts = name.removeprefix("python ").split()
        run(["python", *parts, "--help"], tmp_path)


def test_linked_files_and_sections_exist() -> None:
    checked = 0
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            path, _, section = link.partition("#")
            file = page.parent / path if path else page
            assert file.is_file(), (page, link)
            heads = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE) if section else []
            anchors = [re.sub(r"[^\w -]", "", head).lower().replace(" ", "-") for head in heads]  # as repositories do
            assert not section or section in anchors, (page, link)
            checked += bool(section)
    assert checked >= 3


def test_a_second_make_installs_nothing(tmp_path: Path) -> None:
    for file in ("Makefile", "setup.cfg", "pyproject.toml"):
        shutil.copy(ROOT / file, tmp_path)
    plan = ["make", "-n", "demo", "test", "lint"]
    first = subprocess.run(plan, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "pip install" in first.stdout and "venv .venv" in first.stdout
    for stamp in ("installed", "installed-test"):
        (tmp_path / ".venv").mkdir(exist_ok=True)
        (tmp_path / ".venv" / stamp).touch()
    assert "pip install" not in subprocess.run(plan, cwd=tmp_path, capture_output=True, text=True, check=True).stdout


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"`make ([a-z-]+)`", README)) | {"demo"}
    for target in targets:
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_make_demo(tmp_path: Path) -> None:
    """The demo in a copy of the checkout, with this interpreter's packages."""
    copy = tmp_path / "minivl"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".venv", ".git", "runs", "__pycache__", "*.egg-info"))
    (copy / ".venv" / "bin").mkdir(parents=True)
    python = copy / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    (copy / ".venv" / "installed").touch()
    done = subprocess.run(["make", "demo"], cwd=copy, capture_output=True, text=True, timeout=1200,
                          env={**os.environ, "PYTHONPATH": str(copy)})
    assert done.returncode == 0, done.stderr[-2000:]
    assert "attention beats every control by its interval" in done.stdout
    pictures = {file.name for file in (copy / "runs/demo/pictures").glob("*.png")}
    assert {"ranking.png", "top5.png"} < pictures and len(pictures) >= 4
    scores = json.loads((copy / "runs/demo/scores.json").read_text())["scores"]
    assert scores["cider_d"]["score"] > 1 and 0 < scores["clip_score"]["score"]
