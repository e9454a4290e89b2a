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

# each file registers its rules when it is imported
from . import (
    attention,
    complex,
    contraction,
    elementwise,
    experts,
    indexing,
    normalization,
    pieces,
    reduction,
    shape,
    spatial,
)
from .table import RULES, rule, rule_for

__all__ = [
    "RULES",
    "attention",
    "complex",
    "contraction",
    "elementwise",
    "experts",
    "indexing",
    "normalization",
    "pieces",
    "reduction",
    "rule",
    "rule_for",
    "shape",
    "spatial",
]
