"""Numbers read off devices, waiting once for each: what is computed there goes on meanwhile."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from math import nan
from numbers import Real
from typing import TypeVar

import torch
from torch import Tensor

K = TypeVar("K", bound=Hashable)


def numbers(scalars: Iterable[Tensor]) -> list[float]:
    """Return the values of tensors of one element, waiting once for each device and dtype.

    >>> numbers([torch.tensor(2), torch.tensor(0.5)])
    [2, 0.5]
    """
    read: dict[int, float] = {}
    for found in _alike([scalar.reshape(1) for scalar in scalars]):
        values = torch.cat(list(found.values())).tolist()
        read.update(zip(found, values, strict=True))
    return [read[i] for i in range(len(read))]


def as_number(found: object) -> float:
    """Return what somebody's function gave as a float; NaN where it is no number.

    >>> as_number(1), as_number(torch.tensor([0.5])), as_number("0.5"), as_number(None)
    (1.0, 0.5, nan, nan)
    """
    if isinstance(found, Tensor) and found.numel() == 1 and not found.is_complex():
        return float(found.detach())
    return float(found) if isinstance(found, Real) else nan


def moved(vectors: Sequence[Tensor], device: torch.device | str) -> list[Tensor]:
    """Return vectors on a device; those that come from another one and are alike come together.

    >>> moved([torch.zeros(1), torch.ones(2)], "cpu")
    [tensor([0.]), tensor([1., 1.])]
    """
    there = dict(enumerate(vectors))
    for found in _alike(vectors):
        if next(iter(found.values())).device != torch.device(device):
            lengths = [len(vector) for vector in found.values()]
            parts = torch.cat(list(found.values())).to(device).split(lengths)
            there.update(zip(found, parts, strict=True))
    return list(there.values())


def not_finite(tensors: Mapping[K, Tensor]) -> list[K]:
    """Return the keys of tensors that hold a NaN or an infinite number.

    >>> not_finite({"a": torch.tensor([1.0, float("nan")]), "b": torch.zeros(2)})
    ['a']
    """
    held = {k: torch.view_as_real(t) if t.is_complex() else t for k, t in tensors.items()}
    asked = {k: tensor.detach() for k, tensor in held.items() if tensor.numel()}
    finite = numbers(_finite(tensor) for tensor in asked.values())
    return [k for k, fine in zip(asked, finite, strict=True) if not fine]


def _finite(tensor: Tensor) -> Tensor:
    low, high = tensor.aminmax()  # NaN if any is; several times faster than asking each number
    return low.isfinite() & high.isfinite()


def _alike(tensors: Sequence[Tensor]) -> list[dict[int, Tensor]]:
    """Return tensors of one device and dtype together, by their place in the sequence."""
    found: dict[tuple[torch.device, torch.dtype], dict[int, Tensor]] = {}
    for i, tensor in enumerate(tensors):
        found.setdefault((tensor.device, tensor.dtype), {})[i] = tensor
    return list(found.values())
