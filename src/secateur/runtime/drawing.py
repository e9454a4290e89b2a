"""Random numbers of a trial, and those of the process, which it does not touch.

torch has one default generator for all threads.  To save its state before a trial and put it back
afterwards would let a training in another thread draw the same numbers twice.  So the trial has
generators of its own, and only what cannot be given one runs for a moment in the state of ours.
"""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .undo import Undo

DRAWS = torch.Tag.nondeterministic_seeded


class Drawing:
    """What a trial draws from; at first it goes on where the process is."""

    def __init__(self) -> None:
        self._own: dict[str, torch.Generator] = {}

    def seed(self, seed: int) -> None:
        """Let the next numbers be those after ``torch.manual_seed(seed)``."""
        self._own = {name: torch.Generator(name).manual_seed(seed) for name in _generators()}

    def run(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation; one that draws, from the trial's own generator."""
        if not _draws(func, kwargs):
            return func(*args, **kwargs)
        given = _with_generator(func)
        if given is None:
            idle = (
                _argument(func, "dropout_p", args, kwargs) == 0
            )  # attention: it may, and does not
            return func(*args, **kwargs) if idle else self._swapped(func, args, kwargs)
        return given(*args, **{**kwargs, "generator": self._of(_device_of(args, kwargs))})

    def _of(self, name: str) -> torch.Generator:
        if name not in self._own:
            state = _generators()[name].get_state()
            self._own[name] = torch.Generator(name).set_state(state)
        return self._own[name]

    def _swapped(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run what takes no generator while the process's are in the state of ours."""
        generators = _generators()
        with Undo() as undo:
            for name, generator in generators.items():
                undo(partial(generator.set_state, generator.get_state()))
                generator.set_state(self._of(name).get_state())
            out = func(*args, **kwargs)
            for name, generator in generators.items():
                self._of(name).set_state(generator.get_state())
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


def _with_generator(func: Any) -> Any:
    """Return the form of an operation that takes a generator, or None."""
    names = [argument.name for argument in func._schema.arguments]
    if "generator" in names:
        return func
    for name in func.overloadpacket.overloads():
        other = getattr(func.overloadpacket, name)
        taken = [argument.name for argument in other._schema.arguments]
        if "generator" in taken and [each for each in taken if each != "generator"] == names:
            return other
    return None


def _argument(func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return what an operation is given for an argument, or its default; None if it has none."""
    for place, argument in enumerate(func._schema.arguments):
        if argument.name == name:
            given = args[place] if place < len(args) else kwargs.get(name)
            return argument.default_value if given is None else given
    return None


def _device_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Return the name of the generator of the device on which an operation computes."""
    tensors = (x.device for x in args if isinstance(x, Tensor))
    device = torch.device(kwargs.get("device") or next(tensors, "cpu"))
    if device.type != "cuda":
        return "cpu"
    return str(torch.empty(0, device=device).device)  # with its index


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
