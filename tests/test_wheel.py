"""What a wheel holds, and that shipped weights are found from an installed one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from random_models import captioner

import minivl

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("minivl", "weights", "eval", "bench", "tests", "recipes", "setup.cfg", "pyproject.toml", "MANIFEST.in",
         "README.md", "LICENSE", "CHANGELOG.md", "train_p2.py", "viz.py")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built of a copy of the sources with one more shipped captioner: a build leaves its traces beside them."""
    pytest.importorskip("setuptools", minversion="70.1", reason="building without a network needs setuptools here")
    folder = tmp_path_factory.mktemp("sources")
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(ROOT / part, folder / part)
    minivl.save(captioner(), folder / "weights" / "tiny-one.safetensors")
    if not (folder / "weights" / "MANIFEST.json").exists():
        (folder / "weights" / "MANIFEST.json").write_text("{}")
    done = subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps",
                           "--no-index", "--no-build-isolation", "--wheel-dir", "made", "."], cwd=folder,
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    made, = (folder / "made").glob("*.whl")
    return made


def test_a_wheel_holds_the_library_and_its_weights(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as opened:
        names = set(opened.namelist())
    library = {str(file.relative_to(ROOT)) for file in (ROOT / "minivl").rglob("*.py")}
    weights = {f"minivl/_weights/{file.name}" for file in (ROOT / "weights").glob("*.safetensors")}
    assert library <= names
    assert weights | {"minivl/_weights/tiny-one.safetensors", "minivl/_weights/MANIFEST.json"} <= names
    # nothing that would hide a module of others, such as the builtin eval
    assert {name.split("/")[0] for name in names} == {"minivl", f"minivl-{minivl.__version__}.dist-info"}
    assert any(name.endswith("LICENSE") for name in names)


def test_an_installed_wheel_finds_its_weights(wheel: Path, tmp_path: Path) -> None:
    installed, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    with zipfile.ZipFile(wheel) as opened:
        opened.extractall(installed)
    environment = {key: value for key, value in os.environ.items() if key != "MINIVL_WEIGHTS"}
    code = "import minivl; model = minivl.load('tiny-one', verify=True); print(minivl.__file__, type(model).__name__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=elsewhere, capture_output=True, text=True, timeout=120,
                          env={**environment, "PYTHONPATH": str(installed), "XDG_CACHE_HOME": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(installed / "minivl" / "__init__.py"), "Captioner"]
