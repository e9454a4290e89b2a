"""Masks that somebody else made, completed, and what stays refitted to make up for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from secateur.errors import ConfigError
from secateur.repair import Repair, repair
from secateur.structure import Structure
from secateur.types import Masks

from .completion import complete, group_masks
from .cut import Surgery


def repaired(
    surgery: Surgery,
    masks: Mapping[str, Tensor],
    structure: Structure,
    data: Iterable[Any],
    how: str,
    *,
    inexact: bool,
) -> tuple[Masks, Repair]:
    """Give a dense model the weights that make up for masks; return these, completed.

    What a removed position would emit all the same is masked, and fitted to like all that goes.

    Args:
        surgery: on the dense model; takes the new weights back, if it must.
        masks: parameter name → bool tensor of its shape; partial, and by any name of a tied one.
        structure: of the model.
        data: batches of inputs.
        how: a name in ``secateur.repairs``.
        inexact: as for ``shrink``.

    Raises:
        MaskError: a mask fits no parameter.
        ConfigError: there are no batches, the model refuses one, or its masked weights are zero
            already.
        UnknownNameError: there is no such repair.
    """
    done = complete(structure, masks, inexact=inexact)
    whole = dict(group_masks(structure, done.keeps))
    names = structure.inferred.recording.names
    for name, mask in masks.items():
        own = names[name]
        whole[own] = whole[own].to(mask.device) & mask if own in whole else mask
    _check_dense(surgery.model, masks)
    values, record = repair(surgery.model, whole, structure, data, how)
    model = surgery.model
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, value in values.items():
        surgery.set_tensor(state[name], value.to(state[name].dtype))
    return whole, record


def _check_dense(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Raise a ConfigError if nothing is left of what the masks remove."""
    state = dict(model.named_parameters(remove_duplicate=False))
    removed = {name: ~mask for name, mask in masks.items() if not bool(mask.all())}
    gone = [not bool(state[n].detach()[m.to(state[n].device)].any()) for n, m in removed.items()]
    if gone and all(gone):
        raise ConfigError(
            "data: the masked weights are zero already, so that nobody knows what the model "
            "computed before: give it with its dense weights, or leave data out"
        )
