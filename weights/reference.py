"""What the library that weights come from computes on the fixed input of `minivl.fingerprint`, where it is installed.

A fingerprint by another's code is worth more than one by ours: it shows that the conversion is right, not only that
the file has not changed since.
"""

from __future__ import annotations

import importlib
import logging
import tempfile
import warnings
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from minivl.convert.build import Conversion
from minivl.errors import InputError, some
from minivl.fingerprint import probe, traits

log = logging.getLogger(__name__)

Answers = dict[str, Tensor]
Found = tuple[nn.Module, Answers]
State = Mapping[str, Tensor]
Description = Mapping[str, Any]


def answers(state: State, done: Conversion, description: Description | None) -> tuple[str, Answers] | None:
    """The answers of the library a source comes from.

    Args:
        state: the source's own tensors.
        done: what it became.
        description: its config.json, where there is one.

    Returns:
        ``("library version", output -> tensor)``, or None: no such library here, or no such model in it. A library
        that takes the tensors and fails is None too, with a line in the log.

    Raises:
        InputError: the library's model has another activation or eps than the one converted.
    """
    library, compute = FAMILIES.get(done.family, (None, None))
    if library is None or compute is None:
        return None
    try:
        importlib.import_module(library)
    except ImportError:
        return None
    given = probe(done.model)
    state = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = compute(state, done, description, given)
    except Exception as error:  # whatever a foreign library raises is no reason not to convert
        log.warning("%s does not compute this model (%s: %s): the fingerprint is our own", library,
                    type(error).__name__, str(error).split("\n")[0][:200])
        return None
    if found is None:
        return None
    model, values = found
    theirs, ours = traits(model), traits(done.model)
    if wrong := [f"{name} {ours[name]} where {library} has {theirs[name]}" for name in ours
                 if theirs[name] and ours[name] != theirs[name]]:  # a function in place of a module does not show
        raise InputError(f"converted with {some(wrong)}: name the preset (--name) or give its config.json (--config)")
    return f"{library} {version(PACKAGES.get(library, library))}", values


def _timm(state: State, done: Conversion, description: Description | None, given: State) -> Found | None:
    timm = importlib.import_module("timm")
    name = str((description or {}).get("architecture", done.preset or "")).split(".")[0]
    if not timm.is_model(name):
        return None
    config: Any = done.model.config
    arguments = {"num_classes": config.num_classes, "img_size": config.image_size,
                 **dict((description or {}).get("model_args") or {})}
    model = timm.create_model(name, **arguments).eval()
    filter_ = importlib.import_module("timm.models.vision_transformer").checkpoint_filter_fn
    model.load_state_dict(filter_(dict(state), model), strict=True)  # it takes facebook's names, too
    tokens = model.forward_features(given["images"])
    return model, {"tokens": tokens, "logits": model.forward_head(tokens)}


def _npz(state: State, done: Conversion, description: Description | None, given: State) -> Found | None:
    vision = importlib.import_module("timm.models.vision_transformer")
    config: Any = done.model.config
    if not config.class_token or config.pool != "class" or config.mlp != "mlp":
        return None
    model = vision.VisionTransformer(
        img_size=config.image_size, patch_size=config.patch_size, embed_dim=config.width, depth=config.depth,
        num_heads=config.num_heads, mlp_ratio=config.mlp_dim / config.width, num_classes=config.num_classes,
        no_embed_class=not config.pos_prefix).eval()
    with tempfile.TemporaryDirectory() as folder:  # its reader takes a file
        file = Path(folder) / "source.npz"
        arrays: Any = {name: tensor.numpy() for name, tensor in state.items()}
        numpy.savez(file, **arrays)
        model.load_pretrained(str(file))
    tokens = model.forward_features(given["images"])
    return model, {"tokens": tokens, "logits": model.forward_head(tokens)}


def _lukemelas(state: State, done: Conversion, description: Description | None, given: State) -> Found | None:
    library = importlib.import_module("pytorch_pretrained_vit")
    if done.preset is None:
        return None
    config: Any = done.model.config
    model = library.ViT(done.preset, image_size=config.image_size, num_classes=config.num_classes).eval()
    kept = {key: tensor for key, tensor in state.items() if key not in done.receipt.dropped}
    model.load_state_dict(kept, strict=True)
    return model, {"logits": model(given["images"])}


def _transformers(state: State, done: Conversion, description: Description | None, given: State) -> Found | None:
    library = importlib.import_module("transformers")
    if not description or not description.get("architectures"):
        return None
    kind = getattr(library, description["architectures"][0])
    config = kind.config_class.from_dict(dict(description))
    model: Any = kind.from_pretrained(None, config=config, state_dict=dict(state),
                                      attn_implementation="eager").eval()
    images = given["images"]
    if done.family == "hf_clip":
        mask = torch.ones_like(given["ids"])
        found = model(input_ids=given["ids"], pixel_values=images, attention_mask=mask, interpolate_pos_encoding=True)
        return model, {"logits": found.logits_per_image}
    if done.family == "vit_gpt2":
        found = model(pixel_values=images, decoder_input_ids=given["ids"], interpolate_pos_encoding=True)
        return model, {"logits": found.logits}
    if done.family == "blip":
        seen = model.vision_model(pixel_values=images, interpolate_pos_encoding=True).last_hidden_state
        logits = model.text_decoder(input_ids=given["ids"], encoder_hidden_states=seen).logits
        return model, {"memory": seen, "logits": logits}
    options = {} if done.family == "hf_dinov2" else {"interpolate_pos_encoding": True}
    inner = next((getattr(model, name) for name in ("vit", "deit", "dinov2", "dinov2_with_registers")
                  if hasattr(model, name)), model)
    answered: Answers = {"tokens": inner(images, **options).last_hidden_state}
    if inner is not model:
        answered["logits"] = model(images, **options).logits
    return model, answered


def _open_clip(state: State, done: Conversion, description: Description | None, given: State) -> Found | None:
    library = importlib.import_module("open_clip")
    kept = {key: tensor for key, tensor in state.items() if key not in done.receipt.dropped}
    if "input_resolution" in state:
        build = importlib.import_module("open_clip.model").build_model_from_openai_state_dict
        entries = {key: state[key] for key in ("input_resolution", "context_length", "vocab_size") if key in state}
        model = build({**kept, **entries}, cast_dtype=torch.float32).eval().float()
    elif done.preset in library.list_models():
        model = library.create_model(done.preset).eval()
    else:
        return None
    model.load_state_dict(kept, strict=True)  # again: what builds OpenAI's model rounds to half precision
    image, text = model.encode_image(given["images"]), model.encode_text(_whole(given["ids"], model))
    return model, {"image": image, "text": text}


def _whole(ids: Tensor, model: Any) -> Tensor:
    """ids (B, T) padded to the text positions of a model that takes no fewer."""
    return nn.functional.pad(ids, (0, model.context_length - ids.shape[1]))


FAMILIES: dict[str, tuple[str, Callable[[State, Conversion, Description | None, State], Found | None]]] = {
    "timm": ("timm", _timm), "npz": ("timm", _npz), "lukemelas": ("pytorch_pretrained_vit", _lukemelas),
    "clip": ("open_clip", _open_clip),
    **{family: ("transformers", _transformers) for family in ("hf_vit", "hf_dinov2", "hf_clip", "vit_gpt2", "blip")}}
PACKAGES = {"open_clip": "open_clip_torch", "pytorch_pretrained_vit": "pytorch-pretrained-vit"}
