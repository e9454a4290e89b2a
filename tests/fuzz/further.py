"""What else must hold of a smaller model that is exact: it trains, and its file makes it again."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import secateur
from secateur.errors import SecateurError

from .compare import brief
from .program import Program
from .surroundings import Surroundings
from .ways import Cut

Check = Callable[[Program, Surroundings, nn.Module, Cut], str]
"""Returns what is wrong, or nothing."""


def cannot_train(program: Program, around: Surroundings, dense: nn.Module, cut: Cut) -> str:
    """Say why one step of training fails on the smaller model and not on the dense one."""
    if program.seed % 4:  # it takes time
        return ""
    for model in (dense, cut.result.model):
        try:
            twin = copy.deepcopy(model).train().requires_grad_()
            given = twin(*around.inputs(program))
            outputs = [t for t in tree_leaves(given) if isinstance(t, Tensor)]
            torch.stack([t.square().mean() for t in outputs]).sum().backward()
        except Exception as error:
            return "" if model is dense else f"{type(error).__name__}: {brief(error)}"
    return ""


def cannot_load(program: Program, around: Surroundings, dense: nn.Module, cut: Cut) -> str:
    """Say how the smaller model differs from what its file makes of a freshly built dense one."""
    if program.seed % 8 != 1:
        return ""
    with tempfile.TemporaryDirectory() as folder:
        try:
            cut.result.save(folder)
            loaded = secateur.load_pruned(folder, around.model(program))
        except SecateurError as error:
            return f"{type(error).__name__}: {brief(error)}"
        except Exception as error:
            return f"raw {type(error).__name__}: {brief(error)}"
    ours, theirs = cut.result.model.state_dict(), loaded.state_dict()
    if ours.keys() != theirs.keys():
        return f"other tensors: {sorted(ours.keys() ^ theirs.keys())}"
    wrong = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    return f"other values: {wrong}" if wrong else ""


FURTHER: dict[str, Check] = {"training": cannot_train, "files": cannot_load}
"""By the kind of outcome when it does not hold."""
