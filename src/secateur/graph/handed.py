"""Results that nobody returns: a forward leaves them somewhere, or hands out their numbers.

An auxiliary loss in an attribute, a global, a closure, a queue: what nothing else reads, and is
there when the forward is over, is a result, and keeps its shape.  So does what the code turns into
text, or an array.  What the next forward reads is the model's own memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Set

from .program import Op, Recording


def handed_out(
    recording: Recording,
    held: Callable[[Iterable[int]], set[int]],
    placed: Callable[[Iterable[int]], Mapping[int, int]],
    again: Callable[[], Recording],
    *,
    own: Set[int],
) -> tuple[list[int], bool]:
    """Return the values that are results, though they are no tensors of what was returned.

    Args:
        recording: of the forward, without those.
        held: tells which of some values have memory that is there still.
        placed: tells which of those are the ``data`` of a parameter or buffer by now, and of which.
        again: records another forward behind it.
        own: values that it returned as its memory, which the caller gives back.

    Returns:
        Those values, and whether it computed others that nothing reads.
    """
    owner, unread = recording.owner, list(_unread(recording))
    kept = held({owner[value] for value in unread}) - {owner[value] for value in own}
    written = dict(_written_over(recording))
    places = placed(kept)  # before another call puts other values there
    memory = _read(again()) if kept or written else set[int]()
    memory |= {value for value, place in places.items() if place in memory}
    unread = [value for value in unread if owner[value] not in kept & memory]
    results = [value for value in unread if owner[value] in kept]
    told = [value for place, value in written.items() if place not in memory]
    more = [*results, *told, *recording.read_out, *_given_back(recording)]
    return more, len(results) < len(unread)


def _given_back(recording: Recording) -> Iterator[int]:
    """Yield what is written into the inputs: the caller has it."""
    given = {recording.owner[value] for value in recording.inputs}
    updates = (op.updates for op in recording.ops if op.updates)
    return (after for before, after in updates if recording.owner[before] in given)


def _written_over(recording: Recording) -> Iterator[tuple[int, int]]:
    """Yield the owner and the value of each buffer that is written over, and not read."""
    read, buffers = _read(recording), set(recording.buffers.values())
    for op in recording.ops:
        if op.updates and _overwrites(op):
            owner = recording.owner[op.updates[0]]
            if owner in buffers and owner not in read:
                yield owner, op.updates[1]


def _read(recording: Recording) -> set[int]:
    """Return the owners of what a forward reads, and not only writes over."""
    found = set[int]()
    for op in recording.ops:
        over = op.updates[0] if op.updates and _overwrites(op) else None
        views = {recording.owner[ref.value] for ref in op.outputs} if not op.updates else set[int]()
        owners = {recording.owner[value] for value in op.reads if value != over}
        found |= owners - views
    return found


def _overwrites(op: Op) -> bool:
    return op.name.split(".")[1] in ("copy_", "fill_", "zero_")


def _unread(recording: Recording) -> Iterator[int]:
    """Yield the values that operations computed and none reads, but to look at or change them.

    Of what an operation makes beside something that is read, indices alone count: statistics and
    seeds are for its own backward.  A constant says nothing of an input.
    """
    owner = recording.owner
    read = {owner[value] for op in recording.ops for value in _taken(recording, op)}
    known = {owner[value] for value in (*recording.state, *recording.inputs, *recording.outputs)}
    computed = {owner[value] for value in (*recording.state, *recording.inputs)}
    for op in recording.ops:
        made = [ref.value for ref in op.outputs]
        if computed.isdisjoint(owner[value] for value in op.reads):
            continue
        computed |= {owner[value] for value in made}
        beside = any(owner[value] in read for value in made)
        for value in made:
            if owner[value] not in read | known and (not beside or value in recording.integers):
                yield value


def _taken(recording: Recording, op: Op) -> Iterator[int]:
    """Yield what an operation computes something else from."""
    owner = recording.owner
    own = {owner[ref.value] for ref in op.outputs}
    return (value for value in op.reads if owner[value] not in own)
