"""Where an atom's positions lie inside a dimension, as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from secateur.scoring.granularity import Granularity

from .axes import Atom, Axis, Concat, Ragged, atoms, find, pieces


def labels(axis: Axis, atom: Atom) -> Tensor:
    """Return for each position of an axis the atom's position that it belongs to, or -1.

    >>> from .axes import product, concat
    >>> rows = Atom(2)
    >>> labels(product(rows, Atom(3)), rows)
    tensor([0, 0, 0, 1, 1, 1])
    >>> labels(concat(Atom(1), rows), rows)
    tensor([-1,  0,  1])
    """
    axis = find(axis)
    if axis is atom:
        return torch.arange(atom.size)
    label = torch.full((axis.size,), -1)
    if isinstance(axis, Concat):
        start = 0
        for piece in pieces(axis):
            if piece is atom or not isinstance(piece, Atom):  # a long row of others is the rule
                label[start : start + piece.size] = labels(piece, atom)
            start += piece.size
    elif not isinstance(axis, Atom):
        label, *others = [labels(p, atom) for p in axis.parts]  # type: ignore[attr-defined]
        for other in others:
            label = torch.maximum(label[:, None], other[None, :]).flatten()
    return label


def band(tensor: Tensor, axis: Axis, atom: Atom) -> tuple[Tensor, Axis]:
    """Return the part of a tensor, as a view, where an axis is the one that the atom lies on.

    That is the whole tensor, unless the axis is ``Ragged``: then it is one band of its rows.
    """
    axis = find(axis)
    if not isinstance(axis, Ragged):
        return tensor, axis
    views = tensor.chunk(len(axis.parts))
    for view, part in zip(views, axis.parts, strict=True):
        if any(found is atom for found in atoms(part)):
            return view, part
    return tensor[:0], axis.parts[0]


def rows(tensor: Tensor, dim: int, axis: Axis, atom: Atom) -> Tensor:
    """Return ``(atom.size, elements)``: all elements of a tensor that go with each position."""
    return Along(dim, axis, atom).rows(tensor)


@dataclass(frozen=True, eq=False)
class Along(Granularity):
    """The positions of a dependency group, as they lie in one dimension of one tensor."""

    dim: int
    axis: Axis
    atom: Atom
    _known: dict[torch.device, tuple[Tensor, Tensor]] = field(
        default_factory=dict, init=False, repr=False
    )

    def units(self, shape: Sequence[int]) -> int:
        return self.atom.size

    def rows(self, tensor: Tensor) -> Tensor:
        part, axis = band(tensor, self.axis, self.atom)
        _, order = self._places(axis, tensor.device)
        moved = part.movedim(self.dim, 0)
        return moved.index_select(0, order).reshape(self.atom.size, -1)

    def expand(self, keep: Tensor, shape: Sequence[int]) -> Tensor:
        mask = torch.ones(tuple(shape), dtype=torch.bool, device=keep.device)
        self.limit(mask, keep)
        return mask

    def limit(self, mask: Tensor, keep: Tensor) -> None:
        """Mask in place what goes with the positions that are not kept."""
        part, axis = band(mask, self.axis, self.atom)
        label, _ = self._places(axis, keep.device)
        stays = (label < 0) | keep[label.clamp(min=0)]
        view = [1] * mask.ndim
        view[self.dim] = -1
        part &= stays.view(view)

    def _places(self, axis: Axis, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the labels of an axis, and what is labelled in the order of its labels.

        They stay on the device: to bring them there again would wait for it.
        """
        if device not in self._known:
            label = labels(axis, self.atom)
            order = torch.argsort(label, stable=True)[int((label < 0).sum()) :]
            self._known[device] = label.to(device), order.to(device)
        return self._known[device]
