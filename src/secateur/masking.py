"""Masks on a live model: put on, changed in place, baked in.

A mask is a ``torch.nn.utils.parametrize`` parametrization with one buffer, so the parameter object,
the module's path and ``isinstance`` stay as they are, and the dense weight survives below the mask.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .errors import MaskError, did_you_mean


class MaskedBy(nn.Module):
    """Multiplies a parameter by a mask of 0 and 1."""

    mask: Tensor

    def __init__(self, mask: Tensor, order: tuple[str, ...] = ()):
        super().__init__()
        self.register_buffer("mask", mask, persistent=False)
        self.order = order  # of the module's parameters: optimizers save their state by position

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask.to(weight.dtype)


def _find(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, tensor = name.rpartition(".")
    try:
        module = model.get_submodule(path)
    except AttributeError:
        module = None
    if module is None or not isinstance(getattr(module, tensor, None), Tensor):
        stored = (n for n, _ in model.named_parameters(remove_duplicate=False))
        known = [n.replace("parametrizations.", "").removesuffix(".original") for n in stored]
        raise MaskError(f"there is no parameter {name!r}.{did_you_mean(name, known)}")
    if parametrize.is_parametrized(module, tensor) and _own(module, tensor) is None:
        raise MaskError(
            f"{name!r} has a parametrization already (as weight_norm makes one), which could not "
            "keep the zeros of a mask; torch.nn.utils.parametrize.remove_parametrizations first"
        )
    return module, tensor


def _own(module: nn.Module, tensor: str) -> MaskedBy | None:
    if not parametrize.is_parametrized(module, tensor):
        return None
    layers = cast(nn.ModuleList, cast(nn.ModuleDict, module.parametrizations)[tensor])
    return next((layer for layer in layers if isinstance(layer, MaskedBy)), None)


def _give_own_class(module: nn.Module) -> None:
    """Separate a masked module from its copies: torch keeps what is parametrized in their class."""
    if parametrize.is_parametrized(module):
        kind = type(module)
        module.__class__ = type(kind.__name__, kind.__bases__, dict(vars(kind)))


def put_on(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Mask parameters by name; one that is masked already gets the new mask in place.

    Raises:
        MaskError: no such parameter, one with another parametrization, or a mask of another shape;
            then nothing is changed.

    >>> net = nn.Sequential(nn.Linear(2, 1, bias=False))
    >>> put_on(net, {"0.weight": torch.tensor([[True, False]])})
    >>> int((net[0].weight == 0).sum()), is_masked(net)
    (1, True)
    >>> take_off(net)
    >>> int((net[0].weight == 0).sum()), is_masked(net)
    (1, False)
    """
    found = {name: _find(model, name) for name in masks}
    for name, (module, tensor) in found.items():
        shape = tuple(getattr(module, tensor).shape)
        if tuple(masks[name].shape) != shape:
            raise MaskError(f"the mask of {name!r} is {tuple(masks[name].shape)}, not {shape}")
    for name, (module, tensor) in found.items():
        device = getattr(module, tensor).device
        mask = masks[name].to(device=device, dtype=torch.bool)
        own = _own(module, tensor)
        if own is not None:
            own.mask.copy_(mask)
        else:
            _give_own_class(module)
            layer = MaskedBy(mask.clone(), tuple(module._parameters))
            parametrize.register_parametrization(module, tensor, layer)


def is_masked(model: nn.Module) -> bool:
    """Tell whether any mask is on."""
    return any(isinstance(module, MaskedBy) for module in model.modules())


def masks_on(model: nn.Module) -> dict[str, Tensor]:
    """Return the masks that are on, by parameter name; True is kept."""
    found = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for tensor in getattr(module, "parametrizations", {}):
            own = _own(module, tensor)
            if own is not None:
                found[f"{path}.{tensor}" if path else tensor] = own.mask.clone()
    return found


def dense(module: nn.Module, tensor: str) -> Tensor:
    """Return a parameter as it is below its mask, if one is on."""
    if _own(module, tensor) is None:
        return cast(Tensor, getattr(module, tensor)).detach()
    layers = cast(nn.ModuleDict, module.parametrizations)[tensor]
    return cast(Tensor, layers.original).detach()


def take_off(model: nn.Module, *, bake: bool = True) -> None:
    """Take all masks off; with ``bake`` the masked weights stay zero, else they are as before."""
    for module in list(model.modules()):
        order: tuple[str, ...] = ()
        for tensor in list(getattr(module, "parametrizations", {})):
            own = _own(module, tensor)
            if own is not None:
                order = order or own.order
                _give_own_class(module)
                parametrize.remove_parametrizations(module, tensor, leave_parametrized=bake)
        for name in order:
            module._parameters[name] = module._parameters.pop(name)
