"""Complete masks: from what somebody masked to what can be removed, never silently.

A position can go when at every place where its axis is summed away it contributes nothing: its
slice is zero, or the weight that would read it is masked.  ``holds`` answers that for any partial
set of masks.  Where a masked position still emits a constant (a BatchNorm bias), the position goes
too and its remaining slices are masked: that changes the function, and is reported.  So does, but
only on request, a position that is masked wherever it is made and that a norm makes anew from all
of them (LayerNorm over masked hidden positions).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from secateur.errors import MaskError, did_you_mean
from secateur.graph.axes import Atom, Ragged, atoms, contains, find
from secateur.graph.conditions import Condition, holds
from secateur.graph.groups import Group
from secateur.graph.layout import Along, labels, rows
from secateur.graph.typing import Site
from secateur.structure import Structure
from secateur.types import Factored, Masks


@dataclass
class Completion:
    """Which positions stay in each group, and what had to be decided on the way."""

    keeps: dict[str, Tensor] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    constants: dict[str, Tensor] = field(default_factory=dict)  # removed, but they emit a constant
    renewed: dict[str, Tensor] = field(default_factory=dict)  # on request, though a norm makes them


def check_masks(structure: Structure, masks: Mapping[str, Tensor]) -> None:
    """Raise a ``MaskError`` that lists every mask that does not fit the model."""
    r = structure.inferred.recording
    wrong = []
    for name, mask in masks.items():
        canonical = r.names.get(name)
        if canonical not in r.parameters:
            wrong.append(f"there is no parameter {name!r}.{did_you_mean(name, r.names)}")
            continue
        shape = r.shapes[r.parameters[canonical]]
        if tuple(mask.shape) != shape:
            wrong.append(f"the mask of {name!r} is {tuple(mask.shape)}, the parameter {shape}")
        elif mask.dtype != torch.bool:
            wrong.append(f"the mask of {name!r} is {mask.dtype}, and must be torch.bool")
    if wrong:
        raise MaskError("\n".join(wrong))


def complete(
    structure: Structure, masks: Mapping[str, Tensor], *, inexact: bool = False
) -> Completion:
    """Return what masks, partial or not, allow to remove.

    Args:
        structure: of the model that the masks are for.
        masks: parameter name → bool tensor of its shape; parameters without one are unmasked.
        inexact: also positions that are masked wherever they are made, but that an operation over
            all of them, such as a norm, makes anew.

    Raises:
        MaskError: a mask fits no parameter of the model.
    """
    check_masks(structure, masks)
    slices = Slices(structure, masks)
    done = Completion()
    for group in structure.groups:
        sites = structure.inferred.sites_of(group.atom)
        _complete_group(group, sites, slices, done, inexact=inexact)
    _balance(structure, done)
    return done


class Slices:
    """Which slices of which parameters are masked as a whole; each mask is read once."""

    def __init__(self, structure: Structure, masks: Mapping[str, Tensor]):
        self.structure = structure
        self.masks: dict[str, Tensor] = {}
        for name, mask in masks.items():
            name = structure.inferred.recording.names[name]  # tied names are one parameter
            self.masks[name] = mask & self.masks[name] if name in self.masks else mask
        self._alive: dict[tuple[str, int], Tensor] = {}
        self._masked: dict[tuple[str, int, int], Tensor] = {}

    def alive(self, parameter: str, dim: int) -> Tensor:
        """Return for each index of a dimension whether any of its weights is kept."""
        key = (parameter, dim)
        if key not in self._alive:
            self._alive[key] = any_along(self.masks[parameter], dim).cpu()
        return self._alive[key]

    def masked(self, parameter: str, dim: int, atom: Atom) -> Tensor:
        """Return for each position of an atom whether all its weights are masked."""
        key = (parameter, dim, id(atom))  # several conditions ask the same
        if key not in self._masked:
            self._masked[key] = self._find_masked(parameter, dim, atom)
        return self._masked[key]

    def _find_masked(self, parameter: str, dim: int, atom: Atom) -> Tensor:
        axis = find(self.structure.tensor(parameter)[dim].axis)
        if isinstance(axis, Ragged):
            return self._masked_in_block(parameter, dim, axis, atom)
        label = labels(axis, atom)
        here = label >= 0
        if not bool(here.any()):
            return torch.ones(atom.size, dtype=torch.bool)
        if parameter not in self.masks:
            return torch.zeros(atom.size, dtype=torch.bool)
        kept = torch.zeros(atom.size, dtype=torch.bool)
        kept[label[here & self.alive(parameter, dim)]] = True  # of a grid, with either of its two
        return ~kept

    def _masked_in_block(self, parameter: str, dim: int, axis: Ragged, atom: Atom) -> Tensor:
        if not any(found is atom for found in atoms(axis)):
            return torch.ones(atom.size, dtype=torch.bool)
        if parameter not in self.masks:
            return torch.zeros(atom.size, dtype=torch.bool)
        return ~rows(self.masks[parameter], dim, axis, atom).any(1).cpu()


def any_along(mask: Tensor, dim: int) -> Tensor:
    """Return for each index of a dimension whether anything is True there.

    >>> any_along(torch.tensor([[True, False], [False, False]]), 1)
    tensor([ True, False])
    """
    if not mask.numel():
        return mask.any(tuple(d for d in range(mask.ndim) if d != dim))
    numbers = mask.contiguous().view(torch.uint8)  # their maximum is found 100 times faster
    rest = numbers.flatten(0, dim - 1).amax(0) if dim else numbers
    return (rest.flatten(1).amax(1) if rest.ndim > 1 else rest).bool()


def _complete_group(
    group: Group, sites: list[Site], slices: Slices, done: Completion, *, inexact: bool
) -> None:
    touched = [
        m
        for m in group.members
        if m.tensor in slices.masks and not bool(slices.alive(m.tensor, m.dim).all())
    ]
    if not touched:
        return
    dead, silent, renewed = _judged(group, sites, slices)
    asked = torch.zeros(group.size, dtype=torch.bool)
    for member in touched:
        asked |= slices.masked(member.tensor, member.dim, group.atom)
    if inexact:
        dead, asked = dead | renewed, asked & ~renewed
    _say_what_stays(group, asked & ~dead, renewed, done)
    if bool(dead.all()):
        dead[0] = False
        done.notes.append(f"{group.name}: all positions are masked; one stays")
    kept = int((~dead).sum())
    enough = min(group.size, max(group.least, group.step * -(-kept // group.step)))
    if enough > kept:
        dead[torch.nonzero(dead).flatten()[: enough - kept]] = False
        done.notes.append(
            f"{group.name}: {enough - kept} masked positions stay, because it must keep a multiple "
            f"of {group.step} and at least {group.least}"
        )
    if bool(dead.any()):
        done.keeps[group.name] = ~dead
        if bool((dead & ~silent & ~renewed).any()):
            done.constants[group.name] = dead & ~silent & ~renewed
        if bool((dead & renewed).any()):
            done.renewed[group.name] = dead & renewed


def _judged(group: Group, sites: list[Site], slices: Slices) -> tuple[Tensor, Tensor, Tensor]:
    """Return which positions can go, which of them are zero, and which can go only on request.

    On request: where the removal is inexact, those that are masked wherever they are made, but not
    where a norm makes them anew.
    """

    def ask(condition: Condition, lenient: bool = False) -> Tensor:
        return holds(condition, group.atom, contains, slices.masked, lenient=lenient)

    dead = torch.full((group.size,), bool(sites))
    silent, idle = dead.clone(), dead.clone()
    for site in sites:
        zero = ask(site.zero)
        dead &= zero | ask(site.const)
        silent &= zero
        idle &= zero | ask(site.steady or site.const, lenient=True)
    if group.exact:
        return dead, silent, torch.zeros_like(dead)
    dead &= silent
    spared = slices.structure.inferred.typing.spared
    for member in group.members:
        if member.role == "out" and (member.tensor, member.dim) not in spared:
            dead &= slices.masked(member.tensor, member.dim, group.atom)
    return dead, silent, idle & ~dead


def _say_what_stays(group: Group, kept: Tensor, renewed: Tensor, done: Completion) -> None:
    """Note how many positions stay though some of their slices are masked, and why."""
    if on_request := int((kept & renewed).sum()):
        done.notes.append(
            f"{group.name}: {on_request} of {group.size} positions are masked where they are made, "
            f"but removing them is inexact: {group.inexact}; they stay unless inexact=True"
        )
    if others := int((kept & ~renewed).sum()):
        done.notes.append(
            f"{group.name}: {others} of {group.size} positions are masked in some slices but "
            "not in all that matter; they stay"
        )


def _balance(structure: Structure, done: Completion) -> None:
    """Groups that must keep equally many positions lose as many as the one that loses least."""
    for group in structure.groups:
        family = [group.name, *group.sized]
        if len(family) == 1 or group.name != min(family):
            continue
        removed = {n: int((~done.keeps[n]).sum()) if n in done.keeps else 0 for n in family}
        least = min(removed.values())
        for name in family:
            if removed[name] == least:
                continue
            gone = torch.nonzero(~done.keeps[name]).flatten()[:least]
            keep = torch.ones_like(done.keeps[name])
            keep[gone] = False
            done.keeps[name] = keep
            done.notes.append(
                f"{name}: {removed[name] - least} masked positions stay, because "
                f"{', '.join(n for n in family if n != name)} must keep equally many"
            )
            if not least:
                del done.keeps[name]
    for told in (done.constants, done.renewed):
        for name in list(told):
            told[name] = told[name] & ~done.keeps.get(name, torch.ones_like(told[name]))
            if not bool(told[name].any()):
                del told[name]


def group_masks(structure: Structure, keeps: Mapping[str, Tensor]) -> Masks:
    """Return complete masks: every slice of every parameter that goes with a removed position."""
    r = structure.inferred.recording
    spared = structure.inferred.typing.spared
    masks = Factored()
    for name, keep in keeps.items():
        group = structure[name]
        for member in group.members:
            if member.role != "buffer" and (member.tensor, member.dim) not in spared:
                axis = structure.tensor(member.tensor)[member.dim].axis
                along = Along(member.dim, axis, group.atom)
                mask = along.expand(keep.cpu(), r.shapes[r.parameters[member.tensor]])
                masks.multiply({member.tensor: mask})
    return masks
