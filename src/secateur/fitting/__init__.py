"""From a dense model to a smaller one that was trained, in one call with a deadline."""

from __future__ import annotations

from .options import Options as Options
from .rounds import Fitted as Fitted
from .rounds import Round as Round
from .run import fit as fit
