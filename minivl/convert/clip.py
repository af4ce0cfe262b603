"""CLIP as OpenAI and open_clip hold it; the text tower's tensors lie at the top, or under ``text.``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from re import fullmatch
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import InputError, some
from ..models.clip_presets import CLIP_PRESETS, PREPROCESSING, TAGS
from . import hf_text
from . import huggingface as hf
from .described import Described
from .open_clip_config import read_config
from .table import Rule, attention, drop, renamed, turned, under

if TYPE_CHECKING:
    from ..images import Preprocessing

KIND = "clip"
NEEDED = tuple(f"{tower}.{field}" for tower in ("vision", "text") for field in ("num_heads", "act", "eps"))
VISION: dict[str, Any] = {
    "class_token": True, "pool": "class", "norm_after_pool": False, "stem": (), "qkv_bias": True, "pre_norm": True,
    "patch_bias": False, "head_bias": False}
FIXED = hf_text.dotted("vision", {**VISION, "resize": "open_clip"})
ENTRIES = ("input_resolution", "context_length", "vocab_size")  # numbers beside the weights in OpenAI's own files
_IMAGE_LAYER = r"visual\.transformer\.resblocks\.(\d+)\."
_TEXT_LAYER = r"(?:text\.)?transformer\.resblocks\.(\d+)\."


def as_token(tensor: Tensor) -> Tensor:
    """(D,) -> (1, 1, D)."""
    return tensor[None, None]


def as_table(tensor: Tensor) -> Tensor:
    """(N, D) -> (1, N, D)."""
    return tensor[None]


_BLOCK = (
    *renamed({"ln_1.{}": "norm1.{}", "ln_2.{}": "norm2.{}", "mlp.c_fc.{}": "mlp.fc1.{}",
              "mlp.c_proj.{}": "mlp.fc2.{}"}),
    *attention("attn", "attn"),
)
_BLOCKS = under(_BLOCK, "transformer.resblocks.{}.")
_VISION = (
    *renamed({"conv1.weight": "patch_embed.proj.weight", "ln_pre.{}": "norm_pre.{}", "ln_post.{}": "norm.{}"}),
    Rule("class_embedding", ("cls_token",), as_token), Rule("positional_embedding", ("pos_embed",), as_table),
    Rule("proj", ("head.weight",), turned), *_BLOCKS)
_TEXT = (
    *renamed({"token_embedding.weight": "embed.weight", "positional_embedding": "pos_embed", "ln_final.{}": "norm.{}"}),
    Rule("text_projection", ("head.weight",), turned), *_BLOCKS)


def recognises(names: set[str]) -> bool:
    """Whether these are the keys of a CLIP as OpenAI and open_clip hold it, of whatever image tower."""
    return any(fullmatch(_TEXT_LAYER + r"ln_[12]\..+", name) for name in names) and _any(names, "visual.")


def _any(names: Mapping[str, Tensor] | set[str], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in names)


def is_openai(state: Mapping[str, Tensor]) -> bool:
    """Whether these are OpenAI's own, in which the numbers of `ENTRIES` lie beside the weights."""
    return any(name in state for name in ENTRIES)


def preset_name(name: str, state: Mapping[str, Tensor]) -> str:
    """The preset that a file name of open_clip's or OpenAI's means, or the name itself.

    OpenAI's own ViT-B-32.pt is what open_clip calls ViT-B-32-quickgelu; for others see `TAGS`.
    """
    plain = _plain(name)
    if is_openai(state):
        plain = re.sub(r"^(vit-[bl]-\d\d(?:-336)?)(?!\d).*", r"\1-openai", plain)
    known = {**{_plain(preset): preset for preset in CLIP_PRESETS}, **TAGS}
    meant = max((begin for begin in known if plain.startswith(begin)), key=len, default=None)
    return name if meant is None else known[meant]


def _plain(name: str) -> str:
    return re.sub(r"[^0-9a-z]+", "-", name.lower())


def preprocessing(state: Mapping[str, Tensor]) -> Preprocessing | None:
    """That of all of OpenAI's models; None for others."""
    return PREPROCESSING if is_openai(state) else None


# -- what the tensors tell -----------------------------------------------------------------------------------

def prepare(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """OpenAI's files hold matrices in half precision, and norms and tables in single: all become single."""
    halves = [name for name, tensor in state.items() if tensor.dtype == torch.float16]
    mixed = halves and any(tensor.dtype == torch.float32 for tensor in state.values())
    if not mixed or not is_openai(state):
        return dict(state), []
    return ({name: tensor.float() if tensor.dtype == torch.float16 else tensor for name, tensor in state.items()},
            [f"{len(halves)} tensors of half precision beside others of single: all are float32 now"])


def fields(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the tensors tell: heads, activations and eps only where they are OpenAI's own.

    Raises:
        InputError: the image tower is no ViT.
    """
    if not _any(state, "visual.transformer.") and (other := [name for name in state if fullmatch(
            r"visual\.(?:layer\d|attnpool|trunk|stem)\..+", name)]):
        raise InputError(f"its image tower is no ViT of open_clip's own (it has {some(other, 2)}): only those convert")
    text = _prefix(state)
    width = hf.commonest(state, _IMAGE_LAYER + r"ln_[12]\.(?:weight|bias)")
    text_width = hf.commonest(state, _TEXT_LAYER + r"ln_[12]\.(?:weight|bias)")
    features = _columns(state, "visual.proj", width) or _columns(state, f"{text}text_projection", text_width)
    seen = {"width": width, "depth": hf.depth(state, _IMAGE_LAYER + r".+"), "num_classes": features,
            "mlp_dim": hf.commonest(state, _IMAGE_LAYER + r"mlp\.c_fc\.bias"),
            **hf.patches(state, "visual.conv1.weight", "visual.positional_embedding", 1)}
    said = {"width": text_width, "depth": hf.depth(state, _TEXT_LAYER + r".+"), "embed_dim": features,
            "mlp_dim": hf.commonest(state, _TEXT_LAYER + r"mlp\.c_fc\.bias"),
            "vocab_size": hf_text.rows(state, text_width, f"{text}token_embedding.weight"),
            "max_len": hf_text.rows(state, text_width, f"{text}positional_embedding")}
    if is_openai(state):
        _openai(state, seen, said)
    return {**hf_text.dotted("vision", hf.told(seen)), **hf_text.dotted("text", hf.told(said))}


def _openai(state: Mapping[str, Tensor], seen: dict[str, Any], said: dict[str, Any]) -> None:
    """Add what is true of all of OpenAI's models: heads are 64 wide, the last two words begin and end a text."""
    side, length, words = (int(state[name]) if name in state and state[name].numel() == 1 else None
                           for name in ENTRIES)
    seen.setdefault("image_size", side and (side, side))
    said["max_len"], said["vocab_size"] = said["max_len"] or length, said["vocab_size"] or words
    for tower in (seen, said):
        tower.update(act="quick_gelu", eps=1e-5, num_heads=tower["width"] and max(tower["width"] // 64, 1))
    if words := said["vocab_size"]:
        said.update(eot_id=words - 1, bos_id=words - 2)


def _prefix(state: Mapping[str, Tensor]) -> str:
    """What stands before the names of the text tower."""
    return "text." if _any(state, "text.") else ""


def _columns(state: Mapping[str, Tensor], name: str, rows: int | None) -> int | None:
    """Columns of a matrix that has so many rows: one of an odd shape tells nothing."""
    matrix = state.get(name)
    return matrix.shape[1] if matrix is not None and matrix.ndim == 2 and matrix.shape[0] == rows else None


def table(state: Mapping[str, Tensor]) -> tuple[Rule, ...]:
    """The names of these tensors in ours."""
    prefix = _prefix(state)
    rules = (*under(_VISION, "visual.", "visual."), *under(_TEXT, prefix, "text."),
             Rule("logit_scale", ("logit_scale",), lambda scale: scale.reshape(())))
    if (mask := f"{prefix}attn_mask") in state:  # of a TorchScript archive
        rules += (drop(mask, "who sees whom in a text is computed", _causal),)
    if is_openai(state):
        shapes = fields(state)
        size = shapes.get("vision.image_size", (None,))[0]
        for name, number in zip(ENTRIES, (size, shapes.get("text.max_len"), shapes.get("text.vocab_size"))):
            rules += (drop(name, f"the shapes say it: {number}", _is(number)),)
    return rules


def _is(number: int | None) -> Any:
    return lambda tensor: tensor.ndim == 0 and tensor.item() == number


def _causal(mask: Tensor) -> bool:
    """Whether everything on and below the diagonal is seen and nothing above."""
    seen = torch.full_like(mask, float("-inf")).triu(1) if mask.is_floating_point() and mask.ndim == 2 else None
    return seen is not None and torch.equal(seen, mask)


def describe(config: Mapping[str, Any]) -> Described | None:
    """What an open_clip_config.json, or one of open_clip's model configs, says; None for anything else."""
    return read_config(config)
