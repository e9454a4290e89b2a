"""A repair below masks: the dense weights come back for as long as it takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import ConfigError
from secateur.masks import masking
from secateur.masks.classes import fill
from secateur.repair import Repair, repair
from secateur.runtime.distributed import restoring, sharded
from secateur.runtime.undo import Undo, undoable
from secateur.types import Masks

from .run import Run, masks_on


def check_repairable(run: Run) -> None:
    """Refuse a run that has nothing to repair, or nothing to repair it with."""
    if not run.decision.keeps:
        raise ConfigError("nothing is masked yet: call step() or decide() before repair()")
    if run.candidates.structure is None:
        raise ConfigError("repair() needs the example inputs that the pruner was made without")
    if run.before is None:
        raise ConfigError(
            "these masks were repaired already, and the dense weights that a repair needs are "
            "no more: give all data to one repair()"
        )


def repaired(
    run: Run, data: Iterable[Any], how: str, given: Sequence[Any] | None
) -> tuple[dict[str, Tensor], Repair]:
    """Return what a repair makes of the weights, without masks on meanwhile."""
    model, candidates = run.model, run.candidates
    on, before = masks_on(run), run.before or {}
    with Undo() as undo:
        if on:
            differentiable = run.method.learns_masks
            undo(partial(masking.put_on, model, on, differentiable=differentiable))
            masking.take_off(model, bake=False)
        besides = candidates.besides(run.decision.keeps, run.decision.drop)
        with masking.zeroed(model, before):
            masked = model, run.decision.masks, candidates.known
            return repair(*masked, data, how, given=given, **besides)


def fill_kept(model: nn.Module, masks: Masks, values: Mapping[str, Tensor]) -> None:
    """Give what is kept of tensors its new values, until the call that does it fails."""
    with torch.no_grad():
        state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        for name, value in values.items():
            where = masks.get(name, torch.ones_like(value, dtype=torch.bool))
            where = where.to(value.device)
            if sharded(state[name]):  # a rank that fails puts its own shard back, alone
                undoable(restoring(state[name]))
            else:
                undoable(partial(fill, state[name], where, state[name].detach()[where]))
            fill(state[name], where, value[where])
