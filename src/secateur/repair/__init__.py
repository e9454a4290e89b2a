"""What stays makes up for what goes: between mask and cut, weights of those that read it change."""

from __future__ import annotations

from secateur.registry import import_all

from .system import System as System
from .table import repairs as repairs

import_all(__name__, __path__)
