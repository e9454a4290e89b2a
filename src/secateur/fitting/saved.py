"""What an interrupted fit left, and what of a cut its plan does not say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from secateur.costs import Reached
from secateur.errors import ConfigError, FileError
from secateur.masks.resume import read_state
from secateur.runtime.sameness import check_same
from secateur.shrinking import Result

from .precision import FULL, HALF

KEYS = {
    *("settings", "teacher", "plan", "told", "pruner", "model", "optimizer", "best", "stream"),
    *("random", "step", "pruned", "spent", "dense", "rounds"),
}
LATER = {"precision", "given"}
"""What states of earlier versions have not: these trained in float32."""


def saved(
    file: Path, settings: Mapping[str, Any], given: Mapping[str, Any], same: Sequence[str]
) -> Mapping[str, Any] | None:
    """Return the state in a file, or None where there is no file.

    Args:
        given: facts of the functions that decide a fit's numbers, by name.
        same: names of those that count as the same.

    Raises:
        FileError: it is damaged, or of something else.
        ConfigError: it is of a fit with other settings or functions.
    """
    if not file.is_file():
        return None
    state = read_state(file)
    known = isinstance(state, Mapping) and set(state) - LATER == KEYS
    if not known or state.get("precision", FULL) not in (FULL, HALF):
        raise FileError(f"{file} holds no state of a fit")
    theirs = state["settings"]
    if other := [key for key in settings if settings[key] != theirs.get(key)]:
        raise ConfigError(
            f"{file} is of a fit with other settings: give another folder=…, or the same settings",
            *(f"{key}: {theirs.get(key)!r} there, {settings[key]!r} here" for key in other),
        )
    check_same(f"the fit in {file}", state.get("given", {}), given, same, "give another folder=…")
    return state


def check_optimizer(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Raise a ConfigError where a state is of another kind of optimizer."""
    both = state["param_groups"][0], optimizer.param_groups[0]
    there, here = ([name for name in each if name != "params"] for each in both)
    if set(there) != set(here):
        raise ConfigError(
            f"the fit was begun with an optimizer of other settings ({', '.join(there)}) than this "
            f"{type(optimizer).__name__} ({', '.join(here)}): give that one, or another folder=…"
        )


def told(result: Result) -> dict[str, Any]:
    """Return what a result tells beside its plan."""
    goals = [asdict(goal) for goal in result.goals]
    return {"goals": goals, "notes": list(result.notes), "warnings": list(result.warnings)}


def tell(result: Result, facts: Mapping[str, Any]) -> None:
    """Let a result tell what ``told`` returned."""
    result.goals = [Reached(**goal) for goal in facts["goals"]]
    result.notes, result.warnings = list(facts["notes"]), list(facts["warnings"])
