"""The shape of the package: what the layers of import-linter do not see."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import secateur

PACKAGE = Path(secateur.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
MOST_LINES = 50
MOST_AT_THE_ROOT = 10


def named(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def functions(path: Path) -> list[ast.FunctionDef]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


def lines(function: ast.FunctionDef) -> int:
    return (function.end_lineno or 0) - function.lineno + 1


def test_function_when_it_is_long_then_is_named() -> None:
    long = [
        f"{named(path)}: {function.name} has {lines(function)} lines"
        for path in FILES
        for function in functions(path)
        if lines(function) > MOST_LINES
    ]
    assert not long


def test_root_when_counted_then_holds_what_a_person_types() -> None:
    modules = [path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__"]
    assert len(modules) <= MOST_AT_THE_ROOT


@pytest.mark.parametrize("path", [f for f in FILES if f.name != "__main__.py"], ids=named)
def test_module_when_it_imports_then_not_from_its_own_package(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = ".".join(("secateur", *path.relative_to(PACKAGE).parent.parts))
    above = [
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        and path.name != "__init__.py"
        and (node.module == package or (node.level == 1 and node.module is None))
        and package != "secateur"
        and any(not (path.parent / f"{each.name}.py").exists() for each in node.names)
    ]
    assert not above, "a package that imports its files, and is imported by them, is a circle"


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


def test_public_names_when_imported_late_then_types_and_homes_say_the_same() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    (typed,) = (node for node in tree.body if isinstance(node, ast.If))
    names = [each.name for node in typed.body for each in node.names]  # type: ignore[attr-defined]
    assert sorted(names) == secateur.__all__
    assert all(getattr(secateur, name) is not None for name in names)


def test_public_names_when_imported_then_none_hides_a_module() -> None:
    modules = {path.stem for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    modules |= {path.stem for path in PACKAGE.glob("*.py")}
    assert set(secateur.__all__) & modules == {"errors"}


@pytest.mark.parametrize("words", [["--help"], ["list"], ["list", "l*"], ["--version"]])
def test_command_when_it_needs_no_model_then_torch_is_not_imported(words: list[str]) -> None:
    code = f"""
import contextlib, io, sys
from secateur.cli import main
with contextlib.redirect_stdout(io.StringIO()) as out:
    status = main({words!r})
print(status, bool(out.getvalue()), "torch" in sys.modules, "pydantic" in sys.modules)
"""
    assert run(code).split() == ["0", "True", "False", "False"]


def test_package_when_torch_is_there_then_needs_neither_sharding_nor_sympy() -> None:
    code = """
import sys, torch
before = set(sys.modules)
from secateur import *
print([n for n in ("torch.distributed.fsdp", "torch.distributed.tensor", "sympy")
       if n in set(sys.modules) - before])
"""
    assert run(code) == "[]\n"
