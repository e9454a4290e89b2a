"""Perplexity in windows: each token once, equal to the sum over all predictions by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from secateur.errors import ConfigError
from secateur.runtime.perplexity import perplexity

LENGTHS: list[int] = []
"""Of what was read: what a model holds is as before when a measurement ends."""


class Reader(nn.Module):
    """Predicts from the mean of all that it has read: a context of its own matters."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.embed, self.head = nn.Embedding(7, 8), nn.Linear(8, 7)

    def forward(self, ids: Tensor) -> Tensor:
        LENGTHS.append(ids.shape[1])
        read = self.embed(ids).cumsum(1) / torch.arange(1, ids.shape[1] + 1)[:, None]
        return self.head(read)


@torch.no_grad()
def by_hand(model: nn.Module, tokens: Tensor, window: int, stride: int) -> tuple[float, int]:
    losses: dict[int, float] = {}
    for start in range(0, len(tokens), stride):
        ids = tokens[start : start + window]
        for i in range(1, len(ids)):
            if start + i not in losses:
                logits = model(ids[None, :i])[0, -1]
                losses[start + i] = float(F.cross_entropy(logits, ids[i]))
    return math.exp(sum(losses.values()) / len(losses)), len(losses)


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 40), st.integers(2, 12), st.integers(1, 12), st.integers(1, 4))
def test_perplexity_when_windows_are_of_any_size_then_each_token_counts_once(
    length, window, stride, size
):
    stride = min(stride, window)
    tokens = torch.randint(7, (length,), generator=torch.Generator().manual_seed(length))
    LENGTHS.clear()
    found = perplexity(Reader(), tokens, window, stride, size)
    assert max(LENGTHS) <= window
    value, many = by_hand(Reader(), tokens, window, stride)
    assert found.predictions == many
    assert found.value == pytest.approx(value, rel=1e-5)
    assert (found.window, found.stride) == (window, stride)


@pytest.mark.parametrize(
    ("length", "window", "stride"), [(1, 4, 4), (9, 1, 1), (9, 4, 5), (9, 4, 0)]
)
def test_perplexity_when_a_number_is_out_of_its_range_then_that_is_said(length, window, stride):
    with pytest.raises(ConfigError, match="a stride from 1 to the window"):
        perplexity(Reader(), torch.zeros(length, dtype=torch.long), window, stride)


def test_perplexity_when_a_model_does_not_predict_each_token_then_that_is_said():
    net = nn.Sequential(nn.Embedding(7, 8), nn.Flatten(), nn.Linear(32, 7))
    with pytest.raises(ConfigError, match="needs logits .4, 4, .*Sequential returns .4, 7"):
        perplexity(net, torch.zeros(16, dtype=torch.long), 4)


def test_perplexity_when_it_ends_then_the_model_is_as_it_was():
    model = Reader().train()
    perplexity(model, torch.arange(7), 3)
    assert model.training
