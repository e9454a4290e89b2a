"""Masks in NNI's format and by full name, checked and multiplied."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from secateur.errors import MaskError
from secateur.nni.config_list import TargetSetting

NniMasks = dict[str, dict[str, Tensor | None]]
"""``{module: {target: 0/1 float tensor}}``; None where a layer has no such tensor, or no mask."""


def product(several: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return masks by full name, multiplied where several have one."""
    found: dict[str, Tensor] = {}
    for masks in several:
        for name, mask in masks.items():
            found[name] = mask & found[name].to(mask.device) if name in found else mask
    return found


def boolean(target: TargetSetting, mask: Tensor) -> Tensor:
    """Return the mask of a target as a bool tensor; a parameter's in its shape.

    Raises:
        MaskError: as ``checked``, or it does not broadcast to the parameter's shape.
    """
    found = checked(target.name, mask)
    return found if target.shape is None else broadcast(target.name, found, target.shape)


def checked(name: str, mask: object) -> Tensor:
    """Return a mask as a bool tensor.

    Raises:
        MaskError: it is no tensor, or has values other than 0 and 1.
    """
    if not isinstance(mask, Tensor):
        raise MaskError(f"the mask of {name!r} is a {type(mask).__name__}, not a tensor")
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise MaskError(f"the mask of {name!r} has values other than 0 and 1")
    return mask.bool()


def broadcast(name: str, mask: Tensor, shape: Sequence[int]) -> Tensor:
    """Return a mask in the shape of its parameter, to which it broadcasts as in torch.

    Raises:
        MaskError: it does not.

    >>> import torch
    >>> broadcast("0.weight", torch.tensor([[True], [False]]), (2, 3))
    tensor([[ True,  True,  True],
            [False, False, False]])
    """
    if tuple(mask.shape) == tuple(shape):
        return mask
    last = shape[len(shape) - mask.ndim :]
    if mask.ndim > len(shape) or any(
        m not in (1, n) for m, n in zip(mask.shape, last, strict=True)
    ):
        raise MaskError(
            f"the mask of {name!r} is {tuple(mask.shape)}, not {tuple(shape)}, and does not "
            "broadcast to that"
        )
    return mask.expand(tuple(shape)).contiguous()
