"""What blocks share goes later than what is inside of one, where a budget leaves the choice.

A residual stream carries the work of all blocks, and a width that others must follow in number
(heads that share a rotary embedding) costs all of them.  At the same cost, networks keep far more
of what they know when the widths inside of blocks go first: benchmarks/results/defaults.md.
"""

from __future__ import annotations

from secateur.graph.kinds import streams
from secateur.structure import Structure


def shared(structure: Structure) -> set[str]:
    """Return the names of the groups that blocks share.

    They are residual streams (two activations are added along them, and several layers read them),
    and groups that must keep as many positions as others.

    >>> import torch
    >>> from torch import nn
    >>> from secateur import analyze
    >>> class Net(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.stem, self.head = nn.Linear(4, 8), nn.Linear(8, 2)
    ...         self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
    ...     def forward(self, x):
    ...         x = self.stem(x)
    ...         return self.head(x + self.down(self.up(x).relu()))
    >>> structure = analyze(Net(), torch.zeros(1, 4))
    >>> [group.name for group in structure.groups], shared(structure)
    (['stem', 'up'], {'stem'})
    """
    stream = streams(structure.inferred, structure.groups)
    return stream | {group.name for group in structure.groups if group.sized}


def late(ratio: float) -> float:
    """Return the share that goes of what blocks share, when ``ratio`` of the other widths goes.

    Nothing until half of these are gone; at the end everything goes.

    >>> late(0.5), late(0.75), late(1.0)
    (0.0, 0.5, 1.0)
    """
    return max(0.0, 2 * ratio - 1)
