"""Random captions in named categories, realistic and nasty, for the tests of the tokenizer."""

from __future__ import annotations

import string
from collections.abc import Callable
from random import Random

WORDS = """
    a the man woman dog is on in with and of at red blue street sign playing ball standing near two three people sitting
    table food plate cat train bus bear holding white black young girl boy his her wearing shirt riding horse skate board
    next to large small water beach tennis player giraffe elephant zebra umbrella kitchen it he she they I we you John
    Mary New York Paris can could would do does did are was have has must should not""".split()
FOREIGN = """
    café naïve über Zürich São façade jalapeño crème brûlée Ångström Łódź İstanbul straße ΟΔΟΣ привет Москва мир 日本語
    寿司 東京 한국어 서울 العربية مرحبا עברית हिन्दी ไทย Việt phở l’été d’Été O’Connor n° º ª µ ½ ﬁsh Ａｂｃ ① Ⅳ № ™ © ® €
    ٣ ٤٥ ۱۲ 😀 👍🏽 👨‍👩‍👧 🇺🇸 𝐀 𠀀 e\u0301 n\u0303 a\u0308b ǅ ß ẞ ŉ ﷺ 。 、 ， ！ ？ （ ） 「 」 ・ ー 々 ˀ ʼ ˈ""".split()
ABBREVIATIONS = """
    mr mrs ms dr st jr sr prof inc ltd co corp etc vs no nos fig ave blvd rd mt ft lt sgt gen col gov sen rep rev capt jan
    feb mar apr jun jul aug sept oct nov dec mon tue wed thu fri sat sun calif mass tenn tex wash pa va la ill ind ore del
    dept univ assn bros est ext tel approx min max hr lb oz in pp op ca art mme messrs hon maj adm ph cf al ed vol hwy
    apt""".split()
ACRONYMS = "U.S. e.g. i.e. a.m. p.m. Ph.D. U.K. D.C. N.Y. U.S.A. B.A. M.D. L.A. b.c. R.I.P. a.k.a. w.r.t.".split()
SPACES = ("\t\xa0\u3000\u2003\u2009\u202f\u205f\u200b\u200c\u200d\u2060\ufeff\xad\x00\x01\x07\x1b\x1c\x1f\x7f\x85\x81\u180e"
          "\u1680\r\n\v\f\u2028\u2029 ")
DASHES = "—–―‒−‐‑“”‘’«»‹›„‚‟‛…·•′″`´¨\x85\x91\x92\x93\x94\x96\x97\x80"
BLOCKS = [(0xA0, 0x24F), (0x300, 0x5FF), (0x600, 0x1FFF), (0x2000, 0x2FFF), (0x3000, 0x9FFF), (0xAC00, 0xD7FF),
          (0xF900, 0xFFFF), (0x10000, 0x1FFFF)]


class Fuzz:
    """Makes pieces of captions and captions; equal for equal seeds."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.pick = self.random.choice

    def any(self, *makers: Callable[[], str]) -> str:
        return self.pick(makers)()

    def many(self, make: Callable[[], str], low: int, high: int) -> str:
        return "".join(make() for _ in range(self.random.randint(low, high)))

    def digits(self, low: int = 1, high: int = 4) -> str:
        return self.many(lambda: self.pick(string.digits), low, high)

    def cased(self, text: str) -> str:
        return self.pick([text] * 7 + [text.capitalize()] * 2 + [text.upper()])

    def word(self) -> str:
        if self.random.random() < 0.04:
            return self.many(lambda: self.pick(string.ascii_letters), 1, 7)
        return self.cased(self.pick(WORDS))

    def plain(self) -> str:
        return self.word() + self.pick(["", "", "", "s", "ing", "ed"])

    def punctuation(self) -> str:
        marks = lambda: self.many(lambda: self.pick(".,;:!?-"), 1, 6)  # noqa: E731
        return self.any(marks, lambda: self.pick(string.punctuation) * self.random.randint(1, 7),
                        lambda: self.word() + marks() + self.pick(["", self.word()]),
                        lambda: self.many(lambda: self.pick(string.punctuation + " "), 1, 6))

    def noise(self) -> str:
        """Any printable ASCII, often of few different characters."""
        some = [self.pick(string.ascii_letters + string.digits + string.punctuation) for _ in range(self.pick([2, 4, 6, 90]))]
        return self.many(lambda: self.pick([*some, " "]), 1, 14)

    def bracketed(self) -> str:
        opening, closing = self.pick([*"() [] {} <> '' \"\" `` “” ‘’ «» „“ ‹› (]".split(), ("``", "''")])
        inner = self.any(self.word, lambda: f"{self.word()} {self.word()}", str, self.digits, self.bracketed,
                         lambda: self.word() + self.pick(".,!?"))
        gap = self.pick(["", "", " "])
        return opening + gap + inner + gap + self.pick([closing, closing, closing, ""]) + self.pick(["", "", ".", ",", "'s"])

    def clitic(self) -> str:
        mark = self.pick(["'", "'", "'", "’", "‘", "`", "&apos;", "´"])
        verbs, heads = "do does did is are was have had ca wo would should must ai".split(), "o O d D l L n y j qu c ma ol e ne ev cap li M"
        made = self.any(
            lambda: self.pick(verbs) + "n" + mark + "t", lambda: self.word() + mark + self.pick("s m d ll re ve em t".split()),
            lambda: self.pick("cannot gonna gotta wanna lemme gimme dunno whatcha".split()),
            lambda: mark + self.pick("tis twas til em cause n bout round nuff 90s 99 80s 5 s".split()),
            lambda: self.pick(heads.split()) + mark + self.pick("clock Neil Angelo eau all am er ry n l est mon ai".split()),
            lambda: self.word() + "s" + mark, lambda: self.word() + mark + self.word(), lambda: mark + self.word() + mark,
            lambda: self.digits() + mark + self.pick(["s", "", "11", '11"']), lambda: self.word() + mark + "n" + mark + self.word(),
            lambda: self.word() + "n" + mark + "t" + mark + "ve")
        return self.cased(made) + self.pick(["", "", "", ".", ",", "-", "?"])

    def abbreviation(self) -> str:
        starts = "The the A He She In I We It There When Then They Two".split()
        letter = lambda: self.pick(string.ascii_letters)  # noqa: E731
        made = self.any(
            lambda: self.pick(ABBREVIATIONS) + ".", lambda: ".".join(letter() for _ in range(self.pick([1, 2, 3, 4]))) + ".",
            lambda: self.pick(ACRONYMS), lambda: self.word() + ".", lambda: f"{self.word()}.{self.word()}",
            lambda: f"{letter()}. {self.pick(starts)}")
        behind = [self.word(), " " + self.digits(), "-" + self.word(), *[""] * 4, *", 's . ) ; : .. .,".split()]
        return self.cased(made) + self.pick(behind)

    def number(self) -> str:
        digits, pick = self.digits, self.pick
        made = self.any(
            digits, lambda: f"{digits(1, 3)},{digits(3, 3)}", lambda: f"{digits()}.{digits()}", lambda: "." + digits(),
            lambda: f"{digits(1, 2)}/{digits(1, 2)}", lambda: f"{digits(1, 2)} {digits(1, 1)}/{digits(1, 2)}",
            lambda: pick("$£€¥¢#%") + digits(1, 3) + pick(["", ".50", ",000", "k", "m"]), lambda: digits() + pick('%$£€¢°#"'),
            lambda: f"{digits(1, 2)}:{digits(2, 2)}" + pick(["", "am", " pm", "a.m.", " p.m.", "PM"]),
            lambda: digits(1, 2) + pick("/-") + digits(1, 2) + pick("/-") + digits(2, 4),
            lambda: pick(["", "+", "1-", "+1 "]) + pick(["({}) ", "{}-", "{} ", "{}."]).format(digits(3, 3)) + digits(3, 3)
            + pick("- .") + digits(4, 4),
            lambda: digits() + pick("st nd rd th s lbs ft mph kg cm x k K m M am pm D px p in".split()),
            lambda: pick(["", digits(1, 2)]) + pick("½¼¾⅓⅔⅛"), lambda: pick("A US C HK NZ us R CAD".split()) + "$" + digits(),
            lambda: pick("+-±~<>=") + digits(), lambda: digits() + pick("x×*+-=/:;,._") + digits(),
            lambda: f"{digits(1, 2)}'" + pick(["", digits(1, 2) + '"']), lambda: digits() + pick("-–—‐") + digits(),
            lambda: pick("ABFMXx") + pick(["", "-"]) + digits(), lambda: " ".join(digits(1, 5) for _ in range(pick([2, 3, 4]))),
            lambda: self.many(lambda: pick("0123456789.,:-/ "), 3, 10), lambda: f"{digits(1, 3)}⁄{digits(1, 2)}",
            lambda: pick(["No.", "no. ", "#", "Fig. ", "p. ", "pp. ", "vol. "]) + digits())
        return made + pick(["", "", "", ".", ",", "-" + self.word(), self.word(), "'s", ")", "%"])

    def hyphened(self) -> str:
        part = lambda: self.any(self.word, self.digits, self.word)  # noqa: E731
        prefixes = "- / -- _ pro- pre- anti- non- w/ w/o and/or 24/7 & \\".split()
        return self.any(
            lambda: self.cased(self.pick(["-", "-", "-", "/", "_", "--", "‐", "‑"]).join(part() for _ in range(self.pick([2, 3, 4])))),
            lambda: self.many(lambda: self.any(self.word, self.digits, lambda: self.pick("-/_-")), 2, 6),
            lambda: self.pick(prefixes) + self.pick(["", self.word()])) + self.pick(["", "", ".", "-", "'s", ","])

    def address(self) -> str:
        end = lambda: self.pick("com org net edu co.uk gov io de html php jpg txt info me tv pdf zip".split())  # noqa: E731
        word = lambda: self.cased(self.word()) + self.pick(["", "", "", self.digits(1, 2), "-x", "_y", "é"])  # noqa: E731
        path = lambda: self.pick(["", "", "/", f"/{word()}", f"/{word()}/{word()}.{end()}", f"?{word()}=1", f"#{word()}",  # noqa: E731
                                  f"/{word()}?x={self.digits()}&y=%20", ":80", f"/~{word()}"])
        entities = "amp lt gt quot nbsp apos mdash eacute copy #39 #x27 ndash md".split()
        made = self.any(
            lambda: f"{self.pick(['http', 'https', 'ftp', 'HTTP'])}://{word()}.{end()}{path()}",
            lambda: f"{self.pick(['www', 'WWW'])}.{word()}.{end()}{path()}", lambda: f"{word()}.{end()}{path()}",
            lambda: f"{word()}{self.pick(['', '.', '1'])}@{word()}{self.pick(['', '.' + end()])}",
            lambda: f"<{word()}@{word()}.{end()}>", lambda: self.pick("@#") + self.pick(["", "@", "#", "_"]) + word(),
            lambda: "<" + self.pick(["", "/", "!--", "?"]) + word()
            + self.many(lambda: self.pick([" ", f' {word()}="{word()}"', f" {word()}", " /", "/"]), 0, 2) + ">",
            lambda: f"&{self.pick(entities)}{self.pick([';', ';', ';', ' '])}{self.pick(['', word()])}")
        return self.pick(["", "", "", "(", '"']) + made + self.pick(["", "", "", *". , ! ? ) \" 's -".split()])

    def emoticon(self) -> str:
        eyes, wide = ": ; = 8 B X x :' >: <:".split(), "-^><'xoOTuQ=~."
        drawn = "<3 </3 \\o/ (: (; ): D: (^_^) (-.-) ^^ T_T o_O O_o lol XD <33 -_-; :)) =^.^= c++ C# R+B".split()
        made = self.any(lambda: self.pick(eyes) + self.pick(["", "-", "o", "^", "*"]) + self.pick(")(][}{DPpOo/\\|*3@$#dSsx"),
                        lambda: self.pick(wide) + self.pick(["_", ".", "__", "-"]) + self.pick(wide), lambda: self.pick(drawn))
        return self.pick(["", "", "", self.word()]) + made + self.pick(["", "", "", ")", ".", self.word(), made, ",", "!"])

    def typographic(self) -> str:
        mark = lambda: self.pick(DASHES)  # noqa: E731
        return self.any(lambda: self.word() + mark() + self.pick(["", self.word(), self.digits()]), lambda: self.many(mark, 1, 4),
                        lambda: mark() + self.word() + mark(), lambda: f"{self.word()} {mark()} {self.word()}")

    def foreign(self) -> str:
        joints = [*".-_,/'@#&:", self.word(), self.digits()]
        made = self.any(
            lambda: self.pick(FOREIGN), lambda: self.pick(FOREIGN),
            lambda: self.pick(FOREIGN) + self.pick([*FOREIGN, *joints]) + self.pick([*FOREIGN, self.word()]),
            lambda: self.many(lambda: chr(self.random.randint(*self.pick(BLOCKS))), 1, 4))
        return self.pick(["", "", self.word()]) + made + self.pick(["", "", "", self.word(), *". , 's - !".split()])

    def spaced(self) -> str:
        space = lambda: self.pick(SPACES)  # noqa: E731
        return self.any(lambda: self.word() + space() + self.word(), lambda: space() * self.pick([1, 2, 3]) + self.word(),
                        lambda: self.digits() + space() + self.pick([self.digits(), "1/2", self.word()]),
                        lambda: self.word() + self.pick(".,-'\"(") + space() + self.word())

    def mixed(self) -> str:
        return self.pick([make for name, make in CATEGORIES.items() if name != "mixed"])(self)

    def caption(self, make: Callable[[Fuzz], str]) -> str:
        """A line of one to nine words and pieces of one category."""
        pieces = [make(self) if self.random.random() < 0.6 else self.word() for _ in range(self.random.randint(1, 9))]
        return "".join(piece + self.pick([" "] * 14 + ["", "  "]) for piece in pieces) + self.pick(["", "", " .", ".", "!", "?"])


CATEGORIES: dict[str, Callable[[Fuzz], str]] = {
    "plain words": Fuzz.plain, "punctuation runs": Fuzz.punctuation, "any printable ASCII": Fuzz.noise,
    "brackets and quotes": Fuzz.bracketed, "clitics and contractions": Fuzz.clitic, "abbreviations": Fuzz.abbreviation,
    "numbers, fractions, currency": Fuzz.number, "hyphens and slashes": Fuzz.hyphened, "addresses, tags, hashtags": Fuzz.address,
    "emoticons": Fuzz.emoticon, "Unicode dashes and quotes": Fuzz.typographic, "accents and other scripts": Fuzz.foreign,
    "whitespace and control": Fuzz.spaced, "mixed": Fuzz.mixed}


def captions(seed: int, each: int) -> dict[str, list[str]]:
    """Category -> as many random captions of it."""
    fuzz = Fuzz(seed)
    return {name: [fuzz.caption(make) for _ in range(each)] for name, make in CATEGORIES.items()}
