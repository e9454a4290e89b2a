"""Names for functions: one decorator registers, near names are suggested, wildcards search."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, TypeVar

from .errors import UnknownNameError, did_you_mean

F = TypeVar("F", bound=Callable[..., Any])


def import_all(package: str, path: Iterable[str]) -> None:
    """Import every module of a package, so that each registers what it defines.

    A new file is all that something new needs.  Called with a package's ``__name__`` and
    ``__path__``, once its own imports are done.
    """
    for module in iter_modules(path):
        import_module(f"{package}.{module.name}")


def name_of(defined: str) -> str:
    """Return what a function or class of that name is registered as.

    >>> name_of("ADMM"), name_of("GroupLasso"), name_of("mean_activation")
    ('admm', 'group_lasso', 'mean_activation')
    """
    return re.sub("(?<=[a-z])(?=[A-Z])", "_", defined).lower()


def _names(listed: str) -> list[str]:
    return [name for name in listed.replace(" ", "").split(",") if name]


class Registry(Mapping[str, Callable[..., Any]]):
    """A read-only mapping from a name to the function that was registered under it.

    >>> colours = Registry("colour")
    >>> @colours.register
    ... def red(): return "#f00"
    >>> colours["red"]()
    '#f00'
    >>> colours.search("r*")
    ['red']
    >>> colours["rad"]
    Traceback (most recent call last):
        ...
    secateur.errors.UnknownNameError: unknown colour 'rad'. Did you mean 'red'? Known: red.
    """

    def __init__(self, kind: str, home: str = "", takes: str = ""):
        self.kind = kind
        self.home = home
        """The package whose modules register, where whoever looks a name up may not have it."""
        self.takes = takes
        """What its functions are called with, as in their signature: ``system, *, damping``."""
        self._functions: dict[str, Callable[..., Any]] = {}

    def register(self, function: F) -> F:
        """Register a function under its own name; a name is never taken twice.

        Raises:
            ValueError: the name is taken, or it cannot be called with what it will be.
        """
        return self.register_as(getattr(function, "__name__", repr(function)))(function)

    def register_as(self, name: str) -> Callable[[F], F]:
        """Register a function under a name that none may have in Python, such as "global"."""

        def registered(function: F) -> F:
            if name in self._functions:
                raise ValueError(f"{self.kind} {name!r} is registered already")
            self._check(name, function)
            self._functions[name] = function
            return function

        return registered

    def _check(self, name: str, function: Any) -> None:
        """Refuse what cannot be called with what it will be."""
        wanted = f"{self.kind} {name!r} must be a function ({self.takes or '…'})"
        if not callable(function):
            raise ValueError(f"{wanted}, not a {type(function).__name__}")
        if not self.takes:
            return
        try:
            signature = inspect.signature(function)
        except (TypeError, ValueError):  # one of C that does not say what it takes
            return
        positional, _, keywords = self.takes.partition("*")
        try:
            signature.bind(*_names(positional), **dict.fromkeys(_names(keywords)))
        except TypeError as error:
            raise ValueError(f"{wanted}, got {signature}: {error}") from None

    def search(self, pattern: str = "*") -> list[str]:
        """Return the registered names that match a shell pattern, sorted."""
        return sorted(name for name in self._known() if fnmatchcase(name, pattern))

    def __getitem__(self, name: str) -> Callable[..., Any]:
        try:
            return self._known()[name]
        except (KeyError, TypeError):
            hint = did_you_mean(name, self._functions)
            known = ", ".join(sorted(self._functions))
            raise UnknownNameError(f"unknown {self.kind} {name!r}.{hint} Known: {known}.") from None

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._known()))

    def __len__(self) -> int:
        return len(self._known())

    def __contains__(self, name: object) -> bool:
        return name in self._known()

    def _known(self) -> dict[str, Callable[..., Any]]:
        """Return what is registered, once the home is imported."""
        if self.home and self.home not in sys.modules:
            import_module(self.home)
        return self._functions

    def __repr__(self) -> str:
        return f"{self.kind}: {', '.join(self)}"
