"""What the package's source registers, read without importing it: an answer that needs no torch."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).parent.parent

Definition = ast.FunctionDef | ast.ClassDef


@dataclass(frozen=True)
class Declared:
    """A function or class that a decorator registers, under its own name or one that it is given.

    ``arguments`` are the decorator's own, ``facts`` the names of its keywords, ``needs`` the
    function's keyword-only names.
    """

    name: str
    first_line: str
    needs: tuple[str, ...]
    arguments: tuple[str, ...]
    facts: tuple[str, ...]


def declared(folder: str, decorator: str) -> Iterator[Declared]:
    """Yield what the files of a folder of the package register with a decorator, in their order.

    >>> [each.name for each in declared("scoring", "schedules.register")]
    ['constant', 'linear', 'cubic', 'geometric']
    """
    for path in sorted((PACKAGE / folder).glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, Definition):
                for used in node.decorator_list:
                    call = used if isinstance(used, ast.Call) else ast.Call(used, [], [])
                    if ast.unparse(call.func) == decorator:
                        yield _declared(node, call)


def described(path: Path, name: str) -> str:
    """Return what the docstring of a function in a file says before it lists the parameters."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, Definition) and node.name == name:
            return (ast.get_docstring(node) or "").partition("\nParameters\n")[0].strip()
    raise LookupError(f"{path} defines no {name}")


def _declared(node: Definition, call: ast.Call) -> Declared:
    needs = node.args.kwonlyargs if isinstance(node, ast.FunctionDef) else []
    return Declared(
        node.name,
        _first_line(node),
        tuple(each.arg for each in needs),
        tuple(ast.literal_eval(each) for each in call.args),
        tuple(each.arg for each in call.keywords if each.arg),
    )


def _first_line(node: Definition) -> str:
    return (ast.get_docstring(node) or "").partition("\n")[0]
