"""The caption decoder: a causal transformer that attends to a memory of visual tokens.

The decoder of Vaswani et al. 2017, with norms before (pre) or after (post) each branch; its settings cover the
decoders of GPT-2, BERT (as BLIP uses it), DETR (as CATR uses it) and `torch.nn.TransformerDecoder`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from ..nn.blocks import DecoderBlock, activation
from ..nn.cache import KVCache
from ..nn.embed import sinusoids
from ..nn.packed import PackedLinear, packed
from ..nn.record import AttnRecord, want
from .vit import check_rates, check_sizes

ROOM = 64  # text positions that caches make room for at first: captions are short, and published decoders have 1024


class Memory(NamedTuple):
    """What a decoder looks at.

    Attributes:
        tokens: (B, N, D) visual tokens in the width the decoder expects.
        pos: (B, N, D) positions added to keys only, or None.
        mask: (B, N) boolean, True = picture, or None.
        n_prefix: tokens before the patch grid.
        grid: (gh, gw) of the patches behind the prefix; None where images of several sizes were joined.
    """

    tokens: Tensor
    pos: Tensor | None
    mask: Tensor | None
    n_prefix: int
    grid: tuple[int, int] | None

    def select(self, images: Tensor | slice) -> Memory:
        """The memory of some of its images."""
        pos = None if self.pos is None else self.pos[images]
        mask = None if self.mask is None else self.mask[images]
        return Memory(self.tokens[images], pos, mask, self.n_prefix, self.grid)

    @staticmethod
    def join(parts: Sequence[Memory]) -> Memory:
        """The images of several memories (all with positions, or none) as one, in this order; the mask hides what
        shorter ones lack."""
        if len(parts) == 1:
            return parts[0]
        longest = max(part.tokens.shape[1] for part in parts)

        def fill(x: Tensor) -> Tensor:  # (B, n, ...) -> (B, longest, ...)
            return torch.cat([x, x.new_zeros(x.shape[0], longest - x.shape[1], *x.shape[2:])], 1)

        masks = [part.tokens.new_ones(part.tokens.shape[:2], dtype=torch.bool) if part.mask is None else part.mask
                 for part in parts]
        pos = [fill(part.pos) for part in parts if part.pos is not None]
        grids = {part.grid for part in parts}
        return Memory(torch.cat([fill(part.tokens) for part in parts]), torch.cat(pos) if pos else None,
                      torch.cat([fill(mask) for mask in masks]), parts[0].n_prefix,
                      grids.pop() if len(grids) == 1 else None)


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
        tied: whether the last matrix of the head is the word table.
        act, eps, dropout, attn_dropout: as in `DecoderBlock`.
        pad_id, bos_id, eos_id: special tokens.
        memory_width: width of the visual tokens; None = width.
        scaled: words are multiplied by sqrt(D); None: with sinusoidal positions.
        embed_norm: a layer norm after the sum of words and positions (BERT).
        embed_eps: of that norm; None = eps.
        query_pos: positions are added again to the queries and keys of every self-attention and to the queries
            of every cross-attention (DETR).
        head: what comes before the last matrix: "linear" nothing; "transform" a linear layer, the activation and
            a norm (BERT); "mlp" two linear layers with ReLU (DETR).
        head_dim: width of these two; None = width.
        head_bias: of the last matrix; None: where it is not tied.
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
    memory_width: int | None = None
    scaled: bool | None = None
    embed_norm: bool = False
    embed_eps: float | None = None
    query_pos: bool = False
    head: str = "linear"
    head_dim: int | None = None
    head_bias: bool | None = None

    def __post_init__(self) -> None:
        check_sizes(self, "vocab_size", "width", "depth", "num_heads", "mlp_dim", "max_len")
        check_rates(self)
        if self.norm not in ("pre", "post"):
            raise InputError(f'norm={self.norm!r}: give "pre" or "post"')
        if self.positions not in ("learned", "sinusoidal"):
            raise InputError(f'positions={self.positions!r}: give "learned" or "sinusoidal"')
        if self.head not in ("linear", "transform", "mlp"):
            raise InputError(f'head={self.head!r}: give "linear", "transform" or "mlp"')
        for name, default in (("memory_width", self.width), ("head_dim", self.width), ("embed_eps", self.eps),
                              ("scaled", self.positions == "sinusoidal"), ("head_bias", not self.tied)):
            if getattr(self, name) is None:
                object.__setattr__(self, name, default)
        check_sizes(self, "memory_width", "head_dim")
        if not isinstance(self.embed_eps, (int, float)) or not 1e-30 <= self.embed_eps <= 1:
            raise InputError(f"embed_eps={self.embed_eps!r}: give a number from 1e-30 to 1")
        if self.head_dim != self.width and (self.head != "mlp" or self.tied):
            raise InputError(f'head_dim={self.head_dim}: only head="mlp", not tied, has a width of its own')
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
        room = 0 if memory.tokens.device.type == "cpu" else capacity  # see KVCache
        self.self_caches = [KVCache(room) for _ in range(depth)]
        self.cross_caches = [KVCache() for _ in range(depth)]

    @property
    def length(self) -> int:
        """Text positions decoded so far."""
        return self.self_caches[0].length

    def positions(self, table: Tensor, count: int) -> Tensor:
        """Rows (count, D) of a table (max_len, D) for the next positions."""
        return table[self.length:self.length + count]

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


class FixedState(DecoderState):
    """The state of one compiled step, in which no shape depends on how far decoding is.

    Args:
        memory: what the cross caches were made of; only its mask is read.
        place: (1,) the position of the next token.
        self_caches: of the text, `minivl.nn.cache.FixedCache`.
        cross_caches: of the memory.
    """

    __slots__ = ("place",)

    def __init__(self, memory: Memory, place: Tensor, self_caches: Sequence[KVCache],
                 cross_caches: Sequence[KVCache]) -> None:
        self.memory, self.place = memory, place
        self.self_caches, self.cross_caches = list(self_caches), list(cross_caches)

    @property
    def length(self) -> int:
        """0: the place is a value that the graph does not know."""
        return 0

    def positions(self, table: Tensor, count: int) -> Tensor:
        """The row (1, D) of a table (max_len, D) for the next position."""
        return table.index_select(0, self.place)


class HeadTransform(nn.Module):
    """Linear layer, activation and norm before the matrix of words (BERT): (..., D) -> (..., D)."""

    def __init__(self, width: int, act: str, eps: float) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.act = activation(act)
        self.norm = nn.LayerNorm(width, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return self.norm(self.act(self.dense(x)))


class HeadMlp(nn.Module):
    """Two linear layers with ReLU before the matrix of words (DETR): (..., D) -> (..., head_dim)."""

    def __init__(self, width: int, head_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, head_dim)
        self.fc2 = nn.Linear(head_dim, head_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., head_dim)."""
        return self.fc2(self.fc1(x).relu()).relu()


class CaptionDecoder(nn.Module):
    """Token ids and a memory to logits of the next token.

    Attributes:
        config: `DecoderConfig`.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        assert config.embed_eps is not None and config.head_dim is not None and config.head_bias is not None
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.width)
        if config.positions == "learned":
            self.pos_embed: Tensor = nn.Parameter(torch.zeros(config.max_len, config.width))
        else:  # a table computed from the config is no state of the model
            self.register_buffer("pos_embed", sinusoids(config.max_len, config.width), persistent=False)
        self.embed_norm = nn.LayerNorm(config.width, eps=config.embed_eps) if config.embed_norm else nn.Identity()
        self.drop = nn.Dropout(config.dropout)
        pre = config.norm == "pre"
        self.blocks = nn.ModuleList(
            DecoderBlock(config.width, config.num_heads, config.mlp_dim, norm_first=pre,
                         memory_width=config.memory_width, act=config.act, eps=config.eps, dropout=config.dropout,
                         attn_dropout=config.attn_dropout)
            for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=config.eps) if pre else nn.Identity()
        if config.head == "transform":
            self.head_in: nn.Module = HeadTransform(config.width, config.act, config.eps)
        else:
            self.head_in = HeadMlp(config.width, config.head_dim) if config.head == "mlp" else nn.Identity()
        self.head: nn.Module | None = None
        self.head_bias = None
        if not config.tied:
            self.head = nn.Linear(config.head_dim, config.vocab_size, bias=config.head_bias)
        elif config.head_bias:
            self.head_bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.reset_parameters()

    def compute_tables(self) -> None:
        """The table of waves anew, where loading made the model without memory."""
        if self.config.positions == "sinusoidal":
            self.pos_embed = sinusoids(self.config.max_len, self.config.width).to(self.embed.weight.device)

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
        if self.config.scaled:
            x = x * math.sqrt(self.config.width)  # so that words and waves are of one order
        table = self.pos_embed[0:stop] if state is None else state.positions(self.pos_embed, ids.shape[1])
        pos = table.to(x.dtype)  # (T, D); a loaded bf16 model has float32 waves
        x = self.drop(self.embed_norm(x + pos))
        for i, block in enumerate(self.blocks):
            x, self_weights, cross_weights = block(
                x, memory.tokens, pos=pos if self.config.query_pos else None,
                memory_pos=memory.pos, memory_mask=memory.mask,
                self_cache=state.self_caches[i] if state is not None else None,
                cross_cache=state.cross_caches[i] if state is not None else None,
                self_want=want(attn, "self", i), cross_want=want(attn, "cross", i))
            if attn is not None:
                attn.put("self", i, self_weights)
                attn.put("cross", i, cross_weights)
        x = self.head_in(self.norm(x))
        return F.linear(x, self.embed.weight, self.head_bias) if self.head is None else self.head(x)  # (B*r, T, V)

    def ready(self) -> CaptionDecoder:
        """The same decoder with its matrices packed for many products of few rows (`minivl.nn.packed`), where that
        pays; it shares the weights as they are now."""
        twin = packed(self)
        assert isinstance(twin, CaptionDecoder)
        if twin is not self and twin.head is None:
            twin.head = PackedLinear(self.embed.weight, self.head_bias)
        return twin

    def start(self, memory: Memory) -> DecoderState:
        """An empty state for decoding from `memory`."""
        return DecoderState(memory, self.config.depth, min(self.config.max_len, ROOM))
