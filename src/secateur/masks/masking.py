"""Masks on a live model: put on, changed in place, baked in.

While masks are on, a module has a class of its own, made from its class, in which ``weight`` reads
as ``weight * mask``.  Nothing else changes: the parameter stays where it is under its plain name,
so that optimizers, their saved state, DDP, FSDP2 and ``load_state_dict`` see what they always saw,
and the dense weight survives below its mask.  ``state_dict`` writes what the forward computes with:
masked values, in copies of the parameters.  ``load_state_dict`` reads plain states; one with zeros
wherever the mask has them was written so, and leaves what is below the mask as it is.

``torch.nn.utils.parametrize`` does the same by moving the parameter into a submodule, which renames
keys, reorders ``parameters()`` and costs more at each access; hence not here.  A mask is a plain
attribute and no buffer: DDP would send buffers around in every forward, and averaged copies of a
model (``AveragedModel``) pair buffers by position, also with those of a model that has more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from secateur.errors import ConfigError, MaskError, did_you_mean
from secateur.runtime.distributed import restoring, sharded, whole
from secateur.runtime.undo import Undo, undoable
from secateur.runtime.values import numbers

from .classes import attribute_of, class_below, fill, mask_of, masked, masked_class

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

SMALLEST_ROW = 32
"""Elements that share a mask value; shorter runs are faster with one value each (measured)."""


def put_on(model: nn.Module, masks: Mapping[str, Tensor], *, differentiable: bool = False) -> None:
    """Mask parameters by name; one that is masked already gets the new mask in place.

    A parameter that is used under several names has one mask: the product of those given.

    Args:
        model: any module; before or after ``fully_shard``, compiled later or not.
        masks: parameter name → tensor of the parameter's shape, 0 or False where it is masked.
        differentiable: each backward adds to ``mask.grad`` (see ``mask_of``) the gradient of the
            loss for the mask, which is that of the masked weight times the weight, in masked places
            too: the straight-through gradient of learned scores.

    Raises:
        MaskError: no such parameter, one with another parametrization, or a mask of another shape;
            then nothing is changed.

    >>> net = nn.Sequential(nn.Linear(2, 1, bias=False))
    >>> put_on(net, {"0.weight": torch.tensor([[True, False]])})
    >>> int((net[0].weight == 0).sum()), is_masked(net), list(net.state_dict())
    (1, True, ['0.weight'])
    >>> take_off(net)
    >>> int((net[0].weight == 0).sum()), is_masked(net)
    (1, False)
    """
    found = {name: _find(model, name) for name in masks}
    combined: dict[int, Tensor] = {}
    for name, (module, tensor) in found.items():
        parameter = cast(Tensor, module._parameters[tensor])
        mask = masks[name].detach().bool()
        if mask.shape != parameter.shape:
            expected = tuple(parameter.shape)
            raise MaskError(f"the mask of {name!r} is {tuple(mask.shape)}, not {expected}")
        other = combined.get(id(parameter))
        combined[id(parameter)] = mask if other is None else mask & other.to(mask.device)
    small = combined if differentiable else _compact(combined)  # gradients are wanted one by one
    for module, tensor, place in _places(model):
        if id(place) in combined:
            _set(module, tensor, place, small[id(place)], differentiable)


def is_masked(model: nn.Module) -> bool:
    """Tell whether any mask is on."""
    return any(mask_of(module, tensor) is not None for module, tensor, _ in _places(model))


def check_unmasked(model: nn.Module) -> None:
    """Raise a ConfigError where masks are on, of ours or of ``torch.nn.utils.prune``.

    >>> check_unmasked(prune.identity(nn.Linear(2, 1), "weight"))
    Traceback (most recent call last):
        ...
    secateur.errors.ConfigError: 'weight' has a mask of torch.nn.utils.prune, below which ...
    """
    if is_masked(model):
        raise ConfigError("the model has masks on already: finish() the pruner they belong to")
    for path, module in model.named_modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, prune.BasePruningMethod):
                name = f"{path}.{hook._tensor_name}".removeprefix(".")
                raise ConfigError(
                    f"{name!r} has a mask of torch.nn.utils.prune, below which weights would be "
                    "ranked as if it was not there: prune.remove(module, name) first, which leaves "
                    "the zeros"
                )


def held(model: nn.Module) -> list[Tensor]:
    """Return the tensors that parameters are multiplied by as they are read."""
    masks = (mask_of(module, tensor) for module, tensor, _ in _places(model))
    return [mask for mask in masks if mask is not None]


def masks_on(model: nn.Module) -> dict[str, Tensor]:
    """Return the masks that are on, by parameter name; True is kept."""
    found = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for tensor, parameter in module._parameters.items():
            mask = mask_of(module, tensor)
            if mask is not None and parameter is not None:
                full = mask.detach().bool().expand(parameter.shape)
                found[f"{path}.{tensor}" if path else tensor] = full.clone()
    return found


def take_gradients(model: nn.Module) -> dict[str, Tensor]:
    """Return what backwards have added to differentiable masks, and clear it.

    By parameter name; of a parameter that is used in several places, the sum over them.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[str, Tensor] = {}
    for module, tensor, parameter in _places(model):
        mask = mask_of(module, tensor)
        if mask is not None and mask.grad is not None:
            name = names[id(parameter)]
            found[name] = found[name] + mask.grad if name in found else mask.grad
            mask.grad = None
    return found


def dense(module: nn.Module, tensor: str) -> Tensor:
    """Return a parameter as it is below its mask, if one is on."""
    parameter = module._parameters.get(tensor)
    return (getattr(module, tensor) if parameter is None else parameter).detach()


def take_off(model: nn.Module, *, bake: bool = True) -> None:
    """Take all masks off; with ``bake`` the masked weights stay zero, else they are as before."""
    for module, tensor, parameter in list(_places(model)):
        mask = mask_of(module, tensor)
        if mask is None:
            continue
        if bake:
            with torch.no_grad():
                parameter.copy_(masked(parameter, mask))
        delattr(module, attribute_of(tensor))
    for module in model.modules():
        # FSDP2 puts a class above ours, which then stays: it does nothing where no mask is
        if "_masked_names" in vars(type(module)):
            module.__class__ = class_below(type(module))


@contextmanager
def zeroed(model: nn.Module, masks: Mapping[str, Tensor]) -> Iterator[None]:
    """Let weights be zero where masks say so, without masks on; afterwards they are as before."""
    parameters = dict(model.named_parameters())
    below = {name: whole(parameters[name].detach())[~mask] for name, mask in masks.items()}
    with Undo() as undo:
        for name, mask in masks.items():
            if sharded(parameters[name]):  # a rank that fails puts its own shard back, alone
                undo(restoring(parameters[name]))
            else:
                undo(partial(fill, parameters[name], ~mask, below[name]))
            fill(parameters[name], ~mask, torch.zeros_like(below[name]))
        yield


def _places(model: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Yield every place of every parameter; one that is tied has several."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                yield module, name, parameter


def _find(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, tensor = name.rpartition(".")
    try:
        module = model.get_submodule(path)
    except AttributeError:
        module = None
    if module is not None and parametrize.is_parametrized(module, tensor):
        raise MaskError(
            f"{name!r} has a parametrization already (as weight_norm makes one), which could not "
            "keep the zeros of a mask; torch.nn.utils.parametrize.remove_parametrizations first"
        )
    parameter = None if module is None else module._parameters.get(tensor)
    if module is None or parameter is None:
        known = [n for n, _ in model.named_parameters(remove_duplicate=False)]
        raise MaskError(f"there is no parameter {name!r}.{did_you_mean(name, known)}")
    if sharded(parameter) and not _gathered_in_forward(model, parameter):
        raise MaskError(
            f"{name!r} is a DTensor that is still one in the forward, as tensor parallelism makes "
            "them: only what fully_shard has sharded, over one mesh dimension, can be masked"
        )
    attribute = attribute_of(tensor)
    if mask_of(module, tensor) is None and getattr(module, attribute, None) is not None:
        raise MaskError(f"{name!r} cannot be masked: its module has a {attribute!r} already")
    return module, tensor


def _gathered_in_forward(model: nn.Module, parameter: DTensor) -> bool:
    """Tell whether ``fully_shard`` makes a sharded parameter whole before it is read."""
    from torch.distributed.fsdp import FSDPModule

    under = any(isinstance(module, FSDPModule) for module in model.modules())
    return under and parameter.device_mesh.ndim == 1


def _set(
    module: nn.Module, tensor: str, parameter: Tensor, mask: Tensor, differentiable: bool
) -> None:
    local = parameter.to_local() if sharded(parameter) else parameter
    small = mask.to(device=local.device, dtype=local.dtype, copy=True)
    own = mask_of(module, tensor)
    undoable(partial(_put_back, module, tensor, type(module), own, _copy(own)))
    with torch.no_grad():
        if own is not None and own.shape in (small.shape, parameter.shape):
            own.copy_(small)  # the same tensor, so that compiled code need not be compiled again
        else:
            if own is None:
                kind = type(module)
                names = vars(kind).get("_masked_names", ())
                made = masked_class(class_below(kind), tuple(sorted({*names, tensor})))
                module.__class__ = made
            setattr(module, attribute_of(tensor), small)
    cast(Tensor, mask_of(module, tensor)).requires_grad_(differentiable)


def _copy(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask.detach().clone()


def _put_back(
    module: nn.Module, tensor: str, kind: type, mask: Tensor | None, values: Tensor | None
) -> None:
    """Let a parameter have the mask that it had, or none."""
    if mask is None or values is None:
        vars(module).pop(attribute_of(tensor), None)
    else:
        mask.detach().copy_(values)
        setattr(module, attribute_of(tensor), mask)
    module.__class__ = kind


def _compact(masks: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """Return masks without the dimensions along which they do not vary, where that is faster."""
    small = dict(masks)
    for dim in range(max((mask.ndim for mask in masks.values()), default=0)):
        wide = [key for key, mask in small.items() if mask.ndim > dim and mask.shape[dim] > 1]
        same = numbers(_repeats(small[key], dim) for key in wide)
        small |= {k: small[k].narrow(dim, 0, 1) for k, yes in zip(wide, same, strict=True) if yes}
    for key, mask in masks.items():
        inner = 1  # elements of the mask's innermost run of equal values
        for dim in reversed(range(mask.ndim)):
            if small[key].shape[dim] != 1 or mask.shape[dim] == 1:
                break
            inner *= mask.shape[dim]
        if small[key].numel() > 1 and 1 < inner < SMALLEST_ROW:
            small[key] = mask
    return {key: mask.contiguous() for key, mask in small.items()}


def _repeats(mask: Tensor, dim: int) -> Tensor:
    """Tell whether a mask does not vary along a dimension, without waiting for its device."""
    first = mask.narrow(dim, 0, 1)
    if mask.device.type == "cpu":  # where the first difference ends the look
        return torch.tensor(torch.equal(first.expand_as(mask), mask))
    return (first == mask).all()
