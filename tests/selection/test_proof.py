"""Goals of time are met by what was cut and timed more than once, not by the luckiest timing."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import chain, repeat

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.costs import COSTS
from secateur.errors import GoalError
from secateur.runtime.measure import Latency
from tests.selection.test_goals import Net, X

DENSE = 100.0
"""Milliseconds of the dense model; the goals are of 50."""


def exactly(ms: float) -> Latency:
    return Latency(ms, ms, ms, 5, 1)


def widths(model: nn.Module) -> int:
    return sum(p.shape[0] for p in model.parameters() if p.ndim > 1)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def timed(monkeypatch):
    """Let operations take what their widest tensor does; models what a function says of each.

    The function returns the share of the goal that the smaller model takes.
    """

    def add(table, runs, clock):
        for key in runs:
            sizes = [int(n) for part in key.split("[")[1:] for n in part.split("]")[0].split(",")]
            table.found[key] = exactly(float(max(sizes)))

    monkeypatch.setattr("secateur.costs.latencies.Latencies.add", add)

    def by(said: Callable[[nn.Module], float], dense: Callable[[], float] = lambda: DENSE):
        def time(cost, models):
            whole = dense()
            taken = {n: said(m) if n != "dense" else 2.0 for n, m in models.items()}
            return {n: exactly(whole / 2 * share) for n, share in taken.items()}

        monkeypatch.setattr(COSTS["latency"], "time", time)

    return by


def scripted(shares: list[float], seen: list[int]) -> Callable[[nn.Module], float]:
    """Return what says one share after the other, the last again and again."""
    told: Iterator[float] = chain(shares, repeat(shares[-1]))

    def said(model: nn.Module) -> float:
        seen.append(widths(model))
        return next(told)

    return said


@pytest.mark.parametrize("lucky", [0.97, 0.5])
@pytest.mark.parametrize("before", [1, 2, 4])
@pytest.mark.parametrize("slow", [1.05, 2.2])
def test_prune_when_one_timing_was_lucky_then_the_goal_is_not_met(net, timed, slow, before, lucky):
    timed(scripted([slow] * before + [lucky] + [slow] * 20, []))
    with pytest.raises(GoalError, match="none met it"):
        sc.prune(net, X, budget="50 ms")


@pytest.mark.parametrize("goal", [{"budget": "50 ms"}, {"sparsity": 0.5, "of": "latency"}])
@pytest.mark.parametrize("first", [[], [1.2], [1.2, 0.8], [0.96, 0.7], [0.99, 1.3]])
def test_prune_when_a_candidate_is_near_then_it_is_timed_once_more_and_that_is_told(
    net, timed, goal, first
):
    seen: list[int] = []
    timed(scripted([*first, 0.98, 0.96], seen))
    result = sc.prune(net, X, **goal)
    assert seen[-1] == seen[-2] == widths(result.model)
    assert result.goals[0].met
    assert result.goals[0].reached == "48 ms"  # the last, not the first
    assert result.warnings == []


def test_prune_when_timings_are_noisy_then_what_is_met_truly_is(timed):
    met = 0
    for seed in range(12):
        noise = random.Random(seed)

        def true(model: nn.Module) -> float:
            return 2 * (0.1 + 0.9 * widths(model) / 165)

        timed(lambda model: true(model) * (1 + noise.gauss(0, 0.04)))  # noqa: B023
        torch.manual_seed(0)
        result = sc.prune(Net().eval(), X, budget="50 ms", strict=False)
        met += result.goals[0].met
        assert bool(result.warnings) is not result.goals[0].met
        assert not result.goals[0].met or 0.8 < true(result.model) < 1.03
    assert met >= 10


def test_prune_when_widths_are_coarse_then_a_later_worse_timing_is_no_success(net, timed):
    timed(scripted([0.94] + [1.05] * 20, []))
    with pytest.raises(GoalError):
        sc.prune(net, X, budget="50 ms", round_to=16)
    timed(scripted([0.94] + [1.05] * 20, []))
    result = sc.prune(net, X, budget="50 ms", round_to=16, strict=False)
    assert not result.goals[0].met
    assert "none met it" in result.warnings[0]


def test_prune_when_none_meets_it_then_the_nearest_is_returned(net, timed):
    seen: list[int] = []
    timed(scripted([1.02, 1.3, 1.25], seen))
    result = sc.prune(net, X, budget="50 ms", strict=False)
    assert widths(result.model) == seen[0]
    assert widths(result.model) not in seen[1:]
    assert result.goals[0].reached == "51 ms"


@pytest.mark.parametrize("settings", [{"round_to": 16}, {"round_to": 16, "sparsity": 0.5}])
def test_prune_when_it_ends_well_below_then_a_note_says_why(net, timed, settings):
    goal = {"of": "latency"} if "sparsity" in settings else {"budget": "50 ms"}
    timed(lambda model: 0.8 if widths(model) <= 90 else 1.2)
    result = sc.prune(net, X, **goal, **settings)
    assert result.goals[0].met
    assert "none that met it was nearer" in " ".join(result.notes)


@pytest.mark.parametrize("budget", ["200 ms", ["50 ms", "1 k params"]])
def test_prune_when_another_goal_binds_then_no_note_speaks_of_time(net, timed, budget):
    timed(lambda model: 2 * widths(model) / 165)
    result = sc.prune(net, X, budget=budget)
    assert all(goal.met for goal in result.goals)
    assert "nearer" not in " ".join(result.notes)


def test_pruner_when_a_decision_is_met_after_one_that_was_not_then_it_warns_no_more(net, timed):
    now = {"share": 1.2}
    timed(lambda model: now["share"])
    pruner = sc.Pruner(net, sc.Config(budget="50 ms", strict=False), X, trained=False)
    pruner.decide()
    assert pruner.budget.unmet
    now["share"] = 0.97
    pruner.decide()
    assert not pruner.budget.unmet
    result = pruner.finish(inplace=False)
    assert result.goals[0].met
    assert not any("met it" in warning for warning in result.warnings)


@pytest.mark.parametrize("slower", [1.0, 1.2, 0.7])
def test_pruner_when_a_run_is_resumed_then_a_share_of_time_is_of_the_dense_model_now(
    net, timed, slower
):
    speed = {"dense": DENSE}
    timed(lambda model: 0.97, lambda: speed["dense"])
    config = sc.Config(sparsity=0.5, of="latency")
    first = sc.Pruner(net, config, X, trained=False)
    first.step()
    torch.manual_seed(0)
    again = sc.Pruner(Net().eval(), config, X, trained=False)
    again.load_state_dict(first.state_dict())
    speed["dense"] *= slower  # all of the machine
    result = again.finish(inplace=False)
    assert result.goals[0].met
    assert result.goals[0].gone == pytest.approx(1 - 0.97 / 2)


def test_pruner_when_a_resumed_run_misses_its_amount_then_it_says_what_to_do(net, timed):
    now = {"share": 0.97}
    timed(lambda model: now["share"])
    config = sc.Config(budget="50 ms")
    first = sc.Pruner(net, config, X, trained=False)
    first.step()
    torch.manual_seed(0)
    again = sc.Pruner(Net().eval(), config, X, trained=False)
    again.load_state_dict(first.state_dict())
    now["share"] = 1.3  # it is another machine
    result = again.finish(inplace=False)
    assert not result.goals[0].met
    assert "call decide() before finish()" in result.warnings[0]
    timed(lambda model: 2 * widths(model) / 165)
    again.decide()
    result = again.finish(inplace=False)
    assert result.goals[0].met
    assert result.warnings == []
