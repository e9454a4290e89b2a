"""``prune``: the one call, from a model to a smaller one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from .config import Config
from .defaults import USUAL, by_default, by_kinds, nearest, open_to_data
from .errors import ConfigError
from .pruner import Pruner
from .repair import repairs
from .runtime.batches import held
from .runtime.copying import copied
from .runtime.ordinary import in_ordinary_mode
from .runtime.ranks import on_all_ranks
from .selection.calibration import Loss
from .settings import pattern_share
from .shrinking import Result
from .shrinking.by_config import asks_for_depth, without_blocks
from .types import Example


@in_ordinary_mode
@on_all_ranks
def prune(
    model: nn.Module,
    example_inputs: Example,
    sparsity: float | None = None,
    criterion: str | None = None,
    *,
    config: Config | Mapping[str, Any] | None = None,
    inplace: bool = False,
    verify: bool = True,
    data: Iterable[Any] | None = None,
    loss: Loss | None = None,
    repair: str | None = None,
    batches: Iterable[Any] | None = None,
    **settings: Any,
) -> Result:
    """Prune a model in one shot; print the result, whose ``model`` is the smaller one.

    Args:
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments.
        sparsity: the share to remove, of channels or of what ``of`` says.
        criterion: a name in ``secateur.criteria``.  If none is given, "activation" with ``data``
            or, on random tokens, for a model that takes tokens; else "l2".  Where a cost goes, data
            to repair with may choose "obs" between layers (``defaults.nearest``).
        config: all settings at once, instead of single ones.
        inplace: cut this very model and no deep copy.
        verify: compare the smaller with the masked model.
        data: batches of inputs, each as ``example_inputs`` is; see ``Pruner.calibrate``.
        loss: ``(model, batch) → scalar`` for criteria of gradients, of whatever batches it takes.
        repair: how what stays makes up for what goes: "least_squares" (with ``data`` and no
            ``loss``, the default), "bias", "sparse" or "none"; see ``Pruner.repair``.
        settings: other fields of ``Config``: ``of="macs"``, ``round_to=8``, …; ``batches``, the
            older name of ``data``.

    Raises:
        ConfigError, TraceError, ShrinkError, VerificationError: ``model`` is unchanged.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    >>> prune(net, torch.zeros(1, 8), sparsity=0.25).model[0].out_features
    12
    """
    given = {n: v for n, v in (("sparsity", sparsity), ("criterion", criterion)) if v is not None}
    data = batches if data is None else data
    how, chosen = repair_wanted(repair, data, loss), one_shot_config(config, {**settings, **given})
    if asks_for_depth(chosen, plain=not inplace and loss is None):
        return without_blocks(model, chosen, example_inputs, data, how, verify=verify)
    if how is not None and data is not None:
        return _repaired(model, chosen, example_inputs, data, how, inplace).finish(verify=verify)
    pruner = _decided(model, chosen, example_inputs, data, loss, how)
    return pruner.finish(inplace=inplace, verify=verify)


def _repaired(
    model: nn.Module,
    config: Config,
    example: Example,
    data: Iterable[Any],
    how: str,
    inplace: bool,
) -> Pruner:
    """Return a pruner that has decided, and made up for it: of the model, or of a copy."""
    data, noted = held(data), list[str]()  # it is read more than once
    if open_to_data(model, config, how):
        best = nearest(model, config, example, data, how)
        if not inplace:
            return best
        config, noted = best.config, best.notes[-1:]
    pruner = _decided(model if inplace else copied(model), config, example, data, None, how)
    pruner.notes.extend(noted)
    pruner.repair(data, how)
    return pruner


def _decided(
    model: nn.Module,
    config: Config,
    example: Example,
    data: Any,
    loss: Loss | None,
    how: str | None,
) -> Pruner:
    """Return a pruner that has decided what goes."""
    pruner, notes = prepared(model, config, example, data, loss, how)
    pruner.decide()
    pruner.notes.extend(notes)
    return pruner


def prepared(
    model: nn.Module,
    config: Config,
    example: Example,
    data: Any,
    loss: Loss | None,
    how: str | None = None,
) -> tuple[Pruner, list[str]]:
    """Return a pruner that has seen the data that its criterion needs, and notes.

    ``how`` names the repair that will follow.
    """
    pruner = Pruner(model, config, example, trained=False)
    pruner = by_kinds(pruner, has_inputs=data is not None and loss is None)
    pruner, notes = by_default(pruner, has_data=data is not None)
    pruner.repairs = how
    if data is not None:
        pruner.calibrate(data, loss)
    return pruner, notes


def repair_wanted(how: str | None, data: Any, loss: Loss | None) -> str | None:
    """Return the repair that was asked for, or None.

    Raises:
        ConfigError: it, or the loss, needs data, and there is none, or labelled data.
    """
    if loss is not None and data is None:
        raise ConfigError("loss=… needs data=…, batches of what it takes")
    if how in (None, "none"):
        return USUAL if how is None and data is not None and loss is None else None
    assert how is not None
    repairs[how]
    if data is None:
        raise ConfigError(f"repair={how!r} needs data=…, batches of inputs")
    if loss is not None:
        raise ConfigError(
            f"repair={how!r} needs data of inputs alone, and with loss=… a batch is what the loss "
            "takes: use Pruner, whose calibrate() and repair() take batches of their own"
        )
    return how


def one_shot_config(
    config: Config | Mapping[str, Any] | None, settings: Mapping[str, Any]
) -> Config:
    """Return what one shot prunes by: all settings at once, or single ones.

    Raises:
        ConfigError: both are given, or neither; or they are no matter of one shot.
    """
    if config is None:
        goals = ("sparsity", "threshold")
        exact = pattern_share(settings.get("granularity")) is not None  # 2:4 is a goal itself
        given = exact or any(settings.get(goal) is not None for goal in goals)
        if not given and not any(settings.get(k) for k in ("targets", "allocation", "budget")):
            raise ConfigError(
                "prune() needs sparsity=…, threshold=…, budget=…, allocation=… or config=…"
            )
        config = Config.from_dict(settings)
    elif settings:
        raise ConfigError("give either config=… or single settings to prune(), not both")
    elif not isinstance(config, Config):
        config = Config.from_dict(config)
    if config.schedule != "constant" or config.steps != 1:
        raise ConfigError("prune() prunes in one shot; for a schedule use Pruner in your loop")
    if idle := {"start", "every"} & config.model_fields_set:
        raise ConfigError(
            f"prune() prunes in one shot, where {' and '.join(sorted(idle))} say nothing; use "
            "Pruner in your loop"
        )
    if config.method is not None:
        raise ConfigError(f"method {config.method!r} learns from training: use Pruner in your loop")
    return config
