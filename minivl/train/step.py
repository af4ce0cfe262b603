"""One step of training: gradients of a whole batch, however it is divided, and what the optimiser does with them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from .distributed import Processes, whole
from .sam import Sam

if TYPE_CHECKING:
    from .loop import Task
    from .plan import Plan
    from .run import Run

SMALLEST_SCALE = 2.0 ** -20  # of fp16: gradients that overflow even so will always
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The autocast context of a precision."""
    dtype = PRECISIONS[precision]
    plain = dtype == torch.float32
    return torch.autocast(device.type, dtype=None if plain else dtype, enabled=not plain)


class Stepper:
    """One step of the optimiser: gradients of the whole batch, once or (SAM) twice, over micro-batches and processes.

    Args:
        model: what losses are computed with, as `Processes.share` gives it.
        task, plan: see `fit`.
        optimizer: over the same parameters.
        processes: among which the batch is shared.

    Raises:
        InputError: sam_local with parts of weights, which no process could move by a gradient of its own.
    """

    def __init__(self, model: nn.Module, task: Task, plan: Plan, optimizer: torch.optim.Optimizer,
                 processes: Processes) -> None:
        if plan.sam_local and processes.shard:
            raise InputError("sam_local: processes that keep parts of the weights (shard) have no gradients of their "
                             "own; give one of the two")
        self._model, self._task, self._plan, self._optimizer = model, task, plan, optimizer
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
            copy_all(held, self._model.buffers())  # statistics move once a step, at the weights themselves
        if math.isfinite(loss):
            self.scaler.unscale_(self._optimizer)
            norm = nn.utils.clip_grad_norm_(self._parameters, self._plan.clip or math.inf)
            # fp16 overflows now and then: the scaler leaves such a step out and scales less
            if math.isfinite(whole(norm).item()) or self._may_overflow():
                return loss
        self.undo()
        raise InputError(f"loss or gradient is not finite at step {step + 1} (learning rate {rate:.2g}); "
                         f"training stopped, {run.last_good()}; try a lower learning rate in another --out",
                         source=run.folder)

    def _backward(self, parts: list[tuple[Any, float]], step: int, synchronise: bool) -> float:
        """Gradients of the weighted sum of all parts; both passes of a step draw the same random numbers."""
        torch.manual_seed(mix(mix(self._plan.seed, step), self._processes.rank) if self._processes.rank else
                          mix(self._plan.seed, step))
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

    def _may_overflow(self) -> bool:
        return self.scaler.is_enabled() and self.scaler.get_scale() > SMALLEST_SCALE

    def step(self) -> None:
        """Let the optimiser move the weights."""
        self.scaler.step(self._optimizer)
        self.scaler.update()

    def undo(self) -> None:
        """Put back weights that SAM has moved for its second gradient."""
        if self._sam is not None:
            self._sam.restore()


def copy_all(sources: Iterable[Tensor], targets: Iterable[Tensor]) -> None:
    """Each of these tensors into its place."""
    for source, target in zip(sources, targets):
        target.copy_(source)


def mix(seed: int, step: int) -> int:
    """One 63-bit seed from two numbers (multiplicative hashing; neighbours give unlike streams)."""
    return (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) % (1 << 63)
