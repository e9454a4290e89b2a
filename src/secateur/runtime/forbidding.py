"""Forbid positions where a running model chooses among them: they read as minus infinity there."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .undo import Undo, in_mode, unhook_module


@dataclass(frozen=True)
class Forbidden:
    """Positions of the first argument of one operation.

    Attributes:
        module: the path of the innermost module that runs it.
        packet: the operation.
        place: how many of these that module has run before, in the same call.
        dim: of the argument, counted from the end.
        gone: bool, one for each position of that dimension.
    """

    module: str
    packet: Any
    place: int
    dim: int
    gone: Tensor


@contextmanager
def forbidding(model: nn.Module, places: Iterable[Forbidden]) -> Iterator[None]:
    """Let a model neither choose nor give a share to some positions for that long.

    Args:
        model: it gets hooks, and no more.
        places: where, and which; with none nothing is done.

    >>> import torch
    >>> gone = torch.tensor([False, True, False])
    >>> net = nn.Softmax(-1)
    >>> with forbidding(net, [Forbidden("", torch.ops.aten._softmax, 0, -1, gone)]):
    ...     net(torch.zeros(3))
    tensor([0.5000, 0.0000, 0.5000])
    """
    mode = _Forbidding(places)
    if not mode.table:
        yield
        return
    with Undo() as undo:
        for path, module in model.named_modules():
            inside = any(path == p or not p or path.startswith(f"{p}.") for p in mode.modules)
            if inside:  # what a module within one runs is not its own
                enter, leave = partial(mode.enter, path), partial(mode.leave)
                undo(partial(unhook_module, module, enter))
                module.register_forward_pre_hook(enter)
                undo(partial(unhook_module, module, leave))
                module.register_forward_hook(leave, always_call=True)
        with in_mode(mode):
            yield


class _Forbidding(TorchDispatchMode):
    def __init__(self, places: Iterable[Forbidden]):
        super().__init__()
        self.table: dict[tuple[str, Any, int], list[Forbidden]] = {}
        for each in places:
            self.table.setdefault((each.module, each.packet, each.place), []).append(each)
        self.modules = {module for module, _, _ in self.table}
        self.packets = {packet for _, packet, _ in self.table}
        self._here = threading.local()  # forwards of one model may take turns, each in its thread

    @property
    def _running(self) -> list[tuple[str, Counter[Any]]]:
        """The calls of modules that have begun in this thread, and what ran in each."""
        if not hasattr(self._here, "calls"):
            self._here.calls = []
        calls: list[tuple[str, Counter[Any]]] = self._here.calls
        return calls

    def enter(self, path: str, *_: Any) -> None:
        self._running.append((path, Counter()))

    def leave(self, *_: Any) -> None:
        self._running.pop()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.overloadpacket in self.packets and self._running:
            path, ran = self._running[-1]
            for each in self.table.get((path, func.overloadpacket, ran[func.overloadpacket]), ()):
                args = (_without(args[0], each), *args[1:])
            ran[func.overloadpacket] += 1
        return func(*args, **(kwargs or {}))


def _without(x: Tensor, forbidden: Forbidden) -> Tensor:
    shape = [1] * x.ndim
    shape[forbidden.dim] = -1
    return x.masked_fill(forbidden.gone.to(x.device).view(shape), float("-inf"))
