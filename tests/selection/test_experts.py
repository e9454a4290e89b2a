"""Whole experts: ranked by what a router sends to them and what they return, in any form."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.errors import ConfigError, NoMatchError
from secateur.pruner.candidates import Candidates
from secateur.scoring.criteria import criteria
from tests.graph.test_mechanisms import HIDDEN, Stacked, batched, randomised
from tests.mixtures import FORMS, WIDTH, batches, mixture

RANKING = [name for name in criteria if criteria.facts[name].experts]


def ranked(model: nn.Module, name: str, data: Any = None, **settings: Any) -> sc.Pruner:
    settings = {"criterion": name, "sparsity": 0.34, "normalize": "none", **settings}
    pruner = sc.Pruner(model, sc.Config(**settings), batches()[0])
    pruner.calibrate(data or batches())
    return pruner


def score(pruner: sc.Pruner) -> torch.Tensor:
    (each,) = pruner.selectables
    return pruner.statistics.score(each, pruner.tensors(), torch.Generator())


def test_experts_when_criteria_are_asked_then_these_rank_them():
    assert RANKING == ["contribution", "frequency", "reap"]


@pytest.mark.parametrize(("router", "end"), FORMS)
def test_score_when_a_mixture_has_any_form_then_it_is_that_by_hand(router, end):
    model = mixture(router, end)
    found = [model.asked(batch) for batch in batches()]
    count, norm = (torch.stack(each).sum(0) for each in zip(*found, strict=True))
    tokens = sum(batch[..., 0].numel() for batch in batches())
    wanted = {"frequency": count / tokens, "reap": norm / count.clamp(min=1)}
    wanted["contribution"] = norm / tokens
    for name in RANKING:
        torch.testing.assert_close(score(ranked(model, name)), wanted[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", RANKING)
def test_score_when_batches_come_in_any_way_then_it_is_the_same(name, tmp_path):
    model = mixture()
    one = score(ranked(model, name))
    parts = [part for batch in batches() for part in batch.split(1)]
    torch.testing.assert_close(one, score(ranked(model, name, parts)))
    pruner = ranked(model, name, batches()[:1])
    pruner.save(tmp_path / "run")
    again = sc.Pruner(model, pruner.config, batches()[0])
    again.load(tmp_path / "run")
    again.calibrate(batches()[1:])
    torch.testing.assert_close(one, score(again))


@pytest.mark.parametrize("name", RANKING)
def test_step_when_experts_are_masked_already_then_they_stay_so(name):
    model = mixture("shares_of_the_chosen")
    with torch.no_grad():  # those with a mask are chosen first: their logit is 0
        model.router.bias.sub_(9)
    settings = {"sparsity": 0.5, "steps": 3, "schedule": "linear"}
    pruner = sc.Pruner(model, sc.Config(criterion=name, **settings), batches()[0])
    gone: set[int] = set()
    for many in (1, 2, 3):
        pruner.calibrate(batches())
        pruner.step()
        now = set((~pruner.keeps["router"]).nonzero().flatten().tolist())
        assert gone <= now
        assert len(now) == many
        gone = now


@pytest.mark.parametrize("name", RANKING)
def test_prune_when_a_criterion_ranks_experts_then_no_other_group_is_touched(name):
    model = mixture()
    result = sc.prune(model, batches()[0], 0.5, name, data=batches())
    assert {*result.plan.keep} == {"router"}
    worst = score(ranked(model, name)).argsort()[:3]
    assert not {*worst.tolist()} & {*result.plan.keep["router"]}
    assert result.verification.exact
    assert result.verification.passed


def test_prune_when_an_expert_saw_few_tokens_then_a_note_says_so():
    model = mixture("shares_of_the_chosen")
    with torch.no_grad():
        model.router.bias[4] = -99
    result = sc.prune(model, batches()[0], 0.2, "contribution", data=batches())
    assert 4 not in result.plan.keep["router"]
    (note,) = [note for note in result.notes if "saw" in note]
    assert re.search(r"of 144 tokens, experts .*4.* saw .*0.*, fewer than 32", note)


def test_prune_when_every_expert_saw_many_tokens_then_no_note_says_so():
    data = [torch.randn(40, 24, WIDTH) for _ in range(2)]
    result = sc.prune(mixture(), batches()[0], 0.2, "reap", data=data)
    assert not any("saw" in note for note in result.notes)


@pytest.mark.parametrize("name", RANKING)
def test_prune_when_there_are_no_experts_then_that_is_said(name):
    net = nn.Sequential(nn.Linear(WIDTH, 8), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(NoMatchError, match="what='experts': Sequential has none"):
        sc.prune(net, batches()[0], 0.5, name, data=batches())
    with pytest.raises(NoMatchError, match="what='experts' is 'router'"):
        sc.prune(mixture(), batches()[0], 0.5, name, names=["last"], data=batches())
    with pytest.raises(ConfigError, match="granularity='group', not 'element'"):
        sc.Pruner(net, sc.Config(criterion=name, sparsity=0.5, granularity="element"), batches()[0])


@pytest.mark.parametrize("name", RANKING)
def test_decide_when_a_weight_is_copied_for_each_token_then_that_is_said(name):
    model, x = randomised(Stacked(batched)), torch.randn(2, 5, HIDDEN).double()
    pruner = sc.Pruner(model, sc.Config(criterion=name, sparsity=0.5), x)
    pruner.calibrate([x, x])
    with pytest.raises(ConfigError, match="no product with the experts of 'router' was seen"):
        pruner.decide()


@pytest.mark.parametrize("name", RANKING)
def test_decide_when_no_data_was_given_then_that_is_said(name):
    with pytest.raises(ConfigError, match="calibrate"):
        sc.Pruner(mixture(), sc.Config(criterion=name, sparsity=0.5), batches()[0]).step()


@pytest.mark.parametrize(("router", "end"), FORMS[::3])
@pytest.mark.parametrize("allocate", ["error", "estimate"])
def test_prune_when_error_curves_are_measured_then_of_cuts_that_may_be_chosen(
    allocate, router, end, monkeypatch
):
    measured = list[tuple[sc.Group, torch.Tensor]]()
    masks = Candidates._masks

    def seen(self, keeps, known):
        named = {each.name: each.group for each in self.selectables}
        measured.extend((named[name], keep) for name, keep in keeps.items())
        return masks(self, keeps, known)

    monkeypatch.setattr(Candidates, "_masks", seen)
    settings = {"what": ["all"], "of": "params", "allocate": allocate}
    sc.prune(mixture(router, end), batches()[0], 0.3, "activation", data=batches(), **settings)
    assert any(not bool(keep.all()) for _, keep in measured)
    assert all(int(keep.sum()) >= group.least for group, keep in measured)
