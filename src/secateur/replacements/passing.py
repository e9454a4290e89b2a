"""What is left of a residual block that was dropped: it returns its input."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from secateur.runtime.undo import Undo, unhook_module

Passing = tuple[int | str, tuple[bool, ...] | None]
"""Which argument a block returns, and for each part of a tuple, whether it is that."""


class PassThrough(nn.Module):
    """Returns one of its arguments, in the form in which the block returned its sum."""

    passes: tuple[int, str]  # position and name of the argument
    returns: tuple[bool, ...] | None  # for each part of a tuple, whether it is the argument

    def forward(self, *arguments: Any, **options: Any) -> Any:
        return _formed(given(self.passes, arguments, options), self.returns)


def passing(kind: type[nn.Module]) -> type[PassThrough]:
    """Return the subclass of a block's class that passes its input through."""
    made: Any = type(kind.__name__, (PassThrough, kind), {})
    return made


def argument(kind: type[nn.Module], at: int | str) -> tuple[int, str]:
    """Return position and name of an argument of a module's forward; ValueError if there is none.

    >>> argument(nn.Linear, 0)
    (0, 'input')
    """
    names = list(inspect.signature(kind.forward).parameters)[1:]
    if isinstance(at, int):
        if not 0 <= at < 100:
            raise ValueError(f"{at} is no position of an argument")
        return at, names[at] if at < len(names) else ""
    return (names.index(at), at) if at in names else (1 << 16, at)  # among the **options


@contextmanager
def skipping(
    model: nn.Module, blocks: Mapping[str, Passing], *, copies: bool = True
) -> Iterator[None]:
    """Let blocks return their input for that long, though they run: nothing else changes.

    Args:
        model: whose blocks these are; it gets hooks, and no more.
        blocks: by their paths, and how each passes its input.
        copies: copy each input first, which the block may write to.

    >>> import torch
    >>> net, x = nn.Sequential(nn.ReLU(), nn.Tanh()), torch.tensor([-1.0])
    >>> with skipping(net, {"0": (0, None)}):
    ...     net(x)
    tensor([-0.7616])
    """
    with Undo() as undo:
        for path, how in blocks.items():
            skip = _Skip(argument(type(model.get_submodule(path)), how[0]), how[1], copies)
            module, note, put = model.get_submodule(path), skip.note, skip.put
            undo(partial(unhook_module, module, note))
            module.register_forward_pre_hook(note, with_kwargs=True)
            undo(partial(unhook_module, module, put))
            module.register_forward_hook(put)
        yield


class _Skip:
    """Notes what a block is given, and returns that in place of what it makes."""

    def __init__(self, passes: tuple[int, str], returns: tuple[bool, ...] | None, copies: bool):
        self.copies = copies
        self.passes = passes
        self.returns = returns
        self.given: Any = None

    def note(self, _: nn.Module, arguments: Any, options: Any) -> None:
        x = given(self.passes, arguments, options)
        self.given = x.clone() if self.copies and isinstance(x, Tensor) else x

    def put(self, *_: Any) -> Any:
        return _formed(self.given, self.returns)


def given(passes: tuple[int, str], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    position, name = passes
    return arguments[position] if position < len(arguments) else options[name]


def _formed(x: Any, returns: tuple[bool, ...] | None) -> Any:
    if returns is None:
        return x
    return tuple(x if passed else None for passed in returns)
