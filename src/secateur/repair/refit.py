"""Refit every reader of what was pruned, in execution order, on the dense shape.

The pruned model's inputs and the dense model's outputs are what each reader is fitted to: errors of
the readers before it are made up for, and do not add up with depth.  Masked weights stay masked, so
that what is cut afterwards is exactly what was masked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import chain, groupby
from math import nan
from typing import Any

import torch
from torch import Tensor, nn

from secateur.graph.program import Recording
from secateur.replacements import in_plain_operations
from secateur.replacements.passing import Passing
from secateur.runtime.forward import evaluating, undisturbed
from secateur.scoring.experts import FEW
from secateur.structure import Structure
from secateur.types import Masks

from .damping import CANDIDATES, best
from .intercepts import Intercepts
from .joining import DAMPINGS
from .moments import Moments, Sums
from .passes import Batch, in_step, one_by_one
from .readers import Reader, beside, postponed, scout
from .report import Refit
from .system import System

Solve = Callable[..., Tensor]

UNJUDGED = 1e-2
"""The damping where no batch was held out to choose it."""
ENOUGH = 1.0
"""Rows of inputs that a reader needs for each of its features."""


@dataclass
class Refitting:
    """One repair of one model.

    Args:
        dense: the model without masks; it is not touched.
        pruned: a copy of it, which becomes the repaired one: masked, and with new weights.
        structure: of the dense model.
        masks: parameter name → bool tensor of its shape.
        solve: of ``secateur.repairs``.
        means_only: it returns the masked weight: no second moments are summed.
        also: parameters that are refitted though nothing of them is masked.
        besides: those that are where they come behind the first that loses something.
        lost: something was lost before the first of them.
        skipped: blocks that return their input in the pruned model.
        joining: what is masked is never chosen: what is chosen in its place makes up for it.
        recording: the operations of the dense model on what it is repaired with: without padding,
            or with it, they are others than on the example.
        frugal: let one batch after the other come to a reader, where memory is short: the batches
            are run again for each.
    """

    dense: nn.Module
    pruned: nn.Module
    structure: Structure
    masks: Masks
    solve: Solve
    means_only: bool = False
    also: frozenset[str] = frozenset()
    skipped: Mapping[str, Passing] = field(default_factory=dict)
    joining: bool = False
    besides: frozenset[str] = field(default=frozenset(), kw_only=True)
    lost: bool = field(default=False, kw_only=True)
    recording: Recording = field(kw_only=True)
    frugal: bool = False
    refits: list[Refit] = field(default_factory=list)
    moved: set[str] = field(default_factory=set)
    """The tensors that have new values."""
    starved: dict[str, int] = field(default_factory=dict)
    """How many experts of a weight too few rows reached."""
    _old: dict[str, Tensor] = field(init=False)
    _new: dict[str, Tensor] = field(init=False)
    _intercepts: Intercepts = field(init=False)

    def run(self, batches: Sequence[Batch]) -> None:
        """Refit all readers."""
        with ExitStack() as stack:
            for model in (self.dense, self.pruned):
                stack.enter_context(undisturbed(model))
                stack.enter_context(evaluating(model))
                stack.enter_context(in_plain_operations(model))
            self._intercepts = Intercepts(self.structure)
            self._old, self._new = _held(self.dense), _held(self.pruned)
            inputs = (batch.inputs for batch in batches)
            joining = self.joining and not self.means_only
            wanted: dict[str, Any] = {"besides": self.besides, "lost": self.lost}
            readers = scout(self.dense, inputs, self.masks, self.also, **wanted, joining=joining)
            beside(self.dense, self.recording, readers, self.skipped)
            later, self._able = postponed(self.structure, readers)
            self._mask([name for name in self.masks if name not in later])
            for reader in readers:
                if reader.tensor in later:  # its outputs are wanted until the readers had them
                    columns = reader.mask.any(1, keepdim=True)
                    reader.mask = columns.expand(reader.mask.shape).clone()
            for reader in readers:
                dense = self._old[reader.tensor]
                reader.begin(dense if self.means_only else None)
            for alone, stage in groupby(readers, key=self._alone):
                self._stage([*stage], alone, batches)
            values = {name: self._new[name].clone() for name in self.moved}
        now = _held(self.pruned)
        with torch.no_grad():  # what was undisturbed has its old values again
            for name, value in values.items():
                now[name].copy_(value)
        self._mask(list(self.masks))

    def _alone(self, reader: Reader) -> tuple[bool, int]:
        """Tell whether a reader needs passes of its own, and which."""
        stateful = self.structure.inferred.recording.stateful
        again = self.frugal or reader.times > 1 or reader.unsteady or stateful
        return again, reader.order if again else 0

    def _stage(
        self, stage: list[Reader], alone: tuple[bool, int], batches: Sequence[Batch]
    ) -> None:
        known = {reader.arrangement: reader for reader in stage}
        if not alone[0]:
            in_step(self.dense, self.pruned, batches, known, self._refit)
            return
        one_by_one(self.dense, self.pruned, batches, known)
        for reader in stage:
            self._refit(reader)

    @torch.no_grad()
    def _mask(self, names: Sequence[str]) -> None:
        parameters = dict(self.pruned.named_parameters())
        for name in names:
            parameters[name].mul_(self.masks[name].to(parameters[name].device))

    @torch.no_grad()
    def _refit(self, reader: Reader) -> None:
        """Solve a reader whose moments are summed, and give the pruned model its new weights."""
        arrangement = reader.arrangement
        dense = self._old[reader.tensor]
        device = dense.device
        fit = [part.reduced(device) for part in reader.fit]
        held = [part.reduced(device) for part in reader.held]
        reader.fit, reader.held = (), ()
        if reader.besides and not all(part.rows for part in held):
            return  # nothing says whether that is better
        weights = arrangement.of(dense)
        masks = reader.mask.to(device)
        whole = (
            weights.numel() == dense.numel() and not reader.joins
        )  # else the intercept has other rows' too
        intercept = self._intercepts.of(reader.tensor) if whole else None
        new, shift = weights * masks, []
        done, starved, why = [], 0, self._obstacle(reader, fit)
        for i, (part, judge) in enumerate(zip(fit, held, strict=True)):
            few = reader.joins and min(part.rows, judge.rows) < FEW
            starved += few and bool(len(part.kept)) and not why
            if why or few or not part.rows or not len(part.kept):
                done.append(_asis(part, judge, weights[i], masks[i]))
                shift.append(torch.zeros(weights.shape[1], dtype=torch.float64, device=device))
                continue
            scale = None if reader.scale is None else reader.scale.view(len(weights), -1)[i]
            one = weights[i], masks[i], intercept is not None, scale
            solved = self._solved(part, judge, *one, DAMPINGS if reader.joins else CANDIDATES)
            done.append(solved)
            new[i][:, part.kept] = solved.weight.to(new.dtype)
            shift.append(solved.shift * masks[i].any(1))
        if reader.besides and (why or not any(each.damping for each in done)):
            return
        if starved:
            self.starved[reader.tensor] = starved
        if not why:
            if reader.joins:
                reader.change = new - arrangement.of(self._new[reader.tensor])
            arrangement.put(self._new[reader.tensor], new)
            self.moved.add(reader.tensor)
            if intercept is not None:
                tensor = self._new[intercept.tensor]
                tensor += intercept.sign * torch.cat(shift).to(tensor)
                self.moved.add(intercept.tensor)
        self.refits.append(_told(reader, done, fit, why))

    def _solved(self, fit: Sums, held: Sums, *system: Any) -> _Solved:
        if isinstance(fit, Moments) and isinstance(held, Moments):
            return _fitted(self.solve, fit, held, *system)
        return _moved(fit, held, *system[:-1])

    def _obstacle(self, reader: Reader, fit: Sequence[Sums]) -> str:
        """Say why a reader is left as it is, if it is."""
        if not reader.original:
            return "the forward multiplies by a copy of it"
        if reader.joins:
            return "nobody knows what becomes of its outputs" if reader.unlike else ""
        if reader.unlike and reader.chosen and reader.tensor not in self._able:
            return "the dense model chooses other rows for it"
        if reader.unlike and not reader.chosen:
            return "the dense model does not come to it with as many rows"
        rows, need = max((p.rows for p in fit), default=0), max(len(p.kept) for p in fit)
        if rows < (1 if self.means_only else ENOUGH * need):
            return f"{rows} rows of data are too few for {need} features"
        return ""


@dataclass
class _Solved:
    weight: Tensor
    shift: Tensor
    before: float
    after: float
    energy: float
    damping: float | None


def _fitted(
    solve: Solve,
    fit: Moments,
    held: Moments,
    weight: Tensor,
    mask: Tensor,
    centred: bool,
    scale: Tensor | None,
    dampings: Sequence[float],
) -> _Solved:
    """Return one system's weights, fitted to all rows with the damping that held-out ones chose."""

    def system(moments: Moments) -> System:
        return moments.system(weight, mask, centred=centred, scale=scale)

    whole = fit.together(held) if held.rows else fit
    damping: float | None = UNJUDGED
    before = after = spread = nan
    if held.rows:
        chosen = best(solve, system(fit), system(held), dampings)
        before, after = float(held.error(weight, mask, scale).sum()), chosen.error
        spread, damping = float(held.spread(scale)), chosen.damping
    whole_system = system(whole)
    if damping is None:
        new = whole_system.weight * whole_system.mask
    else:
        new = solve(whole_system, damping=damping)
    if scale is not None:
        new = new / scale.to(new)[:, None]
    return _Solved(new, _shift(whole, new, centred), before, after, spread, damping)


def _moved(
    fit: Sums, held: Sums, weight: Tensor, mask: Tensor, centred: bool, scale: Tensor | None
) -> _Solved:
    """Return one system's masked weights, and what an intercept takes over."""
    found = _asis(fit, held, weight, mask, scale)
    whole = fit.together(held) if held.rows else fit
    shift = _shift(whole, found.weight, centred)
    after = found.before
    if held.rows and centred:  # the error that is left varies about a mean, of which the shift goes
        missed = held.intercept(found.weight)
        gain = missed.square() - (missed - shift).square()
        after -= float((gain if scale is None else gain * scale.to(gain).square()).sum())
    return replace(found, shift=shift, after=max(after, 0.0) if held.rows else nan)


def _shift(sums: Sums, weight: Tensor, centred: bool) -> Tensor:
    shift = sums.intercept(weight)
    return shift if centred else torch.zeros_like(shift)


def _asis(
    fit: Sums, held: Sums, weight: Tensor, mask: Tensor, scale: Tensor | None = None
) -> _Solved:
    """Return the record of a system that keeps its masked weights."""
    kept = (weight * mask)[:, fit.kept]
    nothing = torch.zeros(len(weight), dtype=torch.float64, device=weight.device)
    if not held.rows:
        return _Solved(kept, nothing, nan, nan, nan, None)
    error = float(held.error(weight, mask, scale).sum())
    return _Solved(kept, nothing, error, error, float(held.spread(scale)), None)


def _told(reader: Reader, done: Sequence[_Solved], fit: Sequence[Sums], why: str) -> Refit:
    judged = [each for each in done if each.energy == each.energy]
    energy = sum(each.energy for each in judged)
    before, after = (
        sum(getattr(each, name) for each in judged) / energy if energy > 0 else nan
        for name in ("before", "after")
    )
    dampings = [each.damping for each in done if each.damping is not None]
    damping = None if why or not dampings else max(dampings)
    return Refit(reader.tensor, before, after, damping, sum(p.rows for p in fit), why)


def _held(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of a model that is not running.

    Within a forward a name may stand for another tensor: ``functional_call`` sees to that.
    """
    named = model.named_parameters(remove_duplicate=False), model.named_buffers()
    return {name: tensor.data for name, tensor in chain(*named)}
