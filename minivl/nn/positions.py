"""Position tables for another grid, by the rule of the library the weights come from (stand-in)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor
import torch

RULES = {"timm": "", "timm_npz": "", "hf": "", "dinov2": "", "open_clip": "", "lukemelas": ""}


def resize_positions(table: Tensor, old: tuple[int, int], new: tuple[int, int], *, n_prefix: int, rule: str) -> Tensor:
    if old == new:
        return table
    prefix, grid = table[:, :n_prefix], table[:, n_prefix:]
    x = grid.reshape(1, *old, -1).permute(0, 3, 1, 2).float()
    if rule == "timm" or rule == "open_clip":
        x = F.interpolate(x, size=new, mode="bicubic", antialias=True)
    else:
        x = F.interpolate(x, size=new, mode="bicubic")
    return torch.cat([prefix, x.permute(0, 2, 3, 1).flatten(1, 2).to(table.dtype)], 1)
