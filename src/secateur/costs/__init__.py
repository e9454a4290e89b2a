"""What a model costs: one class for each cost, each in a file of its own, found by being there."""

from __future__ import annotations

from secateur.registry import import_all

from .amount import Amount, amount_of
from .cost import COSTS, Cost, Goal, Reached, Subject, Timed

import_all(__name__, __path__)

__all__ = ["COSTS", "Amount", "Cost", "Goal", "Reached", "Subject", "Timed", "amount_of"]
