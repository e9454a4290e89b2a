"""Which units stay: from scores and a goal to keep masks, all of them values.

Everything is counted per *part*: a score vector falls into ``clusters`` equal runs, which lose
the same number of units each.  First a request says how many units it would keep (by threshold,
its pool's ranking, or ratio), then limits change that number, then the smallest scores go.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil, floor, gcd, inf, isclose, isfinite

import torch
from torch import Tensor

from secateur.errors import ConfigError, ScoreError
from secateur.runtime.values import not_finite


@dataclass(frozen=True, eq=False)
class Request:
    """The units of one group or target, and what is asked of them: sparsity or threshold.

    ``pinned`` and ``keep_at_least`` win over the sparsity bounds, and those over ``round_to``.
    """

    score: Tensor
    """Shape ``(n,)``, floating point; smaller matters less."""
    sparsity: float | None = None
    """The share of the units to remove, in [0, 1]."""
    threshold: float | None = None
    """Units with a score below it are removed (with clusters: as many, spread evenly)."""
    min_sparsity: float | None = None
    max_sparsity: float | None = None
    clusters: int = 1
    """Equal consecutive parts of ``score`` that lose the same number of units each."""
    grain: float = 1.0
    """Elements that one score stands for; weighs requests of one pool against each other."""
    pool: Hashable | None = None
    """Requests of one pool are ranked together; thresholds, being absolute, need no pool."""
    keep_at_least: int = 1
    """So many units stay, whatever is asked; a note says where that mattered."""
    round_to: int = 1
    """The number of units kept becomes the nearest multiple of this, where one fits; never 0."""
    pinned: Tensor | None = None
    """Bool, shape ``(n,)``: True must stay."""
    widths: frozenset[int] | None = None
    """How many may stay, besides all; the nearest is taken.  For requests without clusters."""
    fixed: bool = False
    """The share was said for this one: a goal of all of them together leaves it alone."""

    @property
    def part_size(self) -> int:
        """Units in one of the ``clusters`` parts."""
        return len(self.score) // self.clusters


@dataclass(frozen=True, eq=False)
class Selection:
    """What stays of each request, in the order of the requests, and what a user should know."""

    keeps: list[Tensor]
    notes: list[str]


def select(requests: Sequence[Request], names: Sequence[str] | None = None) -> Selection:
    """Return a bool mask of shape ``(n,)`` for each request; True is kept.

    ``floor(n * sparsity)`` units go, those with the smallest scores; of equal scores the one
    with the lower index goes first, in a pool the earlier request's.  A pool stops before the
    first unit that would exceed its share of all elements.

    >>> scores = [torch.tensor([0.1, 0.9, 0.8]), torch.tensor([0.2, 0.3, 0.4])]
    >>> select([Request(s, sparsity=0.5, pool="all") for s in scores]).keeps
    [tensor([False,  True,  True]), tensor([False, False,  True])]
    >>> select([Request(scores[0], sparsity=1.0)], ["conv1"]).notes
    ['conv1: keeps 1 of 3 units instead of 0 (keep_at_least=1)']

    Raises:
        ScoreError: a score is NaN or infinite.
        ConfigError: requests that contradict themselves; names every problem of all of them.
    """
    names = [f"request {i}" for i in range(len(requests))] if names is None else names
    _check(requests, names)
    pools: dict[tuple[Hashable, float], list[int]] = {}
    for i, request in enumerate(requests):
        if request.pool is not None and request.sparsity is not None:
            pools.setdefault((request.pool, request.sparsity), []).append(i)
    wanted: dict[int, int] = {}
    for (_, sparsity), members in pools.items():
        wanted.update(zip(members, _pool([requests[i] for i in members], sparsity), strict=True))

    keeps, notes = list[Tensor](), list[str]()
    for i, (request, name) in enumerate(zip(requests, names, strict=True)):
        kept, reasons = _settle(request, wanted[i] if i in wanted else _wanted(request))
        remove = len(request.score) - kept * request.clusters
        keeps.append(select_count(request.score, remove, request.clusters, request.pinned))
        notes += [f"{name}: {reason}" for reason in reasons]
    return Selection(keeps, notes)


def select_count(
    score: Tensor, remove: int, clusters: int = 1, pinned: Tensor | None = None
) -> Tensor:
    """Return a mask that drops the ``remove`` smallest scores, ``remove // clusters`` per part.

    Of equal scores the lower index goes first; where ``pinned`` (bool, ``(n,)``) is True, none.

    >>> select_count(torch.tensor([3.0, 1.0, 1.0, 2.0]), 2)
    tensor([ True, False, False,  True])
    >>> select_count(torch.tensor([3.0, 4.0, 1.0, 2.0]), 2, clusters=2)
    tensor([False,  True, False,  True])
    """
    per_part = remove // clusters
    parts = _parts(score, clusters, pinned)
    removable = parts.shape[1] if pinned is None else int(parts.isfinite().sum(dim=1).amin())
    if not 0 <= per_part <= removable:
        raise ConfigError(f"cannot remove {per_part} of {removable} removable units per part")
    if not per_part:
        return torch.ones_like(score, dtype=torch.bool)
    # topk's values (not its indices) are deterministic, and 2 to 3 times faster than sorting
    last = parts.topk(per_part, dim=1, largest=False, sorted=False).values.amax(1, keepdim=True)
    below, tied = parts < last, parts == last
    spare = per_part - below.sum(dim=1, keepdim=True)
    return ~(below | (tied & (tied.cumsum(dim=1) <= spare))).reshape(-1)


def _parts(score: Tensor, clusters: int, pinned: Tensor | None) -> Tensor:
    """Return one row of scores per part, in which pinned units are beyond every ranking."""
    if pinned is not None:
        score = score.masked_fill(pinned, inf)
    return score.detach().reshape(clusters, len(score) // clusters)


def _floor(x: float) -> int:
    """Round down, but take 0.29 * 100 = 28.999999999999996 for the 29 that it means."""
    return round(x) if isclose(x, round(x), rel_tol=1e-12, abs_tol=1e-9) else floor(x)


def _wanted(request: Request) -> int:
    """Return how many units of a part the threshold or the ratio keeps, before any limit."""
    size = request.part_size
    if request.threshold is None:
        return size - _floor(size * (request.sparsity or 0))
    below = _parts(request.score, request.clusters, request.pinned) < request.threshold
    return size - int(below.sum()) // request.clusters


def _limits(request: Request) -> tuple[int, int, int]:
    """Return how many of a part must stay, and the fewest and most that the bounds let stay."""
    size, low, high = request.part_size, request.min_sparsity, request.max_sparsity
    stay = ceil(request.keep_at_least / request.clusters)
    if request.pinned is not None:
        stay = max(stay, int(request.pinned.reshape(request.clusters, size).sum(1).amax()))
    fewest = 0 if high is None else size - _floor(size * high)
    most = size if low is None else size - _floor(size * low)
    return min(stay, size), fewest, most


def rungs(request: Request) -> set[int]:
    """Return how many units of a request without clusters may stay, within its limits.

    >>> sorted(rungs(Request(torch.rand(20), sparsity=0.5, round_to=8, max_sparsity=0.7)))
    [8, 16, 20]
    """
    stay, fewest, most = _limits(request)
    size = request.part_size
    low, high = max(fewest, stay, 1), max(most, stay)
    widths = range(low, high + 1) if request.widths is None else request.widths
    fits = {k for k in widths if low <= k <= high and k % request.round_to == 0}
    return fits | ({size} if low <= size <= high else set())


def _settle(request: Request, wanted: int) -> tuple[int, list[str]]:
    """Return how many units of a part stay in the end, and why that is not what was asked."""
    clusters, size = request.clusters, request.part_size
    stay, fewest, most = _limits(request)
    asked = min(max(wanted, fewest), most)
    kept, notes = max(asked, stay), list[str]()
    of = f"of {size * clusters} units"
    if kept > asked:
        pins = "" if request.pinned is None else f", {int(request.pinned.sum())} pinned"
        why = f"keep_at_least={request.keep_at_least}{pins}"
        notes.append(f"keeps {kept * clusters} {of} instead of {asked * clusters} ({why})")
    step = request.round_to // gcd(request.round_to, clusters)
    if kept % step and kept < size:
        near = [kept - kept % step + step, kept - kept % step]
        fits = [k for k in near if max(fewest, stay, 1) <= k <= max(most, stay)]
        if not fits:
            notes.append(f"keeps any number {of}: no multiple of {request.round_to} fits")
        kept = min(fits, key=lambda k: abs(k - kept), default=kept)
    if request.widths is not None and kept not in request.widths:
        kept = min(rungs(request), key=lambda k: (abs(k - kept), k), default=kept)
    return kept, notes


def _pool(members: Sequence[Request], sparsity: float) -> list[int]:
    """Return how many units per part each member of a pool keeps.

    A *step* removes one more unit from every part of a member; its cost is their mean score.
    The cheapest steps of all members are taken until the pool's share of elements is reached;
    those up to ``min_sparsity`` come first, those beyond ``max_sparsity`` are not offered.
    """
    steps, ends = list[Tensor](), list[int]()
    for member in members:
        stay, fewest, most = _limits(member)
        cost = _parts(member.score, member.clusters, member.pinned).sort(dim=1).values.mean(dim=0)
        cost[: member.part_size - most] = -inf
        steps.append(cost.to(member.score.device if not steps else steps[0].device))
        ends.append(member.part_size - max(stay, fewest))
    ranked, order = torch.cat([c[:end] for c, end in zip(steps, ends, strict=True)]).sort(
        stable=True
    )

    # the tally is made on the CPU: the same sums, thus the same masks, on every device and rank
    grains = torch.tensor([m.clusters * m.grain for m in members], dtype=torch.float64)
    owner = torch.arange(len(members), dtype=torch.int32).repeat_interleave(torch.tensor(ends))
    owner = owner[order.cpu()]
    budget = sparsity * sum(len(m.score) * m.grain for m in members)
    spent = grains.index_select(0, owner).cumsum(0)
    slack = 1e-9 + 1e-12 * budget
    taken = int((spent <= budget + slack).sum())
    counts = owner[:taken].bincount(minlength=len(members))
    short = taken == len(ranked) and float(counts.double() @ grains) < budget - slack
    level = inf if short else float(ranked[taken - 1]) if taken else -inf
    wanted = []
    for member, cost, end, count in zip(members, steps, ends, counts.tolist(), strict=True):
        refused = count == end < len(cost) and float(cost[end]) <= level
        wanted.append(member.part_size - count - refused)  # _settle will say no, and why
    return wanted


def _check(requests: Sequence[Request], names: Sequence[str]) -> None:
    problems, goals = [], dict[Hashable, float | None]()
    for request, name in zip(requests, names, strict=True):
        problems += [f"{name}: {problem}" for problem in _problems(request)]
        if request.pool is not None and request.threshold is None:
            goal = goals.setdefault(request.pool, request.sparsity)
            if goal != request.sparsity:
                ask = f"asks for sparsity {request.sparsity}, its pool {request.pool!r} for {goal}"
                problems.append(f"{name}: {ask}; give all members of a pool the same")
    if problems:
        raise ConfigError(*problems)
    for i in not_finite({i: request.score for i, request in enumerate(requests)}):
        score = requests[i].score
        bad = (~score.isfinite()).nonzero()
        what = f"{len(bad)} of {len(score)} scores are NaN or infinite, the first at"
        raise ScoreError(
            f"{names[i]}: {what} position {int(bad[0])}; "
            "check its weights, and its gradients if the criterion reads them"
        )


def _problems(request: Request) -> Iterator[str]:
    """Yield one sentence for everything about a request that makes no sense."""
    score, pinned, n = request.score, request.pinned, request.score.numel()
    if score.ndim != 1 or not score.is_floating_point():
        yield f"the score must be a vector of floats, got {score.dtype}, {tuple(score.shape)}"
    if (request.sparsity is None) == (request.threshold is None):
        yield "give either sparsity or threshold"
    if request.threshold is not None and not isfinite(request.threshold):
        yield f"threshold must be finite, got {request.threshold}"
    if request.sparsity is not None and not 0 <= request.sparsity <= 1:
        yield f"sparsity must be in [0, 1], got {request.sparsity}"
    low, high = request.min_sparsity, request.max_sparsity
    if not 0 <= (low or 0) <= (1 if high is None else high) <= 1:
        yield f"give 0 <= min_sparsity <= max_sparsity <= 1, got {low} and {high}"
    if request.clusters < 1 or n % request.clusters:
        yield f"{n} scores do not fall into {request.clusters} equal clusters"
    if request.keep_at_least < 0 or request.round_to < 1 or not 0 < request.grain < inf:
        yield "keep_at_least must be 0 or more, round_to 1 or more, and grain above 0"
    if pinned is not None and (pinned.dtype is not torch.bool or pinned.shape != (n,)):
        yield f"pinned must be bool of shape ({n},), got {pinned.dtype}, {tuple(pinned.shape)}"
