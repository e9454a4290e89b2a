"""Where a router chooses: there minus infinity forbids a position, as no mask of zeros does.

An expert whose weights are masked has a logit of zero, may still be chosen, and then returns zeros.
A smaller model sends those tokens elsewhere.  It equals the one in which what goes is forbidden.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from secateur.runtime.forbidding import Forbidden

from .axes import Atom, atoms
from .conditions import zero_when_masked
from .infer import Inferred
from .layout import among, labels
from .program import Op, Recording, Ref
from .typing import Site, Typed

CHOOSE = ("topk",)
"""Operations that choose among positions: minus infinity is chosen last, wherever it is."""
SHARE = ("_softmax", "_log_softmax", "_safe_softmax", "softmax", "log_softmax", "logsumexp")
EXTREME = ("amax", "max.dim", "max.default")
"""Operations along a dimension in which minus infinity takes no part."""
COUNT = ("histc", "bincount", "cumsum")
"""Operations that count how often each is chosen, and up to where: one never chosen adds none."""
KINDS = (CHOOSE, SHARE, EXTREME, COUNT)


def forbids(sites: Iterable[Site], atom: Atom) -> bool:
    """Tell whether a position that goes does no harm where it is forbidden, at all of the sites."""
    harmful = (s for s in sites if s.harm or not zero_when_masked(s.zero, atom))
    return all(_kind(site.reason.op) for site in harmful)  # the check finds what this does not


def forbidden(inferred: Inferred, atom: Atom, keep: Tensor) -> Iterator[Forbidden]:
    """Yield where positions of an axis are forbidden while a model runs; ``keep`` is bool."""
    recording = inferred.recording
    for i, op in enumerate(recording.ops):
        first = op.args[0] if op.args else None
        if (kind := _kind(op.name)) in ((), COUNT) or not isinstance(first, Ref):
            continue
        typed = inferred.types[first.value]
        for dim in range(len(typed)) if kind == CHOOSE else _along(op, typed):
            if any(each is atom for each in atoms(typed[dim].axis)):
                gone = among(labels(typed[dim].axis, atom), ~keep)
                place = _place(recording, i)
                yield Forbidden(op.module, op.func.overloadpacket, place, dim - len(typed), gone)


def _kind(name: str) -> tuple[str, ...]:
    """Return which of the kinds an operation is of, by a name such as ``aten.topk.default``."""
    packet, _, overload = name.removeprefix("aten.").partition(".")
    known = (packet, f"{packet}.{overload}")
    return next((kind for kind in KINDS if {*kind} & {*known}), ())


def _along(op: Op, typed: Typed) -> Iterator[int]:
    """Yield the dimensions along which an operation takes a share or an extreme value."""
    given: Any = op.args[1] if len(op.args) > 1 else op.kwargs.get("dim")
    for dim in range(len(typed)) if given in (None, []) else torch.tensor([given]).flatten():
        yield int(dim) % len(typed)


def _place(recording: Recording, index: int) -> int:
    """Return how many operations of its kind ran before one, in the same call of its module."""
    op = recording.ops[index]
    calls = [c.ops for c in recording.calls if c.path == op.module and index in c.ops]
    start = max((ops.start for ops in calls), default=0)
    before = recording.ops[start:index]
    return sum(o.module == op.module and _same(o.func, op.func) for o in before)


def _same(one: Any, other: Any) -> bool:
    packet = getattr(one, "overloadpacket", None)
    return packet is not None and packet is getattr(other, "overloadpacket", None)
