"""The Vision Transformer of Dosovitskiy et al. 2021 (https://arxiv.org/abs/2010.11929)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..errors import InputError, some
from ..images import Preprocessing
from ..nn.blocks import EncoderBlock
from ..nn.embed import ConvStem, PatchEmbed
from ..nn.positions import RULES, resize_positions
from ..nn.record import AttnRecord, Site, filling, want

POOLS = ("class", "mean", "class+mean")


def check_sizes(config: Any, *names: str) -> None:
    """Raise InputError for one of these fields that is no positive whole number."""
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int) or value < 1:
            raise InputError(f"{name}={value!r}: give a positive whole number")


def check_rates(config: Any) -> None:
    """Raise InputError unless eps is positive and the dropouts are probabilities below 1."""
    for name, low, high in (("eps", 1e-30, 1.0), ("dropout", 0.0, 0.999), ("attn_dropout", 0.0, 0.999),
                            ("drop_path", 0.0, 0.999)):
        value = getattr(config, name, low)
        if not isinstance(value, (int, float)) or not low <= value <= high:
            raise InputError(f"{name}={value!r}: give a number from {low:g} to {high:g}")


def _fitting(image_size: tuple[int, int], patch_size: tuple[int, int]) -> str:
    """The nearest sizes that are whole numbers of patches, in words: "96 or 112", sides that differ in brackets."""
    below = tuple(side // patch * patch for side, patch in zip(image_size, patch_size))
    above = tuple(-(-side // patch) * patch for side, patch in zip(image_size, patch_size))
    return " or ".join(str(one[0] if one[0] == one[1] else one) for one in (below, above) if min(one) > 0)


def reset_linears(model: nn.Module) -> None:
    """Random start of every linear layer: truncated normals (std 0.02) for weights, zeros for biases."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


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
        pool: what the head sees: "class" (the [class] token), "mean" (of the patches) or "class+mean" (both, side
            by side: DINOv2's linear classifiers). With a distillation token (Touvron et al. 2021) two heads see
            one token each, and the logits are their mean.
        act: name of the activation.
        eps: of the layer norms.
        qkv_bias: whether q, k and v have biases.
        dropout, attn_dropout: in training, see `EncoderBlock`.
        stem: channels of the convolutions of a `ConvStem`; empty = one convolution (`PatchEmbed`).
        dist_token: whether a distillation token follows the [class] token (DeiT).
        registers: tokens without a position behind them (Darcet et al. 2024, https://arxiv.org/abs/2309.16588).
        pos_prefix: whether the position table has rows for these tokens too, or for patches only.
        pre_norm: whether a layer norm stands before the blocks (CLIP).
        patch_bias, head_bias: whether patch embedding and head have biases.
        layer_scale, mlp: as in `EncoderBlock`.
        norm_after_pool: the last norm acts on the pooled features instead of on all tokens; None: with
            pool="mean".
        drop_path: of the last block, in training; it rises evenly from 0 in the first (see `DropPath`).
        resize: rule by which `ViT.resize` changes the position table, see `minivl.nn.positions`.
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
    dist_token: bool = False
    registers: int = 0
    pos_prefix: bool = True
    pre_norm: bool = False
    patch_bias: bool = True
    head_bias: bool = True
    layer_scale: bool = False
    mlp: str = "mlp"
    norm_after_pool: bool | None = None
    resize: str = "timm"
    drop_path: float = 0.0

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
                             f"{self.patch_size}: {_fitting(self.image_size, self.patch_size)} would be")
        object.__setattr__(self, "stem", tuple(self.stem))
        if not all(isinstance(channels, int) and channels > 0 for channels in self.stem):
            raise InputError(f"stem={self.stem!r}: give the channels of each convolution, positive whole numbers")
        if self.stem and not self.patch_bias:
            raise InputError("patch_bias=False: a stem of convolutions has a bias")
        if self.stem and (self.patch_size not in [(2 ** n, 2 ** n) for n in range(1, len(self.stem) + 1)]):
            raise InputError(f"patch_size {self.patch_size}: a stem of {len(self.stem)} convolutions makes square "
                             f"patches of 2 to {2 ** len(self.stem)} pixels, by powers of 2")
        if not isinstance(self.registers, int) or self.registers < 0:
            raise InputError(f"registers={self.registers!r}: give a whole number, 0 for none")
        for name, words in (("pool", POOLS), ("mlp", ("mlp", "swiglu")), ("resize", tuple(RULES))):
            if getattr(self, name) not in words:
                raise InputError(f"{name}={getattr(self, name)!r}: give one of {some(map(repr, words), 9)}")
        if not self.class_token and (self.pool != "mean" or self.dist_token):
            raise InputError(f"pool={self.pool!r}, dist_token={self.dist_token}: without class_token only "
                             "pool=\"mean\" is possible, and no distillation token")
        if self.dist_token and self.pool != "class":
            raise InputError('dist_token=True needs pool="class": its two heads see one token each')
        if self.norm_after_pool is None:
            object.__setattr__(self, "norm_after_pool", self.pool == "mean")
        if self.norm_after_pool and self.pool != "mean":
            raise InputError('norm_after_pool=True needs pool="mean"')

    @property
    def grid(self) -> tuple[int, int]:
        """(gh, gw)."""
        return self.image_size[0] // self.patch_size[0], self.image_size[1] // self.patch_size[1]

    @property
    def n_prefix(self) -> int:
        """Tokens before the patches: [class], distillation, registers, in this order."""
        return int(self.class_token) + int(self.dist_token) + self.registers

    @property
    def n_tokens(self) -> int:
        """N = prefix + gh*gw."""
        return self.n_prefix + self.grid[0] * self.grid[1]

    @property
    def n_positions(self) -> int:
        """Rows of the position table."""
        return self.n_tokens if self.pos_prefix else self.n_tokens - self.n_prefix


class ViT(nn.Module):
    """A Vision Transformer: `forward` gives logits, `encode` gives all tokens.

    Attributes:
        config: `ViTConfig`.
        preprocessing: how photos become its input; None where unknown.
        class_names: names of the V classes; None where unknown.
        checkpointing: in training, blocks keep only their input and compute again what the gradient needs (Chen et al.
            2016): less memory, a third more time.
    """

    kind = "vit"

    def __init__(self, config: ViTConfig, *, preprocessing: Preprocessing | None = None,
                 class_names: tuple[str, ...] | None = None, site: str = "encoder") -> None:
        super().__init__()
        if class_names is not None and len(class_names) != config.num_classes:
            raise InputError(f"{len(class_names)} class_names for {config.num_classes} classes")
        self.config = config
        self.preprocessing = preprocessing
        self.class_names = class_names
        self.site = site
        self.checkpointing = False
        width, eps = config.width, config.eps
        if config.stem:
            halvings = config.patch_size[0].bit_length() - 1
            self.patch_embed: nn.Module = ConvStem(config.stem, halvings, config.in_channels, width)
        else:
            self.patch_embed = PatchEmbed(config.patch_size, config.in_channels, width, config.patch_bias)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if config.class_token else None
        self.dist_token = nn.Parameter(torch.zeros(1, 1, width)) if config.dist_token else None
        self.reg_token = nn.Parameter(torch.zeros(1, config.registers, width)) if config.registers else None
        self.pos_embed = nn.Parameter(torch.zeros(1, config.n_positions, width))
        self.drop = nn.Dropout(config.dropout)
        self.norm_pre = nn.LayerNorm(width, eps=eps) if config.pre_norm else nn.Identity()
        self.blocks = nn.ModuleList(
            EncoderBlock(width, config.num_heads, config.mlp_dim, act=config.act, eps=eps, qkv_bias=config.qkv_bias,
                         layer_scale=config.layer_scale, mlp=config.mlp, dropout=config.dropout,
                         attn_dropout=config.attn_dropout, drop_path=config.drop_path * i / max(config.depth - 1, 1))
            for i in range(config.depth))
        self.norm = nn.Identity() if config.norm_after_pool else nn.LayerNorm(width, eps=eps)
        self.fc_norm = nn.LayerNorm(width, eps=eps) if config.norm_after_pool else nn.Identity()
        self.head = self.new_head()
        self.head_dist = self.new_head() if config.dist_token else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Random start: truncated normals (std 0.02) for weights and tables, zeros for biases."""
        reset_linears(self)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for token in (self.cls_token, self.dist_token, self.reg_token):
            if token is not None:
                nn.init.normal_(token, std=1e-6)

    def new_head(self) -> nn.Module:
        """A random head of the configured size, on the device and in the type of the model."""
        config = self.config
        if not config.num_classes:
            return nn.Identity()
        width = 2 * config.width if config.pool == "class+mean" else config.width
        like = {"device": self.pos_embed.device, "dtype": self.pos_embed.dtype}
        head = nn.Linear(width, config.num_classes, bias=config.head_bias, **like)
        reset_linears(head)
        return head

    def replace_head(self, num_classes: int) -> None:
        """A new random head of so many classes (0 = none); class names are forgotten.

        Raises:
            InputError: num_classes is no whole number, or negative.
        """
        self.config = replace(self.config, num_classes=num_classes)
        self.class_names = None
        self.head = self.new_head()
        self.head_dist = self.new_head() if self.config.dist_token else None

    @torch.no_grad()
    def resize(self, image_size: int | tuple[int, int]) -> None:
        """Take images of another size from now on: the position table is resized by `config.resize`.

        Args:
            image_size: (height, width) in pixels, or one side for both.

        Raises:
            InputError: it is not a whole number of patches.
        """
        sides = (image_size, image_size) if isinstance(image_size, int) else image_size
        config = replace(self.config, image_size=sides)
        n_prefix = config.n_prefix if config.pos_prefix else 0
        table = resize_positions(self.pos_embed.detach(), self.config.grid, config.grid, n_prefix=n_prefix,
                                 rule=config.resize)
        self.config, self.pos_embed = config, nn.Parameter(table, requires_grad=self.pos_embed.requires_grad)
        if self.preprocessing is not None:
            self.preprocessing = self.preprocessing.resized(config.image_size)

    @property
    def attn_sites(self) -> dict[str, tuple[int, int]]:
        """{site: (layers, heads)} that an AttnRecord can ask for."""
        return {self.site: (self.config.depth, self.config.num_heads)}

    @property
    def cell(self) -> tuple[int, int]:
        """(height, width) in pixels of a cell of the grid."""
        return self.config.patch_size

    def sites(self, images: Tensor) -> Mapping[str, Site]:
        """What a call with these images can record, with its rows."""
        named = {"class": 0} if self.config.class_token else {}
        if self.config.dist_token:
            named["dist"] = 1
        return {self.site: Site(self.config.depth, self.config.num_heads, self.config.n_tokens, named)}

    def encode(self, images: Tensor, attn: AttnRecord | None = None) -> Tensor:
        """All tokens after the last norm (timm's `forward_features`).

        Args:
            images: (B, C, H, W) of the configured size.
            attn: record to fill (the one site of this model: "encoder", inside a CLIP "image").

        Returns:
            (B, N, D); the prefix comes first, then the patches row by row.

        Raises:
            InputError: images of another size, or a record that asks for what is not there.
        """
        self.check(images)
        with filling(attn, self.sites(images), images.shape[0], images.device):
            return self.tokens(images, attn)

    def forward(self, images: Tensor, attn: AttnRecord | None = None) -> Tensor:
        """(B, C, H, W) -> logits (B, V), or pooled features (B, D) with num_classes=0; see `encode`."""
        self.check(images)
        with filling(attn, self.sites(images), images.shape[0], images.device):
            return self.logits(self.tokens(images, attn))

    def tokens(self, images: Tensor, attn: AttnRecord | None) -> Tensor:
        """`encode` for a caller that has checked the images and opened the record."""
        x = self.patch_embed(images)  # (B, gh*gw, D)
        if not self.config.pos_prefix:
            x = x + self.pos_embed
        prefix = [token.expand(x.shape[0], -1, -1) for token in (self.cls_token, self.dist_token, self.reg_token)
                  if token is not None]
        x = torch.cat([*prefix, x], dim=1)  # (B, N, D)
        if self.config.pos_prefix:
            x = x + self.pos_embed
        x = self.norm_pre(self.drop(x))
        for i, block in enumerate(self.blocks):
            if self.checkpointing and self.training and torch.is_grad_enabled():
                x, weights = checkpoint(block, x, want=want(attn, self.site, i), use_reentrant=False)
            else:
                x, weights = block(x, want=want(attn, self.site, i))
            if attn is not None:
                attn.put(self.site, i, weights)
        return self.norm(x)

    def pool(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, D), or (B, 2*D) with pool="class+mean"."""
        if self.config.pool == "class":
            return x[:, 0]
        mean = self.fc_norm(x[:, self.config.n_prefix:].mean(1))
        return mean if self.config.pool == "mean" else torch.cat([x[:, 0], mean], dim=1)

    def logits(self, x: Tensor) -> Tensor:
        """All tokens (B, N, D) -> logits (B, V); pooled features without a head."""
        logits = self.head(self.pool(x))
        return logits if self.head_dist is None else (logits + self.head_dist(x[:, 1])) / 2

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

    @classmethod
    def from_header(cls, header: Mapping[str, Any]) -> ViT:
        """A model of a weight file's header, its tensors still to be filled."""
        names = header["class_names"]
        return cls(ViTConfig(**header["config"]), preprocessing=Preprocessing.or_none(header["preprocessing"]),
                   class_names=None if names is None else tuple(names))
