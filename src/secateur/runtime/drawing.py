"""Random numbers of a trial, and those of the process, which it does not touch.

torch has one default generator for all threads.  To save its state before a trial and put it back
afterwards would let a training in another thread draw the same numbers twice.  So the trial has
states of its own, that are in the place of the process's for the time of one operation.
"""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from .undo import Undo

DRAWS = torch.Tag.nondeterministic_seeded


class Drawing:
    """The state that a trial draws from; at first that of the process."""

    def __init__(self) -> None:
        self._states: dict[str, Any] = {}

    def seed(self, seed: int) -> None:
        """Let the next numbers be those after ``torch.manual_seed(seed)``."""
        self._states = {
            name: torch.Generator(name).manual_seed(seed).get_state() for name in _generators()
        }

    def run(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation; one that draws, from the trial's own state."""
        if not _draws(func, kwargs):
            return func(*args, **kwargs)
        generators = _generators()
        with Undo() as undo:
            for name, generator in generators.items():
                undo(partial(generator.set_state, generator.get_state()))
                if name in self._states:
                    generator.set_state(self._states[name])
            out = func(*args, **kwargs)
            self._states = {name: g.get_state() for name, g in generators.items()}
            return out


class Drawn(TorchDispatchMode):
    """Within it operations draw from states of their own."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.drawing = Drawing()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return self.drawing.run(func, args, kwargs or {})


def _draws(func: Any, kwargs: dict[str, Any]) -> bool:
    """Tell whether an operation draws from the generators of the process."""
    return DRAWS in getattr(func, "tags", ()) and kwargs.get("generator") is None


def _generators() -> dict[str, torch.Generator]:
    found = {"cpu": torch.default_generator}
    if torch.cuda.is_initialized():
        found |= {f"cuda:{i}": g for i, g in enumerate(torch.cuda.default_generators)}
    return found


def keep_generators(undo: Undo, *, named: bool = True) -> None:
    """Put the generators of torch, Python and numpy back afterwards.

    Where other threads are alive that may draw too, only if the code of the trial can do it past
    ``Drawing``.

    Args:
        undo: what is told to.
        named: the code may seed torch, or draw by Python's ``random`` or numpy.
    """
    if not named and not _only_thread():
        return
    numpy: Any = sys.modules.get("numpy.random")
    undo(partial(random.setstate, random.getstate()))
    if numpy:
        undo(partial(numpy.set_state, numpy.get_state()))
    for generator in _generators().values():
        undo(partial(generator.set_state, generator.get_state()))


def _only_thread() -> bool:
    """Tell whether no other Python thread is alive, but those that take turns in a trial."""
    others = [t for t in threading.enumerate() if not t.name.startswith(TURN)]
    return len(others) == 1


TURN = "secateur turn"
"""How the names of the threads begin that take turns in a trial."""
