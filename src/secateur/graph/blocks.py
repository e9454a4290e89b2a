"""Blocks that can be dropped whole, found in the recorded forward.

Residual blocks return their input plus something.  Dropping one equals the model in which what it
adds is masked to zero, where some parameters can do that: the last projection of each branch, the
affine of its norm.

Of layers that are one of several alike and run on one stream (what they return has the axes of
what they are given, as after ``norm(x + f(x))``) each can be dropped too.  No mask makes such a
layer return its input: dropping one equals the model that skips it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .axes import Atom, Axis, atoms, find
from .conditions import Condition, Either, Every, Masked
from .cost import macs, params_of
from .infer import Inferred
from .program import ModuleCall, Op, Ref

IDENTITIES = {"aten.clone", "aten.alias", "aten.detach", "aten.dropout", "aten.contiguous"}


@dataclass(frozen=True)
class Block:
    """A module that can be dropped: it returns its input plus something, or is one of many alike.

    Attributes:
        name: the path of the module.
        position: of the argument that it adds to, an index or a keyword.
        returns: for each part of a tuple that it returns, whether it is the sum (the others are
            None, or read by nothing); None where it returns the sum itself.
        params: parameters that go with it.
        macs: multiply-accumulates that go with it, on the recorded inputs.
        masks: parameters that, all zero, let it add nothing; None where there are none, so that
            the model without it is compared with the one that skips it.
    """

    name: str
    position: int | str = field(repr=False)
    returns: tuple[bool, ...] | None = field(repr=False)
    params: int
    macs: int
    masks: frozenset[str] | None = field(repr=False)
    own: tuple[str, ...] = field(repr=False)  # the parameters that go
    ops: range = field(repr=False)  # the operations that go

    @property
    def exact(self) -> bool:
        """Whether dropping it can be compared with masking."""
        return self.masks is not None

    def cost(self, inferred: Inferred, count: Callable[[Atom], int]) -> tuple[int, int]:
        """Return parameters and MACs of the block when each atom keeps ``count(atom)``."""
        ops = [inferred.recording.ops[i] for i in self.ops]
        params = sum(params_of(inferred, name, count) for name in self.own)
        return params, macs(inferred, count, ops)


def find_blocks(inferred: Inferred) -> list[Block]:
    """Return the blocks in the order in which they run, inner ones before outer ones."""
    r = inferred.recording
    often = Counter(call.path for call in r.calls)
    search = _Search(inferred)
    found = [search.block(call) for call in r.calls if call.path and often[call.path] == 1]
    return [block for block in found if block is not None]


class _Search:
    def __init__(self, inferred: Inferred):
        self.inferred = inferred
        self.made: dict[int, int] = {}  # value → the operation that made it
        self.read: dict[int, int] = {}  # value → the last operation that reads it
        self.shared = Counter(inferred.recording.names.values())
        for i, op in enumerate(inferred.recording.ops):
            for ref in op.outputs:
                self.made[ref.value] = i
            for value in op.reads:
                self.read[value] = i
        for value in inferred.recording.outputs:
            self.read[value] = len(inferred.recording.ops)
        self.kinds = {call.path: self._kind(call.path) for call in inferred.recording.calls}
        self.alike: dict[Any, list[ModuleCall]] = {}
        for call in inferred.recording.calls:
            self.alike.setdefault(self.kinds[call.path], []).append(call)

    def block(self, call: ModuleCall) -> Block | None:
        parts = _parts(call)
        sums = [isinstance(part, Ref) and self._goes_on(call, part) for part in parts]
        if sum(sums) != 1 or "other" in parts:
            return None
        out = parts[sums.index(True)].value
        shapes = self.inferred.recording.shapes
        for position, value in call.inputs.items():
            if shapes[value] != shapes[out] or value == out:
                continue
            branches = self.branches(out, value, call.ops, set())
            if branches is not None:
                leaks = self._leaks(call, out)
                return None if leaks else self._describe(call, position, sums, branches)
        return self._layer(call, out, sums)

    def _goes_on(self, call: ModuleCall, part: Ref) -> bool:
        """Tell whether anything reads a result; nothing does of the weights that attention had."""
        return self.read.get(part.value, -1) >= call.ops.stop

    def _layer(self, call: ModuleCall, out: int, sums: list[bool]) -> Block | None:
        """Return one of several layers alike that hands on the stream that it was given."""
        if len(self.alike[self.kinds[call.path]]) < 2:
            return None
        for position, value in call.inputs.items():
            same = value != out and self._axes(value) == self._axes(out)
            if same and self._streams(call, position):
                found = None if self._leaks(call, out) else self._describe(call, position, sums)
                return found if found and found.macs else None  # a norm alone is no layer
        return None

    def _streams(self, call: ModuleCall, position: int | str) -> bool:
        """Tell whether a layer alike gets there what another one made; a memory comes elsewhere."""
        calls = self.alike[self.kinds[call.path]]
        given = {other.inputs.get(position) for other in calls}
        return any(isinstance(p, Ref) and p.value in given for c in calls for p in _parts(c))

    def _kind(self, path: str) -> tuple[Any, ...]:
        """Return what layers alike share: who holds them, and the shapes of their parameters."""
        r = self.inferred.recording
        prefix = f"{path}."
        own = {n.removeprefix(prefix): v for n, v in r.parameters.items() if n.startswith(prefix)}
        shapes = tuple((name, r.shapes[value]) for name, value in own.items())
        return path.rpartition(".")[0], shapes

    def _axes(self, value: int) -> list[tuple[int, ...]]:
        def key(axis: Axis) -> tuple[int, ...]:
            return tuple(id(atom) for atom in atoms(find(axis)))

        return [key(dim.axis) for dim in self.inferred.types[value].dims]

    def branches(self, out: int, x: int, ops: range, tried: set[int]) -> list[int] | None:
        """Return the values that were added to ``x`` to make ``out``, or None."""
        if out == x:
            return []
        op = self._op(out, ops)
        if op is None or out in tried:
            return None
        tried.add(out)
        kind = op.name.rsplit(".", 1)[0]
        given = [a.value for a in op.args if isinstance(a, Ref)]
        if kind in IDENTITIES or (kind in ("aten.relu", "aten.relu_") and self._positive(x)):
            return self.branches(given[0], x, ops, tried)
        shapes = self.inferred.recording.shapes
        if kind not in ("aten.add", "aten.add_") or op.kwargs.get("alpha", 1) != 1:
            return None
        if len(given) != 2 or shapes[given[0]] != shapes[given[1]]:
            return None
        for old, new in (given, given[::-1]):
            rest = self.branches(old, x, ops, tried)
            if rest is not None:
                return [*rest, new]
        return None

    def _op(self, value: int, ops: range) -> Op | None:
        made = self.made.get(value, -1)
        return self.inferred.recording.ops[made] if made in ops else None

    def _positive(self, x: int) -> bool:
        """Tell whether a value is a relu's, so that another relu does nothing to it."""
        made = self.made.get(x)
        while made is not None:
            op = self.inferred.recording.ops[made]
            kind = op.name.rsplit(".", 1)[0]
            if kind in ("aten.relu", "aten.relu_"):
                return True
            if "max_pool" not in kind or not isinstance(op.args[0], Ref):
                return False
            made = self.made.get(op.args[0].value)
        return False

    def _leaks(self, call: ModuleCall, out: int) -> bool:
        """Tell whether anything but the output is read outside, as a cache is, or written to."""
        r = self.inferred.recording
        owners = {r.owner[value] for value in call.inputs.values()}
        for i in call.ops:
            op = r.ops[i]
            if op.updates and r.owner[op.updates[0]] in (
                *r.buffers.values(),
                *r.parameters.values(),
            ):
                return True
            for ref in op.outputs:
                last = self.read.get(ref.value, -1)
                passes = r.owner[ref.value] == r.owner[out] or r.owner[ref.value] in owners
                if last >= call.ops.stop and not passes:
                    return True
        return False

    def _describe(
        self,
        call: ModuleCall,
        position: int | str,
        sums: list[bool],
        branches: list[int] | None = None,
    ) -> Block | None:
        inside = [n for n in self.inferred.recording.parameters if n.startswith(call.path + ".")]
        own = [n for n in inside if self.shared[n] == 1]
        if not own:
            return None
        masks: set[str] | None = None if branches is None else set()
        for value in branches or ():
            typed = self.inferred.made.get(value)
            zeros = [smallest(dim.zero) for dim in (typed.dims if typed else ())]
            possible = [zero for zero in zeros if zero and all(n in own for n in zero)]
            masks = None if masks is None or not possible else masks | min(possible, key=len)

        block = Block(
            call.path,
            position,
            tuple(sums) if isinstance(call.output, tuple) else None,
            0,
            0,
            None if masks is None else frozenset(masks),
            tuple(own),
            call.ops,
        )
        params, multiplied = block.cost(self.inferred, lambda atom: atom.size)
        return replace(block, params=params, macs=multiplied)


def _parts(call: ModuleCall) -> tuple[Any, ...]:
    return call.output if isinstance(call.output, tuple) else (call.output,)


def smallest(condition: Condition) -> frozenset[str] | None:
    """Return the fewest parameters that, masked as a whole, make a condition true, or None.

    >>> from .conditions import either, every
    >>> sorted(smallest(every(Masked("weight", 0), Masked("bias", 0))))
    ['bias', 'weight']
    """
    if isinstance(condition, Masked):
        return frozenset({condition.parameter})
    if not isinstance(condition, (Every, Either)):
        return None
    parts = [smallest(part) for part in condition.conditions]
    possible = [part for part in parts if part is not None]
    if isinstance(condition, Every):
        return frozenset().union(*possible) if len(possible) == len(parts) else None
    return min(possible, key=len, default=None)


def outermost(blocks: Sequence[Block]) -> list[Block]:
    """Return the blocks that lie in no other, or, where that is a single one, those within it."""
    names = [block.name for block in blocks]
    outer = [b for b in blocks if not any(_inside(b.name, n) for n in names)]
    within = [b for b in blocks if b not in outer]
    return outermost(within) if len(outer) == 1 and within else outer


def _inside(name: str, other: str) -> bool:
    return name.startswith(f"{other}.")
