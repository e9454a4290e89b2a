"""What stays makes up for what goes: between mask and cut, weights of those that read it change."""

from __future__ import annotations

from secateur.registry import import_all

from .curve import output_error as output_error
from .estimates import estimated_errors as estimated_errors
from .norms import reestimate_norms as reestimate_norms
from .report import Distance as Distance
from .report import Refit as Refit
from .report import Repair as Repair
from .run import repair as repair
from .system import System as System
from .table import repairs as repairs

import_all(__name__, __path__)
