"""load, save, create, from_state_dict: between disk and models.

A weight file is complete alone: safetensors whose header carries, as JSON, the kind of model, its config,
preprocessing, class names and tokenizer, and a sha256 over all of it.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from torch import Tensor

from . import hub
from .convert import huggingface, table
from .convert.build import FAMILIES, Conversion, Model, check_counts, convert, fill, not_finite
from .convert.choose import flatten
from .errors import InputError, some
from .files import read_json, read_tensors, tensor_bytes, undamaged, write_tensors
from .fingerprint import check_fingerprint
from .images import Preprocessing
from .models.captioner import Captioner, CaptionerConfig
from .models.clip import CLIP, CLIPConfig
from .models.presets import ALIASES, PRESETS
from .models.vit import ViT, ViTConfig
from .text.published import read_tokenizer
from .text.tokenizer import Tokenizer

__all__ = ["FAMILIES", "Conversion", "Model", "convert", "create", "find_weights", "from_state_dict", "load", "save"]

MODELS: dict[type, type[Model]] = {ViTConfig: ViT, CLIPConfig: CLIP, CaptionerConfig: Captioner}
KINDS: dict[str, type[Model]] = {model.kind: model for model in MODELS.values()}
HEADER_KEY, FORMAT = "minivl", 1
OF_A_RUN = ("best.safetensors", "last.safetensors")  # weights in the folder of a training; see `minivl.train.run`
PICKLED = (".pth", ".pt", ".bin", ".npz", ".ckpt")

logger = logging.getLogger(__name__)


# -- create --------------------------------------------------------------------------------------------------

def create(name: str, *, num_classes: int | None = None, **overrides: Any) -> Model:
    """A randomly initialised model of a published size.

    Args:
        name: one of `minivl.models.presets.PRESETS` (the names under which timm, open_clip and the hub know
            them), or an old name of one.
        num_classes: classes of a ViT's head; None = the preset's, 0 = no head.
        **overrides: other fields of the config to change.

    Returns:
        The model, in training mode.

    Raises:
        InputError: an unknown preset or field, listing the known ones.
    """
    preset = PRESETS.get(ALIASES.get(name, name))
    if preset is None:
        alike = difflib.get_close_matches(name, PRESETS, 8, cutoff=0.5) or sorted(PRESETS)
        raise InputError(f"unknown model {name!r}; known are, among {len(PRESETS)}: {some(alike)}")
    if num_classes is not None:
        overrides["num_classes"] = num_classes
    known = [field.name for field in fields(preset.config)]
    if unknown := [field for field in overrides if field not in known]:
        raise InputError(f"unknown field {some(unknown)}; {name} has: {some(known, 40)}")
    config, preprocessing = replace(preset.config, **overrides), preset.preprocessing
    if isinstance(config, ViTConfig) and preprocessing is not None:
        preprocessing = preprocessing.resized(config.image_size)
    make: Callable[..., Model] = MODELS[type(config)]
    return make(config, preprocessing=preprocessing)


# -- save ----------------------------------------------------------------------------------------------------

def save(model: Model, path: str | os.PathLike[str], *, about: Mapping[str, Any] | None = None) -> None:
    """Write a model with all that is needed to use it; `load` gives it back bit for bit.

    Args:
        model: a `ViT`, `CLIP` or `Captioner`.
        path: a ``.safetensors`` file; replaced atomically.
        about: where the weights come from (source, fingerprint, ...): kept in the header, not in the model.

    Raises:
        InputError: another suffix, or an object that is no model of ours.
    """
    if Path(path).suffix != ".safetensors":
        raise InputError("weights are saved as .safetensors: name the file so", source=path)
    if type(model) not in KINDS.values():
        raise InputError(f"cannot save a {type(model).__name__}: a ViT, a CLIP or a Captioner is needed")
    state = model.state_dict()
    told = {"format": FORMAT, "kind": model.kind, "config": asdict(model.config), **model.header()}
    if about:
        told["about"] = dict(about)
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

def load(source: str | os.PathLike[str], *, name: str | None = None, num_classes: int | None = None,
         image_size: int | tuple[int, int] | None = None, verify: bool = False) -> Model:
    """A model from disk or from the hub, in eval mode.

    Args:
        source: a safetensors file of ours or of a known family; a folder that holds one with its config.json; the
            name of weights shipped with the library, looked for in ``$MINIVL_WEIGHTS``, the checkout's
            ``weights/``, the installed package and the user cache; a preset's name; or a hub id
            (``owner/name``), downloaded into huggingface_hub's cache.
        name: the preset that foreign weights are, where neither file nor folder tell; ours are what they say.
        num_classes: replaces the head of a classifier by a new random one (0 = no head) where it differs.
        image_size: (height, width) or side of the images to take; the position table of a ViT (of a CLIP's or
            captioner's too) is resized by the rule its config names.
        verify: recompute the sha256 that `save` wrote, and the fingerprint that a conversion noted, and refuse a
            file that differs from either.

    Returns:
        A `ViT`, `CLIP` or `Captioner`.

    Raises:
        InputError: no such file, name or hub id; a file that is no safetensors; a training's folder or state; tensors
            that do not fit, all of them listed; heads, activation or eps that neither file nor name tell; a failed
            verification.
    """
    path = find_weights(source)
    if path.is_dir():
        if verify:
            raise InputError("carries no sha256 to verify: convert it first (python -m weights.convert)", source=path)
        model = from_folder(path, name=name or str(source)).model
    else:
        model = _from_file(path, verify, name)
    if num_classes is not None:
        _replace_head(model, num_classes, path)
    if image_size is not None:
        resize(model, image_size, path)
    return model.eval()


def _from_file(path: Path, verify: bool, name: str | None) -> Model:
    if path.suffix in PICKLED:
        raise InputError(f"is not safetensors: python -m weights.convert {path} OUT.safetensors makes it so",
                         source=path)
    state, metadata = read_tensors(path)
    if HEADER_KEY in metadata:
        return _own(state, metadata[HEADER_KEY], path, verify)
    if "training" in metadata:
        there = [name for name in OF_A_RUN if path.with_name(name).is_file()]
        raise InputError("is the state of a training, which --resume goes on from, and holds no whole model: "
                         + (f"give {' or '.join(there)} beside it" if there else f"{OF_A_RUN[0]} will lie beside it "
                            "when its weights have been evaluated for the first time"), source=path)
    if verify:
        raise InputError("carries no sha256 to verify: it was not written by minivl.save", source=path)
    try:
        return from_state_dict(state, name=name or path.name)
    except InputError as error:
        raise InputError(str(error), source=path) from None


def _own(state: dict[str, Tensor], header_text: str, path: Path, verify: bool) -> Model:
    """A model from a file that `save` wrote."""
    header = read_own(header_text, path)
    try:
        if header["format"] != FORMAT:
            raise InputError(f"is of format {header['format']!r:.40}, this version reads {FORMAT}")
        if header["kind"] not in KINDS:
            raise InputError(f"holds a {header['kind']!r:.40}, which this version does not know")
        check_counts(flatten(header["config"]), len(state))
        with torch.device("meta"):  # shapes are enough: every tensor is put in below
            model = KINDS[header["kind"]].from_header(header)
    except InputError as error:
        raise InputError(str(error), source=path) from None
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError) as error:
        raise InputError(f"its minivl header is damaged ({type(error).__name__}: {str(error):.200})",
                         source=path) from None
    if verify and _digest(state, header) != header.get("sha256"):
        raise InputError("its sha256 is not that of its content: the file was changed after it was saved",
                         source=path)
    table.check(state, model.state_dict(), source=str(path))
    fill(model, state)
    if strange := not_finite(model):
        logger.warning("%s: %d tensors hold nan or infinite values: %s", path, len(strange), some(strange))
    if verify and header.get("about", {}).get("fingerprint") is not None:
        check_fingerprint(model.eval(), header["about"]["fingerprint"], source=path)
    return model


def read_own(header_text: str, path: Path) -> dict[str, Any]:
    """What `save` says of a model in the header of its file.

    Raises:
        InputError: no JSON object, or entries that programs read are not what they must be.
    """
    try:
        header = json.loads(header_text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"its minivl header is damaged ({type(error).__name__}: {str(error):.200})",
                         source=path) from None
    names = header.get("class_names") if isinstance(header, dict) else None
    wrong = ("it is no object" if not isinstance(header, dict) else
             "its about is no object" if not isinstance(header.get("about", {}), dict) else
             "its class_names are no list of texts" if names is not None and not (
                 isinstance(names, list) and all(isinstance(one, str) for one in names)) else
             "its tokenizer is no text" if not isinstance(header.get("tokenizer"), (str, NoneType)) else "")
    if wrong:
        raise InputError(f"its minivl header is damaged: {wrong}", source=path)
    return header


def from_folder(folder: Path, *, name: str | None = None, state: Mapping[str, Tensor] | None = None,
                family: str = "auto", description: Mapping[str, Any] | None = None,
                tokenizer: Tokenizer | None = None) -> Conversion:
    """A model of a folder as the hub has them: weights, config.json, preprocessor_config.json, tokenizer files.

    Args:
        folder: the folder.
        name: what it is called, e.g. its hub id.
        state: its tensors, where they are not to be read from its safetensors.
        family: as in `from_state_dict`.
        description, tokenizer: win over those of the folder.

    Raises:
        InputError: as `from_state_dict`; a file of the folder that is damaged.
    """
    described = {file.name: read_json(file) for file in sorted(folder.glob("*.json")) if file.name in hub.DESCRIPTIONS}
    if wrong := [file for file, value in described.items() if not isinstance(value, dict)]:
        raise InputError("is no JSON object", source=folder / wrong[0])
    own = hub.DESCRIPTIONS[1]  # open_clip's; what lies beside it then is of transformers' weights
    if own in described and hub.weights_name({file.name for file in folder.iterdir()}, folder,
                                             pickled=True).startswith("open_clip"):
        described = {own: described[own]}
    description = description or next((described[file] for file in hub.DESCRIPTIONS[:2] if file in described), None)
    processor = next((described[file] for file in hub.DESCRIPTIONS[2:] if file in described), None)
    try:
        with undamaged("the processor's config"):
            settings = huggingface.preprocessing(processor) if processor else None
        done = convert(hub.weights_of(folder) if state is None else state, family=family, name=name,
                       description=description, preprocessing=Preprocessing.or_none(settings),
                       tokenizer=tokenizer or read_tokenizer(folder, missing_ok=True))
        trained = getattr(_vit(done.model), "config", None)
        if settings and isinstance(trained, ViTConfig) and trained.image_size != tuple(settings["size"]):
            # DINOv2's tables are for 518 pixels and its processor gives 224: its library resizes at every call
            resize(done.model, tuple(settings["size"]), folder)
            done.receipt.notes.append(f"position table resized from images of {trained.image_size} to "
                                      f"{tuple(settings['size'])}, as the preprocessor wants, by rule {trained.resize}")
        return done
    except InputError as error:
        raise InputError(str(error), source=folder if name is None else name) from None


def _replace_head(model: Model, num_classes: int, source: Path) -> None:
    """No head, or a random one of another size; the latter is reported, because the trained one is gone."""
    if not isinstance(model, ViT):
        raise InputError(f"is a {model.kind} and has no classes: a ViT is needed here", source=source)
    if not isinstance(num_classes, int) or num_classes < 0:
        raise InputError(f"num_classes={num_classes!r}: give a whole number, 0 for no head")
    if num_classes == model.config.num_classes:
        return
    if num_classes:
        logger.info("head replaced: %d classes instead of %d, randomly initialised", num_classes,
                    model.config.num_classes)
    model.replace_head(num_classes)


def resize(model: Model, image_size: int | tuple[int, int], source: str | os.PathLike[str] = "model") -> None:
    """Let a model take images of another size, in place; see `ViT.resize`."""
    vit = _vit(model)
    if not isinstance(vit, ViT):
        raise InputError("takes images of any size: image_size has nothing to change", source=source)
    try:
        vit.resize(image_size)
    except InputError as error:
        raise InputError(str(error), source=source) from None
    if isinstance(model, Captioner) and model.preprocessing is not None:
        model.preprocessing = model.preprocessing.resized(vit.config.image_size)


def _vit(model: Model) -> torch.nn.Module:
    """The part of a model that sees the images."""
    return model.visual if isinstance(model, CLIP) else model.encoder if isinstance(model, Captioner) else model


# -- foreign weights -----------------------------------------------------------------------------------------

def from_state_dict(state: Mapping[str, Tensor], *, family: str = "auto",
                    config: Mapping[str, Any] | None = None, name: str | None = None) -> Model:
    """A model of ours from another library's tensors in memory; `convert` gives its receipt too.

    What tensors cannot tell (heads, activation, eps, preprocessing) comes, in this order, from `config`,
    from a `name` that begins with a preset's, or from the presets of those shapes, if they agree.

    Args:
        state: name -> tensor; not changed.
        family: one of `FAMILIES`, or "auto" to recognise it by its keys.
        config: our fields (inner ones nested or dotted), or the family's own description as a dict.
        name: a preset's name, or a file name that begins with one.

    Returns:
        The model in eval mode, its tensors copies of those given, in their dtype.

    Raises:
        InputError: an unknown family; tensors missing, unexpected, doubled, of another shape or type (all listed);
            a field that contradicts the tensors; or several presets that fit and differ.
    """
    return convert(state, family=family, config=config, name=name).model


# -- where weights lie ---------------------------------------------------------------------------------------

def weight_folders() -> list[Path]:
    """Where shipped weights are looked for, in this order."""
    named = os.environ.get("MINIVL_WEIGHTS")
    here = Path(__file__).resolve().parent
    return [*([Path(named)] if named else []), here.parent / "weights", here / "_weights", hub.cache_folder()]


def find_weights(source: str | os.PathLike[str]) -> Path:
    """The file or folder of a path, of a shipped name, of a preset or of a hub id (which is downloaded).

    Raises:
        InputError: there is none (shipped names are listed), or it is the folder of a training, which has several.
    """
    path = Path(source)
    if path.is_file():
        return path
    if path.is_dir():
        of_run = [name for name in OF_A_RUN if (path / name).is_file()]
        if of_run and not any((path / name).is_file() for name in hub.WEIGHTS):
            raise InputError(f"is the folder of a training: give {' or '.join(of_run)} in it", source=path)
        if not any((path / name).is_file() for name in hub.DESCRIPTIONS):
            raise InputError("is a folder without a config.json; a .safetensors file is needed", source=path)
        return path
    shipped: dict[str, Path] = {}
    for folder in reversed(weight_folders()):
        shipped.update({file.stem: file for file in sorted(folder.glob("*.safetensors"))})
    name = path.name.removesuffix(".safetensors")  # not path.stem: names may hold dots
    if path.parent == Path(".") and name in shipped:
        return shipped[name]
    preset = PRESETS.get(ALIASES.get(str(source), str(source)))
    if preset is not None and preset.hub is None:
        raise InputError("is a preset without published weights: minivl.create makes a random model of it",
                         source=source)
    if preset is not None or hub.is_id(str(source)):
        id = str(source) if preset is None or preset.hub is None else preset.hub
        converted = hub.converted(id)
        try:
            return converted if converted.is_file() else hub.snapshot(id)
        except InputError as error:
            if preset is not None:
                raise
            why = str(error).removeprefix(f"{id}: ")
            raise InputError(f"no such file; as a hub id: {why}", source=source) from None
    raise InputError(f"no such file, and no weights of that name are shipped; there are: "
                     f"{some(shipped) if shipped else 'none'}" + "; a hub id is owner/name" * ("/" in str(source)),
                     source=path)
