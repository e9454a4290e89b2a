"""Made-up values of every statistic that a criterion may ask for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from secateur.scoring.criteria import criteria, needs


def made_up(name: str, rows: Tensor, seed: int = 0) -> dict[str, Any]:
    """Return what a criterion asks for, for rows of weights."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(rows.shape, generator=generator)
    known = {
        "generator": generator,
        "grad": noise,
        "input_norm": noise.abs() + 0.1,
        "input_mean": noise,
        "input_variance": noise.square(),
        "input_zeros": noise.abs().clamp(max=1),
        "input_rows": noise.abs(),
        "delivered_norm": noise.abs(),
        "delivered_share": noise.abs(),
        "input_moments": lambda rows: 2 * rows,
        "input_inverse": lambda rows: rows,
        "input_elimination": lambda rows: rows.square().sum(1),
    }
    return {each: known[each] for each in needs(criteria[name])}
