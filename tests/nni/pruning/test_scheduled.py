"""Linear and AGP: when masks come, and what they have reached by then."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.errors import ConfigError
from secateur.masks import masking
from secateur.nni.pruning import (
    AGPPruner,
    L1NormPruner,
    LevelPruner,
    LinearPruner,
    MovementPruner,
    SlimPruner,
)
from tests.nni.pruning.bench import FC2, TRAINED, Bench, kept


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


def test_compress_when_an_output_is_scheduled_then_more_of_it_goes_each_time(bench: Bench) -> None:
    config = [{"op_names": ["fc2"], "target_names": ["_output_"], "sparse_ratio": 0.5}]
    pruner = LinearPruner(L1NormPruner(bench.model, config, bench.evaluator), 2, 4)
    zeros: list[int] = []

    def look(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if module.training:  # what fc3 is given: positive, or masked
            zeros.append(int((args[0].abs().amax(0) == 0).sum()))

    with torch.no_grad():
        bench.model.fc2.bias.fill_(5.0)
    bench.model.fc3.register_forward_pre_hook(look)
    _, masks = pruner.compress(9, None)
    assert zeros == [0, 0, 1, 1, 2, 2, 3, 3, 4]
    mask = masks["fc2"]["_output_0"][0]
    assert not bench.model.fc2(torch.randn(3, 8))[:, mask == 0].any()


@pytest.mark.parametrize("kind", ["slim", "movement"])
def test_compress_when_a_method_for_weights_is_given_an_output_then_says_so(
    bench: Bench, kind: str
) -> None:
    config = [{"op_names": ["fc2"], "target_names": ["_output_"], "sparse_ratio": 0.5}]
    make = {
        "slim": lambda: SlimPruner(bench.model, config, bench.evaluator, 2),
        "movement": lambda: MovementPruner(bench.model, config, bench.evaluator, 1, 2),
    }
    with pytest.raises(ConfigError, match="'fc2._output_0': .* is for weights"):
        make[kind]().compress()
    assert not masking.is_masked(bench.model)
