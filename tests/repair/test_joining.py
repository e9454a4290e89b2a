"""Experts that stay make up for those that went."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from tests.mixtures import FORMS, WIDTH, mixture
from tests.repair.kinds import LLAMA, hugging_face, tokens

KNOWN = [form for form in FORMS if form[1] != "scaled_and_weighted"]
"""Ends that multiply each output by one number."""


def few_directions(many: int = 8) -> list[Tensor]:
    """Return batches in which what one expert sees says much of what another would give."""
    generator = torch.Generator().manual_seed(2)
    basis = torch.randn(3, WIDTH, generator=generator)
    return [torch.randn(4, 32, 3, generator=generator) @ basis for _ in range(many)]


def went(model: Any, data: list[Tensor], **settings: Any) -> sc.Pruner:
    """Return a pruner that removes a third of the experts: those that give most are missed."""
    config = sc.Config(criterion="random", what=["experts"], sparsity=0.34, **settings)
    pruner = sc.Pruner(model, config, data[0], trained=False)
    pruner.decide()
    return pruner


@pytest.mark.parametrize(
    ("router", "end"),
    [
        *KNOWN[3:6],
        *(pytest.param(*form, marks=pytest.mark.slow) for form in (*KNOWN[:3], *KNOWN[6:])),
    ],
)
def test_repair_when_experts_went_then_the_others_give_part_of_what_they_gave(router, end):
    data = few_directions()
    pruner = went(mixture(router, end), data)
    record = pruner.repair(data)
    assert record.refits[0].tensor == "down"
    assert record.after.error < 0.95 * record.before.error, record
    assert pruner.finish().verification.exact


def test_repair_when_gains_differ_by_channel_then_experts_are_left_and_it_says_so():
    data = few_directions()
    model = mixture("shares_of_the_chosen", "scaled_and_weighted")
    before = model.down.detach().clone()
    record = went(model, data).repair(data)
    assert torch.equal(model.down, before)
    assert any("down left as they are: nobody knows" in note for note in record.notes)


def test_repair_when_few_tokens_reach_an_expert_then_it_keeps_its_weights_and_it_says_so():
    data = few_directions()
    model = mixture("corrected")
    before, pruner = model.down.detach().clone(), went(model, data)
    starved, *_, fed = pruner.keeps["router"].nonzero()[:, 0].tolist()
    model.correction[starved], model.correction[fed] = -10.0, 1.0
    record = pruner.repair(data)
    assert any("1 of the experts of down left" in note for note in record.notes)
    assert torch.equal(model.down[starved], before[starved])
    assert not torch.equal(model.down[fed], before[fed])


class Two(nn.Sequential):
    """A mixture behind another."""

    def __init__(self) -> None:
        super().__init__(mixture("shares_first"), mixture("shares_of_the_chosen"))
        self[0].last = nn.Linear(WIDTH, WIDTH)


def mixtral() -> tuple[nn.Module, list[Any]]:
    draw = tokens(torch.Generator().manual_seed(0), 16, 16)
    net = hugging_face("Mixtral", **LLAMA, num_local_experts=4, pad_token_id=0)
    return net, [draw() for _ in range(4)]


def two() -> tuple[nn.Module, list[Any]]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Two().eval(), few_directions(4)


@pytest.mark.parametrize("model", [two, pytest.param(mixtral, marks=pytest.mark.slow)])
def test_repair_when_layers_follow_then_in_step_is_the_same_as_one_by_one(model):
    """What a new weight adds is added to a forward that has used the old one."""
    found = []
    for frugal in (False, True):
        net, data = model()
        record = went(net, data).repair(data, given=data if frugal else None)
        assert len([r for r in record.refits if r.done and "down" in r.tensor]) == 2
        assert record.after.kl < record.before.kl
        found.append({n: p.detach().clone() for n, p in net.named_parameters() if "down" in n})
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], rtol=1e-3, atol=1e-5)
