"""Slim where no norm follows: the penalty falls on the norm of each block of weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from secateur import Config, Pruner
from secateur.errors import NoMatchError

EXAMPLE = torch.zeros(2, 6)


def net() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(6, 8),
            nn.BatchNorm1d(8),
            nn.ReLU(),
            nn.Linear(8, 8),
            nn.ReLU(),
            nn.Linear(8, 2),
        )


def stepped(model: nn.Module, **settings: object) -> Pruner:
    """Return the pruner after one step of gradient descent on a loss without gradient."""
    options = {"strength": 0.5}
    config = Config(method="slim", method_options=options, sparsity=0.5, **settings)
    pruner = Pruner(model, config, EXAMPLE)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    (model(torch.randn(4, 6)) * 0).sum().backward()
    optimizer.step()
    pruner.step()
    return pruner


def test_penalty_when_no_norm_follows_then_every_row_shrinks_along_itself() -> None:
    model = net()
    before = model[3].weight.detach().clone()
    stepped(model, scope="local", names=["3"], steps=1, start=1)
    size = before.norm(dim=1, keepdim=True)
    torch.testing.assert_close(model[3].weight, before * (1 - 0.1 * 0.5 / size))


def test_scores_when_no_norm_follows_then_the_smallest_rows_go() -> None:
    model = net()
    pruner = stepped(model, scope="local", names=["3"])
    dense = model._modules["3"]._parameters["weight"].norm(dim=1)
    assert pruner.keeps["3"].tolist() == (dense > dense.median()).tolist()


def test_init_when_norm_scales_and_rows_would_be_ranked_together_then_says_which() -> None:
    with pytest.raises(NoMatchError, match="no norm scales the channels of 3, which cannot be"):
        Pruner(net(), Config(method="slim", sparsity=0.5), EXAMPLE)


def test_init_when_nothing_has_a_norm_then_a_global_scope_ranks_the_rows() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    with torch.no_grad():
        model[0].weight.mul_(0.01)
    pruner = Pruner(model, Config(method="slim", sparsity=0.5), EXAMPLE)
    pruner.step()
    assert int(pruner.keeps["0"].sum()) == 1
    assert int(pruner.keeps["2"].sum()) >= 7
