"""The law of every rule: cutting an operation's inputs is cutting its outputs.

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

from secateur.graph.axes import Atom, positions
from secateur.graph.conditions import holds
from secateur.graph.groups import Group, contains
from secateur.graph.infer import Inferred
from secateur.graph.layout import labels
from secateur.graph.outputs import tensors_of
from secateur.graph.record import record
from secateur.graph.typing import Typed
from secateur.shrinking import Plan, group_masks
from secateur.shrinking.cut import Surgery
from secateur.structure import Structure
from tests.graph.rules.harness import Net

Sizes = Mapping[str, int]


class Law:
    """One call: ``run(m)`` with the tensors ``m.x``, … and the sizes ``m.a``, ….

    Args:
        run: the call; returns a tensor or several.
        least: the least value of a size, where that is not 2 or no tensor has it.
        integers: makes more of what the module holds (indices, masks) from the sizes.
        keep: how many positions of an axis the operation needs at least.
        tensors: name → dimensions: letters are sizes, ``(a b)`` their product, ``[a b]`` their sum.
    """

    def __init__(
        self,
        run: Callable[[Any], Any],
        least: Sizes | None = None,
        integers: Callable[[Sizes], dict[str, Any]] = lambda sizes: {},
        keep: int = 1,
        **tensors: str,
    ):
        self.run, self.tensors, self.integers, self.keep = run, tensors, integers, keep
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


def _check_zeros(typed: Typed, full: Tensor, atom: Atom, gone: Tensor) -> None:
    """Where a type says that masked positions are zero, they are."""
    for dim, each in enumerate(typed.dims):
        if not contains(each.axis, atom):
            continue
        if bool(holds(each.zero, atom, contains, lambda p, d, a: torch.ones(a.size) > 0).all()):
            label = labels(each.axis, atom)
            removed = (label >= 0) & gone[label.clamp(min=0)]
            assert not bool(full.movedim(dim, 0)[removed].any()), f"{each} is said to be zero"
