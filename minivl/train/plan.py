"""The settings of a training."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import InputError, some
from .optim import OPTIMIZERS, SCHEDULES
from .step import PRECISIONS

FREE = ("save_every", "time_limit")  # settings that change nothing of what is computed


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
        encoder_lr: highest learning rate of the encoder of pictures (see `optim.encoder_in`); None = lr.
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
    encoder_lr: float | None = None

    @property
    def encoder_scale(self) -> float:
        """Factor on the learning rate within the encoder."""
        return 1.0 if self.encoder_lr is None else self.encoder_lr / self.lr

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
        for name in ("ema", "momentum"):
            if getattr(self, name) == 1:
                raise InputError(f"{name}={getattr(self, name)}: nothing of the past would ever be forgotten; give "
                                 "less than 1")
        if self.encoder_lr is not None and not (0 <= self.encoder_lr < math.inf and self.lr):
            raise InputError(f"encoder_lr={self.encoder_lr}: give a number from 0 up, beside an lr above 0 (which is "
                             f"{self.lr})")
        if (self.sam_adaptive or self.sam_local) and not self.sam:
            raise InputError("sam_adaptive and sam_local change SAM, which is off: give sam a radius")
