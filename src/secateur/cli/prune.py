"""``secateur prune``: from a model and a few settings to a folder with the smaller one."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Group as Lines
from rich.table import Table

from secateur.config import Config
from secateur.errors import ConfigError, MissingExtraError
from secateur.graph.cost import human
from secateur.measure import latency
from secateur.pruner import Pruner
from secateur.pruner import prune as prune_model
from secateur.shrink import Plan
from secateur.structure import Structure, analyze

from .models import Loaded, load, remember
from .options import Arguments, AsJson, Inputs, Weights, show, with_settings


@with_settings(Config, without=("targets",))
def prune(
    model: str,
    /,
    *,
    out: Path | None = None,
    config: Path | None = None,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    arg: Arguments = None,
    weights: Weights = None,
    input: Inputs = None,
    as_json: AsJson = False,
    **settings: Any,
) -> None:
    """Prune a model and save the smaller one: secateur prune MODEL --sparsity 0.5 --out DIR.

    Parameters
    ----------
    model
        module:callable, file.py:callable, torchvision:NAME, timm:NAME, a Hugging Face folder,
        or a folder that secateur wrote.
    out
        Folder for model.safetensors, plan.json, record.json, report.json and report.html.
    config
        A YAML, JSON or TOML file of settings, targets included; options below go over it.
    dry_run
        Show what would be cut and what would be left, and write nothing.
    """
    if out is None and not dry_run:
        raise ConfigError("say where the smaller model goes: --out DIR (or --dry-run)")
    chosen = _config(config, settings)
    loaded = load(model, arg or (), weights, input or ())
    if dry_run:
        structure = analyze(loaded.model, loaded.example)
        plan = _plan(loaded, chosen, structure)
        show(_planned(structure, plan), _planned_facts(structure, plan), as_json=as_json)
        return
    assert out is not None
    result = prune_model(loaded.model, loaded.example, config=chosen)
    from secateur.report import report_of, write

    result.save(out)
    remember(out, loaded.source)
    report = report_of(
        result,
        loaded.model,
        latency=latency({"before": loaded.model, "after": result.model}, loaded.example),
        config=chosen.model_dump(mode="json", exclude_unset=True),
        reproduce=shlex.join(["secateur", *sys.argv[1:]]),
    )
    try:
        page = str(write(out, report))
    except MissingExtraError as error:  # the model is saved, and report.json too
        page = str(error)
    facts = report.model_dump(mode="json", by_alias=True)
    show(Lines(result, f"saved in {out}; report: {page}"), facts, as_json=as_json)


def _config(file: Path | None, options: dict[str, Any]) -> Config:
    """Return the settings of a file with the options over them."""
    given = {name: _value(name, value) for name, value in options.items() if value is not None}
    if file is None:
        if not given.keys() & {"sparsity", "threshold"}:
            raise ConfigError("say how much to remove: --sparsity 0.5, --threshold or --config")
        return Config.from_dict(given)
    return Config.load(file).replace(**given) if given else Config.load(file)


def _value(name: str, value: Any) -> Any:
    """Return block sizes, which are written 1,-1,-1,-1, as a list of ints."""
    words = value.split(",") if name == "granularity" else ()
    sizes = all(word.lstrip("-").isdigit() for word in words)
    return [int(word) for word in words] if words and sizes else value


def _plan(loaded: Loaded, config: Config, structure: Structure) -> Plan:
    pruner = Pruner(loaded.model, config, loaded.example, structure=structure)
    for _ in range(config.every):
        pruner.step()
    if all(each.group is not None for each in pruner.selectables):
        return Plan.from_keeps(structure, pruner.keeps)
    return Plan.from_masks(structure, pruner.masks)


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
