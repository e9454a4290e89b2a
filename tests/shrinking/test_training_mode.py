"""What only training mode reads: the smaller model trains, or what it reads stays whole."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import secateur as sc

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Two blocks, of which the first does something of its own in training mode."""

    def __init__(self, extra: Callable[[Net, Tensor], Tensor]):
        super().__init__()
        self.a, self.b, self.c, self.d = (
            nn.Linear(*s) for s in ((8, 32), (32, 8), (8, 24), (24, 4))
        )
        self.width, self.extra, self.runs = 32, extra, 0
        self.register_buffer("noise", torch.rand(32))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.a(x)
        hidden = self.extra(self, hidden) if self.training else hidden
        self.runs += 1
        return self.d(self.c(self.b(hidden.relu())).relu())


def buffer(net: Net, hidden: Tensor) -> Tensor:
    return hidden * net.noise


def attribute(net: Net, hidden: Tensor) -> Tensor:
    return hidden + torch.randn(len(hidden), net.width) * 0.1


def view(net: Net, hidden: Tensor) -> Tensor:
    return nn.functional.dropout1d(hidden.view(-1, 4, 8)).view(-1, 32)


def literal(net: Net, hidden: Tensor) -> Tensor:
    return hidden + torch.ones(32)


@pytest.mark.parametrize("extra", [buffer, attribute, view, literal])
def test_prune_when_only_training_mode_reads_a_size_then_that_group_stays_and_the_rest_goes(extra):
    torch.manual_seed(0)
    result = sc.prune(Net(extra).train(), X, 0.5)
    assert result.plan.counts == {"b": 4, "c": 12}
    assert "a stays whole: the smaller Net does not run in training mode" in " ".join(result.notes)
    assert result.model.training
    assert result.model(X).shape == (4, 4)
    assert result.model.runs == 1  # those of trials are forgotten


def norm(net: Net, hidden: Tensor) -> Tensor:
    raise ValueError("Expected more than 1 value per channel when training")


@pytest.mark.parametrize("extra", [norm, lambda net, hidden: hidden * torch.rand_like(hidden)])
def test_prune_when_training_mode_needs_no_size_or_runs_not_at_all_then_everything_goes(extra):
    result = sc.prune(Net(extra), X, 0.5)
    assert result.plan.counts == {"a": 16, "b": 4, "c": 12}


@pytest.mark.parametrize("inplace", [False, True])
def test_prune_when_trials_run_in_training_mode_then_statistics_and_draws_are_as_before(inplace):
    net = nn.Sequential(
        nn.Linear(8, 32), nn.BatchNorm1d(32), nn.Dropout(), nn.Linear(32, 4)
    ).train()
    mean, state = net[1].running_mean.clone(), torch.get_rng_state()
    small = sc.prune(net, X, 0.5, inplace=inplace)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(small.model[1].running_mean, mean[list(small.plan.keep["0"])])
