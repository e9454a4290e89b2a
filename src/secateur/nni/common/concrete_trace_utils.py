"""NNI's ``concrete_trace``, which scripts call and nothing here needs."""

from __future__ import annotations

from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from torch import nn

from secateur.types import Example

__all__ = ["concrete_trace", "traced_with"]

M = TypeVar("M", bound=nn.Module)
_examples: WeakKeyDictionary[nn.Module, Example] = WeakKeyDictionary()


def concrete_trace(root: M, concrete_args: Example, **options: Any) -> M:
    """Return the model as it is; its structure is inferred where it is asked for.

    Args:
        root: any module.
        concrete_args: example inputs; ``speedup.auto_set_denpendency_group_ids`` asks for them.
        options: accepted for NNI's signature, and not needed.

    >>> import torch
    >>> model = nn.Linear(2, 2)
    >>> concrete_trace(model, (torch.zeros(1, 2),), use_operator_patch=True) is model
    True
    """
    _examples[root] = concrete_args
    return root


def traced_with(model: nn.Module) -> Example | None:
    """Return the example inputs that a model was traced with, or None."""
    return _examples.get(model)
