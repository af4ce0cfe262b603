"""Templates: those of CLIP against open_clip's, names and articles."""

from __future__ import annotations

from typing import Any

import pytest
from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES

from minivl.errors import InputError
from minivl.text.templates import TEMPLATES, prompt, spoken


def test_the_sets_of_clip_are_those_of_open_clip() -> None:
    for name, theirs in (("imagenet", OPENAI_IMAGENET_TEMPLATES), ("imagenet7", SIMPLE_IMAGENET_TEMPLATES)):
        for word in ("goldfish", "upright piano"):
            ours = [prompt(template, word, mend=False) for template in TEMPLATES[name]]
            assert sorted(ours) == sorted(template(word) for template in theirs)
    assert len(set(TEMPLATES["imagenet"])) == 80 and set(TEMPLATES["imagenet7"]) < set(TEMPLATES["imagenet"])


def test_the_sets_of_the_course_and_of_pets() -> None:
    assert [prompt(one, "owl", mend=False) for one in TEMPLATES["course"]] == [
        "This is a photo of a owl", "This is a owl image.", "No owl, no score."]
    assert prompt(*TEMPLATES["pets"], "Egyptian_Mau") == "a photo of an Egyptian Mau, a type of pet."


@pytest.mark.parametrize("name, said", [("guinea_pig", "guinea pig"), ("_a__b_ ", "a b"), ("t-shirt", "t-shirt"),
                                        ("sealyham\tterrier", "sealyham terrier"), ("Él_ñandú", "Él ñandú")])
def test_spoken(name: str, said: str) -> None:
    assert spoken(name) == said


AN = ["apple", "Egyptian cat", "ice_cream", "owl", "umbrella", "hourglass", "heirloom", "X-ray",
      "uninteresting thing", "upright piano", "Otter", "unimpressed face", "urn", "usher"]
A = ["cat", "unicycle", "unicorn", "university", "European fire salamander", "one-way street", "ukulele", "used car",
     "utensil", "house", "honeycomb", "yawl", "ewe", "eucalyptus", "Ouija board", "user", "uranium rod", "hoopskirt"]


@pytest.mark.parametrize("name", AN + A)
def test_articles(name: str) -> None:
    right = "an" if name in AN else "a"
    said = name.replace("_", " ")
    for written in ("a", "an"):
        assert prompt(f"This is {written} {{}} image of the {{}}, {written} photo.", name) == (
            f"This is {right} {said} image of the {said}, {written} photo.")
        assert prompt(f"{written.title()}  {{}}!", name) == f"{right.title()} {said}!"
        assert prompt(f"{written} {{}}", name, mend=False) == f"{written} {said}"
    assert prompt("a small {}, banana {}", name) == f"a small {said}, banana {said}"


@pytest.mark.parametrize("name", ["the beach", "The_Louvre", "a_dog", "an owl"])
def test_a_name_with_its_own_article(name: str) -> None:
    said = name.replace("_", " ")
    assert [prompt(f"a photo of {article}{{}}.", name) for article in ("a ", "an ", "the ", "")] == [
        f"a photo of {said}."] * 4
    assert prompt("a photo of a {}.", name, mend=False) == f"a photo of a {said}."
    assert prompt("a {}", "theatre") == "a theatre" and prompt("a {}", "a") == "an a"


@pytest.mark.parametrize("template", ["a photo", "", "{0}", "{c}", "{ }", None])
def test_what_is_no_template(template: Any) -> None:
    with pytest.raises(InputError, match=r"the template .* has no \{\}, where"):
        prompt(template, "cat")


def test_a_name_of_nothing() -> None:
    with pytest.raises(InputError, match="the class name '_ ' is empty"):
        prompt("a {}", "_ ")
