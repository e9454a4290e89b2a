"""Dependency groups: what is left of the axes when the trace ends."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import lcm
from typing import Literal

from secateur.errors import printable

from .axes import Atom, Axis, Product, atoms, find, parts_of
from .choices import forbids
from .conditions import zero_when_masked
from .infer import Inferred
from .lengths import now
from .typing import Reason, Site

Role = Literal["out", "in", "buffer"]


@dataclass(frozen=True)
class Member:
    """One dimension of one parameter or buffer on which a group lives.

    ``role`` is "in" where the dimension is summed over (the columns of the next layer), "buffer"
    for what is no parameter, and "out" otherwise (rows, biases, the affine of a norm).
    """

    tensor: str
    dim: int
    role: Role


@dataclass(frozen=True, eq=False)
class Group:
    """Positions that can be removed one by one, with every slice that goes with each of them.

    >>> import torch
    >>> from torch import nn
    >>> from secateur import analyze
    >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    >>> (group,) = analyze(net, torch.zeros(1, 8)).groups
    >>> [(member.tensor, member.dim, member.role) for member in group.members]
    [('0.weight', 0, 'out'), ('0.bias', 0, 'out'), ('2.weight', 1, 'in')]
    >>> group.size, group.exact, group.params
    (16, True, 13)

    See also:
        ``Structure``, which holds all of a model's.
    """

    name: str
    atom: Atom = field(repr=False)
    members: tuple[Member, ...]
    frozen: Reason | None = None
    inexact: Reason | None = None
    sized: tuple[str, ...] = ()  # other groups that must keep equally many positions
    grid: tuple[str, ...] = ()  # other groups that share a dimension as a grid: heads and widths
    params: int = 0  # that go with one position
    least: int = 1  # so many positions stay
    step: int = 1  # and a multiple of this
    chosen: bool = False  # a router chooses among its positions: they are experts
    unchosen: bool = False  # inexact, but for a model in which those that go are never chosen

    @property
    def size(self) -> int:
        return self.atom.size

    @property
    def exact(self) -> bool:
        return self.inexact is None

    def __str__(self) -> str:
        state = f"frozen: {self.frozen}" if self.frozen else ""
        state = state or (f"inexact: {self.inexact}" if self.inexact else "exact")
        return printable(f"{self.name} ({self.size}, {len(self.members)} slices, {state})")


def find_groups(inferred: Inferred) -> tuple[list[Group], list[Group]]:
    """Return the free and the frozen groups, in the order in which the model uses them."""
    where = _occurrences(inferred)
    inexact = _inexact(inferred, [atom for atom, _ in where.values() if atom.frozen is None])
    names = _names(where)
    sized = {id(a): c for c in inferred.sizing.classes() for a in c}
    _spread(inexact, sized, names)
    limits = _limits(inferred, sized)
    grids = _grids(inferred)
    chosen = {id(atom) for axis in inferred.typing.choices for atom in atoms(axis)}
    free: list[Group] = []
    frozen: list[Group] = []
    for key, (atom, members) in where.items():
        tied = (names[id(a)] for a in sized.get(key, ()) if a is not atom and id(a) in names)
        mates = tuple(sorted(names[k] for k in grids.get(key, ()) if k in names and k != key))
        group = Group(
            names[key],
            atom,
            tuple(members),
            atom.frozen,
            inexact.get(key),
            tuple(tied),
            mates,
            _params(inferred, atom, members),
            *limits.get(key, (1, 1)),
            chosen=key in chosen,
            unchosen=key in chosen & inexact.keys() and forbids(inferred.sites_of(atom), atom),
        )
        (free if atom.frozen is None else frozen).append(group)
    return free, frozen


def _state(inferred: Inferred) -> Iterator[tuple[str, int, bool]]:
    """Yield (name, value, is parameter) of all state in the order of first use."""
    r = inferred.recording
    owner = {value: (name, True) for name, value in r.parameters.items()}
    owner |= {value: (name, False) for name, value in r.buffers.items()}
    seen: set[int] = set()

    for value in (v for forward in r.forwards for op in forward.ops for v in op.reads):
        if value in owner and value not in seen:
            seen.add(value)
            yield (owner[value][0], value, owner[value][1])


def _occurrences(inferred: Inferred) -> dict[int, tuple[Atom, list[Member]]]:
    where: dict[int, tuple[Atom, list[Member]]] = {}
    for name, value, is_parameter in _state(inferred):
        for dim, typed in enumerate(inferred.types[value].dims):
            role: Role = "out" if is_parameter else "buffer"
            if is_parameter and (name, dim) in inferred.typing.consumed:
                role = "in"
            for atom in {id(a): a for a in atoms(typed.axis)}.values():
                if atom.size > 1 or atom.frozen is None:
                    entry = where.setdefault(id(atom), (atom, []))
                    entry[1].append(Member(name, dim, role))
    return where


def _inexact(inferred: Inferred, free: list[Atom]) -> dict[int, Reason]:
    """Return for each atom why its removal changes the result, where it does."""
    found: dict[int, Reason] = {}
    for atom in free:
        for site in inferred.sites_of(atom):
            if site.harm:
                found.setdefault(id(atom), _because(site, site.harm))
            elif not zero_when_masked(site.zero, atom):
                why = site.reason.why or "is summed over positions that are not zero when masked"
                found.setdefault(id(atom), _because(site, why))
    return found


def _spread(
    inexact: dict[int, Reason], sized: dict[int, list[Atom]], names: dict[int, str]
) -> None:
    """What must keep as many positions as an inexact group cannot be cut without it."""
    for key in list(inexact):
        for atom in sized.get(key, ()):
            if id(atom) not in inexact and key in names:
                why = f"must keep as many positions as {names[key]!r}, which {inexact[key].why}"
                inexact[id(atom)] = replace(inexact[key], why=why)


def _limits(inferred: Inferred, sized: dict[int, list[Atom]]) -> dict[int, tuple[int, int]]:
    """Return for each atom how many positions stay at least, and of what that is a multiple.

    Of pieces each keeps as many, and of a grid the rows: that is more than enough.
    """
    found: dict[int, tuple[int, int]] = {}
    for limit in inferred.typing.limits:
        axis = find(limit.axis)
        while limit.step > 1 and isinstance(axis, Product):
            axis = parts_of(axis)[-1]
        for atom in [a for a in atoms(axis) if a.frozen is None]:
            for tied in sized.get(id(atom), [atom]):
                least, step = found.get(id(tied), (1, 1))
                found[id(tied)] = (max(least, min(limit.least, tied.size)), lcm(step, limit.step))
    return {key: (step * -(-least // step), step) for key, (least, step) in found.items()}


def _because(site: Site, why: str) -> Reason:
    return Reason(why, site.reason.op, site.reason.module, site.reason.line)


def _names(where: dict[int, tuple[Atom, list[Member]]]) -> dict[int, str]:
    """Name each group after the module that first makes it."""
    names: dict[int, str] = {}
    taken: dict[str, int] = {}
    for key, (_, members) in where.items():
        first = members[0]
        if first.tensor.endswith(".bias"):  # under autocast it is cast before the weight is
            weight = f"{first.tensor.removesuffix('.bias')}.weight"
            first = next((m for m in members if m.tensor == weight), first)
        path = first.tensor.removesuffix(".weight")
        base = path if first.dim == 0 else f"{path}:{first.dim}"
        taken[base] = taken.get(base, 0) + 1
        names[key] = base if taken[base] == 1 else f"{base}[{taken[base] - 1}]"
    return names


def _grids(inferred: Inferred) -> dict[int, set[int]]:
    """Return for each free atom those that it shares a product with."""
    mates: dict[int, set[int]] = {}

    def visit(axis: Axis) -> set[int]:
        axis = find(axis)
        if isinstance(axis, Atom):
            return {id(axis)} if axis.frozen is None else set()
        inside = [visit(part) for part in parts_of(axis)]
        if isinstance(axis, Product):
            for i, part in enumerate(inside):
                others = set().union(*inside[:i], *inside[i + 1 :])
                for key in part:
                    mates.setdefault(key, set()).update(others)
        return set().union(*inside)

    r = inferred.recording
    for value in (*r.parameters.values(), *r.buffers.values()):
        for dim in inferred.types[value].dims:
            visit(dim.axis)
    return mates


def _params(inferred: Inferred, atom: Atom, members: list[Member]) -> int:
    """Return how many parameters one position of the atom takes with it."""
    parameters = inferred.recording.parameters
    total = 0
    for name in {m.tensor for m in members if m.tensor in parameters}:
        dims = inferred.types[parameters[name]].dims
        sizes = [(d.size, now(d.axis, lambda a: a.size - (a is atom))) for d in dims]
        before = after = 1
        for size, left in sizes:
            before, after = before * size, after * left
        total += before - after
    return round(total)
