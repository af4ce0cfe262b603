"""verify_decoding: whole models pass, and what is broken on purpose is found and named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from random_models import captioner, pictures, randomise
from torch import Tensor

from minivl.errors import InputError
from minivl.models.captioner import Captioner, CaptionerConfig, Decoding
from minivl.models.decoder import CaptionDecoder, DecoderConfig, DecoderState, Memory
from minivl.models.grid import GridConfig
from minivl.models.verify import DecodingReport, verify_decoding
from minivl.nn.attention import MultiHeadAttention
from minivl.nn.cache import KVCache
from minivl.nn.packed import PackedLinear

NAMES = ["causal mask", "whole prefixes", "cache, token by token", "cache, several at once", "greedy", "beams",
         "scores", "batch"]


def failed(model: Captioner, **options: Any) -> set[str]:
    report = verify_decoding(model, strict=False, **options)
    names = {check.name for check in report.checks if not check.passed}
    assert report.passed == (not names)
    if names:
        with pytest.raises(InputError, match="does not decode") as error:
            verify_decoding(model, **options)
        assert all(f"FAIL {name}" in str(error.value) for name in names)
    return names


# -- whole models --------------------------------------------------------------------------------------------

@pytest.mark.parametrize("changes", [
    {}, {"norm": "post", "positions": "sinusoidal"}, {"tied": True, "depth": 3}, {"query_pos": True, "head": "mlp"},
    {"embed_norm": True, "head": "transform", "max_len": 5}])
def test_whole_models_pass(changes: dict[str, Any]) -> None:
    model = captioner(3, scale=0.3, **changes)
    report = verify_decoding(model)
    assert isinstance(report, DecodingReport) and report.passed and report.images == 3
    assert [check.name for check in report.checks] == NAMES
    assert all(0 <= check.difference <= 5e-5 for check in report.checks), str(report)
    assert str(report).count("ok  ") == 8 and "FAIL" not in str(report)


def test_images_of_ones_own() -> None:
    model, images = captioner(), pictures(4)
    for given in (images, model.encode(images), list(images)):
        assert verify_decoding(model, given, beams=2, max_len=5).images == 4
    assert verify_decoding(model, seed=1).checks != verify_decoding(model, seed=2).checks
    assert verify_decoding(model, seed=1) == verify_decoding(model, seed=1)


def test_other_precisions() -> None:
    for kind in (torch.bfloat16, torch.float64):
        assert verify_decoding(captioner(1).to(kind)).passed


def test_an_encoder_of_any_size() -> None:
    encoder = GridConfig(width=24, depth=1, num_heads=3, mlp_dim=40, layers=(1, 1, 1, 1))
    decoder = DecoderConfig(vocab_size=11, width=24, depth=2, num_heads=3, mlp_dim=40, max_len=9)
    model = Captioner(CaptionerConfig(encoder, decoder))
    randomise(model.decoder)
    assert verify_decoding(model.eval()).passed


def test_the_mode_is_left_as_it_was() -> None:
    model = captioner(dropout=0.5)
    model.train()
    model.encoder.eval()
    assert verify_decoding(model).passed  # no dropout meanwhile
    assert model.training and model.decoder.training and not model.encoder.training
    with pytest.raises(InputError):
        verify_decoding(model, pictures(1))
    assert model.training


# -- broken ones ---------------------------------------------------------------------------------------------

def test_a_missing_causal_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """What looks ahead in one pass cannot do so step by step."""
    forward = MultiHeadAttention.forward
    monkeypatch.setattr(MultiHeadAttention, "forward",
                        lambda self, *args, causal=False, **named: forward(self, *args, causal=False, **named))
    assert {"causal mask", "whole prefixes", "cache, token by token", "cache, several at once", "scores"} <= failed(
        captioner(3, scale=0.3))


def test_a_cache_that_is_not_reordered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beams would go on with each other's keys: rows are made, and never put in the order of their parents."""
    def reorder(self: DecoderState, rows: Tensor) -> None:
        have = self.self_caches[0].k.shape[0]
        if len(rows) % have == 0 and len(rows) != have:
            rows = torch.arange(have).repeat_interleave(len(rows) // have)
        else:
            rows = torch.arange(len(rows))
        for cache in self.self_caches:
            cache.reorder(rows)

    monkeypatch.setattr(DecoderState, "reorder", reorder)
    names = failed(captioner(3, scale=0.3))
    assert {"beams", "scores"} <= names
    assert not names & {"causal mask", "whole prefixes", "cache, token by token", "cache, several at once"}


def test_a_cache_that_forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    append = KVCache.append

    def forgetful(self: KVCache, k: Tensor, v: Tensor) -> None:
        append(self, k, v)
        if self.length == 4:
            self._v[:, :, 1] = 0

    monkeypatch.setattr(KVCache, "append", forgetful)
    assert {"cache, token by token", "greedy", "scores"} <= failed(captioner(3, scale=0.3))


def test_positions_that_begin_anew_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    class Same:
        def __init__(self, table: Tensor) -> None:
            self.table = table

        def __getitem__(self, part: slice) -> Tensor:
            return self.table[:part.stop - part.start]

    forward = CaptionDecoder.forward

    def wrong(self: CaptionDecoder, *args: Any, **named: Any) -> Tensor:
        table = self.pos_embed
        del self.pos_embed
        self.pos_embed = Same(table)
        try:
            return forward(self, *args, **named)
        finally:
            del self.pos_embed
            self.pos_embed = table

    monkeypatch.setattr(CaptionDecoder, "forward", wrong)
    assert {"cache, token by token", "cache, several at once", "greedy", "scores"} <= failed(captioner(3, scale=0.3))


def test_images_that_see_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    start = Captioner.start
    monkeypatch.setattr(Captioner, "start", lambda self, memory: start(self, Memory(
        memory.tokens + memory.tokens.mean(0, keepdim=True), *memory[1:])))
    assert "batch" in failed(captioner(3, scale=0.3))


def test_packed_matrices_that_compute_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """As captions are decoded, with `ready`; one pass and its caches are as they should be."""
    forward = PackedLinear.forward
    monkeypatch.setattr(PackedLinear, "forward", lambda self, x: forward(self, x) * 1.01)
    names = failed(captioner(3, scale=0.3))
    assert {"greedy", "beams", "scores"} <= names
    assert not names & {"causal mask", "whole prefixes", "cache, token by token", "cache, several at once"}


def test_attention_without_keys_and_values_that_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Greedy captions of many photos wait with keys and values; here there are few, and it is checked all the same."""
    through = MultiHeadAttention._through_context
    calls = []

    def wrong(self: MultiHeadAttention, q: Tensor, *rest: Any) -> Tensor:
        calls.append(len(q))
        return through(self, 1.3 * q, *rest)  # a wrong scale of what the softmax sees

    monkeypatch.setattr(MultiHeadAttention, "_through_context", wrong)
    assert failed(captioner(3, scale=0.6)) == {"greedy"} and calls


def test_scores_that_are_not_log_probabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    """Raw logits, as a captioner once added them up."""
    monkeypatch.setattr(Decoding, "prefill",
                        lambda self, ids: self._captioner.step(ids, self._state)[:, -1].float())
    assert {"scores", "greedy"} <= failed(captioner(3, scale=0.3))


def test_nan_never_passes() -> None:
    model = captioner()
    with torch.no_grad():
        model.decoder.head.bias[4] = torch.nan
    with pytest.raises(InputError, match="nan"):
        verify_decoding(model)


@pytest.mark.parametrize("options, message", [({"max_len": 2}, "max_len=2"), ({"beams": 0}, "beams")])
def test_mistakes(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        verify_decoding(captioner(), **options)
    with pytest.raises(InputError, match="1 image"):
        verify_decoding(captioner(), pictures(1))
