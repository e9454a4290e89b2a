"""A plan is data: it says what stays, fits a model or not, and survives a file."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from secateur import Plan, Structure, analyze
from secateur.errors import PlanError


class Net(nn.Module):
    """Two hidden layers; the halves of the second must keep equally many positions."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.second = nn.Linear(8, 8)
        self.one = nn.Linear(4, 3)
        self.two = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.second(torch.relu(self.first(x))).chunk(2, dim=-1)
        return self.one(one) * self.two(two)


@pytest.fixture(scope="module")
def structure() -> Structure:
    return analyze(Net(), torch.zeros(5, 4))


def keep(size: int, *kept: int) -> Tensor:
    mask = torch.zeros(size, dtype=torch.bool)
    mask[list(kept)] = True
    return mask


# from keep masks


def test_from_keeps_when_a_group_loses_nothing_then_it_is_absent(structure):
    plan = Plan.from_keeps(structure, {"first": keep(8, *range(8))})
    assert plan == Plan({})
    assert structure.cost(plan) == structure.cost()


def test_from_keeps_when_positions_go_then_the_rest_is_listed_and_can_be_costed(structure):
    plan = Plan.from_keeps(structure, {"first": keep(8, 1, 2, 7)})
    assert plan.keep == {"first": (1, 2, 7)}
    assert plan.counts == {"first": 3}
    removed = 5 * (4 + 1 + 8)  # rows and biases of the first layer, columns of the second
    assert structure.cost(plan).params == structure.cost().params - removed


def test_from_keeps_when_a_mask_has_the_wrong_size_then_plan_error(structure):
    with pytest.raises(PlanError, match=r"'first' has 8 positions, and its keep mask \(2,\)"):
        Plan.from_keeps(structure, {"first": keep(2, 0)})


def test_from_keeps_when_nothing_is_kept_then_plan_error(structure):
    with pytest.raises(PlanError, match="'first' would keep nothing; at least one"):
        Plan.from_keeps(structure, {"first": keep(8)})


# does it fit?


@pytest.mark.parametrize("name", ["frist", "First"])
def test_check_when_a_group_is_unknown_then_the_nearest_name_is_suggested(structure, name):
    with pytest.raises(PlanError, match=f"{name!r} of Net cannot be cut. Did you mean 'first'?"):
        Plan({name: (0,)}).check(structure)


def test_check_when_a_group_is_frozen_then_the_reason_is_told(structure):
    frozen = next(g.name for g in structure.frozen if g.name == "one")
    with pytest.raises(PlanError, match="'one' of Net cannot be cut: it is frozen: .*output"):
        Plan({frozen: (0,)}).check(structure)


@pytest.mark.parametrize("positions", [(0, 8), (-1, 3), (3, 2), (1, 1)])
def test_check_when_positions_are_wrong_then_plan_error(structure, positions):
    with pytest.raises(PlanError, match="'first' has positions 0…7, each at most once"):
        Plan({"first": positions}).check(structure)


@pytest.mark.parametrize("name", ["second", "second[1]"])
def test_check_when_one_of_two_sized_groups_is_cut_then_plan_error(structure, name):
    with pytest.raises(PlanError, match="must keep equally many positions, not 2 and 4"):
        Plan({name: (0, 1)}).check(structure)


def test_check_when_sized_groups_keep_other_positions_but_equally_many_then_it_fits(structure):
    Plan({"second": (0, 1), "second[1]": (1, 3)}).check(structure)


def test_check_when_several_things_are_wrong_then_all_are_told(structure):
    plan = Plan({"first": (), "nothing": (0,), "second": (0,), "second[1]": (0, 1)})
    with pytest.raises(PlanError) as caught:
        plan.check(structure)
    assert len(str(caught.value).splitlines()) == 3


# JSON


def test_to_json_when_positions_are_consecutive_then_they_become_inclusive_ranges():
    plan = Plan({"first": (0, 1, 2, 5, 7)})
    assert plan.to_json() == {"schema": 1, "keep": {"first": [[0, 2], [5, 5], [7, 7]]}}


PLANS = st.dictionaries(
    st.text(max_size=8), st.sets(st.integers(0, 60)).map(lambda found: tuple(sorted(found)))
).map(Plan)


@given(plan=PLANS)
def test_plan_when_written_and_read_then_it_is_equal(plan):
    assert Plan.from_json(plan.to_json()) == plan
    assert Plan.from_json(json.dumps(plan.to_json())) == plan


def test_from_json_when_there_are_other_keys_then_they_are_ignored():
    record = {"schema": 1, "keep": {"first": [[1, 2]]}, "model": "Net", "tied": {}}
    assert Plan.from_json(record) == Plan({"first": (1, 2)})


def test_from_json_when_the_schema_is_newer_then_plan_error_says_upgrade():
    with pytest.raises(PlanError, match="schema 2 is newer than 1: upgrade"):
        Plan.from_json({"schema": 2, "keep": {}})


HOSTILE: list[Any] = [
    "",
    "{",
    b"\xff\xfe",
    "null",
    "[" * 100_000,
    [],
    {},
    {"schema": 1},
    {"keep": {}},
    {"schema": "1", "keep": {}},
    {"schema": None, "keep": {}},
    {"schema": 1, "keep": []},
    {"schema": 1, "keep": {"first": 3}},
    {"schema": 1, "keep": {"first": [3]}},
    {"schema": 1, "keep": {"first": [[1, 2, 3]]}},
    {"schema": 1, "keep": {"first": [["1", "2"]]}},
    {"schema": 1, "keep": {"first": [[0.5, 2]]}},
    {"schema": 1, "keep": {"first": [[True, 2]]}},
    {"schema": 1, "keep": {"first": [[-2, 2]]}},
    {"schema": 1, "keep": {"first": [[5, 2]]}},
    {"schema": 1, "keep": {"first": [[0, 3], [2, 5]]}},
    {"schema": 1, "keep": {"first": [[0, 10**15]]}},
]


@pytest.mark.parametrize("data", HOSTILE, ids=lambda data: repr(data)[:40])
def test_from_json_when_it_is_no_plan_then_plan_error(data):
    with pytest.raises(PlanError, match="this is no plan"):
        Plan.from_json(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@given(keep=JSON, schema=st.just(1) | JSON)
def test_from_json_when_anything_is_given_then_a_plan_or_a_plan_error(keep, schema):
    try:
        plan = Plan.from_json({"schema": schema, "keep": keep})
    except PlanError:
        return
    assert Plan.from_json(plan.to_json()) == plan


def test_plan_from_masks_and_from_scores_when_they_say_the_same_then_plans_are_equal():
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    structure = analyze(net, torch.zeros(1, 3))
    mask = torch.ones(4, 3, dtype=torch.bool)
    mask[[1, 3]] = False
    from_masks = Plan.from_masks(structure, {"0.weight": mask, "0.bias": mask[:, 0]})
    scores = torch.tensor([4.0, 1.0, 3.0, 2.0])
    assert from_masks == Plan.from_scores(structure, {"0": scores}, 0.5) == Plan({"0": (0, 2)})
