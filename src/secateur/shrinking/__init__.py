"""From masks to a smaller model and its files: complete the masks, plan, cut, verify, save."""

from __future__ import annotations

from .apply import apply_plan, cut_and_verify
from .completion import Completion, complete, group_masks
from .files import load_plans, load_pruned, save_pruned
from .from_masks import shrink
from .optimizer_state import cut_optimizer
from .plan import Plan
from .result import Result
from .shallower import drop_blocks
from .stock import from_pretrained
from .verify import Verification

__all__ = [
    "Completion",
    "Plan",
    "Result",
    "Verification",
    "apply_plan",
    "complete",
    "cut_and_verify",
    "cut_optimizer",
    "drop_blocks",
    "from_pretrained",
    "group_masks",
    "load_plans",
    "load_pruned",
    "save_pruned",
    "shrink",
]
