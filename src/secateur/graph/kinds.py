"""What can go, by the words of people: heads, experts, the hidden size, every other width.

A kind is one function below ``kinds.register``: ``(inferred, groups) → names`` of those that are of
it.  No architecture is known: what counts is what the operations do with an axis.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from itertools import takewhile

from secateur.errors import ConfigError, did_you_mean
from secateur.registry import Registry

from .axes import Atom, Axis, Product, atoms, find, parts_of
from .groups import Group
from .infer import Inferred
from .program import Op, Ref

kinds = Registry("kind of group", takes="inferred, groups")
"""What ``what=`` may name: ``(inferred, groups) → names`` of the groups of that kind."""
ADDS = {"aten.add", "aten.add_"}
PRODUCTS = ("aten.bmm", "aten.baddbmm", "aten._scaled_dot_product")
"""What multiplies two activations in attention, queries and keys, or chances and values."""
DEPTH = "depth"
"""The kind that is no group: blocks go whole."""
EVERY_KIND = "all"
"""Stands for every kind."""


def of_kind(kind: str, inferred: Inferred, groups: Sequence[Group]) -> set[str]:
    """Return the names of the groups that are of a kind.

    Raises:
        ConfigError: what is registered as it returns something else than names of groups.
    """
    found, known = kinds[kind](inferred, groups), {group.name for group in groups}
    if isinstance(found, str) or not isinstance(found, Iterable):
        raise ConfigError(f"kind {kind!r} must return names of groups, not {found!r}")
    names = set(found)
    for name in sorted(names - known, key=str):
        hint = did_you_mean(name, known)
        raise ConfigError(
            f"kind {kind!r} must return names of groups, and there is no {name!r}.{hint}"
        )
    return names


@kinds.register
def width(inferred: Inferred, groups: Sequence[Group]) -> set[str]:
    """Channels and neurons inside of blocks: what is of no other kind, and no grid.

    The widths of heads are left alone also where nobody can take whole heads: rotary frequencies
    are among them, and layers share them; the inner width of a state space layer, which is added to
    itself there, is no such width.  What nothing reads (a pooler whose output is dropped)
    is left alone, too: its width says nothing of what the model computes, and no config says it.
    """
    others = (of_kind(name, inferred, groups) for name in kinds if name != "width")
    attended, inner = _attended(inferred), _added_along(inferred, groups)
    read = (g for g in groups if not g.grid and _is_read(inferred, g))
    kept = {g.name for g in read if id(g.atom) not in attended or g.name in inner}
    return kept.difference(*others)


@kinds.register
def heads(inferred: Inferred, groups: Sequence[Group]) -> set[str]:
    """Whole heads of attention, or groups of a convolution: the outer part of a grid."""
    return {g.name for g in groups if g.grid and not g.chosen and _outermost(inferred, g)}


def attention_heads(inferred: Inferred, groups: Sequence[Group]) -> set[str]:
    """Return the whole heads of attention: not the groups of a convolution."""
    attended = _attended(inferred)
    outer = heads(inferred, groups)
    return {g.name for g in groups if g.name in outer and id(g.atom) in attended}


@kinds.register
def experts(inferred: Inferred, groups: Sequence[Group]) -> set[str]:
    """Whole experts of a mixture: positions that a router chooses among."""
    return {group.name for group in groups if group.chosen}


@kinds.register
def depth(inferred: Inferred, groups: Sequence[Group]) -> set[str]:
    """Residual blocks, whole layers, which are no groups: in one shot."""
    return set()


@kinds.register
def hidden(inferred: Inferred, groups: Sequence[Group]) -> set[str]:
    """The hidden size: what two activations are added along, and several layers read.

    Heads are none, though a bias of positions is added to the scores of those of all layers.
    """
    return streams(inferred, groups) - attention_heads(inferred, groups)


def streams(inferred: Inferred, groups: Sequence[Group]) -> set[str]:
    """Return what two activations are added along, several layers read, and modules hand on."""
    added = _added_along(inferred, groups)
    some = {id(g.atom) for g in groups if g.name in added}
    return {g.name for g in groups if g.name in added and not _is_inner(inferred, g, some)}


def _added_along(inferred: Inferred, groups: Sequence[Group]) -> set[str]:
    """Return what two activations are added along, and several layers read."""
    shapes = inferred.recording.shapes
    added: set[int] = set()
    for op in inferred.recording.ops:
        given = [a.value for a in op.args if isinstance(a, Ref)]
        if op.name.rsplit(".", 1)[0] not in ADDS or len(given) != 2:
            continue
        if shapes[given[0]] == shapes[given[1]]:
            added |= _along(inferred, op.outputs[0].value)
    return {
        group.name
        for group in groups
        if id(group.atom) in added and sum(m.role == "in" for m in group.members) > 1
    }


def _along(inferred: Inferred, value: int) -> set[int]:
    """Return the atoms that a value has dimensions of."""
    typed = inferred.types.get(value)
    return {id(a) for dim in typed.dims for a in atoms(dim.axis)} if typed else set()


def _is_inner(inferred: Inferred, group: Group, streams: AbstractSet[int]) -> bool:
    """Tell whether a module holds all of a group, and hands on another stream, but not this one.

    So is the inner width of a state space layer, though it is added to itself in there.  A wrapper
    around the whole model is handed ids or pictures, and hands on no stream at all.

    Args:
        streams: the atoms of what activations are added along.
    """
    recording = inferred.recording
    owners = [member.tensor.split(".")[:-1] for member in group.members]
    alike = takewhile(lambda names: len({*names}) == 1, zip(*owners, strict=False))
    if not (within := [names[0] for names in alike]):
        return False

    def inside(op: Op) -> bool:
        return op.module.split(".")[: len(within)] == within

    made = dict.fromkeys(recording.state)  # which are handed on to nobody
    made |= {ref.value: inside(op) for op in recording.ops for ref in op.outputs}
    read = {(value, inside(op)) for op in recording.ops for value in op.reads}
    read |= {(value, False) for value in recording.outputs}
    passed = {value for value, here in read if made.get(value, False) is (not here)}
    handed = set[int]().union(*(_along(inferred, value) for value in passed))
    return id(group.atom) not in handed and not handed.isdisjoint(streams)


def _is_read(inferred: Inferred, group: Group) -> bool:
    return any(m.role == "in" for m in group.members) or bool(inferred.sites_of(group.atom))


def _attended(inferred: Inferred) -> set[int]:
    """Return the atoms of what is multiplied with another activation, and not with a weight."""
    found: set[int] = set()
    for op in inferred.recording.ops:
        if not op.name.startswith(PRODUCTS):
            continue
        given = [inferred.types[a.value].dims for a in op.args if isinstance(a, Ref)]
        activations = [dims for dims in given if not any(dim.source for dim in dims)]
        if len(activations) > 1:
            found |= {id(a) for dims in activations for dim in dims for a in atoms(dim.axis)}
    return found


def _outermost(inferred: Inferred, group: Group) -> bool:
    """Tell whether a group is the outer part of each grid that it lies on."""
    state = inferred.recording.parameters | inferred.recording.buffers
    axes = (inferred.types[state[m.tensor]][m.dim].axis for m in group.members)
    return all(id(group.atom) in outer for axis in axes for outer in _outer(axis))


def _outer(axis: Axis) -> list[set[int]]:
    """Return for each grid of an axis the free atoms that are its outer part."""
    axis = find(axis)
    if isinstance(axis, Atom):
        return []
    if not isinstance(axis, Product):
        return [outer for part in parts_of(axis) for outer in _outer(part)]
    free = [{id(a) for a in atoms(part) if a.frozen is None} for part in parts_of(axis)]
    return [found for found in free if found][:1]
