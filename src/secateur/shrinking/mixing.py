"""Blocks and groups under one budget: how many blocks go is decided by what the outputs lose.

Blocks go in the order in which they cost least, one more at each try; groups give what is then left
of the budget.  Each try is measured as it would be cut: masked, repaired, and run on the data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite
from typing import Any

from torch import nn

from secateur.config import Config
from secateur.errors import ConfigError
from secateur.graph.blocks import outermost
from secateur.graph.kinds import DEPTH
from secateur.selection.decision import Decision
from secateur.structure import Structure
from secateur.types import Factored

from .plan import Plan
from .rankings import block_rankings
from .shallower import passing

PATIENCE = 2
"""So many blocks more that go, and each time the error is larger: then no more are tried."""
MET = 1 + 1e-9
DEFAULTS = {"allocate": "error", "of": "params"}
"""Of a config under which blocks go too: channels and blocks have no share in common."""


def mixes(config: Config) -> bool:
    """Tell whether blocks are to go beside groups, under one budget.

    >>> mixes(Config(what=["depth", "width"], sparsity=0.5)), mixes(Config(what=["width"]))
    (True, False)
    """
    return any(DEPTH in target.what for target in (config, *config.targets))


def check_mixed(config: Config, *, trained: bool) -> None:
    """Refuse what one budget for blocks and groups does not go with.

    Raises:
        ConfigError: it is no one-shot run of one target.
    """
    alone = f"what={DEPTH!r} removes blocks, and masks of training do not:"
    if trained or config.steps > 1 or config.method is not None:
        raise ConfigError(f"{alone} it goes by prune(), in one shot")
    if config.targets:
        raise ConfigError(f"what={DEPTH!r} is of the whole model: give it without targets")


@dataclass(frozen=True)
class Try:
    """What goes when some blocks do.

    Attributes:
        drop: the blocks.
        decision: on groups, with the blocks' masks.
        over: what is left beside what is allowed, 1 is met.
        error: of the outputs, after the repair that will follow.
    """

    drop: tuple[str, ...]
    decision: Decision
    over: float
    error: float = inf


def with_blocks(
    model: nn.Module,
    structure: Structure,
    batches: Sequence[Any],
    decided: Callable[[tuple[str, ...]], Try],
    error: Callable[[Try], float],
) -> Decision:
    """Return what goes of groups and blocks, so that the outputs lose least.

    Args:
        model: the dense one; it is not touched.
        structure: of it.
        batches: of inputs, to rank blocks and to measure on.
        decided: what goes of groups beside such blocks.
        error: of a try, which is not measured yet.

    Raises:
        ConfigError: there are no batches.
    """
    if not batches:
        raise ConfigError(
            f"what={DEPTH!r} is decided by what the outputs lose: give data=batches of inputs "
            "without a loss"
        )
    outer = outermost(structure.blocks)
    if not outer:
        made = decided(()).decision
        return replace(made, notes=[*made.notes, f"{structure.model} has no blocks that can go"])
    tried = list[Try]()
    drop: tuple[str, ...] = ()
    for left in range(len(outer), 0, -1):
        found = decided(drop)
        if found.over <= MET or left == 1:
            found = replace(found, error=error(found))
        tried.append(found)
        alone = bool(drop) and all(bool(keep.all()) for keep in found.decision.keeps.values())
        if alone or left == 1 or _worse(tried):
            break
        drop = (*drop, _next(model, structure, drop, batches))
    met = [each for each in tried if each.over <= MET] or tried[-1:]
    best = min(met, key=lambda each: each.error if isfinite(each.error) else inf)
    made, notes = best.decision, [_said(each, best) for each in tried if each.error < inf]
    masks = Factored(made.masks, Plan({}, best.drop).masks(structure))
    return replace(made, masks=masks, notes=[*made.notes, *notes], drop=best.drop)


def _worse(tried: Sequence[Try]) -> bool:
    """Tell whether more blocks only made it worse, several times."""
    errors = [each.error for each in tried if each.error < inf]
    return len(errors) > PATIENCE and min(errors[-PATIENCE:]) > min(errors[:-PATIENCE])


def _next(
    model: nn.Module, structure: Structure, drop: tuple[str, ...], batches: Sequence[Any]
) -> str:
    """Return the block that costs least beside those that go."""
    left = [block for block in outermost(structure.blocks) if block.name not in drop]
    skipped = passing(map(structure.block, drop))
    scores = block_rankings["error"](model, left, batches, skipped)
    return min(zip(scores, left, strict=True), key=lambda pair: pair[0])[1].name


def _said(each: Try, best: Try) -> str:
    what = f"without {', '.join(each.drop)}" if each.drop else "with all blocks"
    taken = ", which is taken" if each is best else ""
    return f"{what}: the outputs' error at the goal is {each.error:.3g}{taken}"
