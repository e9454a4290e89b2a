"""What the documentation takes from the code and the benchmarks, so that nothing is written twice.

``conf.py`` calls ``write_all`` before each build: help texts of the command line, tables of the
registries, the schema of the config, and what ``benchmarks/results`` says; ``figures.py`` draws it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from statistics import mean, median
from typing import Any

from choices import RECIPES, choose, expected, gallery
from figures import RESULTS, cifar_figure, methods_figure, movement_figure

from secateur import Config, criteria, methods, schedules
from secateur.cli import main
from secateur.cli.commands import COMMANDS
from secateur.nni.settings import LEGACY, Entry
from secateur.scoring.granularity import FORMS

PRUNER_OF = {
    "magnitude": "LevelPruner",
    "l1": "L1NormPruner",
    "l2": "L2NormPruner",
    "fpgm": "FPGMPruner",
}
"""Criterion → the pruner of the CIFAR benchmark that uses it."""
COMPARED = ("taylor", "slim", "movement", "random", "agp")
"""The methods whose pages show them among all methods of the benchmark with training."""


def write_all(folder: Path) -> None:
    """Write every generated file into a folder."""
    folder.mkdir(exist_ok=True)
    (folder / "commands.md").write_text("\n".join(map(help_of, COMMANDS)), encoding="utf-8")
    for name, pruner in PRUNER_OF.items():
        (folder / f"cifar-{name}.svg").write_text(cifar_figure(pruner), encoding="utf-8")
    for name in COMPARED:
        (folder / f"methods-{name}.svg").write_text(methods_figure(name), encoding="utf-8")
    (folder / "movement.svg").write_text(movement_figure(), encoding="utf-8")
    for kind, registry in (("criteria", criteria), ("schedules", schedules), ("methods", methods)):
        lines = [
            f"| [`{name}`]({_page(kind, name)}) | {first_line(registry[name])} |"
            for name in registry
        ]
        table = "\n".join([f"| {kind} | |", "|:---|:---|", *lines])
        (folder / f"{kind}.md").write_text(table + "\n", encoding="utf-8")
    (folder / "granularities.md").write_text(granularities(), encoding="utf-8")
    (folder / "config.md").write_text(config_table(), encoding="utf-8")
    (folder / "nni-keys.md").write_text(nni_keys(), encoding="utf-8")
    (folder / "coverage.md").write_text(coverage(), encoding="utf-8")
    (folder / "lm-classes.md").write_text(lm_classes(), encoding="utf-8")
    for recipe in RECIPES:
        (folder / f"get-{recipe.replace(':', '-')}.md").write_text(
            expected(recipe), encoding="utf-8"
        )
    (folder / "choose.md").write_text(choose(), encoding="utf-8")
    (folder / "gallery.md").write_text(gallery(), encoding="utf-8")
    (folder / "front.md").write_text(front(), encoding="utf-8")
    (folder / "repaired.md").write_text(repaired(), encoding="utf-8")
    (folder / "experts.md").write_text(repaired("docs mixtral"), encoding="utf-8")
    (folder / "searched.md").write_text(told("search"), encoding="utf-8")
    (folder / "allocations.md").write_text(told("allocations"), encoding="utf-8")
    (folder / "grids.md").write_text(told("grids"), encoding="utf-8")
    (folder / "timed.md").write_text(told("recipes"), encoding="utf-8")
    (folder / "faults.md").write_text(faults(), encoding="utf-8")


def _page(kind: str, name: str) -> str:
    return "schedules.md" if kind == "schedules" else f"{name}.md"


def first_line(thing: object) -> str:
    """Return the first line of a docstring, with its formula as a cell of Markdown has it."""
    line = (thing.__doc__ or "").strip().partition("\n")[0]
    before, role, rest = line.partition(":math:`")
    formula, _, after = rest.partition("`")
    formula = formula.replace(r"\|", r"\Vert ").replace("|", r"\vert ")  # which would end the cell
    return f"{before}${formula}${after}" if role else line


def help_of(command: str) -> str:
    """Return what ``secateur COMMAND --help`` prints, below a heading."""
    text = io.StringIO()
    with redirect_stdout(text):
        main([command, "--help"])
    lines = [line.rstrip() for line in text.getvalue().splitlines()]
    return "\n".join([f"## secateur {command}", "", "```text", *lines, "```", ""])


def granularities() -> str:
    """Return each granularity and what it removes as one, as a table."""
    rows = [f"| `{name}` | {form.removes} |" for name, form in FORMS.items()]
    return "\n".join(["| granularity | removed as one |", "|:---|:---|", *rows]) + "\n"


def config_table() -> str:
    """Return the fields of ``Config`` as a table: name, default, description."""
    rows = ["| setting | default | meaning |", "|:---|:---|:---|"]
    for name, field in Config.model_fields.items():
        default = field.get_default(call_default_factory=True)
        shown = "" if default in (None, (), {}) else f"`{json.dumps(default)}`"
        meaning = "list of settings for some modules each" if name == "targets" else None
        rows.append(f"| `{name}` | {shown} | {meaning or field.description or ''} |")
    return "\n".join(rows) + "\n"


def nni_keys() -> str:
    """Return NNI's keys of a config_list that are read, and its older spellings."""
    keys = ", ".join(f"`{name}`" for name in Entry.model_fields)
    old = ", ".join(f"`{old}` → `{new}`" for old, new in LEGACY.items())
    return (
        f"Keys that are read: {keys}.\n\nNNI 2.x's spellings, translated with a warning: {old}.\n"
    )


def lm_classes() -> str:
    """Return what the benchmark of language models found, without its heading."""
    _, _, found = (RESULTS / "lm_classes.md").read_text(encoding="utf-8").split("\n\n", 2)
    return found


def coverage() -> str:
    """Return what the benchmark of coverage found: a table by family, then one of each family."""
    families = json.loads((RESULTS / "coverage.json").read_text())["data"]
    families = {family: models for family, models in families.items() if models}
    lines = ["| family | models | covered | median reach | Torch-Pruning runs |", _columns(5)]
    for family, models in families.items():
        covered = sum(row["status"] == "ok" for row in models.values())
        reached = [row["reach"] for row in models.values() if "reach" in row]
        peers = [row["peer"]["status"] == "ok" for row in models.values() if "peer" in row]
        lines.append(
            f"| {family} | {len(models)} | {covered} ({covered / len(models):.1%}) "
            f"| {f'{median(reached):.1%}' if reached else '–'} "
            f"| {f'{sum(peers)} of {len(peers)}' if peers else '–'} |"
        )
    for family, models in families.items():
        lines += ["", f"<details><summary>{family}: {len(models)} models</summary>", ""]
        lines += ["| model | covered | reach | Torch-Pruning |", _columns(4)]
        lines += [_model(name, row) for name, row in sorted(models.items())]
        lines += ["", "</details>"]
    peers = [r["peer"] for models in families.values() for r in models.values() if "peer" in r]
    if late := [peer["limit"] for peer in peers if peer["status"] == "too slow"]:
        lines += ["", f"Too slow: Torch-Pruning was stopped on {len(late)} models, after "]
        lines[-1] += f"{max(late):.0f} s of processor time for the pruning, which both had."
    return "\n".join(lines) + "\n"


def repaired(*only: str) -> str:
    """Return what pruning without training kept of real models: a table of each, or of some."""
    rows = json.loads((RESULTS / "repair.json").read_text())["data"]
    lines: list[str] = []
    for model in only or dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == model]
        (dense,) = (row["quality"] for row in own if row["way"] == "dense")
        made = [row for row in own if row["way"] != "dense"]
        settings = list(dict.fromkeys(row["setting"] for row in made))
        lines += ["", f"| {model}, dense {dense:.4g} | {' | '.join(settings)} |"]
        lines.append(_columns(len(settings) + 1))
        for way in sorted({row["way"] for row in made}, key=lambda way: ("repaired" in way, way)):
            found = [
                [row["quality"] for row in made if (row["setting"], row["way"]) == (setting, way)]
                for setting in settings
            ]
            lines.append(f"| {way} | {' | '.join(map(_mean_of, found))} |")
    return "\n".join(lines) + "\n"


FRONT = {
    "ResNet-56, accuracy in %, without half of the channels inside of its blocks": (
        "resnet56",
        "50 % of the inner channels kept",
    ),
    "MiniLM, correlation of similarities, without half of its feed-forward neurons": (
        "minilm",
        "feed-forward −50 %",
    ),
    "A small Llama, perplexity (less is better), without a fifth of its feed-forward": (
        "docs llama",
        "feed-forward −20 %",
    ),
}
"""What goes from which model → model and setting."""
FRONT_WAYS = ("random", "l2", "activation, repaired")


def front() -> str:
    """Return what a few lines of code keep of real models without training, in one small table."""
    rows = json.loads((RESULTS / "repair.json").read_text())["data"]
    heads = "| | dense | random | by weights | with inputs |"
    lines = [heads, _columns(5)]
    for words, (model, setting) in FRONT.items():
        found = [
            [row["quality"] for row in rows if (row["model"], row["setting"], row["way"]) == key]
            for key in [(model, "", "dense"), *((model, setting, way) for way in FRONT_WAYS)]
        ]
        lines.append(f"| {words} | {' | '.join(f'{mean(each):.3g}' for each in found)} |")
    return "\n".join(lines) + "\n"


def told(benchmark: str) -> str:
    """Return what a benchmark tells, without its title and machine."""
    _, _, text = (RESULTS / f"{benchmark}.md").read_text(encoding="utf-8").split("\n\n", 2)
    return text


def _mean_of(figures: list[float]) -> str:
    if not figures:
        return "–"
    spread = f" ({min(figures):.4g} to {max(figures):.4g})" if len(figures) > 1 else ""
    return f"{mean(figures):.4g}{spread}"


def faults() -> str:
    """Return what came of faults on purpose, as a table."""
    found = json.loads((RESULTS / "faults.json").read_text())["data"]
    kinds = list(next(iter(found.values())))
    lines = [f"| fault | {' | '.join(kinds)} |", _columns(len(kinds) + 1)]
    lines += [f"| {n} | {' | '.join(str(row[k]) for k in kinds)} |" for n, row in found.items()]
    return "\n".join(lines) + "\n"


def _columns(number: int) -> str:
    return "|:---|" + "---:|" * (number - 1)


def _model(name: str, row: Mapping[str, Any]) -> str:
    error = row.get("error", "").partition("\n")[0][:120].replace("`", "'").replace("|", "¦")
    why = f"{row['status']}: `{error}`" if error else row["status"]
    reached = f"{row['reach']:.1%}" if "reach" in row else "–"
    peer = row["peer"]["status"].replace("ok", "runs") if "peer" in row else "–"
    return f"| {name} | {'yes' if row['status'] == 'ok' else f'no, {why}'} | {reached} | {peer} |"
