"""Methods: what a criterion cannot say, one file each; and the loss that a dense teacher gives.

>>> methods["slim"].__name__
'Slim'
"""

from __future__ import annotations

from secateur.registry import import_all

from .distillation import Distillation as Distillation
from .distillation import distillation_loss as distillation_loss
from .method import Method as Method
from .method import methods as methods
from .method import named as named

import_all(__name__, __path__)
