"""Batches, loss and scores of classifier training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from minivl.data.augment import Augment
from minivl.errors import InputError
from minivl.files import read_header
from minivl.images import Preprocessing, preprocess, to_tensor
from minivl.loading import load
from minivl.models.vit import ViT, ViTConfig
from minivl.train.classifying import Batch, ClassifyTask, Probe, cuts, pooled_features
from minivl.train.distributed import Processes
from minivl.train.loop import Plan, fit

# Python 3.12 warns of forks beside threads; torch's are idle here
pytestmark = [pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
              pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")]
PREPROCESSING = Preprocessing((12, 8), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), mode="squash")
CLASSES = 7
AUGMENT = {"crop_scale": (0.3, 1.0), "flip": 0.5, "auto": "randaugment", "erase": 0.3}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def vit(seed: int = 0, **changes: Any) -> ViT:
    """A ViT with random weights, norms and biases."""
    torch.manual_seed(seed)
    model = ViT(ViTConfig((12, 8), (4, 4), 12, 2, 2, 24, num_classes=CLASSES, **changes), preprocessing=PREPROCESSING)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def photos(count: int, seed: int = 0) -> list[Image.Image]:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 15, 11, 3), dtype=np.uint8)
    return [Image.fromarray(picture) for picture in pixels]


def labels(count: int) -> list[int]:
    return [number * 3 % CLASSES for number in range(count)]


def task(model: ViT, count: int = 13, rank: int = 0, processes: int = 1, augment: bool = False,
         **options: Any) -> ClassifyTask:
    return ClassifyTask(model, photos(count), labels(count), photos(6, 1), labels(6), batch_size=5, seed=2,
                        augment=Augment(PREPROCESSING, seed=2, **AUGMENT) if augment else None,
                        processes=Processes(rank, processes), **options)


def equal(one: list[Batch], two: list[Batch]) -> bool:
    return len(one) == len(two) and all(
        torch.equal(first.images, second.images) and torch.equal(first.targets, second.targets)
        and first[2:] == second[2:] for first, second in zip(one, two))


def numbers(batch: Batch, count: int = 13) -> list[int]:
    """Which photos these are."""
    known = torch.stack([to_tensor(photo, PREPROCESSING, 4)[0] for photo in photos(count)])
    return [int((known - image).flatten(1).abs().sum(1).argmin()) for image in batch.images]


# -- batches -------------------------------------------------------------------------------------------------

def test_every_picture_once_with_its_own_label() -> None:
    made = task(vit())
    orders = []
    for epoch in (0, 1):
        found = list(made.batches(epoch, 0))
        assert [batch.whole for batch in found] == [batch.counted for batch in found] == [5, 5, 3] and made.steps == 3
        shown = [number for batch in found for number in numbers(batch)]
        assert sorted(shown) == list(range(13))
        assert torch.cat([batch.targets for batch in found]).tolist() == [labels(13)[number] for number in shown]
        orders.append(shown)
    assert orders[0] != orders[1] and orders[0] != sorted(orders[0])
    exact = preprocess([photos(13)[number] for number in orders[0][:5]], vit())[0]
    assert torch.equal(next(iter(made.batches(0, 0))).images, exact)


@pytest.mark.parametrize("options", [{}, {"augment": True}, {"augment": True, "mixup": 0.8, "cutmix": 1.0}])
def test_an_epoch_goes_on_from_the_middle(options: dict[str, Any]) -> None:
    """The same whatever was drawn before, with workers or without; nothing is drawn from torch's own generator."""
    model = vit()
    whole = list(task(model, **options).batches(1, 0))
    torch.manual_seed(99)
    state = torch.get_rng_state()
    for start in range(4):
        assert equal(list(task(model, **options).batches(1, start)), whole[start:])
    assert equal(list(task(model, workers=2, **options).batches(1, 1)), whole[1:])
    assert torch.equal(torch.get_rng_state(), state)
    assert not equal(list(task(model, **options).batches(0, 0)), whole)


@pytest.mark.parametrize("options", [{}, {"augment": True, "mixup": 0.8, "cutmix": 1.0}])
@pytest.mark.parametrize("count", [2, 3, 8])
def test_shares_make_the_whole_batch(count: int, options: dict[str, Any]) -> None:
    whole = list(task(vit(), **options).batches(0, 0))
    shares = [list(task(vit(), rank=rank, processes=count, **options).batches(0, 0)) for rank in range(count)]
    for step, batch in enumerate(whole):
        parts = [share[step] for share in shares]
        assert all(part.whole == batch.whole and len(part.images) == max(part.counted, 1) for part in parts)
        for name in ("images", "targets"):
            rows = torch.cat([getattr(part, name)[:part.counted] for part in parts])
            assert torch.equal(rows, getattr(batch, name))


def test_cuts() -> None:
    for length in range(1, 20):
        for shares in range(1, 9):
            for unit in (1, 2):
                found = cuts(length, shares, unit)
                assert [row for first, last in found for row in range(first, last)] == list(range(length))
                assert all(first % unit == 0 for first, last in found) and len(found) == shares
                sizes = [-(-(last - first) // unit) for first, last in found]
                assert max(sizes) - min(sizes) <= 1


# -- gradients -----------------------------------------------------------------------------------------------

def gradients(model: ViT, count: int, accumulate: int, step: int, **options: Any) -> tuple[dict[str, Tensor], float]:
    """The sum over all processes and micro-batches, and the loss."""
    model.zero_grad()
    total, weights = 0.0, 0.0
    for rank in range(count):
        one = task(model, rank=rank, processes=count, accumulate=accumulate, **options)
        parts = one.parts(list(one.batches(0, step))[0])
        assert 1 <= len(parts) <= accumulate
        for part, weight in parts:
            loss = one.loss(model, part)
            (loss * weight).backward()
            total, weights = total + loss.item() * weight, weights + weight
    assert abs(weights - 1) < 1e-12
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()
            if parameter.grad is not None}, total


@pytest.mark.parametrize("options", [{}, {"augment": True, "mixup": 0.8, "cutmix": 1.0}])
@pytest.mark.parametrize("step", [0, 2])
def test_processes_and_micro_batches_change_no_gradient(step: int, options: dict[str, Any]) -> None:
    """Nor do processes without a share: the batch of step 2 has three pictures."""
    model = vit()
    expected, loss = gradients(model, 1, 1, step, smoothing=0.1, **options)
    scale = max(gradient.abs().max() for gradient in expected.values())
    assert len(expected) == len(list(model.parameters())) and scale > 0.01
    for count, accumulate in ((1, 2), (1, 5), (1, 9), (2, 1), (2, 2), (3, 1), (5, 3)):
        found, same = gradients(model, count, accumulate, step, smoothing=0.1, **options)
        assert max((found[name] - expected[name]).abs().max() for name in expected) < 1e-6 * scale
        assert abs(same - loss) < 1e-6


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_the_formula(smoothing: float) -> None:
    model = vit()
    for options in ({}, {"mixup": 0.8}):
        one = task(model, smoothing=smoothing, **options)
        batch = next(iter(one.batches(0, 0)))
        shares = batch.targets if batch.targets.ndim == 2 else F.one_hot(batch.targets, CLASSES)
        assert (batch.targets.ndim == 2) is bool(options)
        logp = model(batch.images).log_softmax(1)
        expected = -(((1 - smoothing) * shares + smoothing / CLASSES) * logp).sum(1).mean()
        assert abs(one.loss(model, batch) - expected) < 1e-6


# -- validation ----------------------------------------------------------------------------------------------

def test_scores_are_those_by_hand() -> None:
    model = vit(3).eval()
    pictures, truth = photos(150, 4), labels(149) + [6]
    seen: list[int] = []

    def progress(batches: Any, total: int, desc: str) -> Any:
        seen.append(total)
        return batches
    one = ClassifyTask(model, photos(4), labels(4), pictures, truth, workers=1, progress=progress)
    torch.manual_seed(4)
    scores = one.evaluate(model)
    with torch.no_grad():
        logits = model(preprocess(pictures, model)[0]).numpy().astype(np.float64)
    ranks = (logits > logits[np.arange(150), truth][:, None]).sum(1)
    shares = [np.mean([rank == 0 for rank, label in zip(ranks, truth) if label == wanted]) for wanted in range(CLASSES)]
    logp = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    assert seen == [3] and list(scores) == ["top1", "top5", "mean_per_class", "val_loss"]
    assert scores["top1"] == pytest.approx((ranks == 0).mean(), abs=1e-9) and 0 < scores["top1"] < scores["top5"] < 1
    assert scores["top5"] == pytest.approx((ranks < 5).mean(), abs=1e-9)
    assert scores["mean_per_class"] == pytest.approx(np.mean(shares), abs=1e-9)
    assert scores["mean_per_class"] != pytest.approx(scores["top1"], abs=1e-9)
    assert scores["val_loss"] == pytest.approx(-logp[np.arange(150), truth].mean(), abs=1e-5)


def test_a_model_that_says_nan_has_no_scores() -> None:
    model = vit()
    nn.init.constant_(model.head.weight, float("nan"))
    with pytest.raises(InputError, match="training has diverged, try a lower learning rate"):
        task(model).evaluate(model)


def test_what_is_saved(tmp_path: Path) -> None:
    model = vit()
    task(model, about={"ids": [3, 4]}).save(model, tmp_path / "a.safetensors", {"top1": 0.5})
    again = load(tmp_path / "a.safetensors")
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    texts = "".join(read_header(tmp_path / "a.safetensors")[1].values())
    assert json.loads(texts)["about"] == {"ids": [3, 4], "scores": {"top1": 0.5}}


# -- a linear probe ------------------------------------------------------------------------------------------

@pytest.mark.parametrize("changes", [{}, {"pool": "mean"}, {"pool": "class+mean"}, {"dist_token": True}])
def test_the_probe_is_the_model(changes: dict[str, Any]) -> None:
    model = vit(**changes)
    pictures = photos(5)
    features = pooled_features(model, pictures, batch_size=2, workers=1)
    assert features.shape == (5, 2 if "dist_token" in changes else 1, 24 if "+" in changes.get("pool", "") else 12)
    with torch.no_grad():
        expected = model(preprocess(pictures, model)[0])
        assert (Probe(model)(features) - expected).abs().max() < 1e-5
    assert (pooled_features(model, pictures, precision="bf16") - features).abs().max() < 0.1


def test_training_a_probe(tmp_path: Path) -> None:
    """Heads alone are trained; without the wrapper, as with it, the loss is that of the whole model."""
    model = vit(dist_token=True)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("head"))
    held = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    features, val = pooled_features(model, photos(13)), pooled_features(model, photos(6, 1))
    one = ClassifyTask(model, features, labels(13), val, labels(6), batch_size=5, seed=2)
    batch = next(iter(one.batches(0, 0)))
    pictures = task(model)
    expected = pictures.loss(model, next(iter(pictures.batches(0, 0))))
    assert abs(one.loss(model, batch) - expected) < 1e-5 and abs(one.loss(Probe(model), batch) - expected) < 1e-5
    assert one.evaluate(model) == pytest.approx(pictures.evaluate(model), abs=1e-5)
    plan = Plan(epochs=20, lr=0.02, weight_decay=0.0)
    rows = list(fit(model, one, plan, out=tmp_path / "run", settings={}, wrap=Probe))
    assert rows[-1]["train_loss"] < 0.8 * rows[0]["train_loss"] and rows[-1]["top5"] <= 1
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, held[name])}
    assert moved == {f"{head}.{part}" for head in ("head", "head_dist") for part in ("weight", "bias")}
    assert isinstance(load(tmp_path / "run" / "best.safetensors"), ViT)


# -- bad input -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("options, said", [
    ({"batch_size": 0}, "batch_size=0: give 1 or more"), ({"accumulate": 0}, "accumulate=0"),
    ({"smoothing": 1.0}, "smoothing=1.0"), ({"mixup": -1.0}, "mixup=-1.0"),
    ({"mix_probability": 1.5}, "probability 1.5"),
    ({"labels": [0, 1, 7]}, "training labels 7 are beyond the head of 7 classes"),
    ({"val_labels": [-1, 1]}, "validation labels -1 are beyond"),
    ({"labels": [0]}, "3 training pictures with 1 labels"),
    ({"photos": [], "labels": []}, "0 training pictures with 0 labels"),
    ({"photos": torch.zeros(3, 1, 12)}, "features are needed for both"),
    ({"photos": torch.zeros(3, 1, 12), "val_photos": torch.zeros(2, 1, 12), "mixup": 1.0}, "neither mixed nor")])
def test_settings_that_cannot_be(options: dict[str, Any], said: str) -> None:
    given = {"photos": photos(3), "labels": [0, 1, 2], "val_photos": photos(2), "val_labels": [0, 1], **options}
    with pytest.raises(InputError, match=said):
        ClassifyTask(vit(), given.pop("photos"), given.pop("labels"), given.pop("val_photos"), given.pop("val_labels"),
                     **given)


def test_models_that_cannot_be_trained() -> None:
    headless, unknown = vit(), vit()
    headless.replace_head(0)
    unknown.preprocessing = None
    for model, said in ((headless, "no head"), (unknown, "preprocessing is unknown")):
        with pytest.raises(InputError, match=said):
            task(model)
    with pytest.raises(InputError, match="preprocessing is unknown"):
        pooled_features(unknown, photos(1))
    with pytest.raises(InputError, match="photos is empty"):
        pooled_features(vit(), [])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_photo_that_breaks_during_training_is_named(tmp_path: Path, workers: int) -> None:
    files = [tmp_path / f"{number}.png" for number in range(4)]
    for file, picture in zip(files, photos(4)):
        picture.save(file)
    files[2].write_text("gone")
    one = ClassifyTask(vit(), files, labels(4), files[:2], labels(2), workers=workers, batch_size=2)
    with pytest.raises(InputError, match=r"2\.png: is not an image"):
        list(one.batches(0, 0))
