"""A loop's progress on a terminal, and nowhere else."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console
from torch import nn

from secateur import Config, Progress, Pruner


@pytest.fixture
def pruner() -> Pruner:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    config = Config(sparsity=0.5, schedule="linear", steps=2, every=2)
    return Pruner(net, config, torch.zeros(1, 4))


def shown(pruner: Pruner, *, terminal: bool, calls: int = 4) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100, color_system=None)
    with Progress(pruner, console):
        for _ in range(calls):
            pruner.step()
    return console.file.getvalue()


def test_progress_when_on_a_terminal_then_shows_a_line_per_pruning_step_and_a_bar(
    pruner: Pruner,
) -> None:
    text = shown(pruner, terminal=True)
    assert "step 2: 50.0% of the goal, 25.0% masked, scores up to" in text
    assert "step 4: 100.0% of the goal, 50.0% masked, scores up to" in text
    assert "2/2" in text


def test_progress_when_there_is_no_terminal_then_is_quiet(pruner: Pruner) -> None:
    assert shown(pruner, terminal=False).strip() == ""


def test_progress_when_the_loop_raises_then_the_pruner_reports_no_more(pruner: Pruner) -> None:
    with pytest.raises(LookupError), Progress(pruner, Console(file=io.StringIO())):
        raise LookupError
    assert pruner.on_prune == []


def test_progress_when_a_run_goes_on_then_the_bar_starts_where_it_was(pruner: Pruner) -> None:
    pruner.step()
    pruner.step()
    assert "1/2" in shown(pruner, terminal=True, calls=0)
