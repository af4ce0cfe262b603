"""Prompt templates for zero-shot classification: published sets, and how a class name goes into one.

A template is a text with ``{}`` where the name stands. Accuracy hangs on it: on the same 50 classes the three of
"course" span 27 points (see `TEMPLATES`).
"""

from __future__ import annotations

import re

from ..errors import InputError

# of CLIP's 80: those that it has with "a" and with "the", where * stands here
_PAIRS = """
a photo of * {}.|a bad photo of * {}.|a good photo of * {}.|a cropped photo of * {}.|a bright photo of * {}.
a dark photo of * {}.|a blurry photo of * {}.|a close-up photo of * {}.|a low resolution photo of * {}.
a pixelated photo of * {}.|a jpeg corrupted photo of * {}.|a black and white photo of * {}.|itap of * {}.
a photo of * hard to see {}.|a photo of * clean {}.|a photo of * dirty {}.|a photo of * cool {}.|a photo of * nice {}.
a photo of * weird {}.|a photo of * small {}.|a photo of * large {}.|art of * {}.|graffiti of * {}.|a tattoo of * {}.
a sculpture of * {}.|a rendering of * {}.|a rendition of * {}.|a drawing of * {}.|a painting of * {}.
a doodle of * {}.|a sketch of * {}.|* embroidered {}.|* plastic {}.|* origami {}.|* toy {}.|* plushie {}.
* cartoon {}.|* {} in a video game.
""".strip().replace("\n", "|").split("|")

TEMPLATES: dict[str, tuple[str, ...]] = {
    # of a course, with OpenAI's ViT-L/14 on 50 classes: 67.36 %, 72.84 % and 45.52 % of the photos right
    "course": ("This is a photo of a {}", "This is a {} image.", "No {}, no score."),
    # the 80 of CLIP's paper for ImageNet, https://arxiv.org/abs/2103.00020, section 3.1.4 (notebook
    # Prompt_Engineering_for_ImageNet.ipynb of github.com/openai/CLIP), as published: "a origami apple" too
    "imagenet": tuple(text.replace("*", article, 1) for text in _PAIRS for article in ("a", "the")) + (
        "a photo of many {}.", "a photo of one {}.", "a photo of my {}.", "itap of my {}."),
    # seven of them that the same notebook found to do as well together as all
    "imagenet7": ("itap of a {}.", "a bad photo of the {}.", "a origami {}.", "a photo of the large {}.",
                  "a {} in a video game.", "art of the {}.", "a photo of the small {}."),
    # for Oxford-IIIT Pet, data/prompts.md of the same repository
    "pets": ("a photo of a {}, a type of pet.",),
}
"""Sets of templates by name."""

_ARTICLE = re.compile(r"\b(an?|the) +(?=\{\})", re.IGNORECASE)  # right before the name
_OWN_ARTICLE = re.compile(r"(an?|the) ", re.IGNORECASE)
# by sound, not by letter: an hour, a unicorn, a one-way street
_AN = re.compile(r"(hour|honou?r|honest|heir|x-ray|[aeiou])", re.IGNORECASE)
_A = re.compile(r"(eu|ewe|one\b|once\b|ouija|uk|us[aeu]|ut[eio]|ur[aio](?!nia)|ub|uni(?!n|m))", re.IGNORECASE)


def spoken(name: str) -> str:
    """A class name as one says it: ``guinea_pig`` is "guinea pig"; white space becomes single spaces."""
    return " ".join(name.replace("_", " ").split())


def prompt(template: str, name: str, *, mend: bool = True) -> str:
    """A template with a class name.

    Args:
        template: with ``{}``, once or several times.
        name: of a class; goes in as `spoken`.
        mend: write "an" for "a" (or "a" for "an") right before the name where it must be, and leave out an article
            there if the name has its own ("the beach"). Published numbers are without.

    Raises:
        InputError: a template without ``{}``, or a name that is empty.
    """
    check_template(template)
    said = spoken(name)
    if not said:
        raise InputError(f"the class name {name!r} is empty: there is nothing to ask for", source="prompt")
    if mend:
        template = _ARTICLE.sub(lambda found: _mended(found.group(), said), template)
    return template.replace("{}", said)


def check_template(template: str) -> None:
    """Raise InputError for what is no template."""
    if not isinstance(template, str) or "{}" not in template:
        raise InputError(f"the template {template!r} has no {{}}, where the name of the class stands; "
                         'such as "a photo of a {}."')


def _mended(article: str, name: str) -> str:
    """What stands in place of an article (and its spaces) before a name."""
    if _OWN_ARTICLE.match(name):
        return ""
    if article.strip().lower() == "the":
        return article
    return article[0] + ("n " if _AN.match(name) and not _A.match(name) else " ")
