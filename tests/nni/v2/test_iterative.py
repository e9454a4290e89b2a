"""NNI 2.x's pruners in rounds: what each asks, what it works on, what is returned and kept."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

import secateur as sc
from secateur.errors import ConfigError
from secateur.masks import masking
from secateur.nni import pruning as three
from secateur.nni.pytorch import pruning as two
from secateur.nni.pytorch.pruning.tools import AGPTaskGenerator, LinearTaskGenerator
from tests.nni.v2.rules import CONVS, EXAMPLE, TRAINERS, Loop, kept, trained_by
from tests.trained import net

LAYER = "stages.1.conv1"


@pytest.fixture
def model() -> nn.Module:
    return net()


def rounds(pruner: Any) -> list[float]:
    """Return what each task asked of a layer."""
    tasks = pruner.task_generator.tasks
    return [
        entry["total_sparsity"]
        for task in tasks
        for entry in task.config_list()
        if LAYER in entry["op_names"]
    ]


def gone(pruner: Any) -> float:
    """Return the share of the weights that were to go and are gone in the end."""
    (share,) = pruner.task_generator.tasks[-1].state["current2origin_sparsity"]
    return share


def pruned(kind: str, model: nn.Module, folder: Path, **settings: Any) -> Any:
    given = {"pruning_algorithm": "l1", "total_iteration": 2, "log_dir": folder, **settings}
    pruner = getattr(two, kind)(model, CONVS, **given)
    assert pruner.get_best_result() is None
    assert pruner.compress() is None
    return pruner


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("LinearPruner", [0.0, 0.25, 0.5]),
        ("AGPPruner", [0.0, 0.4375, 0.5]),
        ("LotteryTicketPruner", [1 - 0.5**0.5, 0.5]),
    ],
)
def test_compress_when_nothing_is_cut_then_rounds_ask_what_the_schedule_says(
    kind: str, expected: list[float], model: nn.Module, tmp_path: Path
) -> None:
    pruner = pruned(kind, model, tmp_path)
    assert rounds(pruner) == pytest.approx(expected)
    number, found, masks, score, config = pruner.get_best_result()
    assert (number, score) == (len(expected) - 1, None)
    assert set(kept(masks).values()) == {0.5}
    assert not masking.is_masked(found)
    for layer, by_target in masks.items():
        assert not found.get_submodule(layer).weight[by_target["weight"] == 0].any()
    assert {name for entry in config for name in entry["op_names"]} == set(masks)


@pytest.mark.parametrize(
    "kind", [pytest.param("LinearPruner", marks=pytest.mark.slow), "LotteryTicketPruner"]
)
def test_compress_when_each_round_is_cut_then_the_next_asks_for_a_share_of_what_is_left(
    kind: str, model: nn.Module, tmp_path: Path
) -> None:
    loop = Loop(model)
    rules = [{**rule, **({"sparsity": 0.5} if "exclude" not in rule else {})} for rule in CONVS]
    for rule in rules:
        rule.pop("total_sparsity", None)  # each layer for itself
    pruner = getattr(two, kind)(
        model, rules, "l1", 2, str(tmp_path), evaluator=loop.evaluator, speedup=True
    )
    pruner.compress()
    _, small, masks, _, _ = pruner.get_best_result()
    assert masks == {}
    weight = small.get_submodule(LAYER).weight
    assert weight.numel() <= model.get_submodule(LAYER).weight.numel() / 2
    asked, gone = rounds(pruner), 0.0
    expected = [0.0, 0.25, 0.5] if kind == "LinearPruner" else [1 - 0.5**0.5, 0.5]
    states = [task.state["current2origin_sparsity"] for task in pruner.task_generator.tasks]
    place = [goal.names for goal in pruner.task_generator.goals].index((LAYER,))
    for wanted, share, state in zip(expected, asked, states, strict=True):
        assert share == pytest.approx(max(0.0, (wanted - gone) / (1 - gone)))
        gone = state[place]
    assert small(EXAMPLE).shape == (2, 10)


@pytest.mark.parametrize("speedup", [False, True])
@pytest.mark.parametrize(
    "algorithm", ["level", "l1", pytest.param("taylorfo", marks=pytest.mark.slow)]
)
def test_lottery_when_it_rewinds_then_the_ticket_is_the_first_weights_of_what_is_left(
    algorithm: str, speedup: bool, model: nn.Module, tmp_path: Path
) -> None:
    loop = Loop(model)
    learns = algorithm == "taylorfo"
    params = {"training_steps": 2, "evaluator": loop.evaluator} if learns else {}
    pruner = pruned(
        *("LotteryTicketPruner", model, tmp_path),
        pruning_algorithm=algorithm,
        evaluator=loop.evaluator,
        speedup=speedup,
        pruning_params=params,
    )
    _, ticket, masks, _, _ = pruner.get_best_result()
    assert loop.steps >= 2 * loop.epoch
    first = model.stages[1].conv1.weight.detach()
    if algorithm == "level" or not speedup:
        layers = masks or {LAYER: {"weight": (ticket.get_submodule(LAYER).weight != 0).float()}}
        for layer, by_target in layers.items():
            mask = by_target["weight"]
            start = model.get_submodule(layer).weight
            assert torch.equal(ticket.get_submodule(layer).weight, start * mask), layer
    else:
        own = ticket.get_submodule(LAYER).weight.detach().flatten(1)
        rows = [bool(torch.isin(row, first).all()) for row in own]
        assert all(rows)
        assert len(rows) < len(first)


def test_lottery_when_a_round_trains_then_the_masks_of_before_are_on_and_the_optimizer_is_new(
    model: nn.Module, tmp_path: Path
) -> None:
    loop = Loop(model)
    zeros: list[float] = []
    plain = loop.train

    def train(trained: nn.Module, optimizer: Any, *rest: Any) -> None:
        zeros.append(float((trained.get_submodule(LAYER).weight == 0).float().mean()))
        assert not optimizer.state
        plain(trained, optimizer, *rest)

    loop.evaluator.training_func = train
    pruned("LotteryTicketPruner", model, tmp_path, evaluator=loop.evaluator, total_iteration=3)
    kept_by_then = [0.0, 1 - 0.5 ** (1 / 3), 1 - 0.5 ** (2 / 3)]
    assert zeros == pytest.approx(kept_by_then, abs=1 / 16)
    assert loop.used == [3e-3] * len(loop.used)  # the schedule begins anew each time
    assert not loop.optimizer.state


@pytest.mark.parametrize("kind", ["LinearPruner", "AGPPruner", "LotteryTicketPruner"])
def test_compress_when_single_weights_are_to_be_cut_then_their_zeros_outlive_the_finetuning(
    kind: str, model: nn.Module, tmp_path: Path
) -> None:
    loop = Loop(model)
    options = {"evaluator": loop.evaluator, "speedup": True}
    pruner = pruned(kind, model, tmp_path, pruning_algorithm="level", **options)
    _, small, masks, _, _ = pruner.get_best_result()
    assert masks == {}
    weight = small.get_submodule(LAYER).weight
    gone = weight.numel() - int(weight.count_nonzero())
    gone += model.get_submodule(LAYER).weight.numel() - weight.numel()
    assert gone / model.get_submodule(LAYER).weight.numel() == pytest.approx(0.5, abs=0.05)


def test_compress_then_the_model_that_was_given_is_as_before(
    model: nn.Module, tmp_path: Path
) -> None:
    before = copy.deepcopy(model.state_dict())
    pruned("AGPPruner", model, tmp_path, evaluator=Loop(model).evaluator, speedup=True)
    assert not masking.is_masked(model)
    assert all(torch.equal(before[n], v) for n, v in model.state_dict().items())


def test_get_best_result_when_it_is_changed_then_the_next_is_not(
    model: nn.Module, tmp_path: Path
) -> None:
    pruner = pruned("LinearPruner", model, tmp_path)
    _, found, masks, _, config = pruner.get_best_result()
    with torch.no_grad():
        found.head.weight.zero_()
        masks[LAYER]["weight"].zero_()
    config.clear()
    _, again, others, _, more = pruner.get_best_result()
    assert again.head.weight.any()
    assert others[LAYER]["weight"].any()
    assert more


@pytest.mark.parametrize("speedup", [False, True])
def test_files_when_read_then_hold_the_best_result(
    speedup: bool, model: nn.Module, tmp_path: Path
) -> None:
    pruner = pruned(
        *("AGPPruner", model, tmp_path),
        evaluator=Loop(model).evaluator,
        speedup=speedup,
        keep_intermediate_result=True,
    )
    (folder,) = tmp_path.iterdir()
    _, found, masks, _, config = pruner.get_best_result()
    fresh = net(seed=1)
    if speedup:
        fresh = sc.load_pruned(folder / "best_result", fresh)
    else:
        fresh.load_state_dict(load_file(folder / "best_result" / "model.safetensors"))
    assert torch.equal(fresh.eval()(EXAMPLE), found.eval()(EXAMPLE))
    flat = load_file(folder / "best_result" / "masks.safetensors")
    assert set(flat) == {f"{n}.{t}" for n, by in masks.items() for t in by}
    assert json.loads((folder / "best_result" / "config_list.json").read_text()) == config
    assert sorted(p.name for p in (folder / "intermediate_result").iterdir()) == ["0", "1", "2"]
    records = json.loads((folder / ".tasks").read_text())
    assert [each["status"] for each in records] == ["Finished"] * 3
    assert (folder / "origin" / "model.safetensors").is_file()
    assert not list(folder.rglob("*.pth"))


@pytest.mark.slow
def test_pruner_when_written_the_older_way_then_it_does_the_same(
    model: nn.Module, tmp_path: Path
) -> None:
    seen: list[nn.Module] = []

    def finetuner(trained: nn.Module) -> None:
        seen.append(trained)

    pruner = two.AGPPruner(
        model, CONVS, "l1", 2, str(tmp_path), finetuner=finetuner, speedup=True, dummy_input=EXAMPLE
    )
    pruner.compress()
    assert len(seen) == 3
    _, small, _, score, _ = pruner.get_best_result()
    assert score is None
    assert gone(pruner) == pytest.approx(0.5, abs=0.03)
    assert small.get_submodule(LAYER).out_channels < 12


@pytest.mark.slow
def test_scheduler_when_it_has_a_pruner_and_a_generator_then_works_like_the_pruner_of_both(
    model: nn.Module, tmp_path: Path
) -> None:
    generator = AGPTaskGenerator(2, model, CONVS, log_dir=tmp_path)
    scheduler = two.PruningScheduler(two.L1NormPruner(None, None), generator)
    scheduler.compress()
    _, _, masks, _, _ = scheduler.get_best_result()
    _, _, expected, _, _ = pruned("AGPPruner", model, tmp_path).get_best_result()
    assert all(torch.equal(masks[n]["weight"], expected[n]["weight"]) for n in masks)


def test_scheduler_when_reset_then_begins_anew(model: nn.Module, tmp_path: Path) -> None:
    scheduler = two.PruningScheduler(
        two.L1NormPruner(None, None), LinearTaskGenerator(1, log_dir=tmp_path)
    )
    with pytest.raises(ConfigError, match="no model yet"):
        scheduler.compress()
    for goal in (0.25, 0.5):
        scheduler.reset(model, [{"op_names": [LAYER], "sparsity": goal}])
        scheduler.compress()
        assert kept(scheduler.get_best_result()[2]) == {LAYER: 1 - goal}


def test_scheduler_when_there_are_masks_already_then_nothing_of_them_comes_back(
    model: nn.Module, tmp_path: Path
) -> None:
    mask = torch.ones(16, 8, 3, 3)
    mask[::2] = 0
    scheduler = two.PruningScheduler(
        two.L2NormPruner(None, None), LinearTaskGenerator(1, log_dir=tmp_path)
    )
    config = [{"op_names": [LAYER], "sparsity": 0.75}]
    scheduler.reset(model, config, {LAYER: {"weight": mask, "bias": None}})
    scheduler.compress()
    found = scheduler.get_best_result()[2][LAYER]["weight"]
    assert int(found.flatten(1).amax(1).sum()) == 4
    assert not found[::2].any()


@pytest.mark.parametrize("kind", TRAINERS)
@pytest.mark.parametrize("algorithm", ["level", "l1"])
@pytest.mark.filterwarnings("ignore:.*max_steps:UserWarning")
def test_lottery_when_a_trainer_holds_the_model_then_the_ratio_is_reached(
    kind: str, algorithm: str, tmp_path: Path
) -> None:
    model, evaluator = trained_by(kind, tmp_path / "trainer")
    short(kind, evaluator)
    pruner = three.LotteryTicketPruner(
        model, CONVS, algorithm, 2, tmp_path, evaluator=evaluator, speedup=algorithm == "l1"
    )
    pruner.compress()
    _, ticket, masks, _, _ = pruner.get_best_result()
    if algorithm == "level":
        assert set(kept(masks).values()) == {0.5}
    else:
        assert gone(pruner) == pytest.approx(0.5, abs=0.03)


def short(kind: str, evaluator: Any) -> None:
    """Let a training without limits be of a few steps."""
    if kind == "loop":
        function = evaluator.training_func

        def training_func(*args: Any) -> None:
            function(*args[:4], args[4] or 4, args[5])

        evaluator.training_func = training_func
    elif kind == "lightning":
        evaluator.trainer.fit_loop.epoch_loop.max_steps = 4
    else:
        evaluator.trainer.args.max_steps = 4


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"pruning_algorithm": "l3"}, "must be one of level, l1, l2"),
        ({"pruning_algorithm": "movement"}, "must be one of level, l1, l2"),
        ({"total_iteration": 0}, "total_iteration must be a whole number"),
        ({"speedup": True}, "speedup=True needs example inputs"),
        ({"pruning_algorithm": "apoz"}, "pruning_params of 'apoz'"),
        ({"pruning_params": {"modes": "normal"}}, "pruning_params of 'l1'"),
        ({"epochs": 3}, "AGPPruner has no argument 'epochs'"),
    ],
)
def test_pruner_when_it_cannot_work_then_says_why(
    settings: dict[str, Any], words: str, model: nn.Module, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        pruned("AGPPruner", model, tmp_path, **settings)
    assert words in str(caught.value)


def test_wrap_and_export_when_the_pruner_is_iterative_then_only_warn(
    model: nn.Module, tmp_path: Path, caplog: Any
) -> None:
    pruner = two.LinearPruner(model, CONVS, "l1", 1, tmp_path)
    pruner._wrap_model()
    pruner._unwrap_model()
    pruner.export_model("model.pth")
    assert len(caplog.messages) == 3
    assert not masking.is_masked(model)


@pytest.mark.slow
def test_finetune_when_the_model_is_small_then_the_optimizer_has_its_parameters(
    model: nn.Module, tmp_path: Path
) -> None:
    loop = Loop(model)
    plain = loop.train

    def train(trained: nn.Module, optimizer: Any, *rest: Any) -> None:
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        assert held == {id(p) for p in trained.parameters()}
        assert rest[1].optimizer is optimizer
        plain(trained, optimizer, *rest)

    loop.evaluator.training_func = train
    pruned("LinearPruner", model, tmp_path, evaluator=loop.evaluator, speedup=True)
    assert loop.steps == 3 * loop.epoch
    assert F.cross_entropy is loop.evaluator.criterion
