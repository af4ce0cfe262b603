"""Image-text pairs: the contrast, its batches, its scores; and that a training learns."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_run
import torch
from random_models import randomise
from torch import Tensor

from minivl.data.scenes import Scenes
from minivl.errors import InputError
from minivl.images import Preprocessing
from minivl.loading import load
from minivl.metrics.retrieval import recall_at_k
from minivl.models.clip import CLIP, CLIPConfig, TextConfig
from minivl.models.vit import ViT, ViTConfig
from minivl.text.tokenizer import Tokenizer
from minivl.train.contrasting import (LARGEST_SCALE, Batch, ContrastTask, Texts, contrast, features_of, pooled,
                                      unknown_id)
from minivl.train.loop import Plan, autocast, fit
from minivl.train.pictures import Pixels
from minivl.train.run import read_history

# Python 3.12 warns of forks beside threads; torch's are idle here
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
VISION = ViTConfig((12, 8), (4, 4), 24, 2, 2, 40, num_classes=10, head_bias=False)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def pair(vision: ViTConfig = VISION, *, texts: Sequence[str] = (" ".join(tiny_run.WORDS),), seed: int = 0,
         dropout: float = 0.0, max_len: int = 12, drawn: bool = True) -> CLIP:
    """A random pair over pictures of 12 x 8 pixels; drawn: norms and biases too."""
    tokenizer = Tokenizer.train(texts)
    torch.manual_seed(seed)
    text = TextConfig(tokenizer.vocab_size, 16, 2, 2, 32, vision.num_classes, max_len=max_len, act="gelu",
                      dropout=dropout, bos_id=tokenizer.bos_id, eot_id=tokenizer.eos_id, pad_id=tokenizer.pad_id)
    model = CLIP(CLIPConfig(vision, text), tokenizer=tokenizer, preprocessing=tiny_run.PREPROCESSING)
    if drawn:
        randomise(model, seed)
        model.logit_scale.data.fill_(1.2)
    return model


def numbered(captions: list[list[str]], views: int = 1, **options: Any) -> ContrastTask:
    return ContrastTask(pair(), tiny_run.Numbers(views * len(captions)), captions, tiny_run.Numbers(2),
                        [["a dog"], ["the cat"]], views=views, **{"max_len": 11, **options})


def tiny_task(model: CLIP, pictures: int = 21, **options: Any) -> ContrastTask:
    """Random pictures with 1 to 4 captions, 5 validation pictures, batches of 4 pictures with 2 captions each."""
    settings = {"batch_size": 8, "refs": 2, "max_len": 9, **options}
    return ContrastTask(model, tiny_run.Pictures(pictures), tiny_run.captions(pictures), tiny_run.Pictures(5, seed=1),
                        tiny_run.captions(5, seed=6), **settings)


def batches(task: ContrastTask, epoch: int = 0, start: int = 0) -> list[Batch]:
    return list(task.batches(epoch, start))


def equal(one: list[Batch], two: list[Batch]) -> bool:
    return len(one) == len(two) and all(
        all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(first, second))
        for first, second in zip(one, two))


def shown(batch: Batch) -> list[int]:
    return batch.images[:, 0, 0, 0].int().tolist()


def read(task: ContrastTask, batch: Batch) -> list[str]:
    tokenizer = pair().tokenizer
    assert tokenizer is not None
    return [tokenizer.decode(ids) for ids in batch.ids.tolist()]


# -- the contrast --------------------------------------------------------------------------------------------

def by_hand(logits: Tensor, positive: Tensor) -> Tensor:
    """Pair by pair: the caption among captions that are not true of the picture, and the other way round."""
    pictures, captions = logits.shape
    to_text, to_image = [], []
    for caption in range(captions):
        picture = caption // (captions // pictures)
        among = [other for other in range(captions) if other == caption or not positive[picture, other]]
        terms = torch.stack([logits[picture, other] for other in among])
        to_text.append(terms.exp().sum().log() - logits[picture, caption])
        among = [other for other in range(pictures) if other == picture or not positive[other, caption]]
        terms = torch.stack([logits[other, caption] for other in among])
        to_image.append(terms.exp().sum().log() - logits[picture, caption])
    return (torch.stack(to_text).mean() + torch.stack(to_image).mean()) / 2


def own(pictures: int, refs: int) -> Tensor:
    """(B, B*r) each picture's own captions."""
    return torch.eye(pictures, dtype=torch.bool).repeat_interleave(refs, 1)


@pytest.mark.parametrize("refs", [1, 2, 3])
@pytest.mark.parametrize("shared", [0.0, 0.2])
def test_contrast_equals_a_slow_loop(refs: int, shared: float) -> None:
    generator = torch.Generator().manual_seed(refs)
    logits = (3 * torch.randn(7, 7 * refs, generator=generator, dtype=torch.float64)).requires_grad_()
    positive = own(7, refs) | (torch.rand(7, 7 * refs, generator=generator) < shared)
    assert (positive.sum() > 7 * refs) == (shared > 0)
    one, = torch.autograd.grad(loss := contrast(logits, positive), logits)
    other, = torch.autograd.grad(expected := by_hand(logits, positive), logits)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(one, other)


def test_without_other_truths_it_is_the_loss_of_clip() -> None:
    """Figure 3 of the paper: labels 0 to n - 1 along both axes."""
    logits = torch.randn(6, 6, generator=torch.Generator().manual_seed(1)) * 4
    labels = torch.arange(6)
    expected = (torch.nn.functional.cross_entropy(logits, labels)
                + torch.nn.functional.cross_entropy(logits.T, labels)) / 2
    torch.testing.assert_close(contrast(logits, own(6, 1)), expected)


def test_a_shared_caption_is_no_negative() -> None:
    """Pictures 1 and 4 read alike: neither is pushed from the other's caption, all else pushes as before."""
    logits = torch.randn(6, 6, generator=torch.Generator().manual_seed(2)).requires_grad_()
    positive = own(6, 1)
    positive[1, 4] = positive[4, 1] = True
    gradient, = torch.autograd.grad(contrast(logits, positive), logits)
    assert gradient[1, 4] == 0 and gradient[4, 1] == 0 and (gradient != 0).sum() == 34
    plain, = torch.autograd.grad(contrast(logits, own(6, 1)), logits)
    assert plain[1, 4] > 0 and plain[4, 1] > 0


# -- texts and batches ---------------------------------------------------------------------------------------

def test_texts_that_read_alike() -> None:
    """By what the text tower sees: case and punctuation are gone, and so is what was cut."""
    tokenizer = pair().tokenizer
    assert tokenizer is not None
    texts = Texts([["a red dog", "the cat"], ["A red dog!", "a bird"], ["the cat", "a red dog sits near two dogs"]],
                  tokenizer, 4)
    assert texts.cut == 1 and len(texts) == 3
    every = [(photo, place) for photo in range(3) for place in range(2)]
    rows = texts.ids(every)
    assert rows.shape == (6, 5) and rows.dtype == torch.int64
    assert torch.equal(rows[0], rows[2]) and torch.equal(rows[0], rows[5])  # the end stands where it was cut
    assert rows[0].tolist() == [tokenizer.bos_id, *tokenizer.encode("a red dog"), tokenizer.eos_id]
    assert rows[1].tolist()[-2:] == [tokenizer.eos_id, tokenizer.pad_id]
    assert texts.positive([0, 1, 2], every).int().tolist() == [
        [1, 1, 1, 0, 1, 1], [1, 0, 1, 1, 0, 1], [1, 1, 1, 0, 1, 1]]
    # a caption that was not drawn is true all the same
    assert texts.positive([0, 2], [(0, 0), (2, 0)]).all()
    assert texts.positive([2, 1], [(1, 1), (0, 1)]).int().tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize("refs, batch_size", [(1, 4), (2, 8), (3, 8), (5, 10), (1, 100)])
def test_every_picture_once_with_its_own_captions(refs: int, batch_size: int) -> None:
    captions = tiny_run.captions(13)
    task = numbered(captions, refs=refs, batch_size=batch_size)
    found = batches(task)
    together = batch_size // refs
    assert len(found) == task.steps == -(-13 // together)
    assert sorted(number for batch in found for number in shown(batch)) == list(range(13))
    sizes = [len(batch.images) for batch in found]
    assert max(sizes) <= together and max(sizes) - min(sizes) <= 1
    for batch in found:
        said = read(task, batch)
        assert len(batch.ids) == refs * len(batch.images) and batch.positive.shape == (len(batch.images), len(said))
        for row, text in enumerate(said):
            assert text in captions[shown(batch)[row // refs]]
            assert batch.positive[:, row].tolist() == [text in captions[number] for number in shown(batch)]
        for photo, number in enumerate(shown(batch)):  # as many different ones as there are
            assert len(set(said[photo * refs:(photo + 1) * refs])) >= min(refs, len(set(captions[number])))
    assert task.parts(found[0])[0][0] is found[0] and task.parts(found[0])[0][1] == 1.0


def test_batches_are_a_function_of_seed_and_epoch() -> None:
    captions = tiny_run.captions(13)
    task = numbered(captions, batch_size=4, seed=3)
    first, second = batches(task, 0), batches(task, 1)
    torch.manual_seed(99)  # nothing outside matters
    assert equal(batches(task, 1), second) and equal(batches(task, 0), first)
    assert equal(batches(numbered(captions, batch_size=4, seed=3)), first)
    orders = {tuple(number for batch in batches(numbered(captions, batch_size=4, seed=seed), epoch)
                    for number in shown(batch)) for seed in (0, 1, 2) for epoch in range(4)}
    assert len(orders) == 12


def test_start_continues_the_same_order_and_workers_change_nothing() -> None:
    captions = tiny_run.captions(13)
    task = numbered(captions, refs=2, batch_size=8)
    every = batches(task, 2)
    for start in range(task.steps + 1):
        assert equal(batches(task, 2, start), every[start:])
    assert equal(batches(numbered(captions, refs=2, batch_size=8, workers=2), 2, 1), every[1:])


def test_making_batches_leaves_the_global_generator_alone() -> None:
    task = numbered(tiny_run.captions(13))
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    batches(task)
    assert torch.equal(torch.rand(4), expected)


def test_mirrored_versions_keep_their_captions() -> None:
    captions = [[f"{a} {b}"] for a in tiny_run.WORDS[:5] for b in tiny_run.WORDS[5:11]]
    task = numbered(captions, views=3, batch_size=4)
    seen: list[int] = []
    for epoch in range(6):
        numbers = []
        for batch in batches(task, epoch):
            numbers += shown(batch)
            assert read(task, batch) == [captions[number % 30][0] for number in shown(batch)]
            assert torch.equal(batch.positive, own(len(batch.images), 1))
        assert sorted(number % 30 for number in numbers) == list(range(30))
        seen += [number // 30 for number in numbers]
    assert all(35 < seen.count(view) < 85 for view in range(3))  # 60 expected


# -- loss ----------------------------------------------------------------------------------------------------

def test_loss_is_the_contrast_of_the_models_logits() -> None:
    model = pair()
    task = tiny_task(model)
    for batch in batches(task)[:3]:
        assert (batch.ids == model.text.config.pad_id).any()
        torch.testing.assert_close(task.loss(model, batch), by_hand(model(batch.images, batch.ids), batch.positive))


def test_loss_in_bf16_contrasts_in_float32() -> None:
    model = pair()
    model.logit_scale.data.fill_(LARGEST_SCALE)
    task = tiny_task(model)
    batch = batches(task)[0]
    with autocast(torch.device("cpu"), "bf16"):
        loss = task.loss(model, batch)
    plain = task.loss(model, batch)
    assert loss.dtype == torch.float32
    assert loss.item() != plain.item() and loss.item() == pytest.approx(plain.item(), rel=0.05)


def test_the_factor_on_the_cosines_is_held_to_100() -> None:
    model = pair()
    task = tiny_task(model)
    batch = batches(task)[0]
    model.logit_scale.data.fill_(math.log(100) - 0.1)
    below = task.loss(model, batch)
    model.logit_scale.data.fill_(math.log(100) + 3)
    above = task.loss(model, batch)
    assert model.logit_scale.item() == pytest.approx(math.log(100)) and above.item() != below.item()
    above.backward()
    assert model.logit_scale.grad is not None and model.logit_scale.grad != 0  # it can come down again
    model.logit_scale.data.fill_(9.0)
    task.evaluate(model)
    assert model.logit_scale.item() == pytest.approx(math.log(100))


def test_dropped_words_are_unknown_but_neither_begin_nor_end() -> None:
    model = pair()
    assert model.tokenizer is not None
    task = tiny_task(model, pictures=40, batch_size=80, drop_words=0.4)
    batch = batches(task)[0]
    seen: list[Tensor] = []
    model.text.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    for seed, given in ((1, batch), (2, batch), (2, batch._replace(seeds=batch.seeds + 1))):
        torch.manual_seed(seed)
        task.loss(model, given)
    hidden = seen[0].ne(batch.ids)
    special = torch.isin(batch.ids, torch.tensor([model.tokenizer.bos_id, model.tokenizer.eos_id,
                                                  model.tokenizer.pad_id]))
    assert not hidden[special].any() and 0.3 < hidden[~special].float().mean() < 0.5
    assert (seen[0][hidden] == model.tokenizer.unk_id).all()
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])
    seen.clear()
    task.evaluate(model)
    assert model.tokenizer.unk_id is not None
    assert not any(ids.eq(model.tokenizer.unk_id).any() for ids in seen)
    seen.clear()
    tiny_task(model, pictures=40, batch_size=80).loss(model, batch)
    assert torch.equal(seen[0], batch.ids)  # by default nothing is dropped


# -- features ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("changes", [{}, {"pool": "mean"}, {"pool": "class+mean"}, {"dist_token": True},
                                     {"registers": 2, "pre_norm": True}])
def test_pooled_features_are_what_the_projection_sees(changes: dict[str, Any]) -> None:
    model = pair(replace(VISION, norm_after_pool=None, **changes))
    pictures = tiny_run.Pictures(70)  # more than are encoded together
    encoder = ViT(replace(model.visual.config, num_classes=0))
    encoder.load_state_dict({name: tensor for name, tensor in model.visual.state_dict().items()
                             if not name.startswith("head")})
    with torch.no_grad():
        stored = pooled(encoder.eval(), encoder.encode(pictures.pixels))
        assert stored.shape[:2] == (70, 2 if changes.get("dist_token") else 1)
        torch.testing.assert_close(features_of(model, stored), model.encode_image(pictures.pixels))


# -- scores --------------------------------------------------------------------------------------------------

@torch.no_grad()
def test_scores_are_those_of_the_model(tmp_path: Path) -> None:
    model = pair(seed=3)
    pictures, captions = tiny_run.Pictures(67, seed=1), tiny_run.captions(67, seed=6)  # more than 64
    task = ContrastTask(model, tiny_run.Pictures(4), tiny_run.captions(4), pictures, captions, batch_size=30, refs=3,
                        max_len=8, notes={"data": "random"})
    scores = task.evaluate(model)
    owner = [number for number, told in enumerate(captions) for _ in told]
    logits = model(pictures.pixels, model.tokenize([text for told in captions for text in told]))
    expected = recall_at_k(logits, owner=owner)
    found = {f"{way}_r{k}": share for way, one in (("image_to_text", expected.image_to_text),
                                                   ("text_to_image", expected.text_to_image))
             for k, share in one.items()}
    assert list(scores) == ["mean_recall", *found, "val_loss"] and 0 < scores["mean_recall"] < 1
    assert scores["mean_recall"] == pytest.approx(np.mean(list(found.values())))
    assert {name: scores[name] for name in found} == found
    losses, sizes = [], []
    for first, last in [(67 * part // 7, 67 * (part + 1) // 7) for part in range(7)]:  # at most 10 pictures each
        texts = [captions[photo][place % len(captions[photo])] for photo in range(first, last) for place in range(3)]
        positive = torch.tensor([[text in captions[photo] for text in texts] for photo in range(first, last)])
        losses.append(by_hand(model(pictures[range(first, last)], model.tokenize(texts)), positive).item())
        sizes.append(last - first)
    assert scores["val_loss"] == pytest.approx(np.average(losses, weights=sizes), rel=1e-5)
    model.notes = {"kept": 1}
    task.save(model, tmp_path / "w.safetensors", scores)
    loaded = load(tmp_path / "w.safetensors", verify=True)
    assert isinstance(loaded, CLIP) and loaded.tokenizer is not None
    assert loaded.preprocessing == tiny_run.PREPROCESSING
    assert loaded.notes == {"kept": 1, "data": "random", "scores": {**scores, "signature": expected.signature}}
    torch.testing.assert_close(loaded(pictures.pixels, loaded.tokenize(["a red dog", "the cat"])),
                               model(pictures.pixels, model.tokenize(["a red dog", "the cat"])))


def test_scoring_reports_progress_and_refuses_what_is_no_number() -> None:
    model = pair()
    told: list[dict[str, Any]] = []

    def progress(items: Any, **options: Any) -> Any:
        told.append(options)
        return items

    task = tiny_task(model, progress=progress)
    task.evaluate(model)
    assert told == [{"total": 1, "desc": "validation pictures"}, {"total": 1, "desc": "validation captions"}]
    with torch.no_grad():
        model.text.head.weight[0, 0] = math.nan
    with pytest.raises(InputError, match="training has diverged"):
        task.evaluate(model)


# -- training ------------------------------------------------------------------------------------------------

PLAN = Plan(epochs=3, lr=3e-3, warmup=4, clip=1.0, ema=0.9, seed=7, save_every=1e-9)


def run(folder: Path, *, resume: bool = False, stop: int | None = None) -> list[dict[str, Any]]:
    """A whole run with dropout; stopped by Ctrl-C at a loss."""
    model = pair(dropout=0.1, drawn=False)
    task, calls = tiny_task(model, drop_words=0.1), []

    def loss(*args: Any) -> Tensor:
        calls.append(1)
        if len(calls) == stop:
            raise KeyboardInterrupt
        return ContrastTask.loss(task, *args)

    task.loss = loss  # type: ignore[assignment, method-assign]
    return list(fit(model, task, PLAN, out=folder, settings={"kind": "tiny"}, resume=resume))


def story(folder: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in read_history(folder)]


@pytest.mark.parametrize("stop", [2, 6, 9])
def test_a_resumed_run_has_the_same_losses(tmp_path: Path, stop: int) -> None:
    run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", stop=stop)
    assert len(story(tmp_path / "cut")) < len(story(tmp_path / "whole"))
    run(tmp_path / "cut", resume=True)
    assert story(tmp_path / "cut") == story(tmp_path / "whole")
    one, two = (load(tmp_path / name / "best.safetensors", verify=True).state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def scenes(start: int, count: int, size: int, preprocessing: Preprocessing) -> tuple[Pixels, list[tuple[str, ...]]]:
    drawn = list(Scenes(count, start=start, size=size))
    return Pixels(np.stack([np.asarray(one.image) for one in drawn]), preprocessing), [one.captions for one in drawn]


def test_a_small_training_learns(tmp_path: Path) -> None:
    """Scenes that it has not seen find their captions, and captions their scenes, far more often than by chance."""
    preprocessing = Preprocessing((32, 32), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    images, captions = scenes(0, 600, 32, preprocessing)
    val_images, val_captions = scenes(10_000, 100, 32, preprocessing)
    vision = ViTConfig((32, 32), (8, 8), 48, 1, 4, 96, num_classes=32, head_bias=False, stem=(16, 32, 48))
    model = pair(vision, texts=[text for told in captions for text in told], max_len=31, drawn=False)
    model.preprocessing = preprocessing
    task = ContrastTask(model, images, captions, val_images, val_captions, batch_size=60, max_len=30)
    with torch.no_grad():
        before = task.evaluate(model)
    rows = list(fit(model, task, Plan(epochs=12, lr=3e-3, warmup=10, ema=0.9), out=tmp_path / "run", settings={}))
    best = load(tmp_path / "run" / "best.safetensors")
    assert isinstance(best, CLIP) and best.notes["scores"]["mean_recall"] == max(row["mean_recall"] for row in rows)
    with torch.no_grad():
        after = task.evaluate(best)
    # by chance 0.10 of the captions find their picture among the first 10 of 100
    assert before["text_to_image_r10"] < 0.2 and after["text_to_image_r10"] > 0.3, (before, after)
    assert after["image_to_text_r10"] > 0.3 and rows[-1]["train_loss"] < 0.75 * rows[0]["train_loss"]
    # pictures that are not those of the captions find nothing
    torch.manual_seed(0)
    wrong = ContrastTask(best, images, captions, val_images, random.Random(0).sample(val_captions, 100),
                         batch_size=60, max_len=30)
    assert wrong.evaluate(best)["text_to_image_r10"] < 0.2


# -- mistakes ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("options, told", [
    ({"batch_size": 3, "refs": 2}, "batch_size=3 must hold at least the 2 captions of each of two pictures"),
    ({"refs": 0}, "batch_size=64"), ({"max_len": 1}, "max_len=1: give 2"), ({"max_len": 12}, "this text tower's 11"),
    ({"views": 2, "images": 13}, "as many pictures as sets"),
    ({"pictures": 1}, "1 training and 2 validation pictures: at least 2")])
def test_mistakes(options: dict[str, Any], told: str) -> None:
    options = {"max_len": 11, **options}
    captions = tiny_run.captions(options.pop("pictures", 13))
    images = tiny_run.Numbers(options.pop("images", len(captions)))
    with pytest.raises(InputError, match=told) as raised:
        ContrastTask(pair(), images, captions, tiny_run.Numbers(2), [["a dog"], ["the cat"]],
                     **{"batch_size": 64, **options})
    assert "\n" not in str(raised.value)


def test_tokenizers_that_cannot_do_it() -> None:
    model = pair()
    model.tokenizer = None
    with pytest.raises(InputError, match="with a tokenizer"):
        tiny_task(model)
    model = pair()
    assert model.tokenizer is not None
    assert unknown_id(model.tokenizer) == model.tokenizer.unk_id
    ends = model.tokenizer.with_roles({"UNK": model.tokenizer.eos_id})  # as CLIP's own
    model.tokenizer = ends
    with pytest.raises(InputError, match="no token of its own for unknown words.*--drop-words 0"):
        tiny_task(model, drop_words=0.1)
    tiny_task(model, drop_words=0.0)


def test_a_picture_that_does_not_open() -> None:
    class Broken(tiny_run.Numbers):
        def __getitem__(self, photos: Any) -> Tensor:
            if 3 in photos:
                raise InputError("does not open", source="3.jpg")
            return super().__getitem__(photos)

    for workers in (0, 1):
        task = ContrastTask(pair(), Broken(8), tiny_run.captions(8), tiny_run.Numbers(2), [["a dog"], ["the cat"]],
                            batch_size=4, max_len=11, workers=workers)
        with pytest.raises(InputError, match="^3.jpg: does not open$"):
            batches(task)
