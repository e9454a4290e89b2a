"""Can an ordinary configuration of the model's class express the smaller shapes?

Then the smaller model is built by its own constructor, and loads wherever the class does.  Where
layers of one kind become unlike, a config may say a number for each, if its class can.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from secateur.errors import ShrinkError
from secateur.graph.origins import Attribute
from secateur.runtime.forward import random_kept
from secateur.runtime.quiet import quiet

from .config_search import Search
from .configured import configs_in, held_in, is_config
from .history import Changes, Shape
from .layered import layered

MOST_BYTES = 2**31  # of a model that is built again with its weights, to see that it is the same


def expressed(
    model: nn.Module,
    shapes: Mapping[str, tuple[Shape, Shape]],
    now: Mapping[str, tuple[Shape, Shape]],
    read: Iterable[Attribute],
    epsilons: Iterable[Attribute] = (),
    *,
    shallower: bool = False,
) -> Changes | None:
    """Return which numbers of ``model.config`` must change, or None where none can say it.

    Args:
        model: the smaller model; its config still says the old sizes.
        shapes: what was cut → shape in the dense model and after.
        now: likewise, of the last cut alone: the config may know of those before it.
        read: the integers that the forward reads; all must be the same in both.
        epsilons: likewise floats.
        shallower: layers were taken out, and the config says their number already.
    """
    if (
        not (shapes or shallower)
        or not is_config(getattr(model, "config", None))
        or not _uniform(shapes)
    ):
        return None
    search = Search(model, [*shapes.values(), *now.values()], read, epsilons)
    config = search.found()
    config = config and search.with_epsilons(config)
    if config is None:
        return None
    changes: Changes = {}
    for place, held in configs_in("config", config):
        old = held_in(model.config, place)
        numbers = (k for k, value in vars(held).items() if type(value) in (int, float))
        prefix = f"{place}.".removeprefix("config.")
        changes |= {
            prefix + k: (old.get(k), vars(held)[k]) for k in numbers if old.get(k) != vars(held)[k]
        }
    return changes


def expressed_by_layer(
    model: nn.Module,
    shapes: Mapping[str, tuple[Shape, Shape]],
    read: Iterable[Attribute],
    epsilons: Iterable[Attribute] = (),
) -> Any:
    """Return a config that says a number for each layer, or None; as ``expressed``."""
    if not shapes or not is_config(getattr(model, "config", None)):
        return None
    search = Search(model, shapes.values(), read, epsilons)
    config = layered(search)
    return config and search.with_epsilons(config)


def is_large(model: nn.Module) -> bool:
    """Tell whether a model is too large to be built or loaded again, only to see that it is so."""
    return sum(p.numel() * p.element_size() for p in model.parameters()) > MOST_BYTES


def rebuilt(model: nn.Module, config: Any) -> nn.Module | None:
    """Return what the class's constructor makes of a config, with the model's weights.

    None for a large model.

    Raises:
        ShrinkError: they do not fit: what no forward reads keeps the shape that it had.
    """
    if is_large(model):
        return None
    plain = type(model).load_state_dict is nn.Module.load_state_dict
    how = {"assign": True} if plain else {}  # no weight is there twice
    new = _unfilled(model, config) if plain else None
    if new is None:
        with random_kept(), quiet():
            new = type(model)(copy.deepcopy(config))
    held = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, tensor in (*new.named_parameters(), *new.named_buffers()):
        if name in held and not tensor.is_meta:  # some stay in float32: a table of frequencies
            tensor.data = tensor.data.to(device=held[name].device, dtype=held[name].dtype)
    try:
        new.load_state_dict(model.state_dict(), **how)
    except RuntimeError as error:
        raise ShrinkError(f"{type(model).__name__}(config) takes other tensors: {error}") from error
    return new.train(model.training)


class _Unfilled(TorchFunctionMode):
    """Within it what ``torch.empty`` makes, as of each weight, has no memory."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty and kwargs.get("device") is None:
            kwargs = {**kwargs, "device": "meta"}
        return func(*args, **kwargs)


def _unfilled(model: nn.Module, config: Any) -> nn.Module | None:
    """Return what the class's constructor makes of a config, where weights have no memory yet.

    None where something would have none afterwards, or the constructor needs values.
    """
    try:
        with random_kept(), quiet(), _Unfilled():
            new = type(model)(copy.deepcopy(config))
    except (RuntimeError, NotImplementedError):
        return None  # it is built with values, and says its own errors
    loaded = model.state_dict().keys()
    every = (*new.named_parameters(remove_duplicate=False), *new.named_buffers())
    return None if any(t.is_meta and name not in loaded for name, t in every) else new


def _uniform(shapes: Mapping[str, tuple[Shape, Shape]]) -> bool:
    """Tell whether layers of one kind become alike: a config has no number for each."""
    kinds: dict[tuple[str, Shape], set[Shape]] = {}
    for name, (before, after) in shapes.items():
        kinds.setdefault((re.sub(r"(?<![^.])\d+(?![^.])", "#", name), before), set()).add(after)
    return all(len(found) == 1 for found in kinds.values())
