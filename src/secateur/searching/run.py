"""``search``: many allocations are tried, and the best one is kept."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from secateur.config import Config
from secateur.errors import MissingExtraError
from secateur.one_shot import one_shot_config, prepared, repair_wanted
from secateur.runtime.batches import held
from secateur.runtime.fingerprints import facts_of, facts_of_data
from secateur.selection.calibration import Loss
from secateur.types import Example

from .found import Search
from .job import Evaluate, Job, Train
from .options import Options, check
from .space import Space

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from optuna.storages import BaseStorage


def search(
    model: nn.Module,
    example_inputs: Example,
    evaluate: Evaluate,
    sparsity: float | None = None,
    *,
    trials: int = 40,
    sampler: str | BaseSampler = "tpe",
    storage: str | os.PathLike[str] | BaseStorage | None = None,
    config: Config | Mapping[str, Any] | None = None,
    data: Iterable[Any] | None = None,
    loss: Loss | None = None,
    repair: str | None = None,
    train: Train | None = None,
    **settings: Any,
) -> Search:
    """Try many allocations at one cost, and find that with the best ``evaluate(model)``.

    Each trial draws a share for every group, makes them meet the goal, prunes a copy, repairs it
    (with ``data``), trains it (with ``train``) and evaluates it.  The first is what ``prune`` does
    alone.  Called again, it goes on; machines with one ``storage`` share the trials.

    Args:
        evaluate: ``(model) → number``, or an iterator over numbers, of which the last one counts.
        sparsity: the share of ``of`` (by default "macs") that goes in each; of a front the most.
        trials: of all workers together; what is in the storage already counts.
        sampler: a name in ``secateur.searching.samplers``, or one of Optuna's.
        storage: a file, a URL, or one of Optuna's; by default ``<name>.journal`` in this folder.
        train: trains the smaller model a little.
        settings: of pruning, as for ``prune``, or fields of ``secateur.searching.Options``.

    Raises:
        ConfigError: also where the study is of another search, or ``evaluate`` returns no number.

    >>> import torch; from optuna.storages import InMemoryStorage
    >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    >>> small = lambda model: -model[0].out_features  # a score of yours goes here
    >>> search(net, torch.zeros(1, 8), small, 0.5, trials=2, storage=InMemoryStorage()).best.value
    -8.0
    """
    given = settings if sparsity is None else {**settings, "sparsity": sparsity}
    options = Options.of(given)
    check(trials, evaluate, train)
    shared = _needed()
    data = None if data is None else held(data)
    how, chosen = repair_wanted(repair, data, loss), _with_goal(one_shot_config(config, given))
    pruner, notes = prepared(model, chosen, example_inputs, data, loss, how)
    job = Job(pruner, example_inputs, data, how, train, evaluate)
    conduct = Space(pruner, options.per), sampler, storage, trials, options
    return shared(job, *conduct, _known(job, loss)).work(notes)


def _known(job: Job, loss: Loss | None) -> dict[str, Any]:
    """Return what tells data and functions from those of another search, by their names."""
    functions = {"evaluate": job.evaluate, "train": job.train, "loss": loss}
    facts = {name: facts_of(function) for name, function in functions.items()}
    return {"data": facts_of_data(job.data), **facts}


def _with_goal(config: Config) -> Config:
    """Return the config with a goal of MACs, where nothing is said of what it is."""
    said = config.model_fields_set & {"of", "budget"}
    return config if said else config.with_defaults({"of": "macs"})


def _needed() -> Any:
    """Return what needs Optuna.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        from .shared import Shared
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "optuna":
            raise
        raise MissingExtraError("secateur.search", "optuna", "search") from error
    return Shared
