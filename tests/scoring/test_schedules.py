"""The laws of every schedule, and the values of each."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.errors import UnknownNameError
from secateur.scoring.schedules import schedules

PROGRESS = st.floats(0, 1)


@pytest.mark.parametrize("name", list(schedules))
@given(first=PROGRESS, second=PROGRESS)
def test_schedule_when_progress_grows_then_the_share_stays_in_range_and_never_falls(
    name, first, second
):
    early, late = sorted((first, second))
    assert 0 <= schedules[name](early) <= schedules[name](late) <= 1


@pytest.mark.parametrize("name", list(schedules))
@pytest.mark.parametrize("steps", [1, 3, 7, 10, 49])
def test_schedule_when_all_steps_are_done_then_the_goal_is_reached_exactly(name, steps):
    assert schedules[name](steps / steps) == 1


@pytest.mark.parametrize(
    ("name", "shares"),
    [
        ("constant", [1, 1, 1, 1]),
        ("linear", [0.25, 0.5, 0.75, 1]),
        ("cubic", [1 - 27 / 64, 1 - 8 / 64, 1 - 1 / 64, 1]),
    ],
)
def test_schedule_when_run_in_four_steps_then_gives_the_published_shares(name, shares):
    assert [schedules[name](k / 4) for k in (1, 2, 3, 4)] == shares


def test_schedules_when_a_name_is_misspelt_then_suggests_the_nearest():
    with pytest.raises(UnknownNameError, match="Did you mean 'linear'"):
        schedules["liner"]
