"""The report as Markdown, for pull requests and model cards."""

from __future__ import annotations

from collections.abc import Sequence

from secateur.graph.cost import human

from .facts import Report
from .figures import change, headline, measures, quality


def to_markdown(report: Report) -> str:
    """Return the report as GitHub's Markdown."""
    rows = [[m.label, m.before, m.after, m.change] for m in measures(report)]
    parts = [
        f"# {report.structure.model}",
        headline(report),
        _table(["", "before", "after", "change"], rows),
        f"Loads with: {report.loads_with}",
    ]
    if report.check:
        kind = "every removal is exact" if report.check.exact else "some removals are inexact"
        parts.append(
            f"Check: outputs differ from the masked model's by {report.check.difference:.1e} of "
            f"the largest, on {report.check.inputs} inputs ({kind})."
        )
    if report.repair:
        parts.append(f"Repair `{report.repair.how}`: {quality(report.repair)}")
    groups = [
        [f"`{g.name}`", str(g.size), str(g.left), change(g.size, g.left), human(g.macs)]
        for g in report.structure.groups
        if g.kept is not None
    ]
    if groups:
        head = ["group", "before", "after", "change", "MACs/position"]
        parts += ["## What was cut", _table(head, groups)]
    if report.notes:
        parts += ["## Notes", "\n".join(f"- {note}" for note in report.notes)]
    if report.reproduce:
        parts += ["## Again", f"```\n{report.reproduce}\n```"]
    facts = ", ".join(f"{key} {value}" for key, value in report.environment.items())
    parts.append(f"{report.made}; {facts}")
    return "\n\n".join(parts)


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    align = ["---", *["---:"] * (len(headings) - 1)]
    lines = [headings, align, *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
