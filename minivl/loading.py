"""load, save, create, from_state_dict: between disk and models.

A weight file is complete alone: safetensors whose header carries, as JSON, the kind of model, its config,
preprocessing, class names and tokenizer, and a sha256 over all of it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from .convert import table, timm
from .errors import InputError, some
from .files import read_tensors, tensor_bytes, write_tensors
from .images import Preprocessing
from .models.captioner import Captioner, CaptionerConfig
from .models.decoder import DecoderConfig
from .models.presets import PRESETS, Preset
from .models.vit import ViT, ViTConfig
from .text.tokenizer import Tokenizer

Model = ViT | Captioner

FAMILIES: dict[str, ModuleType] = {"timm": timm}
HEADER_KEY, FORMAT = "minivl", 1
# What tensors cannot tell: where presets of equal shapes differ in one of these, guessing would be silent.
UNTOLD = ("num_heads", "act", "eps")

logger = logging.getLogger(__name__)


# -- create --------------------------------------------------------------------------------------------------

def create(name: str, *, num_classes: int | None = None, **overrides: Any) -> ViT:
    """A randomly initialised ViT of a published size.

    Args:
        name: one of `minivl.models.presets.PRESETS` (timm's names).
        num_classes: classes of the head; None = the preset's, 0 = no head.
        **overrides: other fields of `ViTConfig` to change.

    Returns:
        The model, in training mode.

    Raises:
        InputError: an unknown preset or field, listing the known ones.
    """
    preset = PRESETS.get(name)
    if preset is None:
        raise InputError(f"unknown model {name!r}; known are: {some(sorted(PRESETS), 40)}")
    if num_classes is not None:
        overrides["num_classes"] = num_classes
    config = _replaced(preset.config, overrides)
    return ViT(config, preprocessing=replace(preset.preprocessing, size=config.image_size))


def _replaced(config: ViTConfig, changes: Mapping[str, Any]) -> ViTConfig:
    known = [field.name for field in fields(config)]
    unknown = [name for name in changes if name not in known]
    if unknown:
        raise InputError(f"unknown field {some(unknown)}; a ViT has: {some(known, 30)}")
    return replace(config, **changes)


# -- save ----------------------------------------------------------------------------------------------------

def save(model: Model, path: str | os.PathLike[str]) -> None:
    """Write a model with all that is needed to use it; `load` gives it back bit for bit.

    Args:
        model: a `ViT` or `Captioner`.
        path: a ``.safetensors`` file; replaced atomically.

    Raises:
        InputError: another suffix, or an object that is no model of ours.
    """
    if Path(path).suffix != ".safetensors":
        raise InputError("weights are saved as .safetensors: name the file so", source=path)
    kind = {ViT: "vit", Captioner: "captioner"}.get(type(model))
    if kind is None:
        raise InputError(f"cannot save a {type(model).__name__}: a ViT or a Captioner is needed")
    state = model.state_dict()
    told = {"format": FORMAT, "kind": kind, "config": asdict(model.config), **model.header()}
    header = json.loads(json.dumps(told))  # as it will be read: keys of notes are strings there
    header["sha256"] = _digest(state, header)
    write_tensors(path, state, {HEADER_KEY: json.dumps(header, sort_keys=True)})


def _digest(state: Mapping[str, Tensor], header: Mapping[str, Any]) -> str:
    """sha256 over the header (without its own digest) and every tensor's name, type, shape and bytes."""
    digest = hashlib.sha256()
    told = {key: value for key, value in header.items() if key != "sha256"}
    digest.update(json.dumps(told, sort_keys=True).encode())
    for name in sorted(state):
        tensor = state[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


# -- load ----------------------------------------------------------------------------------------------------

def load(source: str | os.PathLike[str], *, num_classes: int | None = None, verify: bool = False) -> Model:
    """A model from disk, in eval mode.

    Args:
        source: a safetensors file of ours or of a known family; or the name of weights shipped with the
            library, looked for in ``$MINIVL_WEIGHTS``, the checkout's ``weights/``, the installed package
            and the user cache.
        num_classes: replaces the head of a classifier by a new random one (0 = no head) where it differs.
        verify: recompute the sha256 that `save` wrote and refuse a file that differs from it.

    Returns:
        A `ViT` or `Captioner`.

    Raises:
        InputError: no such file or name; a file that is no safetensors; tensors that do not fit, all of
            them listed; heads, activation or eps that neither file nor name tell; a failed verification.
    """
    path = find_weights(source)
    state, metadata = read_tensors(path)
    if HEADER_KEY in metadata:
        model = _own(state, metadata[HEADER_KEY], path, verify)
    elif verify:
        raise InputError("carries no sha256 to verify: it was not written by minivl.save", source=path)
    else:
        try:
            model = from_state_dict(state, name=path.name)
        except InputError as error:
            raise InputError(str(error), source=path) from None
    if num_classes is not None:
        if not isinstance(model, ViT):
            raise InputError("is a captioner and has no classes: a ViT is needed here", source=path)
        _replace_head(model, num_classes)
    return model.eval()


def _own(state: dict[str, Tensor], header_text: str, path: Path, verify: bool) -> Model:
    """A model from a file that `save` wrote."""
    try:
        header = json.loads(header_text)
        if header["format"] != FORMAT:
            raise InputError(f"is of format {header['format']!r}, this version reads {FORMAT}", source=path)
        settings = header["preprocessing"]
        preprocessing = None if settings is None else Preprocessing.from_dict(settings)
        config = header["config"]
        model: Model
        if header["kind"] == "vit":
            names = header["class_names"]
            model = ViT(ViTConfig(**config), preprocessing=preprocessing,
                        class_names=None if names is None else tuple(names))
        elif header["kind"] == "captioner":
            text = header["tokenizer"]
            tokenizer = None if text is None else Tokenizer.from_json(text)
            model = Captioner(
                CaptionerConfig(ViTConfig(**config["encoder"]), DecoderConfig(**config["decoder"])),
                tokenizer=tokenizer, preprocessing=preprocessing, notes=header["notes"])
        else:
            raise InputError(f"holds a {header['kind']!r}, which this version does not know", source=path)
    except InputError as error:
        raise InputError(str(error), source=path) from None
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise InputError(f"its minivl header is damaged ({type(error).__name__}: {error})",
                         source=path) from None
    if verify and _digest(state, header) != header.get("sha256"):
        raise InputError("its sha256 is not that of its content: the file was changed after it was saved",
                         source=path)
    _fill(model, state, str(path))
    return model


def _fill(model: nn.Module, state: Mapping[str, Tensor], source: str, *, rules: Sequence[table.Rule] = (),
          unknown: Sequence[str] = ()) -> None:
    """Put tensors into a model strictly, keeping their dtype."""
    table.check(state, model.state_dict(), source=source, table=rules, unknown=unknown)
    model.load_state_dict(state, strict=True, assign=True)


def _replace_head(model: ViT, num_classes: int) -> None:
    """No head, or a random one of another size; the latter is reported, because the trained one is gone."""
    if not isinstance(num_classes, int) or num_classes < 0:
        raise InputError(f"num_classes={num_classes!r}: give a whole number, 0 for no head")
    if num_classes == model.config.num_classes:
        return
    if num_classes:
        logger.info("head replaced: %d classes instead of %d, randomly initialised", num_classes,
                    model.config.num_classes)
    model.config = replace(model.config, num_classes=num_classes)
    model.class_names = None
    model.head = nn.Identity()
    if num_classes:
        model.head = nn.Linear(model.config.width, num_classes, device=model.pos_embed.device,
                               dtype=model.pos_embed.dtype)
        nn.init.trunc_normal_(model.head.weight, std=0.02)
        nn.init.zeros_(model.head.bias)


# -- foreign weights -----------------------------------------------------------------------------------------

def from_state_dict(state: Mapping[str, Tensor], *, family: str = "auto",
                    config: Mapping[str, Any] | None = None, name: str | None = None) -> ViT:
    """A model of ours from another library's tensors in memory.

    What tensors cannot tell (heads, activation, eps, preprocessing) comes, in this order, from `config`,
    from a `name` that begins with a preset's, or from the presets of those shapes, if they agree.

    Args:
        state: name -> tensor; not changed.
        family: one of `FAMILIES`, or "auto" to recognise it by its keys.
        config: our fields (of `ViTConfig`), or the family's own description as a dict.
        name: a preset's name, or a file name that begins with one.

    Returns:
        The model in eval mode, its tensors copies of those given, in their dtype.

    Raises:
        InputError: an unknown family; tensors missing, unexpected or of another shape (all listed);
            a field that contradicts the tensors; or several presets that fit and differ.
    """
    if family != "auto" and family not in FAMILIES:
        raise InputError(f"unknown family {family!r}; known are: {some(FAMILIES)}")
    names = set(state)
    known = [module for key, module in FAMILIES.items()
             if (module.recognises(names) if family == "auto" else key == family)]
    if not known:
        raise InputError(f"these {len(names)} tensors are of no known family ({some(FAMILIES)}); "
                         f"the first are: {some(sorted(names), 4)}")
    module = known[0]
    told = module.fields(state)
    preset_name, preset = _preset(told, name)
    described = module.describe(config) if config else None
    given, preprocessing = described or (dict(config or {}), None)
    full = _agree(told, given)
    if preset is not None:
        full = {**vars(preset.config), **full}
        preprocessing = preprocessing or preset.preprocessing
    elif "num_heads" not in full:
        raise InputError(_undecided(told))
    model_config = _vit_config(full)
    if preprocessing is not None:
        preprocessing = replace(preprocessing, size=model_config.image_size)
    with torch.device("meta"):  # shapes are enough: every tensor is put in below
        model = ViT(model_config, preprocessing=preprocessing)
    tensors, unknown = table.rename(state, module.TABLE)
    # Copies: training this model shall not change the tensors it came from, nor another model made of them.
    tensors = {ours: tensor.detach().clone() for ours, tensor in tensors.items()}
    _fill(model, tensors, preset_name or "weights", rules=module.TABLE, unknown=unknown)
    return model.eval()


def _agree(told: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Fields from tensors and from the caller; raises where they contradict."""
    full = dict(told)
    for field, value in given.items():
        value = tuple(value) if isinstance(value, list) else value
        value = (value, value) if field in ("image_size", "patch_size") and isinstance(value, int) else value
        # Tensors tell the number of patches only: an image_size of another number will not fit pos_embed.
        if field in told and told[field] != value and field != "image_size":
            raise InputError(f"config says {field}={value!r}, the tensors say {told[field]!r}")
        full[field] = value
    return full


def _vit_config(full: Mapping[str, Any]) -> ViTConfig:
    """A config of these fields; raises where one is unknown, or one without a default is not among them."""
    known = [field.name for field in fields(ViTConfig)]
    if strange := [name for name in full if name not in known]:
        raise InputError(f"config: unknown field {some(strange)}; a ViT has: {some(known, 30)}")
    needed = [field.name for field in fields(ViTConfig) if field.default is MISSING]
    if untold := [name for name in needed if name not in full]:
        raise InputError(f"tensors that tell {some(untold)} are missing or oddly shaped, and no preset is "
                         f"named: give name= or config={{{untold[0]!r}: ...}}")
    return ViTConfig(**full)


def _fitting(told: Mapping[str, Any]) -> dict[str, Preset]:
    """Presets of the shapes the tensors have (the head apart)."""
    return {name: preset for name, preset in PRESETS.items()
            if all(getattr(preset.config, field) == value for field, value in told.items()
                   if field not in ("num_classes", "pool"))}


def _preset(told: Mapping[str, Any], name: str | None) -> tuple[str | None, Preset | None]:
    """The preset that `name` begins with, or the one all fitting presets agree with."""
    fitting = _fitting(told)
    if name is not None:
        named = [known for known in PRESETS if name.startswith(known)]
        if named:
            longest = max(named, key=len)
            if longest not in fitting:
                raise InputError(f"is named {longest}, but its tensors have other shapes"
                                 + (f"; they fit: {some(fitting)}" if fitting else ""))
            return longest, PRESETS[longest]
    alike = {(tuple(getattr(preset.config, field) for field in UNTOLD), preset.preprocessing)
             for preset in fitting.values()}
    if len(alike) == 1:
        return next(iter(fitting.items()))
    return None, None


def _undecided(told: Mapping[str, Any]) -> str:
    fitting = _fitting(told)
    if fitting:
        return ("heads, activation, eps and preprocessing are not in the tensors, and several presets fit: "
                f"{some(fitting)}; name the file after one, or give name= or config=")
    shapes = ", ".join(f"{field} {told[field]}" for field in ("width", "depth", "patch_size", "image_size")
                       if field in told)
    return f"no preset has these shapes ({shapes}): give config={{'num_heads': ...}}"


# -- where weights lie ---------------------------------------------------------------------------------------

def weight_folders() -> list[Path]:
    """Where shipped weights are looked for, in this order."""
    named = os.environ.get("MINIVL_WEIGHTS")
    here = Path(__file__).resolve().parent
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minivl"
    return [*([Path(named)] if named else []), here.parent / "weights", here / "_weights", cache / "weights"]


def find_weights(source: str | os.PathLike[str]) -> Path:
    """The file of a path or of a shipped name.

    Raises:
        InputError: there is none; shipped names are listed.
    """
    path = Path(source)
    if path.is_file():
        return path
    if path.is_dir():
        raise InputError("is a folder, a .safetensors file is needed", source=path)
    shipped: dict[str, Path] = {}
    for folder in reversed(weight_folders()):
        shipped.update({file.stem: file for file in sorted(folder.glob("*.safetensors"))})
    name = path.name.removesuffix(".safetensors")  # not path.stem: names may hold dots
    if path.parent == Path(".") and name in shipped:
        return shipped[name]
    raise InputError(f"no such file, and no weights of that name are shipped; there are: "
                     f"{some(shipped) if shipped else 'none'}", source=path)
