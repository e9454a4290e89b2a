"""Methods: what a criterion cannot say.  One file each; importing this module registers all.

>>> sorted(methods)
['movement', 'slim']
"""

from __future__ import annotations

from . import movement as movement
from . import slim as slim
from .method import Method as Method
from .method import methods as methods
from .method import named as named
