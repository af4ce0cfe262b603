"""Recall at k: against sorting by hand, several captions per image, ties, and what a mistake says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from minivl.errors import InputError
from minivl.metrics import retrieval
from minivl.metrics.retrieval import recall_at_k


def sorted_ranks(similarity: np.ndarray, owner: np.ndarray) -> tuple[list[int], list[int]]:
    """Both directions by sorting, what is wrong first among equals."""
    image_ranks, text_ranks = [], []
    for image, row in enumerate(similarity):
        order = sorted(range(len(row)), key=lambda caption: (-row[caption], owner[caption] == image))
        image_ranks.append(1 + next(place for place, caption in enumerate(order) if owner[caption] == image))
    for caption, column in enumerate(similarity.T):
        order = sorted(range(len(column)), key=lambda image: (-column[image], owner[caption] == image))
        text_ranks.append(1 + order.index(owner[caption]))
    return image_ranks, text_ranks


def drawn(images: int, captions: int, seed: int, steps: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Similarities that lean to the owner; few `steps` make ties."""
    random = np.random.default_rng(seed)
    owner = random.permutation(np.concatenate([np.arange(images), random.integers(0, images, captions - images)]))
    similarity = random.standard_normal((images, captions)) + 1.2 * (owner == np.arange(images)[:, None])
    return (similarity if steps is None else np.round(similarity * steps)), owner


@pytest.mark.parametrize("steps", [None, 2, 1])
@pytest.mark.parametrize("images, captions", [(1, 1), (1, 4), (7, 7), (13, 40), (60, 300)])
def test_it_is_what_sorting_gives(images: int, captions: int, steps: int | None,
                                  monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "ROWS", 11)
    for seed in range(4):
        similarity, owner = drawn(images, captions, seed, steps)
        ranks = [np.array(one) for one in sorted_ranks(similarity, owner)]
        found = recall_at_k(torch.tensor(similarity), (1, 3, 10, 1000), owner.tolist() if seed else owner)
        assert found.image_to_text == {k: pytest.approx((ranks[0] <= k).mean()) for k in (1, 3, 10, 1000)}
        assert found.text_to_image == {k: pytest.approx((ranks[1] <= k).mean()) for k in (1, 3, 10, 1000)}
        assert (found.image_rank, found.text_rank) == (np.median(ranks[0]), np.median(ranks[1]))
        assert (found.images, found.captions) == (images, captions)
        assert found.image_to_text[1000] == found.text_to_image[1000] == 1
        if images > 20:
            assert 0 < found.image_to_text[1] < found.image_to_text[10] < 1
            assert 0 < found.text_to_image[1] < found.text_to_image[10] < 1


def test_by_hand() -> None:
    similarity = torch.tensor([[0.1, 0.9, 0.5, 0.2],   # its captions 0 and 2: rank 2, behind caption 1
                               [0.3, 0.8, 0.4, 0.7]])  # its captions 1 and 3: rank 1
    found = recall_at_k(similarity, (1, 2), owner=[0, 1, 0, 1])
    assert found.image_to_text == {1: 0.5, 2: 1.0} and found.image_rank == 1.5
    assert found.text_to_image == {1: 0.5, 2: 1.0} and found.text_rank == 1.5  # captions 2 and 3 find theirs
    assert found.signature == "recall|images:2|captions:4|ties:lost|v1"
    assert recall_at_k(similarity[:, :2], (1,)).text_to_image == {1: 0.0}  # caption 1 is more like image 0
    assert recall_at_k(similarity[:, :2]).image_to_text == {1: 0.5, 5: 1.0, 10: 1.0}


def test_a_model_that_says_nothing_finds_nothing() -> None:
    found = recall_at_k(torch.zeros(20, 60), (1, 5, 57, 58), torch.arange(20).repeat(3))
    assert found.image_to_text == {1: 0, 5: 0, 57: 0, 58: 1.0}  # 57 captions are of others
    assert found.text_to_image == {1: 0, 5: 0, 57: 1, 58: 1}
    assert (found.image_rank, found.text_rank) == (58, 20)
    hidden = torch.full((3, 3), -torch.inf).fill_diagonal_(-5)
    assert recall_at_k(hidden, (1,)).image_to_text == {1: 1.0}


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32])
def test_turned_columns_change_nothing(kind: torch.dtype) -> None:
    similarity, owner = drawn(30, 90, 3)
    order = np.random.default_rng(0).permutation(90)
    table = torch.tensor(similarity).to(kind).requires_grad_()
    assert recall_at_k(table, owner=owner) == recall_at_k(table[:, order], owner=owner[order])
    other = recall_at_k(table, owner=np.roll(owner, 1))
    assert recall_at_k(table, owner=owner).text_to_image[5] > other.text_to_image[5] + 0.2


@pytest.mark.parametrize("similarity, options, told", [
    (torch.eye(3).index_put((torch.tensor(1), torch.tensor(2)), torch.tensor(torch.nan)), {},
     "similarity of image 1 with caption 2 is nan"),
    (torch.eye(3).log() * 0, {}, "similarity of image 0 with caption 1 is nan"),
    (torch.eye(3).long(), {}, r"similarity is torch.int64 of shape \(3, 3\): a floating"),
    (torch.ones(3), {}, r"of shape \(3,\)"), ([[1.0]], {}, "similarity is a list"),
    (torch.ones(0, 3), {}, r"shape \(0, 3\): at least one"), (torch.ones(3, 0), {}, r"\(3, 0\): at least one"),
    (torch.ones(2, 3), {}, "2 images and 3 captions: say with owner="),
    (torch.ones(2, 3), {"owner": [0, 1]}, r"owner is torch.int64 of shape \(2,\): whole numbers \(3,\)"),
    (torch.ones(2, 3), {"owner": [0.0, 1.0, 1.0]}, "owner is torch.float32"),
    (torch.ones(2, 3), {"owner": [True, False, True]}, "owner is torch.bool"),
    (torch.ones(2, 3), {"owner": [0, 1, 2]}, "owner goes from 0 to 2: there are 2 images, 0 to 1"),
    (torch.ones(2, 3), {"owner": [-1, 1, 0]}, "owner goes from -1 to 1"),
    (torch.ones(4, 3), {"owner": [2, 2, 0]}, r"2 images have no caption \(owner names none of them\): 1, 3"),
    (torch.eye(3), {"ks": (1, 0)}, r"ks=\(1, 0\): give whole"), (torch.eye(3), {"ks": ()}, r"ks=\(\): give"),
    (torch.eye(3), {"ks": (1.5,)}, "give whole numbers"), (torch.eye(3), {"ks": (True,)}, "give whole numbers")])
def test_what_cannot_be(similarity: Any, options: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told) as raised:
        recall_at_k(similarity, **options)
    assert str(raised.value).startswith("recall_at_k: ") and "\n" not in str(raised.value)


def test_one_k_is_one_k() -> None:
    similarity, owner = drawn(10, 10, 0)
    assert recall_at_k(torch.tensor(similarity), range(1, 4), owner).image_to_text.keys() == {1, 2, 3}
    assert recall_at_k(torch.tensor(similarity), 5, owner).image_to_text.keys() == {5}  # type: ignore[arg-type]
