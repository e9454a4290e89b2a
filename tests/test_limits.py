"""The clock of the coverage benchmark: what is too slow is stopped, and what dies is reported."""

from __future__ import annotations

import os
from contextlib import nullcontext
from typing import Any

import pytest

from benchmarks.limits import Clock, Late, in_a_process

pytestmark = pytest.mark.filterwarnings("ignore:This process.*fork:DeprecationWarning")


def spin(limit: float, *, timed: bool) -> dict[str, Any]:
    clock = Clock(limit)
    try:
        with clock if timed else nullcontext():
            for _ in range(10**9 if timed else 10**5):
                pass
    except Exception:  # as a library might
        return {"status": "swallowed"}
    except Late:
        return {"status": "too slow"} | clock.facts()
    return {"status": "ok"} | clock.facts()


def test_clock_when_the_timed_part_passes_its_limit_then_it_is_stopped_there():
    found = in_a_process(lambda limit: spin(limit, timed=True), 0.05)
    assert found["status"] == "too slow"
    assert found["pruned_in"] > 0


def test_clock_when_the_rest_takes_longer_then_it_does_not_count():
    found = in_a_process(lambda limit: spin(limit, timed=False), 1e-4)
    assert (found["status"], found["pruned_in"]) == ("ok", 0.0)


def test_clock_when_it_is_entered_again_then_its_time_adds_up(monkeypatch: pytest.MonkeyPatch):
    now = iter([2.0, 5.0, 11.0, 15.0])  # the real clock may stand still between two readings
    monkeypatch.setattr("time.process_time", lambda: next(now))
    clock = Clock(30)
    with clock:
        pass
    assert clock.spent == 3
    with clock:
        pass
    assert clock.spent == 7


@pytest.mark.parametrize("code", [0, 3])
def test_process_when_it_dies_then_that_is_said(code):
    assert in_a_process(lambda: os._exit(code))["status"] == "died"
