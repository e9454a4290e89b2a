"""The law of every rule: cutting an operation's inputs is cutting its outputs.

It holds for complete masks of one group, and for whatever random partial masks allow to remove;
and where a type says that a position is zero under any masks, it is.

A ``Law`` is one call of an operation on tensors whose dimensions have names, as in ``"n (h d)"``;
Hypothesis draws the sizes.  The tensors are parameters of a small module and the sizes its
attributes, so that what is tested is the rule and nothing that stands in for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from secateur.graph.axes import Atom, atoms, contains, positions
from secateur.graph.conditions import ALWAYS, holds
from secateur.graph.groups import Group
from secateur.graph.infer import Inferred
from secateur.graph.layout import among, labels
from secateur.graph.outputs import tensors_of
from secateur.graph.record import record
from secateur.graph.typing import Typed
from secateur.shrinking import Plan, complete, group_masks
from secateur.shrinking.completion import Slices
from secateur.shrinking.cut import Surgery
from secateur.structure import Structure
from secateur.types import Masks
from tests.graph.rules.harness import Net

Sizes = Mapping[str, int]


class Law:
    """One call: ``run(m)`` with the tensors ``m.x``, … and the sizes ``m.a``, ….

    Args:
        run: the call; returns a tensor or several.
        least: the least value of a size, where that is not 2 or no tensor has it.
        integers: makes more of what the module holds (indices, masks) from the sizes.
        keep: how many positions of an axis the operation needs at least.
        partial: whether it runs when any of its elements are zero.
        tensors: name → dimensions: letters are sizes, ``(a b)`` their product, ``[a b]`` their sum.
    """

    def __init__(
        self,
        run: Callable[[Any], Any],
        least: Sizes | None = None,
        integers: Callable[[Sizes], dict[str, Any]] = lambda sizes: {},
        keep: int = 1,
        partial: bool = True,
        **tensors: str,
    ):
        self.run, self.tensors, self.integers, self.keep = run, tensors, integers, keep
        self.partial = partial
        letters = sorted(set("".join(tensors.values())) - set("()[] 0123456789"))
        self.least = {letter: 2 for letter in letters} | dict(least or {})

    def net(self, sizes: Sizes, seed: int = 0) -> nn.Module:
        """Return the module that makes the call, with random tensors of these sizes."""
        generator = torch.Generator().manual_seed(seed)
        held: dict[str, Any] = dict(sizes)
        for name, dims in self.tensors.items():
            shape = [_size(dim, sizes) for dim in re.findall(r"[(\[][^)\]]*[)\]]|\S+", dims)]
            value = torch.randn(*shape, generator=generator, dtype=torch.float64)
            held[name] = nn.Parameter(value, requires_grad=False)
        net = Net(lambda m: self.run(m), **held)
        for name, value in self.integers(sizes).items():
            if isinstance(value, Tensor):
                net.register_buffer(name, value)
            else:
                setattr(net, name, value)
        return net.eval()

    def check(self) -> None:
        """Assert the law for sizes and positions that Hypothesis draws."""
        sizes = st.fixed_dictionaries({n: st.integers(k, k + 2) for n, k in self.least.items()})

        @settings(
            max_examples=3,
            database=None,
            derandomize=True,
            phases=[Phase.generate],  # sizes are small as they are
        )
        @given(sizes, st.integers(0, 1000))
        def law(sizes: Sizes, seed: int) -> None:
            self._check(self.net(sizes, seed), seed)

        law()

    def _check(self, net: nn.Module, seed: int) -> None:
        recording = record(net, ())
        used = recording.used()
        recording.used = lambda: used
        outputs, recording.outputs = recording.outputs, []  # they may be cut: that is the question
        structure = Structure("call", Inferred(recording))
        assert not structure.unknown
        types = [structure.inferred.types[value] for value in outputs]
        generator = torch.Generator().manual_seed(seed)
        for group in structure.groups:
            family = [group, *(structure[name] for name in group.sized)]
            if group.size > self.keep and group.name == min(g.name for g in family):
                left = int(torch.randint(self.keep, group.size, (), generator=generator))
                keeps = {g.name: torch.randperm(g.size, generator=generator) < left for g in family}
                _cut_and_compare(net, structure, types, family, keeps)
        for _ in range(3 if self.partial else 0):
            _mask_and_compare(net, structure, types, generator)


def _size(dim: str, sizes: Sizes) -> int:
    parts = [int(p) if p.isdigit() else sizes[p] for p in dim.strip("()[]").split()]
    return sum(parts) if dim.startswith("[") else prod(parts)


def _cut_and_compare(
    net: nn.Module,
    structure: Structure,
    types: list[Typed],
    family: list[Group],
    keeps: dict[str, Tensor],
) -> None:
    kept = {id(structure[n].atom): torch.nonzero(k).flatten().tolist() for n, k in keeps.items()}
    surgery = Surgery(net)
    try:
        surgery.mask(group_masks(structure, keeps))
        whole = [x.clone() for x in tensors_of(net())]
        surgery.cut(structure, Plan.from_keeps(structure, keeps))
        small = [x.clone() for x in tensors_of(net())]
    finally:
        surgery.undo()
    for typed, full, found in zip(types, whole, small, strict=True):
        expected = full
        for dim, each in enumerate(typed.dims):
            index = positions(each.axis, lambda a: kept.get(id(a), range(a.size)))
            expected = expected.index_select(dim, torch.tensor(index, dtype=torch.int64))
        assert found.shape == expected.shape, f"{family[0]}"
        if all(group.exact for group in family):
            torch.testing.assert_close(found, expected, equal_nan=True)
        for group in family if all(g.exact for g in family) else ():
            _check_zeros(typed, full, group.atom, ~keeps[group.name])


def _mask_and_compare(
    net: nn.Module, structure: Structure, types: list[Typed], generator: torch.Generator
) -> None:
    """Under random partial masks: what is said to be zero is, and what goes is not missed."""
    masks = _partial_masks(structure, generator)
    if not masks:
        return
    slices = Slices(structure, masks)
    surgery = Surgery(net)
    try:
        surgery.mask(masks)
        whole = [x.clone() for x in tensors_of(net())]
        if any(x.shape != typed.shape for typed, x in zip(types, whole, strict=True)):
            return  # how many come out depends on the values
        for typed, full in zip(types, whole, strict=True):
            for dim, atom in _free(typed):
                gone = holds(typed[dim].zero, atom, contains, slices.masked)
                if typed[dim].zero != ALWAYS:  # says nothing: an input, an index, a size
                    removed = among(labels(typed[dim].axis, atom), gone)
                    found = full.movedim(dim, 0)[removed]  # 0 / 0 has a site of its own
                    assert not bool(found.nan_to_num().any()), f"{typed[dim]} is said to be zero"
        done = complete(structure, masks)
        keeps = {name: keep for name, keep in done.keeps.items() if structure[name].exact}
        if done.constants or len(keeps) < len(done.keeps) or not keeps:
            return
        plan = Plan.from_keeps(structure, keeps)
        surgery.cut(structure, plan)
        small = [x.clone() for x in tensors_of(net())]
    finally:
        surgery.undo()
    kept = {id(structure[n].atom): torch.nonzero(k).flatten().tolist() for n, k in keeps.items()}
    _compare(types, whole, small, kept)


def _free(typed: Typed) -> list[tuple[int, Atom]]:
    """Return the atoms of a type's dimensions that may be asked about."""
    found = [(dim, atom) for dim, each in enumerate(typed.dims) for atom in atoms(each.axis)]
    return [(dim, atom) for dim, atom in found if atom.frozen is None]


def _partial_masks(structure: Structure, generator: torch.Generator) -> Masks:
    """Return masks of random slices of some parameters; of whole parts of a grid, too."""
    r = structure.inferred.recording
    masks: Masks = {}
    for name, value in r.parameters.items():
        if value not in structure.inferred.types or torch.rand((), generator=generator) < 0.3:
            continue
        masks[name] = torch.ones(r.shapes[value], dtype=torch.bool)
        for dim, typed in enumerate(structure.tensor(name).dims):
            for atom in {id(a): a for a in atoms(typed.axis)}.values():
                gone = torch.rand(atom.size, generator=generator) < 0.3
                if torch.rand((), generator=generator) < 0.5:
                    masks[name].movedim(dim, 0)[among(labels(typed.axis, atom), gone)] = False
    return masks


def _compare(
    types: list[Typed], whole: list[Tensor], small: list[Tensor], kept: dict[int, list[int]]
) -> None:
    for typed, expected, found in zip(types, whole, small, strict=True):
        for dim, each in enumerate(typed.dims):
            index = positions(each.axis, lambda a: kept.get(id(a), range(a.size)))
            expected = expected.index_select(dim, torch.tensor(index, dtype=torch.int64))
        torch.testing.assert_close(found, expected, equal_nan=True)


def _check_zeros(typed: Typed, full: Tensor, atom: Atom, gone: Tensor) -> None:
    """Where a type says that masked positions are zero, they are."""
    for dim, each in enumerate(typed.dims):
        if not contains(each.axis, atom):
            continue
        if bool(holds(each.zero, atom, contains, lambda p, d, a: torch.ones(a.size) > 0).all()):
            removed = among(labels(each.axis, atom), gone)
            assert not bool(full.movedim(dim, 0)[removed].any()), f"{each} is said to be zero"
