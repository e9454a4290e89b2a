"""The report as Markdown, for pull requests and model cards."""

from __future__ import annotations

import re
from collections.abc import Sequence

from secateur.errors import printable
from secateur.graph.cost import human

from .facts import Report
from .figures import change, headline, measures, quality


def to_markdown(report: Report) -> str:
    """Return the report as GitHub's Markdown."""
    rows = [[m.label, m.before, m.after, m.change] for m in measures(report)]
    parts = [
        f"# {_plain(report.structure.model)}",
        headline(report),
        _table(["", "before", "after", "change"], rows),
        f"Loads with: {_plain(report.loads_with)}",
    ]
    if report.goals:
        rows = [[g.of, g.asked, g.reached, "yes" if g.met else "**no**"] for g in report.goals]
        parts.append(_table(["goal", "asked", "reached", "met"], rows))
    if report.check:
        kind = "every removal is exact" if report.check.exact else "some removals are inexact"
        parts.append(
            f"Check: outputs differ from the masked model's by {report.check.difference:.1e} of "
            f"the largest, on {report.check.inputs} inputs ({kind})."
        )
    if report.search:
        front = [t for t in report.search.trials if t.slot in report.search.front]
        rows = [[str(t.slot), f"{t.value:.5g}", f"{t.cost:.1%}"] for t in front]
        heads = ["trial", "value", f"{report.search.of} left"]
        said = f"Of {len(report.search.trials)} trials no other is both better and cheaper than:"
        parts += ["## The front", said, _table(heads, rows)]
    if report.repair:
        parts.append(f"Repair {_code(report.repair.how)}: {quality(report.repair)}")
    groups = [
        [_code(g.name), str(g.size), str(g.left), change(g.size, g.left), human(g.macs)]
        for g in report.structure.groups
        if g.kept is not None
    ]
    if groups:
        head = ["group", "before", "after", "change", "MACs/position"]
        parts += ["## What was cut", _table(head, groups)]
    if report.notes:
        parts += ["## Notes", "\n".join(f"- {_plain(note)}" for note in report.notes)]
    if report.reproduce:
        parts += ["## Again", _block(report.reproduce)]
    facts = ", ".join(f"{key} {value}" for key, value in report.environment.items())
    parts.append(_plain(f"{report.made}; {facts}"))
    return printable("\n\n".join(parts))


def _plain(text: str) -> str:
    """Return a text as Markdown that shows it: on one line, and no tag, link or code of its own."""
    return re.sub(r"([\\`<>\[\]])", r"\\\1", " ".join(text.split()))


def _code(text: str) -> str:
    """Return a text as code on one line, which no backtick of its own ends."""
    line = " ".join(text.split())
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    return f"{fence}{line}{fence}" if len(fence) == 1 else f"{fence} {line} {fence}"


def _block(text: str) -> str:
    """Return a text as a block of code, which no fence of its own ends."""
    fence = "`" * (1 + max([2, *map(len, re.findall("`+", text))]))
    return f"{fence}\n{text}\n{fence}"


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    align = ["---", *["---:"] * (len(headings) - 1)]
    lines = [
        headings,
        align,
        *([" ".join(cell.split()).replace("|", "\\|") for cell in row] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
