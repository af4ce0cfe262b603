"""Position tables for another grid of patches, by the rule of the library the weights come from.

| rule | interpolation | as in |
|---|---|---|
| timm | bicubic, antialiased | timm.layers.resample_abs_pos_embed; DINOv2 with registers |
| timm_npz | bilinear | timm's loader of Google's .npz files |
| hf | bicubic | interpolate_pos_encoding of transformers' ViT, DINOv2, CLIP and BLIP |
| dinov2 | bicubic, at the scale of 0.1 cells more | facebookresearch's DINO and DINOv2 without registers |
| open_clip | bicubic, antialiased | open_clip.model.resize_pos_embed |
| lukemelas | bilinear, corner on corner | scipy.ndimage.zoom of order 1, by which pytorch_pretrained_vit resizes |

For the 0.1 cells: https://github.com/facebookresearch/dino/issues/8. The rules are far apart, on random tables
by 4 to 130 % of their norm; only timm's and open_clip's are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError, some

Grid = tuple[int, int]


def _offset(x: Tensor, size: Grid) -> Tensor:
    """Bicubic; the step between samples is old / (new + 0.1), since a given scale_factor is not recomputed."""
    scales = [(new + 0.1) / old for new, old in zip(size, x.shape[2:])]
    return F.interpolate(x, scale_factor=scales, mode="bicubic")


def _corners(x: Tensor, size: Grid) -> Tensor:
    """Bilinear, first and last cells on each other; a side of one cell takes, and gives, the first.

    In float64, as scipy does: float32 places samples too coarsely. Where the last sample falls beyond the last cell
    by rounding (24 to 22 or 42, 28 to 14), zoom gives a row or column of zeros, and so does this.
    """
    blends = []
    for new, old in zip(size, x.shape[2:]):
        places = torch.arange(new, dtype=torch.float64, device=x.device)[:, None] * ((old - 1) / max(new - 1, 1))
        cells = torch.arange(old, dtype=torch.float64, device=x.device)
        blends.append((1 - (places - cells).abs()).clamp(min=0) * (places <= old - 1))  # (new, old)
    return blends[0] @ x.double() @ blends[1].T


RULES: dict[str, Callable[[Tensor, Grid], Tensor]] = {  # each: (1, D, gh, gw) and the new grid -> (1, D, gh', gw')
    "timm": partial(F.interpolate, mode="bicubic", antialias=True),
    "timm_npz": partial(F.interpolate, mode="bilinear"),
    "hf": partial(F.interpolate, mode="bicubic"),
    "dinov2": _offset,
    "open_clip": partial(F.interpolate, mode="bicubic", antialias=True),
    "lukemelas": _corners,
}


def resize_positions(table: Tensor, old: Grid, new: Grid, *, n_prefix: int, rule: str) -> Tensor:
    """The position table of another grid; computed on the CPU, so that a device changes nothing.

    Args:
        table: (1, n_prefix + gh*gw, D), prefix rows first, then cells row by row.
        old: (gh, gw) of the table.
        new: (gh', gw') wanted.
        n_prefix: rows of other tokens (class, distillation, registers), which stay as they are.
        rule: one of `RULES`.

    Returns:
        (1, n_prefix + gh'*gw', D) of the table's dtype and device, computed in float32, from float64 in float64;
        the table itself where both grids are the same.

    Raises:
        InputError: an unknown rule, a grid without cells, or a table that is not of the old grid.
    """
    if rule not in RULES:
        raise InputError(f"resize={rule!r}: give a rule for position tables, one of {some(RULES)}")
    if any(side < 1 for side in (*old, *new)):
        raise InputError(f"position table from grid {tuple(old)} to {tuple(new)}: each side needs at least one cell")
    rows = n_prefix + old[0] * old[1]
    if n_prefix < 0 or table.dim() != 3 or table.shape[:2] != (1, rows):
        raise InputError(f"position table of shape {tuple(table.shape)}: a grid of {old[0]}x{old[1]} after "
                         f"{n_prefix} prefix rows needs (1, {rows}, width)")
    if tuple(old) == tuple(new):
        return table
    prefix, cells = table[:, :n_prefix], table[:, n_prefix:]
    x = cells.to("cpu", torch.float64 if table.dtype == torch.float64 else torch.float32)
    x = RULES[rule](x.unflatten(1, tuple(old)).permute(0, 3, 1, 2), new)  # (1, D, gh', gw')
    return torch.cat([prefix, x.permute(0, 2, 3, 1).flatten(1, 2).to(table)], dim=1)
