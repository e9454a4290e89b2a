"""``what=["depth"]``: a share of the residual blocks goes, chosen by what the outputs lose."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from secateur.config import Config
from secateur.errors import ConfigError
from secateur.graph.kinds import DEPTH
from secateur.types import Example

from .result import Result
from .shallower import drop_blocks

TAKEN = {"what", "sparsity", "seed", "strict"}
"""Settings that say something of whole blocks."""


def asks_for_depth(config: Config, *, plain: bool = True) -> bool:
    """Tell whether blocks are to go, and nothing else; ``plain``: of a copy, without a loss.

    Raises:
        ConfigError: settings are given that are of groups.
    """
    if config.targets or config.what != (DEPTH,):
        return False  # with groups besides it is ``mixing``
    others = sorted(config.model_fields_set - TAKEN)
    if others:
        raise ConfigError(
            f"what=[{DEPTH!r}] takes a sparsity, the share of blocks, without {', '.join(others)}; "
            "with other kinds, as what=['all'], blocks and groups share a goal of parameters or "
            "MACs"
        )
    if not plain:
        raise ConfigError(f"what={DEPTH!r} cuts a copy, and needs no loss: leave both out")
    if config.sparsity is None:
        raise ConfigError(f"what={DEPTH!r} needs a sparsity: the share of blocks to remove")
    return True


def without_blocks(
    model: nn.Module,
    config: Config,
    example: Example,
    data: Iterable[Any] | None,
    repair: str | None,
    *,
    verify: bool = True,
) -> Result:
    """Return a copy of a model without the share of blocks that a config asks for.

    They are those without which the outputs change least, on the data.

    Raises:
        ConfigError, PlanError, ShrinkError, VerificationError: as ``drop_blocks``.
    """
    assert config.sparsity is not None
    how: dict[str, Any] = {"data": data, "by": "error", "repair": repair or "none"}
    return drop_blocks(model, config.sparsity, example, verify=verify, **how)
