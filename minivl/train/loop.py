"""The training loop: deterministic, resumable, and careful about what it leaves behind.

A run is a folder: ``checkpoint.safetensors`` (resume), ``best.safetensors`` and ``last.safetensors`` (use),
``history.jsonl`` (every step's loss, every epoch's scores), ``config.json`` (repeat it).
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ..files import write_text
from .checkpoint import frozen_hash, load_checkpoint, save_checkpoint
from .distributed import ALONE, Processes
from .interrupts import Interrupts
from .optim import Ema, decay_groups, is_frozen, make_optimizer, schedule
from .plan import FREE, Plan
from .run import BEST, CHECKPOINT, LAST, Run
from .step import PRECISIONS, Stepper, autocast, copy_all

__all__ = ["PRECISIONS", "Plan", "Task", "autocast", "fit", "train_mode"]

logger = logging.getLogger(__name__)


class Task(Protocol):
    """What is trained: where batches come from, what their loss is, how the model is scored."""

    steps: int  # batches of an epoch

    def batches(self, epoch: int, start: int) -> Iterator[Any]:
        """The batches of an epoch from number `start` on; a function of (seed, epoch) alone."""
        ...

    def parts(self, batch: Any) -> list[tuple[Any, float]]:
        """Micro-batches of a batch, computed one after the other, and the weight of the mean loss of each in that of
        the whole batch: all of them, over all processes, sum to 1."""
        ...

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The mean over a micro-batch, a scalar."""
        ...

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Scores after an epoch; the first one decides which epoch is best (higher is better)."""
        ...

    def save(self, model: nn.Module, path: Path, scores: Mapping[str, float]) -> None:
        """Write the model as a weight file."""
        ...


@runtime_checkable
class Shown(Protocol):
    """A task that has more to tell of a step than its loss."""

    def shown(self) -> dict[str, float]:
        """Of the last step, by name, for history.jsonl; every process calls this."""
        ...


def train_mode(model: nn.Module) -> None:
    """Training mode, but for the parts that are frozen: no dropout there, and statistics that stay."""
    model.train()
    for module in model.modules():
        if is_frozen(module):
            module.eval()


def fit(model: nn.Module, task: Task, plan: Plan, *, out: str | os.PathLike[str],
        settings: Mapping[str, Any], resume: bool = False, processes: Processes = ALONE,
        wrap: Callable[[nn.Module], nn.Module] | None = None, compiled: bool = False,
        files: Mapping[str, str] | None = None,
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
        processes: among which each batch is shared (every process calls `fit`; only the first writes, scores and
            yields scores).
        wrap: makes of the model what losses are computed with, such as `CaptionTask.wrap`; the same parameters.
        compiled: compute losses with `torch.compile`.
        files: texts to be written into the folder before the first step, by their names.
        progress: tqdm-like: called with (iterable, total=, initial=, desc=).

    Raises:
        InputError: the folder holds a run and resume is off, or none and it is on; another process is training
            there; settings that differ; a file of the run that is damaged, or the checkpoint of a finished epoch that
            is missing; a loss or gradient that is not finite (the last good checkpoint stays).
        KeyboardInterrupt: Ctrl-C or SIGTERM, after saving a checkpoint of the last whole step (where it came
            while the weights were being changed, the checkpoint before stays). Several processes end the step that
            is under way, so that all stand at the same one; a second Ctrl-C stops one at once.
    """
    with contextlib.closing(Run(Path(out))) as run:
        training = _Training(model, task, plan, run, settings, processes, wrap, compiled, resume)
        if processes.first:
            for name, text in (files or {}).items():
                write_text(Path(out) / name, text)
        with training.interrupts:
            while training.state["epoch"] < plan.epochs:
                if not training.rest_of_epoch(progress):
                    return
                yield training.score()


class _Training:
    """A run under way: model, optimiser, average and where it stands. Arguments as in `fit`."""

    def __init__(self, model: nn.Module, task: Task, plan: Plan, run: Run, settings: Mapping[str, Any],
                 processes: Processes, wrap: Callable[[nn.Module], nn.Module] | None, compiled: bool,
                 resume: bool) -> None:
        self.model, self.task, self.plan, self.run, self.processes = model, task, plan, run, processes
        self.told = {**{key: value for key, value in vars(plan).items() if key not in FREE},
                     "steps_per_epoch": task.steps, **settings}
        self.total = plan.epochs * task.steps
        self.frozen = frozen_hash(model)
        self.interrupts = Interrupts(processes.count > 1)
        self.whole = True  # no step has half changed the weights
        self.together = False  # every process ends after this step
        shared = processes.share(model, wrap, compiled)  # first: it may put parts in the place of weights
        groups = decay_groups(model, plan.weight_decay, plan.layer_decay, plan.encoder_scale)
        self.optimizer = make_optimizer(plan.optimizer, groups, momentum=plan.momentum)
        self.ema = Ema(model, plan.ema) if plan.ema else None
        self.stepper = Stepper(shared, task, plan, self.optimizer, processes)
        self.state = processes.first_then_all(lambda: run.open(self.told, resume, self.restore),
                                              lambda: run.follow(resume, self.restore))
        if processes.first:
            self.warn()
        self.started = self.begun = self.saved = time.monotonic()

    def warn(self) -> None:
        """Tell of rates that are hardly meant."""
        if self.plan.warmup >= self.total:
            logger.warning("warm-up: the learning rate rises for %d steps, and all epochs together have %d, so that it "
                           "never comes down", self.plan.warmup, self.total)
        if not self.plan.lr:
            logger.warning("learning rate 0: no weight will change")

    def restore(self, path: Path) -> dict[str, Any]:
        """Put a checkpoint back; returns the progress it was saved with."""
        progress = load_checkpoint(path, self.model, self.optimizer, self.ema, self.frozen)
        self.stepper.scaler.load_state_dict(progress.pop("scaler", {}) or self.stepper.scaler.state_dict())
        return progress

    def checkpoint(self) -> None:
        """Write down where training stands."""
        now = time.monotonic()
        self.state["seconds"] += now - self.begun
        self.begun = now
        save_checkpoint(self.run.folder / CHECKPOINT, self.model, self.optimizer, self.ema,
                        {**self.state, "settings": self.told, "scaler": self.stepper.scaler.state_dict()}, self.frozen,
                        self.processes)
        self.saved = time.monotonic()

    def rest_of_epoch(self, progress: Callable[..., Iterable[Any]] | None) -> bool:
        """Train to the end of the epoch, and write down where that is; False where the time limit came first."""
        state, task = self.state, self.task
        start = state["step"] - state["epoch"] * task.steps
        batches: Iterable[Any] = task.batches(state["epoch"], start)
        if progress is not None:
            batches = progress(batches, total=task.steps, initial=start, desc=f"epoch {state['epoch'] + 1}")
        train_mode(self.model)
        self.whole = True
        held = [buffer.clone() for buffer in self.model.buffers()]  # after the last whole step
        try:
            with self.interrupts.held():
                for batch in batches:
                    self.step(batch, held)
                    if self.out_of_time():
                        return False
                    self.end_together()
                self.checkpoint()  # scoring may take long, and be interrupted
                self.end_together()
        except KeyboardInterrupt:
            if self.whole and (not self.processes.shard or self.together):  # writing parts needs every process
                self.stepper.undo()
                copy_all(held, self.model.buffers())  # a forward pass may have moved batch norms' statistics
                self.checkpoint()
                if self.together:
                    self.processes.any(False)  # when one has gone, torchrun ends the others: not before all is written
            raise
        return True

    def end_together(self) -> None:
        """Raise KeyboardInterrupt in every process where one of several was told to end."""
        if self.processes.count > 1 and self.processes.any(self.interrupts.noted):
            self.together = True
            if self.processes.first:
                logger.info("told to end: all processes stop after step %d", self.state["step"])
            raise KeyboardInterrupt

    def step(self, batch: Any, held: list[Tensor]) -> None:
        """One step; the buffers after it go to `held`."""
        state, task = self.state, self.task
        loss = self.stepper.gradients(batch, rate := self.rate(), state["step"], self.run)
        self.whole = False
        self.stepper.step()
        if self.ema is not None:
            self.ema.update(self.model)
        state["step"] += 1
        state["sum"] += loss
        shown = task.shown() if isinstance(task, Shown) else {}
        if self.processes.first:
            self.run.write({"step": state["step"], "loss": loss, "lr": rate, **shown})
        copy_all(self.model.buffers(), held)
        self.whole = True

    def rate(self) -> float:
        """The learning rate of the next step."""
        plan = self.plan
        return plan.lr * schedule(plan.schedule, self.state["step"], self.total, plan.warmup, factor=plan.factor,
                                  period=plan.period * self.task.steps)

    def out_of_time(self) -> bool:
        """After a step: write a checkpoint where one is due; whether the time limit is reached."""
        now, plan = time.monotonic(), self.plan
        due = bool(plan.save_every) and now - self.saved > plan.save_every
        if self.processes.any(due) if self.processes.shard else due:  # writing parts needs every process
            self.checkpoint()
        if not plan.time_limit or not self.processes.any(now - self.started > plan.time_limit):
            return False
        self.checkpoint()
        logger.info("time limit of %g s reached at step %d of %d; --resume goes on", plan.time_limit,
                    self.state["step"], self.total)
        return True

    def score(self) -> dict[str, Any]:
        """End the epoch: scores, weights and the row of the history."""
        state = self.state
        row = {"epoch": state["epoch"] + 1, "step": state["step"], "train_loss": state["sum"] / self.task.steps}
        row.update(_score(self.model, self.task, self.ema, self.run, state, self.processes))
        row["seconds"] = state["seconds"] + time.monotonic() - self.begun
        state["epoch"], state["sum"] = state["epoch"] + 1, 0.0
        if self.processes.first:
            self.run.write(row)
        self.checkpoint()
        return row


def _score(model: nn.Module, task: Task, ema: Ema | None, run: "Run", state: dict[str, Any],
           processes: Processes) -> dict[str, float]:
    """Evaluate the (averaged) model, and write it as last and perhaps best; the first process does, the others wait."""
    scores: dict[str, float] = {}
    if ema is not None:
        ema.swap(model)
    scored = processes.whole(model)
    scored.eval()
    try:
        if not processes.first:
            return scores
        with torch.no_grad():
            scores = task.evaluate(scored)
        task.save(scored, run.folder / LAST, scores)
        first = next(iter(scores.values()), -math.inf)
        if state["best"] is None or first > state["best"]:
            task.save(scored, run.folder / BEST, scores)
            state["best"] = first
    finally:
        if ema is not None:
            ema.swap(model)
    return scores
