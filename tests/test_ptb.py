"""The tokenizer of captions against the Java program whose tokens it gives."""

from __future__ import annotations

import importlib.util
import json
import random
import shutil
import string
import subprocess
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ptb_fuzz
import pytest

from minivl.errors import InputError
from minivl.metrics import ptb

GOLDEN = Path(__file__).parent / "data" / "ptb_golden.json"
JAR = "stanford-corenlp-3.4.1.jar"
BREAKS = ("\n", "\r", "\r\n", "\v", "\f", "\u2028", "\u2029")
EACH = 1430  # captions of each category of the fuzz, of which there are 14
Java = Callable[[list[str]], list[list[str]]]


def golden() -> list[tuple[str, str]]:
    return [(text, tokens) for text, tokens in json.loads(GOLDEN.read_text(encoding="utf-8"))]


def jar() -> Path:
    """The tokenizer of pycocoevalcap; skips where it or Java is missing."""
    found = importlib.util.find_spec("pycocoevalcap")
    places = list(found.submodule_search_locations or []) if found else []
    if not places or not shutil.which("java"):
        pytest.skip("needs pycocoevalcap and Java (java on the PATH)")
    return Path(places[0]) / "tokenizer" / JAR


def run_java(lines: list[str]) -> str:
    """What the program prints for lines without line breaks."""
    command = ["java", "-cp", str(jar()), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    done = subprocess.run(command, input="\n".join([*lines, ""]).encode(), capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr[-1000:]
    return done.stdout.decode()


def kept(line: str) -> list[str]:
    """What coco-caption keeps of a line of tokens."""
    return [token for token in line.rstrip().split(" ") if token and token not in ptb.PUNCTUATION]


@pytest.fixture(scope="module")
def java() -> Java:
    """The tokens of each line on its own, less the punctuation list of coco-caption.

    A neutral line is put behind each: the program looks ahead over the end of a line.
    """
    jar()

    def tokens(lines: list[str]) -> list[list[str]]:
        given = [ptb.LINE_BREAKS.sub(" ", line) for line in lines]
        printed = run_java([line for one in given for line in (one, "x")]).split("\n")
        assert len(printed) == 2 * len(lines) + 1 and set(printed[1::2]) == {"x"}
        return [kept(line) for line in printed[:-1:2]]

    return tokens


def differing(lines: list[str], java: Java) -> list[tuple[str, list[str], list[str]]]:
    """The lines that differ, with our tokens and theirs."""
    ours = ptb.tokenize_all(lines)
    wrong = [(line, us, them) for line, us, them in zip(lines, ours, java(lines), strict=True) if us != them]
    if len(wrong) > 20:
        return wrong
    # alone, because in a tag an open quote is looked for in all lines behind
    return [(line, us, them) for line, us, _ in wrong for them in java([line]) if us != them]


def test_golden_tokens() -> None:
    """What the Java program gave for captions picked by hand, stored."""
    rows = golden()
    assert len(rows) > 100 and sum(len(tokens.split(" ")) for _, tokens in rows) > 1500
    for text, tokens in rows:
        assert " ".join(ptb.tokenize(text)) == tokens, text


def test_golden_tokens_are_those_of_java(java: Java) -> None:
    rows = golden()
    for (text, tokens), them in zip(rows, java([text for text, _ in rows]), strict=True):
        assert tokens == " ".join(them), text


@pytest.mark.parametrize("text, tokens", [
    ("A man (riding) a wave.", "a man -lrb- riding -rrb- a wave"), ("[x] {y}", "-lsb- x -rsb- -lcb- y -rcb-"),
    ("It can't be John's dog, it's \"hers\"!", "it ca n't be john 's dog it 's hers"),
    ("They cannot, gonna; 'tis o'clock", "they can not gon na 't is o'clock"),
    ("Mr. Smith of the U.S. and St. Louis.", "mr. smith of the u.s. and st. louis"),
    ("1 1/2 cups, $5.00, 50%", "1\xa01/2 cups $ 5.00 50 %"), ("a red-and-white t-shirt", "a red-and-white t-shirt"),
    ("wait... what…", "wait what"), ("it’s — “so” – nice", "it 's so nice"), (":-) and :D", ":--rrb- and :d"),
    ("see www.foo.com/bar or mail a@b.org #now", "see www.foo.com/bar or mail a@b.org #now"), ("", ""), (" . , ", "")])
def test_tokens(text: str, tokens: str) -> None:
    assert " ".join(ptb.tokenize(text)) == tokens


def test_fuzz_against_java(java: Java) -> None:
    """In no category do more than 0.5 % of the lines differ; fresh lines in every run."""
    seed = random.SystemRandom().randrange(2 ** 32)
    report, worst, examples = [], 0.0, []
    made = ptb_fuzz.captions(seed, EACH)
    assert sum(map(len, made.values())) >= 20_000
    for category, lines in made.items():
        wrong = differing(lines, java)
        share = len(wrong) / len(lines)
        worst = max(worst, share)
        report.append(f"{category:30} {share:.3%} of {len(lines)}")
        examples += [f"{line!a}: {us!a}, Java has {them!a}" for line, us, them in wrong[:3]]
    print(f"\nseed {seed}", *report, *examples, sep="\n")
    assert worst < 0.005, "\n".join([f"seed {seed}", *report, *examples])


def test_characters_against_java(java: Java) -> None:
    """Any character, in places that tell its kind."""
    draw = random.SystemRandom()
    codes = [*range(1, 0x180), *range(0x2000, 0x2100), *(draw.randrange(0x180, 0x10000) for _ in range(4000)),
             *(draw.randrange(0x10000, 0x110000) for _ in range(200))]
    lines = [place.replace("_", chr(code)) for code in codes if not 0xD800 <= code < 0xE000
             for place in ("_ a_b 1_2 __", "a-_ _'s #a_b d'_aa '_ ._5 ab'_b U.S._ n_t")]
    assert differing(lines, java) == []


def captions(shared: Path, corpus: str) -> list[str]:
    if corpus == "coco":
        files = [shared / "data" / "coco" / "captions_val2017.json"]
    else:
        files = [shared / "data" / "flickr8k" / name for name in ("train.json", "dev.json")]
    return [row["caption"] for file in files for row in json.loads(file.read_text(encoding="utf-8"))["annotations"]]


@pytest.mark.shared
@pytest.mark.parametrize("corpus, number", [("coco", 25_014), ("flickr8k", 34_995)])
def test_real_captions_against_java(shared: Path, java: Java, corpus: str, number: int) -> None:
    lines = captions(shared, corpus)
    assert len(lines) == number
    assert differing(lines, java) == []


@pytest.mark.shared
def test_coco_captions_in_the_pipeline_of_pycocoevalcap(shared: Path) -> None:
    """Its own wrapper puts all captions into one file, where Java looks ahead into the next one."""
    jar()
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer
    lines = captions(shared, "coco")
    found = PTBTokenizer().tokenize({place: [{"caption": line}] for place, line in enumerate(lines)})
    theirs = [tokens for (tokens,) in found.values()]
    assert [" ".join(tokens) for tokens in ptb.tokenize_all(lines, one_file=True)] == theirs
    wrong = [(line, them, us) for line, them, us in zip(lines, theirs, ptb.tokenize_all(lines), strict=True)
             if them != " ".join(us)]
    print(f"\n{len(wrong)} of {len(lines)} captions have other tokens on their own: {wrong}")
    for line, them, us in wrong:  # "... that reads K." before a caption that begins with "A"
        assert len(us[-1]) == 2 and us[-1][-1] == "." and them == " ".join(us)[:-1]
    assert len(wrong) < 10


def test_one_file_against_java() -> None:
    """What looks ahead over the end of a line does so in both."""
    seed = random.SystemRandom().randrange(2 ** 32)
    draw = random.Random(seed)
    ends = ["sign C.", "no.", "No.", "figs. ", "C. ", "'x.", "U.S.", "Inc.", "dog.", "a.m.", "5", "1", "555", "<b"]
    starts = ["A dog", "The", "the man", "5 dogs", "1/2", "Mr. X", "", " ", " 5 cats", "\tIn", "b> x", "<b> x", ". ."]
    lines = [f"{draw.choice(starts)} {draw.choice(['red ', ''])}{draw.choice(ends)}" for _ in range(4000)]
    printed = run_java(lines).split("\n")
    for line, us, them in zip(lines, ptb.tokenize_all(lines, one_file=True), printed[:-1], strict=True):
        assert us == kept(them), (seed, line)
    with pytest.raises(InputError, match="one_file=True"):
        ptb.tokenize_all(lines, "clean", one_file=True)


@pytest.mark.parametrize("mode", ptb.MODES)
def test_remembered_chunks_and_rules_agree(mode: str) -> None:
    """The fast way over known chunks of text gives what the rules give for the whole line."""
    tokenizer = {"coco": ptb.Tokenizer("coco"), "clean": ptb.Tokenizer("clean")}[mode]
    seed = random.SystemRandom().randrange(2 ** 32)
    draw = random.Random(seed)
    lines = [line for made in ptb_fuzz.captions(seed, 150).values() for line in made]
    lines += ["".join(draw.choices("aAbsSTt.,'-!?:;()\" 1/5$<", k=draw.randint(1, 30))) for _ in range(3000)]
    open_chunks = ["A", "The", "no.", "No.", "C.", "x.", "5", "1/2", ".", "..", "(555)", "123-4567", "co.", "x'C.",
                   "<b>", "<a", "b>", ".5", "dog", "dog.", "'n", "'99", "p.m.", "fig.", "&lt;", "10", "000"]
    lines += [" ".join(draw.choices(open_chunks, k=draw.randint(1, 8))) for _ in range(5000)]
    for line in lines:
        plain = ptb.LINE_BREAKS.sub(" ", line)
        for _ in range(2):  # new chunks, then known ones
            assert tokenizer(line) == list(tokenizer._line(plain)), (seed, line)


@pytest.mark.parametrize("mode", ptb.MODES)
def test_line_breaks_never_shift(mode: str) -> None:
    lines = ["a man", "vitamin C.", "1", "two dogs (run)", "the end..."]
    for gap in (*BREAKS, "\x85", "\x1c", "\x1e", "\t", "\0"):
        broken = [gap.join([line, "a cat", "5 pm"]) for line in lines]
        found = ptb.tokenize_all(broken, mode)
        assert len(found) == len(lines)
        for line, tokens in zip(lines, found, strict=True):
            assert tokens[-4:] == ["a", "cat", "5", "pm"] and tokens[0] in ("a", "vitamin", "1", "two", "the")
            if gap in BREAKS:
                assert tokens == ptb.tokenize(f"{line} a cat 5 pm", mode)


def test_line_breaks_are_spaces_to_java_and_us(java: Java) -> None:
    lines = [f"one{gap}two C.{gap}The 1{gap}1/2 end" for gap in (*BREAKS, "\x85", "\x1d", "\t")]
    assert differing(lines, java) == []


@pytest.mark.parametrize("mode", ptb.MODES)
def test_tokens_are_lower_case_and_no_punctuation(mode: str) -> None:
    seed = random.SystemRandom().randrange(2 ** 32)
    for lines in ptb_fuzz.captions(seed, 60).values():
        for line, tokens in zip(lines, ptb.tokenize_all(lines, mode), strict=True):
            for token in tokens:
                assert token and token not in ptb.PUNCTUATION and token == ptb.lower(token), (seed, line, token)
                assert " " not in token and (mode == "coco" or not any(char.isspace() for char in token)), (seed, line)
                assert mode == "coco" or token in ptb.WORDY or any(
                    char.isalnum() or unicodedata.category(char)[0] == "S" for char in token), (seed, line, token)
            assert ptb.tokenize(f"  {line}  ", mode) == tokens or line[:1] in "\x85", (seed, line)


def test_plain_captions_join() -> None:
    """Of captions of plain words, the tokens of two in a row are those of one and of the other."""
    lines = ptb_fuzz.captions(random.SystemRandom().randrange(2 ** 32), 300)["plain words"]
    lines = [line for line in lines if not line.rstrip(" .!?")[-2:-1] == " "]  # a letter on its own at the end
    for one, other in zip(lines, lines[1:]):
        assert ptb.tokenize(f"{one} {other}") == ptb.tokenize(one) + ptb.tokenize(other)


CLEAN = [
    ("A man (riding) [a] {wave}!!", "a man riding a wave"), ("-LRB- a -rrb- x", "a x"),
    ("\"so\" 'it' ``goes'' “on” ‘and’ «on»", "so it goes on and on"),
    ("It’s o’clock ‘90s l’été d´or can`t", "it 's o'clock '90s l'été d'or ca n't"),
    ("red‐hot mid‑air 5−3 a—b", "red-hot mid-air 5-3 a b"), ("€5 £5 5¢ $5", "€ 5 £ 5 5 ¢ $ 5"),
    ("cafe\u0301 nai\u0308ve", "café naïve"), ("Ａｂｃ！ ﬁsh １２", "abc fish 12"),
    ("caf&eacute; it&#39;s R&amp;B &hellip; &nbsp;x", "café it 's r&b x"),
    ("soft\u00adhyphen zero\u200dwidth a\u200bb", "softhyphen zerowidth a b"),
    ("1 1/2 and 2½ (555) 123-4567", "1 1/2 and 2 1/2 555 123-4567"), ("dog., cat.; 5.,", "dog cat 5"),
    ("vitamin C. The plan B.", "vitamin c the plan b"), ("so 😀👍🏽 ♥ nice", "so 😀 👍 ♥ nice"),
    ("𠀀𠀁 𝐀𝐁", "𠀀𠀁 ab"), ("---- ____ *** :-) (^_^) !? ... '''' ``", ""),
    ("AT&T # 1 @ 5 % + x = y", "at&t # 1 @ 5 % + x = y"), ("a\x92s \x80 5", "a 's € 5"), ("\ud800x", "x"),
    ("can't gonna Mr. U.S. e.g. 5 p.m.", "ca n't gon na mr. u.s. e.g. 5 p.m.")]


@pytest.mark.parametrize("text, tokens", CLEAN)
def test_clean_tokens(text: str, tokens: str) -> None:
    assert " ".join(ptb.tokenize(text, "clean")) == tokens


def test_clean_is_blind_to_typography() -> None:
    """The same tokens whether typed on a keyboard, set by a typographer, or decomposed."""
    typed = "He can't see \"Zoë's\" naïve café (red-hot), 1/2 of the '90s o'clock"
    for twin in (typed.replace("'", "’"), typed.replace("'", "ʼ"), typed.replace('"', "“"), typed.replace("-", "‑"),
                 unicodedata.normalize("NFD", typed), typed.replace("/", "⁄"), typed.replace("&", "&amp;")):
        assert ptb.tokenize(twin, "clean") == ptb.tokenize(typed, "clean")
    assert ptb.tokenize(unicodedata.normalize("NFD", typed)) != ptb.tokenize(typed)  # "coco" is not


@pytest.mark.shared
def test_clean_tokens_of_real_captions_stay_as_they_are(shared: Path) -> None:
    """Tokenizing its own tokens again changes nothing; and few captions have other tokens than in mode "coco"."""
    for corpus in ("coco", "flickr8k"):
        lines = captions(shared, corpus)
        clean = ptb.tokenize_all(lines, "clean")
        assert ptb.tokenize_all([" ".join(tokens) for tokens in clean], "clean") == clean
        other = sum(one != two for one, two in zip(clean, ptb.tokenize_all(lines), strict=True))
        print(f"\n{corpus}: {other} of {len(lines)} captions differ from mode coco")
        assert other < 0.02 * len(lines)


@pytest.mark.parametrize("text", [None, 5, 2.5, b"a dog", ["a dog"], ("a", "b"), {"caption": "a"}])
def test_what_is_no_string_is_an_error(text: Any) -> None:
    for mode in ptb.MODES:
        with pytest.raises(InputError, match=f"must be a string, not {type(text).__name__}"):
            ptb.tokenize(text, mode)
    with pytest.raises(InputError, match="caption 1 must be a string"):
        ptb.tokenize_all(["fine", text])


def test_an_unknown_mode_is_an_error() -> None:
    for call in (lambda: ptb.tokenize("a", "stanford"), lambda: ptb.tokenize_all(["a"], "COCO")):
        with pytest.raises(InputError, match="is unknown; there are 'coco' and 'clean'"):
            call()


def test_tokenizers_have_names_and_give_lists_of_their_own() -> None:
    assert (ptb.coco.name, ptb.clean.name) == ("ptb-coco", "ptb-clean")
    text = "A dog's (red) ball."
    assert ptb.coco(text) == ptb.tokenize(text) and ptb.clean(text) == ptb.tokenize(text, "clean")
    ptb.coco(text).clear()
    ptb.coco("dog's").append("x")
    assert ptb.coco(text) == "a dog 's -lrb- red -rrb- ball".split()
    assert ptb.tokenize_all(iter([text, ""])) == [ptb.coco(text), []]


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ptb, "CACHED", 100)
    tokenizer = ptb.Tokenizer("coco")
    for number in range(500):
        chunk = "".join(random.choice(string.ascii_letters) for _ in range(8))
        assert tokenizer(f"{chunk} dog {number} (x){number}") == ptb.tokenize(f"{chunk} dog {number} (x){number}")
    assert tokenizer("y" * 1000) == ["y" * 1000]
    assert len(tokenizer._closed) <= 100 and len(tokenizer._apart) <= 100
    assert max(map(len, [*tokenizer._closed, *tokenizer._apart])) <= ptb.CACHED_LENGTH


def seconds(text: str, mode: str) -> float:
    """Of processor time, the least of two; nothing remembered."""
    taken = []
    for _ in range(2):
        tokenizer = ptb.Tokenizer(mode)
        start = time.process_time()
        tokenizer(text)
        taken.append(time.process_time() - start)
    return min(taken)


@pytest.mark.parametrize("unit", [
    "a man (riding) a wave, ", "café naïve “x” ", "a,", "1a.", "a-", "<a ", "<!b ", "a. <!b ", "www.1", "@a", "a@.",
    "1 ", "http://", "&lt;a", "a'", "11 11", ". ", "a/", "A&", "5foo.txt", "foo.txtx.", '<a b="', "o'", ":", "a.com/",
    "é,"])
def test_long_captions_take_linear_time(unit: str) -> None:
    short, long = (unit * (length // len(unit)) for length in (6_000, 24_000))
    for mode in ptb.MODES:
        limit = 10 * seconds(short, mode) + 0.05  # 4 would be exact, 16 quadratic
        assert seconds(long, mode) < limit, mode


def test_ten_thousand_words() -> None:
    words = [random.choice(ptb_fuzz.GRAMMAR["w"]) for _ in range(10_000)]
    assert ptb.tokenize(" ".join(words) + " dog.") == [*(word.lower() for word in words), "dog"]
    assert seconds(" ".join(words) + " é", "coco") < 2


@pytest.mark.shared
def test_speed(shared: Path) -> None:
    """25,000 captions in well under 0.15 s of one thread, chunks of text all new; printed beside Java's."""
    lines = captions(shared, "coco")[:25_000]
    taken = []
    for _ in range(3):
        tokenizer = ptb.Tokenizer("coco")
        start = time.process_time()
        for line in lines:
            tokenizer(line)
        taken.append(time.process_time() - start)
    print(f"\n{len(lines)} captions: {min(taken):.3f} s")
    if shutil.which("java") and importlib.util.find_spec("pycocoevalcap"):
        start = time.perf_counter()
        run_java([ptb.LINE_BREAKS.sub(" ", line) for line in lines])
        print(f"Java with its start: {time.perf_counter() - start:.3f} s")
    assert min(taken) < 0.15


def test_one_string_is_no_list_of_captions() -> None:
    with pytest.raises(InputError, match="one string is given \\('a dog'\\), a list of captions is needed"):
        ptb.tokenize_all("a dog")
