"""The promise, for every criterion × scope × model: smaller equals masked, whatever was pruned.

The oracle is made here and shares no code with the library's own check: a copy of the dense model
with the masks multiplied into its parameters, run on inputs that nobody has seen before.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import secateur
from secateur import Config, Group, Plan, Pruner, Result, Structure
from secateur.graph.layout import rows
from secateur.scoring.criteria import criteria
from secateur.selection.select import Request, select
from secateur.shrinking import cut_and_verify, group_masks
from secateur.types import Masks
from tests import zoo
from tests.statistics import made_up

QUICK = {
    "resnet18": ("activation", "fpgm", "l2", "taylor", "wanda"),
    "shufflenet_v2_x1_0": ("activation",),
}
"""What is tried by default: each kind of criterion on the first model, the default on others."""
TOLERANCE = 1e-5
EXACT = 1e-9
"""In float64, relative to what varies between inputs, so that no constant hides an error."""


def matrix(quick_scope: str) -> pytest.MarkDecorator:
    """Every model × criterion × scope; by default a few, in one scope for each law."""
    cases = [
        pytest.param(
            model,
            criterion,
            scope,
            marks=()
            if criterion in QUICK.get(model, ()) and scope == quick_scope
            else pytest.mark.slow,
        )
        for model in zoo.TORCHVISION
        for criterion in criteria
        if not criteria.facts[criterion].experts  # of which these models have none
        for scope in ("local", "global")
    ]
    return pytest.mark.parametrize(
        ("dense", "criterion", "scope"), cases, indirect=["dense"], scope="module"
    )


@dataclass
class Dense:
    """A dense model with what the laws are checked against."""

    name: str
    model: nn.Module
    example: Tensor
    structure: Structure
    fresh: Tensor
    state: dict[str, Tensor]
    """A copy of the state, to see that nobody touched the model."""
    output: Tensor


@pytest.fixture(scope="module")
def dense(request: pytest.FixtureRequest) -> Dense:
    model, example = zoo.build(request.param)
    fresh = torch.randn(example.shape, generator=torch.Generator().manual_seed(4321))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        output = model(fresh)
    structure = secateur.analyze(model, example)
    return Dense(request.param, model, example, structure, fresh, state, output)


def masked(dense: Dense, masks: Masks) -> nn.Module:
    """The oracle: a copy of the dense model whose masked weights are zero."""
    twin = copy.deepcopy(dense.model)
    with torch.no_grad():
        for name, mask in masks.items():
            twin.get_parameter(name).mul_(mask)
    return twin


def run(model: nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return model(inputs)


def largest(x: Tensor) -> float:
    return float(x.abs().max())


def check_laws(dense: Dense, result: Result) -> float:
    """Assert all that holds for every result; return how far the outputs are apart."""
    twin = masked(dense, result.masks)
    with FlopCounterMode(display=False) as flops:
        found = run(result.model, dense.fresh)
    expected = run(twin, dense.fresh)
    gap = largest(expected - found) / largest(expected)
    assert gap < TOLERANCE
    assert not torch.allclose(expected, dense.output), "the masks changed nothing"

    assert type(result.model) is type(dense.model)
    assert sum(p.numel() for p in result.model.parameters()) == result.after.params
    assert result.after.params < result.before.params == dense.structure.cost().params
    assert flops.get_total_flops() == 2 * result.after.macs
    assert result.after.macs < result.before.macs

    assert result.model is not dense.model
    now = dense.model.state_dict()
    assert now.keys() == dense.state.keys()
    assert all(torch.equal(now[name], value) for name, value in dense.state.items())

    expected = run(twin.double(), dense.fresh.double())
    found = run(copy.deepcopy(result.model).double(), dense.fresh.double())
    assert largest(expected - found) / largest(expected[0] - expected[1]) < EXACT
    return gap


def data_for(dense: Dense, criterion: str) -> dict[str, Any]:
    """Return what a criterion learns from: batches of inputs, with a loss where it needs one."""
    if criteria.asks(criterion, "backward"):
        return {"data": [dense.example], "loss": loss}
    return {"data": [dense.example]} if criteria.asks(criterion, "forward") else {}


def score(dense: Dense, group: Group, criterion: str) -> Tensor:
    """Scores of a group from the first weight that makes it."""
    maker = next(m for m in group.members if m.role == "out")
    axis = dense.structure.tensor(maker.tensor)[maker.dim].axis
    weight = dense.model.get_parameter(maker.tensor).detach()
    function = criteria[criterion]
    blocks = rows(weight, maker.dim, axis, group.atom)
    found = function(blocks, **made_up(criterion, blocks))
    return found / found.mean()


@matrix(quick_scope="global")
def test_cut_when_half_of_every_exact_group_goes_then_equals_the_masked_model(
    dense: Dense, criterion: str, scope: str, record_property
):
    groups = [group for group in dense.structure.exact if group.size >= 2]
    pools = ["all" if scope == "global" and not g.sized else None for g in groups]  # equally many
    requests = [
        Request(score(dense, g, criterion), sparsity=0.5, pool=pool)
        for g, pool in zip(groups, pools, strict=True)
    ]
    keeps = dict(zip((g.name for g in groups), select(requests).keeps, strict=True))
    plan = Plan.from_keeps(dense.structure, keeps)
    if scope == "local":
        assert plan.counts == {g.name: g.size - g.size // 2 for g in groups}

    masks = group_masks(dense.structure, keeps)
    result = cut_and_verify(
        copy.deepcopy(dense.model),
        dense.structure,
        plan,
        masks,
        dense.example,
        notes=[],
        verify=False,
    )
    record_property("relative", check_laws(dense, result))


@matrix(quick_scope="local")
def test_prune_when_called_then_equals_the_masked_model_and_is_deterministic(
    dense: Dense, criterion: str, scope: str, record_property
):
    settings = {"sparsity": 0.5, "criterion": criterion, "scope": scope}
    data = data_for(dense, criterion)
    result = secateur.prune(dense.model, dense.example, repair="none", **settings, **data)
    record_property("relative", check_laws(dense, result))
    assert result.verification is not None
    assert result.verification.exact
    assert result.verification.passed
    chosen = {g.name for g in dense.structure.independent()}
    assert set(result.plan.keep) <= chosen
    if scope == "local":
        assert set(result.plan.keep) == chosen

    again = Pruner(dense.model, Config(**settings), dense.example, structure=dense.structure)
    if data:
        again.calibrate(**data)
    again.decide()
    assert Plan.from_keeps(dense.structure, again.keeps) == result.plan


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).square().mean()
