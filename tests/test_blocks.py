"""Blocks against torch.nn's transformer layers, and what they hand on."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from random_models import randomise
from torch import Tensor, nn

from minivl.errors import InputError
from minivl.nn.attention import MultiHeadAttention
from minivl.nn.blocks import ACTIVATIONS, DecoderBlock, EncoderBlock, Mlp, activation
from minivl.nn.cache import KVCache
from minivl.nn.record import Want

B, T, N, WIDTH, H, MLP = 3, 5, 7, 24, 4, 40
CLOSE = {"rtol": 1e-5, "atol": 2e-6}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(30)


def copy_attention(ours: MultiHeadAttention, theirs: nn.MultiheadAttention) -> None:
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.q_proj.weight, ours.k_proj.weight, ours.v_proj.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.q_proj.bias, ours.k_proj.bias, ours.v_proj.bias]))
    theirs.out_proj.load_state_dict(ours.out_proj.state_dict())


def copy_rest(ours: nn.Module, theirs: nn.Module, norms: int) -> None:
    theirs.linear1.load_state_dict(ours.mlp.fc1.state_dict())
    theirs.linear2.load_state_dict(ours.mlp.fc2.state_dict())
    for name in (f"norm{i + 1}" for i in range(norms)):
        getattr(theirs, name).load_state_dict(getattr(ours, name).state_dict())


def encoder_pair(act: str = "gelu") -> tuple[EncoderBlock, nn.TransformerEncoderLayer]:
    ours = EncoderBlock(WIDTH, H, MLP, act=act, eps=1e-3)
    theirs = nn.TransformerEncoderLayer(WIDTH, H, MLP, dropout=0.0, activation=act, layer_norm_eps=1e-3,
                                        batch_first=True, norm_first=True)
    randomise(ours)
    copy_attention(ours.attn, theirs.self_attn)
    copy_rest(ours, theirs, 2)
    return ours, theirs


def decoder_pair(norm_first: bool, act: str = "relu") -> tuple[DecoderBlock, nn.TransformerDecoderLayer]:
    ours = DecoderBlock(WIDTH, H, MLP, norm_first=norm_first, act=act, eps=1e-3)
    theirs = nn.TransformerDecoderLayer(WIDTH, H, MLP, dropout=0.0, activation=act, layer_norm_eps=1e-3,
                                        batch_first=True, norm_first=norm_first)
    randomise(ours)
    copy_attention(ours.attn, theirs.self_attn)
    copy_attention(ours.cross, theirs.multihead_attn)
    copy_rest(ours, theirs, 3)
    return ours, theirs


@pytest.mark.parametrize("act", ["gelu", "relu"])
@pytest.mark.parametrize("masked", [False, True])
def test_encoder_block_equals_torchs(act: str, masked: bool) -> None:
    ours, theirs = encoder_pair(act)
    x = torch.randn(B, N, WIDTH)
    may = torch.arange(N) < torch.tensor([7, 3, 5])[:, None] if masked else None  # True = may attend
    expected = theirs(x, src_key_padding_mask=None if may is None else ~may)
    got, weights = ours(x, mask=None if may is None else may[:, None, None])
    assert weights is None
    torch.testing.assert_close(got, expected, **CLOSE)


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("act", ["relu", "gelu"])
@pytest.mark.parametrize("masked", [False, True])
def test_decoder_block_equals_torchs(norm_first: bool, act: str, masked: bool) -> None:
    ours, theirs = decoder_pair(norm_first, act)
    x, memory = torch.randn(B, T, WIDTH), torch.randn(B, N, WIDTH)
    may = torch.arange(N) < torch.tensor([7, 3, 5])[:, None] if masked else None
    causal = nn.Transformer.generate_square_subsequent_mask(T)
    expected = theirs(x, memory, tgt_mask=causal, memory_key_padding_mask=None if may is None else ~may)
    got, self_weights, cross_weights = ours(x, memory, memory_mask=may)
    assert self_weights is None and cross_weights is None
    torch.testing.assert_close(got, expected, **CLOSE)


@pytest.mark.parametrize("norm_first", [True, False])
def test_weights_of_the_decoder_block_equal_torchs(norm_first: bool) -> None:
    ours, theirs = decoder_pair(norm_first)
    x, memory = torch.randn(B, T, WIDTH), torch.randn(B, N, WIDTH)
    plain, _, _ = ours(x, memory)
    for detach in (True, False):
        wants = Want("all", None, detach), Want(torch.tensor([4, 1]), torch.tensor([2]), detach)
        got, self_weights, cross_weights = ours(x, memory, self_want=wants[0], cross_want=wants[1])
        torch.testing.assert_close(got, plain, **CLOSE)
        seen = theirs.norm1(x) if norm_first else x
        y, expected = theirs.self_attn(seen, seen, seen, average_attn_weights=False,
                                       attn_mask=~torch.ones(T, T).bool().tril())
        torch.testing.assert_close(self_weights, expected, **CLOSE)
        between = theirs.norm2(x + y) if norm_first else theirs.norm1(x + y)
        _, expected = theirs.multihead_attn(between, memory, memory, average_attn_weights=False)
        torch.testing.assert_close(cross_weights, expected[:, [2]][:, :, [4, 1]], **CLOSE)
        assert self_weights.requires_grad is cross_weights.requires_grad is not detach


def test_weights_of_the_encoder_block_equal_torchs() -> None:
    ours, theirs = encoder_pair()
    x = torch.randn(B, N, WIDTH)
    _, expected = theirs.self_attn(*[theirs.norm1(x)] * 3, average_attn_weights=False)
    _, weights = ours(x, want=Want(torch.tensor([[0, 3], [6, 1], [2, 5]]), "mean"))
    wanted = torch.stack([sample.mean(0, keepdim=True)[:, rows]
                          for sample, rows in zip(expected, ([0, 3], [6, 1], [2, 5]))])
    torch.testing.assert_close(weights, wanted, **CLOSE)


def test_memory_positions_reach_keys_only() -> None:
    block, _ = decoder_pair(norm_first=True)
    x, memory, pos = torch.randn(B, T, WIDTH), torch.randn(B, N, WIDTH), torch.randn(B, N, WIDTH)
    got, _, _ = block(x, memory, memory_pos=pos)
    x = x + block.attn(block.norm1(x), causal=True)[0]
    x = x + block.cross(block.norm2(x), memory, k_pos=pos)[0]
    torch.testing.assert_close(got, x + block.mlp(block.norm3(x)), **CLOSE)


@pytest.mark.parametrize("norm_first", [True, False])
def test_cached_steps_of_a_block_equal_one_pass_over_shared_memory(norm_first: bool) -> None:
    block, _ = decoder_pair(norm_first)
    share = 2
    x, memory = torch.randn(B * share, T, WIDTH), torch.randn(B, N, WIDTH)
    may = torch.rand(B, N) < 0.7
    expected, _, _ = block(x, memory.repeat_interleave(share, 0), memory_mask=may.repeat_interleave(share, 0))
    self_cache, cross_cache = KVCache(), KVCache()
    with torch.no_grad():
        for t in range(T):
            got, _, _ = block(x[:, t: t + 1], memory, memory_mask=may, self_cache=self_cache,
                              cross_cache=cross_cache)
            torch.testing.assert_close(got, expected[:, t: t + 1], **CLOSE)
    assert self_cache.length == T and cross_cache.length == N and cross_cache.k.shape[0] == B


def test_a_later_word_moves_no_earlier_row() -> None:
    block, _ = decoder_pair(norm_first=True)
    x, memory = torch.randn(B, T, WIDTH), torch.randn(B, N, WIDTH)
    before, _, _ = block(x, memory)
    x[:, 3] = torch.randn(B, WIDTH)
    after, _, _ = block(x, memory)
    assert torch.equal(before[:, :3], after[:, :3])
    assert not torch.isclose(before[:, 3:], after[:, 3:]).all(-1).any()


@pytest.mark.parametrize("make", [lambda: EncoderBlock(WIDTH, H, MLP, dropout=0.4),
                                  lambda: DecoderBlock(WIDTH, H, MLP, dropout=0.4)])
def test_dropout_acts_in_training_only(make: object) -> None:
    block = make()  # type: ignore[operator]
    randomise(block)
    inputs = [torch.randn(B, T, WIDTH) for _ in range(1 if isinstance(block, EncoderBlock) else 2)]
    assert torch.equal(block(*inputs)[0], block(*inputs)[0])
    block.train()
    assert not torch.allclose(block(*inputs)[0], block(*inputs)[0], atol=1e-2)


def test_query_key_value_biases_can_be_left_out() -> None:
    names = dict(EncoderBlock(WIDTH, H, MLP, qkv_bias=False).named_parameters())
    assert "attn.out_proj.bias" in names and not {f"attn.{part}_proj.bias" for part in "qkv"} & set(names)


ACTS = {"relu": lambda x: x.clamp_min(0), "gelu": lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2,
        "quick_gelu": lambda x: x / (1 + torch.exp(-1.702 * x)),
        "gelu_tanh": lambda x: x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3)))}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_their_formulas(name: str) -> None:
    x = torch.randn(1000) * 2
    torch.testing.assert_close(activation(name)(x), ACTS[name](x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_mlp_is_two_linear_maps_around_its_activation(name: str) -> None:
    mlp = Mlp(WIDTH, MLP, name)
    randomise(mlp)
    x: Tensor = torch.randn(B, N, WIDTH)
    inner = ACTS[name](F.linear(x, mlp.fc1.weight, mlp.fc1.bias))
    torch.testing.assert_close(mlp(x), F.linear(inner, mlp.fc2.weight, mlp.fc2.bias), **CLOSE)


def test_an_unknown_activation_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match="'swish'.*gelu, gelu_tanh, quick_gelu, relu"):
        EncoderBlock(WIDTH, H, MLP, act="swish")
