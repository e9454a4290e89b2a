"""What stands in the way of a goal: how far each setting, and the model itself, lets it go."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from math import ceil, floor, prod

from torch import Tensor

from secateur.config import Config
from secateur.graph.groups import Group
from secateur.runtime.values import numbers
from secateur.structure import Structure

from .obstacles import SHOWN, unknown
from .select import Request
from .targets import Selectable

Share = Callable[[Mapping[str, int]], float]
"""Group → positions kept; returns the share of the whole that is gone."""


def in_the_way(
    structure: Structure,
    config: Config,
    chosen: Sequence[Group],
    most: float,
    share: Share,
) -> list[str]:
    """Return one line for each thing that keeps a share of parameters or MACs from going.

    Args:
        structure: of the model.
        config: what was asked.
        chosen: the groups that it selects.
        most: the share that can go as things are.
        share: what would be gone.
    """
    here = {group.name for group in chosen}
    exact = structure.independent(inexact=config.inexact, grid=config.grid)
    lines = []

    def allows(groups: Iterable[Group]) -> float:
        return share({group.name: group.least for group in groups})

    bounds = _bounds(config)
    if bounds and (without := allows(chosen)) > most + 0.005:
        lines.append(f"{bounds} in the way: without, {without:.1%} could go")
    left = [group for group in exact if group.name not in here]
    if left:
        names = _named(sorted(left, key=lambda g: -g.params * g.size))
        lines.append(
            f"left out by targets or exclude: {names}; with them {allows(exact):.1%} could go"
        )
    if config.grid != "fine":
        narrow = structure.independent(inexact=config.inexact, grid="fine")
        if (widths := allows(narrow)) > allows(exact) + 0.005:
            lines.append(f"whole heads go, one of them stays: grid='fine' lets {widths:.1%} go")
    if not config.inexact:
        every = structure.independent(inexact=True, grid=config.grid)
        more = [g for g in every if g.name not in {e.name for e in exact} | here]
        if more:
            reason = f"{more[0].name!r} {more[0].inexact}"
            lines.append(
                f"inexact, and kept: {_named(more)} ({reason}); inexact=True lets "
                f"{allows(every):.1%} go"
            )
    return [*lines, *_frozen(structure), *unknown(structure)]


def held_back(config: Config, requests: Sequence[Request], names: Sequence[str]) -> list[str]:
    """Return one line for each setting or need that keeps channels of groups from going."""
    lines = []
    if bounds := _bounds(config):
        lines.append(f"{bounds} in the way")
    for request, name in zip(requests, names, strict=True):
        if request.keep_at_least > 1 or request.round_to > config.round_to:
            least = max(request.keep_at_least, request.round_to)
            lines.append(f"{name!r} ({len(request.score)}) must keep {least} or a multiple of it")
    return lines[: SHOWN + 1]


def went(requests: Sequence[Request], keeps: Sequence[Tensor]) -> tuple[float, float]:
    """Return the share of all weights, or channels, that goes, and the share that was asked for.

    A group, or a cluster of one, loses whole positions, and some must stay in any case: less than
    one, and these, were not asked for.  What thresholds take counts in neither.
    """
    asked, total = 0.0, 0.0
    pools: dict[Hashable, list[Request]] = {}
    for request in requests:
        if request.sparsity is None:
            continue
        total += len(request.score) * request.grain
        if request.pool is not None:
            pools.setdefault(request.pool, []).append(request)
            continue
        most = request.part_size - ceil(request.keep_at_least / request.clusters)
        whole = min(floor(request.part_size * request.sparsity + 1e-9), most)
        asked += whole * request.clusters * request.grain
    for members in pools.values():
        share = members[0].sparsity or 0.0
        least = max(each.clusters * each.grain for each in members)
        asked += max(0.0, share * sum(len(r.score) * r.grain for r in members) - least)
    stay = numbers(keep.sum() for keep in keeps)
    gone = sum(
        (len(request.score) - kept) * request.grain
        for request, kept in zip(requests, stay, strict=True)
        if request.sparsity is not None
    )
    return gone / (total or 1.0), asked / (total or 1.0)


def beyond_bounds(selectables: Sequence[Selectable]) -> str:
    """Return that more is asked of tensors than a bound lets go of each; "" where it is not."""
    for each in selectables:
        asked, most = each.request.sparsity, each.request.max_sparsity
        if asked is not None and most is not None and most < asked:
            return f"{asked:.1%} of {each.name!r} cannot go, at most max_sparsity={most} can"
    return ""


def too_small(
    structure: Structure | None,
    config: Config,
    selectables: Sequence[Selectable],
    requests: Sequence[Request],
    keeps: Sequence[Tensor],
) -> list[str]:
    """Return a note on the groups that stay whole as their share is less than one position."""
    small = [
        (each.group, request.sparsity)
        for each, request, keep in zip(selectables, requests, keeps, strict=True)
        if each.group is not None and request.pool is None and request.sparsity
        if request.sparsity * each.group.size < 1 - 1e-9 and bool(keep.all())
    ]
    if not small or structure is None:
        return []
    group, share = small[0]
    finer = {g.name for g in structure.independent(inexact=config.inexact, grid="fine")}
    fine = "" if group.name in finer else ", or for widths (grid='fine')"
    return [
        f"{share:.0%} is less than one position of {_named([g for g, _ in small])}, which stay "
        f"whole: ask for {1 / group.size:.0%} or more{fine}"
    ]


def _bounds(config: Config) -> str:
    highs = {t.max_sparsity for t in config.resolved_targets()} - {None}
    named = [
        *(f"max_sparsity={high}" for high in sorted(h for h in highs if h is not None)),
        *([f"round_to={config.round_to}"] if config.round_to > 1 else []),
        *(["uniform=True"] if config.uniform else []),
    ]
    return f"{' and '.join(named)} {'is' if len(named) == 1 else 'are'}" if named else ""


def _frozen(structure: Structure) -> list[str]:
    """Return the frozen groups with most parameters along them, and why they are frozen."""
    r = structure.inferred.recording
    elements = {name: prod(r.shapes[value]) for name, value in r.parameters.items()}
    total = max(sum(elements.values()), 1)
    along = [
        (sum(elements.get(name, 0) for name in {m.tensor for m in group.members}) / total, group)
        for group in structure.frozen
    ]
    most = sorted(along, key=lambda pair: -pair[0])[:SHOWN]
    return [
        f"frozen: {part:.1%} of the parameters lie along {group.name!r} ({group.size}): "
        f"{group.frozen}"
        for part, group in most
        if part > 0.01
    ]


def _named(groups: Sequence[Group]) -> str:
    more = f" and {len(groups) - SHOWN} more" if len(groups) > SHOWN else ""
    return ", ".join(f"{g.name!r} ({g.size})" for g in groups[:SHOWN]) + more
