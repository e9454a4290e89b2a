"""Where two models part: the first module whose output differs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from secateur.graph.axes import Atom, atoms, positions
from secateur.graph.program import Ref
from secateur.runtime.undo import Undo, unhook
from secateur.structure import Structure

from .difference import difference
from .plan import Plan

Calls = list[tuple[str, list[Tensor]]]
"""Path of each module that ran, in the order in which they ended, and what it returned."""


@contextmanager
def module_outputs(model: nn.Module) -> Iterator[Calls]:
    """Collect what each module returns while a model runs."""
    calls: Calls = []

    def watch(path: str) -> Any:
        def see(_: nn.Module, args: Any, out: Any) -> None:
            parts = out if isinstance(out, (tuple, list)) else [out]
            calls.append((path, [x.detach().clone() for x in parts if isinstance(x, Tensor)]))

        return see

    with Undo() as undo:
        for path, module in model.named_modules():
            see = watch(path)
            undo(partial(unhook, module._forward_hooks, see))
            module.register_forward_hook(see)
        yield calls


@dataclass(frozen=True)
class _Kept:
    """The positions that a plan leaves of a recorded tensor."""

    structure: Structure
    plan: Plan

    def of(self, value: int, x: Tensor) -> Tensor | None:
        """Return what is left of a tensor that has a recorded one's axes; None if it has not."""
        typed = self.structure.inferred.types.get(value)
        if typed is None or len(typed) != x.dim():
            return None
        kept = {id(self.structure[n].atom): list(keep) for n, keep in self.plan.keep.items()}

        def left(atom: Atom) -> Sequence[int]:
            return kept.get(id(atom), range(atom.size))

        for dim, axis in enumerate(d.axis for d in typed.dims):
            if any(id(atom) in kept for atom in atoms(axis)):
                if axis.size != x.shape[dim]:
                    return None
                x = x.index_select(dim, torch.tensor(positions(axis, left), device=x.device))
        return x


def first_difference(
    structure: Structure, plan: Plan, masked: Calls, smaller: Calls, tolerance: float
) -> str:
    """Return the path of the first module whose output differs where the plan leaves it.

    The empty path is the model itself: no module of it returns another thing.
    """
    recorded: dict[tuple[str, int], list[int]] = {}
    seen: Counter[str] = Counter()
    for call in structure.inferred.recording.calls:
        outs = call.output if isinstance(call.output, tuple) else (call.output,)
        recorded[call.path, seen[call.path]] = [x.value for x in outs if isinstance(x, Ref)]
        seen[call.path] += 1
    known = {place: outs for place, outs in _numbered(smaller)}
    left = _Kept(structure, plan)
    for place, olds in _numbered(masked):
        values, news = recorded.get(place, []), known.get(place, [])
        if not len(values) == len(olds) == len(news):
            continue
        for value, old, new in zip(values, olds, news, strict=True):
            kept = left.of(value, old)
            if kept is not None and difference([[kept]], [[new]]) > tolerance:
                return place[0]
    return ""


def _numbered(calls: Calls) -> Iterator[tuple[tuple[str, int], list[Tensor]]]:
    seen: Counter[str] = Counter()
    for path, outs in calls:
        yield (path, seen[path]), outs
        seen[path] += 1
