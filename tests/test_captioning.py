"""Batches, loss and scores of caption training."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_run
import torch
from PIL import Image
from random_models import randomise
from torch import Tensor

from minivl.errors import InputError
from minivl.images import preprocess
from minivl.loading import load
from minivl.metrics.cider import cider
from minivl.models.captioner import Captioner
from minivl.models.decoder import Memory
from minivl.search.sample import draw
from minivl.train.caption_batches import uniform
from minivl.train.captioning import IGNORED, Batch, CaptionTask, encode_captions, from_features
from minivl.train.distributed import Processes
from minivl.train.loop import autocast
from minivl.train.pictures import Photos, Pixels, Views

# Python 3.12 warns of forks beside threads; torch's are idle here
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def batches(task: CaptionTask, epoch: int = 0, start: int = 0) -> list[Batch]:
    return list(task.batches(epoch, start))


def equal(one: list[Batch], two: list[Batch]) -> bool:
    return len(one) == len(two) and all(
        all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(first, second))
        for first, second in zip(one, two))


def numbered(captions: list[list[str]], views: int = 1, **options: Any) -> CaptionTask:
    model = tiny_run.captioner()
    return CaptionTask(model, tiny_run.Numbers(views * len(captions)), captions, tiny_run.Numbers(2),
                       {"a": ["a dog"], "b": ["the cat"]}, remember=Captioner.encode, views=views,
                       **{"max_len": 10, **options})


# -- batches -------------------------------------------------------------------------------------------------

def shown(batch: Batch) -> list[int]:
    return batch.images[:, 0, 0, 0].int().tolist()


@pytest.mark.parametrize("refs, batch_size", [(1, 4), (2, 8), (3, 8), (5, 5)])
def test_every_picture_once_with_its_own_captions(refs: int, batch_size: int) -> None:
    captions = tiny_run.captions(13)
    task = numbered(captions, refs=refs, batch_size=batch_size)
    tokenizer = tiny_run.captioner().tokenizer
    assert tokenizer is not None
    found = batches(task)
    assert len(found) == task.steps == -(-13 // (batch_size // refs))
    assert sorted(number for batch in found for number in shown(batch)) == list(range(13))
    for batch in found:
        assert batch.ids.shape == batch.targets.shape and len(batch.ids) == refs * len(batch.images)
        for row, (ids, targets) in enumerate(zip(batch.ids.tolist(), batch.targets.tolist())):
            own = captions[shown(batch)[row // refs]]
            length = sum(target != IGNORED for target in targets)
            assert targets[length:] == [IGNORED] * (len(targets) - length)
            assert ids[length:] == [tokenizer.pad_id] * (len(ids) - length)
            assert ids[0] == tokenizer.bos_id and targets[length - 1] == tokenizer.eos_id
            assert ids[1:length] == targets[:length - 1]  # target t is what follows position t
            assert tokenizer.decode(ids[:length]) in own
        for photo, number in enumerate(shown(batch)):  # as many different ones as there are
            said = [tuple(row) for row in batch.targets[photo * refs:(photo + 1) * refs].tolist()]
            count = len(captions[number])
            assert len(set(said)) >= min(refs, len(set(captions[number])), count)


def test_batches_are_a_function_of_seed_and_epoch() -> None:
    captions = tiny_run.captions(13)
    task = numbered(captions, refs=2, batch_size=8, seed=3)
    first, second = batches(task, 0), batches(task, 1)
    torch.manual_seed(99)  # nothing outside matters
    assert equal(batches(task, 1), second) and equal(batches(task, 0), first)
    assert equal(batches(numbered(captions, refs=2, batch_size=8, seed=3)), first)
    order = [number for batch in first for number in shown(batch)]
    assert order != [number for batch in second for number in shown(batch)] and order != sorted(order)
    other = batches(numbered(captions, refs=2, batch_size=8, seed=4))
    assert order != [number for batch in other for number in shown(batch)]


def test_seeds_and_epochs_are_not_mixed_up() -> None:
    orders = {tuple(number for batch in batches(numbered(tiny_run.captions(13), seed=seed), epoch)
                    for number in shown(batch)) for seed in (0, 1, 2) for epoch in range(4)}
    assert len(orders) == 12


def test_start_continues_the_same_order() -> None:
    task = numbered(tiny_run.captions(13), refs=2, batch_size=8)
    every = batches(task, 2)
    for start in range(task.steps + 1):
        assert equal(batches(task, 2, start), every[start:])


def test_workers_change_nothing() -> None:
    captions = tiny_run.captions(13)
    alone = numbered(captions, refs=2, batch_size=8)
    helped = numbered(captions, refs=2, batch_size=8, workers=2)
    assert equal(batches(helped, 1, 1), batches(alone, 1, 1))


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
    tokenizer = tiny_run.captioner().tokenizer
    assert tokenizer is not None
    seen: list[int] = []
    for epoch in range(6):
        numbers = []
        for batch in batches(task, epoch):
            numbers += shown(batch)
            for number, ids in zip(shown(batch), batch.ids.tolist()):
                assert tokenizer.decode(ids) == captions[number % 30][0]
        assert sorted(number % 30 for number in numbers) == list(range(30))
        seen += [number // 30 for number in numbers]
    assert all(35 < seen.count(view) < 85 for view in range(3))  # 60 expected


def test_views_find_the_row_of_each_version() -> None:
    views = [torch.randn(4, 3, 2), torch.randn(4, 3, 2)]
    both = Views(views)  # type: ignore[arg-type]
    assert len(both) == 8
    assert torch.equal(both[[5, 0, 3, 7]], torch.stack([views[1][1], views[0][0], views[0][3], views[1][3]]))


def test_captions_are_cut_and_counted() -> None:
    tokenizer = tiny_run.captioner().tokenizer
    assert tokenizer is not None
    texts = ["a red dog", "a red dog runs", "a red dog runs on the grass"]
    rows = encode_captions(texts, tokenizer, 4)
    whole = [[tokenizer.bos_id, *tokenizer.encode_batch([text])[0], tokenizer.eos_id] for text in texts]
    assert [row.tolist() for row in rows] == [whole[0], whole[1][:5], whole[2][:5]]
    assert numbered([texts, ["dog"]], max_len=4).cut == 2  # 3 words and the end fit into 4
    assert numbered([texts, ["dog"]], max_len=8).cut == 0


# -- loss ----------------------------------------------------------------------------------------------------

def by_hand(model: Captioner, images: Tensor, batch: Batch, smoothing: float) -> Tensor:
    """Mean over words of (1 - s) * -logp(word) + s * mean over the vocabulary of -logp, row by row."""
    terms = []
    refs = len(batch.ids) // len(images)
    for row, (ids, targets) in enumerate(zip(batch.ids, batch.targets)):
        logp = model(images[row // refs][None], ids[None])[0].log_softmax(-1)
        for place, target in enumerate(targets.tolist()):
            if target != IGNORED:
                terms.append(-(1 - smoothing) * logp[place, target] - smoothing * logp[place].mean())
    return torch.stack(terms).mean()


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_loss_equals_the_formula(smoothing: float) -> None:
    model = tiny_run.captioner()
    task = tiny_run.task(model, smoothing=smoothing, drop_tokens=0.0)
    batch = batches(task)[1]
    assert (batch.targets == IGNORED).any()
    torch.testing.assert_close(task.loss(model, batch), by_hand(model, batch.images, batch, smoothing))


def test_padding_of_the_input_does_not_matter() -> None:
    model = tiny_run.captioner()
    task = tiny_run.task(model, drop_tokens=0.0)
    batch = batches(task)[0]
    padded = batch.targets == IGNORED
    other = batch._replace(ids=torch.where(padded, 7, batch.ids))
    assert not torch.equal(other.ids, batch.ids)
    assert task.loss(model, other).item() == pytest.approx(task.loss(model, batch).item(), rel=1e-6)


def test_captions_that_share_a_memory_equal_rows_of_their_own() -> None:
    model = tiny_run.captioner()
    task = tiny_run.task(model, refs=2, drop_tokens=0.0)
    batch = batches(task)[0]
    found = []
    for images in (batch.images, batch.images.repeat_interleave(2, 0)):
        model.zero_grad(set_to_none=True)
        loss = task.loss(model, batch._replace(images=images))
        loss.backward()
        found.append((loss, {name: parameter.grad for name, parameter in model.named_parameters()}))
    torch.testing.assert_close(found[0][0], found[1][0])
    for name, gradient in found[0][1].items():
        assert gradient is not None and (gradient != 0).any(), name
        torch.testing.assert_close(gradient, found[1][1][name], rtol=1e-4, atol=1e-7)
    swapped = batch._replace(images=batch.images.flip(0))
    assert task.loss(model, swapped).item() != pytest.approx(found[0][0].item(), rel=1e-6)


@pytest.mark.parametrize("step", [0, 5])
@pytest.mark.parametrize("options", [{"drop_words": 0.3, "sampling": 0.9}, {"read": "all", "bucket": True}])
def test_processes_and_micro_batches_change_no_gradient(step: int, options: dict[str, Any]) -> None:
    """The last of six batches is one picture, of which one of two processes has no share."""
    model = tiny_run.captioner()
    randomise(model)
    given: dict[str, Any] = {"pictures": 11, "batch_size": 4, "seed": 3, "epochs": 2, **options}
    wanted: list[Tensor] = []
    for count in (1, 2, 3):
        for accumulate in (1, 2, 5):
            model.zero_grad()
            total = weight = 0.0
            for rank in range(count):
                task = tiny_run.task(model, accumulate=accumulate, processes=Processes(rank, count), **given)
                batch = batches(task, 1)[step]
                for part, share in task.parts(batch):
                    loss = task.loss(model, part) * share
                    loss.backward()
                    total, weight = total + loss.item(), weight + share
            found = [torch.tensor(total), *(torch.zeros_like(one) if one.grad is None else one.grad.clone()
                                            for one in model.parameters())]
            wanted = wanted or found
            assert weight == pytest.approx(1, abs=1e-12)
            for mine, theirs in zip(found, wanted):
                torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("refs", [1, 2, 3])
@pytest.mark.parametrize("bucket", [False, True])
def test_every_caption_just_once(refs: int, bucket: bool) -> None:
    captions = tiny_run.captions(13)
    task = numbered(captions, refs=refs, batch_size=6, read="all", bucket=bucket)
    tokenizer = tiny_run.captioner().tokenizer
    assert tokenizer is not None
    found, read = batches(task, 1), []
    assert len(found) == task.steps == -(-sum(-(-len(told) // refs) for told in captions) // (6 // refs))
    for batch in found:
        assert len(batch.ids) == refs * len(batch.images) and batch.tokens == (batch.targets != IGNORED).sum()
        for row, targets in enumerate(batch.targets):
            words = targets[targets != IGNORED].tolist()
            if words:
                read.append((shown(batch)[row // refs], tokenizer.decode(words[:-1])))
            else:
                assert refs > 1 and batch.ids[row].tolist() == [tokenizer.bos_id] + [tokenizer.pad_id] * (
                    batch.ids.shape[1] - 1)
    assert sorted(read) == sorted((number, text) for number, told in enumerate(captions) for text in told)


def test_one_caption_drawn_in_an_epoch() -> None:
    captions = tiny_run.captions(13)
    task = numbered(captions, refs=1, batch_size=4, read="one")
    said = [{shown(batch)[row]: tuple(targets.tolist()) for batch in batches(task, epoch)
             for row, targets in enumerate(batch.targets)} for epoch in range(40)]
    assert all(len(one) == 13 for one in said)
    for number, told in enumerate(captions):  # each has been read by then
        assert len({tuple(word for word in one[number] if word != IGNORED) for one in said}) == len(set(told))


def test_captions_of_like_length_come_together() -> None:
    captions = [[" ".join(draw.choices(tiny_run.WORDS, k=draw.randint(1, 9))) for _ in range(2)]
                for draw in [random.Random(4)] for _ in range(60)]
    plain, bucketed = (numbered(captions, refs=2, batch_size=8, bucket=bucket) for bucket in (False, True))

    def padding(task: CaptionTask) -> float:
        found = [batch.targets == IGNORED for epoch in range(3) for batch in batches(task, epoch)]
        return sum(int(one.sum()) for one in found) / sum(one.numel() for one in found)

    assert padding(bucketed) < 0.7 * padding(plain)
    for epoch in range(2):
        assert sorted(number for batch in batches(bucketed, epoch) for number in shown(batch)) == list(range(60))
        widths = [batch.ids.shape[1] for batch in batches(bucketed, epoch)]
        assert widths != sorted(widths) and widths != sorted(widths, reverse=True)
    assert equal(batches(bucketed, 1)[4:], batches(bucketed, 1, 4)) and bucketed.steps == plain.steps
    assert not equal(batches(bucketed, 0), batches(bucketed, 1))


def test_words_the_model_says_itself() -> None:
    """None at the start; at the end the share asked for, each drawn where the words before it were the true ones."""
    model = tiny_run.captioner()
    randomise(model)
    task = tiny_run.task(model, pictures=40, drop_tokens=0.0, batch_size=80, sampling=0.6, epochs=2)
    assert [batch.done for epoch in range(2) for batch in batches(task, epoch)] == [0.0, 0.5]
    batch = batches(task)[0]
    seen: list[Tensor] = []
    model.decoder.embed.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    task.loss(model, batch)
    assert len(seen) == 1 and torch.equal(seen.pop(), batch.ids)
    loss = task.loss(model, batch._replace(done=1.0))
    first, second = seen
    assert torch.equal(first, batch.ids) and torch.equal(first[:, 0], second[:, 0])
    with torch.no_grad():
        logits = model(batch.images, batch.ids)
    numbers = uniform(batch.seeds[:, 1:].flatten(), first.shape[1], stream=2)
    replaced = uniform(batch.seeds[:, 1:].flatten(), first.shape[1], stream=1) < 0.6
    for row, column in zip(*torch.where(batch.targets[:, :-1] != IGNORED)):
        ends = logits[row, column].softmax(-1).cumsum(-1)
        said = int((ends <= numbers[row, column + 1]).sum())
        assert second[row, column + 1] == (said if replaced[row, column + 1] else first[row, column + 1])
    assert 0.5 < replaced[:, 1:].float().mean() < 0.7 and (first != second).float().mean() > 0.3
    wanted = torch.nn.functional.cross_entropy(model(batch.images, second).flatten(0, 1), batch.targets.flatten(),
                                               ignore_index=IGNORED, label_smoothing=0.1)
    torch.testing.assert_close(loss, wanted)
    seen.clear()
    task.loss(model, batch._replace(done=0.5))
    assert 0.3 < (seen[1] != first).sum() / (second != first).sum() < 0.7


def test_drawing_by_numbers_is_drawing_by_probabilities() -> None:
    logits = torch.randn(5, generator=torch.Generator().manual_seed(0))
    numbers = uniform(torch.arange(100), 200)
    found = draw(logits.expand(100, 200, 5), numbers.float())
    shares = torch.bincount(found.flatten(), minlength=5) / found.numel()
    assert (shares - logits.softmax(-1)).abs().max() < 0.015  # four standard deviations
    assert draw(logits.expand(1, 2, 5), torch.tensor([[0.0, 1.0]])).tolist() == [[0, 4]]


def test_numbers_from_seeds() -> None:
    one = uniform(torch.tensor([0, 1, 2 ** 62]), 4000)
    assert one[0, 0].item() == (0xE220A8397B1DCDAF >> 11) / 2 ** 53  # the first number of the published generator
    assert one[0, 1].item() == (0x6E789E6AA1B965F4 >> 11) / 2 ** 53
    assert torch.equal(uniform(torch.tensor([1]), 9)[0], one[1, :9]) and 0 <= one.min() and one.max() < 1
    assert ((one.mean(1) - 0.5).abs() < 0.02).all() and ((one.var(1) - 1 / 12).abs() < 0.005).all()
    other = uniform(torch.tensor([0, 1, 2 ** 62]), 4000, stream=1)
    rows = torch.cat([one, other])
    assert (torch.corrcoef(rows) - torch.eye(6)).abs().max() < 0.07


def test_loss_in_bf16_is_computed_in_float32() -> None:
    model = tiny_run.captioner()
    task = tiny_run.task(model, drop_tokens=0.0)
    batch = batches(task)[0]
    with autocast(torch.device("cpu"), "bf16"):
        loss = task.loss(model, batch)
    assert loss.dtype == torch.float32
    plain = task.loss(model, batch)
    assert loss.item() != plain.item() and loss.item() == pytest.approx(plain.item(), rel=0.02)


class Seen:
    """`remember` that keeps the tokens' gradients and, through a hook on the decoder, the masks."""

    def __init__(self, model: Captioner) -> None:
        self.tokens: list[Tensor] = []
        self.masks: list[Tensor | None] = []
        model.decoder.register_forward_pre_hook(lambda module, args: self.masks.append(args[1].mask))

    def __call__(self, model: Captioner, images: Tensor) -> Memory:
        memory = Captioner.encode(model, images)
        tokens = memory.tokens.detach().requires_grad_()
        self.tokens.append(tokens)
        return memory._replace(tokens=tokens)


def test_dropped_tokens_are_hidden_from_the_decoder() -> None:
    model = tiny_run.captioner()
    seen = Seen(model)
    told = {str(number): lines for number, lines in enumerate(tiny_run.captions(3))}
    task = CaptionTask(model, tiny_run.Pictures(40), tiny_run.captions(40), tiny_run.Pictures(3), told,
                       remember=seen, batch_size=80, refs=2,
                       drop_tokens=0.4, beams=1, max_len=6)
    batch = batches(task)[0]
    torch.manual_seed(1)
    first = task.loss(model, batch)
    first.backward()
    mask, gradient = seen.masks[0], seen.tokens[0].grad
    assert mask is not None and gradient is not None and mask.shape == (40, 7) and mask.dtype == torch.bool
    assert 0.28 < (~mask).float().mean() < 0.52 and 10 < len({tuple(row) for row in mask.tolist()})
    assert (gradient[~mask] == 0).all() and (gradient[mask].abs().sum(-1) > 0).all()
    torch.manual_seed(2)  # what is hidden is of the seed of the task, the epoch and the picture
    assert task.loss(model, batch).item() == first.item()
    order = batch.images.flatten(1).sum(1)
    other = batches(task, 1)[0]
    assert torch.equal(other.images.flatten(1).sum(1).sort()[0], order.sort()[0])
    task.loss(model, other)
    again = seen.masks[-1]
    assert again is not None
    places = [(order == value).nonzero().item() for value in other.images.flatten(1).sum(1)]
    assert not torch.equal(again, mask[places])
    seen.masks.clear()
    with torch.no_grad():
        task.evaluate(model)
    assert seen.masks and all(mask is None for mask in seen.masks)


def test_dropped_words_are_unknown_but_never_the_first() -> None:
    model = tiny_run.captioner()
    assert model.tokenizer is not None
    task = tiny_run.task(model, pictures=40, drop_tokens=0.0, drop_words=0.4, batch_size=80)
    batch = batches(task)[0]
    seen: list[Tensor] = []
    model.decoder.embed.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    for seed, given in ((1, batch), (2, batch), (2, batch._replace(seeds=batch.seeds + 1))):
        torch.manual_seed(seed)
        task.loss(model, given)
    hidden = seen[0] != batch.ids
    assert not hidden[:, 0].any() and 0.3 < hidden[:, 1:].float().mean() < 0.5
    assert (seen[0][hidden] == model.tokenizer.unk_id).all()
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])
    seen.clear()
    with torch.no_grad():
        task.evaluate(model)
    assert seen[0].tolist()[0][1] != model.tokenizer.unk_id  # nothing is dropped in validation


def test_nothing_is_dropped_by_default() -> None:
    model = tiny_run.captioner()
    task = tiny_run.task(model, drop_tokens=0.0)
    batch = batches(task)[0]
    torch.manual_seed(1)
    first = task.loss(model, batch).item()
    torch.manual_seed(2)
    assert task.loss(model, batch).item() == first


# -- scores --------------------------------------------------------------------------------------------------

@torch.no_grad()
def test_scores_are_those_of_the_captions(tmp_path: Path) -> None:
    model = tiny_run.captioner(seed=3)
    pictures, captions = tiny_run.Pictures(67, seed=1), tiny_run.captions(67, seed=6)  # more than 64
    told = {f"photo {number}": lines for number, lines in enumerate(captions)}
    task = CaptionTask(model, tiny_run.Pictures(4), tiny_run.captions(4), pictures, told,
                       remember=Captioner.encode, beams=2, max_len=5, smoothing=0.2, notes={"data": "random"})
    with pytest.raises(AssertionError):
        task.evaluate(torch.nn.Linear(2, 2))
    scores = task.evaluate(model.eval())
    assert list(scores) == ["cider_d", "val_loss"]
    said = model.caption(pictures.pixels, beams=2, max_len=5)
    expected = cider({name: one.text or "" for name, one in zip(told, said)}, told)
    assert scores["cider_d"] == pytest.approx(expected.score, rel=1e-9)
    assert model.tokenizer is not None
    rows = encode_captions([lines[0] for lines in captions], model.tokenizer, 5)
    total = count = 0.0
    for number, row in enumerate(rows):
        logp = model(pictures[[number]], row[None, :-1])[0].log_softmax(-1)
        total -= logp.gather(1, row[1:, None]).sum().item()
        count += len(row) - 1
    assert scores["val_loss"] == pytest.approx(total / count, rel=1e-5)
    model.notes = {"kept": 1}
    task.save(model, tmp_path / "w.safetensors", scores)
    loaded = load(tmp_path / "w.safetensors", verify=True)
    assert isinstance(loaded, Captioner)
    assert loaded.notes == {"kept": 1, "data": "random",
                            "scores": {**scores, "signature": expected.signature}}


def test_scoring_keeps_the_mode_and_reports_progress() -> None:
    model = tiny_run.captioner().eval()
    told: list[dict[str, Any]] = []
    task = tiny_run.task(model, progress=lambda items, **options: told.append(options) or items)
    with torch.no_grad():
        assert task.evaluate(model) == task.evaluate(model)
    assert not model.training and told[0] == {"total": 1, "desc": "validation"}


# -- pictures ------------------------------------------------------------------------------------------------

def test_photos_and_pixels_equal_preprocess(tmp_path: Path) -> None:
    model = tiny_run.captioner()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 12, 8, 3), dtype=np.uint8)
    files = [tmp_path / f"{number}.png" for number in range(3)]
    for picture, file in zip(pixels, files):
        Image.fromarray(picture).save(file)
    expected = preprocess(files, model)[0][[2, 0]]
    photos, kept = Photos(files, model), Pixels(pixels, tiny_run.PREPROCESSING)
    assert len(photos) == len(kept) == 3
    assert torch.equal(photos[[2, 0]], expected)
    torch.testing.assert_close(kept[[2, 0]], expected)
    with pytest.raises(InputError, match="pixels of"):
        Pixels(pixels.transpose(0, 2, 1, 3), tiny_run.PREPROCESSING)


@pytest.mark.parametrize("mirror", [False, True])
def test_parts_of_photos_are_drawn_as_they_are_read(tmp_path: Path, mirror: bool) -> None:
    """The first version is the photo; each of the others is a part of it that belongs to seed, photo and number."""
    files, model = [], tiny_run.captioner()
    for number in range(3):  # a pixel's red tells its column, its green its row, its blue the photo
        columns, rows = np.arange(0, 240, 4)[None], np.arange(0, 200, 5)[:, None]
        pixels = np.stack(np.broadcast_arrays(columns, rows, 80 * number), -1)
        files.append(tmp_path / f"{number}.png")
        Image.fromarray(pixels.astype(np.uint8)).save(files[-1])
    plain, drawn = Photos(files, model), Photos(files, model, mirror, views=40, crop_scale=0.3, seed=5)
    assert len(drawn) == 120
    mean, std = (torch.tensor(values)[:, None, None] for values in (tiny_run.PREPROCESSING.mean,
                                                                    tiny_run.PREPROCESSING.std))
    torch.testing.assert_close(drawn[[2, 0]], plain[[2, 0]])
    shown = (drawn[list(range(3, 120))] * std + mean) * 255  # (117, 3, H, W)
    assert torch.allclose(shown[:, 2], torch.tensor([0.0, 80, 160]).repeat(39)[:, None, None], atol=1)
    red, green = shown[:, 0], shown[:, 1]
    assert (green[:, -1] > green[:, 0]).all()
    turned = red[:, 0, -1] < red[:, 0, 0]
    assert 30 < turned.sum() < 87 if mirror else not turned.any()
    share = ((red[:, 0, -1] - red[:, 0, 0]).abs() / 236) * ((green[:, -1, 0] - green[:, 0, 0]) / 195)
    share = share / (7 / 8 * 11 / 12)  # from middle to middle of the outermost pixels
    assert 0.25 < share.min() < 0.5 and 0.8 < share.max() < 1.05
    assert torch.equal(drawn[[50, 3]], Photos(files, model, mirror, 40, 0.3, 5)[[50, 3]])
    assert not torch.equal(drawn[[50]], Photos(files, model, mirror, 40, 0.3, 6)[[50]])
    with pytest.raises(InputError, match="crop_scale"):
        Photos(files, model, views=2, crop_scale=0.0)


@pytest.mark.parametrize("workers", [0, 1])
def test_photos_are_mirrored_as_they_are_read(tmp_path: Path, workers: int) -> None:
    """Either version comes with the picture's own captions, a resumed epoch has the same, another epoch others."""
    draw, model, files = np.random.default_rng(2), tiny_run.captioner(), []
    for number in range(12):
        files.append(tmp_path / f"{number}.png")
        Image.fromarray(draw.integers(0, 256, (14 + number, 9, 3), dtype=np.uint8)).save(files[-1])
    plain, both = Photos(files, model), Photos(files, model, mirror=True)
    assert len(plain) == 12 and len(both) == 24
    assert torch.equal(both[[3, 15, 12, 11]], torch.stack([plain[[3]][0], plain[[3]][0].flip(-1),
                                                          plain[[0]][0].flip(-1), plain[[11]][0]]))
    told = [[word] for word in tiny_run.WORDS[:12]]
    task = CaptionTask(model, both, told, plain, dict(zip(map(str, range(12)), told)), remember=Captioner.encode,
                       views=2, batch_size=5, workers=workers, max_len=10)
    assert model.tokenizer is not None
    epochs = [list(task.batches(epoch, 0)) for epoch in range(3)]
    seen = []
    for epoch in epochs:
        for batch in epoch:
            for image, ids in zip(batch.images, batch.ids):
                photo = told.index([model.tokenizer.decode(ids.tolist())])
                mirrored = torch.equal(image, plain[[photo]][0].flip(-1))
                assert mirrored or torch.equal(image, plain[[photo]][0])
                seen.append(mirrored)
    assert 8 < sum(seen) < 28 and len({tuple(sorted(seen[at:at + 12])) for at in (0, 12, 24)}) > 1
    again = list(task.batches(1, 2))
    assert len(again) == 1 and torch.equal(again[0].images, epochs[1][2].images)


def test_stored_features_become_the_same_memory() -> None:
    model = tiny_run.captioner().eval()
    images = tiny_run.Pictures(3).pixels
    features = model.encoder.encode(images)
    assert torch.equal(from_features(model, features).tokens, model.encode(images).tokens)
    memory = from_features(model, features.bfloat16())
    assert memory.tokens.dtype == torch.float32 and memory.grid == (3, 2) and memory.n_prefix == 1
    with pytest.raises(InputError, match="features of shape"):
        from_features(model, features[:, :5])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_photo_that_does_not_open_is_one_line(tmp_path: Path, workers: int) -> None:
    model = tiny_run.captioner()
    files = [tmp_path / f"{number}.png" for number in range(3)]
    for file in files:
        Image.new("RGB", (8, 12)).save(file)
    files[1].write_bytes(b"no picture")
    task = CaptionTask(model, Photos(files, model), [["a dog"]] * 3, Photos(files, model),
                       dict.fromkeys("abc", ["a"]), remember=Captioner.encode, workers=workers, max_len=10)
    with pytest.raises(InputError) as raised:
        batches(task)
    assert str(files[1]) in str(raised.value) and "Traceback" not in str(raised.value)
    assert len(str(raised.value)) < 200


# -- mistakes ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("changes, told", [
    ({"refs": 0}, "refs|captions"), ({"refs": 3, "batch_size": 2}, "batch_size=2"), ({"beams": 0}, "beams=0"),
    ({"max_len": 0}, "max_len=0"), ({"max_len": 11}, "max_len=11: give at most 10"),
    ({"views": 2}, "as many pictures")])
def test_mistakes_are_found_before_training(changes: dict[str, Any], told: str) -> None:
    model = tiny_run.captioner()
    with pytest.raises(InputError, match=told):
        tiny_run.task(model, **changes)


def test_too_few_pictures() -> None:
    model = tiny_run.captioner()
    for train, val in ((0, 3), (3, 0), (3, 1)):
        with pytest.raises(InputError, match=f"{train} training and {val} validation"):
            CaptionTask(model, tiny_run.Numbers(train), [["a dog"]] * train, tiny_run.Numbers(val),
                        {str(number): ["a cat"] for number in range(val)}, remember=Captioner.encode,
                        max_len=10)
    with pytest.raises(InputError, match="as many pictures"):
        CaptionTask(model, tiny_run.Numbers(4), [["a dog"]] * 3, tiny_run.Numbers(2), dict.fromkeys("ab", ["a"]),
                    remember=Captioner.encode)


def test_no_tokenizer() -> None:
    model = tiny_run.captioner()
    model.tokenizer = None
    with pytest.raises(InputError, match="tokenizer"):
        tiny_run.task(model)


def test_references_without_a_word_are_found_before_training() -> None:
    told = {"a.jpg": ["a dog"], "b.jpg": ["..."]}
    with pytest.raises(InputError, match="'b.jpg' have no 'ptb-coco' token"):
        CaptionTask(tiny_run.captioner(), tiny_run.Numbers(3), [["a dog"]] * 3, tiny_run.Numbers(2), told,
                    remember=Captioner.encode, max_len=10)


def test_sampled_words_cost_no_gradient_under_autocast() -> None:
    """Casts of the weights that a pass without gradients makes must not serve the pass with gradients."""
    model = tiny_run.captioner()
    randomise(model, 3)
    task = tiny_run.task(model, sampling=1.0, epochs=2)
    batch = next(iter(task.batches(1, 0)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = task.loss(task.wrap(model), batch)
    loss.backward()
    assert [name for name, one in model.decoder.named_parameters() if one.grad is None] == []
