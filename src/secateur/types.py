"""The few types that every layer shares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

Masks: TypeAlias = dict[str, Tensor]
"""Parameter name → bool tensor of the parameter's shape; True is kept."""

Scores: TypeAlias = Mapping[str, Tensor]
"""Name of a group or target → one score per position; smaller matters less."""

Example: TypeAlias = Any
"""Example inputs: a tensor, a tuple (positional arguments) or a dict (keyword arguments)."""


def call_arguments(example: Example) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the positional and keyword arguments that an example stands for.

    A tuple or list holds positional arguments, a mapping with text keys keyword arguments, and
    anything else is the one positional argument: a ``PackedSequence`` too, tuple though it is.

    >>> call_arguments({"x": 1})
    ((), {'x': 1})
    >>> call_arguments(3)
    ((3,), {})
    """
    if isinstance(example, Mapping) and all(isinstance(key, str) for key in example):
        return (), dict(example)
    if isinstance(example, (tuple, list)) and not isinstance(example, PackedSequence):
        return tuple(example), {}
    return (example,), {}
