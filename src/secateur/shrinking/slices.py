"""What a plan leaves of a tensor, and of what goes with it: its gradient, an optimizer's state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from secateur.errors import AxisError
from secateur.graph.axes import Atom, Axis, Ragged, find, positions
from secateur.structure import Structure

from .plan import Plan


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
        axes = [find(typed.axis) for typed in self.structure.tensor(name).dims]
        places = list(enumerate(range(len(axes)) if follows is None else follows))
        left = tensor
        for place, dim in places:
            axis = None if dim is None else axes[dim]
            if isinstance(axis, Ragged):  # first, while the bands of rows are whole
                rows = next((p for p, d in places if d == 0), None)
                if rows is None:
                    raise AxisError(f"{name!r} keeps other channels in each group: {axis!r}")
                bands = zip(left.chunk(len(axis.parts), rows), axis.parts, strict=True)
                left = torch.cat([self._left(band, place, part) for band, part in bands], rows)
        for place, dim in places:
            if dim is not None and not isinstance(axes[dim], Ragged):
                left = self._left(left, place, axes[dim])
        return left if left is tensor else laid_out_as(left, tensor)

    def _left(self, tensor: Tensor, place: int, axis: Axis) -> Tensor:
        key = (id(axis), tensor.device)  # many tensors share an axis
        if key not in self._known:
            kept = positions(axis, self._kept_of)
            made = torch.tensor(kept, dtype=torch.long, device=tensor.device)
            self._known[key] = axis, made  # the axis too, so that its id stays its own
        index = self._known[key][1]
        return tensor if len(index) == tensor.shape[place] else tensor.index_select(place, index)

    def _kept_of(self, atom: Atom) -> Sequence[int]:
        return self._kept.get(id(atom), range(atom.size))


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
