"""What an average over fewer positions is off by, and what can take that factor up.

A mean over d positions, all but k of them zero, is d/k times as large once only these k are left.
The factor goes through whatever is proportional to it, as a power under a root, until something
that the model holds can take it up: the epsilon that is added to it, the scale or the weight that
it is multiplied by.  Then the smaller model computes exactly what the masked one does (an RMSNorm:
its scale becomes ``scale · √(d/k)``, its epsilon ``eps · d/k``).

Found from the operations alone: ``homogeneous`` says for each what it does to factors.  Where one
meets anything else (LayerNorm's difference from its mean, a literal epsilon, a weight that another
layer reads too), the average stays what it was: inexact, and the reason says what was in the way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from .axes import Atom, Axis
from .homogeneous import HOW, NONE, Gain, Held, Stuck
from .lengths import Polynomial, Sizing, now
from .origins import Attribute
from .program import Op, Recording, Ref
from .typing import Site

Thing = str | Attribute
"""A parameter, or a float that a module holds."""


@dataclass(frozen=True)
class Rescaled:
    """A parameter or a float that becomes ``(it + shift) · ratio - shift`` when axes are cut."""

    what: Thing
    shift: float
    powers: tuple[tuple[Axis, Fraction], ...]

    def ratio(self, count: Callable[[Atom], int]) -> float:
        """Return the factor when each free atom keeps ``count(atom)`` positions."""
        found = 1.0
        for axis, power in self.powers:
            found *= float(Fraction(axis.size) / now(axis, count)) ** float(power)
        return found


@dataclass(frozen=True)
class Absorbed:
    """What takes factors up, and why the other averages (by the value they are) stay inexact."""

    rescaled: tuple[Rescaled, ...] = ()
    stuck: Mapping[int, str] = field(default_factory=dict)


def absorb(
    recording: Recording, averages: Mapping[int, Sequence[Site]], sizing: Sizing
) -> Absorbed:
    """Find what takes up the factors of the averages of a recorded forward.

    Args:
        recording: with all its forwards.
        averages: value → the axes that it is a mean over.
        sizing: which axes keep equally many positions.
    """
    ratios = _Ratios(sizing)
    gains = {v: g for v, s in averages.items() if (g := ratios.of(v, [x.axis for x in s])).powers}
    stuck: dict[int, str] = {}
    rigid: set[Thing] = set(recording.spent)
    while gains:
        walk = _Walk(recording, gains, rigid)
        for forward in recording.forwards:
            walk.through(forward)
        conflicts = walk.conflicts()
        if not walk.stuck and not conflicts:
            return Absorbed(tuple(_rescaled(walk, ratios)), stuck)
        stuck |= walk.stuck
        gains = {value: gain for value, gain in gains.items() if value not in stuck}
        if not walk.stuck:  # else they may be gone with what is stuck
            rigid |= conflicts
    return Absorbed((), stuck)


def _rescaled(walk: _Walk, ratios: _Ratios) -> Iterable[Rescaled]:
    for what, claims in walk.claims.items():
        ((gain, shift),) = claims
        if gain.powers:
            yield Rescaled(what, shift, tuple((ratios.axes[key], p) for key, p in gain.powers))


class _Ratios:
    """Numbers the ratios by which lengths change: equal ones have one number."""

    def __init__(self, sizing: Sizing):
        self.sizing = sizing
        self.axes: list[Axis] = []
        self._numbers: dict[Any, int] = {}

    def of(self, value: int, axes: Sequence[Axis]) -> Gain:
        """Return the factor of a mean over several axes: what is frozen adds nothing."""
        found = NONE
        for axis in axes:
            length = self.sizing.length(axis)
            if any(length):  # else it is a number
                key = _shape(length)
                if key not in self._numbers:
                    self._numbers[key] = len(self.axes)
                    self.axes.append(axis)
                one = frozenset({(self._numbers[key], Fraction(1))})
                found = found.times(Gain(one, frozenset({value})))
        return found


def _shape(length: Polynomial) -> frozenset[tuple[tuple[int, ...], Fraction]]:
    """Return a polynomial up to a number: 3 · x changes as x does."""
    first = Fraction(length[min(length)])
    return frozenset((term, c / first) for term, c in length.items())


class _Walk:
    """One pass over the operations, with what cannot take up any factor."""

    def __init__(self, recording: Recording, gains: Mapping[int, Gain], rigid: set[Thing]):
        self.recording = recording
        self.means = gains
        self.rigid = rigid
        self.stuck: dict[int, str] = {}
        self.claims: dict[Thing, set[tuple[Gain, float]]] = {}
        self.gains: dict[int, Gain] = {}
        self._epsilons: dict[int, set[Attribute]] = {}  # taken up, by the call that was given them
        self._written: dict[int, int] = {}  # tensors after they were written to, and before
        self._took: set[str] = set()  # parameters, in the operation at hand
        self.held: dict[int, Held] = {
            value: Held(name)
            for name, value in recording.parameters.items()
            if value not in recording.integers
        }

    # -- what the table of operations asks -----------------------------------------------------

    def gain(self, x: Any) -> Gain:
        """Return the factor of an argument; a number has none."""
        return self.gains.get(x.value, NONE) if isinstance(x, Ref) else NONE

    def leaf(self, x: Any) -> Held | None:
        """Return the parameter that an argument is, if it is one that can still be changed."""
        found = self.held.get(x.value) if isinstance(x, Ref) else None
        return None if found is None or found.name in self.rigid else found

    def take(self, held: Held, gain: Gain) -> None:
        """Let a parameter be multiplied by a factor."""
        self._took.add(held.name)
        self._claim(held.name, gain, held.shift)

    def take_epsilon(self, number: Any, gain: Gain) -> None:
        """Let the attribute that a number of this operation is be multiplied by a factor.

        Raises:
            Stuck: it is none, or one that must stay as it is.
        """
        if number is None:
            raise Stuck("its epsilon is that of the type (eps=None), which no attribute holds")
        attribute = self.op.call.float_of(number)
        if attribute is None:
            raise Stuck(f"{number:g} is added, which no attribute of the model holds")
        if attribute in self.rigid:
            raise Stuck(f"{attribute} is added, which is read elsewhere too and must stay")
        self._claim(attribute, gain)
        self._epsilons.setdefault(id(self.op.call), set()).add(attribute)

    def _claim(self, what: Thing, gain: Gain, shift: float = 0.0) -> None:
        self.claims.setdefault(what, set()).add((gain, shift if gain.powers else 0.0))

    # -- the pass ------------------------------------------------------------------------------

    def through(self, forward: Recording) -> None:
        """Follow factors through one forward."""
        self.last = {value: i for i, op in enumerate(forward.ops) for value in op.reads}
        ran: dict[int, bool] = {}  # calls, by whether anything needs what they make
        for i, (op, used) in enumerate(zip(forward.ops, forward.used(), strict=True)):
            ran[id(op.call)] = used or ran.get(id(op.call), False)
            if used:
                self._apply(i, op)
        for call in forward.given_floats:
            if ran.get(id(call), True):
                for attribute in {*call.floats} - self._epsilons.get(id(call), set()):
                    self._claim(attribute, NONE)
        for value in forward.outputs:
            self._read_plainly(value)
            self._fail(self.gain(Ref(value)), "the model returns it")

    def _apply(self, i: int, op: Op) -> None:
        self.op, self.name, self._took = op, _plain_name(op), set()
        means = [self.means[out.value] for out in op.outputs if out.value in self.means]
        mean = means[0] if means else NONE
        try:
            made = self._made(op, mean)
            gains = [made] * len(op.outputs) if isinstance(made, (Gain, Held)) else list(made)
            self._check(i, op, gains)
        except Stuck as stuck:
            for gain in (mean, *(self.gain(Ref(value)) for value in op.reads)):
                self._fail(gain, f"{stuck} ({op.name} in {op.module or 'the model'!r})")
            gains = [NONE] * len(op.outputs)
        if not any(isinstance(gain, Held) for gain in gains):
            for value in op.reads:
                self._read_plainly(value)
        for out, new in zip(op.outputs, gains, strict=True):
            if isinstance(new, Held):
                self.held[out.value] = new
            elif new.powers and out.value not in self.recording.integers:
                self.gains[out.value] = new

    def _made(self, op: Op, mean: Gain) -> Gain | Held | Sequence[Gain]:
        how = HOW.get(self.name)
        if how is not None:
            return how(self, mean, *op.args, **op.kwargs)
        if mean.powers or any(self.gain(Ref(value)).powers for value in op.reads):
            raise Stuck("it is not proportional to what it reads")
        return NONE

    def _read_plainly(self, value: int) -> None:
        held = self.held.get(value)
        if held is not None and held.name not in self._took:
            self._claim(held.name, NONE)

    def _check(self, i: int, op: Op, gains: Sequence[Gain | Held]) -> None:
        """Raise where a factor is lost: in whole numbers, or in a tensor that others see too."""
        first = next(iter(gains), NONE)
        if isinstance(first, Held):
            return
        if first.powers and op.outputs[0].value in self.recording.integers:
            raise Stuck("it makes whole numbers of it")
        if op.updates is None:
            return
        owner, (before, after) = self.recording.owner, op.updates
        whole = self._written[after] = self._written.get(before, before)
        if first != self.gain(Ref(before)):
            later = (value for value, last in self.last.items() if last > i and value < after)
            if owner[before] != whole or any(owner[value] == whole for value in later):
                raise Stuck("it is written into a tensor that is read elsewhere too")

    def _fail(self, gain: Gain, why: str) -> None:
        for value in gain.means:
            self.stuck.setdefault(value, why)

    def conflicts(self) -> set[Thing]:
        """Return what would have to change in two ways."""
        return {what for what, claims in self.claims.items() if len(claims) > 1}


def _plain_name(op: Op) -> str:
    """Return the name of an operation: of one in place, that of its plain twin."""
    name: str = op.func.overloadpacket.__name__
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name
