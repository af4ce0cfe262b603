"""Which preset weights are, by their name or their shapes; and fields of configs, flat."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from functools import cache
from typing import Any

from ..errors import InputError, some
from ..models.presets import ALIASES, PRESETS, Preset
from .family import Flat

# Presets of equal shapes may differ in these without being other models.
LOOSE = ("num_classes", "pool", "norm_after_pool", "dropout", "attn_dropout", "drop_path", "resize")
# What tensors tell by being there at all. Where a named preset or a config says otherwise, that counts, so that the
# check names the tensor that is missing or unexpected.
PRESENCE = ("class_token", "dist_token", "registers", "pos_prefix", "pre_norm", "patch_bias", "layer_scale", "qkv_bias")


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
def flat(preset: str) -> Flat:
    """The config of a preset; not to be changed."""
    return flatten(PRESETS[preset].config)


def last(name: str) -> str:
    """A field's own name, without the config it is in."""
    return name.rpartition(".")[2]


def agree(told: Flat, given: Flat) -> Flat:
    """Fields from tensors and from elsewhere; raises where they contradict."""
    full = dict(told)
    for name, value in given.items():
        own = last(name)
        value = (value, value) if own in ("image_size", "patch_size") and isinstance(value, int) else value
        # Tensors tell the number of patches only: an image_size of another number will not fit pos_embed.
        if name in told and told[name] != value and own not in ("image_size", "resize", *PRESENCE):
            raise InputError(f"config says {name}={value!r}, the tensors say {told[name]!r}")
        full[name] = value
    return full


def fitting_names(family: str, told: Flat, but: tuple[str, ...] = LOOSE) -> list[str]:
    """Names of the presets of a family that have the shapes the tensors have, some fields apart."""
    return [name for name, preset in PRESETS.items() if family in preset.families
            and all(field in flat(name) and flat(name)[field] == value for field, value in told.items()
                    if last(field) not in but)]


def _different(names: Iterable[str]) -> list[str]:
    """Of presets that are alike (the head apart) the first."""
    first: dict[Any, str] = {}
    for name in names:
        fields = tuple(sorted((field, value) for field, value in flat(name).items() if last(field) not in LOOSE))
        first.setdefault((fields, PRESETS[name].preprocessing), name)
    return list(first.values())


def begins(name: str) -> list[str]:
    """The presets, and old names of them, that a name begins with; of a preset of the hub the owner may be missing."""
    name = name.removeprefix("timm/")
    return [known for known in (*PRESETS, *ALIASES)
            if name.startswith(known) or name.startswith(known.rpartition("/")[2])]


def choose(family: str, told: Flat, name: str | None, full: Flat, needed: bool) -> tuple[str | None, Preset | None]:
    """The preset that `name` begins with (or an old name of it), or the one all fitting presets agree with.

    A preset that was not named is not taken where other fields contradict it.
    """
    fitting = fitting_names(family, told)
    if name is not None:
        # a file name has no slash: after the owner a hub id goes on as files are called
        named = [known for known in begins(name) if family in PRESETS[ALIASES.get(known, known)].families]
        if named:
            longest = max(named, key=len)
            longest = ALIASES.get(longest, longest)
            if longest not in fitting_names(family, told, LOOSE + PRESENCE):
                raise InputError(f"is named {longest}, but its tensors have other shapes"
                                 + (f"; they fit: {some(_different(fitting))}" if fitting else ""))
            return longest, PRESETS[longest]
    fitting = [known for known in fitting
               if needed or all(flat(known).get(field) == value for field, value in full.items()
                                if last(field) not in LOOSE)]
    return (fitting[0], PRESETS[fitting[0]]) if len(_different(fitting)) == 1 else (None, None)


def undecided(family: str, told: Flat, needed: Sequence[str]) -> str:
    fitting = _different(fitting_names(family, told))
    if fitting:
        return ("heads, activation, eps and preprocessing are not in the tensors, and several presets fit: "
                f"{some(fitting, 12)}; name the file after one, or give name= or config=")
    shapes = ", ".join(f"{field} {value}" for field, value in told.items()
                       if last(field) in ("width", "depth", "patch_size", "image_size"))
    return (f"of family {family}, and no preset has these shapes ({shapes}): give config={{{needed[0]!r}: ...}}"
            + (f", and {some(needed[1:], 9)}" if needed[1:] else ""))
