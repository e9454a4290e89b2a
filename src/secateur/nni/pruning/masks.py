"""Masks in NNI's format and by full name, checked and multiplied."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

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
    """Return the mask of a target as a bool tensor.

    Raises:
        MaskError: it is no tensor, has another shape, or values other than 0 and 1.
    """
    if not isinstance(mask, Tensor):
        raise MaskError(f"the mask of {target.name!r} is a {type(mask).__name__}, not a tensor")
    if target.shape is not None and tuple(mask.shape) != tuple(target.shape):
        raise MaskError(f"the mask of {target.name!r} is {tuple(mask.shape)}, not {target.shape}")
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise MaskError(f"the mask of {target.name!r} has values other than 0 and 1")
    return mask.bool()
