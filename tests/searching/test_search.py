"""What a search promises of every trial, whatever draws it."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.storages import InMemoryStorage
from torch import nn

import secateur
from secateur import Config, Pruner
from secateur.errors import ConfigError, GoalError, MissingExtraError, UnknownNameError
from secateur.searching.amc import bounded, walked
from secateur.searching.annealing import Annealing, Walk, first_shares, next_shares, rescaled
from secateur.searching.ddpg import Agent, Learning, episode, truncated_normal
from secateur.searching.space import Space
from tests.searches import inputs, likeness, net, search
from tests.zoo import torchvision_models


def space(config: Config, model: nn.Module | None = None, per: str = "group") -> Space:
    return Space(Pruner(model or net(), config, inputs()[:2], trained=False), per)


SPACES = {
    of: space(Config(sparsity=0.5, of=of, round_to=step))  # type: ignore[arg-type]
    for of, step in (("macs", 1), ("params", 2), ("channels", 1))
}


@pytest.mark.parametrize("of", SPACES)
@settings(max_examples=25)
@given(shares=st.lists(st.floats(0, 1), min_size=3, max_size=3), goal=st.floats(0.3, 1))
def test_shares_when_settled_then_the_goal_is_met_and_their_order_is_kept(
    of: str, shares: list[float], goal: float
) -> None:
    found = SPACES[of].settled(shares, goal)
    assert found.cost <= goal + 1e-9
    counts = SPACES[of].counts(found.shares)
    assert found.cost == pytest.approx(SPACES[of].cost(found.shares))
    assert all(count >= 1 for count in counts.values())
    ranked = sorted(range(3), key=lambda i: shares[i])
    for a, b in zip(ranked, ranked[1:], strict=False):
        assert found.shares[a] <= found.shares[b] + 0.02  # of two, one may be a step ahead


def test_shares_when_settled_then_little_of_the_goal_is_left_over() -> None:
    draws = random.Random(0)
    costs = [SPACES["macs"].settled([draws.random() for _ in range(3)]).cost for _ in range(30)]
    assert min(costs) > 0.4, "a position of this network is up to a tenth of its cost"
    assert sum(costs) / len(costs) > 0.45


def test_space_when_groups_are_of_a_block_or_tied_then_they_have_one_share() -> None:
    torchvision = torchvision_models()
    model = torchvision.mobilenet_v2(num_classes=4).eval()
    pruner = Pruner(
        model, Config(sparsity=0.5, of="macs"), torch.zeros(1, 3, 32, 32), trained=False
    )
    alone, blocks = Space(pruner), Space(pruner, per="block")
    assert len(blocks.units) < len(alone.units)
    assert sorted(n for unit in blocks.units.values() for n in unit) == sorted(pruner_names(pruner))
    assert blocks.settled([0.5] * len(blocks.units)).cost <= 0.5


def pruner_names(pruner: Pruner) -> list[str]:
    return [each.name for each in pruner.selectables]


def test_space_when_some_shares_are_given_then_the_others_meet_the_goal() -> None:
    found = space(Config(sparsity=0.5, of="macs", allocation={"0": 0.25}))
    assert list(found.units) == ["2", "4"]
    settled = found.settled([0.3, 0.6])
    assert settled.removed["0"] == 0.25
    assert settled.cost <= 0.5


@pytest.mark.parametrize("sampler", ["random", "tpe", "annealing", "cmaes", "amc"])
def test_trial_when_drawn_by_any_sampler_then_costs_at_most_the_goal(sampler: str) -> None:
    of = "params"
    found = search(InMemoryStorage(), lambda m: 0.0, sampler=sampler, of=of, trials=4)
    assert all(trial.cost <= 0.5 for trial in found.trials)
    assert found.best.slot == min(t.slot for t in found.trials if t.cost == found.best.cost)
    result = found.result()
    assert getattr(result.after, of) / getattr(result.before, of) == pytest.approx(found.best.cost)
    (goal,) = result.goals
    assert (goal.of, goal.met) == (of, True)
    assert "goal: params" in " ".join(str(result).split())


def test_result_when_trained_and_repaired_then_is_the_model_of_the_trial() -> None:
    def train(model: nn.Module) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        for _ in range(3):
            noise = torch.randn(16, 6)
            model(noise).square().mean().backward()
            optimizer.step()

    data = list(inputs().split(16))
    dense = net()
    before = torch.get_rng_state(), random.getstate()
    found = search(InMemoryStorage(), train=train, data=data, trials=3)
    assert found.result().verification.passed
    for trial in found.trials:
        again = found.result(trial)
        assert likeness(again.model) == trial.value
        assert again.repair is not None
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    for a, b in zip(found.job.pruner.model.parameters(), dense.parameters(), strict=True):
        assert torch.equal(a, b)


def test_best_when_lower_is_better_then_is_the_lowest() -> None:
    found = search(InMemoryStorage(), lambda m: -likeness(m), direction="minimize", trials=5)
    assert found.best.value == min(t.value for t in found.trials)
    assert "best " in repr(found)
    assert str(found.best.slot) in str(found)


def test_front_when_two_goals_then_no_member_is_beaten() -> None:
    found = search(InMemoryStorage(), sampler="nsga2", sparsity=0.7, trials=10)
    assert found.fronts
    assert len({round(t.cost, 3) for t in found.trials}) > 3
    for member in found.front:
        assert not any(
            t.value >= member.value and t.cost <= member.cost and t not in (member,)
            for t in found.trials
            if (t.value, t.cost) != (member.value, member.cost)
        )
    assert list(found.front) == sorted(found.front, key=lambda t: t.cost)
    for other in set(map(id, found.whole)) - set(map(id, found.front)):
        (trial,) = (t for t in found.whole if id(t) == other)
        assert any(m.value >= trial.value and m.cost <= trial.cost for m in found.front)


def test_trial_when_evaluate_yields_bad_numbers_then_is_stopped() -> None:
    calls: list[int] = []

    def evaluate(model: nn.Module) -> Iterator[float]:
        calls.append(0)
        bad = len(calls) > 2
        for step in range(4):
            calls[-1] += 1
            yield -100.0 if bad else step

    pruner = optuna.pruners.MedianPruner(n_startup_trials=2)
    found = search(InMemoryStorage(), evaluate, trials=4, pruner=pruner)
    assert calls == [4, 4, 1, 1]
    assert [t.stopped for t in found.trials] == [False, False, True, True]
    assert found.best.value == 3
    assert "stopped" in str(found)


def test_search_when_every_trial_is_stopped_then_it_says_so_and_goes_on_later() -> None:
    storage, pruner = InMemoryStorage(), optuna.pruners.ThresholdPruner(lower=0.0)

    def bad(model: nn.Module) -> Iterator[float]:
        yield from (-5.0, -4.0)

    found = search(storage, bad, trials=2, pruner=pruner)
    assert [t.stopped for t in found.trials] == [True, True]
    assert (found.whole, found.front) == ((), ())
    assert "stopped" in str(found)
    assert repr(found).endswith("2 trials)")
    with pytest.raises(ConfigError, match="no trial was evaluated to its end"):
        _ = found.best
    assert search(storage, trials=3, pruner=pruner, same=["evaluate"]).best.slot == 2


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("of", ["macs", "params"])
def test_search_when_it_begins_then_the_first_trial_is_what_prune_does(of: str, scope: str) -> None:
    settings: dict[str, Any] = {"of": of, "scope": scope, "criterion": "l2"}
    alone = secateur.prune(net(), inputs()[:2], 0.5, **settings)
    found = search(InMemoryStorage(), trials=1, **settings)
    shapes = {n: t.shape for n, t in found.result().model.state_dict().items()}
    assert shapes == {n: t.shape for n, t in alone.model.state_dict().items()}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sampler": "tpe", "sampler_options": {"n_startup_trials": "x"}}, "a whole number"),
        ({"sampler": "tpe", "sampler_options": {"weights": lambda n: [2]}}, "no plain number"),
        ({"sampler": "annealing", "sampler_options": {"start_temperature": "hot"}}, "a number"),
        ({"sampler": "annealing", "sampler_options": {"start_temperature": 0.0}}, "above 0"),
        ({"sampler": "amc", "sampler_options": {"warmup": "x"}}, "a whole number"),
        ({"sampler": "amc", "sampler_options": {"init_delta": 0.0}}, "above 0"),
        ({"sampler": "amc", "sampler_options": {"hidden1": 8.5}}, "a whole number"),
        ({"sampler": "cmaes", "sampler_options": {"sigma": -1.0}}, "sampler_options"),
        ({"sampler": "cmaes", "sampler_options": {"population_size": 1}}, "sampler_options"),
        ({"sampler": "nsga2", "sampler_options": {"population_size": 1}}, "sampler_options"),
        ({"train": "x"}, "train must be a function"),
        ({"pruner": "median"}, "pruner must be one of"),
        ({"name": None}, "name must be"),
        ({"heartbeat": float("inf")}, "heartbeat must be"),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")  # Optuna's own, of functions as options
def test_search_when_an_option_is_wrong_then_it_is_named(
    options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        search(InMemoryStorage(), trials=1, **options)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (float("nan"), "nan"),
        (torch.tensor(float("nan")), "nan"),
        (float("inf"), "inf"),
        (float("-inf"), "-inf"),
        ("0.5", "must return a number"),
        (None, "must return a number"),
        (torch.zeros(2), "must return a number"),
        (iter([]), "yielded nothing"),
        (1j, "must return a number"),
    ],
)
def test_search_when_evaluate_returns_no_number_then_says_so_and_the_trial_has_failed(
    value: Any, said: str
) -> None:
    storage = InMemoryStorage()
    with pytest.raises(ConfigError, match=said):
        search(storage, lambda model: value)
    study = optuna.load_study(study_name="search", storage=storage)
    assert [t.state.name for t in study.trials] == ["FAIL"]
    assert said in study.trials[0].user_attrs["secateur:error"]


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"sampler": "annealling"}, UnknownNameError, "Did you mean 'annealing'"),
        ({"sampler": "amc", "sampler_options": {"warmupp": 1}}, ConfigError, "'warmup'"),
        ({"trials": -1}, ConfigError, "trials must be"),
        ({"trials": 2.5}, ConfigError, "trials must be"),
        ({"direction": "up"}, ConfigError, "direction must be"),
        ({"per": "layer"}, ConfigError, "per must be"),
        ({"heartbeat": 0}, ConfigError, "heartbeat must be"),
        ({"name": ""}, ConfigError, "name must be"),
        ({"evaluate": 3}, ConfigError, "evaluate must be"),
        ({"sparsityy": 0.5}, ConfigError, "unknown key 'sparsityy'"),
        ({"sparsity": 0.999}, GoalError, "cannot go"),
        ({"sparsity": None, "threshold": 0.1}, ConfigError, "sparsity"),
        ({"repair": "bias"}, ConfigError, "needs data"),
        ({"schedule": "cubic", "steps": 3}, ConfigError, "one shot"),
    ],
)
def test_search_when_a_setting_is_wrong_then_says_so_before_anything_is_tried(
    options: dict[str, Any], error: type[Exception], said: str
) -> None:
    storage = InMemoryStorage()
    evaluate = options.pop("evaluate", likeness)
    with pytest.raises(error, match=said):
        search(storage, evaluate, **options)
    assert not [t for s in storage.get_all_studies() for t in storage.get_all_trials(s._study_id)]


@pytest.mark.parametrize(
    "settings",
    [
        {"of": "channels", "granularity": "element"},
        {"of": "channels"},
        {"scope": "global"},
        {"min_sparsity": 0.2, "max_sparsity": 0.6, "sparsity": 0.4},
        {"targets": [{"names": ["0"]}, {"names": ["2"], "max_sparsity": 0.4}], "sparsity": 0.3},
        {"exclude": ["0"], "sparsity": 0.3, "round_to": 4},
        {"sparsity": 0.0},
        {"strict": False, "per": "block"},
    ],
    ids=str,
)
def test_search_when_pruning_has_other_settings_then_every_trial_meets_them(
    settings: dict[str, Any],
) -> None:
    with torch.inference_mode():
        found = search(InMemoryStorage(), lambda m: 0.0, trials=3, **settings)
    assert len(found.trials) == 3
    assert all(t.cost <= found.goal + 1e-9 for t in found.trials)
    assert found.result(found.trials[2]).verification.passed


def test_search_when_the_granularity_is_a_pattern_then_there_is_nothing_to_search() -> None:
    with pytest.raises(ConfigError, match="nothing to search"):
        search(InMemoryStorage(), sparsity=None, of="channels", granularity="1:2")


def test_search_when_as_much_as_can_go_is_asked_for_then_says_so_first() -> None:
    found = search(InMemoryStorage(), sparsity=0.999, strict=False, trials=2)
    assert len(found.trials) == 2
    assert "cannot go" in str(found).splitlines()[0]


def test_search_when_optuna_is_missing_then_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in [n for n in sys.modules if n.startswith(("optuna", "secateur.searching.sha"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtraError, match=r'pip install "secateur\[search\]"'):
        search(tmp_path / "a.journal")


def test_search_when_cmaes_is_missing_then_says_what_to_install_and_tries_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "cmaes", None)
    storage = InMemoryStorage()
    with pytest.raises(MissingExtraError, match=r"'cmaes'.*pip install \"secateur\[search\]\""):
        search(storage, sampler="cmaes")
    assert not [t for s in storage.get_all_studies() for t in storage.get_all_trials(s._study_id)]
    assert len(search(storage, sampler="annealing", trials=2).trials) == 2  # others do without


def test_sampler_when_it_is_one_of_optunas_then_draws() -> None:
    found = search(InMemoryStorage(), sampler=optuna.samplers.RandomSampler(seed=0), trials=5)
    assert len(found.trials) == 5


def test_annealing_when_it_steps_then_the_rules_of_nni_hold() -> None:
    annealing, draws, sizes = Annealing(), random.Random(0), [100, 4000, 900]
    walk: Walk | None = None
    while walk is None or not annealing.over(walk):
        made = (
            first_shares(sizes, 0.6, draws)
            if walk is None
            else next_shares(annealing, walk, sizes, 0.6, draws)
        )
        removed = sum(int(n * s) for n, s in zip(sizes, made, strict=True))
        assert removed == pytest.approx(0.6 * sum(sizes), rel=0.02)
        assert made[1] == max(made), "the largest layer has the largest share"
        assert all(0 <= share < 1 for share in made)
        score = draws.random()
        walk = (
            annealing.begun(made, score)
            if walk is None
            else annealing.judged(walk, made, score, draws.random())
        )
    assert walk.temperature == pytest.approx(100 * 0.9**16)
    cold = Walk((0.5,), 0.9, 20.0)
    assert annealing.judged(cold, [0.4], 0.1, draw=0.999).shares == (0.5,), "much worse"
    assert Annealing(score_scale=0.1).judged(cold, [0.4], 0.8, draw=0.1).shares == (0.5,)
    assert rescaled([0.0, 0.0], [5, 5], 0.0) == [0.0, 0.0]


@pytest.mark.parametrize("goal", [0.1, 0.5, 0.59])
@pytest.mark.parametrize("most", [[0.6, 0.6, 0.6], [0.3, 0.65, 0.55], [0.95, 0.6, 0.6]])
def test_annealing_when_layers_are_bounded_then_none_loses_more_and_the_goal_is_met(
    goal: float, most: list[float]
) -> None:
    annealing, draws, sizes = Annealing(), random.Random(0), [100, 4000, 900]
    walk: Walk | None = None
    for _ in range(50):
        made = (
            first_shares(sizes, goal, draws, most)
            if walk is None
            else next_shares(annealing, walk, sizes, goal, draws, most)
        )
        assert all(0 <= s <= bound + 1e-12 for s, bound in zip(made, most, strict=True))
        removed = sum(n * s for n, s in zip(sizes, made, strict=True))
        assert removed == pytest.approx(goal * sum(sizes), rel=0.02)
        walk = annealing.begun(made, 0.0)


@pytest.mark.slow
def test_agent_when_one_share_is_rewarded_then_learns_it() -> None:
    learning = Learning(hidden1=32, hidden2=32, lr_a=3e-3, warmup=10, discount=0.0, updates=4)
    agent, twin = Agent(2, learning, seed=1), Agent(2, learning, seed=1)
    states = [[0.0, 1.0], [1.0, 0.0]]
    for _ in range(60):
        actions = [agent.action(state) for state in states]
        assert actions == [twin.action(state) for state in states]
        reward = -((actions[0] - 0.2) ** 2) - (actions[1] - 0.8) ** 2
        for each in (agent, twin):
            each.learn(episode(states, actions, reward))
    low, high = (agent.action(state, explore=False) for state in states)
    assert low < 0.45
    assert high > 0.55
    assert agent.delta == pytest.approx(0.5 * 0.99**50)


@given(mean=st.floats(-1, 2), deviation=st.floats(0, 3), draw=st.floats(0, 0.999))
def test_truncated_normal_when_of_any_kind_then_is_a_share(
    mean: float, deviation: float, draw: float
) -> None:
    assert 0 <= truncated_normal(mean, deviation, draw) <= 1


@settings(max_examples=8)
@given(action=st.floats(0, 1))
def test_walk_when_actions_are_any_then_the_goal_is_met(action: float) -> None:
    made = walked(SPACES["macs"], lambda state: action)
    assert SPACES["macs"].cost(made.shares) <= 0.5 + 0.02
    assert all(len(state) == 10 for state in made.states)
    assert made.states[1][-1] == made.shares[0], "the last share is in the state of the next"


@given(st.floats(0, 1), st.floats(0, 20), st.floats(0, 20))
def test_bounded_when_the_goal_can_be_met_then_neither_more_nor_less_goes(
    action: float, gone: float, later: float
) -> None:
    share = bounded(action, cost=10, original=10, most=1.0, goal=20, gone=gone, later=later)
    assert 0 <= share <= 1
    if gone + later + 10 >= 20:
        assert gone + 10 * share + later >= 20 - 1e-9
    assert gone + 10 * share <= 20 + 1e-9
