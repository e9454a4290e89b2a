"""Means only: weights stay, and the intercept does the work, without any Gram."""

from __future__ import annotations

from torch import Tensor

from .system import System
from .table import repairs


@repairs.register(means_only=True)
def bias(system: System, *, damping: float = 0.0) -> Tensor:
    """Return the weight on its mask: what a removed input emitted on average goes to the bias.

    Args:
        system: the reader; nothing but its weight and its mask is looked at.
        damping: changes nothing, as nothing is solved.

    An et al., 2024, arXiv:2312.11983 (FLAP)
    """
    return system.weight * system.mask
