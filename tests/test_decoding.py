"""Decodings: packed matrices, compiled steps of fixed shapes, and the memory that open sequences take."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from random_models import captioner, memory, pictures, texts
from torch import Tensor, nn
from torch._dynamo.utils import counters

from minivl.errors import InputError
from minivl.models.captioner import Captioner
from minivl.nn.cache import KVCache
from minivl.nn.packed import PAYS, PackedLinear, packed

EAGER = "eager"  # a backend that makes graphs and compiles no C++


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


def ids_of(captions: list[Any]) -> list[list[tuple[int, ...]]]:
    return [[one.ids for one in (first, *first.others)] for first in captions]


def rows_of(model: nn.Module) -> list[PackedLinear]:
    return [module for module in model.modules() if isinstance(module, PackedLinear)]


# -- packed matrices -----------------------------------------------------------------------------------------

@torch.no_grad()
def test_without_the_library_a_layer_is_an_ordinary_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    layer, x = nn.Linear(24, 40), torch.randn(3, 24)
    twin = packed(layer)
    assert torch.equal(twin(x), layer(x)) and twin._packed is None


@torch.no_grad()
@pytest.mark.parametrize("kind, close", [(torch.float32, 1e-5), (torch.bfloat16, 3e-2), (torch.float64, 1e-12)])
def test_a_packed_layer_multiplies_alike(kind: torch.dtype, close: float) -> None:
    torch.manual_seed(0)
    for bias in (True, False):
        layer = nn.Linear(24, 40, bias=bias).to(kind)
        twin = packed(layer)
        assert isinstance(twin, PackedLinear) and twin.weight is layer.weight
        for shape in ((24,), (1, 24), (2, 24), (3, 1, 24), (2, 5, 24), (70, 24), (0, 24)):
            x = torch.randn(shape).to(kind)
            torch.testing.assert_close(twin(x), layer(x), atol=close, rtol=close)
        sliced = torch.randn(6, 48).to(kind)[:, ::2]
        torch.testing.assert_close(twin(sliced), layer(sliced), atol=close, rtol=close)


@torch.no_grad()
@pytest.mark.parametrize("out", [12, 24, 40])
@pytest.mark.parametrize("kind, close", [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_one_row_again_and_again(out: int, kind: torch.dtype, close: float) -> None:
    """Another layout is made once it pays; in float32 for a matrix with as many rows as columns or more."""
    torch.manual_seed(0)
    layer = nn.Linear(24, out).to(kind)
    twin = packed(layer)
    assert isinstance(twin, PackedLinear)
    for number in range(PAYS + 2):
        made = number + 1 >= PAYS
        x = torch.randn((24,) if number % 2 else (1, 1, 24)).to(kind)
        torch.testing.assert_close(twin(x), layer(x), atol=close, rtol=close)
        if twin._packed is not None or torch.ops.mkldnn._is_mkldnn_bf16_supported() or kind == torch.float32:
            assert (twin._turned is not None) == (made and out >= 24 and kind == torch.float32)
            assert (twin._packed is not None) == (made and kind == torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(twin(x), layer(x), atol=3e-2, rtol=3e-2)


def test_precision_of_autocast_and_gradients() -> None:
    layer, x = nn.Linear(24, 40), torch.randn(5, 24)
    twin = packed(layer)
    with torch.no_grad():
        first = twin(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert twin(x).dtype == layer(x).dtype == torch.bfloat16
            torch.testing.assert_close(twin(x), layer(x), atol=2e-2, rtol=2e-2)
        assert torch.equal(twin(x), first)
    twin(x).square().sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.abs().sum() > 0


def test_a_twin_shares_all_but_plain_layers() -> None:
    hooked = nn.Linear(4, 4)
    hooked.register_forward_hook(lambda module, args, out: out + 1)
    parametrised = torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    model: Any = nn.Sequential(nn.Linear(4, 4), hooked, parametrised, nn.Sequential(nn.ReLU(), nn.LayerNorm(4)))
    before = copy.deepcopy(model.state_dict())
    twin: Any = packed(model)
    assert isinstance(twin[0], PackedLinear) and all(twin[i] is model[i] for i in (1, 2, 3))
    assert type(model[0]) is nn.Linear and list(model.state_dict()) == list(before) == list(twin.state_dict())
    assert packed(model[3]) is model[3] and packed(twin) is twin
    x = torch.randn(3, 4)
    torch.testing.assert_close(twin(x), model(x))


@torch.no_grad()
@pytest.mark.parametrize("tied", [False, True])
def test_a_ready_captioner_says_the_same(tied: bool) -> None:
    model, images = captioner(3, scale=0.3, tied=tied), pictures(4)
    ready = model.ready()
    assert len(rows_of(ready.decoder)) == 2 * (4 + 4 + 2) + 1 and not rows_of(model)
    assert ready.ready().decoder is ready.decoder and ready.ready().encoder is ready.encoder
    assert len(rows_of(ready.encoder)) == 2 * (4 + 2)
    torch.testing.assert_close(ready.encode(images).tokens, model.encode(images).tokens, atol=1e-5, rtol=1e-5)
    seen, ids = model.encode(images), texts(4, 7)
    torch.testing.assert_close(ready(None, ids, memory=seen), model(None, ids, memory=seen), atol=1e-5, rtol=1e-5)
    assert ids_of(ready.caption(images, n_best=3, max_len=9)) == ids_of(model.caption(images, n_best=3, max_len=9))


def test_new_weights_are_seen_by_the_next_decoding() -> None:
    model, images = captioner(3, scale=0.3), pictures(4)
    first = model.caption(images, max_len=9)
    model.load_state_dict(captioner(4, scale=0.3).state_dict())
    assert ids_of(model.caption(images, max_len=9)) == ids_of(captioner(4, scale=0.3).caption(images, max_len=9))
    assert ids_of(model.caption(images, max_len=9)) != ids_of(first)


WAYS: dict[str, dict[str, Any]] = {"greedy": {"beams": 1}, "sample": {"samples": 1}, "beams": {"beams": 3},
                                   "samples": {"samples": 2}, "required": {"beams": 1, "required": [(7,)]},
                                   "prefix": {"beams": 1, "prefix": (4, 5)}}


@torch.no_grad()
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("heads", [2, 8])
def test_captions_without_keys_and_values_of_the_memory(monkeypatch: pytest.MonkeyPatch, heads: int, way: str) -> None:
    model = captioner(7, scale=0.3, num_heads=heads)
    mask = torch.rand(5, 7, generator=torch.Generator().manual_seed(4)) < 0.7
    full = memory(5)._replace(pos=memory(5, seed=8).tokens, mask=mask)
    told = model.caption(full, max_len=8, **WAYS[way])  # too few tokens
    lengths = {len(one.ids) for one in told}
    assert way != "greedy" or len(lengths) > 1  # images leave at different steps
    monkeypatch.setattr("minivl.models.decoding.MANY", 5 * 7)
    filled: list[int] = []
    append = KVCache.append
    monkeypatch.setattr(KVCache, "append", lambda self, k, v: (filled.append(k.shape[2]), append(self, k, v))[1])
    found = model.caption(full, max_len=8, **WAYS[way])
    assert ids_of(found) == ids_of(told)
    assert [one.score for one in found] == pytest.approx([one.score for one in told], abs=1e-5)
    width = model.config.decoder.width // heads
    waits = way in ("greedy", "sample") and max(lengths) - 1 <= width // 2  # half as many steps as a head is wide
    assert (7 in filled) != waits
    assert way != "greedy" or waits == (heads == 2)


@torch.no_grad()
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float64])
def test_a_memory_of_another_precision(monkeypatch: pytest.MonkeyPatch, kind: torch.dtype) -> None:
    model = captioner(1, scale=0.3)
    seen = memory(5)._replace(tokens=memory(5).tokens.to(kind))
    told = model.caption(seen, beams=1, max_len=9)
    monkeypatch.setattr("minivl.models.decoding.MANY", 1)
    assert ids_of(model.caption(seen, beams=1, max_len=9)) == ids_of(told)


# -- memory --------------------------------------------------------------------------------------------------

@torch.no_grad()
def test_one_more_beam_costs_its_own_text_only() -> None:
    model = captioner()
    config = model.config.decoder

    def held(beams: int, length: int = 9) -> int:
        state = model.start(memory(3))
        model.step(texts(3, 1), state)
        state.reorder(torch.arange(3).repeat_interleave(beams))
        for _ in range(length - 1):
            model.step(texts(3 * beams, 1), state)
            state.reorder(torch.arange(3 * beams).flip(0).unflatten(0, (3, beams)).flip(0).flatten())
        tensors = [one for cache in (*state.self_caches, *state.cross_caches) for one in (cache.k, cache.v)]
        return sum({one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}.values())

    beam = 3 * config.depth * 2 * 9 * config.width * 4  # images, layers, keys and values, positions, width, bytes
    assert [held(beams + 1) - held(beams) for beams in (1, 2, 7)] == [beam] * 3
    assert held(1) == beam + 3 * config.depth * 2 * 7 * config.width * 4  # and the memory once per image


# -- compiled steps ------------------------------------------------------------------------------------------

CASES: dict[str, dict[str, Any]] = {
    "greedy": {"beams": 1}, "3 beams": {"n_best": 3}, "groups": {"beams": 4, "groups": 2, "n_best": 2},
    "mean": {"normalise": "mean"}, "samples": {"samples": 3}, "prefix": {"prefix": (4, 5), "max_len": 8},
    "required": {"required": [(7,), (9,)], "beams": 2}}


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name == "3 beams" else pytest.mark.slow)
                                  for name in CASES])  # a graph takes seconds to make
def test_compiled_equals_eager(name: str) -> None:
    model, images = captioner(3, scale=0.3), pictures(6)
    options = {"max_len": 9, **CASES[name]}
    eager = model.caption(images, batch_size=4, **options)  # the second batch is smaller
    got = model.caption(images, batch_size=4, compile=EAGER, **options)
    assert ids_of(got) == ids_of(eager)
    torch.testing.assert_close([one.logprob for one in got], [one.logprob for one in eager], atol=1e-4, rtol=0)


def test_one_graph_for_all_steps_lengths_and_batches() -> None:
    model, lengths = captioner(3, scale=0.3, width=24), set()
    before = graphs()
    for seed in range(4):
        for count in (5, 7):  # 7: a batch of 5 and one of 2
            captions = model.caption(pictures(count, seed=seed), beams=3, max_len=10, batch_size=5, compile=EAGER)
            lengths |= {len(one.ids) for one in captions}
    assert len(lengths) > 2, lengths  # images finish at different steps
    assert graphs() - before == 1
    model.caption(pictures(5), beams=4, max_len=10, batch_size=5, compile=EAGER)
    assert graphs() - before == 2  # the count does see another graph


@torch.no_grad()
def test_hidden_memory_and_positions() -> None:
    model = captioner(1, scale=0.3)
    full = memory(3)._replace(pos=memory(3, seed=8).tokens, mask=torch.tensor([[True] * 7, [True] * 4 + [False] * 3,
                                                                               [False, True] * 3 + [True]]))
    expected = model.caption(full, max_len=8, n_best=2)
    assert ids_of(model.caption(full, max_len=8, n_best=2, compile=EAGER)) == ids_of(expected)
    assert ids_of(model.caption(full._replace(mask=None), max_len=8, n_best=2)) != ids_of(expected)


@torch.no_grad()
def test_room() -> None:
    model = captioner()
    seen, ids = model.encode(pictures()), torch.tensor([4, 5])
    for message, options in (("room=13", {"room": 13}), ("images=1", {"images": 1})):
        with pytest.raises(InputError, match=message):
            model.decoding(seen, compile=EAGER, **options)
    decode = model.decoding(seen, compile=EAGER, room=3)
    decode.prefill(ids[:, None])
    decode.step(ids)
    decode.step(ids)
    with pytest.raises(InputError, match="room for 3"):
        decode.step(ids)


def stepwise(model: Captioner, photos: Tensor, **options: Any) -> Tensor:
    """Log-probabilities of random words after an image has left, rows having been mixed."""
    decode = model.decoding(model.encode(photos), **options)
    decode.prefill(texts(3, 2))
    decode.reorder(torch.tensor([0, 0, 1, 1, 2, 2]))
    decode.step(texts(6, 1)[:, 0])
    decode.reorder(torch.tensor([1, 0, 3, 3, 4, 4]))
    decode.select(torch.tensor([0, 2]))
    decode.step(texts(4, 1, seed=5)[:, 0])
    decode.reorder(torch.tensor([0, 1, 1, 3, 2, 2]))  # a row more for each
    return decode.step(texts(6, 1, seed=6)[:, 0])


@torch.no_grad()
def test_any_order_of_the_four_verbs() -> None:
    model, images = captioner(2, scale=0.3), pictures(3)
    torch.testing.assert_close(stepwise(model, images, compile=EAGER, images=5), stepwise(model, images), atol=1e-5,
                               rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("backend", [True, "aot_eager"])
def test_other_backends(backend: bool | str) -> None:
    model, images = captioner(3, scale=0.3), pictures(4)
    assert ids_of(model.caption(images, max_len=9, compile=backend)) == ids_of(model.caption(images, max_len=9))
