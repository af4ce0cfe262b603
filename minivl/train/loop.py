"""The training loop: deterministic, resumable, and careful about what it leaves behind.

A run is a folder: ``checkpoint.safetensors`` (resume), ``best.safetensors`` and ``last.safetensors`` (use),
``history.jsonl`` (every step's loss, every epoch's scores), ``config.json`` (repeat it).
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..errors import InputError, some
from .checkpoint import frozen_hash, load_checkpoint, save_checkpoint
from .optim import Ema, decay_groups, is_frozen, warmup_cosine
from .run import BEST, CHECKPOINT, LAST, Run

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """The settings of a training.

    Attributes:
        epochs: passes over the data.
        lr: highest learning rate.
        weight_decay: of AdamW, on matrices only.
        warmup: steps of linear warm-up.
        clip: largest norm of the gradient; 0 = none.
        precision: "fp32", or "bf16" (autocast; weights stay float32).
        ema: decay of the moving average of weights that is scored and saved; 0 = none.
        seed: of everything random.
        save_every: seconds between checkpoints inside an epoch; 0 = at epoch ends only.
    """

    epochs: int
    lr: float
    weight_decay: float = 0.05
    warmup: int = 0
    clip: float = 1.0
    precision: str = "fp32"
    ema: float = 0.0
    seed: int = 0
    save_every: float = 120.0

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise InputError(f"precision={self.precision!r}: give one of {some(PRECISIONS)}")
        for name, low, high in (("epochs", 1, math.inf), ("lr", 0, math.inf), ("weight_decay", 0, math.inf),
                                ("warmup", 0, math.inf), ("clip", 0, math.inf), ("ema", 0, 1)):
            value = getattr(self, name)
            if not low <= value <= high or math.isinf(value):
                allowed = f"a number from {low} up" if high == math.inf else f"a number from {low} to {high}"
                raise InputError(f"{name}={value}: give {allowed}")


class Task(Protocol):
    """What is trained: where batches come from, what their loss is, how the model is scored."""

    steps: int  # batches of an epoch

    def batches(self, epoch: int, start: int) -> Iterator[Any]:
        """The batches of an epoch from number `start` on; a function of (seed, epoch) alone."""
        ...

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """A scalar."""
        ...

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Scores after an epoch; the first one decides which epoch is best (higher is better)."""
        ...

    def save(self, model: nn.Module, path: Path, scores: Mapping[str, float]) -> None:
        """Write the model as a weight file."""
        ...


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The autocast context of a precision."""
    dtype = PRECISIONS[precision]
    plain = dtype == torch.float32
    return torch.autocast(device.type, dtype=None if plain else dtype, enabled=not plain)


def train_mode(model: nn.Module) -> None:
    """Training mode, but for the parts that are frozen: no dropout there, and statistics that stay."""
    model.train()
    for module in model.modules():
        if is_frozen(module):
            module.eval()


def fit(model: nn.Module, task: Task, plan: Plan, *, out: str | os.PathLike[str],
        settings: Mapping[str, Any], resume: bool = False,
        progress: Callable[..., Iterable[Any]] | None = None) -> Iterator[dict[str, Any]]:
    """Train; yields one row per epoch: ``{"epoch", "step", "train_loss", score names..., "seconds"}``.

    Every random draw inside step n comes from (seed, n), every order from (seed, epoch): a run that was
    stopped and resumed has the losses of one that was not, on the same machine and thread count.

    Args:
        model: already on its device; frozen parameters have requires_grad=False.
        task: see `Task`.
        plan: see `Plan`.
        out: the folder of the run.
        settings: JSON-able description of the run; with the plan and the steps of an epoch it is written to
            config.json and into the checkpoint, and held against both on resume.
        resume: continue from the folder's checkpoint.
        progress: tqdm-like: called with (iterable, total=, initial=, desc=).

    Raises:
        InputError: the folder holds a run and resume is off, or none and it is on; settings that differ; a
            file of the run that is damaged, or the checkpoint of a finished epoch that is missing;
            a loss or gradient that is not finite (the last good checkpoint stays).
        KeyboardInterrupt: Ctrl-C or SIGTERM, after saving a checkpoint of the last whole step (where it came
            while the weights were being changed, the checkpoint before stays).
    """
    told = {**vars(plan), "steps_per_epoch": task.steps, **settings}
    del told["save_every"]  # changes nothing that is computed
    run = Run(Path(out))
    optimizer = torch.optim.AdamW(decay_groups(model, plan.weight_decay), lr=plan.lr, betas=(0.9, 0.98))
    ema = Ema(model, plan.ema) if plan.ema else None
    frozen = frozen_hash(model)
    state = run.open(told, resume, lambda path: load_checkpoint(path, model, optimizer, ema, frozen))
    device = next(model.parameters()).device
    total = plan.epochs * task.steps

    def checkpoint() -> None:
        save_checkpoint(run.folder / CHECKPOINT, model, optimizer, ema, {**state, "settings": told}, frozen)

    with _sigterm_interrupts():
        while state["epoch"] < plan.epochs:
            epoch, begun, saved = state["epoch"], time.monotonic(), time.monotonic()
            start = state["step"] - epoch * task.steps
            batches: Iterable[Any] = task.batches(epoch, start)
            if progress is not None:
                batches = progress(batches, total=task.steps, initial=start, desc=f"epoch {epoch + 1}")
            train_mode(model)
            whole = True  # no step has half changed the weights
            held = [buffer.clone() for buffer in model.buffers()]  # after the last whole step
            try:
                for batch in batches:
                    rate = plan.lr * warmup_cosine(state["step"], total, plan.warmup)
                    torch.manual_seed(_mix(plan.seed, state["step"]))
                    loss = _gradients(model, task, batch, optimizer, rate, plan, device, run, state["step"])
                    whole = False
                    optimizer.step()
                    if ema is not None:
                        ema.update(model)
                    state["step"] += 1
                    state["sum"] += loss
                    run.write({"step": state["step"], "loss": loss, "lr": rate})
                    _copy(model.buffers(), held)
                    whole = True
                    if plan.save_every and time.monotonic() - saved > plan.save_every:
                        checkpoint()
                        saved = time.monotonic()
            except KeyboardInterrupt:
                if whole:
                    _copy(held, model.buffers())  # a forward pass may have moved batch norms' statistics
                    checkpoint()
                raise
            checkpoint()  # scoring may take long, and be interrupted
            row = {"epoch": epoch + 1, "step": state["step"], "train_loss": state["sum"] / task.steps}
            row.update(_score(model, task, ema, run, state))
            row["seconds"] = state["seconds"] = state["seconds"] + time.monotonic() - begun
            state["epoch"], state["sum"] = epoch + 1, 0.0
            run.write(row)
            checkpoint()
            yield row


def _gradients(model: nn.Module, task: Task, batch: Any, optimizer: torch.optim.Optimizer, rate: float,
               plan: Plan, device: torch.device, run: "Run", step: int) -> float:
    """Gradients and learning rate of one step; returns the loss."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    with autocast(device, plan.precision):
        loss = task.loss(model, batch)
    value = loss.item()
    if math.isfinite(value):
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        norm = nn.utils.clip_grad_norm_(trained, plan.clip or math.inf)
        if math.isfinite(norm.item()):
            return value
        value = math.nan
    raise InputError(f"loss or gradient is not finite at step {step + 1} (learning rate {rate:.2g}); "
                     f"training stopped, {run.last_good()}; try a lower learning rate in another --out",
                     source=run.folder)


def _copy(sources: Iterable[Tensor], targets: Iterable[Tensor]) -> None:
    """Each of these tensors into its place."""
    for source, target in zip(sources, targets):
        target.copy_(source)


def _score(model: nn.Module, task: Task, ema: Ema | None, run: "Run",
           state: dict[str, Any]) -> dict[str, float]:
    """Evaluate the (averaged) model, and write it as last and perhaps best."""
    if ema is not None:
        ema.swap(model)
    model.eval()
    try:
        with torch.no_grad():
            scores = task.evaluate(model)
        task.save(model, run.folder / LAST, scores)
        first = next(iter(scores.values()), -math.inf)
        if state["best"] is None or first > state["best"]:
            task.save(model, run.folder / BEST, scores)
            state["best"] = first
    finally:
        if ema is not None:
            ema.swap(model)
    return scores


@contextlib.contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """SIGTERM ends the loop as Ctrl-C does (only the main thread may set handlers)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _mix(seed: int, step: int) -> int:
    """One 63-bit seed from two numbers (multiplicative hashing; neighbours give unlike streams)."""
    return (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) % (1 << 63)
