"""What is older than a cut is not used without a word: an optimizer's state, a graph."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod

from torch import Tensor, nn
from torch.autograd.graph import increment_version
from torch.optim import Optimizer

from secateur.errors import OptimizerError
from secateur.masks.optimizers import before_each_step
from secateur.runtime.undo import undoable

from .history import Shape
from .trial_step import tensors_of


def outdate(model: nn.Module, shapes: Mapping[str, tuple[Shape, Shape]]) -> None:
    """Let what is older than a cut be an error where it is used next.

    A backward through a graph of before would give gradients of the old shapes: torch refuses it,
    as after any change in place.  An optimizer whose state is of before raises an OptimizerError
    that names ``cut_optimizer``; torch would only say that two sizes do not match.

    Args:
        model: it was cut in place.
        shapes: parameter → its shape before and after.
    """
    parameters = dict(model.named_parameters())
    for name, (before, after) in shapes.items():
        parameter = parameters.get(name)
        if parameter is not None:
            if not parameter.is_inference():  # those have no versions, and no graphs
                increment_version(parameter)
            _watch.add(name, parameter, before, after)


@dataclass
class _Cut:
    tensor: weakref.ref[Tensor]
    name: str
    after: Shape
    stale: set[int]  # sizes that the parameter had, and has no more

    def is_older(self, tensor: Tensor, total: int) -> bool:
        """Tell whether a state has a size of before; ``total``: elements that are optimized."""
        flat = tensor.ndim == 1 and tensor.numel() not in (1, total, *self.after)
        return bool(set(tensor.shape) & self.stale) or (flat and tensor.numel() > prod(self.after))


class _Watch:
    """Looks at an optimizer that steps for the first time since the last cut."""

    def __init__(self) -> None:
        self.cuts: dict[int, _Cut] = {}
        self.seen: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self.end: Callable[[], object] | None = None

    def add(self, name: str, parameter: Tensor, before: Shape, after: Shape) -> None:
        key = id(parameter)
        stale = set(before) | (self.cuts[key].stale if key in self.cuts else set())
        gone = weakref.ref(parameter, lambda _: self.forget(key, None))
        undoable(partial(self.forget, key, self.cuts.get(key)))
        self.cuts[key] = _Cut(gone, name, after, stale - set(after))
        self.seen.clear()
        if self.end is None:
            self.end = before_each_step(self.look)

    def forget(self, key: int, before: _Cut | None) -> None:
        """Let a parameter be as it was before a cut, or gone."""
        if before is not None:
            self.cuts[key] = before
            return
        self.cuts.pop(key, None)
        end = self.end
        if not self.cuts and end is not None:
            self.end = None
            end()

    def look(self, optimizer: Optimizer) -> None:
        if not self.cuts or optimizer in self.seen:
            return
        held = [p for group in optimizer.param_groups for p in group["params"]]
        total = sum(p.numel() for p in held)
        for parameter in held:
            cut = self.cuts.get(id(parameter))
            state = optimizer.state.get(parameter) if cut else None
            for path, tensor in tensors_of(state or {}).items():
                if cut and cut.is_older(tensor, total):
                    raise OptimizerError(
                        f"{type(optimizer).__name__}'s state {path} of {cut.name!r} is "
                        f"{tuple(tensor.shape)}, of before the cut, and the parameter {cut.after}: "
                        "call secateur.cut_optimizer(optimizer, result) after a cut in place, or "
                        "make a new optimizer"
                    )
        self.seen.add(optimizer)


_watch = _Watch()
