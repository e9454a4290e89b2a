"""``secateur list``: every name that a setting accepts, with its first line of documentation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from secateur.criteria import criteria, needs
from secateur.errors import UnknownNameError, did_you_mean
from secateur.methods import methods
from secateur.registry import Registry
from secateur.schedules import schedules

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
    rows = [
        {"setting": setting, "name": name, "needs": _needs(setting, registry[name]), "what": line}
        for setting, registry in REGISTRIES.items()
        for name in registry.search(pattern)
        for line in [(registry[name].__doc__ or "").strip().partition("\n")[0]]
    ]
    if not rows:
        names = [name for registry in REGISTRIES.values() for name in registry]
        raise UnknownNameError(f"no name matches {pattern!r}.{did_you_mean(pattern, names)}")
    table = Table()
    for heading in rows[0]:
        table.add_column(heading)
    for row in rows:
        table.add_row(*row.values())
    show(table, {"names": rows}, as_json=as_json)


def _needs(setting: str, function: Any) -> str:
    statistics = needs(function) if setting == "criterion" else ()
    return ", ".join(name for name in statistics if name != "generator")
