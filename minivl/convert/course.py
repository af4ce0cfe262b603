"""The course captioner: a timm ViT, at all of whose tokens a post-norm `torch.nn.TransformerDecoder` looks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from re import fullmatch
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, some
from ..models.presets import ALIASES, PRESETS, Preset
from ..nn.embed import sinusoids
from . import hf_text
from . import huggingface as hf
from . import timm
from .described import Described
from .table import Rule, attention, drop, renamed, under

KIND = "captioner"
NEEDED = (*(f"encoder.{field}" for field in timm.NEEDED), "decoder.num_heads")
FIXED: dict[str, Any] = {
    "project": False, **hf_text.dotted("encoder", timm.FIXED), "encoder.num_classes": 0,
    "decoder.norm": "post", "decoder.positions": "sinusoidal", "decoder.scaled": False, "decoder.embed_norm": False,
    "decoder.query_pos": False, "decoder.head": "linear", "decoder.head_bias": True, "decoder.tied": False,
    "decoder.eps": 1e-5, "decoder.pad_id": 0, "decoder.bos_id": 2, "decoder.eos_id": 3,
}
WAVES = "positional_embedding.pe"
_LAYER = r"decoder\.layers\.(\d+)\."
# of the encoder's preset: what the tensors tell better, or a captioner does not have
UNTOLD = ("image_size", "num_classes", "pool", "norm_after_pool", "resize", "stem", "dropout", "attn_dropout")
_HEADS = ("head", "head_dist", "pre_logits")  # of the encoder


_DECODER = (
    *renamed({"word_embedding.weight": "decoder.embed.weight", "head.{}": "decoder.head.{}"}),
    *under((*attention("self_attn", "attn"), *attention("multihead_attn", "cross"),
           *renamed({"linear1.{}": "mlp.fc1.{}", "linear2.{}": "mlp.fc2.{}",
                     **{f"{norm}.{{}}": f"{norm}.{{}}" for norm in ("norm1", "norm2", "norm3")}})),
           "decoder.layers.{}.", "decoder.blocks.{}."),
)


def recognises(names: set[str]) -> bool:
    """Whether these are the keys of the course captioner."""
    return (any(fullmatch(_LAYER + r"multihead_attn\..+", name) for name in names)
            and timm.recognises({name.removeprefix("encoder.") for name in names}))


def _encoder(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's tensors as timm has them, without heads."""
    inner = {name.removeprefix("encoder."): tensor for name, tensor in state.items() if name.startswith("encoder.")}
    return {name: tensor for name, tensor in inner.items() if name.partition(".")[0] not in _HEADS}


def prepare(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """What timm's family does to the encoder's tensors first."""
    encoder, notes = timm.prepare(_encoder(state))
    return {**state, **hf_text.dotted("encoder", encoder)}, [f"encoder.{note}" for note in notes]


def fields(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the tensors tell: never heads and activations."""
    encoder = hf_text.dotted("encoder", {**timm.fields(_encoder(state)), "num_classes": 0})
    waves = state.get(WAVES)
    width = hf.commonest(state, _LAYER + r"norm[123]\.(?:weight|bias)")
    decoder = {
        "vocab_size": hf_text.rows(state, width, "word_embedding.weight", "head.weight"),
        "width": width, "memory_width": width,  # the encoder's, because nothing lies between
        "depth": hf.depth(state, _LAYER + r".+"), "mlp_dim": hf.commonest(state, _LAYER + r"linear1\.bias"),
        "max_len": waves.shape[1] if waves is not None and waves.ndim == 3 and waves.shape[2] == width else None}
    return {**encoder, **hf_text.dotted("decoder", hf.told(decoder))}


def needed(state: Mapping[str, Tensor]) -> tuple[str, ...]:
    """What must come from elsewhere."""
    return (*(f"encoder.{field}" for field in timm.needed(_encoder(state))), "decoder.num_heads")


def table(state: Mapping[str, Tensor]) -> tuple[Rule, ...]:
    """The names of these tensors in ours."""
    width = fields(state).get("decoder.width")

    def known(waves: Tensor) -> bool:
        if waves.ndim != 3 or waves.shape[0] != 1 or waves.shape[2] != width or not waves.is_floating_point():
            return False
        computed = sinusoids(waves.shape[1], waves.shape[2]).to(waves.dtype)
        return torch.allclose(waves[0].float(), computed.float(), rtol=0, atol=max(1e-5, torch.finfo(waves.dtype).eps))

    return (*(drop(f"encoder.{head}.{rest}", "a head says classes, not words")
              for head in _HEADS for rest in ("{}", "{}.{}")),
            *under(timm.table(_encoder(state)), "encoder.", "encoder."), *_DECODER,
            drop(WAVES, "sines and cosines are computed", known))


def describe(config: Mapping[str, Any]) -> Described | None:
    """What the JSON beside the weights says; None for anything else.

    Raises:
        InputError: its encoder is no preset, nor an old name of one.
    """
    if not {"vocab_size", "encoder", "num_layers", "nhead", "d_model"} <= set(config) or \
            not isinstance(config["encoder"], str):
        return None
    preset = _preset(config["encoder"])
    told = {field: value for field, value in asdict(preset.config).items() if field not in UNTOLD}
    if not told["class_token"]:
        told["pool"] = "mean"  # which no captioner does, but there is no other without a [class] token
    rate = config.get("dropout", 0.0)
    said = {"vocab_size": config["vocab_size"], "width": config["d_model"], "memory_width": config["d_model"],
            "depth": config["num_layers"], "num_heads": config["nhead"], "act": config.get("activation", "gelu"),
            "dropout": rate, "attn_dropout": rate}
    return Described({**hf_text.dotted("encoder", told), **hf_text.dotted("decoder", said)}, preset.preprocessing)


def _preset(name: str) -> Preset:
    """The ViT that timm calls so, with or without a tag, or called so once."""
    for known in (name, ALIASES.get(name, name)):
        for candidate in (known, known.partition(".")[0]):
            preset = PRESETS.get(candidate)
            if preset is not None and "timm" in preset.families:
                return preset
    raise InputError(f"config: encoder={name!r} is none of timm's ViTs known here "
                     f"({some([known for known, preset in PRESETS.items() if 'timm' in preset.families], 9)})")
