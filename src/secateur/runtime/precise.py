"""Compute more precisely than a model's code says: in float64 on the CPU, or in float32 at least.

``Precisely`` raises every number that an operation reads, and every dtype that code asks for
(``x.float()``, autocast, ``torch.zeros(..., dtype=torch.float16)``), so that a model which casts to
a coarse type in its middle is computed finely all the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from .parts import in_parts
from .undo import Undo

COARSE: dict[torch.dtype, tuple[torch.dtype, ...]] = {
    torch.float64: (torch.float32, torch.float16, torch.bfloat16),
    torch.float32: (torch.float16, torch.bfloat16),
}
"""Real types that are raised, by the type that they are raised to."""
LIFT = torch.ops.aten.lift_fresh.default
"""What ``torch.tensor`` ends with, by its schema a view."""
EMBEDDING = torch.ops.aten.embedding.default
COMPLEX = {torch.float64: torch.complex128, torch.float32: torch.complex64}
NOISE = 4.0
"""Roundings of one operation, in units of its type's last place, that ``noise`` stands for."""


class Precisely(TorchDispatchMode):
    """Operations compute in ``dtype`` at least, if not None, and on ``device``, if not None.

    Tensors that are made without a type have it too, and the process's default stays as it is.

    >>> with Precisely(torch.float64):
    ...     (torch.ones(2, dtype=torch.float16) / 3).dtype, torch.zeros(2).dtype
    (torch.float64, torch.float64)

    With a ``noise`` generator the result of each operation is off by a few units in the last place,
    as another order of summation would make it: how far outputs then move is what can be resolved.

    ``masks`` are of parameters, by their ids, True is kept, each as factors that broadcast to it:
    what an operation reads of one, or of a view, is zero where it is masked, and no copy of it
    outlives the operations that read it.
    """

    def __init__(
        self,
        dtype: torch.dtype | None,
        device: torch.device | None = None,
        noise: torch.Generator | None = None,
        masks: Mapping[int, Sequence[Tensor]] | None = None,
    ):
        super().__init__()
        self.dtype = dtype
        self.device = device
        self.noise = noise
        self.masks = masks or {}
        self._viewed: dict[Place, Sequence[Tensor]] = {}

    def raised(self, dtype: torch.dtype) -> torch.dtype:
        """Return the type that stands for another."""
        if self.dtype is None:
            return dtype
        if dtype in COARSE[self.dtype]:
            return self.dtype
        if dtype.is_complex and dtype.itemsize < COMPLEX[self.dtype].itemsize:
            return COMPLEX[self.dtype]
        return dtype

    def tensor(self, x: Any) -> Any:
        """Return a tensor in the type and on the device that stand for its own."""
        if not isinstance(x, Tensor):
            return x
        return x.to(device=self.device or x.device, dtype=self.raised(x.dtype))

    def _masks_of(self, x: Tensor) -> Sequence[Tensor]:
        """Return the masks of a parameter, or of a view of one."""
        own = self.masks.get(id(x))
        if own is not None or not self._viewed or isinstance(x, Parameter):
            return own or ()
        return self._viewed.get(_place(x), ())

    def _view(self, func: Any, args: tuple[Any, ...], kwargs: Any = None) -> Any:
        """Look at a parameter: its masks are looked at likewise, and nothing is copied."""
        x, *how = args
        masks = self._masks_of(x)
        out = func(x, *how, **(kwargs or {}))
        if not masks:
            return out
        try:
            of_masks = [func(m.expand(x.shape), *how, **(kwargs or {})) for m in masks]
        except RuntimeError:  # a mask of a row cannot be looked at in each shape
            return func(self._copied(x, masks), *how, **(kwargs or {}))
        if isinstance(out, Tensor):
            self._viewed[_place(out)] = of_masks
        else:
            for each, *own in zip(out, *of_masks, strict=True):
                self._viewed[_place(each)] = own
        return out

    def _kept(self, x: Tensor) -> Tensor:
        """Return a parameter as its mask leaves it, in the type and on the device of the mode."""
        masks = self._masks_of(x)
        return self._copied(x, masks) if masks else x

    def _copied(self, x: Tensor, masks: Sequence[Tensor]) -> Tensor:
        own = self.tensor(x.detach())
        return without(own.clone() if own.dtype is x.dtype else own, masks)

    def _costly(self, x: Tensor) -> int:
        """Return the bytes of the copy that is made of a tensor when it is read, or 0."""
        dtype = self.raised(x.dtype)
        return x.numel() * dtype.itemsize if dtype is not x.dtype or self._masks_of(x) else 0

    def _asked(self, x: Any) -> Any:
        """Return what stands for a type or device that the code asks for."""
        if isinstance(x, Tensor):
            return self._kept(x)
        if isinstance(x, torch.dtype):
            return self.raised(x)
        if isinstance(x, torch.device):
            return self.device or x
        return x

    def _given(self, x: Any) -> Any:
        """Return what stands for an argument: one of a list too."""
        if isinstance(x, Tensor):
            x = self._kept(x)
            return x if x.dtype is self.dtype and not self.device else self.tensor(x)
        kind = type(x)
        return kind(map(self._given, x)) if kind in (list, tuple) else self._asked(x)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten.view.dtype:  # reads the bits, which are those of another type
            return func(*args, **kwargs)
        written = func._schema.is_mutable
        if written and args and isinstance(args[0], Tensor) and self._masks_of(args[0]):
            raise RuntimeError(f"{func} writes to a parameter, which is masked as it is read")
        if not written and func.is_view and func is not LIFT:
            return self._view(func, args, kwargs)
        out = None if written else self._product(func, args, kwargs)
        if out is None:
            stand_in = self._asked if written else self._given
            args = tuple(map(stand_in, args))
            kwargs = {name: stand_in(value) for name, value in kwargs.items()}
            out = func(*(_alike(args) if written else args), **kwargs)
        if written:
            return out
        if self.dtype is not None:  # what names no type, or divides integers, has the default one
            out = tree_map(self._made, out)
        return out if self.noise is None else tree_map(self._off, out)

    def _product(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func is not EMBEDDING:
            return in_parts(func, args, kwargs, self._costly, self._given, self._view)
        weight, rows = args[:2]
        masks = self._masks_of(weight)
        found = self.tensor(func(*args, **kwargs))  # a new tensor, of some rows
        return without(found, [mask.expand(weight.shape)[rows] for mask in masks])

    def _made(self, x: Any) -> Any:
        """Return what an operation made, in the type that stands for its own."""
        coarse = isinstance(x, Tensor) and self.raised(x.dtype) is not x.dtype
        return self.tensor(x) if coarse else x

    def _off(self, x: Any) -> Any:
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.is_meta:
            return x
        assert self.noise is not None
        sign = torch.randint(-1, 2, x.shape, generator=self.noise).to(x)
        return x * (1 + sign * (NOISE * torch.finfo(x.dtype).eps))


Place = tuple[int, int, tuple[int, ...], tuple[int, ...]]


def _place(x: Tensor) -> Place:
    """Return which memory a tensor looks at, and how."""
    return x.untyped_storage().data_ptr(), int(x.storage_offset()), tuple(x.shape), x.stride()


def _alike(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Let what is written into a tensor have the tensor's own type: it stays where it is."""
    first = args[0] if args else None
    if not isinstance(first, Tensor) or not first.is_floating_point():
        return args

    def cast(x: Any) -> Any:
        real = isinstance(x, Tensor) and x.is_floating_point()
        return x.to(device=first.device, dtype=first.dtype) if real else x

    return (first, *(tree_map(cast, x) for x in args[1:]))


@contextmanager
def held_precisely(tensors: Iterable[Tensor], mode: Precisely) -> Iterator[None]:
    """Let parameters and buffers hold their values in a mode's type and device, masked.

    They stay the same objects, and hold their own again afterwards.
    """
    with Undo() as undo:
        for tensor in {id(t): t for t in tensors}.values():
            undo(partial(setattr, tensor, "data", tensor.data))
            data = mode.tensor(tensor.data)
            if masks := mode.masks.get(id(tensor), ()):
                data = without(data.clone() if data.dtype is tensor.dtype else data, masks)
            tensor.data = data
        yield


def without(tensor: Tensor, masks: Iterable[Tensor]) -> Tensor:
    """Fill a tensor with zeros where one of several masks is False, in place, and return it.

    What is NaN or infinite there goes too.

    >>> without(torch.ones(2, 2), [torch.tensor([[True], [False]])])
    tensor([[1., 1.],
            [0., 0.]])
    """
    for mask in masks:
        tensor.masked_fill_(~mask.to(tensor.device), 0)
    return tensor
