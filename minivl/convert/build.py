"""A model of ours out of a foreign state dict: recognise the family, settle the config, fill, and give a receipt."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields
from os import PathLike
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import InputError, some
from ..files import undamaged
from ..models.captioner import Captioner, CaptionerConfig
from ..models.clip import CLIP, CLIPConfig, TextConfig
from ..models.decoder import CaptionDecoder, DecoderConfig
from ..models.grid import GridConfig
from ..models.presets import ALIASES
from ..models.vit import ViT, ViTConfig
from . import blip, catr, clip, course, hf_clip, hf_dinov2, hf_vit, lukemelas, npz, table, timm, vit_gpt2
from .choose import PRESENCE, agree, choose, flat, flatten, last, undecided
from .described import Described
from .family import Family, Flat

if TYPE_CHECKING:
    from ..images import Preprocessing
    from ..text.tokenizer import Tokenizer

Model = ViT | CLIP | Captioner

FAMILIES = {name: Family(name, module) for name, module in {
    "timm": timm, "lukemelas": lukemelas, "npz": npz, "hf_vit": hf_vit, "hf_dinov2": hf_dinov2, "blip": blip,
    "vit_gpt2": vit_gpt2, "course": course, "catr": catr, "clip": clip, "hf_clip": hf_clip}.items()}
MOST_POSITIONS = 1 << 20
LONGEST_NAME = 400  # of a tensor, in characters

log = logging.getLogger(__name__)
CONFIGS: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "vit": lambda nested: ViTConfig(**nested), "clip": CLIPConfig.from_dict, "captioner": CaptionerConfig.from_dict}


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
    source = family_of(set(state), family)
    state, notes = source.prepare(state)
    called, name = name, None if name is None else source.preset_name(name, state)
    told = {**source.fixed, **source.fields(state)}
    own, asked = _ours(source, config)
    beside = None if own else _ours(source, description)[0]
    own = own or beside or Described({})
    given = {**own.fields, **asked}
    full = source.settle(state, agree(told, given), given)
    needed = source.needed(state)
    preset_name, preset = choose(source.name, told, name, full, needed=not all(key in full for key in needed))
    if preset_name is not None and preset is not None:
        by_name = beside is not None and preset.hub not in (None, name) and ALIASES.get(name or "", name) == preset_name
        full = _with_preset(full, given, asked, flat(preset_name), by_name)
    if any(key not in full for key in needed):
        raise InputError(undecided(source.name, told, needed))
    known = (preprocessing or own.preprocessing or (preset.preprocessing if preset else None)
             or source.preprocessing(state))
    names = class_names or own.class_names
    check_counts(full, len(state))
    with undamaged("config"):
        model = _model(source, {**source.common, **full}, known, tokenizer, tuple(names) if names else None)
    rules = source.untied(state) if full.get("decoder.tied") is False else source.table(state)
    renaming = table.rename(state, rules)
    # Copies: training this model shall not change the tensors it came from, nor another model made of them.
    # Row by row, as they will be saved: a matrix that lies turned is multiplied in another order of sums.
    tensors = {ours: tensor.detach().clone(memory_format=torch.contiguous_format)
               for ours, tensor in renaming.tensors.items()}
    table.check(tensors, model.state_dict(), source=preset_name or "weights", table=rules, renaming=renaming)
    fill(model, tensors)
    if strange := not_finite(model):
        log.warning("%s%d tensors hold nan or infinite values: %s", f"{called}: " if called else "", len(strange),
                    some(strange))
    renaming.receipt.notes += notes
    return Conversion(model.eval(), source.name, preset_name, renaming.receipt)


def _with_preset(full: Flat, given: Flat, asked: Flat, preset: Flat, by_name: bool) -> Flat:
    """Fields completed by a preset; `by_name`: it was asked for by its very name, and wins over the file beside
    weights that are published under another name."""
    asked_for = {key: value for key, value in preset.items() if by_name and key in given and key not in asked
                 and last(key) not in ("num_classes", "pool", "norm_after_pool", "image_size", *PRESENCE)}
    kept = {key: value for key, value in full.items() if key in given or last(key) not in PRESENCE}
    return {**preset, **kept, **asked_for}


def fill(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put tensors, already checked, into a model that was made without memory; they keep their types."""
    model.load_state_dict(tensors, strict=True, assign=True)
    for module in model.modules():  # what is computed from the config alone is in no file
        if isinstance(module, CaptionDecoder):
            module.compute_tables()


def not_finite(model: nn.Module) -> list[str]:
    """Names of the tensors with a value that is nan or infinite."""
    return [name for name, tensor in model.state_dict().items() if not tensor.is_meta and not tensor.isfinite().all()]


# -- which family, which model -----------------------------------------------------------------------------------

def family_of(names: set[str], family: str, source: str | PathLike[str] | None = None) -> Family:
    """The family called so, or the one ("auto") whose keys these are.

    Raises:
        InputError: there is none, or the tensors are plainly those of another.
    """
    if long := [name for name in names if len(name) > LONGEST_NAME]:
        raise InputError(f"has a tensor whose name is {len(long[0])} characters long: {long[0][:40]}...", source=source)
    if family != "auto" and family not in FAMILIES:
        raise InputError(f"unknown family {family!r}; known are: {some(FAMILIES, 20)}", source=source)
    seen = [one for one in FAMILIES.values() if one.recognises(names)]
    if family != "auto":
        if seen and FAMILIES[family] not in seen:
            raise InputError(f"its tensors do not fit family {family!r}: they are of {seen[0].name!r}", source=source)
        return FAMILIES[family]
    if seen:
        return seen[0]
    raise InputError(f"these {len(names)} tensors are of no known family ({some(FAMILIES, 20)}); "
                     f"the first are: {some(sorted(names), 4)}", source=source)


def _ours(source: Family, config: Mapping[str, Any] | None) -> tuple[Described | None, Flat]:
    """What a config says: a family's own description, or our fields (flat)."""
    if not config:
        return None, {}
    with undamaged("config"):  # of others, and of any content
        described = source.describe(config)
    return (described, {}) if described else (None, flatten(config))


def _nested(flat: Flat) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        outer, dot, inner = name.partition(".")
        if dot:
            nested.setdefault(outer, {})[inner] = value
        else:
            nested[name] = value
    return {name: _nested(value) if isinstance(value, dict) else value for name, value in nested.items()}


def _known(kind: str, full: Flat) -> dict[str, bool]:
    """The fields a config of this kind has, and whether each must be given."""
    grid = any(name.startswith("encoder.layers") for name in full)
    inner: dict[str, dict[str, Any]] = {
        "vit": {"": ViTConfig}, "clip": {"vision.": ViTConfig, "text.": TextConfig},
        "captioner": {"encoder.": GridConfig if grid else ViTConfig, "decoder.": DecoderConfig, "": CaptionerConfig}}
    return {prefix + field.name: field.default is MISSING for prefix, config in inner[kind].items()
            for field in fields(config) if field.name not in ("encoder", "decoder")}


def check_counts(fields: Flat, tensors: int) -> None:
    """Raise InputError for numbers that would make a model grow before its tensors are held against it: more blocks
    than the file has tensors, or a table of positions, which is computed, that fills the memory."""
    for name, value in fields.items():
        count = sum(value) if last(name) == "layers" and isinstance(value, tuple) else value
        most = {"depth": tensors, "layers": tensors, "max_len": MOST_POSITIONS}.get(last(name))
        if most is not None and isinstance(count, int) and count > most:
            raise InputError(f"{name}={value!r}: " + (f"more than any text has, at most {most}" if most != tensors else
                                                      f"that many blocks in a file of {tensors} tensors cannot be"))


def _model(source: Family, full: Flat, preprocessing: Preprocessing | None, tokenizer: Tokenizer | None,
           class_names: tuple[str, ...] | None) -> Model:
    """A model without memory; raises where a field is unknown, or one without a default is not among them."""
    kind, known = source.kind, _known(source.kind, full)
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
            if source.added and tokenizer.vocab_size == decoder.vocab_size - len(source.added):
                tokenizer = tokenizer.with_added(source.added)
            if tokenizer.vocab_size != decoder.vocab_size:  # said before its roles are found to be missing
                raise InputError(f"the tokenizer has {tokenizer.vocab_size} entries, the decoder {decoder.vocab_size}")
            tokenizer = tokenizer.with_roles({"BOS": decoder.bos_id, "EOS": decoder.eos_id, "PAD": decoder.pad_id})
        return Captioner(config, preprocessing=preprocessing, tokenizer=tokenizer)
