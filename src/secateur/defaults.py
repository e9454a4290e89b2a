"""What nobody named: the criterion, and how layers share what goes, which data decides."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from math import prod
from typing import Any

from torch import nn

from .config import Config
from .errors import ConfigError, SecateurError
from .pruner import Pruner
from .repair import Distance
from .runtime.copying import copied
from .selection.tokens import random_tokens
from .shrinking.mixing import mixes
from .types import Example

USUAL = "least_squares"
"""The repair where there is data."""

WITH_DATA = "activation"
"""The criterion where there is data and none is named."""

BETWEEN: dict[str, Any] = {
    "criterion": "obs",
    "scope": "global",
    "normalize": "output",
    "max_sparsity": 0.75,
}
"""Layers lose what costs their outputs least after a repair, none more than three quarters."""

SHARING = {*BETWEEN, "allocate", "allocation", "alike", "threshold"}
"""Settings that say who loses how much."""

MOMENTS = 2**31
"""Bytes of second moments up to which ``BETWEEN`` is tried: all layers' are held at once."""


def has_criterion(config: Config) -> bool:
    """Tell whether a criterion was named, or single weights are pruned: then it is the config's."""
    return _says(config, {"criterion"})


def by_default(pruner: Pruner, *, has_data: bool) -> tuple[Pruner, list[str]]:
    """Return the pruner that scores as well as can be where no criterion is named, and a note.

    With data that is ``activation``.  Without, a model that takes tokens is watched on random ones:
    that was better than weights alone on all three measured (benchmarks/results/defaults.md).
    """
    if has_criterion(pruner.config):
        return pruner, []
    assert pruner.structure is not None
    tokens = [] if has_data else random_tokens(pruner.example, pruner.structure)
    if not has_data and not tokens:
        return pruner, []
    config = pruner.config.replace(criterion=WITH_DATA)
    watching = Pruner(
        pruner.model,
        config,
        pruner.example,
        structure=pruner.structure,
        trained=False,
        costs=pruner.budget.costs,
    )
    if has_data:
        return watching, []
    try:
        watching.calibrate(tokens)
    except ConfigError as error:
        return pruner, [f"scored by weights alone: on random tokens the model fails ({error})"]
    return watching, ["scored on random tokens: data=[batches of real ones] says more"]


def by_kinds(pruner: Pruner, *, has_inputs: bool) -> Pruner:
    """Return a pruner that measures how kinds of groups share a cost, where nobody said how.

    Args:
        pruner: that has decided nothing yet.
        has_inputs: there will be batches of inputs to measure on.
    """
    config = pruner.config
    several = len(config.what) > 1 and not config.targets and not mixes(config)
    costs = bool(config.budget) or config.of != "channels"
    if not (several and costs and has_inputs) or _says(config, SHARING - {"criterion"}):
        return pruner
    return Pruner(
        pruner.model,
        config.replace(allocate="error"),
        pruner.example,
        structure=pruner.structure,
        trained=False,
        costs=pruner.budget.costs,
    )


def open_to_data(model: nn.Module, config: Config, how: str) -> bool:
    """Tell whether a cost is to be shared out, nobody said how, and ``nearest`` may find out."""
    if how != USUAL or _says(config, SHARING) or mixes(config) or len(config.what) > 1:
        return False
    if config.of == "channels" and not config.budget:
        return False
    features = (prod(p.shape[1:]) for p in model.parameters() if p.dim() > 1)
    return sum(4 * n**2 for n in features) <= MOMENTS


def nearest(
    model: nn.Module, config: Config, example: Example, data: Iterable[Any], how: str
) -> Pruner:
    """Return the repaired pruner, of a copy, that is nearest to the dense model on held-out data.

    Channels go layer by layer at one share, by ``activation``, or between layers by ``BETWEEN``:
    on residual networks the second kept 3 to 6 points more at half the MACs, on others less
    (benchmarks/results/repair.md).  Each way is decided and repaired on a copy of its own.

    Args:
        config: for which ``open_to_data``.
        data: batches of inputs, read once for each way and once more to repair.
        how: the name of the repair.
    """
    first = _repaired(model, config.replace(criterion=WITH_DATA), example, data, how)
    try:
        second = _repaired(model, config.with_defaults(BETWEEN), example, data, how)
    except SecateurError as error:
        first.notes.append(f"not shared between layers by obs: {error}")
        return first
    missed = [bool(each.budget.unmet) for each in (first, second)]
    nearer = _distance(second).nearer_than(_distance(first))
    other = missed[0] if missed[0] != missed[1] else nearer  # a goal that is met comes first
    won, lost = (second, first) if other else (first, second)
    ways = {id(first): "in each layer alike by activation", id(second): "between layers by obs"}
    won.notes.append(
        f"what goes is shared out {ways[id(won)]}: on held-out data {_distance(won)}; "
        f"{ways[id(lost)]} {_distance(lost)}"
    )
    return won


def _repaired(
    model: nn.Module, config: Config, example: Example, data: Iterable[Any], how: str
) -> Pruner:
    """Return a pruner of a copy that has decided what goes, and repaired it."""
    pruner = Pruner(copied(model), config, example, trained=False)
    pruner.repairs = how
    pruner.calibrate(data)
    pruner.decide()
    pruner.repair(data, how)
    return pruner


def _distance(pruner: Pruner) -> Distance:
    assert pruner.repaired is not None
    return pruner.repaired.after


def _says(config: Config, settings: AbstractSet[str]) -> bool:
    """Tell whether such a setting was given, or single weights go: then nothing is left open."""
    return any(
        target.model_fields_set & settings or target.granularity != "group"
        for target in (config, *config.targets)
    )
