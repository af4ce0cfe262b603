"""A count of the library's style: printed (pytest -s), and a failure only far beyond what is meant."""

from __future__ import annotations

import ast
import io
import tokenize
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "minivl").rglob("*.py"))
Function = ast.FunctionDef | ast.AsyncFunctionDef


def hints(function: Function) -> list[bool]:
    every = function.args
    named = [*every.posonlyargs, *every.args, *every.kwonlyargs, *filter(None, (every.vararg, every.kwarg))]
    return [one.annotation is not None for one in named if one.arg not in ("self", "cls")]


def public(node: ast.AST) -> list[ast.AST]:
    """Public functions, classes and methods of a module or class, and what is public inside classes."""
    inside = [one for one in getattr(node, "body", []) if isinstance(one, (Function, ast.ClassDef))
              and not one.name.startswith("_")]
    return inside + [deeper for one in inside if isinstance(one, ast.ClassDef) for deeper in public(one)]


def test_style_counts() -> None:
    sources = {file: file.read_text(encoding="utf-8") for file in FILES}
    trees = {file: ast.parse(source) for file, source in sources.items()}
    lines = {file: len(source.splitlines()) for file, source in sources.items()}
    functions = [(file, node, node.end_lineno - node.lineno + 1) for file, tree in trees.items()
                 for node in ast.walk(tree) if isinstance(node, Function)]
    hinted = [hint for _, node, _ in functions for hint in hints(node)]
    returns = [node.returns is not None for _, node, _ in functions]
    described = [ast.get_docstring(node) is not None for tree in trees.values()
                 for node in [tree, *public(tree)]]
    code = sum(line.strip() != "" for source in sources.values() for line in source.splitlines())
    comments = sum(token.type == tokenize.COMMENT for source in sources.values()
                   for token in tokenize.generate_tokens(io.StringIO(source).readline))
    widest = max((len(line), file.name, number) for file, source in sources.items()
                 for number, line in enumerate(source.splitlines(), 1))
    longest_file = max((count, file.name) for file, count in lines.items())
    longest = max((count, f"{file.name}:{node.name}") for file, node, count in functions)
    share = {"hinted": sum(hinted) / len(hinted), "returns": sum(returns) / len(returns),
             "docstrings": sum(described) / len(described)}
    print(f"\n{len(FILES)} files, median {median(lines.values())} lines, longest {longest_file}; "
          f"{len(functions)} functions, median {median(count for *_, count in functions)} lines, "
          f"longest {longest}; "
          f"arguments hinted {share['hinted']:.1%}, returns {share['returns']:.1%}, public docstrings "
          f"{share['docstrings']:.1%}; comments {comments / code:.1%} of {code} lines; widest line {widest}")
    assert longest_file[0] <= 400 and longest[0] <= 80, "too long to read"
    assert min(share.values()) >= 0.95, share
    assert widest[0] <= 130, "a line too wide"  # flake8 holds 120


def test_no_printing_and_no_drawers() -> None:
    """The library logs; and nothing is called utils."""
    for file in FILES:
        called = {node.func.id for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
                  if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
        assert "print" not in called or file.name == "programs.py", f"{file} prints"
        assert file.stem not in ("utils", "helpers", "common", "misc"), file
