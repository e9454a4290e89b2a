"""Prune any PyTorch model, and get one that is really smaller.

>>> import torch
>>> from secateur import prune
>>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
>>> result = prune(net, torch.zeros(1, 8), sparsity=0.5)
>>> result.model[0].out_features
8

A public name is imported when it is first asked for, so that what needs no torch waits for none.
"""

from __future__ import annotations

import random
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import errors as errors
    from .config import Config as Config
    from .config import Target as Target
    from .fitting import Fitted as Fitted
    from .fitting import fit as fit
    from .graph.cost import Cost as Cost
    from .graph.groups import Group as Group
    from .graph.kinds import kinds as kinds
    from .one_shot import prune as prune
    from .pruner import Pruner as Pruner
    from .repair import Repair as Repair
    from .repair import reestimate_norms as reestimate_norms
    from .repair import repairs as repairs
    from .runtime.progress import Progress as Progress
    from .scoring.allocations import allocators as allocators
    from .scoring.criteria import criteria as criteria
    from .scoring.schedules import schedules as schedules
    from .searching import Search as Search
    from .searching import search as search
    from .shrinking import Plan as Plan
    from .shrinking import Result as Result
    from .shrinking import Verification as Verification
    from .shrinking import apply_plan as apply_plan
    from .shrinking import cut_optimizer as cut_optimizer
    from .shrinking import drop_blocks as drop_blocks
    from .shrinking import from_pretrained as from_pretrained
    from .shrinking import load_plans as load_plans
    from .shrinking import load_pruned as load_pruned
    from .shrinking import save_pruned as save_pruned
    from .shrinking import shrink as shrink
    from .shrinking.rankings import block_rankings as block_rankings
    from .shrinking.semi_structured import semi_structured as semi_structured
    from .streaming import prune_checkpoint as prune_checkpoint
    from .structure import Structure as Structure
    from .structure import analyze as analyze
    from .trainers.merging import merge as merge
    from .trainers.peft import keep_zeros as keep_zeros
    from .training import Distillation as Distillation
    from .training import Method as Method
    from .training import distillation_loss as distillation_loss
    from .training import methods as methods

_HOMES = {
    "config": ("Config", "Target"),
    "fitting": ("Fitted", "fit"),
    "graph.cost": ("Cost",),
    "graph.groups": ("Group",),
    "graph.kinds": ("kinds",),
    "one_shot": ("prune",),
    "pruner": ("Pruner",),
    "repair": ("Repair", "reestimate_norms", "repairs"),
    "runtime.progress": ("Progress",),
    "scoring.allocations": ("allocators",),
    "scoring.criteria": ("criteria",),
    "scoring.schedules": ("schedules",),
    "searching": ("Search", "search"),
    "shrinking": (
        "Plan",
        "Result",
        "Verification",
        "apply_plan",
        "cut_optimizer",
        "drop_blocks",
        "from_pretrained",
        "load_plans",
        "load_pruned",
        "save_pruned",
        "shrink",
    ),
    "shrinking.rankings": ("block_rankings",),
    "shrinking.semi_structured": ("semi_structured",),
    "streaming": ("prune_checkpoint",),
    "structure": ("Structure", "analyze"),
    "trainers.merging": ("merge",),
    "trainers.peft": ("keep_zeros",),
    "training": ("Distillation", "Method", "distillation_loss", "methods"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted([*_HOME_OF, "errors"])  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name == "errors":
        return import_module(".errors", __name__)
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    numbers = random.getstate()  # rich draws some when it is imported
    value = getattr(import_module(f".{_HOME_OF[name]}", __name__), name)
    random.setstate(numbers)
    globals()[name] = value  # the next look-up finds it at once
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
