"""ViT-GPT2 captioners: `VisionEncoderDecoderModel` of Hugging Face transformers with a ViT and a GPT-2."""

from __future__ import annotations

from collections.abc import Mapping
from re import fullmatch
from typing import Any

from torch import Tensor

from ..errors import InputError
from . import hf_text, hf_vit
from . import huggingface as hf
from .described import Described
from .table import Rule, drop, renamed, turned, under

KIND = "captioner"
NEEDED = (*(f"encoder.{field}" for field in hf_vit.NEEDED), "decoder.num_heads", "decoder.act", "decoder.eps",
          "decoder.bos_id", "decoder.eos_id", "decoder.pad_id", "decoder.tied")
FIXED: dict[str, Any] = {
    **hf_text.dotted("encoder", hf_vit.FIXED), "encoder.num_classes": 0,
    "decoder.norm": "pre", "decoder.positions": "learned", "decoder.scaled": False, "decoder.embed_norm": False,
    "decoder.query_pos": False, "decoder.head": "linear", "decoder.head_bias": False,
}
_WORDS, _HEAD = "decoder.transformer.wte.weight", "decoder.lm_head.weight"
_LAYER = r"decoder\.transformer\.h\.(\d+)\."


def _linear(source: str, *targets: str) -> tuple[Rule, Rule]:
    """Weight and bias of one of its layers, which may be several of ours in one."""
    return (Rule(f"{source}.weight", tuple(f"{target}.weight" for target in targets), turned),
            Rule(f"{source}.bias", tuple(f"{target}.bias" for target in targets)))


_BLOCK = (
    *renamed({"ln_1.{}": "norm1.{}", "ln_cross_attn.{}": "norm2.{}", "ln_2.{}": "norm3.{}"}),
    *_linear("attn.c_attn", "attn.q_proj", "attn.k_proj", "attn.v_proj"),
    *_linear("attn.c_proj", "attn.out_proj"),
    *_linear("crossattention.q_attn", "cross.q_proj"),
    *_linear("crossattention.c_attn", "cross.k_proj", "cross.v_proj"),
    *_linear("crossattention.c_proj", "cross.out_proj"),
    *_linear("mlp.c_fc", "mlp.fc1"),
    *_linear("mlp.c_proj", "mlp.fc2"),
    *(drop(f"{attention}.{buffer}", "the causal mask is no weight")
      for attention in ("attn", "crossattention") for buffer in ("bias", "masked_bias")),
)
_TEXT = (
    *renamed({"decoder.transformer.wpe.weight": "decoder.pos_embed", "decoder.transformer.ln_f.{}": "decoder.norm.{}",
              "enc_to_dec_proj.{}": "proj.{}"}),
    *under(_BLOCK, "decoder.transformer.h.{}.", "decoder.blocks.{}."),
)


def recognises(names: set[str]) -> bool:
    """Whether these are the keys of a ViT and a GPT-2 with cross-attention."""
    return (any(fullmatch(_LAYER + r"crossattention\..+", name) for name in names)
            and hf_vit.recognises(set(_encoder(names))))


def _encoder(names: Any) -> dict[str, str]:
    """The names of the encoder as a ViT of its own has them, and as they are here."""
    return {name.removeprefix("encoder."): name for name in names if name.startswith("encoder.")}


def fields(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the tensors tell: never heads, activations, eps and special tokens; of the matrix of words only that it is
    the word table, where it is an equal copy or not there."""
    encoder = hf_vit.fields({inner: state[name] for inner, name in _encoder(state).items()})
    width = hf.commonest(state, _LAYER + r"ln_(?:1|2|cross_attn)\.(?:weight|bias)")
    text = {
        "width": width, "memory_width": width, "depth": hf.depth(state, _LAYER + r".+"),
        "mlp_dim": hf.commonest(state, _LAYER + r"mlp\.c_fc\.bias"),
        "vocab_size": hf_text.rows(state, width, _WORDS, _HEAD),
        "max_len": hf_text.rows(state, width, "decoder.transformer.wpe.weight"),
        "tied": hf_text.tied(state, _WORDS, _HEAD)}
    return {"project": any(name.startswith("enc_to_dec_proj.") for name in state),
            **hf_text.dotted("encoder", encoder), **hf_text.dotted("decoder", hf.told(text))}


def table(state: Mapping[str, Tensor]) -> tuple[Rule, ...]:
    """The names of these tensors in ours, the matrix of words being the word table."""
    return (*_vision(state), *_TEXT, *(Rule(name, ("decoder.embed.weight",), tied=True) for name in (_WORDS, _HEAD)))


def untied(state: Mapping[str, Tensor]) -> tuple[Rule, ...]:
    """The same where the matrix of words is one of its own."""
    return (*_vision(state), *_TEXT, *renamed({_WORDS: "decoder.embed.weight", _HEAD: "decoder.head.weight"}))


def _vision(state: Mapping[str, Tensor]) -> tuple[Rule, ...]:
    inner = {name: state[full] for name, full in _encoder(state).items()}
    return under(hf_vit.table(inner), "encoder.", "encoder.")


def describe(config: Mapping[str, Any]) -> Described | None:
    """What a config.json of model_type "vision-encoder-decoder" over a ViT and a GPT-2 says; None for any other.

    Raises:
        InputError: a GPT-2 that scales its attention in another way, or has no cross-attention.
    """
    vision, text = config.get("encoder"), config.get("decoder")
    if config.get("model_type") != "vision-encoder-decoder" or not isinstance(vision, Mapping) or \
            not isinstance(text, Mapping) or text.get("model_type") != "gpt2":
        return None
    described = hf_vit.describe(vision)
    if described is None:
        return None
    for key, usual in (("scale_attn_weights", True), ("scale_attn_by_inverse_layer_idx", False),
                       ("add_cross_attention", True)):
        if text.get(key, usual) != usual:
            raise InputError(f"config: decoder {key}={text[key]!r} is not supported, {usual} is")
    bos, eos = (hf_text.token(key, config, text, default=50256) for key in ("bos_token_id", "eos_token_id"))
    width = text.get("n_embd", 768)
    told = {
        "width": width, "memory_width": width, "mlp_dim": text.get("n_inner") or 4 * width,
        "depth": text.get("n_layer", 12), "num_heads": text.get("n_head", 12),
        "vocab_size": text.get("vocab_size", 50257), "max_len": text.get("n_positions", 1024),
        "act": hf.activation(text, "activation_function", "gelu_new"),
        "eps": text.get("layer_norm_epsilon", 1e-5), "tied": text.get("tie_word_embeddings", True),
        "dropout": text.get("resid_pdrop", 0.1), "attn_dropout": text.get("attn_pdrop", 0.1),
        "bos_id": hf_text.token("decoder_start_token_id", config, text, default=bos), "eos_id": eos,
        "pad_id": hf_text.token("pad_token_id", config, text, default=eos)}
    return Described({**hf_text.dotted("encoder", described.fields), **hf_text.dotted("decoder", told)})
