"""``fit``: rounds of prune, repair and train within a budget of time or steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from secateur.config import Config
from secateur.defaults import BETWEEN, WITH_DATA
from secateur.errors import ConfigError
from secateur.scoring.allocations import allocators

from .deadline import Deadline
from .job import Job
from .options import Options, Train
from .rounds import Fitted

OURS = ("schedule", "steps", "every", "start")
"""Settings of ``Config`` that a fit makes of its budget."""

REPAIRED = BETWEEN
"""How to choose what goes where a repair follows: best of what was measured on a ResNet-20."""
UNREPAIRED = {"criterion": "taylor", "scope": "global"}
ALLOTTED = {"criterion": WITH_DATA}
"""How to score where an allocation says how much goes where."""


def fit(
    model: nn.Module,
    sparsity: float | None = None,
    *,
    train: Train,
    evaluate: Callable[[nn.Module], float],
    minutes: float | None = None,
    steps: int | None = None,
    config: Config | Mapping[str, Any] | None = None,
    **settings: Any,
) -> Fitted:
    """Prune a model and train the smaller one, within so many minutes or steps.

    What matters least goes from a copy, what stays is repaired, the copy is cut, and the smaller
    model is trained, by your loss and the dense model's outputs, along one cosine of the learning
    rate.  With ``rounds`` the first part of the budget goes into several prunings, each of which
    is trained under its masks.  What measured best of all that meet the goal is kept, or what the
    repair left where training cost more than the cut did.

    Args:
        model: the dense model; it stays as it is, and teaches.  The copy has an optimizer besides.
        sparsity: the share of ``of`` (by default "macs") that goes.
        train: batches: a loader, a list, or a function that returns an iterable.  Each is a pair of
            inputs and labels, or a dict of keyword arguments with ``labels``.
        evaluate: ``(model) → number``, larger is better.
        minutes: the budget, measuring included; or else ``steps`` of the optimizer.
        settings: of pruning, as for ``prune``, by default ``REPAIRED`` or, without a repair,
            ``UNREPAIRED``; or fields of ``secateur.fitting.Options``.

    Raises:
        ConfigError: before anything is trained, where settings contradict each other.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    >>> batches = [(torch.randn(4, 8), torch.randint(0, 4, (4,)))] * 3
    >>> how = {"steps": 8, "on_round": lambda made: None}
    >>> fitted = fit(net, 0.5, train=batches, evaluate=lambda net: 0.9, **how)
    >>> fitted.model[0].out_features, [each.step for each in fitted.rounds]
    (8, [0, 5, 7, 8])
    """
    given = settings if sparsity is None else {**settings, "sparsity": sparsity}
    options = Options.of(given, train, evaluate)
    differentiated = all(parameter.requires_grad for parameter in model.parameters())
    chosen = _config(config, given, options, differentiated=differentiated)
    return Job(model, chosen, options, Deadline(minutes, steps)).run()


def _config(
    config: Config | Mapping[str, Any] | None,
    settings: Mapping[str, Any],
    options: Options,
    *,
    differentiated: bool,
) -> Config:
    """Return what is pruned in each round.

    Args:
        differentiated: all parameters have gradients, which a criterion may ask for.

    Raises:
        ConfigError: both forms are given; or what a fit decides itself.
    """
    if config is not None and settings:
        raise ConfigError("give either config=… or single settings to fit(), not both")
    made = config if isinstance(config, Config) else Config.from_dict(config or settings)
    if said := [name for name in OURS if name in made.model_fields_set]:
        raise ConfigError(f"fit() makes {said[0]!r} of its budget and rounds=…: leave it out")
    if made.method is not None:
        raise ConfigError(f"method {made.method!r} learns in every step: use Pruner in your loop")
    defaults: dict[str, Any] = {"schedule": "geometric", "steps": options.rounds}
    if not made.model_fields_set & {"of", "budget"}:
        defaults["of"] = "macs"
    if not any("criterion" in each.model_fields_set for each in (made, *made.targets)):
        ranked = UNREPAIRED if options.repair == "none" else REPAIRED
        plain = allocators.facts[made.allocate].plain
        defaults |= ranked if plain and (ranked is REPAIRED or differentiated) else ALLOTTED
    return made.with_defaults(defaults)
