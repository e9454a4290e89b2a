"""``secateur list``: every name that a setting accepts, with its first line of documentation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase

from rich.table import Table

from secateur.errors import UnknownNameError, did_you_mean
from secateur.registry import Registry
from secateur.scoring.criteria import criteria, needs
from secateur.scoring.schedules import schedules
from secateur.settings import GRANULARITIES, GRANULARITY_FORMS
from secateur.training import methods

from .options import AsJson, show

REGISTRIES: Mapping[str, Registry] = {
    "criterion": criteria,
    "schedule": schedules,
    "method": methods,
}


def list_(pattern: str = "*", /, *, as_json: AsJson = False) -> None:
    """List the names that settings accept: secateur list "l*".

    Parameters
    ----------
    pattern
        A shell pattern over the names.
    """
    known = list(_names())
    rows = [row for row in known if fnmatchcase(row["name"], pattern)]
    if not rows:
        names = [row["name"] for row in known]
        raise UnknownNameError(f"no name matches {pattern!r}.{did_you_mean(pattern, names)}")
    table = Table()
    for heading in rows[0]:
        table.add_column(heading)
    for row in rows:
        table.add_row(*row.values())
    show(table, {"names": rows}, as_json=as_json)


def _names() -> Iterator[dict[str, str]]:
    for setting, registry in REGISTRIES.items():
        for name, function in registry.items():
            statistics = needs(function) if registry is criteria else ()
            needed = ", ".join(each for each in statistics if each != "generator")
            what = (function.__doc__ or "").strip().partition("\n")[0]
            yield {"setting": setting, "name": name, "needs": needed, "what": what}
    for name, what in (GRANULARITIES | GRANULARITY_FORMS).items():
        yield {"setting": "granularity", "name": name, "needs": "", "what": what}
