"""Does a model compute with its own parameters?  One that holds another's layers looks exact.

A function, a cache or a class may hold layers of the model that a copy was made of.  Masked or cut,
such a copy computes the same as before, so that a comparison of the two finds nothing wrong.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import partial
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from secateur.runtime.copying import not_its_own
from secateur.runtime.undo import Undo

from .history import Shape
from .trials import Way
from .verify import Check, ready


class Reads(TorchDispatchMode):
    """Notes which parameters of a model operations are given, and which others.

    Args:
        shapes: of tensors that would be others of the same kind, besides parameters.

    >>> net = nn.Linear(2, 2)
    >>> with Reads(net) as reads:
    ...     _ = torch.ones(1, 2) @ net.weight.T
    >>> reads.unread, reads.foreign
    ({'bias'}, False)
    """

    def __init__(self, model: nn.Module, shapes: Collection[Shape] = ()):
        super().__init__()
        self.model = model
        self.unread = {name for name, p in model.named_parameters() if p.numel()}
        self.foreign = False
        self._shapes = shapes
        self._own: dict[int, list[str]] = {}

    def __enter__(self) -> Self:
        """Find where the tensors are by now: a check may have moved them meanwhile."""
        self._own = {_place(buffer): [] for buffer in self.model.buffers()}
        for name, parameter in self.model.named_parameters():
            self._own.setdefault(_place(parameter), []).append(name)
        return cast(Self, super().__enter__())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        for x in _tensors((args, kwargs)):
            place = _place(x)
            if place in self._own:
                self.unread.difference_update(self._own[place])
            elif isinstance(x, nn.Parameter) or tuple(x.shape) in self._shapes:
                self.foreign = True
        out = func(*args, **(kwargs or {}))
        for x in _tensors(out):  # what was computed meanwhile is nobody's
            self._own.setdefault(_place(x), [])
        return out


def _tensors(tree: Any) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]


def _place(tensor: Tensor) -> int:
    """Return where a tensor's memory begins; 0 for one that has none, or hides it."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # a subclass without a storage
        return 0


def insist_on_own(check: Check, reads: Reads, cut: Collection[str]) -> None:
    """Insist that a model has computed with those of its parameters that were cut.

    Args:
        reads: what was seen of the model on the example.
        cut: names of parameters and buffers.

    Raises:
        CopyError: some were not read where others were, and what they hold is no matter.
    """
    model, unread = reads.model, sorted(reads.unread.intersection(cut))
    if not (unread and reads.foreign):
        return
    parameters, way = dict(model.named_parameters()), check.trials[0][0]
    with ready(model, check.precision):
        outputs = check.run(model, way)
        without = _without(check, model, way, [parameters[name] for name in unread])
    if all(map(torch.equal, outputs, without)):
        raise not_its_own(model, unread)


def _without(check: Check, model: nn.Module, way: Way, unread: Iterable[Tensor]) -> list[Tensor]:
    """Return what a model computes when some parameters hold zeros."""
    with Undo() as undo:
        for parameter in unread:
            undo(partial(setattr, parameter, "data", parameter.data))
            parameter.data = torch.zeros_like(parameter.data)
        return check.run(model, way)
