"""The pruners that look at the weights alone."""

from __future__ import annotations

from .pruner import Pruner


class LevelPruner(Pruner):
    """Removes single weights of the smallest magnitude."""

    criterion = "magnitude"
    default_granularity = "element"


class L1NormPruner(Pruner):
    """Removes output channels of the smallest L1 norm (Li et al. 2017, arXiv:1608.08710)."""

    criterion = "l1"


class L2NormPruner(Pruner):
    """Removes output channels of the smallest L2 norm."""

    criterion = "l2"


class FPGMPruner(Pruner):
    """Removes the channels nearest to the geometric median (He et al. 2019, arXiv:1811.00250)."""

    criterion = "fpgm"
