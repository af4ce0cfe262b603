"""`attend`, `MultiHeadAttention` and `KVCache` against explicit formulas and torch.nn.MultiheadAttention."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from minivl.errors import InputError
from minivl.nn.attention import MultiHeadAttention, attend
from minivl.nn.cache import KVCache
from minivl.nn.packed import PAYS, packed

B, H, Q, K, D_HEAD = 3, 4, 5, 7, 6
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(20)


def qkv(n_queries: int = Q, n_keys: int = K, requires_grad: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    shapes = (B, H, n_queries, D_HEAD), (B, H, n_keys, D_HEAD), (B, H, n_keys, D_HEAD)
    q, k, v = (torch.randn(shape) * 1.5 for shape in shapes)
    return q.requires_grad_(requires_grad), k.requires_grad_(requires_grad), v.requires_grad_(requires_grad)


def explicit(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    """Attention written out in double precision: exp(q.k/sqrt(d)) over what is allowed, 0/0 = 0."""
    q, k, v = q.double(), k.double(), v.double()
    scores = torch.einsum("bhqd,bhkd->bhqk", q, k) / q.shape[-1] ** 0.5
    odds = torch.exp(scores - scores.amax(-1, keepdim=True)) * allowed
    total = odds.sum(-1, keepdim=True)
    weights = odds / torch.where(total == 0, torch.ones_like(total), total)
    return torch.einsum("bhqk,bhkd->bhqd", weights, v), weights


def allowed_by(mask: Tensor | None, causal: bool, n_queries: int = Q, n_keys: int = K) -> Tensor:
    """(B, h, Q, K) boolean, entry by entry."""
    allowed = torch.ones(B, H, n_queries, n_keys, dtype=torch.bool)
    if mask is not None:
        allowed = allowed & mask
    if causal:
        for i, j in itertools.product(range(n_queries), range(n_keys)):
            if j > i + n_keys - n_queries:
                allowed[:, :, i, j] = False
    return allowed


def chosen(weights: Tensor, rows: Tensor | str, heads: Tensor | str | None) -> Tensor:
    """The asked part of (B, h, Q, K) weights, sample by sample."""
    if isinstance(heads, Tensor):
        weights = torch.stack([weights[:, int(head)] for head in heads], 1)
    if isinstance(rows, Tensor):
        per_sample = rows if rows.ndim == 2 else rows.expand(len(weights), -1)
        weights = torch.stack([torch.stack([sample[:, int(row)] for row in wanted], 1)
                               for sample, wanted in zip(weights, per_sample)])
    return weights.mean(1, keepdim=True) if isinstance(heads, str) and heads == "mean" else weights


MASK_SHAPES = {"K": (K,), "QK": (Q, K), "1QK": (1, Q, K), "hQK": (H, Q, K), "B11K": (B, 1, 1, K),
               "B1QK": (B, 1, Q, K), "BhQK": (B, H, Q, K), "1h1K": (1, H, 1, K), "BhQ1": (B, H, Q, 1)}
ROWS = {"all": "all", "k": torch.tensor([4, 0, 2]), "one": torch.tensor([3]),
        "Bk": torch.tensor([[1, 4], [0, 3], [2, 1]])}
HEADS = {"none": None, "all": "all", "mean": "mean", "indices": torch.tensor([3, 1])}


def random_mask(shape: tuple[int, ...], dead: bool = False) -> Tensor:
    """Random permissions; with `dead`, some rows may attend nowhere, without, all somewhere."""
    mask = torch.rand(shape) < 0.6
    if shape[-1] > 1:
        mask[..., 0] = True  # so that rows live, under a causal mask too
    else:
        mask[:] = True
    if dead:
        rows = mask.flatten(0, -2) if mask.ndim > 1 else mask[None]
        rows[:: 2] = False
    return mask


# -- attend: against the formula ---------------------------------------------------------------------------


@pytest.mark.parametrize("dead", [False, True], ids=["live", "dead"])
@pytest.mark.parametrize("causal", [False, True], ids=["free", "causal"])
@pytest.mark.parametrize("shape", [None, *MASK_SHAPES], ids=str)
def test_every_mask_shape_gives_the_formula_for_all_rows_and_heads(shape: str | None, causal: bool,
                                                                   dead: bool) -> None:
    if shape is None and dead:
        pytest.skip("nothing is dead without a mask")
    q, k, v = qkv()
    mask = None if shape is None else random_mask(MASK_SHAPES[shape], dead)
    allowed = allowed_by(mask, causal)
    assert bool((~allowed.any(-1)).any()) == dead
    out, weights = explicit(q, k, v, allowed)
    plain, nothing = attend(q, k, v, mask=mask, causal=causal)
    assert nothing is None
    torch.testing.assert_close(plain, out.float(), **CLOSE)
    for rows, heads, detach in itertools.product(ROWS, HEADS, (True, False)):
        if heads == "mean" and not detach:
            continue  # no output is computed from a mean; the record refuses it
        got, got_weights = attend(q, k, v, mask=mask, causal=causal, rows=ROWS[rows], heads=HEADS[heads],
                                  detach=detach)
        where = f"rows {rows}, heads {heads}, detach {detach}"
        if detach:
            assert torch.equal(got, plain), where
        else:
            torch.testing.assert_close(got, out.float(), **CLOSE, msg=lambda text: f"{where}: {text}")
        assert got_weights is not None and got_weights.dtype == torch.float32
        wanted = chosen(weights, ROWS[rows], HEADS[heads])
        assert got_weights.shape == wanted.shape, where
        torch.testing.assert_close(got_weights, wanted.float(), **CLOSE, msg=lambda text: f"{where}: {text}")
        masked = ~chosen(allowed.double(), ROWS[rows], HEADS[heads]).bool()
        assert (got_weights[masked] == 0).all(), f"{where}: a masked key has weight"
        alive = ~masked.all(-1)
        if heads != "mean":
            torch.testing.assert_close(got_weights.sum(-1), alive.float(), **CLOSE)


@pytest.mark.parametrize(("n_queries", "n_keys"), [(1, 1), (1, 7), (7, 7), (3, 8), (6, 4)])
def test_causal_counts_from_the_last_key(n_queries: int, n_keys: int) -> None:
    q, k, v = qkv(n_queries, n_keys)
    allowed = allowed_by(None, True, n_queries, n_keys)
    out, weights = explicit(q, k, v, allowed)
    for detach in (True, False):
        got, got_weights = attend(q, k, v, causal=True, rows="all", detach=detach)
        torch.testing.assert_close(got, out.float(), **CLOSE)
        torch.testing.assert_close(got_weights, weights.float(), **CLOSE)
    assert not got_weights[~allowed].any()
    if n_queries > n_keys:  # queries in front of all keys
        assert not got[:, :, : n_queries - n_keys].any()


def test_a_query_moves_nothing_of_what_it_may_not_see() -> None:
    q, k, v = qkv(K, K)
    before, _ = attend(q, k, v, causal=True)
    k[:, :, 4:] += 10
    v[:, :, 4:] -= 10
    after, _ = attend(q, k, v, causal=True)
    assert torch.equal(before[:, :, :4], after[:, :, :4])
    assert not torch.isclose(before[:, :, 4:], after[:, :, 4:]).all(-1).any()


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shape", MASK_SHAPES)
def test_gradients_equal_the_formulas_and_dead_rows_have_none(shape: str, causal: bool, detach: bool) -> None:
    q, k, v = qkv(requires_grad=True)
    mask = random_mask(MASK_SHAPES[shape], dead=True)
    allowed = allowed_by(mask, causal)
    toward = torch.randn(B, H, Q, D_HEAD)
    expected = torch.autograd.grad((explicit(q, k, v, allowed)[0] * toward).sum(), (q, k, v))
    for rows, heads in itertools.product(ROWS, ("none", "indices")):
        with torch.autograd.set_detect_anomaly(True):
            out, weights = attend(q, k, v, mask=mask, causal=causal, rows=ROWS[rows], heads=HEADS[heads],
                                  detach=detach)
            got = torch.autograd.grad((out * toward).sum(), (q, k, v))
        for mine, theirs in zip(got, expected):
            torch.testing.assert_close(mine, theirs.float(), rtol=1e-5, atol=1e-5)
        assert weights.requires_grad is not detach
        dead = ~allowed.any(-1)
        assert not out[dead].any() and not got[0][dead].any()


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("heads", ["none", "indices"])
def test_attached_weights_lie_on_the_way_to_the_output(rows: str, heads: str) -> None:
    q, k, v = qkv(requires_grad=True)
    mask = random_mask((B, 1, Q, K))
    toward = torch.randn(B, H, Q, D_HEAD)
    out, weights = attend(q, k, v, mask=mask, rows=ROWS[rows], heads=HEADS[heads], detach=False)
    got, = torch.autograd.grad((out * toward).sum(), weights)
    expected = torch.einsum("bhqd,bhkd->bhqk", toward, v)  # d sum(out * toward) / d weights
    torch.testing.assert_close(got, chosen(expected, ROWS[rows], HEADS[heads]), **CLOSE)


def test_attached_weights_take_a_loss_of_their_own() -> None:
    q, k, v = qkv(requires_grad=True)
    _, weights = attend(q, k, v, rows=ROWS["Bk"], heads=HEADS["indices"], detach=False)
    toward = torch.randn_like(weights)
    got = torch.autograd.grad((weights * toward).sum(), (q, k))
    _, reference = explicit(q, k, v, allowed_by(None, False))
    expected = torch.autograd.grad((chosen(reference, ROWS["Bk"], HEADS["indices"]) * toward).sum(), (q, k))
    for mine, theirs in zip(got, expected):
        torch.testing.assert_close(mine, theirs.float(), **CLOSE)


def test_weights_are_float32_of_the_half_precision_operands() -> None:
    q, k, v = (x.bfloat16() for x in qkv())
    _, expected = explicit(q, k, v, allowed_by(None, False))
    for detach in (True, False):
        out, weights = attend(q, k, v, rows="all", detach=detach)
        assert out.dtype == torch.bfloat16 and weights.dtype == torch.float32
        torch.testing.assert_close(weights, expected.float(), **CLOSE)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shape", MASK_SHAPES)
def test_training_in_half_precision_is_the_formula_to_half_precision(shape: str, causal: bool) -> None:
    mask = random_mask(MASK_SHAPES[shape], dead=True)
    allowed, toward = allowed_by(mask, causal), torch.randn(B, H, Q, D_HEAD)
    q, k, v = (x.bfloat16().requires_grad_() for x in qkv())
    out, _ = attend(q, k, v, mask=mask, causal=causal)
    expected, weights = explicit(q, k, v, allowed)
    got = torch.autograd.grad((out * toward.bfloat16()).sum(), (q, k, v))
    exact = torch.autograd.grad((expected * toward.bfloat16()).sum(), (q, k, v))
    for mine, theirs in zip((out, *got), (expected, *exact)):
        assert mine.dtype == torch.bfloat16
        torch.testing.assert_close(mine.double(), theirs.double(), rtol=0.03, atol=0.06)
    assert not out[~allowed.any(-1)].any()
    recorded, rows = attend(q, k, v, mask=mask, causal=causal, rows="all")
    assert torch.equal(recorded, out)
    torch.testing.assert_close(rows, weights.float(), **CLOSE)
    with torch.no_grad():  # the fused kernel
        torch.testing.assert_close(attend(q, k, v, mask=mask, causal=causal)[0], out, rtol=0.03, atol=0.03)


def test_large_scores_do_not_overflow() -> None:
    q, k, v = (x * 300 for x in qkv())
    out, weights = attend(q, k, v, mask=random_mask((B, 1, Q, K), dead=True), rows="all")
    assert out.isfinite().all() and weights.isfinite().all()


@pytest.mark.parametrize("rows", ["all", "k"])
def test_returned_weights_are_those_before_dropout(rows: str) -> None:
    q, k, v = qkv()
    _, expected = explicit(q, k, v, allowed_by(None, False))
    plain, _ = attend(q, k, v)
    for detach in (True, False):
        out, weights = attend(q, k, v, dropout=0.5, rows=ROWS[rows], detach=detach)
        assert not torch.allclose(out, plain, atol=1e-2)  # something was dropped
        torch.testing.assert_close(weights, chosen(expected, ROWS[rows], None).float(), **CLOSE)


def test_attached_dropout_keeps_the_mean() -> None:
    q, k, v = qkv()
    plain, _ = attend(q, k, v)
    runs = [attend(q, k, v, dropout=0.3, rows="all", detach=False)[0] for _ in range(2000)]
    torch.testing.assert_close(torch.stack(runs).mean(0), plain, rtol=0, atol=0.15)


# -- MultiHeadAttention: against torch's -------------------------------------------------------------------

WIDTH, CONTEXT = 24, 18


def randomised(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


def pair(context_width: int | None = None,
         bias: bool = True) -> tuple[MultiHeadAttention, nn.MultiheadAttention]:
    """Our module and torch's with the same random weights."""
    ours = MultiHeadAttention(WIDTH, H, context_width=context_width, bias=bias)
    randomised(ours)
    theirs = nn.MultiheadAttention(WIDTH, H, batch_first=True, kdim=context_width, vdim=context_width)
    with torch.no_grad():
        if context_width is None:
            theirs.in_proj_weight.copy_(torch.cat([getattr(ours, f"{part}_proj").weight for part in "qkv"]))
        else:
            theirs.q_proj_weight.copy_(ours.q_proj.weight)
            theirs.k_proj_weight.copy_(ours.k_proj.weight)
            theirs.v_proj_weight.copy_(ours.v_proj.weight)
        if bias:
            theirs.in_proj_bias.copy_(torch.cat([getattr(ours, f"{part}_proj").bias for part in "qkv"]))
        theirs.out_proj.load_state_dict(ours.out_proj.state_dict())
    return ours, theirs


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("kind", ["self", "self without bias", "cross", "padding", "causal",
                                  "causal and padding"])
def test_equals_torch_multihead_attention(kind: str, detach: bool) -> None:
    ours, theirs = pair(CONTEXT if kind == "cross" else None, bias=kind != "self without bias")
    x = torch.randn(B, K, WIDTH)
    context = torch.randn(B, 9, CONTEXT) if kind == "cross" else None
    seen = x if context is None else context
    lengths = torch.tensor([7, 4, 2])
    may = torch.arange(K) < lengths[:, None] if "padding" in kind else None  # (B, K), True = may attend
    causal = "causal" in kind
    theirs_out, theirs_weights = theirs(
        x, seen, seen, need_weights=True, average_attn_weights=False,
        key_padding_mask=None if may is None else ~may,  # theirs: True = may not
        attn_mask=~torch.ones(K, K, dtype=torch.bool).tril() if causal else None)
    mask = None if may is None else may[:, None, None]
    out, weights = ours(x, context, mask=mask, causal=causal, rows="all", detach=detach)
    torch.testing.assert_close(out, theirs_out, **CLOSE)
    torch.testing.assert_close(weights, theirs_weights, **CLOSE)
    _, mean = ours(x, context, mask=mask, causal=causal, rows="all", heads="mean")
    torch.testing.assert_close(mean[:, 0], theirs_weights.mean(1), **CLOSE)


def test_positions_move_queries_and_keys_but_never_values() -> None:
    ours, _ = pair(CONTEXT)
    x, context = torch.randn(B, Q, WIDTH), torch.randn(B, K, CONTEXT)
    q_pos, k_pos = torch.randn(Q, WIDTH), torch.randn(B, K, CONTEXT)

    def split(y: Tensor) -> Tensor:
        return torch.stack(y.chunk(H, -1), 1)  # (B, n, D) -> (B, h, n, d)

    q, k, v = split(ours.q_proj(x + q_pos)), split(ours.k_proj(context + k_pos)), split(ours.v_proj(context))
    out, weights = explicit(q, k, v, torch.ones(()))
    expected = ours.out_proj(torch.cat(list(out.float().unbind(1)), -1))
    got, got_weights = ours(x, context, q_pos=q_pos, k_pos=k_pos, rows="all")
    torch.testing.assert_close(got, expected, **CLOSE)
    torch.testing.assert_close(got_weights, weights.float(), **CLOSE)
    for left_out in ({"q_pos": q_pos}, {"k_pos": k_pos}):
        assert not torch.allclose(ours(x, context, **left_out)[0], expected, atol=1e-3)


def test_key_positions_of_self_attention_add_to_its_input() -> None:
    ours, _ = pair()
    x, pos = torch.randn(B, Q, WIDTH), torch.randn(B, Q, WIDTH)
    same, same_weights = ours(x, x, q_pos=pos, k_pos=pos, rows="all")
    got, weights = ours(x, q_pos=pos, k_pos=pos, rows="all")
    assert torch.equal(got, same) and torch.equal(weights, same_weights)
    assert not torch.allclose(ours(x)[0], got, atol=1e-3)


@pytest.mark.parametrize(("width", "heads"), [(24, 5), (24, 0), (24, -4), (4, 8)])
def test_heads_must_divide_the_width(width: int, heads: int) -> None:
    with pytest.raises(InputError, match=rf"{width}.*{heads}"):
        MultiHeadAttention(width, heads)


@pytest.mark.parametrize("detach", [True, False])
def test_module_drops_weights_in_training_only(detach: bool) -> None:
    module = MultiHeadAttention(WIDTH, H, dropout=0.5)
    randomised(module)
    x = torch.randn(B, Q, WIDTH)
    plain, expected = module.eval()(x, rows="all", detach=detach)
    again, _ = module(x, rows="all", detach=detach)
    assert torch.equal(plain, again)
    dropped, weights = module.train()(x, rows="all", detach=detach)
    assert not torch.allclose(plain, dropped, atol=1e-3)
    torch.testing.assert_close(weights, expected, **CLOSE)


# -- caches ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("capacity", [0, 3, 9, 64])
@pytest.mark.parametrize("pieces", [(1,) * 9, (4, 1, 3, 1), (9,), (2, 7)], ids=str)
def test_cached_steps_equal_one_causal_pass(capacity: int, pieces: tuple[int, ...]) -> None:
    ours, _ = pair()
    x = torch.randn(B, 9, WIDTH)
    expected, expected_weights = ours(x, causal=True, rows="all")
    cache, start = KVCache(capacity), 0
    with torch.no_grad():
        for piece in pieces:
            stop = start + piece
            out, weights = ours(x[:, start:stop], causal=True, cache=cache, rows="all")
            torch.testing.assert_close(out, expected[:, start:stop], **CLOSE)
            torch.testing.assert_close(weights, expected_weights[:, :, start:stop, :stop], **CLOSE)
            assert cache.length == stop and cache.k.shape == cache.v.shape == (B, H, stop, WIDTH // H)
            start = stop


@pytest.mark.parametrize("capacity", [0, 20])
def test_reordered_cache_continues_the_chosen_rows(capacity: int) -> None:
    ours, _ = pair()
    past, index = torch.randn(B, 4, WIDTH), torch.tensor([2, 2, 0, 1, 1])
    new = torch.randn(5, 2, WIDTH)
    cache = KVCache(capacity)
    with torch.no_grad():
        ours(past, causal=True, cache=cache)
        cache.reorder(index)
        expected, expected_weights = ours(torch.cat([past[index], new], 1), causal=True, rows="all")
        for step in range(2):
            out, weights = ours(new[:, step: step + 1], causal=True, cache=cache, rows="all")
            row = slice(4 + step, 5 + step)
            torch.testing.assert_close(out, expected[:, row], **CLOSE)
            torch.testing.assert_close(weights, expected_weights[:, :, row, : 5 + step], **CLOSE)
    empty = KVCache(capacity)
    empty.reorder(index)
    assert empty.length == 0


def test_cross_cache_is_filled_once_and_the_context_not_projected_again() -> None:
    ours, _ = pair(CONTEXT)
    context, x = torch.randn(B, K, CONTEXT), torch.randn(B, Q, WIDTH)
    calls: list[str] = []
    for name in ("k_proj", "v_proj"):
        getattr(ours, name).register_forward_hook(lambda *_, name=name: calls.append(name))
    expected, expected_weights = ours(x, context, rows="all")
    assert sorted(calls) == ["k_proj", "v_proj"]
    cache = KVCache()
    first, _ = ours(x, context, cache=cache)
    filled = cache.k
    assert len(calls) == 4 and cache.length == K
    again, weights = ours(x, torch.full_like(context, float("nan")), cache=cache, rows="all")
    assert len(calls) == 4 and cache.length == K and cache.k.data_ptr() == filled.data_ptr()
    for got in (first, again):
        torch.testing.assert_close(got, expected, **CLOSE)
    torch.testing.assert_close(weights, expected_weights, **CLOSE)


def test_cross_cache_keeps_chosen_images() -> None:
    ours, _ = pair(CONTEXT)
    context, x, kept = torch.randn(B, K, CONTEXT), torch.randn(B * 2, 1, WIDTH), torch.tensor([2, 0])
    cache = KVCache()
    ours(x, context, cache=cache)
    cache.reorder(kept)
    x = torch.randn(4, 1, WIDTH)  # two rows for each of the kept images
    expected, _ = ours(x, context[kept].repeat_interleave(2, 0))
    torch.testing.assert_close(ours(x, context, cache=cache)[0], expected, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("kind, close", [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("n_rows", [1, B])
def test_packed_projections_are_one_product_and_change_nothing(n_rows: int, bias: bool, kind: torch.dtype,
                                                               close: float) -> None:
    ours = MultiHeadAttention(WIDTH, H, bias=bias)
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.3)
    ready, before = packed(ours), list(ours.state_dict())
    caches = KVCache(), KVCache()
    for step in range(PAYS + 3):  # through the layouts of one row
        x = torch.randn(n_rows, 1 + 2 * (step == 0), WIDTH)
        with torch.autocast("cpu", kind, kind != torch.float32):
            rows = "all" if step % 3 == 0 else None
            (out, weights), (expected, wanted) = (layer(x, causal=True, cache=cache, rows=rows)
                                                  for layer, cache in zip((ready, ours), caches))
        torch.testing.assert_close(out, expected, rtol=close, atol=close)
        assert (weights is None) == (wanted is None) == (step % 3 > 0)
        if weights is not None:
            torch.testing.assert_close(weights, wanted, rtol=close, atol=close)
    assert caches[0].length == caches[1].length == PAYS + 5
    assert ready._together is not None and ours._together is None
    assert list(ours.state_dict()) == list(ready.state_dict()) == before and packed(ready) is ready


@pytest.mark.parametrize("case", ["gradients", "a hook", "one hook", "positions", "of queries", "a context"])
def test_where_projections_stay_three(case: str) -> None:
    ours, _ = pair()
    if case == "one hook":
        ours.v_proj.register_forward_hook(lambda *_: None)
    ready = packed(ours)
    if case == "a hook":
        ready.k_proj.register_forward_hook(lambda module, args, out: out * 2)
        ours.k_proj.register_forward_hook(lambda module, args, out: out * 2)
    x, pos = torch.randn(B, Q, WIDTH), torch.randn(B, Q, WIDTH)
    given = {"positions": {"q_pos": pos, "k_pos": pos}, "of queries": {"q_pos": pos},
             "a context": {"context": torch.randn(B, K, WIDTH)}}.get(case, {})
    with torch.set_grad_enabled(case == "gradients"):
        out, expected = ready(x, **given)[0], ours(x, **given)[0]
    torch.testing.assert_close(out, expected, **CLOSE)
    assert ready._together is None
    if case == "gradients":
        out.square().sum().backward()
        assert all(layer.weight.grad.abs().sum() > 0 for layer in (ours.q_proj, ours.k_proj, ours.v_proj))


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("masked", ["no", "images", "heads"])
@pytest.mark.parametrize("positions", [False, True])
def test_a_patient_cache_makes_no_keys_and_changes_nothing(positions: bool, masked: str, bias: bool) -> None:
    ours = MultiHeadAttention(WIDTH, H, context_width=CONTEXT, bias=bias)
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.3)
    ready = packed(ours)
    x, context = torch.randn(B, 1, WIDTH), torch.randn(B, K, CONTEXT)
    q_pos, k_pos = (torch.randn(B, 1, WIDTH), torch.randn(B, K, CONTEXT)) if positions else (None, None)
    mask = None
    if masked != "no":
        mask = torch.rand(B, H if masked == "heads" else 1, 1, K) < 0.6
        mask[1] = False  # an image nobody may look at
        mask[0, -1] = False  # and one that a head is blind to, or all are
    expected, weights = ours(x, context, q_pos=q_pos, k_pos=k_pos, mask=mask, rows="all")
    cache = KVCache()
    cache.patience = 2
    for left in (1, 0):
        out, _ = ready(x, context, q_pos=q_pos, k_pos=k_pos, mask=mask, cache=cache)
        torch.testing.assert_close(out, expected, **CLOSE)
        assert cache.length == 0 and cache.patience == left
    out, _ = ready(x, context, q_pos=q_pos, k_pos=k_pos, mask=mask, cache=cache)
    torch.testing.assert_close(out, expected, **CLOSE)
    assert cache.length == K  # patience is at its end
    cache = KVCache()
    cache.patience = 2
    out, got = ready(x, context, q_pos=q_pos, k_pos=k_pos, mask=mask, cache=cache, rows="all")
    torch.testing.assert_close(got, weights, **CLOSE)
    assert cache.length == K and cache.patience == 2


@pytest.mark.parametrize("case", ["not packed", "a hook", "one hook", "gradients", "dropout", "two rows an image",
                                  "two positions", "bfloat16", "a context in bfloat16", "positions in float64"])
def test_where_the_cache_does_not_wait_it_is_filled(case: str) -> None:
    ours, _ = pair(CONTEXT)
    if case == "one hook":
        ours.v_proj.register_forward_hook(lambda *_: None)
    layer = ours if case == "not packed" else packed(ours)
    if case == "a hook":
        for projection in (layer.k_proj, layer.v_proj):
            projection.register_forward_hook(lambda *_: None)
    if case == "dropout":
        layer.dropout = 0.5
        layer.train()
    x = torch.randn(B * (2 if case == "two rows an image" else 1), 2 if case == "two positions" else 1, WIDTH)
    context, k_pos, cache = torch.randn(B, K, CONTEXT), torch.randn(B, K, CONTEXT), KVCache()
    cache.patience = 9
    told = context.bfloat16() if case == "a context in bfloat16" else context
    pos = k_pos.double() if case == "positions in float64" else k_pos
    with torch.set_grad_enabled(case == "gradients"), torch.autocast("cpu", torch.bfloat16, case == "bfloat16"):
        out, _ = layer(x, told, k_pos=pos, cache=cache)
        expected, _ = ours(x, context, k_pos=k_pos)
    assert cache.length == K and cache.patience == 9
    if case != "dropout":
        close = {"rtol": 0.05, "atol": 0.05} if "bfloat16" in case else CLOSE
        torch.testing.assert_close(out, expected, **close)


# -- rows that share a memory ------------------------------------------------------------------------------


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("n_queries", [1, Q])
def test_shared_memory_equals_a_repeated_one(n_queries: int, cached: bool) -> None:
    ours, _ = pair(CONTEXT)
    share = 4
    x, context = torch.randn(B * share, n_queries, WIDTH), torch.randn(B, K, CONTEXT)
    mask = torch.rand(B, 1, 1, K) < 0.6
    mask[1] = False  # an image nobody may look at
    repeated, repeated_mask = context.repeat_interleave(share, 0), mask.repeat_interleave(share, 0)
    expected, expected_weights = ours(x, repeated, mask=repeated_mask, rows="all")
    cache = KVCache() if cached else None
    if cache is not None:
        ours(x, context, mask=mask, cache=cache)
    per_row = torch.randint(n_queries, (B * share, 2)) if n_queries == 1 else \
        torch.stack([torch.randperm(n_queries)[:2] for _ in range(B * share)])
    asked = {"all": "all", "k": torch.tensor([n_queries - 1]), "Bk": per_row[:, : min(2, n_queries)]}
    for rows, heads, detach in itertools.product(asked, HEADS, (True, False)):
        if heads == "mean" and not detach:
            continue
        out, weights = ours(x, context, mask=mask, cache=cache, rows=asked[rows], heads=HEADS[heads],
                            detach=detach)
        torch.testing.assert_close(out, expected, **CLOSE)
        torch.testing.assert_close(weights, chosen(expected_weights, asked[rows], HEADS[heads]), **CLOSE)
    assert torch.equal(out[share: 2 * share], ours.out_proj.bias.expand(share, n_queries, -1))


def test_shared_memory_refuses_what_it_cannot_share() -> None:
    ours, _ = pair(CONTEXT)
    context = torch.randn(2, K, CONTEXT)
    with pytest.raises(InputError, match="5 rows.*2 images"):
        ours(torch.randn(5, Q, WIDTH), context)
    x = torch.randn(4, Q, WIDTH)
    for mask in (torch.ones(Q, K).bool(), torch.ones(2, 1, Q, K).bool(), torch.ones(2, H, Q, K).bool(),
                 torch.ones(4, 1, 1, K).bool()):
        with pytest.raises(InputError, match="mask"):
            ours(x, context, mask=mask)
    with pytest.raises(InputError, match="causal"):
        ours(x, context, causal=True)
    for mask in (torch.ones(K).bool(), torch.ones(1, K).bool(), torch.ones(1, H, 1, K).bool()):
        torch.testing.assert_close(ours(x, context, mask=mask)[0], ours(x, context)[0], **CLOSE)


class Largest(TorchDispatchMode):
    """Watches the largest storage any operation makes, in numbers of float32."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for part in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(part, Tensor):
                self.numbers = max(self.numbers, part.untyped_storage().nbytes() // 4)
        return result


@pytest.fixture
def watched() -> Iterator[Largest]:
    with Largest() as mode:
        yield mode


@pytest.mark.parametrize("rows", [None, "all"])
def test_shared_memory_is_never_repeated(rows: str | None, watched: Largest) -> None:
    ours = MultiHeadAttention(WIDTH, H)
    share, n_keys = 10, 50
    x, context = torch.randn(2 * share, 1, WIDTH), torch.randn(2, n_keys, WIDTH)
    mask = torch.rand(2, 1, 1, n_keys) < 0.9
    watched.numbers = 0
    ours(x, context, mask=mask, rows=rows)
    once = max(2 * n_keys * WIDTH, 2 * share * H * n_keys)  # keys of each image; the weights asked for
    assert 2 * n_keys * WIDTH <= watched.numbers <= once < 2 * share * n_keys * WIDTH
    watched.numbers = 0
    ours(x, context.repeat_interleave(share, 0), mask=mask.repeat_interleave(share, 0), rows=rows)
    assert watched.numbers >= 2 * share * n_keys * WIDTH  # the watch does see repeated keys
