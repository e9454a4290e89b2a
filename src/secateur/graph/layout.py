"""Where an atom's positions lie inside a dimension, as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from secateur.scoring.granularity import Granularity

from .axes import Atom, Axis, Concat, Ragged, atoms, find, parts_of, pieces


def labels(axis: Axis, atom: Atom) -> Tensor:
    """Return ``(times, axis.size)``: the atom's positions that each position of an axis belongs to.

    -1 stands for none.  A grid that mentions an atom twice (all pairs of channels) has positions
    that belong to two; one that belongs to the same twice names it once.

    >>> from .axes import product, concat
    >>> rows = Atom(2)
    >>> labels(product(rows, Atom(3)), rows)
    tensor([[0, 0, 0, 1, 1, 1]])
    >>> labels(concat(Atom(1), rows), rows)
    tensor([[-1,  0,  1]])
    >>> labels(product(rows, rows), rows)
    tensor([[ 0,  0,  1,  1],
            [-1,  1,  0, -1]])
    """
    axis = find(axis)
    if axis is atom:
        return torch.arange(atom.size)[None]
    if isinstance(axis, Concat):
        return _end_to_end(axis, atom)
    found: list[Tensor] = []
    before, size = 1, axis.size
    for part in parts_of(axis):
        after = size // (before * part.size) if size else 0
        for row in labels(part, atom):
            if bool((row >= 0).any()):
                spread = row[None, :, None].expand(before, -1, after).flatten()
                for other in found:
                    spread = spread.masked_fill(spread == other, -1)
                found.append(spread)
        before *= part.size
    return torch.stack(found) if found else torch.full((1, size), -1)


def _end_to_end(axis: Concat, atom: Atom) -> Tensor:
    label = torch.full((1, axis.size), -1)
    start = 0
    for piece in pieces(axis):
        if piece is atom or not isinstance(piece, Atom):  # a long row of others is the rule
            found = labels(piece, atom)
            if len(found) > len(label):
                more = torch.full((len(found) - len(label), axis.size), -1)
                label = torch.cat([label, more])
            label[: len(found), start : start + piece.size] = found
        start += piece.size
    return label


def among(label: Tensor, chosen: Tensor) -> Tensor:
    """Return for each position of an axis whether it belongs to one that is chosen, as bool.

    Args:
        label: of ``labels``.
        chosen: bool tensor, one for each position of the atom.
    """
    return ((label >= 0) & chosen[label.clamp(min=0)]).any(0)


def bands(tensor: Tensor, axis: Axis, atom: Atom) -> list[tuple[Tensor, Axis]]:
    """Return the parts of a tensor, as views, where an axis is one that the atom lies on.

    That is the whole tensor, unless the axis is ``Ragged``: then it is bands of its rows, one or,
    when what they read was shuffled before, several.
    """
    axis = find(axis)
    if not isinstance(axis, Ragged):
        return [(tensor, axis)]
    views = zip(tensor.chunk(len(axis.parts)), axis.parts, strict=True)
    return [(v, part) for v, part in views if any(found is atom for found in atoms(part))]


def rows(tensor: Tensor, dim: int, axis: Axis, atom: Atom) -> Tensor:
    """Return ``(atom.size, elements)``: all elements of a tensor that go with each position."""
    return Along(dim, axis, atom).rows(tensor)


@dataclass(frozen=True, eq=False)
class Along(Granularity):
    """The positions of a dependency group, as they lie in one dimension of one tensor."""

    dim: int
    axis: Axis
    atom: Atom
    _known: dict[tuple[Axis, torch.device], tuple[Tensor, Tensor | None]] = field(
        default_factory=dict, init=False, repr=False
    )

    def units(self, shape: Sequence[int]) -> int:
        return self.atom.size

    def rows(self, tensor: Tensor) -> Tensor:
        found = []
        for part, axis in bands(tensor, self.axis, self.atom):
            _, order = self._places(axis, tensor.device)
            moved = part.movedim(self.dim, 0)
            moved = moved.contiguous() if order is None else moved.index_select(0, order)
            found.append(moved.reshape(self.atom.size, -1))
        return found[0] if len(found) == 1 else torch.cat(found, 1)

    def expand(self, keep: Tensor, shape: Sequence[int]) -> Tensor:
        """Return a view that takes the memory of the dimensions along which it varies."""
        varies = {self.dim, 0} if isinstance(find(self.axis), Ragged) else {self.dim}
        small = [size if dim in varies else 1 for dim, size in enumerate(shape)]
        mask = torch.ones(small, dtype=torch.bool, device=keep.device)
        view = [1] * mask.ndim
        view[self.dim] = -1
        for part, axis in bands(mask, self.axis, self.atom):
            label, _ = self._places(axis, keep.device)
            part &= ~among(label, ~keep).view(view)
        return mask.expand(tuple(shape))

    def _places(self, axis: Axis, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Return the labels of an axis, and what is labelled in their order, None if that is all.

        They stay on the device: to bring them there again would wait for it.
        """
        key = axis, device
        if key not in self._known:
            label = labels(axis, self.atom)
            order = torch.argsort(label.flatten(), stable=True)[int((label < 0).sum()) :]
            order = order % label.shape[1]
            whole = torch.equal(order, torch.arange(label.shape[1]))  # which needs no copy
            self._known[key] = label.to(device), None if whole else order.to(device)
        return self._known[key]
