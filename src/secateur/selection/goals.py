"""What a config wants of the costs of a model, as goals: shares and amounts alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from secateur.config import Config
from secateur.costs import COSTS, Cost, Goal, Reached, Subject, amount_of
from secateur.errors import ConfigError
from secateur.structure import Structure
from secateur.types import Example

from .targets import Selectable


def goals_of(
    config: Config,
    structure: Structure | None,
    selectables: Sequence[Selectable],
    model: nn.Module | None,
    example: Example,
    made: dict[str, Cost],
) -> tuple[Goal, ...]:
    """Return the goals of a config; none where it asks for channels or single weights.

    ``made`` holds costs of the same model that were made before, and gets those that are new.

    Raises:
        ConfigError: a goal has no meaning for such selectables.
    """
    if config.of == "channels" and not config.budget:
        return ()
    _check(config, structure, selectables)
    assert structure is not None
    if model is None:
        raise ConfigError("a budget needs the model and its example inputs")
    subject = Subject(model, example, structure.inferred, config.latency_table)

    def goal(of: str, allowed: float | None, asked: str, share: float = 0.0) -> Goal:
        cost = made[of] = made[of] if of in made else COSTS[of](subject)
        dense = cost.amount(lambda atom: atom.size)
        if not dense:
            raise ConfigError(f"of={of!r}: the dense model costs 0 of it, so that nothing can go")
        return Goal(
            cost, (1 - share) * dense if allowed is None else allowed, dense, asked, allowed is None
        )

    share = open_share(selectables)
    goals = [goal(config.of, None, f"{share:.1%} to go", share)] if share is not None else []
    of = config.of if not goals else "channels"
    for written in config.budget:
        amount = amount_of(written, of)
        asked, value = f"at most {amount.written}", amount.value
        fixed = (None, asked, 1 - value) if amount.relative else (value, asked)
        goals.append(goal(amount.of, *fixed))
    return tuple(goals)


def open_share(selectables: Sequence[Selectable]) -> float | None:
    """Return the share of a cost that is to go, where one is asked for."""
    shares = (s.request.sparsity for s in selectables if not s.request.fixed)
    return next(shares, None) or None


def reached(goal: Goal, amount: float, spread: str = "") -> Reached:
    """Return what a goal asked for beside what there is."""
    shown = goal.cost.shown
    gone = 1 - amount / goal.dense if goal.dense else 0.0
    met = amount <= goal.allowed * (1 + 1e-9)
    name = goal.cost.name()
    return Reached(name, goal.asked, shown(goal.dense), shown(amount), gone, met, spread)


def missed(goals: Sequence[Reached]) -> str:
    """Return which goals are missed after all, and what to do; "" where none is.

    A decision meets them: it is older than what is measured now, or was loaded.

    >>> missed([])
    ''
    """
    found = "; ".join(str(goal) for goal in goals if not goal.met)
    return found and (
        f"{found}. When it was decided what goes, less was measured or asked: call decide() before "
        "finish(), which measures and chooses anew, or ask for less"
    )


def counts_of(
    goal: Goal, structure: Structure, counts: Mapping[str, int], drop: Iterable[str] = ()
) -> float:
    """Return what is left of a goal's cost when groups keep so many positions, and blocks go."""
    count = structure.counter(counts)
    return goal.cost.amount(count) - sum(
        goal.cost.of_block(structure.block(name), count) for name in drop
    )


def _check(config: Config, structure: Structure | None, selectables: Sequence[Selectable]) -> None:
    said = f"of={config.of!r}" if config.of != "channels" else f"budget={list(config.budget)!r}"
    if structure is None or any(s.group is None for s in selectables):
        raise ConfigError(f"{said} needs granularity 'group' for all targets")
    open_ = [s.request.sparsity for s in selectables if not s.request.fixed]
    if any(sparsity is None for sparsity in open_):
        raise ConfigError(f"{said} needs a sparsity, not a threshold")
    if len(set(open_)) > 1:
        raise ConfigError(f"{said} needs one sparsity for all targets")
    if not config.budget and all(t.sparsity is None for t in config.resolved_targets()):
        raise ConfigError(f"{said} needs a sparsity, which is its goal")
    if not open_:
        raise ConfigError(
            f"{said}: the allocation names all that could meet the goal; leave some of it out, or "
            "the goal"
        )
