"""The numbers of a config, those of the configs inside it too, and what a class builds of it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from secateur.graph.origins import Attribute
from secateur.runtime.quiet import quiet


def is_config(config: Any) -> bool:
    """Tell whether something is an object of numbers, and no class or module."""
    plain = isinstance(getattr(config, "__dict__", None), dict)
    return plain and not isinstance(config, (type, nn.Module))


def configs_in(name: str, config: Any) -> Iterator[tuple[str, Any]]:
    """Yield a config and those inside it, by their dotted names."""
    yield name, config
    for key, value in vars(config).items():
        if not key.startswith("_") and is_config(value):
            yield from configs_in(f"{name}.{key}", value)


def held_in(config: Any, path: str) -> dict[str, Any]:
    """Return what a config inside of one holds, by its name without the first word."""
    held: dict[str, Any] = vars(config)
    for step in path.split(".")[1:]:
        held = vars(held[step])
    return held


def changed(config: Any, changes: Mapping[str, tuple[Any, Any]]) -> Any:
    """Return a copy of a config that says other numbers, past what validates them one by one."""
    config = copy.deepcopy(config)
    for text, (_, after) in changes.items():
        attribute = Attribute.parse(text, ())
        path, _, name = attribute.name.rpartition(".")
        held = held_in(config, path)
        value: Any = after
        if isinstance(attribute.index, int):
            value = [*held[name]]
            value[attribute.index] = after
        if isinstance(value, (list, tuple)):
            value = type(held[name])(value)
        held[name] = value
    return config


def built(kind: type[nn.Module], config: Any) -> nn.Module | None:
    """Return what a class makes of a config, without weights; None where it makes nothing."""
    try:
        with quiet(), torch.device("meta"):
            return kind(copy.deepcopy(config))
    except Exception:  # a constructor may refuse anything; then this is no config of its class
        return None
