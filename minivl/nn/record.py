"""AttnRecord: attention weights asked for at call time.

    record = AttnRecord(sites=("encoder",), layers=[-1], queries=[0])
    logits = vit(images, attn=record)
    record["encoder", 11]                     # (B, h, 1, N) float32

The leaf (`attention.attend`) returns weights; the stack of blocks puts them into the record; nothing is
kept on modules and nothing is global. A request that cannot be met raises before any compute.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import InputError, some
from .attention import Heads, Rows


class Site(NamedTuple):
    """What one place of a call can record.

    Attributes:
        layers: number of layers.
        heads: number of heads of each.
        queries: Q, rows of weights in this call.
        named: names of rows, e.g. ``{"class": 0}``; a (B,) tensor where the row differs per sample.
        batch: B of this place where it is not that of the call (images with several captions each).
    """

    layers: int
    heads: int
    queries: int
    named: Mapping[str, int | Tensor] = {}
    batch: int | None = None


class Want(NamedTuple):
    """What one layer is asked for: arguments of `attention.attend`."""

    rows: Rows = None
    heads: Heads = None
    detach: bool = True


NOTHING = Want()


class AttnRecord:
    """A request for attention weights, handed to one call and filled by it.

    Args:
        sites: names of places ("encoder", "self", "cross", ...; `model.attn_sites` lists them);
            None = all sites of the call.
        layers: "all" or layer indices; negative ones count from the end of each site.
        queries: "all", row indices (negative ones from the end), a (B, k) tensor of indices, or a
            name the site knows ("class").
        heads: "all", "mean" over the heads (h' = 1), or head indices.
        detach: True keeps the fused kernel and weights outside the graph. False computes the layer's
            output from the very weights recorded, so that gradients with respect to them exist.

    Reading: ``record[site, layer]`` is (B, h', k, K) float32; ``list(record)`` names what is there.

    Raises:
        InputError: at construction, an argument of the wrong kind; at the call, an unknown site, layer,
            head or row, listing what there is, or a second filling; when read, a record not filled.
    """

    # A plain class on purpose: FSDP2's mixed precision copies dataclass arguments, and the copy, not the
    # caller's record, would be filled.
    __slots__ = ("sites", "layers", "queries", "heads", "detach", "_span", "_plan", "_depth", "_weights")

    def __init__(self, sites: Sequence[str] | str | None = None, layers: Sequence[int] | str = "all",
                 queries: Sequence[int] | Tensor | str = "all", heads: Sequence[int] | str = "all",
                 detach: bool = True) -> None:
        self.sites = (sites,) if isinstance(sites, str) else None if sites is None else tuple(sites)
        self.layers = _choice("layers", layers, ("all",))
        self.queries = queries if isinstance(queries, Tensor) else _choice("queries", queries, None)
        self.heads = _choice("heads", heads, ("all", "mean"))
        self.detach = bool(detach)
        if isinstance(self.queries, Tensor) and (self.queries.ndim not in (1, 2) or self.queries.numel() == 0
                                                 or self.queries.is_floating_point()
                                                 or self.queries.dtype == torch.bool):
            raise InputError("queries must be integer indices of shape (k,) or (B, k), not "
                             f"{self.queries.dtype} of shape {tuple(self.queries.shape)}")
        if self.sites is not None and not self.sites:
            raise InputError("sites is empty: name at least one, or None for all")
        if not self.detach and self.heads == "mean":
            raise InputError('detach=False with heads="mean" is not possible: no output is computed from a '
                             'mean of heads; record heads="all" and average')
        # looked at here, because a compiled call cannot branch on the values of a tensor
        self._span: tuple[int, ...] = ()
        if isinstance(self.queries, Tensor):
            self._span = int(self.queries.min()), int(self.queries.max())
        self._plan: dict[tuple[str, int], Want] | None = None
        self._depth: dict[str, int] = {}
        self._weights: dict[tuple[str, int], Tensor] = {}

    # -- the model's side --------------------------------------------------------------------------------

    def open(self, available: Mapping[str, Site], batch: int, device: torch.device) -> None:
        """Check the request against what a call can record; called by the model before it computes.

        Args:
            available: site name -> what it can record in this call.
            batch: B, rows of the call, for requests with a row of queries per sample.
            device: where the weights will be computed.

        Raises:
            InputError: the record was used before, or asks for something that is not there.
        """
        if self._plan is not None:
            raise InputError("this AttnRecord was filled by an earlier call: make a new one for each call")
        names = tuple(available) if self.sites is None else self.sites
        unknown = [name for name in names if name not in available]
        if unknown:
            raise InputError(f"no attention site {some(map(repr, unknown))} in this call; "
                             f"there are: {some(available) or 'none'}")
        plan: dict[tuple[str, int], Want] = {}
        for name in names:
            site = available[name]
            rows = _rows(self.queries, self._span, name, site, batch, device)
            heads = self.heads if isinstance(self.heads, str) else torch.tensor(
                _resolve(self.heads, site.heads, f"head of {name}"), device=device)
            layers = range(site.layers) if isinstance(self.layers, str) else _resolve(
                self.layers, site.layers, f"layer of {name}")
            for layer in layers:
                plan[name, layer] = Want(rows, heads, self.detach)
        self._depth = {name: site.layers for name, site in available.items()}
        self._plan = plan

    def want(self, site: str, layer: int) -> Want:
        """What `layer` of `site` is asked for (`NOTHING` if it is not)."""
        return NOTHING if self._plan is None else self._plan.get((site, layer), NOTHING)

    def put(self, site: str, layer: int, weights: Tensor | None) -> None:
        """Keep the weights of a layer; None (it was not asked) is ignored."""
        if weights is not None:
            self._weights[site, layer] = weights

    def reset(self) -> None:
        """Forget everything a call left: the record is as newly made."""
        self._plan, self._depth, self._weights = None, {}, {}

    # -- the caller's side -------------------------------------------------------------------------------

    def __getitem__(self, key: tuple[str, int]) -> Tensor:
        """Weights (B, h', k, K) of ``(site, layer)``; layer may be negative."""
        if self._plan is None:
            raise InputError("this AttnRecord is empty: no call has filled it; hand it to a call as attn=")
        if not (isinstance(key, tuple) and len(key) == 2 and isinstance(key[1], int)):
            raise InputError(f"record[{key!r}]: read with a site and a layer; recorded are: "
                             f"{some(self._plan)}")
        site, layer = key
        if site in self._depth and layer < 0:
            layer += self._depth[site]
        if (site, layer) not in self._plan:
            raise InputError(f"{key!r} was not recorded; recorded are: {some(self._plan)}")
        if (site, layer) not in self._weights:
            raise InputError(f"the call ended without filling {key!r}")
        return self._weights[site, layer]

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)

    def __contains__(self, key: object) -> bool:
        try:
            return self[key] is not None  # type: ignore[index]
        except InputError:
            return False

    def __repr__(self) -> str:
        what = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__slots__ if name[0] != "_")
        return f"AttnRecord({what}; {len(self)} layers recorded)"


def want(record: AttnRecord | None, site: str, layer: int) -> Want:
    """`AttnRecord.want`, where no record wants nothing."""
    return NOTHING if record is None else record.want(site, layer)


@contextmanager
def filling(record: AttnRecord | None, available: Mapping[str, Site], batch: int,
            device: torch.device) -> Iterator[None]:
    """Open a record around a model's computing; an exception on the way leaves it as newly made."""
    if record is None:
        yield
        return
    if not isinstance(record, AttnRecord):
        raise InputError(f"attn={record!r}: give an AttnRecord, which says what to record, or None")
    record.open(available, batch, device)  # a refused record is left as it was
    try:
        yield
    except BaseException:
        record.reset()
        raise


def _choice(name: str, value: Sequence[int] | str, words: tuple[str, ...] | None) -> tuple[int, ...] | str:
    """A word (one of `words`; None = any) or a non-empty tuple of whole numbers."""
    if isinstance(value, str):
        if words is not None and value not in words:
            raise InputError(f"{name}={value!r}: give indices or one of {some(map(repr, words))}")
        return value
    try:
        numbers = tuple(int(number) for number in value)
        whole = all(number == given for number, given in zip(numbers, value))
    except (TypeError, ValueError):
        numbers, whole = (), False
    if not numbers or not whole:
        raise InputError(f"{name}={value!r}: give a non-empty sequence of whole numbers")
    return numbers


def _resolve(indices: Iterable[int], count: int, what: str) -> list[int]:
    """Non-negative indices; raises on one outside -count..count-1."""
    resolved = []
    for index in indices:
        if not -count <= index < count:
            raise InputError(f"no {what} {index}: there are {count} (0 to {count - 1}, or -{count} to -1)")
        resolved.append(index % count)
    return resolved


def _rows(queries: Tensor | tuple[int, ...] | str, span: tuple[int, ...], name: str, site: Site, batch: int,
          device: torch.device) -> Tensor | str:
    """The rows of one site as "all" or indices (k,) or (B, k); span: (lowest, highest) of a tensor."""
    if isinstance(queries, str):
        if queries == "all":
            return "all"
        if queries not in site.named:
            known = ["'all'", *map(repr, site.named)]
            raise InputError(f"queries={queries!r}: site {name} has no row of that name; "
                             f"give indices or one of {some(known)}")
        row = site.named[queries]
        return row.to(device)[:, None] if isinstance(row, Tensor) else torch.tensor([row], device=device)
    if isinstance(queries, Tensor):
        batch = batch if site.batch is None else site.batch
        if queries.ndim == 2 and queries.shape[0] != batch:
            raise InputError(f"queries has {queries.shape[0]} rows for the batch of {batch} of site {name}")
        _resolve(span, site.queries, f"row of {name}")
        return (queries.to(device=device, dtype=torch.long)) % site.queries
    return torch.tensor(_resolve(queries, site.queries, f"row of {name}"), device=device)
