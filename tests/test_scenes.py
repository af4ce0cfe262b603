"""The built-in data set: same everywhere, true in every word, and no gift to a guess at the centre."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from minivl.data.scenes import COLOURS, KINDS, NOUNS, Scene, Scenes, scene
from minivl.errors import InputError

COUNTS = {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3}
SIZES = {"small": False, "little": False, "large": True, "big": True}
RELATIONS = {"to the left of": "left", "left of": "left",
             "to the right of": "right", "right of": "right",
             "above": "above", "over": "above", "below": "below", "under": "below", "beside": "beside"}
PHRASE = re.compile(rf"\b(?P<det>{'|'.join(COUNTS)}|the) (?:(?P<size>{'|'.join(SIZES)}) )?"
                    rf"(?:(?P<colour>{'|'.join(COLOURS)}) )?(?P<noun>{'|'.join(NOUNS)})\b"
                    r"|\b(?P<it>it|them)\b")
RELATION = re.compile(rf"\b({'|'.join(RELATIONS)})\b(?! the picture)")
PLACE = re.compile(r"(?:in the (top|bottom) (left|right)|at the (top|bottom)|on the (left|right)"
                   r"|in the (middle))\b(?! of (?!the picture))")


@pytest.fixture(scope="module")
def drawn() -> list[Scene]:
    return list(Scenes(1200, seed=3))


def digest(indices: range, *, seed: int = 0) -> str:
    total = hashlib.sha256()
    for item in (scene(i, seed=seed) for i in indices):
        total.update(item.image.tobytes())
        total.update("\n".join(item.captions).encode())
        for kind, mask in item.masks.items():
            total.update(kind.encode() + mask.tobytes())
    return total.hexdigest()


def box(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return rows[0], columns[0], rows[-1], columns[-1]


def holds(relation: str, a: np.ndarray, b: np.ndarray) -> bool:
    """Whether all pixels of a lie on the said side of all pixels of b, and so does the middle."""
    (top, left, bottom, right), (top_b, left_b, bottom_b, right_b) = box(a), box(b)
    y, x = np.argwhere(a).mean(axis=0) - np.argwhere(b).mean(axis=0)
    sides = {"left": right < left_b and x < 0, "right": left > right_b and x > 0,
             "above": bottom < top_b and y < 0, "below": top > bottom_b and y > 0}
    return sides["left"] or sides["right"] if relation == "beside" else sides[relation]


def stated(caption: str) -> list[tuple[str, str, str]]:
    """All (kind, relation, kind) that a caption says."""
    found = []
    phrases = list(PHRASE.finditer(caption))
    for match in RELATION.finditer(caption):
        before = [phrase for phrase in phrases if phrase.end() <= match.start()]
        after = next(phrase for phrase in phrases if phrase.start() >= match.end())
        # "A with B above it": the pronoun is the noun before the subject
        thing = before[-2] if after["it"] else after
        found.append((NOUNS[before[-1]["noun"]], RELATIONS[match[1]], NOUNS[thing["noun"]]))
    return found


def pieces(mask: np.ndarray) -> int:
    """Number of connected parts of a mask, diagonal neighbours included."""
    left, parts = mask.copy(), 0
    while left.any():
        parts += 1
        stack = [tuple(np.argwhere(left)[0])]
        while stack:
            y, x = stack.pop()
            corner = max(0, y - 1), max(0, x - 1)
            near = left[corner[0]:y + 2, corner[1]:x + 2]
            stack += [tuple(point) for point in np.argwhere(near) + corner]
            near[:] = False
    return parts


def eroded(mask: np.ndarray) -> np.ndarray:
    padded = np.pad(mask, 1)
    return (mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:])


def test_same_in_another_process_and_hash_seed() -> None:
    program = ("import sys; sys.path[:0] = ['tests', '.']; from test_scenes import digest;"
               "print(digest(range(20, 40), seed=7))")
    environment = {**os.environ, "PYTHONHASHSEED": "123"}
    other = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True,
                           check=True, cwd=os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    assert other.stdout.strip() == digest(range(20, 40), seed=7)


def test_seeds_and_indices_give_different_scenes() -> None:
    images = [scene(i, seed=seed).image.tobytes() for seed in (0, 1) for i in range(30)]
    assert len(set(images)) == 60
    # (seed, index) must not be mixed up with (index, seed) or their sum
    assert scene(1, seed=2).image.tobytes() != scene(2, seed=1).image.tobytes()


def test_forms(drawn: list[Scene]) -> None:
    assert set(NOUNS.values()) == set(KINDS) and len(KINDS) >= 8 and len(COLOURS) >= 8
    for item in drawn:
        assert item.image.mode == "RGB" and item.image.size == (96, 96)
        assert 1 <= len(item.masks) <= 3
        for mask in item.masks.values():
            assert mask.dtype == bool and mask.shape == (96, 96) and mask.sum() > 60
        assert not (sum(mask.astype(int) for mask in item.masks.values()) > 1).any()
        assert len(item.captions) == len(set(item.captions)) == 5
        for caption in item.captions:
            assert re.fullmatch(r"[a-z]+( [a-z]+)*", caption)


def test_every_noun_names_a_mask_and_every_mask_is_named(drawn: list[Scene]) -> None:
    for item in drawn:
        for caption in item.captions:
            assert {NOUNS[word] for word in caption.split() if word in NOUNS} == set(item.masks)


def test_shortest_captions(drawn: list[Scene]) -> None:
    for one in drawn:
        said = [caption.split() for caption in one.named()]
        assert {article for article, _ in said} <= {"a", "an"} and len({noun for _, noun in said}) == len(said)
        assert all((article == "an") == (noun[0] in "aeiou") for article, noun in said)
        told = {noun for _, noun in said}
        assert {NOUNS[noun] for noun in told} == set(one.masks)
        singular = {noun for noun in NOUNS if not noun.endswith(("s", "x"))} | {"cross", "box"}
        assert told == {noun for noun in singular if NOUNS[noun] in one.masks}


def test_words_are_few_and_captions_of_moderate_length(drawn: list[Scene]) -> None:
    captions = [caption.split() for item in drawn for caption in item.captions]
    assert 60 <= len(Counter(word for caption in captions for word in caption)) <= 110
    lengths = [len(caption) for caption in captions]
    assert min(lengths) >= 5 and max(lengths) <= 22
    assert np.mean([6 <= length <= 14 for length in lengths]) > 0.75
    assert len({" ".join(caption) for caption in captions}) > 5000, "captions repeat too much"


def test_relations_are_true(drawn: list[Scene]) -> None:
    seen: Counter[str] = Counter()
    for item in drawn:
        for caption in item.captions:
            for a, relation, b in stated(caption):
                assert holds(relation, item.masks[a], item.masks[b]), caption
                seen[relation] += 1
    assert len(seen) == 5 and min(seen.values()) > 200


def test_the_test_of_relations_can_fail(drawn: list[Scene]) -> None:
    """Mirrored and flipped masks must contradict what is said."""
    for item in drawn[:200]:
        for a, relation, b in (fact for caption in item.captions for fact in stated(caption)):
            if relation != "beside":
                assert not holds(relation, item.masks[a][::-1, ::-1], item.masks[b][::-1, ::-1])


def test_places_are_true(drawn: list[Scene]) -> None:
    seen: Counter[str] = Counter()
    for item in drawn:
        if len(item.masks) > 1:
            continue
        (mask,) = item.masks.values()
        top, left, bottom, right = box(mask)
        y, x = (top + bottom + 1) / 192, (left + right + 1) / 192
        for match in (match for caption in item.captions for match in PLACE.finditer(caption)):
            words = [word for word in match.groups() if word]
            seen[" ".join(words)] += 1
            assert ("top" in words) == (y < 0.38) or abs(y - 0.38) < 0.02, (match[0], y)
            assert ("bottom" in words) == (y > 0.62) or abs(y - 0.62) < 0.02, (match[0], y)
            assert ("left" in words) == (x < 0.38) or abs(x - 0.38) < 0.02, (match[0], x)
            assert ("right" in words) == (x > 0.62) or abs(x - 0.62) < 0.02, (match[0], x)
    assert len(seen) == 9


def test_counts_and_sizes_are_true(drawn: list[Scene]) -> None:
    areas: dict[tuple[str, int], dict[bool, list[int]]] = {}
    for item in drawn[:300]:
        parts = {kind: pieces(mask) for kind, mask in item.masks.items()}
        for phrase in (match for caption in item.captions for match in PHRASE.finditer(caption)):
            if phrase["noun"] is None:
                continue
            kind, count = NOUNS[phrase["noun"]], COUNTS.get(phrase["det"])
            plural = phrase["noun"].endswith(("s", "es")) and phrase["noun"] not in ("cross",)
            if count is not None:
                assert parts[kind] == count, phrase[0]
                assert phrase["noun"] == "fish" or plural == (count > 1), phrase[0]
            if phrase["size"]:
                sizes = areas.setdefault((kind, parts[kind]), {False: [], True: []})
                sizes[SIZES[phrase["size"]]].append(int(item.masks[kind].sum()))
    both = [sizes for sizes in areas.values() if sizes[False] and sizes[True]]
    assert len(both) > 20
    for sizes in both:
        assert max(sizes[False]) < min(sizes[True])


def test_masks_hold_the_named_colour(drawn: list[Scene]) -> None:
    for item in drawn[:400]:
        pixels = np.asarray(item.image).astype(float)
        for phrase in (match for caption in item.captions for match in PHRASE.finditer(caption)):
            if phrase["colour"] is None:
                continue
            inside = pixels[eroded(item.masks[NOUNS[phrase["noun"]]])]
            near = {name: float(np.mean(np.abs(inside - rgb).max(axis=1) < 25))
                    for name, rgb in COLOURS.items()}
            # roofs, doors, trunks and the hearts of flowers have paints of their own
            assert near[phrase["colour"]] > 0.35, phrase[0]
            assert max(near, key=lambda name: near[name]) == phrase["colour"], phrase[0]


def test_background_differs_from_the_colours_on_it(drawn: list[Scene]) -> None:
    for item in drawn[:400]:
        pixels = np.asarray(item.image).astype(float)
        covered = np.any(list(item.masks.values()), axis=0)
        colours = {phrase["colour"] for phrase in PHRASE.finditer(item.captions[0]) if phrase["colour"]}
        for colour in colours:
            distance = np.linalg.norm(pixels[~covered] - COLOURS[colour], axis=1)
            # shadows and the antialiased rim belong to no tone of the background
            assert np.mean(distance < 60) < 0.06, (item.captions[0], colour)


def test_masks_are_small_and_not_at_the_centre(drawn: list[Scene]) -> None:
    masks = np.array([mask for item in drawn for mask in item.masks.values()])
    assert 0.03 < masks.mean() < 0.08
    assert masks[:, 48, 48].mean() < 0.15
    assert masks.mean(axis=0).max() < 0.15, "one pixel is a good guess for every noun"
    centres = np.array([np.argwhere(mask).mean(axis=0) for mask in masks[:600]]) / 96
    assert (centres.std(axis=0) > 0.18).all(), "groups crowd together"


@pytest.mark.parametrize("size", [32, 64, 224])
def test_other_sizes_draw_the_same_scene(size: int) -> None:
    for i in range(25):
        item, usual = scene(i, size=size), scene(i)
        assert item.image.size == (size, size) and item.captions == usual.captions
        assert list(item.masks) == list(usual.masks)
        for kind, mask in item.masks.items():
            assert mask.shape == (size, size)
            scaled = Image.fromarray(usual.masks[kind]).resize((size, size), Image.Resampling.NEAREST)
            expected = np.asarray(scaled)
            assert (mask & expected).sum() / (mask | expected).sum() > (0.6 if size == 32 else 0.75)
        small = np.asarray(item.image.resize((32, 32), Image.Resampling.BOX)).astype(float)
        small_usual = np.asarray(usual.image.resize((32, 32), Image.Resampling.BOX)).astype(float)
        assert np.abs(small - small_usual).mean() < 12


def test_scenes_are_a_sequence() -> None:
    some = Scenes(10, seed=4, size=64, start=5)
    assert len(some) == 10 and len(list(some)) == 10
    same = scene(7, seed=4, size=64)
    assert some[2].captions == same.captions and some[2].image.tobytes() == same.image.tobytes()
    assert some[-1].captions == scene(14, seed=4, size=64).captions
    part = some[2:8:3]
    assert isinstance(part, Scenes) and list(part.indices) == [7, 10]
    assert part[1].captions == some[5].captions
    assert pickle.loads(pickle.dumps(some))[3].captions == some[3].captions
    with pytest.raises(IndexError):
        some[10]


@pytest.mark.parametrize("call, named", [
    (lambda: scene(-1), "index"), (lambda: scene(0, seed=-1), "seed"), (lambda: scene(0, size=31), "size"),
    (lambda: scene(1.5), "index"), (lambda: scene(0, size="96"), "size"),  # type: ignore[arg-type]
    (lambda: Scenes(-1), "count"), (lambda: Scenes(1, start=-2), "start"),
    (lambda: Scenes(1, size=8), "size"), (lambda: Scenes(1, seed=-3), "seed")])
def test_bad_arguments_raise(call, named) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=named):
        call()
