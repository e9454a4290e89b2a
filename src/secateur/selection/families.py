"""Who must keep equally many positions: groups that the code says so of, and those of one kind."""

from __future__ import annotations

import re
from collections.abc import Sequence

from secateur.config import Config
from secateur.structure import Structure

from .targets import Selectable

Family = tuple[str, ...]


def families(
    config: Config, structure: Structure | None, selectables: Sequence[Selectable]
) -> list[Family]:
    """Return the names of groups that keep equally many, also such as are not selected."""
    groups = structure.groups if structure else ()
    found = {tuple(sorted((g.name, *g.sized))) for g in groups if g.sized}
    if config.uniform:
        kinds: dict[tuple[str, int], list[str]] = {}
        for each in selectables:
            if each.group is not None:
                kind = re.sub(r"\d+", "#", each.name)
                kinds.setdefault((kind, each.group.size), []).append(each.name)
        found |= {tuple(names) for names in kinds.values() if len(names) > 1}
    return _joined(found)


def _joined(families: set[Family]) -> list[Family]:
    """Return the families, joined where they share a member: all of them keep equally many."""
    joined: list[set[str]] = []
    for family in sorted(families):
        touching = [other for other in joined if other & set(family)]
        joined = [other for other in joined if other not in touching]
        joined.append(set(family).union(*touching))
    return sorted(tuple(sorted(family)) for family in joined)
