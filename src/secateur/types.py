"""The few types that every layer shares."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, MutableMapping
from functools import reduce
from operator import and_
from typing import Any, TypeAlias

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

Masks: TypeAlias = Mapping[str, Tensor]
"""Parameter name → bool tensor of the parameter's shape; True is kept."""

Scores: TypeAlias = Mapping[str, Tensor]
"""Name of a group or target → one score per position; smaller matters less."""

Example: TypeAlias = Any
"""Example inputs: a tensor, a tuple (positional arguments) or a dict (keyword arguments)."""


class Factored(MutableMapping[str, Tensor]):
    """Products of masks, each made where it is asked for: held are its factors, which are small.

    One group removes rows of a matrix, another its columns.  The product has as many elements as
    the matrix, and the factors as many as its two sides.

    >>> import torch
    >>> rows, columns = torch.tensor([[True], [False]]), torch.tensor([True, True, False])
    >>> masks = Factored({"w": rows.expand(2, 3)}, {"w": columns.expand(2, 3)})
    >>> masks["w"].tolist(), [tuple(each.shape) for each in masks.factors("w")]
    ([[True, True, False], [False, False, False]], [(2, 1), (1, 3)])
    """

    def __init__(self, *masks: Masks) -> None:
        self._factors: dict[str, tuple[Tensor, ...]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        for each in masks:
            self.multiply(each)

    def multiply(self, masks: Masks) -> None:
        """Let each mask be zero where another of its name is; one by ``expand`` takes no memory."""
        for name in masks:
            self._shapes[name] = shape_of(masks, name)
            self._factors[name] = *self._factors.get(name, ()), *factors_of(masks, name)

    def factors(self, name: str) -> tuple[Tensor, ...]:
        """Return what a mask is the product of: tensors of its rank that broadcast to it."""
        return self._factors[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a mask, without making it."""
        return self._shapes[name]

    def only(self, names: Collection[str]) -> Factored:
        """Return the masks of some names."""
        found = Factored()
        found._factors = {name: self._factors[name] for name in self if name in names}
        found._shapes = {name: self._shapes[name] for name in found._factors}
        return found

    def __getitem__(self, name: str) -> Tensor:
        return reduce(and_, self._factors[name]).expand(self._shapes[name])

    def __setitem__(self, name: str, mask: Tensor) -> None:
        self._shapes[name], self._factors[name] = tuple(mask.shape), _small(mask)

    def __delitem__(self, name: str) -> None:
        del self._factors[name], self._shapes[name]

    def __contains__(self, name: object) -> bool:
        return name in self._factors  # a mapping's own makes the mask

    def __iter__(self) -> Iterator[str]:
        return iter(self._factors)

    def __len__(self) -> int:
        return len(self._factors)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._shapes})"

    def __reduce__(self) -> Any:  # stored, or copied, are plain masks, which torch.load takes
        return OrderedDict, (), None, None, iter(self.items())


def factors_of(masks: Masks, name: str) -> tuple[Tensor, ...]:
    """Return tensors that a mask is the product of, and that broadcast to it."""
    return masks.factors(name) if isinstance(masks, Factored) else _small(masks[name])


def shape_of(masks: Masks, name: str) -> tuple[int, ...]:
    """Return the shape of a mask."""
    return masks.shape(name) if isinstance(masks, Factored) else tuple(masks[name].shape)


def _small(mask: Tensor) -> tuple[Tensor]:
    """Return a mask without the repetitions that ``expand`` made."""
    for dim, (size, stride) in enumerate(zip(mask.shape, mask.stride(), strict=True)):
        if size > 1 and stride == 0:
            mask = mask.narrow(dim, 0, 1)
    return (mask,)


def call_arguments(example: Example) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the positional and keyword arguments that an example stands for.

    A tuple or list holds positional arguments, a mapping with text keys keyword arguments, and
    anything else is the one positional argument: a ``PackedSequence`` too, tuple though it is.

    >>> call_arguments({"x": 1})
    ((), {'x': 1})
    >>> call_arguments(3)
    ((3,), {})
    """
    if isinstance(example, Mapping) and all(isinstance(key, str) for key in example):
        return (), dict(example)
    if isinstance(example, (tuple, list)) and not isinstance(example, PackedSequence):
        return tuple(example), {}
    return (example,), {}
