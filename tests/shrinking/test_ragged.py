"""Grouped convolutions whose groups keep channels of their own, cut and compared."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from secateur import Plan, Structure, analyze, shrink
from secateur.errors import PlanError
from secateur.graph.axes import Atom, AxisError, Ragged, atoms, concat, cut, factor, freeze, unify
from secateur.shrinking import cut_and_verify, group_masks

EXAMPLE = torch.randn(2, 3, 7, 7, generator=torch.Generator().manual_seed(1)).double()


def grouped(groups: int, width: int, wide: int) -> nn.Module:
    """Two grouped convolutions in a row between two ordinary ones."""
    middle = groups * wide
    net = nn.Sequential(
        nn.Conv2d(3, groups * width, 1),
        nn.BatchNorm2d(groups * width),
        nn.ReLU(),
        nn.Conv2d(groups * width, middle, 3, groups=groups, padding=1),
        nn.BatchNorm2d(middle),
        nn.ReLU(),
        nn.Conv2d(middle, middle, 3, groups=groups),
        nn.ReLU(),
        nn.Conv2d(middle, 5, 1),
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
            if tensor.is_floating_point():
                tensor.normal_(generator=generator)
                if "running_var" in name:
                    tensor.abs_().add_(0.5)
    return net.double().eval()


def different_keeps(structure: Structure, share: float) -> dict[str, Tensor]:
    """Equally many positions of every group, but never the same ones in a row."""
    return {
        group.name: (torch.arange(group.size) + i) % group.size >= int(group.size * share)
        for i, group in enumerate(structure.groups)
    }


def masked_output(net: nn.Module, masks: dict[str, Tensor]) -> Tensor:
    twin = copy.deepcopy(net)
    with torch.no_grad():
        for name, mask in masks.items():
            twin.get_parameter(name).mul_(mask)
        return twin(EXAMPLE)


@pytest.mark.parametrize("share", [0.34, 0.5, 0.75])
@pytest.mark.parametrize(("groups", "width", "wide"), [(2, 4, 4), (3, 4, 6), (4, 6, 4)])
def test_cut_when_each_group_keeps_its_own_channels_then_equals_the_masked_model(
    groups, width, wide, share
):
    net = grouped(groups, width, wide)
    structure = analyze(net, EXAMPLE, ragged=True)
    assert [g.size for g in structure.exact] == [width] * groups + [wide] * 2 * groups
    keeps = different_keeps(structure, share)
    masks = group_masks(structure, keeps)
    plan = Plan.from_keeps(structure, keeps)
    result = cut_and_verify(
        copy.deepcopy(net), structure, plan, masks, EXAMPLE, notes=[], verify=True
    )
    assert torch.allclose(result.model(EXAMPLE), masked_output(net, masks), rtol=1e-9, atol=1e-12)
    assert result.model[3].groups == groups
    assert result.model[3].in_channels == groups * (width - int(width * share))
    assert sum(p.numel() for p in result.model.parameters()) == result.after.params
    assert result.after.macs < result.before.macs


def test_shrink_when_only_rows_are_masked_then_what_is_balanced_goes():
    net = grouped(3, 4, 6)
    structure = analyze(net, EXAMPLE, ragged=True)
    mask = torch.ones(12, 3, 1, 1, dtype=torch.bool)
    mask[[0, 1, 6, 9, 11]] = False  # two of the first group, one of the second, two of the third
    vector = mask[:, 0, 0, 0]
    masks = {"0.weight": mask, "0.bias": vector, "1.weight": vector, "1.bias": vector}
    result = shrink(net, masks, EXAMPLE, structure=structure)
    assert result.model[0].out_channels == 9
    assert torch.allclose(result.model(EXAMPLE), masked_output(net, masks), rtol=1e-9, atol=1e-12)
    assert any("must keep equally many" in note for note in result.notes)


def test_plan_when_groups_keep_different_numbers_then_it_says_which_must_agree():
    structure = analyze(grouped(2, 4, 4), EXAMPLE, ragged=True)
    first, second = structure.groups[:2]
    with pytest.raises(PlanError, match="must keep equally many positions, not 3 and 4"):
        Plan({first.name: (0, 1, 2)}).check(structure)
    with pytest.raises(PlanError, match=second.name.replace("[", "\\[").replace("]", "\\]")):
        Plan({first.name: (0, 1, 2)}).check(structure)


def test_cost_when_one_group_is_asked_about_then_the_parts_add_up():
    structure = analyze(grouped(3, 4, 6), EXAMPLE, ragged=True)
    family = structure.groups[:3]
    together = structure.cost().params - structure.cost({g.name: g.size - 1 for g in family}).params
    assert abs(sum(g.params for g in family) - together) <= len(family)


# the axis itself


def test_ragged_when_it_meets_its_kind_then_the_parts_are_unified():
    a, b = [Atom(4), Atom(4)], [Atom(4), Atom(4)]
    unify(Ragged(tuple(a)), Ragged(tuple(b)))
    freeze(a[1], "why")
    assert [atom.frozen for atom in atoms(Ragged(tuple(b)))] == [None, "why"]


def test_ragged_when_an_atom_meets_it_then_the_atom_stands_for_it():
    atom, parts = Atom(4), (Atom(4), Atom(4))
    unify(atom, Ragged(parts))
    assert list(atoms(atom)) == list(parts)
    assert repr(atom) == "{4 | 4}"


@pytest.mark.parametrize(
    "statement",
    [
        lambda axis: cut(axis, 2),
        lambda axis: factor(axis, 2),
        lambda axis: unify(axis, concat(Atom(2), Atom(2))),
        lambda axis: unify(axis, Ragged((Atom(4), Atom(4), Atom(4)))),
    ],
    ids=["cut", "factor", "concat", "other arity"],
)
def test_ragged_when_it_would_have_to_be_refined_then_axis_error(statement):
    with pytest.raises(AxisError, match="every band"):
        statement(Ragged((Atom(4), Atom(4))))
