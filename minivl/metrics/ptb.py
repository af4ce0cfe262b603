"""Words of captions as the COCO evaluation counts them, without Java.

pycocoevalcap runs Stanford's PTBTokenizer 3.4.1 (``-preserveLines -lowerCase``) in a JVM and drops the tokens on a list
of 17 punctuation marks. ``mode="coco"`` gives the same tokens, quirks included; it was built from what that program
answers. ``mode="clean"`` mends the quirks, for scores that need not be compared with published ones:

- Brackets go, as the list meant: it names ``-LRB-``, the tokens are ``-lrb-``, and square ones are on no list; so do
  those that are written in this way. So does every token without a letter, a digit or a symbol outside ASCII (``!!``,
  ``-----``, ``:-)``), but for the signs that are read as words: ``& % # @ $ + = < >``.
- What typography tells apart is one: curly, low and angled quotes and primes, hyphens and minus signs, full-width and
  mathematical letters, ligatures, accents as one character or two. HTML entities are decoded. Soft hyphens, joiners
  and other invisible characters vanish; a zero-width space, like any control character, is a space.
- The currencies stay apart: "coco" makes ``$`` of the euro sign, ``#`` of the pound sign and ``cents`` of its sign.
- Letters and digits the old program does not know are words, and symbols such as emoji tokens; "coco" drops both.
- No token holds a space: "coco" makes one of ``1 1/2`` and of ``(555) 123-4567``.
- A word loses its period before a comma (``dog.,``), and a single letter always: "coco" keeps it, and for the letter
  looks at the next word.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Callable, Iterable

from ..errors import InputError
from .ptb_lexer import SPECIAL, Lexer, from_utf16, lower, utf16
from .ptb_rules import BRACKETS, KIND
from .ptb_tables import DIGIT, DROPPED, LETTER, MARK, NUMBERED, SYMBOL, Kinds

MODES = ("coco", "clean")
PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])
LINE_BREAKS = re.compile("[\n\r\v\f\u2028\u2029]")  # what Java takes for the end of a line, and so of a caption
CACHED, CACHED_LENGTH = 1 << 16, 40  # chunks of text remembered, and characters in one, at most

# Chunks whose tokens need no rules; those that may have other tokens beside another chunk; and where that may happen.
PLAIN = re.compile("([A-Za-z]+(?:-[A-Za-z]+)*)('[Ss])?([.,!?;:]?)")
OPEN = re.compile(r"[0-9<&]|^\..|(?:^|[^A-Za-z])[A-Za-z]\.$")
CROSSING = re.compile(r"[<&]|[0-9)] [0-9]|[0-9] \(|\. [.0-9]|(?<![A-Za-z])[A-Za-z]\. +[A-Z]")

# Captions whose last token may depend on the next one
UNFINISHED = re.compile(rf"(?:(?<![A-Za-z])[A-Za-z]|(?<![A-Za-z])(?:{'|'.join(NUMBERED)}))\.\s*$", re.IGNORECASE)

# Of mode "clean"
WORDY = frozenset("&%#@$+=<>")
TYPED_AS = {"'": "\u2018\u2019\u201a\u201b\u02bc\u2032\u2039\u203a", '"': "\u201c\u201d\u201e\u201f\u2033\xab\xbb",
            "-": "\u058a\u2010\u2011\u2212", "\u2013": "\u2012", "/": "\u2044"}
SPACES = [*range(32), 127, 0x1680, 0x180E, 0x200B, 0x202F, 0x205F, 0x2028, 0x2029, 0xFFFD, *range(0xD800, 0xE000)]
NOTHING = [0xAD, *range(0x200C, 0x2010), *range(0x202A, 0x202F), 0x2060, 0xFEFF, *range(0xFE00, 0xFE10),
           *range(0x1F3FB, 0x1F400)]  # the last: skin tones, behind the emoji they colour
ASCII_TWINS = {ord(char): plain for plain, typed in TYPED_AS.items() for char in typed}
TYPOGRAPHY = {**ASCII_TWINS, **dict.fromkeys(SPACES, " "), **dict.fromkeys(NOTHING, ""),
              **{code: (bytes([code]).decode("cp1252", "ignore") or " ").translate(ASCII_TWINS)
                 for code in range(128, 160)}}
COMPATIBLE = re.compile("[\ufb00-\ufb06\uff01-\uffee\U0001d400-\U0001d7ff]+")
ACCENT_APOSTROPHE = re.compile("(?<=[^\\W\\d_])[`\xb4](?=[^\\W\\d_])")


class _Modern(Kinds):
    """Kinds of characters as Python's Unicode has them, where the tokenizer of 2014 knows none."""

    def __missing__(self, code: int) -> str:
        kind = super().__missing__(code)
        if kind == DROPPED:
            category = unicodedata.category(chr(code))
            modern = {"L": LETTER, "M": MARK, "Nd": DIGIT, "N": SYMBOL, "P": SYMBOL, "S": SYMBOL}
            self[code] = kind = modern.get(category, modern.get(category[0], DROPPED))
        return kind


COCO_LEXER = Lexer(KIND)
CLEAN_LEXER = Lexer(_Modern(), raw=("smile", "face", "currency"), without=(
    "period and comma", "initial", "before a sentence", "phone number", "bracket"))


def _coco(line: str, behind: str = "") -> tuple[str, ...]:
    tokens = lower(from_utf16(" ".join(COCO_LEXER.tokens(utf16(line), utf16(behind)))))
    return tuple(token for token in tokens.rstrip().split(" ") if token and token not in PUNCTUATION)


def _clean(line: str) -> tuple[str, ...]:
    text = (html.unescape(line) if "&" in line else line).translate(TYPOGRAPHY)
    text = COMPATIBLE.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text)
    text = ACCENT_APOSTROPHE.sub("'", unicodedata.normalize("NFC", text))
    return tuple(token for token in lower(" ".join(CLEAN_LEXER.tokens(text))).split()
                 if token.isalnum() or token in WORDY or any(map(_says, token)) and token not in BRACKETS.values())


def _says(char: str) -> bool:
    """Whether it is a letter, a digit or a symbol outside ASCII, rather than punctuation or an accent on its own."""
    return char.isalnum() or not char.isascii() and unicodedata.category(char) in ("Sc", "Sm", "So")


class _Chunks(dict[str, "tuple[str, ...] | None"]):
    """Remembers what a function makes of chunks of text."""

    def __init__(self, make: Callable[[str], tuple[str, ...] | None]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, chunk: str) -> tuple[str, ...] | None:
        made = self._make(chunk)
        if len(chunk) <= CACHED_LENGTH:
            if len(self) >= CACHED:
                self.clear()
            self[chunk] = made
        return made


class Tokenizer:
    """Text -> tokens. The two there are, `coco` and `clean`, may be given to a metric as its ``tokenize``.

    Attributes:
        name: for signatures: "ptb-coco" or "ptb-clean".
    """

    def __init__(self, mode: str) -> None:
        self.name = f"ptb-{mode}"
        self._line = _coco if mode == "coco" else _clean
        self._closed = _Chunks(self._chunk)
        self._apart = _Chunks(self._line)

    def __call__(self, text: str) -> list[str]:
        """As `tokenize`."""
        if not isinstance(text, str):
            raise InputError(f"a caption must be a string, not {type(text).__name__} {text!r:.60}", source=self.name)
        if not (text.isascii() and text.isprintable()):
            text = LINE_BREAKS.sub(" ", text)
            if not (text.isascii() and text.isprintable()):
                return list(self._line(text))
        closed = self._closed
        tokens: list[str] = []
        for chunk in text.split():
            found = closed[chunk]
            if found is None:
                return self._with_open(text)
            tokens += found
        return tokens

    def _with_open(self, text: str) -> list[str]:
        """The tokens of printable ASCII with chunks that may have others beside another chunk."""
        if CROSSING.search(text):
            return list(self._line(text))
        return [token for chunk in text.split() for token in self._apart[chunk] or ()]

    def _chunk(self, chunk: str) -> tuple[str, ...] | None:
        """The tokens of printable ASCII without spaces; None if it could have others beside another chunk."""
        plain = PLAIN.fullmatch(chunk)
        if plain:
            word, clitic, mark = plain[1].lower(), plain[2], plain[3]
            if word not in SPECIAL and (len(word) > 1 or clitic or mark != "."):
                return (word, clitic.lower()) if clitic else (word,)
        return None if OPEN.search(chunk) else self._line(chunk)


coco = Tokenizer("coco")
clean = Tokenizer("clean")


def tokenize(text: str, mode: str = "coco") -> list[str]:
    """The tokens of a caption, lower case, without punctuation.

    Line breaks inside are spaces.

    Args:
        text: any string; an empty one has no tokens.
        mode: "coco", token for token what pycocoevalcap's PTBTokenizer gives for it, or "clean"; see the module.

    Returns:
        The tokens; ``" ".join`` of them is what that tokenizer returns. In mode "coco" one may hold a no-break space
        (``1 1/2``), at which scorers that use ``str.split``, as its CIDEr and BLEU do, cut it in two.

    Raises:
        InputError: the text is no string, or the mode unknown.
    """
    return _of(mode)(text)


def tokenize_all(texts: Iterable[str], mode: str = "coco", *, one_file: bool = False) -> list[list[str]]:
    """The tokens of each of many captions.

    Args:
        texts: captions.
        mode: as in `tokenize`.
        one_file: as pycocoevalcap, which hands Java all captions in one file: where one ends in a single letter and a
            period ("vitamin C."), or in "No." and the like, whether its last token keeps the period then depends on
            how the next caption begins. That is so of 3 of the 25,014 captions of COCO's val2017. By default each is on
            its own. (A quote that is opened in a tag is looked for in the same caption only.)

    Raises:
        InputError: a text is no string (named by its place), the mode is unknown, or ``one_file`` in mode "clean".
    """
    tokens_of = _of(mode)
    if isinstance(texts, str):
        raise InputError(f"one string is given ({texts!r:.60}), a list of captions is needed", source="tokenize_all")
    if one_file and mode != "coco":
        raise InputError("one_file=True is what pycocoevalcap does; mode 'clean' takes each caption on its own",
                         source="tokenize_all")
    found = []
    given = list(texts)
    for place, text in enumerate(given):
        if not isinstance(text, str):
            raise InputError(f"caption {place} must be a string, not {type(text).__name__} {text!r:.60}",
                             source="tokenize_all")
        found.append(tokens_of(text))
    for place, text in enumerate(given[:-1]):
        if one_file and UNFINISHED.search(text):
            until = next((at for at in range(place + 1, len(given)) if given[at].strip()), place)
            line, *behind = (LINE_BREAKS.sub(" ", one) for one in given[place:until + 1])
            found[place] = list(_coco(line, "\n".join(behind)))
    return found


def _of(mode: str) -> Tokenizer:
    if mode not in MODES:
        raise InputError(f"mode={mode!r} is unknown; there are 'coco' and 'clean'", source="tokenize")
    return coco if mode == "coco" else clean
