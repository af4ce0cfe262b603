"""What stands beside a published vocabulary: tokenizer_config.json, special_tokens_map.json, added_tokens.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken

from ..errors import InputError
from ..files import read_json, undamaged

CONFIG, SPECIAL_TOKENS_MAP, ADDED_TOKENS = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
NAMES = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
"""What `transformers` calls special tokens, in the order in which it puts new ones behind a vocabulary."""


class Beside(NamedTuple):
    """What the files beside a vocabulary say.

    Attributes:
        folder: where they are, for error messages.
        config: ``tokenizer_config.json``.
        placed: tokens with the ids they must have.
        named: special tokens by name ("bos_token").
        extra: special tokens without a name.
    """

    folder: Path
    config: Mapping[str, Any]
    placed: list[tuple[int, AddedToken]]
    named: dict[str, str]
    extra: list[str]

    def flag(self, key: str, default: bool | None) -> bool | None:
        """A setting of ``tokenizer_config.json`` that is true, false or (null) its default.

        Raises:
            InputError: it is something else.
        """
        value = self.config.get(key)
        if value is not None and not isinstance(value, bool):
            raise InputError(f"{key} is {value!r}, true or false is needed", source=self.folder / CONFIG)
        return default if value is None else value


def read_beside(folder: Path) -> Beside:
    """The files beside a vocabulary, those that exist.

    ``added_tokens_decoder`` of the config makes the two older files void; without it the special tokens
    map wins over the config, as in `transformers`.

    Raises:
        InputError: a file is not the JSON it should be.
    """
    config = _object(folder / CONFIG)
    listed = config.get("added_tokens_decoder")
    said = {key: value for key, value in config.items() if key != "added_tokens_decoder"}
    if listed is None:
        said |= _object(folder / SPECIAL_TOKENS_MAP)
    with undamaged(folder / (CONFIG if listed is not None else SPECIAL_TOKENS_MAP)):
        named = {key: _content(value) for key, value in said.items()
                 if key.endswith("_token") and isinstance(value, (str, dict))}  # "add_bos_token" is no token
        more = said.get("extra_special_tokens") or said.get("additional_special_tokens") or []
        extra = [_content(token) for token in (more.values() if isinstance(more, dict) else more)]
    if listed is not None:
        with undamaged(folder / CONFIG):
            placed = [(int(id), _token(fields)) for id, fields in listed.items()]
    else:
        special = {*named.values(), *extra}
        with undamaged(folder / ADDED_TOKENS):
            placed = [(int(id), AddedToken(token, special=token in special, normalized=token not in special))
                      for token, id in _object(folder / ADDED_TOKENS).items()]
    return Beside(folder, config, placed, named, extra)


def _content(token: Any) -> str:
    """The text of a token that stands as text or as an object with its "content"."""
    content = token["content"] if isinstance(token, dict) else token
    if not isinstance(content, str):
        raise TypeError(f"{content!r} is no token")
    return content


def _token(fields: Mapping[str, Any]) -> AddedToken:
    known = ("lstrip", "rstrip", "single_word", "normalized", "special")  # the library prints about others
    return AddedToken(fields["content"], **{key: fields[key] for key in known if key in fields})


def _object(file: Path) -> dict[str, Any]:
    value = read_json(file) if file.exists() else {}
    if not isinstance(value, dict):
        raise InputError(f"is a {type(value).__name__}, an object is needed", source=file)
    return value
