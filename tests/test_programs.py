"""What programs share: options, recipes, and how a mistake ends."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from minivl import programs
from minivl.errors import InputError


def parser() -> programs.Parser:
    made = programs.Parser("A program.", prog="test.py")
    made.add_argument("--epochs", type=int, default=3)
    made.add_argument("--lr", type=float, default=0.1)
    made.add_argument("--norm", choices=("pre", "post"), default="pre")
    made.add_argument("--images", type=Path)
    made.add_argument("--tied", action=argparse.BooleanOptionalAction, default=True)
    made.add_argument("--freeze", action="store_true")
    made.add_common()
    return made


@pytest.mark.parametrize("argv", [["--epochs", "ten"], ["--norm", "other"], ["--unknown"], ["--ep", "3"],
                                  ["extra"], ["--precision", "fp8"], ["--epochs"]])
def test_wrong_options_are_one_line_and_code_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parser().parse_args(argv)
    out, err = capsys.readouterr()
    assert stopped.value.code == 2 and out == "" and err.count("\n") == 1 and err.endswith("\n")
    assert err.startswith("test.py: ") and argv[0].split("=")[0] in err


def test_what_is_said() -> None:
    """Neither defaults nor what a recipe sets; a default that is given is said."""
    made = parser()
    made.set_defaults(lr=0.5)
    assert programs.said(made, []) == set()
    assert programs.said(made, ["--epochs", "3", "--no-tied", "--freeze"]) == {"epochs", "tied", "freeze"}
    assert made.parse_args([]).lr == 0.5


@pytest.mark.parametrize("argv, told", [
    (["--workers", "-1"], "--workers -1"), (["--seed", "-1"], "--seed -1"),
    (["--seed", str(2 ** 31)], "--seed")])
def test_common_options_out_of_range(argv: list[str], told: str) -> None:
    with pytest.raises(InputError, match=told):
        programs.check_common(parser().parse_args(argv))
    programs.check_common(parser().parse_args(["--workers", "0", "--seed", str(2 ** 31 - 1)]))


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert programs.device_of("auto") == programs.device_of("cpu") == torch.device("cpu")
    with pytest.raises(InputError, match="--device cuda: this machine has none; give one of cpu"):
        programs.device_of("cuda")


def test_precisions() -> None:
    cpu = torch.device("cpu")
    assert programs.precision_of("fp32", cpu) == "fp32" and programs.precision_of("bf16", cpu) == "bf16"
    assert programs.precision_of("auto", cpu) in ("fp32", "bf16")
    assert programs.precision_of("auto", torch.device("mps")) == "fp32"


def test_report(capsys: pytest.CaptureFixture[str]) -> None:
    programs.report(argparse.Namespace(json=False), {"score": 0.5}, "the score is 0.5")
    programs.report(argparse.Namespace(json=True), {"score": 0.5}, "the score is 0.5")
    assert capsys.readouterr().out == 'the score is 0.5\n{"score": 0.5}\n'


# -- recipes -------------------------------------------------------------------------------------------------

def recipe(folder: Path, content: Any, argv: list[str] = []) -> argparse.Namespace:
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "mine.json").write_text(text)
    made = parser()
    given = ["--recipe", "mine", *argv]
    programs.recipe_defaults(made, given, folder, "mine")
    return made.parse_args(given)


def test_a_recipe_sets_defaults_and_options_win(tmp_path: Path) -> None:
    args = vars(recipe(tmp_path, {"about": "x", "epochs": 9, "lr": 1, "norm": "post", "images": "photos",
                                  "tied": False, "freeze": True, "precision": "bf16"}, ["--epochs", "4"]))
    expected = {"epochs": 4, "lr": 1, "norm": "post", "images": Path("photos"), "tied": False, "freeze": True,
                "precision": "bf16", "recipe": "mine"}
    assert {key: args[key] for key in expected} == expected and "about" not in args
    assert recipe(tmp_path, {"images": None}).images is None
    other = parser()
    programs.recipe_defaults(other, [], tmp_path, "mine")
    assert other.parse_args([]).epochs == 3


@pytest.mark.parametrize("content, told", [
    ({"epohcs": 3}, "epohcs"), ({"recipe": "other"}, "recipe"), ({"help": True}, "help"), ("{", "not JSON"),
    ([1], "object"), ({"epochs": "ten"}, "epochs: 'ten'"), ({"epochs": 2.5}, "epochs: 2.5"),
    ({"epochs": True}, "epochs"), ({"epochs": None}, "epochs"), ({"lr": "1e-3"}, "lr"),
    ({"norm": "other"}, "norm"), ({"device": "tpu"}, "device"), ({"tied": "no"}, "tied"),
    ({"freeze": 1}, "freeze"), ({"images": 3}, "images"), ({"images": ["a"]}, "images")])
def test_wrong_recipes(tmp_path: Path, content: Any, told: str) -> None:
    with pytest.raises(InputError) as raised:
        recipe(tmp_path, content)
    assert told in str(raised.value) and str(tmp_path / "mine.json") in str(raised.value)


def test_unknown_recipes_are_told_what_there_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, program in (("one", "mine"), ("two", "mine"), ("other", "another's")):
        (tmp_path / f"{name}.json").write_text(json.dumps({"program": program}))
    with pytest.raises(InputError, match="--recipe three: unknown; there are: one, two"):
        programs.recipe_defaults(parser(), ["--recipe", "three"], tmp_path, "mine")
    with pytest.raises(SystemExit) as stopped:
        programs.recipe_defaults(parser(), ["--recipe"], tmp_path, "mine")
    assert stopped.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_every_recipe_of_the_repository_fits_its_program() -> None:
    import train_p1
    import train_p2
    for file in (train_p2.HERE / "recipes").glob("*.json"):
        program, other = (train_p1, train_p2) if '"train_p1"' in file.read_text() else (train_p2, train_p1)
        start = ["--init", "captioner"] if '"scst"' in file.read_text() else []  # which a recipe does not name
        if '"views"' in file.read_text():  # a recipe for photos
            start += ["--images", "photos", "--captions", "train.json", "--val-captions", "val.json"]
        program.parse(["--recipe", file.stem, "--out", "nowhere", *start])
        with pytest.raises(InputError, match=f"is a recipe of {program.__name__}"):
            other.parse(["--recipe", file.stem, "--out", "nowhere"])


# -- endings -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("count", ["1", "2"])
@pytest.mark.parametrize("error, code, told", [
    ("", 0, ""), ("raise InputError('no such file')", 2, "error: no such file\n"),
    ("raise KeyboardInterrupt", 130, "stopped\n")])
def test_one_of_several_ends_alike(count: str, error: str, code: int, told: str) -> None:
    text = f"""
from minivl import programs
from minivl.errors import InputError
def main(argv):
    print("written", end="")  # and not yet flushed
    {error or "pass"}
programs.program(main)
"""
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True,
                          env={**os.environ, "WORLD_SIZE": count})
    assert (done.returncode, done.stdout, done.stderr) == (code, "written", told)


@pytest.fixture
def plain_logging() -> Iterator[None]:
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    root.setLevel(level)
    root.handlers[:] = handlers


def ending(error: BaseException | None) -> Any:
    def main(argv: Any) -> None:
        assert argv is None
        if error is not None:
            raise error

    with pytest.raises(SystemExit) as stopped:
        programs.program(main)
    return stopped.value.code


@pytest.mark.usefixtures("plain_logging")
@pytest.mark.parametrize("error, code, line", [
    (None, 0, ""), (InputError("is\nwrong", source="file.json"), 2, "error: file.json: is wrong\n"),
    (FileNotFoundError(2, "No such file", "x.png"), 2, "error: [Errno 2] No such file: 'x.png'\n"),
    (MemoryError("Unable to allocate\n9 GiB"), 2, "error: not enough memory: Unable to allocate 9 GiB\n"),
    (KeyboardInterrupt(), 130, "stopped\n")])
def test_endings(error: BaseException | None, code: int, line: str,
                 capsys: pytest.CaptureFixture[str]) -> None:
    assert ending(error) == code
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("message, source, line", [
    ("epochs=0: give 1", None, "--epochs 0: give 1"), ("lr=-1.0: give", None, "--lr -1.0: give"),
    ("epochs=0 and lr=-1.0", "mine.json", "mine.json: --epochs 0 and --lr -1.0"),
    ("epochs=1: give 2", None, "epochs=1: give 2"),  # that is not what the command line says
    ("image_size (30, 30) is none", "a.safetensors", "a.safetensors: --image-size 30 is none"),
    ("image_size (30, 20) is none", None, "image_size (30, 20) is none"),
    ("width 15 is not divisible by num_heads 2", None, "--width 15 is not divisible by --heads 2"),
    ("norm='post': give", None, "--norm post: give"), ("images=photos", None, "--images photos"),
    ("is no file", "lr=-1.0", "lr=-1.0: is no file"),  # a file of that name
    ("runs/lr=-1.0 and lr=-1.0/x and lr=-1.01 and --lr -1.0", None,
     "runs/lr=-1.0 and lr=-1.0/x and lr=-1.01 and --lr -1.0"),
    ("other settings: lr was 0.1, is 3, tied was True, is False, data_hash was 'a', is 'b'", "runs/one",
     "runs/one: other settings: --lr was 0.1, is 3, --tied was True, is False, data_hash was 'a', is 'b'"),
    ("tied=True", None, "tied=True"), ("the last is lr=-1.0.", None, "the last is --lr -1.0.")])
def test_options_are_named_as_they_are_typed(message: str, source: str | None, line: str) -> None:
    made = parser()
    for name in ("image-size", "width", "heads"):
        made.add_argument(f"--{name}", type=int)
    told = made.parse_args(["--epochs", "0", "--lr", "-1", "--image-size", "30", "--norm", "post", "--width", "15",
                            "--heads", "2", "--images", "photos"])
    error = InputError(message, source=source)
    assert programs.as_typed(error, told) == line and programs.as_typed(error, None) == str(error)
    assert programs.Parser.told is told
    programs.said(made, ["--epochs", "5"])
    assert programs.Parser.told is told  # asking what is said tells nothing


def test_a_program_names_the_option_and_stands_apart_from_its_bar() -> None:
    """Of a bar that is being drawn where a message comes, in a file: both the notice and the end begin lines."""
    text = """
import logging
from minivl import programs
from minivl.errors import InputError
def main(argv):
    parser = programs.Parser("A program.")
    parser.add_argument("--unfreeze", type=int)
    parser.parse_args(["--unfreeze", "99"])
    for number in programs.progress(range(3), desc="counting"):
        if number == 1:
            logging.getLogger("test").info("a notice")
            raise InputError("unfreeze=99: there are 3")
programs.program(main)
"""
    done = subprocess.run([sys.executable, "-c", text], capture_output=True)
    lines = [line.split(b"\r")[-1].decode() for line in done.stderr.split(b"\n")]
    assert done.returncode == 2 and b"counting" in done.stderr
    assert lines[1] == "a notice" and lines[-2:] == ["error: --unfreeze 99: there are 3", ""]
    assert b"\na notice\n" in done.stderr and b"\nerror: " in done.stderr


@pytest.mark.usefixtures("plain_logging")
def test_what_no_memory_is_left_for(capsys: pytest.CaptureFixture[str]) -> None:
    """As torch itself says it on the CPU: a plain RuntimeError; others are bugs."""
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2 ** 58)
    assert ending(raised.value) == 2
    assert capsys.readouterr().err.startswith("error: not enough memory: ")
    with pytest.raises(RuntimeError, match="shapes"):
        programs.program(lambda argv: raising(RuntimeError("shapes do not fit")))  # type: ignore[arg-type]


def raising(error: Exception) -> None:
    raise error


@pytest.mark.usefixtures("plain_logging")
def test_bugs_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        programs.program(lambda argv: 1 / 0)  # type: ignore[func-returns-value, arg-type, return-value]


@pytest.mark.usefixtures("plain_logging")
def test_a_reader_that_went_away_is_no_mistake(capsys: pytest.CaptureFixture[str],
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[int] = []
    monkeypatch.setattr(os, "dup2", lambda source, target: closed.append(target))
    with open(os.devnull, "w") as output:
        monkeypatch.setattr(programs.sys, "stdout", output)
        assert ending(BrokenPipeError(32, "Broken pipe")) == 1
        monkeypatch.undo()
    assert closed and capsys.readouterr().err == ""


def test_progress_passes_everything_on(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)  # ignored where the tests run in a shell's background
    assert list(programs.progress(range(5), total=5, desc="counting")) == [0, 1, 2, 3, 4]
    assert capsys.readouterr().out == ""
    assert signal.getsignal(signal.SIGINT) is before


def test_places_to_write_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    programs.check_place("--out", tmp_path / "new" / "deep" / "a.json")
    with pytest.raises(InputError, match="--out .*file/a.json: .*file is a file, no folder can be made there"):
        programs.check_place("--out", tmp_path / "file" / "a.json")
    assert {path.name for path in tmp_path.iterdir()} == {"file"}
    for place in (tmp_path, tmp_path / "new" / "deep"):
        programs.check_place("--out", place, folder=True)
    with pytest.raises(InputError, match="--out .*file: it is a file, a folder is needed"):
        programs.check_place("--out", tmp_path / "file", folder=True)
    with pytest.raises(InputError, match="--out .*file/deep: .*file is a file, no folder can be made there"):
        programs.check_place("--out", tmp_path / "file" / "deep", folder=True)


def test_a_folder_that_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(InputError, match="--out .*a.json: the folder .* cannot be written to, name another place"):
        programs.check_place("--out", tmp_path / "a.json")
    with pytest.raises(InputError, match=f"--out {tmp_path}: the folder .* cannot be written to"):
        programs.check_place("--out", tmp_path, folder=True)
