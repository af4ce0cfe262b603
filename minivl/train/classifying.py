"""Training classifiers: cross-entropy over classes, on photos or on stored features, scored by accuracy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.augment import Augment, check_mixing, mix_batch, mixed
from ..data.order import cuts
from ..data.workers import fetched
from ..errors import InputError, some
from ..images import Photo
from ..loading import save
from ..metrics.classification import mean_per_class, top_k
from ..models.vit import ViT
from .distributed import ALONE, Processes
from .loop import autocast

Progress = Callable[..., Iterable[Any]]


class Batch(NamedTuple):
    """What one process computes of a batch.

    Attributes:
        images: (b, 3, H, W), or features (b, ...).
        targets: (b,) classes, or (b, V) shares of them where pictures are mixed.
        counted: how many of these rows are of the batch: b, or 0 where this process has no share of it and
            only computes for the others' sake, who wait for its gradients.
        whole: rows of the whole batch, over all processes.
    """

    images: Tensor
    targets: Tensor
    counted: int
    whole: int


class _Plan(NamedTuple):
    """What is to be fetched as one batch."""

    epoch: int
    step: int
    samples: list[int]
    counted: int
    whole: int


class _Fetch:
    """Batches by their plan."""

    def __init__(self, photos: Sequence[Photo] | Tensor, labels: Sequence[int], augment: Augment | None,
                 mixing: Mapping[str, Any] | None = None) -> None:
        self._photos, self._labels, self._augment = photos, torch.as_tensor(labels), augment
        self._mixing = mixing

    def __call__(self, plan: _Plan) -> Batch:
        images = self._images(plan)
        targets = self._labels[plan.samples]
        if self._mixing is not None:
            images, targets = mix_batch(images, targets, epoch=plan.epoch, step=plan.step, **self._mixing)
        return Batch(images, targets, plan.counted, plan.whole)

    def _images(self, plan: _Plan) -> Tensor:
        if isinstance(self._photos, Tensor):
            return self._photos[plan.samples]
        assert self._augment is not None
        return torch.stack([self._augment(self._photos[sample], plan.epoch, sample) for sample in plan.samples])


class ClassifyTask:
    """`minivl.train.loop.Task` for classifiers.

    The order of an epoch is of (seed, epoch). Each batch of it is shared among the processes, and a process computes
    its share in micro-batches; both are cut by whole pairs where pictures are mixed (see `mix_batch`), and weighted by
    their rows, so that any number of either gives the same gradient.

    Args:
        model: the classifier that will be trained (config and preprocessing are read).
        photos: training pictures: files, PIL images or, for a linear probe, features of `pooled_features`.
        labels: class of each.
        val_photos, val_labels: the same for validation.
        augment: how a training picture becomes a tensor; None = as the model's preprocessing says.
        batch_size: pictures in a batch, over all processes and micro-batches; the last of an epoch may have fewer.
        accumulate: micro-batches of a process's share.
        smoothing: label smoothing.
        mixup, cutmix, mix_probability: see `mix_batch`.
        seed: of order and mixing.
        workers: processes that read pictures.
        processes: among which each batch is shared.
        about: put into the header of saved weights, beside the scores.
        progress: tqdm-like, for validation.

    Raises:
        InputError: no pictures, a label beyond the head, as many labels as pictures are needed, a setting out of
            range, a model without a head or of unknown preprocessing, mixing of features.
    """

    def __init__(self, model: ViT, photos: Sequence[Photo] | Tensor, labels: Sequence[int],
                 val_photos: Sequence[Photo] | Tensor, val_labels: Sequence[int], *, augment: Augment | None = None,
                 batch_size: int = 32, accumulate: int = 1, smoothing: float = 0.0, mixup: float = 0.0,
                 cutmix: float = 0.0, mix_probability: float = 1.0, seed: int = 0, workers: int = 0,
                 processes: Processes = ALONE, about: Mapping[str, Any] | None = None,
                 progress: Progress | None = None) -> None:
        self._classes = model.config.num_classes
        for name, value in (("batch_size", batch_size), ("accumulate", accumulate)):
            if value < 1:
                raise InputError(f"{name}={value}: give 1 or more")
        if not 0 <= smoothing < 1:
            raise InputError(f"smoothing={smoothing}: give 0 or more, less than 1")
        check_mixing(mixup, cutmix, mix_probability)
        self._check_labels(photos, labels, "training")
        self._check_labels(val_photos, val_labels, "validation")
        if isinstance(photos, Tensor) != isinstance(val_photos, Tensor):
            raise InputError("features are needed for both training and validation, or for neither")
        stored, mixes = isinstance(photos, Tensor), mixup > 0 or cutmix > 0
        if stored and (mixes or augment is not None):
            raise InputError("stored features are neither mixed nor augmented: train the encoder too, or leave it out")
        plain = None if stored else _plain(model)
        mixing = {"classes": self._classes, "seed": seed, "mixup": mixup, "cutmix": cutmix,
                  "probability": mix_probability} if mixes else None
        self._train = _Fetch(photos, labels, augment or plain, mixing)
        self._val = _Fetch(val_photos, val_labels, plain)
        self._count, self._val_count, self._batch_size = len(labels), len(val_labels), batch_size
        self._accumulate, self._smoothing, self._seed, self._workers = accumulate, smoothing, seed, workers
        self._processes, self._unit = processes, 2 if mixes else 1
        self._about, self._progress = dict(about or {}), progress
        self._pin = model.pos_embed.device.type == "cuda"
        self.steps = -(-self._count // batch_size)

    def _check_labels(self, photos: Sequence[Photo] | Tensor, labels: Sequence[int], what: str) -> None:
        if len(photos) != len(labels) or not len(labels):
            raise InputError(f"{len(photos)} {what} pictures with {len(labels)} labels: one for each is needed")
        if not self._classes:
            raise InputError("num_classes=0: the model has no head to train")
        beyond = sorted({label for label in labels if not 0 <= label < self._classes})
        if beyond:
            raise InputError(f"{what} labels {some(beyond)} are beyond the head of {self._classes} classes")

    # -- training --------------------------------------------------------------------------------------------

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """This process's share of each batch of an epoch from number `start` on."""
        order = torch.randperm(self._count, generator=torch.Generator().manual_seed(mixed(self._seed, "order", epoch)))
        plans = []
        for step in range(start, self.steps):
            samples = order[step * self._batch_size:(step + 1) * self._batch_size].tolist()
            first, last = cuts(len(samples), self._processes.count, self._unit)[self._processes.rank]
            # without a share there is still one row to compute: the others wait for gradients
            own = samples[first:last] or samples[:1]
            plans.append(_Plan(epoch, step, own, last - first, len(samples)))
        return fetched(self._train, plans, workers=self._workers, pin=self._pin)

    def parts(self, batch: Batch) -> list[tuple[Batch, float]]:
        """Micro-batches, weighted by their rows."""
        places = [(first, last) for first, last in cuts(batch.counted, self._accumulate, self._unit)
                  if last > first or self._processes.count > 1]  # they wait for each other: all make as many passes
        rows = [slice(first, last) if last > first else slice(0, 1) for first, last in places]
        return [(batch._replace(images=batch.images[part], targets=batch.targets[part], counted=last - first),
                 (last - first) / batch.whole) for part, (first, last) in zip(rows, places)]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean cross-entropy, with label smoothing (Szegedy et al. 2016)."""
        logits = _logits(model, batch)
        return F.cross_entropy(logits, batch.targets.to(logits.device), label_smoothing=self._smoothing)

    # -- validation ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Top-1, top-5 (of fewer than 5 classes: all), mean per class and cross-entropy of the validation pictures."""
        plans = [_Plan(0, 0, list(range(first, last)), last - first, last - first)
                 for first, last in cuts(self._val_count, -(-self._val_count // 64))]
        batches: Iterable[Batch] = fetched(self._val, plans, workers=self._workers, pin=self._pin)
        if self._progress is not None:
            batches = self._progress(batches, total=len(plans), desc="validation")
        found = [(_logits(model, batch).float().cpu(), batch.targets) for batch in batches]
        logits, labels = (torch.cat(one) for one in zip(*found))  # (n, V), (n,)
        if logits.isnan().any():
            raise InputError("what the model says of the validation pictures is not a number: training has diverged, "
                             "try a lower learning rate")
        top1, top5 = (top_k(logits, labels, k).double().mean().item() for k in (1, 5))
        return {"top1": top1, "top5": top5,
                "mean_per_class": mean_per_class(logits.argmax(1), labels, self._classes),
                "val_loss": F.cross_entropy(logits, labels).item()}

    def save(self, model: nn.Module, path: Path, scores: Mapping[str, float]) -> None:
        """A weight file whose header holds `about` and the scores."""
        assert isinstance(model, ViT)
        save(model, path, about={**self._about, "scores": dict(scores)})


def _plain(model: ViT) -> Augment:
    """The preprocessing of a model, nothing changed at random."""
    if model.preprocessing is None:
        raise InputError("the model's preprocessing is unknown, so it cannot be shown photos")
    return Augment(model.preprocessing)


# -- a linear probe ------------------------------------------------------------------------------------------

class Probe(nn.Module):
    """The heads of a ViT alone, over features of `pooled_features`: what `fit` wraps the model in.

    Args:
        model: the classifier; its parameters are the probe's.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, features: Tensor) -> Tensor:
        """(B, k, D) -> (B, V)."""
        model = self.model
        assert isinstance(model, ViT)
        if model.head_dist is None:
            return model.head(features[:, 0])
        return (model.head(features[:, 0]) + model.head_dist(features[:, 1])) / 2


@torch.no_grad()
def pooled_features(model: ViT, photos: Sequence[Photo], *, batch_size: int = 64, workers: int = 0,
                    precision: str = "fp32", progress: Progress | None = None) -> Tensor:
    """What the heads of a frozen ViT see of each photo.

    Args:
        model: with known preprocessing; it is put into eval mode.
        photos: files or PIL images.
        batch_size: photos encoded together.
        workers: processes that read pictures.
        precision: "fp32", "bf16" or "fp16" (autocast).
        progress: tqdm-like: called with (iterable, total=, desc=).

    Returns:
        (n, k, D) float32 on the CPU, with one row for each of the k = 1 or 2 heads (see `ViTConfig.pool`; D is what
        the head takes).

    Raises:
        InputError: the preprocessing is unknown, no photos, or one that does not open.
    """
    if not len(photos):
        raise InputError("photos is empty, at least one file or PIL image is needed")
    device = model.pos_embed.device
    plans = [_Plan(0, 0, list(range(first, last)), last - first, last - first)
             for first, last in cuts(len(photos), -(-len(photos) // batch_size))]
    fetch = _Fetch(photos, [0] * len(photos), _plain(model))
    batches: Iterable[Batch] = fetched(fetch, plans, workers=workers, pin=device.type == "cuda")
    if progress is not None:
        batches = progress(batches, total=len(plans), desc="encoding photos")
    model.eval()
    rows = []
    for batch in batches:
        with autocast(device, precision):
            tokens = model.encode(batch.images.to(device, non_blocking=True))
            seen = [model.pool(tokens), *([] if model.head_dist is None else [tokens[:, 1]])]
        rows.append(torch.stack(seen, 1).float().cpu())
    return torch.cat(rows)


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    device = next(model.parameters()).device
    images = batch.images.to(device, non_blocking=True)
    if images.ndim == 3 and isinstance(model, ViT):
        model = Probe(model)
    return model(images)
