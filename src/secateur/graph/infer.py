"""Apply the rules to a recorded forward: from operations to the type of every tensor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from functools import cached_property
from math import floor, prod
from typing import Any

import torch

from secateur.errors import AxisError, RuleError

from .axes import Atom, Axis, atoms, find, freeze
from .conditions import ALWAYS, Masked, every, zero_when_masked
from .equations import Named, solve
from .gains import absorb
from .lengths import Sizing
from .origins import Attribute, Factor, Origin, Size
from .partial import freeze_tables, freeze_trained
from .program import Compared, Op, Recording, Ref
from .rules import rule_for
from .rules.numbers import keeps_numbers, reads_numbers
from .typing import COMPUTES, Dim, Limit, Reason, Site, Typed, Typing
from .unseen import freeze_feeds

RANGES = {torch.ops.aten.arange}
"""Operations that take a length as a number."""


class Inferred:
    """The types of all tensors of a forward, and what the rules said about their axes."""

    def __init__(self, recording: Recording, *, ragged: bool = False):
        self.recording = recording
        self.types: dict[int, Typed] = {}
        self.made: dict[int, Typed] = {}  # likewise, before anything was written to the tensor
        self.typing = Typing(ragged)
        of_inputs = (size for value in recording.inputs for size in recording.shapes[value])
        types = self.types  # of which the function holds no more
        self.typing.tables.static = lambda value: types[value].static
        self.typing.tables.lengths = frozenset((*recording.given, *of_inputs)) - {0, 1}
        self.unknown: dict[str, Reason] = {}
        self.sizing = Sizing()
        self._averages: dict[int, list[Site]] = {}
        self._start()
        for forward in recording.forwards:
            self._run(forward)
        freeze_trained(recording, self.types)
        freeze_feeds(recording, self.types)
        t = self.typing
        t.names += self._equals()
        freeze_tables(recording, self.types, t.tables, [site.axis for site in t.sites])
        self.attributes = solve(t.names, t.pairs, self._axis_of, self.sizing, t.tables)
        self._keep_larger()
        self._numbers()
        self._absorb()

    def _run(self, forward: Recording) -> None:
        """Apply the rules to one forward.

        One in training mode only constrains: what is masked is equal, and known, in eval mode.
        """
        t = self.typing
        t.training, t.decisions = forward is not self.recording, forward.decisions
        sites, numbers = len(t.sites), len(t.numbers)
        state = {value: self.types[value] for value in forward.state}
        for op, used in zip(forward.ops, forward.used(), strict=True):
            known = len(t.sites)
            self._apply(op)
            if not used:  # its sizes must fit, but what it computes does not matter
                del t.sites[known:]
            elif means := [site for site in t.sites[known:] if site.average]:
                self._averages[op.outputs[0].value] = means
        for value in forward.outputs:
            if value in self.types:
                reason = self._maker(forward, value)
                if (counts := self.types[value].counts) is not None:
                    freeze(counts, reason)
                for dim in self.types[value].dims:
                    freeze(dim.axis, reason)
        self._read_whole(forward)
        if t.training:
            del t.sites[sites:], t.numbers[numbers:]
            self.types |= state

    def sites_of(self, atom: Atom) -> list[Site]:
        """Return the places where an axis that mentions the atom is summed away."""
        return self._sites.get(id(atom), [])

    @cached_property
    def _sites(self) -> dict[int, list[Site]]:
        found: dict[int, list[Site]] = {}
        for site in self.typing.sites:
            for atom in {id(atom): atom for atom in atoms(site.axis)}.values():
                found.setdefault(id(atom), []).append(site)
        return found

    def _start(self) -> None:
        shapes = self.recording.shapes
        for name, value in self.recording.parameters.items():
            dims = []
            for i, size in enumerate(shapes[value]):
                dim = self.typing.fresh(size)
                dims.append(Dim(dim.axis, Masked(name, i), source=(name, i)))
            self.types[value] = Typed(tuple(dims), static=True)
        for name, value in self.recording.buffers.items():
            # an index, a mask or a count says something of every position
            fixed = "a buffer of integers" if value in self.recording.integers else None
            fresh = [self.typing.fresh(size, fixed, zero=False) for size in shapes[value]]
            dims = [Dim(d.axis, d.zero, source=(name, i)) for i, d in enumerate(fresh)]
            self.types[value] = Typed(tuple(dims), static=True)
        for value in self.recording.inputs:
            reason = Reason("it is the model's input")
            axes = [Atom(size, reason) for size in shapes[value]]
            self.typing.tables.varying += axes
            self.types[value] = Typed(tuple(map(Dim, axes)))

    @staticmethod
    def _maker(forward: Recording, value: int) -> Reason:
        why = "it is the model's output"
        if value in forward.read_out:
            why = f"{forward.read_out[value]} hands out its numbers, which may go anywhere"
        for op in reversed(forward.ops):
            if any(ref.value == value for ref in op.outputs):
                return Reason(why, op.name, op.module, op.line)
        return Reason(why)

    def _axis_of(self, size: Size) -> Any:
        return self.types[size.value].dims[size.dim].axis

    def _compared(self) -> Iterator[Compared]:
        return (found for forward in self.recording.forwards for found in forward.compared)

    def _equals(self) -> Iterator[Named]:
        """Yield the equations that the code checks: ``if x.shape[-1] != self.width: raise``."""
        for found in self._compared():
            for size, other in ((found.one, found.other), (found.other, found.one)):
                factor = size.factor
                if found.equal and isinstance(factor, Size) and other.factors:
                    reason = Reason("its size is compared", "if", found.module, found.line)
                    yield Named(self._axis_of(factor), other, reason)
                    break

    def _read_whole(self, forward: Recording) -> None:
        for found in forward.whole:
            if (typed := self.types.get(found.value)) is not None:
                self.typing.reason = Reason("", "slice", found.module, found.line)
                self.typing.read_whole(typed, typed[found.dim], found.bound, [found.origin])

    def _keep_larger(self) -> None:
        """What the code found to be more than a number that stays must stay more than it."""
        for found in self._compared():
            for mine, other in ((found.one, found.other), (found.other, found.one)):
                axis, share = self._followed(mine.factor)
                if found.equal or not isinstance(axis, Atom) or axis.frozen is not None:
                    continue
                if all(
                    isinstance(f, Attribute) and f not in self.attributes for f in other.factors
                ):
                    number = _number(other) * share
                    if axis.size > number:
                        self.typing.limits.append(Limit(axis, floor(number) + 1, 1))

    def _followed(self, factor: Factor | None) -> tuple[Axis | None, Fraction]:
        """Return the axis whose length a factor is a share of, and which one."""
        if isinstance(factor, Size):
            return find(self._axis_of(factor)), Fraction(1)
        if factor in self.attributes:
            axis, share = self.attributes[factor]
            return find(axis), share
        return None, Fraction(1)

    def _numbers(self) -> None:
        """A scale that the code derives from a size differs between masked and cut."""
        seen: set[int] = set()
        found = [
            (n.origin, Reason(COMPUTES, "float", n.module, n.line)) for n in self.recording.numbers
        ]
        found += [(origin, Reason(COMPUTES, "len")) for origin in self.recording.lengths]
        for c in self.recording.compared:
            if c.equal and not c.other.factors:  # it will not be equal any more
                why = "the code asks whether its size is a number"
                found.append((c.one, Reason(why, "if", c.module, c.line)))
        for origin, reason in (*self.typing.numbers, *found):
            for factor in origin.factors:
                axis = self._axis_of(factor) if isinstance(factor, Size) else None
                if isinstance(factor, Attribute):
                    axis = self._said_of(factor)
                if axis is not None and id(axis) not in seen:
                    seen.add(id(axis))
                    self.typing.sites.append(Site(axis, ALWAYS, ALWAYS, reason, reason.why))

    def _said_of(self, attribute: Attribute) -> Axis | None:
        """Return the axis whose size an attribute says, if one is known."""
        if attribute in self.attributes:
            return self.attributes[attribute][0]
        value, dim = self.recording.said.get((attribute.path, attribute.name), (None, 0))
        return None if value is None else self.types[value].dims[dim].axis

    def _absorb(self) -> None:
        """An average whose factor something takes up does no harm; of others say why nothing does.

        ``rescaled`` is what takes them up; ``epsilons`` are all floats that operations are given.
        """
        given = (a for call in self.recording.given_floats for a in call.floats)
        self.epsilons = tuple(dict.fromkeys(given))
        zero = {
            value: sites
            for value, sites in self._averages.items()
            if all(zero_when_masked(s.zero, a) for s in sites for a in _free(s.axis))
        }
        absorbed = absorb(self.recording, zero, self.sizing)
        self.rescaled = absorbed.rescaled
        why: dict[int, str | None] = {}
        for value, sites in zero.items():
            why |= dict.fromkeys(map(id, sites), absorbed.stuck.get(value))
        self.typing.sites = [
            _absorbed(site, why[id(site)]) if id(site) in why else site
            for site in self.typing.sites
        ]

    def _type(self, x: Any) -> Any:
        if isinstance(x, Ref):
            if x.value not in self.types:  # a tensor that the code holds outside of the state
                reason = Reason("a constant that is no parameter or buffer")
                axes = [Atom(s, reason) for s in self.recording.shapes[x.value]]
                self.types[x.value] = Typed(tuple(map(Dim, axes)), static=True)
            return self.types[x.value]
        if isinstance(x, (list, tuple)):
            return [self._type(part) for part in x]
        return x

    def _apply(self, op: Op) -> None:
        t = self.typing
        t.reason = Reason("", op.name, op.module, op.line)
        t.out = tuple(self.recording.shapes[ref.value] for ref in op.outputs)
        t.base = self._base(op)
        t.calls = op.call
        args = [self._type(a) for a in op.args]
        kwargs = {k: self._type(v) for k, v in op.kwargs.items()}
        self._scalars(op)
        rule = rule_for(op.func)
        outs: Any
        if rule is None:
            outs = self._freeze_all(args, kwargs, f"{op.name} has no rule")
            self.unknown.setdefault(op.name, t.reason)
        else:
            try:
                outs = rule(t, *args, **kwargs)
            except AxisError as error:
                outs = self._freeze_all(args, kwargs, f"{error}")
        typed = [outs] if isinstance(outs, Typed) else list(outs)
        self._count(op, args, kwargs, typed)
        if t.training and any(x.shape != shape for x, shape in zip(typed, t.out, strict=False)):
            typed = self._freeze_all(args, kwargs, f"{op.name} is another operation in training")
        for ref, made in zip(op.outputs, typed, strict=False):
            if made.shape != self.recording.shapes[ref.value]:
                raise RuleError(
                    f"the rule of {op.name} says {made.shape} where the tensor is "
                    f"{self.recording.shapes[ref.value]} (in {op.module!r}, {op.line})"
                )
            self.types[ref.value] = self.made[ref.value] = made
        if op.updates:
            self._written(*op.updates)

    def _scalars(self, op: Op) -> None:
        """What an operation takes as a number, and no size, may be the size of an axis."""
        if op.func.overloadpacket in RANGES:
            return
        for argument, given in zip(op.func._schema.arguments, op.args, strict=False):
            if type(given) is int and "number" in str(argument.type):
                self.typing.number(given)
        kinds = {argument.name: str(argument.type) for argument in op.func._schema.arguments}
        for name, given in op.kwargs.items():
            if type(given) is int and "number" in kinds.get(name, ""):
                self.typing.number(given)

    def _base(self, op: Op) -> Typed | None:
        first = op.args[0] if op.args else None
        return self.types.get(self.recording.owner[first.value]) if isinstance(first, Ref) else None

    def _count(self, op: Op, args: Any, kwargs: Any, outs: list[Typed]) -> None:
        """Follow numbers that are positions of an axis to where an axis is looked up by them."""
        for x in _tensors([args, kwargs]):
            if x.counts is not None and not reads_numbers(op.func):
                why = "the code computes with the numbers of its positions"
                freeze(x.counts, self.typing.because(why))
        carried = args[0].counts if args and isinstance(args[0], Typed) else None
        if carried is not None and keeps_numbers(op.func):
            outs[:] = [out if out.counts else replace(out, counts=carried) for out in outs]

    def _written(self, before: int, after: int) -> None:
        """A view was written to: the tensor behind it is zero where both it and the view are."""
        owner = self.recording.owner[before]
        if owner in (before, after) or owner not in self.types or after not in self.types:
            return
        view, old = self.types[after], self.types[owner]
        zero, const = every(*(d.zero for d in view.dims)), every(*(d.const for d in view.dims))
        dims = (replace(d, zero=every(d.zero, zero), const=every(d.const, const)) for d in old.dims)
        self.types[owner] = Typed(tuple(replace(d, source=None) for d in dims))

    def _freeze_all(self, args: Any, kwargs: Any, why: str) -> list[Typed]:
        for x in _tensors([args, kwargs]):
            self.typing.freeze(x, why)
        return [self.typing.opaque(shape, why) for shape in self.typing.out]


def _free(axis: Axis) -> Iterator[Atom]:
    return (atom for atom in atoms(axis) if atom.frozen is None)


def _absorbed(site: Site, obstacle: str | None) -> Site:
    if obstacle is None:
        return replace(site, harm=None, steady=None)
    return replace(site, harm=f"{site.harm}, and nothing takes that up: {obstacle}")


def _number(origin: Origin) -> Fraction:
    """Return the number that attributes, as they are, and literals make."""
    terms = (
        t.coefficient * prod(Fraction(f.value) ** p for f, p in t.powers) for t in origin.terms
    )
    return sum(terms, Fraction(0))


def _tensors(x: Any) -> list[Typed]:
    if isinstance(x, Typed):
        return [x]
    if isinstance(x, dict):
        x = list(x.values())
    return [y for part in x for y in _tensors(part)] if isinstance(x, list) else []
