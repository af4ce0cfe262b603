"""The caption decoder: a causal transformer that attends to a memory of visual tokens.

The decoder of Vaswani et al. 2017, with norms before (pre) or after (post) each branch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from ..nn.attention import KVCache
from ..nn.blocks import DecoderBlock
from ..nn.embed import sinusoids
from ..nn.record import AttnRecord, want
from .vit import check_rates, check_sizes


class Memory(NamedTuple):
    """What a decoder looks at.

    Attributes:
        tokens: (B, N, D) visual tokens in the decoder's width.
        pos: (B, N, D) positions added to keys only, or None.
        mask: (B, N) boolean, True = picture, or None.
        n_prefix: tokens before the patch grid.
        grid: (gh, gw) of the patches behind the prefix.
    """

    tokens: Tensor
    pos: Tensor | None
    mask: Tensor | None
    n_prefix: int
    grid: tuple[int, int]

    def select(self, images: Tensor | slice) -> Memory:
        """The memory of some of its images."""
        pos = None if self.pos is None else self.pos[images]
        mask = None if self.mask is None else self.mask[images]
        return Memory(self.tokens[images], pos, mask, self.n_prefix, self.grid)


@dataclass(frozen=True)
class DecoderConfig:
    """Everything that fixes a decoder's shapes and arithmetic.

    Attributes:
        vocab_size: V.
        width: D.
        depth: number of blocks.
        num_heads: h.
        mlp_dim: inner width of the MLPs.
        max_len: most text positions, <BOS> included.
        norm: "pre" (with a last norm) or "post" (without).
        positions: "learned" or "sinusoidal".
        tied: whether the head is the word table (then without a bias).
        act, eps, dropout, attn_dropout: as in `DecoderBlock`.
        pad_id, bos_id, eos_id: special tokens.
    """

    vocab_size: int
    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    max_len: int = 64
    norm: str = "pre"
    positions: str = "learned"
    tied: bool = False
    act: str = "gelu"
    eps: float = 1e-5
    dropout: float = 0.0
    attn_dropout: float = 0.0
    pad_id: int = 0
    bos_id: int = 2
    eos_id: int = 3

    def __post_init__(self) -> None:
        check_sizes(self, "vocab_size", "width", "depth", "num_heads", "mlp_dim", "max_len")
        check_rates(self)
        if self.norm not in ("pre", "post"):
            raise InputError(f'norm={self.norm!r}: give "pre" or "post"')
        if self.positions not in ("learned", "sinusoidal"):
            raise InputError(f'positions={self.positions!r}: give "learned" or "sinusoidal"')
        for name in ("pad_id", "bos_id", "eos_id"):
            if not 0 <= getattr(self, name) < self.vocab_size:
                raise InputError(f"{name}={getattr(self, name)} is outside the vocabulary "
                                 f"of {self.vocab_size}")


class DecoderState:
    """Keys and values of one decoding: per layer, self-attention grows and cross-attention stays.

    Args:
        memory: what is decoded from, B images. Rows of text are B * r, those of an image side by side;
            they share the image's cross-attention keys and values.
        depth: number of layers.
        capacity: text positions to make room for.
    """

    __slots__ = ("memory", "self_caches", "cross_caches")

    def __init__(self, memory: Memory, depth: int, capacity: int) -> None:
        self.memory = memory
        self.self_caches = [KVCache(capacity) for _ in range(depth)]
        self.cross_caches = [KVCache() for _ in range(depth)]

    @property
    def length(self) -> int:
        """Text positions decoded so far."""
        return self.self_caches[0].length

    def reorder(self, rows: Tensor) -> None:
        """Text row i continues what was row ``rows[i]``; the rows of each image stay together."""
        for cache in self.self_caches:
            cache.reorder(rows)

    def select(self, images: Tensor) -> None:
        """Keep these images (indices into the present ones), with all their text rows."""
        n_images, n_rows = self.memory.tokens.shape[0], self.self_caches[0].k.shape[0]
        share = n_rows // n_images
        rows = (images[:, None] * share + torch.arange(share, device=images.device)).flatten()
        self.reorder(rows)
        for cache in self.cross_caches:
            cache.reorder(images)
        self.memory = self.memory.select(images)


class CaptionDecoder(nn.Module):
    """Token ids and a memory to logits of the next token.

    Attributes:
        config: `DecoderConfig`.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.width)
        if config.positions == "learned":
            self.pos_embed = nn.Parameter(torch.zeros(config.max_len, config.width))
        else:  # a table computed from the config is no state of the model
            self.register_buffer("pos_embed", sinusoids(config.max_len, config.width), persistent=False)
        self.drop = nn.Dropout(config.dropout)
        pre = config.norm == "pre"
        self.blocks = nn.ModuleList(
            DecoderBlock(config.width, config.num_heads, config.mlp_dim, norm_first=pre, act=config.act,
                         eps=config.eps, dropout=config.dropout, attn_dropout=config.attn_dropout)
            for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=config.eps) if pre else nn.Identity()
        self.head = None if config.tied else nn.Linear(config.width, config.vocab_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Random start: Xavier for projections, normals of std 0.02 for tables (1/sqrt(D) where tied)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.embed.weight, std=self.config.width ** -0.5 if self.config.tied else 0.02)
        if self.config.positions == "learned":
            nn.init.normal_(self.pos_embed, std=0.02)

    def forward(self, ids: Tensor, memory: Memory, *, attn: AttnRecord | None = None,
                state: DecoderState | None = None) -> Tensor:
        """Logits of the next token at every position.

        Args:
            ids: (B*r, T) token ids; the r rows of an image side by side.
            memory: of B images.
            attn: an opened record, sites "self" and "cross".
            state: keys and values of the positions before these; appended to.

        Returns:
            (B*r, T, V).

        Raises:
            InputError: more positions than max_len.
        """
        start = state.length if state is not None else 0
        stop = start + ids.shape[1]
        if stop > self.config.max_len:
            raise InputError(f"{stop} text positions: this decoder has {self.config.max_len} (max_len)")
        x = self.embed(ids)  # (B*r, T, D)
        if self.config.positions == "sinusoidal":
            x = x * math.sqrt(self.config.width)  # so that words and waves are of one order
        x = self.drop(x + self.pos_embed[start:stop].to(x.dtype))  # a loaded bf16 model has float32 waves
        for i, block in enumerate(self.blocks):
            x, self_weights, cross_weights = block(
                x, memory.tokens, memory_pos=memory.pos, memory_mask=memory.mask,
                self_cache=state.self_caches[i] if state is not None else None,
                cross_cache=state.cross_caches[i] if state is not None else None,
                self_want=want(attn, "self", i), cross_want=want(attn, "cross", i))
            if attn is not None:
                attn.put("self", i, self_weights)
                attn.put("cross", i, cross_weights)
        x = self.norm(x)
        return F.linear(x, self.embed.weight) if self.head is None else self.head(x)  # (B*r, T, V)

    def start(self, memory: Memory) -> DecoderState:
        """An empty state for decoding from `memory`."""
        return DecoderState(memory, self.config.depth, self.config.max_len)
