"""Modules of which no forward reads a parameter: what may feed them stays as it is.

Another forward (a flag, a target, a longer input) calls them with something that this one has as
well, and they would have to follow it.  Nothing tells what that is, so every tensor that would fit
is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod

from .axes import freeze
from .program import Recording
from .typing import Reason, Typed


def freeze_feeds(recording: Recording, types: Mapping[int, Typed]) -> None:
    """Freeze each dimension, or run of some, that is as wide as what such a module takes."""
    feeds = inputs_of_unseen(recording)
    for value, typed in types.items() if feeds else ():
        shape = recording.shapes[value]
        for first, last in _runs(len(shape)):
            if (path := feeds.get(prod(shape[first:last]))) is not None:
                why = f"it may feed {path!r}, of which the example reads no parameter"
                for dim in typed.dims[first:last]:
                    freeze(dim.axis, Reason(why))


def _runs(dims: int) -> Iterator[tuple[int, int]]:
    """Yield each dimension, and each run up to the last without the first one, the batch."""
    yield from ((d, d + 1) for d in range(dims))
    yield from ((d, dims) for d in range(1, dims - 1))


def inputs_of_unseen(recording: Recording) -> dict[int, str]:
    """Return the widths that modules without a read parameter take, each with the path of one.

    A layer that takes as much as the layer before it makes is fed by that one, if both are in a
    module that the first forward does not reach.
    """
    unread = set(recording.unread())
    if not unread:
        return {}
    first = recording.reads
    seen = _around(name for name, value in recording.parameters.items() if value in first)
    read = _around(name for name in recording.parameters if name not in unread)
    found: dict[int, str] = {}
    before: tuple[str, set[int]] = "", set()  # the layer before: in which module, and its widths
    for path, shapes in _owned(recording).items():
        root = next((module for module in _modules(path) if module not in seen), path)
        inside = before[1] if before[0] == root else set()
        for width in _taken(shapes) - inside if path not in read else ():
            found.setdefault(width, root)
        before = root, {size for shape in shapes for size in shape[:2]}
    return found


def _modules(path: str) -> list[str]:
    """Return the paths of a module and of all around it, the outermost first.

    >>> _modules("a.b.c")
    ['', 'a', 'a.b', 'a.b.c']
    """
    parts = path.split(".")
    return ["", *(".".join(parts[:end]) for end in range(1, len(parts) + 1))]


def _around(names: Iterable[str]) -> set[str]:
    """Return the paths of all modules that hold parameters, or hold modules that do."""
    owners = {name.rpartition(".")[0] for name in names}
    return {path for owner in owners for path in _modules(owner)}


def _owned(recording: Recording) -> dict[str, list[tuple[int, ...]]]:
    """Return for each module that owns parameters their shapes."""
    owned: dict[str, list[tuple[int, ...]]] = {}
    for name, value in recording.parameters.items():
        if shape := recording.shapes[value]:
            owned.setdefault(name.rpartition(".")[0], []).append(shape)
    return owned


def _taken(shapes: Sequence[tuple[int, ...]]) -> set[int]:
    """Return the widths that a module may take.

    A norm takes as much as its parameters are long, and a matrix what its bias is not as long as.
    What a kernel takes may be either, where it is that of a convolution in groups.
    """
    weights = [shape for shape in shapes if len(shape) > 1]
    lengths = {shape[0] for shape in shapes if len(shape) == 1}
    found = set[int]() if weights else lengths
    for out, into, *kernel in weights:
        turned = into in lengths and out not in lengths  # as a transposed convolution's
        found |= {out} if turned else {out, into} if kernel else {into}
    return found - {1}
