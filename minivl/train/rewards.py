"""What a caption of a picture is worth to self-critical training: CIDEr-D, CLIPScore or a weighted sum of both."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from ..errors import InputError, some
from ..metrics.cider import Scorer
from ..metrics.clipscore import PRESETS
from ..metrics.docfreq import DocFreq
from ..metrics.tokens import Tokenize, tokenizer
from ..models.clip import CLIP
from .clip_features import check_reads, text_features

REWARDS = ("cider", "clip")
END = "<END>"  # no way to split captions leaves capitals
CACHED = 1 << 14  # texts whose features are remembered


class Said(NamedTuple):
    """A caption that a model has said.

    Attributes:
        text: its words.
        ended: whether the model ended it, rather than being cut short.
    """

    text: str
    ended: bool


class Ended:
    """Text -> tokens with an end token behind them; for people's captions, which all end. A metric may be given it.

    Without the end among what is rewarded, models learn to stop in the middle: a caption cut after "on a" then loses
    nothing by it. (Luo's code for self-critical training rewards it in this way.)

    Args:
        tokenize: as in `minivl.metrics.cider.cider`.

    Attributes:
        plain: that way to split.
        name: for signatures, e.g. "ptb-coco+end".
    """

    def __init__(self, tokenize: str | Tokenize = "ptb-coco") -> None:
        self.plain = tokenizer(tokenize, "rewards")
        self.name = f"{self.plain.name}+end"

    def __call__(self, text: str) -> list[str]:
        """The tokens and the end; none where there is no token."""
        return self.of(Said(text, True))

    def of(self, said: Said) -> list[str]:
        """The tokens, and the end where the caption has one."""
        tokens = list(self.plain.split(said.text))
        return [*tokens, END] if tokens and said.ended else tokens


class CiderReward:
    """CIDEr-D against the references of each picture, by document frequencies that stay.

    Args:
        references: captions of each picture.
        df: over the tokens that `tokenize` and `end` say; None: of these references.
        tokenize: as in `minivl.metrics.cider.cider`.
        end: whether the end token counts among the tokens, see `Ended`.

    Attributes:
        signature: of the scores.

    Raises:
        InputError: references that `cider` refuses, or a `DocFreq` of other tokens.
    """

    def __init__(self, references: Sequence[Sequence[str]], *, df: DocFreq | None = None,
                 tokenize: str | Tokenize = "ptb-coco", end: bool = True) -> None:
        told = dict(enumerate(references))
        self._ended = Ended(tokenize)
        split: str | Tokenize = self._ended if end else tokenize
        self._end = end
        if df is None:
            df = DocFreq.from_references(told, tokenize=split)
        self._scorer = Scorer(told, df=df, n=df.n, tokenize=split)
        self.signature = self._scorer.signature

    def __call__(self, photos: Sequence[int], said: Sequence[Said]) -> np.ndarray:
        """(B,) float64, 0 to 10, of captions of these pictures."""
        tokens = [self._ended.of(one if self._end else one._replace(ended=False)) for one in said]
        return self._scorer.score_tokens(list(zip(photos, tokens)))


class ClipReward:
    """CLIPScore, with the features of all pictures made before.

    Each text is encoded on its own: a matrix product over several may round each of them otherwise, and a reward is
    to depend on nothing but picture and caption. What was encoded lately is remembered.

    Args:
        clip: of `minivl.train.clip_features.load_clip`, on its device.
        images: (n, D) `image_features` of each picture by it.
        references: captions of each picture, of which one each is looked at: whether the pair can read them.
        preset: of `minivl.metrics.clipscore.PRESETS`.
        precision: "fp32", "bf16" or "fp16" (autocast).

    Raises:
        InputError: an unknown preset, a pair without tokenizer or one that does not know the words of most
            references, features of another CLIP or number of pictures, or that point nowhere.
    """

    def __init__(self, clip: CLIP, images: Tensor, references: Sequence[Sequence[str]], *, preset: str = "hessel",
                 precision: str = "fp32") -> None:
        if preset not in PRESETS:
            raise InputError(f"preset={preset!r} is unknown; there are: {', '.join(PRESETS)}", source="clip reward")
        if images.ndim != 2 or images.shape != (len(references), clip.config.text.embed_dim):
            raise InputError(f"features of shape {tuple(images.shape)}: {len(references)} pictures have "
                             f"({len(references)}, {clip.config.text.embed_dim}) by this CLIP", source="clip reward")
        check_reads(clip, [text for told in references for text in told[:1]], source="clip reward")
        rows = images.detach().cpu().double()
        wrong = ~rows.isfinite().all(1) | (rows == 0).all(1)
        if wrong.any():
            raise InputError(f"the features of picture {int(wrong.int().argmax())} are zero, nan or infinite",
                             source="clip reward")
        self._clip, self._preset, self._precision = clip.eval(), PRESETS[preset], precision
        self._images = (rows / rows.norm(dim=1, keepdim=True)).numpy()  # (n, D)
        self._texts: dict[str, np.ndarray] = {}

    def __call__(self, photos: Sequence[int], said: Sequence[Said]) -> np.ndarray:
        """(B,) float64 of captions of these pictures."""
        scores = [self._preset.weight * math.fsum(self._images[photo] * self._text(one.text))
                  for photo, one in zip(photos, said)]
        return np.maximum(scores, 0.0) if self._preset.clamp == "image" else np.array(scores)

    def _text(self, caption: str) -> np.ndarray:
        """(D,) of length 1."""
        if caption not in self._texts:
            row = text_features(self._clip, [self._preset.text(caption)], precision=self._precision)[0]
            values = row.double().numpy()
            if not values.any():
                raise InputError("its features by this CLIP are all zero", source=repr(caption[:60]))
            if len(self._texts) >= CACHED:
                self._texts.clear()
            self._texts[caption] = values / math.sqrt(math.fsum(values * values))
        return self._texts[caption]


class Rewards:
    """The weighted sum of what is rewarded.

    What a caption of a picture is worth depends on nothing else, to the last bit: neither on the captions judged
    with it nor on their number.

    Args:
        references: captions of each picture.
        weights: of "cider" (CIDEr-D, 0 to 10) and "clip" (CLIPScore); 0 leaves one out.
        df, tokenize, end: see `CiderReward`.
        clip, images, preset, precision: see `ClipReward`.

    Attributes:
        weights: those above 0.

    Raises:
        InputError: an unknown name, a weight below 0 or all of them 0; "clip" without a pair or features, or these
            without "clip"; as `CiderReward` and `ClipReward`.
    """

    def __init__(self, references: Sequence[Sequence[str]], weights: Mapping[str, float] | None = None, *,
                 df: DocFreq | None = None, tokenize: str | Tokenize = "ptb-coco", end: bool = True,
                 clip: CLIP | None = None, images: Tensor | None = None, preset: str = "hessel",
                 precision: str = "fp32") -> None:
        given = {"cider": 1.0} if weights is None else dict(weights)
        self.weights = _above_zero(given)
        told = [list(captions) for captions in references]
        self._count = len(told)
        self._terms: dict[str, Callable[[Sequence[int], Sequence[Said]], np.ndarray]] = {}
        if ("clip" in self.weights) != (clip is not None and images is not None):
            raise InputError('"clip" needs a CLIP and the features of all pictures, and they need a weight for "clip"',
                             source="rewards")
        if "cider" in self.weights:
            self._terms["cider"] = CiderReward(told, df=df, tokenize=tokenize, end=end)
        elif df is not None:
            raise InputError('document frequencies are for "cider", which has no weight', source="rewards")
        if clip is not None and images is not None:
            self._terms["clip"] = ClipReward(clip, images, told, preset=preset, precision=precision)

    def __len__(self) -> int:
        """The number of pictures."""
        return self._count

    def __call__(self, photos: Sequence[int], said: Sequence[Said]) -> np.ndarray:
        """(B,) float64: what each caption of these pictures is worth."""
        total = np.zeros(len(said))
        for name, weight in self.weights.items():
            total += weight * self._terms[name](photos, said)
        return total


def _above_zero(weights: Mapping[str, float]) -> dict[str, float]:
    unknown = [name for name in weights if name not in REWARDS]
    if unknown:
        raise InputError(f"{some(unknown)}: unknown; there are: {', '.join(REWARDS)}", source="rewards")
    for name, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < math.inf:
            raise InputError(f"{name}={weight!r}: give a weight of 0 or more", source="rewards")
    chosen = {name: float(weights[name]) for name in REWARDS if weights.get(name)}
    if not chosen:
        raise InputError(f"nothing is rewarded: give {' or '.join(REWARDS)} a weight above 0", source="rewards")
    return chosen
