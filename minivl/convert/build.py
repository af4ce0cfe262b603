"""A model of ours out of a foreign state dict: recognise the family, settle the config, fill, and give a receipt."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, fields, is_dataclass
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import InputError, some
from ..models.captioner import Captioner, CaptionerConfig
from ..models.clip import CLIP, CLIPConfig, TextConfig
from ..models.decoder import DecoderConfig
from ..models.grid import GridConfig
from ..models.presets import ALIASES, PRESETS, Preset
from ..models.vit import ViT, ViTConfig
from . import blip, catr, clip, course, hf_clip, hf_dinov2, hf_vit, lukemelas, npz, table, timm, vit_gpt2
from .described import Described

if TYPE_CHECKING:
    from ..images import Preprocessing
    from ..text.tokenizer import Tokenizer

Model = ViT | CLIP | Captioner
Flat = dict[str, Any]  # fields of a config and of the configs in it, these dotted: "decoder.width"

FAMILIES: dict[str, ModuleType] = {
    "timm": timm, "lukemelas": lukemelas, "npz": npz, "hf_vit": hf_vit, "hf_dinov2": hf_dinov2, "blip": blip,
    "vit_gpt2": vit_gpt2, "course": course, "catr": catr, "clip": clip, "hf_clip": hf_clip}
CONFIGS: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "vit": lambda nested: ViTConfig(**nested), "clip": CLIPConfig.from_dict, "captioner": CaptionerConfig.from_dict}
# Presets of equal shapes may differ in these without being other models.
LOOSE = ("num_classes", "pool", "norm_after_pool", "dropout", "attn_dropout", "drop_path", "resize")
# What tensors tell by being there at all. Where a named preset or a config says otherwise, that counts, so that the
# check names the tensor that is missing or unexpected.
PRESENCE = ("class_token", "dist_token", "registers", "pos_prefix", "pre_norm", "patch_bias", "layer_scale", "qkv_bias")


class Conversion(NamedTuple):
    """A converted model, in eval mode.

    Attributes:
        model: ours.
        family: of the source.
        preset: the preset that told what the tensors do not, or None.
        receipt: what became of every tensor.
    """

    model: Model
    family: str
    preset: str | None
    receipt: table.Receipt


def convert(state: Mapping[str, Tensor], *, family: str = "auto", config: Mapping[str, Any] | None = None,
            name: str | None = None, description: Mapping[str, Any] | None = None,
            preprocessing: Preprocessing | None = None, tokenizer: Tokenizer | None = None,
            class_names: Sequence[str] | None = None) -> Conversion:
    """A model of ours from another library's tensors.

    What tensors cannot tell comes, in this order, from `config`, from `description`, from the preset that `name`
    begins with, or from all presets of those shapes, if they agree.

    Args:
        state: name -> tensor; not changed.
        family: one of `FAMILIES`, or "auto" to recognise it by its keys.
        config: our fields (those of inner configs nested or dotted), or the family's own description.
        name: a preset's name, or a file name that begins with one.
        description: the family's own description of the model, where a file beside the weights holds one;
            ignored if it is none.
        preprocessing, tokenizer, class_names: win over what description and preset say.

    Raises:
        InputError: an unknown family; tensors missing, unexpected, doubled, of another shape or type (all listed);
            a field that contradicts the tensors; or several presets that fit and differ.
    """
    family, module = _family(set(state), family)
    state, notes = module.prepare(state) if hasattr(module, "prepare") else (state, [])
    if name is not None and hasattr(module, "preset_name"):  # another model's in this layout
        name = module.preset_name(name, state)
    told = {**module.FIXED, **module.fields(state)}
    own, asked = _ours(module, config)
    beside = None if own else _ours(module, description or {})[0]
    own = own or beside
    given = {**(own.fields if own else {}), **asked}
    full = _agree(told, given)
    full = module.settle(state, full, given) if hasattr(module, "settle") else full
    needed = module.needed(state) if hasattr(module, "needed") else module.NEEDED
    preset_name, preset = _preset(family, told, name, full, needed=not all(key in full for key in needed))
    if preset_name is not None:
        flat = _flat(preset_name)
        # a preset asked for by its very name wins over the file beside weights that are published under another name
        exact = (beside is not None and preset is not None and preset.hub not in (None, name)
                 and name is not None and ALIASES.get(name, name) == preset_name)
        asked_for = {key: value for key, value in flat.items() if exact and key in given and key not in asked
                     and _last(key) not in ("num_classes", "pool", "norm_after_pool", "image_size", *PRESENCE)}
        full = {**flat, **{key: value for key, value in full.items() if key in given or _last(key) not in PRESENCE},
                **asked_for}
    if any(key not in full for key in needed):
        raise InputError(_undecided(family, told, needed))
    known = own.preprocessing if own else None
    known = (preprocessing or known or (preset.preprocessing if preset else None)
             or getattr(module, "PREPROCESSING", None)
             or (module.preprocessing(state) if hasattr(module, "preprocessing") else None))
    names = class_names or (own.class_names if own else None)
    model = _model(module.KIND, full, known, tokenizer, tuple(names) if names else None)
    # a matrix of words that is not the word table has rules of its own
    alone = full.get("decoder.tied") is False and hasattr(module, "untied")
    rules = module.untied(state) if alone else module.table(state)
    renaming = table.rename(state, rules)
    # Copies: training this model shall not change the tensors it came from, nor another model made of them.
    mixed = getattr(module, "MIXED", False)
    tensors = {ours: _copy(tensor, mixed) for ours, tensor in renaming.tensors.items()}
    table.check(tensors, model.state_dict(), source=preset_name or "weights", table=rules, renaming=renaming)
    fill(model, tensors)
    renaming.receipt.notes += notes
    return Conversion(model.eval(), family, preset_name, renaming.receipt)


def _copy(tensor: Tensor, mixed: bool) -> Tensor:
    """A tensor of its own; of a family whose files mix types, in float32."""
    return tensor.detach().to(torch.float32 if mixed and tensor.is_floating_point() else tensor.dtype, copy=True)


def fill(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put tensors, already checked, into a model that was made without memory; they keep their types."""
    model.load_state_dict(tensors, strict=True, assign=True)
    for module in model.modules():  # what is computed from the config alone is in no file
        if hasattr(module, "compute_tables"):
            module.compute_tables()


# -- which family, which fields --------------------------------------------------------------------------------

def _family(names: set[str], family: str) -> tuple[str, ModuleType]:
    if family != "auto" and family not in FAMILIES:
        raise InputError(f"unknown family {family!r}; known are: {some(FAMILIES, 20)}")
    for key, module in FAMILIES.items():
        if (module.recognises(names) if family == "auto" else key == family):
            return key, module
    raise InputError(f"these {len(names)} tensors are of no known family ({some(FAMILIES, 20)}); "
                     f"the first are: {some(sorted(names), 4)}")


def _ours(module: ModuleType, config: Mapping[str, Any] | None) -> tuple[Described | None, Flat]:
    """What a config says: a family's own description, or our fields (flat)."""
    if not config:
        return None, {}
    described = module.describe(config)
    return (described, {}) if described else (None, flatten(config))


def flatten(config: Any) -> Flat:
    """A config, or a dict of our fields, with inner fields dotted."""
    values = asdict(config) if is_dataclass(config) and not isinstance(config, type) else dict(config)
    flat: Flat = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat.update({f"{name}.{inner}": one for inner, one in flatten(value).items()})
        else:
            flat[name] = tuple(value) if isinstance(value, list) else value
    return flat


@cache
def _flat(preset: str) -> Flat:
    """The config of a preset; not to be changed."""
    return flatten(PRESETS[preset].config)


def _last(name: str) -> str:
    """A field's own name, without the config it is in."""
    return name.rpartition(".")[2]


def _nested(flat: Flat) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        outer, dot, inner = name.partition(".")
        if dot:
            nested.setdefault(outer, {})[inner] = value
        else:
            nested[name] = value
    return {name: _nested(value) if isinstance(value, dict) else value for name, value in nested.items()}


def _agree(told: Flat, given: Flat) -> Flat:
    """Fields from tensors and from elsewhere; raises where they contradict."""
    full = dict(told)
    for name, value in given.items():
        last = _last(name)
        value = (value, value) if last in ("image_size", "patch_size") and isinstance(value, int) else value
        # Tensors tell the number of patches only: an image_size of another number will not fit pos_embed.
        if name in told and told[name] != value and last not in ("image_size", "resize", *PRESENCE):
            raise InputError(f"config says {name}={value!r}, the tensors say {told[name]!r}")
        full[name] = value
    return full


def _known(kind: str, full: Flat) -> dict[str, bool]:
    """The fields a config of this kind has, and whether each must be given."""
    grid = any(name.startswith("encoder.layers") for name in full)
    inner: dict[str, dict[str, Any]] = {
        "vit": {"": ViTConfig}, "clip": {"vision.": ViTConfig, "text.": TextConfig},
        "captioner": {"encoder.": GridConfig if grid else ViTConfig, "decoder.": DecoderConfig, "": CaptionerConfig}}
    return {prefix + field.name: field.default is MISSING for prefix, config in inner[kind].items()
            for field in fields(config) if field.name not in ("encoder", "decoder")}


def _model(kind: str, full: Flat, preprocessing: Preprocessing | None, tokenizer: Tokenizer | None,
           class_names: tuple[str, ...] | None) -> Model:
    """A model without memory; raises where a field is unknown, or one without a default is not among them."""
    known = _known(kind, full)
    if strange := [name for name in full if name not in known]:
        raise InputError(f"config: unknown field {some(strange)}; a {kind} has: {some(known, 60)}")
    if untold := [name for name, needed in known.items() if needed and name not in full]:
        raise InputError(f"tensors that tell {some(untold)} are missing or oddly shaped, and no preset is "
                         f"named: give name= or config={{{untold[0]!r}: ...}}")
    config = CONFIGS[kind](_nested(full))
    size = getattr(config, {"vit": "image_size", "clip": "vision", "captioner": "encoder"}[kind])
    size = size if isinstance(size, tuple) else getattr(size, "image_size", None)
    if preprocessing is not None and size is not None:
        preprocessing = preprocessing.resized(size)
    with torch.device("meta"):  # shapes are enough: every tensor is put in afterwards
        if kind == "vit":
            names = class_names if class_names and len(class_names) == config.num_classes else None
            return ViT(config, preprocessing=preprocessing, class_names=names)
        if kind == "clip":
            return CLIP(config, preprocessing=preprocessing, tokenizer=tokenizer)
        if tokenizer is not None:
            decoder = config.decoder
            tokenizer = tokenizer.with_roles({"BOS": decoder.bos_id, "EOS": decoder.eos_id, "PAD": decoder.pad_id})
        return Captioner(config, preprocessing=preprocessing, tokenizer=tokenizer)


# -- presets ---------------------------------------------------------------------------------------------------

def _fitting(family: str, told: Flat, but: tuple[str, ...] = LOOSE) -> list[str]:
    """Names of the presets of a family that have the shapes the tensors have, some fields apart."""
    return [name for name, preset in PRESETS.items() if family in preset.families
            and all(field in _flat(name) and _flat(name)[field] == value for field, value in told.items()
                    if _last(field) not in but)]


def _different(names: Iterable[str]) -> list[str]:
    """Of presets that are alike (the head apart) the first."""
    first: dict[Any, str] = {}
    for name in names:
        fields = tuple(sorted((field, value) for field, value in _flat(name).items() if _last(field) not in LOOSE))
        first.setdefault((fields, PRESETS[name].preprocessing), name)
    return list(first.values())


def _preset(family: str, told: Flat, name: str | None, full: Flat, needed: bool) -> tuple[str | None, Preset | None]:
    """The preset that `name` begins with (or an old name of it), or the one all fitting presets agree with.

    A preset that was not named is not taken where other fields contradict it.
    """
    fitting = _fitting(family, told)
    if name is not None:
        name = name.removeprefix("timm/")
        # a file name has no slash: after the owner a hub id goes on as files are called
        named = [known for known in (*PRESETS, *ALIASES) if family in PRESETS[ALIASES.get(known, known)].families
                 and (name.startswith(known) or name.startswith(known.rpartition("/")[2]))]
        if named:
            longest = max(named, key=len)
            longest = ALIASES.get(longest, longest)
            if longest not in _fitting(family, told, LOOSE + PRESENCE):
                raise InputError(f"is named {longest}, but its tensors have other shapes"
                                 + (f"; they fit: {some(_different(fitting))}" if fitting else ""))
            return longest, PRESETS[longest]
    fitting = [known for known in fitting
               if needed or all(_flat(known).get(field) == value for field, value in full.items()
                                if _last(field) not in LOOSE)]
    return (fitting[0], PRESETS[fitting[0]]) if len(_different(fitting)) == 1 else (None, None)


def _undecided(family: str, told: Flat, needed: Sequence[str]) -> str:
    fitting = _different(_fitting(family, told))
    if fitting:
        return ("heads, activation, eps and preprocessing are not in the tensors, and several presets fit: "
                f"{some(fitting, 12)}; name the file after one, or give name= or config=")
    shapes = ", ".join(f"{field} {value}" for field, value in told.items()
                       if _last(field) in ("width", "depth", "patch_size", "image_size"))
    return (f"of family {family}, and no preset has these shapes ({shapes}): give config={{{needed[0]!r}: ...}}"
            + (f", and {some(needed[1:], 9)}" if needed[1:] else ""))
