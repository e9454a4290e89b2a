"""The report as one HTML page: no script, no font, no image and no request to anywhere."""

from __future__ import annotations

import json
import re
from importlib.resources import files

from secateur.errors import MissingExtraError

from .facts import Report
from .figures import curves, decade, headline, measures, percent, quality, refitted, spreads, strip
from .map import LANE, ROW, map_of
from .searched import front

MANY = 60
"""Rows of a chart; longer ones are folded, so that the page stays a page."""


def to_html(report: Report) -> str:
    """Return the page.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, StrictUndefined
        from markupsafe import Markup
    except ImportError as error:
        raise MissingExtraError("The HTML report", "jinja2", "report") from error
    texts = files(__package__)
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )

    def breakable(name: str) -> Markup:
        return Markup("<wbr>").join(re.split(r"(?<=[._])|(?<=[a-z])(?=[A-Z])", name))

    environment.filters |= {"decade": decade, "breakable": breakable, "tail": _tail}
    template = environment.from_string((texts / "page.html.j2").read_text(encoding="utf-8"))
    groups = report.structure.groups
    reasons: dict[str, list[str]] = {}
    for frozen in report.structure.frozen:
        reasons.setdefault(frozen.reason, []).append(f"{frozen.name} ({frozen.size})")
    masked = [t for t in report.tensors if t.masked and t.before == t.after]
    return template.render(
        report=report,
        style=(texts / "page.css").read_text(encoding="utf-8"),
        headline=headline(report),
        measures=measures(report),
        widest=max((g.size for g in groups), default=1),
        strip=strip,
        percent=percent,
        masked=masked,
        dropped=[block.name for block in report.structure.blocks if block.dropped],
        map=map_of(report),
        row=ROW,
        lane=LANE,
        many=MANY,
        curves=curves(report.history),
        spreads=spreads(report),
        refitted=refitted(report.repair) if report.repair else [],
        quality=quality(report.repair) if report.repair else "",
        front=front(report.search) if report.search else None,
        reasons=reasons,
        config={name: _word(value) for name, value in report.config.items()},
    )


def _tail(name: str, most: int = 40) -> str:
    """Return a name of at most ``most`` letters; its end tells blocks apart."""
    return name if len(name) <= most else f"…{name[1 - most :].lstrip('.')}"


def _word(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
