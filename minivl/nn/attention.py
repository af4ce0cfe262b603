"""Multi-head attention that gives back its weights: one leaf function and one module.

Letters used for shapes in the whole library:

    B batch    C,H,W image      P patch side      gh,gw patch grid   N visual tokens = prefix + gh*gw
    T text positions            D model width     h heads            d head width
    Q,K query / key length in generic attention   V classes or vocabulary
    beams, refs are written out; (height, width) is the order everywhere.

Masks are boolean and True means *may attend* (`torch.nn.MultiheadAttention` means the opposite).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from .cache import KVCache
from .packed import PackedLinear, plain

Rows = Tensor | str | None  # (k,) or (B, k) query indices, "all", or None for no weights at all
Heads = Tensor | str | None  # (h',) head indices, "mean", or None / "all" for every head
# Q * K up to which training in bfloat16 on a CPU multiplies matrices itself: torch's fused CPU kernel takes four
# times as long for forward and backward there (bench/training.py); beyond it the weights would fill the memory.
SMALL = 1 << 16
# Without gradients, in bfloat16, the same is faster for one query, or one in so many keys: decoding asks few queries of
# many keys (bench/decoding.py). In float32 it gains 3 %, and other rounding than teacher forcing has: not worth it.
SHARE = 4


def attend(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, causal: bool = False,
           dropout: float = 0.0, rows: Rows = None, heads: Heads = None,
           detach: bool = True) -> tuple[Tensor, Tensor | None]:
    """Scaled dot-product attention (Vaswani et al. 2017, eq. 1), with the asked-for weights beside it.

    The output comes from one kernel, the same with and without weights (the fused one, but see `SMALL`
    for training in bfloat16 on a CPU), and the weights from the same q and k, unless ``detach=False``:
    then the output is ``weights @ v`` of the returned weights themselves, so that they lie on the path of
    the gradient.

    Args:
        q: (B, h, Q, d) queries.
        k, v: (B, h, K, d) keys and values.
        mask: boolean, broadcastable to (B, h, Q, K), True = may attend. A row that may attend
            nowhere has output and weights 0.
        causal: query i may attend to the keys up to i + K - Q (the last query sees every key).
        dropout: probability of dropping a weight; the returned weights are those before dropout.
        rows: which queries' weights to return: "all", (k,) or (B, k) non-negative indices.
        heads: which heads' weights: None or "all", (h',) indices, or "mean" over all (h' = 1).
        detach: whether the weights stand outside the graph of gradients.

    Returns:
        ``(out (B, h, Q, d), weights (B, h', k, K) float32)``; weights is None when rows is None.
    """
    mask = _with_causal(mask, causal, q, k)
    is_causal = causal and mask is None and q.shape[-2] > 1
    dead = None
    if mask is not None:
        mask = torch.atleast_2d(mask)  # no kernel takes (K,)
        dead = ~mask.any(-1, keepdim=True)  # (..., Q, 1) rows that may attend nowhere
        mask = mask | dead  # kernels disagree about such rows (nan or 0): let them look, then erase
    if rows is not None and not detach:
        return _explicit(q, k, v, mask, dead, is_causal, dropout, rows, heads)
    out = _kernel(q, k, v, mask, is_causal, dropout)
    if dead is not None:
        out = out.masked_fill(dead, 0.0)
    if rows is None:
        return out, None
    with torch.no_grad():
        return out, _rows_of_weights(q, k, mask, dead, is_causal, rows, heads)


def _kernel(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool, dropout: float) -> Tensor:
    """Attention without its weights: the fused kernel, but on a CPU where two products are faster."""
    n_queries, n_keys = q.shape[-2], k.shape[-2]
    if q.device.type != "cpu":
        plain = False
    elif q.requires_grad:
        plain = q.dtype == torch.bfloat16 and n_queries * n_keys <= SMALL
    else:  # decoding
        plain = q.dtype == torch.bfloat16 and (n_queries == 1 or SHARE * n_queries <= n_keys)
    if not plain:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=is_causal)
    if is_causal:
        mask = torch.ones(n_queries, n_keys, dtype=torch.bool).tril()
    with torch.autocast("cpu", enabled=False):
        scores = (q @ k.mT) * q.shape[-1] ** -0.5  # (B, h, Q, K)
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        return F.dropout(scores.softmax(-1), dropout, training=dropout > 0) @ v


def _with_causal(mask: Tensor | None, causal: bool, q: Tensor, k: Tensor) -> Tensor | None:
    """One mask for both, or None where the kernel's own causal flag (or nothing) says the same."""
    n_queries, n_keys = q.shape[-2], k.shape[-2]
    if not causal or n_queries == 1 or (mask is None and n_queries == n_keys):
        return mask
    lower = torch.ones(n_queries, n_keys, dtype=torch.bool, device=q.device).tril(n_keys - n_queries)
    return lower if mask is None else mask & lower


def _softmax(q: Tensor, k: Tensor, mask: Tensor | None, dead: Tensor | None) -> Tensor:
    """The weights (B, h, Q, K) of q on k in float32, whatever precision is cast to around it."""
    with torch.autocast(q.device.type, enabled=False):
        scores = (q.float() * q.shape[-1] ** -0.5) @ k.float().mT  # (B, h, Q, K)
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        weights = scores.softmax(-1)
    return weights if dead is None else weights.masked_fill(dead, 0.0)


def _rows_of_weights(q: Tensor, k: Tensor, mask: Tensor | None, dead: Tensor | None, is_causal: bool,
                     rows: Rows, heads: Heads) -> Tensor:
    """Weights (B, h', k, K) of the chosen rows and heads; no other row is ever computed."""
    n_queries, n_keys = q.shape[-2], k.shape[-2]
    if isinstance(heads, Tensor):
        q, k = q[:, heads], k[:, heads]
        mask, dead = _pick_heads(mask, heads), _pick_heads(dead, heads)
    index = torch.arange(n_queries, device=q.device) if isinstance(rows, str) else rows
    assert index is not None
    if not isinstance(rows, str):
        q = _pick_rows(q, index)  # (B, h, k, d)
        mask = None if mask is None else _pick_rows(mask, index)
        dead = None if dead is None else _pick_rows(dead, index)
    if is_causal:
        seen = torch.arange(n_keys, device=q.device) <= index[..., None]  # (k, K) or (B, k, K)
        mask = seen if seen.ndim == 2 else seen[:, None]
    weights = _softmax(q, k, mask, dead)
    return weights.mean(1, keepdim=True) if isinstance(heads, str) and heads == "mean" else weights


def _pick_rows(x: Tensor, rows: Tensor) -> Tensor:
    """Rows (k,) or (B, k) of x (..., Q, n); a query dimension of 1 stands for every row."""
    if x.shape[-2] == 1:
        return x
    if rows.ndim == 1:
        return x.index_select(-2, rows)
    while x.ndim < 4:
        x = x[None]
    x = x.expand(rows.shape[0], *x.shape[1:])
    return x.gather(2, rows[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))


def _pick_heads(mask: Tensor | None, heads: Tensor) -> Tensor | None:
    if mask is None or mask.ndim < 3 or mask.shape[-3] == 1:
        return mask
    return mask.index_select(-3, heads)


def _explicit(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dead: Tensor | None, is_causal: bool,
              dropout: float, rows: Rows, heads: Heads) -> tuple[Tensor, Tensor]:
    """Attention through all its weights, of which the returned ones are a part: out depends on them."""
    batch, n_heads, n_queries, n_keys = *q.shape[:3], k.shape[-2]
    if is_causal:
        mask = torch.ones(n_queries, n_keys, dtype=torch.bool, device=q.device).tril()
    weights = _softmax(q, k, mask, dead)  # (B, h, Q, K)
    if isinstance(rows, str) and not isinstance(heads, Tensor):
        kept = weights
    else:
        row = torch.arange(n_queries, device=q.device) if isinstance(rows, str) else rows
        head = heads if isinstance(heads, Tensor) else torch.arange(n_heads, device=q.device)
        assert row is not None
        where = (torch.arange(batch, device=q.device)[:, None, None], head[None, :, None],
                 row[:, None] if row.ndim == 2 else row[None, None])
        kept = weights[where]  # (B, h', k, K)
        # put back, so that the output depends on `kept`; a row asked for twice counts half each time
        times = weights.new_zeros(batch, n_heads, n_queries, 1)
        times = times.index_put(where, times.new_ones(1), accumulate=True)
        weights = weights.masked_fill(times > 0, 0.0).index_put(where, kept / times[where], accumulate=True)
    out = F.dropout(weights, dropout, training=dropout > 0).to(v.dtype) @ v
    return out, kept


class MultiHeadAttention(nn.Module):
    """Self- and cross-attention with one projection each for queries, keys, values and output.

    Args:
        width: D of the residual stream.
        num_heads: h; must divide width.
        context_width: width of what keys and values come from; None = width.
        bias: whether q, k and v projections have biases (the output projection always has).
        dropout: probability of dropping an attention weight in training.

    Raises:
        InputError: num_heads does not divide width.
    """

    def __init__(self, width: int, num_heads: int, *, context_width: int | None = None, bias: bool = True,
                 dropout: float = 0.0) -> None:
        super().__init__()
        if num_heads < 1 or width % num_heads:
            raise InputError(f"width {width} is not divisible by num_heads {num_heads}")
        context_width = width if context_width is None else context_width
        self.num_heads = num_heads
        self.dropout = dropout
        self.q_proj = nn.Linear(width, width, bias=bias)
        self.k_proj = nn.Linear(context_width, width, bias=bias)
        self.v_proj = nn.Linear(context_width, width, bias=bias)
        self.out_proj = nn.Linear(width, width)
        self._together: PackedLinear | None = None  # of q, k and v, see `_project_all`

    def forward(self, x: Tensor, context: Tensor | None = None, *, q_pos: Tensor | None = None,
                k_pos: Tensor | None = None, mask: Tensor | None = None, causal: bool = False,
                cache: KVCache | None = None, rows: Rows = None, heads: Heads = None,
                detach: bool = True) -> tuple[Tensor, Tensor | None]:
        """Attend from x to itself, or to context.

        Args:
            x: (B, Q, D). With a context it may hold several rows per row of the context, those of
                one image side by side (beams, or references of one image): the context is then
                projected and kept once per image.
            context: (B, K, context_width), or None for self-attention.
            q_pos, k_pos: positions (broadcastable to x and to context) added before the q and k
                projections only, never to values. In self-attention k_pos adds to x.
            mask: boolean, broadcastable to (B, h, Q, K), True = may attend.
            causal: query i sees the keys up to i + K - Q.
            cache: self-attention: keys and values of earlier positions, appended to here.
                Cross-attention: filled at the first call; the context is not projected again. With `patience`, calls
                of one query per image go without keys and values where that is the same but for rounding: in float32
                on a CPU, with packed projections and neither gradients, weights nor dropout wanted.
            rows, heads, detach: which weights to return, see `attend`.

        Returns:
            ``(out (B, Q, D), weights (B, h', k, K) float32 or None)``.

        Raises:
            InputError: the rows of x are no multiple of the rows of the context.
        """
        if context is None:
            q, k, v = self._project_all(x, q_pos, k_pos)  # (B, h, Q, d) each
            if cache is not None:
                cache.append(k, v)
                k, v, mask = cache.k, cache.v, cache.mask if mask is None else mask
        else:
            q = self._queries(x, q_pos)
            if cache is not None and cache.length:
                k, v = cache.k, cache.v
            elif cache is not None and rows is None and self._waits(q, context, k_pos, cache):
                return self.out_proj(self._through_context(q, context, k_pos, mask)), None
            else:
                k, v = self._project(context, k_pos)
                if cache is not None:
                    cache.append(k, v)
        dropout = self.dropout if self.training else 0.0
        if q.shape[0] == k.shape[0]:
            out, weights = attend(q, k, v, mask=mask, causal=causal, dropout=dropout, rows=rows, heads=heads,
                                  detach=detach)
        else:
            out, weights = _attend_shared(q, k, v, mask, causal, dropout, rows, heads, detach)
        return self.out_proj(out.transpose(1, 2).flatten(2)), weights  # (B, h, Q, d) -> (B, Q, D)

    def _project_all(self, x: Tensor, q_pos: Tensor | None, k_pos: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of self-attention, (B, h, Q, d) each.

        Packed projections are one product in decoding, which reads one long matrix faster than three (a fifth of their
        time for one row, bench/decoding.py); its weights are copied at the first.
        """
        layers = self.q_proj, self.k_proj, self.v_proj
        if q_pos is not None or k_pos is not None or torch.is_grad_enabled() or torch.compiler.is_compiling() \
                or not all(plain(layer, PackedLinear) for layer in layers):
            return self._queries(x, q_pos), *self._project(x, k_pos)
        if self._together is None:
            self._together = PackedLinear(torch.cat([layer.weight for layer in layers]),
                                          None if self.q_proj.bias is None
                                          else torch.cat([layer.bias for layer in layers]))
        q, k, v = (self._heads(part) for part in self._together(x).chunk(3, -1))
        return q, k, v

    def _queries(self, x: Tensor, q_pos: Tensor | None) -> Tensor:
        return self._heads(self.q_proj(x if q_pos is None else x + q_pos))  # (B, h, Q, d)

    def _project(self, context: Tensor, k_pos: Tensor | None) -> tuple[Tensor, Tensor]:
        k = self._heads(self.k_proj(context if k_pos is None else context + k_pos))
        return k, self._heads(self.v_proj(context))  # (B, h, K, d) each

    def _waits(self, q: Tensor, context: Tensor, k_pos: Tensor | None, cache: KVCache) -> bool:
        """Whether a call goes without keys and values; it then costs the cache some of its patience."""
        if cache.patience < 1 or q.shape[0] != context.shape[0] or q.shape[2] != 1 or torch.is_grad_enabled() \
                or (self.training and self.dropout) or not all(plain(one, PackedLinear)
                                                               for one in (self.k_proj, self.v_proj)) \
                or any(one.dtype != torch.float32 for one in (q, context, context if k_pos is None else k_pos)):
            return False
        cache.patience -= 1
        return True

    def _through_context(self, q: Tensor, context: Tensor, k_pos: Tensor | None, mask: Tensor | None) -> Tensor:
        """Attention of one query (B, h, 1, d) per image to the context itself, before the output projection: (B, 1, D).

        q . (W c + b) = (W^T q) . c + q . b, of which the last does not depend on c and falls out of the softmax; and
        weights @ (C W^T + b) = (weights @ C) W^T + b. So queries and sums go through the matrices instead of all of the
        context, which is shared by the heads: they are the queries of one wide head (DeepSeek-AI 2024, DeepSeek-V2,
        section 2.1.2, does so with keys and values made of one latent vector).
        """
        n_images, n_heads, _, d = q.shape
        k_weight, v_weight = (layer.weight.unflatten(0, (n_heads, d)) for layer in (self.k_proj, self.v_proj))
        wide = (q[:, :, 0].transpose(0, 1) @ k_weight).transpose(0, 1)[:, None]  # (B, 1, h, context width)
        wide = wide * (context.shape[-1] / d) ** 0.5  # `attend` scales by the width of what it sees as a head
        keys = context if k_pos is None else context + k_pos
        if mask is not None:
            mask = mask[(None,) * (4 - mask.ndim)].transpose(1, 2)  # (B, h, 1, K) -> (B, 1, h, K)
        summed, _ = attend(wide, keys[:, None], context[:, None], mask=mask)
        out = summed[:, 0].transpose(0, 1) @ v_weight.mT  # (B, h, context width) -> (h, B, d)
        if self.v_proj.bias is not None:
            bias = self.v_proj.bias.view(n_heads, 1, d)
            if mask is not None:  # who may attend nowhere gets nothing
                bias = bias * mask.any(-1)[:, 0].expand(n_images, n_heads).t()[..., None]
            out = out + bias
        return out.transpose(0, 1).reshape(n_images, 1, n_heads * d)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, n, D) -> (B, h, n, d)


def _attend_shared(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, dropout: float,
                   rows: Rows, heads: Heads, detach: bool) -> tuple[Tensor, Tensor | None]:
    """`attend` where several rows of queries (B*r, h, Q, d) share one row of keys (B, h, K, d).

    The r rows of an image become one long row of r*Q queries, so keys and values are never repeated.
    """
    n_rows, n_images, n_queries = q.shape[0], k.shape[0], q.shape[2]
    if n_rows % n_images:
        raise InputError(f"{n_rows} rows of queries cannot share the memory of {n_images} images: "
                         "a whole number of rows per image is needed")
    if causal:
        raise InputError("rows that share their keys take no causal mask")
    if mask is not None and ((mask.ndim > 1 and mask.shape[-2] != 1)
                             or (mask.ndim == 4 and mask.shape[0] not in (1, n_images))):
        raise InputError(f"a mask of shape {tuple(mask.shape)}: rows that share their keys take one mask per "
                         f"image, broadcastable to ({n_images}, h, 1, K), none per row or query")
    share = n_rows // n_images
    q = q.unflatten(0, (n_images, share)).transpose(1, 2).flatten(2, 3)  # (B, h, r*Q, d)
    index = rows
    if isinstance(rows, Tensor):
        offset = torch.arange(share, device=rows.device)[:, None] * n_queries  # (r, 1)
        per_row = rows.view(n_images, share, -1) if rows.ndim == 2 else rows
        index = (per_row + offset).flatten(-2)  # (B, r*k) or (r*k,)
    out, weights = attend(q, k, v, mask=mask, dropout=dropout, rows=index, heads=heads, detach=detach)
    out = _unshare(out, share)  # (B*r, h, Q, d)
    return out, None if weights is None else _unshare(weights, share)


def _unshare(x: Tensor, share: int) -> Tensor:
    """(B, h, r*n, m) -> (B*r, h, n, m)."""
    return x.unflatten(2, (share, -1)).transpose(1, 2).flatten(0, 1)
