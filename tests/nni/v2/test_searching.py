"""NNI 2.x's pruners that search: annealing, AutoCompress, AMC."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from secateur.errors import ConfigError
from secateur.nni import pruning as three
from secateur.nni.pytorch import pruning as two
from secateur.nni.pytorch.utils.counter import count_flops_params
from tests.nni.v2.rules import CONVS, EXAMPLE, TRAINERS, Loop, kept, trained_by
from tests.nni.v2.test_iterative import short
from tests.trained import net

STEPS = {"stop_temperature": 80}
"""Three accepted tries after the first."""


class Judged:
    """A loop whose evaluator says given scores, one after the other."""

    def __init__(self, model: nn.Module, scores: list[float] | None = None):
        self.loop = Loop(model, epoch=2)
        self.evaluator = self.loop.evaluator
        if scores is not None:
            said: Iterator[float] = iter(scores)
            self.evaluator.evaluating_func = lambda model: next(said)


@pytest.fixture
def model() -> nn.Module:
    return net()


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        yield


def annealed(model: nn.Module, folder: Path, scores: list[float], **settings: Any) -> Any:
    judged = Judged(model, scores)
    given = {"log_dir": folder, **STEPS, **settings}
    pruner = two.SimulatedAnnealingPruner(model, CONVS, judged.evaluator, **given)
    pruner.compress()
    return pruner


def test_annealing_when_each_try_is_better_then_it_cools_to_the_stop(
    model: nn.Module, tmp_path: Path
) -> None:
    pruner = annealed(model, tmp_path, [1.0, 2.0, 3.0, 4.0])
    tasks = pruner.task_generator.tasks
    assert [task.state["current_temperature"] for task in tasks] == [100, 100, 90, 81]
    number, _, masks, score, config = pruner.get_best_result()
    assert (number, score) == (3, 4.0)
    assert [c["total_sparsity"] for c in config] == [g.sparsity for g in tasks[3].goals]
    asked = {name: c["total_sparsity"] for c in config for name in c["op_names"]}
    assert all(kept(masks)[n] == pytest.approx(1 - s, abs=0.01) for n, s in asked.items())


def test_annealing_when_a_try_is_much_worse_then_it_stays_where_it_was_and_as_hot(
    model: nn.Module, tmp_path: Path
) -> None:
    scores = [5.0, -1e9, 6.0, -1e9, 7.0, 8.0]
    pruner = annealed(model, tmp_path, scores)
    tasks = pruner.task_generator.tasks
    assert [task.score for task in tasks] == scores
    assert [t.state["current_temperature"] for t in tasks] == [100, 100, 100, 90, 90, 81]


@pytest.mark.parametrize("scale", [None, 0.001])
def test_annealing_when_scores_are_shares_then_a_scale_tells_them_apart(
    scale: float | None, model: nn.Module, tmp_path: Path
) -> None:
    scores = [0.9, *[0.5] * 8]
    if scale is None:  # as NNI: nearly all is taken
        pruner = annealed(model, tmp_path, scores)
        assert len(pruner.task_generator.tasks) <= 5
    else:
        with pytest.raises(StopIteration):  # none is taken, and there are no more scores
            annealed(model, tmp_path, scores, score_scale=scale)


def test_annealing_then_every_try_has_the_total_and_begins_with_the_first_model(
    model: nn.Module, tmp_path: Path
) -> None:
    pruner = annealed(model, tmp_path, [1.0, 2.0, 3.0, 4.0])
    sizes = {n: p.numel() for n, p in model.named_parameters()}
    for task in pruner.task_generator.tasks:
        assert task.model is pruner.task_generator.origin
        gone = sum(goal.sparsity * sizes[f"{goal.names[0]}.weight"] for goal in task.goals)
        total = sum(sizes[f"{goal.names[0]}.weight"] for goal in task.goals)
        assert gone / total == pytest.approx(0.5, abs=0.01)
        shares = {n.names[0]: n.sparsity for n in task.goals}
        largest = max(shares, key=lambda name: sizes[f"{name}.weight"])
        assert shares[largest] == max(shares.values())
    different = {tuple(g.sparsity for g in t.goals) for t in pruner.task_generator.tasks}
    assert len(different) == 4


def test_annealing_when_torch_is_seeded_then_it_tries_the_same_again(
    model: nn.Module, tmp_path: Path
) -> None:
    found = []
    for _ in range(2):
        torch.manual_seed(5)
        tasks = annealed(model, tmp_path, [1.0, 2.0, 3.0, 4.0]).task_generator.tasks
        found.append([goal.sparsity for task in tasks for goal in task.goals])
    assert found[0] == found[1]


def test_annealing_when_layers_are_masked_already_then_shares_are_of_what_is_left(
    model: nn.Module, tmp_path: Path
) -> None:
    mask = torch.ones(16, 8, 3, 3)
    mask[:8] = 0
    judged = Judged(model, [1.0, 2.0, 3.0, 4.0])
    pruner = two.SimulatedAnnealingPruner(None, None, judged.evaluator, **STEPS, log_dir=tmp_path)
    pruner.reset(model, CONVS, {"stages.1.conv1": {"weight": mask}})
    pruner.compress()
    for task in pruner.task_generator.tasks:
        share = {goal.names[0]: goal.sparsity for goal in task.goals}
        assert share["stages.1.conv1"] >= 0.5
    masks = pruner.get_best_result()[2]
    assert not masks["stages.1.conv1"]["weight"][:8].any()
    total = sum(by["weight"].numel() for by in masks.values())
    assert sum(float(by["weight"].sum()) for by in masks.values()) / total == pytest.approx(
        0.5, abs=0.01
    )


@pytest.mark.parametrize("most", [0.5, 0.55, 1])
@pytest.mark.parametrize("masked", [0.0, 0.5, 1.0])
def test_annealing_when_layers_are_bounded_then_no_try_takes_more_of_one(
    most: float, masked: float, model: nn.Module, tmp_path: Path
) -> None:
    name = "stages.1.conv1"
    mask = torch.ones(16, 8, 3, 3)
    mask[: int(16 * masked)] = 0
    judged = Judged(model, [1.0, 2.0, 3.0, 4.0])
    pruner = two.SimulatedAnnealingPruner(None, None, judged.evaluator, **STEPS, log_dir=tmp_path)
    pruner.reset(
        *(model, [{**CONVS[0], "max_sparsity_per_layer": most}, CONVS[1]]),
        {name: {"weight": mask}},
    )
    pruner.compress()
    sizes = {n: p.numel() for n, p in model.named_parameters()}
    for task in pruner.task_generator.tasks:
        share = {goal.names[0]: goal.sparsity for goal in task.goals}
        bound = {n: max(most, masked * (n == name)) for n in share}
        assert all(share[n] <= bound[n] + 1e-9 for n in share), share
        total = sum(sizes[f"{n}.weight"] for n in share)
        gone = sum(sizes[f"{n}.weight"] * s for n, s in share.items())
        assert gone / total == pytest.approx(0.5, abs=0.01)


def test_annealing_when_bounds_rule_the_total_out_then_says_so_first(
    model: nn.Module, tmp_path: Path
) -> None:
    names = ["stages.1.conv1", "stages.0.conv1"]
    bounds = {names[0]: 0.4, names[1]: 0.9}  # as NNI writes them; the least holds for all
    rules = [{"op_names": names, "total_sparsity": 0.5, "max_sparsity_per_layer": bounds}]
    judged = Judged(model, [])
    with pytest.raises(ConfigError, match="lets only 40.0% go"):
        two.SimulatedAnnealingPruner(model, rules, judged.evaluator, log_dir=tmp_path)


def test_annealing_when_each_layer_has_a_share_of_its_own_then_warns(
    model: nn.Module, tmp_path: Path
) -> None:
    rules = [{"op_types": ["Conv2d"], "sparsity": 0.5}]
    with pytest.warns(UserWarning, match="nothing to anneal"):
        two.SimulatedAnnealingPruner(model, rules, Judged(model).evaluator, log_dir=tmp_path)


@pytest.mark.parametrize("kind", TRAINERS)
@pytest.mark.filterwarnings("ignore:.*max_steps:UserWarning")
def test_searches_when_a_trainer_holds_the_model_then_each_reaches_its_ratio(
    kind: str, tmp_path: Path
) -> None:
    model, evaluator = trained_by(kind, tmp_path / "trainer")
    short(kind, evaluator)
    sa = {"evaluator": evaluator, "stop_temperature": 95}
    admm = {"evaluator": evaluator, "iterations": 1, "training_epochs": 1}
    for pruner in (
        three.SimulatedAnnealingPruner(model, CONVS, **sa, log_dir=tmp_path),
        three.AutoCompressPruner(model, CONVS, 1, admm, sa, tmp_path, evaluator=evaluator),
    ):
        pruner.compress()
        masks = pruner.get_best_result()[2]
        total = sum(by["weight"].numel() for by in masks.values())
        left = sum(float(by["weight"].sum()) for by in masks.values())
        assert left / total == pytest.approx(0.5, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["level", "l1"])
def test_auto_compress_when_rounds_follow_then_admm_prunes_by_what_annealing_found(
    algorithm: str, model: nn.Module, tmp_path: Path
) -> None:
    judged = Judged(model)
    sa = {"evaluator": judged.evaluator, "stop_temperature": 95, "pruning_algorithm": algorithm}
    admm = {"evaluator": judged.evaluator, "iterations": 1, "training_epochs": 1}
    pruner = two.AutoCompressPruner(
        model, CONVS, 2, admm, sa, tmp_path, evaluator=judged.evaluator, speedup=algorithm == "l1"
    )
    pruner.compress()
    tasks = pruner.task_generator.tasks
    assert all(len(goal.names) == 1 for task in tasks for goal in task.goals)
    assert len({goal.sparsity for goal in tasks[0].goals}) > 1
    fine = pruner.pruner.granularity == "fine-grained"
    assert fine == (algorithm == "level")
    found = [len(list(p.iterdir())) for p in tmp_path.glob("*/SA")]
    assert found == [2]  # a folder of each annealing
    number, _, masks, score, _ = pruner.get_best_result()
    assert (number, score) == (1, None)
    if fine:
        total = sum(by["weight"].numel() for by in masks.values())
        left = sum(float(by["weight"].sum()) for by in masks.values())
        assert left / total == pytest.approx(0.5, abs=0.01)


def plain() -> nn.Module:
    """Return layers that nothing ties to others, so that each loses what its mask says."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(12, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16 * 64, 10),
        )


AMC = [{"op_types": ["Conv2d", "Linear"], "total_sparsity": 0.5, "max_sparsity_per_layer": 0.8}]
LAYERS = [*AMC, {"op_names": ["7"], "exclude": True}]


@pytest.mark.parametrize("target", ["flops", pytest.param("params", marks=pytest.mark.slow)])
def test_amc_when_an_episode_ends_then_the_goal_is_met_and_no_layer_loses_too_much(
    target: str, tmp_path: Path
) -> None:
    model = plain()
    loop = Loop(model, epoch=1)
    loop.evaluator.evaluating_func = lambda model: 0.5
    pruner = two.AMCPruner(
        3, model, LAYERS, loop.evaluator, log_dir=tmp_path, ddpg_params={"warmup": 1}, target=target
    )
    pruner.compress()
    generator = pruner.task_generator
    assert [task.evaluate for task in generator.tasks] == [False, False, True] * 3
    assert loop.steps == 3  # trained at the end of episodes alone
    for task in generator.tasks[2::3]:
        assert 0.45 <= task.state["current_total_sparsity"] <= 0.62, task.state
        assert [goal.names for goal in task.said] == [("0",), ("2",), ("4",)]
        assert all(0 <= goal.sparsity <= 0.81 for goal in task.said)
    number, small, masks, score, config = pruner.get_best_result()
    assert (number, masks, score) == (2, {}, 0.5)
    costs = [count_flops_params(m, EXAMPLE, verbose=False)[2] for m in (model, small)]
    left = [sum(r[target] for r in rows if r["name"] in ("0", "2", "4")) for rows in costs]
    assert 0.38 <= left[1] / left[0] <= 0.55
    assert [entry["op_names"] for entry in config] == [["0"], ["2"], ["4"]]


def test_amc_when_it_is_taught_then_states_are_the_papers(tmp_path: Path) -> None:
    model = plain()
    loop = Loop(model, epoch=1)
    loop.evaluator.evaluating_func = lambda model: 0.75
    pruner = two.AMCPruner(1, model, LAYERS, loop.evaluator, log_dir=tmp_path)
    taught: list[Any] = []
    agent = pruner.task_generator._agent
    learn = agent.learn
    agent.learn = lambda transitions: (taught.extend(transitions), learn(transitions))
    pruner.compress()
    assert [t.reward for t in taught] == [-0.25] * 3
    assert taught[-1].then is None
    assert [t.then for t in taught[:-1]] == [t.state for t in taught[1:]]
    first, second = taught[0].state, taught[1].state
    assert len(first) == 10
    assert first[7] == first[9] == 0.0  # nothing has gone yet
    assert second[7] > 0 or second[9] == 0.0
    assert all(0 <= number <= prod((3, 3)) for t in taught for number in t.state)


def test_amc_when_written_the_older_way_then_it_does_the_same(tmp_path: Path) -> None:
    model = plain()
    seen: list[nn.Module] = []
    pruner = two.AMCPruner(
        2, model, LAYERS, EXAMPLE, lambda model: 0.5, log_dir=tmp_path, finetuner=seen.append
    )
    pruner.compress()
    assert len(seen) == 2
    assert pruner.get_best_result()[3] == 0.5


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda m, e: two.SimulatedAnnealingPruner(m, CONVS, None), "needs scores"),
        (
            lambda m, e: two.SimulatedAnnealingPruner(m, CONVS, e, stop_temperature=200),
            "stop_temperature <= start_temperature",
        ),
        (
            lambda m, e: two.SimulatedAnnealingPruner(m, CONVS, e, pruning_algorithm="lvl"),
            "Did you mean 'level'?",
        ),
        (lambda m, e: two.AutoCompressPruner(m, CONVS, 1, {}, {"evaluator": e}), "'admm'"),
        (
            lambda m, e: two.AutoCompressPruner(
                m, CONVS, 1, {"evaluator": e, "iterations": 1, "training_epochs": 1}, {}
            ),
            "sa_params",
        ),
        (lambda m, e: two.AMCPruner(1, m, CONVS, e, "level"), "must be one of l1, l2, fpgm"),
        (lambda m, e: two.AMCPruner(1, m, CONVS, e, target="macs"), "must be one of flops, params"),
        (
            lambda m, e: two.AMCPruner(1, m, CONVS, e, ddpg_params={"hiden1": 3}),
            "unknown key 'hiden1'. Did you mean 'hidden1'?",
        ),
        (lambda m, e: two.AMCPruner(0, m, CONVS, e), "total_episode must be"),
    ],
)
def test_searches_when_they_cannot_work_then_say_why(
    make: Any, words: str, model: nn.Module, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        make(model, Judged(model).evaluator)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        *(
            (name, value, "must be a number above 0")
            for name in ("start_temperature", "stop_temperature", "score_scale")
            for value in (0, -1, "hot", float("nan"), float("inf"), True)
        ),
        *(
            (name, value, "must be a number in (0, 1]")
            for name in ("cool_down_rate", "perturbation_magnitude")
            for value in (0, 1.5, "x", None)
        ),
    ],
)
def test_annealing_when_a_setting_is_out_of_range_then_names_it(
    name: str, value: Any, words: str, model: nn.Module, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        annealed(model, tmp_path, [], **{name: value})
    assert f"{name} {words}, got {value!r}" in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in ("hidden1", "bsize", "rmsize") for value in (0, 8.5, "a")),
        *((name, value) for name in ("lr_a", "lr_c", "init_delta") for value in (0, -1, "a")),
        *(("warmup", value) for value in (-3, "a", 0.5)),
        *(("tau", 5), ("discount", -0.1), ("delta_decay", "x"), ("delta_decay", None)),
    ],
)
def test_amc_when_a_setting_of_the_agent_is_out_of_range_then_names_it(
    name: str, value: Any, tmp_path: Path
) -> None:
    model = plain()
    settings = {"log_dir": tmp_path, "ddpg_params": {name: value}}
    with pytest.raises(ConfigError) as caught:
        two.AMCPruner(1, model, LAYERS, Loop(model).evaluator, **settings)
    assert f"ddpg_params: {name} must be a" in str(caught.value)
    assert f", got {value!r}" in str(caught.value)


@pytest.mark.slow
def test_amc_when_scores_are_no_shares_then_warns_and_unused_settings_do_not(
    tmp_path: Path,
) -> None:
    model = plain()
    loop = Loop(model, epoch=1)
    loop.evaluator.evaluating_func = lambda model: 75.0
    settings = {"window_length": 1, "epsilon": 50000, "max_episode_length": 1e9}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pruner = two.AMCPruner(
            1, model, LAYERS, loop.evaluator, log_dir=tmp_path, ddpg_params=settings
        )
    with pytest.warns(UserWarning, match="scores in \\[0, 1\\]; this was 75"):
        pruner.compress()
