"""Prune any PyTorch model, and get one that is really smaller.

>>> import torch
>>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
>>> result = prune(net, torch.zeros(1, 8), sparsity=0.5)
>>> result.model[0].out_features
8
"""

from __future__ import annotations

from . import errors as errors
from .config import Config as Config
from .config import Target as Target
from .graph.cost import Cost as Cost
from .graph.groups import Group as Group
from .one_shot import prune as prune
from .pruner import Pruner as Pruner
from .runtime.progress import Progress as Progress
from .scoring.criteria import criteria as criteria
from .scoring.schedules import schedules as schedules
from .shrinking import Plan as Plan
from .shrinking import Result as Result
from .shrinking import Verification as Verification
from .shrinking import apply_plan as apply_plan
from .shrinking import drop_blocks as drop_blocks
from .shrinking import load_plans as load_plans
from .shrinking import load_pruned as load_pruned
from .shrinking import save_pruned as save_pruned
from .shrinking import shrink as shrink
from .structure import Structure as Structure
from .structure import analyze as analyze
from .training import methods as methods
from .training.distillation import distillation_loss as distillation_loss

__all__ = [
    "Config",
    "Cost",
    "Group",
    "Plan",
    "Progress",
    "Pruner",
    "Result",
    "Structure",
    "Target",
    "Verification",
    "analyze",
    "apply_plan",
    "criteria",
    "drop_blocks",
    "distillation_loss",
    "errors",
    "load_plans",
    "load_pruned",
    "methods",
    "prune",
    "save_pruned",
    "schedules",
    "shrink",
]
