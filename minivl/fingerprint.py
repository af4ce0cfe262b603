"""What a model answers to a fixed input: a mark of its behaviour, for what tensors and keys cannot show.

QuickGELU taken for GELU, an eps of 1e-12 for 1e-6, queries taken for keys: all tensors fit, and the outputs are
wrong. A converted file notes outputs of the library it came from; `minivl.load(..., verify=True)` compares.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from .errors import InputError, some
from .models.captioner import Captioner
from .models.clip import CLIP
from .models.vit import ViT
from .nn.blocks import ACTIVATIONS, activation

VALUES = 64  # of each output
# of the largest value: float32 of one machine and another differ by a tenth of it, an eps of 1e-12 for 1e-6 by
# several times as much (measured on DeiT-tiny)
TOLERANCE = 5e-6
LENGTH = 6  # tokens of the text


def probe(model: ViT | CLIP | Captioner) -> dict[str, Tensor]:
    """The fixed input of a model of this shape.

    Returns:
        images (2, 3, H, W), the first noise, the second so faint that all its tokens are nearly the same and the eps of
        the norms shows; and, where there is text, ids (2, T) that begin with its first and end with its last token.
    """
    generator = torch.Generator().manual_seed(0)
    vit = model.visual if isinstance(model, CLIP) else model.encoder if isinstance(model, Captioner) else model
    size = vit.config.image_size if isinstance(vit, ViT) else (96, 64)
    channels = vit.config.in_channels if isinstance(vit, ViT) else 3
    images = torch.randn(2, channels, *size, generator=generator)
    images[1] *= 1e-3
    if isinstance(model, ViT):
        return {"images": images}
    if isinstance(model, CLIP):
        text = model.config.text
        first, last, most = text.bos_id, text.eot_id, text.max_len
        low = min(first, last)  # no other token is the end
    else:
        decoder = model.config.decoder
        first, last, most, low = decoder.bos_id, decoder.eos_id, decoder.max_len, decoder.vocab_size
    ids = torch.randint(0, max(low, 1), (2, min(LENGTH, most)), generator=generator)
    ids[:, 0], ids[:, -1] = first, last
    return {"images": images, "ids": ids}


@torch.no_grad()
def outputs(model: ViT | CLIP | Captioner) -> dict[str, Tensor]:
    """What the model answers to `probe`, in float32 on the CPU: name of the output -> tensor."""
    model = copy.deepcopy(model).float().cpu().eval()
    given = probe(model)
    if isinstance(model, ViT):
        tokens = model.encode(given["images"])
        return {"tokens": tokens, "logits": model.logits(tokens)}
    if isinstance(model, CLIP):
        return {"image": model.encode_image(given["images"]), "text": model.encode_text(given["ids"]),
                "logits": model(given["images"], given["ids"])}
    memory = model.encode(given["images"])
    return {"memory": memory.tokens, "logits": model.replay(None, given["ids"], memory=memory)}


def traits(model: nn.Module) -> dict[str, list[Any]]:
    """What a network, ours or another's, shows of its arithmetic without computing: the eps of its layer norms, and
    its activations, told by what they do to a few numbers.

    Returns:
        ``{"act": our names, "eps": numbers}``, each sorted.
    """
    x = torch.linspace(-4, 4, 33)
    eps = {module.eps for module in model.modules() if isinstance(module, nn.LayerNorm)}
    acts = {name for module in model.modules() for name in ACTIVATIONS
            if re.search("gelu|relu", type(module).__name__, re.IGNORECASE)
            and torch.allclose(module(x.clone()), activation(name)(x), atol=1e-6)}
    return {"act": sorted(acts), "eps": sorted(eps)}


def norm_order(model: ViT | CLIP | Captioner) -> str:
    """Where the norms of its text blocks stand, those of images being always first: "pre" or "post"."""
    return model.config.decoder.norm if isinstance(model, Captioner) else "pre"


def fingerprint(model: ViT | CLIP | Captioner, answers: Mapping[str, Tensor], by: str) -> dict[str, Any]:
    """Some values of each output, at places drawn once and for all, and the traits beside them.

    Args:
        model: ours.
        answers: what `outputs`, or the reference library on the same `probe`, gave.
        by: who computed it.

    Returns:
        ``{"by": ..., "values": {output: list of floats}, "act": ..., "eps": ..., "norm": ...}``, JSON-able.
    """
    return {"by": by, "values": {name: _sample(answer).tolist() for name, answer in answers.items()},
            **traits(model), "norm": norm_order(model)}


def _sample(answer: Tensor) -> Tensor:
    places = torch.randint(0, answer.numel(), (VALUES,), generator=torch.Generator().manual_seed(answer.numel()))
    return answer.detach().float().cpu().flatten()[places]


def check_fingerprint(model: ViT | CLIP | Captioner, noted: Mapping[str, Any],
                      source: str | PathLike[str]) -> dict[str, float]:
    """Compare a model with the fingerprint its file notes.

    Returns:
        output -> largest difference, as a part of its largest value.

    Raises:
        InputError: one differs by more than `TOLERANCE`, or the note is damaged.
    """
    if not isinstance(noted, Mapping):
        raise InputError("its fingerprint is damaged: it is no object", source=source)
    mine = {**traits(model), "norm": norm_order(model)}
    if others := [f"{name} is {mine[name]}, noted was {noted.get(name)}" for name in mine
                  if mine[name] != noted.get(name)]:
        raise InputError(f"is not the model that was converted: {some(others)}", source=source)
    answers = outputs(model)
    differences = {}
    try:
        by, values = noted["by"], {name: torch.tensor(list(map(float, told))) for name, told in noted["values"].items()}
        for name, told in values.items():
            apart = (_sample(answers[name]) - told).abs().max()
            differences[name] = float(apart / told.abs().max().clamp(min=1e-12))
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise InputError(f"its fingerprint is damaged ({type(error).__name__}: {error})", source=source) from None
    wrong = {name: difference for name, difference in differences.items() if not difference <= TOLERANCE}
    if wrong or not differences:
        listed = ", ".join(f"{name} by {difference:.1e}" for name, difference in wrong.items()) or "nothing to compare"
        raise InputError(f"does not compute what {by} computed when it was converted ({listed} of the largest value): "
                         "another activation, eps, norm order or tensor", source=source)
    return differences
