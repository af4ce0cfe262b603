"""What becomes a token: the rules of `ptb`, and the walk that applies them.

The rules describe how Stanford's PTBTokenizer 3.4.1 behaves, as read off its answers to inputs. At each place the rule
that reaches furthest wins, what it only looks ahead at counted; of equal ones the first listed. A pattern with a group
has its token in group 1 and looks ahead at the rest. Patterns see the text with every character outside ASCII replaced
by the one that stands for its kind (`ptb_tables`).
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

from .ptb_tables import (ALWAYS, ALWAYS_UNEVEN, CAPITAL, CLOSING, CLOSING_UNEVEN, DIGIT, DROPPED, EXTENSIONS, HYPHEN,
                         KINDS, LETTER, MARK, NEWSWIRE, NEXT_LINE, NUMBERED, SEPARATOR, SOFT, SPLIT, STARTERS, WIDE,
                         Kinds)

Make = Callable[[str], list[str]]


class Rule(NamedTuple):
    """One kind of token.

    Attributes:
        name: what it is for.
        first: the characters it may begin with.
        pattern: of the token; see above.
        make: tokens of the text matched, before lower-casing; None keeps it as it is.
        walk: where given, what a failing `pattern` may have gone over: it need not be tried again in there.
    """

    name: str
    first: Collection[str]
    pattern: re.Pattern[str]
    make: Make | None = None
    walk: re.Pattern[str] | None = None


# Kinds of characters, inside and outside of brackets
L = f"A-Za-z{LETTER}"
D = f"0-9{DIGIT}"
SP = f" \t\xa0{WIDE}"
GAP = f"[{SP}\\n{NEXT_LINE}]"
LETTERS, DIGITS, CAPITALS = string.ascii_letters + LETTER, string.digits + DIGIT, string.ascii_uppercase
ALPHANUMERIC = string.ascii_letters + string.digits
ACCENTED = "&[AEIOUaeiou](?:[Aa][Cc][Uu][Tt][Ee]|[Gg][Rr][Aa][Vv][Ee]|[Uu][Mm][Ll]);"  # &eacute; is a letter
WORD = f"(?:[{L}{MARK}{SOFT}]|{ACCENTED})(?:[{L}{MARK}{SOFT}{D}]|{ACCENTED})*"
WORDS = LETTERS + MARK + SOFT + "&"  # how a WORD begins
APOS = "(?:['\u2019]|&[Aa][Pp][Oo][Ss];)"
MARKED = "(?:['\u2019\u2018`]|&[Aa][Pp][Oo][Ss];)"  # an apostrophe or what was typed instead
APOSES = "'\u2019&"
CLITIC = "(?:[SsMmDd]|[Ll][Ll]|[Rr][Ee]|[Vv][Ee])"
# O'Neil, d'une; Q'eqchi; ma'am, Hawai'i
NAMED = (f"[DdLlOo]{MARKED}[{L}{D}]{{2,}}|[A-HJ-XZn]{MARKED}[{L}]{{2,}}"
         f"|[{L}]+[AEIOUYaeiouy]{MARKED}[aeiouA-Z][{L}]*")
PART = f"(?:[dolDOL]{MARKED}[{L}{D}])?[{L}{D}]+"
HYPHENED = f"{PART}(?:[-_{HYPHEN}]{PART})*"
DOTTED = f"(?:{WORD})(?:[.!?](?:{WORD}))+"
COMMAED = f"[A-Za-z0-9][A-Za-z0-9.,{SOFT}]*"
DOT_HYPHENED = f"{COMMAED}(?:-(?:(?:[A-Za-z]\\.){{2,}}|[A-Za-z0-9{SOFT}]+))+"
COMPANY = "[A-Z]+(?:(?:&[Aa][Mm][Pp];|[&+])[A-Z]+)+"  # AT&T
SLASHED = "[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"
DIGITS_SOFT = f"[{D}](?:{SOFT}?[{D}])*"
POINT = f"[.,:{SEPARATOR}]"
NAME = "[A-Za-z][A-Za-z0-9_:.-]*"
ELEMENT = f"</{NAME} *>|<{NAME}(?: +{NAME}(?: *= *(?:\"[^\"\\n]*\"|'[^'\\n]*'))?)* */? *>"
DECLARATION = "<[!?][A-Za-z-][^>\\n]*>"
PAIR = "[- \xa0]"
# Addresses end before these, and not with the others
OPEN = '\\n \\t"<>|()'
PATH = f"/[^{OPEN}]+[^{OPEN}.!?,{{}}-]"
MAIL = f"[^{OPEN}{{}}\xa0]"
MAIL_HOST = f"[^{OPEN}{{}}\xa0.]"
PLAIN = f"[^A-Z0-9{OPEN}!$',./:;=?@\\[\\\\\\]^_`{{}}-]"  # in the name of a .com
HOSTS = [kind for kind in (*string.printable, DROPPED, *KINDS) if re.match(PLAIN, kind)]
TOP = "(?:[Cc][Oo][Mm]|[Nn][Ee][Tt]|[Oo][Rr][Gg]|[Ee][Dd][Uu])"
STEM = f"[{L}{D}{MARK}{SOFT}]+"
EYE = "['<=>^~x-]"
ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&nbsp;": "", "&ndash;": "--", "&mdash;": "--", "&md;": "--"}
BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
QUOTES = {"\u2018": "`", "`": "`", "\u2039": "`", "\u2019": "'", "\u203a": "'", "\u201c": "``", "\u201d": "''"}
CURRENCIES = {"\u20ac": "$", "\xa2": "cents", "\xa3": "#"}
TYPED = {"\u2013": "--", "\u2026": "...", NEXT_LINE: "...", '"': "''", "\xbc": "1/4", "\xbd": "1/2", "\xbe": "3/4",
         "\u2153": "1/3", "\u2154": "2/3"}

APOSTROPHES = str.maketrans({"\u2019": "'", "\x92": "'", "\u2018": "`", "\u201b": "`", "\x91": "`"})
KIND = Kinds()


def _solid(text: str) -> list[str]:
    """Without soft hyphens."""
    return [text.replace(SOFT, "")]


def _unspaced(text: str) -> list[str]:
    """The spaces inside a token are no-break spaces."""
    return [text.replace(" ", "\xa0")]


def _escaped(text: str) -> list[str]:
    return [text.replace("(", "-lrb-").replace(")", "-rrb-")]


def _apostrophe(text: str) -> list[str]:
    return [text.replace("&apos;", "'").translate(APOSTROPHES)]


def _quoted(text: str) -> list[str]:
    return ["".join(QUOTES.get(KIND[ord(char)], char) for char in text)]


def _ampersand(text: str) -> list[str]:
    return [re.sub("&amp;", "&", text, flags=re.IGNORECASE)]


def _constant(token: str) -> Make:
    return lambda text: [token]


def _any_case(words: Iterable[str], capital: bool = False) -> str:
    """A pattern of words in any case, or in any that begins with a capital."""
    def letter(char: str) -> str:
        return f"[{char.upper()}{char.lower()}]" if char.isalpha() else re.escape(char)

    return "|".join((word[0].upper() if capital else letter(word[0])) + "".join(map(letter, word[1:]))
                    for word in sorted(words, key=len, reverse=True))


ALWAYS_SHORT = "|".join([*ALWAYS_UNEVEN.values(), _any_case(ALWAYS)])
CLOSING_SHORT = "|".join([*CLOSING_UNEVEN.values(), _any_case(CLOSING), _any_case(CAPITAL, capital=True)])


def _rule(name: str, first: Collection[str], pattern: str, make: Make | None = None, walk: str = "") -> Rule:
    return Rule(name, first, re.compile(pattern), make, re.compile(walk) if walk else None)


def _splits() -> Iterable[Rule]:
    def halves(at: int) -> Make:
        return lambda text: [text[:at], text[at:]]

    return (_rule("split word", word[0] + word[0].upper(), _any_case([word]), halves(at)) for word, at in SPLIT.items())


WORD_RULES = [
    *_splits(),
    _rule("word", WORDS, WORD, _solid),
    _rule("before n't", string.ascii_letters + SOFT, f"([A-Za-z{SOFT}]*[A-MO-Za-mo-z]{SOFT}*)[Nn]{MARKED}[Tt]", _solid),
    *(_rule("before 's", WORDS, f"({shape}){APOS}{CLITIC}", _solid) for shape in (WORD, DOTTED)),
    _rule("n't", "Nn", f"[Nn]{MARKED}[Tt]", _apostrophe),
    _rule("'s", APOSES, f"({APOS}{CLITIC})[^A-Za-z]", _apostrophe),
    _rule("named", LETTERS, NAMED, _solid),
    _rule("clipped", "eEcClLnN", _any_case(["e'er", "c'mon", "li'l", "ev'ry", "nat'l"])),
    _rule("clipped", "cC", f"[Cc]{APOS}[Ee][Ss][Tt]|[Cc][Aa][Pp]{APOS}[Nn]"),
    _rule("j'", "DdJjLl", f"[DdJjLl]{APOS}"),
    _rule("y'", "Yy", f"([Yy]{APOS})[{L}]"),
    _rule("ol'", "Oo", f"[Oo][Ll]{APOS}|[Oo]{MARKED}[Oo]"),
    _rule("'em", APOSES, f"{APOS}(?:[Nn]{APOS}?|[Ee][Mm]|[Tt][Ii][Ll][Ll]?|[Cc][Aa][Uu][Ss][Ee])"),
    _rule("'90s", APOSES, f"{APOS}[2-9]0[Ss]"),
    _rule("'99", APOSES, f"({APOS}[0-9][0-9]){GAP}"),
    _rule("quotes", "'`", "''|``"),
    _rule("open quote", "'", "(')[A-Za-z][^ \t\xa0\\n]"),
    _rule("'s", APOSES, f"{APOS}{CLITIC}", _apostrophe),
    _rule("'tis", "'", "('[Tt])(?:[Ii][Ss]|[Ww][Aa][Ss])"),
    _rule("hyphened", LETTERS + DIGITS, HYPHENED),
    _rule("slashed", LETTERS + DIGITS, f"{SLASHED}(?:\\\\?/{SLASHED}){{1,2}}"),
    _rule("fraction", DIGITS, f"(?:[{D}]{{1,4}}{PAIR})?[{D}]{{1,4}}(?:\\\\?/|\u2044)[{D}]{{1,4}}", _unspaced),
    _rule("date", DIGITS, f"[{D}]{{1,2}}[-/][{D}]{{1,2}}[-/][{D}]{{2,4}}"),
    _rule("dotted", WORDS, DOTTED, _solid)]

MAIL_RULES = [
    *(_rule("mail", first, f"{opening}[A-Za-z0-9]{MAIL}*@{MAIL_HOST}+(?:\\.{MAIL_HOST}+)*(?:>|&[Gg][Tt];)?", walk=walk)
      for first, opening, walk in ((ALPHANUMERIC, "", f"{MAIL}*"), ("<&", "(?:<|&[Ll][Tt];)", "")))]

SHORT_RULES = [
    *(_rule("period and comma", WORDS + DIGITS, f"((?:{shape})\\.)[,;:\u3001]", _solid)
      for shape in (WORD, HYPHENED, DOTTED)),
    _rule("period and comma", CAPITALS, f"({COMPANY}\\.)[,;:\u3001]", _ampersand),
    _rule("period and comma", ALPHANUMERIC, f"((?:{DOT_HYPHENED})\\.)[,;:\u3001]", _solid, COMMAED),
    _rule("number", DIGITS + "+-.,:" + SEPARATOR + SOFT,
          f"[+-]?(?:{SOFT}?{DIGITS_SOFT}(?:{POINT}{DIGITS_SOFT})*|(?:{POINT}{DIGITS_SOFT})+)", _solid),
    _rule("initial", string.ascii_letters, "[A-Za-z]\\."),
    _rule("acronym", string.ascii_letters, "[A-Za-z](?:\\.[A-Za-z])+\\.?"),
    _rule("abbreviation", string.ascii_letters, f"(?:{ALWAYS_SHORT})\\."),
    _rule("closing abbreviation", string.ascii_letters, f"((?:{CLOSING_SHORT})\\.)[\\s\\S]{{2}}"),
    _rule("closing abbreviation", string.ascii_letters, f"(?:{CLOSING_SHORT})\\."),
    _rule("dots and hyphens", ALPHANUMERIC, DOT_HYPHENED, _solid, COMMAED),
    _rule("before a number", string.ascii_letters, f"((?:{_any_case(NUMBERED)})\\.){GAP}?[{D}]"),
    _rule("before a sentence", string.ascii_letters,
          f"([A-Za-z])\\.{GAP}+(?:{_any_case(STARTERS, capital=True)}|{ELEMENT}){GAP}"),
    _rule("before a sentence", string.ascii_letters, f"([A-Za-z])\\.{GAP}+{DECLARATION}{GAP}", None,
          f"[A-Za-z]\\.{GAP}+{DECLARATION[:-1]}"),
    _rule("prefix", "pPaA", f"(?:{_any_case(['pro', 'anti'])})-"),
    _rule("company", CAPITALS + "s", f"{COMPANY}|[Ss](?:&|&[Aa][Mm][Pp];)[Ll][Ss]", _ampersand),  # the S&Ls: banks
    _rule("dollars", CAPITALS, "[A-Z]+\\$"),
    _rule("language", "cCfF", "[CcFf]#|[Cc]\\+\\+"),
    _rule("face", "Oo", "[Oo]_[Oo]")]

ADDRESS_RULES = [
    _rule("link", "Hh", f"[Hh][Tt][Tt][Pp][Ss]?://[^{OPEN}{{}}]+[^{OPEN}{{}}.!?,-]"),
    *(_rule("web", "Ww", f"[Ww]{{3}}\\.{host}", None, f"[Ww]{{3}}\\.[^{OPEN}!?,{{}}]*") for host in (
        f"(?:[^{OPEN}.!?,{{}}]+\\.)+[A-Za-z]{{2,4}}", f"(?:[^{OPEN}.!?,{{}}]+\\.)+?[A-Za-z]{{2,4}}{PATH}")),
    *(_rule("site", HOSTS, site, None, f"(?:{PLAIN}+\\.)*{PLAIN}*")
      for site in (f"(?:{PLAIN}+\\.)+{TOP}", f"(?:{PLAIN}+\\.)+?{TOP}{PATH}")),
    _rule("file", LETTERS + DIGITS + MARK + SOFT,
          f"((?:{STEM}\\.)+(?:{_any_case(EXTENSIONS)}))[{SP}\\n{NEXT_LINE}!,.?]", None, f"(?:{STEM}\\.)*{STEM}?")]

SIGN_RULES = [
    _rule("phone number", string.digits + "(+",
          f"(?:\\+{{0,2}}(?:[0-9]{{2,4}}{PAIR})?[0-9]{{2,4}}{PAIR}|\\([0-9]{{2,3}}\\)[ \xa0]?)"
          f"[0-9]{{3,4}}{PAIR}?[0-9]{{3,5}}", lambda text: _escaped(_unspaced(text)[0])),
    *(_rule("bracket", char, re.escape(char), _constant(token)) for char, token in BRACKETS.items()),
    _rule("written bracket", "-", f"{_any_case(BRACKETS.values())}"),
    _rule("ellipsis", ".", "\\.{3,5}|(?:\\. ){2,}\\.", _constant("...")),
    _rule("dash", "-", "-{2,4}", _constant("--")),
    _rule("dashes", "-", "-{5,}"),
    _rule("exclamations", "!?", "[!?]{2,}"),
    _rule("quotes", [*QUOTES, "\u201a"], f"[{''.join(QUOTES)}\u201a]{{1,2}}", _quoted),
    _rule("raised", "\xb2\u2082\u207a", "\u207a?(?:\xb2+|\u2082+)"),
    *(_rule("typed", char, char, _constant(token)) for char, token in TYPED.items()),
    *(_rule("currency", char, char, _constant(token)) for char, token in CURRENCIES.items()),
    _rule("soft hyphen", SOFT, SOFT, _constant("-")),
    _rule("underscores", "_", "_+"),
    _rule("stars", "*", "\\*+"),
    _rule("stars", "\\", "(?:\\\\\\*)+"),
    _rule("angles", "<>", "<<|>>"),
    _rule("smile", ":;=<>", "([<>]?[:;=]['*o-]?[()@\\[\\]{|\\\\DdPpO])[^A-Za-z0-9]", _escaped),
    _rule("face", "'<=>^~x-(", f"{EYE}_{EYE}|\\({EYE}[-._]?{EYE}\\)", _escaped),
    _rule("mention", "@", "@[A-Za-z_][A-Za-z0-9_]*|@+"),
    _rule("hashtag", "#", f"#(?:[{L}{MARK}{SOFT}]|{ACCENTED})+|#+"),
    _rule("tag", "<", ELEMENT, _unspaced),
    _rule("tag", "<", DECLARATION, _unspaced, DECLARATION[:-1]),
    *(_rule("entity", "&", _any_case([name]), _constant(token)) for name, token in ENTITIES.items()),
    *(_rule("entity", "&", name, _constant(token)) for name, token in (("&quot;", "''"), ("&apos;", "'"))),
    _rule("entity", "&", f"&(?:{_any_case(NEWSWIRE)});|&#[0-9]+;")]

ADDRESS = re.compile("@|://|\\.[^ \\n]")  # without any of these MAIL_RULES and ADDRESS_RULES find nothing


def table(rules: Iterable[Rule]) -> dict[str, list[Rule]]:
    """Character -> the rules whose token may begin with it, in order."""
    found: dict[str, list[Rule]] = {}
    for rule in rules:
        for char in rule.first:
            found.setdefault(char, []).append(rule)
    return found
