"""Systems to repair, drawn: any rank, dead inputs, inputs that differ from the dense model's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from secateur.repair.system import System

Array = np.ndarray[Any, Any]


def correlated(rows: int, features: int, seed: int = 0) -> Tensor:
    """Inputs, ``(rows, features)``, that share a few directions, and each has some of its own."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(rows, max(features // 4, 1), generator=generator).double()
    spread = torch.randn(shared.shape[1], features, generator=generator).double()
    own = torch.randn(rows, features, generator=generator).double()
    return shared @ spread + 0.3 * own


def columns(out: int, features: int, keep: Tensor) -> Tensor:
    """The mask that keeps the same inputs for all outputs."""
    return keep.expand(out, features).clone()


@st.composite
def systems(draw: Any, *, whole: bool = False, own: bool | None = None) -> System:
    """A system in float64, with few or many rows; ``whole`` removes inputs for all outputs.

    ``own`` says whether the outputs are what the weight makes of these very inputs.
    """
    out, features = draw(st.integers(1, 5)), draw(st.integers(1, 9))
    rows, seed = draw(st.integers(1, 30)), draw(st.integers(0, 10**6))
    generator = torch.Generator().manual_seed(seed)
    x = correlated(rows, features, seed) * 10.0 ** draw(st.integers(-2, 2))
    for dead in draw(st.sets(st.integers(0, features - 1), max_size=features // 2)):
        x[:, dead] = 0
    weight = torch.randn(out, features, generator=generator).double()
    shape = (1, features) if whole else (out, features)
    mask = (torch.rand(shape, generator=generator) < draw(st.sampled_from([0.3, 0.7]))).expand(
        out, features
    )
    if whole and draw(st.booleans()):
        mask = mask & (torch.rand(out, 1, generator=generator) < 0.7)
    own = draw(st.booleans()) if own is None else own
    noise = torch.randn(x.shape, generator=generator).double()
    dense = x if own else x + 0.3 * x.abs().mean() * noise
    return System.of(weight, mask.clone(), x, dense @ weight.T)


def everything(system: System) -> System:
    """The same system, of which nothing goes."""
    return replace(system, mask=torch.ones_like(system.mask))


def optimum(system: System, damping: float) -> Array:
    """The least damped error under the mask, by one solve in numpy for each output."""
    weight, gram, cross, mask = (
        t.numpy() for t in (system.weight, system.gram, system.cross, system.mask)
    )
    live = gram.diagonal()[gram.diagonal() > 0]
    ridge = damping * (live.mean() if len(live) else 1.0)
    new = np.zeros_like(weight)
    for i, kept in enumerate(mask):
        left = gram[np.ix_(kept, kept)] + ridge * np.eye(kept.sum())
        new[i, kept] = np.linalg.solve(left, cross[kept, i] + ridge * weight[i, kept])
    return new


def damped_error(system: System, weight: Tensor, damping: float) -> Tensor:
    """What is minimised, ``(out,)``: the error, and how far weights are from the old ones."""
    moved = (weight - system.weight * system.mask).square().sum(1)
    return system.error(weight) + system.ridge(damping) * moved
