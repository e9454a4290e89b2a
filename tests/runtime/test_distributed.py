"""Two processes with gloo: every rank ends with the same masks, or is told why not.

All checks run in one pair of processes; each test here looks at what one of them found.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from secateur import Config, Pruner
from tests import ranks

CHECKS = [
    *(f"{kind}_{name}" for kind in ("ddp", "fsdp") for name in ranks.SETTINGS),
    "fsdp_state",
    "local_decision",
    "averaged_statistics",
    "divergence",
    "ddp_copies",
    "products",
    "ddp_repair",
    "joined_epochs",
    "latency_goal",
    "latency_sharded",
    "cut_sharded",
    "latency_failing",
]


@pytest.fixture(scope="module")
def found(processes, tmp_path_factory) -> list[dict[str, Any]]:
    """What each rank found, by check."""
    return ranks.both_ranks(processes, str(tmp_path_factory.mktemp("ranks")), CHECKS)


def both(found: list[dict[str, Any]], check: str) -> list[dict[str, Tensor]]:
    """What both ranks found in a check that neither failed."""
    for rank, results in enumerate(found):
        for name, result in results.items():
            assert isinstance(result, dict), f"rank {rank}, {name}:\n{result}"
    return [results[check] for results in found]


def alone(settings: dict[str, Any]) -> dict[str, Tensor]:
    """The masks of one process that has the data of both ranks."""
    model = ranks.net()
    pruner = Pruner(model, Config(sparsity=0.5, steps=3, **settings), structure=ranks.STRUCTURE)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for step in range(ranks.STEPS):
        optimizer.zero_grad()
        for rank in range(ranks.RANKS):
            x, y = ranks.batch(step, rank)
            (F.cross_entropy(model(x), y) / ranks.RANKS).backward()
        optimizer.step()
        pruner.step()
    return pruner.masks


@pytest.mark.parametrize("name", ranks.SETTINGS)
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_step_when_two_ranks_train_then_both_mask_as_one_process_with_all_data(kind, name, found):
    first, second = both(found, f"{kind}_{name}")
    expected = alone(ranks.SETTINGS[name])
    assert first.keys() == second.keys() == expected.keys()
    for key, mask in expected.items():
        assert torch.equal(first[key], second[key]), key
        assert torch.equal(first[key], mask), key
    assert not first["0.weight"].all()


def test_decide_when_ranks_saw_different_data_then_statistics_are_averaged_first(found):
    local = both(found, "local_decision")
    assert not torch.equal(local[0]["0.weight"], local[1]["0.weight"]), "data that tell nothing"
    first, second = both(found, "averaged_statistics")
    for key, mask in first.items():
        assert torch.equal(mask, second[key]), key


def test_step_when_weights_of_ranks_differ_then_divergence_error_on_each(found):
    assert not any(result["masked"] for result in both(found, "divergence"))


def test_state_dict_when_sharded_and_masked_then_values_are_masked_and_resuming_is_exact(found):
    for result in both(found, "fsdp_state"):
        masked = [name for name in result if f"dense {name}" in result]
        assert masked
        for name in masked:
            dense = result[f"dense {name}"]
            assert torch.equal(result[f"twin {name}"], dense), name
            assert torch.equal(result[name], torch.where(result[name] == 0, 0, dense)), name
        assert int((result["0.weight"] == 0).sum()) == 8 * 6
        assert int((result["dense 0.weight"] == 0).sum()) == 0


def test_put_on_when_ddp_wraps_then_masks_are_not_sent_and_state_is_masked(found):
    for result in both(found, "ddp_copies"):
        assert int((result["state"] != 0).sum()) == 6


def test_backward_when_masked_in_ddp_or_sharded_then_all_is_as_if_multiplied_by_hand(found):
    for result in both(found, "products"):
        for kind, same in result.items():
            assert same.all(), (
                f"{kind}: gradient and weight of each parameter, step by step: {same}"
            )


def test_repair_when_ranks_have_other_batches_then_it_is_that_of_one_process_with_all(found):
    alone = ranks.calibrated(ranks.net(), ranks.inputs())
    for one in both(found, "ddp_repair"):
        assert one.keys() == alone.keys()
        for name, value in one.items():
            torch.testing.assert_close(value, alone[name], rtol=1e-4, atol=1e-5)


def test_step_when_it_comes_after_a_block_of_join_then_both_mask_alike(found):
    first, second = both(found, "joined_epochs")
    assert first.keys() == second.keys()
    for name, mask in first.items():
        assert torch.equal(mask, second[name]), name
    assert not first["0.weight"].all()


def test_prune_when_ranks_measure_other_times_then_those_of_the_first_decide(found):
    first, second = both(found, "latency_goal")
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert first["times"].numel() > 3


def test_pruner_when_a_sharded_model_is_to_be_timed_then_all_ranks_are_told(found):
    assert both(found, "latency_sharded") == [{}, {}]


def test_finish_when_the_model_is_sharded_then_every_rank_says_what_to_do(found):
    assert all(masks for masks in both(found, "cut_sharded"))
    assert both(found, "latency_failing") == [{}, {}]
