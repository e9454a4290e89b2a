"""``secateur prune``: from a model and a few settings to a folder with the smaller one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from cyclopts import Parameter
from rich.console import Group as Lines
from rich.markup import escape
from rich.table import Table
from torch import nn

from secateur.config import Config
from secateur.defaults import by_default, by_kinds, nearest, open_to_data
from secateur.errors import ConfigError
from secateur.graph.cost import human
from secateur.one_shot import repair_wanted
from secateur.pruner import Pruner
from secateur.runtime.batches import held
from secateur.runtime.copying import copied
from secateur.shrinking import Plan, Result
from secateur.shrinking.by_config import asks_for_depth, without_blocks
from secateur.structure import Structure

from .calibrate import calibrate, needs_loss, repair_asked
from .data import read_data
from .models import Loaded, load
from .options import NOTHING, UNKNOWN, Calibration, Given, Model, with_settings
from .outcome import check_place, config_of, reported
from .presets import PRESETS, preset, with_preset
from .show import AsJson, show
from .stream import stream as streamed
from .training import NONE, Training, decided, fitted


@dataclass(frozen=True)
class Job:
    """What is asked of the command, read and checked; ``out`` is None for a dry run."""

    loaded: Loaded
    config: Config
    calibration: Calibration
    training: Training
    out: Path | None
    target: str | None
    as_json: bool

    def save(self, result: Result, dense: nn.Module, history: list[dict[str, float]]) -> None:
        """Write the smaller model and its report, if whoever it is for can read it."""
        assert self.out is not None
        if self.target is not None:
            preset(self.target).check(result)
        result.save(self.out, dense=self.loaded.source)
        told = reported(result, dense, self.loaded.example, self.out, history, self.config)
        show(*told, as_json=self.as_json)


For: TypeAlias = Annotated[
    str | None,
    Parameter(
        name="--for",
        help=f"who reads the result: {', '.join(PRESETS)}. Sets what that needs, and refuses to "
        "write what it does not read",
    ),
]


@with_settings(Config, without=("targets", "strict"))
def prune(
    model: Model,
    /,
    *,
    out: Path | None = None,
    config: Path | None = None,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    best_effort: Annotated[bool, Parameter(negative=())] = False,
    target: For = None,
    stream: Annotated[bool, Parameter(negative=())] = False,
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
        Folder for model.safetensors, plan.json, record.json, report.json and report.html; of a
        model of transformers, config.json and its tokenizer too.
    config
        A YAML, JSON or TOML file of settings and targets; options below go over it.
    dry_run
        Show what would be cut and what would be left, and write nothing.
    best_effort
        Where the goal cannot be met, remove as much as can go, and say so first.
    stream
        Read, prune and write a Hugging Face folder block by block, in less memory than it needs;
        if it was killed, the same command goes on.
    """
    check_place(out, dry_run)
    settings = settings | ({"strict": False} if best_effort else {})
    chosen = config_of(config, with_preset(target, settings))
    place = None if dry_run else out
    if stream:
        streamed(model, given, chosen, calibration, training, place, target, as_json)
        return
    loaded = load(model, given)
    job = Job(loaded, chosen, calibration, training, place, target, as_json)
    if asks_for_depth(chosen):
        _shallower(job)
    elif training.fits(dry_run) and place is not None:
        result, history = fitted(loaded, chosen, training, calibration)
        job.save(result, loaded.model, history)
    else:
        _narrower(job)


def _narrower(job: Job) -> None:
    """Save a model without the positions that matter least, or show what would go."""
    loaded, calibration, training = job.loaded, job.calibration, job.training
    pruner = Pruner(loaded.model, job.config, loaded.example, trained=False)
    notes, trains = list[str](), training.train is not None
    if not trains:
        labelled = calibration.loss is not None or needs_loss(pruner)
        inputs = calibration.data is not None and not labelled
        pruner = by_kinds(pruner, has_inputs=inputs)
        pruner, notes = by_default(pruner, has_data=calibration.data is not None)
    how = pruner.repairs = repair_asked(pruner, calibration, trains=trains)
    if how is not None and not trains and open_to_data(loaded.model, job.config, how):
        _by_data(job, how)
        return
    dense = loaded.model if job.out is None else copied(loaded.model)
    batches = calibrate(pruner, calibration, loaded.source.model, again=how is not None)
    history = decided(pruner, None if job.out is None else training.train)
    pruner.notes.extend(notes)
    if job.out is None:
        _show_plan(pruner, job.as_json)
        return
    if how is not None and batches is not None:
        pruner.repair(batches, how)
    job.save(pruner.finish(), dense, history)


def _by_data(job: Job, how: str) -> None:
    """Save or show a model whose layers share what goes as held-out data says."""
    loaded, calibration = job.loaded, job.calibration
    assert calibration.data is not None
    place = loaded.source.model
    batches = held(
        read_data(calibration.data, loaded.model, place, calibration.batch_size), "--data"
    )
    pruner = nearest(loaded.model, job.config, loaded.example, batches, how)
    if job.out is None:
        _show_plan(pruner, job.as_json)
    else:
        job.save(pruner.finish(), loaded.model, [])


def _shallower(job: Job) -> None:
    """Save or show a model without the blocks that matter least."""
    loaded, calibration = job.loaded, job.calibration
    if job.training != NONE or calibration.loss is not None:
        raise ConfigError("--what depth is one shot without labels: leave --train and --loss out")
    data, place = calibration.data, loaded.source.model
    batches = data and read_data(data, loaded.model, place, calibration.batch_size)
    how = repair_wanted(calibration.repair, batches, None)
    result = without_blocks(loaded.model, job.config, loaded.example, batches, how)
    if job.out is None:
        show(result, {"drop": [*result.plan.drop]}, as_json=job.as_json)
    else:
        job.save(result, loaded.model, [])


def _plan(pruner: Pruner) -> Plan:
    assert pruner.structure is not None
    if all(each.group is not None for each in pruner.selectables):
        return pruner.plan
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
    for name in plan.drop:
        block = structure.block(name)
        table.add_row(name, "block", "dropped", human(block.macs), "exact" if block.exact else "")
    return table


def _planned_facts(structure: Structure, plan: Plan) -> dict[str, Any]:
    from secateur.report import structure_facts

    after = structure.cost(plan)
    left = {"params": after.params, "macs": after.macs, "peak_bytes": after.peak_bytes}
    gone: dict[str, Any] = {"drop": [*plan.drop]} if plan.drop else {}
    return {
        **gone,
        "after": left,
        "structure": structure_facts(structure, plan).model_dump(mode="json"),
    }
