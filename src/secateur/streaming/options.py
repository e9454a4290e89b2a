"""How a checkpoint is pruned, beside what a config says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch

from secateur.shrinking import Result


@dataclass(frozen=True, kw_only=True)
class Options:
    """What ``prune_checkpoint`` takes beside settings of ``Config``.

    Attributes:
        repair: as for ``prune``: "least_squares" with data, unless another is named, or "none".
        verify: compare each smaller block with the masked one.
        device: where a block is computed.
        check: is given the result before anything is written, and may raise.
    """

    repair: str | None = None
    verify: bool = True
    device: torch.device | str = "cpu"
    check: Callable[[Result], object] | None = None

    @classmethod
    def taken(cls, settings: Mapping[str, Any]) -> tuple[Options, dict[str, Any]]:
        """Return the options among settings, and the rest.

        >>> Options.taken({"sparsity": 0.5, "verify": False})[1]
        {'sparsity': 0.5}
        """
        known = {field.name for field in fields(cls)}
        own = {name: value for name, value in settings.items() if name in known}
        return cls(**own), {name: x for name, x in settings.items() if name not in known}
