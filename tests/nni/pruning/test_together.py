"""A training that raises, pruners that share a model, and what NNI's scripts wrap."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from secateur.errors import ConfigError
from secateur.masks import masking
from secateur.nni import trace
from secateur.nni.pruning import (
    AGPPruner,
    L1NormPruner,
    LevelPruner,
    MovementPruner,
    Pruner,
    SlimPruner,
    TaylorPruner,
)
from tests.nni.pruning.bench import FC2, TRAINED, Bench


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


def test_generate_masks_when_slim_then_no_penalty_stays_behind(bench: Bench) -> None:
    config = [{"op_names": ["norm"], "sparse_ratio": 0.5}]
    pruner = SlimPruner(bench.model, config, bench.evaluator, 3, regular_scale=100.0)
    pruner.generate_masks()
    before = bench.model.norm.weight.detach().clone()
    (bench.model(torch.randn(4, 6)) * 0).sum().backward()
    bench.optimizer.step()
    assert torch.equal(bench.model.norm.weight, before)


@pytest.mark.parametrize(
    ("kind", "message"), [("taylor", "needs gradients"), ("movement", "call compress")]
)
def test_generate_masks_when_only_training_can_tell_then_says_so(
    bench: Bench, kind: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        TRAINED[kind](bench).generate_masks()
    assert not masking.is_masked(bench.model)


def test_compress_when_it_trained_then_the_optimizer_takes_no_more_notice(bench: Bench) -> None:
    pruner = TaylorPruner(bench.model, FC2, bench.evaluator, 2)
    _, masks = pruner.compress()
    pruner.unwrap_model()
    bench.training_func(bench.model, bench.optimizer, bench.training_step, max_steps=2)
    assert torch.equal(pruner.get_masks()["fc2"]["weight"], masks["fc2"]["weight"])
    assert not masking.is_masked(bench.model)


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


def test_trace_when_it_wraps_classes_and_instances_then_they_are_as_they_were() -> None:
    model = nn.Linear(2, 2)
    optimizer = trace(torch.optim.SGD)(model.parameters(), lr=0.1)
    assert type(optimizer) is torch.optim.SGD
    assert trace(optimizer) is optimizer
