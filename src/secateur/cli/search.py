"""``secateur search``: many allocations are tried, here or on many machines, and one is saved."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from secateur.config import Config
from secateur.errors import ConfigError
from secateur.repair import repairs
from secateur.runtime.batches import held
from secateur.scoring.criteria import criteria
from secateur.searching import Options, Search
from secateur.searching import search as searched

from .calibrate import NONE, usual_loss
from .data import read_data
from .models import Loaded, keywords, load
from .options import NOTHING, UNKNOWN, Calibration, Given, Model, with_settings
from .outcome import check_place, config_of, reported
from .places import imported
from .show import AsJson, show

OTHERS = (
    *("targets", "strict", "allocation", "method", "method_options"),
    *("schedule", "start", "steps", "every"),
)
"""Settings that a search has no use for, or that are options of another name."""
DEFAULT = Options()


@Parameter(name="*")
@dataclass(frozen=True)
class Conduct:
    """How a search is conducted.

    Parameters
    ----------
    trials
        How many are made, by all machines together; those that are there already count.
    sampler
        tpe, annealing, amc, cmaes, random, or nsga2, which looks for the front of value and cost.
    sampler_option
        key=value for the sampler; repeat it for more.
    storage
        A file, or a URL as postgresql+psycopg://host/studies.
    name
        Of the study, where one storage holds several.
    direction
        minimize, where lower values are better.
    per
        Draw a share for each group, or for each block of them.
    heartbeat
        Seconds between two signs of life; the trial of who misses four is made again.
    same
        data, evaluate, train or loss, which counts as the same as when the study was begun though
        it is other; repeat it for more.
    """

    trials: int = 40
    sampler: str = "tpe"
    sampler_option: Annotated[list[str] | None, Parameter(negative=())] = None
    storage: Annotated[str | None, Parameter(env_var="SECATEUR_STORAGE")] = None
    name: str = DEFAULT.name
    direction: Literal["maximize", "minimize"] = DEFAULT.direction
    per: Literal["group", "block"] = DEFAULT.per
    heartbeat: float = DEFAULT.heartbeat
    same: Annotated[list[str] | None, Parameter(negative=())] = None

    def settings(self) -> dict[str, Any]:
        """Return them as keywords of ``secateur.search``, but for the storage."""
        given = {each.name: getattr(self, each.name) for each in fields(self)}
        options = keywords(given.pop("sampler_option") or ())
        del given["storage"]
        return {**given, "same": given["same"] or (), "sampler_options": options}


USUAL = Conduct()


@with_settings(Config, without=OTHERS)
def search(
    model: Model,
    /,
    *,
    out: Path,
    evaluate: str,
    conduct: Conduct = USUAL,
    config: Path | None = None,
    best_effort: Annotated[bool, Parameter(negative=())] = False,
    calibration: Calibration = UNKNOWN,
    train: str | None = None,
    given: Given = NOTHING,
    as_json: AsJson = False,
    **settings: Any,
) -> None:
    """Try many allocations and save the best: secateur search MODEL --evaluate f --sparsity 0.5.

    The same command goes on where it was stopped. On several machines, with one --storage, it
    shares the trials among them; each ends with the same best model.

    Parameters
    ----------
    out
        Folder for what secateur prune writes, and for the study, search.journal.
    evaluate
        module:function of (model) that returns a number, or yields numbers on the way to one.
    config
        A YAML, JSON or TOML file of settings and targets; options below go over it.
    best_effort
        Where the goal cannot be met, remove as much as can go, and say so first.
    train
        module:function of (model), which trains the smaller model a little in each trial.
    """
    check_place(out)
    chosen = config_of(config, settings | ({"strict": False} if best_effort else {}))
    score, trainer = imported(evaluate), imported(train) if train else None
    loaded = load(model, given)
    found = searched(
        loaded.model,
        loaded.example,
        score,
        config=chosen,
        storage=conduct.storage or out / "search.journal",
        train=trainer,
        **conduct.settings(),
        **_seen(calibration, chosen, loaded),
    )
    _saved(found, out, chosen, loaded, as_json)


def _seen(given: Calibration, config: Config, loaded: Loaded) -> dict[str, Any]:
    """Return what a search knows of data, as keywords."""
    if given.repair not in (None, NONE):
        repairs[given.repair]  # an unknown name is said before data is read
    if given.data is None:
        return {"repair": given.repair}
    loss = imported(given.loss) if given.loss else None
    asking = (criteria.asks(t.criterion, "backward") for t in config.resolved_targets())
    if loss is None and any(asking):
        loss = usual_loss
    batches = read_data(given.data, loaded.model, loaded.source.model, given.batch_size)
    batches = batches if loss else held(batches, "--data")
    return {"data": batches, "loss": loss, "repair": given.repair}


def _saved(found: Search, out: Path, config: Config, loaded: Loaded, as_json: bool) -> None:
    """Write the best model and the report of the search."""
    if found.none_whole:
        raise ConfigError(found.none_whole)
    result = found.result()
    result.save(out, dense=loaded.source)
    history = [{"step": float(t.slot), "value": t.value} for t in found.whole]
    lines, facts = reported(result, loaded.model, loaded.example, out, history, config, found)
    lines.renderables.insert(0, found)
    show(lines, facts, as_json=as_json)
