"""CLIP: an image tower and a text tower with one space of features (Radford et al. 2021,
https://arxiv.org/abs/2103.00020)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from ..images import Preprocessing
from ..nn.blocks import EncoderBlock
from ..nn.record import AttnRecord, Site, filling, want
from ..text.tokenizer import Tokenizer
from .vit import ViT, ViTConfig, check_rates, check_sizes, reset_linears


@dataclass(frozen=True)
class TextConfig:
    """Everything that fixes a text tower's shapes and arithmetic.

    Attributes:
        vocab_size: V.
        width: D.
        depth: number of blocks.
        num_heads: h.
        mlp_dim: inner width of the MLPs.
        embed_dim: width of the features, the same for images and texts.
        max_len: most text positions, begin and end of text included.
        act: name of the activation; OpenAI's own weights need "quick_gelu", many trained later "gelu".
        eps, dropout, attn_dropout: as in `EncoderBlock`.
        bos_id, eot_id: begin and end of text. Features are those of the first end of a row.
        pad_id: what `CLIP.tokenize` fills rows up with; nothing looks at it, whatever stands there.
    """

    vocab_size: int
    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    embed_dim: int
    max_len: int = 77
    act: str = "quick_gelu"
    eps: float = 1e-5
    dropout: float = 0.0
    attn_dropout: float = 0.0
    bos_id: int = 49406
    eot_id: int = 49407
    pad_id: int = 0

    def __post_init__(self) -> None:
        check_sizes(self, "vocab_size", "width", "depth", "num_heads", "mlp_dim", "embed_dim", "max_len")
        check_rates(self)
        for name in ("bos_id", "eot_id", "pad_id"):
            value = getattr(self, name)
            if not isinstance(value, int) or not 0 <= value < self.vocab_size:
                raise InputError(f"{name}={value!r} is outside the vocabulary of {self.vocab_size}")
        if self.bos_id == self.eot_id:
            raise InputError(f"bos_id and eot_id are both {self.eot_id}: every text would end where it begins")


@dataclass(frozen=True)
class CLIPConfig:
    """Image and text tower of a CLIP.

    Attributes:
        vision: a ViT whose head is the projection: num_classes is the width of the features. CLIP's own have
            pre_norm=True, patch_bias=False and head_bias=False.
        text: the text tower.
    """

    vision: ViTConfig
    text: TextConfig

    def __post_init__(self) -> None:
        if self.vision.num_classes != self.text.embed_dim:
            raise InputError(f"vision.num_classes={self.vision.num_classes} and text.embed_dim={self.text.embed_dim}: "
                             "images and texts need features of one width")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CLIPConfig:
        """The inverse of `dataclasses.asdict`; raises TypeError for an unknown field, KeyError for a missing one."""
        rest = {name: value for name, value in values.items() if name not in ("vision", "text")}
        return cls(ViTConfig(**values["vision"]), TextConfig(**values["text"]), **rest)


class TextTransformer(nn.Module):
    """CLIP's text tower: causal pre-norm blocks; `forward` gives the projected features of each text.

    Attributes:
        config: `TextConfig`.
    """

    site = "text"

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.width)
        self.pos_embed = nn.Parameter(torch.zeros(config.max_len, config.width))
        self.drop = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            EncoderBlock(config.width, config.num_heads, config.mlp_dim, act=config.act, eps=config.eps,
                         dropout=config.dropout, attn_dropout=config.attn_dropout)
            for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=config.eps)
        self.head = nn.Linear(config.width, config.embed_dim, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Random start: truncated normals (std 0.02) for weights and tables, zeros for biases."""
        reset_linears(self)
        nn.init.trunc_normal_(self.embed.weight, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, ids: Tensor, attn: AttnRecord | None = None) -> Tensor:
        """Features of texts.

        Args:
            ids: (B, T) token ids, T <= max_len, each row with an end of text.
            attn: record to fill, site "text"; its row "eot" is the end of each text.

        Returns:
            (B, embed_dim), projected, not normalised.

        Raises:
            InputError: ids of another type, too long, outside the vocabulary or without an end; or an impossible
                record.
        """
        ends = self.ends(ids)
        with filling(attn, self.sites(ids, ends), ids.shape[0], ids.device):
            return self.features(self.tokens(ids, attn), ends)

    def ends(self, ids: Tensor) -> Tensor:
        """Check ids (B, T) and find the first end of text of each row: (B,) positions.

        Raises:
            InputError: as `forward`. In a compiled graph, which cannot branch on values, a row without an end and
                an id outside the vocabulary are a RuntimeError.
        """
        config = self.config
        if not isinstance(ids, Tensor) or ids.dtype not in (torch.int32, torch.int64):
            what = ids.dtype if isinstance(ids, Tensor) else f"a {type(ids).__name__}"
            raise InputError(f"ids are {what}: give an integer tensor (B, T); clip.tokenize(texts) makes one")
        if ids.ndim != 2 or ids.shape[1] < 1:
            raise InputError(f"ids of shape {tuple(ids.shape)}: give (B, T) with at least one column")
        if ids.shape[1] > config.max_len:
            raise InputError(f"{ids.shape[1]} text positions: this model has {config.max_len} (max_len)")
        is_end = ids == config.eot_id  # (B, T)
        outside, endless = (ids < 0) | (ids >= config.vocab_size), ~is_end.any(1)
        wrong = outside.any() | endless.any()
        if torch.compiler.is_compiling():
            torch._assert_async(~wrong, "a text without an end, or an id outside the vocabulary")
        elif wrong:
            if outside.any():
                raise InputError(f"ids from {int(ids.min())} to {int(ids.max())}: the vocabulary has "
                                 f"{config.vocab_size} entries")
            raise InputError(f"text {int(endless.int().argmax())} has no end-of-text token (id {config.eot_id}): a "
                             "long text must be cut before it; clip.tokenize(texts) does")
        return is_end.int().argmax(1)  # of equal values the first

    def sites(self, ids: Tensor, ends: Tensor) -> Mapping[str, Site]:
        """What a call with these ids can record, with its rows."""
        config = self.config
        return {self.site: Site(config.depth, config.num_heads, ids.shape[1], {"eot": ends}, batch=ids.shape[0])}

    def tokens(self, ids: Tensor, attn: AttnRecord | None = None) -> Tensor:
        """(B, T) -> (B, T, D) after the last norm, for a caller that has checked ids and opened the record."""
        x = self.drop(self.embed(ids) + self.pos_embed[: ids.shape[1]])  # (B, T, D)
        for i, block in enumerate(self.blocks):
            x, weights = block(x, causal=True, want=want(attn, self.site, i))
            if attn is not None:
                attn.put(self.site, i, weights)
        return self.norm(x)

    def features(self, x: Tensor, ends: Tensor) -> Tensor:
        """All tokens (B, T, D) and the end of each text (B,) -> (B, embed_dim)."""
        return self.head(x[torch.arange(x.shape[0], device=x.device), ends])


class CLIP(nn.Module):
    """How well images and texts go together.

    Attributes:
        visual: the image tower, a `ViT` whose head is the projection. It holds config and preprocessing, so that
            ``clip.visual.resize(...)`` changes both.
        text: the text tower.
        logit_scale: () logarithm of the factor on the cosines. FSDP2 shards no scalar: name it in ignored_params.
        tokenizer: text -> ids; None where unknown.
        notes: what training wrote down (its name, data, scores); travels in the weight file.
    """

    kind = "clip"

    def __init__(self, config: CLIPConfig, *, tokenizer: Tokenizer | None = None,
                 preprocessing: Preprocessing | None = None, notes: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        text = config.text
        if tokenizer is not None and tokenizer.vocab_size != text.vocab_size:
            raise InputError(f"the tokenizer has {tokenizer.vocab_size} entries, the text tower {text.vocab_size}")
        for role, ours in (("bos_id", "bos_id"), ("eos_id", "eot_id")):
            if tokenizer is not None and getattr(tokenizer, role) != getattr(text, ours):
                raise InputError(f"{role} is {getattr(tokenizer, role)} in the tokenizer, and {ours} "
                                 f"{getattr(text, ours)} in the text tower")
        self.tokenizer = tokenizer
        self.notes = dict(notes or {})
        self.visual = ViT(config.vision, preprocessing=preprocessing, site="image")
        self.text = TextTransformer(text)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))  # the paper's start, section 2.5

    @property
    def config(self) -> CLIPConfig:
        """The configs of both towers as they are now."""
        return CLIPConfig(self.visual.config, self.text.config)

    @property
    def preprocessing(self) -> Preprocessing | None:
        """How photos become its input; None where unknown."""
        return self.visual.preprocessing

    @preprocessing.setter
    def preprocessing(self, value: Preprocessing | None) -> None:
        self.visual.preprocessing = value

    @property
    def attn_sites(self) -> dict[str, tuple[int, int]]:
        """{site: (layers, heads)} that an AttnRecord can ask for."""
        return {**self.visual.attn_sites, self.text.site: (self.text.config.depth, self.text.config.num_heads)}

    @property
    def cell(self) -> tuple[int, int]:
        """(height, width) in pixels of a cell of the image tower's grid."""
        return self.visual.cell

    def encode_image(self, images: Tensor, attn: AttnRecord | None = None) -> Tensor:
        """(B, C, H, W) -> features (B, D), projected, not normalised; see `ViT.forward`. Site: "image"."""
        return self.visual(images, attn=attn)

    def encode_text(self, ids: Tensor, attn: AttnRecord | None = None) -> Tensor:
        """(B, T) -> features (B, D), projected, not normalised; see `TextTransformer.forward`. Site: "text"."""
        return self.text(ids, attn=attn)

    def forward(self, images: Tensor, ids: Tensor, attn: AttnRecord | None = None) -> Tensor:
        """Scaled cosines of every image with every text (figure 3 of the paper).

        Args:
            images: (B, C, H, W) of the configured size.
            ids: (B', T) token ids, each row with an end of text; B' need not be B.
            attn: record to fill: "image" (B rows; its row "class") and "text" (B' rows; its row "eot").

        Returns:
            (B, B') logits; softmax over texts for images, over images for texts.

        Raises:
            InputError: images of another size, wrong ids, or an impossible record.
        """
        self.visual.check(images)
        ends = self.text.ends(ids)
        sites = {name: site._replace(batch=images.shape[0]) for name, site in self.visual.sites(images).items()}
        with filling(attn, {**sites, **self.text.sites(ids, ends)}, images.shape[0], images.device):
            image = F.normalize(self.visual.logits(self.visual.tokens(images, attn)), dim=-1)  # (B, D)
            text = F.normalize(self.text.features(self.text.tokens(ids, attn), ends), dim=-1)  # (B', D)
            return self.logit_scale.exp() * (image @ text.T)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Texts to ids (B, max_len) on the device of the model: begin, pieces, end, padding.

        A text of more pieces than there is room for is cut; its end stays.

        Raises:
            InputError: no tokenizer, one string instead of a list, or a text that is no string.
        """
        if self.tokenizer is None:
            raise InputError("this CLIP has no tokenizer: set clip.tokenizer = minivl.text.Tokenizer.from_file(FILE), "
                             "convert its weights with --tokenizer, or give ids")
        config = self.text.config
        return self.tokenizer.padded(texts, config.max_len, pad_id=config.pad_id).to(self.logit_scale.device)

    def header(self) -> dict[str, Any]:
        """What a weight file must say beside the tensors (JSON-able)."""
        return {"preprocessing": self.preprocessing and self.preprocessing.to_dict(),
                "tokenizer": self.tokenizer and self.tokenizer.to_json(), "notes": self.notes or None}

    @classmethod
    def from_header(cls, header: Mapping[str, Any]) -> CLIP:
        """A CLIP of a weight file's header, its tensors still to be filled."""
        config, tokenizer = CLIPConfig.from_dict(header["config"]), None
        if header["tokenizer"] is not None:
            # no PAD: what CLIP pads with (id 0 is "!") is a word elsewhere in a text
            roles = {"BOS": config.text.bos_id, "EOS": config.text.eot_id}
            tokenizer = Tokenizer.from_json(header["tokenizer"], roles=roles)
        return cls(config, tokenizer=tokenizer, preprocessing=Preprocessing.or_none(header["preprocessing"]),
                   notes=header.get("notes"))
