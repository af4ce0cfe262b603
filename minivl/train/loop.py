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
from .distributed import ALONE, Processes
from .optim import OPTIMIZERS, SCHEDULES, Ema, decay_groups, is_frozen, make_optimizer, schedule
from .run import BEST, CHECKPOINT, LAST, Run
from .sam import Sam

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FREE = ("save_every", "time_limit")  # settings that change nothing of what is computed

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """The settings of a training.

    Attributes:
        epochs: passes over the data.
        lr: highest learning rate.
        weight_decay: on matrices only.
        warmup: steps of linear warm-up.
        clip: largest norm of the gradient; 0 = none.
        precision: "fp32", or "bf16" or "fp16" (autocast; weights stay float32; fp16 scales its losses).
        ema: decay of the moving average of weights that is scored and saved; 0 = none.
        seed: of everything random.
        save_every: seconds between checkpoints inside an epoch; 0 = at epoch ends only.
        optimizer, momentum: see `optim.make_optimizer`.
        schedule, factor: see `optim.schedule`.
        period: epochs between two drops of the "step" schedule.
        layer_decay: see `optim.decay_groups`.
        sam: radius of sharpness-aware minimisation (see `sam.Sam`); 0 = none.
        sam_adaptive: its adaptive variant.
        sam_local: each process perturbs by the gradient of its own share of the batch, as in the paper, instead of by
            that of the whole batch.
        time_limit: seconds after which a checkpoint is written and training ends, to be resumed; 0 = none.
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
    optimizer: str = "adamw"
    momentum: float = 0.9
    schedule: str = "cosine"
    factor: float = 0.1
    period: int = 1
    layer_decay: float = 1.0
    sam: float = 0.0
    sam_adaptive: bool = False
    sam_local: bool = False
    time_limit: float = 0.0

    def __post_init__(self) -> None:
        for name, words in (("precision", PRECISIONS), ("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
            if getattr(self, name) not in words:
                raise InputError(f"{name}={getattr(self, name)!r}: give one of {some(words)}")
        for name, low, high in (("epochs", 1, math.inf), ("lr", 0, math.inf), ("weight_decay", 0, math.inf),
                                ("warmup", 0, math.inf), ("clip", 0, math.inf), ("ema", 0, 1), ("momentum", 0, 1),
                                ("factor", 0, 1), ("period", 1, math.inf), ("layer_decay", 0, 1),
                                ("sam", 0, math.inf), ("time_limit", 0, math.inf)):
            value = getattr(self, name)
            if not low <= value <= high or math.isinf(value):
                allowed = f"a number from {low} up" if high == math.inf else f"a number from {low} to {high}"
                raise InputError(f"{name}={value}: give {allowed}")
        if (self.sam_adaptive or self.sam_local) and not self.sam:
            raise InputError("sam_adaptive and sam_local change SAM, which is off: give sam a radius")


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
        settings: Mapping[str, Any], resume: bool = False, processes: Processes = ALONE,
        wrap: Callable[[nn.Module], nn.Module] | None = None,
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
        wrap: makes of the model what losses are computed with, e.g. `torch.compile`; the same parameters.
        progress: tqdm-like: called with (iterable, total=, initial=, desc=).

    Raises:
        InputError: the folder holds a run and resume is off, or none and it is on; settings that differ; a
            file of the run that is damaged, or the checkpoint of a finished epoch that is missing;
            a loss or gradient that is not finite (the last good checkpoint stays).
        KeyboardInterrupt: Ctrl-C or SIGTERM, after saving a checkpoint of the last whole step (where it came
            while the weights were being changed, the checkpoint before stays).
    """
    told = {**{key: value for key, value in vars(plan).items() if key not in FREE},
            "steps_per_epoch": task.steps, **settings}
    run = Run(Path(out))
    groups = decay_groups(model, plan.weight_decay, plan.layer_decay)
    optimizer = make_optimizer(plan.optimizer, groups, momentum=plan.momentum)
    ema = Ema(model, plan.ema) if plan.ema else None
    frozen = frozen_hash(model)
    stepper = Stepper(wrap(model) if wrap else model, task, plan, optimizer, processes)

    def restore(path: Path) -> dict[str, Any]:
        progress = load_checkpoint(path, model, optimizer, ema, frozen)
        stepper.scaler.load_state_dict(progress.pop("scaler", {}) or stepper.scaler.state_dict())
        return progress

    state = processes.first_then_all(lambda: run.open(told, resume, restore), lambda: run.follow(resume, restore))
    total, started = plan.epochs * task.steps, time.monotonic() - state["seconds"]

    def checkpoint() -> None:
        if processes.first:
            save_checkpoint(run.folder / CHECKPOINT, model, optimizer, ema,
                            {**state, "settings": told, "scaler": stepper.scaler.state_dict()}, frozen)

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
                    rate = plan.lr * schedule(plan.schedule, state["step"], total, plan.warmup, factor=plan.factor,
                                              period=plan.period * task.steps)
                    loss = stepper.gradients(batch, rate, state["step"], run)
                    whole = False
                    stepper.step()
                    if ema is not None:
                        ema.update(model)
                    state["step"] += 1
                    state["sum"] += loss
                    if processes.first:
                        run.write({"step": state["step"], "loss": loss, "lr": rate})
                    _copy(model.buffers(), held)
                    whole = True
                    if plan.save_every and time.monotonic() - saved > plan.save_every:
                        checkpoint()
                        saved = time.monotonic()
                    if plan.time_limit and processes.any(time.monotonic() - started > plan.time_limit):
                        state["seconds"] += time.monotonic() - begun
                        checkpoint()
                        logger.info("time limit of %g s reached at step %d of %d; --resume goes on",
                                    plan.time_limit, state["step"], total)
                        return
            except KeyboardInterrupt:
                if whole:
                    stepper.undo()
                    _copy(held, model.buffers())  # a forward pass may have moved batch norms' statistics
                    checkpoint()
                raise
            checkpoint()  # scoring may take long, and be interrupted
            row = {"epoch": epoch + 1, "step": state["step"], "train_loss": state["sum"] / task.steps}
            if processes.first:
                row.update(_score(model, task, ema, run, state))
            processes.wait()
            row["seconds"] = state["seconds"] = state["seconds"] + time.monotonic() - begun
            state["epoch"], state["sum"] = epoch + 1, 0.0
            if processes.first:
                run.write(row)
            checkpoint()
            yield row


class Stepper:
    """One step of the optimiser: gradients of the whole batch, once or (SAM) twice, over micro-batches and processes.

    Args:
        model: what losses are computed with.
        task, plan: see `fit`.
        optimizer: over the same parameters.
        processes: among which the batch is shared.
    """

    def __init__(self, model: nn.Module, task: Task, plan: Plan, optimizer: torch.optim.Optimizer,
                 processes: Processes) -> None:
        self._model, self._task, self._plan, self._optimizer = processes.share(model), task, plan, optimizer
        self._processes = processes
        self._parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._device = self._parameters[0].device
        self._sam = Sam(plan.sam, plan.sam_adaptive) if plan.sam else None
        self.scaler = torch.amp.GradScaler(self._device.type, enabled=plan.precision == "fp16")

    def gradients(self, batch: Any, rate: float, step: int, run: Run) -> float:
        """Set rate and gradients of a step; returns the loss of the whole batch.

        Raises:
            InputError: loss or gradient is not finite.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        local = self._sam is not None and self._plan.sam_local
        parts = self._task.parts(batch)
        loss = self._backward(parts, step, synchronise=not local)
        if self._sam is not None and math.isfinite(loss):
            held = [buffer.clone() for buffer in self._model.buffers()]
            self._sam.perturb(self._parameters)
            self._backward(parts, step, synchronise=True)
            self._sam.restore()
            _copy(held, self._model.buffers())  # statistics move once a step, at the weights themselves
        if math.isfinite(loss):
            self.scaler.unscale_(self._optimizer)
            norm = nn.utils.clip_grad_norm_(self._parameters, self._plan.clip or math.inf)
            # fp16 overflows now and then: the scaler leaves such a step out and scales less
            if self.scaler.is_enabled() or math.isfinite(norm.item()):
                return loss
        self.undo()
        raise InputError(f"loss or gradient is not finite at step {step + 1} (learning rate {rate:.2g}); "
                         f"training stopped, {run.last_good()}; try a lower learning rate in another --out",
                         source=run.folder)

    def _backward(self, parts: list[tuple[Any, float]], step: int, synchronise: bool) -> float:
        """Gradients of the weighted sum of all parts; both passes of a step draw the same random numbers."""
        torch.manual_seed(_mix(self._plan.seed, step))
        self._optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for number, (part, weight) in enumerate(parts):
            last = synchronise and number == len(parts) - 1
            with self._processes.together(self._model, last):
                with autocast(self._device, self._plan.precision):
                    loss = self._task.loss(self._model, part)
                # processes average their gradients, and the weights of all sum to 1
                self.scaler.scale(loss * (weight * self._processes.count)).backward()
            total += loss.item() * weight
        return self._processes.sum(total)

    def step(self) -> None:
        """Let the optimiser move the weights."""
        self.scaler.step(self._optimizer)
        self.scaler.update()

    def undo(self) -> None:
        """Put back weights that SAM has moved for its second gradient."""
        if self._sam is not None:
            self._sam.restore()


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
