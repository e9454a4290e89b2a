"""Budgets: the smallest ratio whose cost is low enough."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.allocate import STEPS, ratio_for


@given(goal=st.floats(0, 1), power=st.integers(1, 4))
def test_ratio_when_the_cost_falls_smoothly_then_the_goal_is_met_to_the_last_step(goal, power):
    def cost(ratio: float) -> float:
        return (1 - ratio) ** power

    ratio = ratio_for(cost, goal)
    assert 0 <= ratio <= 1
    assert cost(ratio) <= goal
    assert ratio == 0 or cost(ratio - 2.0**-STEPS) > goal


@given(goal=st.floats(0, 40))
def test_ratio_when_the_cost_falls_in_steps_then_the_first_step_that_is_low_enough_is_taken(goal):
    def cost(ratio: float) -> float:
        return 40 - int(40 * ratio)

    assert cost(ratio_for(cost, goal)) == int(goal)


def test_ratio_when_the_dense_cost_is_low_enough_then_zero():
    assert ratio_for(lambda ratio: 10 - ratio, 10) == 0


def test_ratio_when_nothing_is_low_enough_then_one():
    assert ratio_for(lambda ratio: 10 - ratio, 3) == 1


def test_ratio_when_computed_then_the_cost_is_asked_for_at_most_once_per_halving():
    asked = []

    def cost(ratio: float) -> float:
        asked.append(ratio)
        return 1 - ratio

    assert ratio_for(cost, 0.3) == pytest.approx(0.7, abs=1e-6)
    assert len(asked) == STEPS + 1
