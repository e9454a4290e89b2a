"""What goes from which block: decided on shapes alone, before any weight is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from secateur.config import Config
from secateur.defaults import WITH_DATA, has_criterion
from secateur.errors import ConfigError
from secateur.graph.kinds import DEPTH
from secateur.scoring.allocations import allocators
from secateur.selection.allocation import allotted
from secateur.selection.budget import Budget
from secateur.selection.select import Request
from secateur.selection.targets import Selectable, scored, selectables
from secateur.settings import pattern_share
from secateur.structure import Structure
from secateur.types import Example

from .chain import Chain

WHAT = ("width", "heads")
"""What goes where nobody says it: the kinds of groups that lie within one block."""
SCORED_TOGETHER = "are ranked or measured together, for which all blocks are needed at once"


@dataclass(frozen=True)
class Asked:
    """What is decided on in each block, with how much of it goes.

    Attributes:
        by_block: block → its selectables; none of a block that stays as it is.
        notes: what a user should know.
        budget: of the whole model.
    """

    by_block: Mapping[str, Sequence[Selectable]]
    notes: tuple[str, ...]
    budget: Budget


def completed(config: Config) -> Config:
    """Return a config with what streaming takes for settings that were not given.

    Raises:
        ConfigError: it asks for what cannot be decided block by block.
    """
    every = (config, *config.targets)
    problems = []
    if any(DEPTH in target.what for target in every):
        problems.append(f"what={DEPTH!r} drops whole blocks: do that first, in memory")
    if any(target.scope == "global" for target in every):
        problems.append(f"scope='global': scores {SCORED_TOGETHER}")
    facts = allocators.facts[config.allocate]
    if facts.pooled or facts.data or config.allocate not in ("uniform", "depth"):
        problems.append(f"allocate={config.allocate!r}: shares {SCORED_TOGETHER}; take 'uniform'")
    if any(target.normalize == "output" for target in every):
        problems.append(f"normalize='output': scores {SCORED_TOGETHER}")
    if config.method is not None or config.schedule != "constant" or config.steps != 1:
        problems.append("streaming prunes in one shot: no method that trains, schedule or steps")
    if problems:
        raise ConfigError(*(f"streaming: {problem}" for problem in problems))
    if not has_criterion(config):
        config = config.replace(criterion=WITH_DATA)
    groups = config.granularity == "group" and pattern_share(config.granularity) is None
    return config.replace(what=WHAT) if groups and not config.what else config


def asked(
    model: nn.Module, structure: Structure, chain: Chain, config: Config, example: Example
) -> Asked:
    """Return what goes from each block.

    Args:
        model: the whole one, on ``meta``.
        structure: of it.
        chain: its blocks.
        config: as ``completed`` returns it.
        example: inputs.

    Raises:
        ConfigError: what is asked for lies in several blocks.
        GoalError: so much cannot go.
    """
    found = allotted(config, structure, selectables(model, config, structure))
    owners = [{chain.owner(part.tensor) for part in each.parts} for each in found]
    shared = [
        each.name
        for each, owner in zip(found, owners, strict=True)
        if each.group is not None and (len(owner) > 1 or None in owner)
    ]
    if shared:
        raise ConfigError(
            f"streaming: {shared[0]!r} is read outside of one block, and with it every block would "
            f"have to be cut at once: say what={list(WHAT)}, or prune in memory"
        )
    within = [each for each, owner in zip(found, owners, strict=True) if None not in owner]
    if not within:
        raise ConfigError("streaming: nothing of what is asked for lies within the blocks")
    outside = [each.name for each, owner in zip(found, owners, strict=True) if None in owner]
    notes = tuple(
        f"{name}: lies in no block, and stays as it is; in memory it would be pruned too"
        for name in outside
    )
    budget = Budget(config, structure, within, model, example)
    if budget.goals and len(config.what) > 1 and "allocate" not in config.model_fields_set:
        notes += ("kinds share the goal alike; in memory it is measured who loses how much",)
    by_block: dict[str, list[Selectable]] = {path: [] for path in chain.paths}
    counted, said = _counted(config, within, budget)
    for each in counted:
        owner = chain.owner(each.parts[0].tensor)
        assert owner is not None
        by_block[owner].append(each)
    return Asked(by_block, (*notes, *said), budget)


def _counted(
    config: Config, within: Sequence[Selectable], budget: Budget
) -> tuple[Sequence[Selectable], Sequence[str]]:
    """Return selectables that ask for a number of positions each, and what a user should know."""
    if not all(each.group is not None and each.request.threshold is None for each in within):
        if config.budget or config.of != "channels":
            raise ConfigError(
                f"streaming: of={config.of!r} and budgets are of groups, with a sparsity"
            )
        return within, ()
    requests = [scored(s, torch.zeros(s.group.size)) for s in within if s.group is not None]
    keeps, notes = budget.select(requests, 1.0, None)
    counted = [
        replace(each, request=_exactly(each, len(keep), int(keep.sum())))
        for each, keep in zip(within, keeps, strict=True)
    ]
    return counted, notes


def _exactly(each: Selectable, size: int, count: int) -> Request:
    """Return the request for a number of positions, which no rounding changes."""
    share = (size - count + 0.5) / size if count < size else 0.0
    return replace(
        each.request,
        sparsity=share,
        min_sparsity=None,
        max_sparsity=None,
        round_to=1,
        pool=None,
        widths=None,
    )
