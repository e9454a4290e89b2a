"""What a plan leaves of a tensor, and of what goes with it: its gradient, an optimizer's state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.errors import AxisError
from secateur.graph.axes import Atom, Axis, Ragged, find, positions
from secateur.structure import Structure
from secateur.types import Masks, factors_of

from .plan import Plan

BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, eq=False)
class Choice:
    """Which positions of a dimension are kept; ``left`` and ``gone`` together are ``whole`` again.

    Attributes:
        dim: the dimension.
        kept: positions, one tensor for each band of rows, where bands keep others; else one.
        rows: the dimension that falls into bands.

    >>> choice, tensor = Choice(0, (torch.tensor([0, 2]),)), torch.tensor([5.0, 6.0, 7.0])
    >>> left, gone = choice.left(tensor), choice.gone(tensor)
    >>> left.tolist(), gone.tolist(), choice.whole(left, gone, torch.empty(3)).tolist()
    ([5.0, 7.0], [6.0], [5.0, 6.0, 7.0])
    """

    dim: int
    kept: tuple[Tensor, ...]
    rows: int = 0

    def left(self, tensor: Tensor) -> Tensor:
        """Return what is kept of a tensor, as a new one."""
        return self._taken(tensor, self.kept)

    def gone(self, tensor: Tensor) -> Tensor:
        """Return what is not kept of a tensor, as a new one."""
        return self._taken(tensor, self._others(tensor.shape[self.dim]))

    def whole(self, left: Tensor, gone: Tensor, made: Tensor) -> Tensor:
        """Write what is left, and what is gone, to where it was, and return it."""
        pairs = (left, self.kept), (gone, self._others(made.shape[self.dim]))
        for part, places in pairs:
            bands = zip(self._bands(_bits(made)), self._bands(_bits(part)), places, strict=True)
            for band, values, place in bands:
                band.index_copy_(self.dim, place, values)
        return made

    def _taken(self, tensor: Tensor, places: Sequence[Tensor]) -> Tensor:
        bands = zip(self._bands(tensor), places, strict=True)
        found = [band.index_select(self.dim, place) for band, place in bands]
        return found[0] if len(found) == 1 else torch.cat(found, self.rows)

    def _bands(self, tensor: Tensor) -> Sequence[Tensor]:
        return tensor.chunk(len(self.kept), self.rows) if len(self.kept) > 1 else (tensor,)

    def _others(self, size: int) -> list[Tensor]:
        found = []
        for kept in self.kept:
            there = torch.ones(size, dtype=torch.bool, device=kept.device)
            there[kept] = False
            found.append(there.nonzero().flatten())
        return found


class Slices:
    """What a plan leaves of each parameter and buffer of a model.

    >>> from torch import nn
    >>> from secateur import analyze
    >>> structure = analyze(nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 1)), torch.zeros(1, 2))
    >>> slices = Slices(structure, Plan({"0": (0, 3)}))
    >>> slices.of("0.bias", torch.tensor([5.0, 6.0, 7.0, 8.0]))
    tensor([5., 8.])
    """

    def __init__(self, structure: Structure, plan: Plan):
        self.structure = structure
        self._kept = {id(structure[name].atom): list(keep) for name, keep in plan.keep.items()}
        self._known: dict[tuple[int, torch.device], tuple[Axis, Tensor]] = {}

    def names(self) -> Iterator[str]:
        """Yield every parameter and buffer that the recorded forward has read."""
        r, types = self.structure.inferred.recording, self.structure.inferred.types
        for name, value in (*r.parameters.items(), *r.buffers.items()):
            if value in types:
                yield name

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor before the cut."""
        return tuple(typed.axis.size for typed in self.structure.tensor(name).dims)

    def of_mask(self, name: str, masks: Masks) -> list[Tensor]:
        """Return what is left of a parameter's mask, as factors that broadcast to it."""
        shape, ragged = self.shape(name), self._is_ragged(name)
        found = []
        for factor in factors_of(masks, name):
            mask = factor.expand(shape) if ragged else factor
            follows = [dim if size > 1 else None for dim, size in enumerate(mask.shape)]
            found.append(self.of(name, mask, follows))
        return found

    def _is_ragged(self, name: str) -> bool:
        dims = self.structure.tensor(name).dims
        return any(isinstance(find(typed.axis), Ragged) for typed in dims)

    def of(self, name: str, tensor: Tensor, follows: Sequence[int | None] | None = None) -> Tensor:
        """Return what is left of a parameter or buffer, or of a tensor that lies along it.

        Args:
            name: of the parameter or buffer.
            tensor: its data, or something else with some of its dimensions.
            follows: for each dimension of ``tensor`` that of the parameter that it lies along, or
                None where it lies along none; by default it has them all, in order.

        Raises:
            AxisError: each group of a grouped convolution keeps other channels, and the tensor
                has not the dimension that tells them apart.
        """
        left = tensor
        for choice in self.choices(name, tensor, follows):
            left = choice.left(left)
        return left if left is tensor else laid_out_as(left, tensor)

    def choices(
        self, name: str, tensor: Tensor, follows: Sequence[int | None] | None = None
    ) -> list[Choice]:
        """Return what is left along each dimension that loses something, in the order to cut in.

        Args and raises: as ``of``.
        """
        axes = [find(typed.axis) for typed in self.structure.tensor(name).dims]
        dims = range(len(axes)) if follows is None else follows
        along = [(place, axes[dim]) for place, dim in enumerate(dims) if dim is not None]
        rows = next((place for place, dim in enumerate(dims) if dim == 0), None)
        found = []
        # those of which each band of rows keeps others first, while the bands are whole
        for place, axis in sorted(along, key=lambda each: not isinstance(each[1], Ragged)):
            parts = axis.parts if isinstance(axis, Ragged) else (axis,)
            if rows is None and isinstance(axis, Ragged):
                raise AxisError(f"{name!r} keeps other channels in each group: {axis!r}")
            kept = tuple(self._positions(part, tensor.device) for part in parts)
            if len(kept[0]) < tensor.shape[place]:
                found.append(Choice(place, kept, rows or 0))
        return found

    def _positions(self, axis: Axis, device: torch.device) -> Tensor:
        key = (id(axis), device)  # many tensors share an axis
        if key not in self._known:
            kept = positions(axis, self._kept_of)
            made = torch.tensor(kept, dtype=torch.long, device=device)
            self._known[key] = axis, made  # the axis too, so that its id stays its own
        return self._known[key][1]

    def _kept_of(self, atom: Atom) -> Sequence[int]:
        return self._kept.get(id(atom), range(atom.size))


def _bits(tensor: Tensor) -> Tensor:
    """Return a view of a tensor as whole numbers: not everything is done with all types."""
    kind = BITS.get(tensor.itemsize)
    return tensor if kind is None else tensor.view(kind)


def laid_out_as(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a tensor, dense, whose dimensions follow each other in memory as those of another.

    >>> like = torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last)
    >>> laid_out_as(torch.zeros(2, 2, 4, 4), like).stride()
    (32, 1, 8, 2)
    """
    if tensor.layout is not torch.strided or like.layout is not torch.strided:
        return tensor
    strides = like.stride()
    order = sorted(range(tensor.ndim), key=strides.__getitem__, reverse=True)
    back = sorted(range(tensor.ndim), key=order.__getitem__)
    return tensor.permute(order).contiguous().permute(back)
