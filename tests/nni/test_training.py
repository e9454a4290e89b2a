"""NNI's pruners that train: when masks come, what scores are, what is left after a fault."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur import masking
from secateur.errors import ConfigError
from secateur.nni import TorchEvaluator, trace
from secateur.nni.pruning import (
    AGPPruner,
    L1NormPruner,
    LevelPruner,
    LinearPruner,
    MovementPruner,
    Pruner,
    SlimPruner,
    TaylorPruner,
)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(6, 8)
        self.norm = nn.BatchNorm1d(8)
        self.fc2 = nn.Linear(8, 8)
        self.fc3 = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(self.fc2(self.norm(self.fc1(x)).relu()).relu())


class Bench:
    """A small network and a loop that counts, fails on demand, and keeps what it saw."""

    def __init__(self, lr: float = 0.05, momentum: float = 0.0):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.model = Net()
        self.generator = torch.Generator().manual_seed(1)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=lr, momentum=momentum)
        self.evaluator = TorchEvaluator(
            self.training_func, self.optimizer, self.training_step, dummy_input=torch.randn(4, 6)
        )
        self.fail_at: int | None = None
        self.steps = 0
        self.sparsities: list[float] = []

    def training_step(self, batch: tuple[Tensor, Tensor], model: nn.Module) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    def batch(self) -> tuple[Tensor, Tensor]:
        x = torch.randn(16, 6, generator=self.generator)
        return x, x[:, :3].argmax(1)

    def training_func(
        self,
        model: nn.Module,
        optimizer: Any,
        training_step: Any,
        lr_scheduler: Any = None,
        max_steps: int | None = None,
        max_epochs: int | None = None,
    ) -> None:
        model.train()
        for _ in range(max_steps if max_steps is not None else 10 * (max_epochs or 1)):
            if self.steps == self.fail_at:
                raise LookupError("the data is gone")
            optimizer.zero_grad()
            training_step(self.batch(), model).backward()
            optimizer.step()
            self.steps += 1
            self.sparsities.append(float((self.model.fc2.weight == 0).float().mean()))


@pytest.fixture
def bench() -> Bench:
    return Bench()


FC2 = [{"op_names": ["fc2"], "sparse_ratio": 0.5}]


def kept(masks: dict[str, Any], name: str, target: str = "weight") -> int:
    return int(masks[name][target].count_nonzero())


# schedules


@pytest.mark.parametrize(
    ("kind", "shares"),
    [(LinearPruner, [0.25, 0.5, 0.75, 1.0]), (AGPPruner, [0.578125, 0.875, 0.984375, 1.0])],
)
def test_compress_when_scheduled_then_each_interval_masks_what_the_schedule_says(
    bench: Bench, kind: Any, shares: list[float]
) -> None:
    pruner = kind(LevelPruner(bench.model, FC2), 3, 4, bench.evaluator)
    _, masks = pruner.compress(14, None)
    steps = [int(64 * 0.5 * share) / 64 for share in shares]
    # masks change after a step and are seen by the next; the loop looks before that
    expected = [0.0] * 2 + [s for s in steps for _ in range(3)]
    assert bench.sparsities == expected[: len(bench.sparsities)]
    assert kept(masks, "fc2") == 32


@pytest.mark.parametrize("kind", [LinearPruner, AGPPruner])
def test_compress_when_a_threshold_is_scheduled_then_it_ends_at_the_threshold(
    bench: Bench, kind: Any
) -> None:
    config = [{"op_names": ["fc2"], "sparse_threshold": 0.2}]
    pruner = kind(LevelPruner(bench.model, config, bench.evaluator), 1, 3)
    _, masks = pruner.compress(3, None)
    weight = masking.dense(bench.model.fc2, "weight")
    assert torch.equal(masks["fc2"]["weight"], (weight.abs() >= 0.2).float())
    assert bench.sparsities == sorted(bench.sparsities)


@pytest.mark.parametrize("kind", [LinearPruner, AGPPruner])
def test_compress_when_bounds_are_scheduled_then_they_hold_at_the_end(
    bench: Bench, kind: Any
) -> None:
    config = [{"op_names": ["fc2"], "sparse_threshold": 9.0, "max_sparse_ratio": 0.25}]
    pruner = kind(LevelPruner(bench.model, config, bench.evaluator), 1, 3)
    assert kept(pruner.compress(3, None)[1], "fc2") == 48


def test_compress_when_scheduled_then_weights_below_the_mask_may_return(bench: Bench) -> None:
    pruner = LinearPruner(LevelPruner(bench.model, FC2, bench.evaluator), 1, 2)
    _, masks = pruner.compress(2, None)
    weight = masking.dense(bench.model.fc2, "weight")
    ranked = weight.abs().flatten().argsort()
    assert set((masks["fc2"]["weight"].flatten() == 0).nonzero().flatten().tolist()) == set(
        ranked[:32].tolist()
    )
    assert bool(weight[masks["fc2"]["weight"] == 0].any())


def test_compress_when_no_limit_is_given_then_trains_as_long_as_the_masks_need(
    bench: Bench,
) -> None:
    LinearPruner(LevelPruner(bench.model, FC2, bench.evaluator), 3, 4).compress()
    assert bench.steps == 12


def test_compress_when_steps_are_too_few_then_says_how_many_it_takes(bench: Bench) -> None:
    pruner = AGPPruner(LevelPruner(bench.model, FC2, bench.evaluator), 3, 4)
    with pytest.raises(ConfigError, match="after 12 steps"):
        pruner.compress(11, None)
    assert not masking.is_masked(bench.model)
    assert bench.steps == 0


def test_compress_when_epochs_are_too_few_then_warns_and_keeps_what_there_is(
    bench: Bench,
) -> None:
    pruner = LinearPruner(LevelPruner(bench.model, FC2, bench.evaluator), 4, 4)
    with pytest.warns(UserWarning, match="ended after 10 optimizer steps, and LinearPruner .* 16"):
        _, masks = pruner.compress(None, 1)
    assert kept(masks, "fc2") == 48


@pytest.mark.parametrize(("interval", "times"), [(0, 1), (1, 0), (1.5, 2), (True, 2)])
def test_init_when_a_number_of_steps_is_wrong_then_says_which(
    bench: Bench, interval: Any, times: Any
) -> None:
    with pytest.raises(ConfigError, match="must be a whole number of at least 1"):
        LinearPruner(LevelPruner(bench.model, FC2, bench.evaluator), interval, times)


@pytest.mark.parametrize("kind", ["taylor", "slim", "movement", "linear"])
def test_init_when_nothing_trains_the_model_then_asks_for_an_evaluator(
    bench: Bench, kind: str
) -> None:
    bench.evaluator = None  # type: ignore[assignment]
    with pytest.raises(ConfigError, match="give it an evaluator"):
        TRAINED[kind](bench)


# Taylor


def test_taylor_when_weights_stand_still_then_scores_are_the_mean_of_squared_products() -> None:
    bench = Bench(lr=0.0)
    twin = copy.deepcopy(bench.model)
    _, masks = TaylorPruner(bench.model, FC2, bench.evaluator, 4).compress()
    again = Bench(lr=0.0)
    twin.train()
    total = torch.zeros(8)
    for _ in range(4):
        twin.zero_grad()
        again.training_step(again.batch(), twin).backward()
        weight, gradient = twin.fc2.weight, twin.fc2.weight.grad
        assert gradient is not None
        total += (weight * gradient).square().sum(1).detach() / 4
    gone = total.argsort()[:4]
    assert set((masks["fc2"]["weight"].amax(1) == 0).nonzero().flatten().tolist()) == set(
        gone.tolist()
    )


def test_taylor_when_trained_longer_then_masks_come_after_training_steps_and_stay(
    bench: Bench,
) -> None:
    TaylorPruner(bench.model, FC2, bench.evaluator, 4).compress(8, None)
    assert bench.sparsities == [0.0] * 3 + [0.5] * 5


def test_taylor_when_an_output_is_the_target_then_the_first_order_of_its_channels_counts() -> None:
    bench = Bench(lr=0.0)
    twin = copy.deepcopy(bench.model)
    config = [{"op_names": ["fc2"], "target_names": ["_output_"], "sparse_ratio": 0.5}]
    pruner = TaylorPruner(bench.model, config, bench.evaluator, 3)
    _, masks = pruner.compress()
    again = Bench(lr=0.0)
    twin.train()
    total = torch.zeros(8)
    for _ in range(3):
        outputs: list[Tensor] = []

        def keep(module: nn.Module, args: Any, output: Tensor, outputs: Any = outputs) -> None:
            output.retain_grad()
            outputs.append(output)

        hook = twin.fc2.register_forward_hook(keep)
        again.training_step(again.batch(), twin).backward()
        hook.remove()
        assert outputs[0].grad is not None
        total += (outputs[0] * outputs[0].grad).sum(0).square().detach()
    gone = set(total.argsort()[:4].tolist())
    mask = masks["fc2"]["_output_0"]
    assert set((mask.flatten() == 0).nonzero().flatten().tolist()) == gone
    assert not bench.model.fc2(torch.randn(2, 8))[:, list(gone)].any()


# Slim


def test_slim_when_trained_then_the_scales_shrink_with_its_penalty() -> None:
    config = [{"op_names": ["norm"], "sparse_ratio": 0.5}]
    sizes = []
    for scale in (0.0, 0.5):
        bench = Bench()
        SlimPruner(bench.model, config, bench.evaluator, 10, regular_scale=scale).compress()
        sizes.append(float(masking.dense(bench.model.norm, "weight").abs().sum()))
    assert sizes[1] < sizes[0] - 1


def test_slim_when_one_step_is_made_then_the_gradient_gains_the_sign_of_each_scale() -> None:
    config = [{"op_names": ["norm"], "sparse_ratio": 0.5}]
    weights = []
    for scale in (0.0, 2.0):
        bench = Bench(lr=0.1)
        with torch.no_grad():
            bench.model.norm.weight[::2] *= -1
        before = bench.model.norm.weight.detach().clone()
        SlimPruner(bench.model, config, bench.evaluator, 1, regular_scale=scale).compress()
        weights.append(masking.dense(bench.model.norm, "weight") - before)
    torch.testing.assert_close(weights[1] - weights[0], -0.1 * 2.0 * before.sign())


def test_slim_when_scales_are_ranked_globally_then_the_smallest_of_all_go(bench: Bench) -> None:
    with torch.no_grad():
        bench.model.norm.weight.copy_(torch.linspace(0.1, 0.8, 8))
    config = [{"op_names": ["norm"], "sparse_ratio": 0.5, "global_group_id": 1}]
    _, masks = SlimPruner(bench.model, config, bench.evaluator, 1, regular_scale=0.0).compress()
    assert masks["norm"]["weight"].tolist() == [0.0] * 4 + [1.0] * 4
    assert masks["norm"]["bias"].tolist() == [0.0] * 4 + [1.0] * 4


def test_slim_when_no_norm_is_named_then_the_norms_of_the_blocks_shrink() -> None:
    sizes = []
    for scale in (0.0, 0.5):
        bench = Bench()
        _, masks = SlimPruner(bench.model, FC2, bench.evaluator, 10, regular_scale=scale).compress()
        assert int((masks["fc2"]["weight"].amax(1) == 0).sum()) == 4
        sizes.append(float(masking.dense(bench.model.fc2, "weight").norm(dim=1).sum()))
    assert sizes[1] < sizes[0] - 1


# Movement


def test_movement_when_hard_then_the_ratio_grows_from_warm_up_to_cool_down(bench: Bench) -> None:
    config = [{"op_names": ["fc2"], "sparse_ratio": 0.5, "granularity": [1, 1]}]
    pruner = MovementPruner(bench.model, config, bench.evaluator, 2, 6)
    _, masks = pruner.compress(10, None)
    counts = [int(64 * 0.5 * (1 - (1 - k / 4) ** 3)) / 64 for k in (1, 2, 3, 4)]
    assert bench.sparsities[:2] == [0.0, 0.0]
    assert bench.sparsities[2:6] == counts
    assert bench.sparsities[6:] == [0.5] * 4
    assert kept(masks, "fc2") == 32


def test_movement_when_blocks_are_given_then_whole_blocks_go(bench: Bench) -> None:
    config = [{"op_names": ["fc2"], "sparse_ratio": 0.5, "granularity": [4, 4]}]
    _, masks = MovementPruner(bench.model, config, bench.evaluator, 1, 3).compress(4, None)
    blocks = masks["fc2"]["weight"].reshape(2, 4, 2, 4).mean((1, 3))
    assert sorted(blocks.flatten().tolist()) == [0.0, 0.0, 1.0, 1.0]


def test_movement_when_soft_then_a_stronger_penalty_removes_more() -> None:
    config = [{"op_names": ["fc2"], "sparse_threshold": 0.5, "granularity": [1, 1]}]
    gone = []
    for scale in (0.0, 1.0, 100.0):
        bench = Bench()
        pruner = MovementPruner(bench.model, config, bench.evaluator, 1, 5, regular_scale=scale)
        gone.append(64 - kept(pruner.compress(12, None)[1], "fc2"))
    assert gone == sorted(gone)
    assert gone[0] < gone[2]


def test_movement_when_trained_then_its_scores_are_nowhere_in_the_model(bench: Bench) -> None:
    names = list(bench.model.state_dict())
    parameters = list(bench.model.parameters())
    MovementPruner(bench.model, FC2, bench.evaluator, 1, 3).compress(4, None)
    assert list(bench.model.state_dict()) == names
    assert all(a is b for a, b in zip(bench.model.parameters(), parameters, strict=True))
    assert sum(len(g["params"]) for g in bench.optimizer.param_groups) == len(parameters)


# faults


TRAINED = {
    "taylor": lambda b: TaylorPruner(b.model, FC2, b.evaluator, 4),
    "slim": lambda b: SlimPruner(b.model, FC2, b.evaluator, 4),
    "movement": lambda b: MovementPruner(b.model, FC2, b.evaluator, 1, 4),
    "linear": lambda b: LinearPruner(L1NormPruner(b.model, FC2), 1, 4, b.evaluator),
}


@pytest.mark.parametrize("kind", TRAINED)
@pytest.mark.parametrize("fail_at", [0, 2, 6])
def test_compress_when_the_training_raises_then_the_model_is_usable_and_unwrapped(
    kind: str, fail_at: int
) -> None:
    bench = Bench()
    bench.fail_at = fail_at
    classes = [type(module) for module in bench.model.modules()]
    pruner = TRAINED[kind](bench)
    with pytest.raises(LookupError, match="the data is gone"):
        pruner.compress(8, None)
    assert not masking.is_masked(bench.model)
    assert [type(module) for module in bench.model.modules()] == classes
    assert not (bench.model.fc2.weight == 0).any()
    assert not bench.optimizer._optimizer_step_post_hooks
    before = bench.model.fc2.weight.detach().clone()
    bench.fail_at = None
    bench.training_func(bench.model, bench.optimizer, bench.training_step, max_steps=1)
    assert not torch.equal(bench.model.fc2.weight, before)
    _, masks = pruner.compress(8, None)
    assert int((masks["fc2"]["weight"].amax(1) == 0).sum()) == 4


def test_compress_when_it_trained_then_the_optimizer_takes_no_more_notice(bench: Bench) -> None:
    pruner = TaylorPruner(bench.model, FC2, bench.evaluator, 2)
    _, masks = pruner.compress()
    pruner.unwrap_model()
    bench.training_func(bench.model, bench.optimizer, bench.training_step, max_steps=2)
    assert torch.equal(pruner.get_masks()["fc2"]["weight"], masks["fc2"]["weight"])
    assert not masking.is_masked(bench.model)


# several pruners on one model


def test_from_compressor_when_both_need_training_then_they_train_together(bench: Bench) -> None:
    first = MovementPruner(
        bench.model, [{"op_names": ["fc1"], "sparse_ratio": 0.5}], bench.evaluator, 1, 3
    )
    second = TaylorPruner.from_compressor(first, FC2, training_steps=3)
    _, masks = second.compress(5, None)
    assert bench.steps == 5
    for name in ("fc1", "fc2"):
        assert int((masks[name]["weight"].amax(1) == 0).sum()) == 4
        weight = getattr(bench.model, name).weight
        assert torch.equal(weight == 0, masks[name]["weight"] == 0)


def test_from_compressor_when_the_first_has_masks_then_they_hold_while_the_second_trains(
    bench: Bench,
) -> None:
    first = L1NormPruner(bench.model, [{"op_names": ["fc1"], "sparse_ratio": 0.25}])
    _, before = first.compress()
    second = AGPPruner(TaylorPruner.from_compressor(first, FC2, 1, bench.evaluator), 2, 2)
    _, masks = second.compress(4, None)
    assert torch.equal(masks["fc1"]["weight"], before["fc1"]["weight"])
    assert torch.equal(bench.model.fc1.weight == 0, before["fc1"]["weight"] == 0)
    assert int((masks["fc2"]["weight"].amax(1) == 0).sum()) == 4


@pytest.mark.parametrize("overlap", ["weights that learn masks", "weights alone"])
def test_from_compressor_when_both_mask_one_weight_then_both_hold(
    bench: Bench, overlap: str
) -> None:
    first = LevelPruner(bench.model, FC2, bench.evaluator)
    _, before = first.compress()
    if overlap == "weights alone":
        second: Pruner = TaylorPruner.from_compressor(first, FC2, 2)
    else:
        second = MovementPruner.from_compressor(first, FC2, 1, 3)
    _, masks = second.compress(4, None)
    mask = masks["fc2"]["weight"]
    assert not bool(mask[before["fc2"]["weight"] == 0].any())
    assert int((mask.amax(1) == 0).sum()) == 4
    assert torch.equal(bench.model.fc2.weight == 0, mask == 0)


# what NNI's scripts wrap


def test_trace_when_it_wraps_classes_and_instances_then_they_are_as_they_were() -> None:
    model = nn.Linear(2, 2)
    optimizer = trace(torch.optim.SGD)(model.parameters(), lr=0.1)
    assert type(optimizer) is torch.optim.SGD
    assert trace(optimizer) is optimizer
