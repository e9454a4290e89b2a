"""Samplers: Optuna's, and ours of its interface.  Needs Optuna."""

from __future__ import annotations

from secateur.registry import import_all

from .slotted import Slotted as Slotted
from .table import FRONTS as FRONTS
from .table import Setting as Setting
from .table import samplers as samplers

import_all(__name__, __path__)

__all__ = ["FRONTS", "Setting", "Slotted", "samplers"]
