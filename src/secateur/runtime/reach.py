"""What the code of a forward can reach besides its arguments: globals, class attributes, closures.

Functions are followed by the names that their code mentions, from the forwards of a model's modules
on; nothing is run.  What torch, numpy and the standard library keep for themselves is left out.
"""

from __future__ import annotations

import dis
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from functools import cached_property, lru_cache, partial
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

CACHE = type(lru_cache(len))  # what functools makes of a function
FOREIGN = {"torch", "numpy", "scipy", "sympy", "mpmath", "secateur", *sys.stdlib_module_names}
MOST_VISITS = 4000  # far more than forwards use; a walk that gets lost in a library ends here
MOST_ENTRIES = 512  # of a container whose values are looked into for code
DRAWS = {"random", "randint", "randrange", "uniform", "choice", "choices", "shuffle", "sample"}
DRAWS |= {"manual_seed", "set_rng_state", "seed", "default_rng"}
STORES = {"setdefault", "update", "add"}


PLAIN = (int, float, complex, str, bytes, type(None))
RUN_UNNAMED = ("forward", "__call__", "__getattr__", "__getitem__", "__setitem__", "__contains__")


class Place(NamedTuple):
    """Where the process keeps a value: a name of a namespace or a class, or a closure's cell."""

    holder: Any
    name: Any

    @property
    def value(self) -> Any:
        if isinstance(self.holder, CellType):
            try:
                return self.holder.cell_contents
            except ValueError:  # not bound yet
                return None
        return (vars(self.holder) if isinstance(self.holder, type) else self.holder).get(self.name)

    @property
    def known(self) -> bool:
        """Whether the name of a namespace means anything."""
        return not isinstance(self.holder, dict) or self.name in self.holder

    def put(self, value: Any) -> None:
        if isinstance(self.holder, CellType):
            self.holder.cell_contents = value
        elif isinstance(self.holder, type):
            type.__setattr__(self.holder, self.name, value)
        else:
            self.holder[self.name] = value


class Mentions(NamedTuple):
    """What a function's code names, what it stores into by a key, and which globals it rebinds."""

    names: frozenset[str]
    stored: frozenset[str]
    rebound: frozenset[str]


class Reach:
    """All that some functions and the methods of some classes can reach.

    Attributes:
        places: that hold values other than functions, classes and modules.
        caches: that hold a function with a cache of ``functools``.
        rebound: globals that the code assigns.
        stored: names of containers that the code stores into by a key.
    """

    def __init__(self, roots: Iterable[Any]):
        self.places: dict[tuple[int, Any], Place] = {}
        self.caches: dict[tuple[int, Any], Place] = {}
        self.rebound: dict[tuple[int, Any], Place] = {}
        self.stored: set[str] = set()
        self._followed: list[tuple[Place, Any]] = []
        self._seen: dict[int, Any] = {}  # the objects too, so that an id stays its own
        self._mentioned: set[str] = set()
        self._waiting: dict[str, list[Any]] = {}  # what has a member of a name, which none mentions
        self._todo: deque[Any] = deque(roots)
        while self._todo and len(self._seen) < MOST_VISITS:
            self._visit(self._todo.popleft())
        self._lost = bool(self._todo)
        self._seen.clear()
        self._todo.clear()

    @property
    def draws(self) -> bool:
        """Whether the code may seed torch, or draw random numbers that are none of torch's."""
        return self._lost or not DRAWS.isdisjoint(self._mentioned)

    @property
    def current(self) -> bool:
        """Whether all names that were followed still mean what they did."""
        return all(place.value is value for place, value in self._followed)

    def _visit(self, value: Any) -> None:
        if isinstance(value, PLAIN) or id(value) in self._seen:
            return
        self._seen[id(value)] = value
        if isinstance(value, FunctionType):
            self._function(value)
        elif isinstance(value, type):
            self._class(value)
        elif isinstance(value, dict):
            for name in value if len(value) <= MOST_ENTRIES else ():
                self._found(value, name)
        elif inner := list(_inside(value)):
            self._todo += inner
        else:
            self._object(value)

    def _found(self, holder: Any, name: Any) -> None:
        place = Place(holder, name)
        value = place.value
        if cached_in(value) is not None:
            self.caches[id(holder), name] = place
            self._followed.append((place, value))
        elif isinstance(value, (FunctionType, type, ModuleType)):
            self._followed.append((place, value))
        elif not isinstance(value, PLAIN):
            self.places[id(holder), name] = place
        self._todo.append(value)

    def _function(self, function: FunctionType) -> None:
        space = function.__globals__
        if is_foreign(space.get("__name__")):
            return
        mentions = mentions_of(function.__code__)
        self.stored |= mentions.stored
        self._mention(mentions.names)
        for name in mentions.names & space.keys():
            if name.startswith("@"):  # what pytest writes into the code of tests
                continue
            self._found(space, name)
            module = space[name]
            if isinstance(module, ModuleType) and not is_foreign(module.__name__):
                for inner in mentions.names & vars(module).keys():
                    self._found(vars(module), inner)
        for name in mentions.rebound:
            self.rebound[id(space), name] = Place(space, name)
        free = function.__code__.co_freevars
        for name, cell in zip(free, function.__closure__ or (), strict=True):
            self._found(cell, name)
        self._members(vars(function), vars(function))
        for name in function.__kwdefaults__ or ():
            self._found(function.__kwdefaults__, name)
        defaults = function.__defaults__ or ()
        arguments = function.__code__.co_varnames[: function.__code__.co_argcount]
        for name, value in zip(arguments[len(arguments) - len(defaults) :], defaults, strict=True):
            self._found({name: value}, name)

    def _class(self, kind: type) -> None:
        self._todo += kind.__mro__[1:]
        if is_foreign(kind.__module__):
            return
        self._members(kind, vars(kind))

    def _members(self, holder: Any, names: Iterable[str]) -> None:
        """Follow the attributes that code mentions, now or when it does."""
        for name in list(names):
            if name in self._mentioned or name in RUN_UNNAMED:
                self._found(holder, name)
            else:
                self._waiting.setdefault(name, []).append(holder)

    def _mention(self, names: frozenset[str]) -> None:
        new = names - self._mentioned
        self._mentioned |= new
        for name in new & self._waiting.keys():
            for holder in self._waiting.pop(name):
                self._found(holder, name)

    def _object(self, value: Any) -> None:
        """An object of somebody's own class: its methods, and what it holds."""
        if isinstance(value, ModuleType) or is_foreign(type(value).__module__):
            return
        self._todo.append(type(value))
        if isinstance(held := getattr(value, "__dict__", None), dict):
            self._members(held, held)


def _inside(value: Any) -> Iterator[Any]:
    """Yield what a wrapper of functions, or a container, is made of."""
    if isinstance(value, CACHE):
        yield value.__wrapped__
    elif isinstance(value, (staticmethod, classmethod)):
        yield value.__func__
    elif isinstance(value, property):
        yield from (value.fget, value.fset)
    elif isinstance(value, cached_property):
        yield value.func
    elif isinstance(value, partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, MethodType):
        yield from (value.__func__, value.__self__)
    elif isinstance(value, (list, tuple)) and len(value) <= MOST_ENTRIES:
        yield from value


def cached_in(value: Any) -> Any:
    """Return the cached function that a value is, or holds as a static method or partial."""
    inner = getattr(value, "__func__", value)
    inner = inner.func if isinstance(inner, partial) else inner
    return inner if isinstance(inner, CACHE) else None


def is_foreign(module: Any) -> bool:
    """Tell whether a module's name is one of torch, its foundations or the standard library."""
    return not isinstance(module, str) or module.partition(".")[0] in FOREIGN


_known: dict[frozenset[Any], Reach] = {}
MOST_KNOWN = 8


def reach(roots: frozenset[Any]) -> Reach:
    """Return what functions and classes can reach; for the last few it is remembered.

    >>> code = {"__name__": "mine", "sizes": {}}
    >>> exec("def keep(x): sizes[x.shape] = x", code)
    >>> found = reach(frozenset([code["keep"]]))
    >>> [place.name for place in found.places.values()], found.stored
    (['sizes'], {'sizes'})
    """
    known = _known.pop(roots, None)
    if known is None or not known.current:
        known = Reach(roots)
    _known[roots] = known  # as the newest
    while len(_known) > MOST_KNOWN:
        _known.pop(next(iter(_known)), None)
    return known


def forget() -> None:
    """Let go of the classes and functions that are remembered."""
    _known.clear()


@lru_cache(maxsize=4096)
def mentions_of(code: CodeType) -> Mentions:
    """Return what a code object and those inside it mention."""
    inner = [mentions_of(c) for c in code.co_consts if isinstance(c, CodeType)]
    stored: set[str] = set()
    rebound: set[str] = set()
    if _STORE_SUBSCR in code.co_code[::2] or STORES & set(code.co_names):
        stored |= _stored(code)
    if _STORE_GLOBAL in code.co_code[::2]:
        rebound |= {i.argval for i in dis.get_instructions(code) if i.opname == "STORE_GLOBAL"}
    return Mentions(
        frozenset(code.co_names).union(*(m.names for m in inner)),
        frozenset(stored).union(*(m.stored for m in inner)),
        frozenset(rebound).union(*(m.rebound for m in inner)),
    )


def _stored(code: CodeType) -> set[str]:
    """Return the names in the expressions that are stored into: ``self.cache`` of ``…[key] = x``.

    A local variable may be another name of any of them.
    """
    found: set[str] = set()
    instructions = list(dis.get_instructions(code))
    for store in instructions:
        if store.opname != "STORE_SUBSCR" and store.argval not in STORES:
            continue
        for i in instructions:
            if _begins(i.positions, store.positions):
                found |= {i.argval} if isinstance(i.argval, str) else set()
    return found | set(code.co_names) if found & set(code.co_varnames) - {"self"} else found


def _begins(inner: Any, outer: Any) -> bool:
    """Tell whether an expression is what another begins with, as ``self.cache`` in a subscript."""
    if inner is None or outer is None or None in (*inner, *outer):
        return True  # an interpreter without positions
    start, end = (inner.lineno, inner.col_offset), (inner.end_lineno, inner.end_col_offset)
    whole = (outer.end_lineno, outer.end_col_offset)
    return start == (outer.lineno, outer.col_offset) and end <= whole


_STORE_SUBSCR, _STORE_GLOBAL = dis.opmap["STORE_SUBSCR"], dis.opmap["STORE_GLOBAL"]
