"""Ways to share a goal among groups: their names, and what each says about itself.

The functions are in ``secateur.selection.allocators``, one in a file; here they are known to all
that reads a config.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, overload

from secateur.registry import F, Registry


@dataclass(frozen=True)
class Facts:
    """What an allocator says of itself when it is registered.

    Attributes:
        data: it needs batches of inputs.
        plain: where channels are asked for it gives each group the share that was asked: no ratio
            is to be looked for.
        pooled: positions of all groups are ranked together.
        later: in the last step what loses a smaller share than others goes after these.
        coarse: its shares are in steps: what overshoots the goal is given back.
    """

    data: bool = False
    plain: bool = False
    pooled: bool = False
    later: bool = False
    coarse: bool = False


class Allocators(Registry):
    """A registry of functions from a case to shares, with what they say of themselves.

    An allocator is ``(case) → spread``; a spread takes a strength in [0, 1] and returns the share
    that each of ``case.selectables`` loses: nothing goes at 0, no share ever falls, and all that
    may go has gone at 1.

    >>> allocators["uniform"].__name__
    'uniform'
    """

    def __init__(self, kind: str, home: str = ""):
        super().__init__(kind, home, takes="case")
        self.facts: dict[str, Facts] = {}

    @overload
    def register(self, function: F) -> F: ...

    @overload
    def register(self, function: str | None = None, **facts: bool) -> Callable[[F], F]: ...

    def register(self, function: Any = None, **facts: bool) -> Any:
        """Register an allocator under its own name, or, as a decorator with ``Facts``, another.

        >>> known = Allocators("allocation")
        >>> @known.register("global", pooled=True)
        ... def ranked(case): return lambda ratio: [ratio]
        >>> list(known), known.facts["global"].pooled
        (['global'], True)
        """
        if not callable(function):
            return partial(self._registered, function, Facts(**facts))
        return self._registered(None, Facts(), function)

    def _registered(self, name: str | None, facts: Facts, function: F) -> F:
        name = name or function.__name__
        self.register_as(name)(function)
        self.facts[name] = facts
        return function


allocators = Allocators("allocation", "secateur.selection.allocators")
"""Ways to share a goal among groups: ``(case) → spread``, and what each says of itself."""
