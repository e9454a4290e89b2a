"""What ``secateur prune`` learns from ``--data``: what the criterion needs, and the repair."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import ConfigError
from secateur.pruner import Pruner
from secateur.repair import repairs
from secateur.runtime.batches import held

from .data import read_data
from .options import Calibration
from .places import imported

USUAL = "least_squares"
NONE = "none"


def repair_asked(pruner: Pruner, given: Calibration, *, trains: bool) -> str | None:
    """Return the repair that is to follow the decision, None for none.

    Raises:
        ConfigError: it needs data, and there is none, or data with labels.
        UnknownNameError: there is no such repair.
    """
    labelled = given.loss is not None or needs_loss(pruner)
    if given.repair is None:
        return None if given.data is None or labelled or trains else USUAL
    if given.repair == NONE:
        return None
    repairs[given.repair]  # an unknown name is said before anything takes long
    if given.data is None:
        raise ConfigError(f"--repair {given.repair} needs --data, batches of inputs")
    if labelled:
        raise ConfigError(
            f"--repair {given.repair} needs batches of inputs alone, and with a loss --data gives "
            "what the loss takes: choose a criterion that needs none (`secateur list` says which)"
        )
    return given.repair


def calibrate(
    pruner: Pruner, given: Calibration, folder: str, *, again: bool
) -> Iterable[Any] | None:
    """Let a pruner see the calibration inputs, and return them; None where there are none.

    Args:
        pruner: what is calibrated.
        given: the options.
        folder: where MODEL was read from.
        again: whether the batches are read a second time.
    """
    if given.data is None:
        return None
    batches = read_data(given.data, pruner.model, folder, given.batch_size)
    if again:
        batches = held(batches, "--data")
    loss = imported(given.loss) if given.loss else None
    if loss is None and needs_loss(pruner):
        loss = usual_loss
    pruner.calibrate(batches, loss)
    return batches


def needs_loss(pruner: Pruner) -> bool:
    return bool(pruner.statistics.parts)


def usual_loss(model: nn.Module, batch: Any) -> Tensor:
    """Return the loss of a dict of keyword arguments, or of (inputs, labels)."""
    if isinstance(batch, Mapping):
        return model(**batch).loss
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        inputs, labels = batch
        return torch.nn.functional.cross_entropy(model(inputs), labels)
    raise ConfigError(
        f"--data gives batches of type {type(batch).__name__}, neither dicts nor (inputs, labels): "
        "say what their loss is with --loss module:function"
    )
