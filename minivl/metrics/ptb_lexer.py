"""The walk along a line of text that cuts it into the tokens of `ptb_rules`."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from .ptb_rules import ADDRESS, ADDRESS_RULES, MAIL_RULES, SHORT_RULES, SIGN_RULES, WORD_RULES, Rule, table
from .ptb_tables import (ALWAYS, ALWAYS_UNEVEN, CAPITAL, CLOSING, CLOSING_UNEVEN, DROPPED, HYPHEN, NUMBERED, SEPARATOR,
                         SPLIT, WIDE)

# Words that are tokens wherever they stand before a space, or a period and a space; but for these.
EASY = re.compile(r"([A-Za-z]+)(?=[ \n])|([A-Za-z]{2,})(?=\.[ \n])")
SPECIAL = frozenset((*SPLIT, *ALWAYS, *ALWAYS_UNEVEN, *CLOSING, *CLOSING_UNEVEN, *CAPITAL, *NUMBERED))
SILENT = frozenset("\xa0" + WIDE + DROPPED + HYPHEN + SEPARATOR)  # no token, unless a rule makes one
ABOVE, LONE = re.compile("[\U00010000-\U0010ffff]"), re.compile("[\ud800-\udfff]")
# What Java takes for one word where a sigma at its end is lower-cased
GREEK_WORD = re.compile(r"(?:[^\W\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[\u0300-\u036f])+"
                        r"(?:[-'.\u2010\u2011](?:[^\W\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[\u0300-\u036f])+)*")


class Lexer:
    """Cuts lines into tokens.

    Args:
        kinds: code point -> the character that stands for its kind.
        without: names of rules to leave out.
        raw: names of rules whose tokens stay as they are written.
    """

    def __init__(self, kinds: Mapping[int, str], without: Collection[str] = (), raw: Collection[str] = ()) -> None:
        def rules(*lists: list[Rule]) -> dict[str, list[Rule]]:
            return table(rule._replace(make=None) if rule.name in raw else rule
                         for each in lists for rule in each if rule.name not in without)

        self._kinds = kinds
        self._rules = rules(WORD_RULES, SHORT_RULES, SIGN_RULES)
        self._all_rules = rules(WORD_RULES, MAIL_RULES, SHORT_RULES, ADDRESS_RULES, SIGN_RULES)

    def tokens(self, text: str, behind: str = "") -> list[str]:
        """The tokens of a line (without line breaks) as they are written; `behind` is there to look ahead at only."""
        seen = f"{text}\n{behind}\n".translate(self._kinds)
        rules = self._all_rules if ADDRESS.search(seen) else self._rules
        spent: dict[int, int] = {}  # rule -> where it may be tried again
        found: list[str] = []
        at = 0
        while at < len(text):
            if seen[at] in " \t":
                at += 1
                continue
            easy = EASY.match(seen, at)
            if easy and easy[0].lower() not in SPECIAL:
                found.append(easy[0])
                at = easy.end()
                continue
            rule, end = self._longest(rules.get(seen[at], ()), seen, at, spent)
            if rule is not None and rule.make is not None:
                found += rule.make(text[at:end])
            elif rule is not None or seen[at] not in SILENT:
                found.append(text[at:end])
            at = end
        return found

    @staticmethod
    def _longest(rules: Collection[Rule], seen: str, at: int, spent: dict[int, int]) -> tuple[Rule | None, int]:
        """The rule that reaches furthest from `at`, and the end of its token."""
        best, end, reach = None, at + 1, at
        for rule in rules:
            if rule.walk and spent.get(id(rule), 0) > at:
                continue
            match = rule.pattern.match(seen, at)
            if match is None:
                if rule.walk and (walked := rule.walk.match(seen, at)):
                    spent[id(rule)] = walked.end()
            elif match.end() > reach:
                best, reach, end = rule, match.end(), match.end(rule.pattern.groups and 1)
        return best, end


def utf16(text: str) -> str:
    """Each character above U+FFFF as the two surrogates Java sees; a lone surrogate as U+FFFD."""
    if text.isascii() or max(text) < "\ud800":
        return text
    return ABOVE.sub(_surrogates, LONE.sub("\ufffd", text))


def _surrogates(match: re.Match[str]) -> str:
    high, low = divmod(ord(match[0]) - 0x10000, 0x400)
    return chr(0xD800 + high) + chr(0xDC00 + low)


def from_utf16(text: str) -> str:
    """Undoes `utf16`."""
    if text.isascii() or max(text) < "\ud800":
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def lower(text: str) -> str:
    """In lower case as Java has it, whose words end elsewhere: it matters for the final sigma alone."""
    if "\u03a3" not in text:
        return text.lower()
    return GREEK_WORD.sub(lambda word: "".join(
        ("\u03c2" if _cased(word[0][:at]) and not _cased(word[0][at + 1:]) else "\u03c3") if char == "\u03a3"
        else char for at, char in enumerate(word[0])), text).lower()


def _cased(text: str) -> bool:
    return any(char.lower() != char.upper() or "\u02b0" <= char <= "\u02b8" or "\u02c0" <= char <= "\u02c1"
               or "\u02e0" <= char <= "\u02e4" or "\u1d2c" <= char <= "\u1d61" for char in text)
