"""``secateur list``: every name that a setting accepts, with its first line of documentation."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase

from rich.table import Table

from secateur.errors import UnknownNameError, did_you_mean
from secateur.registry import name_of

from .declared import declared
from .show import AsJson, show

REGISTRIES = {
    "criterion": ("scoring", "criteria.register"),
    "schedule": ("scoring", "schedules.register"),
    "method": ("training", "methods.register"),
    "what": ("graph", "kinds.register"),
    "allocate": ("selection/allocators", "allocators.register"),
    "repair": ("repair", "repairs.register"),
    "sampler": ("searching/samplers", "sampler"),
}
"""Setting → the folder whose files register its names, and with what."""
LOSS = "grad"
"""What a criterion asks for that a forward alone does not give."""


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
    for setting, (folder, decorator) in REGISTRIES.items():
        named = {(e.arguments or (name_of(e.name),))[0]: e for e in declared(folder, decorator)}
        for name, each in sorted(named.items()):
            needed = "data" if "data" in each.facts else _needed(setting, each.needs)
            yield {"setting": setting, "name": name, "needs": needed, "what": each.first_line}
    for each in declared("scoring", "form"):
        name, what, *_ = each.arguments
        yield {"setting": "granularity", "name": name, "needs": "", "what": what}


def _needed(setting: str, asked: tuple[str, ...]) -> str:
    """Return what a run must be given for a name, by the keyword-only names of its function.

    >>> _needed("criterion", ()), _needed("criterion", ("grad",)), _needed("repair", ("damping",))
    ('weights', 'data and a loss', 'data')
    """
    if setting == "repair":
        return "data"
    if setting != "criterion":
        return ""
    statistics = [name for name in asked if name != "generator"]
    if LOSS in statistics:
        return "data and a loss"
    return "data" if statistics else "weights"
