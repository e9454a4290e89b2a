"""The class of a module while it has masks: what its parameters read as, and how they are saved.

It is made from the module's own class, of the same name.  In it ``weight`` reads as ``weight *
mask``; the parameter itself stays where it is, dense.
"""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn

from secateur.errors import MaskError
from secateur.runtime.distributed import sharded, whole


def attribute_of(tensor: str) -> str:
    """Return the name under which a module holds the mask of a parameter of its."""
    return f"{tensor}_mask"


def mask_of(module: nn.Module, tensor: str) -> Tensor | None:
    """Return the mask that a module's parameter is multiplied by, or None.

    It is of the parameter's dtype, and of its shape or one that broadcasts to it.
    """
    if tensor not in getattr(type(module), "_masked_names", ()):
        return None
    return cast("Tensor | None", getattr(module, attribute_of(tensor)))


def masked(parameter: Tensor, mask: Tensor) -> Tensor:
    """Return a parameter with zeros where its mask is 0; DTensors stay sharded as they are."""
    if sharded(parameter) and not sharded(mask):
        from torch.distributed.tensor import DTensor, Replicate

        everywhere = [Replicate()] * parameter.device_mesh.ndim
        mask = DTensor.from_local(mask.detach(), parameter.device_mesh, everywhere, run_check=False)
    return parameter * mask


@torch.no_grad()
def fill(parameter: Tensor, where: Tensor, values: Tensor) -> None:
    """Write values, in order, to the places of a parameter where ``where`` is True.

    Of a DTensor all ranks must call it, and each keeps its shard.
    """
    full = whole(parameter)
    full[where.to(full.device)] = values.to(full)
    if sharded(parameter):
        from torch.distributed.tensor import distribute_tensor

        mesh, placements = parameter.device_mesh, parameter.placements
        parameter.copy_(distribute_tensor(full, mesh, placements, src_data_rank=None))


@cache
def _read_of(tensor: str, kind: str) -> Any:
    """Return the class of what a parameter of a kind of module reads as."""
    return type("_Read", (_Read,), {"_of": f"{tensor!r} of {kind}"})


def _reader(tensor: str, kind: str) -> property:
    attribute = attribute_of(tensor)
    made = _read_of(tensor, kind)

    def read(self: nn.Module) -> Tensor | None:
        mask = getattr(self, attribute)
        if tensor not in self._parameters:
            if mask is not None:  # taken out of the dict itself, past all that is below
                raise _replaced(self, tensor)
            return cast("Tensor | None", nn.Module.__getattr__(self, tensor))  # not made yet
        parameter = self._parameters[tensor]
        if mask is None or parameter is None or sharded(parameter):
            return parameter  # FSDP2 wants its shards as they are; in the forward they are whole
        value = parameter * mask
        if type(value) is Tensor and not torch.compiler.is_compiling():
            value.__class__ = made
        return value

    return property(read)


def _replaced(module: nn.Module, tensor: str) -> MaskError:
    return MaskError(
        f"{tensor!r} of {type(module).__name__} is masked, and what takes the parameter away, as "
        "torch.nn.utils.prune and parametrizations do, loses its mask: finish() the pruner first, "
        "or do that before the masks are put on"
    )


class _Read(Tensor):
    """What a masked parameter reads as: a product, in which whatever is written would be lost.

    What is computed with it is a plain tensor, as with a ``Parameter``.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    _of = ""  # the parameter, in words

    def __deepcopy__(self, memo: Any) -> Tensor:
        plain = self.as_subclass(Tensor)
        memo.setdefault(id(memo), []).append(plain)  # whose id stands for it from now on
        return cast(Tensor, plain.__deepcopy__(memo))

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.as_subclass(Tensor).__reduce_ex__(protocol)

    def detach(self) -> Tensor:
        return super().detach().as_subclass(type(self))

    @property
    def data(self) -> Tensor:
        return super().data.as_subclass(type(self))

    @data.setter
    def data(self, value: Tensor) -> None:
        raise self.lost("data =")

    def lost(self, how: str) -> MaskError:
        return MaskError(
            f"{self._of} is masked, and what {how!r} writes to what it reads as is lost: write to "
            "the parameter of named_parameters(), or finish() the pruner first; secateur.merge() "
            "adds what PEFT's adapters learned"
        )


def _refusing(name: str) -> Any:
    def refuse(self: _Read, *args: Any, **kwargs: Any) -> Tensor:
        raise self.lost(name)

    return refuse


UNWRITTEN = {"requires_grad_", "share_memory_"}
"""Methods that end like those which write to a tensor, and do not."""
for _name in dir(Tensor):
    _ends = _name.endswith("_") and not _name.startswith("_") and _name not in UNWRITTEN
    _operator = _name.startswith("__i") and hasattr(Tensor, f"__{_name[3:]}")
    if _ends or _operator or _name == "__setitem__":
        setattr(_Read, _name, _refusing(_name))


class _Masked(nn.Module):
    """What a class with masks does otherwise than the class that it is made from."""

    _masked_names: tuple[str, ...] = ()

    def __delattr__(self, name: str) -> None:
        if mask_of(self, name) is not None:
            raise _replaced(self, name)
        super().__delattr__(name)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        moved = name.removesuffix("_orig")  # torch.nn.utils.prune moves what it reads, masked
        if moved != name and mask_of(self, moved) is not None:
            raise _replaced(self, moved)
        super().register_parameter(name, param)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in self._masked_names:
            mask, key = mask_of(self, name), prefix + name
            if mask is not None and key in destination:
                value = masked(destination[key], mask if keep_vars else mask.detach())
                if type(value) is Tensor:  # a copy, unlike all else in there
                    value.__class__ = _read_of(name, type(self).__name__)
                destination[key] = value

    def _load_from_state_dict(self, state: Any, prefix: str, *rest: Any) -> None:
        below = {}
        for name in self._masked_names:
            mask, given = mask_of(self, name), state.get(prefix + name)
            parameter = self._parameters[name]
            if mask is None or given is None or parameter is None or sharded(parameter):
                continue
            gone = (mask == 0).expand(parameter.shape)
            if given.shape == gone.shape and not bool(given[gone.to(given.device)].any()):
                below[name] = gone, parameter.detach()[gone]
        super()._load_from_state_dict(state, prefix, *rest)
        for name, (gone, values) in below.items():  # a masked state says nothing of these
            fill(cast(Tensor, self._parameters[name]), gone, values)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        for name in self._masked_names:
            mask = mask_of(self, name)
            if mask is not None:
                moved = fn(mask.detach()).requires_grad_(mask.requires_grad)
                setattr(self, attribute_of(name), moved)
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        with torch.no_grad():  # what it reads of itself, as an RNN its weights, has no graph
            reduced: tuple[Any, ...] = super().__reduce_ex__(protocol)  # type: ignore[assignment]
        made = next(kind for kind in type(self).__mro__ if _Masked in kind.__bases__)
        return (_rebuilt, (class_below(made), self._masked_names), *reduced[2:])


def masked_class(kind: Any, names: tuple[str, ...]) -> Any:
    """Return the subclass of a module class whose parameters of these names read as masked.

    There is one, for as long as somebody uses it; the class itself knows it, and keeps none alive.
    """
    for known in type.__subclasses__(kind):
        if known.__bases__ == (_Masked, kind) and vars(known)["_masked_names"] == names:
            return known
    return type(
        kind.__name__,
        (_Masked, kind),
        {
            "__module__": kind.__module__,
            "__qualname__": kind.__qualname__,
            "__doc__": kind.__doc__,
            "_masked_names": names,
            **{attribute_of(name): None for name in names},
            **{name: _reader(name, kind.__name__) for name in names},
        },
    )


def class_below(kind: Any) -> Any:
    """Return the class that a class with masks was made from; any other is itself.

    >>> class_below(masked_class(nn.Linear, ("weight",))) is class_below(nn.Linear) is nn.Linear
    True
    """
    return kind.__bases__[1] if kind.__bases__[:1] == (_Masked,) else kind


def _rebuilt(kind: Any, names: tuple[str, ...]) -> Any:
    return object.__new__(masked_class(kind, names))
