"""Random captions in named categories, realistic and nasty, for the tests of the tokenizer.

A grammar: each name has alternatives, in which ⟦name⟧ is replaced by one of that name's own, ⟦name!⟧ by one in random
case; ␣ is a space and ∅ nothing.
"""

from __future__ import annotations

import re
import string
from functools import lru_cache
from random import Random

PART = re.compile("⟦([^⟧!]+)(!?)⟧")
ANYTHING = [(0xA0, 0x24F), (0x300, 0x5FF), (0x600, 0x1FFF), (0x2000, 0x2FFF), (0x3000, 0x9FFF), (0xAC00, 0xD7FF),
            (0xF900, 0xFFFF), (0x10000, 0x1FFFF)]

RULES = r"""
w: a the man woman dog is on in with and of at red blue street sign playing ball standing near two three people
    sitting table food plate cat train bus bear holding white black young girl boy his her wearing shirt riding
    horse skate board next to large small water beach tennis player giraffe elephant zebra umbrella kitchen it he
    she they I we you John Mary New York Paris can could would do does did are was have has must should not
end: . . , ; ! ? : ... - 's )
mark: . , ; : ! ? -
ap: ' ' ' ’ ‘ ` &apos; ´ &APOS;
verb: do does did is are was have had ca wo would should must ai n an
clitic-ending: s m d ll re ve em t S LL
split: cannot gonna gotta wanna lemme gimme dunno whatcha
joint: - - - - / _ -- ‐ ‑ & + .
clipped: tis twas til em cause n bout round nuff 90s 99 80s 00s 5 s
head: o d l n y j qu c ma ol e ne ev cap li M B
tail: clock Neil Angelo eau all am er ry n l est mon ai oo
short: mr mrs ms dr st jr sr prof inc ltd co corp etc vs no nos fig figs ave blvd rd mt ft lt sgt gen col gov sen
    rep rev capt jan feb mar apr jun jul aug sept oct nov dec mon tue wed thu thurs fri sat sun calif mass tenn tex
    wash pa va la ill ind ore del dept univ assn bros est ext tel approx min max hr lb oz in pp op ca art mme messrs
    hon maj adm ph cf al ed vol hwy apt pty mfg esq assoc treas supt
acronym: U.S. e.g. i.e. a.m. p.m. Ph.D. U.K. D.C. N.Y. U.S.A. B.A. M.D. L.A. b.c. R.I.P. a.k.a. w.r.t. Ed.D.
start: The the A a Mr. Ms. Mrs. He She In I We It There When Then They Two THE Theo
cur: $ £ € ¥ ¢ # % US$ A$ HK$ us$ R$
unit: st nd rd th s lbs ft mph kg cm x k K m M am pm D px p in % $ £ € ¢ ° # " ' ½ ² "
vulgar: ½ ¼ ¾ ⅓ ⅔ ⅛
op: x × * + - = / : ; , . _ – — ‐ '
sign: + - ± ~ < > = . , : --
prefix: - / -- _ pro- pre- anti- non- w/ w/o and/or 24/7 \ a- X-
scheme: http https ftp HTTP Http
top: com org net edu co.uk gov io de html php jpg txt info me tv pdf zip COM c h
entity: amp lt gt quot nbsp apos mdash eacute copy #39 #x27 ndash md AMP euml lr
eyes: : ; = 8 B X x :' >: <:
nose: - o ^ * '
mouth: ) ( ] [ } { D P p O o / \ | * 3 @ $ # d S s x
wide: - ^ > < ' x o O T u Q = ~ .
drawn: <3 </3 \o/ (: (; ): D: (^_^) (-.-) ^^ o_O XD <33 -_-; :)) =^.^= c++ C# R+B
typed: — – ― ‒ − ‐ ‑ “ ” ‘ ’ « » ‹ › „ ‚ ‟ ‛ … · • ′ ″ ` ´ ¨
foreign-word: café naïve über Zürich São façade jalapeño crème brûlée Ångström Łódź İstanbul straße ΟΔΟΣ привет
    Москва мир 日本語 寿司 東京 한국어 서울 العربية مرحبا עברית हिन्दी ไทย Việt phở l’été d’Été O’Connor n° º ª µ ½ ﬁsh Ａｂｃ ① Ⅳ
    № ™ © ® € ٣ ٤٥ ۱۲ 😀 👍🏽 👨‍👩‍👧 🇺🇸 𝐀 𠀀 ǅ ß ẞ ŉ ﷺ 。 、 ， ！ ？ （ ） 「 」 ・ ー 々 ˀ ʼ ˈ
gap: ∅ ∅ ␣
maybe: ∅ ⟦word⟧
behind: ∅ ∅ ∅ ⟦end⟧ ⟦word⟧
n: ⟦d⟧ ⟦d⟧⟦d⟧ ⟦d⟧⟦d⟧⟦d⟧ ⟦d⟧⟦d⟧⟦d⟧⟦d⟧ ⟦n⟧⟦n⟧
dd: ⟦d⟧⟦d⟧
ddd: ⟦d⟧⟦d⟧⟦d⟧
word: ⟦w!⟧ ⟦w!⟧ ⟦w!⟧ ⟦w!⟧ ⟦w!⟧ ⟦w!⟧ ⟦w!⟧ ⟦w!⟧ ⟦w!⟧ ⟦w⟧ ⟦w⟧ ⟦w⟧ ⟦w⟧ ⟦w⟧ ⟦w⟧ ⟦w⟧ ⟦w⟧ ⟦w⟧ ⟦letter⟧⟦letter⟧⟦letter⟧
part: ⟦word⟧ ⟦word⟧ ⟦n⟧
plain: ⟦word⟧ ⟦word⟧ ⟦word⟧ ⟦w⟧s ⟦w⟧ing ⟦w⟧ed ⟦word⟧,
marks: ⟦mark⟧ ⟦mark⟧⟦marks⟧
punctuation: ⟦marks⟧ ⟦same⟧ ⟦word⟧⟦marks⟧⟦maybe⟧ ⟦p⟧⟦gap⟧⟦p⟧ ⟦p⟧⟦punctuation⟧
inside: ⟦word⟧ ⟦word⟧␣⟦word⟧ ∅ ⟦n⟧ ⟦bracketed⟧ ⟦word⟧⟦mark⟧
contraction: ⟦verb⟧n⟦ap⟧t ⟦word⟧⟦ap⟧⟦clitic-ending⟧ ⟦split⟧ ⟦ap⟧⟦clipped⟧ ⟦head⟧⟦ap⟧⟦tail⟧ ⟦head!⟧⟦ap⟧⟦tail!⟧
    ⟦w⟧s⟦ap⟧ ⟦word⟧⟦ap⟧⟦word⟧ ⟦ap⟧⟦word⟧⟦ap⟧ ⟦n⟧⟦ap⟧s ⟦d⟧⟦ap⟧⟦d⟧" ⟦word⟧⟦ap⟧n⟦ap⟧⟦word⟧ ⟦verb⟧n⟦ap⟧t⟦ap⟧ve
clitic: ⟦contraction!⟧⟦behind⟧
letters: ⟦letter⟧ ⟦letter⟧.⟦letters⟧
dotted: ⟦short⟧. ⟦letters⟧. ⟦letters⟧ ⟦acronym⟧ ⟦word⟧. ⟦word⟧.⟦word⟧
abbreviation: ⟦dotted!⟧⟦behind⟧ ⟦dotted!⟧␣⟦n⟧ ⟦dotted!⟧-⟦word⟧ ⟦dotted!⟧⟦mark⟧⟦mark⟧ ⟦letter⟧.␣⟦start⟧
    ⟦short!⟧.␣⟦start⟧
amount: ⟦n⟧ ⟦d⟧,⟦ddd⟧ ⟦n⟧.⟦n⟧ .⟦n⟧ ⟦dd⟧/⟦d⟧ ⟦d⟧␣⟦d⟧/⟦d⟧ ⟦cur⟧⟦n⟧ ⟦cur⟧⟦n⟧.⟦dd⟧ ⟦n⟧⟦unit⟧ ⟦n⟧⟦unit⟧⟦unit⟧ ⟦dd⟧:⟦dd⟧
    ⟦d⟧:⟦dd⟧pm ⟦d⟧:⟦dd⟧␣a.m. ⟦d⟧/⟦dd⟧/⟦dd⟧⟦dd⟧ ⟦dd⟧-⟦dd⟧-⟦dd⟧ ⟦dd⟧⟦dd⟧-⟦dd⟧-⟦dd⟧ ⟦phone⟧ ⟦d⟧⟦vulgar⟧ ⟦vulgar⟧
    ⟦sign⟧⟦n⟧ ⟦n⟧⟦op⟧⟦n⟧ ⟦letter⟧⟦n⟧ ⟦letter⟧-⟦n⟧ ⟦n⟧␣⟦n⟧ ⟦n⟧␣⟦n⟧␣⟦n⟧ ⟦d⟧⁄⟦d⟧ ⟦short⟧.␣⟦n⟧ ⟦short⟧.⟦n⟧
    ⟦amount⟧⟦op⟧⟦amount⟧
number: ⟦amount⟧⟦behind⟧ ⟦amount⟧ ⟦amount⟧-⟦word⟧
joined: ⟦part⟧⟦joint⟧⟦part⟧ ⟦part⟧⟦joint⟧⟦joined⟧ ⟦part⟧⟦joint⟧
hyphened: ⟦joined⟧⟦behind⟧ ⟦joined!⟧ ⟦prefix!⟧⟦maybe⟧ ⟦prefix⟧␣⟦word⟧ ⟦joint⟧⟦joined⟧
host: ⟦word⟧ ⟦w⟧ ⟦w⟧⟦d⟧ ⟦w⟧-⟦word⟧ ⟦w⟧_⟦word⟧ ⟦w⟧é ⟦w⟧.⟦w⟧
path: ∅ ∅ ∅ / /⟦host⟧ /⟦host⟧/⟦host⟧.⟦top⟧ ?⟦host⟧=1 #⟦host⟧ /⟦host⟧?x=⟦n⟧&y=%20 :80 /~⟦host⟧
attribute: ␣ ␣ ␣⟦host⟧="⟦word⟧" ␣⟦host⟧='⟦word⟧' ␣⟦host⟧ ␣/ / ∅
place: ⟦scheme⟧://⟦host⟧.⟦top⟧⟦path⟧ www.⟦host⟧.⟦top⟧⟦path⟧ WWW.⟦host⟧.⟦top⟧⟦path⟧ ⟦host⟧.⟦top⟧⟦path⟧ ⟦host⟧@⟦host⟧
    ⟦host⟧@⟦host⟧.⟦top⟧ ⟦host⟧.⟦d⟧@⟦host⟧.⟦top⟧ <⟦host⟧@⟦host⟧.⟦top⟧> @⟦host⟧ #⟦host⟧ @@⟦host⟧ #_⟦host⟧
    <⟦host⟧⟦attribute⟧⟦attribute⟧> </⟦host⟧⟦attribute⟧> <!--⟦attribute⟧⟦host⟧> <?⟦host⟧⟦attribute⟧>
    &⟦entity⟧;⟦maybe⟧ &⟦entity⟧; ⟦w⟧&⟦entity⟧;⟦w⟧ &⟦entity⟧␣
address: ⟦place⟧⟦behind⟧ (⟦place⟧) "⟦place⟧"⟦behind⟧ ⟦place!⟧
smile: ⟦eyes⟧⟦mouth⟧ ⟦eyes⟧⟦nose⟧⟦mouth⟧ ⟦wide⟧_⟦wide⟧ ⟦wide⟧.⟦wide⟧ (⟦wide⟧_⟦wide⟧) ⟦wide⟧__⟦wide⟧ ⟦drawn⟧
emoticon: ⟦smile⟧ ⟦smile⟧ ⟦smile⟧⟦behind⟧ ⟦word⟧⟦smile⟧ ⟦smile⟧⟦smile⟧ ⟦smile⟧)
typographic: ⟦word⟧⟦typed⟧⟦part⟧ ⟦word⟧⟦typed⟧ ⟦typed⟧⟦typed⟧ ⟦typed⟧⟦word⟧⟦typed⟧ ⟦word⟧␣⟦typed⟧␣⟦word⟧
    ⟦typed⟧⟦typographic⟧
foreign: ⟦foreign-word⟧ ⟦foreign-word⟧⟦behind⟧ ⟦foreign-word⟧⟦foreign-word⟧ ⟦foreign-word⟧⟦joint⟧⟦foreign-word⟧
    ⟦word⟧⟦foreign-word⟧⟦part⟧ ⟦foreign-word⟧⟦ap⟧⟦clitic-ending⟧ ⟦foreign-word⟧⟦p⟧⟦foreign⟧ ⟦anything⟧
    ⟦word⟧⟦anything⟧ ⟦anything⟧⟦anything⟧⟦behind⟧ ⟦anything⟧⟦part⟧
spaced: ⟦word⟧⟦space⟧⟦word⟧ ⟦space⟧⟦word⟧ ⟦space⟧⟦space⟧⟦word⟧ ⟦n⟧⟦space⟧⟦n⟧ ⟦d⟧⟦space⟧⟦d⟧/⟦d⟧ ⟦n⟧⟦space⟧⟦word⟧
    ⟦word⟧⟦mark⟧⟦space⟧⟦word⟧ ⟦dotted⟧⟦space⟧⟦start⟧ ⟦contraction⟧⟦space⟧
"""
GRAMMAR = {line.split(": ", 1)[0]: [part.replace("␣", " ").replace("∅", "") for part in line.split(": ", 1)[1].split()]
           for line in RULES.strip().replace("\n    ", " ").split("\n")}
GRAMMAR["foreign-word"] += ["e\u0301", "n\u0303", "a\u0308b", "x\u200dy"]
GRAMMAR["typed"] += "\x91\x92\x93\x94\x96\x97\x80"
GRAMMAR |= {
    "letter": list(string.ascii_letters), "d": list(string.digits), "p": list(string.punctuation),
    "printable": [*string.printable[:-6], " "],
    "space": [*"\t\xa0\u3000\u2003\u2009\u202f\u205f\u200b\u200c\u200d\u2060\ufeff\xad\x00\x01\x07\x1b\x1c\x1f\x7f\x85"
              "\x81\u180e\u1680\r\n\v\f\u2028\u2029 "],
    "bracketed": [f"{left}⟦gap⟧⟦inside⟧⟦gap⟧{right}⟦behind⟧" for left, right in (
        *"() [] {} <> '' \"\" `` “” ‘’ «» „“ ‹› (] '’".split(), ("``", "''"), ("-LRB-", "-rrb-"),
        ("(", ""), ("'", ""), ('"', ""))],
    "phone": [f"{code}{area}⟦ddd⟧{gap}⟦dd⟧⟦dd⟧" for code in ("", "+", "1-", "+1 ", "+44 ")
              for area in ("(⟦ddd⟧) ", "(⟦ddd⟧)", "⟦ddd⟧-", "⟦ddd⟧ ", "⟦ddd⟧.", "⟦dd⟧ ") for gap in "- ."]}
CATEGORIES = {
    "plain words": "plain", "punctuation runs": "punctuation", "any printable ASCII": "noise",
    "brackets and quotes": "bracketed", "clitics and contractions": "clitic", "abbreviations": "abbreviation",
    "numbers, fractions, currency": "number", "hyphens and slashes": "hyphened", "addresses, tags, hashtags": "address",
    "emoticons": "emoticon", "Unicode dashes and quotes": "typographic", "accents and other scripts": "foreign",
    "whitespace and control": "spaced", "mixed": "mixed"}


@lru_cache(maxsize=None)
def cut(text: str) -> list[str]:
    """Text, name, "!" or "", text, name ..."""
    return PART.split(text)


class Fuzz:
    """Makes random captions; equal for equal seeds."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)

    def make(self, name: str) -> str:
        """One of a name's alternatives."""
        pick = self.random.choice
        if name == "anything":
            return chr(self.random.randint(*pick(ANYTHING)))
        if name == "same":
            return pick(string.punctuation) * self.random.randint(1, 7)
        if name == "noise":
            few = [*(self.make("printable") for _ in range(pick([2, 4, 6, 60]))), " "]
            return "".join(pick(few) for _ in range(self.random.randint(1, 14)))
        if name == "mixed":
            return self.make(pick([other for other in CATEGORIES.values() if other != "mixed"]))
        parts = cut(pick(GRAMMAR[name]))
        made = [parts[0]]
        for inner, cased, text in zip(parts[1::3], parts[2::3], parts[3::3]):
            piece = self.make(inner)
            made += [pick([piece] * 7 + [piece.capitalize()] * 2 + [piece.upper()]) if cased else piece, text]
        return "".join(made)

    def caption(self, name: str) -> str:
        """One to nine words and pieces of one kind."""
        pieces = [self.make(name if self.random.random() < 0.6 else "word") for _ in range(self.random.randint(1, 9))]
        spaced = "".join(piece + self.random.choice([" "] * 14 + ["", "  "]) for piece in pieces)
        return spaced + self.random.choice(["", "", " .", ".", "!", "?"])


def captions(seed: int, each: int) -> dict[str, list[str]]:
    """Category -> as many random captions of it."""
    fuzz = Fuzz(seed)
    return {name: [fuzz.caption(kind) for _ in range(each)] for name, kind in CATEGORIES.items()}
