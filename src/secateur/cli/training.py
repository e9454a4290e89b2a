"""``--train``: your loop, or batches that the command trains on within so many minutes."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated, Any

from cyclopts import Parameter

from secateur.config import Config
from secateur.errors import ConfigError
from secateur.fitting import Round, fit
from secateur.pruner import Pruner
from secateur.shrinking import Result

from .models import Loaded
from .options import Calibration
from .places import imported


@Parameter(name="*")
@dataclass(frozen=True)
class Training:
    """What trains the model while it is pruned.

    Parameters
    ----------
    train
        module:function of (model, pruner), your loop: it calls pruner.step() after each optimizer
        step, and may return what it measured, a list of dicts with "step", for the report.  With
        --minutes, a function without arguments that returns batches.
    minutes
        Prune, repair and train for so long, taught by the dense model.
    evaluate
        module:function of (model) that returns a number, larger is better; for --minutes.
    """

    train: str | None = None
    minutes: Annotated[float | None, Parameter(negative=())] = None
    evaluate: str | None = None

    def fits(self, dry_run: bool) -> bool:
        """Tell whether the command is to train within a budget.

        Raises:
            ConfigError: options are missing, or contradict each other.
        """
        if self.minutes is None:
            if self.evaluate is not None:
                raise ConfigError("--evaluate is for --minutes; your loop measures by itself")
            return False
        if self.train is None or self.evaluate is None:
            raise ConfigError(
                "--minutes needs --train module:function that returns batches, and --evaluate "
                "module:function of a model"
            )
        if dry_run:
            raise ConfigError("what --minutes prunes comes of the training: leave out --dry-run")
        return True


NONE = Training()


def fitted(
    loaded: Loaded, config: Config, training: Training, calibration: Calibration
) -> tuple[Result, list[dict[str, float]]]:
    """Prune and train within the budget; return the outcome, and what was measured on the way."""
    assert training.train is not None
    assert training.evaluate is not None
    if calibration.data is not None:
        raise ConfigError("--data is not read with --minutes: --train gives the batches")
    own: dict[str, Any] = {} if calibration.repair is None else {"repair": calibration.repair}
    if calibration.loss is not None:
        own["loss"] = imported(calibration.loss)
    made = fit(
        loaded.model,
        config=config,
        train=imported(training.train),
        evaluate=imported(training.evaluate),
        minutes=training.minutes,
        example_inputs=loaded.example,
        on_round=_told,
        **own,
    )
    return made.result, [{"step": float(each.step), "value": each.value} for each in made.rounds]


def _told(made: Round) -> None:
    print(made, file=sys.stderr, flush=True)  # stdout may be JSON


def decided(pruner: Pruner, train: str | None) -> list[dict[str, float]]:
    """Let the pruner decide, in the user's loop where there is one; return what that recorded."""
    if train is not None:
        return _trained(pruner, imported(train))
    if pruner.config.schedule != "constant" or pruner.config.steps != 1:
        raise ConfigError("a schedule or several steps need training: give --train module:function")
    pruner.decide()
    return []


def _trained(pruner: Pruner, train: Any) -> list[dict[str, float]]:
    """Run the user's loop and return what was recorded on the way."""
    steps: list[dict[str, float]] = []
    pruner.on_prune.append(lambda metrics: steps.append({"step": float(pruner.calls), **metrics}))
    told = train(pruner.model, pruner)
    if pruner.updates < pruner.config.steps:
        raise ConfigError(
            f"--train made {pruner.updates} of {pruner.config.steps} pruning steps: it must call "
            "pruner.step() after each optimizer step, often enough"
        )
    shown = [{key: row[key] for key in ("step", "sparsity")} for row in steps]
    return [*shown, *map(dict, told)] if isinstance(told, list) else shown
