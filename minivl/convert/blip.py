"""BLIP captioners: `BlipForConditionalGeneration` of Hugging Face transformers, a ViT and a BERT that decodes."""

from __future__ import annotations

from collections.abc import Mapping
from re import fullmatch
from typing import Any

from torch import Tensor

from . import hf_text
from . import huggingface as hf
from .described import Described
from .table import Rule, drop, renamed, under

KIND = "captioner"
ADDED = {"[DEC]": 30522, "[ENC]": 30523}  # BLIP's own, behind BERT's word pieces
NEEDED = ("encoder.num_heads", "encoder.act", "encoder.eps", "decoder.num_heads", "decoder.act", "decoder.eps",
          "decoder.bos_id", "decoder.eos_id", "decoder.pad_id", "decoder.tied")
FIXED: dict[str, Any] = {
    "project": False,
    "encoder.num_classes": 0, "encoder.class_token": True, "encoder.pool": "class", "encoder.norm_after_pool": False,
    "encoder.stem": (), "encoder.resize": "hf",
    "decoder.norm": "post", "decoder.positions": "learned", "decoder.scaled": False, "decoder.embed_norm": True,
    "decoder.query_pos": False, "decoder.head": "transform", "decoder.head_bias": True,
}
_TEXT, _HEAD = "text_decoder.bert.", "text_decoder.cls.predictions."
_WORDS, _LAST = f"{_TEXT}embeddings.word_embeddings.weight", f"{_HEAD}decoder.weight"
_POSITIONS = f"{_TEXT}embeddings.position_embeddings.weight"
_BIASES = (f"{_HEAD}bias", f"{_HEAD}decoder.bias")
_VISION_LAYER = r"vision_model\.encoder\.layers\.(\d+)\."
_TEXT_LAYER = r"text_decoder\.bert\.encoder\.layer\.(\d+)\."

_VISION_BLOCK = (
    *renamed({"layer_norm1.{}": "norm1.{}", "layer_norm2.{}": "norm2.{}", "mlp.fc1.{}": "mlp.fc1.{}",
              "mlp.fc2.{}": "mlp.fc2.{}", "self_attn.projection.{}": "attn.out_proj.{}"}),
    Rule("self_attn.qkv.{}", ("attn.q_proj.{}", "attn.k_proj.{}", "attn.v_proj.{}")),
)
_TEXT_BLOCK = renamed({
    **{f"{source}.{theirs}.{{}}": f"{target}.{ours}.{{}}"
       for source, target in (("attention", "attn"), ("crossattention", "cross"))
       for theirs, ours in (("self.query", "q_proj"), ("self.key", "k_proj"), ("self.value", "v_proj"),
                            ("output.dense", "out_proj"))},
    "attention.output.LayerNorm.{}": "norm1.{}", "crossattention.output.LayerNorm.{}": "norm2.{}",
    "intermediate.dense.{}": "mlp.fc1.{}", "output.dense.{}": "mlp.fc2.{}", "output.LayerNorm.{}": "norm3.{}"})
_TABLE = (
    *under((*renamed({
        "embeddings.class_embedding": "cls_token", "embeddings.position_embedding": "pos_embed",
        "embeddings.patch_embedding.{}": "patch_embed.proj.{}", "post_layernorm.{}": "norm.{}"}),
        *under(_VISION_BLOCK, "encoder.layers.{}.")), "vision_model.", "encoder."),
    *under((*renamed({
        "embeddings.position_embeddings.weight": "pos_embed", "embeddings.LayerNorm.{}": "embed_norm.{}"}),
        *under(_TEXT_BLOCK, "encoder.layer.{}.")), _TEXT, "decoder."),
    *under(renamed({"dense.{}": "dense.{}", "LayerNorm.{}": "norm.{}"}), f"{_HEAD}transform.", "decoder.head_in."),
    *(drop(f"{place}embeddings.position_ids", "positions are counted") for place in ("vision_model.", _TEXT)),
)


def recognises(names: set[str]) -> bool:
    """Whether these are the keys of BLIP's captioners."""
    return (any(fullmatch(_VISION_LAYER + r"self_attn\.qkv\.weight", name) for name in names)
            and any(fullmatch(_TEXT_LAYER + r".+", name) for name in names))


def fields(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the tensors tell: never heads, activations, eps and special tokens; of the matrix of words only that it is
    the word table, where it is an equal copy or not there."""
    seen = hf.commonest(state, _VISION_LAYER + r"layer_norm[12]\.(?:weight|bias)")
    width = hf.commonest(state, _TEXT_LAYER + r".*output\.LayerNorm\.(?:weight|bias)")
    vision = {
        "width": seen, "depth": hf.depth(state, _VISION_LAYER + r".+"),
        "mlp_dim": hf.commonest(state, _VISION_LAYER + r"mlp\.fc1\.bias"),
        "qkv_bias": any(fullmatch(_VISION_LAYER + r"self_attn\.qkv\.bias", name) for name in state),
        **hf.patches(state, "vision_model.embeddings.patch_embedding.weight",
                     "vision_model.embeddings.position_embedding", 1)}
    text = {
        "width": width, "memory_width": seen, "depth": hf.depth(state, _TEXT_LAYER + r".+"),
        "mlp_dim": hf.commonest(state, _TEXT_LAYER + r"intermediate\.dense\.bias"),
        "vocab_size": hf_text.rows(state, width, _WORDS, _LAST),
        "max_len": hf_text.rows(state, width, _POSITIONS),
        "tied": hf_text.tied(state, _WORDS, _LAST)}
    return {**hf_text.dotted("encoder", hf.told(vision)), **hf_text.dotted("decoder", hf.told(text))}


def table(state: Mapping[str, Tensor]) -> tuple[Rule, ...]:
    """The names of these tensors in ours, the matrix of words being the word table."""
    return (*_TABLE, *(Rule(name, ("decoder.embed.weight",), tied=True) for name in (_WORDS, _LAST)),
            *(Rule(name, ("decoder.head_bias",), tied=True) for name in _BIASES))


def untied(state: Mapping[str, Tensor]) -> tuple[Rule, ...]:
    """The same where the matrix of words is one of its own."""
    head = renamed({_WORDS: "decoder.embed.weight", _LAST: "decoder.head.weight"})
    if _BIASES[1] not in state:  # they were one tensor when it was saved
        return (*_TABLE, *head, *renamed({_BIASES[0]: "decoder.head.bias"}))
    return (*_TABLE, *head, *renamed({_BIASES[1]: "decoder.head.bias"}),
            drop(_BIASES[0], "the matrix of words has a bias of its own"))


def describe(config: Mapping[str, Any]) -> Described | None:
    """What a config.json of model_type "blip" says; None for any other."""
    vision, text = config.get("vision_config"), config.get("text_config")
    if config.get("model_type") != "blip" or not isinstance(vision, Mapping) or not isinstance(text, Mapping):
        return None
    side, patch = hf.pair(vision.get("image_size", 384)), hf.pair(vision.get("patch_size", 16))
    seen = {
        "width": vision.get("hidden_size", 768), "depth": vision.get("num_hidden_layers", 12),
        "num_heads": vision.get("num_attention_heads", 12), "mlp_dim": vision.get("intermediate_size", 3072),
        "image_size": side, "patch_size": patch, "act": hf.activation(vision),
        "eps": vision.get("layer_norm_eps", 1e-5), "attn_dropout": vision.get("attention_dropout", 0.0)}
    said = {
        "width": text.get("hidden_size", 768), "memory_width": vision.get("hidden_size", 768),
        "depth": text.get("num_hidden_layers", 12),
        "num_heads": text.get("num_attention_heads", 8), "mlp_dim": text.get("intermediate_size", 3072),
        "vocab_size": text.get("vocab_size", 30524), "max_len": text.get("max_position_embeddings", 512),
        "act": hf.activation(text), "eps": text.get("layer_norm_eps", 1e-12),
        "dropout": text.get("hidden_dropout_prob", 0.0), "attn_dropout": text.get("attention_probs_dropout_prob", 0.0),
        # transformers ties the two matrices where either of its configs says so
        "tied": config.get("tie_word_embeddings", True) or text.get("tie_word_embeddings", True),
        "bos_id": hf_text.token("bos_token_id", text, default=30522),
        "eos_id": hf_text.token("sep_token_id", text, default=102),  # its eos_token_id is not used
        "pad_id": hf_text.token("pad_token_id", text, default=0)}
    return Described({**hf_text.dotted("encoder", seen), **hf_text.dotted("decoder", said)})
