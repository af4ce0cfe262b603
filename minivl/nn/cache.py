"""Keys and values that decoding keeps from step to step."""

from __future__ import annotations

import torch
from torch import Tensor


class KVCache:
    """Keys and values already projected, for one attention of one decoding.

    Self-attention appends to it at every step. Cross-attention fills it once, one row per image:
    beams of an image read the same row.

    Args:
        capacity: positions to make room for at the first append. Beyond it, and with 0 from the start, there is
            exactly the room that is needed: what a step copies then is less than what the products of a CPU lose
            on keys with gaps between the heads (bench/decoding.py).

    Attributes:
        length: positions it holds.
        patience: how many more looks of one query per image at an empty cache of cross-attention may be answered
            without filling it, see `minivl.nn.attention.MultiHeadAttention`.
    """

    __slots__ = ("length", "patience", "_k", "_v", "_capacity")

    def __init__(self, capacity: int = 0) -> None:
        self.length = self.patience = 0
        self._k: Tensor | None = None
        self._v: Tensor | None = None
        self._capacity = capacity

    @classmethod
    def of(cls, k: Tensor, v: Tensor) -> KVCache:
        """A cache that holds these (B, h, n, d)."""
        cache = cls()
        cache._k, cache._v, cache.length = k, v, k.shape[2]
        return cache

    @property
    def mask(self) -> Tensor | None:
        """Which positions may be attended to: all."""
        return None

    @property
    def k(self) -> Tensor:
        """(B, h, length, d) keys so far."""
        assert self._k is not None, "an empty cache has no keys"
        return self._k[:, :, : self.length]

    @property
    def v(self) -> Tensor:
        """(B, h, length, d) values so far."""
        assert self._v is not None, "an empty cache has no values"
        return self._v[:, :, : self.length]

    def append(self, k: Tensor, v: Tensor) -> None:
        """Add keys and values (B, h, n, d) behind those already there."""
        needed = self.length + k.shape[2]
        if self._k is None or self._v is None:
            if needed >= self._capacity:  # nothing to reserve
                self._k, self._v, self.length = k.contiguous(), v.contiguous(), needed
                return
            self._k, self._v = (new.new_empty(*new.shape[:2], self._capacity, new.shape[3]) for new in (k, v))
        if needed > self._k.shape[2]:
            self._k, self._v = torch.cat([self.k, k], 2), torch.cat([self.v, v], 2)
        else:
            self._k[:, :, self.length: needed] = k
            self._v[:, :, self.length: needed] = v
        self.length = needed

    def reorder(self, index: Tensor) -> None:
        """Row r continues what was row ``index[r]``; ``index`` (R,) may also repeat or drop rows."""
        if self._k is None or self._v is None:
            return
        room = self._k.shape[2]
        self._k, self._v = self.k.index_select(0, index), self.v.index_select(0, index)
        if self.length < room:
            spare = (*self._k.shape[:2], room - self.length, self._k.shape[3])
            self._k, self._v = (torch.cat([kept, kept.new_empty(spare)], 2) for kept in (self._k, self._v))


class FixedCache(KVCache):
    """Keys and values of self-attention in tensors of a fixed size, of which a compiled step writes one position.

    Args:
        k, v: (B, h, room, d), written in place.
        place: (1,) the position that is written, and the last that may be attended to.
    """

    __slots__ = ("place",)

    def __init__(self, k: Tensor, v: Tensor, place: Tensor) -> None:
        super().__init__()
        self._k, self._v, self.length, self.place = k, v, k.shape[2], place

    @property
    def mask(self) -> Tensor | None:
        """(room,) True up to the place."""
        return torch.arange(self.length, device=self.place.device) <= self.place

    def append(self, k: Tensor, v: Tensor) -> None:
        """Write keys and values (B, h, 1, d) at the place."""
        self.k.index_copy_(2, self.place, k)
        self.v.index_copy_(2, self.place, v)
