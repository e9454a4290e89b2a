"""Budgets: the smallest ratio, and the fewest steps, whose cost is low enough."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.selection.bisection import fewest, ratios_around


@given(goal=st.floats(0, 1), power=st.integers(1, 4))
def test_ratio_when_the_cost_falls_smoothly_then_the_goal_is_met_to_the_last_step(goal, power):
    def cost(ratio: float) -> float:
        return (1 - ratio) ** power

    low, high = ratios_around(cost, goal, 1e-6)
    assert cost(high) <= goal
    assert low == high == 0 or cost(low) > goal
    assert 0 <= high - low <= 1e-6


@given(goal=st.floats(0, 40))
def test_ratio_when_the_cost_falls_in_steps_then_the_first_step_that_is_low_enough_is_taken(goal):
    def cost(ratio: float) -> float:
        return 40 - int(40 * ratio)

    assert cost(ratios_around(cost, goal, 1 / 80)[1]) == int(goal)


def test_ratio_when_the_dense_cost_is_low_enough_then_zero():
    assert ratios_around(lambda ratio: 10 - ratio, 10, 0.1) == (0, 0)


def test_ratio_when_nothing_is_low_enough_then_one():
    assert ratios_around(lambda ratio: 10 - ratio, 3, 0.1) == (1, 1)


def test_ratio_when_computed_then_the_cost_is_asked_for_at_most_once_per_halving():
    asked = []

    def cost(ratio: float) -> float:
        asked.append(ratio)
        return 1 - ratio

    assert ratios_around(cost, 0.3, 2.0**-20) == pytest.approx((0.7, 0.7), abs=1e-6)
    assert len(asked) == 20 + 2


@given(drops=st.lists(st.floats(0, 5), max_size=20), goal=st.floats(0, 60))
def test_fewest_when_steps_are_taken_in_order_then_the_first_that_is_low_enough_is_found(
    drops, goal
):
    def cost(steps: int) -> float:
        return 50 - sum(drops[:steps])

    enough = [k for k in range(len(drops)) if cost(k) <= goal]
    assert fewest(len(drops), cost, goal) == (enough[0] if enough else len(drops))
