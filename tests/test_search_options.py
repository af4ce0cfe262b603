"""Options: what is refused, and with which words."""

from __future__ import annotations

import inspect
import math
import re
import shlex
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import pytest

from eval import consensus
from eval.caption import parse
from minivl import programs
from minivl.data.scenes import scene
from minivl.errors import InputError
from minivl.models.captioner import Captioner
from minivl.search import BEAMS, Options, beam_search, sample_search
from minivl.search.arguments import options_as_typed, options_of


@pytest.mark.parametrize("given", [
    {}, {"beams": 1}, {"beams": 6, "groups": 3, "diversity": 0.0, "n_best": 6}, {"samples": 3},
    {"samples": 1, "beams": 1}, {"samples": 2, "temperature": 0.5, "top_k": 4, "top_p": 1.0, "seed": 5},
    {"required": ["dog"], "beams": 1}, {"forbidden": [(4, 5), "cat"], "samples": 2, "min_len": 30},
    {"normalise": "gnmt(0.6)", "stop": "hf"}, {"prefix": "a photo of", "repetition_penalty": 0.5},
    {"min_len": 4, "max_len": 4}])
def test_what_goes_together(given: dict[str, Any]) -> None:
    options = Options.of(**given)
    assert all(getattr(options, name) == (tuple(value) if isinstance(value, list) else value)
               for name, value in given.items())
    assert Options(**vars(options)) == options and hash(options) == hash(Options.of(**given))
    with pytest.raises(FrozenInstanceError):
        options.beams = 2


@pytest.mark.parametrize("given, message", [
    ({"beam": 3}, "no such option: beam; there are: beams, max_len"),
    *(({name: value}, name) for name in ("beams", "max_len", "n_best", "groups", "min_len", "samples", "top_k")
      for value in (0, -1, 1.5, "3", True)),
    ({"seed": -1}, "seed"), ({"no_repeat_ngram": -1}, "no_repeat_ngram"), ({"no_repeat_ngram": 2.0}, "no_repeat_ngram"),
    ({"normalise": "sum"}, "gnmt"), ({"stop": "early"}, "exact, hf"),
    ({"repetition_penalty": 0}, "repetition_penalty"), ({"repetition_penalty": math.inf}, "repetition_penalty"),
    ({"repetition_penalty": "1"}, "repetition_penalty"), ({"diversity": -0.1, "groups": 3}, "diversity"),
    ({"diversity": math.nan, "groups": 3}, "diversity"), ({"temperature": 0, "samples": 1}, "temperature"),
    ({"temperature": math.inf, "samples": 1}, "temperature"), ({"top_p": 0.0, "samples": 1}, "top_p"),
    ({"top_p": 2, "samples": 1}, "top_p"),
    ({"forbidden": "dog"}, "forbidden='dog': give a list"), ({"required": "dog"}, "required='dog': give a list"),
    ({"required": 3}, "required=3"),
    # contradictions
    ({"n_best": 4}, "n_best=4 .* beams=3"), ({"beams": 4, "groups": 3}, "groups=3 must divide beams=4"),
    ({"groups": 3, "required": ["dog"]}, "groups=3: words that must appear"),
    ({"required": [(id,) for id in range(9)]}, "required: 9 words or phrases, and 8 are the most"),
    ({"temperature": math.nan, "samples": 1}, "temperature=nan: give a number above 0"),
    ({"diversity": 0.5}, "groups=2 or more"),
    ({"min_len": 9, "max_len": 8}, "min_len=9 is more than max_len=8"),
    ({"temperature": 0.5}, "temperature=0.5.*samples=1"), ({"top_k": 5}, "top_k=5.*samples=1"),
    ({"top_p": 0.9}, "top_p=0.9.*samples=1"),
    ({"samples": 2, "beams": 3}, "beams=3 with samples=2"), ({"samples": 2, "required": ["dog"]}, "required.*beams"),
    ({"samples": 2, "n_best": 2}, "n_best=2 with samples=2"), ({"samples": 2, "normalise": "mean"}, "normalise=mean"),
    ({"samples": 2, "stop": "hf"}, "stop=hf"), ({"samples": 2, "groups": 3}, "groups=3"),
    ({"samples": 2, "diversity": 1.0}, "diversity=1.0"),
])
def test_what_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        Options.of(**given)
    assert "\n" not in str(error.value) and "Unsaid" not in str(error.value)


def test_a_command_line_names_options_as_they_are_typed() -> None:
    text = ("max_len=17 and min_len=3: n_best='x', no_repeat_ngram=2; required: 'a'; runs/top_k=3.json, 'seed=3' and "
            "lengths=4, beams of samples")
    with pytest.raises(InputError) as caught:
        with options_as_typed():
            raise InputError(text, source="photos/beams=2")
    assert str(caught.value) == ("photos/beams=2: --max-len 17 and --min-len 3: --n-best 'x', --no-repeat-ngram 2; "
                                 "--required: 'a'; runs/top_k=3.json, 'seed=3' and lengths=4, beams of samples")
    parser = programs.Parser(None)
    parser.add_argument("--max-len", type=int)  # a program that takes few of them
    assert options_of(parser.parse_args([]), 7) == Options(max_len=7)
    with pytest.raises(InputError, match="^--max-len 0: give a whole number"):
        options_of(parser.parse_args(["--max-len", "0"]), 7)
    with pytest.raises(InputError, match="^max_len=0"):  # in Python it has its own name
        Options(max_len=0)


def test_the_default_of_beams_gives_way_and_a_given_number_does_not() -> None:
    assert BEAMS == 3 and Options(samples=2).samples == 2 and f"{BEAMS}" == "3"
    with pytest.raises(InputError, match="give one of the two"):
        Options(samples=2, beams=3)
    assert inspect.signature(Captioner.caption).parameters["beams"].default is BEAMS


def test_every_option_is_described_and_has_one_default() -> None:
    text = inspect.getdoc(Options) or ""
    defaults = {field.name: field.default for field in fields(Options)}
    assert all(f"\n    {name}: " in text for name in defaults)
    for function in (beam_search, sample_search, Captioner.caption):
        for name, parameter in inspect.signature(function).parameters.items():
            if name in defaults and name not in ("samples", "diversity", "required"):
                assert parameter.default == defaults[name], (function, name)
    named = inspect.getdoc(Captioner.caption) or ""
    assert all(name in named for name in defaults)


def test_the_examples_of_the_docs_run(capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(__file__).resolve().parents[1] / "docs" / "decoding.md").read_text(encoding="utf-8")
    space: dict[str, Any] = {"photos": [scene(number, size=64).image for number in range(2)]}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, space)
    assert capsys.readouterr().out.count("ok  ") == 8
    assert all("and" not in space["captioner"].tokenizer.decode(found[0].ids).split()[:3] for found in space["found"])
    commands = [shlex.split(line)[2:] for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
                for line in block.splitlines()]
    assert [parse(argv).beams for program, *argv in commands if program == "eval.caption"] == [5, 5, 3, 3, 30]
    chosen = [consensus.parse(argv) for program, *argv in commands if program != "eval.caption"]
    assert len(chosen) == 1 and chosen[0].candidates == [parse(commands[-2][1:]).out]  # what the line before wrote
    options = {field.name for field in fields(Options)}
    assert options <= set(re.findall(r"`(\w+)`", text))
