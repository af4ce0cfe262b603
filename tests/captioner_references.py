"""What the tests of published captioners share: comparing logits, attention and captions with a reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import minivl
from minivl.models.captioner import Captioner

# beams, our name of the ranking, the arguments of transformers' generate that mean the same
SEARCHES: dict[str, tuple[int, str, dict[str, Any]]] = {
    "greedy": (1, "none", {}),
    "3 beams": (3, "none", {"length_penalty": 0.0}),
    "5 beams": (5, "none", {"length_penalty": 0.0}),
    "3 beams, mean": (3, "mean", {"length_penalty": 1.0, "early_stopping": "never"}),
    "5 beams, mean": (5, "mean", {"length_penalty": 1.0, "early_stopping": "never"}),
}


class Answer(NamedTuple):
    """A reference's teacher-forced pass: logits (B, T, V), and weights of every layer (B, h, Q, K) by site."""

    logits: Tensor
    weights: Mapping[str, Sequence[Tensor]]


def base_sized(model: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter random, so that activations stay of order one at any width; eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(generator=generator)
            if parameter.ndim == 1:
                norm = name.endswith("weight")
                parameter.mul_(0.2).add_(float(norm))
            elif parameter.ndim == 3:  # a table of positions, a token
                parameter.mul_(0.5)
            else:  # a word table is a matrix of words too
                parameter.div_(parameter[0].numel() ** 0.5)
    return model.eval()


def pixels(count: int, size: tuple[int, int] = (12, 12), seed: int = 0) -> Tensor:
    """Random pictures (count, 3, *size)."""
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(seed))


def words(count: int, length: int, vocabulary: int, seed: int = 0) -> Tensor:
    """Random ids (count, length)."""
    return torch.randint(0, vocabulary, (count, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def compare(ours: Captioner, answer: Answer, images: Tensor, ids: Tensor) -> tuple[float, float]:
    """Largest differences of logits (at most 1e-5) and of attention (1e-6) in one call and in cached steps."""
    record = minivl.AttnRecord()
    logits = ours(images, ids, attn=record)
    assert 0.1 < answer.logits.std() < 10, answer.logits.std()
    assert {site for site, _ in record} == set(answer.weights) == {"encoder", "self", "cross"}
    assert {site: layers for site, (layers, _) in ours.attn_sites.items()} == {
        site: len(weights) for site, weights in answer.weights.items()}
    attention = 0.0
    for site, layers in answer.weights.items():
        for layer, weights in enumerate(layers):
            assert record[site, layer].shape == weights.shape
            assert weights.shape[-1] * weights.std(-1).max() > 0.2  # looking everywhere alike would say little
            attention = max(attention, float((record[site, layer] - weights).abs().max()))
    difference = float((logits - answer.logits).abs().max())
    assert difference <= 1e-5 and attention <= 1e-6, (difference, attention)
    torch.testing.assert_close(stepwise(ours, images, ids), answer.logits, atol=1e-5, rtol=1e-5)
    return difference, attention


@torch.no_grad()
def stepwise(ours: Captioner, images: Tensor, ids: Tensor) -> Tensor:
    """The same logits out of the cache, token by token."""
    state = ours.start(ours.encode(images))
    return torch.cat([ours.step(ids[:, t:t + 1], state) for t in range(ids.shape[1])], 1)


def trimmed(row: Tensor, eos_id: int) -> tuple[int, ...]:
    """The ids of a caption up to its end token; what follows is padding."""
    ids = row.tolist()
    return tuple(ids[:ids.index(eos_id, 1) + 1] if eos_id in ids[1:] else ids)


def same_captions(ours: Captioner, generate: Callable[..., Any], images: Tensor, search: str, max_len: int = 9
                  ) -> list[tuple[int, ...]]:
    """Captions that equal those of transformers' `generate` token by token, their scores to 1e-4."""
    beams, normalise, options = SEARCHES[search]
    with torch.no_grad():
        theirs = generate(pixel_values=images, num_beams=beams, max_new_tokens=max_len, do_sample=False,
                          return_dict_in_generate=True, output_scores=True, **options)
    mine = ours.caption(images, beams=beams, max_len=max_len, normalise=normalise)
    expected = [trimmed(row, ours.config.decoder.eos_id) for row in theirs.sequences]
    assert [caption.ids for caption in mine] == expected
    if beams > 1:
        scores = torch.tensor([caption.score for caption in mine])
        torch.testing.assert_close(scores, theirs.sequences_scores, atol=1e-4, rtol=0)
    return expected


def various(captions: Mapping[str, list[tuple[int, ...]]], eos_id: int) -> None:
    """Captions that put a search to the test: some end, early or late, some do not, and searches find others."""
    found = [caption for search in captions.values() for caption in search]
    ended = [len(caption) for caption in found if caption[-1] == eos_id]
    assert 0.2 < len(ended) / len(found) < 0.95 and len(set(ended)) > 4, (len(ended), len(found), set(ended))
    for search in SEARCHES:
        if search != "greedy":
            assert sum(a != b for a, b in zip(captions["greedy"], captions[search])) > 5
    assert sum(a != b for a, b in zip(captions["5 beams"], captions["5 beams, mean"])) > 5
