"""What the documentation takes from the code and the benchmarks, so that nothing is written twice.

``conf.py`` calls ``write_all`` before each build: help texts of the command line, tables of the
registries, the schema of the config, and figures drawn from ``benchmarks/results``.
"""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from pathlib import Path

from secateur import Config, criteria, methods, schedules
from secateur.cli import main
from secateur.cli.commands import COMMANDS
from secateur.nni.settings import LEGACY, Entry

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"
PRUNER_OF = {
    "magnitude": "LevelPruner",
    "l1": "L1NormPruner",
    "l2": "L2NormPruner",
    "fpgm": "FPGMPruner",
}
"""Criterion → the pruner of the CIFAR benchmark that uses it."""


def write_all(folder: Path) -> None:
    """Write every generated file into a folder."""
    folder.mkdir(exist_ok=True)
    for command in COMMANDS:
        name = command.__name__.rstrip("_")
        (folder / f"help-{name}.txt").write_text(help_of(name), encoding="utf-8")
    for name, pruner in PRUNER_OF.items():
        (folder / f"cifar-{name}.svg").write_text(cifar_figure(pruner), encoding="utf-8")
    for kind, registry in (("criteria", criteria), ("schedules", schedules), ("methods", methods)):
        lines = [
            f"| [`{name}`]({_page(kind, name)}) | {first_line(registry[name])} |"
            for name in registry
        ]
        table = "\n".join([f"| {kind} | |", "|:---|:---|", *lines])
        (folder / f"{kind}.md").write_text(table + "\n", encoding="utf-8")
    (folder / "config.md").write_text(config_table(), encoding="utf-8")
    (folder / "nni-keys.md").write_text(nni_keys(), encoding="utf-8")


def _page(kind: str, name: str) -> str:
    return "schedules.md" if kind == "schedules" else f"{name}.md"


def first_line(thing: object) -> str:
    """Return the first line of a docstring, with its formulas as Markdown has them."""
    line = (thing.__doc__ or "").strip().partition("\n")[0]
    before, role, rest = line.partition(":math:`")
    return f"{before}${rest.replace('`', '$', 1)}" if role else line


def help_of(command: str) -> str:
    """Return what ``secateur COMMAND --help`` prints."""
    text = io.StringIO()
    with redirect_stdout(text):
        main([command, "--help"])
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


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


def cifar_figure(pruner: str) -> str:
    """Return accuracy against ratio on CIFAR-10, with one pruner in the foreground, as SVG."""
    rows = json.loads((RESULTS / "cifar.json").read_text())["data"]["pruned"]
    rows = [r for r in rows if r["model"] == "resnet20" and r["images"] == "lossless"]
    left, top, width, height = 52, 16, 520, 210

    def at(ratio: float, accuracy: float) -> str:
        return f"{left + width * ratio / 0.8:.1f} {top + height * (1 - accuracy / 100):.1f}"

    parts = [
        f'<text x="{left - 8}" y="{top + height * (1 - y / 100) + 4:.0f}" text-anchor="end" '
        f'class="soft">{y}</text><path class="line" opacity=".35" '
        f'd="M{at(0, y)}L{at(0.8, y)}"/>'
        for y in (0, 25, 50, 75, 100)
    ]
    parts += [
        f'<text x="{left + width * x / 0.8:.0f}" y="{top + height + 18}" text-anchor="middle" '
        f'class="soft">{x:.0%}</text>'
        for x in (0.1, 0.3, 0.5, 0.7)
    ]
    for name in sorted({r["pruner"] for r in rows}, key=lambda n: n == pruner):
        points = sorted((r["ratio"], r["completed"]) for r in rows if r["pruner"] == name)
        line = "L".join(at(*point) for point in points)
        style = 'class="a"' if name == pruner else 'class="line" opacity=".5"'
        parts.append(f'<path {style} d="M{line}"><title>{name}</title></path>')
        for ratio, accuracy in points if name == pruner else ():
            x, y = at(ratio, accuracy).split()
            parts.append(
                f'<circle class="fa" cx="{x}" cy="{y}" r="4"/>'
                f'<text x="{float(x) + 8:.1f}" y="{float(y) - 8:.1f}">{accuracy:.1f} %</text>'
            )
    body = "\n".join(parts)
    return (
        f'<figure class="drawing"><svg viewBox="0 0 {left + width + 70} {top + height + 30}" '
        f'role="img" aria-label="accuracy against sparsity, {pruner}">\n{body}\n</svg>\n'
        f"<figcaption>CIFAR-10 accuracy of ResNet-20 in one shot, without fine-tuning, against the "
        f"sparsity of each layer; in grey the other three. Measured by benchmarks/cifar.py."
        f"</figcaption></figure>\n"
    )
