"""CLIPScore and RefCLIPScore: how well a caption fits its image, by the cosine of their CLIP features.

Hessel et al.: CLIPScore: A Reference-free Evaluation Metric for Image Captioning (EMNLP 2021,
https://arxiv.org/abs/2104.08718). Three definitions go by this name; `PRESETS` has each, and a score's signature says
which one it is. Features come from outside: ``clip.encode_image(images)`` and
``clip.encode_text(clip.tokenize([preset.text(caption)]))``, whose `tokenize` cuts a long caption before its end token,
never the token itself, at which the features are read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import InputError, some
from .score import Score
from .tokens import is_label

Features = Tensor | Mapping[Any, Any]
References = Tensor | Mapping[Any, Any] | Sequence[Any]


@dataclass(frozen=True)
class Preset:
    """One definition of CLIPScore.

    Attributes:
        prefix: stands before every text that is embedded, candidates and references.
        weight: the cosine is multiplied by it.
        clamp: what is raised to 0 where it is negative: "image", the score of each, or "mean", that of all alone.
        reference: whether it defines a RefCLIPScore.
        usual: the model that its own code takes unless told otherwise; another one is another score.
    """

    prefix: str
    weight: float
    clamp: str
    reference: bool
    usual: str

    def text(self, caption: str) -> str:
        """What is to be embedded for a caption."""
        return self.prefix + caption


PRESETS: dict[str, Preset] = {
    "hessel": Preset("A photo depicts ", 2.5, "image", True, "ViT-B/32"),  # github.com/jmhessel/clipscore
    "torchmetrics": Preset("", 100.0, "mean", False, "ViT-L/14"),          # its functional.multimodal.clip_score
    "course": Preset("", 2.5, "image", False, "ViT-B/32"),                 # as homework prints it
}


def clip_score(image_features: Features, text_features: Features, *, preset: str, model: str | None = None) -> Score:
    """Score captions against their images.

    Computed in float64 whatever the features are, normalised or not.

    Args:
        image_features: id -> (D,) numbers, or (B, D) floating, whose ids are 0 to B - 1.
        text_features: of the captions, in the same form and of the same ids; each of `Preset.text` of its caption.
        preset: "hessel", "torchmetrics" or "course", see `PRESETS`.
        model: name of the CLIP, for the signature.

    Returns:
        The mean, the score of each in the order of ``text_features``, and the signature, e.g.
        ``"clipscore:hessel|w2.5|prefix:'A photo depicts '|clamp:image|tok:eot-kept|model:ViT-B-32|v1"``. With preset
        "torchmetrics" the scores of single images keep their sign; their mean alone is clamped.

    Raises:
        InputError: an unknown preset; no captions; ids that are not the same, or features that are no (D,) numbers, of
            several widths, zero, nan or infinite (the id is named).
    """
    chosen = _preset(preset)
    pairs = _pairs(image_features, text_features)
    scores = chosen.weight * _cosines(pairs.images, pairs.texts)  # (B,)
    scores = scores.clamp(min=0) if chosen.clamp == "image" else scores
    mean = float(scores.mean())
    return Score(max(mean, 0.0), dict(zip(pairs.ids, scores.tolist())), _signature("clipscore", preset, model))


def ref_clip_score(image_features: Features, text_features: Features, reference_features: References, *, preset: str,
                   model: str | None = None) -> Score:
    """Score captions against their images and against what people wrote about them.

    The harmonic mean of the CLIPScore and of the largest cosine with a reference, section 3 of the paper. As in its
    code the first is multiplied by 2.5 and the second neither multiplied nor raised to 0; a mean of two zeros, nan
    there, is 0 here. A negative cosine with every reference, which captions in human language hardly have, gives what
    the formula gives.

    Args:
        image_features, text_features: as for `clip_score`.
        reference_features: id -> (R, D) features of its references, R from 1; beside tensors (B, D) a list of B such,
            or (B, R, D). Each of `Preset.text` of its reference.
        preset: one that defines it: "hessel".
        model: as for `clip_score`.

    Returns:
        The mean, the score of each in the order of ``text_features``, and the signature, which begins with
        ``"refclipscore:"``.

    Raises:
        InputError: as `clip_score`; a preset without a RefCLIPScore; an id without references.
    """
    chosen = _preset(preset)
    if not chosen.reference:
        there = some(name for name, one in PRESETS.items() if one.reference)
        raise InputError(f"preset {preset!r} defines no RefCLIPScore; there is: {there}", source="ref_clip_score")
    pairs = _pairs(image_features, text_features)
    references, owners = _references(reference_features, pairs)  # (R', D), (R',)
    similar = _cosines(references, pairs.texts[owners])
    best = torch.full((len(pairs.ids),), -torch.inf, dtype=similar.dtype)
    best = best.scatter_reduce(0, owners, similar, "amax")  # (B,)
    fits = (chosen.weight * _cosines(pairs.images, pairs.texts)).clamp(min=0)
    total = fits + best
    scores = torch.where(total == 0, 0.0, 2 * fits * best / torch.where(total == 0, 1.0, total))
    return Score(float(scores.mean()), dict(zip(pairs.ids, scores.tolist())),
                 _signature("refclipscore", preset, model))


# -- inside --------------------------------------------------------------------------------------------------

class _Pairs(NamedTuple):
    """Features of B captions and of their images, (B, D) float64 each, in the order of the ids."""

    ids: list[Any]
    images: Tensor
    texts: Tensor


def _preset(name: str) -> Preset:
    if name not in list(PRESETS):
        raise InputError(f"preset={name!r} is unknown; there are: {', '.join(PRESETS)}", source="clip_score")
    return PRESETS[name]


def _signature(metric: str, name: str, model: str | None) -> str:
    preset = PRESETS[name]
    if model is not None and not is_label(model):
        raise InputError(f"model={model!r:.60}: a signature holds printable text without '|'", source=metric)
    told = "" if model is None else f"model:{model}|"
    return (f"{metric}:{name}|w{preset.weight:g}|prefix:{preset.prefix!r}|clamp:{preset.clamp}|tok:eot-kept|"
            f"{told}v1")


def _cosines(one: Tensor, other: Tensor) -> Tensor:
    """(B, D), (B, D), no row of zeros -> (B,)."""
    return (_units(one) * _units(other)).sum(1)


def _units(rows: Tensor) -> Tensor:
    rows = rows / rows.abs().amax(1, keepdim=True)  # so that no square leaves the range of float64
    return rows / rows.norm(dim=1, keepdim=True)


def _pairs(image_features: Features, text_features: Features) -> _Pairs:
    images, texts = _by_id(image_features, "image_features"), _by_id(text_features, "text_features")
    if isinstance(image_features, Mapping) != isinstance(text_features, Mapping):
        raise InputError("image_features and text_features are a dict and a tensor: give both in one form",
                         source="clip_score")
    if not texts:
        raise InputError("text_features is empty: there is nothing to score", source="clip_score")
    _same_ids(images, texts, "image_features")
    ids = list(texts)
    rows = [_rows("image_features", ids, [images[id] for id in ids]), _rows("text_features", ids, [*texts.values()])]
    if rows[0].shape != rows[1].shape:
        raise InputError(f"features of {rows[0].shape[1]} numbers in image_features and {rows[1].shape[1]} in "
                         f"text_features (id {ids[0]!r}): both must be of one CLIP", source="clip_score")
    return _Pairs(ids, *rows)


def _by_id(features: Any, what: str) -> dict[Any, Any]:
    if isinstance(features, Mapping):
        return dict(features)
    if isinstance(features, Tensor) and features.ndim == 2:
        return dict(enumerate(features))
    shape = f" of shape {tuple(features.shape)}" if hasattr(features, "shape") else ""
    raise InputError(f"{what} is {type(features).__name__}{shape}: give a dict, id -> (D,), or a tensor (B, D)",
                     source="clip_score")


def _same_ids(others: Mapping[Any, Any], texts: Mapping[Any, Any], what: str) -> None:
    missing, extra = [id for id in texts if id not in others], [id for id in others if id not in texts]
    if missing or extra:
        wrong = [f"{text} {some(map(repr, ids), 4)}" for text, ids in (("lacks", missing), ("has also", extra)) if ids]
        raise InputError(f"{what} {' and '.join(wrong)}: text_features must have the same ids", source="clip_score")


def _rows(what: str, ids: Sequence[Any], features: Sequence[Any]) -> Tensor:
    """Features (D,) of ids as (B, D) float64."""
    return _table(what, ids, [_row(what, id, one)[None] for id, one in zip(ids, features)])


def _table(what: str, ids: Sequence[Any], blocks: Sequence[Tensor]) -> Tensor:
    """Features (R, D) of each id as (R', D) float64."""
    for id, block in zip(ids, blocks):
        if block.shape[1] != blocks[0].shape[1]:
            raise InputError(f"{what} of id {id!r} has {block.shape[1]} numbers, that of id {ids[0]!r} "
                             f"{blocks[0].shape[1]}", source="clip_score")
    one_kind = len({block.dtype for block in blocks}) == 1  # then all at once, which is faster
    table = torch.cat(list(blocks) if one_kind else [block.double() for block in blocks]).double()  # (R', D)
    owners = [id for id, block in zip(ids, blocks) for _ in range(len(block))]
    for wrong, text in ((~table.isfinite().all(1), "holds nan or infinite values"),
                        ((table == 0).all(1), "is all zeros, which points nowhere")):
        if wrong.any():
            raise InputError(f"{what} of id {owners[int(wrong.int().argmax())]!r} {text}", source="clip_score")
    return table


def _row(what: str, id: Any, values: Any) -> Tensor:
    """(D,) numbers of whatever kind, on the CPU."""
    try:
        row = values.detach() if isinstance(values, Tensor) else torch.tensor(values)
        if row.ndim == 1 and len(row) and not row.is_complex() and row.dtype != torch.bool:
            return row.cpu()
        found = f"{row.dtype} of shape {tuple(row.shape)}"
    except (TypeError, ValueError, RuntimeError):
        found = f"a {type(values).__name__}"
    raise InputError(f"{what} of id {id!r} is {found}: a feature is (D,) numbers", source="clip_score")


def _references(features: References, pairs: _Pairs) -> tuple[Tensor, Tensor]:
    """All references (R', D), and for each the place of its caption (R',)."""
    if isinstance(features, Mapping):
        listed = dict(features)
    elif isinstance(features, Tensor) and features.ndim == 3 or isinstance(features, (list, tuple)):
        listed = dict(enumerate(features))
    else:
        raise InputError(f"reference_features is {type(features).__name__}: give a dict, id -> (R, D), a list of such, "
                         "or a tensor (B, R, D)", source="ref_clip_score")
    _same_ids(listed, dict.fromkeys(pairs.ids), "reference_features")
    blocks = [_block(id, listed[id]) for id in pairs.ids]
    table = _table("reference_features", pairs.ids, blocks)
    if table.shape[1] != pairs.texts.shape[1]:
        raise InputError(f"features of {table.shape[1]} numbers in reference_features and {pairs.texts.shape[1]} in "
                         f"text_features (id {pairs.ids[0]!r}): both must be of one CLIP", source="ref_clip_score")
    return table, torch.arange(len(blocks)).repeat_interleave(torch.tensor([len(block) for block in blocks]))


def _block(id: Any, values: Any) -> Tensor:
    """The references of one id as (R, D), on the CPU."""
    if isinstance(values, (str, bytes, Mapping)) or not hasattr(values, "__len__") or getattr(values, "ndim", 2) != 2:
        raise InputError(f"reference_features of id {id!r} is {type(values).__name__}: give (R, D), a feature per "
                         "reference", source="ref_clip_score")
    if not len(values):
        raise InputError(f"reference_features of id {id!r} has no reference: at least one is needed",
                         source="ref_clip_score")
    if isinstance(values, Tensor):
        _row("reference_features", id, values[0])  # its kind and width
        return values.detach().cpu()
    rows = [_row("reference_features", id, one) for one in values]
    return _table("reference_features", [id] * len(rows), [row[None] for row in rows])
