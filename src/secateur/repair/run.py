"""One repair, from a dense model and masks to new values for its tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import isnan
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from secateur.errors import ConfigError, TraceError
from secateur.graph.program import Recording
from secateur.graph.record import record
from secateur.replacements.passing import Passing, skipping
from secateur.runtime.batches import arguments, held
from secateur.runtime.copying import copied
from secateur.runtime.distributed import reduced
from secateur.runtime.forbidding import Forbidden, forbidding
from secateur.runtime.progress import during
from secateur.structure import Structure
from secateur.types import Masks

from .behind import behind
from .norms import norms_of, reestimate_norms
from .passes import Batch
from .quality import distance
from .refit import Refitting
from .report import Distance, Refit, Repair
from .table import repairs, solver

HELD = 4
"""Every so many-th batch judges, and fits nothing."""
WORSE = "on the batches that judge, all new weights together bring the outputs farther from dense"


def repair(
    model: nn.Module,
    masks: Masks,
    structure: Structure,
    data: Iterable[Any],
    how: str,
    *,
    also: frozenset[str] = frozenset(),
    skipped: Mapping[str, Passing] | None = None,
    forbidden: Sequence[Forbidden] = (),
    given: Sequence[Any] | None = None,
) -> tuple[dict[str, Tensor], Repair]:
    """Return new values of parameters and buffers of a masked model, and the record.

    Args:
        model: the dense model, without masks; it is not touched.
        masks: parameter name → bool tensor of its shape.
        structure: of the dense model.
        data: batches of inputs; of four, one is held out to judge.
        how: a name in ``secateur.repairs``.
        also: parameters that are refitted though nothing of them is masked: what goes is made up
            for where their outputs are added to what lacks it.
        skipped: blocks that return their input in the pruned model.
        forbidden: what its routers never choose.
        given: what the pruned model gets in place of ``data``, batch for batch, if it is a part of
            one that is pruned before it; both are read again and again, one batch at a time.

    Raises:
        UnknownNameError: there is no such repair.
        ConfigError: there are no batches, or the model refuses one.
    """
    batches, skips = _batches(data, given), skipped or {}
    judged = [b for b in batches if b.held] or batches
    before = _unrepaired(model, masks, skips, forbidden, judged)
    pruned = copied(model)
    seen, lost = _recorded(model, structure, batches[0].inputs), _differ(batches[0])
    more: dict[str, Any] = {"recording": seen, "frugal": given is not None, "lost": lost}
    if how not in repairs.means_only:
        more["besides"] = behind(structure, seen, masks, part=lost)
    asked = structure, masks, solver(how), how in repairs.means_only, also, skips
    job = Refitting(model, pruned, *asked, bool(forbidden), **more)
    with during("repairing"), without(pruned, skips, forbidden, copies=False):  # a copy: an op more
        job.run(batches)
    with without(pruned, skips, forbidden):
        norms, after = _norms(model, pruned, batches, judged, _distance(model, pruned, judged))
    values = {name: _value(pruned, name) for name in (*job.moved, *norms)}
    if values and before.nearer_than(after) and not after.error < before.error:
        values, norms, after, job.refits = {}, [], before, [_left(r, WORSE) for r in job.refits]
    found = how, tuple(job.refits), before, after, bool(norms), _notes(job, batches, before)
    return values, Repair(*found)


def _unrepaired(
    model: nn.Module,
    masks: Masks,
    skips: Mapping[str, Passing],
    forbidden: Sequence[Forbidden],
    judged: Sequence[Batch],
) -> Distance:
    """Return how far masks alone bring a model's outputs from the dense ones."""
    other = masked(copied(model), masks)
    with without(other, skips, forbidden):
        return _distance(model, other, judged)


def _differ(batch: Batch) -> bool:
    """Tell whether the pruned model is given something else."""
    if batch.given is None:
        return False
    pairs = zip(tree_leaves(batch.inputs), tree_leaves(batch.pruned), strict=True)
    return any(isinstance(a, Tensor) and not torch.equal(a, b) for a, b in pairs)


def _left(refit: Refit, why: str) -> Refit:
    return replace(refit, after=refit.before, damping=None, why=refit.why or why)


@contextmanager
def without(
    model: nn.Module,
    skipped: Mapping[str, Passing],
    forbidden: Sequence[Forbidden],
    *,
    copies: bool = True,
) -> Iterator[None]:
    """Let a masked model run as the smaller one will, where no mask says that."""
    with skipping(model, skipped, copies=copies), forbidding(model, forbidden):
        yield


def _batches(data: Iterable[Any], given: Sequence[Any] | None) -> list[Batch]:
    """Return calibration batches, of which some judge."""
    kept = held(data) if given is None or not isinstance(data, Sequence) else data
    batches = [Batch(kept, i, i % HELD == HELD - 1, given) for i in range(len(kept))]
    if len(batches) in (2, 3):
        batches[-1].held = True
    return batches


def _distance(dense: nn.Module, pruned: nn.Module, batches: Sequence[Batch]) -> Distance:
    return distance(dense, pruned, (b.inputs for b in batches), (b.pruned for b in batches))


def _recorded(model: nn.Module, structure: Structure, batch: Any) -> Recording:
    """Return the operations of a forward on a batch, or on the example where that fails."""
    args, kwargs = arguments(model, batch)
    if args and kwargs:
        return structure.inferred.recording
    try:
        return record(model, args or kwargs)
    except TraceError:  # what the example ran is close: where a batch goes another way, it is seen
        return structure.inferred.recording


def _norms(
    dense: nn.Module,
    pruned: nn.Module,
    batches: Sequence[Batch],
    judged: Sequence[Batch],
    now: Distance,
) -> tuple[list[str], Distance]:
    """Re-estimate norms where that brings the outputs nearer to the dense model's."""
    norms = norms_of(pruned)
    if not norms:
        return [], now
    old = {name: tensor.clone() for name, tensor in pruned.named_buffers()}
    failed = torch.zeros(())
    try:
        reestimate_norms(pruned, [b.pruned for b in batches if not b.held])
    except ConfigError:  # batches of one sample: there is nothing to estimate from
        failed += 1
    then = now
    if not bool(reduced(failed, "max")):
        for _, norm in norms:
            for buffer in norm.buffers():
                if buffer.is_floating_point():
                    buffer.copy_(reduced(buffer, "mean"))
        then = _distance(dense, pruned, judged)
    if then.nearer_than(now):
        return [f"{path}.{n}" for path, norm in norms for n, _ in norm.named_buffers()], then
    with torch.no_grad():
        for name, tensor in pruned.named_buffers():
            tensor.copy_(old[name])
    return [], now


@torch.no_grad()
def masked(model: nn.Module, masks: Masks) -> nn.Module:
    """Multiply masks into a model's weights, and return it."""
    for name, parameter in model.named_parameters():
        if name in masks:
            parameter.mul_(masks[name].to(parameter.device))
    return model


def _any_masked(masks: Masks) -> bool:
    """Tell whether anything is masked."""
    return any(not bool(mask.all()) for mask in masks.values())


def _value(model: nn.Module, name: str) -> Tensor:
    path, _, last = name.rpartition(".")
    value: Tensor = getattr(model.get_submodule(path), last)
    return value.detach()


def _notes(job: Refitting, batches: Sequence[Batch], before: Distance) -> tuple[str, ...]:
    notes = []
    if isnan(before.error):
        notes.append(
            "repair: the dense model's outputs on held-out batches do not differ from each other, "
            "as of a single row: how far they are from dense is not known; give larger batches"
        )
    elif _any_masked(job.masks) and not before.error > 0:
        notes.append(
            "repair: on this data the outputs are the same whatever goes, as with a last layer of "
            "zeros: errors say nothing of what was chosen"
        )
    if not any(batch.held for batch in batches):
        notes.append(
            "repair: with one batch nothing can be held out: how strongly weights are held to "
            "their old values was not chosen by data, and errors are of the batch that was fitted"
        )
    for name, many in job.starved.items():
        notes.append(f"repair: {many} of the experts of {name} left as they are: too few rows")
    for why in dict.fromkeys(refit.why for refit in job.refits if refit.why):
        names = [refit.tensor for refit in job.refits if refit.why == why]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        notes.append(f"repair: {', '.join(names[:3])}{more} left as they are: {why}")
    return tuple(notes)
