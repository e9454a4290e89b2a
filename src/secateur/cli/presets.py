"""``--for``: settings that a reader of the result needs, and what it must then be like."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from secateur.errors import ConfigError, ShrinkError, did_you_mean
from secateur.graph.kinds import DEPTH
from secateur.shrinking import Result
from secateur.shrinking.history import History

BLOCK = 256
"""Weights of a row that llama.cpp's K-quants pack together."""


@dataclass(frozen=True)
class Preset:
    """What a reader of the result asks for.

    Attributes:
        settings: that are used where none are given.
        check: raises a ConfigError where the result is none that it reads.
    """

    settings: Mapping[str, Any]
    check: Callable[[Result], None]


def with_preset(name: str | None, settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings, and beside them those of a preset that they say nothing of.

    Raises:
        ConfigError: there is no such preset.
    """
    if name is None:
        return settings
    given = {key: value for key, value in settings.items() if value is not None}
    own = dict(preset(name).settings)
    if [*(given.get("what") or ())] == [DEPTH]:  # whole layers alone: what is left has its sizes
        own = {}
    return {**settings, **own, **given}


def preset(name: str) -> Preset:
    """Return a preset; ConfigError for an unknown one."""
    if name not in PRESETS:
        known = ", ".join(PRESETS)
        raise ConfigError(f"--for {name}: unknown.{did_you_mean(name, PRESETS)} Known: {known}")
    return PRESETS[name]


def _gguf(result: Result) -> None:
    """Refuse what a GGUF converter does not read: it goes by one config for all layers."""
    if not result.ordinary:
        raise ShrinkError(
            "--for gguf: no ordinary config says this result, and a converter reads one config for "
            "all layers: leave --uniform on, or cut less (--what width, hidden, heads or depth)"
        )
    widths = {
        (name, after[-1])
        for name, (before, after) in History.of(result.model).shapes.items()
        if len(after) > 1 and before[-1] != after[-1] and after[-1] % BLOCK
    }
    if widths:
        name, width = min(widths)
        more = f", and {len(widths) - 1} more" if len(widths) > 1 else ""
        raise ShrinkError(
            f"--for gguf: the rows of {name!r} would have {width} weights{more}, and K-quants pack "
            f"{BLOCK}: cut to a multiple of {BLOCK} (--round-to {BLOCK}), or fewer positions"
        )


PRESETS = {"gguf": Preset({"uniform": True, "round_to": BLOCK, "what": ["width"]}, _gguf)}
"""Name → what it asks for."""
