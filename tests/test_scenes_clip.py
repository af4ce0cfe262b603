"""The shipped image-text pair finds the caption of a scene, and its class by name; not by names that are swapped."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

import minivl
from eval.scenes import START
from minivl.data.labels import SCENE_CLASSES, scene_class
from minivl.data.scenes import Scene, scene
from minivl.metrics.retrieval import recall_at_k
from minivl.models.clip import CLIP

COUNT = 60


@pytest.fixture(scope="module")
def pair() -> CLIP:
    model = minivl.load("scenes-clip", verify=True)
    assert isinstance(model, CLIP)
    return model


def look(pair: CLIP, scenes: Sequence[Scene]) -> Tensor:
    with torch.no_grad():
        images, _ = minivl.preprocess([one.image for one in scenes], pair)
        return normalize(pair.encode_image(images), dim=-1)


def read(pair: CLIP, texts: Sequence[str]) -> Tensor:
    with torch.no_grad():
        return normalize(pair.encode_text(pair.tokenize(list(texts))), dim=-1)


def test_it_says_what_it_is(pair: CLIP) -> None:
    assert pair.notes["name"] == "an image-text pair trained by minivl on scenes" and pair.notes["data"] == "scenes"


def test_captions_are_found(pair: CLIP) -> None:
    scenes = [scene(START + 500_000 + number) for number in range(COUNT)]
    texts = [one.captions[0] for one in scenes]
    found = recall_at_k(look(pair, scenes) @ read(pair, texts).T, ks=(1, 5), owner=list(range(COUNT)))
    assert found.image_to_text[1] > 0.85 and found.text_to_image[1] > 0.85 and found.text_to_image[5] > 0.95


def test_classes_are_found_by_their_names_alone(pair: CLIP) -> None:
    numbers = range(START + 600_000, START + 600_000 + 4 * COUNT)
    scenes = [one for number in numbers if len((one := scene(number)).masks) == 1]
    labels = torch.tensor([scene_class(one) for one in scenes])
    images = look(pair, scenes)
    for names, low, high in ((SCENE_CLASSES, 0.65, 1.0), (SCENE_CLASSES[5:] + SCENE_CLASSES[:5], 0.0, 0.25)):
        classes = read(pair, [f"a {name}" for name in names])
        share = ((images @ classes.T).argmax(1) == labels).double().mean().item()
        assert low <= share <= high
