"""ViTs in Google's own .npz files: those of the vision_transformer repository (Dosovitskiy et al. 2021, Steiner et al.
2022) and those of big_vision, whose layers have other numbers and may be stacked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from math import isqrt
from re import fullmatch
from typing import Any

import torch
from torch import Tensor

from . import huggingface as hf
from .described import Described
from .table import Rule, drop

KIND = "vit"
NEEDED: tuple[str, ...] = ()
FIXED: dict[str, Any] = {"stem": (), "qkv_bias": True, "norm_after_pool": False, "act": "gelu", "eps": 1e-6,
                         "resize": "timm_npz"}
PREFIXES = ("opt/target/", "params/", "")
_LETTERS = {"query": "q", "key": "k", "value": "v"}
_BLOCK = r"(?:opt/target/|params/)?Transformer/encoderblock(?:_(\d+))?/"


def recognises(names: set[str]) -> bool:
    """Whether these are the names of a ViT in JAX."""
    return any(fullmatch(_BLOCK + r"MultiHeadDotProductAttention_\d/.+", name) for name in names)


def _prefix(state: Mapping[str, Tensor]) -> str:
    return next(prefix for prefix in PREFIXES if any(name.startswith(prefix + "Transformer/") for name in state)
                or not prefix)


def _stacked(state: Mapping[str, Tensor]) -> bool:
    """Whether a tensor holds those of all blocks."""
    return any(match[1] is None for name in state if (match := fullmatch(_BLOCK + r".+", name)))


def _big_vision(state: Mapping[str, Tensor]) -> bool:
    """Whether the layers have the numbers of big_vision."""
    return any(fullmatch(_BLOCK + r"MultiHeadDotProductAttention_0/.+", name) for name in state)


# -- what the tensors tell ---------------------------------------------------------------------------------------

def fields(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the tensors tell: all fields of `ViTConfig`, the number of heads too."""
    prefix, stacked = _prefix(state), int(_stacked(state))
    norms = _BLOCK + r"LayerNorm_\d/(?:scale|bias)"
    told: dict[str, Any] = {
        "depth": hf.commonest(state, norms) if stacked else hf.depth(state, _BLOCK + r".+"),
        "width": hf.commonest(state, norms, axis=stacked),
        "num_heads": _heads(state),
        "mlp_dim": _inner(state),
        "num_classes": hf.commonest(state, f"{prefix}head/bias") or hf.commonest(state, f"{prefix}head/kernel", 1) or 0}
    kernel = state.get(f"{prefix}embedding/kernel")
    if kernel is not None and kernel.ndim == 4:
        told.update(patch_size=tuple(kernel.shape[:2]), in_channels=kernel.shape[2])
    told.update(_grid(state, prefix, told.get("patch_size")))
    if "class_token" in told:
        told["pool"] = "class" if told["class_token"] else "mean"
    return hf.told(told)


def _inner(state: Mapping[str, Tensor]) -> int | None:
    """Inner width of the MLPs: what most of their tensors say, of which a stacked file has only three."""
    said = [tensor.shape[axis] for layer, axis in (("0/bias", -1), ("0/kernel", -1), ("1/kernel", -2))
            for name, tensor in state.items()
            if fullmatch(_BLOCK + r"MlpBlock_\d/Dense_" + layer, name) and tensor.ndim >= -axis]
    return max(set(said), key=said.count, default=None)


def _heads(state: Mapping[str, Tensor]) -> int | None:
    """h of the kernels (D, h, d) and biases (h, d) of queries, keys and values."""
    biases = _BLOCK + r"MultiHeadDotProductAttention_\d/(?:query|key|value)/bias"
    return hf.commonest(state, biases, axis=int(_stacked(state)))


def _grid(state: Mapping[str, Tensor], prefix: str, patch: tuple[int, int] | None) -> dict[str, Any]:
    """class_token, pos_prefix and image_size out of the position table.

    big_vision adds positions before the [class] token, so that its loss cannot be told from pooling the mean: there
    class_token=False must come from elsewhere.
    """
    big, has_class = _big_vision(state), f"{prefix}cls" in state
    told: dict[str, Any] = {"class_token": True} if has_class else {}
    positions = state.get(_positions(prefix, big))
    if positions is None or positions.ndim != 3:
        return told
    rows = positions.shape[1]
    for with_class in (False, True):
        side = isqrt(max(rows - with_class, 0))
        if side and side * side == rows - with_class:
            told["pos_prefix"] = with_class
            if with_class or has_class or not big:
                told["class_token"] = with_class or has_class
            if patch is not None:
                told["image_size"] = tuple(side * length for length in patch)
            break
    return told


def _positions(prefix: str, big_vision: bool) -> str:
    return prefix + ("pos_embedding" if big_vision else "Transformer/posembed_input/pos_embedding")


# -- names -------------------------------------------------------------------------------------------------------

def table(state: Mapping[str, Tensor]) -> tuple[Rule, ...]:
    """The names of these tensors in ours."""
    prefix, big, heads = _prefix(state), _big_vision(state), _heads(state) or 0
    stacked = hf.commonest(state, _BLOCK + r"LayerNorm_\d/(?:scale|bias)") if _stacked(state) else None
    attention, mlp = ("MultiHeadDotProductAttention_0", "MlpBlock_0") if big else ("MultiHeadDotProductAttention_1",
                                                                                   "MlpBlock_3")
    block: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
        f"{attention}/out/kernel": ("attn.out_proj.weight", partial(_merge, heads=heads)),
        f"{attention}/out/bias": ("attn.out_proj.bias", _whole)}
    for number, norm in ((0, "norm1"), (1 if big else 2, "norm2")):
        block[f"LayerNorm_{number}/scale"] = (f"{norm}.weight", _whole)
        block[f"LayerNorm_{number}/bias"] = (f"{norm}.bias", _whole)
    for word, letter in _LETTERS.items():
        block[f"{attention}/{word}/kernel"] = (f"attn.{letter}_proj.weight", partial(_split, heads=heads))
        block[f"{attention}/{word}/bias"] = (f"attn.{letter}_proj.bias", partial(_flat, heads=heads))
    for number, layer in enumerate(("fc1", "fc2")):
        block[f"{mlp}/Dense_{number}/kernel"] = (f"mlp.{layer}.weight", _dense)
        block[f"{mlp}/Dense_{number}/bias"] = (f"mlp.{layer}.bias", _whole)
    rules = [Rule("embedding/kernel", ("patch_embed.proj.weight",), _convolution),
             Rule("embedding/bias", ("patch_embed.proj.bias",)), Rule("cls", ("cls_token",)),
             Rule(_positions("", big), ("pos_embed",)),
             Rule("Transformer/encoder_norm/scale", ("norm.weight",)),
             Rule("Transformer/encoder_norm/bias", ("norm.bias",)),
             Rule("head/kernel", ("head.weight",), _dense), Rule("head/bias", ("head.bias",)),
             drop("pre_logits/{}", "the representation layer, which timm leaves out too"),
             *(_block_rule(name, *change, stacked) for name, change in block.items())]
    return (*(rule._replace(source=prefix + rule.source) for rule in rules),
            drop("opt/state/{}", "the state of an optimiser"))


def _block_rule(name: str, target: str, change: Callable[[Tensor], Tensor], stacked: int | None) -> Rule:
    """The rule of one tensor of a block, or of that tensor of all blocks, which are stacked along their first axis."""
    if stacked is None:
        return Rule(f"Transformer/encoderblock_{{}}/{name}", (f"blocks.{{}}.{target}",), change)
    return Rule(f"Transformer/encoderblock/{name}", tuple(f"blocks.{i}.{target}" for i in range(stacked)),
                partial(_each, change=change, count=stacked))


# Each takes a tensor as JAX has it, and raises ValueError for another shape: the check of shapes then names it.

def _each(tensor: Tensor, change: Callable[[Tensor], Tensor], count: int) -> Tensor:
    """(L, ...) -> the changed tensors of the L blocks, one after the other along their first axis."""
    if tensor.ndim < 2 or len(tensor) != count:
        raise ValueError
    return torch.cat([change(part) for part in tensor])


def _whole(tensor: Tensor) -> Tensor:
    """As it is."""
    return tensor


def _dense(kernel: Tensor) -> Tensor:
    """(in, out) -> (out, in)."""
    if kernel.ndim != 2:
        raise ValueError
    return kernel.T


def _convolution(kernel: Tensor) -> Tensor:
    """(P, P, C, D) -> (D, C, P, P)."""
    return kernel.permute(3, 2, 0, 1)


def _split(kernel: Tensor, heads: int) -> Tensor:
    """(D, h, d) -> (h*d, D)."""
    if kernel.ndim != 3 or kernel.shape[1] != heads:
        raise ValueError
    return kernel.flatten(1).T


def _flat(bias: Tensor, heads: int) -> Tensor:
    """(h, d) -> (h*d,)."""
    if bias.ndim != 2 or bias.shape[0] != heads:
        raise ValueError
    return bias.flatten()


def _merge(kernel: Tensor, heads: int) -> Tensor:
    """(h, d, D) -> (D, h*d)."""
    if kernel.ndim != 3 or kernel.shape[0] != heads:
        raise ValueError
    return kernel.flatten(0, 1).T


def describe(config: Mapping[str, Any]) -> Described | None:
    """None: these files hold tensors only."""
    return None
