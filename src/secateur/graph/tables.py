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


@dataclass
class Tables:
    """All cuts of one trace that an input's length may have made.

    Attributes:
        lengths: of inputs, and the numbers among them; a literal may be one that was taken out of
            sight (``len(x)``), and is believed to be where it cuts a parameter.
        varying: axes as long as an input, or as what was computed from one.
        cuts: axes that are cut at a size, which may be a layer's own, and why they stay whole.
        doubtful: axes that are cut at a literal, which may be more than an input's length; whether
            they are static, and why they stay whole.
    """

    lengths: frozenset[int] = frozenset()
    varying: list[Axis] = field(default_factory=list)
    cuts: list[tuple[Axis, tuple[Size, ...], Any]] = field(default_factory=list)
    doubtful: list[tuple[Axis, bool, Any]] = field(default_factory=list)

    def cut(self, axis: Axis, origin: Origin, static: bool, reason: Any) -> None:
        """Say that an axis is cut at a number; static: one of parameters and buffers alone."""
        sizes = tuple(f for f in origin.factors if isinstance(f, Size))
        if sizes:
            self.cuts.append((axis, sizes, reason))
        elif not origin.factors:
            length = abs(origin.number) in self.lengths
            if static and length:
                freeze(axis, reason)
            elif static or length:
                self.doubtful.append((axis, static, reason))

    def freeze_doubtful(self, read: Iterable[Axis], unseen: Iterable[Axis]) -> None:
        """Freeze what is cut at a literal that an input's length may have made.

        Of a static one all, where the code takes lengths of inputs out of sight (``unseen``: it
        makes a float of one); else what is summed nowhere (not among ``read``).
        """
        varying = self._varying()
        anything = any(id(atom) in varying for axis in unseen for atom in atoms(axis))
        reached = {id(atom) for axis in read for atom in atoms(axis)} if self.doubtful else set()
        for axis, static, reason in self.doubtful:
            for atom in atoms(axis):
                if (anything and static) or id(atom) not in reached:
                    freeze(atom, reason)

    def freeze_cut(self, axis_of: Callable[[Size], Axis]) -> bool:
        """Freeze what is cut at a size that varies with the input; True if any was free."""
        if not self.cuts:
            return False
        varying = self._varying()
        found = False
        for axis, sizes, reason in self.cuts:
            if any(id(atom) in varying for size in sizes for atom in atoms(axis_of(size))):
                found |= any(atom.frozen is None for atom in atoms(axis))
                freeze(axis, reason)
        return found

    def _varying(self) -> set[int]:
        return {id(atom) for axis in self.varying for atom in atoms(axis)}


def refined(before: Iterable[Atom]) -> bool:
    """Tell whether atoms, free once, have been cut or found to be a grid since."""
    return any(atom.link is not None for atom in before)
