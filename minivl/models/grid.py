"""CATR's encoder: a convolutional network and a transformer over its grid, for pictures of any size.

The arrangement is DETR's (Carion et al. 2020, https://arxiv.org/abs/2005.12872): a ResNet with frozen batch norm,
and sine positions that enter the queries and keys of every block, never the values.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from ..images import Preprocessing
from ..nn.blocks import EncoderBlock
from ..nn.record import AttnRecord, Site, want
from .decoder import Memory
from .vit import check_rates, check_sizes

# how CATR wants its photos; its Pillow resizes by bicubic interpolation where nobody says
PREPROCESSING = Preprocessing((299, 299), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), mode="long", interpolation="bicubic")
STRIDE = 16  # pixels of a side of a cell: the ResNet's 32, halved by the dilation of its last stage


@dataclass(frozen=True)
class GridConfig:
    """Everything that fixes the encoder's shapes and arithmetic.

    Attributes:
        width: D, a multiple of 4 (sine and cosine, down and right).
        depth: number of transformer blocks (pre-norm, with a last norm).
        num_heads: h.
        mlp_dim: inner width of the MLPs.
        layers: bottleneck blocks of the four stages of the ResNet; its last stage is dilated, so that a cell is
            16 pixels a side.
        act, eps, dropout, attn_dropout: as in `EncoderBlock`.
    """

    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    layers: tuple[int, ...] = (3, 4, 23, 3)
    act: str = "relu"
    eps: float = 1e-5
    dropout: float = 0.0
    attn_dropout: float = 0.0

    def __post_init__(self) -> None:
        check_sizes(self, "width", "depth", "num_heads", "mlp_dim")
        check_rates(self)
        if self.width % 4:
            raise InputError(f"width={self.width}: give a multiple of 4, for the sines and cosines of two axes")
        object.__setattr__(self, "layers", tuple(self.layers))
        if len(self.layers) != 4 or not all(isinstance(blocks, int) and blocks > 0 for blocks in self.layers):
            raise InputError(f"layers={self.layers!r}: give the blocks of four stages, positive whole numbers")


class GridEncoder(nn.Module):
    """Pictures of any size to the tokens of a grid, with their positions and a mask.

    Attributes:
        config: `GridConfig`.
    """

    def __init__(self, config: GridConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.backbone, channels = _resnet(config.layers)
        self.proj = nn.Conv2d(channels, width, kernel_size=1)
        self.blocks = nn.ModuleList(
            EncoderBlock(width, config.num_heads, config.mlp_dim, act=config.act, eps=config.eps,
                         dropout=config.dropout, attn_dropout=config.attn_dropout)
            for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, eps=config.eps)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Random start of the transformer: Xavier for weights, zeros for biases. (The ResNet's is torchvision's.)"""
        for module in [self.proj, *self.blocks.modules()]:
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.xavier_uniform_(module.weight)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    @property
    def cell(self) -> tuple[int, int]:
        """(height, width) in pixels of a cell of the grid."""
        return STRIDE, STRIDE

    @property
    def attn_sites(self) -> dict[str, tuple[int, int]]:
        """{site: (layers, heads)} that an AttnRecord can ask for."""
        return {"encoder": (self.config.depth, self.config.num_heads)}

    def sites(self, images: Tensor) -> Mapping[str, Site]:
        """What a call with these images can record, with its rows: one for each cell of their grid."""
        gh, gw = _grid(images)
        return {"encoder": Site(self.config.depth, self.config.num_heads, gh * gw)}

    def check(self, images: Tensor, image_mask: Tensor | None) -> None:
        """Raise InputError unless images are (B, 3, H, W) and the mask says where padded ones are picture.

        Args:
            images: normalised pixels, in the type of the weights.
            image_mask: (B, H, W) boolean, True = picture; None where every pixel is.
        """
        if not isinstance(images, Tensor):
            raise InputError(f"images is a {type(images).__name__}: give a tensor; minivl.preprocess(photos, model) "
                             "makes one")
        if images.dtype != self.proj.weight.dtype and not torch.is_autocast_enabled(images.device.type):
            raise InputError(f"images are {images.dtype}, the weights {self.proj.weight.dtype}: use model.float(), "
                             "or images.to() the type of the weights")
        if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
            raise InputError(f"images of shape {tuple(images.shape)}: this model takes (B, 3, H, W) of any H and W; "
                             "minivl.preprocess(photos, model) makes such")
        if image_mask is None:
            _check_unpadded(images)
        else:
            _check_mask(images, image_mask)

    def look(self, images: Tensor, image_mask: Tensor | None, attn: AttnRecord | None) -> Memory:
        """The memory of images, for a caller that has checked them and opened the record.

        Args:
            images: (B, 3, H, W).
            image_mask: (B, H, W) boolean, True = picture, or None.
            attn: an opened record, site "encoder".

        Returns:
            `Memory` of N = gh*gw tokens, row by row of the grid of ceil(H/16) x ceil(W/16); its mask is None where
            image_mask is.
        """
        features = self.proj(self.backbone(images))  # (B, D, gh, gw)
        grid = (features.shape[2], features.shape[3])
        x = features.flatten(2).transpose(1, 2)  # (B, N, D)
        if image_mask is None:
            cells = images.new_ones(images.shape[0], *grid, dtype=torch.bool)
        else:
            cells = cells_of(image_mask.to(images.device), grid)
        # in the weights' type: under autocast that is float32, which the norms' outputs have too
        pos = sine_positions(cells, self.config.width).to(self.proj.weight.dtype)
        mask = None if image_mask is None else cells.flatten(1)  # (B, N)
        may_attend = None if mask is None else mask[:, None, None]  # (B, 1, 1, N)
        for i, block in enumerate(self.blocks):
            x, weights = block(x, pos=pos, mask=may_attend, want=want(attn, "encoder", i))
            if attn is not None:
                attn.put("encoder", i, weights)
        return Memory(self.norm(x), pos, mask, 0, grid)


def sine_positions(cells: Tensor, width: int) -> Tensor:
    """DETR's positions: how far down and how far right a cell lies, counted in cells that are picture.

    Args:
        cells: (B, gh, gw) boolean, True = picture.
        width: D, a multiple of 4.

    Returns:
        (B, gh*gw, D) float32: D/2 channels for the way down, then as many for the way right, each of them sine and
        cosine in turn, of rates that fall from 1 to about 1/10000; the last cell of a picture is at 2 pi.
    """
    rates = 10000 ** (torch.arange(0, width // 2, 2, device=cells.device) / (width // 2))  # (D/4,)
    parts = []
    for axis in (1, 2):
        count = cells.cumsum(axis, dtype=torch.float32)
        total = count.narrow(axis, -1, 1)
        angle = (count / (total + 1e-6) * (2 * math.pi))[..., None] / rates  # (B, gh, gw, D/4)
        parts.append(torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2))
    return torch.cat(parts, dim=-1).flatten(1, 2)


def cells_of(image_mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """Which cells are picture: those whose nearest pixel is. (B, H, W) boolean -> (B, gh, gw) boolean."""
    return F.interpolate(image_mask[:, None].float(), size=grid, mode="nearest")[:, 0] > 0


def _grid(images: Tensor) -> tuple[int, int]:
    return -(-images.shape[2] // STRIDE), -(-images.shape[3] // STRIDE)


def _resnet(layers: tuple[int, ...]) -> tuple[nn.Module, int]:
    """torchvision's ResNet up to its last stage, under torchvision's names, and the channels it gives."""
    from torchvision.models.resnet import Bottleneck, ResNet  # here: `import minivl` stays light
    from torchvision.ops.misc import FrozenBatchNorm2d

    net = ResNet(Bottleneck, list(layers), replace_stride_with_dilation=[False, False, True],
                 norm_layer=FrozenBatchNorm2d)
    stages = OrderedDict((name, stage) for name, stage in net.named_children() if name not in ("avgpool", "fc"))
    return nn.Sequential(stages), net.fc.in_features


def _check_unpadded(images: Tensor) -> None:
    """Raise InputError for images whose last row or column is what `preprocess` pads with."""
    empty = (images[:, :, -1] == 0).flatten(1).all(1) | (images[..., -1] == 0).flatten(1).all(1)  # (B,)
    if bool(empty.any()):
        raise InputError(f"image {_first(empty)} of the batch ends in a row or column of exact zeros, which is "
                         "padding and no pixel, and this model sees padding: give image_mask="
                         "minivl.images.image_mask(geometries), True = picture; or give the photos themselves to "
                         "caption(), which pads nothing")


def _check_mask(images: Tensor, image_mask: Tensor) -> None:
    """Raise InputError for a mask of another shape or type, without picture, or the wrong way round."""
    expected = (images.shape[0], *images.shape[2:])
    if not isinstance(image_mask, Tensor) or image_mask.dtype != torch.bool or tuple(image_mask.shape) != expected:
        what = (f"{image_mask.dtype} of shape {tuple(image_mask.shape)}" if isinstance(image_mask, Tensor)
                else f"a {type(image_mask).__name__}")
        raise InputError(f"image_mask is {what}: give torch.bool of shape {expected}, True = picture")
    mask = image_mask.to(images.device)
    lost = ~cells_of(mask, _grid(images)).flatten(1).any(1)  # (B,)
    if bool(lost.any()):
        raise InputError(f"image_mask leaves no cell of image {_first(lost)} as picture; True = picture")
    padding = ~mask.flatten(1).all(1) & ~(mask & (images != 0).any(1)).flatten(1).any(1)  # (B,)
    if bool(padding.any()):
        raise InputError(f"image_mask of image {_first(padding)} is True on exact zeros only, which are padding: "
                         "is it the wrong way round? True = picture")


def _first(rows: Tensor) -> int:
    """The place of the first True."""
    return int(rows.int().argmax())
