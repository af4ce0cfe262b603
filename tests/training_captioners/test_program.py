"""train_p2.py as a program of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_runs import PAIR, SCENES, options, run, scenes_run, story

# Python 3.12 warns of forks beside threads; torch's are idle here
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def test_program_trains(data: Path, frozen: Path, tmp_path: Path) -> None:
    done = run(options(data, tmp_path / "one"))
    assert done.returncode == 0, done.stderr
    assert "epoch   2" in done.stdout and str(tmp_path / "one" / "best.safetensors") in done.stdout
    assert story(tmp_path / "one") == story(frozen)  # another process, the same numbers


def test_program_trains_a_pair(data: Path, frozen_pair: Path, tmp_path: Path) -> None:
    done = run(options(data, tmp_path / "one", **PAIR))
    assert done.returncode == 0, done.stderr
    assert "epoch   2" in done.stdout and "text to picture" in done.stdout
    assert story(tmp_path / "one") == story(frozen_pair)  # another process, the same numbers


def test_program_ends_with_one_line_and_code_2(data: Path, tmp_path: Path) -> None:
    done = run(options(data, tmp_path / "one", images=tmp_path / "nowhere"))
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == f"error: {tmp_path / 'nowhere'}: no such folder of images\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_program_on_scenes(data: Path, tmp_path: Path) -> None:
    done = run(options(data, tmp_path / "one", **SCENES))
    assert done.returncode == 0, done.stderr
    scenes_run(tmp_path / "one")
    again = run(options(data, tmp_path / "one", **SCENES))
    assert again.returncode == 2 and again.stderr.count("\n") == 1 and "already holds a run" in again.stderr
    resumed = run([*options(data, tmp_path / "one", **SCENES), "--resume"])
    assert resumed.returncode == 0, resumed.stderr
