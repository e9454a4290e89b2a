"""``secateur prune``: from a model and a few settings to a folder with the smaller one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Group as Lines
from rich.markup import escape
from rich.table import Table

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
from .places import imported
from .show import AsJson, show


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
    train: str | None = None,
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
    train
        module:function of (model, pruner), your loop: it calls pruner.step() after each optimizer
        step, and may return what it measured, a list of dicts with "step", for the report.
    """
    check_place(out, dry_run)
    chosen = config_of(config, settings | ({"strict": False} if best_effort else {}))
    loaded = load(model, given)
    if asks_for_depth(chosen):
        result = _shallower(loaded, chosen, calibration, train)
        _show_shallower(result, loaded, None if dry_run else out, chosen, as_json)
        return
    dense = loaded.model if dry_run else copied(loaded.model)
    pruner, notes = _prepared(loaded, chosen, calibration, trains=train is not None)
    again = pruner.repairs is not None
    batches = calibrate(pruner, calibration, loaded.source.model, again=again)
    history = _decided(pruner, None if dry_run else train)
    pruner.notes.extend(notes)
    if out is None or dry_run:
        _show_plan(pruner, as_json)
    else:
        result = _finished(pruner, batches)
        save(result, out, loaded.source)
        show(*reported(result, dense, loaded.example, out, history, chosen), as_json=as_json)


def _finished(pruner: Pruner, batches: Any) -> Result:
    """Return what the pruner cuts, after the repair that was asked for."""
    if pruner.repairs is not None and batches is not None:
        pruner.repair(batches, pruner.repairs)
    return pruner.finish()


def _prepared(
    loaded: Loaded, config: Config, calibration: Calibration, *, trains: bool
) -> tuple[Pruner, list[str]]:
    """Return a pruner that knows which repair will follow, and notes."""
    pruner, notes = Pruner(loaded.model, config, loaded.example, trained=False), list[str]()
    if not trains:
        pruner, notes = by_default(pruner, has_data=calibration.data is not None)
    pruner.repairs = repair_asked(pruner, calibration, trains=trains)
    return pruner, notes


def _shallower(
    loaded: Loaded, config: Config, calibration: Calibration, train: str | None
) -> Result:
    """Return a model without the blocks that matter least."""
    if train is not None or calibration.loss is not None:
        raise ConfigError("--what depth is one shot without labels: leave --train and --loss out")
    data, place = calibration.data, loaded.source.model
    batches = data and read_data(data, loaded.model, place, calibration.batch_size)
    how = repair_wanted(calibration.repair, batches, None)
    return without_blocks(loaded.model, config, loaded.example, batches, how)


def _show_shallower(
    result: Result, loaded: Loaded, out: Path | None, config: Config, as_json: bool
) -> None:
    """Save what lost blocks, if there is a place for it, and show it."""
    if out is None:
        show(result, {"drop": [*result.plan.drop]}, as_json=as_json)
    else:
        save(result, out, loaded.source)
        told = reported(result, loaded.model, loaded.example, out, [], config)
        show(*told, as_json=as_json)


def _decided(pruner: Pruner, train: str | None) -> list[dict[str, float]]:
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
