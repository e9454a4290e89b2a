"""The table of rules: one function for each ATen operation, registered where it is defined."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

Rule = Callable[..., Any]
R = TypeVar("R", bound=Rule)

RULES: dict[Any, Rule] = {}


def rule(*names: str) -> Callable[[R], R]:
    """Register a rule for the named operations: ``"relu"`` is every overload of ``aten.relu``.

    A text may hold several names; a name with a dot is one overload only.  Operations that this
    version of torch does not have are skipped, so one table serves all versions.
    """

    def register(function: R) -> R:
        for name in " ".join(names).split():
            packet = getattr(torch.ops.aten, name.split(".")[0], None)
            if packet is None:
                continue
            keys = [getattr(packet, name.split(".")[1])] if "." in name else [packet]
            for key in keys:
                if key in RULES:
                    raise ValueError(f"aten.{name} has a rule already")
                RULES[key] = function
        return function

    return register


def rule_for(op: Any) -> Rule | None:
    """Return the rule of an operation: its own overload's, else its packet's, else None."""
    found = RULES.get(op)
    return found if found is not None else RULES.get(getattr(op, "overloadpacket", None))
