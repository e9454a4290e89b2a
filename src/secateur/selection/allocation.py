"""Allocation: what share goes of which group or tensor, as data: a name or pattern → a share.

It comes from a person, from error curves or from a search; nothing here knows from which.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from math import isclose

from secateur.config import Config
from secateur.errors import ConfigError, NoMatchError, did_you_mean
from secateur.structure import Structure

from .families import families
from .select import Request
from .targets import Selectable

Allocation = Mapping[str, float]
"""Name of a group or tensor, or a shell pattern over these → the share of positions to remove."""


def shares(allocation: Allocation, names: Iterable[str]) -> dict[str, float]:
    """Return the share of each name that an allocation speaks of.

    What is named itself goes by that; of several patterns the last that matches counts.

    >>> shares({"layer1.*": 0.5, "layer1.0": 0.1}, ["stem", "layer1.0", "layer1.1"])
    {'layer1.0': 0.1, 'layer1.1': 0.5}
    """
    found = {}
    for name in names:
        matching = [key for key in allocation if fnmatchcase(name, key)]
        if name in allocation or matching:
            found[name] = allocation[name if name in allocation else matching[-1]]
    return found


def allotted(
    config: Config, structure: Structure | None, selectables: Sequence[Selectable]
) -> list[Selectable]:
    """Return the selectables, those that the config's allocation speaks of with its shares.

    Groups that must keep equally many positions share what is said of one of them.

    Raises:
        NoMatchError: a name or pattern matches nothing that is selected.
        ConfigError: shares contradict each other, bounds, or a pattern such as 2:4.
    """
    names = [each.name for each in selectables]
    _check_words(config.allocation, names, structure)
    found = shares(config.allocation, names)
    problems = []
    for family in families(config, structure, selectables):
        said = {name: found[name] for name in family if name in found}
        if len(set(said.values())) > 1:
            listed = ", ".join(f"{name!r}: {share:g}" for name, share in said.items())
            problems.append(f"allocation: these must keep equally many positions: {listed}")
        found |= {name: share for name in family for share in said.values()}
    problems += [p for s in selectables if s.name in found for p in _against(s, found[s.name])]
    if problems:
        raise ConfigError(*problems)
    return [
        replace(each, request=_fixed(each.request, found[each.name]))
        if each.name in found
        else each
        for each in selectables
    ]


def _fixed(request: Request, share: float) -> Request:
    return replace(request, sparsity=share, threshold=None, pool=None, fixed=True)


def _check_words(allocation: Allocation, names: Sequence[str], structure: Structure | None) -> None:
    """Raise a NoMatchError for every word that speaks of nothing that is decided on."""
    every = [] if structure is None else [*structure.groups, *structure.frozen]
    groups = {group.name: group for group in every}
    wrong = []
    for word in allocation:
        if any(word == name or fnmatchcase(name, word) for name in names):
            continue
        group = groups.get(word)
        if group is None:
            parts = [repr(name) for name in names if name.startswith(f"{word}[")]
            hint = f" Its parts are {', '.join(parts)}." if parts else did_you_mean(word, names)
            why = f" matches none.{hint}"
        elif group.frozen is not None:
            why = f" cannot go, it is frozen: {group.frozen}"
        elif not group.exact:
            why = f" is left out, its removal is inexact: {group.inexact}; see inexact=True"
        else:
            why = " is not selected: targets, exclude or its grid leave it out"
        wrong.append(f"allocation: {word!r}{why}")
    if wrong:
        raise NoMatchError(*wrong)


def _against(each: Selectable, share: float) -> list[str]:
    """Return what else is asked of a selectable that its share contradicts."""
    request, said = each.request, f"allocation: {each.name!r} is to lose {share:g}"
    low, high = request.min_sparsity, request.max_sparsity
    problems = []
    if low is not None and share < low:
        problems.append(f"{said}, and at least min_sparsity={low:g}")
    if high is not None and share > high:
        problems.append(f"{said}, and at most max_sparsity={high:g}")
    exact = each.parts[0].granularity.sparsity
    if exact is not None and share and not isclose(share, exact, abs_tol=0.01):
        problems.append(f"{said}, and its granularity removes {exact:g} exactly, or 0")
    return problems
