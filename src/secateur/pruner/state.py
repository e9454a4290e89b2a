"""A run's state: what resuming needs, and a state taken over once all of it was checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from secateur.config import Config
from secateur.errors import ConfigError
from secateur.masks import masking
from secateur.masks.classes import fill
from secateur.runtime.distributed import whole
from secateur.selection.decision import Decision
from secateur.selection.restored import (
    SCHEMA,
    Stateful,
    check_decision,
    check_form,
    loaded_or_put_back,
)

from .run import Run, masks_on


def state_of(run: Run) -> dict[str, Any]:
    """Return counts, masks, the dense weights below them, and scores."""
    if run.candidates.mixes:
        raise ConfigError("what='depth' is decided in one shot: such a run has no state")
    parameters = dict(run.model.named_parameters())
    with torch.no_grad():
        below = {n: whole(parameters[n].detach())[~m] for n, m in masks_on(run).items()}
    return {
        "schema": SCHEMA,
        "config": run.config.model_dump(mode="json"),
        "calls": run.calls,
        "level": run.decision.level,
        "notes": list(run.decision.notes),
        "keeps": dict(run.decision.keeps),
        "masks": dict(run.decision.masks),
        "below": below,
        "before": run.before,
        "allocation": run.candidates.budget.known.found,
        "statistics": run.statistics.state_dict(),
        "method": run.method.state_dict(),
        "peak": run.optimizing.last.peak,
        "ever": run.optimizing.last.ever,
        "whole": run.whole,
    }


def take_over(run: Run, state: Mapping[str, Any]) -> None:
    """Check a state, and then let a run be where it was taken."""
    check_form(state)
    ours = run.config.model_dump(mode="json")
    theirs = {**Config().model_dump(mode="json"), **state["config"]}  # of before it had all
    if other := [k for k in ours if ours[k] != theirs[k]]:
        raise ConfigError(
            "the state is of a run with other settings",
            *(f"{k}: {theirs[k]!r} there, {ours[k]!r} here" for k in other),
        )
    known = {s.name for s in run.selectables}
    if state["keeps"] and set(state["keeps"]) != known:
        odd = ", ".join(sorted(map(str, set(state["keeps"]) ^ known))[:5])
        raise ConfigError(f"the state is of a run on another model: they differ in {odd}")
    check_decision(state, run.selectables, run.tensors(), run.method.complete)
    parts: dict[str, Stateful] = {"statistics": run.statistics, "method": run.method}
    with loaded_or_put_back(parts, state) as undo:
        learns = run.method.learns_masks
        masking.put_on(run.model, state["masks"], differentiable=learns)
        undo.pop_all()
    _restore(run, state)


def _restore(run: Run, state: Mapping[str, Any]) -> None:
    parameters = dict(run.model.named_parameters())
    for name, values in state["below"].items():
        fill(parameters[name], ~state["masks"][name], values)
    run.calls = state["calls"]
    run.whole = state.get("whole", run.share == 1)
    run.decision = Decision(
        keeps={name: keep.clone() for name, keep in state["keeps"].items()},
        masks={name: mask.clone() for name, mask in state["masks"].items()},
        notes=list(state["notes"]),
        level=state["level"],
    )
    run.before = state.get("before", {})
    run.candidates.budget.take_over(state.get("allocation", {}))
    run.optimizing.last.peak = state.get("peak", 0.0)
    run.optimizing.last.ever = state.get("ever", False)
