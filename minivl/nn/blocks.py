"""Transformer blocks: pre- and post-norm, with and without cross-attention."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..errors import InputError, some
from .attention import MultiHeadAttention
from .cache import KVCache
from .record import NOTHING, Want


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), which OpenAI trained CLIP with (Hendrycks & Gimpel 2016, section 2)."""

    def forward(self, x: Tensor) -> Tensor:
        """Element by element."""
        return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "quick_gelu": QuickGELU,
    "relu": nn.ReLU,
}


def activation(name: str) -> nn.Module:
    """The activation of that name; raises InputError listing the known ones."""
    if name not in ACTIVATIONS:
        raise InputError(f"unknown activation {name!r}; known are: {some(ACTIVATIONS)}")
    return ACTIVATIONS[name]()


class Mlp(nn.Module):
    """Two linear layers with an activation between: (..., D) -> (..., mlp_dim) -> (..., D)."""

    def __init__(self, width: int, mlp_dim: int, act: str = "gelu", dropout: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, mlp_dim)
        self.act = activation(act)
        self.drop = nn.Dropout(dropout)
        self.fc2 = nn.Linear(mlp_dim, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return self.fc2(self.drop(self.act(self.fc1(x))))


class SwiGLU(nn.Module):
    """A gated MLP (Shazeer 2020, https://arxiv.org/abs/2002.05202): fc2(silu(gate(x)) * fc1(x)).

    (..., D) -> (..., mlp_dim) twice -> (..., D).
    """

    def __init__(self, width: int, mlp_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.gate = nn.Linear(width, mlp_dim)
        self.fc1 = nn.Linear(width, mlp_dim)
        self.act = nn.SiLU()
        self.drop = nn.Dropout(dropout)
        self.fc2 = nn.Linear(mlp_dim, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return self.fc2(self.drop(self.act(self.gate(x)) * self.fc1(x)))


class LayerScale(nn.Module):
    """A learned factor per channel (Touvron et al. 2021, https://arxiv.org/abs/2103.17239)."""

    def __init__(self, width: int, start: float = 1e-5) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), start))

    def forward(self, y: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return y * self.gamma


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016, https://arxiv.org/abs/1603.09382): in training, a whole branch is left out
    for a sample with probability `rate`, and counts 1 / (1 - rate) times where it stays."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, y: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        if not self.training:
            return y
        kept = torch.rand(y.shape[0], 1, 1, device=y.device) >= self.rate  # (B, 1, 1)
        return y * kept / (1 - self.rate)

    def extra_repr(self) -> str:
        """For printing."""
        return f"{self.rate:g}"


class EncoderBlock(nn.Module):
    """Pre-norm self-attention and MLP (Dosovitskiy et al. 2021, eq. 2-3).

    Args:
        width: D.
        num_heads: h.
        mlp_dim: inner width of the MLP.
        act: name of the activation, see `ACTIVATIONS`.
        eps: of the layer norms.
        qkv_bias: whether q, k and v projections have biases.
        layer_scale: whether each branch is scaled by a `LayerScale`.
        mlp: "mlp", or "swiglu" for a gated one (whose activation is SiLU, whatever `act` says).
        dropout: on both branches and inside the MLP.
        drop_path: probability of leaving a branch out, see `DropPath`.
        attn_dropout: on attention weights. A setting of its own: drawing a mask per pair of tokens costs
            a third of a training step on a CPU.
    """

    def __init__(self, width: int, num_heads: int, mlp_dim: int, *, act: str = "gelu", eps: float = 1e-6,
                 qkv_bias: bool = True, layer_scale: bool = False, mlp: str = "mlp", dropout: float = 0.0,
                 attn_dropout: float = 0.0, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = MultiHeadAttention(width, num_heads, bias=qkv_bias, dropout=attn_dropout)
        self.ls1: nn.Module = LayerScale(width) if layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp: nn.Module = SwiGLU(width, mlp_dim, dropout) if mlp == "swiglu" else Mlp(width, mlp_dim, act, dropout)
        self.ls2: nn.Module = LayerScale(width) if layer_scale else nn.Identity()
        self.drop = nn.Dropout(dropout)
        self.path: nn.Module = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor, *, pos: Tensor | None = None, mask: Tensor | None = None, causal: bool = False,
                want: Want = NOTHING) -> tuple[Tensor, Tensor | None]:
        """One block.

        Args:
            x: (B, N, D).
            pos: (B, N, D) positions added to queries and keys, never to values (DETR); or None.
            mask: boolean, broadcastable to (B, h, N, N), True = may attend.
            causal: token i sees the tokens up to i (text).
            want: weights to return.

        Returns:
            ``(x (B, N, D), wanted weights (B, h', k, N) or None)``.
        """
        y, weights = self.attn(self.norm1(x), q_pos=pos, k_pos=pos, mask=mask, causal=causal, rows=want.rows,
                               heads=want.heads, detach=want.detach)
        x = x + self.path(self.drop(self.ls1(y)))
        x = x + self.path(self.drop(self.ls2(self.mlp(self.norm2(x)))))
        return x, weights


class DecoderBlock(nn.Module):
    """Causal self-attention, cross-attention to a memory, MLP; norms before or after each branch.

    ``norm_first=False`` is the block of Vaswani et al. 2017 (and of `torch.nn.TransformerDecoderLayer`).

    Args:
        width: D.
        num_heads: h.
        mlp_dim: inner width of the MLP.
        norm_first: norm before each branch (True) or after each residual sum (False).
        memory_width: of the memory; None = width.
        act, eps, dropout, attn_dropout: as in `EncoderBlock`.
    """

    def __init__(self, width: int, num_heads: int, mlp_dim: int, *, norm_first: bool = True,
                 memory_width: int | None = None, act: str = "gelu", eps: float = 1e-5, dropout: float = 0.0,
                 attn_dropout: float = 0.0) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = MultiHeadAttention(width, num_heads, dropout=attn_dropout)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.cross = MultiHeadAttention(width, num_heads, context_width=memory_width, dropout=attn_dropout)
        self.norm3 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, mlp_dim, act, dropout)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, memory: Tensor, *, pos: Tensor | None = None,
                memory_pos: Tensor | None = None, memory_mask: Tensor | None = None, self_cache: KVCache | None = None,
                cross_cache: KVCache | None = None, self_want: Want = NOTHING,
                cross_want: Want = NOTHING) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """One block over text positions.

        Args:
            x: (B*r, T, D) text; r rows (beams, references) share an image of the memory.
            memory: (B, N, memory width).
            pos: (T, D) positions of the text added to queries and to keys of the self-attention, or None.
            memory_pos: (B, N, memory width) added to the keys of the memory, or None.
            memory_mask: (B, N) boolean, True = may be attended to.
            self_cache, cross_cache: keys and values of this decoding.
            self_want, cross_want: weights to return.

        Returns:
            ``(x (B*r, T, D), self weights (B*r, h', k, T'), cross weights (B*r, h', k, N))``.
        """
        mask = None if memory_mask is None else memory_mask[:, None, None, :]  # (B, 1, 1, N)
        y, self_weights = self.attn(self.norm1(x) if self.norm_first else x, q_pos=pos, k_pos=pos, causal=True,
                                    cache=self_cache, rows=self_want.rows, heads=self_want.heads,
                                    detach=self_want.detach)
        x = self._add(x, y, self.norm1)
        y, cross_weights = self.cross(self.norm2(x) if self.norm_first else x, memory, q_pos=pos,
                                      k_pos=memory_pos, mask=mask, cache=cross_cache, rows=cross_want.rows,
                                      heads=cross_want.heads, detach=cross_want.detach)
        x = self._add(x, y, self.norm2)
        x = self._add(x, self.mlp(self.norm3(x) if self.norm_first else x), self.norm3)
        return x, self_weights, cross_weights

    def _add(self, x: Tensor, y: Tensor, norm: nn.LayerNorm) -> Tensor:
        x = x + self.drop(y)
        return x if self.norm_first else norm(x)
