"""Who may import whom, read off the sources; and what `import minivl` costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BOTTOM = {"errors", "files", "geometry"}
LEAVES = {"nn", "text", "images", "maps", "search", "metrics", "explain"}
ALLOWED = {  # part -> the parts it may import besides itself
    **{part: BOTTOM for part in BOTTOM | LEAVES},
    "models": BOTTOM | LEAVES,
    "convert": BOTTOM | {"models", "nn", "images"},
    "hub": BOTTOM,
    "fingerprint": BOTTOM | {"models", "nn"},
    "loading": BOTTOM | LEAVES | {"models", "convert", "hub", "fingerprint"},
    "data": BOTTOM | LEAVES,
    "train": BOTTOM | LEAVES | {"data", "models", "loading"},
    "plotting": BOTTOM | LEAVES,
    "programs": BOTTOM,
    "__init__": BOTTOM | LEAVES | {"models", "convert", "loading", "data"},
}
OUTSIDE = {"torch", "torchvision", "numpy", "PIL", "tokenizers", "safetensors"}  # for everybody
OUTSIDE_OF = {"plotting": {"matplotlib"}, "programs": {"tqdm"}, "hub": {"huggingface_hub"}}
PROGRAMS_ONLY = {"train", "plotting", "programs"}
PEERS = {"timm", "transformers", "open_clip", "pycocoevalcap"}
MODULES = sorted((ROOT / "minivl").rglob("*.py"))


def dotted(file: Path) -> tuple[str, ...]:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts


def part_of(file: Path) -> str:
    """The room a module of minivl belongs to."""
    return dotted(file)[1]


def imports(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Every import that runs; those under TYPE_CHECKING do not."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for other in node.orelse:
                yield from imports(ast.Module([other], []))
        else:
            yield from imports(node)


def imported(file: Path) -> Iterator[tuple[str, ...]]:
    """Absolute dotted names of what a file imports, down to the names taken out of packages."""
    package = (*file.relative_to(ROOT).parent.parts,)
    for node in imports(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        else:
            base = package[:len(package) - node.level + 1] if node.level else ()
            module = (*base, *(node.module.split(".") if node.module else ()))
            yield from ((*module, alias.name) for alias in node.names)


@pytest.mark.parametrize("file", MODULES, ids=lambda file: ".".join(dotted(file)))
def test_who_imports_whom(file: Path) -> None:
    part = part_of(file)
    assert part in ALLOWED, f"{file}: a new room needs a line here and in the design"
    for name in imported(file):
        if name[0] == "minivl":
            other = name[1] if len(name) > 1 else "__init__"
            known = other in ALLOWED and other != "__init__"
            allowed = known and other in ALLOWED[part] | {part}
        else:
            allowed = name[0] in sys.stdlib_module_names | OUTSIDE | OUTSIDE_OF.get(part, set())
        assert allowed, f"{file}: {part} may not import {'.'.join(name)}"


def test_only_programs_import_training_pictures_and_their_common_part() -> None:
    for file in MODULES:
        rooms = {name[1] for name in imported(file) if name[0] == "minivl" and len(name) > 1}
        assert not rooms & PROGRAMS_ONLY - {part_of(file)}, file


def test_peers_stay_in_tests_bench_and_weights() -> None:
    programs = [*ROOT.glob("*.py"), *(ROOT / "eval").rglob("*.py")]
    for file in (*MODULES, *programs):
        assert not {name[0] for name in imported(file)} & PEERS, file


def test_the_rules_are_not_empty() -> None:
    """The reader of imports sees relative, absolute, nested and hidden ones."""
    rooms = {part: {name[1] for file in MODULES if part_of(file) == part for name in imported(file)
                    if name[0] == "minivl" and len(name) > 1} for part in ("models", "loading", "convert")}
    assert {"nn", "images", "search", "text", "errors"} <= rooms["models"]
    assert {"models", "convert", "files"} <= rooms["loading"] and "text" not in rooms["convert"]
    hidden = ast.parse("def f():\n    import a\nif TYPE_CHECKING:\n    import b\nelse:\n    import c\n"
                       "try:\n    import d\nexcept ImportError:\n    pass")
    assert [node.names[0].name for node in imports(hidden)] == ["a", "c", "d"]


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_minivl_is_light() -> None:
    heavy = run("import minivl, sys; print(*{name.split('.')[0] for name in sys.modules},"
                " *[name for name in sys.modules if name.startswith('minivl.')])").split()
    assert not {f"minivl.{part}" for part in PROGRAMS_ONLY} & set(heavy)
    unwanted = PEERS | {"matplotlib", "scipy", "huggingface_hub"}
    assert "torch" in heavy and "minivl" in heavy and not unwanted & set(heavy)


def test_importing_runs_nothing() -> None:
    """No output, no random number drawn, no default changed."""
    assert run("import torch, numpy, random\n"
               "def state(): return (torch.get_rng_state().tolist(), random.getstate(), "
               "numpy.random.get_state()[1].tolist(), torch.get_default_dtype(), torch.get_num_threads(), "
               "torch.is_grad_enabled())\n"
               "before = state()\nimport minivl\nassert state() == before") == ""


def test_every_module_imports_on_its_own() -> None:
    """Each before all others, in one process that forgets minivl in between."""
    names = [".".join(dotted(file)).removesuffix(".__init__") for file in MODULES]
    assert run("import importlib, sys, torch, torchvision, matplotlib\n"
               f"for name in {names!r}:\n"
               "    for loaded in [one for one in sys.modules if one.split('.')[0] == 'minivl']:\n"
               "        del sys.modules[loaded]\n"
               "    importlib.import_module(name)\n") == ""
