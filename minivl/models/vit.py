"""The Vision Transformer of Dosovitskiy et al. 2021 (https://arxiv.org/abs/2010.11929)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..images import Preprocessing
from ..nn.blocks import EncoderBlock
from ..nn.embed import ConvStem, PatchEmbed
from ..nn.record import AttnRecord, Site, filling, want


def check_sizes(config: Any, *names: str) -> None:
    """Raise InputError for one of these fields that is no positive whole number."""
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int) or value < 1:
            raise InputError(f"{name}={value!r}: give a positive whole number")


def check_rates(config: Any) -> None:
    """Raise InputError unless eps is positive and the dropouts are probabilities below 1."""
    for name, low, high in (("eps", 1e-30, 1.0), ("dropout", 0.0, 0.999), ("attn_dropout", 0.0, 0.999)):
        value = getattr(config, name)
        if not isinstance(value, (int, float)) or not low <= value <= high:
            raise InputError(f"{name}={value!r}: give a number from {low:g} to {high:g}")


@dataclass(frozen=True)
class ViTConfig:
    """Everything that fixes a ViT's shapes and arithmetic.

    Attributes:
        image_size: (height, width) in pixels; a whole number of patches.
        patch_size: (height, width) of a patch in pixels.
        width: D.
        depth: number of blocks.
        num_heads: h.
        mlp_dim: inner width of the MLPs.
        num_classes: V; 0 = no head, `forward` gives pooled features.
        in_channels: C.
        class_token: whether a [class] token stands before the patches.
        pool: "class" (the [class] token) or "mean" (over patches, normed after pooling).
        act: name of the activation.
        eps: of the layer norms.
        qkv_bias: whether q, k and v have biases.
        dropout, attn_dropout: in training, see `EncoderBlock`.
        stem: channels of the convolutions of a `ConvStem`; empty = one convolution (`PatchEmbed`).
    """

    image_size: tuple[int, int]
    patch_size: tuple[int, int]
    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    num_classes: int = 1000
    in_channels: int = 3
    class_token: bool = True
    pool: str = "class"
    act: str = "gelu"
    eps: float = 1e-6
    qkv_bias: bool = True
    dropout: float = 0.0
    attn_dropout: float = 0.0
    stem: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_sizes(self, "width", "depth", "num_heads", "mlp_dim", "in_channels")
        check_rates(self)
        if not isinstance(self.num_classes, int) or self.num_classes < 0:
            raise InputError(f"num_classes={self.num_classes!r}: give a whole number, 0 for no head")
        for name in ("image_size", "patch_size"):
            value = getattr(self, name)
            pair = (value, value) if isinstance(value, int) else tuple(value)
            if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
                raise InputError(f"{name}={value!r}: give (height, width) in whole pixels")
            object.__setattr__(self, name, pair)
        if any(side % patch for side, patch in zip(self.image_size, self.patch_size)):
            raise InputError(f"image_size {self.image_size} is not a whole number of patches "
                             f"{self.patch_size}")
        object.__setattr__(self, "stem", tuple(self.stem))
        if not all(isinstance(channels, int) and channels > 0 for channels in self.stem):
            raise InputError(f"stem={self.stem!r}: give the channels of each convolution, positive whole numbers")
        if self.stem and (self.patch_size not in [(2 ** n, 2 ** n) for n in range(1, len(self.stem) + 1)]):
            raise InputError(f"patch_size {self.patch_size}: a stem of {len(self.stem)} convolutions makes square "
                             f"patches of 2 to {2 ** len(self.stem)} pixels, by powers of 2")
        if self.pool not in ("class", "mean"):
            raise InputError(f'pool={self.pool!r}: give "class" or "mean"')
        if self.pool == "class" and not self.class_token:
            raise InputError('pool="class" needs class_token=True')

    @property
    def grid(self) -> tuple[int, int]:
        """(gh, gw)."""
        return self.image_size[0] // self.patch_size[0], self.image_size[1] // self.patch_size[1]

    @property
    def n_prefix(self) -> int:
        """Tokens before the patches."""
        return int(self.class_token)

    @property
    def n_tokens(self) -> int:
        """N = prefix + gh*gw."""
        return self.n_prefix + self.grid[0] * self.grid[1]


class ViT(nn.Module):
    """A Vision Transformer: `forward` gives logits, `encode` gives all tokens.

    Attributes:
        config: `ViTConfig`.
        preprocessing: how photos become its input; None where unknown.
        class_names: names of the V classes; None where unknown.
    """

    def __init__(self, config: ViTConfig, *, preprocessing: Preprocessing | None = None,
                 class_names: tuple[str, ...] | None = None) -> None:
        super().__init__()
        if class_names is not None and len(class_names) != config.num_classes:
            raise InputError(f"{len(class_names)} class_names for {config.num_classes} classes")
        self.config = config
        self.preprocessing = preprocessing
        self.class_names = class_names
        width, norm_after_pool = config.width, config.pool == "mean"
        if config.stem:
            halvings = config.patch_size[0].bit_length() - 1
            self.patch_embed: nn.Module = ConvStem(config.stem, halvings, config.in_channels, width)
        else:
            self.patch_embed = PatchEmbed(config.patch_size, config.in_channels, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if config.class_token else None
        self.pos_embed = nn.Parameter(torch.zeros(1, config.n_tokens, width))
        self.drop = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            EncoderBlock(width, config.num_heads, config.mlp_dim, act=config.act, eps=config.eps,
                         qkv_bias=config.qkv_bias, dropout=config.dropout, attn_dropout=config.attn_dropout)
            for _ in range(config.depth))
        self.norm = nn.Identity() if norm_after_pool else nn.LayerNorm(width, eps=config.eps)
        self.fc_norm = nn.LayerNorm(width, eps=config.eps) if norm_after_pool else nn.Identity()
        self.head = nn.Linear(width, config.num_classes) if config.num_classes else nn.Identity()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Random start: truncated normals (std 0.02) for weights and tables, zeros for biases."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        if self.cls_token is not None:
            nn.init.normal_(self.cls_token, std=1e-6)

    @property
    def attn_sites(self) -> dict[str, tuple[int, int]]:
        """{site: (layers, heads)} that an AttnRecord can ask for."""
        return {"encoder": (self.config.depth, self.config.num_heads)}

    @property
    def call_sites(self) -> Mapping[str, Site]:
        """What one call can record, with its rows."""
        named = {"class": 0} if self.config.class_token else {}
        return {"encoder": Site(self.config.depth, self.config.num_heads, self.config.n_tokens, named)}

    def encode(self, images: Tensor, attn: AttnRecord | None = None) -> Tensor:
        """All tokens after the last norm (timm's `forward_features`).

        Args:
            images: (B, C, H, W) of the configured size.
            attn: record to fill (site "encoder").

        Returns:
            (B, N, D); the prefix comes first, then the patches row by row.

        Raises:
            InputError: images of another size, or a record that asks for what is not there.
        """
        self.check(images)
        with filling(attn, self.call_sites, images.shape[0], images.device):
            return self.tokens(images, attn)

    def forward(self, images: Tensor, attn: AttnRecord | None = None) -> Tensor:
        """(B, C, H, W) -> logits (B, V), or pooled features (B, D) with num_classes=0; see `encode`."""
        self.check(images)
        with filling(attn, self.call_sites, images.shape[0], images.device):
            return self.head(self.pool(self.tokens(images, attn)))

    def tokens(self, images: Tensor, attn: AttnRecord | None) -> Tensor:
        """`encode` for a caller that has checked the images and opened the record."""
        x = self.patch_embed(images)  # (B, gh*gw, D)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)  # (B, N, D)
        x = self.drop(x + self.pos_embed)
        for i, block in enumerate(self.blocks):
            x, weights = block(x, want=want(attn, "encoder", i))
            if attn is not None:
                attn.put("encoder", i, weights)
        return self.norm(x)

    def pool(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, D)."""
        x = x[:, 0] if self.config.pool == "class" else x[:, self.config.n_prefix:].mean(1)
        return self.fc_norm(x)

    def check(self, images: Tensor) -> None:
        """Raise InputError unless images is (B, C, H, W) of the configured size."""
        expected = (self.config.in_channels, *self.config.image_size)
        if not isinstance(images, Tensor):
            raise InputError(f"images is a {type(images).__name__}: give a tensor; minivl.preprocess(photos, model) "
                             "makes one")
        if images.dtype != self.pos_embed.dtype and not torch.is_autocast_enabled(images.device.type):
            raise InputError(f"images are {images.dtype}, the weights {self.pos_embed.dtype}: use model.float(), or "
                             "images.to() the type of the weights")
        if images.ndim != 4 or tuple(images.shape[1:]) != expected:
            raise InputError(f"images of shape {tuple(images.shape)}: this model takes (B, {expected[0]}, "
                             f"{expected[1]}, {expected[2]}); minivl.preprocess(images, model) makes such")

    def header(self) -> dict[str, Any]:
        """What a weight file must say beside the tensors (JSON-able)."""
        return {"preprocessing": self.preprocessing and self.preprocessing.to_dict(),
                "class_names": self.class_names and list(self.class_names)}
