"""Which groups a target means by ``what``, and why there is none of a kind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from secateur.config import Config, Target
from secateur.graph.groups import Group
from secateur.graph.kinds import DEPTH, kinds, of_kind
from secateur.scoring.criteria import criteria
from secateur.structure import Structure

SHOWN = 3
LOOPS = (
    "experts that a loop over modules or numbers calls are frozen (in transformers: "
    "model.set_experts_implementation('grouped_mm'))"
)


def asked(target: Target) -> tuple[str, ...]:
    """Return the kinds that a target asks for; one that ranks experts asks for these."""
    if target.what or not criteria.facts[target.criterion].experts:
        return target.what
    return ("experts",)


def candidates(structure: Structure, config: Config, target: Target) -> list[Group]:
    """Return the groups that a target may take, of which no two share a grid.

    Experts that are asked for go though masks cannot say it: what they are compared with is the
    model that never chooses them.  A criterion that ranks experts takes nothing else.
    """
    wanted = asked(target)
    if not wanted:
        return list(structure.independent(inexact=config.inexact, grid=config.grid))
    named = _named(structure, wanted)
    if criteria.facts[target.criterion].experts:
        named = {name for name in named if structure[name].chosen}
    groups = structure.independent(inexact=True, grid=config.grid, among=named)
    groups = tuple(group for group in groups if group.name in named)
    return [g for g in groups if g.exact or g.chosen or config.inexact]


def missing(structure: Structure, config: Config, target: Target) -> Iterator[str]:
    """Yield for each kind that was asked for which groups are of it, or that none is."""
    experts = criteria.facts[target.criterion].experts
    for kind in asked(target):
        named = sorted(_named(structure, [kind]))
        if kind == DEPTH:
            yield f"what={kind!r} removes blocks, and no groups: alone it goes by prune()"
            continue
        if not named:
            there = [name for name in sorted(kinds) if _named(structure, [name])]
            more = f": {LOOPS}" if kind == "experts" else ""
            has = f" (it has {', '.join(there)})" if there else ""
            yield f"what={kind!r}: {structure.model} has none{has}{more}"
            continue
        why = f"; criterion {target.criterion!r} ranks experts alone" if experts else ""
        inexact = [name for name in named if not (structure[name].exact or config.inexact)]
        if inexact and not experts:
            why = f"; inexact=True would allow {inexact[0]!r}: {structure[inexact[0]].inexact}"
        yield f"what={kind!r} is {', '.join(map(repr, named[:SHOWN]))}{why}"


def absent(structure: Structure | None, config: Config) -> list[str]:
    """Return a note on each of several kinds that were named and are not there, or cannot go."""
    what = [kind for kind in config.what if kind != DEPTH]
    if structure is None or config.targets or len(what) < 2 or {*kinds} <= {*config.what}:
        return []
    free = {group.name for group in candidates(structure, config, config)}
    alone = [
        config.model_copy(update={"what": (kind,)})
        for kind in what
        if not _named(structure, [kind]) & free
    ]
    return [f"stays whole: {line}" for each in alone for line in missing(structure, config, each)]


def _named(structure: Structure, wanted: Sequence[str]) -> set[str]:
    found = (of_kind(kind, structure.inferred, structure.groups) for kind in wanted)
    return set[str]().union(*found)
