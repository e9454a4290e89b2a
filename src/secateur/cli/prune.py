"""``secateur prune``: from a model and a few settings to a folder with the smaller one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Group as Lines
from rich.markup import escape
from rich.table import Table
from torch import nn

from secateur.config import Config
from secateur.errors import ConfigError
from secateur.graph.cost import human
from secateur.one_shot import by_default, repair_wanted
from secateur.pruner import Pruner
from secateur.runtime.copying import copied
from secateur.shrinking import Plan, Result
from secateur.shrinking.by_config import asks_for_depth, without_blocks
from secateur.structure import Structure

from .calibrate import calibrate, repair_asked
from .data import read_data
from .models import Loaded, load
from .options import NOTHING, UNKNOWN, Calibration, Given, Model, with_settings
from .outcome import check_place, config_of, reported, save
from .show import AsJson, show
from .training import NONE, Training, decided, fitted


@with_settings(Config, without=("targets", "strict"))
def prune(
    model: Model,
    /,
    *,
    out: Path | None = None,
    config: Path | None = None,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    best_effort: Annotated[bool, Parameter(negative=())] = False,
    calibration: Calibration = UNKNOWN,
    training: Training = NONE,
    given: Given = NOTHING,
    as_json: AsJson = False,
    **settings: Any,
) -> None:
    """Prune a model and save the smaller one: secateur prune MODEL --sparsity 0.5 --out DIR.

    Parameters
    ----------
    out
        Folder for model.safetensors, plan.json, record.json, report.json and report.html.
    config
        A YAML, JSON or TOML file of settings and targets; options below go over it.
    dry_run
        Show what would be cut and what would be left, and write nothing.
    best_effort
        Where the goal cannot be met, remove as much as can go, and say so first.
    """
    check_place(out, dry_run)
    chosen = config_of(config, settings | ({"strict": False} if best_effort else {}))
    loaded = load(model, given)
    place = None if dry_run else out
    if asks_for_depth(chosen):
        _shallower(loaded, chosen, calibration, training, place, as_json)
    elif training.fits(dry_run) and place is not None:
        result, history = fitted(loaded, chosen, training, calibration)
        _save(result, place, loaded, loaded.model, history, chosen, as_json)
    else:
        _narrower(loaded, chosen, calibration, training, place, as_json)


def _narrower(
    loaded: Loaded,
    config: Config,
    calibration: Calibration,
    training: Training,
    out: Path | None,
    as_json: bool,
) -> None:
    """Save a model without the positions that matter least, or show what would go."""
    dense = loaded.model if out is None else copied(loaded.model)
    pruner = Pruner(loaded.model, config, loaded.example, trained=False)
    notes, trains = list[str](), training.train is not None
    if not trains:
        pruner, notes = by_default(pruner, has_data=calibration.data is not None)
    how = pruner.repairs = repair_asked(pruner, calibration, trains=trains)
    batches = calibrate(pruner, calibration, loaded.source.model, again=how is not None)
    history = decided(pruner, None if out is None else training.train)
    pruner.notes.extend(notes)
    if out is None:
        _show_plan(pruner, as_json)
        return
    if how is not None and batches is not None:
        pruner.repair(batches, how)
    _save(pruner.finish(), out, loaded, dense, history, config, as_json)


def _shallower(
    loaded: Loaded,
    config: Config,
    calibration: Calibration,
    training: Training,
    out: Path | None,
    as_json: bool,
) -> None:
    """Save or show a model without the blocks that matter least."""
    if training != NONE or calibration.loss is not None:
        raise ConfigError("--what depth is one shot without labels: leave --train and --loss out")
    data, place = calibration.data, loaded.source.model
    batches = data and read_data(data, loaded.model, place, calibration.batch_size)
    how = repair_wanted(calibration.repair, batches, None)
    result = without_blocks(loaded.model, config, loaded.example, batches, how)
    if out is None:
        show(result, {"drop": [*result.plan.drop]}, as_json=as_json)
    else:
        _save(result, out, loaded, loaded.model, [], config, as_json)


def _save(
    result: Result,
    out: Path,
    loaded: Loaded,
    dense: nn.Module,
    history: list[dict[str, float]],
    config: Config,
    as_json: bool,
) -> None:
    save(result, out, loaded.source)
    show(*reported(result, dense, loaded.example, out, history, config), as_json=as_json)


def _plan(pruner: Pruner) -> Plan:
    assert pruner.structure is not None
    if all(each.group is not None for each in pruner.selectables):
        return Plan.from_keeps(pruner.structure, pruner.keeps)
    return Plan.from_masks(pruner.structure, pruner.masks)


def _show_plan(pruner: Pruner, as_json: bool) -> None:
    assert pruner.structure is not None  # it was made from an example
    plan, short = _plan(pruner), pruner.budget.unmet
    facts = {"warnings": [short] if short else [], **_planned_facts(pruner.structure, plan)}
    table = _planned(pruner.structure, plan)
    shown = Lines(f"[bold yellow]warning[/] {escape(short)}", table) if short else table
    show(shown, facts, as_json=as_json)


def _planned(structure: Structure, plan: Plan) -> Table:
    before, after = structure.cost(), structure.cost(plan)
    table = Table(
        title=f"{structure.model}: {before} → {after}",
        title_justify="left",
        caption="nothing was written (--dry-run)",
    )
    for heading in ("group", "size", "kept", "MACs/position", "removal"):
        table.add_column(heading, justify="left" if heading in ("group", "removal") else "right")
    for name, count in plan.counts.items():
        group = structure[name]
        removal = "exact" if group.exact else f"inexact: {group.inexact}"
        per_position = human(structure.macs_per_index(group))
        table.add_row(name, str(group.size), str(count), per_position, removal)
    return table


def _planned_facts(structure: Structure, plan: Plan) -> dict[str, Any]:
    from secateur.report import structure_facts

    after = structure.cost(plan)
    left = {"params": after.params, "macs": after.macs, "peak_bytes": after.peak_bytes}
    return {"after": left, "structure": structure_facts(structure, plan).model_dump(mode="json")}
