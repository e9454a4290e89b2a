"""Does a plan agree with itself?  What it keeps with the shapes that it says, and its numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from torch import Tensor

from secateur.errors import did_you_mean

from .history import History, Shape


def disagreements(
    history: History, tied: Mapping[str, str], tensors: Mapping[str, Tensor]
) -> Iterator[str]:
    """Yield what a saved history says in two ways that do not agree.

    Args:
        history: as a file tells it.
        tied: name → first name, likewise.
        tensors: of the dense model, by every name.
    """
    for name, (before, after) in history.shapes.items():
        if len(before) != len(after) or not all(
            0 < b <= a for a, b in zip(before, after, strict=True)
        ):
            yield f"{name!r} cannot become {after}: it was {before}"
    for name, other in tied.items():
        for each in (name, other):
            if each not in tensors:
                yield f"{each!r} is tied in the file, and this model has no such tensor"
    if not history.taken:  # else the groups of a step may have had other numbers than now
        yield from _other_sizes(history)


def _other_sizes(history: History) -> Iterator[str]:
    """Yield the groups whose kept positions cannot be what their dimension lost.

    A group is named after a tensor and a dimension of it, which is the group, the group times
    others (heads times their width), or the group beside others (a fused qkv).
    """
    for i, step in enumerate(history.steps):
        for group, kept in step.keep.items():
            change = _dimension(history.shapes, group)
            if change is None or not kept:
                continue
            before, after = change
            alone = kept[-1] == before - 1  # the last position there is: nothing is beside it
            if kept[-1] >= before or len(kept) > before:
                yield f"group {group!r} keeps position {kept[-1]} of {before}"
            elif i == len(history.steps) - 1 and not (
                len(kept) == after or (not alone and (len(kept) < after or after % len(kept) == 0))
            ):
                yield f"group {group!r} keeps {len(kept)} positions, and its tensor has {after}"


def unknown_groups(history: History, names: Iterable[str]) -> Iterator[str]:
    """Yield the groups that are named after none of some tensors.

    Where modules were taken out of a list, those of the steps before had other numbers than now.
    """

    def plain(name: str) -> str:
        return re.sub(r"\d+", "#", name) if history.taken else name

    known = {plain(name.removesuffix(".weight")) for name in names}
    for group in dict.fromkeys(group for step in history.steps for group in step.keep):
        if plain(_named(group)[0]) not in known:
            yield f"no tensor of this model has a group {group!r}.{did_you_mean(group, known)}"


def _dimension(shapes: Mapping[str, tuple[Shape, Shape]], group: str) -> tuple[int, int] | None:
    """Return the sizes before and after of the dimension that a group is named after."""
    named, dim = _named(group)
    for name in (f"{named}.weight", named):
        if name in shapes and dim < min(map(len, shapes[name])):
            return shapes[name][0][dim], shapes[name][1][dim]
    return None


def _named(group: str) -> tuple[str, int]:
    """Return what a group is named after: a tensor without ".weight", and a dimension of it."""
    match = re.fullmatch(r"(.*?)(?::(\d{1,2}))?(?:\[\d+\])?", group, re.DOTALL)
    assert match is not None
    return match[1], int(match[2] or 0)
