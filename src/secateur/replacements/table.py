"""The table of replacements, and a model in which every layer that has one is one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from torch import nn

from secateur.runtime.undo import Undo

R = TypeVar("R", bound="type[nn.Module]")

REPLACEMENTS: dict[type[nn.Module], type[Any]] = {}  # torch's class → ours


def replaces(original: type[nn.Module]) -> Callable[[R], R]:
    """Register a replacement.

    It has two static methods: ``extra(module)`` returns the attributes that it needs besides those
    of the original, and ``fits(module)`` tells whether the original could compute the same.
    """

    def register(replacement: R) -> R:
        REPLACEMENTS[original] = replacement
        return replacement

    return register


def replacement_of(kind: type[nn.Module]) -> type[Any] | None:
    """Return the class that a layer's class is traced as, or None.

    A subclass of torch's (one whose weights are parametrized, or with more in its forward) is
    traced as a subclass of both, in which its ``super()`` is the replacement.
    """
    if kind in REPLACEMENTS or any(ours in kind.__mro__ for ours in REPLACEMENTS.values()):
        return REPLACEMENTS.get(kind)
    for original, ours in REPLACEMENTS.items():
        if original in kind.__mro__:
            made = (sub for sub in type.__subclasses__(kind) if sub.__bases__ == (kind, ours))
            return next(made, None) or type(kind.__name__, (kind, ours), {})
    return None


def name_of(module: nn.Module) -> str | None:
    """Return the name of the replacement that a module is an instance of, or None."""
    ours = [kind for kind in REPLACEMENTS.values() if isinstance(module, kind)]
    return ours[0].__name__ if ours else None


@contextmanager
def in_plain_operations(model: nn.Module) -> Iterator[None]:
    """Let every layer that has a replacement be one, and itself again afterwards."""
    with Undo() as undo:
        for module in model.modules():
            if replacement := replacement_of(type(module)):
                extra = replacement.extra(module)
                undo(partial(_itself, module, type(module), list(extra), dict(vars(module))))
                vars(module).update(extra)
                module.__class__ = replacement
        yield


def _itself(
    module: nn.Module, original: type[nn.Module], names: list[str], held: dict[str, Any]
) -> None:
    module.__class__ = original
    for name in names:
        if name in held:
            vars(module)[name] = held[name]
        else:
            vars(module).pop(name, None)
