"""One block: read, watched, decided on, repaired, cut, checked and handed on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from secateur.config import Config
from secateur.errors import ModelError
from secateur.masks import masking
from secateur.pruner import Pruner
from secateur.repair import Repair
from secateur.replacements import in_plain_operations
from secateur.runtime.batches import call
from secateur.runtime.forward import evaluating, undisturbed
from secateur.scoring.criteria import criteria
from secateur.selection.targets import Selectable
from secateur.shrinking import Plan, Verification
from secateur.structure import Structure, analyze

from .alone import Alone
from .states import CUT, DENSE, PRUNED, Given

EXAMPLE = "example"
"""The name of the batch that models are analysed and compared on."""


@dataclass(frozen=True)
class Inputs:
    """What a block is given.

    Attributes:
        example: one batch of the dense stream.
        cut: the same batch, of the stream behind blocks that were cut.
        dense: the calibration batches behind dense blocks.
        pruned: likewise behind masked ones.
    """

    example: Given
    cut: Given
    dense: Given
    pruned: Given


@dataclass(frozen=True)
class Smaller:
    """What became of a block."""

    plan: Plan
    verification: Verification | None
    repair: Repair | None
    notes: tuple[str, ...]


def prune_block(
    block: Alone,
    inputs: Inputs,
    wanted: Sequence[Selectable],
    config: Config,
    how: str | None,
    *,
    verify: bool = True,
) -> Smaller:
    """Cut a block in place, and write the streams that the next one is given.

    The stream behind the pruned block is that of the block with masks on: what the smaller one
    computes is the same but for roundings, and so does the whole model when it is masked.

    Args:
        block: the dense one, with its weights.
        inputs: of it.
        wanted: what is decided on, by the whole model's names.
        config: that these came from.
        how: the repair, or None.
        verify: compare the smaller with the masked block.
    """
    if not wanted:
        hand_on(block, inputs.example, DENSE)
        hand_on(block, inputs.dense, DENSE)
        hand_on(block, inputs.pruned, PRUNED)
        hand_on(block, inputs.cut, CUT)
        return Smaller(Plan({}), None, None, ())
    structure = analyze(block, inputs.example[0])
    mine = [_known(each, structure) for each in wanted]
    pruner = Pruner(
        block,
        _neutral(config),
        inputs.example[0],
        structure=structure,
        selectables=mine,
        trained=False,
    )
    pruner.repairs, pruner.candidates.named = how, True  # its model's class loads it
    if any(criteria.asks(each.criterion, "forward") for each in mine):
        pruner.calibrate(inputs.dense)
    pruner.decide()
    hand_on(block, inputs.example, DENSE)
    hand_on(block, inputs.dense, DENSE)
    record = pruner.repair(inputs.dense, how, given=inputs.pruned) if how is not None else None
    with masking.zeroed(block, pruner.masks):
        hand_on(block, inputs.pruned, PRUNED)
    result = pruner.finish(verify=verify)
    hand_on(block, inputs.cut, CUT)
    return Smaller(result.plan, result.verification, record, tuple(result.notes))


def _neutral(config: Config) -> Config:
    """Return settings that ask for nothing more than selectables do by themselves."""
    kept = {"granularity", "criterion", "seed", "inexact", "grid", "strict"}
    return Config(**{name: getattr(config, name) for name in kept & config.model_fields_set})


def _known(each: Selectable, structure: Structure) -> Selectable:
    """Return a selectable whose group is that of the block alone.

    Raises:
        ModelError: alone, another set of slices hangs together.
    """
    if each.group is None:
        return each
    found = {group.name: group for group in structure.groups}.get(each.name)
    if found is None or set(found.members) != set(each.group.members):
        why = structure[each.name].frozen if found is None else "other slices go with it"
        raise ModelError(
            f"streaming: {each.name!r} cannot be pruned in its block alone ({why}): prune in memory"
        )
    return replace(each, group=found)


@torch.no_grad()
def hand_on(block: Alone, given: Given, kind: str) -> None:
    """Write the stream behind a block, of each batch."""
    with undisturbed(block), evaluating(block), in_plain_operations(block):
        for index, name in enumerate(given.batches):
            out: Tensor = call(block, given[index])
            given.states.write(kind, given.place + 1, name, out)


def tensors_of(block: nn.Module) -> dict[str, Tensor]:
    """Return what a checkpoint holds of a block."""
    return {name: tensor.detach().cpu() for name, tensor in block.state_dict().items()}
