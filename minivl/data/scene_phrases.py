"""The language of scenes: five differently phrased, true captions of placed groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TypeVar

import numpy as np

from .scene_layout import Group, relation, where

T = TypeVar("T")

# kind -> its names, each as (singular, plural); the first is used most
_NAMES: dict[str, tuple[tuple[str, str], ...]] = {
    "circle": (("circle", "circles"), ("ball", "balls")),
    "square": (("square", "squares"), ("box", "boxes")),
    "triangle": (("triangle", "triangles"),),
    "star": (("star", "stars"),),
    "heart": (("heart", "hearts"),),
    "moon": (("moon", "moons"), ("crescent", "crescents")),
    "cross": (("cross", "crosses"),),
    "arrow": (("arrow", "arrows"),),
    "house": (("house", "houses"), ("hut", "huts")),
    "tree": (("tree", "trees"),),
    "fish": (("fish", "fish"),),
    "flower": (("flower", "flowers"), ("blossom", "blossoms")),
}
SINGULAR: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {kind: tuple(singular for singular, _ in names) for kind, names in _NAMES.items()})
NOUNS: Mapping[str, str] = MappingProxyType(
    {form: kind for kind, names in _NAMES.items() for name in names for form in name})

_COUNTS = ("one", "two", "three")
_SIZES = {False: ("small", "small", "little"), True: ("large", "large", "big")}
_RELATIONS = {
    "left": ("left of", "left of", "to the left of", "beside"),
    "right": ("right of", "right of", "to the right of", "beside"),
    "above": ("above", "above", "over"),
    "below": ("below", "below", "under"),
}
_VERBS = (("sits", "sit"), ("floats", "float"))

# A, B, C are the groups, the most prominent first. {A} is its noun phrase, {sized A} with its size,
# {the A} the bare noun, {it A} its pronoun, {is A} and {sits A} verbs that agree with it, {A>B} how A
# lies to B, {where A} its place in the picture.
_TEMPLATES: dict[int, tuple[str, ...]] = {
    1: ("{sized A} {where A} of the picture",
        "there {is A} {A} {where A}",
        "{where A} there {is A} {sized A}",
        "{A} on a {texture} background",
        "the picture shows {sized A} {where A}",
        "a {texture} background with {A} {where A}",
        "{A} {sits A} {where A} of the picture",
        "we see {sized A} on a {texture} background"),
    2: ("{A} {A>B} {B}",
        "{B} {B>A} {A}",
        "{sized A} and {sized B} on a {texture} background",
        "there {is A} {A} {A>B} {B}",
        "{A} with {B} {B>A} {it A}",
        "{B} {sits B} {B>A} {A}",
        "the picture shows {sized A} and {sized B}",
        "{sized A} {is A} {A>B} {sized B}",
        "a {texture} background with {A} and {B}",
        "we see {B} {B>A} {sized A}"),
    3: ("{A} with {B} and {C}",
        "{A} and {B} and {C} on a {texture} background",
        "{A} {A>B} {B} and {C} {C>A} {the A}",
        "{B} {B>A} {A} and {C} {C>A} {the A}",
        "there {is A} {A} {A>C} {C} and {B} {B>C} {the C}",
        "the picture shows {sized A} and {B} and {C}",
        "{C} {sits C} {C>B} {B} with {A} {A>B} {the B}",
        "a {texture} background with {A} and {B} and {C}",
        "we see {A} with {B} {B>A} {it A} and {C}"),
}


def draw_captions(groups: Sequence[Group], texture: str, rng: np.random.Generator,
                  number: int = 5) -> tuple[str, ...]:
    """Distinct true captions, each from another template and naming every group.

    Args:
        groups: one to three, the most prominent first, of different kinds.
        texture: word for the background.
        rng: source of templates and synonyms.
        number: how many, at most 8.

    Returns:
        ``number`` lower-case strings of words and single spaces.
    """
    words = _Words(groups, texture, rng)
    templates = _TEMPLATES[len(groups)]
    chosen: dict[str, None] = {}                       # a set that keeps its order
    for i in rng.permutation(len(templates)):
        if len(chosen) < number:
            chosen[templates[i].format_map(words)] = None
    return tuple(chosen)


class _Words:
    """Fills the slots of a template, drawing synonyms as it goes."""

    def __init__(self, groups: Sequence[Group], texture: str, rng: np.random.Generator) -> None:
        self.groups = dict(zip("ABC", groups))
        self.texture = texture
        self.rng = rng

    def __getitem__(self, slot: str) -> str:
        if slot == "texture":
            return self.texture
        if ">" in slot:
            a, b = (self.groups[letter] for letter in slot.split(">"))
            return self._one_of(_RELATIONS[relation(a, b)])
        form, group = slot[:-1].strip(), self.groups[slot[-1]]
        several = group.count > 1
        if form == "the":
            return f"the {self._noun(group)}"
        if form == "it":
            return "them" if several else "it"
        if form == "is":
            return "are" if several else "is"
        if form == "sits":
            return self._one_of(_VERBS)[several]
        if form == "where":
            return _place(*where(group))
        return self._phrase(group, sized=form == "sized")

    def _one_of(self, options: Sequence[T]) -> T:
        return options[int(self.rng.integers(len(options)))]

    def _noun(self, group: Group) -> str:
        names = _NAMES[group.kind]
        usual = len(names) == 1 or self.rng.random() < 0.7
        return names[0 if usual else 1][group.count > 1]

    def _phrase(self, group: Group, *, sized: bool) -> str:
        """Such as "two small red stars"."""
        words = [group.colour, self._noun(group)]
        if sized:
            words.insert(0, self._one_of(_SIZES[group.large]))
        count = _COUNTS[group.count - 1]
        if group.count == 1 and self.rng.random() < 0.85:
            count = "an" if words[0][0] in "aeiou" else "a"
        return " ".join([count, *words])


def _place(row: str, column: str) -> str:
    if row and column:
        return f"in the {row} {column}"
    return f"at the {row}" if row else f"on the {column}" if column else "in the middle"
