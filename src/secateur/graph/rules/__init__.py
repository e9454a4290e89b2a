"""One rule per ATen operation, in one table; a file per family.

A rule is a function ``(t: Typing, *args, **kwargs) -> Typed | tuple | list`` that receives the
operation's own arguments with every tensor replaced by its ``Typed``.  Registering it is all that
it takes; an operation without a rule freezes what it touches, by name, in the report.

>>> import torch
>>> rule_for(torch.ops.aten.relu.default).__name__
'keeps_zero'
>>> rule_for(torch.ops.aten.linalg_svd.default) is None
True
"""

from __future__ import annotations

from secateur.registry import import_all

from .table import RULES as RULES
from .table import rule as rule
from .table import rule_for as rule_for

import_all(__name__, __path__)
