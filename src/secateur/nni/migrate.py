"""``python -m secateur.nni.migrate FILE…``: rewrite a script's imports from NNI to secateur.

``nni.compression`` becomes ``secateur.nni``, and ``nni.trace`` ``secateur.nni.trace``.  What has no
counterpart is left as it is, and listed with what to do instead.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeGuard

from secateur.errors import FileError

from .counterparts import HERE, home_of, is_here, module_for, why_not
from .notebook import script_of

USAGE = """usage: python -m secateur.nni.migrate FILE...

Rewrites the imports of NNI in Python files and notebooks, in place, and lists what it could not.
The exit status is 1 if something is left, else 0."""


@dataclass(frozen=True)
class Left:
    """What could not be rewritten: the line, NNI's name, and why."""

    line: int
    name: str
    why: str


@dataclass(frozen=True)
class Migrated:
    """A script in secateur's names: its text, how many places changed, and what is left."""

    text: str
    changed: int
    left: list[Left] = field(default_factory=list)


def migrate(text: str, name: str = "the script") -> Migrated:
    """Return a script with its imports, and the uses of what they bind, rewritten.

    Raises:
        FileError: it is no Python.

    >>> print(migrate("from nni.compression.pruning import L1NormPruner  # norms").text)
    from secateur.nni.pruning import L1NormPruner  # norms
    >>> done = migrate("import nni\\nnni.trace(dict)\\nnni.report_final_result(1)")
    >>> print(done.text)
    import nni
    import secateur.nni
    secateur.nni.trace(dict)
    nni.report_final_result(1)
    >>> [(each.line, each.name) for each in done.left]
    [(3, 'nni.report_final_result')]
    """
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError) as error:
        raise FileError(f"{name} is no Python that can be read: {error}") from error
    return _Script(text, tree).migrated()


class _Script:
    """One script while it is rewritten: the edits are collected, and made at once."""

    def __init__(self, text: str, tree: ast.Module):
        self.text = text
        self.nodes = list(ast.walk(tree))
        self.lines = list(io.StringIO(text, newline=""))
        self.starts = [0]
        for line in self.lines:
            self.starts.append(self.starts[-1] + len(line))
        self.edits: list[tuple[int, int, str]] = []  # from, to, the new text
        self.left: list[Left] = []

    def migrated(self) -> Migrated:
        imports = [node for node in self.nodes if isinstance(node, ast.Import)]
        bound = {  # local name → NNI's dotted name
            alias.asname or "nni": alias.name if alias.asname else "nni"
            for node in imports
            for alias in node.names
            if _is_nni(alias.name)
        }
        stuck, moved = self._uses(bound, self._reused(bound))
        for node in imports:
            if any(_is_nni(alias.name) for alias in node.names):
                self._import(node, stuck, moved)
        for each in self.nodes:
            if isinstance(each, ast.ImportFrom) and not each.level and _is_nni(each.module):
                self._from(each)
            if isinstance(each, ast.Constant) and _names_nni(each.value):
                self._leave(each, each.value, "it is a text; change it by hand")
        text = self.text
        for start, end, new in sorted(self.edits, reverse=True):
            text = text[:start] + new + text[end:]
        return Migrated(text, len(self.edits), sorted(self.left, key=lambda each: each.line))

    def _from(self, node: ast.ImportFrom) -> None:
        """Rewrite ``from nni.… import …``; names of several homes fall into several statements."""
        module = node.module
        assert module is not None
        homes: dict[str, list[ast.alias]] = {}
        for alias in node.names:
            whole = (module, alias.name) == ("nni", "compression")
            home = "secateur" if whole else home_of(module, alias.name)
            if home is None:
                dotted = module if alias.name == "*" else f"{module}.{alias.name}"
                self._leave(alias, dotted, why_not(dotted))
            homes.setdefault(home or module, []).append(alias)
        start, end = self._span(node)
        token = self.text.find(module, start, end)
        if len(homes) == 1 and "secateur" not in homes and token >= 0:  # keep how it is written
            self._edit(token, token + len(module), next(iter(homes)))
            return
        said = [
            f"from {home} import {', '.join(_written(alias, home) for alias in aliases)}"
            for home, aliases in homes.items()
        ]
        self._edit(start, end, f"\n{' ' * node.col_offset}".join(said))

    def _import(self, node: ast.Import, stuck: set[str], moved: set[str]) -> None:
        """Rewrite ``import nni.…``; it stays, or stays as well, where uses of it are left."""
        said = []
        for alias in node.names:
            local, new = alias.asname or "nni", module_for(alias.name)
            if not _is_nni(alias.name):
                said.append(_written(alias))
                continue
            if new is None:
                self._leave(node, alias.name, why_not(alias.name))
            if new is None or local in stuck:
                said.append(_written(alias))
            unused = alias.name == "nni" and local not in moved
            if new is not None and (local not in stuck or not (alias.asname or unused)):
                said.append(f"{new} as {alias.asname}" if alias.asname else new)
        start, end = self._span(node)
        between = f"\n{' ' * node.col_offset}import "
        self._edit(start, end, f"import {between.join(dict.fromkeys(said))}")

    def _uses(self, bound: dict[str, str], reused: set[str]) -> tuple[set[str], set[str]]:
        """Rewrite dotted names; return the local names of which uses are left, and of which not."""
        stuck, moved = set(reused), set()
        found: list[tuple[ast.expr, str, str]] = []
        inner = {id(node.value) for node in self.nodes if isinstance(node, ast.Attribute)}
        for node in self.nodes:
            if id(node) in inner or not isinstance(node, (ast.Name, ast.Attribute)):
                continue
            dotted = _dotted(node) or ""
            local, _, rest = dotted.partition(".")
            if local not in bound or local in reused:
                continue
            full = f"{bound[local]}.{rest}".rstrip(".")
            start, end = self._span(node)
            if not is_here(full):
                self._leave(node, full, why_not(full))
                stuck.add(local)
            elif "".join(self.text[start:end].split()) != dotted:
                self._leave(node, full, "it stands within a text; change it by hand")
                stuck.add(local)
            else:
                moved.add(local)
                tail = full.removeprefix(bound[local])
                if bound[local] == "nni":
                    tail = tail.removeprefix(".compression")
                found.append((node, local, f"{HERE if local == 'nni' else local}{tail}"))
        for node, local, new in found:
            if local == "nni" or local not in stuck:
                self._edit(*self._span(node), new)
            else:
                self._leave(node, _dotted(node) or "", f"{local!r} has to stay NNI's for others")
        return stuck, moved

    def _reused(self, bound: dict[str, str]) -> set[str]:
        """Return the local names that the script gives to something else as well."""
        found = set()
        for node in self.nodes:
            name = node.arg if isinstance(node, ast.arg) else None
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                name = node.id
            if name in bound:
                self._leave(node, name, "the script gives this name to something else as well")
                found.add(name)
        return found

    def _leave(self, node: ast.AST, name: str, why: str) -> None:
        self.left.append(Left(getattr(node, "lineno", 0), name, why))

    def _edit(self, start: int, end: int, new: str) -> None:
        if self.text[start:end] != new:
            self.edits.append((start, end, new))

    def _span(self, node: ast.stmt | ast.expr) -> tuple[int, int]:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        ends = ((node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset))
        # ast counts bytes in a line
        start, end = (
            self.starts[line - 1] + len(self.lines[line - 1].encode()[:column].decode())
            for line, column in ends
        )
        return start, end


def _is_nni(module: str | None) -> bool:
    return module is not None and module.split(".")[0] == "nni"


def _names_nni(value: object) -> TypeGuard[str]:
    """Tell whether a text is a dotted name of NNI's, to patch it or to import it by."""
    parts = value.split(".") if isinstance(value, str) else []
    return len(parts) > 1 and parts[0] == "nni" and all(part.isidentifier() for part in parts)


def _written(alias: ast.alias, home: str = "") -> str:
    name, said = ("nni" if home == "secateur" else alias.name), alias.asname
    if name != alias.name and said is None:
        said = alias.name
    return f"{name} as {said}" if said else name


def _dotted(node: ast.AST) -> str | None:
    """Return ``a.b.c`` for a chain of attributes of a name."""
    if isinstance(node, ast.Name):
        return node.id
    front = _dotted(node.value) if isinstance(node, ast.Attribute) else None
    return f"{front}.{node.attr}" if front and isinstance(node, ast.Attribute) else None


def rewrite(path: Path) -> Migrated:
    """Rewrite one file in place, in its own encoding and with its own ends of lines.

    Of a notebook (``.ipynb``) the code cells are rewritten; lines are counted through all of them.

    Raises:
        FileError: it is no Python file, and no notebook.
        OSError: it cannot be read or written.
    """
    if path.suffix == ".ipynb":
        script, back = script_of(path.read_text(encoding="utf-8"), str(path))
        done = migrate(script, str(path))
        if done.changed:
            path.write_text(back(done.text), encoding="utf-8")
        return done
    raw = path.read_bytes()
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(raw).readline)
        text = raw.decode(encoding)
    except (SyntaxError, UnicodeDecodeError) as error:
        raise FileError(f"{path} is no Python that can be read: {error}") from error
    done = migrate(text, str(path))
    if done.changed:
        path.write_bytes(done.text.encode(encoding))
    return done


def _told(paths: Sequence[str]) -> Iterator[tuple[str, bool]]:
    """Yield a line for each file and for each thing that is left, and whether it is that."""
    for path in paths:
        try:
            done = rewrite(Path(path))
        except (FileError, OSError) as error:
            yield f"{path}: {error}", True
            continue
        yield f"{path}: {done.changed} changes, {len(done.left)} left", False
        for each in done.left:
            yield f"{path}:{each.line}: {each.name}: {each.why}", True


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite files and print what was left; return 1 if anything was, else 0."""
    paths = list(sys.argv[1:] if arguments is None else arguments)
    if not paths or any(path in ("-h", "--help") for path in paths):
        print(USAGE)
        return 0 if paths else 2
    told = list(_told(paths))
    print("\n".join(line for line, _ in told))
    return int(any(is_left for _, is_left in told))


if __name__ == "__main__":
    sys.exit(main())
