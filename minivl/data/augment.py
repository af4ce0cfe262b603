"""Augmentation: pictures changed at random, by draws that belong to (seed, epoch, sample) and nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..errors import InputError, some
from ..images import Photo, Preprocessing, open_photo, to_tensor

AUTO = ("none", "autoaugment", "randaugment")


def mixed(*parts: int | str) -> int:
    """One 63-bit seed of several numbers and words; neighbours give unlike streams in every bit."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little") >> 1


class Augment:
    """A photo to the model's tensor, changed at random.

    In this order, each only where it is asked for: a random part of the photo resized to the model's size
    (``RandomResizedCrop``, in place of the preprocessing's own resizing and cropping), mirroring, AutoAugment (Cubuk
    et al. 2019, the policy of ImageNet) or RandAugment (Cubuk et al. 2020), colour jitter, normalisation, erasing
    (Zhong et al. 2020, with normal noise), all by torchvision's ``transforms.v2``. Where a turned picture leaves
    corners, they are of the mean colour. What a sample becomes depends on (seed, epoch, sample) alone, neither on
    the process that makes it nor on what was made before; torch's random state stays as it was.

    Args:
        preprocessing: of the model; size, interpolation, mean and std apply.
        seed: of all draws.
        crop_scale: smallest and largest share of the photo's area that is shown; None = the preprocessing's own crop.
        ratio: smallest and largest width / height of that part.
        flip: probability of mirroring left to right.
        auto: "none", "autoaugment" or "randaugment".
        magnitude: of RandAugment, 0 to 30.
        color: how far brightness, contrast and saturation are changed, as a share of themselves; 0 = not.
        erase: probability of erasing.

    Raises:
        InputError: a setting out of range; a preprocessing of mode "long", whose tensors differ in size.
    """

    def __init__(self, preprocessing: Preprocessing, *, seed: int = 0, crop_scale: Sequence[float] | None = None,
                 ratio: Sequence[float] = (3 / 4, 4 / 3), flip: float = 0.0, auto: str = "none", magnitude: int = 9,
                 color: float = 0.0, erase: float = 0.0) -> None:
        self._preprocessing, self._seed = preprocessing, seed
        if preprocessing.mode == "long":
            raise InputError("preprocessing of mode long makes tensors of several sizes: these cannot be one batch")
        if auto not in AUTO:
            raise InputError(f"auto={auto!r}: give one of {some(map(repr, AUTO))}")
        _check_range("crop_scale", crop_scale or (1.0, 1.0), 1.0)
        _check_range("ratio", ratio)
        for name, value, high in (("flip", flip, 1), ("color", color, 1), ("erase", erase, 1),
                                  ("magnitude", magnitude, 30)):
            if not 0 <= value <= high:
                raise InputError(f"{name}={value}: give a number from 0 to {high}")
        self._crop: Any = None
        self._changes: list[Callable[[Image.Image], Image.Image]] = []
        self._erase: Any = None
        if crop_scale is None and not (flip or auto != "none" or color or erase):
            return
        from torchvision.transforms import InterpolationMode, v2
        if crop_scale is not None:
            self._crop = v2.RandomResizedCrop(preprocessing.size, tuple(crop_scale), tuple(ratio),
                                              InterpolationMode(preprocessing.interpolation), antialias=True)
        fill = [round(255 * mean) for mean in preprocessing.mean]
        if flip:
            self._changes.append(v2.RandomHorizontalFlip(flip))
        if auto == "autoaugment":
            self._changes.append(v2.AutoAugment(interpolation=InterpolationMode.BILINEAR, fill=fill))
        elif auto == "randaugment":
            self._changes.append(v2.RandAugment(magnitude=magnitude, interpolation=InterpolationMode.BILINEAR,
                                                fill=fill))
        if color:
            self._changes.append(v2.ColorJitter(color, color, color))
        if erase:
            self._erase = v2.RandomErasing(erase, value="random")

    def __call__(self, photo: Photo, epoch: int, sample: int) -> Tensor:
        """The tensor (3, H, W) float32 of a sample in an epoch; without augmentation that of `to_tensor`.

        Raises:
            InputError: the photo cannot be opened.
        """
        if self._crop is None and not self._changes and self._erase is None:
            return to_tensor(photo, self._preprocessing, 1)[0]
        with torch.random.fork_rng(devices=[]):
            # the processor's generator alone: torch.manual_seed would reach those of GPUs, which fork_rng leaves out
            torch.default_generator.manual_seed(mixed(self._seed, "sample", epoch, sample))
            picture = self._plain(photo) if self._crop is None else self._crop(open_photo(photo))
            for change in self._changes:
                picture = change(picture)
            pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()  # (3, H, W) uint8
            mean, std = torch.tensor(self._preprocessing.mean), torch.tensor(self._preprocessing.std)
            tensor = pixels.float().div_(255).sub_(mean[:, None, None]).div_(std[:, None, None])
            return tensor if self._erase is None else self._erase(tensor)

    def _plain(self, photo: Photo) -> Image.Image:
        """The photo resized and cropped as the preprocessing does it, in the bytes it has before normalisation."""
        unchanged = replace(self._preprocessing, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        pixels = to_tensor(photo, unchanged, 1)[0].mul(255).round().to(torch.uint8)
        return Image.fromarray(pixels.permute(1, 2, 0).numpy())


@dataclass(frozen=True)
class View:
    """One drawn version of photos: of each a random part, perhaps mirrored, the same whenever it is asked for.

    What is drawn belongs to (seed, bytes of the photo, number): the order of photos and what a set holds beside them
    change nothing.

    Attributes:
        number: of the version.
        seed: of the draws.
        crop_scale: smallest share of the photo's area that is shown; the largest is all of it.
        flip: probability of mirroring left to right.
    """

    number: int
    seed: int = 0
    crop_scale: float = 0.6
    flip: float = 0.0

    def augment(self, preprocessing: Preprocessing) -> Callable[[Photo, str], Tensor]:
        """``(photo, SHA-256 of its bytes) -> (3, H, W)`` float32.

        Raises:
            InputError: as `Augment`.
        """
        return _Drawn(self, Augment(preprocessing, seed=self.seed, crop_scale=(self.crop_scale, 1.0), flip=self.flip))


class _Drawn:
    """A version of photos; worker processes get a copy."""

    def __init__(self, view: View, change: Augment) -> None:
        self._number, self._change = view.number, change

    def __call__(self, photo: Photo, digest: str) -> Tensor:
        return self._change(photo, self._number, int(digest[:16], 16))


def _check_range(name: str, values: Sequence[float], high: float = float("inf")) -> None:
    if len(values) != 2 or not 0 < values[0] <= values[1] <= high:
        raise InputError(f"{name}={tuple(values)}: give two numbers above 0"
                         + ("" if high == float("inf") else f", at most {high:g}") + ", the smaller first")


def check_mixing(mixup: float, cutmix: float, probability: float) -> None:
    """Raise InputError for settings of `mix_batch` out of range."""
    for name, value in (("mixup", mixup), ("cutmix", cutmix)):
        if not 0 <= value < float("inf"):
            raise InputError(f"{name}={value}: give 0 (off) or more")
    if not 0 <= probability <= 1:
        raise InputError(f"mix probability {probability}: give a number from 0 to 1")


def mix_batch(images: Tensor, targets: Tensor, classes: int, *, seed: int, epoch: int, step: int, mixup: float = 0.0,
              cutmix: float = 0.0, probability: float = 1.0) -> tuple[Tensor, Tensor]:
    """Mixup (Zhang et al. 2018) or CutMix (Yun et al. 2019) within a batch.

    Rows 2k and 2k + 1 of a batch are partners, the last of an odd number stays as it is. The order of samples is
    drawn anew in every epoch, so that partners are random; and processes that share a batch by whole pairs need no
    row of each other. Which of the two it is, the share and the box are of (seed, epoch, step), one for the batch:
    any share of it is changed as the whole batch would be.

    Args:
        images: (B, 3, H, W): a batch, or rows of it that begin at an even one and end at an odd one or the last.
        targets: (B,) classes.
        classes: V.
        seed, epoch, step: of the draws.
        mixup: both parameters of the beta distribution that shares are drawn from; 0 = no mixup.
        cutmix: the same of CutMix; with both, each is taken half of the times.
        probability: of changing the batch at all.

    Returns:
        Images, and the shares of the classes in them (B, V) float32; the images given stay as they are.
    """
    shares = F.one_hot(targets, classes).float()
    rng = np.random.default_rng(mixed(seed, "mix", epoch, step))
    drawn, cut = rng.random(2)
    if drawn >= probability or not (mixup or cutmix):
        return images, shares
    partners = torch.arange(len(images)) ^ 1
    partners[partners >= len(images)] -= 1  # the last of an odd number is its own
    box = bool(cutmix) and (not mixup or cut < 0.5)
    alpha = cutmix if box else mixup
    kept = rng.beta(alpha, alpha)
    if box:
        height, width = images.shape[-2:]
        top, bottom = _side(rng, height, kept)
        left, right = _side(rng, width, kept)
        images, other = images.clone(), images
        images[..., top:bottom, left:right] = other[partners][..., top:bottom, left:right]
        kept = 1 - (bottom - top) * (right - left) / (height * width)
    else:
        images = images * kept + images[partners] * (1 - kept)
    return images, shares * kept + shares[partners] * (1 - kept)


def _side(rng: np.random.Generator, side: int, kept: float) -> tuple[int, int]:
    """Where a box begins and ends along a side; it may reach beyond the picture, and is cut off there."""
    half = round(side * (1 - kept) ** 0.5) // 2
    centre = int(rng.integers(side))
    return max(0, centre - half), min(side, centre + half)
