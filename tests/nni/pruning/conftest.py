"""Fixtures of the tests of NNI's pruners."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.nni.pruning.bench import Bench
from tests.nni.pruning.rules import Net


@pytest.fixture
def model() -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Net().eval()
        for parameter in net.parameters():
            nn.init.normal_(parameter)
    return net


@pytest.fixture
def example() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def bench() -> Bench:
    return Bench()
