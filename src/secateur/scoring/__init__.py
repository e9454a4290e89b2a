"""What matters: criteria, what they need, what is removed together, how the goal is approached."""

from __future__ import annotations

from secateur.registry import import_all

import_all(__name__, __path__)
