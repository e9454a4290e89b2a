"""From masks to a smaller model: complete the masks, plan, cut, verify."""

from __future__ import annotations

from .complete import Completion, complete, group_masks
from .plan import Plan
from .result import Result, cut_and_verify, shrink
from .verify import Verification

__all__ = [
    "Completion",
    "Plan",
    "Result",
    "Verification",
    "complete",
    "cut_and_verify",
    "group_masks",
    "shrink",
]
