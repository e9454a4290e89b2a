"""Masked models made from the outside, and how far two models are apart, in float64."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .program import Program

Trial = tuple[str, tuple[Tensor, ...]]


def kept(dense: nn.Module, small: nn.Module) -> dict[str, Tensor]:
    """Return where the dense model's weights are that the smaller one still has, by value."""
    left = dict(small.named_parameters(remove_duplicate=False))
    state = dict(dense.named_parameters(remove_duplicate=False))
    return {n: torch.isin(p.detach(), left[n].detach()) for n, p in state.items() if n in left}


def masked(dense: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy whose weights are zero where a mask is False."""
    twin = copy.deepcopy(dense)
    state = dict(twin.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, mask in masks.items():
            state[name].masked_fill_(~mask.bool(), 0)
    return twin


def trials(program: Program) -> Iterator[Trial]:
    """Yield what both models are called with, in this order: state is the same in both."""
    example = program.inputs(0)
    yield "on the example", example
    yield "on the example again", example
    for n in range(1, program.sizes):
        other = program.inputs(n)
        yield f"on {tuple(other[0].shape)}", other


@dataclass(frozen=True)
class Gap:
    """The largest relative difference, and where it was; ``failed`` if the smaller one raised."""

    amount: float
    where: str
    failed: bool = False

    def __str__(self) -> str:
        return f"{self.amount:.1e} {self.where}"


def compare(truth: nn.Module, small: nn.Module, given: list[Trial], *, stored: bool = False) -> Gap:
    """Return the largest difference; both models, as copies, go through the same calls.

    ``stored``: what was computed went into weights of a narrower type, which rounds it.
    """
    worst = Gap(0.0, "")
    truth, small = (copy.deepcopy(model).double().eval() for model in (truth, small))
    for name, arguments in given:
        try:
            expected = run(truth, arguments)
        except Exception:  # the dense model does not take this size: what is its error, if any?
            continue
        try:
            got = run(small, arguments)
        except Exception as error:
            return Gap(float("inf"), f"{name}: {type(error).__name__}: {brief(error)}", True)
        amount = difference(expected, got, stored=stored)
        if amount > worst.amount:
            worst = Gap(amount, name)
    return worst


def run(model: nn.Module, arguments: tuple[Tensor, ...]) -> list[Tensor]:
    with torch.no_grad():
        torch.manual_seed(0)
        wide = (a.double() if a.is_floating_point() else a for a in arguments)
        return [t.clone() for t in tree_leaves(model(*wide)) if isinstance(t, Tensor)]


def difference(expected: list[Tensor], got: list[Tensor], *, stored: bool = False) -> float:
    """Return max |a − b| by how far the values of a are apart, so that no constant hides it.

    ``stored``: by the largest of them, which is what a bias of a narrower type is rounded by.
    What is zero but for roundings, as the mean behind a LayerNorm, has no scale of its own: it is
    held against a millionth of the largest output.
    """
    if [t.shape for t in expected] != [t.shape for t in got]:
        return float("inf")
    worst = 0.0
    finite = (float(a.abs().max()) for a in expected if a.numel() and bool(a.isfinite().all()))
    floor = 1e-6 * max(finite, default=0.0) or 1e-9
    for a, b in zip(expected, got, strict=True):
        if not bool(a.isfinite().all()):
            continue
        spread = float((a if stored else a - a.mean()).abs().max())
        scale = max(spread, 1e-3 * float(a.abs().max()), floor)
        gap = float((a - b).abs().max()) / scale
        worst = max(worst, float("inf") if gap != gap else gap)
    return worst


def size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def brief(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
