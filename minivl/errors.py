"""The one error a user's mistake raises."""

from __future__ import annotations

from os import PathLike


class InputError(ValueError):
    """Something the caller gave cannot be used: one line that says what, where, and the way out.

    Programs catch it, print the line and exit with code 2; any other exception is a bug of ours
    and keeps its traceback.

    Args:
        message: one line that names the culprit, what was wrong with it and what would be right.
        source: the file (and entry) or argument at fault; put in front of the message unless the
            message already begins with it.

    Attributes:
        source: as given, or None.
    """

    def __init__(self, message: str, *, source: str | PathLike[str] | None = None) -> None:
        self.source = None if source is None else str(source)
        if self.source is not None and not message.startswith(self.source):
            message = f"{self.source}: {message}"
        super().__init__(" ".join(message.split()))


def some(names: object, limit: int = 8) -> str:
    """A readable, bounded listing of names for an error line: ``"a, b, c and 12 more"``."""
    listed = [str(name) for name in names]  # type: ignore[attr-defined]
    head = ", ".join(listed[:limit])
    return head if len(listed) <= limit else f"{head} and {len(listed) - limit} more"


def counted(number: int, noun: str) -> str:
    """A number of things: ``"1 caption"``, ``"2 captions"``; the plural is the noun and an s."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def kind_of(value: object) -> str:
    """What a value of a JSON file is, in words and bounded: "a list", "the string 'dog'"."""
    if isinstance(value, str):
        return f"the string {value if len(value) <= 60 else value[:57] + '...'!r}"
    kinds = {dict: "an object", list: "a list", bool: "true or false", int: "a number", float: "a number",
             type(None): "null"}
    return next((name for kind, name in kinds.items() if isinstance(value, kind)), type(value).__name__)
