"""Let the functions of a copied model refer to the copy, where those of the original do to that.

``copy.deepcopy`` takes a function as it is.  One that somebody put into a model, as a forward that
calls the old one, a hook or an attribute, would go on with the layers of the original: the copy
would compute with weights that are not its own, and nobody would see it.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterable, Iterator
from functools import partial
from types import (
    BuiltinMethodType,
    CellType,
    CodeType,
    FunctionType,
    MethodType,
    MethodWrapperType,
    ModuleType,
)
from typing import Any
from weakref import ReferenceType

from .reach import is_foreign, mentions_of

BUILTIN = (BuiltinMethodType, MethodWrapperType)
PLAIN = (type, ModuleType, str, bytes, int, float, complex, bool, type(None), CodeType)
MOST = 20_000  # objects that are looked at: what lies farther off is found by the check of a cut


HELD = (tuple, frozenset, FunctionType, MethodType, partial, ReferenceType, *BUILTIN)
"""What is replaced whole where it is held; other holders are changed as they are."""


class Rebinding:
    """Replaces what refers to an original by what refers to its copy.

    Args:
        made: the memo of ``copy.deepcopy``: the copies by the ids of their originals.
    """

    def __init__(self, made: dict[int, Any]):
        self.made = made
        copies = [y for x, y in made.items() if x != id(made)]
        self.queue = deque(copies)
        self.seen = {id(y) for y in copies if not isinstance(y, HELD)}  # or will be, in the queue
        self.globals: dict[int, dict[str, Any]] = {}
        self.far: set[int] = set()  # objects from which nothing of the original is reached

    def everywhere(self) -> None:
        """Replace what the copies hold, and what stands for an object outside of the model."""
        while self.queue:
            holder = self.queue.popleft()
            if isinstance(holder, dict):
                self._table(holder)
            elif isinstance(holder, (list, deque)):
                for i, value in enumerate(holder):
                    if (new := self.of(value)) is not value:
                        holder[i] = new
            elif isinstance(holder, set):
                for value in [*holder]:
                    if (new := self.of(value)) is not value:
                        holder.remove(value)
                        holder.add(new)
            if isinstance(own := getattr(holder, "__dict__", None), dict):
                self._table(own)

    def _table(self, table: dict[Any, Any]) -> None:
        for key, value in list(table.items()):
            if (new := self.of(value)) is not value:
                table[key] = new

    def of(self, x: Any) -> Any:
        """Return what stands for a value: itself, where nothing of the original is reached."""
        if id(x) in self.made:
            return self.made[id(x)]
        if not self._reaches(x):
            return x
        kind = type(x)
        if kind is FunctionType:
            return self._function(x)
        if kind is MethodType:
            return MethodType(self.of(x.__func__), self.of(x.__self__))
        if kind is partial:
            words = {name: self.of(value) for name, value in x.keywords.items()}
            new = partial(self.of(x.func), *map(self.of, x.args), **words)
            vars(new).update({name: self.of(value) for name, value in vars(x).items()})
            return new
        if isinstance(x, BUILTIN):
            return getattr(self.of(x.__self__), x.__name__)
        if kind is ReferenceType:
            return ReferenceType(self.of(x()), self.of(x.__callback__))
        if kind in (tuple, frozenset):
            return kind(map(self.of, x))
        return self._outside(x)

    def _outside(self, x: Any) -> Any:
        """Return what stands for an object that is no part of the model, and refers to it.

        What else it refers to, as a trainer to its data, is shared.  One that has no copy stays:
        whether the model computes with it is seen by the check of a cut.
        """
        try:
            new = copy.copy(x)
        except Exception:  # what its own methods raise
            new = x
        self.made[id(x)] = new
        self.made.setdefault(id(self.made), []).append(x)
        if new is not x:
            self.seen.add(id(new))
            self.queue.append(new)
        return new

    def _function(self, f: FunctionType) -> FunctionType:
        cells = [self._cell(cell) for cell in f.__closure__ or ()]
        own = self._globals(f)
        new = FunctionType(f.__code__, own, f.__name__, None, tuple(c for c, _ in cells) or None)
        self.made[id(f)] = new  # before what it refers to, which may be itself
        for name in ("__qualname__", "__module__", "__doc__", "__annotations__"):
            setattr(new, name, getattr(f, name))
        for cell, old in cells:
            if old is not None:
                cell.cell_contents = self.of(old.cell_contents)
        for name in _globals_of(f):
            own[name] = self.of(f.__globals__[name])
        new.__defaults__ = self.of(f.__defaults__)
        words = f.__kwdefaults__
        new.__kwdefaults__ = words and {name: self.of(value) for name, value in words.items()}
        vars(new).update({name: self.of(value) for name, value in vars(f).items()})
        return new

    def _cell(self, cell: CellType) -> tuple[CellType, CellType | None]:
        """Return the cell for a copy, and the old one whose value it is still to get, if any."""
        if id(cell) in self.made:
            return self.made[id(cell)], None
        if not self._reaches(cell):
            return cell, None
        new = self.made[id(cell)] = CellType()
        return new, cell

    def _globals(self, f: FunctionType) -> dict[str, Any]:
        """Return the globals of a function: a copy of its module's, where what it reads reaches."""
        table = f.__globals__
        if any(self._reaches(table[name]) for name in _globals_of(f)):
            return self.globals.setdefault(id(table), dict(table))
        return table

    def _reaches(self, start: Any) -> bool:
        """Tell whether something that was copied is reached from an object."""
        if isinstance(start, PLAIN) or id(start) in self.seen:
            return False
        seen, near = {id(start)}, deque([start])
        while near and len(seen) <= MOST:
            x = near.popleft()
            if id(x) in self.made:
                return True
            for inner in _referred(x):
                key = id(inner)
                known = key in seen or key in self.far or key in self.seen
                if not known and not isinstance(inner, PLAIN):
                    seen.add(key)
                    near.append(inner)
        self.far |= seen
        return False


def _referred(x: Any) -> Iterable[Any]:
    """Return what an object refers to, as far as Python lets one see."""
    if isinstance(x, FunctionType):
        return _of_function(x)
    if isinstance(x, CellType):
        return _contents(x)
    if isinstance(x, MethodType):
        return (x.__func__, x.__self__)
    if isinstance(x, partial):
        return (x.func, *x.args, *x.keywords.values(), *vars(x).values())
    if isinstance(x, BUILTIN):
        return (x.__self__,)
    if isinstance(x, ReferenceType):
        return (x(), x.__callback__)
    if isinstance(x, dict):
        return (*x.values(), *getattr(x, "__dict__", {}).values())
    if isinstance(x, (list, tuple, set, frozenset, deque)):
        return tuple(x)
    own = getattr(x, "__dict__", None)
    return tuple(own.values()) if isinstance(own, dict) else ()


def _of_function(f: FunctionType) -> Iterator[Any]:
    yield from f.__closure__ or ()
    yield from f.__defaults__ or ()
    yield from (f.__kwdefaults__ or {}).values()
    yield from vars(f).values()
    for name in _globals_of(f):
        yield f.__globals__[name]


def _contents(cell: CellType) -> Iterator[Any]:
    try:
        yield cell.cell_contents
    except ValueError:  # it has none yet
        return


def _globals_of(f: FunctionType) -> list[str]:
    """Return the names of its module that a function's code mentions."""
    if is_foreign(f.__globals__.get("__name__")):
        return []
    return [name for name in mentions_of(f.__code__).names if name in f.__globals__]
