"""What a config says of single layers: transformers' ``per_layer_config``, where there is one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

from .configured import configs_in, is_config
from .history import Taken

Overrides: TypeAlias = Mapping[int, Mapping[str, Any]]
"""Layer → the numbers in which it differs from what the config says."""

Remembered: TypeAlias = Mapping[str, tuple[int, Overrides]]
"""Place of a config → how many layers it has, and what it says of single ones."""

NAME = "per_layer_config"
ANYWAY = "allow_global_per_layer_attribute_access"
"""Some classes read the number of all layers too, to check it: with this they may."""


def overrides_of(config: Any) -> dict[int, dict[str, Any]] | None:
    """Return what a config says of single layers; None where its class has no way to."""
    if not isinstance(getattr(type(config), NAME, None), property):
        return None
    said = config.to_dict().get(NAME) if config.is_heterogeneous else None
    return {int(layer): dict(numbers) for layer, numbers in (said or {}).items()}


def say(config: Any, overrides: Overrides, *, anyway: bool = False) -> None:
    """Let a config say numbers of single layers.

    Raises:
        Exception: whatever its class raises of what it does not take.
    """
    setattr(config, NAME, {layer: dict(numbers) for layer, numbers in overrides.items()} or None)
    if anyway:
        setattr(config, ANYWAY, True)


def said_by_layer(config: Any) -> Iterator[Mapping[str, Any]]:
    """Yield what a config, and those inside it, say of each layer that they say anything of."""
    for _, held in configs_in("config", config):
        yield from (overrides_of(held) or {}).values()


def remembered(config: Any) -> Remembered:
    """Return what a config says of single layers, before it says another number of them."""
    if not is_config(config):
        return {}
    found = {place: (held, overrides_of(held)) for place, held in configs_in("config", config)}
    return {place: (len(held.per_layer_config), o) for place, (held, o) in found.items() if o}


def follow(
    config: Any,
    before: Remembered,
    taken: Iterable[Taken],
    put: Callable[[Any, Overrides], None] = say,
) -> None:
    """Let what a config says of single layers go with these, where some of them went.

    Args:
        config: says how many are left.
        before: what it said when all were there.
        taken: how many each list of modules had, and which are left.
        put: what makes a config say other numbers of its layers.
    """
    for place, (count, said) in before.items():
        held = dict(configs_in("config", config))[place]
        for size, kept in taken:
            if (count, len(held.per_layer_config)) == (size, len(kept)):
                put(held, {new: said[old] for new, old in enumerate(kept) if old in said})
                break
