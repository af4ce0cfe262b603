"""Augmentation: what it does, and that its draws belong to (seed, epoch, sample) alone."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from minivl.data.augment import Augment, mix_batch, mixed
from minivl.errors import InputError
from minivl.images import Preprocessing, to_tensor

# Python 3.12 warns of forks beside threads; torch's are idle here
pytestmark = [pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
              pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")]
PREPROCESSING = Preprocessing((24, 16), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), crop_pct=0.9)
EVERYTHING: dict[str, Any] = {"crop_scale": (0.2, 1.0), "flip": 0.5, "auto": "randaugment", "color": 0.3, "erase": 0.5}


def photo(seed: int = 0, size: tuple[int, int] = (40, 50)) -> Image.Image:
    """Smooth noise."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size[::-1], Image.Resampling.BICUBIC)


@pytest.mark.parametrize("mode", ["crop", "squash", "squash_crop"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "lanczos"])
def test_without_augmentation_it_is_the_preprocessing(tmp_path: Path, mode: str, interpolation: str) -> None:
    preprocessing = replace(PREPROCESSING, mode=mode, interpolation=interpolation)
    photo(1).save(tmp_path / "a.png")
    plain, changed = Augment(preprocessing, seed=3), Augment(preprocessing, seed=3, flip=1.0)
    for one in (photo(1), tmp_path / "a.png"):
        expected = to_tensor(one, preprocessing, 4)[0]
        assert torch.equal(plain(one, 5, 6), expected)
        assert torch.equal(changed(one, 5, 6), expected.flip(-1))


def test_the_changes_are_torchvisions_in_their_order() -> None:
    """Against transforms.v2 composed by hand, from the same state of the generator."""
    from torchvision.transforms import InterpolationMode, v2
    bilinear, fill = InterpolationMode.BILINEAR, [128, 102, 76]
    for auto, policy in (("randaugment", v2.RandAugment(magnitude=7, interpolation=bilinear, fill=fill)),
                         ("autoaugment", v2.AutoAugment(interpolation=bilinear, fill=fill))):
        whole = v2.Compose([
            v2.RandomResizedCrop((24, 16), (0.1, 0.9), (0.5, 1.5), InterpolationMode.BICUBIC),
            v2.RandomHorizontalFlip(), policy, v2.ColorJitter(0.4, 0.4, 0.4),
            v2.ToImage(), v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(PREPROCESSING.mean, PREPROCESSING.std), v2.RandomErasing(0.7, value="random")])
        augment = Augment(PREPROCESSING, seed=11, crop_scale=(0.1, 0.9), ratio=(0.5, 1.5), flip=0.5, auto=auto,
                          magnitude=7, color=0.4, erase=0.7)
        for sample in range(12):
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(mixed(11, "sample", 2, sample))
                expected = whole(photo(sample))
            found = augment(photo(sample), 2, sample)
            assert found.shape == (3, 24, 16) and found.dtype == torch.float32
            assert (found - expected).abs().max() < 1e-6


@pytest.mark.parametrize("options", [{"crop_scale": (0.2, 1.0)}, {"flip": 0.5}, {"auto": "randaugment"},
                                     {"auto": "autoaugment"}, {"color": 0.3}, {"erase": 0.5}, EVERYTHING])
def test_a_tensor_is_of_seed_epoch_and_sample(options: dict[str, Any]) -> None:
    def made(seed: int, epoch: int, sample: int) -> Tensor:
        return Augment(PREPROCESSING, seed=seed, **options)(photo(), epoch, sample)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = [made(0, 1, sample) for sample in range(12)]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert all(torch.equal(made(0, 1, sample), first[sample]) for sample in reversed(range(12)))
    assert len({tensor.numpy().tobytes() for tensor in first}) > 1
    for seed, epoch in ((1, 1), (0, 2)):
        others = [made(seed, epoch, sample) for sample in range(12)]
        assert not all(torch.equal(one, other) for one, other in zip(first, others))


class Made(Dataset[Tensor]):
    """Photos as an epoch shows them."""

    def __init__(self, augment: Augment) -> None:
        self.augment, self.photos = augment, [photo(number) for number in range(9)]

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, sample: int) -> Tensor:
        return self.augment(self.photos[sample], 4, sample)


def test_workers_and_order_change_nothing() -> None:
    made = Made(Augment(PREPROCESSING, seed=5, **EVERYTHING))
    expected = torch.stack([made[sample] for sample in range(9)])
    for workers in (0, 1, 3):
        for order in (range(9), [8, 3, 1, 0, 7, 2, 6, 5, 4]):
            torch.manual_seed(workers)
            loader = DataLoader(made, batch_size=2, sampler=order, num_workers=workers)
            assert torch.equal(torch.cat(list(loader)), expected[list(order)])


def test_what_settings_mean() -> None:
    """Shares of mirrored and erased pictures, and the size of the part that is shown."""
    bright = Image.fromarray(np.tile(np.arange(200, dtype=np.uint8)[None, :, None], (200, 1, 3)))  # column = value
    square = Preprocessing((16, 16), (0.0,) * 3, (1 / 255,) * 3, crop_pct=1.0, mode="squash")

    def widths(**options: Any) -> Tensor:
        augment = Augment(square, **options)
        rows = torch.stack([augment(bright, 0, sample)[0] for sample in range(400)])  # (400, 16, 16)
        return rows[..., -1].mean(1) - rows[..., 0].mean(1)
    assert 0.2 < (widths(flip=0.3) < 0).float().mean() < 0.4
    seen = widths(crop_scale=(0.25, 0.49), ratio=(1.0, 1.0)) * 16 / 15 / 200  # of the width
    assert seen.min() > 0.45 and seen.max() < 0.73 and seen.std() > 0.02
    erased = Augment(square, erase=0.25)
    plain = to_tensor(bright, square, 1)[0]
    assert 0.15 < np.mean([not torch.equal(erased(bright, 0, sample), plain) for sample in range(400)]) < 0.35


def test_it_travels_to_processes_that_are_not_forked() -> None:
    augment = Augment(PREPROCESSING, seed=1, **EVERYTHING)
    assert torch.equal(pickle.loads(pickle.dumps(augment))(photo(), 1, 2), augment(photo(), 1, 2))


def test_torchvision_is_imported_only_where_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.transforms", None)
    Augment(PREPROCESSING)(photo(), 0, 0)
    with pytest.raises(ImportError):
        Augment(PREPROCESSING, flip=0.5)


@pytest.mark.parametrize("options, said", [
    ({"auto": "trivial"}, "auto='trivial': give one of 'none'"), ({"crop_scale": (0.5, 0.2)}, "crop_scale="),
    ({"crop_scale": (0.0, 1.0)}, "crop_scale="), ({"crop_scale": (0.5, 1.1)}, "at most 1, the smaller first"),
    ({"ratio": (2.0, 1.0)}, "ratio="), ({"flip": 1.5}, "flip=1.5: give a number from 0 to 1"),
    ({"erase": -0.1}, "erase=-0.1"), ({"color": 2.0}, "color=2.0"), ({"magnitude": 31}, "magnitude=31")])
def test_settings_out_of_range(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Augment(PREPROCESSING, **options)


def test_tensors_of_several_sizes_are_refused() -> None:
    with pytest.raises(InputError, match="mode long"):
        Augment(Preprocessing((24, 24), (0.5,) * 3, (0.5,) * 3, mode="long"))


def test_seeds_of_neighbours_share_nothing() -> None:
    parts = [(seed, "sample", epoch, sample) for seed in range(5) for epoch in range(5) for sample in range(200)]
    low = {mixed(*one) & 0xffffffff for one in parts}  # all that torch's generator reads of a seed
    assert len(low) == len(parts) and 0 <= min(map(lambda one: mixed(*one), parts)) < 2 ** 63
    assert mixed(1, 23) != mixed(12, 3) and mixed(1, "a", 2) != mixed(1, "b", 2)


# -- mixing --------------------------------------------------------------------------------------------------

def batch(count: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, 12, 10, generator=generator), torch.arange(count) % 5


def settings(step: int, **options: Any) -> dict[str, Any]:
    return {"classes": 6, "seed": 3, "epoch": 1, "step": step, **options}


def partners(rows: Sequence[int]) -> list[int]:
    """Of 7 rows."""
    return [{0: 1, 1: 0, 2: 3, 3: 2, 4: 5, 5: 4, 6: 6}[row] for row in rows]


def test_mixup_is_the_formula() -> None:
    images, targets = batch()
    kept = []
    for step in range(50):
        found, shares = mix_batch(images, targets, **settings(step, mixup=0.8))
        part = shares[0, 0].item()  # row 0 is of class 0, its partner of class 1
        kept.append(part)
        own, other = F.one_hot(targets, 6), F.one_hot(targets[partners(range(7))], 6)
        assert (shares - (part * own + (1 - part) * other)).abs().max() < 1e-6
        assert (found - (part * images + (1 - part) * images[partners(range(7))])).abs().max() < 1e-5
    assert 0.3 < np.mean(kept) < 0.7 and min(kept) < 0.1 and max(kept) > 0.9  # beta(0.8, 0.8)
    assert 0.15 < np.std(kept) < 0.45


def test_cutmix_pastes_a_box_and_counts_its_pixels() -> None:
    images, targets = batch()
    kept = []
    for step in range(50):
        held = images.clone()
        found, shares = mix_batch(images, targets, **settings(step, cutmix=1.0))
        assert torch.equal(images, held)
        pasted = (found[0] == images[1]).all(0) & (found[0] != images[0]).any(0)  # (H, W)
        kept.append(shares[0, 0].item())
        assert abs(1 - pasted.float().mean().item() - kept[-1]) < 1e-6
        rows, columns = pasted.any(1).nonzero()[:, 0], pasted.any(0).nonzero()[:, 0]
        if len(rows):
            assert pasted[rows.min():rows.max() + 1, columns.min():columns.max() + 1].all()
        assert torch.equal(found[0][:, ~pasted], images[0][:, ~pasted]) and torch.equal(found[6], images[6])
        assert torch.equal(found[5][:, pasted], images[4][:, pasted])
        assert shares[6].tolist() == F.one_hot(targets[6], 6).tolist()
    assert 0.4 < np.mean(kept) < 0.85 and min(kept) < 0.35 and max(kept) > 0.95


@pytest.mark.parametrize("options", [{"mixup": 0.4}, {"cutmix": 1.0},
                                     {"mixup": 0.4, "cutmix": 1.0, "probability": 0.7}])
def test_shares_of_a_batch_are_mixed_as_the_whole(options: dict[str, float]) -> None:
    images, targets = batch()
    for step in range(20):
        whole = mix_batch(images, targets, **settings(step, **options))
        for first, last in ((0, 4), (4, 7), (2, 6), (6, 7)):
            part = mix_batch(images[first:last], targets[first:last], **settings(step, **options))
            assert torch.equal(part[0], whole[0][first:last]) and torch.equal(part[1], whole[1][first:last])
            assert (part[1].sum(1) - 1).abs().max() < 1e-6


def test_how_often_and_which() -> None:
    images, targets = batch()
    kinds = {"none": 0, "mixup": 0, "cutmix": 0}
    for step in range(300):
        found, _ = mix_batch(images, targets, **settings(step, mixup=5.0, cutmix=5.0, probability=0.6))
        same = (found[0] == images[0]).float().mean()
        kinds["none" if same == 1 else "mixup" if same < 0.01 else "cutmix"] += 1
    assert 90 < kinds["none"] < 150 and 60 < kinds["mixup"] < 120 and 60 < kinds["cutmix"] < 120
    for options in ({}, {"mixup": 1.0, "probability": 0.0}):
        found, shares = mix_batch(images, targets, **settings(0, **options))
        assert found is images and torch.equal(shares, F.one_hot(targets, 6).float())
    other = mix_batch(images, targets, classes=6, seed=3, epoch=2, step=0, mixup=1.0)[1]
    assert not torch.equal(other, mix_batch(images, targets, **settings(0, mixup=1.0))[1])
