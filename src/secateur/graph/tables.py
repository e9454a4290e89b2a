"""Tables: dimensions of which a forward reads as much as an input is long.

Position embeddings, masks, kernels of as many taps.  The rows that the example did not reach are
read for another input, and where they begin is another place then.  So such a dimension stays
whole, wherever its rows are summed: what is found here only freezes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from .axes import Atom, Axis, atoms, freeze
from .origins import Origin, Size

READ_IN_PART = "the example reads a part of it"


@dataclass(frozen=True)
class Doubt:
    """An axis that is cut at a literal, and when it stays: where a part of it is not read, or where
    lengths of inputs are taken out of sight."""

    axis: Axis
    reason: Any
    unread: bool
    unseen: bool


@dataclass
class Tables:
    """All cuts of one trace that an input's length may have made.

    Attributes:
        lengths: of inputs, and the numbers among them; a literal may be one that was taken out of
            sight (``len(x)``), and is believed to be where it cuts a parameter.
        varying: axes as long as an input, or as what was computed from one.
        static: tells of a recorded tensor whether it is made of parameters and buffers alone.
        cuts: axes that are cut at a size, which may be a layer's own, and why they stay whole.
        doubtful: axes that are cut at a literal, which may be an input's length out of sight.
    """

    lengths: frozenset[int] = frozenset()
    varying: list[Axis] = field(default_factory=list)
    static: Callable[[int], bool] = field(default=lambda value: False)
    cuts: list[tuple[Axis, tuple[Size, ...], Any]] = field(default_factory=list)
    doubtful: list[Doubt] = field(default_factory=list)

    def cut(
        self, axis: Axis, origin: Origin, reason: Any, *, static: bool, counted: bool = False
    ) -> None:
        """Say that an axis is cut at a number.

        Args:
            static: the tensor is made of parameters and buffers alone.
            counted: the number is how many pieces or columns there are, and no place.
        """
        sizes = tuple(f for f in origin.factors if isinstance(f, Size))
        if sizes:
            self.cuts.append((axis, sizes, reason))
        elif not origin.factors:
            length = abs(origin.number) in self.lengths
            if static and length and not counted:
                freeze(axis, reason)
            elif (static and not counted) or (length and (static or not counted)):
                self.doubtful.append(Doubt(axis, reason, unread=not counted, unseen=static))

    def freeze_doubtful(self, read: Iterable[Axis], unseen: Iterable[Axis]) -> None:
        """Freeze what is cut at a literal that an input's length may have made.

        Args:
            read: all axes that are summed somewhere.
            unseen: those whose lengths the code takes out of sight: it makes a float of one.
        """
        varying = self._varying()
        anything = any(id(atom) in varying for axis in unseen for atom in atoms(axis))
        reached = {id(atom) for axis in read for atom in atoms(axis)} if self.doubtful else set()
        for doubt in self.doubtful:
            for atom in atoms(doubt.axis):
                if (anything and doubt.unseen) or (doubt.unread and id(atom) not in reached):
                    freeze(atom, doubt.reason)

    def freeze_cut(self, axis_of: Callable[[Size], Axis]) -> bool:
        """Freeze what is cut at a size that varies with the input; True if any was free."""
        if not self.cuts:
            return False
        varying = self._varying()

        def moves(size: Size) -> bool:
            length = list(atoms(axis_of(size)))
            if any(id(atom) in varying for atom in length):
                return (
                    True  # else: what a loop over places put together is as long as they are many
                )
            unknown = len(length) > 0 and all(atom.frozen is not None for atom in length)
            return unknown and axis_of(size).size > 1 and not self.static(size.value)

        found = False
        for axis, sizes, reason in self.cuts:
            if any(map(moves, sizes)):
                found |= any(atom.frozen is None for atom in atoms(axis))
                freeze(axis, reason)
        return found

    def varies(self, axis: Axis) -> bool:
        """Tell whether an axis is as long as an input, or a part of it is."""
        return not self._varying().isdisjoint(map(id, atoms(axis)))

    def _varying(self) -> set[int]:
        return {id(atom) for axis in self.varying for atom in atoms(axis)}


def refined(before: Iterable[Atom]) -> bool:
    """Tell whether atoms, free once, have been cut or found to be a grid since."""
    return any(atom.link is not None for atom in before)
