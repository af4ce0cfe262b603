"""Self-critical training: samples, their loss by hand, what divides a batch, and that it raises the reward.

    torchrun --nproc-per-node 2 tests/test_selfcritical.py FOLDER    a short training, shared in both ways
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_run
import torch
from random_models import randomise
from torch import Tensor

from minivl import programs
from minivl.errors import InputError
from minivl.models.captioner import Captioner
from minivl.search import sample_search
from minivl.train.caption_batches import IGNORED
from minivl.train.captioning import CaptionTask, from_features
from minivl.train.distributed import ALONE, Processes, processes
from minivl.train.loop import Plan, autocast, fit, train_mode
from minivl.train.rewards import Rewards, Said
from minivl.train.run import read_history
from minivl.train.selfcritical import Batch, SelfCriticalTask

# Python 3.12 warns of forks beside threads; torch's are idle here
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
REFERENCES = tiny_run.captions(13)
PLAN = Plan(epochs=2, lr=3e-3, warmup=2, clip=1.0, ema=0.9, seed=7, save_every=0)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def captioner(seed: int = 0, scale: float = 0.3, **changes: Any) -> Captioner:
    """Random in every parameter, with dropout."""
    model = tiny_run.captioner(dropout=0.2, seed=seed, **changes)
    randomise(model, seed, scale)
    return model.train()


def task(model: Captioner, rewards: Any = None, pictures: int = 13, views: int = 1, images: Any = None,
         **options: Any) -> SelfCriticalTask:
    told = {f"photo {number}": lines for number, lines in enumerate(tiny_run.captions(3, seed=6))}
    remember = options.pop("remember", Captioner.encode)
    val = tiny_run.Pictures(3, seed=1)
    scored = CaptionTask(model, tiny_run.Pictures(2), tiny_run.captions(2),
                         encoded(model, val) if remember is from_features else val, told,
                         remember=remember, beams=1, max_len=6)
    return SelfCriticalTask(scored, model, tiny_run.Pictures(views * pictures) if images is None else images,
                            Rewards(REFERENCES[:pictures]) if rewards is None else rewards,
                            remember=remember, views=views, **{"batch_size": 4, "max_len": 6, **options})


@torch.no_grad()
def encoded(model: Captioner, pictures: Any) -> Tensor:
    """Stored features in bf16."""
    mode = model.training
    tokens = model.eval().encoder.encode(pictures[range(len(pictures))]).to(torch.bfloat16)  # type: ignore[operator]
    model.train(mode)
    return tokens


def batches(one: SelfCriticalTask, epoch: int = 0, start: int = 0) -> list[Batch]:
    return list(one.batches(epoch, start))


def said(one: SelfCriticalTask, epoch: int = 0) -> dict[int, list[list[int]]]:
    """Picture -> tokens of its samples, over an epoch."""
    found: dict[int, list[list[int]]] = {}
    for batch in one.batches(epoch, 0):
        rows = [[token for token in row if token != IGNORED]
                for part, _ in one.parts(batch) for row in part.targets.tolist()]
        n = len(rows) // len(batch.photos)
        found.update((photo, rows[place * n:(place + 1) * n]) for place, photo in enumerate(batch.photos))
    return found


# -- samples -------------------------------------------------------------------------------------------------

def test_every_picture_once_an_epoch_in_an_order_of_seed_and_epoch() -> None:
    one = task(captioner(), seed=3, views=2)
    first, second = batches(one, 0), batches(one, 1)
    assert len(first) == one.steps == 4 and [len(batch.photos) for batch in first] == [4, 4, 4, 1]
    orders = [[photo for batch in epoch for photo in batch.photos] for epoch in (first, second)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(13)) and orders[0] != orders[1]
    pixels, views = tiny_run.Pictures(26).pixels, set()
    for batch in first + second:
        for photo, image in zip(batch.photos, batch.images):
            matches = [view for view in (0, 1) if torch.equal(image, pixels[photo + 13 * view])]
            assert len(matches) == 1
            views.update(matches)
    assert views == {0, 1}
    for start in range(5):
        assert [batch.photos for batch in batches(one, 1, start)] == [batch.photos for batch in second[start:]]


def test_samples_are_of_picture_and_number_alone() -> None:
    model = captioner()
    expected = said(task(model))
    assert len({tuple(row) for rows in expected.values() for row in rows}) > 40
    for options in ({"batch_size": 1}, {"batch_size": 13}, {"accumulate": 3}, {"batch_size": 5, "workers": 2}):
        assert said(task(model, **options)) == expected
    torch.manual_seed(5)
    few = said(task(model, samples=2, batch_size=7))
    assert few == {photo: rows[:2] for photo, rows in expected.items()}
    assert said(task(model), 1) != expected and said(task(model, seed=1)) != expected


def favour(model: Captioner, token: int, factor: float) -> None:
    """Make a token likelier: its logit grows by about that times the squared length of the last norm's bias."""
    with torch.no_grad():  # the head is tied
        model.decoder.embed.weight[token] += factor * model.decoder.norm.bias  # type: ignore[operator]


def test_samples_are_those_of_the_search_without_the_unknown() -> None:
    """Drawn with the seeds (seed, epoch, picture, sample) from the model in eval mode."""
    model = captioner()
    assert model.tokenizer is not None and model.tokenizer.unk_id is not None
    favour(model, model.tokenizer.unk_id, 2.0)
    one = task(model, seed=2, temperature=1.5)
    found = said(one, 1)
    model.eval()
    pixels = tiny_run.Pictures(13)
    unknown = 0
    for photo, rows in found.items():
        memory = model.encode(pixels[[photo]])

        def no_unknown(ids: Tensor, logp: Tensor, left: int) -> Tensor:
            return logp.index_fill(-1, torch.tensor([model.tokenizer.unk_id]), -math.inf)  # type: ignore[union-attr]

        prompt = torch.tensor([[model.config.decoder.bos_id]])
        drawn = [sample_search(model.decoding(memory), prompt, eos_id=model.config.decoder.eos_id, samples=5,
                               max_len=6, temperature=1.5, seeds=[(2, 1, photo)], constraints=constraints)[0]
                 for constraints in ([no_unknown], [])]
        assert rows == [list(each.ids[1:]) for each in drawn[0]]
        unknown += sum(model.tokenizer.unk_id in each.ids for each in drawn[1])
    assert unknown > 5  # the test could have failed


def test_the_mode_of_the_model_is_kept() -> None:
    model = captioner()
    model.encoder.requires_grad_(False)
    train_mode(model)
    modes = [module.training for module in model.modules()]
    assert 0 < sum(modes) < len(modes)
    one = task(model)
    for part, _ in one.parts(batches(one)[0]):
        one.loss(model, part)
    assert [module.training for module in model.modules()] == modes


# -- rewards and loss ----------------------------------------------------------------------------------------

def by_hand(model: Captioner, batch: Batch, tokens: dict[int, list[list[int]]], baseline: str, temperature: float,
            pixels: Tensor) -> tuple[Tensor, np.ndarray]:
    """The loss, caption by caption and token by token, and the advantages."""
    decoder, tokenizer, rewards = model.config.decoder, model.tokenizer, Rewards(REFERENCES)
    assert tokenizer is not None and tokenizer.unk_id is not None
    total, count, every = torch.zeros(()), 0, []
    for photo in batch.photos:
        worth = [rewards([photo], [Said(tokenizer.decode(row), row[-1] == decoder.eos_id)])[0]
                 for row in tokens[photo]]
        greedy = model.caption(pixels[photo][None], beams=1, max_len=6)[0]
        usual = rewards([photo], [Said(greedy.text or "", greedy.ids[-1] == decoder.eos_id)])[0]
        for place, row in enumerate(tokens[photo]):
            others = [one for number, one in enumerate(worth) if number != place]
            advantage = worth[place] - (usual if baseline == "greedy" else sum(others) / len(others))
            every.append(advantage)
            ids = [decoder.bos_id]
            for token in row:
                logits = model(pixels[photo][None], torch.tensor([ids]))[0, -1] / temperature
                logits = torch.cat([logits[:tokenizer.unk_id], torch.tensor([-math.inf]),
                                    logits[tokenizer.unk_id + 1:]])
                total = total - advantage * logits.log_softmax(0)[token]
                count += 1
                ids.append(token)
    return total / count, np.array(every)


def gradients(model: Captioner) -> dict[str, Tensor]:
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def whole(one: SelfCriticalTask, model: Captioner, batch: Batch) -> float:
    """The loss of a batch as the loop computes it; gradients are added up in the model."""
    total = 0.0
    for part, weight in one.parts(batch):
        loss = one.loss(model, part)
        (loss * weight).backward()
        total += loss.item() * weight
    return total


@pytest.mark.parametrize("baseline, options", [
    ("leave-one-out", {}), ("greedy", {"temperature": 0.7}), ("greedy", {"samples": 1}),
    ("leave-one-out", {"accumulate": 3, "temperature": 1.3, "samples": 2})])
def test_loss_and_gradient_equal_a_loop_by_hand(baseline: str, options: dict[str, Any]) -> None:
    model = captioner()
    favour(model, model.config.decoder.eos_id, 1.2)
    one = task(model, baseline=baseline, **options)
    batch, tokens = batches(one)[1], said(one)
    found = whole(one, model, batch)
    ours = gradients(model)
    assert len({len(row) for photo in batch.photos for row in tokens[photo]}) > 1
    model.eval()
    loss, advantages = by_hand(model, batch, tokens, baseline, options.get("temperature", 1.0),
                               tiny_run.Pictures(13).pixels)
    loss.backward()
    assert found == pytest.approx(loss.item(), rel=1e-5) and abs(found) > 1e-3
    for name, gradient in gradients(model).items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=1e-5 + 1e-4 * scale, msg=name)
    judged = np.concatenate([part.judged.result().advantages.flatten() for part, _ in one.parts(batch)])
    np.testing.assert_allclose(judged, advantages, atol=1e-12)
    assert np.abs(judged).max() > 0.05


class Known:
    """A decoding that never says <UNK>, and gives what that has to the other tokens."""

    def __init__(self, model: Captioner, images: Tensor) -> None:
        self.inner = model.decoding(model.encode(images))
        self.reorder, self.select = self.inner.reorder, self.inner.select
        assert model.tokenizer is not None and model.tokenizer.unk_id is not None
        self.unknown = torch.tensor([model.tokenizer.unk_id])

    def prefill(self, ids: Tensor) -> Tensor:
        return self.inner.prefill(ids).index_fill(1, self.unknown, -math.inf).log_softmax(1)

    def step(self, ids: Tensor) -> Tensor:
        return self.prefill(ids[:, None])


def test_log_probabilities_are_those_samples_were_drawn_with() -> None:
    """With advantages of one the loss is minus what the search itself reports; with dropout it is not."""
    model = captioner()
    one = task(model)
    batch = batches(one)[0]
    part = one.parts(batch)[0][0]
    part = part._replace(judged=Done(part.judged.result()._replace(advantages=np.ones((4, 5)))))  # type: ignore
    found = one.loss(model, part).item()
    noisy = task(model, dropout=True)
    torch.manual_seed(0)
    with_dropout = noisy.loss(model, part).item()
    torch.manual_seed(0)
    assert noisy.loss(model, part).item() == with_dropout != pytest.approx(found, rel=1e-3)
    prompt = torch.full((4, 1), model.config.decoder.bos_id)
    with torch.no_grad():
        drawn = sample_search(Known(model.eval(), batch.images), prompt, samples=5, max_len=6,
                              eos_id=model.config.decoder.eos_id, seeds=[(0, 0, photo) for photo in batch.photos])
    logps = [logp for several in drawn for each in several for logp in each.logps]
    assert found == pytest.approx(-sum(logps) / len(logps), rel=1e-5)


class Done:
    """A result that is there."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def result(self) -> Any:
        return self.value


def test_advantages_of_leave_one_out_sum_to_zero() -> None:
    one = task(captioner(), batch_size=13)
    judged = one.parts(batches(one)[0])[0][0].judged.result()
    assert judged.rewards.shape == judged.advantages.shape == (13, 5) and judged.rewards.std() > 0.05
    np.testing.assert_allclose(judged.advantages.sum(1), 0, atol=1e-12)
    np.testing.assert_allclose(judged.advantages, 5 / 4 * (judged.rewards - judged.rewards.mean(1, keepdims=True)),
                               atol=1e-12)


def test_rewards_do_not_depend_on_batch_size_or_samples() -> None:
    """To the last bit, as long as the same is said."""
    model = captioner()

    def rewards(**options: Any) -> dict[int, list[float]]:
        one = task(model, **options)
        found: dict[int, list[float]] = {}
        for batch in one.batches(0, 0):
            rows = np.concatenate([part.judged.result().rewards for part, _ in one.parts(batch)]).tolist()
            found.update(zip(batch.photos, rows))
        return found

    expected = rewards()
    assert len({value for row in expected.values() for value in row}) > 20
    assert rewards(batch_size=1) == rewards(batch_size=13) == rewards(accumulate=2) == expected
    assert rewards(baseline="greedy") == expected
    assert rewards(samples=3) == {photo: row[:3] for photo, row in expected.items()}
    assert {photo: row[:5] for photo, row in rewards(samples=8).items()} == expected


def test_ends_are_told_and_rewarded() -> None:
    model = captioner()
    seen: list[Said] = []

    class Seen:
        def __len__(self) -> int:
            return 13

        def __call__(self, photos: Sequence[int], captions: Sequence[Said]) -> np.ndarray:
            seen.extend(captions)
            return np.array([float(one.ended) for one in captions])

    one = task(model, Seen(), samples=20, batch_size=13)
    part = one.parts(batches(one)[0])[0][0]
    rewards, eos = part.judged.result().rewards.flatten().tolist(), model.config.decoder.eos_id
    rows = [[token for token in row if token != IGNORED] for row in part.targets.tolist()]
    assert [row[-1] == eos for row in rows] == [bool(value) for value in rewards] == [one.ended for one in seen]
    assert all(len(row) == 6 or row[-1] == eos for row in rows) and 0.05 < np.mean(rewards) < 0.95
    assert model.tokenizer is not None
    assert [one.text for one in seen] == [model.tokenizer.decode(row) for row in rows]
    (one.loss(model, part)).backward()  # the end becomes likelier
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    optimizer.step()
    after = one.parts(batches(one)[0])[0][0].judged.result().rewards
    assert after.mean() > np.mean(rewards)


def test_rewards_are_computed_while_the_next_is_decoded_and_while_the_pass_runs() -> None:
    """A judge that waits for the next decoding, and for the pass with gradients, comes to an end."""
    model = captioner()
    decoded, passed = [threading.Event() for _ in range(3)], threading.Event()
    waits: list[bool] = []

    class Waits:
        def __len__(self) -> int:
            return 13

        def __call__(self, photos: Sequence[int], captions: Sequence[Said]) -> np.ndarray:
            number = len(waits)
            waits.append(threading.current_thread() is not threading.main_thread())
            following = decoded[number + 1] if number < 2 else passed
            assert following.wait(60), "nobody goes on"
            return np.arange(len(captions)) * 0.1

    one = task(model, Waits(), accumulate=3, batch_size=6)
    encode = one._remember
    looks = iter(decoded)

    def remember(captioner: Captioner, images: Tensor) -> Any:
        memory = encode(captioner, images)
        if torch.is_grad_enabled():
            passed.set()
        else:
            next(looks).set()
        return memory

    one._remember = remember
    parts = one.parts(batches(one)[0])
    assert len(parts) == 3 and sum(weight for _, weight in parts) == pytest.approx(1)
    assert not parts[-1][0].judged.done()
    for part, _ in parts[::-1]:
        assert one.loss(model, part).isfinite()
    assert waits == [True] * 3
    for thread in threading.enumerate():  # none lives on, to be there at a fork
        if thread.name.startswith("rewards"):
            thread.join(10)
            assert not thread.is_alive()


def test_a_mistake_of_the_judge_is_raised() -> None:
    class Fails:
        def __len__(self) -> int:
            return 13

        def __call__(self, photos: Sequence[int], captions: Sequence[Said]) -> np.ndarray:
            raise InputError("no verdict")

    model = captioner()
    one = task(model, Fails())
    part = one.parts(batches(one)[0])[0][0]
    with pytest.raises(InputError, match="no verdict"):
        one.loss(model, part)


def test_bf16_and_stored_features() -> None:
    model = captioner()
    features = encoded(model, tiny_run.Pictures(13))
    one = task(model, images=features, remember=from_features, precision="bf16")
    plain = task(model, images=features, remember=from_features)
    batch = batches(one)[0]
    part = one.parts(batch)[0][0]
    with autocast(torch.device("cpu"), "bf16"):
        loss = one.loss(model, part)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(plain.loss(model, part).item(), rel=0.3, abs=0.02)
    loss.backward()
    found = gradients(model)
    assert "proj.weight" in found and not any(name.startswith("encoder") for name in found)
    pixels = task(model)
    for one_batch, other in zip(batches(plain, 1), batches(pixels, 1)):
        assert one_batch.photos == other.photos
    assert plain.evaluate(model.eval()).keys() == {"cider_d", "val_loss"}


# -- training ------------------------------------------------------------------------------------------------

def mean_reward(one: SelfCriticalTask, epochs: Sequence[int]) -> float:
    return float(np.mean([part.judged.result().rewards for epoch in epochs for batch in one.batches(epoch, 0)
                          for part, _ in one.parts(batch)]))


@pytest.mark.parametrize("baseline", ["leave-one-out", "greedy"])
def test_the_mean_reward_rises(baseline: str) -> None:
    model = tiny_run.captioner(seed=1)
    one = task(model, pictures=6, batch_size=6, baseline=baseline, max_len=8, samples=8)
    before = mean_reward(one, range(100, 104))
    optimizer = torch.optim.Adam(model.parameters(), 2e-2)
    shown = []
    for epoch in range(30):
        optimizer.zero_grad()
        whole(one, model, next(one.batches(epoch, 0)))
        optimizer.step()
        shown.append(one.shown()["reward"])
    after = mean_reward(one, range(100, 104))
    assert after > 1.25 * before, (before, after)
    assert np.mean(shown[-5:]) > np.mean(shown[:5])


def train(folder: Path, group: Processes = ALONE, resume: bool = False, plan: Plan = PLAN,
          before: Callable[[int], None] = lambda step: None, **options: Any) -> None:
    """A short run of which every batch is of 5 of 13 pictures."""
    model = captioner()
    if options.get("remember") is from_features:
        options["images"] = encoded(model, tiny_run.Pictures(13))
        model.encoder.requires_grad_(False)
    one = task(model, processes=group, **{"batch_size": 5, "seed": 4, **options})
    watched = tiny_run.Watched(one, before)  # type: ignore[arg-type]
    for _ in fit(model, watched, plan, out=folder, settings={}, resume=resume, processes=group, wrap=one.wrap):
        pass


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in read_history(folder) if "epoch" not in row]


@pytest.mark.parametrize("options", [{"accumulate": 2, "dropout": True}, {"baseline": "greedy", "samples": 2}])
def test_a_resumed_run_is_one_that_was_not_stopped(options: dict[str, Any], tmp_path: Path) -> None:
    train(tmp_path / "whole", **options)

    def stop(step: int) -> None:
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "stopped", before=stop, **options)
    assert 1 < len(losses(tmp_path / "stopped")) < 5
    train(tmp_path / "stopped", resume=True, **options)
    assert len(set(losses(tmp_path / "whole"))) == 6
    rows = [[{key: value for key, value in row.items() if key != "seconds"} for row in read_history(folder)]
            for folder in (tmp_path / "whole", tmp_path / "stopped")]
    assert rows[0] == rows[1]
    for name in ("best", "last"):
        contents = [(tmp_path / run / f"{name}.safetensors").read_bytes() for run in ("whole", "stopped")]
        assert contents[0] == contents[1]


def test_sharpness_aware_steps_judge_once(tmp_path: Path) -> None:
    train(tmp_path, plan=replace(PLAN, sam=0.05, optimizer="sgd"))
    assert len(losses(tmp_path)) == 6


def test_processes_share_a_batch() -> None:
    """The weighted gradients of three processes, one of them without a share of the last batch, are those of one."""
    model = captioner()
    alone = task(model, batch_size=11)
    total = {"sum": 0.0}

    class Group(Processes):
        def sum(self, value: float) -> float:
            total["sum"] += value
            return total["whole"]

    for number in (0, 1):
        batch = batches(alone)[number]
        expected, tokens = whole(alone, model, batch), 0.0
        gradient = gradients(model)
        for part, _ in alone.parts(batch):
            tokens += float((part.targets != IGNORED).sum())
        total.update(sum=0.0, whole=tokens)
        weights, loss = [], 0.0
        for rank in range(3):
            one = task(model, batch_size=11, processes=Group(rank, 3))
            parts = one.parts(batches(one)[number])
            assert len(parts) == 1
            weights.append(parts[0][1])
            found = one.loss(model, parts[0][0])
            (found * weights[-1]).backward()
            loss += found.item() * weights[-1]
        assert total["sum"] == tokens and sum(weights) == pytest.approx(1) and loss == pytest.approx(expected, rel=1e-5)
        assert (0.0 in weights) == (number == 1)
        for name, value in gradients(model).items():
            torch.testing.assert_close(value, gradient[name], rtol=1e-3, atol=1e-5, msg=name)


CASES: dict[str, dict[str, Any]] = {"plain": {}, "parts": {"accumulate": 2, "baseline": "greedy"},
                                    "features": {"remember": from_features}}


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__,
                    str(tmp_path)], check=True, timeout=600, env={**os.environ, "OMP_NUM_THREADS": "1"})
    for case, options in CASES.items():
        train(tmp_path / case, plan=replace(PLAN, ema=0), **options)
        expected = losses(tmp_path / case)
        for way in ("shared", "shard"):
            found = losses(tmp_path / f"{way}-{case}")
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6, err_msg=f"{way} {case}")
    assert (tmp_path / "shown.json").exists()
    for told in json.loads((tmp_path / "shown.json").read_text()):
        assert told["reward"] > 0


# -- refusals ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("options, words", [
    ({"samples": 1}, "samples=1: leave-one-out"),
    ({"samples": 0, "baseline": "greedy"}, "samples=0"),
    ({"baseline": "mean"}, "'mean' is unknown; there are: leave-one-out, greedy"),
    ({"batch_size": 0}, "batch_size=0"),
    ({"accumulate": 0}, "accumulate=0"),
    ({"temperature": 0.0}, "temperature"),
    ({"max_len": 11}, "max_len=11"),
    ({"views": 2, "images": tiny_run.Pictures(13)}, "13 pictures in 2 versions, rewards of 13"),
    ({"rewards": Rewards(REFERENCES[:12])}, "13 pictures in 1 versions, rewards of 12"),
])
def test_refusals(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        task(captioner(), **options)


def test_words_need_a_tokenizer() -> None:
    model = captioner()
    one = task(model)
    model.tokenizer = None
    with pytest.raises(InputError, match="has no tokenizer"):
        SelfCriticalTask(one.scored, model, tiny_run.Pictures(13), Rewards(REFERENCES), remember=Captioner.encode)


def main(folder: Path) -> None:
    with processes(torch.device("cpu")) as (shared, _):
        for shard in (False, True):
            group = Processes(shared.rank, shared.count, shard)
            for case, options in CASES.items():
                train(folder / f"{'shard' if shard else 'shared'}-{case}", group, plan=replace(PLAN, ema=0), **options)
        model = captioner()
        one = task(model, processes=Processes(shared.rank, shared.count))
        told: list[dict[str, float]] = []
        for batch in one.batches(0, 0):
            one.parts(batch)
            told.append(one.shown())
        if shared.first:
            (folder / "shown.json").write_text(json.dumps(told))


if __name__ == "__main__":
    torch.set_num_threads(1)
    programs.program(lambda argv: main(Path(sys.argv[1])))
