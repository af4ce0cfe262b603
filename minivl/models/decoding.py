"""The step protocol of `minivl.search` over a captioner: eager, where images leave as they finish, and compiled, where
shapes stay as they are."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from ..nn.cache import FixedCache, KVCache
from .decoder import CaptionDecoder, FixedState, Memory

if TYPE_CHECKING:
    from .captioner import Captioner

MANY = 768  # visual tokens of all images from which `Decoding` may go without their keys and values: 4 of 197
GRAPHS = 64  # of one process, for several models, batch sizes and numbers of beams; torch stops at 8


class Decoding:
    """`minivl.search.Steps` over a captioner: caches go in, log-probabilities come out.

    Args:
        captioner: in eval mode.
        memory: of B images.
        single: each image has one sequence to the end, as in a greedy search. A captioner that is `ready` then attends
            to many visual tokens without making keys and values of them (`KVCache.patience`): a short caption looks at
            them less often than that is worth.
        many: visual tokens of all images from which it does so; None: 768.
    """

    def __init__(self, captioner: Captioner, memory: Memory, *, single: bool = False, many: int | None = None) -> None:
        self._captioner = captioner
        self._state = captioner.start(memory)
        if single and memory.tokens.shape[:2].numel() >= (MANY if many is None else many):
            config = captioner.config.decoder
            # A step without keys and values multiplies 2 h N C, making them 2 N C D: as much as D / h steps. Half of
            # them leaves room for what narrow products cost, less where the memory is wider than the decoder.
            head = config.width // config.num_heads
            for cache in self._state.cross_caches:
                cache.patience = head * config.width // (2 * max(config.width, memory.tokens.shape[-1]))

    def prefill(self, ids: Tensor) -> Tensor:
        """(B, T) -> (B, V)."""
        return log_probabilities(self._captioner.step(ids, self._state)[:, -1])

    def step(self, ids: Tensor) -> Tensor:
        """(B*r,) -> (B*r, V)."""
        return self.prefill(ids[:, None])

    def reorder(self, rows: Tensor) -> None:
        """See `Steps.reorder`."""
        self._state.reorder(rows)

    def select(self, images: Tensor) -> None:
        """See `Steps.select`."""
        self._state.select(images)


class CompiledDecoding:
    """`minivl.search.Steps` whose steps are one compiled graph, whatever their number and whichever images finish.

    Keys and values have room for all positions from the start, and a row for every sequence of every image: what is not
    written yet is masked, and the rows of finished images go on without anybody reading them. The prompt passes
    uncompiled. Only more rows per image than ever before (words that must appear take beams as they need them) make
    another graph. On a GPU the graph is a CUDA graph; there nothing of this has been measured.

    Args:
        captioner: in eval mode.
        memory: of B images.
        room: most text positions that are stepped through.
        images: for how many the graph is made, at least B; a last batch that is smaller needs none of its own.
        backend: of torch.compile; None: its usual one.

    Raises:
        InputError: room beyond the decoder's positions, or fewer images than the memory has.
    """

    def __init__(self, captioner: Captioner, memory: Memory, *, room: int | None = None, images: int | None = None,
                 backend: str | None = None) -> None:
        longest, present = captioner.config.decoder.max_len, memory.tokens.shape[0]
        self._room, self._images = room or longest, images or present
        if self._room > longest:
            raise InputError(f"room={room}: this decoder has {longest} text positions (max_len)")
        if self._images < present:
            raise InputError(f"images={images}: the memory has {present}")
        self._captioner, self._memory = captioner, memory
        self._step = _compiled(backend, memory.tokens.device.type == "cuda" and backend is None)
        self._length, self._most, self._share = 0, 1, 1  # positions; rows per image there are, and in use
        self._slots = torch.arange(present, device=memory.tokens.device)  # of the images not finished
        self._text: list[tuple[Tensor, Tensor]] = []  # keys and values of each layer
        self._cross: list[tuple[Tensor, Tensor]] = []

    def prefill(self, ids: Tensor) -> Tensor:
        """(B, T) -> (B, V)."""
        state = self._captioner.start(self._memory)
        logp = log_probabilities(self._captioner.step(ids, state)[:, -1])
        self._length, spare = ids.shape[1], self._images - len(ids)

        def fill(x: Tensor, room: int) -> Tensor:  # (B, ...) -> (images, ...); zeros, which nan would outlive masks
            return _pinned(F.pad(x, (0, 0, 0, room - x.shape[2], 0, 0, 0, spare)).contiguous())

        tokens, pos, mask, n_prefix, grid = self._memory
        mask = None if mask is None else F.pad(mask, (0, 0, 0, spare), value=True)
        self._memory = Memory(tokens[:0], None, mask, n_prefix, grid)  # keys and values say all of it
        self._text = [(fill(cache.k, self._room), fill(cache.v, self._room)) for cache in state.self_caches]
        self._cross = [(fill(cache.k, cache.length), fill(cache.v, cache.length)) for cache in state.cross_caches]
        return logp

    def step(self, ids: Tensor) -> Tensor:
        """(B*r,) -> (B*r, V)."""
        if self._length >= self._room:
            raise InputError(f"{self._length + 1} text positions: there is room for {self._room}")
        rows = self._rows()
        everyone = ids.new_full((self._images * self._most,), self._captioner.config.decoder.pad_id)
        place = torch.tensor([self._length], device=ids.device)
        settings = torch._dynamo.config
        limit = "recompile_limit" if hasattr(settings, "recompile_limit") else "cache_size_limit"  # as torch 2.6 has it
        with settings.patch({limit: GRAPHS}):
            logp = self._step(self._captioner.decoder, everyone.index_copy(0, rows, ids), place, self._memory,
                              self._text, self._cross)
        self._length += 1
        return logp.index_select(0, rows)

    def reorder(self, rows: Tensor) -> None:
        """See `Steps.reorder`."""
        before = self._rows()
        self._share = len(rows) // len(self._slots)
        grown = self._share > self._most
        self._most = max(self._most, self._share)
        source = torch.zeros(self._images * self._most, dtype=torch.long, device=rows.device)  # of others: no matter
        source[self._rows()] = before[rows]
        for layer, both in enumerate(self._text):
            moved = [one[:, :, :self._length].index_select(0, source) for one in both]
            if grown:
                k, v = (_pinned(F.pad(one, (0, 0, 0, self._room - self._length))) for one in moved)
                self._text[layer] = k, v
            else:
                for one, new in zip(both, moved):
                    one[:, :, :self._length] = new

    def select(self, images: Tensor) -> None:
        """See `Steps.select`."""
        self._slots = self._slots[images]

    def _rows(self) -> Tensor:
        """Where the rows in use lie among all."""
        return (self._slots[:, None] * self._most + torch.arange(self._share, device=self._slots.device)).flatten()


def _pinned(x: Tensor) -> Tensor:
    """A tensor that stays where it is, as CUDA graphs need it."""
    if x.device.type == "cuda":
        torch._dynamo.mark_static_address(x)
    return x


@functools.cache
def _compiled(backend: str | None, graphs: bool) -> Callable[..., Tensor]:
    """`_step` compiled, the same function for all decodings, so that they share its graphs."""
    options: dict[str, Any] = {"mode": "reduce-overhead"} if graphs else {} if backend is None else {"backend": backend}
    return torch.compile(_step, fullgraph=True, dynamic=False, **options)


def _step(decoder: CaptionDecoder, ids: Tensor, place: Tensor, memory: Memory, text: list[tuple[Tensor, Tensor]],
          cross: list[tuple[Tensor, Tensor]]) -> Tensor:
    """One token of every row (R,) at position `place` (1,) -> log-probabilities (R, V); `text` is written to."""
    state = FixedState(memory, place, [FixedCache(k, v, place) for k, v in text], [KVCache.of(k, v) for k, v in cross])
    return log_probabilities(decoder(ids[:, None], memory, state=state)[:, -1])


def log_probabilities(logits: Tensor) -> Tensor:
    """Of the next token, from logits (..., V) of any precision; in float32, or float64 where they are."""
    return (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)
