"""Taylor, Slim, Movement: what the scores are, and when the masks come of them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from secateur.masks import masking
from secateur.nni.pruning import MovementPruner, SlimPruner, TaylorPruner
from tests.nni.pruning.bench import FC2, Bench, kept

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
