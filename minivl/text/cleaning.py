"""Texts as callers give them: checked, and cleaned as a published tokenizer wants them."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Mapping

from ..errors import InputError


def strings(texts: Iterable[str], source: str) -> list[str]:
    """``texts`` as a list, every one a string that can be written as UTF-8.

    Raises:
        InputError: one string instead of several, a text that is no string, or half a surrogate pair.
    """
    if isinstance(texts, str):
        raise InputError("one string given where a list of texts is needed", source=source)
    listed = list(texts)
    for index, text in enumerate(listed):
        if not isinstance(text, str):
            raise InputError(f"text {index} is a {type(text).__name__}, a string is needed", source=source)
        if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
            raise InputError(f"text {index} holds half a surrogate pair, which is no character", source=source)
    return listed


def openai(text: str) -> str:
    """A text as OpenAI's CLIP cleans it: HTML unescaped twice, white space made single spaces, lower case.

    Before that CLIP's code lets ftfy repair the text. That is not done here: what `ftfy.fix_text` would
    change (curly quotes, ligatures, full-width letters, letters not in NFC, wrongly decoded UTF-8) gets
    the ids of what it is.
    """
    return " ".join(html.unescape(html.unescape(text)).split()).lower()


CLEANERS: Mapping[str, Callable[[str], str]] = {"openai": openai}
"""What a tokenizer can do to a text before the engine sees it, by the name that its JSON carries."""
