"""train_p2.py with what the engine offers classifiers: optimisers, compiled blocks, a time limit, half precision."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import LEARNS, PAIR, step_losses, train

from minivl.train.run import read_history

# Python 3.12 warns of forks beside threads; torch's are idle here
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def test_every_option_of_the_optimiser(data: Path, tmp_path: Path) -> None:
    """SGD with SAM and steps of the rate, in one go and in micro-batches of blocks computed twice."""
    told = {**LEARNS, "optimizer": "sgd", "momentum": 0.5, "sam": 0.05, "sam_adaptive": True, "schedule": "step",
            "factor": 0.25, "period": 1, "lr": 0.01, "layer_decay": 0.5, "scheduled_sampling": 1.0, "read": "all",
            "bucket": True}
    train(data, tmp_path / "one", **told)
    train(data, tmp_path / "two", accumulate=3, checkpointing=True, **told)
    assert step_losses(tmp_path / "two") == pytest.approx(step_losses(tmp_path / "one"), abs=1e-6)
    rows = [row for row in read_history(tmp_path / "one") if "lr" in row]
    half = len(rows) // 2
    assert [row["lr"] for row in rows] == pytest.approx([0.005] + [0.01] * (half - 1) + [0.0025] * half)
    config = json.loads((tmp_path / "two" / "config.json").read_text())
    assert config["scheduled_sampling"] == 1.0 and config["read"] == "all" and config["optimizer"] == "sgd"


@pytest.mark.parametrize("changes", [LEARNS, {**PAIR, "freeze_encoder": None, "dropout": 0}])
def test_compiled_and_stopped_by_the_clock(data: Path, tmp_path: Path, changes: dict[str, Any],
                                           monkeypatch: pytest.MonkeyPatch,
                                           capsys: pytest.CaptureFixture[str]) -> None:
    train(data, tmp_path / "one", **changes)
    asked: list[Any] = []

    def compiled(model: Any) -> Any:  # as torch.compile traces it, without code being generated
        asked.append(model)
        return real(model, backend="eager")

    real = torch.compile
    monkeypatch.setattr(torch, "compile", compiled)
    capsys.readouterr()
    train(data, tmp_path / "two", compile=True, time_limit=1e-9, **changes)
    assert len(step_losses(tmp_path / "two")) == 1 and "best" not in capsys.readouterr().out
    while len(step_losses(tmp_path / "two")) < 3:
        train(data, tmp_path / "two", compile=True, time_limit=1e-9, resume=True, **changes)
    train(data, tmp_path / "two", resume=True, **changes)
    assert step_losses(tmp_path / "two") == pytest.approx(step_losses(tmp_path / "one"), abs=1e-6)
    assert len(asked) == 3


@pytest.mark.parametrize("changes", [{}, LEARNS])
def test_half_precision(data: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    for precision in ("fp32", "fp16"):
        train(data, tmp_path / precision, precision=precision, **changes)
    found, wanted = (step_losses(tmp_path / precision) for precision in ("fp16", "fp32"))
    assert found != wanted and found == pytest.approx(wanted, rel=0.02)


def test_half_precision_of_a_pair(data: Path, tmp_path: Path) -> None:
    """Steps whose gradients overflow are left out until the scale fits; then it learns."""
    for precision in ("fp32", "fp16"):
        train(data, tmp_path / precision, precision=precision, **{**PAIR, "epochs": 12, "drop_words": 0, "dropout": 0})
    found, wanted = (step_losses(tmp_path / precision) for precision in ("fp16", "fp32"))
    assert found != wanted and found[0] == pytest.approx(wanted[0], rel=1e-3)
    assert found[-1] < found[0] - 0.1
